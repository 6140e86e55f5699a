//! Parts made by hand, for tests of what is done with them.

use std::net::SocketAddr;

use probe_model::path::{HookPoint, Rewrite};
use probe_model::tuple::{Protocol, Tuple};

use super::part::{Fate, Part, Stop};
use crate::trace::judge::FlowVerdict;

/// `10.224.0.8:40000 > 10.224.0.7:80`, TCP.
pub(super) fn tuple(text: &str) -> Tuple {
    let (from, to) = text.split_once(" > ").unwrap();
    let [from, to]: [SocketAddr; 2] = [from, to].map(|end| end.parse().unwrap());
    Tuple { saddr: from.ip(), daddr: to.ip(), sport: from.port(), dport: to.port(), protocol: Protocol::TCP }
}

pub(super) fn stop(at_ns: u64, point: HookPoint, tuple: Tuple) -> Stop {
    Stop { at_ns, point, in_pod: false, interface: Some("eth0".to_owned()), tuple }
}

/// A flow that came to a node from the network and went on, or to a pod there.
pub(super) fn part(node: usize, first_ns: u64, came: Tuple, left: Tuple, goes_on: bool) -> Part {
    let left_ns = first_ns + 40_000;
    let point = if goes_on { HookPoint::UplinkOut } else { HookPoint::PodIn };
    let rewrites = if came == left { Vec::new() } else { vec![Rewrite { from: came, to: left }] };
    Part {
        node,
        tuple: came,
        rewrites,
        hops: vec![stop(first_ns, HookPoint::UplinkIn, came), stop(left_ns, point, left)],
        replies: Vec::new(),
        first_ns,
        last_ns: left_ns,
        answered_ns: None,
        verdict: FlowVerdict::Allowed,
        fate: Fate::Other,
        line: "{}".into(),
    }
}
