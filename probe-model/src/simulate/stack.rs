//! The host's own stack between Cilium's hooks: netfilter and routing.

use std::net::IpAddr;

use super::walk::Walk;
use super::{Destination, Outcome, Step, Trajectory, Unknown};
use crate::cilium::drop_reason::DropReason;
use crate::netfilter::walk::Facts;
use crate::netfilter::{End, Hook, Packet, Ruleset};
use crate::tuple::Tuple;
use crate::world::AddressOwner;

/// Ports that NodePort services have by default.
const NODE_PORTS: core::ops::RangeInclusive<u16> = 30000..=32767;
/// The interface through which the host reaches pods without a route of their own.
const CILIUM_HOST: &str = "cilium_host";

impl<'w> Walk<'w> {
    /// The rules that the packet meets, if they are known.
    pub(super) fn rules(&self) -> Option<&'w Ruleset> {
        self.world.rules(self.tuple.daddr)
    }

    pub(super) fn host_output(self) -> Vec<Trajectory> {
        self.netfilter(Hook::Output, None, None, |walk| match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Host => walk.end(Outcome::Allowed(Destination::Host)),
            _ => match walk.host_policy_egress() {
                Ok(walk) => walk.forward_to_route(None, false),
                Err(ended) => ended,
            },
        })
    }

    /// The host's stack between two of Cilium's hooks: netfilter and routing.
    pub(super) fn host_stack(self, in_dev: Option<&str>) -> Vec<Trajectory> {
        let before = self.tuple;
        self.netfilter(Hook::Prerouting, in_dev, None, |walk| match walk.world.owner(walk.tuple.daddr) {
            AddressOwner::Host => walk.reach_host(before),
            _ => walk.forward_to_route(in_dev, true),
        })
    }

    /// To the node itself, unless a NodePort may hide behind the port.
    pub(super) fn reach_host(self, before: Tuple) -> Vec<Trajectory> {
        let maybe_node_port = before == self.tuple && NODE_PORTS.contains(&self.tuple.dport);
        if maybe_node_port {
            return self.unknown(Unknown::Frontend { address: before.daddr, port: before.dport });
        }
        match self.host_policy_ingress() {
            Ok(walk) => walk.end(Outcome::Allowed(Destination::Host)),
            Err(ended) => ended,
        }
    }

    /// Routing, then FORWARD (for packets that are not the node's own) and POSTROUTING, then where the route leads.
    fn forward_to_route(self, in_dev: Option<&str>, forwarded: bool) -> Vec<Trajectory> {
        let address = self.tuple.daddr;
        let route = self.world.route(address).map(|route| route.dev.clone());
        let Some(dev) = route else {
            // Rules that rewrite the source ask for the outgoing interface.
            return match self.world.owner(address) {
                _ if self.rules().is_some() => self.unknown(Unknown::Fact("routes".to_owned())),
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
            Err(unknown) => self.unknown(unknown),
            Ok((identity, _)) if identity.is_world() => self.end(Outcome::Dropped(DropReason::UNROUTABLE)),
            Ok(_) => self.unknown(Unknown::RemotePod { address, node: None }),
        }
    }

    /// A packet from the wire to an address that is neither a pod's nor the node's.
    pub(super) fn unknown_frontend(self) -> Vec<Trajectory> {
        let Tuple { daddr: address, dport: port, .. } = self.tuple;
        self.unknown(Unknown::Frontend { address, port })
    }

    /// A pod's packet that leaves the node with kube-proxy replacement.
    pub(super) fn out_of_node(self) -> Vec<Trajectory> {
        if self.world.routes.is_empty() {
            // A stale pod address would be routed to `cilium_host`, and dropped.
            return self.unknown(Unknown::Fact("routes".to_owned()));
        }
        let dev = self.world.route(self.tuple.daddr).map(|route| route.dev.clone());
        if dev.as_deref() == Some(CILIUM_HOST) {
            return self.via_cilium_host();
        }
        self.end(Outcome::Allowed(Destination::Network(dev)))
    }

    /// From the wire, with kube-proxy replacement or from the tunnel, to an address that no endpoint here has.
    pub(super) fn not_local(self) -> Vec<Trajectory> {
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

    /// Every way through a netfilter hook; those that pass go on with `next`.
    fn netfilter(
        self,
        hook: Hook,
        in_dev: Option<&str>,
        out_dev: Option<&str>,
        next: impl Fn(Self) -> Vec<Trajectory>,
    ) -> Vec<Trajectory> {
        let world = self.world;
        let Some(rules) = self.rules() else {
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
