//! What a trace watches beside its flows: health probes, late resets, what a pod could not reach. As text and as JSON.

use std::io::{self, Write};

use probe_model::path::evidence::LateReset;
use probe_model::path::probe::{Conclusion, ProbeAnswer};
use probe_model::path::together::{EgressDrop, Flows, Together};
use probe_model::world::World;
use serde_json::{Value, json};

use super::explanation;
use super::gap::place_text;
use super::trace::verdict_word;
use super::trace_json::tuple_value;
use super::trace_proxy::{link_text, millis, reset_value};
use super::{clean, json_line};
use crate::trace::judge::Judgement;
use crate::trace::kernel::Names;
use crate::trace::scope::ProbeRole;
use crate::trace::watched::WatchedProbe;

/// Version of a probe's JSON.
pub const PROBE_SCHEMA: &str = "plsprobe.trace.probe/1";
/// Version of a late reset's JSON.
pub const RESET_SCHEMA: &str = "plsprobe.trace.reset/1";
/// Version of an egress drop's JSON.
pub const EGRESS_SCHEMA: &str = "plsprobe.trace.egress/1";

/// Writes what is to be said of a line of probes, and how its last one was judged.
///
/// # Errors
///
/// What `out` says.
pub fn probe(probe: &WatchedProbe, judgement: Option<&Judgement>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", clean(&probe_text(probe)))?;
    if let Some(judgement) = judgement {
        let cause = &judgement.explanation.cause;
        writeln!(out, "  judged   {}", clean(&format!("{} [{}]", cause.sentence, cause.code)))?;
    }
    Ok(())
}

/// One line: `health probe 168.63.129.16 -> 10.224.0.4:32673 (leads to the target): accepted; …`.
fn probe_text(probe: &WatchedProbe) -> String {
    let line = &probe.line;
    let role = match probe.role {
        ProbeRole::Target => "leads to the target",
        ProbeRole::Health => "the node answers",
        ProbeRole::Other => "another port",
    };
    let mut parts = vec![answer_text(line.answer)];
    parts.extend(line.interval_ns().map(|interval_ns| format!("every {} s", millis(interval_ns / 1000))));
    parts.extend(line.with_header.map(|with| {
        if with { "with a PROXY header".to_owned() } else { "without a PROXY header".to_owned() }
    }));
    parts.push(conclusion_text(probe));
    format!("health probe {} -> {} ({role}): {}", line.from, line.to, parts.join("; "))
}

fn answer_text(answer: ProbeAnswer) -> String {
    match answer {
        ProbeAnswer::Accepted => "accepted".to_owned(),
        ProbeAnswer::Status(status) => format!("HTTP status {status}"),
        ProbeAnswer::Reset => "accepted, then reset".to_owned(),
        ProbeAnswer::Unanswered => "accepted, its request not answered".to_owned(),
        ProbeAnswer::Refused => "refused".to_owned(),
        ProbeAnswer::Dropped => "dropped on this node".to_owned(),
        ProbeAnswer::None => "no answer".to_owned(),
    }
}

/// What the load balancer makes of it, by which rule.
fn conclusion_text(probe: &WatchedProbe) -> String {
    let (threshold, interval_ns) = probe.rule;
    let assumed = if probe.is_assumed { ", Azure's default, assumed" } else { "" };
    let seconds = interval_ns / 1_000_000_000 * u64::from(threshold);
    let rule = format!("{threshold} failures in a row, about {seconds} s{assumed}");
    match probe.conclusion {
        Conclusion::Up => "the load balancer takes this node for healthy".to_owned(),
        Conclusion::Failing => {
            format!(
                "{} failed: the load balancer will stop sending flows to this node ({rule})",
                probe.line.failed
            )
        }
        Conclusion::Down => {
            format!(
                "{} failed in a row: the load balancer sends this node no new flows ({rule})",
                probe.line.failed
            )
        }
    }
}

/// The same as JSON.
///
/// # Errors
///
/// What `out` says.
pub fn probe_json(
    world: &World,
    probe: &WatchedProbe,
    judgement: Option<&Judgement>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut value = probe_value(probe);
    value["schema"] = json!(PROBE_SCHEMA);
    if let Some(judgement) = judgement {
        value["verdict"] = json!(verdict_word(judgement.verdict));
        value["tuple"] = tuple_value(&judgement.path.tuple);
        value["proxy_expected"] = json!(judgement.proxy_expected);
        value["explanation"] = explanation::value(world, &judgement.explanation);
    }
    json_line(&value, out)
}

/// A line of probes as a JSON object.
pub(super) fn probe_value(probe: &WatchedProbe) -> Value {
    let line = &probe.line;
    let status = match line.answer {
        ProbeAnswer::Status(status) => Some(status),
        _ => None,
    };
    json!({
        "from": line.from.to_string(), "to": line.to.to_string(), "ended_at": line.last_to.to_string(),
        "role": match probe.role {
            ProbeRole::Target => "target",
            ProbeRole::Health => "health",
            ProbeRole::Other => "other",
        },
        "answer": line.answer.code(), "status": status, "healthy": line.answer.is_healthy(),
        "seen": line.seen, "failed_in_a_row": line.failed, "last_ns": line.last_ns,
        "interval_ns": line.interval_ns(), "with_proxy_header": line.with_header,
        "conclusion": probe.conclusion.code(),
        "rule": {
            "failures": probe.rule.0, "interval_ns": probe.rule.1, "assumed": probe.is_assumed,
        },
    })
}

/// Writes a reset of a connection that had been idle.
///
/// # Errors
///
/// What `out` says.
pub fn late_reset(late: &LateReset, names: &Names, out: &mut impl Write) -> io::Result<()> {
    let by = if late.reset.by_opener { "its client's" } else { "its server's" };
    let text = format!(
        "{}: reset after {} s without a packet, from {by} side (first seen at {})",
        late.tuple,
        millis(late.reset.idle_ns / 1000),
        place_text(late.reset.place, names)
    );
    writeln!(out, "{}", clean(&text))
}

/// The same as JSON.
///
/// # Errors
///
/// What `out` says.
pub fn late_reset_json(late: &LateReset, names: &Names, out: &mut impl Write) -> io::Result<()> {
    let value = json!({
        "schema": RESET_SCHEMA, "tuple": tuple_value(&late.tuple), "reset": reset_value(&late.reset, names),
    });
    json_line(&value, out)
}

/// Writes what a pod of the target's was not allowed to do.
///
/// # Errors
///
/// What `out` says.
pub fn egress(drop: &EgressDrop, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{}: dropped by Cilium on its way out of the pod, {}, {} ms after the pod was sent {}",
        drop.tuple,
        drop.reason,
        millis(drop.after_ns),
        drop.accepted
    )
}

/// The same as JSON.
///
/// # Errors
///
/// What `out` says.
pub fn egress_json(drop: &EgressDrop, out: &mut impl Write) -> io::Result<()> {
    let value = json!({
        "schema": EGRESS_SCHEMA, "tuple": tuple_value(&drop.tuple),
        "reason": { "code": drop.reason.0, "text": drop.reason.text() },
        "accepted": tuple_value(&drop.accepted), "after_ns": drop.after_ns,
    });
    json_line(&value, out)
}

/// The summary's lines on probes, consumers and backends.
///
/// # Errors
///
/// What `out` says.
pub(super) fn summary(
    world: &World,
    probes: &[WatchedProbe],
    together: &Together,
    out: &mut impl Write,
) -> io::Result<()> {
    for (link_id, consumer) in &together.consumers {
        let by: Vec<_> = consumer.nat_ips.iter().map(ToString::to_string).collect();
        let text = format!(
            "{}: {} by NAT IP {}",
            link_text(world, *link_id),
            flows_text(consumer.flows),
            by.join(", ")
        );
        writeln!(out, "consumer  {}", clean(&text))?;
    }
    if together.other_consumers > 0 {
        writeln!(
            out,
            "consumer  others: {} flows, too many to be counted one by one",
            together.other_consumers
        )?;
    }
    if together.backends.len() > 1 {
        for (address, backend) in &together.backends {
            let place = if backend.is_local { "on this node" } else { "on another node" };
            writeln!(out, "backend   {address} {place}: {}", flows_text(backend.flows))?;
        }
    }
    if together.other_backends > 0 {
        writeln!(
            out,
            "backend   others: {} flows, too many to be counted one by one",
            together.other_backends
        )?;
    }
    let (own, other): (Vec<_>, Vec<_>) = probes.iter().partition(|probe| probe.role != ProbeRole::Other);
    for probe in own {
        writeln!(out, "probes    {} seen; {}", probe.line.seen, clean(&probe_text(probe)))?;
    }
    if !other.is_empty() {
        let ports: Vec<_> = other.iter().map(|probe| probe.line.to.port().to_string()).collect();
        writeln!(
            out,
            "probes    also to ports {} of this node, of other services or of unknown use",
            ports.join(", ")
        )?;
    }
    Ok(())
}

fn flows_text(flows: Flows) -> String {
    let Flows { allowed, dropped, inconclusive } = flows;
    format!("{} flows, {allowed} allowed, {dropped} dropped, {inconclusive} inconclusive", flows.total())
}

/// The same as JSON: consumers, backends, and whether it depends on the node.
pub(super) fn together_value(world: &World, together: &Together) -> Value {
    let flows = |flows: Flows| {
        json!({
            "total": flows.total(), "allowed": flows.allowed, "dropped": flows.dropped,
            "inconclusive": flows.inconclusive,
        })
    };
    let texts = |addresses: &std::collections::BTreeSet<std::net::IpAddr>| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let consumers = together.consumers.iter().map(|(link_id, consumer)| {
        let known = world.private_link.connection(*link_id);
        json!({
            "link_id": link_id, "nat_ips": texts(&consumer.nat_ips), "clients": texts(&consumer.clients),
            "private_endpoint": known.and_then(|(_, own)| Some(own.endpoint.as_ref()?.0.as_str())),
            "flows": flows(consumer.flows),
        })
    });
    let backends = together.backends.iter().map(|(address, backend)| {
        json!({ "backend": address.to_string(), "here": backend.is_local, "flows": flows(backend.flows) })
    });
    json!({
        "consumers": consumers.collect::<Vec<_>>(), "backends": backends.collect::<Vec<_>>(),
        "splits_by_node": together.splits_by_node(),
        "other_consumers": together.other_consumers, "other_backends": together.other_backends,
    })
}
