//! A judged flow as plain values, for whoever is told of it: Hubble's clients, metrics, traces.

use std::net::IpAddr;

use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::Code;
use probe_model::path::{Hop, Outcome, Path};
use probe_model::tuple::Tuple;
use probe_model::world::kubernetes::{Service, ServicePort};
use probe_model::world::{AddressOwner, PodName, PolicyRef, World};

use super::clock::Moment;
use crate::render::explanation::near_miss_text;
use crate::render::gap::place_text;
use crate::render::trace::{cause_code, cause_sentence};
use crate::trace::judge::{FlowVerdict, Judgement, Origin};
use crate::trace::kernel::Names;
use crate::trace::listener::Told;

/// One flow that was judged. Times are nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its number among those of this agent, from 1.
    pub number: u64,
    /// When its first packet was seen.
    pub first_ns: u64,
    /// When its last packet was seen, so far.
    pub last_ns: u64,
    /// When it was answered.
    pub answered_ns: Option<u64>,
    /// Addresses and ports as it came to the node.
    pub tuple: Tuple,
    /// Addresses and ports after every translation; the same as `tuple` without one.
    pub translated: Tuple,
    /// What became of it.
    pub verdict: FlowVerdict,
    /// Why Cilium dropped it, if Cilium did.
    pub drop_reason: Option<DropReason>,
    /// Whether it was refused by whoever it reached: a reset, an ICMP error.
    pub is_refused: bool,
    /// Times its SYN came again.
    pub retransmissions: u32,
    /// Who sends.
    pub source: Peer,
    /// Who is meant: the pod, if it is one of this node's.
    pub destination: Peer,
    /// What kind of sender it is.
    pub class: SourceClass,
    /// The Service it came to, as namespace and name.
    pub service: Option<(String, String)>,
    /// The cause's code.
    pub cause: Code,
    /// The cause in words.
    pub sentence: String,
    /// Policies behind the verdict: that admit or deny it, or whose silence drops it.
    pub policies: Vec<PolicyRef>,
    /// Whether it is judged as it comes to a pod or as it leaves one; `None` where no policy is asked.
    pub direction: Option<Direction>,
    /// For a default deny: the entry that came nearest to admitting it, and what it lacked.
    pub nearest: Option<String>,
    /// Where what was observed, the maps and the policy objects contradict each other.
    pub disagreements: Vec<String>,
    /// Private Link's number of the consumer's connection, from its PROXY header.
    pub link_id: Option<u32>,
    /// Where its packets were seen, in order.
    pub hops: Vec<Stop>,
    /// The same of the answers.
    pub replies: Vec<Stop>,
}

impl Flow {
    /// A judged flow, the agent's `number`th.
    pub(crate) fn of(told: Told<'_>, number: u64, now: Moment) -> Self {
        let Told { world, judgement, names } = told;
        let path = &judgement.path;
        let translated = path.final_tuple();
        let stops = |hops: &[Hop]| hops.iter().map(|hop| stop(hop, names, now)).collect();
        let source = Peer::at(world, path.tuple.saddr);
        Self {
            number,
            first_ns: now.unix_ns(path.first_ns),
            last_ns: now.unix_ns(path.last_ns),
            answered_ns: path.answered_ns.map(|at_ns| now.unix_ns(at_ns)),
            tuple: path.tuple,
            translated,
            verdict: judgement.verdict,
            drop_reason: drop_reason(path),
            is_refused: matches!(path.outcome, Outcome::Refused { .. }),
            retransmissions: path.retransmissions,
            source: source.with_identity(world, judgement.identity),
            destination: Peer::at(world, translated.daddr),
            class: SourceClass::of(judgement),
            service: service_of(world, path),
            cause: cause_code(judgement),
            sentence: cause_sentence(judgement, names),
            policies: judgement.explanation.policies.clone(),
            direction: judgement.explanation.policy().map(|step| step.query.direction),
            nearest: (judgement.explanation.near_miss.as_ref())
                .map(|near_miss| near_miss_text(world, &judgement.explanation, near_miss)),
            disagreements: judgement.findings.clone(),
            link_id: judgement.consumer.and_then(|consumer| consumer.link_id),
            hops: stops(&path.hops),
            replies: stops(&path.replies),
        }
    }
}

fn drop_reason(path: &Path) -> Option<DropReason> {
    match path.outcome {
        Outcome::DroppedByCilium { reason, .. } => Some(reason),
        _ => None,
    }
}

fn stop(hop: &Hop, names: &Names, now: Moment) -> Stop {
    Stop { place: place_text(hop.place, names), at_ns: now.unix_ns(hop.ktime_ns), tuple: hop.tuple }
}

/// The Service that a flow came to, by the address it came to or that of a later step of its way.
fn service_of(world: &World, path: &Path) -> Option<(String, String)> {
    let later = path.rewrites.iter().map(|rewrite| rewrite.to);
    std::iter::once(path.tuple).chain(later).find_map(|tuple| service_at(world, &tuple))
}

fn service_at(world: &World, to: &Tuple) -> Option<(String, String)> {
    let named = world.service_names.iter().find(|own| own.address == to.daddr && own.port == to.dport);
    if let Some(named) = named.filter(|named| !named.name.is_empty()) {
        return Some((named.namespace.clone(), named.name.clone()));
    }
    let is_at = |service: &&Service| service.ports.iter().any(|port| leads_to(world, service, port, to));
    let found = world.kubernetes.services.iter().flatten().find(is_at)?;
    Some((found.namespace.clone(), found.name.clone()))
}

/// Whether an address and port is this port of this service: at its own addresses, or at the node's.
fn leads_to(world: &World, service: &Service, port: &ServicePort, to: &Tuple) -> bool {
    let is_own = service.ingress.iter().chain(&service.cluster_ips).any(|own| *own == to.daddr);
    let is_node_port = || port.node_port == Some(to.dport) && world.host_addresses().contains(&to.daddr);
    port.protocol == to.protocol && (is_own && port.port == to.dport || is_node_port())
}

/// One end of a flow, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Cilium's identity.
    pub identity: Option<Identity>,
    /// Its endpoint, on this node.
    pub endpoint: Option<EndpointId>,
    /// Its pod.
    pub pod: Option<PodName>,
    /// Its identity's labels with their sources, `k8s:app=pls-app`, `reserved:world`.
    pub labels: Vec<String>,
}

impl Peer {
    /// Who has this address.
    fn at(world: &World, address: IpAddr) -> Self {
        let AddressOwner::Endpoint(id) = world.owner(address) else {
            let pod = world.kubernetes.pod_at(address);
            let pod = pod.map(|pod| PodName { namespace: pod.namespace.clone(), name: pod.name.clone() });
            return Self { pod, ..Self::default() };
        };
        let Some(endpoint) = world.endpoints.get(&id) else {
            return Self { endpoint: Some(id), ..Self::default() };
        };
        Self {
            identity: Some(endpoint.identity).filter(|identity| *identity != Identity::UNKNOWN),
            endpoint: Some(id),
            pod: endpoint.pod.clone(),
            labels: endpoint.labels.clone(),
        }
    }

    /// With what Cilium takes it for.
    fn with_identity(self, world: &World, identity: Option<Identity>) -> Self {
        let Some(identity) = identity else { return self };
        let known = || match identity.reserved_name() {
            Some(name) => vec![format!("reserved:{name}")],
            None => world.identities.get(&identity).cloned().unwrap_or_default(),
        };
        let labels = if self.labels.is_empty() { known() } else { self.labels };
        Self { identity: Some(identity), labels, ..self }
    }
}

/// Where a packet was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The place, as an operator would say it: `eth0 in`, `lxc6e1a to pod`.
    pub place: String,
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// The packet's addresses and ports there.
    pub tuple: Tuple,
}

/// What kind of sender a flow has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceClass {
    /// A NAT IP of Private Link.
    PrivateLink,
    /// Azure's health probe.
    Probe,
    /// A pod of this node.
    Pod,
    /// The node.
    Node,
    /// Another address of the node's network: a NAT IP that nobody has named, perhaps.
    Subnet,
    /// Anyone else.
    Routed,
}

impl SourceClass {
    /// Each of them.
    pub const ALL: [Self; 6] =
        [Self::PrivateLink, Self::Probe, Self::Pod, Self::Node, Self::Subnet, Self::Routed];

    fn of(judgement: &Judgement) -> Self {
        match &judgement.origin {
            Origin::PlsNatIp(_) => Self::PrivateLink,
            Origin::AzureProbe => Self::Probe,
            Origin::Pod(_) => Self::Pod,
            Origin::Node => Self::Node,
            Origin::Subnet(_) => Self::Subnet,
            Origin::Routed => Self::Routed,
        }
    }

    /// One word, for labels of metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::PrivateLink => "private_link",
            Self::Probe => "probe",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Subnet => "subnet",
            Self::Routed => "routed",
        }
    }
}
