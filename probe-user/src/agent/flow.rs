//! A judged flow as plain values, for whoever is told of it: Hubble's clients, metrics, traces.

use probe_model::cilium::EndpointId;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::explain::Code;
use probe_model::tuple::Tuple;
use probe_model::world::{PodName, PolicyRef};

use crate::trace::judge::FlowVerdict;

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
    /// Where what was observed, the maps and the policy objects contradict each other.
    pub disagreements: Vec<String>,
    /// Private Link's number of the consumer's connection, from its PROXY header.
    pub link_id: Option<u32>,
    /// Where its packets were seen, in order.
    pub hops: Vec<Stop>,
    /// The same of the answers.
    pub replies: Vec<Stop>,
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
