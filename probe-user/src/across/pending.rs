//! Flows that wait for what other nodes say of them.

use std::time::{Duration, Instant};

use super::clock::Clock;
use super::join::{Chain, join};
use super::part::Part;

/// How long a flow waits for another node's part of it: a node that sees no answer says so three seconds after the last
/// packet, and the word takes a moment.
pub(super) const HOLD: Duration = Duration::from_secs(6);
/// However many like it come, none waits longer.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(18);
/// Flows that wait at most; some 15 KB each.
pub(super) const PENDING_MAX: usize = 4_096;

/// Flows that wait, each since when.
#[derive(Debug, Default)]
pub(super) struct Pending {
    parts: Vec<Part>,
    since: Vec<Instant>,
    /// Flows that did not wait their time, because too many came.
    pub(super) hurried: u64,
}

/// A path across nodes: its chain, and the parts that the chain's places are of.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Parts of all chains, and those that chains tell apart.
    pub(super) parts: Vec<Part>,
    /// Whole paths.
    pub(super) chains: Vec<Chain>,
}

impl Pending {
    /// Takes a flow. One that is known is dropped: two targets of one node may share flows.
    pub(super) fn push(&mut self, part: Part, now: Instant) {
        let is_known =
            |own: &Part| (own.node, own.tuple, own.first_ns) == (part.node, part.tuple, part.first_ns);
        if !self.parts.iter().any(is_known) {
            self.parts.push(part);
            self.since.push(now);
        }
    }

    /// Whether no more should come before some are taken.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= PENDING_MAX
    }

    /// Takes what has waited long enough, with all that could still change it. With `all` nothing stays.
    pub(super) fn due(&mut self, clocks: &[Clock], now: Instant, all: bool) -> Due {
        if self.parts.is_empty() {
            return Due::default();
        }
        let hurry = self.is_full();
        let chains = join(&self.parts, clocks);
        let mut groups = vec![usize::MAX; self.parts.len()];
        for chain in &chains {
            chain.parts.iter().for_each(|part| groups[*part] = chain.group);
        }
        let mut ages = vec![(Duration::MAX, Duration::ZERO); self.parts.len()];
        for (group, since) in groups.iter().zip(&self.since) {
            let (youngest, oldest) = &mut ages[*group];
            let age = now.saturating_duration_since(*since);
            (*youngest, *oldest) = ((*youngest).min(age), (*oldest).max(age));
        }
        let is_due = |group: usize| all || hurry || ages[group].0 >= HOLD || ages[group].1 >= HOLD_MAX;
        if hurry && !all {
            self.hurried += ages.iter().filter(|(youngest, _)| *youngest < HOLD).count() as u64;
        }
        let due: Vec<Chain> = chains.into_iter().filter(|chain| is_due(chain.group)).collect();
        if due.is_empty() {
            return Due::default();
        }
        let stays: Vec<bool> = groups.iter().map(|group| !is_due(*group)).collect();
        let parts = std::mem::take(&mut self.parts);
        let since = std::mem::take(&mut self.since);
        for ((part, since), _) in parts.iter().zip(since).zip(&stays).filter(|(_, stays)| **stays) {
            self.parts.push(part.clone());
            self.since.push(since);
        }
        Due { parts, chains: due }
    }
}

#[cfg(test)]
mod tests;
