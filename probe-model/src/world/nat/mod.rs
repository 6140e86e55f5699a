//! Which addresses are NAT IPs of Private Link, who says so, and how sure that is.

use core::fmt;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::kubernetes::Service;
use super::private_link::PrivateLinkService;
use super::{AddressOwner, World};
use crate::path::probe::is_probe_source;

/// A Private Link service has so many NAT IPs at most. Source: Azure's limits, "Private Link".
const MOST_NAT_IPS: usize = 8;
/// From so many ports on a source is many clients behind one address, not one client.
const MANY_PORTS: usize = 32;

/// How sure it is that an address is a NAT IP; the surest is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// It looks like one: its ports are those of many clients.
    Suspected,
    /// A PROXY protocol header with Private Link's own field came from it.
    Observed,
    /// NAT IPs are taken from this prefix; not every address in it is one.
    Range,
    /// A Service's annotation or the operator says so.
    Declared,
    /// Azure says so.
    Confirmed,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Suspected => "suspected",
            Self::Observed => "observed",
            Self::Range => "range",
            Self::Declared => "declared",
            Self::Confirmed => "confirmed",
        })
    }
}

/// Who says that an address is a NAT IP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatOrigin {
    /// ARM: the Private Link service's network interface.
    Interface {
        /// The Private Link service.
        private_link: String,
    },
    /// ARM: the Private Link service's configuration.
    Configuration {
        /// The Private Link service.
        private_link: String,
    },
    /// The Service's annotation `azure-pls-ip-configuration-ip-address`.
    Annotation {
        /// The Service.
        service: String,
    },
    /// `--pls-nat-ip`.
    NatIpFlag,
    /// `--pls-subnet`.
    SubnetFlag,
    /// The subnet that the Private Link service's configuration names.
    ConfiguredSubnet {
        /// The Private Link service.
        private_link: String,
        /// The subnet.
        subnet: String,
    },
    /// The subnet that the Service's annotations, or the nodes' own where they name none, choose.
    ServiceSubnet {
        /// The Service.
        service: String,
        /// The subnet.
        subnet: String,
    },
    /// A PROXY protocol header with Private Link's own field.
    ProxyHeader,
    /// Conntrack: many ports of few sources towards the Service's load balancer.
    Conntrack {
        /// The Service.
        service: String,
        /// How many ports of the source were seen.
        ports: usize,
    },
}

impl NatOrigin {
    /// How sure it makes.
    pub fn confidence(&self) -> Confidence {
        match self {
            Self::Interface { .. } | Self::Configuration { .. } => Confidence::Confirmed,
            Self::Annotation { .. } | Self::NatIpFlag => Confidence::Declared,
            Self::SubnetFlag | Self::ConfiguredSubnet { .. } | Self::ServiceSubnet { .. } => {
                Confidence::Range
            }
            Self::ProxyHeader => Confidence::Observed,
            Self::Conntrack { .. } => Confidence::Suspected,
        }
    }
}

impl fmt::Display for NatOrigin {
    /// `the network interface of private link service pls-app`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface { private_link } => {
                write!(f, "the network interface of Private Link service {private_link}")
            }
            Self::Configuration { private_link } => {
                write!(f, "the configuration of Private Link service {private_link}")
            }
            Self::Annotation { service } => {
                write!(f, "annotation azure-pls-ip-configuration-ip-address of Service {service}")
            }
            Self::NatIpFlag => f.write_str("--pls-nat-ip"),
            Self::SubnetFlag => f.write_str("--pls-subnet"),
            Self::ConfiguredSubnet { private_link, subnet } => {
                write!(f, "subnet {subnet} of Private Link service {private_link}")
            }
            Self::ServiceSubnet { service, subnet } => {
                write!(f, "subnet {subnet}, from which Service {service} takes its NAT IPs")
            }
            Self::ProxyHeader => f.write_str("a PROXY protocol header of Private Link that came from it"),
            Self::Conntrack { service, ports } => {
                write!(f, "{ports} ports of it in conntrack towards Service {service}")
            }
        }
    }
}

/// An address, or a prefix, of NAT IPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSource {
    /// The address as a prefix of its whole length; or the prefix that NAT IPs are in.
    pub prefix: IpNet,
    /// Who says so.
    pub origin: NatOrigin,
}

impl NatSource {
    /// How sure it is.
    pub fn confidence(&self) -> Confidence {
        self.origin.confidence()
    }
}

/// Two sources that do not agree. Neither is believed more than the other: the answer says both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// What about, such as `NAT IPs of default/pls-app`.
    pub about: String,
    /// What each says: who, and what.
    pub claims: [Claim; 2],
    /// What follows, or what to look at.
    pub advice: String,
}

/// What one source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub who: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Disagreement {
    /// `NAT IPs of default/pls-app: ARM says 10.224.0.8, the annotation says 10.224.0.9; ADVICE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, other] = &self.claims;
        write!(f, "{}: {} says {}, {} says {}", self.about, one.who, one.what, other.who, other.what)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}

/// Everything known of NAT IPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatSources {
    /// Who says what, the surest first.
    pub sources: Vec<NatSource>,
    /// Where they contradict each other.
    pub disagreements: Vec<Disagreement>,
}

impl NatSources {
    /// The surest that is known of this address; `None` if nobody says that it is a NAT IP.
    pub fn of(&self, address: IpAddr) -> Option<&NatSource> {
        self.sources.iter().find(|source| source.prefix.contains(&address))
    }

    /// The surest that says of this very address, or of all of a prefix with it, that it is a NAT IP: not that it may be
    /// one because its subnet has some.
    pub fn names(&self, address: IpAddr) -> Option<&NatSource> {
        let is_sure = |source: &&NatSource| {
            source.prefix.contains(&address)
                && !matches!(source.confidence(), Confidence::Range | Confidence::Suspected)
        };
        self.sources.iter().find(is_sure)
    }

    /// Addresses known one by one, each once, the surest first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut seen = BTreeSet::new();
        let single =
            self.sources.iter().filter(|source| source.prefix.prefix_len() == source.prefix.max_prefix_len());
        single.map(|source| source.prefix.addr()).filter(|address| seen.insert(*address)).collect()
    }

    /// The surest that is known of any.
    pub fn best(&self) -> Option<Confidence> {
        self.sources.first().map(NatSource::confidence)
    }
}

/// What every source says of NAT IPs, the surest first, and where they contradict each other.
///
/// Order: ARM's network interfaces and configurations, annotations and the operator's flags, subnets, PROXY protocol
/// headers, conntrack.
pub fn nat_sources(world: &World) -> NatSources {
    let mut sources = Vec::new();
    let mut add = |prefix: IpNet, origin: NatOrigin| {
        let source = NatSource { prefix, origin };
        if !sources.contains(&source) {
            sources.push(source);
        }
    };
    let azure = &world.private_link;
    for service in azure.services.iter().flatten() {
        from_arm(service, &mut add);
    }
    let wanting =
        || world.kubernetes.services.iter().flatten().filter(|service| service.wants_private_link());
    for service in wanting() {
        for address in declared_addresses(service) {
            add(address.into(), NatOrigin::Annotation { service: service.to_string() });
        }
        for (prefix, subnet) in service_subnet(world, service) {
            add(prefix, NatOrigin::ServiceSubnet { service: service.to_string(), subnet });
        }
        for (address, ports) in suspects(world, service) {
            add(address.into(), NatOrigin::Conntrack { service: service.to_string(), ports });
        }
    }
    for prefix in &azure.declared.nat_ips {
        add(*prefix, NatOrigin::NatIpFlag);
    }
    for prefix in &azure.declared.subnets {
        add(*prefix, NatOrigin::SubnetFlag);
    }
    for observed in &azure.observed {
        add(observed.source.into(), NatOrigin::ProxyHeader);
    }
    // By confidence alone: within one the order is that of the sources.
    sources.sort_by_key(|source| core::cmp::Reverse(source.confidence()));
    let disagreements = disagreements(world, &sources);
    NatSources { sources, disagreements }
}

fn from_arm(service: &PrivateLinkService, add: &mut impl FnMut(IpNet, NatOrigin)) {
    let private_link = || service.name.clone();
    for address in service.nat_ips.iter().flatten() {
        add((*address).into(), NatOrigin::Interface { private_link: private_link() });
    }
    for own in &service.ip_configurations {
        if let Some(address) = own.address {
            add(address.into(), NatOrigin::Configuration { private_link: private_link() });
        }
        let subnet = own.subnet.as_ref().map(|subnet| subnet.name().to_owned()).unwrap_or_default();
        for prefix in &own.prefixes {
            let origin = NatOrigin::ConfiguredSubnet { private_link: private_link(), subnet: subnet.clone() };
            add(*prefix, origin);
        }
    }
}

/// The static addresses that a Service asks for; what is no address is left to `lint`.
pub fn declared_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let value = service.azure("azure-pls-ip-configuration-ip-address").unwrap_or_default();
    value.split_whitespace().filter_map(|word| word.parse().ok())
}

/// The subnet that a Service's NAT IPs are taken from, by the cloud provider's rules: prefixes, each with the subnet's name.
/// Where the Service names none it is the nodes' own, whose prefix this node's interface has, too.
fn service_subnet(world: &World, service: &Service) -> Vec<(IpNet, String)> {
    let place = &world.private_link.place;
    let named = ["azure-pls-ip-configuration-subnet", "azure-load-balancer-internal-subnet"]
        .into_iter()
        .find_map(|annotation| service.azure(annotation));
    let is = |one: &str, other: Option<&str>| other.is_some_and(|other| one.eq_ignore_ascii_case(other));
    let own =
        || if place.node_subnets.is_empty() { uplink_subnets(world) } else { place.node_subnets.clone() };
    let name = named.or(place.subnet.as_deref());
    let known = name.and_then(|name| place.subnets.iter().find(|subnet| is(name, Some(&subnet.name))));
    let prefixes = match (known, named) {
        (Some(subnet), _) => subnet.prefixes.clone(),
        (None, None) => own(),
        // The instance metadata service and interfaces give prefixes without names.
        (None, Some(name)) if is(name, place.subnet.as_deref()) => own(),
        (None, Some(_)) => Vec::new(),
    };
    prefixes.into_iter().map(|prefix| (prefix, name.unwrap_or("of the nodes").to_owned())).collect()
}

/// The IPv4 subnets of the interface to the network.
fn uplink_subnets(world: &World) -> Vec<IpNet> {
    let uplink = world.uplink().and_then(|name| world.links.iter().flatten().find(|link| link.name == name));
    let nets = uplink.into_iter().flat_map(|link| &link.addresses).map(IpNet::trunc);
    let mut nets: Vec<_> =
        nets.filter(|net| net.addr().is_ipv4() && net.prefix_len() < net.max_prefix_len()).collect();
    nets.dedup();
    nets
}

/// Clients of services in Cilium's conntrack: how many ports of each, by the service's and the client's address. IPv4 alone,
/// as NAT IPs are.
pub type ServiceClients = BTreeMap<(IpAddr, IpAddr), usize>;

impl World {
    /// The clients of services, if conntrack is known whole, or was when it was read before.
    pub fn service_clients(&self) -> Option<Cow<'_, ServiceClients>> {
        let Some(entries) = self.conntrack.whole() else {
            return self.earlier_clients.as_ref().map(Cow::Borrowed);
        };
        let mut ports: BTreeMap<_, BTreeSet<u16>> = BTreeMap::new();
        for connection in entries.filter(|(tuple, _)| tuple.is_service()).map(|(tuple, _)| tuple.connection())
        {
            ports.entry((connection.daddr, connection.saddr)).or_default().insert(connection.sport);
        }
        Some(Cow::Owned(ports.into_iter().map(|(ends, ports)| (ends, ports.len())).collect()))
    }
}

/// Sources in Cilium's conntrack that look like NAT IPs of a Service: few, none of them a node or a pod, each with the
/// ports of many clients.
fn suspects(world: &World, service: &Service) -> Vec<(IpAddr, usize)> {
    let mut ports: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let clients = world.service_clients().unwrap_or_default();
    for ((address, client), count) in clients.iter() {
        if service.ingress.contains(address) && may_be_nat_ip(world, *client) {
            *ports.entry(*client).or_default() += count;
        }
    }
    let many: Vec<_> = ports.into_iter().filter(|(_, ports)| *ports >= MANY_PORTS).collect();
    if many.len() > MOST_NAT_IPS { Vec::new() } else { many }
}

fn may_be_nat_ip(world: &World, address: IpAddr) -> bool {
    let network = &world.private_link.place.network_prefixes;
    address.is_ipv4()
        && !is_probe_source(address)
        && world.owner(address) == AddressOwner::Elsewhere
        && world.kubernetes.pod_at(address).is_none()
        && world.kubernetes.node_at(address).is_none()
        && (network.is_empty() || network.iter().any(|prefix| prefix.contains(&address)))
}

fn disagreements(world: &World, sources: &[NatSource]) -> Vec<Disagreement> {
    let azure = &world.private_link;
    let mut all = Vec::new();
    for service in azure.services.iter().flatten() {
        all.extend(interface_against_configuration(service));
    }
    for service in world.kubernetes.services.iter().flatten().filter(|service| service.wants_private_link()) {
        all.extend(annotation_against_azure(world, service));
        all.extend(owner_against_frontend(world, service));
    }
    all.extend(flag_against_azure(world));
    all.extend(address_against_subnet(sources));
    all.extend(observed_against_azure(world));
    all
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&item.to_string());
    }
    if text.is_empty() { "none".to_owned() } else { text }
}

fn claim(who: impl Into<String>, what: impl Into<String>) -> Claim {
    Claim { who: who.into(), what: what.into() }
}

/// The addresses that ARM gives a Private Link service: of its network interfaces, else of its configuration. The second
/// says whether that is all of them.
fn known_nat_ips(service: &PrivateLinkService) -> (Vec<IpAddr>, bool) {
    if let Some(addresses) = &service.nat_ips {
        return (addresses.clone(), true);
    }
    let own = || service.ip_configurations.iter().map(|own| own.address);
    (own().flatten().collect(), own().all(|address| address.is_some()) && own().next().is_some())
}

fn interface_against_configuration(service: &PrivateLinkService) -> Option<Disagreement> {
    let on_interface = service.nat_ips.as_ref()?;
    let configured = service.ip_configurations.iter().filter_map(|own| own.address);
    let lacking: Vec<_> = configured.filter(|address| !on_interface.contains(address)).collect();
    (!lacking.is_empty()).then(|| Disagreement {
        about: format!("NAT IPs of Private Link service {}", service.name),
        claims: [
            claim("its configuration", list(&lacking)),
            claim("its network interface", list(on_interface)),
        ],
        advice: "Azure may be changing it; ask again, packets come from the network interface's".to_owned(),
    })
}

fn annotation_against_azure(world: &World, service: &Service) -> Option<Disagreement> {
    let private_link = of_service(world, service)?;
    let (known, is_whole) = known_nat_ips(private_link);
    let lacking: Vec<_> = declared_addresses(service).filter(|address| !known.contains(address)).collect();
    (is_whole && !lacking.is_empty()).then(|| Disagreement {
        about: format!("NAT IPs of Service {service}"),
        claims: [
            claim("its annotation azure-pls-ip-configuration-ip-address", list(&lacking)),
            claim(format!("Azure's Private Link service {}", private_link.name), list(&known)),
        ],
        advice: format!(
            "Azure has not taken the annotation over; look for SyncLoadBalancerFailed in `kubectl -n {} describe service {}`",
            service.namespace, service.name
        ),
    })
}

/// The Private Link service of a Service: by the owner's tag, else by the frontend's address.
fn of_service<'a>(world: &'a World, service: &Service) -> Option<&'a PrivateLinkService> {
    let azure = &world.private_link;
    let by_address = || service.ingress.iter().find_map(|address| azure.service_at(*address));
    azure.owned_by(&service.namespace, &service.name).or_else(by_address)
}

fn owner_against_frontend(world: &World, service: &Service) -> Option<Disagreement> {
    let private_link = world.private_link.owned_by(&service.namespace, &service.name)?;
    let frontends: Vec<_> = private_link.frontends.iter().filter_map(|own| own.address).collect();
    let is_same = frontends.iter().any(|address| service.ingress.contains(address));
    (!frontends.is_empty() && !service.ingress.is_empty() && !is_same).then(|| Disagreement {
        about: format!("load balancer address of Service {service}"),
        claims: [
            claim("its status", list(&service.ingress)),
            claim(
                format!("Private Link service {}, which has it as owner,", private_link.name),
                list(&frontends),
            ),
        ],
        advice: "consumers reach the second; the Private Link service stands before another frontend"
            .to_owned(),
    })
}

fn flag_against_azure(world: &World) -> Option<Disagreement> {
    let azure = &world.private_link;
    let services: Vec<_> = azure.services.iter().flatten().collect();
    let known: Vec<_> = services.iter().map(|service| known_nat_ips(service)).collect();
    // Another subscription or resource group may have more of them; then nothing contradicts.
    if services.is_empty() || known.iter().any(|(_, is_whole)| !is_whole) {
        return None;
    }
    let addresses: Vec<_> = known.into_iter().flat_map(|(addresses, _)| addresses).collect();
    let has_one = |prefix: &&IpNet| addresses.iter().any(|address| prefix.contains(address));
    let lacking: Vec<_> = azure.declared.nat_ips.iter().filter(|prefix| !has_one(prefix)).collect();
    let lacking = lacking.iter().map(|prefix| address_text(prefix));
    let lacking: Vec<_> = lacking.collect();
    (!lacking.is_empty()).then(|| Disagreement {
        about: "NAT IPs".to_owned(),
        claims: [claim("--pls-nat-ip", list(&lacking)), claim("Azure", list(&addresses))],
        advice: "it may belong to a Private Link service elsewhere that could not be read".to_owned(),
    })
}

/// An address that is the whole prefix is written as an address.
fn address_text(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// `--pls-subnet` against addresses that are surer.
fn address_against_subnet(sources: &[NatSource]) -> Vec<Disagreement> {
    let of_flag: Vec<_> = sources
        .iter()
        .filter(|source| source.origin == NatOrigin::SubnetFlag)
        .map(|source| source.prefix)
        .collect();
    let outside = |source: &&NatSource| {
        source.confidence() >= Confidence::Declared
            && !of_flag.iter().any(|prefix| prefix.contains(&source.prefix.addr()))
    };
    if of_flag.is_empty() {
        return Vec::new();
    }
    let disagree = |source: &NatSource| Disagreement {
        about: "subnet of the NAT IPs".to_owned(),
        claims: [
            claim("--pls-subnet", list(&of_flag)),
            claim(source.origin.to_string(), address_text(&source.prefix)),
        ],
        advice: "a rule for the subnet alone does not admit that address".to_owned(),
    };
    sources.iter().filter(outside).map(disagree).collect()
}

/// A PROXY protocol header from an address that Azure does not list.
fn observed_against_azure(world: &World) -> Vec<Disagreement> {
    let azure = &world.private_link;
    let disagree = |observed: &super::private_link::Observed| {
        let (private_link, _) = azure.connection(observed.link_id)?;
        let (known, is_whole) = known_nat_ips(private_link);
        (is_whole && !known.contains(&observed.source)).then(|| Disagreement {
            about: format!("NAT IPs of Private Link service {}", private_link.name),
            claims: [
                claim(format!("a PROXY protocol header with its link {}", observed.link_id), observed.source.to_string()),
                claim("Azure", list(&known)),
            ],
            advice: "its source may have been rewritten before it was seen, or Azure's list is older than the packet".to_owned(),
        })
    };
    let mut all: Vec<Disagreement> = Vec::new();
    for found in azure.observed.iter().filter_map(disagree) {
        if !all.contains(&found) {
            all.push(found);
        }
    }
    all
}

#[cfg(test)]
mod tests;
