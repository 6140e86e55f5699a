//! The records of the ring buffer.
use core::mem::{offset_of, size_of};

use crate::Packet;

/// Longest notification header kept of a Cilium event; the longest of 1.13–1.20 is 56 bytes.
pub const EVENT_META_MAX: usize = 64;
/// Longest packet capture kept of a Cilium event; Cilium captures 128 bytes (192 on overlays from 1.18).
pub const EVENT_PACKET_MAX: usize = 192;

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
}

/// Where one of our classifiers saw a packet.
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
}

impl HookPoint {
    /// Every point, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::UplinkIn, Self::UplinkOut, Self::PodOut, Self::PodIn, Self::HostOut, Self::HostIn];

    /// The point with this number in a record.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::UplinkIn),
            2 => Some(Self::UplinkOut),
            3 => Some(Self::PodOut),
            4 => Some(Self::PodIn),
            5 => Some(Self::HostOut),
            6 => Some(Self::HostIn),
            _ => None,
        }
    }
}

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u8,
    /// A [`HookPoint`] in a [`PacketRecord`], else 0.
    pub point: u8,
    /// 0.
    pub pad: [u8; 2],
    /// The interface of the packet; 0 when it has none.
    pub ifindex: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub ktime_ns: u64,
}

/// A packet at one of our classifiers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRecord {
    /// Kind, point, interface, time.
    pub header: RecordHeader,
    /// `skb->len`, layer 2 included.
    pub skb_len: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->hash`; 0 when not computed.
    pub hash: u32,
    /// 0.
    pub pad: u32,
    /// The packet.
    pub packet: Packet,
}

/// A packet that the kernel freed as dropped (`skb:kfree_skb`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// Kind, interface, time.
    pub header: RecordHeader,
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

/// Index into the per-CPU counters: what the programs saw, kept and lost.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Packets that passed a classifier of ours.
    PacketSeen = 0,
    /// Of these, packets that match the filter.
    PacketMatched = 1,
    /// Of these, packets whose record found no room in the ring buffer.
    PacketLost = 2,
    /// Packets that the kernel freed as dropped.
    DropSeen = 3,
    /// Of these, packets that match the filter.
    DropMatched = 4,
    /// Of these, records that found no room.
    DropLost = 5,
    /// Notifications to Cilium's perf event array.
    EventSeen = 6,
    /// Of these, records that found no room.
    EventLost = 7,
    /// Drops, notifications or packets that could not be read.
    Unreadable = 8,
    /// Packets a classifier passed on without looking, because its lease had run out.
    LeaseExpired = 9,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 10;
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 16);
    assert!(offset_of!(RecordHeader, kind) == 0);
    assert!(offset_of!(RecordHeader, point) == 1);
    assert!(offset_of!(RecordHeader, ifindex) == 4);
    assert!(offset_of!(RecordHeader, ktime_ns) == 8);

    assert!(size_of::<PacketRecord>() == 120);
    assert!(offset_of!(PacketRecord, skb_len) == 16);
    assert!(offset_of!(PacketRecord, mark) == 20);
    assert!(offset_of!(PacketRecord, hash) == 24);
    assert!(offset_of!(PacketRecord, packet) == 32);

    assert!(size_of::<DropRecord>() == 128);
    assert!(offset_of!(DropRecord, location) == 16);
    assert!(offset_of!(DropRecord, reason) == 24);
    assert!(offset_of!(DropRecord, netns) == 28);
    assert!(offset_of!(DropRecord, skb_len) == 32);
    assert!(offset_of!(DropRecord, mark) == 36);
    assert!(offset_of!(DropRecord, packet) == 40);

    assert!(size_of::<EventRecord>() == 296);
    assert!(offset_of!(EventRecord, map_id) == 16);
    assert!(offset_of!(EventRecord, meta_size) == 20);
    assert!(offset_of!(EventRecord, cap_len) == 24);
    assert!(offset_of!(EventRecord, meta_len) == 28);
    assert!(offset_of!(EventRecord, packet_len) == 32);
    assert!(offset_of!(EventRecord, skb_len) == 36);
    assert!(offset_of!(EventRecord, meta) == 40);
    assert!(offset_of!(EventRecord, packet) == 104);
};
