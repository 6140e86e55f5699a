//! One packet at one place at one time.

use core::cmp::Ordering;
use std::sync::Arc;

use probe_common::{
    DropRecord, EventRecord, HookPoint, PacketRecord, PayloadRecord, RecordHeader, SocketPoint, SocketRecord,
};

use super::packet::Packet;
use crate::cilium::DecodeError;
use crate::cilium::events::{Notification, Sample, Stream};
use crate::world::PolicyRef;

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;

/// How a packet came to our notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It passed one of our hooks.
    Hook {
        /// Which.
        place: Place,
        /// `skb->mark`.
        mark: u32,
        /// Which buffer held it, 0 if unknown: `skb->head`, which the kernel uses again once the packet is gone.
        buffer: u64,
    },
    /// What it carries was kept at one of our hooks, where it was also seen: it is near the beginning of what its sender
    /// sends.
    Payload {
        /// Which hook.
        place: Place,
        /// Its payload's first bytes.
        bytes: Arc<[u8]>,
    },
    /// A socket did something about it. The packet has only the two ends, the socket's own as source; for a reset it
    /// is the whole packet that was answered, if there was one.
    Socket {
        /// What.
        event: SocketEvent,
        /// Whose socket it is.
        namespace: Namespace,
    },
    /// The kernel freed it as dropped.
    KernelDrop {
        /// `enum skb_drop_reason` of the running kernel.
        reason: u32,
        /// Address in the kernel that freed it.
        location: u64,
        /// The interface, 0 if unknown.
        ifindex: u32,
        /// Inode number of the interface's network namespace, 0 if unknown.
        netns: u32,
        /// Which buffer held it, as in [`Self::Hook`].
        buffer: u64,
    },
    /// Cilium notified of it.
    Cilium {
        /// What Cilium said.
        notification: Notification,
    },
    /// Hubble passed on what Cilium notified of: without the packet's bytes, so that neither its TCP numbers nor its
    /// IP identification are known.
    Hubble {
        /// What Cilium said; what Hubble does not pass on of it is 0.
        notification: Notification,
        /// The policies that Hubble names behind a verdict.
        policies: Arc<[PolicyRef]>,
    },
}

impl Seen {
    /// What Cilium said, whoever passed it on.
    pub fn notification(&self) -> Option<Notification> {
        match self {
            Self::Cilium { notification } | Self::Hubble { notification, .. } => Some(*notification),
            Self::Hook { .. } | Self::Payload { .. } | Self::Socket { .. } | Self::KernelDrop { .. } => None,
        }
    }
}

/// Whose network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespace {
    /// The node's own.
    #[default]
    Node,
    /// The traced pod's.
    Pod,
}

/// A hook at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Which hook.
    pub point: HookPoint,
    /// The interface, by its index in its namespace; 0 if unknown.
    pub ifindex: u32,
    /// Whose namespace.
    pub namespace: Namespace,
}

impl Place {
    /// Where a record was made, in a namespace; `None` if the point is unknown.
    pub fn of(header: &RecordHeader, namespace: Namespace) -> Option<Self> {
        Some(Self { point: HookPoint::from_raw(header.point)?, ifindex: header.ifindex, namespace })
    }

    /// How far along its way a packet is here; within the node a packet's way only leads to higher ones.
    ///
    /// From a pod, from the network, the host's stack, to a pod or the network, inside the pod.
    pub(super) fn stage(self) -> u8 {
        match (self.namespace, self.point) {
            (Namespace::Pod, HookPoint::Queued) => 0,
            (_, HookPoint::PodOut) => 1,
            (Namespace::Node, HookPoint::Received) => 2,
            (_, HookPoint::VfIn) => 3,
            (_, HookPoint::UplinkIn) => 4,
            (_, HookPoint::OverlayIn) => 5,
            (_, HookPoint::HostIn) => 6,
            (Namespace::Node, HookPoint::IpReceive) => 7,
            (Namespace::Node, HookPoint::IpForward) => 8,
            (Namespace::Node, HookPoint::IpDeliver) => 9,
            (_, HookPoint::HostOut) => 10,
            (_, HookPoint::PodIn) => 11,
            (_, HookPoint::OverlayOut) => 12,
            (_, HookPoint::UplinkOut) => 13,
            (_, HookPoint::VfOut) => 14,
            (Namespace::Node, HookPoint::Queued) => 15,
            (Namespace::Pod, HookPoint::Received) => 16,
            (Namespace::Pod, HookPoint::IpReceive) => 17,
            (Namespace::Pod, HookPoint::IpForward) => 18,
            (Namespace::Pod, HookPoint::IpDeliver) => 19,
        }
    }
}

/// What a TCP socket did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketEvent {
    /// Its connection is open: both SYNs were acknowledged.
    Established,
    /// The stack answered a packet with a reset.
    Reset {
        /// There was a socket; without one nobody listened.
        had_socket: bool,
    },
    /// It sent a segment again.
    SentAgain,
    /// It sent its SYN-ACK again: its first answer was not acknowledged.
    AcceptedAgain,
}

impl SocketEvent {
    /// Of a reset, whether there was a socket.
    pub(super) fn had_socket(self) -> Option<bool> {
        match self {
            Self::Reset { had_socket } => Some(had_socket),
            _ => None,
        }
    }

    fn rank(self) -> u64 {
        match self {
            Self::Established => 0,
            Self::Reset { had_socket } => 1 + u64::from(had_socket),
            Self::SentAgain => 3,
            Self::AcceptedAgain => 4,
        }
    }
}

/// One packet at one place at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// `CLOCK_MONOTONIC` in nanoseconds. For a notification from one of the agent's sockets, the time that it gives, else the time it was received.
    pub ktime_ns: u64,
    /// The packet.
    pub packet: Packet,
    /// How it came to our notice.
    pub seen: Seen,
}

impl Sighting {
    /// From a packet's record; `None` if the packet is no IP packet or the point is unknown.
    pub fn from_packet(record: &PacketRecord, namespace: Namespace) -> Option<Self> {
        Self::at(record, Place::of(&record.header, namespace)?)
    }

    /// The same, at a place that is known.
    pub(super) fn at(record: &PacketRecord, place: Place) -> Option<Self> {
        Some(Self {
            ktime_ns: record.header.ktime_ns,
            packet: Packet::from_record(&record.packet)?,
            seen: Seen::Hook { place, mark: record.mark, buffer: record.buffer },
        })
    }

    /// From a record of a connection's first bytes; `None` if none could be kept, the packet is no IP packet or the point
    /// is unknown.
    pub fn from_payload(record: &PayloadRecord, namespace: Namespace) -> Option<Self> {
        let place = Place::of(&record.header, namespace)?;
        let bytes = record.bytes.get(..record.captured as usize).filter(|bytes| !bytes.is_empty())?;
        Some(Self {
            ktime_ns: record.header.ktime_ns,
            packet: Packet::from_record(&record.packet)?,
            seen: Seen::Payload { place, bytes: bytes.into() },
        })
    }

    /// From a socket's record; `None` if it has no peer yet, or did what tells nothing of a flow.
    pub fn from_socket(record: &SocketRecord, namespace: Namespace) -> Option<Self> {
        let event = match SocketPoint::from_raw(record.header.point)? {
            SocketPoint::State if record.new_state == TCP_ESTABLISHED => SocketEvent::Established,
            SocketPoint::State => return None,
            SocketPoint::Reset => SocketEvent::Reset { had_socket: record.has_socket != 0 },
            SocketPoint::Retransmit => SocketEvent::SentAgain,
            SocketPoint::RetransmitSynAck => SocketEvent::AcceptedAgain,
        };
        let packet = Packet::from_record(&record.packet)?;
        let has_peer = packet.tuple.sport != 0 && packet.tuple.dport != 0;
        let seen = Seen::Socket { event, namespace };
        has_peer.then_some(Self { ktime_ns: record.header.ktime_ns, packet, seen })
    }

    /// From a record of a kernel drop; `None` if the packet is no IP packet.
    pub fn from_drop(record: &DropRecord) -> Option<Self> {
        Some(Self {
            ktime_ns: record.header.ktime_ns,
            packet: Packet::from_record(&record.packet)?,
            seen: Seen::KernelDrop {
                reason: record.reason,
                location: record.location,
                ifindex: record.header.ifindex,
                netns: record.netns,
                buffer: record.buffer,
            },
        })
    }

    /// From a record of a notification; `None` if it carries no IP packet, or tells nothing of where the packet went.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the notification has a layout that is not known.
    pub fn from_event(record: &EventRecord) -> Result<Option<Self>, DecodeError> {
        fn part(bytes: &[u8], len: u32) -> &[u8] {
            &bytes[..(len as usize).min(bytes.len())]
        }
        let meta = part(&record.meta, record.meta_len);
        let packet = part(&record.packet, record.packet_len);
        let sample = Sample::from_hook(meta, record.meta_size as usize, packet)?;
        Ok(Self::from_sample(record.header.ktime_ns, &sample))
    }

    /// From the next sample of the agent's monitor socket; `None` as in [`Self::from_event`].
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the notification has a layout that is not known, or may have two of them.
    pub fn from_stream(ktime_ns: u64, stream: &mut Stream, raw: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Self::from_sample(ktime_ns, &stream.decode(raw)?))
    }

    fn from_sample(ktime_ns: u64, sample: &Sample<'_>) -> Option<Self> {
        let notification = sample.notification;
        match notification {
            Notification::Drop(_) | Notification::Trace(_) | Notification::PolicyVerdict(_) => {}
            _ => return None,
        }
        let packet = if notification.is_l3_device() {
            Packet::from_network(sample.packet)
        } else {
            Packet::from_ethernet(sample.packet)
        };
        Some(Self { ktime_ns, packet: packet?, seen: Seen::Cilium { notification } })
    }

    /// Whether the packet's own bytes were seen, with the numbers by which NAT leaves it to be known.
    pub(super) fn has_numbers(&self) -> bool {
        match self.seen {
            Seen::Hubble { .. } => false,
            // A reset is told with the packet that it answers, if there is one; a socket's two ends have no TTL.
            Seen::Socket { .. } => self.packet.ttl != 0,
            Seen::Hook { .. } | Seen::Payload { .. } | Seen::KernelDrop { .. } | Seen::Cilium { .. } => true,
        }
    }

    /// The buffer that held the packet, if it is known.
    pub(super) fn buffer(&self) -> Option<u64> {
        match self.seen {
            Seen::Hook { buffer, .. } | Seen::KernelDrop { buffer, .. } => Some(buffer).filter(|at| *at != 0),
            Seen::Payload { .. } | Seen::Socket { .. } | Seen::Cilium { .. } | Seen::Hubble { .. } => None,
        }
    }

    /// The hook that saw the packet itself.
    pub(super) fn place(&self) -> Option<Place> {
        match self.seen {
            Seen::Hook { place, .. } => Some(place),
            _ => None,
        }
    }

    /// An order of any two sightings that does not depend on when they arrived.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let key = |sighting: &Self| (rank(&sighting.seen), sighting.packet, sighting.buffer());
        // The rest is seldom asked for, and dear.
        self.ktime_ns.cmp(&other.ktime_ns).then_with(|| key(self).cmp(&key(other)))
    }
}

/// Orders what was seen in the same nanosecond: the way through the node, then sockets, then Cilium, then drops.
pub(super) fn rank(seen: &Seen) -> (u8, u64, u64) {
    match *seen {
        Seen::Hook { place, mark, .. } => (place.stage(), place.ifindex.into(), mark.into()),
        Seen::Payload { place, .. } => (30, place.stage().into(), place.ifindex.into()),
        Seen::Socket { event, namespace } => (31, namespace as u64, event.rank()),
        Seen::Cilium { notification } | Seen::Hubble { notification, .. } => match notification {
            Notification::Trace(trace) => (32, trace.point.0.into(), trace.reason.0.into()),
            Notification::PolicyVerdict(verdict) => {
                (33, verdict.direction as u64, u64::from(verdict.verdict.unsigned_abs()))
            }
            Notification::Drop(drop) => (34, drop.reason.0.into(), drop.line.into()),
            other => (35, other.message_type().into(), 0),
        },
        Seen::KernelDrop { reason, location, .. } => (36, reason.into(), location),
    }
}
