//! What a policy object may have, field by field, and what is wrong with one that has something else.

use ipnet::IpNet;

use crate::sources::yaml::{Field, Node, Position, Problem, Value, shown};

/// What a value must be.
#[derive(Debug)]
pub(super) enum Shape {
    /// Anything: nobody here reads it.
    Any,
    /// Text.
    Text,
    /// A boolean.
    Bool,
    /// An integer between these.
    Integer(i64, i64),
    /// A port's number as text, or a port's name.
    PortText,
    /// A number from 0 to 255, or a name.
    IntegerOrText,
    /// A port's number, or its name.
    PortOrName,
    /// A prefix such as `10.0.0.0/8`; an address alone too, if so.
    Cidr {
        /// Whether an address alone will do.
        or_address: bool,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text by name.
    Labels,
    /// A list of these.
    List(&'static Shape),
    /// An object with these fields.
    Object(&'static [(&'static str, &'static Shape)]),
}

use Shape::{
    Any, Bool, Cidr, Integer, IntegerOrText, Labels, List, Object, OneOf, PortOrName, PortText, Text,
};

const PORT: i64 = u16::MAX as i64;
const OPERATORS: Shape = OneOf(&["In", "NotIn", "Exists", "DoesNotExist"]);
const SELECTOR: Shape = Object(&[
    ("matchLabels", &Labels),
    (
        "matchExpressions",
        &List(&Object(&[("key", &Text), ("operator", &OPERATORS), ("values", &List(&Text))])),
    ),
]);
const METADATA: Shape = Any;

const PEER: Shape = Object(&[
    ("podSelector", &SELECTOR),
    ("namespaceSelector", &SELECTOR),
    (
        "ipBlock",
        &Object(&[("cidr", &Cidr { or_address: false }), ("except", &List(&Cidr { or_address: false }))]),
    ),
]);
const POLICY_PORT: Shape = Object(&[
    ("protocol", &OneOf(&["TCP", "UDP", "SCTP"])),
    ("port", &PortOrName),
    ("endPort", &Integer(1, PORT)),
]);

/// `NetworkPolicy`. Source: `k8s.io/api/networking/v1`, Kubernetes 1.25 on.
pub(super) const NETWORK_POLICY: Shape = Object(&[
    ("apiVersion", &Text),
    ("kind", &Text),
    ("metadata", &METADATA),
    (
        "spec",
        &Object(&[
            ("podSelector", &SELECTOR),
            ("policyTypes", &List(&OneOf(&["Ingress", "Egress"]))),
            ("ingress", &List(&Object(&[("from", &List(&PEER)), ("ports", &List(&POLICY_PORT))]))),
            ("egress", &List(&Object(&[("to", &List(&PEER)), ("ports", &List(&POLICY_PORT))]))),
        ]),
    ),
    ("status", &Any),
]);

const CIDRS: Shape = List(&Cidr { or_address: true });
const CIDR_SET: Shape = List(&Object(&[
    ("cidr", &Cidr { or_address: true }),
    ("cidrGroupRef", &Text),
    ("cidrGroupSelector", &SELECTOR),
    ("except", &List(&Cidr { or_address: true })),
]));
const ENTITIES: Shape = List(&OneOf(&[
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "init",
    "ingress",
    "unmanaged",
    "remote-node",
    "health",
    "none",
    "kube-apiserver",
]));
const SELECTORS: Shape = List(&SELECTOR);
const NAMES: Shape = List(&Object(&[("matchName", &Text), ("matchPattern", &Text)]));
const TLS: Shape = Any;
const HTTP: Shape = List(&Object(&[
    ("path", &Text),
    ("method", &Text),
    ("host", &Text),
    ("headers", &List(&Text)),
    ("headerMatches", &Any),
]));
const L7: Shape =
    Object(&[("http", &HTTP), ("kafka", &Any), ("dns", &NAMES), ("l7proto", &Text), ("l7", &Any)]);
const PORTS: Shape = List(&Object(&[
    (
        "ports",
        &List(&Object(&[
            ("port", &PortText),
            ("endPort", &Integer(0, PORT)),
            ("protocol", &OneOf(&["TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"])),
        ])),
    ),
    ("rules", &L7),
    ("terminatingTLS", &TLS),
    ("originatingTLS", &TLS),
    ("serverNames", &List(&Text)),
    ("listener", &Any),
]));
const DENY_PORTS: Shape = List(&Object(&[(
    "ports",
    &List(&Object(&[
        ("port", &PortText),
        ("endPort", &Integer(0, PORT)),
        ("protocol", &OneOf(&["TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "VRRP", "IGMP", "ANY"])),
    ])),
)]));
const ICMPS: Shape = List(&Object(&[(
    "fields",
    &List(&Object(&[("family", &OneOf(&["IPv4", "IPv6"])), ("type", &IntegerOrText)])),
)]));
const AUTHENTICATION: Shape = Object(&[("mode", &OneOf(&["disabled", "required", "test-always-fail"]))]);
const SERVICES: Shape = List(&Object(&[
    ("k8sServiceSelector", &Object(&[("selector", &SELECTOR), ("namespace", &Text)])),
    ("k8sService", &Object(&[("serviceName", &Text), ("namespace", &Text)])),
]));

const INGRESS: Shape = Object(&[
    ("fromEndpoints", &SELECTORS),
    ("fromRequires", &SELECTORS),
    ("fromCIDR", &CIDRS),
    ("fromCIDRSet", &CIDR_SET),
    ("fromEntities", &ENTITIES),
    ("fromGroups", &Any),
    ("fromNodes", &SELECTORS),
    ("toPorts", &PORTS),
    ("icmps", &ICMPS),
    ("authentication", &AUTHENTICATION),
]);
const INGRESS_DENY: Shape = Object(&[
    ("fromEndpoints", &SELECTORS),
    ("fromRequires", &SELECTORS),
    ("fromCIDR", &CIDRS),
    ("fromCIDRSet", &CIDR_SET),
    ("fromEntities", &ENTITIES),
    ("fromGroups", &Any),
    ("fromNodes", &SELECTORS),
    ("toPorts", &DENY_PORTS),
    ("icmps", &ICMPS),
]);
const EGRESS: Shape = Object(&[
    ("toEndpoints", &SELECTORS),
    ("toRequires", &SELECTORS),
    ("toCIDR", &CIDRS),
    ("toCIDRSet", &CIDR_SET),
    ("toEntities", &ENTITIES),
    ("toServices", &SERVICES),
    ("toGroups", &Any),
    ("toNodes", &SELECTORS),
    ("toFQDNs", &NAMES),
    ("toPorts", &PORTS),
    ("icmps", &ICMPS),
    ("authentication", &AUTHENTICATION),
]);
const EGRESS_DENY: Shape = Object(&[
    ("toEndpoints", &SELECTORS),
    ("toRequires", &SELECTORS),
    ("toCIDR", &CIDRS),
    ("toCIDRSet", &CIDR_SET),
    ("toEntities", &ENTITIES),
    ("toServices", &SERVICES),
    ("toGroups", &Any),
    ("toNodes", &SELECTORS),
    ("toPorts", &DENY_PORTS),
    ("icmps", &ICMPS),
]);
const RULE: Shape = Object(&[
    ("endpointSelector", &SELECTOR),
    ("nodeSelector", &SELECTOR),
    ("ingress", &List(&INGRESS)),
    ("ingressDeny", &List(&INGRESS_DENY)),
    ("egress", &List(&EGRESS)),
    ("egressDeny", &List(&EGRESS_DENY)),
    ("enableDefaultDeny", &Object(&[("ingress", &Bool), ("egress", &Bool)])),
    ("labels", &Any),
    ("description", &Text),
    ("log", &Object(&[("value", &Text)])),
]);

/// `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`. Source: the CRDs of Cilium 1.13–1.18.
pub(super) const CILIUM_POLICY: Shape = Object(&[
    ("apiVersion", &Text),
    ("kind", &Text),
    ("metadata", &METADATA),
    ("spec", &RULE),
    ("specs", &List(&RULE)),
    ("status", &Any),
]);

/// Adds what is wrong with `node`.
pub(super) fn check(node: &Node, shape: &Shape, problems: &mut Vec<Problem>) {
    let mut wrong = |expected: &str| {
        problems.push(Problem::new(node.at, format!("found {}, expected {expected}", node.described())));
    };
    match (shape, &node.value) {
        (Any, _) | (Text | IntegerOrText, Value::Text(_)) | (Bool, Value::Bool(..)) => {}
        (Text, Value::Bool(..) | Value::Number(_)) => wrong("text; put it in quotes"),
        (Text, _) => wrong("text"),
        (Bool, _) => wrong("true or false"),
        (Integer(first, last), _) => {
            if !integer(node).is_some_and(|number| (*first..=*last).contains(&number)) {
                wrong(&format!("a number from {first} to {last}"));
            }
        }
        (IntegerOrText, _) => {
            if !integer(node).is_some_and(|number| (0..=255).contains(&number)) {
                wrong("a number from 0 to 255, or a name");
            }
        }
        (PortText, Value::Text(text)) if is_port(text, 0) || is_port_name(text) => {}
        (PortText, Value::Number(_)) => wrong("text; put the port in quotes"),
        (PortText, _) => wrong("a port from 0 to 65535 in quotes, or a port's name"),
        (PortOrName, Value::Text(text)) if is_port_name(text) => {}
        (PortOrName, Value::Text(text)) if is_port(text, 1) => {
            wrong("a number; in quotes it would be a port's name");
        }
        (PortOrName, _) => {
            if !integer(node).is_some_and(|number| (1..=PORT).contains(&number)) {
                wrong(
                    "a port from 1 to 65535, or a port's name of at most 15 lower-case letters, digits and `-`",
                );
            }
        }
        (Cidr { or_address }, Value::Text(text)) => {
            if let Some(expected) = cidr_problem(text, *or_address) {
                wrong(&expected);
            }
        }
        (Cidr { .. }, _) => wrong("a prefix such as `10.224.0.0/24`"),
        (OneOf(words), Value::Text(text)) if words.contains(&text.as_str()) => {}
        (OneOf(words), _) => wrong(&format!("one of {}", words.join(", "))),
        (Labels, Value::Map(fields)) => {
            for Field { node, .. } in fields {
                check(node, &Text, problems);
            }
        }
        (Labels, _) => wrong("labels, as in `app: pls-app`"),
        (List(item), Value::List(items)) => {
            for node in items {
                check_item(node, item, problems);
            }
        }
        (List(_), _) => wrong("a list; begin each of its items with `-`"),
        (Object(known), Value::Map(fields)) => check_fields(fields, known, problems),
        (Object(known), _) => wrong(&format!("an object with {}", names(known))),
    }
}

/// Nothing as an item is what an empty object is to Kubernetes, which in a rule allows everything: nobody means it.
fn check_item(node: &Node, shape: &Shape, problems: &mut Vec<Problem>) {
    match (&node.value, shape) {
        (Value::Null, Object(_)) => problems.push(Problem::new(
            node.at,
            "found nothing, expected an object; to Kubernetes nothing is the same as `{}`, which matches everything",
        )),
        _ => check(node, shape, problems),
    }
}

fn check_fields(fields: &[Field], known: &[(&str, &Shape)], problems: &mut Vec<Problem>) {
    for Field { at, name, node } in fields {
        match known.iter().find(|(own, _)| own == name) {
            // A field with nothing is one that is not there.
            Some(_) if node.value == Value::Null => {}
            Some((_, shape)) => check(node, shape, problems),
            None => problems.push(unknown(*at, name, known)),
        }
    }
}

fn unknown(at: Position, name: &str, known: &[(&str, &Shape)]) -> Problem {
    let near = known.iter().map(|(own, _)| (distance(name, own), *own)).min();
    let near = near.filter(|(distance, own)| *distance <= 2.max(own.len() / 4));
    let meant = near.map_or_else(String::new, |(_, own)| format!("; is `{own}` meant?"));
    Problem::new(at, format!("unknown field `{}`, expected one of {}{meant}", shown(name), names(known)))
}

fn names(known: &[(&str, &Shape)]) -> String {
    known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Edits between two names, letters' case apart.
pub(super) fn distance(one: &str, other: &str) -> usize {
    let one: Vec<_> = one.to_ascii_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=one.len()).collect();
    for (idx, c) in other.to_ascii_lowercase().chars().enumerate() {
        let mut next = vec![idx + 1];
        for (at, own) in one.iter().enumerate() {
            let replaced = row[at] + usize::from(*own != c);
            next.push(replaced.min(row[at + 1] + 1).min(next[at] + 1));
        }
        row = next;
    }
    row[one.len()]
}

fn integer(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Number(number) => number.as_i64(),
        _ => None,
    }
}

fn is_port(text: &str, first: u16) -> bool {
    text.parse::<u16>().is_ok_and(|port| port >= first)
}

/// Source: `IANA_SVC_NAME` of Kubernetes' validation.
fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

fn cidr_problem(text: &str, or_address: bool) -> Option<String> {
    let example = "a prefix such as `10.224.0.0/24`";
    if text.parse::<std::net::IpAddr>().is_ok() {
        let whole = if text.contains(':') { 128 } else { 32 };
        return (!or_address).then(|| format!("a prefix; for this address alone write `{text}/{whole}`"));
    }
    text.parse::<IpNet>().is_err().then(|| example.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::yaml;

    #[track_caller]
    fn problems(shape: &Shape, text: &str, expected: &[&str]) {
        let node = yaml::parse(text).unwrap().remove(0);
        let mut problems = Vec::new();
        check(&node, shape, &mut problems);
        let found: Vec<_> =
            problems.iter().map(|problem| format!("{}: {}", problem.at, problem.what)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn fields_that_are_none() {
        problems(
            &NETWORK_POLICY,
            "spec:\n  podSelecter: {}\n  ingres: []\n  zzz: 1\n",
            &[
                "2:3: unknown field `podSelecter`, expected one of podSelector, policyTypes, ingress, egress; is `podSelector` meant?",
                "3:3: unknown field `ingres`, expected one of podSelector, policyTypes, ingress, egress; is `ingress` meant?",
                "4:3: unknown field `zzz`, expected one of podSelector, policyTypes, ingress, egress",
            ],
        );
        // Kubernetes has `from` where Cilium has `fromEndpoints`.
        problems(
            &CILIUM_POLICY,
            "spec: {ingress: [{from: []}]}",
            &[
                "1:19: unknown field `from`, expected one of fromEndpoints, fromRequires, fromCIDR, fromCIDRSet, fromEntities, fromGroups, fromNodes, toPorts, icmps, authentication",
            ],
        );
    }

    #[test]
    fn values_of_another_kind() {
        problems(
            &NETWORK_POLICY,
            "spec:\n  podSelector: {matchLabels: {app: 1, on: yes}}\n  policyTypes: Ingress\n  ingress:\n  - from: {}\n    ports:\n    - {port: '80', protocol: tcp}\n    - {port: 0}\n    - {port: Http}\n  -\n",
            &[
                "2:36: found the number 1, expected text; put it in quotes",
                "2:43: found the boolean `yes`, expected text; put it in quotes",
                "3:16: found the text `Ingress`, expected a list; begin each of its items with `-`",
                "5:11: found an object, expected a list; begin each of its items with `-`",
                "7:14: found the text `80`, expected a number; in quotes it would be a port's name",
                "7:30: found the text `tcp`, expected one of TCP, UDP, SCTP",
                "8:14: found the number 0, expected a port from 1 to 65535, or a port's name of at most 15 lower-case letters, digits and `-`",
                "9:14: found the text `Http`, expected a port from 1 to 65535, or a port's name of at most 15 lower-case letters, digits and `-`",
                "10:4: found nothing, expected an object; to Kubernetes nothing is the same as `{}`, which matches everything",
            ],
        );
        problems(
            &CILIUM_POLICY,
            "spec:\n  ingress:\n  - fromEntities: [world, internet]\n    toPorts: [{ports: [{port: 80}, {port: '70000'}, {port: http}]}]\n    icmps: [{fields: [{type: 8}, {type: EchoRequest}, {type: 300, family: ipv4}]}]\n  enableDefaultDeny: {ingress: 'no'}\n",
            &[
                "3:27: found the text `internet`, expected one of all, world, world-ipv4, world-ipv6, cluster, host, init, ingress, unmanaged, remote-node, health, none, kube-apiserver",
                "4:31: found the number 80, expected text; put the port in quotes",
                "4:43: found the text `70000`, expected a port from 0 to 65535 in quotes, or a port's name",
                "5:62: found the number 300, expected a number from 0 to 255, or a name",
                "5:75: found the text `ipv4`, expected one of IPv4, IPv6",
                "6:32: found the text `no`, expected true or false",
            ],
        );
    }

    #[test]
    fn prefixes() {
        let block = |cidr: &str| format!("spec: {{ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}");
        problems(&NETWORK_POLICY, &block("10.0.0.0/8"), &[]);
        problems(&NETWORK_POLICY, &block("fd00::/8"), &[]);
        problems(
            &NETWORK_POLICY,
            &block("10.224.0.8"),
            &[
                "1:43: found the text `10.224.0.8`, expected a prefix; for this address alone write `10.224.0.8/32`",
            ],
        );
        for wrong in ["10.0.0.0/33", "10.0.0/8", "nat-subnet", "10.0.0.0/"] {
            let expected =
                format!("1:43: found the text `{wrong}`, expected a prefix such as `10.224.0.0/24`");
            problems(&NETWORK_POLICY, &block(wrong), &[&expected]);
        }
        problems(&CILIUM_POLICY, "spec: {ingress: [{fromCIDR: [10.224.0.8, 10.0.0.0/8]}]}", &[]);
    }

    #[test]
    fn a_field_with_nothing_is_none() {
        problems(&NETWORK_POLICY, "spec:\n  podSelector:\n  ingress:\n  policyTypes:\n", &[]);
    }

    #[test]
    fn names_of_ports() {
        assert!(is_port_name("http") && is_port_name("a-1") && is_port_name("1a"));
        for wrong in ["", "HTTP", "80", "-a", "a-", "a--b", "abcdefghijklmnop", "a_b"] {
            assert!(!is_port_name(wrong), "{wrong}");
        }
    }
}
