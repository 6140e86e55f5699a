//! Everything known of one node at one time, decoded, with what is missing.

pub mod conntrack;
pub mod kubernetes;
pub mod nat;
pub mod private_link;

use core::fmt;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::cilium::auth::{AuthInfo, AuthKey};
use crate::cilium::ct::CtLayout;
use crate::cilium::family::Family;
use crate::cilium::fragments::{FragmentId, FragmentPorts};
use crate::cilium::identity::Identity;
use crate::cilium::ipcache::Ipcache;
use crate::cilium::lb::{Frontend, LoadBalancer};
use crate::cilium::lxc::{EndpointInfo, Mac};
use crate::cilium::node::NodeValue;
use crate::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey, PolicyMap};
use crate::cilium::policystats::PolicyStatsKey;
use crate::cilium::runtime_config::UTime;
use crate::cilium::{Direction, EndpointId};
use crate::intent::object::Objects;
use crate::netfilter::Ruleset;
use crate::tuple::Protocol;
use conntrack::Conntrack;
use kubernetes::Kubernetes;
use private_link::PrivateLink;

/// Everything known of one node at one time.
///
/// A map that could not be had is `None` and named in [`World::missing`]; an empty one is there and empty.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Where the facts are from, as the answer names it: `live`, a folder or a snapshot.
    pub origin: String,
    /// The agent's version in its own words, if it said so.
    pub version: Option<String>,
    /// How the agent is configured.
    pub config: Config,
    /// Endpoints of this node by id, from the agent and from `cilium_lxc`.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// `cilium_lxc` as it is.
    pub lxc: Option<BTreeMap<IpAddr, EndpointInfo>>,
    /// Policy maps by endpoint.
    pub policy: BTreeMap<EndpointId, NamedPolicyMap>,
    /// `cilium_policystats`: what policy entries without counters of their own decided (Cilium 1.18 on), if it was read.
    pub policy_stats: Option<BTreeMap<PolicyStatsKey, PolicyCounters>>,
    /// `cilium_ipcache` or `cilium_ipcache_v2`; missing, it is named as the first.
    pub ipcache: Option<Ipcache>,
    /// Where programs ask two, as during an upgrade: both, and none in `ipcache`. An answer holds if both give it.
    pub ipcaches_in_use: Vec<Ipcache>,
    /// Services, backends and source ranges (IPv4).
    pub lb: Option<LoadBalancer>,
    /// The same for IPv6.
    pub lb6: Option<LoadBalancer>,
    /// Conntrack (IPv4).
    pub conntrack: Conntrack,
    /// The same for IPv6.
    pub conntrack6: Conntrack,
    /// Clients of services by an earlier reading of conntrack, for where it is not known whole now.
    pub earlier_clients: Option<nat::ServiceClients>,
    /// How conntrack entries can be read, see [`crate::cilium::ct::ct_layouts`].
    pub ct_layouts: Vec<CtLayout>,
    /// The ports of fragmented packets, both families.
    pub fragments: Option<BTreeMap<FragmentId, FragmentPorts>>,
    /// Who has authenticated whom.
    pub auth: Option<BTreeMap<AuthKey, AuthInfo>>,
    /// Nodes by address, with the ids that this node gave them.
    pub nodes: Option<BTreeMap<IpAddr, NodeValue>>,
    /// When the maps were read, by the datapath's wall clock, if known: what has expired.
    pub now: Option<UTime>,
    /// Labels of identities, as the agent names them.
    pub identities: BTreeMap<Identity, Vec<String>>,
    /// Policy rules that the agent holds (`GET /policy`).
    pub rules: Option<Objects>,
    /// Identities by selector, as the agent writes it in [`SelectorUse::selector`].
    pub selectors: BTreeMap<String, Vec<Identity>>,
    /// Services by frontend, as the agent names them.
    pub service_names: Vec<ServiceName>,
    /// The node's netfilter rules.
    pub netfilter: Option<Ruleset>,
    /// The node's interfaces.
    pub links: Option<Vec<Link>>,
    /// The node's routes.
    pub routes: Vec<Route>,
    /// What the Kubernetes API, or files of policies, say of the cluster.
    pub kubernetes: Kubernetes,
    /// What Azure says of Private Link.
    pub private_link: PrivateLink,
    /// Where two sources contradict each other, NAT IPs apart ([`nat::nat_sources`]).
    pub disagreements: Vec<nat::Disagreement>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

/// A policy map with its pin's name.
#[derive(Clone, Debug)]
pub struct NamedPolicyMap {
    /// Pin name.
    pub name: String,
    /// Kernel id, 0 if unknown.
    pub id: u32,
    /// Its entries.
    pub map: PolicyMap,
}

/// How pods are routed on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingMode {
    /// Pod addresses are routable in the network.
    Native,
    /// Between nodes pod packets travel in a tunnel.
    Tunnel,
}

/// The agent's options that change how a packet is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where these values are from.
    pub source: ConfigSource,
    /// Cilium translates services of outside packets at the uplink (kube-proxy replacement).
    pub node_port: bool,
    /// Native or tunnel.
    pub routing: RoutingMode,
    /// The host's stack stays between uplink and pod (no BPF host routing).
    pub host_legacy_routing: bool,
    /// One route per pod, policy at the pod's veth.
    pub endpoint_routes: bool,
    /// ICMP types are matched as ports.
    pub icmp_rules: bool,
    /// ICMP fragmentation needed is always allowed.
    pub allow_icmp_frag_needed: bool,
    /// Policy only reports.
    pub audit_mode: bool,
    /// Host firewall: policy applies to the node itself.
    pub host_firewall: bool,
    /// loadBalancerSourceRanges are checked.
    pub source_range_check: bool,
    /// Cilium runs for IPv4.
    pub ipv4: bool,
    /// Cilium runs for IPv6 too.
    pub ipv6: bool,
    /// How packets for a backend on another node are sent on, if known.
    pub forwarding: Option<Forwarding>,
    /// Later fragments get the ports of the first.
    pub fragment_tracking: bool,
    /// Packets to the stack carry their sender's identity in `skb->mark`.
    pub identity_mark: bool,
    /// The tunnel's UDP port, if known.
    pub tunnel_port: Option<u16>,
}

/// How a packet for a backend on another node is sent on (`bpf-lb-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// With this node's address as its source; the answer comes back through here.
    Snat,
    /// With the client's address; the answer goes to the client directly.
    Dsr,
    /// DSR for TCP, SNAT for the others.
    Hybrid,
}

/// Where the configuration is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// The agent's `/config`.
    Agent,
    /// Which maps are pinned; options that leave no trace have the agent's defaults.
    Pins,
}

impl Default for Config {
    /// The 1.14 agent's defaults.
    fn default() -> Self {
        Self {
            source: ConfigSource::Pins,
            node_port: false,
            routing: RoutingMode::Tunnel,
            host_legacy_routing: true,
            endpoint_routes: false,
            icmp_rules: true,
            allow_icmp_frag_needed: true,
            audit_mode: false,
            host_firewall: false,
            source_range_check: true,
            ipv4: true,
            ipv6: false,
            forwarding: None,
            fragment_tracking: true,
            identity_mark: true,
            tunnel_port: None,
        }
    }
}

/// A workload on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Endpoint id.
    pub id: EndpointId,
    /// Its identity; [`Identity::UNKNOWN`] if no source knows it.
    pub identity: Identity,
    /// Namespace and pod name, if the agent said so.
    pub pod: Option<PodName>,
    /// Labels with their source prefix, `k8s:app=pls-app`.
    pub labels: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Host side of its veth, if known.
    pub interface: Option<Interface>,
    /// What the agent says of its policy, if it was asked.
    pub policy: Option<EndpointPolicy>,
}

impl Endpoint {
    /// Namespace and pod name, else `endpoint ID`.
    pub fn name(&self) -> String {
        match &self.pod {
            Some(pod) => pod.to_string(),
            None if self.is_host() => "the host endpoint".to_owned(),
            None => format!("endpoint {}", self.id),
        }
    }

    /// Whether it is the node itself.
    pub fn is_host(&self) -> bool {
        self.identity == Identity::HOST
    }
}

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The host side of a pod's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index, 0 if unknown.
    pub ifindex: u32,
    /// Name, if known.
    pub name: Option<String>,
    /// The pod's link-layer address, if known.
    pub mac: Option<Mac>,
}

/// What the agent says of an endpoint's policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Ingress is enforced.
    pub ingress_enforced: bool,
    /// Egress is enforced.
    pub egress_enforced: bool,
    /// The policy revision that the datapath has.
    pub revision: u64,
    /// The revision that it should have.
    pub desired_revision: u64,
    /// Drops are only reported for this endpoint.
    pub audit_mode: bool,
    /// The L4 filters of the realized policy.
    pub filters: Vec<L4Filter>,
}

impl EndpointPolicy {
    /// Whether `direction` is enforced.
    pub fn enforced(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress_enforced,
            Direction::Egress => self.egress_enforced,
        }
    }
}

/// One L4 filter of an endpoint's realized policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L4Filter {
    /// Direction.
    pub direction: Direction,
    /// First port, 0 for every port.
    pub port: u16,
    /// Last port of a range, if it is one.
    pub end_port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
    /// Whom it names, and which policies did so.
    pub selectors: Vec<SelectorUse>,
}

/// A selector in an L4 filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorUse {
    /// The selector, as the agent writes it.
    pub selector: String,
    /// Whether it denies.
    pub deny: bool,
    /// The policies behind it.
    pub derived_from: Vec<PolicyRef>,
}

/// A policy object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRef {
    /// `NetworkPolicy`, `CiliumNetworkPolicy`, `CiliumClusterwideNetworkPolicy`; empty for one imported by hand.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name; for a rule without the usual labels, those it has.
    pub name: String,
}

impl PolicyRef {
    /// From the labels of a rule, as the agent gives them (`k8s:io.cilium.k8s.policy.name=…`).
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a str> + Clone) -> Self {
        let value = |name: &str| {
            labels.clone().into_iter().find_map(|label| {
                let (key, value) = label.split_once('=')?;
                let key = key.split_once(':').map_or(key, |(_, key)| key);
                (key.strip_prefix("io.cilium.k8s.policy.") == Some(name)).then(|| value.to_owned())
            })
        };
        match (value("name"), value("derived-from")) {
            (Some(name), kind) => {
                Self { kind: kind.unwrap_or_default(), namespace: value("namespace"), name }
            }
            _ => Self {
                kind: String::new(),
                namespace: None,
                name: labels.into_iter().collect::<Vec<_>>().join(","),
            },
        }
    }
}

impl fmt::Display for PolicyRef {
    /// `NetworkPolicy default/allow-pls-nat`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.kind.is_empty() {
            write!(f, "{} ", self.kind)?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// A service's name, as the agent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Namespace, empty if the agent has none.
    pub namespace: String,
    /// Name, empty if the agent has none.
    pub name: String,
    /// Frontend address.
    pub address: IpAddr,
    /// Frontend port.
    pub port: u16,
    /// `ClusterIP`, `LoadBalancer`, ….
    pub kind: String,
}

/// A fact that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What: a map's pin name, a REST path, a file.
    pub what: String,
    /// Why, as an error message.
    pub why: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.what, self.why)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Its own addresses with their prefix lengths, the primary one first.
    pub addresses: Vec<IpNet>,
}

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; /0 for the default route.
    pub destination: IpNet,
    /// Next hop, if not on the link itself.
    pub via: Option<IpAddr>,
    /// Outgoing interface's name.
    pub dev: String,
    /// Preferred source address, if the route names one.
    pub src: Option<IpAddr>,
    /// Metric, 0 if none.
    pub metric: u32,
}

/// What an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOwner {
    /// A pod on this node.
    Endpoint(EndpointId),
    /// The node itself.
    Host,
    /// Neither.
    Elsewhere,
}

impl World {
    /// Whose address it is on this node: by `cilium_lxc`, else by the agent's endpoints; the node's also by its links.
    pub fn owner(&self, address: IpAddr) -> AddressOwner {
        if let Some(info) = self.lxc.as_ref().and_then(|lxc| lxc.get(&address)) {
            return if info.is_host() { AddressOwner::Host } else { AddressOwner::Endpoint(info.lxc_id) };
        }
        let on_link = |link: &Link| link.addresses.iter().any(|own| own.addr() == address);
        if self.links.as_ref().is_some_and(|links| links.iter().any(on_link)) {
            return AddressOwner::Host;
        }
        let endpoint = self.endpoints.values().find(|endpoint| endpoint.addresses.contains(&address));
        match endpoint {
            Some(endpoint) if self.lxc.is_none() => AddressOwner::Endpoint(endpoint.id),
            _ => AddressOwner::Elsewhere,
        }
    }

    /// Takes over what is known beyond the node from an earlier world of the same node, which asked for it, and what needs
    /// more of the node than was read now.
    pub fn inherit(&mut self, earlier: &Self) {
        self.kubernetes.clone_from(&earlier.kubernetes);
        self.private_link.clone_from(&earlier.private_link);
        self.disagreements.clone_from(&earlier.disagreements);
        let is_beyond = |missing: &&Missing| {
            let what = missing.what.split('/').next().unwrap_or_default();
            matches!(what, "kubernetes" | "azure") && !self.missing.contains(missing)
        };
        let lacking: Vec<_> = earlier.missing.iter().filter(is_beyond).cloned().collect();
        self.missing.extend(lacking);
        if self.conntrack.whole().is_none() {
            self.earlier_clients = earlier.service_clients().map(Cow::into_owned);
        }
        self.inherit_names(earlier);
    }

    /// Takes over names that Cilium's agent gave, where it does not answer now: of endpoints that still have the same
    /// number and addresses, as only the agent gives them to another pod; and of services, if none has a name now.
    fn inherit_names(&mut self, earlier: &Self) {
        // It answers: what it does not name has no name.
        if self.version.is_some() {
            return;
        }
        for (id, endpoint) in &mut self.endpoints {
            let before = earlier.endpoints.get(id).filter(|before| before.addresses == endpoint.addresses);
            if let Some(before) = before.filter(|_| endpoint.pod.is_none()) {
                endpoint.pod.clone_from(&before.pod);
                if endpoint.labels.is_empty() {
                    endpoint.labels.clone_from(&before.labels);
                }
            }
        }
        if self.service_names.is_empty() {
            self.service_names.clone_from(&earlier.service_names);
        }
    }

    /// Services of a family, if known.
    pub fn load_balancer(&self, family: Family) -> Option<&LoadBalancer> {
        match family {
            Family::V4 => self.lb.as_ref(),
            Family::V6 => self.lb6.as_ref(),
        }
    }

    /// The netfilter rules that a packet to this address meets; those at hand are IPv4's.
    pub fn rules(&self, address: IpAddr) -> Option<&Ruleset> {
        self.netfilter.as_ref().filter(|_| address.is_ipv4())
    }

    /// Every frontend that Cilium's service maps have, IPv4 before IPv6, by address and port.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.lb.iter().chain(&self.lb6).flat_map(LoadBalancer::frontends)
    }

    /// Whether the endpoint is the node itself.
    pub fn is_host_endpoint(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(Endpoint::is_host)
    }

    /// What an entry of an endpoint's policy map decided: by itself up to Cilium 1.17, else by `cilium_policystats`.
    ///
    /// `None` too if it never decided, or so long ago that the map forgot.
    pub fn policy_counters(
        &self,
        id: EndpointId,
        key: &PolicyKey,
        entry: &PolicyEntry,
    ) -> Option<PolicyCounters> {
        let apart = || self.policy_stats.as_ref()?.get(&PolicyStatsKey::of_entry(id, key)).copied();
        entry.counters.or_else(apart)
    }

    /// An endpoint's name as [`Endpoint::name`] gives it, or its id if no source knows more.
    pub fn endpoint_name(&self, id: EndpointId) -> String {
        self.endpoints.get(&id).map_or_else(|| format!("endpoint {id}"), Endpoint::name)
    }

    /// An endpoint's identity: from `cilium_lxc`, else (Cilium 1.13) from the ipcache by its address, else from the agent.
    pub fn endpoint_identity(&self, id: EndpointId) -> Identity {
        let own = || self.lxc.iter().flatten().filter(|(_, info)| info.lxc_id == id && !info.is_host());
        own()
            .find_map(|(_, info)| info.identity())
            .or_else(|| own().find_map(|(address, _)| self.exact_identity(*address)))
            .or_else(|| self.endpoints.get(&id).map(|endpoint| endpoint.identity))
            .unwrap_or_default()
    }

    /// The ipcache's identity of exactly this address; a wider prefix says nothing of a pod.
    fn exact_identity(&self, address: IpAddr) -> Option<Identity> {
        let (prefix, info) = self.ipcache.as_ref()?.lookup(address)?;
        (prefix == IpNet::from(address)).then_some(info.sec_identity)
    }

    /// The interface of the default route.
    pub fn uplink(&self) -> Option<&str> {
        self.routes.iter().find(|route| route.destination.prefix_len() == 0).map(|route| route.dev.as_str())
    }

    /// The route the kernel takes to `address`: longest prefix, then lowest metric.
    pub fn route(&self, address: IpAddr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.destination.contains(&address))
            .max_by_key(|route| (route.destination.prefix_len(), core::cmp::Reverse(route.metric)))
    }

    /// The address that the kernel gives packets leaving by `dev`: its first IPv4 address.
    pub fn primary_address(&self, dev: &str) -> Option<Ipv4Addr> {
        let link = self.links.as_ref()?.iter().find(|link| link.name == dev)?;
        link.addresses.iter().find_map(|own| match own.addr() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The addresses that are the node's own, by any source.
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        let from_lxc =
            self.lxc.iter().flatten().filter(|(_, info)| info.is_host()).map(|(address, _)| *address);
        let from_links = self.links.iter().flatten().flat_map(|link| link.addresses.iter().map(IpNet::addr));
        let mut all: Vec<_> = from_lxc.chain(from_links).collect();
        all.sort();
        all.dedup();
        all
    }

    /// An identity with what is known of it: `world (2)`, `16777218 (cidr:10.224.0.8/32)`, `63921 (k8s:app=pls-app …)`.
    pub fn identity_text(&self, identity: Identity) -> String {
        if identity.reserved_name().is_some() {
            return identity.to_string();
        }
        let labels = self.labels(identity);
        let cidr =
            labels.iter().find(|label| label.starts_with("cidr:")).map(|label| (*label).to_owned()).or_else(
                || {
                    let prefix = self.ipcache.as_ref()?.prefixes_of(identity).next()?;
                    identity.is_local_scope().then(|| format!("cidr:{prefix}"))
                },
            );
        let app = || {
            let short = |label: &&&str| {
                label.starts_with("k8s:")
                    && !label.contains("io.cilium.")
                    && !label.contains("io.kubernetes.")
            };
            labels.iter().find(short).map(|label| (*label).to_owned())
        };
        match cidr.or_else(app) {
            Some(label) => format!("{identity} ({label})"),
            None => identity.to_string(),
        }
    }

    /// The labels of an identity; of a CIDR identity only its own prefix.
    ///
    /// Up to 1.15 such an identity has a label for every covering prefix too; the longest is its own.
    pub fn labels(&self, identity: Identity) -> Vec<&str> {
        let labels = self.identities.get(&identity).map(Vec::as_slice).unwrap_or_default();
        let is_cidr = |label: &&String| label.starts_with("cidr:");
        let length = |label: &&String| label.rsplit('/').next().and_then(|bits| bits.parse::<u8>().ok());
        let own = labels.iter().filter(is_cidr).max_by_key(length);
        own.into_iter().chain(labels.iter().filter(|label| !is_cidr(label))).map(String::as_str).collect()
    }

    /// The missing fact of this name.
    pub fn missing(&self, what: &str) -> Option<&Missing> {
        self.missing.iter().find(|missing| missing.what == what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_beyond_the_node_is_inherited() {
        let missing = |what: &str| Missing { what: what.to_owned(), why: "no".to_owned() };
        let asked = Kubernetes { asked: Some("somebody".to_owned()), ..Kubernetes::default() };
        let earlier = World {
            kubernetes: asked.clone(),
            missing: ["azure", "azure/instance", "cilium_lxc", "azurelike"].map(missing).into(),
            ..World::default()
        };
        let mut now = World { missing: vec![missing("azure/instance")], ..World::default() };
        now.inherit(&earlier);
        assert_eq!(now.kubernetes, asked);
        assert_eq!(now.missing, ["azure/instance", "azure"].map(missing));
    }

    #[test]
    fn names_outlive_the_agent_s_silence_and_nothing_else() {
        let endpoint = |id: u16, address: &str, name: Option<&str>| Endpoint {
            id: EndpointId(id),
            identity: Identity::UNKNOWN,
            pod: name.map(|name| PodName { namespace: "default".to_owned(), name: name.to_owned() }),
            labels: name.map(|name| format!("k8s:app={name}")).into_iter().collect(),
            addresses: vec![address.parse().unwrap()],
            interface: None,
            policy: None,
        };
        let world = |endpoints: Vec<Endpoint>| World {
            endpoints: endpoints.into_iter().map(|own| (own.id, own)).collect(),
            ..World::default()
        };
        let earlier = world(vec![endpoint(1, "10.0.0.1", Some("a")), endpoint(2, "10.0.0.2", Some("b"))]);
        let names = |now: &World| now.endpoints.values().map(Endpoint::name).collect::<Vec<_>>();
        let silent = world(vec![endpoint(1, "10.0.0.1", None), endpoint(2, "10.0.0.9", None)]);
        let mut now = silent.clone();
        now.inherit(&earlier);
        assert_eq!(names(&now), ["default/a", "endpoint 2"], "one has another address now");
        assert_eq!(now.endpoints[&EndpointId(1)].labels, ["k8s:app=a"]);
        let mut now = World { version: Some("1.16.0".to_owned()), ..silent };
        now.inherit(&earlier);
        assert_eq!(names(&now), ["endpoint 1", "endpoint 2"], "it answers");
    }
}
