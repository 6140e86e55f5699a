//! A judged flow as one JSON object a line: everything that is known of it.

use std::io::{self, Write};

use probe_common::Counter;
use probe_model::cilium::events::Notification;
use probe_model::cilium::release::Release;
use probe_model::path::proxy::ProxyFault;
use probe_model::path::{
    Candidate, CiliumEvent, Confirmation, Gap, Hop, Namespace, Outcome, Path, PathDrop, PathSocket, Place,
    Refusal, Rewrite, SocketEvent, Tunnel, TunnelKind,
};
use probe_model::tuple::Tuple;
use probe_model::world::World;
use serde_json::{Value, json};

use super::drop_cause;
use super::explanation;
use super::gap::candidate_text;
use super::lint::{finding_value, silence_value};
use super::trace::{cause_code, cause_sentence, verdict_word};
use super::{json_line, list};
use super::{trace_proxy, trace_watched};
use crate::attach::{Hook, HookState};
use crate::trace::Summary;
use crate::trace::judge::{EventSource, Evidence, Judgement, Origin};
use crate::trace::kernel::Names;

/// Version of a flow's JSON.
pub const FLOW_SCHEMA: &str = "plsprobe.trace.flow/1";
/// Version of the summary's JSON.
pub const SUMMARY_SCHEMA: &str = "plsprobe.trace.summary/1";

/// Writes one flow.
///
/// # Errors
///
/// What `out` says.
pub fn flow(world: &World, judgement: &Judgement, names: &Names, out: &mut impl Write) -> io::Result<()> {
    let path = &judgement.path;
    let agent = world.version.as_deref().and_then(Release::of_version);
    let mut value = json!({
        "schema": FLOW_SCHEMA,
        "tuple": tuple_value(&path.tuple),
        "verdict": verdict_word(judgement.verdict),
        "evidence": evidence_value(&judgement.evidence),
        "outcome": outcome_value(path, names),
        "gap": judgement.gap.as_ref().map(|gap| gap_value(gap, names)),
        "origin": origin_value(&judgement.origin),
        "identity": judgement.identity.map(|identity| json!({
            "id": identity.0, "text": world.identity_text(identity),
        })),
        "confirmed_by": judgement.confirmation.as_ref().map(confirmation_value),
        "retransmissions": path.retransmissions, "syn_acks_again": path.accepted_again,
        "acknowledged": path.is_acknowledged, "connection_open": path.is_open(),
        "first_ns": path.first_ns, "last_ns": path.last_ns, "answered_ns": path.answered_ns,
        "consumer": judgement.consumer.map(|consumer| trace_proxy::consumer_value(world, consumer)),
        "proxy": {
            "expected": judgement.proxy_expected, "fault": judgement.proxy_fault.map(ProxyFault::code),
        },
        "findings": judgement.findings,
        "cause": { "code": cause_code(judgement).text(), "sentence": cause_sentence(judgement, names) },
    });
    // What `json!` is given as a value, it copies: what is large is put in.
    value["rewrites"] = list(&path.rewrites, rewrite_value);
    value["hops"] = list(&path.hops, |hop| hop_value(hop, names));
    value["replies"] = list(&path.replies, |hop| hop_value(hop, names));
    value["cilium"] = list(&path.cilium, |event| event_value(event, agent));
    value["kernel_drops"] = list(&path.drops, |drop| drop_value(drop, names));
    value["sockets"] = list(&path.sockets, socket_value);
    value["first_bytes"] = list(&path.evidence.beginnings, |one| trace_proxy::beginning_value(one, names));
    value["shown"] = trace_proxy::evidence_value(judgement, names);
    value["causes"] = list(&judgement.causes, finding_value);
    value["remedies"] = list(&judgement.remedies, explanation::remedy_value);
    value["explanation"] = explanation::value(world, &judgement.explanation);
    json_line(&value, out)
}

fn rewrite_value(rewrite: &Rewrite) -> Value {
    json!({
        "from": tuple_value(&rewrite.from), "to": tuple_value(&rewrite.to),
        "dnat": rewrite.is_dnat(), "snat": rewrite.is_snat(),
    })
}

fn namespace_text(namespace: Namespace) -> &'static str {
    match namespace {
        Namespace::Node => "node",
        Namespace::Pod => "pod",
    }
}

/// An interface's name; none in a pod's namespace, where its number is none of ours.
fn interface(place: Place, names: &Names) -> Option<String> {
    (place.namespace == Namespace::Node).then(|| names.interface(place.ifindex))
}

/// A tuple as a JSON object.
pub(super) fn tuple_value(tuple: &Tuple) -> Value {
    json!({
        "saddr": tuple.saddr.to_string(), "sport": tuple.sport,
        "daddr": tuple.daddr.to_string(), "dport": tuple.dport, "protocol": tuple.protocol.to_string(),
    })
}

fn evidence_value(evidence: &Evidence) -> Value {
    match evidence {
        Evidence::Cilium(source) => json!({ "from": "cilium", "source": source_value(source) }),
        Evidence::Packets => json!({ "from": "packets" }),
        Evidence::Maps => json!({ "from": "maps" }),
    }
}

fn source_value(source: &EventSource) -> Value {
    match source {
        EventSource::Probe(means) => json!({ "by": means }),
        EventSource::MonitorSocket => json!({ "by": "monitor-socket" }),
        EventSource::Hubble => json!({ "by": "hubble" }),
        EventSource::None(why) => json!({ "by": null, "why": why }),
    }
}

fn outcome_value(path: &Path, names: &Names) -> Value {
    let outcome = path.outcome.code().text();
    match path.outcome {
        Outcome::Answered | Outcome::AnswerLost | Outcome::NoAnswer | Outcome::Silent => {
            json!({ "outcome": outcome })
        }
        Outcome::Refused { refusal, from } => {
            let by = match refusal {
                Refusal::Reset => json!({ "tcp": "reset" }),
                Refusal::Icmp { icmp_type, code } => json!({ "icmp_type": icmp_type, "icmp_code": code }),
            };
            let socket = path.reset_had_socket();
            json!({ "outcome": outcome, "from": from.to_string(), "by": by, "had_socket": socket })
        }
        Outcome::DroppedByCilium { reason, established, reply } => json!({
            "outcome": outcome, "code": reason.0, "name": reason.name(), "text": reason.text(),
            "established": established, "reply": reply,
        }),
        Outcome::DroppedByKernel { reason, reply } => {
            let drop = path.drops.iter().find(|drop| drop.reason == reason && drop.reply == reply);
            let cause =
                drop.and_then(|drop| names.drop_cause(drop)).map(|cause| drop_cause::code(cause).text());
            json!({
                "outcome": outcome, "code": reason, "name": names.drop_reason(reason),
                "cause": cause, "reply": reply,
            })
        }
    }
}

fn gap_value(gap: &Gap, names: &Names) -> Value {
    let place = |candidate: &Candidate| match candidate {
        Candidate::TcProgram { place, .. } | Candidate::Device { place } => Some(*place),
        _ => None,
    };
    json!({
        "last": gap.last.as_ref().map(|hop| hop_value(hop, names)),
        "direction": if gap.reply { "reply" } else { "forward" },
        "candidates": gap.candidates.iter().map(|candidate| json!({
            "code": candidate.code().text(),
            "interface": place(candidate).and_then(|place| interface(place, names)),
            "text": candidate_text(*candidate, names),
        })).collect::<Vec<_>>(),
    })
}

fn confirmation_value(confirmation: &Confirmation) -> Value {
    json!({ "map": confirmation.map, "entry": confirmation.entry })
}

fn socket_value(socket: &PathSocket) -> Value {
    json!({
        "event": socket_code(socket.event), "namespace": namespace_text(socket.namespace),
        "ktime_ns": socket.ktime_ns, "count": socket.count,
    })
}

fn socket_code(event: SocketEvent) -> &'static str {
    match event {
        SocketEvent::Established => "established",
        SocketEvent::Reset { had_socket: true } => "reset",
        SocketEvent::Reset { had_socket: false } => "reset-without-socket",
        SocketEvent::SentAgain => "sent-again",
        SocketEvent::AcceptedAgain => "syn-ack-sent-again",
    }
}

fn tunnel_value(tunnel: Tunnel) -> Value {
    let kind = match tunnel.kind {
        TunnelKind::Vxlan => "vxlan",
        TunnelKind::Geneve => "geneve",
    };
    json!({ "kind": kind, "id": tunnel.id })
}

fn origin_value(origin: &Origin) -> Value {
    match origin {
        Origin::PlsNatIp(confidence) => {
            json!({ "kind": "pls-nat-ip", "confidence": confidence.to_string() })
        }
        Origin::AzureProbe => json!({ "kind": "azure-probe" }),
        Origin::Pod(name) => json!({ "kind": "pod", "name": name }),
        Origin::Node => json!({ "kind": "node" }),
        Origin::Subnet(net) => json!({ "kind": "subnet", "subnet": net.to_string() }),
        Origin::Routed => json!({ "kind": "routed" }),
    }
}

fn hop_value(hop: &Hop, names: &Names) -> Value {
    json!({
        "point": format!("{:?}", hop.place.point), "namespace": namespace_text(hop.place.namespace),
        "interface": interface(hop.place, names), "ifindex": hop.place.ifindex,
        "ktime_ns": hop.ktime_ns, "mark": hop.mark, "tuple": tuple_value(&hop.tuple),
        "tunnel": hop.tunnel.map(tunnel_value), "vlan": (hop.vlan != 0).then_some(hop.vlan),
    })
}

fn event_value(event: &CiliumEvent, agent: Option<Release>) -> Value {
    // Hubble passes on neither the drop's place in Cilium's source nor what else the notification says.
    let unless_hubble = |value: Value| if event.hubble.is_some() { Value::Null } else { value };
    let what = match &event.notification {
        Notification::Drop(drop) => json!({
            "type": "drop", "reason": drop.reason.0, "text": drop.reason.text(), "endpoint": drop.header.source.0,
            "src_identity": drop.src_label.0, "dst_identity": drop.dst_label.0, "dst_endpoint": drop.dst_id,
            "file": unless_hubble(drop.file.into()), "source_file": unless_hubble(drop.source_file(agent).into()),
            "line": unless_hubble(drop.line.into()), "ext_error": unless_hubble(drop.ext_error.into()),
            "ifindex": drop.ifindex,
        }),
        Notification::Trace(trace) => json!({
            "type": "trace", "point": trace.point.to_string(), "reason": trace.reason.0,
            "src_identity": trace.src_label.0, "dst_identity": trace.dst_label.0, "dst_endpoint": trace.dst_id,
            "ifindex": trace.ifindex,
        }),
        Notification::PolicyVerdict(verdict) => json!({
            "type": "policy-verdict", "verdict": verdict.verdict, "endpoint": verdict.header.source.0,
            "identity": verdict.remote_label.0, "direction": verdict.direction.to_string(),
            "match": verdict.match_type.to_string(), "dst_port": verdict.dst_port, "protocol": verdict.proto,
            "audited": verdict.audited,
        }),
        other => json!({ "type": "other", "message_type": other.message_type() }),
    };
    let policies = event.hubble.as_deref();
    let policies =
        policies.map(|policies| policies.iter().map(explanation::policy_value).collect::<Vec<_>>());
    json!({
        "ktime_ns": event.ktime_ns, "count": event.count, "tuple": tuple_value(&event.tuple), "event": what,
        "hubble_policies": policies,
    })
}

fn drop_value(drop: &PathDrop, names: &Names) -> Value {
    json!({
        "ktime_ns": drop.ktime_ns, "reason": drop.reason, "name": names.freed(drop),
        "cause": names.drop_cause(drop).map(|cause| drop_cause::code(cause).text()), "at": names.freed_at(drop),
        "location": format!("{:#x}", drop.location), "ifindex": drop.ifindex, "netns": drop.netns,
        "reply": drop.reply, "count": drop.count, "tuple": tuple_value(&drop.tuple),
    })
}

/// Writes how the trace went.
///
/// # Errors
///
/// What `out` says.
pub fn summary(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let [allowed, dropped, inconclusive] = summary.flows;
    let counters = &summary.counters;
    let (received, lost, undecoded) = summary.notifications;
    let value = json!({
        "schema": SUMMARY_SCHEMA,
        "flows": {
            "total": allowed + dropped + inconclusive, "allowed": allowed, "dropped": dropped,
            "inconclusive": inconclusive, "refused": summary.refused,
        },
        "records": {
            "read": summary.records, "lost": counters.lost(), "malformed": summary.malformed,
            "made": counters.made(), "unaccounted": summary.unaccounted,
            "overflowed": summary.overflowed, "disordered": summary.disordered, "unreadable": counters.get(Counter::Unreadable),
        },
        "packets": {
            "seen": counters.get(Counter::PacketSeen), "matched": counters.matched(),
            "only_counted": counters.get(Counter::PacketCounted), "after_decision": summary.later_packets, "syn_again_after_decision": summary.later_retransmissions,
        },
        "cilium_events": {
            "source": source_value(&summary.events), "received": received, "lost": lost, "undecoded": undecoded,
        },
        "probes": summary.probes.iter().map(trace_watched::probe_value).collect::<Vec<_>>(),
        "together": trace_watched::together_value(&summary.world, &summary.together),
        "silence": summary.silence.as_ref().map(silence_value),
        "egress_drops": summary.egress_drops, "late_resets": summary.late_resets,
        "hooks": summary.hooks.iter().map(hook_value).collect::<Vec<_>>(),
        "gaps": summary.gaps.iter().map(|gap| json!({
            "place": gap.place, "why": gap.why, "from_ns": gap.from_ns, "until_ns": gap.until_ns,
        })).collect::<Vec<_>>(),
        "skipped": summary.skipped.iter().map(|skipped| json!({
            "place": skipped.place, "runs": skipped.runs,
        })).collect::<Vec<_>>(),
        "elapsed_ms": summary.elapsed.as_millis() as u64,
        "first_record_ms": summary.first_record.map(|after| after.as_millis() as u64),
    });
    json_line(&value, out)
}

fn hook_value(hook: &Hook) -> Value {
    let (state, detail) = match &hook.state {
        HookState::Attached(means) => ("attached", *means),
        HookState::Lost(why) => ("lost", why.as_str()),
        HookState::Refused(why) => ("refused", why.as_str()),
    };
    json!({ "place": hook.place, "state": state, "detail": detail })
}
