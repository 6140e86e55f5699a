//! What is watched beside the flows that were asked for: health probes, connections reset long after they were reported, what
//! the pod could not reach; and what the flows tell together. Pure.
use std::collections::BTreeSet;
use std::net::IpAddr;

use probe_model::path::Path;
use probe_model::path::evidence::LateReset;
use probe_model::path::probe::{Conclusion, INTERVAL_NS, ProbeLine, Probes, THRESHOLD};
use probe_model::path::together::{Accepted, EgressDrop, Together};
use probe_model::tuple::Protocol;
use probe_model::world::World;

use super::judge::{FlowVerdict, Judgement};
use super::scope::{ProbeRole, Scope};

/// A line of probes, and what the load balancer makes of it.
#[derive(Clone, Debug)]
pub struct WatchedProbe {
    /// What is probed, and how it went.
    pub line: ProbeLine,
    /// What that port is.
    pub role: ProbeRole,
    /// What the load balancer concludes.
    pub conclusion: Conclusion,
    /// Failures in a row that decide, and nanoseconds between two probes.
    pub rule: (u32, u64),
    /// Whether that is Azure's default, assumed for want of its own word.
    pub is_assumed: bool,
}

/// Destinations that a pod could not reach and that were told; then they are told again.
const REFUSED_MAX: usize = 4096;

/// What is watched.
#[derive(Debug, Default)]
pub(super) struct Watched {
    probes: Probes,
    accepted: Accepted,
    pub(super) together: Together,
    /// Where the pod's dropped packets were to go: each is told once.
    refused: BTreeSet<(IpAddr, u16, Protocol)>,
    pub(super) egress_drops: u64,
    pub(super) late_resets: u64,
}

impl Watched {
    /// Takes a probe into account; what is to be said of it, if it is the first of its line or got another answer.
    pub(super) fn probe(&mut self, world: &World, scope: &Scope, path: &Path) -> Option<WatchedProbe> {
        let line = self.probes.take(path)?.clone();
        let watched = watched(world, scope, line);
        (watched.role != ProbeRole::Other).then_some(watched)
    }

    /// Every line of probes, those of the target first.
    pub(super) fn probes(&self, world: &World, scope: &Scope) -> Vec<WatchedProbe> {
        let mut all: Vec<_> = self.probes.lines().map(|line| watched(world, scope, line.clone())).collect();
        all.sort_by_key(|probe| (probe.role, probe.line.to));
        all
    }

    /// Takes a judged flow into account.
    pub(super) fn flow(&mut self, judgement: &Judgement) {
        let allowed = match judgement.verdict {
            FlowVerdict::Allowed => Some(true),
            FlowVerdict::Dropped => Some(false),
            FlowVerdict::Inconclusive => None,
        };
        self.together.add(&judgement.path, judgement.has_local_backend, allowed);
        self.accepted.remember(&judgement.path);
    }

    /// What a flow of the pod's own is if policy dropped it soon after the pod had accepted one; each destination once.
    pub(super) fn egress(&mut self, path: &Path) -> Option<EgressDrop> {
        let drop = self.accepted.egress_drop(path)?;
        self.egress_drops += 1;
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        self.refused.insert((drop.tuple.daddr, drop.tuple.dport, drop.tuple.protocol)).then_some(drop)
    }

    /// Takes a late reset into account, if it is of a flow that was asked for.
    pub(super) fn late_reset(&mut self, scope: &Scope, late: &LateReset) -> bool {
        let is_ours = scope.covers_tuple(&late.tuple);
        self.late_resets += u64::from(is_ours);
        is_ours
    }
}

fn watched(world: &World, scope: &Scope, line: ProbeLine) -> WatchedProbe {
    let mut probes = world.private_link.load_balancers.iter().flatten().flat_map(|lb| &lb.probes);
    let known = probes.find(|probe| probe.port == line.to.port());
    let rule = known.map_or((THRESHOLD, INTERVAL_NS), |probe| {
        (probe.threshold.max(1), u64::from(probe.interval_seconds) * 1_000_000_000)
    });
    WatchedProbe {
        role: scope.probe_role(line.to.port()),
        conclusion: line.conclusion(rule.0),
        rule,
        is_assumed: known.is_none(),
        line,
    }
}
