//! Who is who: identities and their labels, addresses and their identities, pods and their named ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::label::{Label, Labels};
use super::object::{Options, PeerKind, Policy};
use super::selector::NAMESPACE;
use crate::cilium::identity::{Identity, Scope};
use crate::cilium::ipcache::Ipcache;
use crate::tuple::Protocol;
use crate::world::{PodName, World};

/// The number of the first CIDR identity.
const FIRST_LOCAL: u32 = 0x0100_0001;
/// The last number that Cilium keeps for reserved identities and those of well-known workloads.
const LAST_RESERVED: u32 = 255;
/// Reserved identities that have no address of their own in the ipcache, but that rules can name.
const RESERVED: [u32; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

/// A port that a pod's definition gives a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: PodName,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports that it names; `None` if that is not known.
    pub named_ports: Option<Vec<NamedPort>>,
}

/// What a named port comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedPortIs {
    /// This port.
    Port(u16),
    /// Nothing, for the reason given as a clause: the rule's term matches no packet.
    Nothing(String),
    /// Not known, for the reason given as a clause.
    Unknown(String),
}

/// Who is who in the cluster, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// How the agent is configured.
    pub options: Options,
    /// The labels of every identity that is known.
    pub identities: BTreeMap<Identity, Labels>,
    /// The ipcache: which identity an address has, by its longest prefix.
    pub prefixes: BTreeMap<IpNet, Identity>,
    /// Pods.
    pub pods: Vec<Pod>,
}

impl Cluster {
    /// Adds the reserved identities, with the labels that Cilium gives them, where they are not known otherwise.
    #[must_use]
    pub fn with_reserved(mut self) -> Self {
        for number in RESERVED {
            let identity = Identity(number);
            let own = identity.reserved_name().map(|name| Label::plain("reserved", name));
            // A node with the API server is a node too.
            let node =
                (identity == Identity::KUBE_APISERVER).then(|| Label::plain("reserved", "remote-node"));
            self.identities.entry(identity).or_insert_with(|| Labels::new(own.into_iter().chain(node)));
        }
        self
    }

    /// From the facts of one node.
    ///
    /// Identities and their labels are the agent's (`GET /identity`, and `GET /endpoint` for its own pods), prefixes are
    /// the ipcache's, but for those of pods: they may be half a million, and no rule names them. A CIDR identity without
    /// labels gets those of its prefix. Named ports are not among a node's facts, so they stay unknown.
    pub fn from_world(world: &World, options: Options) -> Self {
        let options = Options { ipv4: world.config.ipv4, ipv6: world.config.ipv6, ..options };
        let known = world.identities.iter().map(|(identity, labels)| (*identity, labels));
        let own = world.endpoints.values().map(|endpoint| (endpoint.identity, &endpoint.labels));
        let labelled = known.chain(own).filter(|(_, labels)| !labels.is_empty());
        let identities =
            labelled.map(|(identity, labels)| (identity, Labels::parse(labels.iter().map(String::as_str))));
        let caches = world.ipcache.iter().chain(&world.ipcaches_in_use);
        let prefixes = caches.flat_map(Ipcache::entries).map(|(prefix, info)| (prefix, info.sec_identity));
        let prefixes = prefixes.filter(|(_, identity)| !is_label_identity(*identity));
        let pods = world.endpoints.values().filter(|endpoint| !endpoint.is_host()).filter_map(|endpoint| {
            Some(Pod {
                name: endpoint.pod.clone()?,
                identity: world.endpoint_identity(endpoint.id),
                addresses: endpoint.addresses.clone(),
                named_ports: None,
            })
        });
        let mut cluster = Self {
            identities: identities.collect(),
            prefixes: prefixes.collect(),
            pods: pods.collect(),
            options,
        };
        cluster.name_cidr_identities();
        // The agent lists the reserved ones too, and knows which its version has.
        if cluster.identities.contains_key(&Identity::WORLD) { cluster } else { cluster.with_reserved() }
    }

    /// Gives CIDR identities without labels those of their prefix.
    fn name_cidr_identities(&mut self) {
        for (prefix, identity) in &self.prefixes {
            if identity.is_local_scope() {
                self.identities.entry(*identity).or_insert_with(|| cidr_labels(*prefix));
            }
        }
    }

    /// The same cluster once these policies are applied: with an identity for each prefix that they bring in.
    ///
    /// A prefix that has one keeps it, unless it is a pod's: Cilium makes an identity for a pod's address too, which
    /// nothing ever has. New ones get numbers that are free; a real agent may choose others.
    #[must_use]
    pub fn with_prefixes_of<'p>(&self, policies: impl IntoIterator<Item = &'p Policy>) -> Self {
        let mut cluster = self.clone();
        let local = || self.identities.iter().filter(|(identity, _)| identity.is_local_scope());
        let mut next = local().next_back().map_or(FIRST_LOCAL, |(identity, _)| identity.0 + 1);
        let known: BTreeSet<_> = local().filter_map(|(_, labels)| labels.prefix()).collect();
        let wanted = policies.into_iter().flat_map(prefixes).filter(|prefix| !known.contains(prefix));
        for prefix in wanted.collect::<BTreeSet<_>>() {
            let is_world = prefix.prefix_len() == 0;
            // A node keeps its identity, and gets no CIDR label.
            let is_node = self.prefixes.get(&prefix).is_some_and(|holder| self.is_node(*holder));
            if !is_world && !is_node {
                cluster.identities.insert(Identity(next), cidr_labels(prefix));
                cluster.prefixes.entry(prefix).or_insert(Identity(next));
                next += 1;
            }
        }
        cluster
    }

    /// Whether the identity is a node's.
    pub fn is_node(&self, identity: Identity) -> bool {
        let node = |labels: &Labels| labels.has_reserved("host") || labels.has_reserved("remote-node");
        self.identities.get(&identity).is_some_and(node)
    }

    /// Whether the identity is a pod's.
    pub fn is_pod(&self, identity: Identity) -> bool {
        self.identities.get(&identity).is_some_and(|labels| labels.kubernetes(NAMESPACE).is_some())
    }

    /// The identity of an address and the prefix that it has it by; the world without one where no prefix covers it.
    ///
    /// After [`Self::from_world`] an address of a pod is not known here.
    pub fn lookup(&self, address: IpAddr) -> (Option<IpNet>, Identity) {
        let lengths = (0..=IpNet::from(address).prefix_len()).rev();
        let mut covering =
            lengths.filter_map(|length| IpNet::new(address, length).ok()).map(|net| net.trunc());
        let found = covering.find_map(|net| Some((net, *self.prefixes.get(&net)?)));
        found.map_or((None, self.world(address)), |(prefix, identity)| (Some(prefix), identity))
    }

    /// The identity of a prefix as a whole: of the longest one that holds it.
    pub(super) fn lookup_prefix(&self, prefix: IpNet) -> Identity {
        let wider = std::iter::successors(Some(prefix), IpNet::supernet);
        let mut found = wider.filter_map(|wider| self.prefixes.get(&wider).copied());
        found.next().unwrap_or_else(|| self.world(prefix.addr()))
    }

    /// The identity of what no prefix covers.
    pub fn world(&self, address: IpAddr) -> Identity {
        match (self.options.ipv4 && self.options.ipv6, address) {
            (false, _) => Identity::WORLD,
            (true, IpAddr::V4(_)) => Identity::WORLD_IPV4,
            (true, IpAddr::V6(_)) => Identity::WORLD_IPV6,
        }
    }

    /// The pod of this identity's labels in words: `default/web`, or its labels if several have them.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name.namespace == namespace && pod.name.name == name)
    }

    /// The port that an ingress rule's name means for the pod that it selects.
    pub fn own_port(&self, pod: &Pod, name: &str, protocol: Protocol) -> NamedPortIs {
        let pod_name = &pod.name;
        let Some(ports) = &pod.named_ports else {
            return NamedPortIs::Unknown(format!("which ports {pod_name} names is not known"));
        };
        match ports.iter().find(|port| port.name == name) {
            Some(port) if port.protocol == protocol => NamedPortIs::Port(port.port),
            Some(port) => NamedPortIs::Nothing(format!(
                "{pod_name} gives the name `{name}` to {}/{}",
                port.protocol, port.port
            )),
            None => NamedPortIs::Nothing(format!("{pod_name} names no port `{name}`")),
        }
    }

    /// The port that an egress rule's name means: it must be the same in all pods that have the name.
    pub fn shared_port(&self, name: &str, protocol: Protocol) -> NamedPortIs {
        let ports = self.pods.iter().flat_map(|pod| pod.named_ports.iter().flatten());
        let numbers: BTreeSet<_> = ports
            .filter(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.port)
            .collect();
        if numbers.len() > 1 {
            return NamedPortIs::Nothing(format!(
                "pods give the name `{name}` to different ports, so it means none"
            ));
        }
        if let Some(unknown) = self.pods.iter().find(|pod| pod.named_ports.is_none()) {
            return NamedPortIs::Unknown(format!("which ports {} names is not known", unknown.name));
        }
        match numbers.first() {
            Some(port) => NamedPortIs::Port(*port),
            None => NamedPortIs::Nothing(format!("no pod names a {protocol} port `{name}`")),
        }
    }
}

/// Whether an identity is made from labels: a pod's.
fn is_label_identity(identity: Identity) -> bool {
    identity.scope() == Scope::Global && identity.0 > LAST_RESERVED
}

/// The labels of a CIDR identity.
fn cidr_labels(prefix: IpNet) -> Labels {
    Labels::new([Label::cidr(prefix), Label::plain("reserved", "world")])
}

/// Every prefix that a policy brings in.
pub(super) fn prefixes(policy: &Policy) -> Vec<IpNet> {
    let parts = policy.rules.iter().flat_map(|rule| rule.ingress.parts.iter().chain(&rule.egress.parts));
    let peers = parts.flat_map(|part| &part.peers.listed);
    let prefixes = peers.flat_map(|peer| match &peer.kind {
        PeerKind::Cidr { remaining, .. } => remaining.as_slice(),
        PeerKind::Labels | PeerKind::Entity(_) => &[],
    });
    prefixes.copied().collect()
}
