//! A path across nodes as one JSON object a line.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::across::quality;
use super::json_line;
use super::trace::verdict_word;
use super::trace_json::tuple_value;
use crate::across::Report;
use crate::across::part::Stop;
use crate::across::path::{Leg, Path};

/// Version of a path's JSON.
pub const FLOW_SCHEMA: &str = "plsprobe.across.flow/1";
/// Version of the summary's JSON.
pub const SUMMARY_SCHEMA: &str = "plsprobe.across.summary/1";

/// Writes one path; each part as its node's agent said it.
///
/// # Errors
///
/// What `out` says.
pub fn path(path: &Path<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut by = path.judge().part.value();
    let stops =
        |leg: &Leg<'_>, stops: &[Stop]| stops.iter().map(|own| stop(path, *leg, own)).collect::<Vec<_>>();
    let value = json!({
        "schema": FLOW_SCHEMA,
        "tuple": tuple_value(&path.first().part.tuple), "translated": tuple_value(&path.left()),
        "verdict": verdict_word(path.judged.verdict), "judged_by": path.judge().node,
        "outcome": by["outcome"].take(), "cause": by["cause"].take(),
        "hops": path.legs.iter().flat_map(|leg| stops(leg, &leg.part.hops)).collect::<Vec<_>>(),
        "replies": path.legs.iter().rev().flat_map(|leg| stops(leg, &leg.part.replies)).collect::<Vec<_>>(),
        "notes": path.notes,
        "parts": path.legs.iter().map(|leg| {
            let since = path.since(*leg, leg.part.first_ns);
            json!({ "node": leg.node, "first": since_value(since.ns, since.error_ns), "flow": leg.part.value() })
        }).collect::<Vec<_>>(),
    });
    json_line(&value, out)
}

fn stop(path: &Path<'_>, leg: Leg<'_>, stop: &Stop) -> Value {
    let since = path.since(leg, stop.at_ns);
    json!({
        "node": leg.node, "point": format!("{:?}", stop.point), "namespace": if stop.in_pod { "pod" } else { "node" },
        "interface": stop.interface, "tuple": tuple_value(&stop.tuple),
        "since_first": since_value(since.ns, since.error_ns),
    })
}

/// Clocks of nodes that are up for centuries apart are none.
fn since_value(ns: i128, error_ns: u64) -> Value {
    let ns = i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX });
    json!({ "ns": ns, "error_ns": error_ns })
}

/// Writes how it went.
///
/// # Errors
///
/// What `out` says.
pub fn report(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let [allowed, dropped, inconclusive] = report.paths;
    let nodes = report.plan.nodes.iter().zip(&report.nodes).map(|(node, state)| {
        let quality = quality(state).map(|quality| {
            json!({
                "records_read": quality.read, "records_lost": quality.lost, "hooks": quality.hooks,
                "hooks_attached": quality.attached, "not_attached": quality.not_attached,
            })
        });
        json!({
            "node": node.name, "agent": format!("{}/{}", node.agent.namespace, node.agent.pod),
            "backends": node.backends, "receives_frontend": node.receives, "targets": node.targets,
            "clock_ahead": state.clock.offset().map(|own| since_value(own.ns, own.error_ns)),
            "flows": state.flows, "quality": quality,
            "unread_lines": state.broken.as_ref().map_or(0, |(count, _)| *count),
            "unknown_schemas": state.strange,
            "error": state.ended.as_ref().and_then(|ended| ended.as_ref().err()),
            "summaries": state.summaries,
        })
    });
    let value = json!({
        "schema": SUMMARY_SCHEMA, "target": report.plan.what,
        "paths": {
            "total": allowed + dropped + inconclusive, "allowed": allowed, "dropped": dropped, "inconclusive": inconclusive,
            "across": report.across, "not_joined": report.apart,
        },
        "left_out": report.left_out, "hurried": report.hurried,
        "nodes": nodes.collect::<Vec<_>>(), "not_traced": report.plan.blind, "notes": report.plan.notes,
        "elapsed_ms": report.elapsed.as_millis() as u64,
    });
    json_line(&value, out)
}
