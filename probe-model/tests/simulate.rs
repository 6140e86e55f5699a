//! Ways through the node that no recording has: small worlds, one fact each.

use std::net::{IpAddr, Ipv4Addr};

use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{Ipcache, IpcacheKey, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbBackend, LbKey, LbMaps, LbService, LbSourceRange, LoadBalancer};
use probe_model::cilium::lxc::{EndpointInfo, Mac};
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, pin_name};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::{Code, JudgedAs, SourceBy, Verdict, explain, source_history};
use probe_model::netfilter::Ruleset;
use probe_model::simulate::{Question, simulate};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::conntrack::Conntrack;
use probe_model::world::{ConfigSource, Forwarding, Link, NamedPolicyMap, Route, RoutingMode, World};

const APP: EndpointId = EndpointId(2686);
const OTHER: EndpointId = EndpointId(340);
const APP_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 143);
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 124);
const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 4);
const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 7);
const NAT_IP: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 8);

fn key(identity: u32, direction: Direction, protocol: u8, dport: u16) -> PolicyKey {
    let prefixlen = if protocol == 0 { 40 } else { 64 };
    PolicyKey { prefixlen, sec_label: Identity(identity), direction, protocol, dport }
}

fn policy(id: EndpointId, keys: &[PolicyKey]) -> (EndpointId, NamedPolicyMap) {
    let entries = keys.iter().map(|key| (*key, PolicyEntry::for_key(key, PolicyLayout::WildcardBits, false)));
    (
        id,
        NamedPolicyMap {
            name: pin_name(id),
            id: 1,
            map: PolicyMap::new(PolicyLayout::WildcardBits, entries),
        },
    )
}

fn endpoint(id: EndpointId, identity: u32) -> EndpointInfo {
    let mac = Mac([0; 6]);
    let sec_id = Identity(identity);
    EndpointInfo { ifindex: 5, lxc_id: id, mac, node_mac: mac, sec_id, ..EndpointInfo::default() }
}

/// A node with kube-proxy replacement: two open pods, one frontend with the app behind it.
fn world() -> World {
    let host = EndpointInfo { flags: EndpointInfo::HOST, ..endpoint(EndpointId(0), 0) };
    let lxc: [(IpAddr, EndpointInfo); 3] = [
        (APP_IP.into(), endpoint(APP, 63921)),
        (OTHER_IP.into(), endpoint(OTHER, 42305)),
        (NODE_IP.into(), host),
    ];
    let open = [key(0, Direction::Ingress, 0, 0), key(0, Direction::Egress, 0, 0)];
    let mut world = World {
        lxc: Some(lxc.into()),
        policy: [policy(APP, &open), policy(OTHER, &open)].into(),
        ipcache: Some(ipcache(&[("0.0.0.0/0", 2), ("10.224.0.4/32", 1), ("10.0.0.143/32", 63921)])),
        lb: Some(load_balancer(LbService::ROUTABLE | LbService::LOADBALANCER, &[APP_IP], &[])),
        conntrack: Conntrack::from_iter([]),
        ..World::default()
    };
    world.config.node_port = true;
    world
}

fn ipcache(entries: &[(&str, u32)]) -> Ipcache {
    Ipcache::new(entries.iter().map(|(prefix, identity)| {
        let sec_identity = Identity(*identity);
        let info = RemoteEndpointInfo { sec_identity, ..RemoteEndpointInfo::default() };
        (IpcacheKey { prefix: prefix.parse().expect("a prefix"), cluster_id: 0 }, info)
    }))
}

fn load_balancer(flags: u8, backends: &[Ipv4Addr], ranges: &[&str]) -> LoadBalancer {
    let address = FRONTEND.into();
    let at = |backend_slot| LbKey { address, dport: 80, backend_slot, proto: 0, scope: 0 };
    let count = backends.len() as u16;
    let master = LbService { count, rev_nat_index: 2, flags, ..LbService::default() };
    let slots = (1..=count).map(|slot| (at(slot), LbService { backend_id: slot.into(), count: 0, ..master }));
    let services = std::iter::once((at(0), master)).chain(slots).collect();
    let backend = |address: &Ipv4Addr| LbBackend {
        address: (*address).into(),
        port: 8080,
        proto: 0,
        flags: 0,
        cluster_id: 0,
        zone: 0,
    };
    let backends =
        backends.iter().enumerate().map(|(idx, address)| (idx as u32 + 1, backend(address))).collect();
    let range = |prefix: &&str| LbSourceRange { rev_nat_id: 2, prefix: prefix.parse().expect("a prefix") };
    let source_ranges = Some(ranges.iter().map(range).collect());
    LoadBalancer::new(LbMaps { services, backends: Some(backends), source_ranges })
}

fn tcp(saddr: Ipv4Addr, daddr: Ipv4Addr, dport: u16) -> Question {
    Question::new(Tuple {
        saddr: saddr.into(),
        daddr: daddr.into(),
        sport: 40000,
        dport,
        protocol: Protocol::TCP,
    })
}

fn verdict(world: &World, question: &Question) -> Verdict {
    explain(world, question).verdict
}

#[test]
fn source_ranges_are_checked_on_the_nat_ip() {
    let mut world = world();
    let flags = LbService::ROUTABLE | LbService::LOADBALANCER | LbService::SOURCE_RANGE;
    world.lb = Some(load_balancer(flags, &[APP_IP], &["10.221.1.0/24"]));
    let question = tcp(NAT_IP, FRONTEND, 80);
    assert_eq!(verdict(&world, &question), Verdict::Dropped(DropReason::NOT_IN_SRC_RANGE));
    assert_eq!(explain(&world, &question).cause.code, Code::SourceRanges);
    world.lb = Some(load_balancer(flags, &[APP_IP], &["10.224.0.8/32"]));
    assert_eq!(verdict(&world, &question), Verdict::Allowed);
}

#[test]
fn backends_that_fare_differently_are_inconclusive() {
    let mut world = world();
    world.lb = Some(load_balancer(LbService::ROUTABLE, &[APP_IP, OTHER_IP], &[]));
    let question = tcp(NAT_IP, FRONTEND, 80);
    assert_eq!(verdict(&world, &question), Verdict::Allowed);
    assert_eq!(simulate(&world, &question).len(), 2);
    world.policy.extend([policy(OTHER, &[key(1, Direction::Ingress, 0, 0)])]);
    let Verdict::Inconclusive(facts) = verdict(&world, &question) else { panic!("one backend drops") };
    assert_eq!(
        facts,
        ["backend 10.0.0.143:8080 is allowed", "backend 10.0.1.124:8080 is dropped: Policy denied (133)"]
    );
}

#[test]
fn the_rule_names_the_service_port() {
    let mut world = world();
    world.policy.extend([policy(APP, &[key(2, Direction::Ingress, 6, 80)])]);
    let explanation = explain(&world, &tcp(NAT_IP, FRONTEND, 80));
    assert_eq!(explanation.verdict, Verdict::Dropped(DropReason::POLICY));
    assert_eq!(explanation.cause.code, Code::PortNotTargetPort);
}

/// A node's address in the tunnel: the node's own packet, or one from outside that it sends on and marks as world.
#[test]
fn what_another_node_sends_on_is_world() {
    let mut world = world();
    world.config.routing = RoutingMode::Tunnel;
    let router = Ipv4Addr::new(10, 0, 2, 1);
    let sec_identity = Identity::REMOTE_NODE;
    let tunnel_endpoint = Some(Ipv4Addr::new(10, 224, 0, 5).into());
    let info = RemoteEndpointInfo { sec_identity, tunnel_endpoint, ..RemoteEndpointInfo::default() };
    let node = (IpcacheKey { prefix: "10.0.2.1/32".parse().expect("a prefix"), cluster_id: 0 }, info);
    world.ipcache = Some(Ipcache::new([node]));
    let question = tcp(router, APP_IP, 8080);
    assert_eq!(verdict(&world, &question), Verdict::Allowed, "both are");
    world.policy.extend([policy(APP, &[])]);
    assert_eq!(verdict(&world, &question), Verdict::Dropped(DropReason::POLICY), "neither is");
    world.policy.extend([policy(APP, &[key(6, Direction::Ingress, 6, 8080)])]);
    let Verdict::Inconclusive(cases) = verdict(&world, &question) else { panic!("only one is") };
    assert_eq!(
        cases,
        [
            "10.0.2.1's own, judged as remote-node (6), is allowed",
            "what 10.0.2.1's node sends on from outside, judged as world (2), is dropped: Policy denied (133)",
        ]
    );
}

/// A service's packet for another node leaves with this node's address, and is a remote node's there.
#[test]
fn the_source_changes_on_the_way_to_another_node() {
    let mut world = world();
    world.config.forwarding = Some(Forwarding::Snat);
    world.lb = Some(load_balancer(LbService::ROUTABLE, &[Ipv4Addr::new(10, 0, 2, 9)], &[]));
    let address = "10.224.0.4/24".parse().expect("an address");
    world.links = Some(vec![Link { name: "eth0".to_owned(), ifindex: 2, addresses: vec![address] }]);
    let destination = "0.0.0.0/0".parse().expect("a prefix");
    world.routes = vec![Route { destination, via: None, dev: "eth0".to_owned(), src: None, metric: 0 }];
    let history = |routing| {
        let mut world = world.clone();
        world.config.routing = routing;
        let ways = simulate(&world, &tcp(NAT_IP, FRONTEND, 80));
        source_history(&world, &ways[0])
    };
    let hops = history(RoutingMode::Native);
    let [first, second] = hops.as_slice() else { panic!("two hops: {hops:?}") };
    assert_eq!((first.address, &first.by, first.judged), (NAT_IP.into(), &SourceBy::Sender, None));
    assert_eq!(second.address, IpAddr::from(NODE_IP));
    assert_eq!(second.judged, Some(JudgedAs::OtherNode(Identity::REMOTE_NODE)));
    assert_eq!(history(RoutingMode::Tunnel).len(), 1, "no cilium_host here, so its address is not known");
}

/// On the backend's node: what comes from another node's address is what that node sends on for the load balancer.
#[test]
fn another_node_stands_for_the_load_balancers_clients() {
    let mut world = world();
    world.config.routing = RoutingMode::Native;
    world.ipcache = Some(ipcache(&[("0.0.0.0/0", 2), ("10.224.0.5/32", 6)]));
    world.policy.extend([policy(APP, &[])]);
    let question = tcp(Ipv4Addr::new(10, 224, 0, 5), APP_IP, 8080);
    let explanation = explain(&world, &question);
    assert_eq!(explanation.cause.code, Code::RemoteAsNode, "{}", explanation.cause.sentence);
    assert!(explanation.cause.sentence.contains("ipBlock rules never match a node's address"));
    world.lb = Some(load_balancer(LbService::ROUTABLE, &[OTHER_IP], &[]));
    assert_eq!(explain(&world, &question).cause.code, Code::DefaultDeny, "no service leads to the pod");
}

#[test]
fn audit_mode_lets_through_and_says_so() {
    let mut world = world();
    world.policy.extend([policy(APP, &[])]);
    world.config.audit_mode = true;
    let explanation = explain(&world, &tcp(NAT_IP, FRONTEND, 80));
    assert_eq!(explanation.verdict, Verdict::Allowed);
    assert!(explanation.caveats.iter().any(|caveat| caveat.code == Code::AuditMode));
}

#[test]
fn redirected_to_the_proxy_is_inconclusive() {
    let mut world = world();
    let key = key(2, Direction::Ingress, 6, 8080);
    let entry =
        PolicyEntry { proxy_port: 10001, ..PolicyEntry::for_key(&key, PolicyLayout::WildcardBits, false) };
    let map = PolicyMap::new(PolicyLayout::WildcardBits, [(key, entry)]);
    world.policy.insert(APP, NamedPolicyMap { name: pin_name(APP), id: 1, map });
    assert!(matches!(verdict(&world, &tcp(NAT_IP, FRONTEND, 80)), Verdict::Inconclusive(_)));
}

#[test]
fn answers_are_not_judged() {
    let mut world = world();
    world.policy.extend([policy(APP, &[])]);
    let answer = tcp(APP_IP, NAT_IP, 50000);
    assert_eq!(
        verdict(&world, &answer),
        Verdict::Dropped(DropReason::POLICY),
        "a new connection of the pod's"
    );
    let entry = CtTuple::ingress(answer.tuple.reversed());
    world.conntrack.learn(entry, Some(CtEntry::default()));
    let explanation = explain(&world, &answer);
    assert_eq!((explanation.verdict, explanation.cause.code), (Verdict::Allowed, Code::Reply));
}

#[test]
fn fragmentation_needed_is_always_let_in() {
    let mut world = world();
    world.policy.extend([policy(APP, &[])]);
    let tuple = Tuple { protocol: Protocol::ICMP, sport: 0, dport: 0, ..tcp(NAT_IP, APP_IP, 0).tuple };
    let question = |icmp| Question { icmp: Some(icmp), ..Question::new(tuple) };
    assert_eq!(verdict(&world, &question((3, 4))), Verdict::Allowed);
    assert_eq!(verdict(&world, &question((3, 3))), Verdict::Dropped(DropReason::POLICY));
    world.policy.extend([policy(APP, &[key(2, Direction::Ingress, 1, 8)])]);
    assert_eq!(verdict(&world, &question((8, 0))), Verdict::Allowed, "the type is matched as the port");
    world.config.allow_icmp_frag_needed = false;
    assert_eq!(verdict(&world, &question((3, 4))), Verdict::Dropped(DropReason::POLICY));
}

#[test]
fn direction_judges_one_policy_alone() {
    let mut world = world();
    world.policy.extend([policy(OTHER, &[])]);
    let question = tcp(OTHER_IP, APP_IP, 80);
    assert_eq!(verdict(&world, &question), Verdict::Dropped(DropReason::POLICY));
    let only = |direction| Question { direction: Some(direction), ..question };
    assert_eq!(verdict(&world, &only(Direction::Ingress)), Verdict::Allowed);
    assert_eq!(verdict(&world, &only(Direction::Egress)), Verdict::Dropped(DropReason::POLICY));
}

/// The same node without kube-proxy replacement and with these rules in its nat table, pods behind `cilium_host`.
fn kube_proxy(rules: &str) -> World {
    let mut world = world();
    world.config.node_port = false;
    world.lb = Some(LoadBalancer::default());
    world.netfilter = Some(Ruleset::parse(rules).expect("rules"));
    let link = |name: &str, ifindex, address: &str| Link {
        name: name.to_owned(),
        ifindex,
        addresses: vec![address.parse().expect("an address")],
    };
    world.links = Some(vec![link("eth0", 2, "10.224.0.4/16"), link("cilium_host", 4, "10.0.0.81/32")]);
    let route = |destination: &str, dev: &str| Route {
        destination: destination.parse().expect("a prefix"),
        via: None,
        dev: dev.to_owned(),
        src: None,
        metric: 0,
    };
    world.routes = vec![route("0.0.0.0/0", "eth0"), route("10.0.0.0/23", "cilium_host")];
    world
}

const BALANCED: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.224.0.7/32 -p tcp -m tcp --dport 80 -j KUBE-SVC
-A KUBE-SVC ! -s 10.0.0.0/23 -j KUBE-MARK-MASQ
-A KUBE-SVC -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.0.0.143:80
-A KUBE-SVC -p tcp -j DNAT --to-destination 10.0.1.124:80
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
";

#[test]
fn kube_proxy_chooses_at_random_and_masquerades() {
    let ways = simulate(&kube_proxy(BALANCED), &tcp(NAT_IP, FRONTEND, 80));
    let mut ends: Vec<_> =
        ways.iter().map(|way| (way.tuple.saddr.to_string(), way.tuple.daddr.to_string())).collect();
    ends.sort();
    let router = "10.0.0.81".to_owned();
    assert_eq!(ends, [(router.clone(), "10.0.0.143".to_owned()), (router, "10.0.1.124".to_owned())]);
    let identities: Vec<_> =
        ways.iter().filter_map(|way| Some(way.deciding_policy()?.query.identity)).collect();
    assert_eq!(identities, [Identity::WORLD, Identity::WORLD]);
}

/// `skb->mark` keeps a pod's identity through the stack, whatever kube-proxy makes of its address.
#[test]
fn a_masqueraded_pod_keeps_its_identity() {
    let mut world = kube_proxy(&BALANCED.replace("-A KUBE-SVC ! -s 10.0.0.0/23", "-A KUBE-SVC"));
    let identities = |world: &World| -> Vec<_> {
        let ways = simulate(world, &tcp(OTHER_IP, FRONTEND, 80));
        assert!(ways.iter().all(|way| way.tuple.saddr.to_string() == "10.0.0.81"), "{ways:#?}");
        ways.iter().filter_map(|way| Some(way.deciding_policy()?.query.identity)).collect()
    };
    assert_eq!(identities(&world), [Identity(42305), Identity(42305)]);
    world.config.identity_mark = false;
    assert_eq!(identities(&world), [Identity::WORLD, Identity::WORLD]);
}

#[test]
fn a_filter_rule_drops() {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.224.0.8/32 -j DROP\nCOMMIT\n";
    let world = kube_proxy(rules);
    assert_eq!(verdict(&world, &tcp(NAT_IP, APP_IP, 80)), Verdict::Filtered);
    assert_eq!(verdict(&world, &tcp(Ipv4Addr::new(10, 224, 0, 9), APP_IP, 80)), Verdict::Allowed);
}

/// As on AKS: kube-proxy replacement, and the host's stack between uplink and pod.
#[test]
fn the_host_stack_may_drop_what_cilium_translated() {
    let rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.0.0.143/32 -j DROP\nCOMMIT\n";
    let mut world = kube_proxy(rules);
    world.config.node_port = true;
    world.lb = Some(load_balancer(LbService::ROUTABLE, &[APP_IP], &[]));
    let question = tcp(NAT_IP, FRONTEND, 80);
    // Only the pins tell, and the two ways differ.
    assert!(matches!(verdict(&world, &question), Verdict::Inconclusive(_)));
    world.config.source = ConfigSource::Agent;
    world.config.host_legacy_routing = true;
    assert_eq!(verdict(&world, &question), Verdict::Filtered);
    world.config.host_legacy_routing = false;
    assert_eq!(verdict(&world, &question), Verdict::Allowed, "BPF host routing passes netfilter by");
}

#[test]
fn a_rule_that_decides_by_the_unknown_is_inconclusive() {
    let rule = |tests: &str| format!("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {tests} -j DROP\nCOMMIT\n");
    let question = tcp(NAT_IP, APP_IP, 80);
    let world = kube_proxy(&rule("-m set --match-set blocked src"));
    assert!(matches!(verdict(&world, &question), Verdict::Inconclusive(_)));
    // Whatever the set holds, the rule is about another destination.
    let world = kube_proxy(&rule("-d 192.0.2.1/32 -m set --match-set blocked src"));
    assert_eq!(verdict(&world, &question), Verdict::Allowed);
    let world = kube_proxy(&rule("-j NOSUCHCHAIN").replace(" -j DROP", ""));
    assert!(matches!(verdict(&world, &question), Verdict::Inconclusive(_)));
}

#[test]
fn truncated_rules_are_refused() {
    let error = Ruleset::parse(&BALANCED[..BALANCED.len() - 8]).expect_err("no COMMIT");
    assert!(error.to_string().contains("truncated"), "{error}");
    let error = Ruleset::parse("hello\n").expect_err("no rules");
    assert_eq!(error.to_string(), "line 1: expected `*table`, found `hello`");
}

#[test]
fn a_node_port_that_no_source_knows_is_inconclusive() {
    let world = world();
    assert!(matches!(verdict(&world, &tcp(NAT_IP, NODE_IP, 31000)), Verdict::Inconclusive(_)));
    assert_eq!(verdict(&world, &tcp(NAT_IP, NODE_IP, 22)), Verdict::Allowed);
}
