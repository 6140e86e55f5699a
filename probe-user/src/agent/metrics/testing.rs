//! Flows for tests of what is told of them.

use probe_model::cilium::Direction;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::explain::Code;
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::PodName;

use crate::agent::flow::{Flow, Peer, SourceClass, Stop};
use crate::trace::judge::FlowVerdict;

/// When it began: 14 November 2023.
pub(crate) const FIRST_NS: u64 = 1_700_000_000_000_000_000;

/// A flow of Private Link's to `default/pls-app`, answered after 3 ms.
pub(crate) fn flow() -> Flow {
    let tuple = Tuple {
        saddr: "10.224.0.8".parse().unwrap(),
        daddr: "10.224.0.7".parse().unwrap(),
        sport: 40122,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let translated = Tuple { daddr: "10.244.1.23".parse().unwrap(), dport: 8080, ..tuple };
    let stop =
        |place: &str, us: u64, tuple| Stop { place: place.to_owned(), at_ns: FIRST_NS + us * 1000, tuple };
    Flow {
        number: 7,
        first_ns: FIRST_NS,
        last_ns: FIRST_NS + 2_000_000,
        answered_ns: Some(FIRST_NS + 3_000_000),
        tuple,
        translated,
        verdict: FlowVerdict::Allowed,
        drop_reason: None,
        is_refused: false,
        retransmissions: 0,
        source: Peer { identity: Some(Identity(2)), ..Peer::default() },
        destination: Peer {
            pod: Some(PodName { namespace: "default".to_owned(), name: "pls-app-5d8f-x2x9p".to_owned() }),
            labels: vec!["k8s:app=pls-app".to_owned()],
            ..Peer::default()
        },
        class: SourceClass::PrivateLink,
        service: Some(("default".to_owned(), "pls-app".to_owned())),
        cause: Code::Allowed,
        sentence: "the pod answered".to_owned(),
        policies: Vec::new(),
        direction: Some(Direction::Ingress),
        nearest: None,
        disagreements: Vec::new(),
        link_id: Some(536_870_913),
        hops: vec![stop("eth0 in", 0, tuple), stop("lxc6e1a to pod", 40, translated)],
        replies: vec![
            stop("lxc6e1a from pod", 2900, translated.reversed()),
            stop("eth0 out", 3000, tuple.reversed()),
        ],
    }
}

/// The same, dropped by policy and not answered.
pub(crate) fn dropped() -> Flow {
    Flow {
        answered_ns: None,
        verdict: FlowVerdict::Dropped,
        drop_reason: Some(DropReason::POLICY),
        cause: Code::DefaultDeny,
        sentence: "no ingress rule admits 10.224.0.8".to_owned(),
        nearest: Some("allow ingress world tcp/81: another port".to_owned()),
        replies: Vec::new(),
        ..flow()
    }
}
