//! `flow.FlowFilter`: which flows a client wants. What is not evaluated is refused by name, never passed over.
//!
//! Source: field numbers of `api/v1/flow/flow.proto` to Cilium 1.20; what they mean, `pkg/hubble/filters`.

use std::net::IpAddr;

use ipnet::IpNet;
use probe_model::tuple::Protocol;

use super::flow;
use super::wire::{Field, Fields};
use crate::agent::flow::{Flow, Peer};
use crate::grpc::Status;
use crate::selector::Selector;

/// A flow matches if for every field that is given one of its values fits.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    uuid: Vec<String>,
    source_ip: Vec<IpNet>,
    source_ip_xlated: Vec<IpNet>,
    destination_ip: Vec<IpNet>,
    source_pod: Vec<Name>,
    destination_pod: Vec<Name>,
    source_service: Vec<Name>,
    destination_service: Vec<Name>,
    source_label: Vec<Selector>,
    destination_label: Vec<Selector>,
    source_port: Vec<u16>,
    destination_port: Vec<u16>,
    source_identity: Vec<u64>,
    destination_identity: Vec<u64>,
    verdict: Vec<u64>,
    event_type: Vec<EventType>,
    protocol: Vec<Kind>,
    reply: Vec<bool>,
    node_name: Vec<NodePattern>,
    ip_version: Vec<u64>,
    traffic_direction: Vec<u64>,
    drop_reason_desc: Vec<u64>,
}

/// Names of fields that are not evaluated, by number.
const NOT_EVALUATED: [(u64, &str); 19] = [
    (7, "source_fqdn"),
    (8, "destination_fqdn"),
    (9, "http_status_code"),
    (18, "dns_query"),
    (21, "http_method"),
    (22, "http_path"),
    (23, "tcp_flags"),
    (26, "source_workload"),
    (27, "destination_workload"),
    (28, "trace_id"),
    (31, "http_url"),
    (32, "http_header"),
    (35, "interface"),
    (36, "node_labels"),
    (37, "source_cluster_name"),
    (38, "destination_cluster_name"),
    (39, "ip_trace_id"),
    (40, "encrypted"),
    (999, "experimental"),
];

impl Filter {
    /// Reads a filter; `values` counts down how many more values there may be.
    pub(super) fn decode(bytes: &[u8], values: &mut Allowance) -> Result<Self, Status> {
        let mut filter = Self::default();
        for field in Fields(bytes) {
            filter.take(field?, values)?;
        }
        Ok(filter)
    }

    fn take(&mut self, field: Field<'_>, values: &mut Allowance) -> Result<(), Status> {
        values.one()?;
        match field.number {
            1 => self.source_ip.push(net(field, "source_ip")?),
            2 => self.source_pod.push(Name::parse(field, "source_pod")?),
            3 => self.destination_ip.push(net(field, "destination_ip")?),
            4 => self.destination_pod.push(Name::parse(field, "destination_pod")?),
            5 => self.verdict.extend(numbers(field, "verdict", values)?),
            6 => self.event_type.push(EventType::decode(field)?),
            10 => self.source_label.push(selector(field.text("source_label")?)?),
            11 => self.destination_label.push(selector(field.text("destination_label")?)?),
            12 => self.protocol.push(Kind::parse(field.text("protocol")?)?),
            13 => self.source_port.push(port(field, "source_port")?),
            14 => self.destination_port.push(port(field, "destination_port")?),
            15 => self.reply.extend(numbers(field, "reply", values)?.into_iter().map(|reply| reply != 0)),
            16 => self.source_service.push(Name::parse(field, "source_service")?),
            17 => self.destination_service.push(Name::parse(field, "destination_service")?),
            19 => self.source_identity.extend(numbers(field, "source_identity", values)?),
            20 => self.destination_identity.extend(numbers(field, "destination_identity", values)?),
            24 => self.node_name.push(NodePattern::parse(field.text("node_name")?)?),
            25 => self.ip_version.extend(numbers(field, "ip_version", values)?),
            29 => self.uuid.push(field.text("uuid")?.to_owned()),
            30 => self.traffic_direction.extend(numbers(field, "traffic_direction", values)?),
            33 => self.drop_reason_desc.extend(numbers(field, "drop_reason_desc", values)?),
            34 => self.source_ip_xlated.push(net(field, "source_ip_xlated")?),
            other => return Err(not_evaluated(other)),
        }
        Ok(())
    }

    /// Whether a flow is wanted, of what a client is told of it.
    pub(super) fn matches(&self, told: &flow::Teller, flow: &Flow) -> bool {
        let (verdict, direction) = (flow::verdict(flow) as u64, flow::direction(flow) as u64);
        let (from, to) = (&flow.source, &flow.destination);
        let has_ports = flow.tuple.protocol.has_ports();
        let xlated = flow::source_xlated(flow);
        let pod = |peer: &Peer, name: &Name| {
            peer.pod.as_ref().is_some_and(|pod| name.fits(&pod.namespace, &pod.name))
        };
        let service =
            |name: &Name| flow.service.as_ref().is_some_and(|(namespace, own)| name.fits(namespace, own));
        let identity = |peer: &Peer, wanted: u64| u64::from(flow::identity(peer)) == wanted;
        any(&self.source_ip, |net| net.contains(&flow::source(flow)))
            && any(&self.source_ip_xlated, |net| xlated.is_some_and(|own| net.contains(&own)))
            && any(&self.destination_ip, |net| net.contains(&flow::destination(flow)))
            && any(&self.source_port, |port| has_ports && *port == flow.tuple.sport)
            && any(&self.destination_port, |port| has_ports && *port == flow.translated.dport)
            && any(&self.verdict, |wanted| *wanted == verdict)
            && any(&self.drop_reason_desc, |wanted| *wanted == u64::from(flow::drop_reason(flow)))
            && any(&self.traffic_direction, |wanted| *wanted == direction)
            && any(&self.event_type, |wanted| wanted.fits(flow::event_type(flow)))
            && any(&self.protocol, |kind| kind.fits(flow.tuple.protocol))
            && any(&self.ip_version, |wanted| *wanted == flow::ip_version(flow) as u64)
            && any(&self.source_identity, |wanted| identity(from, *wanted))
            && any(&self.destination_identity, |wanted| identity(to, *wanted))
            && any(&self.source_pod, |name| pod(from, name))
            && any(&self.destination_pod, |name| pod(to, name))
            // A flow begins at whoever sends, and no service does.
            && any(&self.source_service, |_| false)
            && any(&self.destination_service, service)
            && any(&self.source_label, |selector| selector.matches(&from.labels))
            && any(&self.destination_label, |selector| selector.matches(&to.labels))
            && any(&self.reply, |wanted| *wanted == flow::IS_REPLY)
            && any(&self.node_name, |pattern| pattern.fits(told.node()))
            && any(&self.uuid, |wanted| *wanted == told.uuid(flow))
    }
}

/// A field that is not given is no condition.
fn any<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}

/// How many more values filters may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: usize,
    max: usize,
}

impl Allowance {
    pub(super) fn new(max: usize) -> Self {
        Self { left: max, max }
    }

    fn one(&mut self) -> Result<(), Status> {
        let over = || Status::invalid(format!("the filters have more than {} values", self.max));
        self.left = self.left.checked_sub(1).ok_or_else(over)?;
        Ok(())
    }
}

fn not_evaluated(number: u64) -> Status {
    let known = NOT_EVALUATED.iter().find(|(own, _)| *own == number);
    Status::invalid(match known {
        Some((_, name)) => format!("filters by `{name}` are not evaluated here"),
        None => format!("filters by field {number} of `flow.FlowFilter` are not evaluated here"),
    })
}

fn numbers(field: Field<'_>, name: &str, values: &mut Allowance) -> Result<Vec<u64>, Status> {
    let numbers = field.numbers(name)?;
    for _ in 1..numbers.len() {
        values.one()?;
    }
    Ok(numbers)
}

fn net(field: Field<'_>, name: &str) -> Result<IpNet, Status> {
    let text = field.text(name)?;
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| Status::invalid(format!("`{name}` is `{text}`; expected an address or a CIDR")))
}

fn port(field: Field<'_>, name: &str) -> Result<u16, Status> {
    let text = field.text(name)?;
    let port = text.parse().ok().filter(|_| !text.starts_with('+'));
    port.ok_or_else(|| Status::invalid(format!("`{name}` is `{text}`; expected a port, 0 to 65535")))
}

/// The beginning of a name, in a namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    /// Empty for any.
    namespace: String,
    /// Empty for any.
    prefix: String,
}

impl Name {
    /// `shop/web-`, `shop/`, `/web-`; without a slash it is one of the namespace `default`.
    fn parse(field: Field<'_>, name: &str) -> Result<Self, Status> {
        let text = field.text(name)?;
        let (namespace, prefix) = text.split_once('/').unwrap_or(("default", text));
        if text.is_empty() || text == "/" {
            return Err(Status::invalid(format!(
                "`{name}` is `{text}`; expected `namespace/name`, or a part of it"
            )));
        }
        Ok(Self { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
    }

    fn fits(&self, namespace: &str, name: &str) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && name.starts_with(&self.prefix)
    }
}

/// `flow.EventTypeFilter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct EventType {
    /// 0 for any.
    kind: u64,
    /// `None` for any.
    sub_type: Option<u64>,
}

impl EventType {
    fn decode(field: Field<'_>) -> Result<Self, Status> {
        let (mut kind, mut is_sub_type_asked, mut sub_type) = (0, false, 0);
        for field in Fields(field.bytes("event_type")?) {
            let field = field?;
            match field.number {
                1 => kind = field.number("event_type.type")?,
                2 => is_sub_type_asked = field.number("event_type.match_sub_type")? != 0,
                3 => sub_type = field.number("event_type.sub_type")?,
                other => {
                    let text =
                        format!("filters by field {other} of `flow.EventTypeFilter` are not evaluated here");
                    return Err(Status::invalid(text));
                }
            }
        }
        Ok(Self { kind, sub_type: is_sub_type_asked.then_some(sub_type) })
    }

    fn fits(self, found: Option<flow::EventNumbers>) -> bool {
        let found = found.unwrap_or_default();
        let is = |wanted: u64, found: u8| wanted == u64::from(found);
        (self.kind == 0 || is(self.kind, found.kind))
            && self.sub_type.is_none_or(|wanted| is(wanted, found.sub_type))
    }
}

/// A protocol by name, as Hubble names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One(Protocol),
    /// ICMP of either family.
    AnyIcmp,
    /// One of layer 7, which no flow is told to have.
    Layer7,
}

impl Kind {
    fn parse(text: &str) -> Result<Self, Status> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "tcp" => Self::One(Protocol::TCP),
            "udp" => Self::One(Protocol::UDP),
            "sctp" => Self::One(Protocol::SCTP),
            "icmpv4" => Self::One(Protocol::ICMP),
            "icmpv6" => Self::One(Protocol::ICMPV6),
            "icmp" => Self::AnyIcmp,
            "dns" | "http" | "kafka" => Self::Layer7,
            _ => {
                let expected = "tcp, udp, sctp, icmp, icmpv4, icmpv6, dns, http or kafka";
                return Err(Status::invalid(format!("`protocol` is `{text}`; expected {expected}")));
            }
        })
    }

    fn fits(self, protocol: Protocol) -> bool {
        match self {
            Self::One(own) => own == protocol,
            Self::AnyIcmp => protocol.is_icmp(),
            Self::Layer7 => false,
        }
    }
}

/// A cluster's name if a node's has none.
const CLUSTER: &str = "default";

/// A node's name with `*` for any characters, and its cluster's before a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodePattern {
    /// `None` for any cluster.
    cluster: Option<String>,
    /// Empty for every node.
    node: String,
}

impl NodePattern {
    fn parse(text: &str) -> Result<Self, Status> {
        let (cluster, node) =
            text.split_once('/').map_or((None, text), |(cluster, node)| (Some(cluster), node));
        let is_fine = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.*".contains(&b));
        if text.is_empty() || text == "/" || !is_fine(node) || !cluster.is_none_or(is_fine) {
            return Err(Status::invalid(format!(
                "`node_name` is `{text}`; expected such as `aks-*` or `cluster/node`"
            )));
        }
        Ok(Self {
            cluster: cluster.filter(|name| !name.is_empty()).map(str::to_owned),
            node: node.to_owned(),
        })
    }

    fn fits(&self, name: &str) -> bool {
        let (cluster, node) = name.split_once('/').unwrap_or((CLUSTER, name));
        self.cluster.as_ref().is_none_or(|pattern| glob(pattern.as_bytes(), cluster.as_bytes()))
            && (self.node.is_empty() || glob(self.node.as_bytes(), node.as_bytes()))
    }
}

/// Whether `text` is `pattern` with something, or nothing, for each `*`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on if a later character differs: behind the last `*`, with one more character for it.
    let (mut at, mut matched, mut retry) = (0, 0, None);
    while matched < text.len() {
        if pattern.get(at) == Some(&b'*') {
            retry = Some((at + 1, matched));
            at += 1;
        } else if pattern.get(at) == Some(&text[matched]) {
            (at, matched) = (at + 1, matched + 1);
        } else if let Some((behind, taken)) = retry {
            retry = Some((behind, taken + 1));
            (at, matched) = (behind, taken + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

fn selector(text: &str) -> Result<Selector, Status> {
    Selector::parse(text).map_err(Status::invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_nodes() {
        for (pattern, fits) in [
            ("aks-1", true),
            ("aks-*", true),
            ("*-1", true),
            ("*", true),
            ("a*s*1", true),
            ("a**1", true),
            ("aks", false),
            ("*aks", false),
            ("b*", false),
            ("default/", true),
            ("default/aks-1", true),
            ("def*/a*", true),
            ("other/", false),
            ("/aks-1", true),
        ] {
            assert_eq!(NodePattern::parse(pattern).unwrap().fits("aks-1"), fits, "{pattern}");
        }
        assert!(NodePattern::parse("other/").unwrap().fits("other/aks-1"));
        assert!(["", "/", "a b", "a/b/c"].iter().all(|text| NodePattern::parse(text).is_err()));
    }
}
