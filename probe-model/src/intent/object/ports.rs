//! `ports`, `toPorts` and `icmps`.

use serde_json::Value;

use super::{Node, Reader};
use crate::intent::port::{PortTerm, RulePort, RuleProtocol};
use crate::tuple::Protocol;

/// As many ports as one element of `toPorts` may have, and types an element of `icmps`.
const MAX_PORTS: usize = 40;

/// Names that Cilium knows for ICMP types.
const ICMP_NAMES: [(&str, u16); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// Names that Cilium knows for ICMPv6 types.
const ICMPV6_NAMES: [(&str, u16); 25] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// What an element of `toPorts` asks Cilium's proxy to judge.
#[derive(Clone, Copy, Default)]
pub(super) struct L7 {
    pub(super) http: bool,
    pub(super) kafka: bool,
    pub(super) dns: bool,
    /// A parser of `l7proto`.
    pub(super) other: bool,
    /// TLS, server names or a listener: handed to the proxy without rules.
    pub(super) transport: bool,
}

impl L7 {
    pub(super) fn of(to_ports: &Node<'_>) -> Self {
        let rules = to_ports.field("rules");
        let some = |name: &'static str| {
            let list = rules.as_ref().and_then(|rules| rules.field(name)).and_then(|list| list.list());
            list.is_some_and(|list| !list.is_empty())
        };
        let proto = rules.as_ref().and_then(|rules| rules.field("l7proto"));
        let has = |name: &'static str| {
            to_ports
                .field(name)
                .is_some_and(|field| field.value.as_array().is_none_or(|list| !list.is_empty()))
        };
        let transport = ["terminatingTLS", "originatingTLS", "serverNames", "listener"].into_iter().any(has);
        Self { http: some("http"), kafka: some("kafka"), dns: some("dns"), other: proto.is_some(), transport }
    }

    /// Whether there are rules on what is inside the connection.
    pub(super) fn has_rules(self) -> bool {
        self.http || self.kafka || self.dns || self.other
    }
}

impl Reader<'_> {
    /// The `ports` of a `NetworkPolicy`'s rule; `None` if they mean every port.
    pub(super) fn kubernetes_ports(&mut self, list: &[Node<'_>]) -> Option<Vec<PortTerm>> {
        let mut terms = Vec::new();
        for node in list {
            let (protocol, port) = (node.field("protocol"), node.field("port"));
            if protocol.is_none() && port.is_none() {
                continue; // Cilium leaves an empty element out
            }
            let protocol = match protocol.as_ref().and_then(Node::text).map(RuleProtocol::parse) {
                None => RuleProtocol::One(Protocol::TCP),
                // Cilium drops the error and goes on with no protocol, which is any.
                Some(protocol) => protocol.unwrap_or(RuleProtocol::Any),
            };
            let end = if port.is_some() { self.end_port(node) } else { 0 };
            let port = match port {
                None => Some(RulePort::Number { first: 0, end: 0 }),
                Some(port) => self.port(&port, end),
            };
            terms.extend(port.map(|port| PortTerm {
                path: node.path.clone(),
                protocol,
                port,
                redirect: false,
            }));
        }
        (!terms.is_empty()).then_some(terms)
    }

    /// `toPorts`; `None` if there are none and every port is meant.
    pub(super) fn cilium_ports(&mut self, list: &[Node<'_>], ingress: bool) -> Option<Vec<PortTerm>> {
        if list.is_empty() {
            return None;
        }
        Some(list.iter().flat_map(|to_ports| self.one_to_ports(to_ports, ingress)).collect())
    }

    fn one_to_ports(&mut self, to_ports: &Node<'_>, ingress: bool) -> Vec<PortTerm> {
        let l7 = L7::of(to_ports);
        if ingress && l7.dns {
            self.refuse("DNS rules are not allowed on ingress");
        }
        let ports = to_ports.field("ports").and_then(|ports| ports.list()).unwrap_or_default();
        if ports.len() > MAX_PORTS {
            self.refuse(format!("too many ports, the max is {MAX_PORTS}"));
        }
        let redirect = l7.has_rules() || l7.transport;
        let terms: Vec<_> = ports.iter().filter_map(|port| self.port_protocol(port, l7, redirect)).collect();
        if ingress && to_ports.field("listener").is_some() {
            self.refuse("Listener is not allowed on ingress");
        }
        if l7.has_rules() && terms.iter().any(|term| matches!(term.port, RulePort::Number { first: 0, .. })) {
            self.refuse("L7 rules can not be used when a port is 0");
        }
        if [l7.http, l7.kafka, l7.dns, l7.other].into_iter().filter(|some| *some).count() > 1 {
            self.refuse("multiple L7 protocol rule types specified in single rule");
        }
        terms
    }

    fn port_protocol(&mut self, node: &Node<'_>, l7: L7, redirect: bool) -> Option<PortTerm> {
        let Some(port) = node.field("port") else {
            self.refuse("Port must be specified");
            return None;
        };
        let end = self.end_port(node);
        let port = self.port(&port, end)?;
        let written = node.field("protocol").and_then(|protocol| protocol.text()).unwrap_or_default();
        let Some(protocol) = RuleProtocol::parse(written) else {
            let known = "{ tcp | udp | icmp | icmpv6 | sctp | any }";
            self.refuse(format!("invalid protocol {written:?}, must be {known}"));
            return None;
        };
        if l7.has_rules() && !l7.dns && protocol != RuleProtocol::One(Protocol::TCP) {
            let name = match protocol {
                RuleProtocol::Any => "ANY".to_owned(),
                RuleProtocol::One(protocol) => protocol.to_string(),
            };
            self.refuse(format!("L7 rules can only apply to TCP (not {name}) except for DNS rules"));
        }
        Some(PortTerm { path: node.path.clone(), protocol, port, redirect })
    }

    fn end_port(&mut self, node: &Node<'_>) -> u16 {
        let Some(end) = node.field("endPort") else { return 0 };
        let number = end.value.as_u64().and_then(|number| u16::try_from(number).ok());
        if number.is_none() {
            self.wrong(&end, "a port, 0 to 65535");
        }
        number.unwrap_or(0)
    }

    /// A port's number or name; an `endPort` beside a name is not looked at.
    fn port(&mut self, node: &Node<'_>, end: u16) -> Option<RulePort> {
        let text = match node.value {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
            _ => String::new(),
        };
        if is_service_name(&text) {
            return Some(RulePort::Name(text.to_ascii_lowercase()));
        }
        let first = text.parse().ok();
        if first.is_none() {
            self.refuse(format!(
                "Unable to parse port: {text:?} at `{}` is neither a port nor a name of one",
                node.path
            ));
        }
        first.map(|first| RulePort::Number { first, end })
    }

    /// `icmps`: types instead of ports. `None` if there are none.
    pub(super) fn icmps(&mut self, list: &[Node<'_>]) -> Option<Vec<PortTerm>> {
        if list.is_empty() {
            return None;
        }
        let mut terms = Vec::new();
        for rule in list {
            let fields = rule.field("fields").and_then(|fields| fields.list()).unwrap_or_default();
            if fields.len() > MAX_PORTS {
                self.refuse(format!("too many types, the max is {MAX_PORTS}"));
            }
            terms.extend(fields.iter().filter_map(|field| self.icmp(field)));
        }
        Some(terms)
    }

    fn icmp(&mut self, node: &Node<'_>) -> Option<PortTerm> {
        let family = node.field("family").and_then(|family| family.text()).unwrap_or("IPv4");
        let (protocol, names) = match family {
            "" | "IPv4" => (Protocol::ICMP, &ICMP_NAMES[..]),
            "IPv6" => (Protocol::ICMPV6, &ICMPV6_NAMES[..]),
            other => {
                self.refuse(format!("wrong family: {other}"));
                return None;
            }
        };
        let written = node.field("type");
        let value = written.as_ref().map_or(&Value::Null, |node| node.value);
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let named = |text: &str| names.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        let number = number.and_then(|number| u8::try_from(number).ok()).map(u16::from);
        let Some(first) = number.or_else(|| named(value.as_str()?)) else {
            self.refuse(format!(
                "`{}` has type {value}, expected 0 to 255 or a name that Cilium knows",
                node.path
            ));
            return None;
        };
        let port = RulePort::Number { first, end: 0 };
        Some(PortTerm {
            path: node.path.clone(),
            protocol: RuleProtocol::One(protocol),
            port,
            redirect: false,
        })
    }
}

/// Whether it is a name of a service as IANA has them: up to 15 letters, digits and single hyphens, one letter at least.
fn is_service_name(text: &str) -> bool {
    text.len() <= 15
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ports() {
        for (text, is_name) in [
            ("http", true),
            ("dns-tcp", true),
            ("8080", false),
            ("0x10", true),
            ("a--b", false),
            ("-a", false),
            ("", false),
            ("a-name-too-long-to-be-one", false),
            ("8a", true),
        ] {
            assert_eq!(is_service_name(text), is_name, "{text}");
        }
    }
}
