//! What the Kubernetes API, or files of policies in its stead, say of the cluster.

use core::fmt;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::{Index, IndexMut};
use std::slice;
use std::sync::Arc;

use ipnet::IpNet;

use super::PolicyRef;
use crate::tuple::Protocol;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Annotations of the Azure cloud provider begin so.
pub const AZURE_PREFIX: &str = "service.beta.kubernetes.io/";

/// The cluster's objects, as far as they could be had.
///
/// A list that could not be had is `None` and named in [`super::World::missing`] as `kubernetes/LIST`, with what it
/// costs; an empty one is there and empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// Who asked the API: ``kubeconfig `admin.conf`, context `aks` ``; `None` if nobody did, which costs all that only it knows.
    pub asked: Option<String>,
    /// Services of all namespaces.
    pub services: Option<List<Service>>,
    /// Where their backends are.
    pub endpoint_slices: Option<List<EndpointSlice>>,
    /// Pods of all namespaces.
    pub pods: Option<List<Pod>>,
    /// Namespaces.
    pub namespaces: Option<List<Namespace>>,
    /// Nodes.
    pub nodes: Option<List<Node>>,
    /// Policy objects, from the API and from files alike.
    pub policies: List<PolicyObject>,
    /// Kinds of which the API gave every object; of any other kind [`Self::policies`] may lack some.
    pub complete: BTreeSet<PolicyKind>,
    /// `CiliumCIDRGroup` objects by name, that policies refer to.
    pub cidr_groups: Option<BTreeMap<String, Vec<IpNet>>>,
    /// What the service controller said of services.
    pub events: Option<List<ServiceEvent>>,
    /// `kube-system/cilium-config`, the options that Cilium was given.
    pub cilium_config: Option<BTreeMap<String, String>>,
}

/// Objects that several Worlds share: a clone costs nothing, however many they are.
#[derive(Debug, PartialEq, Eq)]
pub struct List<T>(Arc<[Arc<T>]>);

/// The objects of a [`List`].
pub type Iter<'a, T> = std::iter::Map<slice::Iter<'a, Arc<T>>, fn(&'a Arc<T>) -> &'a T>;

impl<T> List<T> {
    /// Its objects.
    pub fn iter(&self) -> Iter<'_, T> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Its objects as they are shared.
    pub fn shared(&self) -> &[Arc<T>] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Clone> List<T> {
    /// Adds an object, to this list alone.
    pub fn push(&mut self, object: T) {
        *self = self.0.iter().cloned().chain([Arc::new(object)]).collect();
    }
}

impl<T> Index<usize> for List<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.0[at]
    }
}

impl<T: Clone> IndexMut<usize> for List<T> {
    /// For a change in this list alone.
    fn index_mut(&mut self, at: usize) -> &mut T {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[at])
    }
}

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(objects: I) -> Self {
        objects.into_iter().map(Arc::new).collect()
    }
}

impl<T> FromIterator<Arc<T>> for List<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(objects: I) -> Self {
        Self(objects.into_iter().collect())
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(objects: Vec<T>) -> Self {
        objects.into_iter().collect()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Kubernetes {
    /// Whether nothing of it is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// The service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.iter().flatten().find(|service| service.namespace == namespace && service.name == name)
    }

    /// The service whose load balancer has this address; of several, which share it, the first by name.
    pub fn service_at(&self, address: IpAddr) -> Option<&Service> {
        self.services.iter().flatten().find(|service| service.ingress.contains(&address))
    }

    /// The pod of this name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.iter().flatten().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// The pod with this address; one on its node's network shares the node's, and is none of them.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.iter().flatten().find(|pod| !pod.host_network && pod.addresses.contains(&address))
    }

    /// The node with this address.
    pub fn node_at(&self, address: IpAddr) -> Option<&Node> {
        self.nodes.iter().flatten().find(|node| node.addresses.contains(&address))
    }

    /// Labels of a namespace.
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        let namespace = self.namespaces.iter().flatten().find(|namespace| namespace.name == name);
        namespace.map(|namespace| &namespace.labels)
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The API server's id of it, from which Azure's names are made.
    pub uid: String,
    /// Annotations of the Azure cloud provider, with their whole keys.
    pub annotations: BTreeMap<String, String>,
    /// `spec.type`: `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`.
    pub kind: String,
    /// `spec.clusterIPs`, without `None` of a headless one.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalTrafficPolicy`; `None` where the type has none.
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty for one whose backends somebody else lists.
    pub selector: Labels,
    /// `spec.loadBalancerSourceRanges` that are prefixes.
    pub source_ranges: Vec<IpNet>,
    /// `spec.healthCheckNodePort`, with `externalTrafficPolicy: Local` only.
    pub health_check_node_port: Option<u16>,
    /// `spec.allocateLoadBalancerNodePorts`, true unless it says otherwise.
    pub allocates_node_ports: bool,
    /// `spec.sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `spec.ipFamilies`: `IPv4`, `IPv6`.
    pub ip_families: Vec<String>,
    /// `spec.loadBalancerClass`, when another controller than the cloud provider is asked.
    pub load_balancer_class: Option<String>,
    /// Kind and name of what made it, such as `Gateway`; empty for one that nobody owns.
    pub owners: Vec<String>,
    /// `status.loadBalancer.ingress[].ip`.
    pub ingress: Vec<IpAddr>,
}

impl Service {
    /// The value of an annotation of the Azure cloud provider by the part after [`AZURE_PREFIX`].
    pub fn azure(&self, annotation: &str) -> Option<&str> {
        self.annotations.get(&format!("{AZURE_PREFIX}{annotation}")).map(String::as_str)
    }

    /// Whether an annotation of the Azure cloud provider is `true`, in any case, as the provider compares it.
    pub fn azure_is_true(&self, annotation: &str) -> bool {
        self.azure(annotation).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// Whether it asks for a Private Link service.
    pub fn wants_private_link(&self) -> bool {
        self.azure_is_true("azure-pls-create")
    }

    /// Its port with this number and protocol.
    pub fn port(&self, port: u16, protocol: Protocol) -> Option<&ServicePort> {
        self.ports.iter().find(|own| own.port == port && own.protocol == protocol)
    }
}

impl fmt::Display for Service {
    /// `default/pls-app`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a service's traffic may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// To any backend; on the way to one of another node the source address is rewritten.
    Cluster,
    /// To backends of the node that received it.
    Local,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty if it has none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The frontend's port.
    pub port: u16,
    /// The pods' port.
    pub target_port: PortRef,
    /// The nodes' port.
    pub node_port: Option<u16>,
    /// `appProtocol`, which decides the load balancer's probe.
    pub app_protocol: Option<String>,
}

/// A pod's port by number, or by the name that each pod gives one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Backends of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The service's name, by the label `kubernetes.io/service-name`; empty if it has none.
    pub service: String,
    /// Backends.
    pub endpoints: Vec<Backend>,
    /// Ports of each of them: name, protocol, number.
    pub ports: Vec<(String, Protocol, u16)>,
}

/// One backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is to get traffic.
    pub is_ready: bool,
    /// Whether it answers; one that is terminating may.
    pub is_serving: bool,
    /// Whether it is going away.
    pub is_terminating: bool,
    /// Its node, if known.
    pub node: Option<String>,
    /// The pod's name, if it is one.
    pub pod: Option<String>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Its node, empty if none is chosen yet.
    pub node: String,
    /// Whether it is on its node's network, where no network policy applies.
    pub host_network: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its containers' ports.
    pub ports: Vec<ContainerPort>,
    /// Whether it is ready.
    pub is_ready: bool,
    /// `status.phase`.
    pub phase: String,
    /// `spec.serviceAccountName`, which Cilium makes a label of.
    pub service_account: String,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name, empty if it has none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `spec.providerID`: on Azure the virtual machine's resource id.
    pub provider_id: String,
    /// Whether it is ready.
    pub is_ready: bool,
    /// Whether load balancers leave it out.
    pub is_excluded: bool,
}

/// The kinds of policy objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, of a namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, of the cluster.
    CiliumClusterwideNetworkPolicy,
}

impl PolicyKind {
    /// Every kind.
    pub const ALL: [Self; 3] =
        [Self::NetworkPolicy, Self::CiliumNetworkPolicy, Self::CiliumClusterwideNetworkPolicy];

    /// As objects name it in `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
        }
    }

    /// As objects name it in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io/v1",
            _ => "cilium.io/v2",
        }
    }

    /// Whether its objects belong to a namespace.
    pub fn is_namespaced(self) -> bool {
        self != Self::CiliumClusterwideNetworkPolicy
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A policy object, not yet read: `intent` says what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyObject {
    /// Its kind.
    pub kind: PolicyKind,
    /// Namespace, empty for the cluster's.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Where it is from.
    pub origin: PolicyOrigin,
    /// The whole object as JSON text, without what plsprobe does not need of `metadata`.
    pub json: String,
}

impl PolicyObject {
    /// Its kind, namespace and name, as rules of the agent's name it.
    pub fn reference(&self) -> PolicyRef {
        PolicyRef {
            kind: self.kind.name().to_owned(),
            namespace: Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: self.name.clone(),
        }
    }
}

impl fmt::Display for PolicyObject {
    /// `NetworkPolicy default/allow-pls`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Where a policy object is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyOrigin {
    /// The Kubernetes API.
    Kubernetes,
    /// A file.
    File {
        /// Its path, as it was given or found.
        path: String,
        /// The line where the object begins, from 1.
        line: usize,
    },
}

impl fmt::Display for PolicyOrigin {
    /// `kubernetes`, or `policies/allow.yaml:12`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// What the service controller said of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEvent {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub service: String,
    /// `SyncLoadBalancerFailed`, `EnsuringLoadBalancer`, `EnsuredLoadBalancer`, ….
    pub reason: String,
    /// The text; of `SyncLoadBalancerFailed` Azure's own error is in it.
    pub message: String,
    /// When it was last said, as the API writes it; empty if it does not.
    pub last: String,
    /// How often.
    pub count: u32,
}
