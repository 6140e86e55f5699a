//! The source's address on its way: what it was at each hop, who made it so and by which setting, and whose it is to Cilium.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cilium::Direction;
use crate::cilium::identity::Identity;
use crate::netfilter::Hook;
use crate::simulate::{IdentityOrigin, Sender, Step, Trajectory};
use crate::world::{RoutingMode, World};

/// One address that the packet had as its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceHop {
    /// The address.
    pub address: IpAddr,
    /// Who made it the packet's source.
    pub by: SourceBy,
    /// The ipcache's longest prefix for it, and whose that is; `None` if it has none or is not known.
    pub ipcache: Option<(IpNet, Identity)>,
    /// What policy took it for; `None` where no policy was asked before it changed again.
    pub judged: Option<JudgedAs>,
}

/// Who made an address the packet's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceBy {
    /// The packet came with it.
    Sender,
    /// A rule of the node's netfilter.
    Netfilter {
        /// The rule, with its table.
        rule: String,
        /// Whose rule it is.
        masquerade: Masquerade,
    },
    /// Cilium, which sends the packet on to the backend's node.
    CiliumForward {
        /// That node, if known.
        node: Option<IpAddr>,
    },
}

/// Whose rule replaced a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// kube-proxy's, for traffic from outside to a service with `externalTrafficPolicy: Cluster`.
    KubeProxy,
    /// ip-masq-agent's, for destinations that it takes to be outside.
    IpMasqAgent,
    /// Cilium's own.
    Cilium,
    /// Somebody else's.
    Other,
}

/// What policy took the source for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JudgedAs {
    /// On this node.
    Here(Identity, IdentityOrigin),
    /// On the backend's node, which gives the address this identity.
    OtherNode(Identity),
}

/// The addresses that the packet had as its source, in order; the first is the sender's own.
///
/// More than one: policy judged another address than the one that came in, and a rule that names the first cannot match.
pub fn source_history(world: &World, way: &Trajectory) -> Vec<SourceHop> {
    let ipcache = world.ipcache.as_ref();
    let hop = |address, by| {
        let ipcache = ipcache.and_then(|ipcache| ipcache.lookup(address));
        SourceHop {
            address,
            by,
            ipcache: ipcache.map(|(prefix, info)| (prefix, info.sec_identity)),
            judged: None,
        }
    };
    let mut hops = vec![hop(way.sent.saddr, SourceBy::Sender)];
    for (at, step) in way.steps.iter().enumerate() {
        let current = hops.last_mut().expect("the sender's is there");
        match step {
            Step::Netfilter { hook: Hook::Postrouting, rule, after } if after.saddr != current.address => {
                let by = SourceBy::Netfilter { rule: rule.clone(), masquerade: masquerade_of(rule) };
                hops.push(hop(after.saddr, by));
            }
            Step::Forward { node, sender: Sender::ThisNode(Some(address)) } => {
                let mut next = hop(*address, SourceBy::CiliumForward { node: *node });
                next.judged = Some(JudgedAs::OtherNode(identity_at_backend(world)));
                hops.push(next);
            }
            Step::Identity { address, identity, origin }
                if *address == current.address && is_of_ingress(&way.steps[at..]) =>
            {
                current.judged = Some(JudgedAs::Here(*identity, *origin));
            }
            _ => {}
        }
    }
    hops
}

/// What the backend's node takes this node's address for when Cilium sends a service's packet there.
///
/// In a tunnel Cilium writes world into the packet, so that outsiders do not pass for a node; without one the address is
/// that of a remote node. Source: `nodeport_nat_*_fwd`, Cilium 1.14 `bpf/lib/nodeport.h`.
fn identity_at_backend(world: &World) -> Identity {
    match world.config.routing {
        RoutingMode::Tunnel => Identity::WORLD,
        RoutingMode::Native => Identity::REMOTE_NODE,
    }
}

/// Whether the policy check that follows is an ingress one, so that the identity is the source's.
fn is_of_ingress(steps: &[Step]) -> bool {
    let next = steps.iter().find_map(|step| match step {
        Step::Policy(policy) => Some(policy.query.direction),
        _ => None,
    });
    next == Some(Direction::Ingress)
}

/// Whose rule it is, by its chain.
fn masquerade_of(rule: &str) -> Masquerade {
    let chains = [
        ("KUBE-POSTROUTING", Masquerade::KubeProxy),
        ("IP-MASQ", Masquerade::IpMasqAgent),
        ("CILIUM_", Masquerade::Cilium),
    ];
    chains.iter().find(|(chain, _)| rule.contains(chain)).map_or(Masquerade::Other, |(_, whose)| *whose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_rule() {
        assert_eq!(masquerade_of("nat: -A KUBE-POSTROUTING -j MASQUERADE"), Masquerade::KubeProxy);
        assert_eq!(masquerade_of("nat: -A IP-MASQ-AGENT -j MASQUERADE"), Masquerade::IpMasqAgent);
        assert_eq!(masquerade_of("nat: -A CILIUM_POST_nat -o cilium_host -j SNAT"), Masquerade::Cilium);
        assert_eq!(masquerade_of("nat: -A POSTROUTING -o eth0 -j MASQUERADE"), Masquerade::Other);
    }
}
