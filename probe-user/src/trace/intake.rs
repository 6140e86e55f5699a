//! Records as they come from the ring buffer, each told to whoever follows the flows.

use probe_common::{PacketRecord, PayloadRecord, SocketRecord};
use probe_model::cilium::DecodeError;
use probe_model::path::{Namespace, Place, Seen, Sighting, Tracker};

use super::coverage::Coverage;
use super::engine::now_ns;
use super::streams::Streams;
use crate::attach::Record;

/// Takes in what is seen: looks at each record where it lies, and keeps what its flow needs.
pub(super) struct Intake {
    pub(super) tracker: Tracker,
    /// What the programs need not make records of.
    pub(super) streams: Streams,
    /// Inode number of our network namespace.
    netns: u32,
    /// Earlier records are another attachment's.
    pub(super) since_ns: u64,
    /// Records from then on are.
    pub(super) until_ns: u64,
    /// Notifications of Cilium's that have a layout that is not known.
    pub(super) undecoded: u64,
    /// What was wrong with the first of them, until somebody was told.
    pub(super) not_read: Option<DecodeError>,
}

impl Intake {
    pub(super) fn new(tracker: Tracker, netns: u32) -> Self {
        let streams = Streams::default();
        Self { tracker, streams, netns, since_ns: 0, until_ns: u64::MAX, undecoded: 0, not_read: None }
    }

    /// Takes a record.
    pub(super) fn take(&mut self, record: Record<'_>, coverage: &Coverage) {
        if !(self.since_ns..self.until_ns).contains(&record.header().ktime_ns) {
            return;
        }
        let ground = Ground { netns: self.netns, coverage };
        let mut sighting = match record {
            Record::Packet(record) => {
                if let Some(place) = ground.place(record) {
                    let need = self.tracker.push_packet(record, place);
                    self.streams.note(record, need, now_ns);
                }
                return;
            }
            Record::Drop(record) => Sighting::from_drop(record).filter(|sighting| ground.is_ours(sighting)),
            Record::Event(record) => match Sighting::from_event(record) {
                Ok(sighting) => sighting.filter(|sighting| coverage.may_concern(&sighting.packet)),
                Err(error) => {
                    self.undecoded += 1;
                    if self.undecoded == 1 {
                        self.not_read = Some(error);
                    }
                    None
                }
            },
            Record::Socket(record) => ground.socket(record),
            Record::Payload(record) => ground.payload(record),
        };
        if let Some(sighting) = &mut sighting {
            if let Seen::Payload { place, .. } = &mut sighting.seen {
                place.point = coverage.point(*place);
            }
            self.tracker.push(sighting);
        }
    }

    /// Takes a notification that came by a socket of the agent's.
    pub(super) fn hear(&mut self, sighting: &Sighting, coverage: &Coverage) {
        if coverage.may_concern(&sighting.packet) {
            self.tracker.push(sighting);
        }
    }
}

/// Where the hooks are.
struct Ground<'e> {
    netns: u32,
    coverage: &'e Coverage,
}

impl Ground<'_> {
    /// Hooks on the kernel see every namespace of the machine: only the node's and the traced pods' count.
    fn place(&self, record: &PacketRecord) -> Option<Place> {
        let place = Place::of(&record.header, self.namespace_of_hook(record.netns)?)?;
        Some(Place { point: self.coverage.point(place), ..place })
    }

    fn payload(&self, record: &PayloadRecord) -> Option<Sighting> {
        Sighting::from_payload(record, self.namespace_of_hook(record.netns)?)
    }

    fn socket(&self, record: &SocketRecord) -> Option<Sighting> {
        Sighting::from_socket(record, self.namespace(record.netns)?)
    }

    /// A classifier does not say: it is always in our own.
    fn namespace_of_hook(&self, netns: u32) -> Option<Namespace> {
        if netns == 0 { Some(Namespace::Node) } else { self.namespace(netns) }
    }

    fn namespace(&self, netns: u32) -> Option<Namespace> {
        if netns == self.netns {
            Some(Namespace::Node)
        } else {
            self.coverage.pod_namespaces.contains(&netns).then_some(Namespace::Pod)
        }
    }

    /// Drops are the whole machine's: those of other namespaces count only with the pod's own address on them.
    fn is_ours(&self, sighting: &Sighting) -> bool {
        let Seen::KernelDrop { netns, .. } = sighting.seen else { return true };
        let tuple = sighting.packet.tuple;
        netns == self.netns || self.coverage.is_at(tuple.saddr) || self.coverage.is_at(tuple.daddr)
    }
}
