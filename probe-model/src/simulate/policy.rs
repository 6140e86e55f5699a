//! Asking an endpoint's policy map, with what comes before and after the lookup.

use super::version::{agreed, layouts};
use super::walk::Walk;
use super::{Authenticated, Fragment, Outcome, PolicyStep, Step, Trajectory, Unjudged, Unknown};
use crate::cilium::auth::AuthKey;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::fragments::FragmentId;
use crate::cilium::identity::Identity;
use crate::cilium::policy::{PolicyDecision, PolicyLayout, PolicyQuery, PolicyVerdict};
use crate::cilium::{Direction, EndpointId};
use crate::tuple::{Protocol, Tuple};
use crate::world::{NamedPolicyMap, RoutingMode};

/// ICMP destination unreachable, fragmentation needed: let through before any lookup.
const ICMP_FRAG_NEEDED: (u8, u8) = (3, 4);
/// The ports that Cilium's tunnels have by default: VXLAN and Geneve.
const TUNNEL_PORTS: [u16; 2] = [8472, 6081];

impl<'w> Walk<'w> {
    /// Gives a fragment its ports, as the datapath does before anything reads them; the walk may end here.
    pub(super) fn with_ports(mut self) -> Result<Self, Vec<Trajectory>> {
        let Some(fragment) = self.question.fragment else { return Ok(self) };
        let family = Family::of(self.tuple.saddr);
        if family == Family::V6 {
            // Up to 1.17 no fragment of IPv6 passes.
            match agreed(layouts(self.world), |layout| layout >= PolicyLayout::CountersApart) {
                Some(true) => {}
                Some(false) => return Err(self.end(Outcome::Dropped(DropReason::FRAG_NOSUPPORT))),
                None => return Err(self.unknown(Unknown::Version("whether IPv6 fragments pass"))),
            }
        } else if !self.world.config.fragment_tracking {
            self.untracked_fragment = true;
            (self.tuple.sport, self.tuple.dport) = (0, 0);
            return Ok(self);
        }
        let Fragment::Later { id } = fragment else { return Ok(self) };
        let Some(fragments) = &self.world.fragments else {
            return Err(self.unknown(Unknown::Fact(family.pin("cilium_ipv4_frag_datagrams"))));
        };
        let Some(ports) = fragment_id(&self.tuple, id).and_then(|key| fragments.get(&key)) else {
            return Err(self.end(Outcome::Dropped(DropReason::FRAG_NOT_FOUND)));
        };
        (self.tuple.sport, self.tuple.dport) = (ports.sport, ports.dport);
        self.question.fragment = Some(Fragment::First);
        Ok(self)
    }

    /// Asks `id`'s policy map; goes on if it allows.
    pub(super) fn judge(
        self,
        id: EndpointId,
        direction: Direction,
        identity: Identity,
    ) -> Result<Self, Vec<Trajectory>> {
        let config = &self.world.config;
        if direction == Direction::Egress && !self.world.is_host_endpoint(id) {
            match self.is_for_tunnel() {
                Err(unknown) => return Err(self.unknown(unknown)),
                Ok(true) if !self.audits(id) => {
                    return Err(self.end(Outcome::Dropped(DropReason::ENCAP_PROHIBITED)));
                }
                Ok(_) => {}
            }
        }
        let frag_needed =
            self.question.icmp == Some(ICMP_FRAG_NEEDED) && self.tuple.protocol == Protocol::ICMP;
        if frag_needed && self.tuple.saddr.is_ipv4() && config.allow_icmp_frag_needed {
            return Ok(self.step(Step::Unjudged(Unjudged::FragmentationNeeded)));
        }
        let Some(policy) = self.world.policy.get(&id) else {
            return Err(self.unknown(Unknown::Fact(crate::cilium::policy::pin_name(id))));
        };
        let layout = policy.map.layout();
        let protocol = self.tuple.protocol.0;
        let untracked_fragment = self.untracked_fragment
            && (direction == Direction::Ingress || layout >= PolicyLayout::CountersApart);
        let decisions = self.asked_ports(layout).map(|port| {
            let query = PolicyQuery { identity, direction, protocol, port, untracked_fragment };
            (query, policy.map.lookup(query))
        });
        if decisions[0].1.verdict != decisions[1].1.verdict {
            return Err(self.unknown(Unknown::Version("whether an ICMP type of the other family is a port")));
        }
        let [(query, decision), _] = decisions;
        self.answered(id, policy, query, decision)
    }

    /// What follows from a policy map's answer: audit mode, authentication, the proxy.
    fn answered(
        self,
        id: EndpointId,
        policy: &'w NamedPolicyMap,
        query: PolicyQuery,
        decision: PolicyDecision,
    ) -> Result<Self, Vec<Trajectory>> {
        let audited = self.audits(id) && matches!(decision.verdict, PolicyVerdict::Drop(_));
        let mut step = PolicyStep {
            endpoint: id,
            map: policy.name.clone(),
            tuple: self.tuple,
            query,
            decision,
            audited,
            authenticated: None,
        };
        let needs_auth = decision.verdict == PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED);
        let authentication = if needs_auth && !audited {
            Some(self.authenticate(id, &step, policy.map.layout()))
        } else {
            None
        };
        step.authenticated = match authentication {
            Some(Authentication::Live(found) | Authentication::None(found)) => Some(found),
            _ => None,
        };
        let walk = self.step(Step::Policy(Box::new(step)));
        match (decision.verdict, authentication) {
            _ if audited => Ok(walk),
            (PolicyVerdict::Allow { proxy_port: 0 }, _) | (_, Some(Authentication::Live(_))) => Ok(walk),
            (PolicyVerdict::Allow { proxy_port }, _) => {
                Err(walk.unknown(Unknown::L7Proxy { port: proxy_port }))
            }
            (_, Some(Authentication::NoNode)) => Err(walk.end(Outcome::Dropped(DropReason::NO_NODE_ID))),
            (_, Some(Authentication::Unknown(unknown))) => Err(walk.unknown(unknown)),
            (PolicyVerdict::Drop(reason), _) => Err(walk.end(Outcome::Dropped(reason))),
        }
    }

    /// Whether drops of this endpoint's policy are only reported.
    fn audits(&self, id: EndpointId) -> bool {
        let agent = self.world.endpoints.get(&id).and_then(|endpoint| endpoint.policy.as_ref());
        self.world.config.audit_mode || agent.is_some_and(|policy| policy.audit_mode)
    }

    /// Whether a pod's packet is UDP to the tunnel's port, which it may not send.
    fn is_for_tunnel(&self) -> Result<bool, Unknown> {
        let config = &self.world.config;
        if config.routing != RoutingMode::Tunnel || self.tuple.protocol != Protocol::UDP {
            return Ok(false);
        }
        match config.tunnel_port {
            Some(port) => Ok(self.tuple.dport == port),
            None if TUNNEL_PORTS.contains(&self.tuple.dport) => Err(Unknown::Fact("rest/config".to_owned())),
            None => Ok(false),
        }
    }

    /// The port that policy is asked for: an ICMP type for ICMP. Two that may differ where 1.14 cannot be told from 1.15,
    /// which from then on looks at the IP version too.
    fn asked_ports(&self, layout: PolicyLayout) -> [u16; 2] {
        let port = self.tuple.dport;
        let icmp_type = self.question.icmp.map(|(icmp_type, _)| u16::from(icmp_type));
        let Some(icmp_type) = icmp_type.filter(|_| self.world.config.icmp_rules) else { return [port; 2] };
        let own_icmp = match Family::of(self.tuple.saddr) {
            Family::V4 => Protocol::ICMP,
            Family::V6 => Protocol::ICMPV6,
        };
        match layout {
            _ if self.tuple.protocol == own_icmp => [icmp_type; 2],
            PolicyLayout::HashKey => [icmp_type; 2],
            PolicyLayout::WildcardBits => [icmp_type, port],
            _ => [port; 2],
        }
    }

    /// What the authentication map says of the pair of identities.
    ///
    /// Source: `auth_lookup`, Cilium 1.14 `bpf/lib/auth.h`.
    fn authenticate(&self, id: EndpointId, step: &PolicyStep, layout: PolicyLayout) -> Authentication {
        let auth_type = step.decision.auth_type;
        if layout == PolicyLayout::HashKey {
            // 1.13 lets the agent know, and conntrack remembers: no map says so.
            return Authentication::Unknown(Unknown::Authentication { auth_type });
        }
        let Some(auth) = &self.world.auth else {
            return Authentication::Unknown(Unknown::Fact("cilium_auth_map".to_owned()));
        };
        let peer = match step.query.direction {
            Direction::Ingress => self.tuple.saddr,
            Direction::Egress => self.tuple.daddr,
        };
        let remote_node_id = match self.tunnel_endpoint(peer) {
            None => 0,
            Some(node) => match self.world.nodes.as_ref().map(|nodes| nodes.get(&node)) {
                None => return Authentication::Unknown(Unknown::Fact("cilium_node_map".to_owned())),
                Some(None) => return Authentication::NoNode,
                Some(Some(node)) => node.id,
            },
        };
        let key = AuthKey {
            local_sec_label: self.world.endpoint_identity(id),
            remote_sec_label: step.query.identity,
            remote_node_id,
            auth_type,
        };
        let Some(info) = auth.get(&key) else {
            return Authentication::None(Authenticated { key, until: None });
        };
        let found = Authenticated { key, until: Some(info.expiration) };
        match self.world.now {
            None => Authentication::Unknown(Unknown::Authentication { auth_type }),
            Some(now) if now < info.expiration => Authentication::Live(found),
            Some(_) => Authentication::None(found),
        }
    }
}

/// What the authentication map says.
enum Authentication {
    /// Granted.
    Live(Authenticated),
    /// Not, or no more.
    None(Authenticated),
    /// The peer's node has no id here.
    NoNode,
    /// A fact is missing.
    Unknown(Unknown),
}

fn fragment_id(packet: &Tuple, id: u32) -> Option<FragmentId> {
    use std::net::IpAddr::{V4, V6};
    let proto = packet.protocol.0;
    match (packet.saddr, packet.daddr) {
        (V4(saddr), V4(daddr)) => Some(FragmentId::V4 { saddr, daddr, id: u16::try_from(id).ok()?, proto }),
        (V6(saddr), V6(daddr)) => Some(FragmentId::V6 { saddr, daddr, id, proto }),
        _ => None,
    }
}
