//! A fact that is missing may make an answer inconclusive, never another one.

use std::collections::BTreeMap;

use probe_model::cilium::Direction;
use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::family::Family;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::lb::LbService;
use probe_model::cilium::node::NodeValue;
use probe_model::cilium::policy::{PolicyEntry, PolicyLayout};
use probe_model::cilium::runtime_config::UTime;
use probe_model::explain::{Verdict, explain};
use probe_model::simulate::{Fragment, Question};
use probe_model::tuple::Protocol;
use probe_model::world::{ConfigSource, Forwarding, World};

use super::{APP, APP_ID, HOST, Net, allow, any, both, host_endpoint, port, put_policy, tcp};

/// Takes one fact away.
type Loss = fn(&mut World);

/// Every fact of a world but conntrack: without it a packet is judged as the first of its connection, and a caveat says so.
const LOSSES: [(&str, Loss); 12] = [
    ("endpoints", |world| world.lxc = None),
    ("ipcache", |world| world.ipcache = None),
    ("services", |world| (world.lb, world.lb6) = (None, None)),
    ("the app's policy", |world| drop(world.policy.remove(&APP))),
    ("the other pod's policy", |world| drop(world.policy.remove(&super::OTHER))),
    ("every policy", |world| world.policy.clear()),
    ("authentications", |world| world.auth = None),
    ("nodes", |world| world.nodes = None),
    ("the time", |world| world.now = None),
    ("fragments", |world| world.fragments = None),
    ("routes", |world| world.routes.clear()),
    ("the agent's configuration", |world| {
        let pins = &mut world.config;
        (pins.source, pins.ipv4, pins.ipv6) = (ConfigSource::Pins, true, false);
        (pins.forwarding, pins.tunnel_port) = (None, None);
        pins.host_legacy_routing = true;
    }),
];

/// Worlds in which one thing or another decides.
pub(super) fn worlds(net: Net, layout: PolicyLayout) -> Vec<(&'static str, World)> {
    let mut all = vec![("open", net.world(layout))];
    let mut add = |name, change: &dyn Fn(&mut World)| {
        let mut world = net.world(layout);
        world.config.forwarding = Some(Forwarding::Snat);
        change(&mut world);
        all.push((name, world));
    };
    let service = |change: &dyn Fn(&mut super::Service)| {
        let mut service = net.service(80);
        service.key.proto = if layout >= PolicyLayout::ProxyPriority { 6 } else { 0 };
        change(&mut service);
        service
    };
    add("denied", &|world| allow(world, layout, APP, &[]));
    add("a port", &|world| allow(world, layout, APP, &[port(2, Direction::Ingress, Protocol::TCP, 8080)]));
    add("no egress", &|world| allow(world, layout, super::OTHER, &[any(0, Direction::Ingress)]));
    add("no backend", &|world| net.serve(world, &[service(&|service| service.backends.clear())]));
    add("a cluster IP", &|world| net.serve(world, &[service(&|service| service.flags = 0)]));
    add("a source range", &|world| {
        net.serve(world, &[service(&|service| service.flags |= LbService::SOURCE_RANGE)]);
    });
    add("a remote backend", &|world| {
        net.serve(world, &[service(&|service| service.backends = vec![(1, net.remote_pod)])]);
    });
    add("a node port of any node", &|world| {
        let of_any = service(&|service| {
            service.key.address = net.family.unspecified();
            service.key.dport = 30_080;
        });
        net.serve(world, &[of_any]);
    });
    add("another port", &|world| {
        let mut whole = net.service(0);
        whole.backends.clear();
        net.serve(world, &[service(&|_| {}), whole]);
    });
    add("a host firewall", &|world| {
        world.config.host_firewall = true;
        host_endpoint(world);
        allow(world, layout, HOST, &[]);
    });
    add("authentication", &|world| {
        let key = any(0, Direction::Ingress);
        let entry = PolicyEntry { auth_type: 1, ..PolicyEntry::for_key(&key, layout, false) };
        put_policy(world, layout, APP, [(key, entry)]);
        let pair = AuthKey {
            local_sec_label: Identity(APP_ID),
            remote_sec_label: Identity(2),
            remote_node_id: 0,
            auth_type: 1,
        };
        world.auth = Some([(pair, AuthInfo { expiration: UTime(10) })].into());
        world.nodes = Some([(net.remote_node, NodeValue { id: 1, spi: None })].into());
        world.now = Some(UTime(9));
    });
    add("an answer", &|world| {
        allow(world, layout, APP, &[]);
        let request = tcp(net.app, net.client, 443).tuple;
        net.track(world, CtTuple::egress(request), CtEntry::default());
    });
    add("lost fragments", &|world| world.fragments = Some(BTreeMap::new()));
    all
}

pub(super) fn questions(net: Net) -> Vec<Question> {
    let mut all = Vec::new();
    for from in [net.client, net.other, net.node, net.remote_pod, net.remote_node] {
        let to = [
            (net.app, 8080),
            (net.frontend, 80),
            (net.frontend, 81),
            (net.node, 22),
            (net.remote_node, 30_080),
            (net.remote_pod, 80),
        ];
        all.extend(to.into_iter().filter(|(to, _)| *to != from).map(|(to, port)| tcp(from, to, port)));
    }
    all.push(Question { tuple: tcp(net.app, net.client, 443).tuple.reversed(), ..all[0] });
    let later = Fragment::Later { id: 1 };
    all.push(Question { fragment: Some(later), ..tcp(net.client, net.app, 0) });
    let echo = if net.family == Family::V4 { 8 } else { 128 };
    all.push(net.icmp_question(net.client, net.app, (echo, 0)));
    all
}

#[test]
fn a_missing_fact_never_turns_a_verdict() {
    let (mut judged, mut kept) = (0, 0);
    let mut wrong = Vec::new();
    let counts = std::cell::RefCell::new((&mut judged, &mut kept, &mut wrong));
    both(|net| {
        for layout in PolicyLayout::ALL {
            for (name, world) in worlds(net, layout) {
                for question in questions(net) {
                    let whole = explain(&world, &question).verdict;
                    if matches!(whole, Verdict::Inconclusive(_)) {
                        continue;
                    }
                    for (lost, lose) in LOSSES {
                        let mut less = world.clone();
                        lose(&mut less);
                        let said = explain(&less, &question).verdict;
                        let mut counts = counts.borrow_mut();
                        *counts.0 += 1;
                        if said == whole {
                            *counts.1 += 1;
                        } else if !matches!(said, Verdict::Inconclusive(_)) {
                            let tuple = question.tuple;
                            counts.2.push(format!(
                                "{name}, {layout}, {tuple} without {lost}: {whole:?}, {said:?}"
                            ));
                        }
                    }
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{} of {judged}:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    assert!(kept > judged / 3 && kept < judged, "{kept} of {judged} kept their verdict");
}
