//! What a flow's first bytes say: consumer, PROXY header, how the application took them. As text and as JSON.

use probe_model::path::Beginning;
use probe_model::path::evidence::{Entry, Evidence, Reaction, ReactionKind, Reset};
use probe_model::path::proxy::{Consumer, ProxyFault, is_rejected};
use probe_model::proxy_protocol::{Addresses, Command, FirstBytes, Header, Proxy};
use probe_model::world::World;
use serde_json::{Value, json};

use super::gap::place_text;
use crate::trace::judge::Judgement;
use crate::trace::kernel::Names;

/// Milliseconds with three digits.
pub(super) fn millis(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

/// Who the consumer is: `consumer 10.221.1.4:51000, linkID 553665985 (private endpoint pe-a, Approved)`.
pub(super) fn consumer_text(world: &World, consumer: Consumer) -> String {
    let address = consumer.address.map(|address| format!("consumer {address}"));
    let link = consumer.link_id.map(|link_id| link_text(world, link_id));
    address.into_iter().chain(link).collect::<Vec<_>>().join(", ")
}

/// A link identifier, and whose it is if Azure says so.
pub(super) fn link_text(world: &World, link_id: u32) -> String {
    match world.private_link.connection(link_id) {
        Some((service, connection)) => {
            let endpoint = connection.endpoint.as_ref().map_or(connection.name.as_str(), |id| id.name());
            format!(
                "linkID {link_id} (private endpoint {endpoint} of {}, {})",
                service.name, connection.state
            )
        }
        None => format!("linkID {link_id}"),
    }
}

/// The line on a flow's first bytes: always with a PROXY header, else where something is wrong with them, or the
/// application turned them away.
pub(super) fn line(world: &World, judgement: &Judgement, names: &Names) -> Option<String> {
    let evidence = &judgement.path.evidence;
    let request = evidence.request()?;
    let has_header = evidence.beginnings.iter().any(|seen| !seen.reply && seen.first.is_proxy());
    if !has_header && judgement.proxy_fault.is_none() && !is_rejected(evidence) {
        return None;
    }
    let mut parts = vec![first_text(evidence, names)];
    parts.extend(judgement.consumer.map(|consumer| consumer_text(world, consumer)));
    if request.segments > 1 {
        parts.push(format!("split over {} segments", request.segments));
    }
    parts.extend(request.then.map(|then| format!("then {}", kind_text(then))));
    parts.extend(evidence.reaction.map(reaction_text));
    parts.extend(judgement.proxy_fault.map(fault_text));
    Some(parts.join("; "))
}

/// What the opener sent first, and where that was seen.
fn first_text(evidence: &Evidence, names: &Names) -> String {
    let requests = || evidence.beginnings.iter().filter(|seen| !seen.reply);
    let places: Vec<_> = requests().map(|seen| place_text(seen.place, names)).collect();
    let last = requests().next_back().map_or_else(String::new, |seen| kind_text(seen.first));
    // A proxy in between may have taken it away.
    let differs =
        requests().any(|seen| seen.first.code() != requests().next().map_or("", |one| one.first.code()));
    if differs {
        let each =
            requests().map(|seen| format!("{} at {}", kind_text(seen.first), place_text(seen.place, names)));
        return each.collect::<Vec<_>>().join(", ");
    }
    format!("{last} at {}", places.join(" and "))
}

fn kind_text(first: FirstBytes) -> String {
    match first {
        FirstBytes::ProxyV2(Proxy::Whole(Header { command: Command::Local, .. })) => {
            "PROXY v2 header without a client (LOCAL)".to_owned()
        }
        FirstBytes::ProxyV2(Proxy::Whole(_)) => "PROXY v2 header".to_owned(),
        FirstBytes::ProxyV2(Proxy::Cut { .. }) => "the beginning of a PROXY v2 header".to_owned(),
        FirstBytes::ProxyV2(Proxy::Malformed(_)) => "a broken PROXY v2 header".to_owned(),
        FirstBytes::ProxyV1 => "PROXY v1 header".to_owned(),
        FirstBytes::Tls => "a TLS ClientHello".to_owned(),
        FirstBytes::Http => "an HTTP request".to_owned(),
        FirstBytes::Http2 => "HTTP/2".to_owned(),
        FirstBytes::HttpStatus(status) => format!("HTTP status {status}"),
        FirstBytes::Other => "other data".to_owned(),
    }
}

/// How it was taken, and when: `HTTP status 400 0.412 ms later`.
pub(super) fn reaction_text(reaction: Reaction) -> String {
    format!("{} {} ms later", what_text(reaction.kind), millis(reaction.after_ns))
}

fn what_text(kind: ReactionKind) -> String {
    match kind {
        ReactionKind::Reset => "the pod's end reset the connection".to_owned(),
        ReactionKind::Closed => "the pod's end closed the connection without a byte".to_owned(),
        ReactionKind::Status(status) => format!("HTTP status {status}"),
        ReactionKind::Data => "it was answered".to_owned(),
    }
}

fn fault_text(fault: ProxyFault) -> String {
    match fault {
        ProxyFault::Missing => "a PROXY header was expected and is not there".to_owned(),
        ProxyFault::Unexpected => "no PROXY header was expected".to_owned(),
        ProxyFault::Malformed(malformed) => format!("the header breaks the protocol: {malformed}"),
        ProxyFault::Incomplete => "the header's rest did not come".to_owned(),
    }
}

/// What went wrong behind the handshake, for a flow's first line: `, then HTTP status 400 0.412 ms after its first byte`.
pub(super) fn rejection_text(evidence: &Evidence) -> Option<String> {
    let reaction = evidence.reaction.filter(|_| is_rejected(evidence))?;
    Some(format!(", then {} {} ms after its first byte", what_text(reaction.kind), millis(reaction.after_ns)))
}

/// The consumer as JSON.
pub(super) fn consumer_value(world: &World, consumer: Consumer) -> Value {
    let connection = consumer.link_id.and_then(|link_id| world.private_link.connection(link_id));
    json!({
        "address": consumer.address.map(|address| address.ip().to_string()),
        "port": consumer.address.map(|address| address.port()),
        "link_id": consumer.link_id,
        "private_link_service": connection.map(|(service, _)| service.name.as_str()),
        "private_endpoint": connection.and_then(|(_, own)| Some(own.endpoint.as_ref()?.0.as_str())),
        "state": connection.map(|(_, own)| own.state.to_string()),
    })
}

/// What an end sent first, as JSON.
pub(super) fn beginning_value(beginning: &Beginning, names: &Names) -> Value {
    json!({
        "point": format!("{:?}", beginning.place.point), "at": place_text(beginning.place, names),
        "direction": if beginning.reply { "reply" } else { "forward" }, "ktime_ns": beginning.ktime_ns,
        "kind": beginning.first.code(), "status": status(beginning.first), "segments": beginning.segments,
        "header": beginning.header().map(header_value),
        "broken": match beginning.first {
            FirstBytes::ProxyV2(Proxy::Malformed(malformed)) => Some(malformed.to_string()),
            _ => None,
        },
        "whole": match beginning.first {
            FirstBytes::ProxyV2(proxy) => Some(matches!(proxy, Proxy::Whole(_))),
            _ => None,
        },
        "then": beginning.then.map(FirstBytes::code),
    })
}

fn status(first: FirstBytes) -> Option<u16> {
    match first {
        FirstBytes::HttpStatus(status) => Some(status),
        _ => None,
    }
}

fn header_value(header: &Header) -> Value {
    let (source, destination) = match header.addresses {
        Addresses::Inet { source, destination } => (Some(source.to_string()), Some(destination.to_string())),
        Addresses::Unix | Addresses::Unspecified => (None, None),
    };
    json!({
        "command": match header.command { Command::Local => "local", Command::Proxy => "proxy" },
        "source": source, "destination": destination, "link_id": header.link_id, "tlvs": header.tlvs,
        "bytes": header.len,
    })
}

/// What a flow's packets show, as JSON. What was not seen is null.
pub(super) fn evidence_value(judgement: &Judgement, names: &Names) -> Value {
    let evidence = &judgement.path.evidence;
    let end = |by_opener: bool| if by_opener { "opener" } else { "peer" };
    json!({
        "entry": evidence.entry.map(entry_code), "backend_here": judgement.has_local_backend,
        "node_address_service_port": judgement.is_beside,
        "request_ns": evidence.request_ns,
        "reaction": evidence.reaction.map(reaction_value),
        "unanswered_ns": evidence.unanswered_ns(judgement.path.last_ns),
        "closed": evidence.is_closed,
        "reset": evidence.reset.map(|reset| reset_value(&reset, names)),
        "reuse": evidence.reuse.map(|reuse| json!({
            "since_ns": reuse.since_ns, "was_closed": reuse.was_closed,
        })),
        "bare_ack_ns": evidence.bare_ack_ns,
        "stall": evidence.stall.map(|stall| json!({
            "by": end(stall.by_opener), "lost_len": stall.lost_len, "times": stall.times,
            "passed_len": stall.passed_len,
        })),
        "too_big": evidence.too_big.map(|too_big| json!({
            "from": too_big.from.to_string(), "ktime_ns": too_big.ktime_ns, "packets_of": end(too_big.by_opener),
        })),
        "routed_back": evidence.routed_back.map(|back| json!({
            "from": place_text(back.from, names), "to": place_text(back.to, names), "ttl": back.ttl,
        })),
    })
}

fn entry_code(entry: Entry) -> &'static str {
    match entry {
        Entry::Network => "network",
        Entry::OtherNode => "other-node",
        Entry::Pod => "pod",
        Entry::Node => "node",
    }
}

fn reaction_value(reaction: Reaction) -> Value {
    let (kind, status) = match reaction.kind {
        ReactionKind::Reset => ("reset", None),
        ReactionKind::Closed => ("closed", None),
        ReactionKind::Status(status) => ("http-status", Some(status)),
        ReactionKind::Data => ("data", None),
    };
    json!({ "kind": kind, "status": status, "after_ns": reaction.after_ns })
}

/// A reset as JSON.
pub(super) fn reset_value(reset: &Reset, names: &Names) -> Value {
    json!({
        "by": if reset.by_opener { "opener" } else { "peer" }, "at": place_text(reset.place, names),
        "ktime_ns": reset.ktime_ns, "idle_ns": reset.idle_ns, "after_fin": reset.after_fin,
    })
}

/// What was odd about a flow's packets, a clause each; none of it says why.
pub(super) fn oddities(judgement: &Judgement, names: &Names) -> Vec<String> {
    let evidence = &judgement.path.evidence;
    let mut odd = Vec::new();
    if let Some(back) = evidence.routed_back {
        odd.push(format!(
            "the node sent it back to the network as it came, from {} to {}",
            place_text(back.from, names),
            place_text(back.to, names)
        ));
    }
    if judgement.is_beside {
        odd.push("it came to the node's own address with the service's port, where no service is".to_owned());
    }
    if evidence.bare_ack_ns.is_some() {
        odd.push(
            "its SYN was answered by an ACK alone: its receiver still has an earlier connection".to_owned(),
        );
    }
    if let Some(reuse) = evidence.reuse {
        let state = if reuse.was_closed { "closed" } else { "not seen to be closed" };
        odd.push(format!(
            "its address and port were used {} s before, by a connection that was {state}",
            millis(reuse.since_ns / 1000)
        ));
    }
    if let Some(stall) = evidence.stall {
        odd.push(format!(
            "segments of {} bytes were sent {} times and not acknowledged, the largest that was had {}",
            stall.lost_len, stall.times, stall.passed_len
        ));
    }
    if let Some(too_big) = evidence.too_big {
        odd.push(format!("{} says that its packets are too big", too_big.from));
    }
    odd
}
