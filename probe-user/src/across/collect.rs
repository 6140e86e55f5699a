//! What the agents say, put together: events in, paths and a report out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::clock::Clock;
use super::join::Chain;
use super::part::Part;
use super::path::Path;
use super::pending::{Due, Pending};
use super::plan::Plan;
use super::session::Event;
use super::{Options, others};
use crate::cli::{Outcome, Output};
use crate::render::trace_json::{FLOW_SCHEMA, SUMMARY_SCHEMA};
use crate::render::{across as text, across_json as json, clean};
use crate::trace::judge::FlowVerdict;
use crate::trace::listener::Paper;

/// Lines beside its answer that are passed on from one node; the others are counted.
const NOTICES_MAX: u64 = 20;
/// A longer line of an agent's is not read: a flow has some 15 KB.
const LINE_MAX: usize = 1 << 20;
/// Schemas that are told apart among lines that are not used.
const SCHEMAS_MAX: usize = 16;
/// How other lines of a trace begin, which tell of one node alone.
const TRACE_SCHEMA: &str = "plsprobe.trace.";

/// What became of one node's agent.
#[derive(Debug, Default)]
pub struct NodeState {
    /// Its clock.
    pub clock: Clock,
    /// Whether its traces run, or ran.
    pub is_running: bool,
    /// How it ended; `None` if it has not.
    pub ended: Option<Result<(), String>>,
    /// Flows that it told of.
    pub flows: u64,
    /// How each of its traces went, by its own word.
    pub summaries: Vec<Value>,
    /// Lines beside its answers that were not passed on.
    pub unsaid: u64,
    /// Lines that are of another version's schema, by its name.
    pub strange: BTreeMap<String, u64>,
    /// Lines that are no flow although they say so, and why the first is none.
    pub broken: Option<(u64, String)>,
    notices: u64,
}

/// How a trace across nodes went.
#[derive(Debug)]
pub struct Report {
    /// Who was asked.
    pub plan: Plan,
    /// What became of them, in the plan's order.
    pub nodes: Vec<NodeState>,
    /// Paths by verdict: allowed, dropped, inconclusive.
    pub paths: [u64; 3],
    /// Of them, those over several nodes.
    pub across: u64,
    /// Of them, those with a part that fits several others and was joined to none.
    pub apart: u64,
    /// Flows of nodes' own addresses that fit no flow which was asked for.
    pub left_out: u64,
    /// Flows that did not wait their time for other nodes' word, because too many came.
    pub hurried: u64,
    /// How long it took.
    pub elapsed: std::time::Duration,
}

/// The agents' words so far.
pub(super) struct Collect {
    report: Report,
    pending: Pending,
    count: Option<u64>,
    output: Output,
    /// Of each node, the addresses that its agent was asked about only because another node may have put them in.
    added: Vec<Vec<IpNet>>,
    started: Instant,
    is_told: bool,
}

impl Collect {
    pub(super) fn new(options: &Options, plan: Plan) -> Self {
        let given: Vec<IpNet> = options.src.iter().filter_map(|src| net(src)).collect();
        let is_given = |own: &IpNet| given.iter().any(|given| given.contains(own));
        let added = |name: &str| others(&plan, name).filter(|own| !is_given(own)).collect();
        let added = if options.has_sources() {
            plan.nodes.iter().map(|node| added(&node.name)).collect()
        } else {
            vec![Vec::new(); plan.nodes.len()]
        };
        let nodes = plan.nodes.iter().map(|_| NodeState::default()).collect();
        let report = Report {
            plan,
            nodes,
            paths: [0; 3],
            across: 0,
            apart: 0,
            left_out: 0,
            hurried: 0,
            elapsed: std::time::Duration::ZERO,
        };
        let Options { count, output, .. } = *options;
        Self {
            report,
            pending: Pending::default(),
            count,
            output,
            added,
            started: Instant::now(),
            is_told: false,
        }
    }

    /// Whether no more should be taken before some is printed.
    pub(super) fn is_full(&self) -> bool {
        self.pending.is_full()
    }

    /// Whether as many paths were printed as were asked for.
    pub(super) fn is_enough(&self) -> bool {
        self.count.is_some_and(|count| self.report.paths.iter().sum::<u64>() >= count)
    }

    /// Takes an event of a node's agent.
    pub(super) fn take(&mut self, node: usize, event: Event, paper: &mut impl Paper) {
        let (state, name) = (&mut self.report.nodes[node], &self.report.plan.nodes[node].name);
        match event {
            Event::Clock(readings) => state.clock.read(&readings),
            Event::Running => state.is_running = true,
            Event::Notice(line) => {
                state.notices += 1;
                if state.notices <= NOTICES_MAX {
                    paper.notice(&clean(&format!("{name}: {line}")));
                } else {
                    state.unsaid += 1;
                }
            }
            Event::Lines(bytes) => {
                state.is_running = true;
                let now = Instant::now();
                for line in String::from_utf8_lossy(&bytes).lines() {
                    if let Some(part) = state.line(node, line) {
                        self.pending.push(part, now);
                    }
                }
            }
            Event::Ended(ended) => {
                let ended = ended.map_err(|error| format!("{error:#}"));
                // One that ended at once ran all the same.
                state.is_running |= ended.is_ok();
                if let Err(why) = &ended {
                    let lost = if state.is_running {
                        "its part from here on is missing"
                    } else {
                        "it is not traced"
                    };
                    paper.notice(&clean(&format!("node {name}: {why}; {lost}")));
                }
                state.ended = Some(ended);
            }
        }
        self.tell(paper);
    }

    /// Says once that every agent runs, or does not.
    fn tell(&mut self, paper: &mut impl Paper) {
        let is_known = |state: &NodeState| state.is_running || state.ended.is_some();
        let running = self.report.nodes.iter().filter(|state| state.is_running).count();
        if self.is_told || running == 0 || !self.report.nodes.iter().all(is_known) {
            return;
        }
        self.is_told = true;
        let errors =
            self.report.nodes.iter().filter_map(|state| state.clock.offset()).map(|own| own.error_ns);
        let worst = text::millis(errors.max().unwrap_or_default().into());
        let all = self.report.nodes.len();
        paper.notice(&format!("tracing on {running} of {all} nodes; their clocks are known to {worst} ms"));
    }

    /// Prints paths that have waited long enough, or all.
    pub(super) fn print(&mut self, all: bool, paper: &mut impl Paper) -> Result<()> {
        let clocks: Vec<Clock> = self.report.nodes.iter().map(|state| state.clock.clone()).collect();
        let due = self.pending.due(&clocks, Instant::now(), all);
        for chain in &due.chains {
            if self.is_enough() {
                break;
            }
            if self.is_left_out(&due, chain) {
                self.report.left_out += 1;
                continue;
            }
            let path = Path::new(&self.report, &clocks, &due.parts, chain);
            let mut bytes = Vec::new();
            match self.output {
                Output::Text => text::path(&path, &mut bytes)?,
                Output::Json => json::path(&path, &mut bytes)?,
            }
            let verdict = path.judged.verdict;
            self.report.paths[verdict_index(verdict)] += 1;
            self.report.across += u64::from(chain.parts.len() > 1);
            self.report.apart += u64::from(!chain.apart.is_empty() || chain.is_crowded);
            paper.data(&bytes)?;
        }
        Ok(())
    }

    /// Whether it is a flow that was only looked at because it might have been the rest of another.
    fn is_left_out(&self, due: &Due, chain: &Chain) -> bool {
        let [part] = chain.parts.as_slice() else { return false };
        let part = &due.parts[*part];
        chain.apart.is_empty() && self.added[part.node].iter().any(|net| net.contains(&part.tuple.saddr))
    }

    /// Prints how it went.
    pub(super) fn sum_up(mut self, interrupted: bool, paper: &mut impl Paper) -> Result<Outcome> {
        self.report.elapsed = self.started.elapsed();
        self.report.hurried = self.pending.hurried;
        for state in &mut self.report.nodes {
            state.ended.get_or_insert_with(|| Err("it did not end its trace in time".to_owned()));
        }
        if self.report.nodes.iter().all(|state| !state.is_running) {
            let whys = self.report.nodes.iter().zip(&self.report.plan.nodes).filter_map(|(state, node)| {
                let why = state.ended.as_ref()?.as_ref().err()?;
                Some(format!("{}: {why}", node.name))
            });
            // One reason is often all nodes'.
            let whys: BTreeSet<_> = whys.collect();
            if interrupted {
                return Ok(Outcome::Interrupted);
            }
            bail!("no agent could be asked: {}", whys.into_iter().collect::<Vec<_>>().join("; "));
        }
        let mut bytes = Vec::new();
        match self.output {
            Output::Text => text::report(&self.report, &mut bytes)?,
            Output::Json => json::report(&self.report, &mut bytes)?,
        }
        paper.data(&bytes)?;
        Ok(match self.report.paths {
            [0, 0, 0] if interrupted => Outcome::Interrupted,
            paths => Outcome::of_flows(paths),
        })
    }
}

impl NodeState {
    /// Takes a line of the agent's answer: the flow, if it is one.
    fn line(&mut self, node: usize, line: &str) -> Option<Part> {
        let schema = serde_json::from_str::<Schema>(line).unwrap_or_default().schema;
        match schema.as_str() {
            _ if line.len() > LINE_MAX => self.broken(format!("it is {} bytes long", line.len())),
            FLOW_SCHEMA => match Part::new(node, line) {
                Ok(part) => {
                    self.flows += 1;
                    return Some(part);
                }
                Err(error) => self.broken(format!("{error:#}")),
            },
            SUMMARY_SCHEMA => self.summaries.extend(serde_json::from_str::<Value>(line)),
            "" => self.broken("it is no JSON with a schema".to_owned()),
            // Probes and the like tell of one node; another version of a flow would be missing.
            other
                if other.starts_with(TRACE_SCHEMA) && other.ends_with("/1") && !other.contains(".flow/") => {}
            other => {
                if self.strange.len() < SCHEMAS_MAX || self.strange.contains_key(other) {
                    *self.strange.entry(other.chars().take(100).collect()).or_default() += 1;
                }
            }
        }
        None
    }

    fn broken(&mut self, why: String) {
        self.broken.get_or_insert((0, why)).0 += 1;
    }
}

#[derive(Default, serde::Deserialize)]
struct Schema {
    #[serde(default)]
    schema: String,
}

fn verdict_index(verdict: FlowVerdict) -> usize {
    match verdict {
        FlowVerdict::Allowed => 0,
        FlowVerdict::Dropped => 1,
        FlowVerdict::Inconclusive => 2,
    }
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().map(|address: std::net::IpAddr| address.into()).ok())
}
