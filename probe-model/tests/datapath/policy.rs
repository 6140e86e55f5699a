//! 2.6 and 2.8: what comes before and after the lookup.

use std::collections::BTreeMap;

use probe_model::cilium::Direction;
use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::family::Family;
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::node::NodeValue;
use probe_model::cilium::policy::{PolicyEntry, PolicyLayout};
use probe_model::cilium::runtime_config::UTime;
use probe_model::simulate::{Destination, Fragment, Outcome, Question, Step, Unjudged, Unknown};
use probe_model::tuple::Protocol;
use probe_model::world::{EndpointPolicy, RoutingMode, World};

use super::{
    APP, APP_ID, HOST, Net, OTHER, allow, any, both, host_endpoint, outcome, port, put_policy, tcp, way,
};

const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;
const DENIED: Outcome = Outcome::Dropped(DropReason::POLICY);

fn into(id: probe_model::cilium::EndpointId) -> Outcome {
    Outcome::Allowed(Destination::Endpoint(id))
}

/// 2.6, 3: "for ICMP / ICMPv6, `port := htons(icmp type)`".
#[test]
fn an_icmp_type_is_matched_as_the_port() {
    both(|net| {
        for layout in PolicyLayout::ALL {
            let mut world = net.world(layout);
            let echo = if net.family == Family::V4 { 8 } else { 128 };
            allow(&mut world, layout, APP, &[port(2, Direction::Ingress, net.icmp(), echo)]);
            let of = |icmp_type| net.icmp_question(net.client, net.app, (icmp_type, 0));
            assert_eq!(outcome(&world, &of(echo as u8)), into(APP), "{layout}");
            assert_eq!(outcome(&world, &of(13)), DENIED, "{layout}");
            world.config.icmp_rules = false;
            assert_eq!(outcome(&world, &of(echo as u8)), DENIED, "{layout}: asked for port 0");
        }
    });
}

/// 2.6, 3: "1.13/1.14 test only the protocol number; ≥1.15 also the ethertype".
#[test]
fn icmp_of_the_other_family() {
    both(|net| {
        let other = if net.family == Family::V4 { Protocol::ICMPV6 } else { Protocol::ICMP };
        let mut question = net.icmp_question(net.client, net.app, (8, 0));
        question.tuple.protocol = other;
        let unknown =
            Outcome::Unknown(Unknown::Version("whether an ICMP type of the other family is a port"));
        for (layout, expected) in [
            (PolicyLayout::HashKey, into(APP)),
            (PolicyLayout::WildcardBits, unknown),
            (PolicyLayout::PrefixLength, DENIED),
        ] {
            let mut world = net.world(layout);
            allow(&mut world, layout, APP, &[port(2, Direction::Ingress, other, 8)]);
            assert_eq!(outcome(&world, &question), expected, "{layout}");
            // Where both come to the same, it is an answer.
            allow(&mut world, layout, APP, &[]);
            assert_eq!(outcome(&world, &question), DENIED, "{layout}");
        }
    });
}

/// 2.6, 2: "IPv4 ICMP and `allow-icmp-frag-needed`: type 3 code 4 → ALLOW immediately".
#[test]
fn fragmentation_needed_is_ipv4s() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        allow(&mut world, LAYOUT, APP, &[]);
        let found = way(&world, &net.icmp_question(net.client, net.app, (3, 4)));
        let unjudged = found.steps.contains(&Step::Unjudged(Unjudged::FragmentationNeeded));
        let expected = if net.family == Family::V4 { into(APP) } else { DENIED };
        assert_eq!((found.outcome, unjudged), (expected, net.family == Family::V4));
        world.config.allow_icmp_frag_needed = false;
        assert_eq!(outcome(&world, &net.icmp_question(net.client, net.app, (3, 4))), DENIED);
    });
}

/// 2.6, 1: "Egress only, tunnel builds only: `id_local ≠ host` and UDP to tunnel port → −170".
#[test]
fn a_pod_may_not_send_to_the_tunnel() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut question = tcp(net.other, net.client, 8472);
        question.tuple.protocol = Protocol::UDP;
        let prohibited = Outcome::Dropped(DropReason::ENCAP_PROHIBITED);
        assert_ne!(outcome(&world, &question), prohibited, "native routing");
        world.config.routing = RoutingMode::Tunnel;
        assert_eq!(outcome(&world, &question), Outcome::Unknown(Unknown::Fact("rest/config".to_owned())));
        world.config.tunnel_port = Some(8472);
        assert_eq!(outcome(&world, &question), prohibited);
        world.config.audit_mode = true;
        assert_ne!(outcome(&world, &question), prohibited, "audit mode covers every negative result");
        world.config.audit_mode = false;
        question.tuple.protocol = Protocol::TCP;
        assert_ne!(outcome(&world, &question), prohibited);
        // Towards a pod it is a port like others.
        let mut inward = tcp(net.client, net.app, 8472);
        inward.tuple.protocol = Protocol::UDP;
        assert_eq!(outcome(&world, &inward), into(APP));
    });
}

/// 2.8: "Applies to every negative result incl. −157/−134/−189", of the agent or of one endpoint.
#[test]
fn audit_mode() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let question = tcp(net.client, net.app, 80);
        let denied = any(2, Direction::Ingress);
        let entry = PolicyEntry::for_key(&denied, LAYOUT, true);
        let auth = PolicyEntry { auth_type: 1, ..PolicyEntry::for_key(&denied, LAYOUT, false) };
        for entries in [vec![], vec![(denied, entry)], vec![(denied, auth)]] {
            put_policy(&mut world, LAYOUT, APP, entries);
            world.config.audit_mode = false;
            assert_ne!(outcome(&world, &question), into(APP));
            world.config.audit_mode = true;
            let found = way(&world, &question);
            assert_eq!(found.outcome, into(APP));
            assert!(found.deciding_policy().is_some_and(|step| step.audited));
            // Of this endpoint alone.
            world.config.audit_mode = false;
            host_endpoint(&mut world);
            let mut endpoint = world.endpoints[&HOST].clone();
            endpoint.identity = Identity(APP_ID);
            endpoint.id = APP;
            endpoint.policy = Some(EndpointPolicy { audit_mode: true, ..EndpointPolicy::default() });
            world.endpoints.insert(APP, endpoint);
            assert_eq!(outcome(&world, &question), into(APP));
            world.endpoints.clear();
        }
    });
}

fn with_auth(net: Net, layout: PolicyLayout) -> World {
    let mut world = net.world(layout);
    let key = any(0, Direction::Ingress);
    let entry = PolicyEntry { auth_type: 1, ..PolicyEntry::for_key(&key, layout, false) };
    put_policy(&mut world, layout, APP, [(key, entry)]);
    world.now = Some(UTime(1_000));
    world
}

/// 2.8: "−189 → lookup in `cilium_auth_map` {local id, remote id, remote node id, type}; a live entry turns it into ALLOW".
#[test]
fn authentication() {
    both(|net| {
        for layout in PolicyLayout::ALL.into_iter().filter(|layout| *layout != PolicyLayout::HashKey) {
            let mut world = with_auth(net, layout);
            let local = tcp(net.other, net.app, 80);
            let remote = tcp(net.remote_pod, net.app, 80);
            let required = Outcome::Dropped(DropReason::POLICY_AUTH_REQUIRED);
            let missing = |name: &str| Outcome::Unknown(Unknown::Fact(name.to_owned()));
            assert_eq!(outcome(&world, &local), missing("cilium_auth_map"));
            world.auth = Some(BTreeMap::new());
            assert_eq!(outcome(&world, &local), required, "no entry");
            assert_eq!(outcome(&world, &remote), missing("cilium_node_map"));
            world.nodes = Some(BTreeMap::new());
            assert_eq!(outcome(&world, &remote), Outcome::Dropped(DropReason::NO_NODE_ID));
            world.nodes = Some([(net.remote_node, NodeValue { id: 77, spi: None })].into());
            assert_eq!(outcome(&world, &remote), required);
            let pair = |remote: u32, node| AuthKey {
                local_sec_label: Identity(APP_ID),
                remote_sec_label: Identity(remote),
                remote_node_id: node,
                auth_type: 1,
            };
            let until = |time| AuthInfo { expiration: UTime(time) };
            let of_local = pair(super::OTHER_ID, 0);
            world.auth = Some([(of_local, until(1_001)), (pair(5000, 77), until(1_000))].into());
            let found = way(&world, &local);
            assert_eq!(found.outcome, into(APP));
            let authenticated = found.deciding_policy().and_then(|step| step.authenticated);
            assert_eq!(authenticated.map(|found| found.key), Some(of_local));
            assert_eq!(outcome(&world, &remote), required, "expired");
            world.now = None;
            assert_eq!(outcome(&world, &local), Outcome::Unknown(Unknown::Authentication { auth_type: 1 }));
        }
        // 1.13 has no such map.
        let mut world = with_auth(net, PolicyLayout::HashKey);
        world.auth = Some(BTreeMap::new());
        let unknown = Outcome::Unknown(Unknown::Authentication { auth_type: 1 });
        assert_eq!(outcome(&world, &tcp(net.other, net.app, 80)), unknown);
    });
}

fn fragment(question: Question, fragment: Fragment) -> Question {
    Question { fragment: Some(fragment), ..question }
}

/// 2.6: "tracking is on by default ⇒ false": a later fragment has the ports of the first, by the fragments map; −175
/// without an entry. IPv6 has the map from 1.18 on.
#[test]
fn tracked_fragments() {
    both(|net| {
        let layout = PolicyLayout::CountersApart;
        let mut world = net.world(layout);
        allow(&mut world, layout, APP, &[port(2, Direction::Ingress, Protocol::TCP, 80)]);
        let mut question = tcp(net.client, net.app, 80);
        assert_eq!(outcome(&world, &fragment(question, Fragment::First)), into(APP));
        let later = Fragment::Later { id: 9 };
        (question.tuple.sport, question.tuple.dport) = (0, 0);
        let missing = net.family.pin("cilium_ipv4_frag_datagrams");
        assert_eq!(outcome(&world, &fragment(question, later)), Outcome::Unknown(Unknown::Fact(missing)));
        world.fragments = Some(BTreeMap::new());
        let lost = Outcome::Dropped(DropReason::FRAG_NOT_FOUND);
        assert_eq!(outcome(&world, &fragment(question, later)), lost);
        let (id, proto) = (9, Protocol::TCP.0);
        let key = match (net.client, net.app) {
            (std::net::IpAddr::V4(saddr), std::net::IpAddr::V4(daddr)) => {
                FragmentId::V4 { saddr, daddr, id, proto }
            }
            (std::net::IpAddr::V6(saddr), std::net::IpAddr::V6(daddr)) => {
                FragmentId::V6 { saddr, daddr, id: id.into(), proto }
            }
            _ => panic!("one family"),
        };
        world.fragments = Some([(key, FragmentPorts { sport: 40_000, dport: 80 })].into());
        assert_eq!(outcome(&world, &fragment(question, later)), into(APP));
        assert_eq!(outcome(&world, &fragment(question, Fragment::Later { id: 10 })), lost);
    });
}

/// 1.1 and 2.6: IPv6 fragments up to 1.17.
#[test]
fn ipv6_fragments_do_not_pass_before_1_18() {
    both(|net| {
        for layout in [PolicyLayout::HashKey, PolicyLayout::WildcardBits, PolicyLayout::ProxyPriority] {
            let world = net.world(layout);
            let question = fragment(tcp(net.client, net.app, 80), Fragment::First);
            let expected = match net.family {
                Family::V4 => into(APP),
                Family::V6 => Outcome::Dropped(DropReason::FRAG_NOSUPPORT),
            };
            assert_eq!(outcome(&world, &question), expected);
        }
    });
}

/// 2.6 and FINISH-1: "`frag`: true only for IPv4 fragments when fragment tracking is compiled out. ≤1.17 egress always
/// passes false"; a miss is then −157 instead of −133.
#[test]
fn untracked_fragments() {
    both(|net| {
        if net.family == Family::V6 {
            return;
        }
        for (layout, egress) in [
            (PolicyLayout::WildcardBits, DropReason::POLICY),
            (PolicyLayout::ProxyPriority, DropReason::POLICY),
            (PolicyLayout::CountersApart, DropReason::FRAG_NOSUPPORT),
        ] {
            let mut world = net.world(layout);
            world.config.fragment_tracking = false;
            for (id, direction) in [(APP, Direction::Ingress), (OTHER, Direction::Egress)] {
                allow(&mut world, layout, id, &[port(0, direction, Protocol::TCP, 80)]);
            }
            let inward = fragment(tcp(net.client, net.app, 80), Fragment::First);
            assert_eq!(outcome(&world, &inward), Outcome::Dropped(DropReason::FRAG_NOSUPPORT), "{layout}");
            let outward = fragment(tcp(net.other, net.client, 80), Fragment::First);
            assert_eq!(outcome(&world, &outward), Outcome::Dropped(egress), "{layout}");
            allow(&mut world, layout, APP, &[any(0, Direction::Ingress)]);
            assert_eq!(outcome(&world, &inward), into(APP), "{layout}");
        }
    });
}

/// 2.1: the host's policy map "stays empty/unused unless the host firewall is on".
#[test]
fn the_host_firewall() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        host_endpoint(&mut world);
        allow(&mut world, LAYOUT, HOST, &[port(2, Direction::Ingress, Protocol::TCP, 22)]);
        let node = Outcome::Allowed(Destination::Host);
        let from = |source, dport| tcp(source, net.node, dport);
        assert_eq!(outcome(&world, &from(net.client, 23)), node);
        world.config.host_firewall = true;
        assert_eq!(outcome(&world, &from(net.client, 22)), node);
        assert_eq!(outcome(&world, &from(net.client, 23)), DENIED);
        assert_eq!(outcome(&world, &from(net.other, 22)), DENIED, "a pod of the node");
        assert_eq!(outcome(&world, &tcp(net.node, net.client, 443)), DENIED, "the node's own egress");
        allow(&mut world, LAYOUT, HOST, &[any(0, Direction::Egress)]);
        let out = Outcome::Allowed(Destination::Network(Some("eth0".to_owned())));
        assert_eq!(outcome(&world, &tcp(net.node, net.client, 443)), out);
        world.endpoints.clear();
        let unknown = Outcome::Unknown(Unknown::Fact("rest/endpoint".to_owned()));
        assert_eq!(outcome(&world, &from(net.client, 22)), unknown);
    });
}
