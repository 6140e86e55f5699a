//! The messages that Hubble's clients are sent, as far as plsprobe fills them. What both sides speak of is
//! [`sources::hubble`](crate::sources::hubble)'s.
//!
//! A flow and its endpoints stand in both: as it is read it leaves out what is only told, labels, names and the cause's
//! JSON, which would be copied for every flow of Cilium's, and could make one unreadable that is of use.
//!
//! Source: field numbers of `api/v1/{flow,observer,peer}/*.proto`, the same in Cilium 1.13 to 1.20 (1.14 on for
//! `GetNamespaces`, 1.15 on for `extensions`), and of gRPC's `health.proto`.

use prost::{Message, Oneof};

pub(super) use crate::sources::hubble::proto::{
    Datagram, EventType, Icmp, Ip, Layer4, LostEvent, Policy, Ports, ServerStatusResponse, Tcp, Timestamp,
    Verdict,
};

/// `observer.GetFlowsResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct GetFlowsResponse {
    /// What it tells.
    #[prost(oneof = "Response", tags = "1, 3")]
    pub response: Option<Response>,
    /// The node's name.
    #[prost(string, tag = "1000")]
    pub node_name: String,
    /// When it was seen.
    #[prost(message, optional, tag = "1001")]
    pub time: Option<Timestamp>,
}

/// The kinds of `observer.GetFlowsResponse`.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(super) enum Response {
    /// A flow.
    #[prost(message, tag = "1")]
    Flow(Box<Flow>),
    /// Flows that this client was too slow for.
    #[prost(message, tag = "3")]
    Lost(LostEvent),
}

/// [`LostEvent::source`]: what is kept was overwritten before the client took it.
pub(super) const RING_BUFFER: i32 = 3;

/// `flow.Flow`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Flow {
    #[prost(message, optional, tag = "1")]
    pub time: Option<Timestamp>,
    #[prost(int32, tag = "2")]
    pub verdict: i32,
    #[prost(uint32, tag = "3")]
    pub drop_reason: u32,
    #[prost(message, optional, tag = "5")]
    pub ip: Option<Ip>,
    #[prost(message, optional, tag = "6")]
    pub l4: Option<Layer4>,
    #[prost(message, optional, tag = "8")]
    pub source: Option<Endpoint>,
    #[prost(message, optional, tag = "9")]
    pub destination: Option<Endpoint>,
    #[prost(int32, tag = "10")]
    pub r#type: i32,
    #[prost(string, tag = "11")]
    pub node_name: String,
    #[prost(message, optional, tag = "19")]
    pub event_type: Option<EventType>,
    #[prost(message, optional, tag = "21")]
    pub destination_service: Option<Service>,
    #[prost(int32, tag = "22")]
    pub traffic_direction: i32,
    #[prost(int32, tag = "24")]
    pub trace_observation_point: i32,
    #[prost(int32, tag = "25")]
    pub drop_reason_desc: i32,
    #[prost(message, optional, tag = "26")]
    pub is_reply: Option<BoolValue>,
    #[prost(string, tag = "34")]
    pub uuid: String,
    #[prost(message, optional, tag = "41")]
    pub emitter: Option<Emitter>,
    #[prost(message, repeated, tag = "21001")]
    pub egress_allowed_by: Vec<Policy>,
    #[prost(message, repeated, tag = "21002")]
    pub ingress_allowed_by: Vec<Policy>,
    #[prost(message, repeated, tag = "21004")]
    pub egress_denied_by: Vec<Policy>,
    #[prost(message, repeated, tag = "21005")]
    pub ingress_denied_by: Vec<Policy>,
    #[prost(string, tag = "100000")]
    pub summary: String,
    #[prost(message, optional, tag = "150000")]
    pub extensions: Option<Any>,
}

/// `flow.FlowType`: layers 3 and 4.
pub(super) const L3_L4: i32 = 1;

/// `flow.IPVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum IpVersion {
    V4 = 1,
    V6 = 2,
}

/// `flow.TrafficDirection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum TrafficDirection {
    Unknown = 0,
    Ingress = 1,
    Egress = 2,
}

/// `flow.Endpoint`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Endpoint {
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(uint32, tag = "2")]
    pub identity: u32,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(string, repeated, tag = "4")]
    pub labels: Vec<String>,
    #[prost(string, tag = "5")]
    pub pod_name: String,
}

/// `flow.Service`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Service {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
}

/// `flow.Emitter`, since 1.19.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Emitter {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// `google.protobuf.BoolValue`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct BoolValue {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

/// `google.protobuf.StringValue`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StringValue {
    #[prost(string, tag = "1")]
    pub value: String,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `observer.GetNodesResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct GetNodesResponse {
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
}

/// `observer.Node`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(string, tag = "3")]
    pub address: String,
    /// `relay.NodeState`.
    #[prost(int32, tag = "4")]
    pub state: i32,
    #[prost(uint64, tag = "6")]
    pub uptime_ns: u64,
    #[prost(uint64, tag = "7")]
    pub num_flows: u64,
    #[prost(uint64, tag = "8")]
    pub max_flows: u64,
    #[prost(uint64, tag = "9")]
    pub seen_flows: u64,
}

/// `relay.NodeState`: who answers is there.
pub(super) const NODE_CONNECTED: i32 = 1;

/// `observer.GetNamespacesResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct GetNamespacesResponse {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<Namespace>,
}

/// `observer.Namespace`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Namespace {
    #[prost(string, tag = "2")]
    pub namespace: String,
}

/// `peer.ChangeNotification`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ChangeNotification {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub address: String,
    /// [`Change`].
    #[prost(int32, tag = "3")]
    pub r#type: i32,
    #[prost(message, optional, tag = "4")]
    pub tls: Option<PeerTls>,
}

/// `peer.ChangeNotificationType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Change {
    Added = 1,
    Deleted = 2,
    Updated = 3,
}

/// `peer.TLS`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PeerTls {
    #[prost(string, tag = "1")]
    pub server_name: String,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct HealthCheckResponse {
    /// [`ServingStatus`].
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum ServingStatus {
    /// `SERVING`.
    Yes = 1,
    /// `NOT_SERVING`.
    No = 2,
    /// `SERVICE_UNKNOWN`, of [`Watch`](super::health) alone.
    Unknown = 3,
}
