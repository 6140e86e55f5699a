//! What the node's datapath does with the first packet of a connection, step by step, from the maps and rules alone.
//!
//! [`simulate`] follows the packet from where it enters (the wire, a pod, the node itself) through service translation,
//! netfilter, routing and policy. Where backends are chosen at random it follows every one.
//! It cannot fail: a fact that decides and is missing ends a way in [`Outcome::Unknown`].

mod conntrack;
mod identity;
mod policy;
mod service;
mod stack;
mod version;
mod walk;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cilium::auth::AuthKey;
use crate::cilium::ct::CtTuple;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::lb::{Frontend, LbBackend};
use crate::cilium::policy::{PolicyDecision, PolicyQuery};
use crate::cilium::runtime_config::UTime;
use crate::cilium::{Direction, EndpointId};
use crate::netfilter::Hook;
use crate::tuple::Tuple;

pub use walk::{simulate, simulate_noting};

/// ICMP echo request, what a ping sends.
pub const ICMP_ECHO_REQUEST: u8 = 8;
/// ICMPv6 echo request.
pub const ICMPV6_ECHO_REQUEST: u8 = 128;

/// A packet to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The packet as its sender sends it, before any translation. Source port 0: any.
    pub tuple: Tuple,
    /// Judge only this direction's policy; `None` judges every policy on the way.
    pub direction: Option<Direction>,
    /// ICMP type and code, for ICMP.
    pub icmp: Option<(u8, u8)>,
    /// Which part of a fragmented packet it is, if one.
    pub fragment: Option<Fragment>,
    /// `skb->mark` with which the node's stack has it, if something else marked it.
    pub mark: u32,
}

/// A part of a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The first, which has the ports.
    First,
    /// One that follows.
    Later {
        /// The header's identification, host order.
        id: u32,
    },
}

impl Question {
    /// A question about every policy on the way; ICMP is an echo request.
    pub fn new(tuple: Tuple) -> Self {
        let echo = if tuple.saddr.is_ipv6() { ICMPV6_ECHO_REQUEST } else { ICMP_ECHO_REQUEST };
        let icmp = tuple.protocol.is_icmp().then_some((echo, 0));
        Self { tuple, direction: None, icmp, fragment: None, mark: 0 }
    }
}

/// One way through the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trajectory {
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// The packet as it was sent.
    pub sent: Tuple,
    /// The packet at the end.
    pub tuple: Tuple,
    /// How it ended.
    pub outcome: Outcome,
}

impl Trajectory {
    /// The policy checks on the way.
    pub fn policy_steps(&self) -> impl Iterator<Item = &PolicyStep> {
        self.steps.iter().filter_map(|step| match step {
            Step::Policy(policy) => Some(&**policy),
            _ => None,
        })
    }

    /// The policy check that counts: the one that dropped, else the last one.
    pub fn deciding_policy(&self) -> Option<&PolicyStep> {
        self.policy_steps().last()
    }
}

/// One thing that happened to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It came from another node or from outside, by this interface if known.
    FromNetwork {
        /// The interface.
        dev: Option<String>,
        /// It came through Cilium's tunnel.
        overlay: bool,
    },
    /// A pod of this node sent it.
    FromPod(EndpointId),
    /// The node itself sent it.
    FromHost,
    /// Conntrack knows it as the answer to a connection; answers are not judged.
    Reply(CtTuple),
    /// Conntrack knows it as an ICMP error about a connection, which is not judged.
    Related(CtTuple),
    /// Policy is passed by, for another reason.
    Unjudged(Unjudged),
    /// A service's frontend matched, and the packet got no further.
    Frontend(Arc<Frontend>),
    /// Cilium translated the service.
    Service {
        /// The frontend that matched, with the backends that might have been chosen.
        frontend: Arc<Frontend>,
        /// The backend of this way.
        backend: LbBackend,
        /// The conntrack entry that keeps the client with this backend, if one does.
        kept: Option<CtTuple>,
    },
    /// Cilium sends it on to the backend's node.
    Forward {
        /// That node, if known.
        node: Option<IpAddr>,
        /// As whose packet it arrives there.
        sender: Sender,
    },
    /// A netfilter rule rewrote an address.
    Netfilter {
        /// Where in the stack.
        hook: Hook,
        /// The rule, with its table.
        rule: String,
        /// The packet afterwards.
        after: Tuple,
    },
    /// The kernel routed it.
    Route {
        /// Outgoing interface.
        dev: String,
    },
    /// Cilium took the peer's identity from its address.
    Identity {
        /// The address.
        address: IpAddr,
        /// What Cilium made of it.
        identity: Identity,
        /// Why.
        origin: IdentityOrigin,
    },
    /// A policy map was asked.
    Policy(Box<PolicyStep>),
}

/// Why policy is passed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unjudged {
    /// A pod reaches itself through a service.
    Loopback,
    /// ICMP fragmentation needed is always let through.
    FragmentationNeeded,
}

/// As whose packet a service's packet arrives at the backend's node, where that node's policy judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// This node's, by its address if known; in native routing the other node takes it for a remote node.
    ThisNode(Option<IpAddr>),
    /// The client's own: direct server return.
    Client,
    /// It depends on `bpf-lb-mode`, which is not known.
    Unknown,
}

/// Where an identity is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityOrigin {
    /// The ipcache's longest prefix for the address.
    Ipcache(IpNet),
    /// The ipcache has no prefix for the address, so it is world.
    NoPrefix,
    /// The ipcache says host, which the datapath does not believe of a packet without the host's mark: world where the
    /// host's stack lies between, unknown with BPF host routing.
    HostIgnored(IpNet),
    /// The packet carries the host's mark.
    HostMark,
    /// The packet's mark carries it.
    Mark,
    /// The sending endpoint's own identity.
    Endpoint(EndpointId),
    /// Another node sends on a packet from outside through the tunnel, and marks it as world.
    SentOn,
}

/// One question to a policy map, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStep {
    /// Whose policy.
    pub endpoint: EndpointId,
    /// The map's pin name.
    pub map: String,
    /// The packet that policy saw.
    pub tuple: Tuple,
    /// What was asked.
    pub query: PolicyQuery,
    /// What it answered.
    pub decision: PolicyDecision,
    /// A drop was turned into an allow by audit mode.
    pub audited: bool,
    /// What the authentication map said, if it was asked.
    pub authenticated: Option<Authenticated>,
}

impl PolicyStep {
    /// The other end's address, as policy saw it: the source on ingress, the destination on egress.
    pub fn peer(&self) -> IpAddr {
        match self.query.direction {
            Direction::Ingress => self.tuple.saddr,
            Direction::Egress => self.tuple.daddr,
        }
    }
}

/// An authentication that a policy asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// What the datapath looks up.
    pub key: AuthKey,
    /// Until when it holds; `None` if there is no entry.
    pub until: Option<UTime>,
}

/// Where a packet that was let through goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Into the pod.
    Endpoint(EndpointId),
    /// To the node itself.
    Host,
    /// Out of the node by this interface, if known.
    Network(Option<String>),
    /// Judged for one direction only, as asked.
    Judged,
}

/// How a way through the node ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing on this node stops it.
    Allowed(Destination),
    /// Cilium drops it.
    Dropped(DropReason),
    /// A netfilter rule drops or rejects it.
    Filtered {
        /// The rule, with its table.
        rule: String,
        /// It is answered with an error.
        rejected: bool,
    },
    /// A fact that decides is missing.
    Unknown(Unknown),
}

/// A missing fact that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No source knows a frontend for this address and port.
    Frontend {
        /// Address asked for.
        address: IpAddr,
        /// Port asked for.
        port: u16,
    },
    /// The backend is no endpoint of this node; the node that has it decides, if one has.
    RemotePod {
        /// The address.
        address: IpAddr,
        /// The node behind which the ipcache has it.
        node: Option<IpAddr>,
    },
    /// A netfilter rule tests what is not known.
    Rule(String),
    /// A map or answer is missing, by the name in [`crate::world::World::missing`].
    Fact(String),
    /// The L7 proxy decides.
    L7Proxy {
        /// Its port.
        port: u16,
    },
    /// Mutual authentication decides.
    Authentication {
        /// The authentication type.
        auth_type: u8,
    },
    /// IPv4 would have to be translated to IPv6, or the other way round, which is not simulated.
    Nat46x64,
    /// Cilium's versions differ in this, and no policy map tells which it is.
    Version(&'static str),
}
