//! What TARGET and SRC mean on this node: addresses to match, interfaces to look at.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use probe_model::cilium::EndpointId;
use probe_model::explain::AZURE_PROBE;
use probe_model::path::evidence::Entry;
use probe_model::path::probe::{AZURE_PROBE_V6, is_probe_source};
use probe_model::path::{Outcome, Path};
use probe_model::simulate::{Question, simulate};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::World;

use super::{Ask, Setup};
use crate::attach::{Expression, Filter, Interface, PortRange, Role, Target};
use crate::sources::links::{self, Device};
use crate::sources::namespaces;
use crate::target;

/// The interface between the host's stack and Cilium, where pods have no route of their own.
const CILIUM_HOST: &str = "cilium_host";
/// The overlay's interface, by what it speaks.
const CILIUM_VXLAN: &str = "cilium_vxlan";
const CILIUM_GENEVE: &str = "cilium_geneve";
/// Cilium's UDP ports, unless it is told otherwise (`tunnel-port`).
const VXLAN_PORT: u16 = 8472;
const GENEVE_PORT: u16 = 6081;
/// Hook points that a trace takes at most. Of a service with many pods some pods' interfaces are left out.
pub const HOOKS_MAX: usize = 40;

/// Ports that probes come from: of the same address's services, which nodes ask all the time, the ports are left out (DNS,
/// and the wire server's 80 and 32526).
const PROBE_PORTS: [(u16, u16); 2] = [(1024, 32_525), (32_527, u16::MAX)];
/// Where kube-proxy, or Cilium in its stead, answers whether the node is healthy.
const HEALTHZ_PORT: u16 = 10_256;

/// What a flow is to a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It is what was asked about.
    Target,
    /// A health probe of the load balancer's, which is watched beside that.
    Probe,
    /// Another flow: some of its packets are like those of the target's.
    Other,
}

/// What a health probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeRole {
    /// A node port that leads to the target.
    Target,
    /// The node's own word on the target's pods (`healthCheckNodePort`), or on the node (10256).
    Health,
    /// Another port: another service's, or one whose use no source tells.
    Other,
}

/// UDP ports of the tunnels between nodes; 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// VXLAN's.
    pub vxlan_port: u16,
    /// Geneve's.
    pub geneve_port: u16,
}

/// An address and port that leads to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What is traced.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Pods of this node that are traced.
    pub endpoints: Vec<EndpointId>,
    /// Their addresses, or the address that was given.
    pub addresses: Vec<IpAddr>,
    /// The prefix that was given.
    pub prefix: Option<IpNet>,
    /// Addresses that the target had before it was made anew.
    former: Vec<IpAddr>,
    /// Frontends that lead to them.
    pub frontends: Vec<Frontend>,
    /// Where packets must come from; empty is anywhere.
    pub sources: Vec<IpNet>,
    /// Ports and protocols at the target, if only some are wanted.
    pub ports: Vec<PortRange>,
    /// What packets must match besides.
    pub expression: Option<Expression>,
    /// Interfaces to look at: the node's own and those of its pods.
    pub interfaces: Vec<Interface>,
    /// The tunnels that packets between nodes may be in.
    pub tunnels: Tunnels,
    /// Inode numbers of the network namespaces of the traced pods, as far as they were found.
    pub pod_namespaces: BTreeSet<u32>,
    /// What the interfaces of the node are to it, by index.
    pub(super) roles: BTreeMap<u32, Role>,
    /// The node's own addresses.
    host_addresses: Vec<IpAddr>,
    /// The node's addresses with a load balancer's port of the target: nothing should come there.
    beside: Vec<Frontend>,
    /// Ports at which the node says how the target's pods are.
    health_ports: BTreeSet<u16>,
}

#[cfg(test)]
impl Scope {
    /// One address, asked for from these sources and seen at these interfaces.
    pub(crate) fn of_parts(address: &str, sources: &[&str], interfaces: &[(&str, Role)]) -> Self {
        let interface = |(name, role): &(&str, Role)| Interface { name: (*name).to_owned(), role: *role };
        Self {
            addresses: vec![address.parse().expect("an address")],
            sources: sources.iter().map(|net| net.parse().expect("a prefix")).collect(),
            interfaces: interfaces.iter().map(interface).collect(),
            ..Self::default()
        }
    }
}

impl Scope {
    /// Resolves what was asked for.
    ///
    /// # Errors
    ///
    /// For a target or source that is unknown, or when no source knows the uplink.
    pub fn new(world: &World, ask: &Ask, setup: &Setup) -> Result<Self> {
        let mut scope = Self {
            ports: ask.ports.clone(),
            expression: ask.expression.clone(),
            host_addresses: world.host_addresses(),
            ..Self::default()
        };
        if let Ok(prefix) = ask.dst.parse::<IpNet>() {
            scope.add_prefix(world, prefix.trunc())?;
        } else {
            match target::resolve(world, &ask.dst)? {
                target::Target::Endpoint(id) => scope.add_endpoint(world, id)?,
                target::Target::Address(address) => scope.addresses.push(address),
                target::Target::Service(frontends) => scope.add_service(world, &frontends)?,
            }
        }
        scope.add_frontends(world);
        scope.beside = scope.beside_frontends();
        scope.health_ports = scope.find_health_ports(world);
        scope.sources = sources(world, ask)?;
        scope.look_around(world, setup)?;
        Ok(scope)
    }

    /// The node itself, and nothing of it: where an agent waits before it is asked for anything.
    ///
    /// # Errors
    ///
    /// When no source knows the uplink.
    pub(crate) fn of_the_node(world: &World, setup: &Setup) -> Result<Self> {
        let mut scope = Self::default();
        scope.look_around(world, setup)?;
        Ok(scope)
    }

    /// Finds the interfaces to look at.
    fn look_around(&mut self, world: &World, setup: &Setup) -> Result<()> {
        let devices = links::devices().context("failed to list the interfaces")?;
        self.tunnels = tunnels(&devices);
        self.interfaces = of_the_node(uplink(world, setup, &devices)?, &devices);
        let pods = veths(world, &self.endpoints, &devices);
        self.interfaces.extend(pods.into_iter().map(|name| Interface { name, role: Role::Pod }));
        self.find_neighbourhood(&devices)
    }

    fn add_endpoint(&mut self, world: &World, id: EndpointId) -> Result<()> {
        self.endpoints.push(id);
        let known = world.endpoints.get(&id).map(|endpoint| endpoint.addresses.clone()).unwrap_or_default();
        if known.is_empty() {
            bail!("no source knows an address of endpoint {id}; give the pod's address as `--dst`");
        }
        self.addresses.extend(known);
        Ok(())
    }

    /// A prefix is traced whole, with the pods of this node that have an address in it.
    fn add_prefix(&mut self, world: &World, prefix: IpNet) -> Result<()> {
        self.prefix = Some(prefix);
        for (id, endpoint) in &world.endpoints {
            if endpoint.addresses.iter().any(|address| prefix.contains(address)) {
                self.add_endpoint(world, *id)?;
            }
        }
        Ok(())
    }

    /// Whether an address is a traced pod's, or the one or in the prefix that was given.
    pub fn is_target(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.prefix.is_some_and(|prefix| prefix.contains(&address))
    }

    /// A service is traced by its frontends and by the pods of this node behind them.
    fn add_service(&mut self, world: &World, frontends: &[(IpAddr, u16)]) -> Result<()> {
        for (address, port) in frontends {
            self.frontends.push(Frontend { address: *address, port: *port, protocol: Protocol::TCP });
            for behind in leads_to(world, *address, *port, Protocol::TCP) {
                if let Ok(target::Target::Endpoint(id)) = target::resolve(world, &behind.to_string())
                    && !self.endpoints.contains(&id)
                {
                    self.add_endpoint(world, id)?;
                }
            }
        }
        Ok(())
    }

    /// Every frontend of the node that leads to a traced address, by Cilium's services or kube-proxy's rules.
    fn add_frontends(&mut self, world: &World) {
        for frontend in candidates(world) {
            let Frontend { address, port, protocol } = frontend;
            let behind = leads_to(world, address, port, protocol);
            if behind.iter().any(|to| self.is_target(*to)) && !self.frontends.contains(&frontend) {
                self.frontends.push(frontend);
            }
        }
    }

    /// Where a load balancer that keeps its own port and not its address would send.
    fn beside_frontends(&self) -> Vec<Frontend> {
        let outside = self.frontends.iter().filter(|known| !self.host_addresses.contains(&known.address));
        let beside = outside.flat_map(|known| {
            let own = self.host_addresses.iter().filter(|own| own.is_ipv4() == known.address.is_ipv4());
            own.map(|own| Frontend { address: *own, ..*known })
        });
        let beside: BTreeSet<_> = beside.filter(|one| !self.frontends.contains(one)).collect();
        beside.into_iter().collect()
    }

    fn find_health_ports(&self, world: &World) -> BTreeSet<u16> {
        let leads_here =
            |address: &IpAddr| self.frontends.iter().any(|frontend| frontend.address == *address);
        let services = world.kubernetes.services.iter().flatten();
        let ours =
            services.filter(|service| service.ingress.iter().chain(&service.cluster_ips).any(leads_here));
        ours.filter_map(|service| service.health_check_node_port).chain([HEALTHZ_PORT]).collect()
    }

    /// Whether it has something to look at or to look for that `before` did not have.
    pub fn adds_to(&self, before: &Self) -> bool {
        let is_new = |address: &IpAddr| !before.addresses.contains(address);
        self.addresses.iter().any(is_new)
            || self.endpoints.iter().any(|id| !before.endpoints.contains(id))
            || self.frontends.iter().any(|frontend| !before.frontends.contains(frontend))
            || self.interfaces.iter().any(|interface| !before.interfaces.contains(interface))
    }

    /// The same, with flows to addresses that `before` had still covered: they may be under way.
    pub fn in_place_of(mut self, before: &Self) -> Self {
        let former = before.addresses.iter().chain(&before.former).copied();
        self.former = former.filter(|address| !self.addresses.contains(address)).collect();
        self
    }

    /// What is left of it when its pods are no more: its frontends, at the node's own interfaces.
    pub(super) fn without_pods(self, node: Self) -> Self {
        Self {
            endpoints: Vec::new(),
            addresses: Vec::new(),
            former: self.addresses,
            interfaces: node.interfaces,
            roles: node.roles,
            pod_namespaces: BTreeSet::new(),
            ..self
        }
    }

    /// Looks up what hooks that see every namespace need: interfaces by index, the pods' namespaces.
    fn find_neighbourhood(&mut self, devices: &[Device]) -> Result<()> {
        let index = |name: &str| devices.iter().find(|device| device.name == name).map(|found| found.ifindex);
        let indexed = self.interfaces.iter().filter_map(|one| Some((index(&one.name)?, one.role)));
        self.roles = indexed.collect();
        let veths = self.interfaces.iter().filter(|one| one.role == Role::Pod);
        let veths: Vec<&str> = veths.map(|one| one.name.as_str()).collect();
        self.pod_namespaces =
            namespaces::behind(&veths).context("failed to find the pod's network namespace")?;
        Ok(())
    }

    /// What our programs keep: more than [`Self::covers`], since one packet cannot tell its flow.
    pub fn filter(&self) -> Filter {
        let nets = self.addresses.iter().map(|addr| IpNet::from(*addr)).chain(self.prefix);
        let pods = nets.map(|net| Target { net, ports: self.pod_ports() });
        let frontends = self.frontends.iter().chain(&self.beside).map(|known| Target {
            net: known.address.into(),
            ports: vec![PortRange::one(known.port, known.protocol.0)],
        });
        let asked: Vec<Target> = pods.chain(frontends).collect();
        // Who is only reached by IPv4 is not probed by IPv6, and IPv6's functions need not be hooked.
        let has_ipv6 = asked.iter().any(|target| target.net.addr().is_ipv6());
        let by_ipv6 = has_ipv6.then_some(IpAddr::from(AZURE_PROBE_V6));
        let probe_sources = [IpAddr::from(AZURE_PROBE)].into_iter().chain(by_ipv6).map(IpNet::from);
        let probes = probe_sources.clone().map(|net| Target {
            net,
            ports: PROBE_PORTS
                .map(|(first, last)| PortRange { protocol: Protocol::TCP.0, first, last })
                .to_vec(),
        });
        // Packets that were masqueraded on their way come from the node.
        let own = self.host_addresses.iter().map(|own| IpNet::from(*own)).chain(probe_sources);
        let own = own.filter(|_| !self.sources.is_empty());
        Filter {
            targets: asked.into_iter().chain(probes).collect(),
            sources: self.sources.iter().copied().chain(own).collect(),
            expression: self.expression.clone(),
        }
    }

    /// The ports to match at the pods: with frontends in between, theirs need not be the pods', but the protocol is.
    fn pod_ports(&self) -> Vec<PortRange> {
        if self.frontends.is_empty() {
            return self.ports.clone();
        }
        self.ports.iter().map(|range| PortRange::all(range.protocol)).collect()
    }

    /// Every address and prefix at which packets of the traced flows may be seen.
    pub fn watched(&self) -> Vec<IpNet> {
        let frontends = self.frontends.iter().map(|frontend| frontend.address);
        let all = self.addresses.iter().copied().chain(frontends).map(IpNet::from).chain(self.prefix);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What a flow is to this trace.
    pub fn class(&self, path: &Path) -> Class {
        if self.is_probe(path) && !self.asks_for_probes() {
            Class::Probe
        } else if self.covers(path) {
            Class::Target
        } else {
            Class::Other
        }
    }

    /// Whether it is a health probe to this node.
    pub fn is_probe(&self, path: &Path) -> bool {
        let tuple = path.tuple;
        is_probe_source(tuple.saddr)
            && tuple.protocol == Protocol::TCP
            && self.host_addresses.contains(&tuple.daddr)
    }

    /// Whether probes are what was asked about, by `--src`.
    fn asks_for_probes(&self) -> bool {
        self.sources.iter().any(|net| net.contains(&IpAddr::from(AZURE_PROBE)))
    }

    /// What a probe to this port of the node asks.
    pub fn probe_role(&self, port: u16) -> ProbeRole {
        let leads_here =
            |frontend: &Frontend| self.host_addresses.contains(&frontend.address) && frontend.port == port;
        if self.frontends.iter().any(leads_here) {
            ProbeRole::Target
        } else if self.health_ports.contains(&port) {
            ProbeRole::Health
        } else {
            ProbeRole::Other
        }
    }

    /// Whether a flow came to the node's own address with a load balancer's port of the target: what Private Link does on a
    /// public load balancer with floating IP.
    pub fn is_beside(&self, path: &Path) -> bool {
        let Tuple { daddr, dport, protocol, .. } = path.tuple;
        let is_there = self.beside.contains(&Frontend { address: daddr, port: dport, protocol });
        // The node itself may serve that port to others.
        is_there && path.outcome != Outcome::Answered && path.evidence.entry == Some(Entry::Network)
    }

    /// Whether there is anything to tell of a flow: it was asked for, is a health probe, or comes from a traced pod.
    pub fn concerns(&self, path: &Path) -> bool {
        self.is_probe(path) || self.is_from_pod(path) || self.covers(path)
    }

    /// Whether a flow is one that was asked for: towards the target, on its port, from the sources.
    pub fn covers(&self, path: &Path) -> bool {
        let tuples: Vec<Tuple> =
            std::iter::once(path.tuple).chain(path.rewrites.iter().map(|rewrite| rewrite.to)).collect();
        self.covers_tuples(&tuples, self.is_beside(path))
    }

    /// The same of a flow of which the tuples are left, as it came and after each translation, and whether it came
    /// beside ([`Self::is_beside`]).
    pub fn covers_tuples(&self, tuples: &[Tuple], is_beside: bool) -> bool {
        let Some(first) = tuples.first() else { return false };
        let to_target = is_beside || tuples.iter().any(|tuple| self.is_towards(tuple));
        let is_asked_for =
            |tuple: &Tuple| self.ports.iter().any(|range| range.contains(tuple.dport, tuple.protocol.0));
        let on_port = self.ports.is_empty() || tuples.iter().any(is_asked_for);
        to_target
            && on_port
            && (self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&first.saddr)))
    }

    /// Whether a flow that was reported long ago was one that was asked for, by its tuple.
    pub fn covers_tuple(&self, tuple: &Tuple) -> bool {
        let is_from_source =
            self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&tuple.saddr));
        self.is_towards(tuple) && is_from_source && !is_probe_source(tuple.saddr)
    }

    /// Whether a flow comes from a traced pod.
    pub fn is_from_pod(&self, path: &Path) -> bool {
        self.is_at(path.tuple.saddr)
    }

    /// Whether this is the target's address, or was.
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.is_target(address) || self.former.contains(&address)
    }

    fn is_towards(&self, tuple: &Tuple) -> bool {
        let frontend = Frontend { address: tuple.daddr, port: tuple.dport, protocol: tuple.protocol };
        self.is_at(tuple.daddr) || self.frontends.contains(&frontend)
    }
}

/// Addresses that a packet from outside to this frontend can end at.
fn leads_to(world: &World, address: IpAddr, port: u16, protocol: Protocol) -> BTreeSet<IpAddr> {
    // Somebody outside: of IPv6 an address of the documentation's.
    let saddr = if address.is_ipv4() {
        AZURE_PROBE.into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    };
    let tuple = Tuple { saddr, daddr: address, sport: 0, dport: port, protocol };
    let ways = simulate(world, &Question::new(tuple));
    ways.into_iter().map(|way| way.tuple.daddr).filter(|end| *end != address).collect()
}

/// Frontends that any source names; node ports at each of the node's addresses.
fn candidates(world: &World) -> BTreeSet<Frontend> {
    let mut all = BTreeSet::new();
    let mut add = |address: IpAddr, port: u16, protocol: Protocol| {
        if address.is_unspecified() {
            let own = world.host_addresses().into_iter().filter(|own| own.is_ipv4() == address.is_ipv4());
            all.extend(own.map(|address| Frontend { address, port, protocol }));
        } else {
            all.insert(Frontend { address, port, protocol });
        }
    };
    for frontend in world.frontends() {
        // 1.14's keys leave the protocol open, its backends name it.
        let of_backends = frontend.backends.iter().filter_map(|slot| slot.backend.map(|known| known.proto));
        let protocols = of_backends.chain([frontend.key.proto]);
        let protocols: BTreeSet<u8> = protocols.filter(|proto| *proto != 0).collect();
        let protocols = if protocols.is_empty() { BTreeSet::from([Protocol::TCP.0]) } else { protocols };
        for protocol in protocols {
            add(frontend.key.address, frontend.key.dport, Protocol(protocol));
        }
    }
    for service in &world.service_names {
        add(service.address, service.port, Protocol::TCP);
    }
    for (address, port, protocol) in
        world.netfilter.iter().flat_map(probe_model::netfilter::Ruleset::frontends)
    {
        let unspecified = std::net::Ipv4Addr::UNSPECIFIED;
        add(address.unwrap_or(unspecified).into(), port, protocol);
    }
    all
}

fn sources(world: &World, ask: &Ask) -> Result<Vec<IpNet>> {
    let mut nets = Vec::new();
    for source in &ask.src {
        match source.as_str() {
            "any" => return Ok(Vec::new()),
            "pls" => nets.extend(target::nat_nets(world).context("failed to read `--src pls`")?),
            net => match net.parse() {
                Ok(net) => nets.push(net),
                Err(_) => {
                    nets.push(
                        target::resolve_source(world, source).context("failed to read `--src`")?.into(),
                    );
                }
            },
        }
    }
    Ok(nets)
}

/// The interface to the network: the one that was given, else the default route's.
fn uplink<'d>(world: &World, setup: &Setup, devices: &'d [Device]) -> Result<&'d Device> {
    let Some(name) = setup.interface.as_deref().or_else(|| world.uplink()) else {
        bail!("no default route tells the node's uplink; give it by `--interface`");
    };
    devices.iter().find(|device| device.name == name).with_context(|| {
        format!("no interface `{name}` in this network namespace; run plsprobe in the node's own")
    })
}

/// The interfaces that packets of any pod may cross.
fn of_the_node(uplink: &Device, devices: &[Device]) -> Vec<Interface> {
    let role = |device: &Device| match device.name.as_str() {
        _ if device.ifindex == uplink.ifindex => Some(Role::Uplink),
        CILIUM_HOST => Some(Role::CiliumHost),
        CILIUM_VXLAN | CILIUM_GENEVE => Some(Role::Overlay),
        _ => (device.master == Some(uplink.ifindex) && !device.is_guest).then_some(Role::VirtualFunction),
    };
    let interface = |device: &Device| Some(Interface { name: device.name.clone(), role: role(device)? });
    let mut all: Vec<_> = devices.iter().filter_map(interface).collect();
    all.sort_by_key(|interface| interface.role);
    all
}

/// The ports that Cilium's tunnels use, by their interfaces.
fn tunnels(devices: &[Device]) -> Tunnels {
    let port = |name: &str, default| {
        let device = devices.iter().find(|device| device.name == name);
        device.map_or(0, |device| device.udp_port.unwrap_or(default))
    };
    Tunnels { vxlan_port: port(CILIUM_VXLAN, VXLAN_PORT), geneve_port: port(CILIUM_GENEVE, GENEVE_PORT) }
}

/// The host's side of the pods' veths, as far as a source knows them.
fn veths(world: &World, endpoints: &[EndpointId], devices: &[Device]) -> Vec<String> {
    let by_index = |ifindex: u32| devices.iter().find(|device| device.ifindex == ifindex);
    let veth = |id| {
        let known = world.endpoints.get(id)?.interface.as_ref()?;
        known.name.clone().or_else(|| Some(by_index(known.ifindex)?.name.clone()))
    };
    endpoints.iter().filter_map(veth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(ifindex: u32, name: &str) -> Device {
        Device { name: name.to_owned(), ifindex, ..Device::default() }
    }

    #[test]
    fn what_is_below_the_uplink_and_what_is_cilium_s() {
        let devices = [
            device(1, "lo"),
            Device { master: Some(2), ..device(3, "enP1s1") },
            device(2, "eth0"),
            Device { master: Some(2), is_guest: true, ..device(4, "lxc1") },
            Device { master: Some(9), ..device(5, "enP2s1") },
            device(7, "cilium_host"),
            Device { udp_port: Some(8473), ..device(8, "cilium_vxlan") },
        ];
        let found = of_the_node(&devices[2], &devices);
        let found: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.role)).collect();
        let expected = [
            ("eth0", Role::Uplink),
            ("cilium_host", Role::CiliumHost),
            ("enP1s1", Role::VirtualFunction),
            ("cilium_vxlan", Role::Overlay),
        ];
        assert_eq!(found, expected);
        assert_eq!(tunnels(&devices), Tunnels { vxlan_port: 8473, geneve_port: 0 });
        let unsaid = [device(8, "cilium_vxlan"), device(9, "cilium_geneve")];
        assert_eq!(tunnels(&unsaid), Tunnels { vxlan_port: VXLAN_PORT, geneve_port: GENEVE_PORT });
        assert_eq!(tunnels(&devices[..3]), Tunnels::default());
    }

    #[test]
    fn a_target_that_was_made_anew() {
        let at = |address: &str, interface: &str| Scope::of_parts(address, &[], &[(interface, Role::Pod)]);
        let (before, now) = (at("10.0.0.143", "lxc1"), at("10.0.0.150", "lxc2"));
        assert!(now.adds_to(&before) && at("10.0.0.143", "lxc2").adds_to(&before));
        assert!(!before.adds_to(&before) && !Scope::default().adds_to(&before), "less is nothing new");
        let now = now.in_place_of(&before);
        assert!(now.is_at("10.0.0.143".parse().unwrap()) && now.is_at("10.0.0.150".parse().unwrap()));
        let again = before.clone().in_place_of(&now);
        assert_eq!(again.former, now.addresses, "and back again");
    }
}
