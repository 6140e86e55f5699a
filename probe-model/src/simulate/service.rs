//! Cilium's service translation: the frontend, its checks, and every backend that may be chosen.

use std::net::IpAddr;
use std::sync::Arc;

use super::version::{agreed, layouts, lb_lookups};
use super::walk::Walk;
use super::{Destination, Outcome, Sender, Step, Trajectory, Unjudged, Unknown};
use crate::cilium::ct::CtTuple;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::lb::{
    BackendState, Frontend, LbBackend, LbClient, LbFound, LbLookup, LbService, LoadBalancer,
};
use crate::cilium::policy::PolicyLayout;
use crate::tuple::{Protocol, Tuple};
use crate::world::{AddressOwner, Forwarding, RoutingMode};

/// The interface by whose address the node sends into the tunnel.
const CILIUM_HOST: &str = "cilium_host";

impl Walk<'_> {
    /// What Cilium's service map has for the packet's destination.
    pub(super) fn frontend(&self, client: LbClient) -> Result<LbFound, Unknown> {
        let Tuple { daddr, dport, protocol, .. } = self.tuple;
        if !protocol.has_ports() || self.untracked_fragment {
            return Ok(LbFound::Nothing);
        }
        let family = Family::of(daddr);
        let Some(lb) = self.world.load_balancer(family) else {
            // A pod's own address is no frontend, whatever the services are; and without IPv6 there are none of it.
            let is_pod = matches!(self.world.owner(daddr), AddressOwner::Endpoint(_));
            let none = is_pod || !self.handles(family);
            let missing = || Unknown::Fact(family.pin("cilium_lb4_services_v2"));
            return if none { Ok(LbFound::Nothing) } else { Err(missing()) };
        };
        let of = |procedure| lb.lookup(procedure, client, (daddr, dport, protocol.0));
        let mut found = lb_lookups(self.world, family).map(of);
        let first = found.next().unwrap_or(LbFound::Nothing);
        if found.any(|other| other != first) {
            return Err(Unknown::Version("which service's frontend this is"));
        }
        if first == LbFound::Nothing { self.node_port_of_any_node(lb) } else { Ok(first) }
    }

    /// From 1.20 on a pod's packet to a node port of any node is translated on its own node, by an entry without an
    /// address.
    fn node_port_of_any_node(&self, lb: &LoadBalancer) -> Result<LbFound, Unknown> {
        let Tuple { daddr, dport, protocol, .. } = self.tuple;
        let is_node = || {
            let info = self.ipcache.and_then(|ipcache| ipcache.lookup(daddr));
            info.is_some_and(|(_, info)| info.sec_identity.is_node())
        };
        if !matches!(self.steps.first(), Some(Step::FromPod(_))) || !is_node() {
            return Ok(LbFound::Nothing);
        }
        let any_node = (Family::of(daddr).unspecified(), dport, protocol.0);
        let found = lb.lookup(LbLookup::ProtocolOnly, LbClient::Inside, any_node);
        match agreed(layouts(self.world), |layout| layout >= PolicyLayout::Aggregates) {
            Some(true) => Ok(found),
            None if found != LbFound::Nothing => {
                Err(Unknown::Version("on which node a pod's packet to a node port is translated"))
            }
            _ => Ok(LbFound::Nothing),
        }
    }

    /// `nodeport_lb4` and `nodeport_lb6`: checks, then a backend, for a packet from outside.
    pub(super) fn north_south(self, frontend: &Arc<Frontend>) -> Vec<Trajectory> {
        match self.is_refused_by_source(&frontend.service) {
            Err(unknown) => return self.unknown(unknown),
            Ok(true) => return self.refuse(frontend, DropReason::NOT_IN_SRC_RANGE),
            Ok(false) => {}
        }
        if frontend.service.is_routable() {
            return self.balance(frontend, Self::deliver_to_backend);
        }
        // A ClusterIP. 1.14 and before find a backend first, and translate; later versions refuse at once.
        let late =
            |walk: Self| walk.balance(frontend, |walk| walk.end(Outcome::Dropped(DropReason::IS_CLUSTER_IP)));
        let early = |walk: Self| walk.refuse(frontend, DropReason::IS_CLUSTER_IP);
        let is_late = |layout| match layout {
            PolicyLayout::HashKey => Some(true),
            PolicyLayout::WildcardBits => None,
            _ => Some(false),
        };
        match agreed(layouts(self.world), is_late).flatten() {
            Some(true) => late(self),
            Some(false) => early(self),
            None => {
                let ways = late(self.clone());
                let refused = Outcome::Dropped(DropReason::IS_CLUSTER_IP);
                let same = ways.iter().all(|way| way.outcome == refused);
                if same {
                    ways
                } else {
                    self.unknown(Unknown::Version("whether a ClusterIP is refused first"))
                }
            }
        }
    }

    /// Ends at a frontend, before translation.
    pub(super) fn refuse(self, frontend: &Arc<Frontend>, reason: DropReason) -> Vec<Trajectory> {
        self.step(Step::Frontend(Arc::clone(frontend))).end(Outcome::Dropped(reason))
    }

    /// loadBalancerSourceRanges: whether the packet's source at this node is not among those the service admits.
    fn is_refused_by_source(&self, service: &LbService) -> Result<bool, Unknown> {
        if !service.has(LbService::SOURCE_RANGE) || !self.world.config.source_range_check {
            return Ok(false);
        }
        let family = Family::of(self.tuple.saddr);
        let lb = self.world.load_balancer(family);
        let listed = lb.and_then(|lb| lb.in_source_range(service.rev_nat_index, self.tuple.saddr));
        match listed {
            Some(listed) => Ok(listed == service.has2(LbService::SOURCE_RANGE_DENY)),
            None => Err(Unknown::Fact(family.pin("cilium_lb4_source_range"))),
        }
    }

    /// Every backend that may be chosen, each as a way of its own that goes on with `next`.
    pub(super) fn balance(
        self,
        frontend: &Arc<Frontend>,
        next: impl Fn(Self) -> Vec<Trajectory>,
    ) -> Vec<Trajectory> {
        let service = &frontend.service;
        if service.has2(LbService::L7_LOADBALANCER) && service.l7_proxy_port() != 0 {
            return self.unknown(Unknown::L7Proxy { port: service.l7_proxy_port() });
        }
        if service.has2(LbService::NAT_46X64) {
            return self.unknown(Unknown::Nat46x64);
        }
        let family = Family::of(frontend.key.address);
        let lb = self.world.load_balancer(family);
        if !lb.is_some_and(LoadBalancer::knows_backends) && service.count != 0 {
            return self.unknown(Unknown::Fact(family.pin("cilium_lb4_backends_v3")));
        }
        if let Some((kept, backend)) = self.kept_backend() {
            return next(self.translated(frontend, backend, Some(kept)));
        }
        if service.count == 0 {
            return self.refuse(frontend, DropReason::NO_SERVICE);
        }
        let ways = frontend.backends.iter().flat_map(|slot| match slot.backend {
            Some(backend) => next(self.clone().translated(frontend, backend, None)),
            None => self.clone().refuse(frontend, DropReason::NO_SERVICE),
        });
        ways.collect()
    }

    /// The backend that conntrack keeps for the client, if it still takes connections.
    fn kept_backend(&self) -> Option<(CtTuple, LbBackend)> {
        let (tuple, entry) = self.service_entry()?;
        let lb = self.world.load_balancer(Family::of(tuple.daddr))?;
        let backend = lb.backend(u32::try_from(entry.backend_id()).ok()?)?;
        (backend.state() == BackendState::Active).then_some((tuple, *backend))
    }

    fn translated(self, frontend: &Arc<Frontend>, backend: LbBackend, kept: Option<CtTuple>) -> Self {
        let mut walk = self.step(Step::Service { frontend: Arc::clone(frontend), backend, kept });
        walk.tuple.daddr = backend.address;
        walk.tuple.dport = backend.port;
        walk
    }

    /// After translation at the uplink: on to the pod, or to the node that has it.
    fn deliver_to_backend(self) -> Vec<Trajectory> {
        if self.world.owner(self.tuple.daddr) != AddressOwner::Elsewhere {
            return self.past_uplink();
        }
        if self.world.lxc.is_none() {
            // Perhaps it is a pod of this node after all.
            return self.unknown(Unknown::Fact("cilium_lxc".to_owned()));
        }
        let service = self.steps.iter().rev().find_map(|step| match step {
            Step::Service { frontend, .. } => Some(frontend.service),
            _ => None,
        });
        let service = service.unwrap_or_default();
        if service.has(LbService::HOSTPORT) {
            // A host port's backend is on its own node, or nowhere.
            return self.end(Outcome::Dropped(DropReason::INVALID));
        }
        let address = self.tuple.daddr;
        let node = self.tunnel_endpoint(address);
        let sender = self.sender(&service);
        self.step(Step::Forward { node, sender }).unknown(Unknown::RemotePod { address, node })
    }

    /// As whose packet it arrives at the backend's node.
    fn sender(&self, service: &LbService) -> Sender {
        let by_dsr = service.has2(LbService::FWD_MODE_DSR)
            || match self.world.config.forwarding {
                None => return Sender::Unknown,
                Some(Forwarding::Snat) => false,
                Some(Forwarding::Dsr) => true,
                Some(Forwarding::Hybrid) => self.tuple.protocol == Protocol::TCP,
            };
        if by_dsr {
            return Sender::Client;
        }
        let dev = match self.world.config.routing {
            RoutingMode::Tunnel => Some(CILIUM_HOST),
            RoutingMode::Native => self.world.route(self.tuple.daddr).map(|route| route.dev.as_str()),
        };
        Sender::ThisNode(dev.and_then(|dev| self.own_address(dev)))
    }

    /// This node's first address on an interface, of the packet's family.
    fn own_address(&self, dev: &str) -> Option<IpAddr> {
        let link = self.world.links.as_ref()?.iter().find(|link| link.name == dev)?;
        let family = Family::of(self.tuple.daddr);
        link.addresses.iter().map(ipnet::IpNet::addr).find(|own| Family::of(*own) == family)
    }

    /// A pod that reaches itself through a service: neither of its policies is asked.
    pub(super) fn loopback(self, id: crate::cilium::EndpointId) -> Vec<Trajectory> {
        self.step(Step::Unjudged(Unjudged::Loopback)).end(Outcome::Allowed(Destination::Endpoint(id)))
    }
}
