//! The flow that tests and the benchmark tell of. The types of this crate come from whoever has this file as a module: to
//! the benchmark they are another crate's.

use std::net::IpAddr;

use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::Code;
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::{PodName, PolicyRef};

use super::{Flow, FlowVerdict, Peer, SourceClass, Stop};

/// A second of 2026, in nanoseconds since 1970.
pub(super) const TIME: u64 = 1_790_000_000_000_000_000;
pub(super) const SECOND: u64 = 1_000_000_000;

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A flow that a deny of policy drops: from a NAT IP through the frontend to the pod.
pub(super) fn denied(number: u64) -> Flow {
    let tuple = Tuple {
        saddr: address("10.224.0.8"),
        daddr: address("10.224.0.7"),
        sport: 40_122,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let translated = Tuple { daddr: address("10.244.1.17"), dport: 8080, ..tuple };
    let policy = |name: &str| PolicyRef {
        kind: "CiliumNetworkPolicy".to_owned(),
        namespace: Some("shop".to_owned()),
        name: name.to_owned(),
    };
    Flow {
        number,
        first_ns: TIME + number * SECOND + 7,
        last_ns: TIME + number * SECOND + 9,
        answered_ns: None,
        tuple,
        translated,
        verdict: FlowVerdict::Dropped,
        drop_reason: Some(DropReason::POLICY_DENY),
        is_refused: false,
        retransmissions: 2,
        source: Peer {
            identity: Some(Identity(16_777_218)),
            labels: vec!["cidr:10.224.0.8/32".to_owned(), "reserved:world".to_owned()],
            ..Peer::default()
        },
        destination: Peer {
            identity: Some(Identity(12_345)),
            endpoint: Some(EndpointId(2686)),
            pod: Some(PodName { namespace: "shop".to_owned(), name: "pls-app-7d9".to_owned() }),
            labels: vec!["k8s:app=pls-app".to_owned()],
        },
        class: SourceClass::PrivateLink,
        service: Some(("shop".to_owned(), "pls-app".to_owned())),
        cause: Code::parse("PLS-03").unwrap(),
        sentence: "a deny rule drops it".to_owned(),
        policies: vec![policy("deny-nat"), policy("deny-all")],
        direction: Some(Direction::Ingress),
        nearest: Some("allow port 81".to_owned()),
        disagreements: Vec::new(),
        link_id: Some(1_234_567),
        hops: vec![Stop { place: "eth0 in".to_owned(), at_ns: TIME, tuple }],
        replies: Vec::new(),
    }
}
