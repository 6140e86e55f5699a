//! A judged flow as text: three lines for one that was answered, the evidence for one that was not.

use std::io::{self, Write};

use probe_common::Counter;
use probe_model::cilium::events::Notification;
use probe_model::explain::Verdict;
use probe_model::path::{CiliumEvent, HookPoint, Hop, Outcome, Path, PathDrop, Refusal, Rewrite};
use probe_model::tuple::Tuple;
use probe_model::world::World;

use super::clean;
use super::explanation::{entry_text, near_miss_text, verdict_text};
use crate::attach::HookState;
use crate::trace::Summary;
use crate::trace::judge::{EventSource, Evidence, FlowVerdict, Judgement, Origin};
use crate::trace::kernel::Names;

/// Most lines that a flow takes.
pub const LINES_MAX: usize = 15;

/// Writes one flow.
///
/// # Errors
///
/// What `out` says.
pub fn flow(world: &World, judgement: &Judgement, names: &Names, out: &mut impl Write) -> io::Result<()> {
    let mut lines = vec![head(judgement, names)];
    let answered = judgement.path.outcome == Outcome::Answered && judgement.verdict == FlowVerdict::Allowed;
    if answered {
        short(world, judgement, names, &mut lines);
    } else {
        long(world, judgement, names, &mut lines);
    }
    for finding in &judgement.findings {
        lines.push(labelled("finding", finding));
    }
    for line in lines.iter().take(LINES_MAX) {
        writeln!(out, "{}", clean(line))?;
    }
    Ok(())
}

fn labelled(label: &str, text: &str) -> String {
    format!("  {label:<9}{text}")
}

/// The flow and what became of it.
fn head(judgement: &Judgement, names: &Names) -> String {
    format!("{}: {}", judgement.path.tuple, outcome_text(judgement, names))
}

fn outcome_text(judgement: &Judgement, names: &Names) -> String {
    let path = &judgement.path;
    let by_the_maps = || format!("{} by the maps", verdict_text(&judgement.explanation.verdict));
    match path.outcome {
        Outcome::Answered => format!("allowed, answered {}", after(path, path.answered_ns)),
        Outcome::Refused { refusal, from } => {
            let how = match refusal {
                Refusal::Reset => "a TCP reset".to_owned(),
                Refusal::Icmp { icmp_type, code } => format!("ICMP type {icmp_type} code {code}"),
            };
            let verdict = verdict_word(judgement.verdict);
            format!("{verdict}, refused {} by {from} ({how})", after(path, path.answered_ns))
        }
        Outcome::DroppedByCilium { reason, established: false } => format!("dropped by Cilium, {reason}"),
        Outcome::DroppedByCilium { reason, established: true } => {
            format!("cut: an open connection is dropped by Cilium, {reason}")
        }
        Outcome::DroppedByKernel { reason, reply } => {
            let what = if reply { "its answer was dropped" } else { "dropped" };
            let reason = names.drop_reason(reason);
            match (&judgement.explanation.verdict, reason.starts_with("TC_")) {
                // A tc program freed it, which on this node is Cilium: the maps say why.
                (Verdict::Dropped(why), true) => {
                    format!("{what} by a tc program ({reason}); by the maps, {why}")
                }
                _ => format!("{what} by the kernel, {reason}"),
            }
        }
        Outcome::NoAnswer => match judgement.verdict {
            FlowVerdict::Allowed => "allowed, no answer".to_owned(),
            FlowVerdict::Dropped => format!("no answer; {}", by_the_maps()),
            FlowVerdict::Inconclusive => format!("inconclusive: no answer; {}", by_the_maps()),
        },
        Outcome::Silent => match judgement.verdict {
            FlowVerdict::Dropped => format!("seen, then silence; {}", by_the_maps()),
            _ => format!("inconclusive: seen, then silence; {}", by_the_maps()),
        },
    }
}

/// One word for a verdict.
pub fn verdict_word(verdict: FlowVerdict) -> &'static str {
    match verdict {
        FlowVerdict::Allowed => "allowed",
        FlowVerdict::Dropped => "dropped",
        FlowVerdict::Inconclusive => "inconclusive",
    }
}

fn after(path: &Path, at_ns: Option<u64>) -> String {
    at_ns
        .map_or_else(String::new, |at_ns| format!("after {} ms", millis(at_ns.saturating_sub(path.first_ns))))
}

fn millis(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

/// The way, and why it was let through: one line each.
fn short(world: &World, judgement: &Judgement, names: &Names, lines: &mut Vec<String>) {
    let path = &judgement.path;
    let mut way = vec![from_text(world, judgement)];
    way.extend(path.rewrites.iter().map(rewrite_text));
    way.push(hops_text(path, names, path.hops.iter().chain(&path.replies)));
    lines.push(labelled("from", &way.join("; ")));
    let explanation = &judgement.explanation;
    let mut why = vec![explanation.cause.sentence.clone()];
    why.extend(explanation.policy().map(|step| entry_text(world, step)));
    let policies = explanation.policies.iter().map(ToString::to_string);
    why.extend(policies.filter(|policy| !explanation.cause.sentence.contains(policy)));
    why.push(evidence_text(&judgement.evidence));
    lines.push(labelled("why", &why.join("; ")));
}

/// Everything that explains a flow that got no answer.
fn long(world: &World, judgement: &Judgement, names: &Names, lines: &mut Vec<String>) {
    let (path, explanation) = (&judgement.path, &judgement.explanation);
    let mut line = |label: &str, text: &str| lines.push(labelled(label, text));
    line("cause", &format!("{} [{}]", cause_sentence(judgement), explanation.cause.code));
    line("from", &from_text(world, judgement));
    if !path.rewrites.is_empty() {
        let rewrites: Vec<_> = path.rewrites.iter().map(rewrite_text).collect();
        line("rewrite", &rewrites.join(", then "));
    }
    line("hops", &hops_text(path, names, path.hops.iter()));
    line("answer", &answer_text(path, names));
    line("verdict", &format!("{}{}", cilium_text(path), evidence_text(&judgement.evidence)));
    if let Some(step) = explanation.policy() {
        line("entry", &entry_text(world, step));
    }
    if let Some(near_miss) = &explanation.near_miss {
        line("nearest", &near_miss_text(world, explanation, near_miss));
    }
    if !explanation.policies.is_empty() {
        line("policy", &policies_text(judgement));
    }
    if !path.drops.is_empty() {
        let drops: Vec<_> = path.drops.iter().map(|drop| drop_text(drop, names)).collect();
        line("kernel", &drops.join(", "));
    }
    if !explanation.caveats.is_empty() {
        let caveats: Vec<_> =
            explanation.caveats.iter().map(|caveat| format!("{} [{}]", caveat.text, caveat.code)).collect();
        line("caveat", &caveats.join("; "));
    }
}

/// The maps' cause where it fits what was seen; else what was seen.
fn cause_sentence(judgement: &Judgement) -> String {
    let sentence = &judgement.explanation.cause.sentence;
    match judgement.path.outcome {
        Outcome::Refused { from, .. } if judgement.verdict == FlowVerdict::Allowed => {
            format!(
                "{from} refused it: nobody listens on that port there, or a server turned it away; {sentence}"
            )
        }
        Outcome::NoAnswer if judgement.verdict == FlowVerdict::Allowed => {
            format!("Cilium let it through and the pod did not answer; {sentence}")
        }
        _ => sentence.clone(),
    }
}

/// Who sends, with the identity that Cilium gives it.
fn from_text(world: &World, judgement: &Judgement) -> String {
    let address = judgement.path.tuple.saddr;
    let who = match &judgement.origin {
        Origin::PlsNatIp => format!("PLS NAT IP {address}"),
        Origin::AzureProbe => format!("Azure's health probe {address}"),
        Origin::Pod(name) => format!("pod {name} {address}"),
        Origin::Node => format!("this node {address}"),
        Origin::Subnet(net) => format!("{address} in the node's subnet {net}"),
        Origin::Routed => format!("{address} behind a router"),
    };
    match judgement.identity {
        Some(identity) => format!("{who}, identity {}", world.identity_text(identity)),
        None => who,
    }
}

fn rewrite_text(rewrite: &Rewrite) -> String {
    let Rewrite { from, to } = rewrite;
    let end = |tuple: &Tuple, source: bool| {
        let (address, port) = if source { (tuple.saddr, tuple.sport) } else { (tuple.daddr, tuple.dport) };
        if tuple.protocol.has_ports() {
            format!("{}", std::net::SocketAddr::from((address, port)))
        } else {
            address.to_string()
        }
    };
    let mut parts = Vec::new();
    if rewrite.is_dnat() {
        parts.push(format!("DNAT {} to {}", end(from, false), end(to, false)));
    }
    if rewrite.is_snat() {
        parts.push(format!("SNAT {} to {}", end(from, true), end(to, true)));
    }
    parts.join(" and ")
}

/// Hops in order with the time since the first sighting: `eth0 in 0.000 > lxc1 to pod 0.041 ms`.
fn hops_text<'p>(path: &Path, names: &Names, hops: impl Iterator<Item = &'p Hop>) -> String {
    let hops: Vec<_> = hops
        .map(|hop| {
            let name = names.interface(hop.ifindex);
            format!("{name} {} {}", point_text(hop.point), millis(hop.ktime_ns.saturating_sub(path.first_ns)))
        })
        .collect();
    if hops.is_empty() { "none of ours saw it".to_owned() } else { format!("{} ms", hops.join(" > ")) }
}

/// The direction at a hook, as its interface says it.
pub fn point_text(point: HookPoint) -> &'static str {
    match point {
        HookPoint::UplinkIn => "in",
        HookPoint::UplinkOut => "out",
        HookPoint::PodOut => "from pod",
        HookPoint::PodIn => "to pod",
        HookPoint::HostOut => "from host",
        HookPoint::HostIn => "to host",
    }
}

fn answer_text(path: &Path, names: &Names) -> String {
    let again = match path.retransmissions {
        0 => String::new(),
        1 => "; SYN sent again once".to_owned(),
        times => format!("; SYN sent again {times} times"),
    };
    if path.replies.is_empty() {
        return format!("none seen{again}");
    }
    format!("{}{again}", hops_text(path, names, path.replies.iter()))
}

/// What Cilium notified of, each once with its count.
fn cilium_text(path: &Path) -> String {
    // A policy drop is notified twice, as the policy's verdict and as a drop: once is enough to read.
    let by_policy: Vec<_> = path
        .cilium
        .iter()
        .filter_map(|event| match event.notification {
            Notification::PolicyVerdict(verdict) => verdict.drop_reason(),
            _ => None,
        })
        .collect();
    let is_repeated = |event: &CiliumEvent| matches!(event.notification, Notification::Drop(drop) if by_policy.contains(&drop.reason));
    let events: Vec<_> = path
        .cilium
        .iter()
        .filter(|event| !is_repeated(event))
        .map(|event| {
            let what = match event.notification {
                Notification::PolicyVerdict(verdict) => {
                    let (direction, source) = (verdict.direction, verdict.header.source);
                    match verdict.drop_reason() {
                        Some(reason) => format!("{direction} policy of endpoint {source} drops it, {reason}"),
                        None if verdict.audited => {
                            format!("{direction} policy of endpoint {source} only audits")
                        }
                        None => format!(
                            "{direction} policy of endpoint {source} allows (match {})",
                            verdict.match_type
                        ),
                    }
                }
                Notification::Drop(drop) => format!("dropped, {}", drop.reason),
                Notification::Trace(trace) => format!("{}", trace.point),
                Notification::Other { message_type } => format!("message type {message_type}"),
            };
            if event.count > 1 { format!("{what} {} times", event.count) } else { what }
        })
        .collect();
    if events.is_empty() { String::new() } else { format!("{}; ", events.join(", ")) }
}

fn evidence_text(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Cilium(EventSource::Probe(means)) => format!("told by Cilium's own notification ({means})"),
        Evidence::Cilium(EventSource::MonitorSocket) => {
            "told by Cilium's own notification (monitor socket)".to_owned()
        }
        Evidence::Cilium(EventSource::None(_)) => "told by Cilium's own notification".to_owned(),
        Evidence::Packets => "by the packets seen".to_owned(),
        Evidence::Maps => "by the maps alone, nothing observed decides".to_owned(),
    }
}

fn policies_text(judgement: &Judgement) -> String {
    let policies: Vec<_> = judgement.explanation.policies.iter().map(ToString::to_string).collect();
    policies.join(", ")
}

fn drop_text(drop: &PathDrop, names: &Names) -> String {
    let what = if drop.reply { "answer freed" } else { "freed" };
    let times = if drop.count > 1 { format!(" {} times", drop.count) } else { String::new() };
    format!("{what} by the kernel, {}{times}", names.drop_reason(drop.reason))
}

/// Writes how the trace went.
///
/// # Errors
///
/// What `out` says.
pub fn summary(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let [allowed, dropped, inconclusive] = summary.flows;
    let total = allowed + dropped + inconclusive;
    let refused = if summary.refused > 0 { format!(" ({} refused)", summary.refused) } else { String::new() };
    writeln!(
        out,
        "flows     {total} in {:.1} s: {allowed} allowed{refused}, {dropped} dropped, {inconclusive} inconclusive",
        summary.elapsed.as_secs_f64()
    )?;
    let counters = &summary.counters;
    writeln!(
        out,
        "records   {} seen, {} lost, {} missed; {} packets passed our hooks, {} matched, {} SYNs came again later",
        summary.records,
        counters.lost(),
        missed(summary),
        counters.get(Counter::PacketSeen),
        counters.get(Counter::PacketMatched),
        summary.later_retransmissions,
    )?;
    writeln!(out, "hooks     {}", hooks_text(summary))?;
    let (received, lost, undecoded) = summary.notifications;
    let from = match &summary.events {
        EventSource::Probe(means) => format!("Cilium's own notifications by {means}"),
        EventSource::MonitorSocket => "Cilium's own notifications by its monitor socket".to_owned(),
        EventSource::None(why) => format!("its maps alone: {}", clean(why)),
    };
    writeln!(out, "verdicts  from {from}; {received} received, {lost} lost, {undecoded} not understood")
}

/// What was seen and could not be kept or read, other than for want of room.
fn missed(summary: &Summary) -> u64 {
    summary.malformed + summary.overflowed + summary.counters.get(Counter::Unreadable)
}

fn hooks_text(summary: &Summary) -> String {
    let attached = summary.hooks.iter().filter(|hook| hook.state.is_attached()).count();
    let mut parts = vec![format!("{attached} attached of {}", summary.hooks.len())];
    parts.extend(summary.hooks.iter().filter_map(|hook| match &hook.state {
        HookState::Attached(_) => None,
        HookState::Lost(why) | HookState::Refused(why) => Some(format!("not {}: {}", hook.place, clean(why))),
    }));
    parts.join("; ")
}
