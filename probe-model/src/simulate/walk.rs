//! The walk itself: where a packet enters, and whose policies it meets.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::conntrack::Known;
use super::identity::{MAGIC_HOST, Resolved, identity_mark};
use super::{Destination, IdentityOrigin, Outcome, Question, Step, Trajectory, Unknown};
use crate::cilium::ct::CtTuple;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::ipcache::Ipcache;
use crate::cilium::lb::{LbClient, LbFound};
use crate::cilium::{Direction, EndpointId};
use crate::tuple::Tuple;
use crate::world::{AddressOwner, ConfigSource, Endpoint, RoutingMode, World};

/// Follows the first packet of a connection through the node: every way it can take.
pub fn simulate(world: &World, question: &Question) -> Vec<Trajectory> {
    simulate_noting(world, question).0
}

/// As [`simulate`], and the conntrack entries that were asked for and are not known, or of which it is not known what they
/// mean: the ways are those of a packet that has none of them. With them known ([`World::look_up`]) others may be asked for.
pub fn simulate_noting(world: &World, question: &Question) -> (Vec<Trajectory>, BTreeSet<CtTuple>) {
    // Of ways that are walked to compare them, too: the comparison rests on those.
    let unknown_entries = RefCell::default();
    let ways = simulate_by_any(world, question, &unknown_entries);
    (ways, unknown_entries.into_inner())
}

fn simulate_by_any(world: &World, question: &Question, unknown: &UnknownEntries) -> Vec<Trajectory> {
    if let (None, [first, others @ ..]) = (&world.ipcache, world.ipcaches_in_use.as_slice()) {
        let ways = simulate_by(world, Some(first), question, unknown);
        // Whichever of them a program on the way asks: every way is the same, to the last step.
        if others.iter().all(|other| simulate_by(world, Some(other), question, unknown) == ways) {
            return ways;
        }
    }
    simulate_by(world, world.ipcache.as_ref(), question, unknown)
}

fn simulate_by(
    world: &World,
    ipcache: Option<&Ipcache>,
    question: &Question,
    unknown_entries: &UnknownEntries,
) -> Vec<Trajectory> {
    let walk = Walk {
        world,
        ipcache,
        question: *question,
        // As many as most ways have.
        steps: Vec::with_capacity(8),
        tuple: question.tuple,
        mark: question.mark,
        delivery: Delivery::Stack,
        untracked_fragment: false,
        unknown_entries,
    };
    if question.tuple.saddr.is_ipv4() != question.tuple.daddr.is_ipv4() {
        return walk.unknown(Unknown::Nat46x64);
    }
    if world.lxc.is_none() && world.endpoints.is_empty() {
        // Whose address is whose?
        return walk.unknown(Unknown::Fact("cilium_lxc".to_owned()));
    }
    match world.owner(question.tuple.saddr) {
        AddressOwner::Endpoint(id) if !world.is_host_endpoint(id) => walk.enter_from_pod(id),
        AddressOwner::Endpoint(_) | AddressOwner::Host => walk.enter_from_host(),
        AddressOwner::Elsewhere => walk.enter_from_network(),
    }
}

/// How a packet gets from the uplink to the pod. The two give the node's own address, without a mark, other identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Through the host's stack; the pod's own program resolves the source again.
    Stack,
    /// By BPF host routing: with what the uplink's program resolved.
    HostRouting,
}

/// One way so far.
#[derive(Clone)]
pub(super) struct Walk<'w> {
    pub(super) world: &'w World,
    /// The ipcache that Cilium's programs ask.
    pub(super) ipcache: Option<&'w Ipcache>,
    pub(super) question: Question,
    pub(super) steps: Vec<Step>,
    /// The packet now.
    pub(super) tuple: Tuple,
    /// `skb->mark` now.
    pub(super) mark: u32,
    pub(super) delivery: Delivery,
    /// A fragment, where Cilium does not track them: it has no ports.
    pub(super) untracked_fragment: bool,
    /// Conntrack entries that were asked for and are not known, and those that are left aside for that.
    pub(super) unknown_entries: &'w UnknownEntries,
}

/// Filled by every way of one question.
type UnknownEntries = RefCell<BTreeSet<CtTuple>>;

impl Walk<'_> {
    pub(super) fn end(self, outcome: Outcome) -> Vec<Trajectory> {
        vec![Trajectory { steps: self.steps, sent: self.question.tuple, tuple: self.tuple, outcome }]
    }

    pub(super) fn unknown(self, unknown: Unknown) -> Vec<Trajectory> {
        self.end(Outcome::Unknown(unknown))
    }

    pub(super) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Whether Cilium handles packets of this family; believed unless the agent says not.
    pub(super) fn handles(&self, family: Family) -> bool {
        let config = &self.world.config;
        let on = match family {
            Family::V4 => config.ipv4,
            Family::V6 => config.ipv6,
        };
        on || config.source == ConfigSource::Pins
    }

    /// From the wire: `cil_from_netdev` with kube-proxy replacement, else the host's stack; or from the tunnel.
    fn enter_from_network(self) -> Vec<Trajectory> {
        let remote_pod = self.world.config.routing == RoutingMode::Tunnel
            && self.tunnel_endpoint(self.tuple.saddr).is_some();
        let world = self.world;
        let dev = if remote_pod { None } else { world.uplink() };
        let walk = self.step(Step::FromNetwork { dev: dev.map(str::to_owned), overlay: remote_pod });
        if remote_pod {
            return walk.out_of_tunnel();
        }
        if !walk.world.config.node_port || !walk.handles(Family::of(walk.tuple.daddr)) {
            return walk.host_stack(dev);
        }
        let walk = match walk.with_ports() {
            Ok(walk) => walk,
            Err(ended) => return ended,
        };
        match walk.frontend(LbClient::Outside) {
            Err(unknown) => walk.unknown(unknown),
            Ok(LbFound::Frontend(frontend)) => walk.north_south(&frontend),
            Ok(LbFound::OtherPorts(whole)) => walk.refuse(&whole, DropReason::NO_SERVICE),
            Ok(LbFound::Nothing) => walk.past_uplink(),
        }
    }

    /// `cil_from_overlay`: the packet carries the identity that the sending node gave it.
    ///
    /// A pod's is the ipcache's, too. A node's address stands for two: the node itself, or somebody outside whose packet
    /// the node sends on to a service's backend and marks as world. Source: `handle_ipv4`, Cilium 1.14
    /// `bpf/bpf_overlay.c`; `nodeport_nat_ipv4_fwd`, `bpf/lib/nodeport.h`.
    fn out_of_tunnel(self) -> Vec<Trajectory> {
        let sender = self.tuple.saddr;
        if !self.identity_of(sender).is_ok_and(|(identity, _)| identity.is_node()) {
            return self.local_delivery(None);
        }
        let sent_on = match self.world_identity(sender) {
            Ok(world) => self.clone().local_delivery(Some((world, IdentityOrigin::SentOn))),
            Err(unknown) => self.clone().unknown(unknown),
        };
        self.local_delivery(None).into_iter().chain(sent_on).collect()
    }

    /// From the uplink's program to the pod: at once with BPF host routing, else through the host's stack, whose
    /// netfilter may still drop or rewrite.
    pub(super) fn past_uplink(self) -> Vec<Trajectory> {
        let world = self.world;
        let is_pod = matches!(world.owner(self.tuple.daddr), AddressOwner::Endpoint(_));
        if !is_pod {
            return self.local_delivery(None);
        }
        self.by_host_routing(|walk| walk.local_delivery(None), |walk| walk.host_stack(world.uplink()))
    }

    /// One of two ways with kube-proxy replacement: by BPF host routing or by the host's stack, if its rules are known.
    ///
    /// Where only the pins tell the configuration, both must come to the same.
    fn by_host_routing(
        self,
        direct: impl Fn(Self) -> Vec<Trajectory>,
        stack: impl Fn(Self) -> Vec<Trajectory>,
    ) -> Vec<Trajectory> {
        let config = &self.world.config;
        let legacy = |walk: Self| if walk.rules().is_some() { stack(walk) } else { direct(walk) };
        let routed = |walk: Self| direct(Self { delivery: Delivery::HostRouting, ..walk });
        match config.source {
            ConfigSource::Agent if config.host_legacy_routing => legacy(self),
            ConfigSource::Agent => routed(self),
            ConfigSource::Pins => {
                let (routed, legacy) = (routed(self.clone()), legacy(self.clone()));
                let outcomes =
                    |ways: &[Trajectory]| ways.iter().map(|way| way.outcome.clone()).collect::<Vec<_>>();
                if outcomes(&routed) == outcomes(&legacy) {
                    return routed;
                }
                self.unknown(Unknown::Fact("rest/config".to_owned()))
            }
        }
    }

    /// From a pod: `cil_from_container`.
    fn enter_from_pod(self, source: EndpointId) -> Vec<Trajectory> {
        let walk = self.step(Step::FromPod(source));
        if !walk.handles(Family::of(walk.tuple.saddr)) {
            return walk.end(Outcome::Dropped(DropReason::UNKNOWN_L3));
        }
        let walk = match walk.with_ports() {
            Ok(walk) => walk,
            Err(ended) => return ended,
        };
        match walk.frontend(LbClient::Inside) {
            Err(unknown) => walk.unknown(unknown),
            Ok(LbFound::Frontend(frontend)) => {
                let itself = walk.tuple.saddr;
                walk.balance(&frontend, |walk| {
                    let back = walk.tuple.daddr == itself;
                    if back { walk.loopback(source) } else { walk.egress(source) }
                })
            }
            Ok(LbFound::Nothing | LbFound::OtherPorts(_)) => walk.egress(source),
        }
    }

    /// The sending pod's egress policy, then on to the destination.
    fn egress(self, source: EndpointId) -> Vec<Trajectory> {
        let mut walk = self;
        if let Some(known) = walk.known(Direction::Egress) {
            return walk.step(known.into()).end(Outcome::Allowed(Destination::Judged));
        }
        let (identity, origin) = match walk.identity_of(walk.tuple.daddr) {
            Ok(found) => found,
            Err(unknown) => return walk.unknown(unknown),
        };
        if walk.question.direction != Some(Direction::Ingress) {
            let address = walk.tuple.daddr;
            walk = walk.step(Step::Identity { address, identity, origin });
            walk = match walk.judge(source, Direction::Egress, identity) {
                Ok(walk) => walk,
                Err(ended) => return ended,
            };
            if walk.question.direction == Some(Direction::Egress) {
                return walk.end(Outcome::Allowed(Destination::Judged));
            }
        }
        let identity = walk.world.endpoint_identity(source);
        if walk.world.config.identity_mark {
            walk.mark |= identity_mark(identity);
        }
        match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Endpoint(_) => {
                walk.local_delivery(Some((identity, IdentityOrigin::Endpoint(source))))
            }
            AddressOwner::Host if walk.world.config.node_port => match walk.host_policy_ingress() {
                Ok(walk) => walk.end(Outcome::Allowed(Destination::Host)),
                Err(ended) => ended,
            },
            AddressOwner::Host => {
                let dev = walk.interface_of(source);
                walk.host_stack(dev.as_deref())
            }
            AddressOwner::Elsewhere => walk.leave(source),
        }
    }

    fn interface_of(&self, id: EndpointId) -> Option<String> {
        self.world.endpoints.get(&id)?.interface.as_ref()?.name.clone()
    }

    /// A pod's packet to an address that no endpoint of this node has.
    fn leave(self, source: EndpointId) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        let node = self.tunnel_endpoint(address);
        let identity = self.identity_of(address).map(|(identity, _)| identity);
        let cluster_pod = identity.is_ok_and(|identity| {
            !identity.is_local_scope() && !identity.is_remote_node_scope() && identity.0 >= 256
        });
        if node.is_some() || cluster_pod {
            return self.unknown(Unknown::RemotePod { address, node });
        }
        let dev = self.interface_of(source);
        if !self.world.config.node_port {
            return self.host_stack(dev.as_deref());
        }
        self.by_host_routing(Self::out_of_node, |walk| walk.host_stack(dev.as_deref()))
    }

    /// From the node itself: socket load balancing or netfilter, then the route to the pod.
    fn enter_from_host(self) -> Vec<Trajectory> {
        let mut walk = self.step(Step::FromHost);
        if walk.rules().is_none() && walk.question.mark == 0 {
            // Without its rules at hand: Cilium's own OUTPUT rule marks what the host sends.
            walk.mark |= MAGIC_HOST;
        }
        let frontend =
            if walk.world.config.node_port { walk.frontend(LbClient::Inside) } else { Ok(LbFound::Nothing) };
        match frontend {
            Err(unknown) => walk.unknown(unknown),
            Ok(LbFound::Frontend(frontend)) => walk.balance(&frontend, Self::host_output),
            Ok(LbFound::Nothing | LbFound::OtherPorts(_)) => walk.host_output(),
        }
    }

    /// To the destination's policy if it is a local pod, with the source's identity if the caller knows it.
    pub(super) fn local_delivery(self, source: Option<Resolved>) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        match self.world.owner(address) {
            AddressOwner::Endpoint(id) if !self.world.is_host_endpoint(id) => self.ingress(id, source),
            AddressOwner::Endpoint(_) | AddressOwner::Host => {
                let before = self.tuple;
                self.reach_host(before)
            }
            AddressOwner::Elsewhere => self.not_local(),
        }
    }

    /// The receiving pod's ingress policy.
    fn ingress(self, id: EndpointId, source: Option<Resolved>) -> Vec<Trajectory> {
        if !self.handles(Family::of(self.tuple.daddr)) {
            return self.end(Outcome::Dropped(DropReason::UNKNOWN_L3));
        }
        let mut walk = match self.with_ports() {
            Ok(walk) => walk,
            Err(ended) => return ended,
        };
        if let Some(known) = walk.known(Direction::Ingress) {
            return walk.step(known.into()).end(Outcome::Allowed(Destination::Endpoint(id)));
        }
        if walk.question.direction == Some(Direction::Egress) {
            return walk.end(Outcome::Allowed(Destination::Judged));
        }
        let source = source.map_or_else(|| walk.source_identity(), Ok);
        let (identity, origin) = match source {
            Ok(found) => found,
            Err(unknown) => return walk.unknown(unknown),
        };
        let address = walk.tuple.saddr;
        walk = walk.step(Step::Identity { address, identity, origin });
        match walk.judge(id, Direction::Ingress, identity) {
            Ok(walk) => walk.end(Outcome::Allowed(Destination::Endpoint(id))),
            Err(ended) => ended,
        }
    }

    /// The node's own ingress policy, if the host firewall is on.
    pub(super) fn host_policy_ingress(self) -> Result<Self, Vec<Trajectory>> {
        self.host_policy(Direction::Ingress, Self::source_identity)
    }

    /// The node's own egress policy, if the host firewall is on.
    pub(super) fn host_policy_egress(self) -> Result<Self, Vec<Trajectory>> {
        self.host_policy(Direction::Egress, |walk| walk.identity_of(walk.tuple.daddr))
    }

    fn host_policy(
        self,
        direction: Direction,
        peer: impl Fn(&Self) -> Result<Resolved, Unknown>,
    ) -> Result<Self, Vec<Trajectory>> {
        let other = match direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        if !self.world.config.host_firewall || self.question.direction == Some(other) {
            return Ok(self);
        }
        let Some(host) =
            self.world.endpoints.values().find(|endpoint| endpoint.is_host()).map(|host: &Endpoint| host.id)
        else {
            return Err(self.unknown(Unknown::Fact("rest/endpoint".to_owned())));
        };
        let walk = self.with_ports()?;
        if let Some(known) = walk.known(direction) {
            return Ok(walk.step(known.into()));
        }
        let (identity, origin) = match peer(&walk) {
            Ok(found) => found,
            Err(unknown) => return Err(walk.unknown(unknown)),
        };
        let address = match direction {
            Direction::Ingress => walk.tuple.saddr,
            Direction::Egress => walk.tuple.daddr,
        };
        walk.step(Step::Identity { address, identity, origin }).judge(host, direction, identity)
    }

    pub(super) fn came_from_network(&self) -> bool {
        matches!(self.steps.first(), Some(Step::FromNetwork { .. }))
    }
}

impl From<Known> for Step {
    fn from(known: Known) -> Self {
        match known {
            Known::Reply(entry) => Self::Reply(entry),
            Known::Related(entry) => Self::Related(entry),
        }
    }
}
