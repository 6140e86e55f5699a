//! The records of the ring buffer.
use core::mem::{offset_of, size_of};

use crate::Packet;

/// Longest notification header kept of a Cilium event; the longest of 1.13–1.20 is 56 bytes.
pub const EVENT_META_MAX: usize = 64;
/// Longest packet capture kept of a Cilium event; Cilium captures 128 bytes (192 on overlays from 1.18).
pub const EVENT_PACKET_MAX: usize = 192;

/// Of what each end of a TCP connection sends, the bytes at its beginning that are kept: a PROXY protocol header with
/// some TLVs, a request or status line. Segments that begin later are not.
pub const PAYLOAD_MAX: usize = 256;

/// First byte of every record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A [`PacketRecord`].
    Packet = 1,
    /// A [`DropRecord`].
    Drop = 2,
    /// An [`EventRecord`].
    Event = 3,
    /// A [`SocketRecord`].
    Socket = 4,
    /// A [`PayloadRecord`].
    Payload = 5,
}

impl RecordKind {
    /// Number of kinds: each is a stream of its own on each CPU, numbered by [`RecordHeader::seq`].
    pub const COUNT: usize = 5;

    /// The kind with this number in a record.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Packet),
            2 => Some(Self::Drop),
            3 => Some(Self::Event),
            4 => Some(Self::Socket),
            5 => Some(Self::Payload),
            _ => None,
        }
    }
}

/// Where a packet was seen: by a classifier of ours, or by a hook on the kernel that sees every network namespace.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookPoint {
    /// Ingress of the node's network interface: from the network.
    UplinkIn = 1,
    /// Egress of the node's network interface: to the network.
    UplinkOut = 2,
    /// Ingress of the host side of a pod's veth: from the pod.
    PodOut = 3,
    /// Egress of the host side of a pod's veth: to the pod.
    PodIn = 4,
    /// Egress of `cilium_host`: from the host's stack into Cilium.
    HostOut = 5,
    /// Ingress of `cilium_host`: from Cilium to the host's stack.
    HostIn = 6,
    /// Ingress of the virtual function below the uplink (accelerated networking).
    VfIn = 7,
    /// Egress of the virtual function below the uplink.
    VfOut = 8,
    /// Ingress of `cilium_vxlan` or `cilium_geneve`: from another node, its tunnel header gone.
    OverlayIn = 9,
    /// Egress of the overlay's interface: to another node, not yet with a tunnel header.
    OverlayOut = 10,
    /// An interface received it (`net:netif_receive_skb`), before tc looked.
    Received = 16,
    /// It was queued at an interface (`net:net_dev_queue`), after tc looked.
    Queued = 17,
    /// The IP layer received it (`ip_rcv`, `ipv6_rcv`).
    IpReceive = 18,
    /// The IP layer forwards it to another interface (`ip_forward`, `ip6_forward`).
    IpForward = 19,
    /// The IP layer delivers it to a socket of its namespace (`ip_local_deliver`, `ip6_input`).
    IpDeliver = 20,
}

impl HookPoint {
    /// Every point, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::UplinkIn,
        Self::UplinkOut,
        Self::PodOut,
        Self::PodIn,
        Self::HostOut,
        Self::HostIn,
        Self::VfIn,
        Self::VfOut,
        Self::OverlayIn,
        Self::OverlayOut,
        Self::Received,
        Self::Queued,
        Self::IpReceive,
        Self::IpForward,
        Self::IpDeliver,
    ];

    /// The point with this number in a record.
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|point| *point as u8 == raw)
    }
}

/// What a socket did; the `point` of a [`SocketRecord`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketPoint {
    /// It changed its state (`sock:inet_sock_set_state`).
    State = 1,
    /// The stack answered a packet with a reset (`tcp:tcp_send_reset`); without a socket nobody listened.
    Reset = 2,
    /// It sent a segment again (`tcp:tcp_retransmit_skb`).
    Retransmit = 3,
    /// It sent its SYN-ACK again (`tcp:tcp_retransmit_synack`): its first answer was not acknowledged.
    RetransmitSynAck = 4,
}

impl SocketPoint {
    /// Every point, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::State, Self::Reset, Self::Retransmit, Self::RetransmitSynAck];

    /// The point with this number in a record.
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|point| *point as u8 == raw)
    }
}

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u8,
    /// A [`HookPoint`] in a [`PacketRecord`] and a [`PayloadRecord`], a [`SocketPoint`] in a [`SocketRecord`], else 0.
    pub point: u8,
    /// The CPU that wrote it.
    pub cpu: u16,
    /// The interface of the packet; 0 when it has none.
    pub ifindex: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub ktime_ns: u64,
    /// Which record of this kind it is on this CPU, from 1: a gap is a record that found no room.
    pub seq: u64,
}

/// A packet at a hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord {
    /// Kind, point, interface, time.
    pub header: RecordHeader,
    /// `skb->head`: which buffer holds the packet. A clone shares it, and rewriting or a tunnel header leave it; only
    /// a copy has another. 0 when unknown. The kernel uses a buffer again once the packet is gone.
    pub buffer: u64,
    /// `skb->len`, layer 2 included where the hook sees it.
    pub skb_len: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->hash`; 0 when not computed.
    pub hash: u32,
    /// Inode number of the interface's network namespace; 0 at a classifier, which is always in our own.
    pub netns: u32,
    /// The packet.
    pub packet: Packet,
}

/// A packet that the kernel freed as dropped (`skb:kfree_skb`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// Kind, interface, time.
    pub header: RecordHeader,
    /// As in [`PacketRecord::buffer`].
    pub buffer: u64,
    /// Address in the kernel that freed the packet.
    pub location: u64,
    /// `enum skb_drop_reason` of this kernel; 0 where the kernel has no reasons (before 5.17).
    pub reason: u32,
    /// Inode number of the network namespace of the packet's interface; 0 when unknown.
    pub netns: u32,
    /// `skb->len` at that moment.
    pub skb_len: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// The packet.
    pub packet: Packet,
}

/// A notification that a tc program handed to `bpf_skb_event_output`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Kind, interface, time.
    pub header: RecordHeader,
    /// Id of the perf event array it was written to.
    pub map_id: u32,
    /// Size of the notification before the packet bytes, as the program gave it.
    pub meta_size: u32,
    /// Packet bytes the program asked to append.
    pub cap_len: u32,
    /// Bytes valid in `meta`; less than `meta_size` only for a notification longer than [`EVENT_META_MAX`].
    pub meta_len: u32,
    /// Bytes valid in `packet`; less than `cap_len` when the packet's linear part is shorter.
    pub packet_len: u32,
    /// `skb->len`.
    pub skb_len: u32,
    /// The notification.
    pub meta: [u8; EVENT_META_MAX],
    /// The packet from its link-layer header on.
    pub packet: [u8; EVENT_PACKET_MAX],
}

/// Something that a TCP socket did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    /// Kind, point, time.
    pub header: RecordHeader,
    /// Inode number of the socket's network namespace; 0 when unknown.
    pub netns: u32,
    /// State before (`TCP_LISTEN` and so on, `include/net/tcp_states.h`); 0 unless the point is `State`.
    pub old_state: u8,
    /// State now; 0 unless the point is `State`.
    pub new_state: u8,
    /// 1: there is a socket. 0: a reset was sent without one.
    pub has_socket: u8,
    /// 0.
    pub pad: u8,
    /// The socket's own end as source, its peer as destination. For a reset the packet that it answers.
    pub packet: Packet,
}

/// The first bytes that one end of a TCP connection sends, or some of them: what a segment near its beginning carries.
///
/// The [`PacketRecord`] of the segment comes besides. Of a connection whose SYN our programs did not see there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadRecord {
    /// Kind, point, interface, time.
    pub header: RecordHeader,
    /// As in [`PacketRecord::netns`].
    pub netns: u32,
    /// Bytes valid in `bytes`: as many as the segment has, and the hook can reach.
    pub captured: u32,
    /// The segment.
    pub packet: Packet,
    /// Its payload from its beginning on.
    pub bytes: [u8; PAYLOAD_MAX],
}

/// Index into the per-CPU counters: what the programs saw, kept and lost.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Packets that passed a classifier of ours, or what stands in for one at a device, if their namespace matters.
    PacketSeen = 0,
    /// Packets, at any hook, that match the filter and are not only counted: records made.
    PacketMatched = 1,
    /// Of these, records that found no room in the ring buffer.
    PacketLost = 2,
    /// Packets that the kernel freed as dropped.
    DropSeen = 3,
    /// Of these, packets that match the filter: records made.
    DropMatched = 4,
    /// Of these, records that found no room.
    DropLost = 5,
    /// Notifications to Cilium's perf event array: records made.
    EventSeen = 6,
    /// Of these, records that found no room.
    EventLost = 7,
    /// Drops, notifications or packets that could not be read.
    Unreadable = 8,
    /// What sockets did, in every namespace.
    SocketSeen = 9,
    /// Of these, what matches the filter: records made.
    SocketMatched = 10,
    /// Of these, records that found no room.
    SocketLost = 11,
    /// Segments whose first bytes are kept: records made.
    PayloadMatched = 12,
    /// Of these, records that found no room.
    PayloadLost = 13,
    /// Packets, at any hook, that match the filter and are of a [`crate::Stream`] that is only counted: no record is made.
    PacketCounted = 14,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 15;
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 24);
    assert!(offset_of!(RecordHeader, kind) == 0);
    assert!(offset_of!(RecordHeader, point) == 1);
    assert!(offset_of!(RecordHeader, cpu) == 2);
    assert!(offset_of!(RecordHeader, ifindex) == 4);
    assert!(offset_of!(RecordHeader, ktime_ns) == 8);
    assert!(offset_of!(RecordHeader, seq) == 16);

    assert!(size_of::<PacketRecord>() == 144);
    assert!(offset_of!(PacketRecord, buffer) == 24);
    assert!(offset_of!(PacketRecord, skb_len) == 32);
    assert!(offset_of!(PacketRecord, mark) == 36);
    assert!(offset_of!(PacketRecord, hash) == 40);
    assert!(offset_of!(PacketRecord, netns) == 44);
    assert!(offset_of!(PacketRecord, packet) == 48);

    assert!(size_of::<DropRecord>() == 152);
    assert!(offset_of!(DropRecord, buffer) == 24);
    assert!(offset_of!(DropRecord, location) == 32);
    assert!(offset_of!(DropRecord, reason) == 40);
    assert!(offset_of!(DropRecord, netns) == 44);
    assert!(offset_of!(DropRecord, skb_len) == 48);
    assert!(offset_of!(DropRecord, mark) == 52);
    assert!(offset_of!(DropRecord, packet) == 56);

    assert!(size_of::<EventRecord>() == 304);
    assert!(offset_of!(EventRecord, map_id) == 24);
    assert!(offset_of!(EventRecord, meta_size) == 28);
    assert!(offset_of!(EventRecord, cap_len) == 32);
    assert!(offset_of!(EventRecord, meta_len) == 36);
    assert!(offset_of!(EventRecord, packet_len) == 40);
    assert!(offset_of!(EventRecord, skb_len) == 44);
    assert!(offset_of!(EventRecord, meta) == 48);
    assert!(offset_of!(EventRecord, packet) == 112);

    assert!(size_of::<SocketRecord>() == 128);
    assert!(offset_of!(SocketRecord, netns) == 24);
    assert!(offset_of!(SocketRecord, old_state) == 28);
    assert!(offset_of!(SocketRecord, new_state) == 29);
    assert!(offset_of!(SocketRecord, has_socket) == 30);
    assert!(offset_of!(SocketRecord, packet) == 32);

    assert!(size_of::<PayloadRecord>() == 384);
    assert!(offset_of!(PayloadRecord, netns) == 24);
    assert!(offset_of!(PayloadRecord, captured) == 28);
    assert!(offset_of!(PayloadRecord, packet) == 32);
    assert!(offset_of!(PayloadRecord, bytes) == 128);
};
