//! A judged flow as one of Hubble's. Where Hubble has a field it is filled with what is known, and left empty else.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use probe_model::cilium::Direction;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::tuple::Protocol;
use sha2::{Digest as _, Sha256};

use super::cause;
use super::proto::{
    self, BoolValue, Datagram, Emitter, Endpoint, EventType, GetFlowsResponse, Icmp, Ip, IpVersion, Layer4,
    LostEvent, Policy, Ports, Response, Tcp, Timestamp, TrafficDirection, Verdict,
};
use crate::agent::flow::{Flow, Peer};
use crate::render::clean;
use crate::sources::hubble::proto::TO_ENDPOINT;
use crate::trace::judge::FlowVerdict;

/// A flow goes the way of its first packet.
pub(super) const IS_REPLY: bool = false;

/// Tells of flows, as this node's agent.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    node: String,
    /// Of the node and of when the agent began, for names that nobody else gives.
    seed: u64,
}

impl Teller {
    pub(super) fn new(node: String, began: SystemTime) -> Self {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let hash = Sha256::new().chain_update(&node).chain_update(began.as_nanos().to_be_bytes()).finalize();
        let seed = hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        Self { node, seed }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// The same each time that a flow is told of: a UUID of version 8 (RFC 9562), with the flow's number at its end.
    pub(super) fn uuid(&self, flow: &Flow) -> String {
        let high = self.seed & !0xf000 | 0x8000;
        let low = flow.number & (u64::MAX >> 2) | 1 << 63;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    pub(super) fn flow(&self, flow: &Flow) -> GetFlowsResponse {
        let time = timestamp(flow.first_ns);
        let response = Response::Flow(Box::new(self.told(flow, time)));
        GetFlowsResponse { response: Some(response), node_name: self.node.clone(), time: Some(time) }
    }

    pub(super) fn lost(&self, count: u64, now: SystemTime) -> GetFlowsResponse {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let lost = LostEvent { source: proto::RING_BUFFER, num_events_lost: count };
        let time = Some(timestamp(now.as_nanos() as u64));
        GetFlowsResponse { response: Some(Response::Lost(lost)), node_name: self.node.clone(), time }
    }

    fn told(&self, flow: &Flow, time: Timestamp) -> proto::Flow {
        let event = event_type(flow);
        let is_to_endpoint = event == Some(EventNumbers::DELIVERED);
        let reason = drop_reason(flow);
        let mut told = proto::Flow {
            time: Some(time),
            verdict: verdict(flow) as i32,
            drop_reason: reason.into(),
            ip: Some(ip(flow)),
            l4: layer4(flow),
            source: Some(endpoint(&flow.source)),
            destination: Some(endpoint(&flow.destination)),
            r#type: proto::L3_L4,
            node_name: self.node.clone(),
            event_type: event.map(Into::into),
            destination_service: flow
                .service
                .clone()
                .map(|(namespace, name)| proto::Service { name, namespace }),
            traffic_direction: direction(flow) as i32,
            trace_observation_point: if is_to_endpoint { TO_ENDPOINT } else { 0 },
            drop_reason_desc: reason.into(),
            is_reply: Some(BoolValue { value: IS_REPLY }),
            uuid: self.uuid(flow),
            emitter: Some(Emitter {
                name: "plsprobe".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            // Clients print it on a terminal, as it is.
            summary: clean(&flow.sentence).into_owned(),
            extensions: Some(cause::extension(flow)),
            ..proto::Flow::default()
        };
        if let Some(list) = policies_of(&mut told, flow) {
            *list = flow.policies.iter().map(policy).collect();
        }
        told
    }
}

/// Where the policies behind a flow belong: with those that allow it or those that deny it. A default deny has nobody
/// who denies, and where views contradict each other the policies may be those of the other verdict.
fn policies_of<'a>(told: &'a mut proto::Flow, flow: &Flow) -> Option<&'a mut Vec<Policy>> {
    if !flow.disagreements.is_empty() {
        return None;
    }
    let is_denied = flow.drop_reason == Some(DropReason::POLICY_DENY);
    match (flow.verdict, flow.direction?) {
        (FlowVerdict::Allowed, Direction::Ingress) => Some(&mut told.ingress_allowed_by),
        (FlowVerdict::Allowed, Direction::Egress) => Some(&mut told.egress_allowed_by),
        (FlowVerdict::Dropped, Direction::Ingress) if is_denied => Some(&mut told.ingress_denied_by),
        (FlowVerdict::Dropped, Direction::Egress) if is_denied => Some(&mut told.egress_denied_by),
        _ => None,
    }
}

fn policy(policy: &probe_model::world::PolicyRef) -> Policy {
    Policy {
        name: policy.name.clone(),
        namespace: policy.namespace.clone().unwrap_or_default(),
        labels: Vec::new(),
        kind: policy.kind.clone(),
    }
}

pub(super) fn verdict(flow: &Flow) -> Verdict {
    match flow.verdict {
        FlowVerdict::Allowed => Verdict::Forwarded,
        FlowVerdict::Dropped => Verdict::Dropped,
        FlowVerdict::Inconclusive => Verdict::Unknown,
    }
}

/// Cilium's number, 0 if Cilium did not drop it.
pub(super) fn drop_reason(flow: &Flow) -> u8 {
    match flow.verdict {
        FlowVerdict::Dropped => flow.drop_reason.map_or(0, |reason| reason.0),
        FlowVerdict::Allowed | FlowVerdict::Inconclusive => 0,
    }
}

pub(super) fn direction(flow: &Flow) -> TrafficDirection {
    match flow.direction {
        Some(Direction::Ingress) => TrafficDirection::Ingress,
        Some(Direction::Egress) => TrafficDirection::Egress,
        None => TrafficDirection::Unknown,
    }
}

/// The numbers of a notification of Cilium's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EventNumbers {
    pub(super) kind: u8,
    pub(super) sub_type: u8,
}

impl EventNumbers {
    const DROP: u8 = 1;
    /// A trace notification of a packet on its way into an endpoint.
    const DELIVERED: Self = Self { kind: 4, sub_type: 0 };
}

impl From<EventNumbers> for EventType {
    fn from(numbers: EventNumbers) -> Self {
        Self { r#type: numbers.kind.into(), sub_type: numbers.sub_type.into() }
    }
}

/// The notification that says the same: Cilium's drop, or that it goes into its pod. `None` where Cilium says nothing, as
/// when the node's own netfilter drops a packet.
pub(super) fn event_type(flow: &Flow) -> Option<EventNumbers> {
    match (flow.verdict, drop_reason(flow)) {
        (FlowVerdict::Dropped, sub_type @ 1..) => Some(EventNumbers { kind: EventNumbers::DROP, sub_type }),
        (FlowVerdict::Allowed, _) if flow.destination.endpoint.is_some() => Some(EventNumbers::DELIVERED),
        _ => None,
    }
}

/// Who sends, as it came to the node.
pub(super) fn source(flow: &Flow) -> IpAddr {
    flow.tuple.saddr
}

/// Whom it reaches, or would.
pub(super) fn destination(flow: &Flow) -> IpAddr {
    flow.translated.daddr
}

/// Who seems to send where it arrives, if that is another.
pub(super) fn source_xlated(flow: &Flow) -> Option<IpAddr> {
    Some(flow.translated.saddr).filter(|xlated| *xlated != flow.tuple.saddr)
}

pub(super) fn ip_version(flow: &Flow) -> IpVersion {
    if source(flow).is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
}

/// Cilium's number, 0 if it is not known.
pub(super) fn identity(peer: &Peer) -> u32 {
    peer.identity.map_or(0, |identity| identity.0)
}

fn ip(flow: &Flow) -> Ip {
    Ip {
        source: source(flow).to_string(),
        destination: destination(flow).to_string(),
        version: ip_version(flow) as i32,
        source_xlated: source_xlated(flow).map(|xlated| xlated.to_string()).unwrap_or_default(),
    }
}

fn layer4(flow: &Flow) -> Option<Layer4> {
    let (source_port, destination_port) = (flow.tuple.sport.into(), flow.translated.dport.into());
    let datagram = Datagram { source_port, destination_port };
    let protocol = match flow.tuple.protocol {
        Protocol::TCP => Ports::Tcp(Tcp { source_port, destination_port, flags: None }),
        Protocol::UDP => Ports::Udp(datagram),
        Protocol::SCTP => Ports::Sctp(datagram),
        Protocol::ICMP => Ports::Icmpv4(Icmp::default()),
        Protocol::ICMPV6 => Ports::Icmpv6(Icmp::default()),
        _ => return None,
    };
    Some(Layer4 { protocol: Some(protocol) })
}

fn endpoint(peer: &Peer) -> Endpoint {
    let pod = peer.pod.clone();
    let (namespace, pod_name) = pod.map(|pod| (pod.namespace, pod.name)).unwrap_or_default();
    Endpoint {
        id: peer.endpoint.map_or(0, |id| id.0.into()),
        identity: identity(peer),
        namespace,
        labels: peer.labels.clone(),
        pod_name,
    }
}

fn timestamp(ns: u64) -> Timestamp {
    const NANOS: u64 = 1_000_000_000;
    Timestamp { seconds: (ns / NANOS).cast_signed(), nanos: (ns % NANOS) as i32 }
}
