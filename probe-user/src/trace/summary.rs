//! How a trace went.

use std::time::Duration;

use probe_model::lint::Silence;
use probe_model::path::together::Together;
use probe_model::world::World;

use super::gaps::Gap;
use super::judge::EventSource;
use super::watched::WatchedProbe;
use crate::attach::{Counters, Hook, Skipped};
use crate::cli::Outcome;

/// How a trace went.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Flows by verdict: allowed, dropped, inconclusive.
    pub flows: [u64; 3],
    /// Flows that were refused by whoever they reached; counted as allowed too.
    pub refused: u64,
    /// What our programs saw, kept and lost.
    pub counters: Counters,
    /// Records read from the ring buffer.
    pub records: u64,
    /// Records that could not be read.
    pub malformed: u64,
    /// Records that were made, and are neither read nor counted as lost: 0, or plsprobe's own counting is wrong.
    pub unaccounted: u64,
    /// Sightings dropped because too many flows were undecided.
    pub overflowed: u64,
    /// Records of flows after they had been decided.
    pub later_packets: u64,
    /// SYNs that came again after their flow had been decided.
    pub later_retransmissions: u64,
    /// Notifications from an agent's socket or our probe, and those lost before it and not understood.
    pub notifications: (u64, u64, u64),
    /// Every hook that was wanted.
    pub hooks: Vec<Hook>,
    /// Times in which nothing could be seen at a place.
    pub gaps: Vec<Gap>,
    /// Hooks whose programs the kernel did not run each time.
    pub skipped: Vec<Skipped>,
    /// Records whose number was not above the one before: at most as many were lost uncounted.
    pub disordered: u64,
    /// Where Cilium's verdicts came from.
    pub events: EventSource,
    /// The maps that the last flows were judged by, which name consumers.
    pub world: World,
    /// Health probes that were watched.
    pub probes: Vec<WatchedProbe>,
    /// What the flows tell together.
    pub together: Together,
    /// Flows that the target's pods could not open soon after they had accepted one.
    pub egress_drops: u64,
    /// Connections that were reset after they had been reported and idle.
    pub late_resets: u64,
    /// Where no flow was seen: what may keep Private Link's packets away.
    pub silence: Option<Silence>,
    /// When it ended, in nanoseconds of `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// When the first record was read, from the start on.
    pub first_record: Option<Duration>,
}

impl Summary {
    /// How the process ends that printed it.
    pub fn outcome(&self) -> Outcome {
        Outcome::of_flows(self.flows)
    }
}
