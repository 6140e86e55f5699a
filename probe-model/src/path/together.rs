//! What several flows tell together: by consumer, by backend, and of what a pod could not reach meanwhile.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::flow::Path;
use super::outcome::{Outcome, is_policy};
use crate::cilium::drop_reason::DropReason;
use crate::tuple::Tuple;

/// How flows were judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Nothing on this node stopped them.
    pub allowed: u64,
    /// They were dropped here.
    pub dropped: u64,
    /// It cannot be said.
    pub inconclusive: u64,
}

impl Flows {
    /// How many they are.
    pub fn total(&self) -> u64 {
        self.allowed + self.dropped + self.inconclusive
    }

    /// Adds one that was allowed (`Some(true)`), dropped, or neither is known.
    pub fn add(&mut self, allowed: Option<bool>) {
        match allowed {
            Some(true) => self.allowed += 1,
            Some(false) => self.dropped += 1,
            None => self.inconclusive += 1,
        }
    }
}

/// The flows of one consumer: of one private endpoint's connection, by Azure's link identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerFlows {
    /// The NAT IPs that it came by.
    pub nat_ips: BTreeSet<IpAddr>,
    /// Its clients' addresses, in its own address space.
    pub clients: BTreeSet<IpAddr>,
    /// How its flows were judged. Of one that was dropped before its first byte it is not known whose it was.
    pub flows: Flows,
}

/// The flows to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendFlows {
    /// It is on the node that the flows came to.
    pub is_local: bool,
    /// How they were judged.
    pub flows: Flows,
}

/// Consumers that are counted one by one, and addresses of each: whoever connects may say that it is anyone.
pub const CONSUMERS_MAX: usize = 256;
/// Backends that are counted one by one.
pub const BACKENDS_MAX: usize = 1024;

/// Flows by what they have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Together {
    /// By link identifier.
    pub consumers: BTreeMap<u32, ConsumerFlows>,
    /// By backend, of flows whose backend is known: those that were translated, or sent to a pod.
    pub backends: BTreeMap<SocketAddr, BackendFlows>,
    /// Flows of more consumers than are counted one by one.
    pub other_consumers: u64,
    /// Flows to more backends than that.
    pub other_backends: u64,
}

impl Together {
    /// Adds a flow. `local_backend` says whether its last destination is a pod of this node, if it is a pod at all.
    pub fn add(&mut self, path: &Path, local_backend: Option<bool>, allowed: Option<bool>) {
        if let Some(link_id) = path.evidence.link_id() {
            self.add_consumer(path, link_id, allowed);
        }
        if let Some(is_local) = local_backend {
            let last = path.final_tuple();
            let last = SocketAddr::new(last.daddr, last.dport);
            match has_room(&mut self.backends, last, BACKENDS_MAX) {
                Some(backend) => {
                    backend.is_local = is_local;
                    backend.flows.add(allowed);
                }
                None => self.other_backends += 1,
            }
        }
    }

    fn add_consumer(&mut self, path: &Path, link_id: u32, allowed: Option<bool>) {
        let Some(consumer) = has_room(&mut self.consumers, link_id, CONSUMERS_MAX) else {
            self.other_consumers += 1;
            return;
        };
        let client = path.evidence.proxy_header().and_then(|header| Some(header.source()?.ip()));
        for (known, more) in
            [(&mut consumer.nat_ips, Some(path.tuple.saddr)), (&mut consumer.clients, client)]
        {
            if known.len() < CONSUMERS_MAX {
                known.extend(more);
            }
        }
        consumer.flows.add(allowed);
    }

    /// Whether flows to this node's backends work and flows to another node's do not, with no exception: then it depends
    /// on the node that a flow comes to. `None` unless both were seen.
    pub fn splits_by_node(&self) -> Option<bool> {
        let of = |is_local: bool| {
            let ours = self.backends.values().filter(move |backend| backend.is_local == is_local);
            ours.fold(Flows::default(), |sum, backend| Flows {
                allowed: sum.allowed + backend.flows.allowed,
                dropped: sum.dropped + backend.flows.dropped,
                inconclusive: sum.inconclusive + backend.flows.inconclusive,
            })
        };
        let (here, there) = (of(true), of(false));
        let were_seen = here.total() > 0 && there.total() > 0;
        were_seen.then_some(here.dropped == 0 && here.allowed > 0 && there.allowed == 0 && there.dropped > 0)
    }
}

/// The entry of a key, made if there is room for it.
fn has_room<K: Ord, V: Default>(map: &mut BTreeMap<K, V>, key: K, max: usize) -> Option<&mut V> {
    let is_full = map.len() >= max;
    match map.entry(key) {
        Entry::Occupied(entry) => Some(entry.into_mut()),
        Entry::Vacant(_) if is_full => None,
        Entry::Vacant(entry) => Some(entry.insert(V::default())),
    }
}

/// A packet of a pod's that policy dropped on its way out, soon after the pod had accepted a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressDrop {
    /// The pod's flow that was dropped.
    pub tuple: Tuple,
    /// Cilium's reason.
    pub reason: DropReason,
    /// The flow that the pod had accepted last before.
    pub accepted: Tuple,
    /// How long after its first packet, in nanoseconds.
    pub after_ns: u64,
}

/// Flows that pods accepted lately.
#[derive(Clone, Debug, Default)]
pub struct Accepted(VecDeque<(u64, Tuple)>);

impl Accepted {
    /// What a pod does this long after it accepted a flow may be for that flow's sake.
    const WINDOW_NS: u64 = 10_000_000_000;
    /// Flows that are remembered.
    const MAX: usize = 4096;

    /// Remembers a flow if a pod accepted it. Flows may come in any order.
    pub fn remember(&mut self, path: &Path) {
        if path.outcome == Outcome::Answered {
            let at = self.0.partition_point(|(first_ns, _)| *first_ns <= path.first_ns);
            self.0.insert(at, (path.first_ns, path.final_tuple()));
        }
        if self.0.len() > Self::MAX {
            self.0.pop_front();
        }
    }

    /// What a flow is if a policy dropped it on its way out of a pod that had accepted another shortly before.
    pub fn egress_drop(&self, path: &Path) -> Option<EgressDrop> {
        let Outcome::DroppedByCilium { reason, established: false, reply: false } = path.outcome else {
            return None;
        };
        let before = self.0.iter().rev().filter(|(first_ns, accepted)| {
            accepted.daddr == path.tuple.saddr
                && (*first_ns..first_ns.saturating_add(Self::WINDOW_NS)).contains(&path.first_ns)
        });
        let (first_ns, accepted) = before.into_iter().next()?;
        is_policy(reason).then_some(EgressDrop {
            tuple: path.final_tuple(),
            reason,
            accepted: *accepted,
            after_ns: path.first_ns - first_ns,
        })
    }
}
