//! One packet at one place at one time.

use core::cmp::Ordering;
use std::sync::Arc;

use probe_common::{DropRecord, EventRecord, HookPoint, PacketRecord};

use super::packet::Packet;
use crate::cilium::DecodeError;
use crate::cilium::events::{Notification, Sample, Stream};
use crate::world::PolicyRef;

/// How a packet came to our notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It passed one of our classifiers.
    Hook {
        /// Which.
        point: HookPoint,
        /// The interface.
        ifindex: u32,
        /// `skb->mark`.
        mark: u32,
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
            Self::Hook { .. } | Self::KernelDrop { .. } => None,
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
    /// From a classifier's record; `None` if the packet is no IP packet or the point is unknown.
    pub fn from_packet(record: &PacketRecord) -> Option<Self> {
        let point = HookPoint::from_raw(record.header.point)?;
        let (ifindex, mark) = (record.header.ifindex, record.mark);
        Some(Self {
            ktime_ns: record.header.ktime_ns,
            packet: Packet::from_record(&record.packet)?,
            seen: Seen::Hook { point, ifindex, mark },
        })
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
        !matches!(self.seen, Seen::Hubble { .. })
    }

    /// An order of any two sightings that does not depend on when they arrived.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let key = |sighting: &Self| (sighting.ktime_ns, sighting.packet, rank(&sighting.seen));
        key(self).cmp(&key(other))
    }
}

/// Orders what was seen in the same nanosecond: the way in, then Cilium, then the kernel, then the way out.
fn rank(seen: &Seen) -> (u8, u64, u64) {
    match *seen {
        Seen::Hook { point, ifindex, mark } => (point as u8, ifindex.into(), mark.into()),
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
