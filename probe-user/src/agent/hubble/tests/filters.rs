//! Filters: against a reading of their own of what was told, and those that are refused.

use std::net::IpAddr;

use super::*;
use crate::grpc::testing::{nested, number, packed, text};

/// A value of a filter's field.
#[derive(Clone, Copy, Debug)]
enum Value {
    Text(&'static str),
    Number(u64),
    /// `event_type`, with its sub-type if that is asked for.
    Event(u64, Option<u64>),
}

/// Fields with values that some flows have and some do not.
const FIELDS: [(u64, &[Value]); 24] = {
    use Value::{Event, Number, Text};
    const NETS: &[Value] =
        &[Text("10.224.0.8"), Text("10.224.0.0/24"), Text("10.0.0.0/8"), Text("fd00::/8"), Text("0.0.0.0/0")];
    const PODS: &[Value] = &[
        Text("shop/pls-app"),
        Text("shop/"),
        Text("/web-"),
        Text("web-0"),
        Text("web/web-0"),
        Text("none/"),
    ];
    const LABELS: &[Value] = &[
        Text("app=pls-app"),
        Text("k8s:app in (web, pls-app)"),
        Text("!app"),
        Text("reserved:world"),
        Text("app!=web"),
    ];
    const IDENTITIES: &[Value] = &[Number(0), Number(2), Number(12_345), Number(16_777_218)];
    const PORTS: &[Value] = &[Text("80"), Text("8080"), Text("443"), Text("0")];
    [
        (1, NETS),
        (2, PODS),
        (3, NETS),
        (4, PODS),
        (5, &[Number(0), Number(1), Number(2), Number(5)]),
        (
            6,
            &[
                Event(1, None),
                Event(4, None),
                Event(4, Some(0)),
                Event(1, Some(133)),
                Event(0, Some(181)),
                Event(5, None),
            ],
        ),
        (10, LABELS),
        (11, LABELS),
        (12, &[Text("tcp"), Text("UDP"), Text("icmp"), Text("icmpv6"), Text("sctp"), Text("http")]),
        (13, PORTS),
        (14, PORTS),
        (15, &[Number(0), Number(1)]),
        (16, PODS),
        (17, PODS),
        (19, IDENTITIES),
        (20, IDENTITIES),
        (24, &[Text("aks-*"), Text("aks-2"), Text("default/"), Text("other/*")]),
        (25, &[Number(1), Number(2)]),
        (29, &[Text("nobody's")]),
        (30, &[Number(0), Number(1), Number(2)]),
        (33, &[Number(0), Number(133), Number(181)]),
        (34, &[Text("10.224.0.4"), Text("10.0.0.0/8"), Text("fd00::/8")]),
        (3, &[Text("10.244.1.17"), Text("10.244.1.0/28")]),
        (2, &[Text("web/web-0"), Text("/")]),
    ]
};

fn random_flow(random: &mut fastrand::Rng, number: u64) -> Flow {
    let mut flow = denied(number);
    let is_v6 = random.u8(0..5) == 0;
    let source = if is_v6 { ["fd00::8", "fe80::1"] } else { ["10.224.0.8", "192.0.2.1"] };
    let destination = if is_v6 { ["fd00::17", "fd00::18"] } else { ["10.244.1.17", "10.244.1.18"] };
    let pick = |random: &mut fastrand::Rng, of: [&str; 2]| address(of[random.usize(0..2)]);
    flow.tuple.saddr = pick(random, source);
    flow.translated.daddr = pick(random, destination);
    let snat = address(if is_v6 { "fd00::4" } else { "10.224.0.4" });
    flow.translated.saddr = if random.bool() { flow.tuple.saddr } else { snat };
    let protocols =
        [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP, Protocol::ICMPV6, Protocol(47)];
    let protocol = protocols[random.usize(..protocols.len())];
    (flow.tuple.protocol, flow.translated.protocol) = (protocol, protocol);
    (flow.tuple.sport, flow.translated.dport) =
        (random.choice([80, 443, 5000]).unwrap(), random.choice([80, 8080]).unwrap());
    if !protocol.has_ports() {
        (flow.tuple.sport, flow.translated.dport) = (0, 0);
    }
    flow.verdict =
        random.choice([FlowVerdict::Allowed, FlowVerdict::Dropped, FlowVerdict::Inconclusive]).unwrap();
    flow.drop_reason =
        random.choice([None, Some(DropReason::POLICY), Some(DropReason::POLICY_DENY)]).unwrap();
    flow.direction = random.choice([None, Some(Direction::Ingress), Some(Direction::Egress)]).unwrap();
    flow.source = random_peer(random);
    flow.destination = random_peer(random);
    flow.service = random
        .choice([
            None,
            Some(("shop".to_owned(), "pls-app".to_owned())),
            Some(("web".to_owned(), "web-0".to_owned())),
        ])
        .unwrap();
    flow
}

fn random_peer(random: &mut fastrand::Rng) -> Peer {
    let pods = [("shop", "pls-app-7d9"), ("web", "web-0"), ("default", "web-0"), ("none", "x")];
    let pod = random.choice(pods).filter(|_| random.bool());
    let labels = ["k8s:app=pls-app", "k8s:app=web", "reserved:world", "k8s:tier=web"];
    Peer {
        identity: random
            .choice([None, Some(Identity(2)), Some(Identity(12_345)), Some(Identity(16_777_218))])
            .unwrap(),
        endpoint: random.bool().then_some(EndpointId(7)),
        pod: pod.map(|(namespace, name)| PodName { namespace: namespace.to_owned(), name: name.to_owned() }),
        labels: labels.iter().filter(|_| random.bool()).map(ToString::to_string).collect(),
    }
}

type Wanted = Vec<(u64, Vec<Value>)>;

fn random_filter(random: &mut fastrand::Rng) -> Wanted {
    let fields = (0..random.usize(0..4)).map(|_| {
        let (field, values) = FIELDS[random.usize(..FIELDS.len())];
        let values = (0..=random.usize(0..2)).map(|_| values[random.usize(..values.len())]);
        let is_fine = |value: &Value| !matches!(value, Value::Text("/"));
        (field, values.filter(is_fine).collect())
    });
    fields.collect()
}

fn encoded(wanted: &Wanted, as_field: u64) -> Vec<u8> {
    let parts = wanted.iter().flat_map(|(field, values)| {
        values.iter().map(|value| match *value {
            Value::Text(value) => text(*field, value),
            // Both ways in which a repeated number may come.
            Value::Number(value) if value % 2 == 0 => number(*field, value),
            Value::Number(value) => packed(*field, &[value]),
            Value::Event(kind, None) => nested(*field, &[number(1, kind), number(3, 99)]),
            Value::Event(kind, Some(sub)) => nested(*field, &[number(1, kind), number(2, 1), number(3, sub)]),
        })
    });
    nested(as_field, &parts.collect::<Vec<_>>())
}

/// Whether a flow that was told is one that a filter wants, by `flow.Flow`'s numbers and the words of `flow.proto`.
fn fits(flow: &Message, wanted: &Wanted) -> bool {
    let mut by_field = std::collections::BTreeMap::<u64, Vec<Value>>::new();
    for (field, values) in wanted {
        by_field.entry(*field).or_default().extend(values);
    }
    by_field.iter().filter(|(_, values)| !values.is_empty()).all(|(field, values)| {
        values.iter().any(|value| match *value {
            Value::Text(value) => text_fits(flow, *field, value),
            Value::Number(value) => number_of_field(flow, *field) == value,
            Value::Event(kind, sub) => {
                let event = flow.message(19).unwrap_or_default();
                (kind == 0 || event.number(1) == kind) && sub.is_none_or(|sub| event.number(2) == sub)
            }
        })
    })
}

fn number_of_field(flow: &Message, field: u64) -> u64 {
    match field {
        5 => flow.number(2),
        15 => flow.message(26).unwrap().number(1),
        19 => flow.message(8).unwrap().number(2),
        20 => flow.message(9).unwrap().number(2),
        25 => flow.message(5).unwrap().number(3),
        30 => flow.number(22),
        33 => flow.number(25),
        other => panic!("{other}"),
    }
}

fn text_fits(flow: &Message, field: u64, value: &str) -> bool {
    let ip = |field| in_net(&flow.message(5).unwrap().text(field), value);
    let end = |field| flow.message(field).unwrap_or_default();
    let pod = |end: Message| begins(&end.text(3), &end.text(5), value);
    let service = |end: Message| begins(&end.text(2), &end.text(1), value);
    let layer4 = || flow.message(6).unwrap_or_default();
    let port = |field| {
        let ports = [1, 2, 5].into_iter().find_map(|protocol| layer4().message(protocol));
        ports.is_some_and(|ports| ports.number(field).to_string() == value)
    };
    match field {
        1 => ip(1),
        3 => ip(2),
        34 => ip(5),
        2 => pod(end(8)),
        4 => pod(end(9)),
        10 => selected(&end(8).texts(4), value),
        11 => selected(&end(9).texts(4), value),
        12 => layer4().fields().iter().any(|kind| match value {
            "tcp" => *kind == 1,
            "UDP" => *kind == 2,
            "icmp" => [3, 4].contains(kind),
            "icmpv6" => *kind == 4,
            "sctp" => *kind == 5,
            _ => false,
        }),
        13 => port(1),
        14 => port(2),
        16 => service(end(20)),
        17 => service(end(21)),
        24 => ["aks-*", "default/"].contains(&value),
        29 => flow.text(34) == value,
        other => panic!("{other}"),
    }
}

fn in_net(address: &str, net: &str) -> bool {
    let (net, length) = net.split_once('/').map_or((net, None), |(net, length)| (net, Some(length)));
    match (address.parse::<IpAddr>(), net.parse::<IpAddr>().unwrap()) {
        (Ok(IpAddr::V4(address)), IpAddr::V4(net)) => {
            let length = length.map_or(32, |length| length.parse::<u32>().unwrap());
            (0..length).all(|bit| (address.to_bits() ^ net.to_bits()) & 1 << (31 - bit) == 0)
        }
        (Ok(IpAddr::V6(address)), IpAddr::V6(net)) => {
            let length = length.map_or(128, |length| length.parse::<u32>().unwrap());
            (0..length).all(|bit| (address.to_bits() ^ net.to_bits()) & 1 << (127 - bit) == 0)
        }
        _ => false,
    }
}

fn begins(namespace: &str, name: &str, wanted: &str) -> bool {
    let (in_namespace, prefix) = wanted.split_once('/').unwrap_or(("default", wanted));
    !(namespace.is_empty() && name.is_empty())
        && (in_namespace.is_empty() || in_namespace == namespace)
        && name.starts_with(prefix)
}

fn selected(labels: &[String], selector: &str) -> bool {
    let has = |label: &str| labels.iter().any(|own| own == label);
    let first = labels.iter().find(|label| label.starts_with("k8s:app="));
    match selector {
        "app=pls-app" => first.is_some_and(|label| label == "k8s:app=pls-app"),
        "k8s:app in (web, pls-app)" => first.is_some(),
        "!app" => first.is_none(),
        "reserved:world" => has("reserved:world"),
        "app!=web" => first.is_none_or(|label| label != "k8s:app=web"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn as_a_reading_of_what_is_told() {
    let mut random = fastrand::Rng::with_seed(6);
    let hubble = Hubble::start(120).await;
    for number in 1..=120 {
        hubble.feed.push(random_flow(&mut random, number));
    }
    let all: Vec<Message> = hubble.flows(&[]).await.0;
    assert_eq!(all.len(), 120);
    let (mut some, mut none, mut fields) = (0, 0, std::collections::BTreeSet::new());
    for round in 0..300 {
        let filters = |random: &mut fastrand::Rng| {
            (0..random.usize(0..3)).map(|_| random_filter(random)).collect::<Vec<_>>()
        };
        let (white, black) = (filters(&mut random), filters(&mut random));
        let wanted: Vec<u64> = (all.iter())
            .filter(|response| {
                let flow = response.message(1).unwrap();
                (white.is_empty() || white.iter().any(|filter| fits(&flow, filter)))
                    && !black.iter().any(|filter| fits(&flow, filter))
            })
            .map(number_of)
            .collect();
        let request = [
            white.iter().map(|filter| encoded(filter, 6)).collect::<Vec<_>>(),
            black.iter().map(|filter| encoded(filter, 5)).collect(),
        ];
        assert_eq!(hubble.numbers(&request.concat()).await, wanted, "round {round}: {white:?} but {black:?}");
        match wanted.len() {
            0 => none += 1,
            1..120 => {
                some += 1;
                fields.extend(white.iter().chain(&black).flatten().map(|(field, _)| *field));
            }
            _ => {}
        }
    }
    assert!(some > 75 && none > 25, "{some} rounds with some flows and {none} with none");
    assert_eq!(fields.len(), 22, "each field had a say: {fields:?}");
}

#[tokio::test]
async fn by_uuid() {
    let hubble = Hubble::start(10).await;
    (1..=3).for_each(|number| hubble.feed.push(denied(number)));
    let (all, _) = hubble.flows(&[]).await;
    let uuid = all[1].message(1).unwrap().text(34);
    assert_eq!(hubble.numbers(&[nested(6, &[text(29, &uuid)])]).await, [2]);
}

/// Every field that there is in `flow.FlowFilter`, to Cilium 1.20, and is not evaluated; and some of the future.
#[tokio::test]
async fn what_is_not_evaluated_is_refused() {
    let hubble = Hubble::start(2).await;
    for (field, name) in [
        (7, "`source_fqdn`"),
        (8, "`destination_fqdn`"),
        (9, "`http_status_code`"),
        (18, "`dns_query`"),
        (21, "`http_method`"),
        (22, "`http_path`"),
        (23, "`tcp_flags`"),
        (26, "`source_workload`"),
        (27, "`destination_workload`"),
        (28, "`trace_id`"),
        (31, "`http_url`"),
        (32, "`http_header`"),
        (35, "`interface`"),
        (36, "`node_labels`"),
        (37, "`source_cluster_name`"),
        (38, "`destination_cluster_name`"),
        (39, "`ip_trace_id`"),
        (40, "`encrypted`"),
        (41, "field 41 of `flow.FlowFilter`"),
        (999, "`experimental`"),
        (536_870_911, "field 536870911 of `flow.FlowFilter`"),
    ] {
        for list in [5, 6] {
            let words = hubble.refusal(&[nested(list, &[text(3, "10.0.0.1"), text(field, "x")])]).await;
            assert_eq!(words, format!("filters by {name} are not evaluated here"));
        }
    }
    let event = hubble.refusal(&[nested(6, &[nested(6, &[number(4, 1)])])]).await;
    assert_eq!(event, "filters by field 4 of `flow.EventTypeFilter` are not evaluated here");
    let request = hubble.refusal(&[number(11, 1)]).await;
    assert_eq!(request, "field 11 of `observer.GetFlowsRequest` is not known here");
    let extension = hubble.refusal(&[nested(150_000, &[text(1, "x")])]).await;
    assert!(extension.contains("field 150000"), "{extension}");
}

#[tokio::test]
async fn values_that_make_no_sense() {
    let hubble = Hubble::start(2).await;
    for (filter, words) in [
        (text(1, "10.0.0"), "`source_ip` is `10.0.0`; expected an address or a CIDR"),
        (text(3, "10.0.0.0/33"), "`destination_ip` is `10.0.0.0/33`"),
        (text(2, ""), "`source_pod` is ``"),
        (text(17, "/"), "`destination_service` is `/`"),
        (text(10, "a=(b"), "`a=(b` is no label selector"),
        (text(12, "quic"), "`protocol` is `quic`; expected tcp, udp"),
        (text(14, "65536"), "`destination_port` is `65536`"),
        (text(13, "+1"), "`source_port` is `+1`"),
        (text(24, "a b"), "`node_name` is `a b`"),
        (number(1, 1), "`source_ip` has another type"),
        (text(25, "\u{fe}"), "`ip_version` is no list of numbers"),
        (nested(1, &[vec![0xff]]), "`source_ip` is no text"),
    ] {
        let said = hubble.refusal(&[nested(6, &[filter])]).await;
        assert!(said.starts_with(words), "{said}");
    }
    for bytes in [
        &[0x08][..],
        &[0x32, 5, 0],
        &[0x0b],
        &[0x00, 0x00],
        &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ] {
        assert_eq!(hubble.refusal(&[bytes.to_vec()]).await, "the request is no protobuf", "{bytes:?}");
    }
}

#[tokio::test]
async fn too_much_to_compare() {
    let hubble = Hubble::start(2).await;
    let many = |count: usize| nested(6, &vec![text(1, "10.0.0.1"); count]);
    let packed_many = |count: usize| nested(6, &[packed(19, &vec![1; count])]);
    let max = super::super::request::VALUES_MAX;
    assert!(hubble.numbers(&[many(max)]).await.is_empty());
    assert!(hubble.numbers(&[packed_many(max)]).await.is_empty());
    for request in [many(max + 1), packed_many(max + 1), [many(max), many(1)].concat()] {
        assert_eq!(hubble.refusal(&[request]).await, "the filters have more than 1024 values");
    }
    assert!(hubble.numbers(&vec![nested(6, &[]); max]).await.is_empty());
    assert_eq!(hubble.refusal(&vec![nested(5, &[]); max + 1]).await, "there are more than 1024 filters");
}

/// Requests of any bytes, and good ones with some bytes changed, are read or refused.
#[test]
fn bytes_of_any_kind() {
    let mut random = fastrand::Rng::with_seed(66);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = encoded(&random_filter(&mut random), 6);
        for _ in 0..random.usize(0..3) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..=2 * bytes.len()));
        match super::super::request::FlowsRequest::decode(&bytes) {
            Ok(_) => read += 1,
            Err(status) => {
                assert_eq!(status.code, crate::grpc::Code::InvalidArgument);
                refused += 1;
            }
        }
    }
    assert!(read > 2_000 && refused > 2_000, "{read} read, {refused} refused");
}
