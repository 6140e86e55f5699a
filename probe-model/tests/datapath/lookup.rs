//! 5.3: how a frontend is found.

use std::net::IpAddr;

use fixtures::Random;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::lb::{LbClient, LbFound, LbKey, LbLookup, LbMaps, LbService, LoadBalancer};
use probe_model::cilium::policy::PolicyLayout;
use probe_model::simulate::{Destination, Outcome, Question, Unknown};
use probe_model::tuple::Protocol;

use super::{APP, both, outcome, tcp};

const UDP: u8 = Protocol::UDP.0;
const TCP: u8 = Protocol::TCP.0;

fn allowed() -> Outcome {
    Outcome::Allowed(Destination::Endpoint(APP))
}

fn no_frontend(address: IpAddr) -> Outcome {
    Outcome::Unknown(Unknown::Frontend { address, port: 80 })
}

/// "≤1.16: `proto` always 0 (ANY): one frontend per ip:port for all protocols."
#[test]
fn up_to_1_16_a_frontend_is_for_all_protocols() {
    both(|net| {
        for layout in [PolicyLayout::HashKey, PolicyLayout::WildcardBits, PolicyLayout::PrefixLength] {
            let mut world = net.world(layout);
            let question = tcp(net.client, net.frontend, 80);
            assert_eq!(outcome(&world, &question), allowed());
            let mut udp = question;
            udp.tuple.protocol = Protocol::UDP;
            assert_eq!(outcome(&world, &udp), allowed());
            // A protocol that is not load-balanced passes by: 5.3, 1.
            udp.tuple.protocol = Protocol(47);
            udp.tuple.dport = 0;
            let passed = Outcome::Unknown(Unknown::Frontend { address: net.frontend, port: 0 });
            assert_eq!(outcome(&world, &udp), passed);
            // Another port is no service, whatever stands for the whole address.
            let mut whole = net.service(0);
            whole.key.dport = 0;
            net.serve(&mut world, &[net.service(81), whole]);
            assert_eq!(outcome(&world, &question), no_frontend(net.frontend));
        }
    });
}

/// "1.17–1.18, with `bpf-lb-proto-diff` (default on): real proto first, then proto 0 (ANY)."
#[test]
fn from_1_17_on_the_protocol_comes_first() {
    both(|net| {
        for layout in [PolicyLayout::ProxyPriority, PolicyLayout::CountersApart] {
            let mut world = net.world(layout);
            let mut of_udp = net.service(80);
            of_udp.key.proto = UDP;
            of_udp.backends = vec![(2, net.other)];
            let mut of_any = net.service(80);
            of_any.key.proto = 0;
            let question = tcp(net.client, net.frontend, 80);
            let udp = Question {
                tuple: probe_model::tuple::Tuple { protocol: Protocol::UDP, ..question.tuple },
                ..question
            };
            net.serve(&mut world, &[of_udp.clone(), of_any]);
            assert_eq!(super::ends(&world, &question)[0].0, net.app);
            assert_eq!(super::ends(&world, &udp)[0].0, net.other);
            net.serve(&mut world, &[of_udp]);
            assert_eq!(outcome(&world, &question), no_frontend(net.frontend), "no wildcard before 1.19");
        }
    });
}

/// "≥1.19: real proto only; on miss (north–south) one wildcard probe {dport 0, proto 0} which, if present, means
/// 'known VIP, unknown port' ⇒ −158."
#[test]
fn from_1_19_on_a_known_address_refuses_other_ports() {
    both(|net| {
        for layout in [PolicyLayout::Precedence, PolicyLayout::Aggregates] {
            let mut world = net.world(layout);
            let question = tcp(net.client, net.frontend, 80);
            assert_eq!(
                outcome(&world, &question),
                no_frontend(net.frontend),
                "an entry of any protocol is not asked for"
            );
            let mut service = net.service(80);
            service.key.proto = TCP;
            let mut whole = net.service(0);
            whole.key.dport = 0;
            whole.backends.clear();
            net.serve(&mut world, &[service.clone(), whole]);
            assert_eq!(outcome(&world, &question), allowed());
            let other_port = tcp(net.client, net.frontend, 83);
            let refused = super::way(&world, &other_port);
            assert_eq!(refused.outcome, Outcome::Dropped(DropReason::NO_SERVICE));
            assert_eq!(refused.tuple, other_port.tuple, "before translation");
            // From inside the wildcard is not asked for.
            let inside = super::way(&world, &tcp(net.other, net.frontend, 83));
            assert_eq!(inside.outcome, Outcome::Allowed(Destination::Network(Some("eth0".to_owned()))));
            net.serve(&mut world, &[service]);
            let unknown = Outcome::Unknown(Unknown::Frontend { address: net.frontend, port: 83 });
            assert_eq!(outcome(&world, &other_port), unknown);
        }
    });
}

/// Where nothing tells the version, only what every version answers is an answer.
#[test]
fn without_policy_maps_the_versions_must_agree() {
    both(|net| {
        let mut world = net.world(PolicyLayout::WildcardBits);
        world.policy.clear();
        let question = tcp(net.client, net.frontend, 80);
        let unknown = |outcome| matches!(outcome, Outcome::Unknown(Unknown::Version(_)));
        assert!(unknown(outcome(&world, &question)), "an entry of any protocol is none from 1.19 on");
        // A protocol in a key rules out the versions that have none; the others find it alike.
        let mut service = net.service(80);
        service.key.proto = TCP;
        net.serve(&mut world, &[service]);
        let found = super::way(&world, &question);
        assert_eq!(found.tuple.daddr, net.app);
        // Nothing at all is the same to every version.
        net.serve(&mut world, &[]);
        assert_eq!(outcome(&world, &question), no_frontend(net.frontend));
    });
}

/// An empty policy map of a pin that several versions have does not tell them apart.
#[test]
fn an_empty_policy_map_tells_its_pin_only() {
    both(|net| {
        let mut world = net.world(PolicyLayout::ProxyPriority);
        for id in [APP, super::OTHER] {
            super::allow(&mut world, PolicyLayout::ProxyPriority, id, &[]);
        }
        let question = tcp(net.client, net.frontend, 80);
        assert!(matches!(outcome(&world, &question), Outcome::Unknown(Unknown::Version(_))));
        for id in [APP, super::OTHER] {
            super::allow(&mut world, PolicyLayout::WildcardBits, id, &[]);
        }
        assert_eq!(outcome(&world, &question), Outcome::Dropped(DropReason::POLICY));
    });
}

/// The table of 5.3 by looking at every entry.
fn scan(
    entries: &[(LbKey, LbService)],
    procedure: LbLookup,
    client: LbClient,
    (address, dport, proto): (IpAddr, u16, u8),
) -> Option<(LbKey, bool)> {
    let has = |dport, proto, scope| {
        let key = LbKey { address, dport, backend_slot: 0, proto, scope };
        entries.iter().rev().find(|(other, _)| *other == key).copied()
    };
    let protocols: &[u8] = match procedure {
        LbLookup::AnyProtocol => &[0],
        LbLookup::ProtocolFirst => &[proto, 0],
        LbLookup::ProtocolOnly => &[proto],
    };
    match protocols.iter().find_map(|proto| has(dport, *proto, 0)) {
        Some((key, service)) if client == LbClient::Inside && service.flags2 & 0x20 != 0 => {
            has(dport, key.proto, 1).map(|(key, _)| (key, false))
        }
        Some((key, _)) => Some((key, false)),
        None if procedure == LbLookup::ProtocolOnly && client == LbClient::Outside => {
            has(0, 0, 0).map(|(key, _)| (key, true))
        }
        None => None,
    }
}

#[test]
fn the_index_agrees_with_a_scan() {
    let mut random = Random::new(7);
    let mut found = 0;
    for round in 0..3_000u64 {
        let address = |last: u64| -> IpAddr {
            if round % 2 == 0 {
                std::net::Ipv4Addr::new(10, 0, 0, last as u8).into()
            } else {
                std::net::Ipv6Addr::new(0xFD00, 0, 0, 0, 0, 0, 0, last as u16).into()
            }
        };
        let mut key = || LbKey {
            address: address(random.below(3)),
            dport: [0, 80, 81][random.below(3) as usize],
            backend_slot: random.below(2) as u16,
            proto: [0, TCP, UDP][random.below(3) as usize],
            scope: random.below(2) as u8,
        };
        let keys: Vec<_> = (0..round % 40).map(|_| key()).collect();
        let entries: Vec<_> = keys
            .into_iter()
            .map(|key| {
                (key, LbService { flags2: [0, 0x20][random.below(2) as usize], ..LbService::default() })
            })
            .collect();
        let lb = LoadBalancer::new(LbMaps { services: entries.clone(), ..LbMaps::default() });
        for _ in 0..20 {
            let procedure = LbLookup::ALL[random.below(3) as usize];
            let client = [LbClient::Outside, LbClient::Inside][random.below(2) as usize];
            let to = (
                address(random.below(3)),
                [80, 81][random.below(2) as usize],
                [TCP, UDP][random.below(2) as usize],
            );
            let ours = match lb.lookup(procedure, client, to) {
                LbFound::Nothing => None,
                LbFound::Frontend(frontend) => Some((frontend.key, false)),
                LbFound::OtherPorts(frontend) => Some((frontend.key, true)),
            };
            assert_eq!(
                ours,
                scan(&entries, procedure, client, to),
                "{procedure:?} {client:?} {to:?} in {entries:?}"
            );
            found += u32::from(ours.is_some());
        }
    }
    assert!(found > 10_000, "only {found} of 60,000 met a frontend");
}
