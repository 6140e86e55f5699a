//! 5.3 and 5.4: checks at a frontend, and the choice of a backend.

use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::family::Family;
use probe_model::cilium::lb::LbService;
use probe_model::cilium::policy::PolicyLayout;
use probe_model::simulate::{Destination, Outcome, Sender, Step, Trajectory, Unjudged, Unknown, simulate};
use probe_model::world::Forwarding;

use super::{APP, OTHER, both, ends, outcome, tcp, way};

const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;

fn into(id: probe_model::cilium::EndpointId) -> Outcome {
    Outcome::Allowed(Destination::Endpoint(id))
}

fn service_step(way: &Trajectory) -> bool {
    way.steps.iter().any(|step| matches!(step, Step::Service { .. }))
}

/// 5.4: "Allowed iff (entry found) XOR (`SOURCE_RANGE_DENY` flag). Checked only if flags has `SOURCE_RANGE`. The check
/// runs against the packet source IP at this node."
#[test]
fn source_ranges() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let question = tcp(net.client, net.frontend, 80);
        let (inside, outside) = match net.family {
            Family::V4 => ("10.224.0.0/29", "10.224.0.8/30"),
            Family::V6 => ("fd01::/125", "fd01::8/126"),
        };
        let refused = Outcome::Dropped(DropReason::NOT_IN_SRC_RANGE);
        for (flag, deny, ranges, expected) in [
            (true, false, vec![outside], into(APP)),
            (true, false, vec![inside], refused.clone()),
            (true, false, vec![], refused.clone()),
            (true, true, vec![outside], refused.clone()),
            (true, true, vec![inside], into(APP)),
            (true, true, vec![], into(APP)),
            (false, false, vec![inside], into(APP)),
            (false, true, vec![outside], into(APP)),
        ] {
            let mut service = net.service(80);
            service.flags |= if flag { LbService::SOURCE_RANGE } else { 0 };
            service.flags2 |= if deny { LbService::SOURCE_RANGE_DENY } else { 0 };
            net.serve_with(&mut world, &[service], &ranges, |_| {});
            assert_eq!(outcome(&world, &question), expected, "{flag} {deny} {ranges:?}");
        }
        // From inside it is not checked.
        let mut service = net.service(80);
        service.flags |= LbService::SOURCE_RANGE;
        net.serve(&mut world, std::slice::from_ref(&service));
        assert_eq!(outcome(&world, &tcp(net.other, net.frontend, 80)), into(APP));
        // The map that decides is missing.
        net.serve_with(&mut world, &[service], &[], |maps| maps.source_ranges = None);
        let missing = net.family.pin("cilium_lb4_source_range");
        assert_eq!(outcome(&world, &question), Outcome::Unknown(Unknown::Fact(missing)));
        world.config.source_range_check = false;
        assert_eq!(outcome(&world, &question), into(APP));
    });
}

/// 5.4: "ranges apply before ROUTABLE test"; 5.3, 4, as corrected: up to 1.14 −174 after DNAT and −158 before it.
#[test]
fn a_cluster_ip_from_outside() {
    both(|net| {
        let question = tcp(net.client, net.frontend, 80);
        for (layout, late) in [
            (PolicyLayout::HashKey, true),
            (PolicyLayout::WildcardBits, true),
            (PolicyLayout::ProxyPriority, false),
        ] {
            let mut world = net.world(layout);
            let mut cluster_ip = net.service(80);
            cluster_ip.flags = 0;
            net.serve(&mut world, std::slice::from_ref(&cluster_ip));
            let refused = way(&world, &question);
            assert_eq!(refused.outcome, Outcome::Dropped(DropReason::IS_CLUSTER_IP), "{layout}");
            assert_eq!(refused.tuple.daddr == net.app, late, "{layout}: translated");
            assert_eq!(service_step(&refused), late);
            assert_eq!(
                outcome(&world, &tcp(net.other, net.frontend, 80)),
                into(APP),
                "{layout}: from inside"
            );
            cluster_ip.backends.clear();
            net.serve(&mut world, std::slice::from_ref(&cluster_ip));
            let expected = match layout {
                PolicyLayout::HashKey => Outcome::Dropped(DropReason::NO_SERVICE),
                // 1.14 and 1.15 cannot be told apart.
                PolicyLayout::WildcardBits => {
                    Outcome::Unknown(Unknown::Version("whether a ClusterIP is refused first"))
                }
                _ => Outcome::Dropped(DropReason::IS_CLUSTER_IP),
            };
            assert_eq!(outcome(&world, &question), expected, "{layout}");
            cluster_ip.flags |= LbService::SOURCE_RANGE;
            net.serve(&mut world, &[cluster_ip]);
            assert_eq!(
                outcome(&world, &question),
                Outcome::Dropped(DropReason::NOT_IN_SRC_RANGE),
                "{layout}"
            );
        }
    });
}

/// 5.3, 4 and 8: "`count==0` → −158"; "the EXT-scope frontend holds only local backends; a node without one has count 0".
#[test]
fn no_backend() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut service = net.service(80);
        service.flags |= LbService::EXT_LOCAL_SCOPE;
        service.backends.clear();
        net.serve(&mut world, std::slice::from_ref(&service));
        let refused = way(&world, &tcp(net.client, net.frontend, 80));
        assert_eq!(refused.outcome, Outcome::Dropped(DropReason::NO_SERVICE));
        assert_eq!(refused.tuple.daddr, net.frontend, "before DNAT");
        assert!(matches!(refused.steps.last(), Some(Step::Frontend(_))), "{:?}", refused.steps);
        assert_eq!(
            outcome(&world, &tcp(net.other, net.frontend, 80)),
            Outcome::Dropped(DropReason::NO_SERVICE)
        );
        // Those in quarantine are not among slots 1…count: 5.3, 6.
        service.backends = vec![(1, net.app)];
        service.quarantined = 1;
        net.serve(&mut world, &[service]);
        assert_eq!(
            outcome(&world, &tcp(net.client, net.frontend, 80)),
            Outcome::Dropped(DropReason::NO_SERVICE)
        );
    });
}

/// 5.3, 8: "`TWO_SCOPES` means an EXT-scope and an INT-scope frontend exist with different backend sets"; "external
/// traffic never switches to INT scope"; "per-packet LB switches to INT scope when `TWO_SCOPES`".
#[test]
fn two_scopes() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut external = net.service(80);
        external.flags |= LbService::EXT_LOCAL_SCOPE;
        external.flags2 |= LbService::TWO_SCOPES;
        external.backends.clear();
        let mut internal = external.clone();
        internal.key.scope = 1;
        internal.backends = vec![(1, net.app)];
        net.serve(&mut world, &[external.clone(), internal.clone()]);
        assert_eq!(
            outcome(&world, &tcp(net.client, net.frontend, 80)),
            Outcome::Dropped(DropReason::NO_SERVICE)
        );
        assert_eq!(outcome(&world, &tcp(net.other, net.frontend, 80)), into(APP));
        external.flags2 = 0;
        net.serve(&mut world, &[external, internal]);
        assert_eq!(
            outcome(&world, &tcp(net.other, net.frontend, 80)),
            Outcome::Dropped(DropReason::NO_SERVICE)
        );
    });
}

/// 5.3, 5 and 6: "random = slot `(prandom % count)+1`", "maglev", "backend struct missing → −158": a set of ways.
#[test]
fn every_backend_is_a_way() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut service = net.service(80);
        service.backends = vec![(1, net.app), (2, net.other), (3, net.app)];
        for affinity in [0, LbService::AFFINITY] {
            service.flags |= affinity;
            net.serve(&mut world, std::slice::from_ref(&service));
            let ways = ends(&world, &tcp(net.client, net.frontend, 80));
            assert_eq!(ways, [(net.app, into(APP)), (net.other, into(OTHER)), (net.app, into(APP))]);
        }
        net.serve_with(&mut world, std::slice::from_ref(&service), &[], |maps| {
            maps.backends.as_mut().expect("backends").retain(|(id, _)| *id == 1);
        });
        let lost = (net.frontend, Outcome::Dropped(DropReason::NO_SERVICE));
        assert_eq!(
            ends(&world, &tcp(net.client, net.frontend, 80)),
            [(net.app, into(APP)), lost.clone(), lost.clone()]
        );
        // A slot that the services map lacks is backend 0, which is none.
        net.serve_with(&mut world, std::slice::from_ref(&service), &[], |maps| {
            maps.services.retain(|(key, _)| key.backend_slot != 2);
        });
        assert_eq!(ends(&world, &tcp(net.client, net.frontend, 80))[1], lost);
        net.serve_with(&mut world, &[service], &[], |maps| maps.backends = None);
        let missing = net.family.pin("cilium_lb4_backends_v3");
        assert_eq!(
            outcome(&world, &tcp(net.client, net.frontend, 80)),
            Outcome::Unknown(Unknown::Fact(missing))
        );
    });
}

/// 5.3, 5: "`lb4_local` looks for CT SERVICE entry (5-tuple→backend)"; only where the maps say so are there fewer ways.
#[test]
fn conntrack_keeps_the_client_with_its_backend() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut service = net.service(80);
        service.backends = vec![(1, net.app), (2, net.other)];
        net.serve(&mut world, std::slice::from_ref(&service));
        let question = tcp(net.client, net.frontend, 80);
        let mut entry = CtEntry::default();
        entry.head[8] = 2;
        let kept = CtTuple::service(question.tuple);
        net.track(&mut world, kept, entry);
        let found = way(&world, &question);
        assert_eq!((found.tuple.daddr, found.outcome.clone()), (net.other, into(OTHER)));
        assert!(
            found
                .steps
                .iter()
                .any(|step| matches!(step, Step::Service { kept: Some(by), .. } if *by == kept))
        );
        let mut other_port = question;
        other_port.tuple.sport = 40_001;
        assert_eq!(simulate(&world, &other_port).len(), 2, "another connection");
        // A backend on its way out takes no new connection, nor does one that is gone.
        net.serve_with(&mut world, std::slice::from_ref(&service), &[], |maps| {
            maps.backends.as_mut().expect("backends")[1].1.flags = 1;
        });
        assert_eq!(simulate(&world, &question).len(), 2);
        // A closing entry is made anew by a SYN from 1.16 on.
        net.serve(&mut world, &[service]);
        entry.flags = CtEntry::TX_CLOSING;
        net.track(&mut world, kept, entry);
        assert_eq!(simulate(&world, &question).len(), 2);
        world.ct_layouts = vec![probe_model::cilium::ct::CtLayout::PerDirection];
        assert_eq!(simulate(&world, &question).len(), 1);
    });
}

/// 5.3, 7: "Remote: SNAT to node IP or DSR (mode `bpf-lb-mode`) + redirect"; 8.5 (c): "policy on the other node sees source
/// = this node ⇒ identity 6".
#[test]
fn a_backend_on_another_node() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut service = net.service(80);
        service.backends = vec![(1, net.remote_pod)];
        net.serve(&mut world, std::slice::from_ref(&service));
        let question = tcp(net.client, net.frontend, 80);
        for (forwarding, expected) in [
            (Some(Forwarding::Snat), Sender::ThisNode(Some(net.node))),
            (Some(Forwarding::Dsr), Sender::Client),
            (Some(Forwarding::Hybrid), Sender::Client),
            (None, Sender::Unknown),
        ] {
            world.config.forwarding = forwarding;
            let found = way(&world, &question);
            let node = Some(net.remote_node);
            let remote = Unknown::RemotePod { address: net.remote_pod, node };
            assert_eq!(found.outcome, Outcome::Unknown(remote), "not judged here");
            assert_eq!(found.steps.last(), Some(&Step::Forward { node, sender: expected }));
        }
        // Per service, from 1.17 on.
        world.config.forwarding = Some(Forwarding::Snat);
        service.flags2 |= LbService::FWD_MODE_DSR;
        net.serve(&mut world, std::slice::from_ref(&service));
        let node = Some(net.remote_node);
        let step = Step::Forward { node, sender: Sender::Client };
        assert_eq!(way(&world, &question).steps.last(), Some(&step));
        // A host port is on its own node, or nowhere.
        service.flags = LbService::HOSTPORT | LbService::ROUTABLE;
        net.serve(&mut world, &[service]);
        assert_eq!(outcome(&world, &question), Outcome::Dropped(DropReason::INVALID));
        // Without the endpoints map nobody can say that the backend is elsewhere.
        world.lxc = None;
        assert_eq!(outcome(&world, &question), Outcome::Unknown(Unknown::Fact("cilium_lxc".to_owned())));
    });
}

/// 5.3: NodePort frontends are one entry per node address; ExternalIP, HostPort and LoadBalancer are entries like others.
#[test]
fn every_kind_of_frontend_leads_to_the_pod() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        for (kind, address, dport) in [
            (LbService::NODEPORT, net.node, 30_080),
            (LbService::EXTERNAL_IP, net.frontend, 80),
            (LbService::HOSTPORT, net.node, 8081),
            (LbService::LOADBALANCER, net.frontend, 443),
        ] {
            let mut service = net.service(dport);
            service.key.address = address;
            service.flags = kind | LbService::ROUTABLE;
            net.serve(&mut world, &[service]);
            let found = way(&world, &tcp(net.client, address, dport));
            assert_eq!((found.tuple.daddr, found.tuple.dport, found.outcome), (net.app, 8080, into(APP)));
        }
        // A node port that no map knows.
        let unknown = Unknown::Frontend { address: net.node, port: 30_081 };
        assert_eq!(outcome(&world, &tcp(net.client, net.node, 30_081)), Outcome::Unknown(unknown));
    });
}

/// 5.3, 4: "L7 LB flag → redirect to proxy port", which the first word of slot 0 names in network order.
#[test]
fn the_l7_load_balancer() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        let mut service = net.service(80);
        service.flags2 |= LbService::L7_LOADBALANCER;
        service.first_word = u32::from(10_001u16.swap_bytes());
        net.serve(&mut world, std::slice::from_ref(&service));
        let proxy = Outcome::Unknown(Unknown::L7Proxy { port: 10_001 });
        for from in [net.client, net.other] {
            assert_eq!(outcome(&world, &tcp(from, net.frontend, 80)), proxy);
        }
        service.flags2 = LbService::NAT_46X64;
        net.serve(&mut world, &[service]);
        assert_eq!(outcome(&world, &tcp(net.client, net.frontend, 80)), Outcome::Unknown(Unknown::Nat46x64));
    });
}

/// 2.8: "loopback (pod → own service)" is not judged.
#[test]
fn a_pod_reaches_itself_unjudged() {
    both(|net| {
        let mut world = net.world(LAYOUT);
        super::allow(&mut world, LAYOUT, APP, &[]);
        let found = way(&world, &tcp(net.app, net.frontend, 80));
        assert_eq!(found.outcome, into(APP));
        assert!(found.steps.contains(&Step::Unjudged(Unjudged::Loopback)));
        let mut service = net.service(80);
        service.backends.push((2, net.other));
        net.serve(&mut world, &[service]);
        let denied = (net.other, Outcome::Dropped(DropReason::POLICY));
        assert_eq!(ends(&world, &tcp(net.app, net.frontend, 80)), [(net.app, into(APP)), denied]);
    });
}

/// 5.3: "In ≥1.20bp `bpf_lxc` also probes a 0.0.0.0-address wildcard nodeport/hostport key."
#[test]
fn a_pod_reaches_a_node_port_of_any_node() {
    both(|net| {
        let mut service = net.service(30_080);
        service.key.address = net.family.unspecified();
        service.key.proto = 6;
        service.flags = LbService::NODEPORT;
        let out = Outcome::Allowed(Destination::Network(Some("eth0".to_owned())));
        for (layout, expected) in
            [(PolicyLayout::Precedence, out.clone()), (PolicyLayout::Aggregates, into(APP))]
        {
            let mut world = net.world(layout);
            net.serve(&mut world, std::slice::from_ref(&service));
            assert_eq!(outcome(&world, &tcp(net.other, net.remote_node, 30_080)), expected, "{layout}");
            assert_eq!(outcome(&world, &tcp(net.other, net.client, 30_080)), out, "{layout}: no node");
            assert_eq!(
                outcome(&world, &tcp(net.other, net.remote_node, 30_081)),
                out,
                "{layout}: another port"
            );
        }
    });
}
