//! A path across nodes as text: as [`super::trace`] has a flow, with the node before what was seen there.

use std::io::{self, Write};

use probe_model::path::HookPoint;
use serde_json::Value;

use super::clean;
use super::gap::point_text;
use super::trace::{LINES_MAX, rewrite_text, verdict_word};
use crate::across::part::Stop;
use crate::across::path::{Leg, Path, Since};
use crate::across::verdict::Finding;
use crate::across::{NodeState, Report};
use crate::trace::judge::FlowVerdict;

/// Writes one path.
///
/// # Errors
///
/// What `out` says.
pub fn path(path: &Path<'_>, out: &mut impl Write) -> io::Result<()> {
    let by = path.judge().part.value();
    let mut lines = vec![format!("{}: {}", path.first().part.tuple, outcome_text(path, &by["outcome"]))];
    let mut line = |label: &str, text: &str| lines.push(format!("  {label:<9}{text}"));
    let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line("cause", &format!("{} [{}]", of(&by["cause"]["sentence"]), of(&by["cause"]["code"])));
    for remedy in by["remedies"].as_array().into_iter().flatten() {
        if let Some(text) = remedy["text"].as_str() {
            line("remedy", text);
        } else if let Some(command) = remedy["command"].as_str() {
            line("run", command);
        }
    }
    line("from", &from_text(path.first()));
    let rewrites: Vec<_> = path.legs.iter().filter_map(rewrites_text).collect();
    if !rewrites.is_empty() {
        line("rewrite", &rewrites.join("; "));
    }
    line("hops", &ways_text(path, path.legs.iter(), |leg| &leg.part.hops, "none of ours saw it"));
    line("answer", &ways_text(path, path.legs.iter().rev(), |leg| &leg.part.replies, "none seen"));
    for leg in path.legs.iter().filter(|leg| leg.part.verdict != path.judge().part.verdict) {
        let value = leg.part.value();
        let (word, outcome) = (verdict_word(leg.part.verdict), of(&value["outcome"]["outcome"]));
        let sentence = of(&value["cause"]["sentence"]);
        line("node", &format!("{} alone says: {word}, {outcome}; {sentence}", leg.node));
    }
    for leg in &path.legs {
        for finding in leg.part.value()["findings"].as_array().into_iter().flatten() {
            line("finding", &format!("{}: {}", leg.node, of(finding)));
        }
    }
    for note in &path.notes {
        line("note", note);
    }
    for line in lines.iter().take(LINES_MAX) {
        writeln!(out, "{}", clean(line))?;
    }
    Ok(())
}

/// What became of it, by the node that judges.
fn outcome_text(path: &Path<'_>, outcome: &Value) -> String {
    let (leg, verdict) = (path.judge(), path.judged.verdict);
    let word = verdict_word(verdict);
    let last = path.legs.last().map_or(leg.node, |last| last.node);
    if let Some(Finding::AnswerMissing { .. }) = path.judged.finding {
        return format!("{word}: answered on {last}, and the answer not seen on {} again", leg.node);
    }
    let text = |name: &str| outcome[name].as_str().unwrap_or_default();
    let on = format!("on {}", leg.node);
    let is_reply = outcome["reply"] == true;
    let dropped = if is_reply { "its answer was dropped" } else { "dropped" };
    match text("outcome") {
        "answered" => format!("{word}, answered{} by way of {}", answered_text(path), nodes_text(path)),
        "refused" => format!("{word}, refused by {} {on}", text("from")),
        "dropped-by-cilium" if outcome["established"] == true => {
            format!(
                "cut: an open connection is dropped by Cilium {on}, {} ({})",
                text("text"),
                outcome["code"]
            )
        }
        "dropped-by-cilium" => format!("{dropped} by Cilium {on}, {} ({})", text("text"), outcome["code"]),
        "dropped-by-kernel" => format!("{dropped} by the kernel {on}, {}", text("name")),
        "answer-lost" => format!("{word}, answered, and the answer lost {on}"),
        "no-answer" => format!("{word}, no answer {on}"),
        _ if verdict == FlowVerdict::Dropped => format!("dropped {on} by the maps, nothing observed decides"),
        _ => format!("{word}: seen {on}, then silence"),
    }
}

fn nodes_text(path: &Path<'_>) -> String {
    path.legs.iter().map(|leg| leg.node).collect::<Vec<_>>().join(" and ")
}

/// When the answer was seen, by the first node that saw one.
fn answered_text(path: &Path<'_>) -> String {
    let seen = path.legs.iter().find_map(|leg| Some((*leg, leg.part.answered_ns?)));
    let since = seen.map(|(leg, at_ns)| path.since(leg, at_ns));
    since.map_or_else(String::new, |since| format!(" after {} ms{}", millis(since.ns), error_text(since)))
}

/// Who sends, by the word of the node that it came to first.
fn from_text(first: Leg<'_>) -> String {
    let value = first.part.value();
    let origin = &value["origin"];
    let text = |name: &str| origin[name].as_str().unwrap_or_default();
    let address = first.part.tuple.saddr;
    let who = match text("kind") {
        "pls-nat-ip" => format!("PLS NAT IP {address}"),
        "azure-probe" => format!("Azure's health probe {address}"),
        "pod" => format!("pod {} {address}", text("name")),
        "node" => format!("node {} {address}", first.node),
        "subnet" => format!("{address} in the node's subnet {}", text("subnet")),
        _ => format!("{address} behind a router"),
    };
    match value["identity"]["text"].as_str() {
        Some(identity) => format!("{who}, identity {identity}"),
        None => who,
    }
}

fn rewrites_text(leg: &Leg<'_>) -> Option<String> {
    let rewrites: Vec<_> = leg.part.rewrites.iter().map(rewrite_text).collect();
    (!rewrites.is_empty()).then(|| format!("{}: {}", leg.node, rewrites.join(", then ")))
}

/// `aks-1: eth0 in 0.000 > eth0 out 0.041; aks-2: eth0 in 0.310 ±3.100 > lxc1 to pod 0.350 ms`. The error is that of all
/// times of the node, but for nanoseconds.
fn ways_text<'p>(
    path: &Path<'p>,
    legs: impl Iterator<Item = &'p Leg<'p>>,
    stops: impl Fn(&'p Leg<'p>) -> &'p [Stop],
    none: &str,
) -> String {
    let way = |leg: &'p Leg<'p>| {
        let stops = stops(leg);
        let hop = |(idx, stop): (usize, &Stop)| {
            let since = path.since(*leg, stop.at_ns);
            let error = if idx == 0 { error_text(since) } else { String::new() };
            format!("{} {}{error}", place_text(stop), millis(since.ns))
        };
        let hops: Vec<_> = stops.iter().enumerate().map(hop).collect();
        (!hops.is_empty()).then(|| format!("{}: {}", leg.node, hops.join(" > ")))
    };
    let ways: Vec<_> = legs.filter_map(way).collect();
    if ways.is_empty() { none.to_owned() } else { format!("{} ms", ways.join("; ")) }
}

/// As [`super::gap::place_text`] has it.
fn place_text(stop: &Stop) -> String {
    let whose = match stop.point {
        _ if stop.in_pod => "pod",
        HookPoint::IpReceive | HookPoint::IpForward | HookPoint::IpDeliver => "stack",
        _ => stop.interface.as_deref().unwrap_or("an interface"),
    };
    format!("{whose} {}", point_text(stop.point))
}

fn error_text(since: Since) -> String {
    if since.error_ns == 0 { String::new() } else { format!(" ±{}", millis(since.error_ns.into())) }
}

/// Nanoseconds as milliseconds with three decimals.
pub fn millis(ns: i128) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let us = ns.unsigned_abs() / 1_000;
    format!("{sign}{}.{:03}", us / 1_000, us % 1_000)
}

/// Writes how it went.
///
/// # Errors
///
/// What `out` says.
pub fn report(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let [allowed, dropped, inconclusive] = report.paths;
    let mut lines = vec![(
        "paths",
        format!(
            "{} in {:.1} s: {allowed} allowed, {dropped} dropped, {inconclusive} inconclusive; {} across nodes, {} with parts that fit several and were not joined",
            allowed + dropped + inconclusive,
            report.elapsed.as_secs_f64(),
            report.across,
            report.apart
        ),
    )];
    for (node, state) in report.plan.nodes.iter().zip(&report.nodes) {
        lines.push(("node", format!("{}: {}", node.name, node_text(state))));
    }
    lines.extend(report.plan.blind.iter().map(|(name, why)| ("node", format!("{name}: not traced, {why}"))));
    if report.left_out > 0 {
        lines.push((
            "left out",
            format!(
                "{} flows from nodes' own addresses, which fit no flow that was asked about",
                report.left_out
            ),
        ));
    }
    if report.hurried > 0 {
        lines.push((
            "hurried",
            format!("{} flows did not wait for other nodes' word, because too many came", report.hurried),
        ));
    }
    lines.extend(report.plan.notes.iter().map(|note| ("note", note.clone())));
    for (label, text) in lines {
        writeln!(out, "{}", clean(&format!("{label:<10}{text}")))?;
    }
    Ok(())
}

fn node_text(state: &NodeState) -> String {
    let mut parts = Vec::new();
    if let Some(offset) = state.clock.offset() {
        parts.push(format!("clock known to ±{} ms", millis(offset.error_ns.into())));
    }
    parts.push(format!("{} flows", state.flows));
    match quality(state) {
        Some(quality) => {
            parts.push(format!("{} records seen, {} lost", quality.read, quality.lost));
            parts.push(format!("{} hooks attached of {}", quality.attached, quality.hooks));
            parts.extend(quality.not_attached.iter().map(|why| format!("not {why}")));
        }
        None => parts.push("how many records were lost is not known".to_owned()),
    }
    if let Some((count, why)) = &state.broken {
        parts.push(format!("{count} lines of its answer could not be read ({why})"));
    }
    for (schema, count) in &state.strange {
        parts.push(format!(
            "{count} lines of schema `{schema}`, which this plsprobe does not know: its agent is of another version, and what they say is missing"
        ));
    }
    if state.unsaid > 0 {
        parts.push(format!("{} more lines beside its answer", state.unsaid));
    }
    match &state.ended {
        Some(Err(why)) => parts.push(format!("ended early: {why}")),
        Some(Ok(())) => {}
        None => parts.push("not ended".to_owned()),
    }
    parts.join("; ")
}

/// What a node's traces lost, by their own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// Records read.
    pub read: u64,
    /// Records lost, counted or not.
    pub lost: u64,
    /// Hooks that were wanted.
    pub hooks: u64,
    /// Of them, those that were attached.
    pub attached: u64,
    /// The others, each with its reason.
    pub not_attached: Vec<String>,
}

/// Of all traces of a node the most of each: they share one engine. `None` if none was summed up.
pub fn quality(state: &NodeState) -> Option<Quality> {
    let of = |summary: &Value| {
        let number = |name: &str| summary["records"][name].as_u64().unwrap_or_default();
        let hooks: Vec<_> = summary["hooks"].as_array().into_iter().flatten().collect();
        let not = hooks.iter().filter(|hook| hook["state"] != "attached");
        let not_attached: Vec<_> = not
            .map(|hook| {
                let text = |name: &str| hook[name].as_str().unwrap_or_default();
                format!("{}: {}", text("place"), text("detail"))
            })
            .collect();
        let lost = ["lost", "malformed", "unaccounted", "overflowed", "disordered", "unreadable"];
        Quality {
            read: number("read"),
            lost: lost.iter().map(|name| number(name)).sum(),
            hooks: hooks.len() as u64,
            attached: (hooks.len() - not_attached.len()) as u64,
            not_attached,
        }
    };
    state.summaries.iter().map(of).reduce(|one, other| Quality {
        read: one.read.max(other.read),
        lost: one.lost.max(other.lost),
        ..if one.not_attached.len() < other.not_attached.len() { other } else { one }
    })
}
