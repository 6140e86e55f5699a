//! 3.3, 8.4 and 8.5: identities, and whose policies a packet meets.

use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::family::Family;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::Ipcache;
use probe_model::cilium::policy::PolicyLayout;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::{Code, Verdict, explain};
use probe_model::simulate::{Destination, IdentityOrigin, Outcome, Question, Step, Unknown};
use probe_model::world::{ConfigSource, World};

use super::{APP, APP_ID, Net, OTHER, OTHER_ID, allow, any, both, ipcache_entry, outcome, tcp, way};

const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;

/// The peer's identity at the last policy check.
#[track_caller]
fn judged(world: &World, question: &Question) -> u32 {
    way(world, question).deciding_policy().expect("a policy check").query.identity.0
}

fn checks(world: &World, question: &Question) -> Vec<(EndpointId, Direction, u32)> {
    way(world, question)
        .policy_steps()
        .map(|step| (step.endpoint, step.query.direction, step.query.identity.0))
        .collect()
}

/// 8.5 (a), (f), and the other pairs of a node: whose policy is asked, with which identity of the peer.
#[test]
fn whose_policies_are_asked() {
    use Direction::{Egress, Ingress};
    both(|net| {
        let world = net.world(LAYOUT);
        let from = |source, destination| checks(&world, &tcp(source, destination, 8080));
        assert_eq!(from(net.client, net.app), [(APP, Ingress, 2)]);
        assert_eq!(from(net.remote_node, net.app), [(APP, Ingress, 6)]);
        assert_eq!(from(net.other, net.app), [(OTHER, Egress, APP_ID), (APP, Ingress, OTHER_ID)]);
        assert_eq!(from(net.other, net.client), [(OTHER, Egress, 2)]);
        assert_eq!(from(net.other, net.remote_node), [(OTHER, Egress, 6)]);
        assert_eq!(from(net.other, net.node), [(OTHER, Egress, 1)]);
        assert_eq!(from(net.node, net.app), [(APP, Ingress, 1)], "host to pod, marked");
        assert_eq!(from(net.node, net.client), []);
        assert_eq!(from(net.client, net.node), []);
        let through_service = checks(&world, &tcp(net.client, net.frontend, 80));
        assert_eq!(through_service, [(APP, Ingress, 2)], "8.5 (b)");
    });
}

/// 3.3, 4: BPF host routing: "result HOST is ignored → identity stays UNKNOWN(0)"; 5: legacy routing: "ignored ⇒ stays
/// WORLD".
#[test]
fn the_nodes_own_address_without_its_mark() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        // A packet from the wire that says it is from an address that only the ipcache takes for the host's.
        let router: std::net::IpAddr = match net.family {
            Family::V4 => "10.0.0.81".parse().expect("an address"),
            Family::V6 => "fd00::81".parse().expect("an address"),
        };
        let everything = ipnet::IpNet::new(net.family.unspecified(), 0).expect("a prefix");
        let entries = [ipcache_entry(router.into(), 1, None), ipcache_entry(everything, 2, None)];
        world.ipcache = Some(Ipcache::new(entries));
        let question = tcp(router, net.app, 8080);
        for (legacy, identity) in [(false, 0), (true, 2)] {
            world.config.host_legacy_routing = legacy;
            let found = way(&world, &question);
            let step = found.steps.iter().find_map(|step| match step {
                Step::Identity { identity, origin, .. } => Some((identity.0, *origin)),
                _ => None,
            });
            assert_eq!(step, Some((identity, IdentityOrigin::HostIgnored(router.into()))));
        }
        // With the host's mark, the ipcache's HOST changes nothing.
        let marked = Question { mark: 0x0C00, ..question };
        assert_eq!(judged(&world, &marked), 1);
        // Where only the pins tell the configuration, a policy for world makes a difference.
        world.config.source = ConfigSource::Pins;
        assert_eq!(outcome(&world, &question), Outcome::Allowed(Destination::Endpoint(APP)));
        allow(&mut world, LAYOUT, APP, &[any(2, Direction::Ingress)]);
        assert_eq!(outcome(&world, &question), Outcome::Unknown(Unknown::Fact("rest/config".to_owned())));
    });
}

/// 8.4: "from mark: HOST→1; PROXY_*/IDENTITY → embedded id; none → world. ipcache result used when reserved".
#[test]
fn a_mark_carries_the_identity() {
    both(|net| {
        let world = net.world(LAYOUT);
        let marked = |mark| Question { mark, ..tcp(net.client, net.app, 8080) };
        for (mark, identity) in [
            (0, 2),
            (0x4000, 2),
            // 8.4: the ipcache is asked again for 1, too, and only its HOST is ignored.
            (0x0C00, 2),
            (300 << 16 | 0x0F00, 300),
            (300 << 16 | 0x0A00, 300),
            (300 << 16 | 0x0B00, 300),
            (300 << 16 | 0x0200, 2),
            (6 << 16 | 0x0F00, 2),
        ] {
            assert_eq!(judged(&world, &marked(mark)), identity, "{mark:#x}");
        }
    });
}

/// 3.3, 2: "id 2 on single-stack; 9 (v4) / 10 (v6) when both families are enabled (≥1.15; before 1.15 always 2)"; 3: "NULL
/// result (map empty): caller uses WORLD (same numbers)".
#[test]
fn the_worlds_identity() {
    both(|net| {
        let split = if net.family == Family::V4 { Identity::WORLD_IPV4 } else { Identity::WORLD_IPV6 };
        let question = tcp(net.client, net.app, 8080);
        let everything = ipnet::IpNet::new(net.family.unspecified(), 0).expect("a prefix");
        for (layout, expected) in [
            (PolicyLayout::HashKey, Some(Identity::WORLD)),
            (PolicyLayout::WildcardBits, None),
            (PolicyLayout::PrefixLength, Some(split)),
            (PolicyLayout::Aggregates, Some(split)),
        ] {
            let mut world = net.world(layout);
            world.ipcache = Some(Ipcache::new([]));
            assert_eq!(judged(&world, &question), 2, "one family");
            (world.config.ipv4, world.config.ipv6) = (true, true);
            match expected {
                Some(identity) => assert_eq!(judged(&world, &question), identity.0, "{layout}"),
                None => assert!(matches!(outcome(&world, &question), Outcome::Unknown(Unknown::Version(_)))),
            }
            // The agent's entry for everything tells, whatever the version.
            world.ipcache = Some(Ipcache::new([ipcache_entry(everything, split.0, None)]));
            assert_eq!(judged(&world, &question), split.0);
        }
    });
}

/// A family that the agent has switched off: no service of it, and what a pod sends or gets of it is dropped.
#[test]
fn a_family_that_is_off() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        (world.config.ipv4, world.config.ipv6) = (net.family != Family::V4, net.family != Family::V6);
        let off = Outcome::Dropped(DropReason::UNKNOWN_L3);
        assert_eq!(outcome(&world, &tcp(net.other, net.client, 443)), off);
        assert_eq!(outcome(&world, &tcp(net.client, net.app, 8080)), off);
        let unknown = Unknown::Frontend { address: net.frontend, port: 80 };
        assert_eq!(outcome(&world, &tcp(net.client, net.frontend, 80)), Outcome::Unknown(unknown));
    });
}

/// What the map of the other family holds is nothing to this one.
#[test]
fn a_missing_service_map_is_named() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        (world.lb, world.lb6) = (None, None);
        let missing = |net: Net| Outcome::Unknown(Unknown::Fact(net.family.pin("cilium_lb4_services_v2")));
        assert_eq!(outcome(&world, &tcp(net.client, net.frontend, 80)), missing(net));
        // A pod's own address is no frontend.
        assert_eq!(
            outcome(&world, &tcp(net.client, net.app, 80)),
            Outcome::Allowed(Destination::Endpoint(APP))
        );
    });
}

/// 2.7 and 2.10 for both families at once: default deny, and the entry that almost matched.
#[test]
fn a_default_deny_is_explained() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        allow(&mut world, LAYOUT, APP, &[any(6, Direction::Ingress)]);
        let explanation = explain(&world, &tcp(net.client, net.frontend, 80));
        assert_eq!(explanation.verdict, Verdict::Dropped(DropReason::POLICY));
        assert_eq!(explanation.cause.code, Code::DefaultDeny);
        let near_miss = explanation.near_miss.expect("an entry for another peer");
        assert_eq!(near_miss.key.sec_label, Identity::REMOTE_NODE);
        let no_rules = explanation.caveats.iter().any(|caveat| caveat.code == Code::NetfilterUnknown);
        assert!(!no_rules, "BPF host routing passes the stack by");
    });
}

/// 2.10: "No policy selects the pod in a direction (enforcement off): allow entry (0, any, any) for that direction — v3: the
/// five aggregates."
#[test]
fn what_nothing_enforces_is_open() {
    both(|net| {
        let question = tcp(net.client, net.app, 8080);
        let code = |world: &World| explain(world, &question).cause.code;
        for layout in PolicyLayout::ALL {
            let mut world = net.world(layout);
            let classes: &[u32] = if layout == PolicyLayout::Aggregates { &[0, 2, 6, 11, 12] } else { &[0] };
            let keys: Vec<_> = classes.iter().map(|class| any(*class, Direction::Ingress)).collect();
            allow(&mut world, layout, APP, &keys);
            assert_eq!(code(&world), Code::Open, "{layout}");
            if layout == PolicyLayout::Aggregates {
                allow(&mut world, layout, APP, &keys[1..]);
                assert_eq!(code(&world), Code::Allowed, "not everybody");
            }
        }
    });
}
