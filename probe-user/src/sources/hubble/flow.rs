//! A Hubble flow as the notification that it was made of. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{
    CaptureHeader, DropNotify, Notification, NotifyFlags, ObservationPoint, PolicyVerdictNotify, TraceNotify,
    TraceReason,
};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::MatchType;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::path::{Fragment, Packet, Seen, Sighting, TcpFlags};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::PolicyRef;

use super::proto::{self, Endpoint, Flow, Ports, Verdict};

/// Message types of the notifications that are asked for.
pub(super) const TYPES: [i32; 3] = [DROP, TRACE, POLICY_VERDICT];
const DROP: i32 = 1;
const TRACE: i32 = 4;
const POLICY_VERDICT: i32 = 5;
/// The datapath's number for a conntrack state that is not known.
const REASON_UNKNOWN: u8 = 5;

/// The sighting that a flow tells of; `None` for one of no use: another notification, or a packet that cannot be put
/// to its flow, such as an echo, whose identifier Hubble does not pass on.
///
/// # Errors
///
/// For a number or an address that is not known.
pub(super) fn sighting(flow: &Flow, ktime_ns: u64) -> Result<Option<Sighting>> {
    let message_type = flow.event_type.map_or(0, |event| event.r#type);
    if !TYPES.contains(&message_type) {
        return Ok(None);
    }
    let Some(packet) = packet(flow)? else { return Ok(None) };
    let notification = match message_type {
        DROP => Notification::Drop(drop_notify(flow)?),
        TRACE => match trace_notify(flow, &packet)? {
            Some(trace) => Notification::Trace(trace),
            None => return Ok(None),
        },
        _ => Notification::PolicyVerdict(policy_verdict(flow, &packet)?),
    };
    let seen = Seen::Hubble { notification, policies: policies(flow) };
    Ok(Some(Sighting { ktime_ns, packet, seen }))
}

fn packet(flow: &Flow) -> Result<Option<Packet>> {
    let Some(ip) = &flow.ip else { return Ok(None) };
    let (protocol, sport, dport, flags) = match flow.l4.and_then(|l4| l4.protocol) {
        Some(Ports::Tcp(tcp)) => {
            (Protocol::TCP, tcp.source_port, tcp.destination_port, tcp.flags.map(tcp_flags))
        }
        Some(Ports::Udp(udp)) => (Protocol::UDP, udp.source_port, udp.destination_port, None),
        Some(Ports::Sctp(sctp)) => (Protocol::SCTP, sctp.source_port, sctp.destination_port, None),
        Some(Ports::Icmpv4(_) | Ports::Icmpv6(_)) | None => return Ok(None),
    };
    let address = |text: &str| -> Result<IpAddr> {
        text.parse().with_context(|| format!("a flow's address is `{text}`"))
    };
    let port = |port: u32| u16::try_from(port).with_context(|| format!("a flow's port is `{port}`"));
    let source = if ip.source_xlated.is_empty() { &ip.source } else { &ip.source_xlated };
    let tuple = Tuple {
        saddr: address(source)?,
        daddr: address(&ip.destination)?,
        sport: port(sport)?,
        dport: port(dport)?,
        protocol,
    };
    Ok(Some(Packet {
        tuple,
        flags: flags.unwrap_or_default(),
        seq: 0,
        ack: 0,
        payload_len: 0,
        payload_hash: 0,
        ip_id: 0,
        ttl: 0,
        fragment: Fragment::Whole,
        vlan: 0,
        tunnel: None,
        icmp: None,
        quoted: None,
    }))
}

fn tcp_flags(flags: proto::TcpFlags) -> TcpFlags {
    let proto::TcpFlags { fin, syn, rst, psh, ack, urg, ece, cwr } = flags;
    let bits = [fin, syn, rst, psh, ack, urg, ece, cwr];
    TcpFlags(bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit)))
}

fn drop_notify(flow: &Flow) -> Result<DropNotify> {
    let (source, destination) = (flow.source.unwrap_or_default(), flow.destination.unwrap_or_default());
    let emitting = match direction(flow)? {
        Some(Direction::Ingress) => destination,
        Some(Direction::Egress) => source,
        None => Endpoint::default(),
    };
    Ok(DropNotify {
        header: header(emitting)?,
        reason: drop_reason(flow)?,
        src_label: Identity(source.identity),
        dst_label: Identity(destination.identity),
        dst_id: destination.id,
        line: 0,
        file: 0,
        ext_error: 0,
        ifindex: flow.interface.map_or(0, |interface| interface.index),
        flags: None,
        ip_trace_id: None,
    })
}

/// `None` where Hubble does not know the point.
fn trace_notify(flow: &Flow, packet: &Packet) -> Result<Option<TraceNotify>> {
    let point = match flow.trace_observation_point {
        0 => return Ok(None),
        proto::TO_ENDPOINT => ObservationPoint::TO_ENDPOINT,
        point => ObservationPoint(
            u8::try_from(point)
                .with_context(|| format!("a flow's `trace_observation_point` is `{point}`"))?,
        ),
    };
    let reason = u8::try_from(flow.trace_reason);
    let reason =
        match reason.with_context(|| format!("a flow's `trace_reason` is `{}`", flow.trace_reason))? {
            0 => REASON_UNKNOWN,
            // Hubble counts from 1 what the datapath counts from 0, to leave 0 for unknown.
            reason @ 1..=5 => reason - 1,
            reason => reason,
        };
    let (source, destination) = (flow.source.unwrap_or_default(), flow.destination.unwrap_or_default());
    Ok(Some(TraceNotify {
        header: header(Endpoint::default())?,
        point,
        src_label: Identity(source.identity),
        dst_label: Identity(destination.identity),
        dst_id: endpoint_id(destination)?.0,
        reason: TraceReason(reason),
        flags: NotifyFlags(u8::from(packet.tuple.saddr.is_ipv6())),
        ifindex: flow.interface.map_or(0, |interface| interface.index),
        orig_ip: [0; 16],
        ip_trace_id: None,
    }))
}

fn policy_verdict(flow: &Flow, packet: &Packet) -> Result<PolicyVerdictNotify> {
    let direction =
        direction(flow)?.context("a policy verdict's `traffic_direction` is `0`, expected 1 or 2")?;
    let (endpoint, peer) = match direction {
        Direction::Ingress => (flow.destination, flow.source),
        Direction::Egress => (flow.source, flow.destination),
    };
    let verdict = match Verdict::try_from(flow.verdict) {
        Ok(Verdict::Forwarded | Verdict::Audit) => 0,
        Ok(Verdict::Dropped) => -i32::from(drop_reason(flow)?.0),
        // The port travels in network order; where Hubble does not give it, all that is left is that it went on.
        Ok(Verdict::Redirected) => {
            let port = u16::try_from(flow.proxy_port).unwrap_or_default();
            i32::from(u16::from_le_bytes(port.to_be_bytes()))
        }
        Ok(Verdict::Unknown | Verdict::Error) | Err(_) => {
            bail!("a policy verdict's `verdict` is `{}`, expected 1, 2, 4 or 5", flow.verdict)
        }
    };
    let number = flow.policy_match_type;
    let match_type = u8::try_from(number).ok().and_then(MatchType::from_number);
    Ok(PolicyVerdictNotify {
        header: header(endpoint.unwrap_or_default())?,
        remote_label: Identity(peer.unwrap_or_default().identity),
        verdict,
        dst_port: packet.tuple.dport,
        proto: packet.tuple.protocol.0,
        direction,
        ipv6: packet.tuple.saddr.is_ipv6(),
        match_type: match_type
            .with_context(|| format!("a flow's `policy_match_type` is `{number}`, expected 0 to 6"))?,
        audited: flow.verdict == Verdict::Audit as i32,
        l3_device: false,
        cookie: None,
        auth_type: u8::try_from(flow.auth_type)
            .with_context(|| format!("a flow's `auth_type` is `{}`", flow.auth_type))?,
    })
}

fn header(endpoint: Endpoint) -> Result<CaptureHeader> {
    Ok(CaptureHeader { source: endpoint_id(endpoint)?, hash: 0, len_orig: 0, len_cap: 0, ext_version: 0 })
}

fn endpoint_id(endpoint: Endpoint) -> Result<EndpointId> {
    let id = u16::try_from(endpoint.id);
    id.map(EndpointId).with_context(|| format!("a flow's endpoint id is `{}`", endpoint.id))
}

fn direction(flow: &Flow) -> Result<Option<Direction>> {
    match flow.traffic_direction {
        0 => Ok(None),
        1 => Ok(Some(Direction::Ingress)),
        2 => Ok(Some(Direction::Egress)),
        found => bail!("a flow's `traffic_direction` is `{found}`, expected 0 to 2"),
    }
}

/// The reason as newer agents give it, else as older ones do.
fn drop_reason(flow: &Flow) -> Result<DropReason> {
    let code = if flow.drop_reason_desc != 0 {
        i64::from(flow.drop_reason_desc)
    } else {
        i64::from(flow.drop_reason)
    };
    let reason = i32::try_from(-code).ok().and_then(DropReason::from_return_code);
    reason.with_context(|| format!("a flow's `drop_reason_desc` is `{code}`, expected 130 to 255"))
}

fn policies(flow: &Flow) -> Arc<[PolicyRef]> {
    let lists =
        [&flow.ingress_denied_by, &flow.egress_denied_by, &flow.ingress_allowed_by, &flow.egress_allowed_by];
    let mut all: Vec<PolicyRef> = lists.into_iter().flatten().map(policy).collect();
    all.sort();
    all.dedup();
    all.into()
}

fn policy(policy: &proto::Policy) -> PolicyRef {
    let by_labels = PolicyRef::from_labels(policy.labels.iter().map(String::as_str));
    if policy.name.is_empty() {
        return by_labels;
    }
    PolicyRef {
        // Before 1.17 only the labels tell it.
        kind: if policy.kind.is_empty() { by_labels.kind } else { policy.kind.clone() },
        namespace: (!policy.namespace.is_empty()).then(|| policy.namespace.clone()),
        name: policy.name.clone(),
    }
}
