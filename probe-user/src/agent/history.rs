//! What was judged lately, as it was told: bounded in bytes, the troubled flows kept apart from the many that work.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Result;
use probe_model::tuple::Tuple;

use crate::trace::judge::FlowVerdict;
use crate::trace::scope::Scope;

/// How hard JSON is packed: a tenth of its size for a tenth of a millisecond.
const LEVEL: i32 = 1;

/// A flow as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Nanoseconds since 1970 of its first packet.
    pub(super) first_ns: u64,
    /// As it came, and after each translation.
    pub(super) tuples: Vec<Tuple>,
    /// Whether it came to the node's address with the service's port.
    pub(super) is_beside: bool,
    pub(super) verdict: FlowVerdict,
    /// Whether it was answered, as flows are that work.
    pub(super) is_fine: bool,
    text: Box<str>,
    /// Packed.
    json: Box<[u8]>,
}

impl Kept {
    /// A flow that began at `first_ns`, with its text and its line of JSON.
    ///
    /// # Errors
    ///
    /// When the JSON cannot be packed.
    pub(super) fn new(
        tuples: Vec<Tuple>,
        verdict: FlowVerdict,
        first_ns: u64,
        text: String,
        json: &[u8],
    ) -> Result<Self> {
        let json = zstd::bulk::compress(json, LEVEL)?.into_boxed_slice();
        Ok(Self { first_ns, tuples, is_beside: false, verdict, is_fine: false, text: text.into(), json })
    }

    /// One that came to the node's address, and one that works.
    pub(super) fn that(self, is_beside: bool, is_fine: bool) -> Self {
        Self { is_beside, is_fine, ..self }
    }

    /// As text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// As a line of JSON.
    ///
    /// # Errors
    ///
    /// Never of what was packed here.
    pub(super) fn json(&self) -> Result<Vec<u8>> {
        Ok(zstd::stream::decode_all(&*self.json)?)
    }

    /// What it takes, its places in lists included.
    fn bytes(&self) -> u64 {
        let tuples = self.tuples.len() * size_of::<Tuple>();
        (size_of::<Self>() + tuples + self.text.len() + self.json.len()) as u64
    }
}

/// Flows in the order they were judged, the oldest gone first.
#[derive(Debug, Default)]
struct Shelf {
    /// Shared with those who are being told of them.
    flows: VecDeque<Arc<Kept>>,
    bytes: u64,
    /// The newest that was let go, by its first packet.
    forgotten_ns: Option<u64>,
}

impl Shelf {
    fn push(&mut self, flow: Kept, max_bytes: u64) {
        self.bytes += flow.bytes();
        self.flows.push_back(Arc::new(flow));
        while self.bytes > max_bytes
            && let Some(oldest) = self.flows.pop_front()
        {
            self.bytes -= oldest.bytes();
            self.forgotten_ns = self.forgotten_ns.max(Some(oldest.first_ns));
        }
    }
}

/// The last flows.
#[derive(Debug)]
pub(super) struct History {
    /// Nanoseconds since 1970 when it began.
    began_ns: u64,
    /// Of each shelf.
    max_bytes: u64,
    fine: Shelf,
    troubled: Shelf,
    /// The newest flow that was not judged, by its first packet.
    missed_ns: Option<u64>,
}

/// What there is of a time that was asked for.
#[derive(Debug)]
pub(super) struct Found {
    /// The flows, the oldest first.
    pub(super) flows: Vec<Arc<Kept>>,
    /// What keeps it from being all, in words.
    pub(super) lacks: Vec<Lack>,
}

/// Why some flows of a time may be missing. Times are nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// It began later.
    BeganAt(u64),
    /// Of flows that work, those that began up to then are not all kept.
    FineUpTo(u64),
    /// The same of flows that do not.
    TroubledUpTo(u64),
    /// Up to then some were not judged: there were too many.
    UnjudgedUpTo(u64),
}

impl History {
    /// Keeps so many bytes, from `now_ns` on.
    pub(super) fn new(max_bytes: u64, now_ns: u64) -> Self {
        let max_bytes = max_bytes / 2;
        Self {
            began_ns: now_ns,
            max_bytes,
            fine: Shelf::default(),
            troubled: Shelf::default(),
            missed_ns: None,
        }
    }

    /// Keeps a flow, and lets the oldest of its kind go if there is no room.
    pub(super) fn push(&mut self, flow: Kept) {
        let max_bytes = self.max_bytes;
        self.shelf(&flow).push(flow, max_bytes);
    }

    /// There was a flow that nobody judged.
    pub(super) fn miss(&mut self, first_ns: u64) {
        self.missed_ns = self.missed_ns.max(Some(first_ns));
    }

    fn shelf(&mut self, flow: &Kept) -> &mut Shelf {
        if flow.is_fine { &mut self.fine } else { &mut self.troubled }
    }

    /// Flows that began at `since_ns` or later and are of this scope.
    pub(super) fn since(&self, since_ns: u64, scope: &Scope) -> Found {
        let is_wanted = |flow: &&Arc<Kept>| {
            flow.first_ns >= since_ns && scope.covers_tuples(&flow.tuples, flow.is_beside)
        };
        let all = self.fine.flows.iter().chain(&self.troubled.flows);
        let mut flows: Vec<_> = all.filter(is_wanted).cloned().collect();
        flows.sort_by_key(|flow| flow.first_ns);
        let later = |ns: &u64| *ns >= since_ns;
        let lacks = [
            Some(self.began_ns).filter(later).map(Lack::BeganAt),
            self.fine.forgotten_ns.filter(later).map(Lack::FineUpTo),
            self.troubled.forgotten_ns.filter(later).map(Lack::TroubledUpTo),
            self.missed_ns.filter(later).map(Lack::UnjudgedUpTo),
        ];
        Found { flows, lacks: lacks.into_iter().flatten().collect() }
    }

    /// What it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.fine.bytes + self.troubled.bytes
    }

    /// How many it has.
    pub(super) fn len(&self) -> usize {
        self.fine.flows.len() + self.troubled.flows.len()
    }
}

#[cfg(test)]
mod tests {
    use probe_model::tuple::Protocol;

    use super::*;

    fn flow(first_ns: u64, daddr: &str, is_fine: bool) -> Kept {
        let tuple = Tuple {
            saddr: "10.224.0.8".parse().unwrap(),
            daddr: daddr.parse().unwrap(),
            sport: 1,
            dport: 80,
            protocol: Protocol::TCP,
        };
        let json = format!("{{\"at\":{first_ns}}}\n");
        let text = format!("flow {first_ns}\n");
        let kept = Kept::new(vec![tuple], FlowVerdict::Allowed, first_ns, text, json.as_bytes()).unwrap();
        kept.that(false, is_fine)
    }

    fn scope(address: &str) -> Scope {
        Scope::of_parts(address, &[], &[])
    }

    fn times(found: &Found) -> Vec<u64> {
        found.flows.iter().map(|flow| flow.first_ns).collect()
    }

    #[test]
    fn what_was_asked_for_in_order() {
        let mut history = History::new(1 << 20, 5);
        for flow in [flow(30, "10.0.0.1", true), flow(20, "10.0.0.1", false), flow(40, "10.0.0.2", true)] {
            history.push(flow);
        }
        let found = history.since(10, &scope("10.0.0.1"));
        assert_eq!((times(&found), found.lacks.as_slice()), (vec![20, 30], [].as_slice()));
        assert_eq!(found.flows[0].text(), "flow 20\n");
        assert_eq!(found.flows[0].json().unwrap(), b"{\"at\":20}\n");
        assert_eq!(times(&history.since(25, &scope("10.0.0.1"))), [30]);
        assert_eq!(history.since(1, &scope("10.0.0.2")).lacks, [Lack::BeganAt(5)]);
    }

    /// However many flows work, those that do not stay.
    #[test]
    fn it_is_bounded_and_says_what_it_let_go() {
        let max_bytes = 64 * 1024;
        let mut history = History::new(max_bytes, 0);
        for at in 1..=3 {
            history.push(flow(at, "10.0.0.1", false));
        }
        for at in 4..5000 {
            history.push(flow(at, "10.0.0.1", true));
            assert!(history.bytes() <= max_bytes);
        }
        let found = history.since(1, &scope("10.0.0.1"));
        assert_eq!(times(&found)[..3], [1, 2, 3]);
        let oldest_fine = times(&found)[3];
        assert!(oldest_fine > 4 && found.flows.len() == history.len());
        assert_eq!(found.lacks, [Lack::FineUpTo(oldest_fine - 1)]);
        assert!(history.since(oldest_fine, &scope("10.0.0.1")).lacks.is_empty());
    }

    #[test]
    fn a_flow_that_is_larger_than_all_room_is_let_go() {
        let mut history = History::new(16, 0);
        history.push(flow(7, "10.0.0.1", true));
        assert_eq!((history.len(), history.bytes()), (0, 0));
        assert_eq!(history.since(7, &scope("10.0.0.1")).lacks, [Lack::FineUpTo(7)]);
    }
}
