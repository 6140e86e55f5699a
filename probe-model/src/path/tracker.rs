//! Paths as they become known: sightings in, each flow out once when it is decided.

use std::borrow::Cow;
use std::collections::HashMap;

use super::flow::{self, Path};
use super::fragments::{self, Fragments};
use super::link::LegKey;
use super::outcome::{self, Outcome};
use super::packet::TcpFlags;
use super::sighting::{Place, Seen, Sighting};
use crate::cilium::events::Notification;
use crate::tuple::Protocol;

/// How long to wait before a flow is decided, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After an answer that the client went on with, or without TCP one that left by the side the flow came in on, or
    /// a drop: for Cilium's notifications to arrive.
    pub settle_ns: u64,
    /// After a refusal that was not seen leaving.
    pub answer_ns: u64,
    /// After a drop that only the kernel reports, for Cilium's own word on it: long where that comes by way of the
    /// agent, which may be busy.
    pub word_ns: u64,
    /// After the first packet, when nothing tells what became of it; after another answer, for either end to send
    /// again.
    pub grace_ns: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { settle_ns: 250_000_000, answer_ns: 600_000_000, word_ns: 600_000_000, grace_ns: 3_000_000_000 }
    }
}

/// Decided flows that are remembered, so that their later packets do not begin new ones.
const REMEMBERED_MAX: usize = 100_000;
/// A decided flow is forgotten when none of its packets came for this long.
const REMEMBERED_NS: u64 = 120_000_000_000;
/// Later fragments that are kept until their first one comes.
const WAITING_MAX: usize = 10_000;
/// Sightings of undecided flows that are kept.
const PENDING_MAX: usize = 200_000;

/// A flow that was decided.
struct Decided {
    isn: Option<u32>,
    was_answered: bool,
    last_ns: u64,
    /// Where its first packet was seen first: there it is counted when it comes again.
    first_hop: Option<Place>,
}

/// Keeps the sightings of undecided flows.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "thousands of sightings")]
pub struct Tracker {
    patience: Patience,
    pending: Vec<Sighting>,
    fragments: Fragments,
    /// Later fragments whose first has not come yet.
    waiting: Vec<Sighting>,
    decided: HashMap<LegKey, Decided>,
    later_packets: u64,
    retransmissions: u64,
    overflowed: u64,
    changed: bool,
}

impl Tracker {
    /// An empty one.
    pub fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes one sighting.
    pub fn push(&mut self, sighting: Sighting) {
        let is_first = self.fragments.learn(&sighting);
        self.complete(sighting);
        if is_first {
            for waiting in std::mem::take(&mut self.waiting) {
                self.complete(waiting);
            }
        }
    }

    /// Takes a sighting in, a later fragment's once its first one is known.
    fn complete(&mut self, sighting: Sighting) {
        if !fragments::is_incomplete(&sighting.packet) {
            self.take_in(sighting);
            return;
        }
        match self.fragments.complete(&sighting).map(Cow::into_owned) {
            Some(completed) => self.take_in(completed),
            None if self.waiting.len() < WAITING_MAX => self.waiting.push(sighting),
            None => self.overflowed += 1,
        }
    }

    fn take_in(&mut self, sighting: Sighting) {
        let Some(leg) = LegKey::of(&sighting.packet) else { return };
        if let Some(decided) = self.decided.get_mut(&leg) {
            decided.last_ns = decided.last_ns.max(sighting.ktime_ns);
            if !is_news(decided, &sighting) {
                self.later_packets += 1;
                let place = match sighting.seen {
                    Seen::Hook { place, .. } => Some(place),
                    _ => None,
                };
                let again = opens(&sighting) && place.is_some() && place == decided.first_hop;
                self.retransmissions += u64::from(again);
                return;
            }
            if opens(&sighting) {
                self.decided.remove(&leg);
            }
        }
        if self.pending.len() >= PENDING_MAX {
            self.overflowed += 1;
            return;
        }
        self.pending.push(sighting);
        self.changed = true;
    }

    /// Flows that are decided at `now_ns`, in the order they began. Each is given once.
    pub fn poll(&mut self, now_ns: u64) -> Vec<Path> {
        self.forget(now_ns);
        if self.pending.is_empty() {
            return Vec::new();
        }
        let patience = self.patience;
        self.take(|path| is_decided(path, &patience, now_ns))
    }

    /// Every flow that is left, decided or not: the trace has ended.
    pub fn finish(&mut self) -> Vec<Path> {
        self.take(|_| true)
    }

    /// Packets of flows that had been decided.
    pub fn later_packets(&self) -> u64 {
        self.later_packets
    }

    /// Opening SYNs that were seen again after their flow had been decided.
    pub fn later_retransmissions(&self) -> u64 {
        self.retransmissions
    }

    /// Sightings that were dropped because too many flows were undecided.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    fn take(&mut self, is_ready: impl Fn(&Path) -> bool) -> Vec<Path> {
        let ready: Vec<Path> = flow::assemble(&self.pending).into_iter().filter(is_ready).collect();
        // Of each leg taken: from when on its packets belong to a newer connection on the same ports, if to any.
        let mut taken: HashMap<LegKey, Option<u64>> = HashMap::new();
        for path in &ready {
            for (leg, isn) in &path.legs {
                let newer_ns = self.newer(*leg, *isn, path.first_ns);
                if newer_ns.is_none() {
                    let was_answered = path.outcome == Outcome::Answered;
                    let first_hop = path.hops.first().map(|hop| hop.place);
                    self.decided
                        .insert(*leg, Decided { isn: *isn, was_answered, last_ns: path.last_ns, first_hop });
                }
                taken.insert(*leg, newer_ns);
            }
        }
        if !taken.is_empty() {
            self.pending.retain(|sighting| {
                LegKey::of(&sighting.packet).is_some_and(|leg| match taken.get(&leg) {
                    None => true,
                    Some(newer_ns) => newer_ns.is_some_and(|newer_ns| sighting.ktime_ns >= newer_ns),
                })
            });
        }
        ready
    }

    /// When the first newer connection on a decided connection's ports was opened, among what is pending.
    fn newer(&self, leg: LegKey, isn: Option<u32>, since_ns: u64) -> Option<u64> {
        let opens = |sighting: &&Sighting| {
            opens(sighting)
                && Some(sighting.packet.seq) != isn
                && sighting.ktime_ns > since_ns
                && LegKey::of(&sighting.packet) == Some(leg)
        };
        self.pending.iter().filter(opens).map(|sighting| sighting.ktime_ns).min()
    }

    fn forget(&mut self, now_ns: u64) {
        self.fragments.forget(now_ns);
        self.waiting.retain(|sighting| !fragments::is_overdue(sighting, now_ns));
        if self.decided.len() > REMEMBERED_MAX {
            let cutoff = now_ns.saturating_sub(REMEMBERED_NS);
            self.decided.retain(|_, decided| decided.last_ns >= cutoff);
        }
        if self.decided.len() > REMEMBERED_MAX {
            self.decided.clear();
        }
    }
}

/// Whether a packet opens a connection and tells which.
fn opens(sighting: &Sighting) -> bool {
    sighting.packet.flags.opens() && sighting.has_numbers()
}

/// Whether a packet of a decided flow's tuple begins a new one or changes what became of it.
fn is_news(decided: &Decided, sighting: &Sighting) -> bool {
    let packet = &sighting.packet;
    if opens(sighting) {
        return decided.isn != Some(packet.seq);
    }
    // An open connection is judged anew when policy changes: its next packet is dropped.
    let dropped = match sighting.seen.notification() {
        Some(Notification::Drop(drop)) => outcome::is_policy(drop.reason),
        Some(Notification::PolicyVerdict(verdict)) => verdict.drop_reason().is_some(),
        _ => false,
    };
    decided.was_answered && dropped && !packet.flags.contains(TcpFlags::RST)
}

fn is_decided(path: &Path, patience: &Patience, now_ns: u64) -> bool {
    let since = |ktime_ns: u64| now_ns.saturating_sub(ktime_ns);
    match (path.outcome, path.answered_ns) {
        (Outcome::Answered, Some(answered_ns)) => {
            // A SYN-ACK that got lost behind the node is known by being sent again.
            let is_tcp = path.tuple.protocol == Protocol::TCP;
            let is_settled = path.is_acknowledged || (path.is_answer_complete() && !is_tcp);
            since(answered_ns) >= if is_settled { patience.settle_ns } else { patience.grace_ns }
        }
        (Outcome::Refused { .. }, Some(answered_ns)) => {
            let wait = if path.is_answer_complete() { patience.settle_ns } else { patience.answer_ns };
            since(answered_ns) >= wait
        }
        // The first drop decides; SYNs that come again are counted afterwards.
        (Outcome::DroppedByCilium { .. }, _) => {
            path.cilium.first().is_some_and(|event| since(event.ktime_ns) >= patience.settle_ns)
        }
        // The kernel may have freed it because Cilium told it to: Cilium's own word is worth waiting for.
        (Outcome::DroppedByKernel { .. }, _) => {
            path.drops.first().is_some_and(|drop| since(drop.ktime_ns) >= patience.word_ns)
        }
        _ => since(path.first_ns) >= patience.grace_ns,
    }
}
