//! A judged flow as text: three lines for one that was answered, the evidence for one that was not.

use std::io::{self, Write};
use std::time::Duration;

use probe_common::Counter;
use probe_model::cilium::events::Notification;
use probe_model::cilium::release::Release;
use probe_model::explain::{Code, Remedy, Verdict};
use probe_model::path::{
    CiliumEvent, DropCause, HookPoint, Hop, Namespace, Outcome, Path, PathDrop, Refusal, Rewrite, TunnelKind,
};
use probe_model::tuple::Tuple;
use probe_model::world::World;
use probe_model::world::nat::Confidence;

use super::clean;
use super::explanation::{entry_text, near_miss_text, verdict_text};
use super::gap::{self, place_text};
use super::trace_proxy::{self, millis};
use super::trace_watched;
use super::{drop_cause, lint};
use crate::attach::{Hook, HookKind, HookState};
use crate::trace::Summary;
use crate::trace::judge::{EventSource, Evidence, FlowVerdict, Judgement, Origin, hubble_policies};
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
    let rejected = trace_proxy::rejection_text(&judgement.path.evidence).unwrap_or_default();
    format!("{}: {}{rejected}", judgement.path.tuple, outcome_text(judgement, names))
}

fn outcome_text(judgement: &Judgement, names: &Names) -> String {
    let path = &judgement.path;
    match path.outcome {
        Outcome::Answered if path.is_open() => {
            format!("allowed, answered {}, connection open", after(path, path.answered_ns))
        }
        Outcome::Answered => format!("allowed, answered {}", after(path, path.answered_ns)),
        Outcome::AnswerLost => lost_text(judgement, names),
        Outcome::Refused { refusal, from } => {
            let how = refusal_text(path, refusal);
            let verdict = verdict_word(judgement.verdict);
            format!("{verdict}, refused {} by {from} ({how})", after(path, path.answered_ns))
        }
        Outcome::DroppedByCilium { reason, established: true, .. } => {
            format!("cut: an open connection is dropped by Cilium, {reason}")
        }
        Outcome::DroppedByCilium { reason, reply, .. } => {
            format!("{} by Cilium, {reason}", dropped_text(reply))
        }
        Outcome::DroppedByKernel { reason, reply } => freed_text(judgement, names, reason, reply),
        Outcome::NoAnswer | Outcome::Silent => silence_text(judgement, names),
    }
}

fn dropped_text(reply: bool) -> &'static str {
    if reply { "its answer was dropped" } else { "dropped" }
}

/// An answer that did not arrive.
fn lost_text(judgement: &Judgement, names: &Names) -> String {
    let path = &judgement.path;
    let when = path.answered_ns.map_or_else(String::new, |_| format!(" {}", after(path, path.answered_ns)));
    let last = judgement.gap.as_ref().and_then(|gap| gap.last);
    let last = last.map_or_else(
        || "seen by no hook of ours".to_owned(),
        |hop| format!("last seen at {}", place_text(hop.place, names)),
    );
    match judgement.verdict {
        FlowVerdict::Allowed => format!("allowed, answered{when}, the answer lost behind this node; {last}"),
        _ => format!("inconclusive: answered{when}, the answer lost; {last}"),
    }
}

fn refusal_text(path: &Path, refusal: Refusal) -> String {
    match (refusal, path.reset_had_socket()) {
        (Refusal::Reset, None) => "a TCP reset".to_owned(),
        (Refusal::Reset, Some(true)) => "a TCP reset by the application's socket".to_owned(),
        (Refusal::Reset, Some(false)) => "a TCP reset, nobody listens".to_owned(),
        (Refusal::Icmp { icmp_type, code }, _) => format!("ICMP type {icmp_type} code {code}"),
    }
}

/// The drop that a flow ended with.
fn final_drop(path: &Path) -> Option<&PathDrop> {
    let Outcome::DroppedByKernel { reason, reply } = path.outcome else { return None };
    path.drops.iter().find(|drop| drop.reason == reason && drop.reply == reply)
}

fn freed_text(judgement: &Judgement, names: &Names, reason: u32, reply: bool) -> String {
    let what = dropped_text(reply);
    let drop = final_drop(&judgement.path);
    let reason = drop.map_or_else(|| names.drop_reason(reason), |drop| names.freed(drop));
    let cause = drop.and_then(|drop| names.drop_cause(drop));
    let place = drop.and_then(|drop| names.freed_at(drop)).map_or_else(String::new, |at| format!(" {at}"));
    match (&judgement.explanation.verdict, cause) {
        // A tc program freed it, which on this node is Cilium: the maps say why.
        (Verdict::Dropped(why), Some(DropCause::TcIngress | DropCause::TcEgress)) => {
            format!("{what} by a tc program ({reason}); by the maps, {why}")
        }
        (_, Some(cause)) => format!("{what}{place} {} ({reason})", drop_cause::text(cause)),
        (_, None) => format!("{what} by the kernel{place}, {reason}"),
    }
}

fn silence_text(judgement: &Judgement, names: &Names) -> String {
    let path = &judgement.path;
    let last =
        path.hops.last().map_or_else(String::new, |hop| format!(" at {}", place_text(hop.place, names)));
    let what = if path.outcome == Outcome::Silent {
        format!("seen{last}, then silence")
    } else if path.hops.iter().any(is_at_pod) {
        "delivered, no answer".to_owned()
    } else {
        "no answer".to_owned()
    };
    let by_the_maps = format!("{} by the maps", verdict_text(&judgement.explanation.verdict));
    match judgement.verdict {
        FlowVerdict::Allowed => format!("allowed, {what}"),
        FlowVerdict::Dropped => format!("{what}; {by_the_maps}"),
        FlowVerdict::Inconclusive => format!("inconclusive: {what}; {by_the_maps}"),
    }
}

fn is_at_pod(hop: &Hop) -> bool {
    hop.place.namespace == Namespace::Pod || hop.place.point == HookPoint::PodIn
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

/// The way, and why it was let through: one line each.
fn short(world: &World, judgement: &Judgement, names: &Names, lines: &mut Vec<String>) {
    let path = &judgement.path;
    let mut way = vec![from_text(world, judgement)];
    way.extend(rewrites_text(judgement));
    way.push(hops_text(path, names, path.hops.iter().chain(&path.replies)));
    lines.push(labelled("from", &way.join("; ")));
    shown(world, judgement, names, lines);
    let explanation = &judgement.explanation;
    let mut why = vec![explanation.cause.sentence.clone()];
    why.extend(explanation.policy().map(|step| entry_text(world, step)));
    let policies = explanation.policies.iter().map(ToString::to_string);
    why.extend(policies.filter(|policy| !explanation.cause.sentence.contains(policy)));
    why.push(evidence_text(judgement));
    lines.push(labelled("why", &why.join("; ")));
}

/// What the first bytes say, and what else the packets show that is out of the ordinary: a line each, if there is any.
fn shown(world: &World, judgement: &Judgement, names: &Names, lines: &mut Vec<String>) {
    lines.extend(trace_proxy::line(world, judgement, names).map(|text| labelled("proxy", &text)));
    let odd = trace_proxy::oddities(judgement, names);
    if !odd.is_empty() {
        lines.push(labelled("packets", &odd.join("; ")));
    }
    for cause in &judgement.causes {
        lines.push(labelled("shows", &format!("{} [{}]", cause.sentence, cause.code)));
        let remedies = cause.remedy.iter().map(|remedy| match remedy {
            Remedy::Command(command) => labelled("run", command),
            Remedy::Text(text) | Remedy::Yaml(text) => labelled("remedy", text),
        });
        lines.extend(remedies);
    }
}

/// Everything that explains a flow that got no answer.
fn long(world: &World, judgement: &Judgement, names: &Names, lines: &mut Vec<String>) {
    let (path, explanation) = (&judgement.path, &judgement.explanation);
    let mut line = |label: &str, text: &str| lines.push(labelled(label, text));
    line("cause", &format!("{} [{}]", cause_sentence(judgement, names), cause_code(judgement)));
    for remedy in &judgement.remedies {
        match remedy {
            Remedy::Text(text) => line("remedy", text.as_str()),
            Remedy::Command(command) => line("run", command.as_str()),
            // `explain` prints it; here it would part the flows.
            Remedy::Yaml(_) => {}
        }
    }
    line("from", &from_text(world, judgement));
    if let Some(rewrites) = rewrites_text(judgement) {
        line("rewrite", &rewrites);
    }
    line("hops", &hops_text(path, names, path.hops.iter()));
    line("answer", &answer_text(path, names));
    shown(world, judgement, names, lines);
    let mut line = |label: &str, text: &str| lines.push(labelled(label, text));
    if let Some(gap) = &judgement.gap {
        line("gap", &gap::text(gap, names));
    }
    line("verdict", &format!("{}{}", cilium_text(world, path), evidence_text(judgement)));
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

/// The code of the maps' cause; that of Cilium's own reason where it dropped the packet for another one than the maps say.
pub(crate) fn cause_code(judgement: &Judgement) -> Code {
    match (judgement.path.outcome, &judgement.explanation.verdict) {
        (Outcome::DroppedByCilium { reason, .. }, verdict) if *verdict != Verdict::Dropped(reason) => {
            Code::of_drop(reason)
        }
        _ => judgement.explanation.cause.code,
    }
}

/// The maps' cause where it fits what was seen; else what was seen.
pub(crate) fn cause_sentence(judgement: &Judgement, names: &Names) -> String {
    let sentence = &judgement.explanation.cause.sentence;
    if !judgement.findings.is_empty() {
        let why = match judgement.path.outcome {
            Outcome::DroppedByCilium { reason, .. } => reason.meaning(),
            _ => None,
        };
        let why = why.map_or_else(String::new, |why| format!("{why}; "));
        return format!("{why}not known from the maps, which say: {sentence}");
    }
    let path = &judgement.path;
    let by_the_maps = &judgement.explanation.verdict;
    match path.outcome {
        Outcome::Refused { refusal, from } if judgement.verdict == FlowVerdict::Allowed => {
            let why = match path.reset_had_socket().filter(|_| refusal == Refusal::Reset) {
                Some(true) => "its socket took the packet and answered with a reset",
                Some(false) => "nobody listens on that port there",
                None => "nobody listens on that port there, or a server turned it away",
            };
            format!("{from} refused it: {why}; {sentence}")
        }
        Outcome::NoAnswer if judgement.verdict == FlowVerdict::Allowed => {
            format!("Cilium let it through and the pod did not answer; {sentence}")
        }
        Outcome::NoAnswer | Outcome::Silent if *by_the_maps == Verdict::Allowed => {
            format!(
                "nothing that plsprobe knows of on this node stops it, and no answer was seen; {sentence}"
            )
        }
        Outcome::AnswerLost => format!("it was let in and answered; {sentence}"),
        Outcome::DroppedByKernel { .. } => freed_sentence(judgement, names),
        _ => sentence.clone(),
    }
}

/// The cause of a drop that the kernel reports: a rule from the maps and rules that were read is no observation.
fn freed_sentence(judgement: &Judgement, names: &Names) -> String {
    let sentence = &judgement.explanation.cause.sentence;
    let drop = final_drop(&judgement.path);
    let cause = drop.and_then(|drop| names.drop_cause(drop));
    let is_nodes = drop.is_some_and(|drop| names.is_nodes(drop));
    match (&judgement.explanation.verdict, cause) {
        (Verdict::Filtered, Some(DropCause::Netfilter)) if is_nodes => {
            format!("{sentence} (from the rules as they were read, which rule it was is not observed)")
        }
        (Verdict::Dropped(_), _) => sentence.clone(),
        (_, Some(DropCause::TcIngress | DropCause::TcEgress)) if judgement.is_cilium_heard => {
            format!("another tc program dropped it, for Cilium notified of no drop; {sentence}")
        }
        (_, Some(DropCause::TcIngress | DropCause::TcEgress)) => {
            format!("a tc program dropped it, Cilium's or another; {sentence}")
        }
        (_, Some(_)) => format!("the kernel dropped it, not Cilium; {sentence}"),
        (_, None) => format!("the kernel dropped it; {sentence}"),
    }
}

/// Who sends, with the identity that Cilium gives it.
fn from_text(world: &World, judgement: &Judgement) -> String {
    let address = judgement.path.tuple.saddr;
    let who = match &judgement.origin {
        Origin::PlsNatIp(Confidence::Observed) => format!("PLS NAT IP {address} (by its PROXY header)"),
        Origin::PlsNatIp(_) => format!("PLS NAT IP {address}"),
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

/// Every rewriting in order, and whether Cilium's conntrack has both ends together; `None` without one.
fn rewrites_text(judgement: &Judgement) -> Option<String> {
    let rewrites: Vec<_> = judgement.path.rewrites.iter().map(rewrite_text).collect();
    let confirmed = judgement.confirmation.as_ref();
    let confirmed = confirmed.map_or_else(String::new, |by| format!(" (confirmed by {})", by.map));
    (!rewrites.is_empty()).then(|| format!("{}{confirmed}", rewrites.join(", then ")))
}

pub(super) fn rewrite_text(rewrite: &Rewrite) -> String {
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
            let at = millis(hop.ktime_ns.saturating_sub(path.first_ns));
            format!("{}{} {at}", place_text(hop.place, names), headers_text(hop))
        })
        .collect();
    if hops.is_empty() { "none of ours saw it".to_owned() } else { format!("{} ms", hops.join(" > ")) }
}

/// What was around the packet at a hook: ` (VLAN 100, VXLAN 16777218)`.
fn headers_text(hop: &Hop) -> String {
    let vlan = (hop.vlan != 0).then(|| format!("VLAN {}", hop.vlan));
    let tunnel = hop.tunnel.map(|tunnel| match tunnel.kind {
        TunnelKind::Vxlan => format!("VXLAN {}", tunnel.id),
        TunnelKind::Geneve => format!("Geneve {}", tunnel.id),
    });
    let headers: Vec<_> = vlan.into_iter().chain(tunnel).collect();
    if headers.is_empty() { String::new() } else { format!(" ({})", headers.join(", ")) }
}

fn answer_text(path: &Path, names: &Names) -> String {
    let mut parts = Vec::new();
    parts.push(if path.replies.is_empty() {
        "none seen".to_owned()
    } else {
        hops_text(path, names, path.replies.iter())
    });
    for (what, times) in [("SYN", path.retransmissions), ("SYN-ACK", path.accepted_again)] {
        match times {
            0 => {}
            1 => parts.push(format!("{what} sent again once")),
            times => parts.push(format!("{what} sent again {times} times")),
        }
    }
    parts.join("; ")
}

/// What Cilium notified of, each once with its count.
fn cilium_text(world: &World, path: &Path) -> String {
    let agent = world.version.as_deref().and_then(Release::of_version);
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
                Notification::Drop(drop) => match drop.source_file(agent) {
                    Some(file) => format!("dropped, {} at {file}:{}", drop.reason, drop.line),
                    None => format!("dropped, {}", drop.reason),
                },
                Notification::Trace(trace) => format!("{}", trace.point),
                other => format!("message type {}", other.message_type()),
            };
            if event.count > 1 { format!("{what} {} times", event.count) } else { what }
        })
        .collect();
    if events.is_empty() { String::new() } else { format!("{}; ", events.join(", ")) }
}

/// What the verdict rests on, and the policies that Hubble adds to it.
fn evidence_text(judgement: &Judgement) -> String {
    let named: Vec<_> = hubble_policies(&judgement.path).iter().map(ToString::to_string).collect();
    let names = if named.is_empty() { String::new() } else { format!("; Hubble names {}", named.join(", ")) };
    format!("{}{names}", source_text(&judgement.evidence))
}

fn source_text(evidence: &Evidence) -> String {
    match evidence {
        Evidence::Cilium(EventSource::Probe(means)) => format!("told by Cilium's own notification ({means})"),
        Evidence::Cilium(EventSource::MonitorSocket) => {
            "told by Cilium's own notification (monitor socket)".to_owned()
        }
        Evidence::Cilium(EventSource::Hubble) => "told by Cilium's own notification (Hubble)".to_owned(),
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
    let place = names.freed_at(drop).map_or_else(String::new, |at| format!(" {at}"));
    format!("{what} by the kernel{place}, {}{times}", names.freed(drop))
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
    let counted = match counters.get(Counter::PacketCounted) {
        0 => String::new(),
        counted => format!(" ({counted} of them only counted)"),
    };
    writeln!(
        out,
        "records   {} seen, {} lost, {} missed; {} packets passed our hooks, {} matched{counted}, {} SYNs came again later",
        summary.records,
        counters.lost(),
        missed(summary),
        counters.get(Counter::PacketSeen),
        counters.matched(),
        summary.later_retransmissions,
    )?;
    writeln!(out, "hooks     {}", hooks_text(summary))?;
    let (received, lost, undecoded) = summary.notifications;
    let from = match &summary.events {
        EventSource::Probe(means) => format!("Cilium's own notifications by {means}"),
        EventSource::MonitorSocket => "Cilium's own notifications by its monitor socket".to_owned(),
        EventSource::Hubble => "Cilium's own notifications by Hubble".to_owned(),
        EventSource::None(why) => format!("its maps alone: {}", clean(why)),
    };
    writeln!(out, "verdicts  from {from}; {received} received, {lost} lost, {undecoded} not understood")?;
    trace_watched::summary(&summary.world, &summary.probes, &summary.together, out)?;
    if summary.egress_drops > 0 {
        writeln!(
            out,
            "egress    {} flows of the target's pods were dropped on their way out, soon after one was accepted [{}]",
            summary.egress_drops,
            Code::EgressBreaksApp
        )?;
    }
    if summary.late_resets > 0 {
        writeln!(out, "resets    {} connections were reset after a long silence", summary.late_resets)?;
    }
    match &summary.silence {
        Some(silence) => lint::silence(silence, out),
        None => Ok(()),
    }
}

/// What was seen and could not be kept or read, other than for want of room.
fn missed(summary: &Summary) -> u64 {
    let skipped: u64 = summary.skipped.iter().map(|skipped| skipped.runs).sum();
    summary.malformed
        + summary.unaccounted
        + summary.overflowed
        + summary.disordered
        + summary.counters.get(Counter::Unreadable)
        + skipped
}

/// What it costs to leave tc alone.
pub const NO_TC_COST: &str = "nothing is attached to tc: every packet of the machine passes our tracepoints; what \
    Cilium drops or redirects on its way out of an interface is not seen there, and what it hands to a pod by \
    `redirect_peer` is not seen received";

fn hooks_text(summary: &Summary) -> String {
    let attached = summary.hooks.iter().filter(|hook| hook.state.is_attached()).count();
    let mut parts = vec![format!("{attached} attached of {}", summary.hooks.len())];
    parts.extend(not_attached(&summary.hooks).into_iter().map(|line| format!("not {line}")));
    parts.extend(summary.skipped.iter().map(|skipped| {
        format!("the kernel skipped {} runs at {}: packets there may be missing", skipped.runs, skipped.place)
    }));
    parts.extend(summary.gaps.iter().map(|gap| {
        let length = seconds(gap.length(summary.ended_ns));
        let until = if gap.until_ns.is_none() { ", until the end" } else { "" };
        format!("nothing seen at {} for {length}{until} ({})", gap.place, clean(&gap.why))
    }));
    if summary.hooks.iter().any(|hook| hook.kind == HookKind::Devices) {
        parts.push(NO_TC_COST.to_owned());
    }
    parts.join("; ")
}

/// `0.412 s`, rounded up: nothing is shorter than it is said to be.
pub fn seconds(length: Duration) -> String {
    let millis = length.as_nanos().div_ceil(1_000_000);
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

/// Hooks that are not attached, those with one reason in one line: `ip_rcv, ip_forward: REASON`.
pub fn not_attached<'h>(hooks: impl IntoIterator<Item = &'h Hook>) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for hook in hooks {
        let (HookState::Lost(why) | HookState::Refused(why)) = &hook.state else { continue };
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, places)) => places.push(&hook.place),
            None => reasons.push((why, vec![&hook.place])),
        }
    }
    reasons.into_iter().map(|(why, places)| format!("{}: {}", places.join(", "), clean(why))).collect()
}

#[cfg(test)]
mod outcomes;

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use probe_model::cilium::EndpointId;
    use probe_model::cilium::drop_reason::DropReason;
    use probe_model::cilium::events::{CaptureHeader, DropNotify};
    use probe_model::cilium::identity::Identity;
    use probe_model::path::{Fragment, Packet, Place, Seen, Sighting, TcpFlags, Tracker, Watch};
    use probe_model::tuple::Protocol;
    use probe_model::world::nat::nat_sources;

    use super::*;
    use crate::sources::{self, From, LiveOptions};
    use crate::trace::judge::judge;

    pub(crate) const FRONTEND: &str = "10.224.0.7:80";
    pub(crate) const POD: &str = "10.0.0.143:80";
    pub(crate) const UPLINK: u32 = 2;
    pub(crate) const VETH: u32 = 7;

    pub(crate) fn packet(from: &str, to: &str, flags: u8, seq: u32, ack: u32) -> Packet {
        let end = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
        let ((saddr, sport), (daddr, dport)) =
            ((end(from).ip(), end(from).port()), (end(to).ip(), end(to).port()));
        Packet {
            tuple: Tuple { saddr, daddr, sport, dport, protocol: Protocol::TCP },
            flags: TcpFlags(flags),
            seq,
            ack,
            payload_len: 0,
            payload_hash: 0,
            ip_id: 7,
            ttl: 64,
            fragment: Fragment::Whole,
            vlan: 0,
            tunnel: None,
            icmp: None,
            quoted: None,
        }
    }

    pub(crate) fn at(us: u64, point: HookPoint, ifindex: u32, packet: Packet) -> Sighting {
        let place = Place { point, ifindex, namespace: Namespace::Node };
        Sighting { ktime_ns: us * 1000, packet, seen: Seen::Hook { place, mark: 0, buffer: 0 } }
    }

    pub(crate) fn policy_drop(us: u64, packet: Packet) -> Sighting {
        let header =
            CaptureHeader { source: EndpointId(413), hash: 0, len_orig: 74, len_cap: 74, ext_version: 0 };
        let notification = Notification::Drop(DropNotify {
            header,
            reason: DropReason::POLICY,
            src_label: Identity(2),
            dst_label: Identity(0),
            dst_id: 413,
            line: 1,
            file: 2,
            ext_error: 0,
            ifindex: UPLINK,
            flags: None,
            ip_trace_id: None,
        });
        Sighting { ktime_ns: us * 1000, packet, seen: Seen::Cilium { notification } }
    }

    /// As where no kernel function may be probed: every classifier, the kernel's drops, Cilium's notifications.
    pub(crate) fn watch() -> Watch {
        let points = [HookPoint::UplinkIn, HookPoint::UplinkOut, HookPoint::PodIn, HookPoint::PodOut];
        let points = points.map(|point| (Namespace::Node, point)).into();
        Watch { points, drops: true, cilium: true, lost_records: false }
    }

    /// The text of the one flow that `sightings` are of, judged by the maps of a recording.
    #[track_caller]
    fn check(recording: &str, sightings: &[Sighting], expected: &Expect) {
        check_from(recording, &EventSource::MonitorSocket, sightings, expected);
    }

    #[track_caller]
    fn check_from(recording: &str, events: &EventSource, sightings: &[Sighting], expected: &Expect) {
        check_given(&Given { recording, events, watch: &watch() }, sightings, expected);
    }

    /// What a flow is judged by.
    pub(crate) struct Given<'g> {
        pub(crate) recording: &'g str,
        pub(crate) events: &'g EventSource,
        pub(crate) watch: &'g Watch,
    }

    /// The one flow that `sightings` are of, judged by the maps of a recording.
    pub(crate) fn judged(given: &Given<'_>, sightings: &[Sighting]) -> (World, Judgement, Names) {
        let folder = fixtures::recording("cilium-1.14").join(given.recording);
        let mut world = sources::world(&From::Path(folder), &LiveOptions::default()).unwrap();
        let mut tracker = Tracker::default();
        for sighting in sightings {
            tracker.push(sighting);
        }
        let paths = tracker.finish();
        assert_eq!(paths.len(), 1, "{paths:#?}");
        let names = Names::from_parts(
            [(5, "TC_INGRESS"), (6, "NETFILTER_DROP"), (7, "TCP_LISTEN_OVERFLOW")]
                .map(|(reason, name)| (reason, name.to_owned()))
                .into(),
            BTreeMap::from([(UPLINK, "eth0".to_owned()), (VETH, "lxc1".to_owned())]),
        )
        .with_namespaces(1, [2].into());
        let nat_ips = ["10.224.0.8/32", "10.224.0.9/32"].map(|ip| ip.parse().unwrap());
        world.private_link.declared.nat_ips = nat_ips.to_vec();
        let path = paths.into_iter().next().unwrap();
        let judgement = judge(&world, path, given.events, given.watch, &nat_sources(&world));
        (world, judgement, names)
    }

    #[track_caller]
    pub(crate) fn check_given(given: &Given<'_>, sightings: &[Sighting], expected: &Expect) {
        let (world, judgement, names) = judged(given, sightings);
        let mut text = Vec::new();
        flow(&world, &judgement, &names, &mut text).unwrap();
        expected.assert_eq(&String::from_utf8(text).unwrap());
    }

    #[test]
    fn one_reason_is_one_line() {
        let hook = |place: &str, state| Hook { kind: HookKind::IpLayer, place: place.to_owned(), state };
        let refused = || HookState::Refused("no\tkprobes".to_owned());
        let hooks = [
            hook("ip_rcv", refused()),
            hook("lxc1 ingress", HookState::Lost("interface `lxc1` has gone".to_owned())),
            hook("kfree_skb", HookState::Attached("raw tracepoint")),
            hook("ip_forward", refused()),
        ];
        let lines = not_attached(&hooks);
        assert_eq!(lines, ["ip_rcv, ip_forward: no\\tkprobes", "lxc1 ingress: interface `lxc1` has gone"]);
    }

    #[test]
    fn an_answered_flow() {
        let client = "10.224.0.8:40000";
        check(
            "cidr-pls8-80",
            &[
                at(0, HookPoint::UplinkIn, UPLINK, packet(client, FRONTEND, 0x02, 9, 0)),
                at(140, HookPoint::PodOut, VETH, packet(POD, client, 0x12, 50, 10)),
                at(171, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, client, 0x12, 50, 10)),
            ],
            &expect![[r#"
                10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, answered after 0.140 ms
                  from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32); DNAT 10.224.0.7:80 to 10.0.0.143:80; eth0 in 0.000 > lxc1 from pod 0.140 > eth0 out 0.171 ms
                  why      NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80; cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far); by the packets seen
            "#]],
        );
    }

    #[test]
    fn a_flow_that_policy_drops() {
        let client = "10.224.0.9:40000";
        check(
            "cidr-pls8-80",
            &[
                at(0, HookPoint::UplinkIn, UPLINK, packet(client, FRONTEND, 0x02, 9, 0)),
                policy_drop(60, packet(client, POD, 0x02, 9, 0)),
            ],
            &expect![[r#"
                10.224.0.9:40000 -> 10.224.0.7:80 TCP: dropped by Cilium, Policy denied (133)
                  cause    NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from world (2) on TCP/80: NetworkPolicy default/allow-pls-nat admits 10.224.0.8/32, which has one of Private Link's NAT IPs, and 10.224.0.9 is another (--pls-nat-ip) [PLS-20]
                  from     PLS NAT IP 10.224.0.9, identity world (2)
                  rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
                  hops     eth0 in 0.000 ms
                  answer   none seen
                  verdict  dropped, Policy denied (133) at bpf_lxc.c:1; told by Cilium's own notification (monitor socket)
                  entry    none in cilium_policy_02686 for ingress world (2), 80/TCP
                  nearest  allow 16777218 (cidr:10.224.0.8/32), 80/TCP of NetworkPolicy default/allow-pls-nat; but the peer is world (2)
                  policy   NetworkPolicy default/allow-pls-nat
            "#]],
        );
    }

    /// As Hubble passes a notification on, with the policy it names.
    fn by_hubble(sighting: &Sighting, policy: &str) -> Sighting {
        let policy = probe_model::world::PolicyRef {
            kind: "NetworkPolicy".to_owned(),
            namespace: Some("default".to_owned()),
            name: policy.to_owned(),
        };
        let mut notification = sighting.seen.notification().unwrap();
        if let Notification::Drop(drop) = &mut notification {
            (drop.file, drop.line, drop.ext_error) = (0, 0, 0);
        }
        let packet = Packet { seq: 0, ack: 0, ip_id: 0, ..sighting.packet };
        let seen = Seen::Hubble { notification, policies: [policy].into() };
        Sighting { ktime_ns: sighting.ktime_ns, packet, seen }
    }

    #[test]
    fn hubble_s_word_and_another_policy_than_ours() {
        let client = "10.224.0.9:40000";
        check_from(
            "cidr-pls8-80",
            &EventSource::Hubble,
            &[
                at(0, HookPoint::UplinkIn, UPLINK, packet(client, FRONTEND, 0x02, 9, 0)),
                by_hubble(&policy_drop(60, packet(client, POD, 0x02, 9, 0)), "another"),
            ],
            &expect![[r#"
                10.224.0.9:40000 -> 10.224.0.7:80 TCP: dropped by Cilium, Policy denied (133)
                  cause    no policy entry matched: default deny; not known from the maps, which say: NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from world (2) on TCP/80: NetworkPolicy default/allow-pls-nat admits 10.224.0.8/32, which has one of Private Link's NAT IPs, and 10.224.0.9 is another (--pls-nat-ip) [PLS-20]
                  from     PLS NAT IP 10.224.0.9, identity world (2)
                  rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
                  hops     eth0 in 0.000 ms
                  answer   none seen
                  verdict  dropped, Policy denied (133); told by Cilium's own notification (Hubble); Hubble names NetworkPolicy default/another
                  entry    none in cilium_policy_02686 for ingress world (2), 80/TCP
                  nearest  allow 16777218 (cidr:10.224.0.8/32), 80/TCP of NetworkPolicy default/allow-pls-nat; but the peer is world (2)
                  policy   NetworkPolicy default/allow-pls-nat
                  finding  Hubble names NetworkPolicy default/another behind the verdict, the maps and the agent's realized policy name NetworkPolicy default/allow-pls-nat: policy changed in between, or one of them is wrong
            "#]],
        );
    }

    #[test]
    fn maps_that_say_otherwise_are_a_finding() {
        let client = "10.224.0.8:40000";
        check(
            "cidr-pls8-80",
            &[
                at(0, HookPoint::UplinkIn, UPLINK, packet(client, FRONTEND, 0x02, 9, 0)),
                policy_drop(60, packet(client, POD, 0x02, 9, 0)),
            ],
            &expect![[r#"
                10.224.0.8:40000 -> 10.224.0.7:80 TCP: dropped by Cilium, Policy denied (133)
                  cause    no policy entry matched: default deny; not known from the maps, which say: NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [PLS-01]
                  from     PLS NAT IP 10.224.0.8, identity world (2)
                  rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
                  hops     eth0 in 0.000 ms
                  answer   none seen
                  verdict  dropped, Policy denied (133) at bpf_lxc.c:1; told by Cilium's own notification (monitor socket)
                  entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
                  policy   NetworkPolicy default/allow-pls-nat
                  finding  the maps say allowed, but Cilium dropped it (Policy denied (133)): the maps changed in between, or Cilium or plsprobe is wrong; run it again
            "#]],
        );
    }

    #[test]
    fn silence_is_inconclusive() {
        let client = "10.224.0.8:40000";
        check(
            "cidr-pls8-80",
            &[at(0, HookPoint::UplinkIn, UPLINK, packet(client, FRONTEND, 0x02, 9, 0))],
            &expect![[r#"
                10.224.0.8:40000 -> 10.224.0.7:80 TCP: inconclusive: seen at eth0 in, then silence; allowed by the maps
                  cause    nothing that plsprobe knows of on this node stops it, and no answer was seen; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
                  from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
                  hops     eth0 in 0.000 ms
                  answer   none seen
                  gap      nothing after eth0 in; perhaps a tc program behind ours at eth0 redirected or kept it, or it went on where no hook of ours is attached
                  verdict  by the maps alone, nothing observed decides
                  entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
                  policy   NetworkPolicy default/allow-pls-nat
            "#]],
        );
    }
}
