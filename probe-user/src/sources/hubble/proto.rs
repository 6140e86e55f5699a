//! The messages of Hubble's observer service, as far as plsprobe reads or sends them.
//!
//! Fields that are not named here are skipped by protobuf's own rules, so a newer agent's messages are read too.
//!
//! Source: field numbers of `api/v1/observer/observer.proto`, `api/v1/flow/flow.proto` and
//! `api/v1/relay/relay.proto`, the same in Cilium 1.13 to 1.20.

use prost::{Enumeration, Message, Oneof};

/// `observer.ServerStatusRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ServerStatusRequest {}

/// `observer.ServerStatusResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ServerStatusResponse {
    /// Flows kept.
    #[prost(uint64, tag = "1")]
    pub num_flows: u64,
    /// Flows that are kept at most.
    #[prost(uint64, tag = "2")]
    pub max_flows: u64,
    /// Flows seen since the start.
    #[prost(uint64, tag = "3")]
    pub seen_flows: u64,
    /// Time since the start in nanoseconds.
    #[prost(uint64, tag = "4")]
    pub uptime_ns: u64,
    /// The agent's version.
    #[prost(string, tag = "8")]
    pub version: String,
}

/// `observer.GetFlowsRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct GetFlowsRequest {
    /// Whether to go on with flows as they happen.
    #[prost(bool, tag = "3")]
    pub follow: bool,
    /// A flow must match one of these.
    #[prost(message, repeated, tag = "6")]
    pub whitelist: Vec<FlowFilter>,
}

/// `flow.FlowFilter`: a flow matches if every field that is given holds one value that fits.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct FlowFilter {
    /// Source addresses or CIDRs.
    #[prost(string, repeated, tag = "1")]
    pub source_ip: Vec<String>,
    /// Destination addresses or CIDRs.
    #[prost(string, repeated, tag = "3")]
    pub destination_ip: Vec<String>,
    /// Types of notification.
    #[prost(message, repeated, tag = "6")]
    pub event_type: Vec<EventTypeFilter>,
}

/// `flow.EventTypeFilter`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct EventTypeFilter {
    /// The notification's message type.
    #[prost(int32, tag = "1")]
    pub r#type: i32,
}

/// `observer.GetFlowsResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct GetFlowsResponse {
    /// What came; `None` for what is not known here.
    #[prost(oneof = "Response", tags = "1, 3")]
    pub response: Option<Response>,
}

/// The kinds of `observer.GetFlowsResponse`.
#[derive(Clone, PartialEq, Eq, Oneof)]
pub(super) enum Response {
    /// A flow.
    #[prost(message, tag = "1")]
    Flow(Box<Flow>),
    /// Notifications that got lost before this client.
    #[prost(message, tag = "3")]
    Lost(LostEvent),
}

/// `flow.LostEvent`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct LostEvent {
    /// Where: 1 the perf ring, 2 the observer's queue, 3 Hubble's own ring.
    #[prost(int32, tag = "1")]
    pub source: i32,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub num_events_lost: u64,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `flow.Flow`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Flow {
    /// When the agent read the notification.
    #[prost(message, optional, tag = "1")]
    pub time: Option<Timestamp>,
    /// What became of the packet, as [`Verdict`].
    #[prost(int32, tag = "2")]
    pub verdict: i32,
    /// The drop reason, positive; superseded by [`Self::drop_reason_desc`].
    #[prost(uint32, tag = "3")]
    pub drop_reason: u32,
    /// Layer 3.
    #[prost(message, optional, tag = "5")]
    pub ip: Option<Ip>,
    /// Layer 4.
    #[prost(message, optional, tag = "6")]
    pub l4: Option<Layer4>,
    /// The source.
    #[prost(message, optional, tag = "8")]
    pub source: Option<Endpoint>,
    /// The destination.
    #[prost(message, optional, tag = "9")]
    pub destination: Option<Endpoint>,
    /// Which notification it was made of.
    #[prost(message, optional, tag = "19")]
    pub event_type: Option<EventType>,
    /// 1 ingress, 2 egress, as the endpoint sees it; 0 unknown.
    #[prost(int32, tag = "22")]
    pub traffic_direction: i32,
    /// How much of the packet the deciding entry named; numbers as in notifications.
    #[prost(uint32, tag = "23")]
    pub policy_match_type: u32,
    /// The datapath's number, but [`TO_ENDPOINT`] for 0; 0 unknown.
    #[prost(int32, tag = "24")]
    pub trace_observation_point: i32,
    /// The drop reason, positive.
    #[prost(int32, tag = "25")]
    pub drop_reason_desc: i32,
    /// The interface.
    #[prost(message, optional, tag = "28")]
    pub interface: Option<NetworkInterface>,
    /// The L7 proxy's port.
    #[prost(uint32, tag = "29")]
    pub proxy_port: u32,
    /// Authentication type, since 1.14.
    #[prost(int32, tag = "35")]
    pub auth_type: i32,
    /// Conntrack state, one more than the datapath's up to 5, since 1.16; 0 unknown.
    #[prost(int32, tag = "36")]
    pub trace_reason: i32,
    /// Policies that allow it on egress, since 1.15.
    #[prost(message, repeated, tag = "21001")]
    pub egress_allowed_by: Vec<Policy>,
    /// Policies that allow it on ingress, since 1.15.
    #[prost(message, repeated, tag = "21002")]
    pub ingress_allowed_by: Vec<Policy>,
    /// Policies that deny it on egress, since 1.16.
    #[prost(message, repeated, tag = "21004")]
    pub egress_denied_by: Vec<Policy>,
    /// Policies that deny it on ingress, since 1.16.
    #[prost(message, repeated, tag = "21005")]
    pub ingress_denied_by: Vec<Policy>,
}

/// [`Flow::trace_observation_point`] of a packet on its way into the endpoint, which is 0 in the datapath.
pub(crate) const TO_ENDPOINT: i32 = 101;

/// `flow.Verdict`, as far as drop, trace and policy notifications have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub(crate) enum Verdict {
    /// Not said.
    Unknown = 0,
    /// It went on.
    Forwarded = 1,
    /// It was dropped.
    Dropped = 2,
    /// It could not be handled.
    Error = 3,
    /// Policy would drop it, if it did not only audit.
    Audit = 4,
    /// It went to the L7 proxy.
    Redirected = 5,
}

/// `flow.IP`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Ip {
    /// Source address, before SNAT where the datapath tells it.
    #[prost(string, tag = "1")]
    pub source: String,
    /// Destination address.
    #[prost(string, tag = "2")]
    pub destination: String,
    /// 1 for IPv4, 2 for IPv6.
    #[prost(int32, tag = "3")]
    pub version: i32,
    /// Source address in the packet where it differs, since 1.16.
    #[prost(string, tag = "5")]
    pub source_xlated: String,
}

/// `flow.Layer4`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Layer4 {
    /// The protocol; `None` for one that is not known here.
    #[prost(oneof = "Ports", tags = "1, 2, 3, 4, 5")]
    pub protocol: Option<Ports>,
}

/// The kinds of `flow.Layer4`.
#[derive(Clone, Copy, PartialEq, Eq, Oneof)]
pub(crate) enum Ports {
    /// TCP.
    #[prost(message, tag = "1")]
    Tcp(Tcp),
    /// UDP.
    #[prost(message, tag = "2")]
    Udp(Datagram),
    /// ICMP.
    #[prost(message, tag = "3")]
    Icmpv4(Icmp),
    /// `ICMPv6`.
    #[prost(message, tag = "4")]
    Icmpv6(Icmp),
    /// SCTP.
    #[prost(message, tag = "5")]
    Sctp(Datagram),
}

/// `flow.TCP`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Tcp {
    /// Source port.
    #[prost(uint32, tag = "1")]
    pub source_port: u32,
    /// Destination port.
    #[prost(uint32, tag = "2")]
    pub destination_port: u32,
    /// Flags.
    #[prost(message, optional, tag = "3")]
    pub flags: Option<TcpFlags>,
}

/// `flow.TCPFlags`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct TcpFlags {
    /// FIN.
    #[prost(bool, tag = "1")]
    pub fin: bool,
    /// SYN.
    #[prost(bool, tag = "2")]
    pub syn: bool,
    /// RST.
    #[prost(bool, tag = "3")]
    pub rst: bool,
    /// PSH.
    #[prost(bool, tag = "4")]
    pub psh: bool,
    /// ACK.
    #[prost(bool, tag = "5")]
    pub ack: bool,
    /// URG.
    #[prost(bool, tag = "6")]
    pub urg: bool,
    /// ECE.
    #[prost(bool, tag = "7")]
    pub ece: bool,
    /// CWR.
    #[prost(bool, tag = "8")]
    pub cwr: bool,
}

/// `flow.UDP` and `flow.SCTP`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Datagram {
    /// Source port.
    #[prost(uint32, tag = "1")]
    pub source_port: u32,
    /// Destination port.
    #[prost(uint32, tag = "2")]
    pub destination_port: u32,
}

/// `flow.ICMPv4` and `flow.ICMPv6`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Icmp {
    /// Type.
    #[prost(uint32, tag = "1")]
    pub r#type: u32,
    /// Code.
    #[prost(uint32, tag = "2")]
    pub code: u32,
}

/// `flow.Endpoint`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Endpoint {
    /// Endpoint id on this node, 0 elsewhere.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Identity.
    #[prost(uint32, tag = "2")]
    pub identity: u32,
}

/// `flow.CiliumEventType`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct EventType {
    /// The notification's message type.
    #[prost(int32, tag = "1")]
    pub r#type: i32,
    /// Its sub-type.
    #[prost(int32, tag = "2")]
    pub sub_type: i32,
}

/// `flow.NetworkInterface`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct NetworkInterface {
    /// Index.
    #[prost(uint32, tag = "1")]
    pub index: u32,
}

/// `flow.Policy`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Policy {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace, empty if it has none.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Labels of the rule.
    #[prost(string, repeated, tag = "3")]
    pub labels: Vec<String>,
    /// Kind, since 1.17.
    #[prost(string, tag = "5")]
    pub kind: String,
}
