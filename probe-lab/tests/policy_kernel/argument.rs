//! Kernel against simulator: many cases, and of the first difference the smallest map that shows it.
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};
use fastrand::Rng;

use crate::case::{Entry, Layout};
use crate::kernel::Kernel;
use crate::random::Case;
use crate::simulator::Simulator;
use crate::slot::{Answer, Query, SLOTS};

/// The simulator of a map; a test that wants a difference gives it other entries or another layout.
pub(crate) type Simulate<'a> = &'a dyn Fn(&[Entry], &Query) -> Result<Simulator>;

/// A packet that the two do not agree on, and the smallest map that shows it.
pub(crate) struct Difference {
    pub(crate) entries: Vec<Entry>,
    pub(crate) query: Query,
    pub(crate) kernel: Answer,
    pub(crate) simulator: Answer,
}

/// What was asked, by what the kernel said.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    pub(crate) maps: u64,
    /// The entries of the largest map.
    pub(crate) largest: usize,
    /// By number of the match type.
    pub(crate) match_types: [u64; 7],
    /// By drop reason, 0 for allowed.
    pub(crate) reasons: BTreeMap<i32, u64>,
    /// Allowed packets that went to a proxy.
    pub(crate) redirected: u64,
    /// Cases in which two entries were found.
    pub(crate) rivals: u64,
}

/// Argues about `cases` packets, and stops at the first difference.
pub(crate) fn argue(
    layout: Layout,
    cases: u64,
    seed: u64,
    simulate: Simulate<'_>,
) -> Result<(Tally, Option<Difference>)> {
    let mut kernel = Kernel::load(layout)?;
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally::default();
    while tally.cases < cases {
        let case = Case::new(layout, SLOTS, &mut rng);
        kernel.fill(&case.entries)?;
        let answers = kernel.ask(&case.queries)?;
        let simulator = simulate(&case.entries, &case.queries[0])?;
        for (query, answer) in case.queries.iter().zip(answers) {
            if !agree(layout, &answer, &simulator.ask(query, &answer)?) {
                return Ok((tally, Some(shrink(layout, &mut kernel, case.entries, *query, simulate)?)));
            }
            tally.count(&answer);
        }
        tally.maps += 1;
        tally.largest = tally.largest.max(case.entries.len());
    }
    Ok((tally, None))
}

/// Whether the two say the same.
///
/// Up to 1.16 the simulator may name a loser that the datapath, having decided, did not look at.
fn agree(layout: Layout, kernel: &Answer, simulator: &Answer) -> bool {
    let not_looked_at = !layout.is_ranked() && kernel.loser == 0;
    let loser = if not_looked_at { 0 } else { simulator.loser };
    *kernel == Answer { loser, ..*simulator }
}

/// Takes entries away, many at a time and then one by one, as long as the two still differ.
fn shrink(
    layout: Layout,
    kernel: &mut Kernel,
    mut entries: Vec<Entry>,
    query: Query,
    simulate: Simulate<'_>,
) -> Result<Difference> {
    let mut answers = |entries: &[Entry]| -> Result<_> {
        kernel.fill(entries)?;
        let kernel = kernel.ask(&[query])?[0];
        Ok((kernel, simulate(entries, &query)?.ask(&query, &kernel)?))
    };
    let mut chunk = entries.len();
    while chunk > 0 {
        let mut at = 0;
        while at < entries.len() {
            let end = entries.len().min(at + chunk);
            let fewer = [&entries[..at], &entries[end..]].concat();
            let (kernel, simulator) = answers(&fewer)?;
            if agree(layout, &kernel, &simulator) {
                at = end;
            } else {
                entries = fewer;
            }
        }
        chunk /= 2;
    }
    let (kernel, simulator) = answers(&entries)?;
    Ok(Difference { entries, query, kernel, simulator })
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        self.cases += 1;
        self.match_types[usize::from(answer.match_type)] += 1;
        *self.reasons.entry(-answer.result).or_default() += 1;
        self.redirected += u64::from(answer.result == 0 && answer.proxy_port != 0);
        self.rivals += u64::from(answer.loser != 0);
    }
}

/// One line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cases, maps, largest, match_types, reasons, redirected, rivals } = self;
        write!(f, "{cases} cases, {maps} maps of up to {largest} entries; ")?;
        let names = ["no match", "L3_ONLY", "L3_L4", "L4_ONLY", "ALL", "L3_PROTO", "PROTO_ONLY"];
        for (name, count) in names.iter().zip(match_types) {
            write!(f, "{name} {count}, ")?;
        }
        write!(f, "two entries {rivals}; ")?;
        for (reason, count) in reasons {
            match reason {
                0 => write!(f, "allowed {count} ({redirected} redirected)")?,
                _ => write!(f, ", -{reason} {count}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            writeln!(f, "    entry {entry}")?;
        }
        let Query { identity, port, protocol, egress, untracked_fragment, dual_stack, cluster_id, .. } =
            self.query;
        let direction = if egress == 0 { "ingress" } else { "egress" };
        let fragment = if untracked_fragment == 0 { "" } else { ", an untracked fragment" };
        let node = if dual_stack == 0 { "single-stack" } else { "dual-stack" };
        writeln!(
            f,
            "    packet {identity:#x} {protocol}:{port} {direction}{fragment}, {node}, cluster {cluster_id}"
        )?;
        for (name, answer) in [("kernel", self.kernel), ("simulator", self.simulator)] {
            let Answer { result, auth_type, match_type, proxy_port, chosen, loser } = answer;
            writeln!(
                f,
                "    {name:9} result {result}, match type {match_type}, auth {auth_type}, proxy {proxy_port}, \
                 entry #{chosen}, loser #{loser}"
            )?;
        }
        Ok(())
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("`{name}` is `{text}`, expected a number")),
        Err(_) => Ok(default),
    }
}
