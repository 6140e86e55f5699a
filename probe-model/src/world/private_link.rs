//! What Azure, and who knows of it, say of Private Link: services, consumers, load balancers.
//!
//! Which addresses are NAT IPs, and how sure that is, [`nat_sources`](super::nat::nat_sources) says.

use core::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::tuple::Protocol;

/// Azure's resources, as far as they could be had.
///
/// A list that could not be had is `None` and named in [`super::World::missing`] as `azure/LIST`, with what it costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivateLink {
    /// Who asked ARM: `managed identity …`; `None` if nobody did, which costs all that only it knows.
    pub asked: Option<String>,
    /// Private Link services that could be seen.
    pub services: Option<Vec<PrivateLinkService>>,
    /// Load balancers of the node resource group.
    pub load_balancers: Option<Vec<AzureLoadBalancer>>,
    /// Network security groups of the node resource group.
    pub security_groups: Option<Vec<SecurityGroup>>,
    /// The cluster's place in Azure: `/etc/kubernetes/azure.json` and the instance metadata service.
    pub place: Place,
    /// What the operator said: `--pls-nat-ip` and `--pls-subnet`.
    pub declared: Declared,
    /// Sources from which a PROXY protocol header with Private Link's own field was seen.
    pub observed: Vec<Observed>,
}

impl PrivateLink {
    /// The service with a frontend at this address.
    pub fn service_at(&self, frontend: IpAddr) -> Option<&PrivateLinkService> {
        self.services
            .iter()
            .flatten()
            .find(|service| service.frontends.iter().any(|own| own.address == Some(frontend)))
    }

    /// The service that a Kubernetes Service owns, by Azure's tag.
    pub fn owned_by(&self, namespace: &str, name: &str) -> Option<&PrivateLinkService> {
        let owner = format!("{namespace}/{name}");
        self.services.iter().flatten().find(|service| service.owners().any(|own| own == owner))
    }

    /// The consumer's connection with this link identifier, and its service.
    pub fn connection(&self, link_id: u32) -> Option<(&PrivateLinkService, &EndpointConnection)> {
        self.services.iter().flatten().find_map(|service| {
            let connection = service.connections.iter().find(|own| own.link_id == Some(link_id))?;
            Some((service, connection))
        })
    }
}

/// The id of an Azure resource: `/subscriptions/S/resourceGroups/G/providers/…/NAME`.
///
/// Azure gives the same id in different cases; [`Self::is`] compares as Azure does.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceId(pub String);

impl ResourceId {
    /// Whether both name one resource.
    pub fn is(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// The resource's own name, the last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The segment after this one: `resourceGroups`, `virtualNetworks`, ….
    pub fn segment(&self, kind: &str) -> Option<&str> {
        let mut segments = self.0.split('/');
        segments.find(|segment| segment.eq_ignore_ascii_case(kind))?;
        segments.next()
    }

    /// The resource group.
    pub fn resource_group(&self) -> Option<&str> {
        self.segment("resourceGroups")
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A Private Link service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivateLinkService {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// What consumers connect to, which has a GUID that changes when it is made anew.
    pub alias: Option<String>,
    /// The tag `k8s-azure-owner-service`: `namespace/name`, several separated by commas; without it nobody's.
    pub owner_service: Option<String>,
    /// The tag `k8s-azure-cluster-name`.
    pub cluster: Option<String>,
    /// Whether each connection, and each probe of the load balancer, begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Subscriptions that may see it: `*` for all; empty for those with rights on it alone.
    pub visibility: Vec<String>,
    /// Subscriptions whose connections are approved by themselves.
    pub auto_approval: Vec<String>,
    /// `provisioningState`: `Succeeded`, `Failed`, `Updating`, ….
    pub provisioning_state: String,
    /// Where its NAT IPs are from, as it was configured.
    pub ip_configurations: Vec<NatConfiguration>,
    /// Its network interfaces.
    pub interfaces: Vec<ResourceId>,
    /// The NAT IPs that its network interfaces have; `None` if they could not be read.
    pub nat_ips: Option<Vec<IpAddr>>,
    /// Load balancer frontends that it stands before.
    pub frontends: Vec<FrontendRef>,
    /// Where it sends to without a load balancer (Direct Connect).
    pub destination: Option<IpAddr>,
    /// Consumers' connections.
    pub connections: Vec<EndpointConnection>,
}

impl PrivateLinkService {
    /// The Kubernetes services that the tag names, as `namespace/name`.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.owner_service.iter().flat_map(|tag| tag.split(',')).map(str::trim)
    }
}

/// One of a Private Link service's IP configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatConfiguration {
    /// Name.
    pub name: String,
    /// The address; a dynamic one may only be known to the network interface.
    pub address: Option<IpAddr>,
    /// Whether it was chosen by its owner.
    pub is_static: bool,
    /// Whether it is the first.
    pub is_primary: bool,
    /// The subnet that it is in.
    pub subnet: Option<ResourceId>,
    /// The subnet's prefixes, if they could be read.
    pub prefixes: Vec<IpNet>,
}

/// A load balancer's frontend as another resource refers to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontendRef {
    /// Its id.
    pub id: ResourceId,
    /// Its address, if the load balancer could be read.
    pub address: Option<IpAddr>,
}

/// A consumer's connection: a private endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointConnection {
    /// Name.
    pub name: String,
    /// What the PROXY protocol header calls it (TLV 0xEE, little endian there).
    pub link_id: Option<u32>,
    /// The consumer's private endpoint.
    pub endpoint: Option<ResourceId>,
    /// Its region.
    pub location: Option<String>,
    /// Whether traffic passes.
    pub state: ConnectionState,
    /// What whoever approved or rejected it wrote.
    pub description: String,
}

/// The state of a consumer's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConnectionState {
    /// Traffic passes.
    Approved,
    /// Nobody has approved it yet.
    Pending,
    /// It was refused.
    Rejected,
    /// The Private Link service is gone, or was made anew.
    Disconnected,
    /// Azure did not say.
    #[default]
    Unknown,
    /// A state that plsprobe does not know.
    Other(String),
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Approved => "Approved",
            Self::Pending => "Pending",
            Self::Rejected => "Rejected",
            Self::Disconnected => "Disconnected",
            Self::Unknown => "unknown",
            Self::Other(state) => state,
        })
    }
}

/// An Azure load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureLoadBalancer {
    /// Its id.
    pub id: ResourceId,
    /// Name: `kubernetes-internal` or `kubernetes`.
    pub name: String,
    /// `Standard` or `Basic`.
    pub sku: String,
    /// Frontends.
    pub frontends: Vec<AzureFrontend>,
    /// Rules.
    pub rules: Vec<BalancingRule>,
    /// Probes.
    pub probes: Vec<Probe>,
    /// Backend pools.
    pub pools: Vec<BackendPool>,
}

impl AzureLoadBalancer {
    /// The rules of the frontend with this address.
    pub fn rules_at(&self, frontend: IpAddr) -> impl Iterator<Item = &BalancingRule> {
        let own = self.frontends.iter().find(|own| own.address == Some(frontend));
        self.rules.iter().filter(move |rule| own.is_some_and(|own| own.id.is(&rule.frontend)))
    }

    /// The probe that a rule goes by.
    pub fn probe(&self, rule: &BalancingRule) -> Option<&Probe> {
        let id = rule.probe.as_ref()?;
        self.probes.iter().find(|probe| probe.id.is(id))
    }
}

/// A frontend of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AzureFrontend {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// Its private address; `None` for a public one.
    pub address: Option<IpAddr>,
    /// Whether it is public.
    pub is_public: bool,
}

/// A rule of a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancingRule {
    /// Name.
    pub name: String,
    /// Its frontend.
    pub frontend: ResourceId,
    /// Protocol; [`Protocol::ANY`] for all ports of all.
    pub protocol: Protocol,
    /// The frontend's port, 0 for all.
    pub frontend_port: u16,
    /// The port that nodes are sent to, 0 for all.
    pub backend_port: u16,
    /// Whether nodes see the frontend's address, not their own.
    pub floating_ip: bool,
    /// After how many minutes without a packet a connection is forgotten.
    pub idle_timeout_minutes: u32,
    /// Whether both sides are then sent a RST.
    pub tcp_reset: bool,
    /// `Default` (all of the tuple), `SourceIP` or `SourceIPProtocol`.
    pub distribution: String,
    /// The probe that says which nodes get traffic.
    pub probe: Option<ResourceId>,
    /// The pools it sends to.
    pub pools: Vec<ResourceId>,
}

/// A probe of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// `Tcp`, `Http` or `Https`.
    pub protocol: String,
    /// The nodes' port.
    pub port: u16,
    /// What an HTTP probe asks for.
    pub path: Option<String>,
    /// Seconds between two.
    pub interval_seconds: u32,
    /// After how many failures a node is down.
    pub threshold: u32,
}

/// A pool of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendPool {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// How many nodes it has by network interface, which Private Link needs.
    pub by_interface: usize,
    /// Nodes it has by address, which Private Link does not reach.
    pub by_address: Vec<IpAddr>,
}

/// A network security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// Its own rules, not Azure's default ones, by priority.
    pub rules: Vec<SecurityRule>,
}

/// A rule of a network security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityRule {
    /// Name.
    pub name: String,
    /// Lower ones are asked first.
    pub priority: u32,
    /// Whether it is for packets to nodes.
    pub is_inbound: bool,
    /// Whether it allows.
    pub allows: bool,
    /// `Tcp`, `Udp`, `Icmp` or `*`.
    pub protocol: String,
    /// Prefixes, service tags or `*`.
    pub sources: Vec<String>,
    /// Prefixes, service tags or `*`.
    pub destinations: Vec<String>,
    /// Ports, ranges or `*`.
    pub destination_ports: Vec<String>,
}

/// The cluster's place in Azure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The subscription's id.
    pub subscription: Option<String>,
    /// The node resource group.
    pub resource_group: Option<String>,
    /// Region.
    pub location: Option<String>,
    /// The virtual network's name.
    pub network: Option<String>,
    /// The virtual network's resource group.
    pub network_resource_group: Option<String>,
    /// The nodes' subnet by name.
    pub subnet: Option<String>,
    /// Prefixes of the subnets that this node has an interface in.
    pub node_subnets: Vec<IpNet>,
    /// Prefixes of the whole virtual network, if ARM said them.
    pub network_prefixes: Vec<IpNet>,
    /// Subnets of the virtual network by name, if ARM said them.
    pub subnets: Vec<Subnet>,
    /// `loadBalancerSku` of the cloud provider's configuration.
    pub load_balancer_sku: Option<String>,
}

impl Place {
    /// Takes over what `other` knows and this does not.
    pub fn fill(&mut self, other: Self) {
        let Self { subscription, resource_group, location, network, network_resource_group, subnet, .. } =
            other;
        let or = |own: &mut Option<String>, other: Option<String>| *own = own.take().or(other);
        or(&mut self.subscription, subscription);
        or(&mut self.resource_group, resource_group);
        or(&mut self.location, location);
        or(&mut self.network, network);
        or(&mut self.network_resource_group, network_resource_group);
        or(&mut self.subnet, subnet);
        or(&mut self.load_balancer_sku, other.load_balancer_sku);
        let nets = |own: &mut Vec<IpNet>, other: Vec<IpNet>| {
            if own.is_empty() {
                *own = other;
            }
        };
        nets(&mut self.node_subnets, other.node_subnets);
        nets(&mut self.network_prefixes, other.network_prefixes);
        if self.subnets.is_empty() {
            self.subnets = other.subnets;
        }
    }
}

/// A subnet of the cluster's virtual network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subnet {
    /// Its id.
    pub id: ResourceId,
    /// Name.
    pub name: String,
    /// Its prefixes.
    pub prefixes: Vec<IpNet>,
    /// `privateLinkServiceNetworkPolicies` is `Disabled`, as it must be for a NAT IP to be taken from here.
    pub allows_private_link: Option<bool>,
}

/// What the operator said of NAT IPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Addresses and prefixes that are NAT IPs: `--pls-nat-ip`.
    pub nat_ips: Vec<IpNet>,
    /// Subnets that NAT IPs are in: `--pls-subnet`.
    pub subnets: Vec<IpNet>,
}

/// A source from which a PROXY protocol header with Private Link's own field (TLV 0xEE) was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The packet's source address.
    pub source: IpAddr,
    /// The header's link identifier.
    pub link_id: u32,
}
