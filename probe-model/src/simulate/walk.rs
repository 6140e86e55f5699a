//! The walk itself.

use std::net::IpAddr;

use super::{Destination, IdentityOrigin, Outcome, PolicyStep, Question, Step, Trajectory, Unknown};
use crate::cilium::ct::CtTuple;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::identity::Identity;
use crate::cilium::lb::{Frontend, LbKey, LbService};
use crate::cilium::policy::{PolicyQuery, PolicyVerdict};
use crate::cilium::{Direction, EndpointId};
use crate::netfilter::walk::Facts;
use crate::netfilter::{End, Hook, Packet, Ruleset};
use crate::tuple::{Protocol, Tuple};
use crate::world::{AddressOwner, ConfigSource, RoutingMode, World};

/// ICMP destination unreachable, fragmentation needed: let through before any lookup.
const ICMP_FRAG_NEEDED: (u8, u8) = (3, 4);
/// The bits of `skb->mark` in which Cilium says who sent the packet, and the value for the host.
const MARK_MAGIC_MASK: u32 = 0x0F00;
const MARK_MAGIC_HOST: u32 = 0x0C00;
/// Ports that NodePort services have by default.
const NODE_PORTS: core::ops::RangeInclusive<u16> = 30000..=32767;
/// The interface through which the host reaches pods without a route of their own.
const CILIUM_HOST: &str = "cilium_host";

/// Follows the first packet of a connection through the node: every way it can take.
pub fn simulate(world: &World, question: &Question) -> Vec<Trajectory> {
    let walk = Walk { world, question: *question, steps: Vec::new(), tuple: question.tuple, mark: 0 };
    if question.tuple.saddr.is_ipv6() || question.tuple.daddr.is_ipv6() {
        return walk.end(Outcome::Unknown(Unknown::Ipv6));
    }
    match world.owner(question.tuple.saddr) {
        AddressOwner::Endpoint(id) if !world.is_host_endpoint(id) => walk.enter_from_pod(id),
        AddressOwner::Endpoint(_) | AddressOwner::Host => walk.enter_from_host(),
        AddressOwner::Elsewhere => walk.enter_from_network(),
    }
}

/// One way so far.
#[derive(Clone)]
struct Walk<'w> {
    world: &'w World,
    question: Question,
    steps: Vec<Step>,
    /// The packet now.
    tuple: Tuple,
    /// `skb->mark` now.
    mark: u32,
}

impl Walk<'_> {
    fn end(self, outcome: Outcome) -> Vec<Trajectory> {
        vec![Trajectory { steps: self.steps, sent: self.question.tuple, tuple: self.tuple, outcome }]
    }

    fn unknown(self, unknown: Unknown) -> Vec<Trajectory> {
        self.end(Outcome::Unknown(unknown))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// From the wire: `cil_from_netdev` with kube-proxy replacement, else the host's stack; or from the tunnel.
    fn enter_from_network(self) -> Vec<Trajectory> {
        let remote_pod = self.world.config.routing == RoutingMode::Tunnel
            && self.tunnel_endpoint(self.tuple.saddr).is_some();
        let dev = if remote_pod { None } else { self.world.uplink().map(str::to_owned) };
        let walk = self.step(Step::FromNetwork { dev: dev.clone(), overlay: remote_pod });
        if remote_pod {
            return walk.local_delivery(None);
        }
        if !walk.world.config.node_port {
            return walk.host_stack(dev.as_deref());
        }
        match walk.frontend() {
            Err(fact) => walk.unknown(Unknown::Fact(fact)),
            Ok(Some(frontend)) => walk.north_south(&frontend),
            Ok(None) => walk.past_uplink(),
        }
    }

    /// From the uplink's program to the pod: at once with BPF host routing, else through the host's stack, whose
    /// netfilter may still drop or rewrite.
    fn past_uplink(self) -> Vec<Trajectory> {
        let dev = self.world.uplink().map(str::to_owned);
        let is_pod = matches!(self.world.owner(self.tuple.daddr), AddressOwner::Endpoint(_));
        if !is_pod {
            return self.local_delivery(None);
        }
        self.by_host_routing(|walk| walk.local_delivery(None), |walk| walk.host_stack(dev.as_deref()))
    }

    /// One of two ways with kube-proxy replacement: by BPF host routing or by the host's stack.
    ///
    /// Where only the pins tell the configuration, both must come to the same.
    fn by_host_routing(
        self,
        direct: impl Fn(Self) -> Vec<Trajectory>,
        stack: impl Fn(Self) -> Vec<Trajectory>,
    ) -> Vec<Trajectory> {
        let config = &self.world.config;
        if self.world.netfilter.is_none() {
            return direct(self);
        }
        match config.source {
            ConfigSource::Agent if config.host_legacy_routing => stack(self),
            ConfigSource::Agent => direct(self),
            ConfigSource::Pins => {
                let (direct, stack) = (direct(self.clone()), stack(self.clone()));
                let outcomes =
                    |ways: &[Trajectory]| ways.iter().map(|way| way.outcome.clone()).collect::<Vec<_>>();
                if outcomes(&direct) == outcomes(&stack) {
                    return direct;
                }
                self.unknown(Unknown::Fact("rest/config".to_owned()))
            }
        }
    }

    /// `nodeport_lb4`: checks, then a backend.
    fn north_south(self, frontend: &Frontend) -> Vec<Trajectory> {
        let service = &frontend.service;
        if service.flags & LbService::SOURCE_RANGE != 0
            && self.world.config.source_range_check
            && !self.in_source_range(service.rev_nat_index)
        {
            return self.end(Outcome::Dropped(DropReason::NOT_IN_SRC_RANGE));
        }
        if !service.is_routable() {
            return self.end(Outcome::Dropped(DropReason::IS_CLUSTER_IP));
        }
        self.each_backend(frontend, Self::past_uplink)
    }

    /// Every backend of `frontend`, each as a way of its own that goes on with `next`.
    fn each_backend(self, frontend: &Frontend, next: impl Fn(Self) -> Vec<Trajectory>) -> Vec<Trajectory> {
        if frontend.service.count == 0 {
            return self.end(Outcome::Dropped(DropReason::NO_SERVICE));
        }
        if frontend.service.flags2 & LbService::L7_LOADBALANCER != 0 {
            return self.unknown(Unknown::L7Proxy { port: 0 });
        }
        let backends = frontend.backends.iter().flat_map(|slot| {
            let Some(backend) = slot.backend else {
                return self.clone().unknown(Unknown::Backend { id: slot.backend_id });
            };
            let mut walk = self.clone().step(Step::Service { frontend: Box::new(frontend.clone()), backend });
            walk.tuple.daddr = backend.address;
            walk.tuple.dport = backend.port;
            next(walk)
        });
        backends.collect()
    }

    /// From a pod: `cil_from_container`.
    fn enter_from_pod(self, source: EndpointId) -> Vec<Trajectory> {
        let walk = self.step(Step::FromPod(source));
        match walk.frontend() {
            Err(fact) => walk.unknown(Unknown::Fact(fact)),
            Ok(Some(frontend)) => walk.each_backend(&frontend, |walk| walk.egress(source)),
            Ok(None) => walk.egress(source),
        }
    }

    /// The sending pod's egress policy, then on to the destination.
    fn egress(self, source: EndpointId) -> Vec<Trajectory> {
        let mut walk = self;
        if let Some(entry) = walk.reply_of(Direction::Egress) {
            return walk.step(Step::Reply(entry)).end(Outcome::Allowed(Destination::Judged));
        }
        let (identity, origin) = match walk.identity_of(walk.tuple.daddr) {
            Ok(found) => found,
            Err(fact) => return walk.unknown(Unknown::Fact(fact)),
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
        match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Endpoint(_) => {
                walk.local_delivery(Some((identity, IdentityOrigin::Endpoint(source))))
            }
            AddressOwner::Host if walk.world.config.node_port => {
                walk.end(Outcome::Allowed(Destination::Host))
            }
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
        let cluster_pod = identity.is_ok_and(|identity| !identity.is_local_scope() && identity.0 >= 256);
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
        if walk.world.netfilter.is_none() {
            // Without its rules at hand: Cilium's own OUTPUT rule marks what the host sends.
            walk.mark |= MARK_MAGIC_HOST;
        }
        let frontend = if walk.world.config.node_port { walk.frontend() } else { Ok(None) };
        match frontend {
            Err(fact) => walk.unknown(Unknown::Fact(fact)),
            Ok(Some(frontend)) => walk.each_backend(&frontend, Self::host_output),
            Ok(None) => walk.host_output(),
        }
    }

    fn host_output(self) -> Vec<Trajectory> {
        self.netfilter(Hook::Output, None, None, |walk| match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Host => walk.end(Outcome::Allowed(Destination::Host)),
            _ => walk.forward_to_route(None, false),
        })
    }

    /// The host's stack between two of Cilium's hooks: netfilter and routing.
    fn host_stack(self, in_dev: Option<&str>) -> Vec<Trajectory> {
        let before = self.tuple;
        self.netfilter(Hook::Prerouting, in_dev, None, |walk| match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Host => walk.reach_host(before),
            _ => walk.forward_to_route(in_dev, true),
        })
    }

    /// To the node itself, unless a NodePort may hide behind the port.
    fn reach_host(self, before: Tuple) -> Vec<Trajectory> {
        let maybe_node_port = before == self.tuple && NODE_PORTS.contains(&self.tuple.dport);
        if maybe_node_port {
            return self.unknown(Unknown::Frontend { address: before.daddr, port: before.dport });
        }
        self.end(Outcome::Allowed(Destination::Host))
    }

    /// Routing, then FORWARD (for packets that are not the node's own) and POSTROUTING, then where the route leads.
    fn forward_to_route(self, in_dev: Option<&str>, forwarded: bool) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        let route = self.world.route(address).map(|route| route.dev.clone());
        let Some(dev) = route else {
            // Rules that rewrite the source ask for the outgoing interface.
            return match self.world.owner(address) {
                _ if self.world.netfilter.is_some() => self.unknown(Unknown::Fact("routes".to_owned())),
                AddressOwner::Endpoint(_) => self.local_delivery(None),
                _ if self.came_from_network() => self.unknown_frontend(),
                _ => self.unknown(Unknown::Fact("routes".to_owned())),
            };
        };
        let walk = self.step(Step::Route { dev: dev.clone() });
        let after_forward =
            |walk: Self| walk.netfilter(Hook::Postrouting, in_dev, Some(&dev), |walk| walk.leave_by(&dev));
        if forwarded {
            walk.netfilter(Hook::Forward, in_dev, Some(&dev), after_forward)
        } else {
            after_forward(walk)
        }
    }

    /// Out of the stack by `dev`: to a pod, into the tunnel, or out of the node.
    fn leave_by(self, dev: &str) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        match self.world.owner(address) {
            AddressOwner::Endpoint(_) => self.local_delivery(None),
            AddressOwner::Host => self.end(Outcome::Allowed(Destination::Host)),
            AddressOwner::Elsewhere if dev == CILIUM_HOST => self.via_cilium_host(),
            AddressOwner::Elsewhere if self.came_from_network() => self.unknown_frontend(),
            AddressOwner::Elsewhere => self.end(Outcome::Allowed(Destination::Network(Some(dev.to_owned())))),
        }
    }

    /// `cil_from_host` with a destination that is no local endpoint: the tunnel, or unroutable.
    fn via_cilium_host(self) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        if let Some(node) = self.tunnel_endpoint(address) {
            return self.unknown(Unknown::RemotePod { address, node: Some(node) });
        }
        match self.identity_of(address) {
            Err(fact) => self.unknown(Unknown::Fact(fact)),
            Ok((Identity::WORLD, _)) => self.end(Outcome::Dropped(DropReason::UNROUTABLE)),
            Ok(_) => self.unknown(Unknown::RemotePod { address, node: None }),
        }
    }

    /// A packet from the wire to an address that is neither a pod's nor the node's.
    fn unknown_frontend(self) -> Vec<Trajectory> {
        let Tuple { daddr: address, dport: port, .. } = self.tuple;
        self.unknown(Unknown::Frontend { address, port })
    }

    /// A pod's packet that leaves the node with kube-proxy replacement.
    fn out_of_node(self) -> Vec<Trajectory> {
        let dev = self.world.route(self.tuple.daddr).map(|route| route.dev.clone());
        if dev.as_deref() == Some(CILIUM_HOST) {
            return self.via_cilium_host();
        }
        self.end(Outcome::Allowed(Destination::Network(dev)))
    }

    /// To the destination's policy if it is a local pod, with the source's identity if the caller knows it.
    fn local_delivery(self, source: Option<(Identity, IdentityOrigin)>) -> Vec<Trajectory> {
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

    /// From the wire, with kube-proxy replacement or from the tunnel, to an address that no endpoint here has.
    fn not_local(self) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        let translated = self.steps.iter().any(|step| matches!(step, Step::Service { .. }));
        let node = self.tunnel_endpoint(address);
        if translated || node.is_some() {
            return self.unknown(Unknown::RemotePod { address, node });
        }
        match self.world.route(address) {
            Some(route) if route.dev == CILIUM_HOST => self.via_cilium_host(),
            _ => self.unknown_frontend(),
        }
    }

    /// The receiving pod's ingress policy.
    fn ingress(self, id: EndpointId, source: Option<(Identity, IdentityOrigin)>) -> Vec<Trajectory> {
        let mut walk = self;
        if let Some(entry) = walk.reply_of(Direction::Ingress) {
            return walk.step(Step::Reply(entry)).end(Outcome::Allowed(Destination::Endpoint(id)));
        }
        if walk.question.direction == Some(Direction::Egress) {
            return walk.end(Outcome::Allowed(Destination::Judged));
        }
        let source = source.map_or_else(|| walk.source_identity(), Ok);
        let (identity, origin) = match source {
            Ok(found) => found,
            Err(fact) => return walk.unknown(Unknown::Fact(fact)),
        };
        let address = walk.tuple.saddr;
        walk = walk.step(Step::Identity { address, identity, origin });
        match walk.judge(id, Direction::Ingress, identity) {
            Ok(walk) => walk.end(Outcome::Allowed(Destination::Endpoint(id))),
            Err(ended) => ended,
        }
    }

    /// The source's identity as the receiving side resolves it: the host's mark, else the ipcache, which is not believed
    /// when it says host.
    ///
    /// Source: `resolve_srcid_ipv4` and `tail_ipv4_to_endpoint`, Cilium 1.14 `bpf/bpf_host.c`, `bpf/bpf_lxc.c`.
    fn source_identity(&self) -> Result<(Identity, IdentityOrigin), String> {
        if self.mark & MARK_MAGIC_MASK == MARK_MAGIC_HOST {
            return Ok((Identity::HOST, IdentityOrigin::HostMark));
        }
        match self.identity_of(self.tuple.saddr)? {
            (Identity::HOST, IdentityOrigin::Ipcache(prefix)) => {
                Ok((Identity::WORLD, IdentityOrigin::HostIgnored(prefix)))
            }
            found => Ok(found),
        }
    }

    /// Asks `id`'s policy map; goes on if it allows.
    fn judge(
        self,
        id: EndpointId,
        direction: Direction,
        identity: Identity,
    ) -> Result<Self, Vec<Trajectory>> {
        let config = &self.world.config;
        if self.question.icmp == Some(ICMP_FRAG_NEEDED)
            && self.tuple.protocol == Protocol::ICMP
            && config.allow_icmp_frag_needed
        {
            return Ok(self);
        }
        let name = crate::cilium::policy::pin_name(id);
        let Some(policy) = self.world.policy.get(&id) else {
            return Err(self.unknown(Unknown::Fact(name)));
        };
        let port = match self.question.icmp {
            Some((icmp_type, _)) if config.icmp_rules => u16::from(icmp_type),
            _ => self.tuple.dport,
        };
        let protocol = self.tuple.protocol.0;
        let query = PolicyQuery { identity, direction, protocol, port, untracked_fragment: false };
        let decision = policy.map.lookup(query);
        let agent = self.world.endpoints.get(&id).and_then(|endpoint| endpoint.policy.as_ref());
        let audit = config.audit_mode || agent.is_some_and(|policy| policy.audit_mode);
        let audited = audit && matches!(decision.verdict, PolicyVerdict::Drop(_));
        let step = PolicyStep {
            endpoint: id,
            map: policy.name.clone(),
            tuple: self.tuple,
            query,
            decision,
            audited,
        };
        let walk = self.step(Step::Policy(Box::new(step)));
        match decision.verdict {
            _ if audited => Ok(walk),
            PolicyVerdict::Allow { proxy_port: 0 } => Ok(walk),
            PolicyVerdict::Allow { proxy_port } => Err(walk.unknown(Unknown::L7Proxy { port: proxy_port })),
            PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED) => {
                Err(walk.unknown(Unknown::Authentication { auth_type: decision.auth_type }))
            }
            PolicyVerdict::Drop(reason) => Err(walk.end(Outcome::Dropped(reason))),
        }
    }

    /// The conntrack entry of which this packet is an answer, seen from the endpoint in `direction`.
    ///
    /// Only with both ports known; looked up as the datapath does, under the connection's own direction.
    fn reply_of(&self, direction: Direction) -> Option<CtTuple> {
        let Tuple { sport, dport, protocol, .. } = self.tuple;
        if !protocol.has_ports() || sport == 0 || dport == 0 {
            return None;
        }
        let connection = self.tuple.reversed();
        let entry = match direction {
            // The pod answers: the connection came in from the packet's destination.
            Direction::Egress => CtTuple::ingress(connection),
            // The pod is answered: the connection went out to the packet's source.
            Direction::Ingress => CtTuple::egress(connection),
        };
        self.world.connections(Family::of(self.tuple.daddr))?.contains_key(&entry).then_some(entry)
    }

    /// The Cilium frontend of the packet's destination; `Err` names the missing map.
    fn frontend(&self) -> Result<Option<Frontend>, String> {
        if !self.tuple.protocol.has_ports() {
            return Ok(None);
        }
        match &self.world.lb {
            Some(lb) => {
                let Tuple { daddr: address, dport, .. } = self.tuple;
                Ok(lb.frontend(LbKey { address, dport, backend_slot: 0, proto: 0, scope: 0 }))
            }
            // A pod's own address is no frontend, whatever the services are.
            None if matches!(self.world.owner(self.tuple.daddr), AddressOwner::Endpoint(_)) => Ok(None),
            None => Err("cilium_lb4_services_v2".to_owned()),
        }
    }

    fn in_source_range(&self, rev_nat_id: u16) -> bool {
        let lb = self.world.lb.as_ref();
        lb.and_then(|lb| lb.in_source_range(rev_nat_id, self.tuple.saddr)) == Some(true)
    }

    /// The ipcache's identity of an address; `Err` names the missing map.
    fn identity_of(&self, address: IpAddr) -> Result<(Identity, IdentityOrigin), String> {
        let ipcache = self.world.ipcache.as_ref().ok_or_else(|| "cilium_ipcache".to_owned())?;
        Ok(match ipcache.lookup(address) {
            Some((prefix, info)) => (info.sec_identity, IdentityOrigin::Ipcache(prefix)),
            None => (Identity::WORLD, IdentityOrigin::NoPrefix),
        })
    }

    /// The node behind which the ipcache has an address.
    fn tunnel_endpoint(&self, address: IpAddr) -> Option<IpAddr> {
        let (_, info) = self.world.ipcache.as_ref()?.lookup(address)?;
        info.tunnel_endpoint.filter(|node| !self.world.host_addresses().contains(node))
    }

    fn came_from_network(&self) -> bool {
        matches!(self.steps.first(), Some(Step::FromNetwork { .. }))
    }

    /// Every way through a netfilter hook; those that pass go on with `next`.
    fn netfilter(
        self,
        hook: Hook,
        in_dev: Option<&str>,
        out_dev: Option<&str>,
        next: impl Fn(Self) -> Vec<Trajectory>,
    ) -> Vec<Trajectory> {
        let world = self.world;
        let Some(rules) = &world.netfilter else {
            return next(self);
        };
        let is_local = |address: IpAddr| world.owner(address) == AddressOwner::Host;
        let masquerade = |dev: &str| world.primary_address(dev);
        let facts = Facts { is_local: &is_local, masquerade: &masquerade };
        let (dnat, snat) = self.rewritten();
        let packet = Packet {
            tuple: self.tuple,
            mark: self.mark,
            in_dev: in_dev.map(str::to_owned),
            out_dev: out_dev.map(str::to_owned),
            dnat,
            snat,
        };
        let ways = Ruleset::traverse(rules, hook, packet, &facts).into_iter().flat_map(|way| {
            let mut walk = self.clone();
            walk.tuple = way.packet.tuple;
            walk.mark = way.packet.mark;
            for rule in way.rewrites {
                walk.steps.push(Step::Netfilter { hook, rule, after: way.packet.tuple });
            }
            match way.end {
                End::Accept => next(walk),
                End::Drop(rule) => walk.end(Outcome::Filtered { rule, rejected: false }),
                End::Reject(rule) => walk.end(Outcome::Filtered { rule, rejected: true }),
                End::Unknown(rule) => walk.unknown(Unknown::Rule(rule)),
            }
        });
        ways.collect()
    }

    /// Whether netfilter has rewritten destination or source so far.
    fn rewritten(&self) -> (bool, bool) {
        let at = |wanted: Hook| {
            self.steps.iter().any(|step| matches!(step, Step::Netfilter { hook, .. } if *hook == wanted))
        };
        (at(Hook::Prerouting) || at(Hook::Output), at(Hook::Postrouting))
    }
}
