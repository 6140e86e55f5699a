//! A flow as a trace: one span for the flow, below it one for each place where its packets and its answers were seen.
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions where these have one, else `plsprobe.…`.

use std::fmt::Display;
use std::net::IpAddr;

use probe_model::tuple::{Protocol, Tuple};
use sha2::{Digest as _, Sha256};

use super::proto::{AnyValue, ArrayValue, KeyValue, Span, SpanKind, Status, StatusCode, Value};
use crate::agent::flow::{Flow, Peer, Stop};
use crate::render::clean;
use crate::render::trace::verdict_word;
use crate::trace::judge::FlowVerdict;

/// Characters of a text; the longest sentence has some 400.
const TEXT_MAX: usize = 1024;
/// Values of a list.
const LIST_MAX: usize = 16;
/// Places of one direction that get a span: a packet passes some ten of a node's.
pub(super) const STOPS_MAX: usize = 32;
/// Two nodes see one flow begin at almost the same time, and a client takes a port again after a minute at the soonest.
/// So the trace's id has the time in steps of so many seconds.
pub(super) const STEP_S: u64 = 64;

/// The spans of a flow as `node` saw it, the root first.
pub(super) fn spans(flow: &Flow, node: &str) -> Vec<Span> {
    let trace_id = trace_id(flow);
    let span_id = |idx: usize| {
        let digest = Sha256::new().chain_update(trace_id).chain_update(node.as_bytes());
        let digest = digest.chain_update(flow.number.to_be_bytes()).chain_update((idx as u64).to_be_bytes());
        digest.finalize()[..8].to_vec()
    };
    let end_ns = flow.answered_ns.unwrap_or_default().max(flow.last_ns).max(flow.first_ns);
    let root = Span {
        trace_id: trace_id.to_vec(),
        span_id: span_id(0),
        parent_span_id: Vec::new(),
        name: name(flow),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: flow.first_ns,
        end_time_unix_nano: end_ns,
        attributes: attributes(flow),
        status: status(flow),
    };
    let mut all = vec![root];
    // The last place is left when the answer is first seen: the time between is the pod's.
    let answer_ns = flow.replies.first().map(|stop| stop.at_ns);
    for (direction, stops, left_ns) in [("request", &flow.hops, answer_ns), ("answer", &flow.replies, None)] {
        for (idx, stop) in stops.iter().take(STOPS_MAX).enumerate() {
            let left_ns = stops.get(idx + 1).map(|next| next.at_ns).or(left_ns).unwrap_or_default();
            all.push(Span {
                trace_id: trace_id.to_vec(),
                span_id: span_id(all.len()),
                parent_span_id: all[0].span_id.clone(),
                name: cut(&stop.place),
                kind: SpanKind::Internal.into(),
                start_time_unix_nano: stop.at_ns,
                end_time_unix_nano: left_ns.max(stop.at_ns),
                attributes: place(direction, idx, stop),
                status: None,
            });
        }
    }
    all
}

/// The same on every node that sees the flow with the same addresses after translation, and begin within the same step.
fn trace_id(flow: &Flow) -> [u8; 16] {
    let Tuple { saddr, daddr, sport, dport, protocol } = flow.translated;
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let step = flow.first_ns / (STEP_S * 1_000_000_000);
    let digest = Sha256::new().chain_update(b"plsprobe.trace/1").chain_update([protocol.0]);
    let digest = digest.chain_update(octets(saddr)).chain_update(sport.to_be_bytes());
    let digest = digest.chain_update(octets(daddr)).chain_update(dport.to_be_bytes());
    let digest = digest.chain_update(step.to_be_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}

/// Few names, so that they can be counted: what tells flows of a service apart is in the attributes.
fn name(flow: &Flow) -> String {
    match &flow.service {
        Some((namespace, name)) => cut(&format!("flow to {namespace}/{name}")),
        None => "flow".to_owned(),
    }
}

fn status(flow: &Flow) -> Option<Status> {
    let is_error = flow.verdict == FlowVerdict::Dropped || flow.is_refused;
    is_error.then(|| Status {
        message: cut(&format!("{}: {}", flow.cause.text(), flow.sentence)),
        code: StatusCode::Error.into(),
    })
}

fn attributes(flow: &Flow) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    all.tuple("", flow.tuple);
    all.text("network.transport", transport(flow.tuple.protocol));
    all.text("network.type", if flow.tuple.saddr.is_ipv4() { "ipv4" } else { "ipv6" });
    if flow.translated != flow.tuple {
        all.tuple("plsprobe.translated.", flow.translated);
    }
    if let Some(pod) = &flow.destination.pod {
        all.text("k8s.namespace.name", &pod.namespace);
        all.text("k8s.pod.name", &pod.name);
    }
    if flow.verdict == FlowVerdict::Dropped || flow.is_refused {
        all.text("error.type", flow.cause.text());
    }
    all.text("plsprobe.verdict", verdict_word(flow.verdict));
    all.text("plsprobe.cause", flow.cause.text());
    all.text("plsprobe.sentence", &flow.sentence);
    all.text("plsprobe.source.class", flow.class.word());
    if let Some((namespace, name)) = &flow.service {
        all.text("plsprobe.service", format!("{namespace}/{name}"));
    }
    if let Some(reason) = flow.drop_reason {
        all.text("plsprobe.cilium.drop_reason", reason);
    }
    all.peer("source", &flow.source);
    all.peer("destination", &flow.destination);
    all.bool("plsprobe.answered", flow.answered_ns.is_some());
    all.bool("plsprobe.refused", flow.is_refused);
    all.int("plsprobe.syn_retransmissions", flow.retransmissions);
    if let Some(link_id) = flow.link_id {
        all.int("plsprobe.link_id", link_id);
    }
    all.list("plsprobe.policies", flow.policies.iter());
    if let Some(direction) = flow.direction {
        all.text("plsprobe.policy.direction", direction);
    }
    if let Some(nearest) = &flow.nearest {
        all.text("plsprobe.policy.nearest", nearest);
    }
    all.list("plsprobe.disagreements", flow.disagreements.iter());
    all.int("plsprobe.flow", i64::try_from(flow.number).unwrap_or(i64::MAX));
    let left_out = |stops: &[Stop]| stops.len().saturating_sub(STOPS_MAX) as u32;
    let left_out = left_out(&flow.hops) + left_out(&flow.replies);
    if left_out > 0 {
        all.int("plsprobe.places_left_out", left_out);
    }
    all.0
}

fn place(direction: &str, idx: usize, stop: &Stop) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    all.text("plsprobe.direction", direction);
    all.int("plsprobe.place", idx as u32);
    all.tuple("", stop.tuple);
    all.0
}

/// As the semantic conventions write it.
fn transport(protocol: Protocol) -> String {
    protocol.to_string().to_ascii_lowercase()
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn push(&mut self, key: impl Into<String>, value: Value) {
        self.0.push(KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }) });
    }

    fn text(&mut self, key: impl Into<String>, text: impl Display) {
        self.push(key, Value::Text(cut(&text.to_string())));
    }

    fn int(&mut self, key: impl Into<String>, value: impl Into<i64>) {
        self.push(key, Value::Int(value.into()));
    }

    fn bool(&mut self, key: impl Into<String>, value: bool) {
        self.push(key, Value::Bool(value));
    }

    fn list(&mut self, key: &str, values: impl ExactSizeIterator<Item = impl Display>) {
        if values.len() == 0 {
            return;
        }
        let text = |value: String| AnyValue { value: Some(Value::Text(cut(&value))) };
        let values = values.take(LIST_MAX).map(|value| text(value.to_string())).collect();
        self.push(key, Value::Array(ArrayValue { values }));
    }

    fn tuple(&mut self, prefix: &str, tuple: Tuple) {
        let ends = [("source", tuple.saddr, tuple.sport), ("destination", tuple.daddr, tuple.dport)];
        for (end, address, port) in ends {
            self.text(format!("{prefix}{end}.address"), address);
            if tuple.protocol.has_ports() {
                self.int(format!("{prefix}{end}.port"), port);
            }
        }
    }

    fn peer(&mut self, end: &str, peer: &Peer) {
        if let Some(identity) = peer.identity {
            self.int(format!("plsprobe.{end}.identity"), identity.0);
        }
        if let Some(endpoint) = peer.endpoint {
            self.int(format!("plsprobe.{end}.endpoint"), endpoint.0);
        }
        if let Some(pod) = &peer.pod {
            self.text(format!("plsprobe.{end}.pod"), pod);
        }
        self.list(&format!("plsprobe.{end}.labels"), peer.labels.iter());
    }
}

fn cut(text: &str) -> String {
    clean(text).chars().take(TEXT_MAX).collect()
}
