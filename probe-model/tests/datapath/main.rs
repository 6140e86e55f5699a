//! The simulator against the statements of the project's reference of Cilium's datapath, each for IPv4 and for IPv6.
//! Sections are those of the reference's parts 2, 3, 5, 6 and 8.

mod conntrack;
mod delivery;
mod lookup;
mod lookups;
mod missing;
mod policy;
mod service;

use std::net::IpAddr;

use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::family::Family;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{Ipcache, IpcacheKey, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbBackend, LbKey, LbMaps, LbService, LbSourceRange, LoadBalancer};
use probe_model::cilium::lxc::{EndpointInfo, Mac};
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout, PolicyMap};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::simulate::{Outcome, Question, Trajectory, simulate};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::{ConfigSource, Endpoint, Link, NamedPolicyMap, Route, RoutingMode, World};

const APP: EndpointId = EndpointId(2686);
const OTHER: EndpointId = EndpointId(340);
const HOST: EndpointId = EndpointId(7);
const APP_ID: u32 = 63_921;
const OTHER_ID: u32 = 42_305;

/// The addresses of a node of one family.
#[derive(Clone, Copy, Debug)]
struct Net {
    family: Family,
    /// The pod behind the service.
    app: IpAddr,
    /// Another pod on the node.
    other: IpAddr,
    node: IpAddr,
    /// The service's address.
    frontend: IpAddr,
    /// A client outside.
    client: IpAddr,
    remote_pod: IpAddr,
    remote_node: IpAddr,
}

/// Runs a test for both families.
fn both(test: impl Fn(Net)) {
    let parse = |text: &str| text.parse().expect("an address");
    for (family, pods, outside) in [(Family::V4, "10.0.0.", "10.224.0."), (Family::V6, "fd00::", "fd01::")] {
        let pod = |last: &str| parse(&format!("{pods}{last}"));
        let out = |last: &str| parse(&format!("{outside}{last}"));
        test(Net {
            family,
            app: pod("143"),
            other: pod("124"),
            node: out("4"),
            frontend: out("7"),
            client: out("8"),
            remote_pod: pod("99"),
            remote_node: out("5"),
        });
    }
}

impl Net {
    /// A node of Cilium with kube-proxy replacement and BPF host routing, of this family alone; two open pods, and a
    /// LoadBalancer service on port 80 with the app's port 8080 behind it.
    fn world(self, layout: PolicyLayout) -> World {
        let mut world = World::default();
        let config = &mut world.config;
        config.source = ConfigSource::Agent;
        config.node_port = true;
        config.host_legacy_routing = false;
        config.routing = RoutingMode::Native;
        (config.ipv4, config.ipv6) = (self.family == Family::V4, self.family == Family::V6);
        let host = EndpointInfo { flags: EndpointInfo::HOST, ..pod(EndpointId(0), 0) };
        world.lxc = Some(
            [(self.app, pod(APP, APP_ID)), (self.other, pod(OTHER, OTHER_ID)), (self.node, host)].into(),
        );
        let open = [any(0, Direction::Ingress), any(0, Direction::Egress)];
        for id in [APP, OTHER] {
            allow(&mut world, layout, id, &open);
        }
        let ids = [(self.node, 1), (self.app, APP_ID), (self.other, OTHER_ID), (self.remote_node, 6)];
        let mut entries: Vec<_> =
            ids.into_iter().map(|(ip, id)| ipcache_entry(ip.into(), id, None)).collect();
        let everything = ipnet::IpNet::new(self.family.unspecified(), 0).expect("a prefix");
        entries.push(ipcache_entry(everything, 2, None));
        entries.push(ipcache_entry(self.remote_pod.into(), 5000, Some(self.remote_node)));
        world.ipcache = Some(Ipcache::new(entries));
        self.serve(&mut world, &[self.service(80)]);
        let connections = match self.family {
            Family::V4 => &mut world.conntrack,
            Family::V6 => &mut world.conntrack6,
        };
        *connections = [].into_iter().collect();
        let everywhere =
            Route { destination: everything, via: None, dev: "eth0".into(), src: None, metric: 0 };
        world.routes = vec![everywhere];
        let own = ipnet::IpNet::from(self.node);
        world.links = Some(vec![Link { name: "eth0".into(), ifindex: 2, addresses: vec![own] }]);
        world
    }

    /// A LoadBalancer service with the app behind it.
    fn service(self, dport: u16) -> Service {
        Service {
            key: LbKey { address: self.frontend, dport, backend_slot: 0, proto: 0, scope: 0 },
            flags: LbService::LOADBALANCER | LbService::ROUTABLE,
            flags2: 0,
            rev_nat: 2,
            backends: vec![(1, self.app)],
            quarantined: 0,
            first_word: 0,
        }
    }

    /// Puts services, with the backends they name and no source ranges.
    fn serve(self, world: &mut World, services: &[Service]) {
        self.serve_with(world, services, &[], |_| {});
    }

    /// The same with source ranges, and whatever else is to change in the maps.
    fn serve_with(
        self,
        world: &mut World,
        services: &[Service],
        ranges: &[&str],
        change: impl Fn(&mut LbMaps),
    ) {
        let mut maps = LbMaps {
            services: services.iter().flat_map(Service::entries).collect(),
            backends: Some(
                services.iter().flat_map(|service| service.backends.clone()).map(backend).collect(),
            ),
            source_ranges: Some(
                ranges
                    .iter()
                    .map(|prefix| LbSourceRange { rev_nat_id: 2, prefix: prefix.parse().expect("a prefix") })
                    .collect(),
            ),
        };
        change(&mut maps);
        let lb = Some(LoadBalancer::new(maps));
        match self.family {
            Family::V4 => world.lb = lb,
            Family::V6 => world.lb6 = lb,
        }
    }

    /// Adds a conntrack entry.
    fn track(self, world: &mut World, tuple: CtTuple, entry: CtEntry) {
        let connections = match self.family {
            Family::V4 => &mut world.conntrack,
            Family::V6 => &mut world.conntrack6,
        };
        connections.learn(tuple, Some(entry));
    }

    /// The family's ICMP.
    fn icmp(self) -> Protocol {
        match self.family {
            Family::V4 => Protocol::ICMP,
            Family::V6 => Protocol::ICMPV6,
        }
    }

    /// An ICMP packet of this type and code.
    fn icmp_question(self, saddr: IpAddr, daddr: IpAddr, icmp: (u8, u8)) -> Question {
        let tuple = Tuple { saddr, daddr, sport: 0, dport: 0, protocol: self.icmp() };
        Question { icmp: Some(icmp), ..Question::new(tuple) }
    }
}

/// A service to be put into the maps.
#[derive(Clone, Debug)]
struct Service {
    key: LbKey,
    flags: u8,
    flags2: u8,
    rev_nat: u16,
    /// Ids and addresses.
    backends: Vec<(u32, IpAddr)>,
    /// How many of the last backends are in quarantine.
    quarantined: u16,
    /// The union in slot 0.
    first_word: u32,
}

impl Service {
    fn entries(&self) -> Vec<(LbKey, LbService)> {
        let count = self.backends.len() as u16 - self.quarantined;
        let master = LbService {
            backend_id: self.first_word,
            count,
            rev_nat_index: self.rev_nat,
            flags: self.flags,
            flags2: self.flags2,
            qcount: self.quarantined,
        };
        let slot = |(idx, (id, _)): (usize, &(u32, IpAddr))| {
            let key = LbKey { backend_slot: idx as u16 + 1, ..self.key };
            (key, LbService { backend_id: *id, rev_nat_index: self.rev_nat, ..LbService::default() })
        };
        std::iter::once((self.key, master)).chain(self.backends.iter().enumerate().map(slot)).collect()
    }
}

fn backend((id, address): (u32, IpAddr)) -> (u32, LbBackend) {
    (id, LbBackend { address, port: 8080, proto: 0, flags: 0, cluster_id: 0, zone: 0 })
}

fn pod(id: EndpointId, identity: u32) -> EndpointInfo {
    let mac = Mac([0; 6]);
    EndpointInfo {
        ifindex: 5,
        lxc_id: id,
        mac,
        node_mac: mac,
        sec_id: Identity(identity),
        ..EndpointInfo::default()
    }
}

/// The host endpoint, as the agent knows it.
fn host_endpoint(world: &mut World) {
    let endpoint = Endpoint {
        id: HOST,
        identity: Identity::HOST,
        pod: None,
        labels: Vec::new(),
        addresses: Vec::new(),
        interface: None,
        policy: None,
    };
    world.endpoints.insert(HOST, endpoint);
}

fn ipcache_entry(
    prefix: ipnet::IpNet,
    identity: u32,
    tunnel_endpoint: Option<IpAddr>,
) -> (IpcacheKey, RemoteEndpointInfo) {
    let info = RemoteEndpointInfo {
        sec_identity: Identity(identity),
        tunnel_endpoint,
        ..RemoteEndpointInfo::default()
    };
    (IpcacheKey { prefix, cluster_id: 0 }, info)
}

/// A key for an identity, whatever it asks for.
fn any(identity: u32, direction: Direction) -> PolicyKey {
    PolicyKey { prefixlen: 40, sec_label: Identity(identity), direction, protocol: 0, dport: 0 }
}

/// A key for an identity, protocol and port.
fn port(identity: u32, direction: Direction, protocol: Protocol, dport: u16) -> PolicyKey {
    PolicyKey { prefixlen: 64, sec_label: Identity(identity), direction, protocol: protocol.0, dport }
}

/// Gives an endpoint a policy map that allows these keys.
fn allow(world: &mut World, layout: PolicyLayout, id: EndpointId, keys: &[PolicyKey]) {
    let entries = keys.iter().map(|key| (*key, PolicyEntry::for_key(key, layout, false)));
    put_policy(world, layout, id, entries);
}

fn put_policy(
    world: &mut World,
    layout: PolicyLayout,
    id: EndpointId,
    entries: impl IntoIterator<Item = (PolicyKey, PolicyEntry)>,
) {
    let map = PolicyMap::new(layout, entries);
    world.policy.insert(id, NamedPolicyMap { name: layout.pin_name(id), id: 1, map });
}

fn tcp(saddr: IpAddr, daddr: IpAddr, dport: u16) -> Question {
    Question::new(Tuple { saddr, daddr, sport: 40_000, dport, protocol: Protocol::TCP })
}

/// The only way.
#[track_caller]
fn way(world: &World, question: &Question) -> Trajectory {
    let mut ways = simulate(world, question);
    assert_eq!(ways.len(), 1, "{ways:#?}");
    ways.remove(0)
}

/// How the only way ends.
#[track_caller]
fn outcome(world: &World, question: &Question) -> Outcome {
    way(world, question).outcome
}

/// How every way ends, with the address it got to.
fn ends(world: &World, question: &Question) -> Vec<(IpAddr, Outcome)> {
    simulate(world, question).into_iter().map(|way| (way.tuple.daddr, way.outcome)).collect()
}
