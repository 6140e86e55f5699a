//! A flow as one node judged it, decoded from the agent's JSON as far as joining needs it.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use probe_model::path::{HookPoint, Rewrite};
use probe_model::tuple::{Protocol, Tuple};
use serde_json::Value;

use crate::render::trace_json::FLOW_SCHEMA;
use crate::trace::judge::FlowVerdict;

/// Where and when a packet was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// When, by the node's clock.
    pub at_ns: u64,
    /// At which hook.
    pub point: HookPoint,
    /// Whether it was in the pod's own namespace.
    pub in_pod: bool,
    /// The interface, if it is the node's.
    pub interface: Option<String>,
    /// The packet's addresses and ports there.
    pub tuple: Tuple,
}

/// What became of a flow on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was dropped there, as Cilium or the kernel said; `reply` if it was the answer.
    Dropped {
        /// Whether it was the answer.
        reply: bool,
    },
    /// An answer was seen, and did not get to whoever asked.
    AnswerLost,
    /// Anything else.
    Other,
}

/// A flow as one node judged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The node, by its place in the plan.
    pub node: usize,
    /// Addresses and ports as it came to the node.
    pub tuple: Tuple,
    /// What changed them, in order.
    pub rewrites: Vec<Rewrite>,
    /// Where its first packet was seen, in order.
    pub hops: Vec<Stop>,
    /// Where its first answer was seen, in order.
    pub replies: Vec<Stop>,
    /// When its first packet was seen, by the node's clock.
    pub first_ns: u64,
    /// When its last was.
    pub last_ns: u64,
    /// When it was answered or refused.
    pub answered_ns: Option<u64>,
    /// The node's verdict.
    pub verdict: FlowVerdict,
    /// What became of it there.
    pub fate: Fate,
    /// The agent's line, for all that is only shown.
    pub line: Arc<str>,
}

impl Part {
    /// From a line of the agent's of [`FLOW_SCHEMA`].
    ///
    /// # Errors
    ///
    /// If it lacks what joining needs.
    pub fn new(node: usize, line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).context("it is no JSON")?;
        let schema = value["schema"].as_str().unwrap_or_default();
        ensure!(schema == FLOW_SCHEMA, "found schema `{schema}`, expected `{FLOW_SCHEMA}`");
        let verdict = match text(&value, "verdict")? {
            "allowed" => FlowVerdict::Allowed,
            "dropped" => FlowVerdict::Dropped,
            "inconclusive" => FlowVerdict::Inconclusive,
            other => {
                return Err(anyhow!("found verdict `{other}`, expected allowed, dropped or inconclusive"));
            }
        };
        let outcome = &value["outcome"];
        let fate = match text(outcome, "outcome")? {
            "dropped-by-cilium" | "dropped-by-kernel" => {
                Fate::Dropped { reply: outcome["reply"].as_bool().unwrap_or_default() }
            }
            "answer-lost" => Fate::AnswerLost,
            _ => Fate::Other,
        };
        Ok(Self {
            node,
            tuple: tuple(&value["tuple"])?,
            rewrites: each(&value, "rewrites", |own| {
                Ok(Rewrite { from: tuple(&own["from"])?, to: tuple(&own["to"])? })
            })?,
            hops: each(&value, "hops", stop)?,
            replies: each(&value, "replies", stop)?,
            first_ns: number(&value, "first_ns")?,
            last_ns: number(&value, "last_ns")?,
            answered_ns: value["answered_ns"].as_u64(),
            verdict,
            fate,
            line: line.into(),
        })
    }

    /// Addresses and ports after every change on the node.
    pub fn left(&self) -> Tuple {
        self.rewrites.last().map_or(self.tuple, |rewrite| rewrite.to)
    }

    /// Whether answers must come back through the node: it put an address of its own in the sender's place.
    pub fn is_snat(&self) -> bool {
        let left = self.left();
        (left.saddr, left.sport) != (self.tuple.saddr, self.tuple.sport)
    }

    /// When its first packet was seen last, by the node's clock.
    pub fn left_ns(&self) -> u64 {
        self.hops.last().map_or(self.first_ns, |hop| hop.at_ns)
    }

    /// Whether it can have gone on to another node: neither dropped nor delivered here.
    pub fn may_go_on(&self) -> bool {
        let is_delivered =
            |hop: &Stop| hop.in_pod || matches!(hop.point, HookPoint::PodIn | HookPoint::IpDeliver);
        let is_answered_here =
            self.replies.first().is_some_and(|hop| hop.in_pod || hop.point == HookPoint::PodOut);
        self.fate != (Fate::Dropped { reply: false })
            && !self.hops.iter().any(is_delivered)
            && !is_answered_here
    }

    /// Whether it can have come from another node: not from a pod or the node itself.
    pub fn may_have_come(&self) -> bool {
        let is_ours = |hop: &Stop| hop.in_pod || matches!(hop.point, HookPoint::PodOut | HookPoint::HostOut);
        !self.hops.first().is_some_and(is_ours)
    }

    /// All that the agent said.
    pub fn value(&self) -> Value {
        // It was decoded before.
        serde_json::from_str(&self.line).unwrap_or_default()
    }
}

fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str> {
    value[name].as_str().with_context(|| format!("it has no `{name}`"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("it has no `{name}`"))
}

fn each<T>(value: &Value, name: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<T>> {
    let all = value[name].as_array().with_context(|| format!("it has no `{name}`"))?;
    all.iter().map(|own| read(own).with_context(|| format!("one of its `{name}`"))).collect()
}

fn tuple(value: &Value) -> Result<Tuple> {
    let address = |name| {
        let text = text(value, name)?;
        text.parse::<IpAddr>().map_err(|_| anyhow!("found `{text}`, expected an address"))
    };
    let port = |name| {
        let port = u16::try_from(number(value, name)?);
        port.with_context(|| format!("`{name}` is no port"))
    };
    let protocol = text(value, "protocol")?;
    Ok(Tuple {
        saddr: address("saddr")?,
        daddr: address("daddr")?,
        sport: port("sport")?,
        dport: port("dport")?,
        protocol: Protocol::parse(protocol).with_context(|| format!("found protocol `{protocol}`"))?,
    })
}

fn stop(value: &Value) -> Result<Stop> {
    let name = text(value, "point")?;
    let point = HookPoint::ALL.into_iter().find(|point| format!("{point:?}") == name);
    Ok(Stop {
        at_ns: number(value, "ktime_ns")?,
        point: point
            .with_context(|| format!("found the hook `{name}`, which this plsprobe does not know"))?,
        in_pod: value["namespace"] == "pod",
        interface: value["interface"].as_str().map(str::to_owned),
        tuple: tuple(&value["tuple"])?,
    })
}
