//! Paths as they become known: sightings in, each flow out once when it is decided.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use probe_common::PacketRecord;

use super::datagrams::Datagrams;
use super::evidence::{LateReset, Reset, Reuse};
use super::flow::{self, Leg, Path};
use super::fragments::{self, Fragments};
use super::link::LegKey;
use super::outcome::{self, Outcome};
use super::packet::TcpFlags;
use super::sighting::{Place, Seen, Sighting};
use crate::cilium::events::Notification;
use crate::tuple::{Protocol, Tuple};

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

impl Patience {
    /// Nothing is decided sooner after its first packet.
    fn shortest(&self) -> u64 {
        let Self { settle_ns, answer_ns, word_ns, grace_ns } = *self;
        settle_ns.min(answer_ns).min(word_ns).min(grace_ns)
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self { settle_ns: 250_000_000, answer_ns: 600_000_000, word_ns: 600_000_000, grace_ns: 3_000_000_000 }
    }
}

/// How much is kept, whatever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Decided flows that are remembered, so that their later packets do not begin new ones.
    pub remembered: usize,
    /// Sightings of undecided flows.
    pub pending: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { remembered: 100_000, pending: 200_000 }
    }
}

/// A decided flow is forgotten when none of its packets came for this long.
const REMEMBERED_NS: u64 = 120_000_000_000;
/// After a look at what is undecided none is taken for so long, for each sighting: to put it together takes some
/// microsecond, so that flows under way, however many, take a hundredth of the time.
const LOOK_NS: u64 = 100_000;
/// But not longer than this.
const LOOK_MAX_NS: u64 = 100_000_000;
/// Undecided sightings for which there is always room.
const PENDING_KEPT: usize = 1024;
/// Later fragments that are kept until their first one comes.
const WAITING_MAX: usize = 10_000;
/// A flow that goes on for so many records after it was decided, at all places together, goes on for more.
const BUSY: u32 = 256;
/// A connection that is reset after less than this without a packet was not idle.
const IDLE_NS: u64 = 30_000_000_000;

/// What a flow needs of its next packets at a place, if they are like the one before: neither open nor end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A record of each.
    Records,
    /// To be counted. One record now and then tells that it goes on.
    Count,
}

/// A flow that was decided.
pub(super) struct Decided {
    isn: Option<u32>,
    was_answered: bool,
    /// FIN or RST were seen.
    was_closed: bool,
    last_ns: u64,
    /// Time of the last packet at a hook, on this leg.
    last_packet_ns: u64,
    /// The flow's tuple.
    tuple: Tuple,
    /// Who began it, on this leg.
    opener: (IpAddr, u16),
    /// Where its first packet was seen first: there it is counted when it comes again.
    first_hop: Option<Place>,
    /// Records that told nothing but that it goes on.
    later: u32,
}

impl Decided {
    fn new(path: &Path, leg: Leg) -> Self {
        Self {
            isn: leg.isn,
            was_answered: path.outcome == Outcome::Answered,
            was_closed: path.evidence.is_closed,
            last_ns: path.last_ns,
            last_packet_ns: leg.last_ns,
            tuple: path.tuple,
            opener: leg.opener,
            first_hop: path.hops.first().map(|hop| hop.place),
            later: 0,
        }
    }
}

/// What came of flows after they had been decided.
#[derive(Default)]
struct Later {
    packets: u64,
    retransmissions: u64,
    resets: Vec<LateReset>,
}

impl Later {
    /// Takes note of a packet of such a flow.
    fn note(&mut self, decided: &mut Decided, sighting: &Sighting) {
        let place = sighting.place();
        if !matches!(sighting.seen, Seen::Payload { .. }) {
            self.packets += 1;
        }
        let again = opens(sighting) && place.is_some() && place == decided.first_hop;
        self.retransmissions += u64::from(again);
        let late = place.and_then(|place| late_reset(decided, sighting, place));
        decided.was_closed |= sighting.packet.flags.closes() && sighting.has_numbers();
        decided.last_ns = decided.last_ns.max(sighting.ktime_ns);
        if place.is_some() {
            decided.last_packet_ns = decided.last_packet_ns.max(sighting.ktime_ns);
        }
        if let Some(late) = late {
            // The same reset is seen on each leg and at several hooks: where it was seen first counts.
            match self.resets.iter_mut().find(|known| known.tuple == late.tuple) {
                Some(known) if known.reset.ktime_ns <= late.reset.ktime_ns => {}
                Some(known) => *known = late,
                None => self.resets.push(late),
            }
        }
    }
}

/// Keeps the sightings of undecided flows.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "thousands of sightings")]
pub struct Tracker {
    patience: Patience,
    capacity: Capacity,
    pending: Vec<Sighting>,
    /// Until when it is not looked whether any of those can be decided.
    look_ns: u64,
    /// Of those, the datagrams.
    datagrams: Datagrams,
    fragments: Fragments,
    /// Later fragments whose first has not come yet.
    waiting: Vec<Sighting>,
    decided: HashMap<LegKey, Decided, RandomState>,
    /// Of legs whose ports are used again: what the new connection's evidence says of it.
    reused: HashMap<LegKey, Reuse, RandomState>,
    later: Later,
    overflowed: u64,
}

impl Tracker {
    /// An empty one.
    pub fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Keeping so much.
    #[must_use]
    pub fn with_capacity(self, capacity: Capacity) -> Self {
        Self { capacity, ..self }
    }

    /// Takes a packet's record from this place; one that is of no IP packet tells nothing. Says whether the next ones like
    /// it are needed.
    #[inline(never)] // where it is called from, code is made small
    pub fn push_packet(&mut self, record: &PacketRecord, place: Place) -> Need {
        if let Some(decided) = self.more_of_decided(record) {
            let goes_on = decided.later >= BUSY && !decided.was_closed;
            return if goes_on { Need::Count } else { Need::Records };
        }
        Sighting::at(record, place).map_or(Need::Records, |sighting| self.push(&sighting))
    }

    /// The decided flow of which a packet tells nothing but that it goes on, as nearly every one does; that is noted.
    pub(super) fn more_of_decided(&mut self, record: &PacketRecord) -> Option<&Decided> {
        let flags = TcpFlags(record.packet.tcp_flags);
        if flags.contains(TcpFlags::SYN) || flags.contains(TcpFlags::RST) || record.packet.quoted_proto != 0 {
            return None;
        }
        let decided = self.decided.get_mut(&LegKey::of_record(&record.packet)?)?;
        self.later.packets += 1;
        decided.later = decided.later.saturating_add(1);
        decided.was_closed |= flags.closes();
        decided.last_ns = decided.last_ns.max(record.header.ktime_ns);
        decided.last_packet_ns = decided.last_packet_ns.max(record.header.ktime_ns);
        Some(decided)
    }

    /// Takes one sighting, and says as [`Self::push_packet`] does what its flow needs.
    pub fn push(&mut self, sighting: &Sighting) -> Need {
        let is_first = self.fragments.learn(sighting);
        let need = self.complete(sighting);
        if is_first {
            for waiting in std::mem::take(&mut self.waiting) {
                self.complete(&waiting);
            }
        }
        need
    }

    /// Takes a sighting in, a later fragment's once its first one is known.
    fn complete(&mut self, sighting: &Sighting) -> Need {
        if !fragments::is_incomplete(&sighting.packet) {
            return self.take_in(sighting);
        }
        match self.fragments.complete(sighting) {
            Some(completed) => return self.take_in(&completed),
            None if self.waiting.len() < WAITING_MAX => self.waiting.push(sighting.clone()),
            None => self.overflowed += 1,
        }
        Need::Records
    }

    fn take_in(&mut self, sighting: &Sighting) -> Need {
        let Some(leg) = LegKey::of(&sighting.packet) else { return Need::Records };
        if let Entry::Occupied(mut known) = self.decided.entry(leg) {
            let decided = known.get_mut();
            if !is_news(decided, sighting) {
                self.later.note(decided, sighting);
                return Need::Records;
            }
            if opens(sighting) {
                let since_ns = sighting.ktime_ns.saturating_sub(decided.last_packet_ns);
                self.reused.insert(leg, Reuse { since_ns, was_closed: decided.was_closed });
                known.remove();
            } else {
                decided.last_ns = decided.last_ns.max(sighting.ktime_ns);
            }
        }
        if self.datagrams.has_enough(leg, sighting) {
            return Need::Count;
        }
        if self.pending.len() >= self.capacity.pending {
            self.overflowed += 1;
        } else {
            self.pending.push(sighting.clone());
        }
        Need::Records
    }

    /// Connections that were reset after they had been decided and idle for a while. Each is given once.
    pub fn late_resets(&mut self, now_ns: u64) -> Vec<LateReset> {
        let settle_ns = self.patience.settle_ns;
        let is_settled = |late: &mut LateReset| now_ns.saturating_sub(late.reset.ktime_ns) >= settle_ns;
        let mut settled: Vec<_> = self.later.resets.extract_if(.., is_settled).collect();
        settled.sort_by_key(|late| (late.reset.ktime_ns, late.tuple));
        settled
    }

    /// Flows that are decided at `now_ns`, in the order they began. Each is given once, and where many are under way up to
    /// a tenth of a second late.
    pub fn poll(&mut self, now_ns: u64) -> Vec<Path> {
        self.forget(now_ns);
        let first_ns = self.pending.iter().map(|sighting| sighting.ktime_ns).min();
        let is_due = |first_ns: u64| now_ns >= first_ns.saturating_add(self.patience.shortest());
        if now_ns < self.look_ns || !first_ns.is_some_and(is_due) {
            return Vec::new();
        }
        self.look_ns = now_ns + (LOOK_NS * self.pending.len() as u64).min(LOOK_MAX_NS);
        let patience = self.patience;
        self.take(|path| is_decided(path, &patience, now_ns))
    }

    /// Every flow that is left, decided or not: the trace has ended.
    pub fn finish(&mut self) -> Vec<Path> {
        self.take(|_| true)
    }

    /// Whether anything waits to be decided or told.
    pub fn has_work(&self) -> bool {
        !(self.pending.is_empty() && self.waiting.is_empty() && self.later.resets.is_empty())
    }

    /// Flows that are not decided yet, as far as they are known. They stay.
    pub fn undecided(&self) -> Vec<Path> {
        flow::assemble(self.pending.iter())
    }

    /// Sightings of undecided flows.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Records of flows that had been decided.
    pub fn later_packets(&self) -> u64 {
        self.later.packets
    }

    /// Opening SYNs that were seen again after their flow had been decided.
    pub fn later_retransmissions(&self) -> u64 {
        self.later.retransmissions
    }

    /// Sightings that were dropped because too many flows were undecided.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    fn take(&mut self, is_ready: impl Fn(&Path) -> bool) -> Vec<Path> {
        let mut ready: Vec<Path> = flow::assemble(self.pending.iter()).into_iter().filter(is_ready).collect();
        let openings = if ready.is_empty() { Vec::new() } else { openings(&self.pending) };
        // Of each leg taken: from when on its packets belong to a newer connection on the same ports, if to any.
        let mut taken: HashMap<LegKey, Option<u64>, RandomState> = HashMap::default();
        for path in &mut ready {
            for leg in path.legs.clone() {
                let Leg { key, isn, .. } = leg;
                let reused = path.evidence.reuse.into_iter().chain(self.reused.remove(&key));
                path.evidence.reuse = reused.reduce(Reuse::join);
                let newer_ns = newer(&openings, key, isn, path.first_ns);
                if newer_ns.is_none() {
                    self.decided.insert(key, Decided::new(path, leg));
                }
                taken.insert(key, newer_ns);
            }
        }
        if !taken.is_empty() {
            for stream in self.datagrams.forget(|leg| taken.contains_key(leg)) {
                if let Some(decided) = self.decided.get_mut(&stream) {
                    decided.later = BUSY;
                }
            }
            self.pending.retain(|sighting| {
                LegKey::of(&sighting.packet).is_some_and(|leg| match taken.get(&leg) {
                    None => true,
                    Some(newer_ns) => newer_ns.is_some_and(|newer_ns| sighting.ktime_ns >= newer_ns),
                })
            });
            // A flow of a high rate leaves room for a hundred thousand.
            if self.pending.capacity() / 4 > self.pending.len().max(PENDING_KEPT) {
                self.pending.shrink_to(2 * self.pending.len().max(PENDING_KEPT));
            }
        }
        ready
    }

    fn forget(&mut self, now_ns: u64) {
        self.fragments.forget(now_ns);
        self.waiting.retain(|sighting| !fragments::is_overdue(sighting, now_ns));
        if self.decided.len() > self.capacity.remembered {
            let cutoff = now_ns.saturating_sub(REMEMBERED_NS);
            self.decided.retain(|_, decided| decided.last_ns >= cutoff);
        }
        if self.decided.len() > self.capacity.remembered {
            self.decided.clear();
        }
        // Those are taken out with their flow; what is left was of none.
        if self.reused.len() > self.capacity.remembered {
            self.reused.clear();
        }
    }
}

/// A packet that opens a connection.
struct Opening {
    leg: LegKey,
    isn: u32,
    ktime_ns: u64,
}

fn openings(sightings: &[Sighting]) -> Vec<Opening> {
    let opening = |sighting: &Sighting| {
        let (isn, ktime_ns) = (sighting.packet.seq, sighting.ktime_ns);
        Some(Opening { leg: LegKey::of(&sighting.packet)?, isn, ktime_ns })
    };
    sightings.iter().filter(|sighting| opens(sighting)).filter_map(opening).collect()
}

/// When the first newer connection on a decided connection's ports was opened.
fn newer(openings: &[Opening], leg: LegKey, isn: Option<u32>, since_ns: u64) -> Option<u64> {
    let is_newer =
        |opening: &&Opening| Some(opening.isn) != isn && opening.ktime_ns > since_ns && opening.leg == leg;
    openings.iter().filter(is_newer).map(|opening| opening.ktime_ns).min()
}

/// Whether a packet opens a connection and tells which.
fn opens(sighting: &Sighting) -> bool {
    sighting.packet.flags.opens() && sighting.has_numbers()
}

/// A reset that ends a connection which had been idle, unless it had been closed.
fn late_reset(decided: &Decided, sighting: &Sighting, place: Place) -> Option<LateReset> {
    let packet = &sighting.packet;
    let idle_ns = sighting.ktime_ns.saturating_sub(decided.last_packet_ns);
    let is_late = packet.flags.contains(TcpFlags::RST)
        && packet.quoted.is_none()
        && decided.was_answered
        && !decided.was_closed
        && idle_ns >= IDLE_NS;
    let by_opener = (packet.tuple.saddr, packet.tuple.sport) == decided.opener;
    let reset = Reset { by_opener, place, ktime_ns: sighting.ktime_ns, idle_ns, after_fin: false };
    is_late.then_some(LateReset { tuple: decided.tuple, reset })
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
            let is_complete = path.is_acknowledged || (path.is_answer_complete() && !is_tcp);
            let is_settled = is_complete && !path.evidence.is_unfinished();
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
