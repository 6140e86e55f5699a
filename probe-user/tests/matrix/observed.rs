//! Causes that only packets show: one flow each, and a neighbour in which the same is not wrong.

use std::net::{IpAddr, Ipv4Addr};

use probe_model::explain::{Code, observed};
use probe_model::path::evidence::{Entry, Evidence, Reaction, ReactionKind, Reset, Reuse, RoutedBack, Stall};
use probe_model::path::{
    Beginning, Fragment, HookPoint, Namespace, Outcome, Packet, Path, Patience, Place, Refusal, Seen,
    Sighting, TcpFlags, Tracker,
};
use probe_model::proxy_protocol::FirstBytes;
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::World;

use crate::base::{APP, FRONTEND, NAT_IPS, NODE, working};

const SECOND: u64 = 1_000_000_000;
/// A machine in the peered network, which does not come by Private Link.
const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 221, 1, 4);

/// A cause, a flow that shows it, and one that does not.
struct Shown {
    code: Code,
    shows: &'static str,
    spoilt: fn(&mut World, &mut Path),
    neighbour: (&'static str, fn(&mut World, &mut Path)),
}

const UPLINK: Place = Place { point: HookPoint::UplinkIn, ifindex: 2, namespace: Namespace::Node };

fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, seq: u32, ack: u32) -> Packet {
    let tuple = Tuple {
        saddr: from.0.into(),
        sport: from.1,
        daddr: to.0.into(),
        dport: to.1,
        protocol: Protocol::TCP,
    };
    Packet {
        tuple,
        flags: TcpFlags(flags),
        seq,
        ack,
        payload_len: 0,
        payload_hash: 0,
        ip_id: 0,
        ttl: 64,
        fragment: Fragment::Whole,
        vlan: 0,
        tunnel: None,
        icmp: None,
        quoted: None,
    }
}

/// A connection from the NAT IP to the frontend that the pod has accepted.
fn accepted() -> Path {
    let mut tracker = Tracker::new(Patience::default());
    let (client, frontend, pod) = ((NAT_IPS[0], 40000), (FRONTEND, 80), (APP, 80));
    let at = |ms: u64, point, packet| {
        let place = Place {
            point,
            ifindex: if point == HookPoint::UplinkIn { 2 } else { 5 },
            namespace: Namespace::Node,
        };
        Sighting { ktime_ns: ms * 1_000_000, packet, seen: Seen::Hook { place, mark: 0, buffer: 7 } }
    };
    tracker.push(&at(1, HookPoint::UplinkIn, packet(client, frontend, 0x02, 100, 0)));
    tracker.push(&at(2, HookPoint::PodIn, packet(client, pod, 0x02, 100, 0)));
    tracker.push(&at(3, HookPoint::PodOut, packet(pod, client, 0x12, 500, 101)));
    let mut paths = tracker.finish();
    assert_eq!(paths.len(), 1);
    paths.remove(0)
}

/// The opener begins with this, and its peer does that.
fn begins(evidence: &mut Evidence, first: FirstBytes, kind: ReactionKind) {
    evidence.beginnings =
        vec![Beginning { place: UPLINK, reply: false, ktime_ns: SECOND, first, segments: 1, then: None }];
    evidence.request_ns = Some(SECOND);
    evidence.reaction = Some(Reaction { kind, after_ns: 1_000_000 });
}

fn reset(path: &mut Path, idle_ns: u64) {
    let reset = Reset { by_opener: true, place: UPLINK, ktime_ns: idle_ns, idle_ns, after_fin: false };
    path.evidence.reset = Some(reset);
}

fn switch_proxy_on(world: &mut World) {
    world.private_link.services.as_mut().expect("Private Link services")[0].proxy_protocol = true;
}

const SHOWN: &[Shown] = &[
    Shown {
        code: Code::ProxyHeaderUnparsed,
        shows: "a PROXY header, and the pod answers HTTP 400",
        spoilt: |_, path| begins(&mut path.evidence, FirstBytes::ProxyV1, ReactionKind::Status(400)),
        neighbour: ("a PROXY header, and the pod answers HTTP 200", |_, path| {
            begins(&mut path.evidence, FirstBytes::ProxyV1, ReactionKind::Status(200));
        }),
    },
    Shown {
        code: Code::ProxyHeaderMissing,
        shows: "a client past Private Link, which has PROXY on, is reset after its request",
        spoilt: |world, path| {
            switch_proxy_on(world);
            path.tuple.saddr = DIRECT.into();
            begins(&mut path.evidence, FirstBytes::Http, ReactionKind::Reset);
        },
        neighbour: ("the same, and PROXY is off", |_, path| {
            path.tuple.saddr = DIRECT.into();
            begins(&mut path.evidence, FirstBytes::Http, ReactionKind::Reset);
        }),
    },
    Shown {
        code: Code::IdleTimeout,
        shows: "a reset from the network after five minutes of silence",
        spoilt: |_, path| reset(path, 301 * SECOND),
        neighbour: ("a reset after a second", |_, path| reset(path, SECOND)),
    },
    Shown {
        code: Code::NatPorts,
        shows: "ports that were in use ten seconds ago, and a bare ACK",
        spoilt: |_, path| {
            path.evidence.reuse = Some(Reuse { since_ns: 10 * SECOND, was_closed: true });
            path.evidence.bare_ack_ns = Some(1);
        },
        neighbour: ("the same, and it was accepted", |_, path| {
            path.evidence.reuse = Some(Reuse { since_ns: 10 * SECOND, was_closed: true });
        }),
    },
    Shown {
        code: Code::TooBig,
        shows: "large segments are sent again and again",
        spoilt: |_, path| {
            path.evidence.stall = Some(Stall { by_opener: false, lost_len: 1410, times: 5, passed_len: 200 });
        },
        neighbour: ("large segments arrive", |_, path| path.evidence.stall = None),
    },
    Shown {
        code: Code::UnknownFrontend,
        shows: "the packet leaves again, one hop older",
        spoilt: |_, path| {
            let to = Place { point: HookPoint::UplinkOut, ..UPLINK };
            path.evidence.routed_back = Some(RoutedBack { from: UPLINK, to, ttl: 63 });
        },
        neighbour: ("it goes to the pod", |_, _| {}),
    },
    Shown {
        code: Code::InCluster,
        shows: "a pod of this node asks for the load balancer's address",
        spoilt: |_, path| path.evidence.entry = Some(Entry::Pod),
        neighbour: ("it comes from the network", |_, path| path.evidence.entry = Some(Entry::Network)),
    },
    Shown {
        code: Code::NoEndpoint,
        shows: "the pod resets the SYN",
        spoilt: |_, path| {
            path.outcome = Outcome::Refused { refusal: Refusal::Reset, from: APP.into() };
        },
        neighbour: ("somebody else resets it", |_, path| {
            path.outcome = Outcome::Refused { refusal: Refusal::Reset, from: NODE.into() };
        }),
    },
    Shown {
        code: Code::SlowApplication,
        shows: "a request without an answer for ten seconds",
        spoilt: |_, path| {
            path.is_acknowledged = true;
            path.evidence.request_ns = Some(SECOND);
            path.last_ns = 11 * SECOND;
        },
        neighbour: ("a request without an answer for a moment", |_, path| {
            path.is_acknowledged = true;
            path.evidence.request_ns = Some(SECOND);
            path.last_ns = SECOND + 1_000;
        }),
    },
];

fn codes(change: fn(&mut World, &mut Path), is_beside: bool) -> Vec<Code> {
    let mut world = working("cilium-1.14", "cidr-pls8-80", &NAT_IPS[..1]);
    let mut path = accepted();
    change(&mut world, &mut path);
    let found = observed(&world, &path, is_beside);
    for finding in &found {
        assert!(!finding.evidence.is_empty() && !finding.remedy.is_empty(), "{finding:#?}");
    }
    found.iter().map(|finding| finding.code).collect()
}

#[test]
fn a_good_flow_shows_nothing() {
    assert_eq!(codes(|_, _| {}, false), []);
    let path = accepted();
    assert_eq!(path.tuple.daddr, IpAddr::from(FRONTEND));
    assert_eq!(path.final_tuple().daddr, IpAddr::from(APP));
}

#[test]
fn each_cause_is_shown_by_its_own_flow_alone() {
    for Shown { code, shows, spoilt, neighbour: (other, good) } in SHOWN {
        assert_eq!(codes(*spoilt, false), [*code], "{shows}");
        assert_eq!(codes(*good, false), [], "{code} in its neighbour: {other}");
    }
    assert_eq!(
        codes(|_, _| {}, true),
        [Code::PublicFloatingIp],
        "the node's own address, the service's port"
    );
}

/// Codes that flows are tested to show.
pub(crate) fn shown() -> impl Iterator<Item = Code> {
    SHOWN.iter().map(|shown| shown.code).chain([Code::PublicFloatingIp])
}
