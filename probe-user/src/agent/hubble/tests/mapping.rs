//! What each field is made of.

use super::*;
use crate::sources::hubble::{Hubble as Client, Payload};

/// The one flow that is kept, by `flow.Flow`'s numbers.
async fn told(flow: Flow) -> Message {
    let hubble = Hubble::start(4).await;
    hubble.feed.push(flow);
    let (messages, end) = hubble.flows(&[]).await;
    assert_eq!((messages.len(), end.0.as_str()), (1, "0"));
    messages[0].message(1).unwrap()
}

fn names(flow: &Message, field: u64) -> Vec<(String, String, String)> {
    flow.messages(field).iter().map(|policy| (policy.text(1), policy.text(2), policy.text(5))).collect()
}

#[tokio::test]
async fn a_flow_that_policy_denies() {
    let hubble = Hubble::start(4).await;
    hubble.feed.push(denied(5));
    let (messages, _) = hubble.flows(&[]).await;
    let response = &messages[0];
    assert_eq!(response.text(1000), "aks-1");
    let time = response.message(1001).unwrap();
    assert_eq!((time.number(1), time.number(2)), (1_790_000_005, 7));
    let flow = response.message(1).unwrap();
    assert_eq!(flow.message(1).unwrap(), time);
    assert_eq!(flow.number(2), 2, "DROPPED");
    assert_eq!((flow.number(3), flow.number(25)), (181, 181), "POLICY_DENY");
    let ip = flow.message(5).unwrap();
    assert_eq!((ip.text(1), ip.text(2), ip.number(3)), ("10.224.0.8".into(), "10.244.1.17".into(), 1));
    assert_eq!(ip.fields(), [1, 2, 3], "no other source where it arrives");
    let tcp = flow.message(6).unwrap().message(1).unwrap();
    assert_eq!((tcp.number(1), tcp.number(2), tcp.message(3)), (40_122, 8080, None));
    let source = flow.message(8).unwrap();
    assert_eq!((source.number(1), source.number(2), source.text(5)), (0, 16_777_218, String::new()));
    assert_eq!(source.texts(4), ["cidr:10.224.0.8/32", "reserved:world"]);
    let destination = flow.message(9).unwrap();
    assert_eq!((destination.number(1), destination.number(2)), (2686, 12_345));
    assert_eq!((destination.text(3), destination.text(5)), ("shop".into(), "pls-app-7d9".into()));
    assert_eq!(flow.number(10), 1, "L3_L4");
    assert_eq!(flow.text(11), "aks-1");
    let event = flow.message(19).unwrap();
    assert_eq!((event.number(1), event.number(2)), (1, 181), "a drop, and why");
    let service = flow.message(21).unwrap();
    assert_eq!((service.text(1), service.text(2)), ("pls-app".into(), "shop".into()));
    assert_eq!(flow.number(22), 1, "INGRESS");
    assert_eq!(flow.message(26), Some(Message::default()), "it is known to be no reply");
    let uuid = flow.text(34);
    assert!(uuid.len() == 36 && &uuid[14..15] == "8" && uuid.ends_with("-8000-000000000005"), "{uuid}");
    let policy = |name: &str| (name.to_owned(), "shop".to_owned(), "CiliumNetworkPolicy".to_owned());
    assert_eq!(names(&flow, 21_005), [policy("deny-nat"), policy("deny-all")]);
    assert_eq!(flow.text(100_000), "a deny rule drops it");
    let emitter = flow.message(41).unwrap();
    assert_eq!(emitter.text(1), "plsprobe");
    let fields = [1, 2, 3, 5, 6, 8, 9, 10, 11, 19, 21, 22, 25, 26, 34, 41, 21_005, 21_005, 100_000, 150_000];
    assert_eq!(flow.fields(), fields, "and nothing else");
}

/// What Hubble has no field for, in a type that every one of its clients knows.
#[tokio::test]
async fn the_cause() {
    let flow = told(denied(5)).await;
    let any = flow.message(150_000).unwrap();
    assert_eq!(any.text(1), "type.googleapis.com/google.protobuf.StringValue");
    let value = any.message(2).unwrap().text(1);
    let cause: serde_json::Value = serde_json::from_str(&value).unwrap();
    let policy =
        |name: &str| serde_json::json!({ "kind": "CiliumNetworkPolicy", "namespace": "shop", "name": name });
    let wanted = serde_json::json!({
        "schema": "plsprobe.hubble.cause/1",
        "number": 5,
        "code": "PLS-03",
        "sentence": "a deny rule drops it",
        "policies": [policy("deny-nat"), policy("deny-all")],
        "nearest": "allow port 81",
        "source_class": "private_link",
        "link_id": 1_234_567,
        "disagreements": [],
        "came_as": "10.224.0.8:40122 -> 10.224.0.7:80 TCP",
        "became": "10.224.0.8:40122 -> 10.244.1.17:8080 TCP",
        "refused": false,
        "retransmissions": 2,
        "last_ns": TIME + 5 * SECOND + 9,
        "answered_ns": null,
        "hops": [{ "place": "eth0 in", "at_ns": TIME, "packet": "10.224.0.8:40122 -> 10.224.0.7:80 TCP" }],
        "replies": [],
    });
    assert_eq!(cause, wanted);
}

#[tokio::test]
async fn a_flow_that_is_let_in() {
    let mut flow = denied(1);
    flow.verdict = FlowVerdict::Allowed;
    flow.drop_reason = None;
    flow.translated.saddr = address("10.224.0.4");
    let told = told(flow).await;
    assert_eq!((told.number(2), told.number(3), told.number(25)), (1, 0, 0), "FORWARDED");
    let event = told.message(19).unwrap();
    assert_eq!((event.number(1), event.number(2), told.number(24)), (4, 0, 101), "to the endpoint");
    let ip = told.message(5).unwrap();
    assert_eq!((ip.text(1), ip.text(5)), ("10.224.0.8".into(), "10.224.0.4".into()));
    assert_eq!((names(&told, 21_002).len(), names(&told, 21_005).len()), (2, 0));
}

/// Policies stand only where they do what the field says.
#[tokio::test]
async fn policies_that_neither_allow_nor_deny() {
    let lists = [21_001, 21_002, 21_004, 21_005];
    let none = |flow: &Message| lists.iter().all(|list| flow.messages(*list).is_empty());
    let default_deny = told(Flow { drop_reason: Some(DropReason::POLICY), ..denied(1) }).await;
    assert_eq!((default_deny.number(3), default_deny.number(25)), (133, 133));
    assert!(none(&default_deny), "nobody denies");
    let contradicted = Flow { disagreements: vec!["the maps say otherwise".to_owned()], ..denied(1) };
    assert!(none(&told(contradicted).await), "whose policies they are is not known");
    assert!(none(&told(Flow { verdict: FlowVerdict::Inconclusive, ..denied(1) }).await));
    assert!(none(&told(Flow { direction: None, ..denied(1) }).await));
    let egress = told(Flow { direction: Some(Direction::Egress), ..denied(1) }).await;
    assert_eq!((egress.number(22), names(&egress, 21_004).len()), (2, 2));
}

#[tokio::test]
async fn what_is_not_known_is_not_said() {
    let kernel = told(Flow { drop_reason: None, ..denied(1) }).await;
    assert_eq!((kernel.number(2), kernel.number(3), kernel.message(19)), (2, 0, None), "no drop of Cilium's");
    let mut open = denied(1);
    (open.verdict, open.source, open.destination) =
        (FlowVerdict::Inconclusive, Peer::default(), Peer::default());
    (open.service, open.direction, open.sentence) = (None, None, "it \u{1b}[31mends".to_owned());
    let open = told(open).await;
    assert_eq!((open.number(2), open.number(22), open.message(19)), (0, 0, None));
    assert_eq!((open.message(8), open.message(9)), (Some(Message::default()), Some(Message::default())));
    assert_eq!(open.message(21), None);
    assert_eq!(open.text(100_000), "it \\u{1b}[31mends", "no control characters for a terminal");
}

#[tokio::test]
async fn other_protocols() {
    let with = async |protocol, source: &str, destination: &str| {
        let mut flow = denied(1);
        flow.tuple = Tuple { saddr: address(source), daddr: address(destination), protocol, ..flow.tuple };
        flow.translated = flow.tuple;
        let told = told(flow).await;
        (told.message(5).unwrap().number(3), told.message(6))
    };
    for (protocol, field) in [(Protocol::UDP, 2), (Protocol::SCTP, 5)] {
        let (_, layer4) = with(protocol, "10.0.0.1", "10.0.0.2").await;
        let ports = layer4.unwrap().message(field).unwrap();
        assert_eq!((ports.number(1), ports.number(2)), (40_122, 80));
    }
    let (version, layer4) = with(Protocol::ICMPV6, "fd00::1", "fd00::2").await;
    assert_eq!((version, layer4.unwrap().message(4)), (2, Some(Message::default())), "its type is not known");
    let (version, layer4) = with(Protocol::ICMP, "10.0.0.1", "10.0.0.2").await;
    assert_eq!((version, layer4.unwrap().message(3)), (1, Some(Message::default())));
    assert_eq!(with(Protocol(47), "10.0.0.1", "10.0.0.2").await.1, None);
}

/// plsprobe's own client, as it reads Cilium's agent.
#[tokio::test]
async fn our_client_reads_it() {
    use probe_model::cilium::events::Notification;
    let hubble = Hubble::start(4).await;
    let client = Client::connect(&hubble.served.path).await.unwrap();
    let status = client.status().clone();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (0, 4, 12_345));
    assert!(status.version.starts_with("plsprobe v"), "{status:?}");
    let mut flows = client.follow(&["10.244.1.17/32".parse().unwrap()]).await.unwrap();
    // Whether it follows already nobody says: it is told until it is heard.
    let (mut number, mut heard) = (0, None);
    while heard.is_none() {
        number += 1;
        hubble.feed.push(denied(number));
        let next = tokio::time::timeout(std::time::Duration::from_millis(50), flows.next());
        heard = next.await.ok().map(|payload| payload.unwrap().unwrap());
    }
    let Some(Payload::Flow(Ok(Some(sighting)))) = heard else { panic!("{heard:?}") };
    assert_eq!(sighting.packet.tuple.to_string(), "10.224.0.8:40122 -> 10.244.1.17:8080 TCP");
    let Some(Notification::Drop(drop)) = sighting.seen.notification() else { panic!("{sighting:?}") };
    assert_eq!(
        (drop.reason, drop.dst_id, drop.header.source),
        (DropReason::POLICY_DENY, 2686, EndpointId(2686))
    );
    assert_eq!((drop.src_label, drop.dst_label), (Identity(16_777_218), Identity(12_345)));
}
