//! What a lint is about: a service's frontends, the pods behind them, and whatever is known of the service itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::cilium::EndpointId;
use crate::explain::{Subject, SubjectKind};
use crate::simulate::{Question, Step, Trajectory, simulate};
use crate::tuple::{Protocol, Tuple};
use crate::world::kubernetes::{Pod, Service, TrafficPolicy};
use crate::world::private_link::PrivateLinkService;
use crate::world::{AddressOwner, World};

/// An address outside, of nobody in particular (RFC 5737).
pub(super) const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A service and its pods, as far as this node knows them.
#[derive(Clone, Debug)]
pub struct Scope<'w> {
    /// Everything known.
    pub world: &'w World,
    /// The service, if the Kubernetes API was asked and has it.
    pub service: Option<&'w Service>,
    /// Its Private Link service, if Azure was asked and has one.
    pub private_link: Option<&'w PrivateLinkService>,
    /// Where the load balancer sends Private Link's packets: its own address where it passes that on.
    pub entries: Vec<Entry>,
    /// Pods of this node behind them.
    pub endpoints: BTreeSet<EndpointId>,
    /// What the operator calls it.
    pub name: String,
}

/// An address, port and protocol by which packets of the service enter the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Address and port.
    pub socket: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl Entry {
    /// The question what becomes of a packet from `source`.
    pub fn question(self, source: IpAddr) -> Question {
        let (daddr, dport, protocol) = (self.socket.ip(), self.socket.port(), self.protocol);
        Question::new(Tuple { saddr: source, daddr, sport: 0, dport, protocol })
    }
}

impl<'w> Scope<'w> {
    /// The service with these frontends.
    ///
    /// Of several only those count that outside packets may be for: a load balancer's, as far as it is known which are.
    pub fn of_service(world: &'w World, name: &str, frontends: &[(IpAddr, u16)]) -> Self {
        let outside: Vec<_> =
            frontends.iter().copied().filter(|(ip, _)| is_load_balancer(world, *ip)).collect();
        let frontends = if outside.is_empty() { frontends } else { &outside };
        let service = frontends.iter().find_map(|(ip, _)| service_at(world, *ip));
        let entries = frontends.iter().map(|(ip, port)| {
            let protocol = service
                .and_then(|service| service.ports.iter().find(|own| own.port == *port))
                .map_or(Protocol::TCP, |own| own.protocol);
            Entry { socket: SocketAddr::new(*ip, *port), protocol }
        });
        Self::new(world, name, service, entries.collect())
    }

    /// The services that have this pod as a backend; without one the pod alone, by no entry.
    pub fn of_endpoint(world: &'w World, id: EndpointId) -> Self {
        let addresses = world.endpoints.get(&id).map(|own| own.addresses.as_slice()).unwrap_or_default();
        let frontends = world.frontends().filter(|frontend| {
            let mut backends = frontend.backends.iter().filter_map(|slot| slot.backend);
            backends.any(|backend| addresses.contains(&backend.address))
        });
        let by_maps = frontends.map(|frontend| (frontend.key.address, frontend.key.dport));
        let slices = world.kubernetes.endpoint_slices.iter().flatten().filter(|slice| {
            slice.endpoints.iter().any(|own| own.addresses.iter().any(|address| addresses.contains(address)))
        });
        let by_slices = slices.flat_map(|slice| {
            let service = world.kubernetes.service(&slice.namespace, &slice.service);
            service.into_iter().flat_map(|service| {
                service.ingress.iter().flat_map(|ip| service.ports.iter().map(|port| (*ip, port.port)))
            })
        });
        let frontends: BTreeSet<_> =
            by_maps.chain(by_slices).filter(|(ip, _)| is_load_balancer(world, *ip)).collect();
        let frontends: Vec<_> = frontends.into_iter().collect();
        let mut scope = Self::of_service(world, &world.endpoint_name(id), &frontends);
        scope.endpoints.insert(id);
        scope
    }

    fn new(world: &'w World, name: &str, service: Option<&'w Service>, entries: Vec<Entry>) -> Self {
        let private_link = entries
            .iter()
            .find_map(|entry| world.private_link.service_at(entry.socket.ip()))
            .or_else(|| service.and_then(|own| world.private_link.owned_by(&own.namespace, &own.name)));
        let endpoints = entries.iter().flat_map(|entry| backends(world, *entry)).collect();
        let mut scope = Self { world, service, private_link, entries, endpoints, name: name.to_owned() };
        if scope.keeps_frontend() == Some(false) {
            scope.entries = scope.node_port_entries();
        }
        scope
    }

    /// Whether the load balancer passes its own address on to the nodes (floating IP), as it does by default.
    pub fn keeps_frontend(&self) -> Option<bool> {
        self.service.map(|service| !service.azure_is_true("azure-disable-load-balancer-floating-ip"))
    }

    /// This node's own address and the service's node ports.
    pub fn node_port_entries(&self) -> Vec<Entry> {
        let Some(address) = self.node_address() else { return Vec::new() };
        let ports = self.service.into_iter().flat_map(|service| &service.ports);
        let with_port = ports.filter_map(|own| Some((own.node_port?, own.protocol)));
        with_port.map(|(port, protocol)| Entry { socket: SocketAddr::new(address, port), protocol }).collect()
    }

    /// The node's address on the network.
    pub fn node_address(&self) -> Option<IpAddr> {
        self.world.uplink().and_then(|uplink| self.world.primary_address(uplink)).map(IpAddr::from)
    }

    /// `externalTrafficPolicy`, if the service is known.
    pub fn traffic_policy(&self) -> Option<TrafficPolicy> {
        self.service?.external_traffic_policy
    }

    /// The pods of this node behind the service, as Kubernetes knows them.
    pub fn pods(&self) -> impl Iterator<Item = &'w Pod> {
        let pods = self.world.kubernetes.pods.iter().flatten();
        let addresses: Vec<_> = self.addresses().collect();
        pods.filter(move |pod| pod.addresses.iter().any(|address| addresses.contains(address)))
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.endpoints.iter().filter_map(|id| self.world.endpoints.get(id));
        endpoints.flat_map(|endpoint| endpoint.addresses.iter().copied())
    }

    /// The namespaces of the service and its pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &'w str> {
        let endpoints = self.endpoints.iter().filter_map(|id| self.world.endpoints.get(id));
        let of_pods = endpoints.filter_map(|endpoint| Some(endpoint.pod.as_ref()?.namespace.as_str()));
        of_pods.chain(self.service.map(|service| service.namespace.as_str()))
    }

    /// The service as the object to change; by what the operator calls it if Kubernetes was not asked.
    pub fn subject(&self) -> Subject {
        match self.service {
            Some(service) => Subject::of_service(service),
            None => Subject::named(SubjectKind::Service, &self.name),
        }
    }
}

/// The service with this address: its load balancer's, else one of its cluster's.
fn service_at(world: &World, ip: IpAddr) -> Option<&Service> {
    let known = &world.kubernetes;
    known.service_at(ip).or_else(|| known.services.iter().flatten().find(|own| own.cluster_ips.contains(&ip)))
}

/// Whether the address is a load balancer's, by Kubernetes, the agent, or Cilium's service map.
fn is_load_balancer(world: &World, ip: IpAddr) -> bool {
    world.kubernetes.service_at(ip).is_some()
        || world.service_names.iter().any(|own| own.address == ip && own.kind == "LoadBalancer")
        || world.frontends().any(|own| own.key.address == ip && own.service.kind() == "LoadBalancer")
}

/// The pods of this node that packets to an entry may go to: by Cilium's service map, by Kubernetes, by netfilter's rules.
fn backends(world: &World, entry: Entry) -> BTreeSet<EndpointId> {
    let frontends = world
        .frontends()
        .filter(|own| (own.key.address, own.key.dport) == (entry.socket.ip(), entry.socket.port()));
    let slots: Vec<_> = frontends.flat_map(|own| own.backends).collect();
    let by_map = slots.into_iter().filter_map(|slot| Some(slot.backend?.address));
    let service = service_at(world, entry.socket.ip());
    let by_slices = world.kubernetes.endpoint_slices.iter().flatten().filter(|slice| {
        service.is_some_and(|own| own.namespace == slice.namespace && own.name == slice.service)
    });
    let by_slices =
        by_slices.flat_map(|slice| &slice.endpoints).flat_map(|own| own.addresses.iter().copied());
    let ways = simulate(world, &entry.question(SOMEBODY)).into_iter();
    let rewritten = |way: &Trajectory| way.steps.iter().any(|step| matches!(step, Step::Netfilter { .. }));
    let by_rules = ways.filter(rewritten).map(|way| way.tuple.daddr);
    let owners = by_map.chain(by_slices).chain(by_rules).map(|address| world.owner(address));
    let pods = owners.filter_map(|owner| match owner {
        AddressOwner::Endpoint(id) if !world.is_host_endpoint(id) => Some(id),
        _ => None,
    });
    pods.collect()
}
