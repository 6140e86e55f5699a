//! Which identity the datapath gives a peer.

use std::net::IpAddr;

use super::version::{agreed, layouts};
use super::walk::{Delivery, Walk};
use super::{IdentityOrigin, Unknown};
use crate::cilium::family::Family;
use crate::cilium::identity::Identity;
use crate::cilium::policy::PolicyLayout;

/// The bits of `skb->mark` in which Cilium says who sent the packet.
const MAGIC_MASK: u32 = 0x0F00;
/// From this node.
pub(super) const MAGIC_HOST: u32 = 0x0C00;
/// The mark carries an identity.
const MAGIC_IDENTITY: u32 = 0x0F00;
/// Magics with an identity: overlay, from the proxy on ingress and egress, identity.
const WITH_IDENTITY: [u32; 4] = [0x0400, 0x0A00, 0x0B00, MAGIC_IDENTITY];

/// An identity and where it is from.
pub(super) type Resolved = (Identity, IdentityOrigin);

/// `skb->mark` with an identity of 24 bits; the scope byte does not fit.
pub(super) fn identity_mark(identity: Identity) -> u32 {
    (identity.0 & 0xFFFF) << 16 | MAGIC_IDENTITY | identity.0 >> 16 & 0xFF
}

/// What the mark says of the sender.
fn carried(mark: u32) -> Option<Resolved> {
    match mark & MAGIC_MASK {
        MAGIC_HOST => Some((Identity::HOST, IdentityOrigin::HostMark)),
        magic if WITH_IDENTITY.contains(&magic) => {
            Some((Identity((mark & 0xFF) << 16 | mark >> 16), IdentityOrigin::Mark))
        }
        _ => None,
    }
}

/// Identities that the receiving side does not take from the mark alone but looks up again: the mark may be of a node's
/// process that sends from an address which is not the node's.
fn is_looked_up_again(identity: Identity) -> bool {
    matches!(identity.0, 0..=2 | 6 | 7 | 9 | 10) || identity.is_remote_node_scope()
}

impl Walk<'_> {
    /// The source's identity as the receiving side resolves it: the mark's, else the ipcache's, which is not believed when
    /// it says host.
    ///
    /// Source: `resolve_srcid_ipv4` and `tail_ipv4_to_endpoint`, Cilium 1.13–1.20 `bpf/bpf_host.c`, `bpf/bpf_lxc.c`.
    pub(super) fn source_identity(&self) -> Result<Resolved, Unknown> {
        let carried = carried(self.mark);
        if let Some(found) = carried.filter(|(identity, _)| !is_looked_up_again(*identity)) {
            return Ok(found);
        }
        match (self.identity_of(self.tuple.saddr)?, carried, self.delivery) {
            ((Identity::HOST, _) | (_, IdentityOrigin::NoPrefix), Some(inherited), _) => Ok(inherited),
            ((Identity::HOST, IdentityOrigin::Ipcache(prefix)), None, Delivery::HostRouting) => {
                Ok((Identity::UNKNOWN, IdentityOrigin::HostIgnored(prefix)))
            }
            ((Identity::HOST, IdentityOrigin::Ipcache(prefix)), None, Delivery::Stack) => {
                Ok((self.world_identity(self.tuple.saddr)?, IdentityOrigin::HostIgnored(prefix)))
            }
            (found, ..) => Ok(found),
        }
    }

    /// The ipcache's identity of an address.
    pub(super) fn identity_of(&self, address: IpAddr) -> Result<Resolved, Unknown> {
        let ipcache = self.ipcache.ok_or_else(|| Unknown::Fact("cilium_ipcache".to_owned()))?;
        Ok(match ipcache.lookup(address) {
            Some((prefix, info)) => (info.sec_identity, IdentityOrigin::Ipcache(prefix)),
            None => (self.world_identity(address)?, IdentityOrigin::NoPrefix),
        })
    }

    /// World's number for an address: one per family where both are on (from 1.15 on), else one for all.
    pub(super) fn world_identity(&self, address: IpAddr) -> Result<Identity, Unknown> {
        let split = match Family::of(address) {
            Family::V4 => Identity::WORLD_IPV4,
            Family::V6 => Identity::WORLD_IPV6,
        };
        let default = match Family::of(address) {
            Family::V4 => IpAddr::from([0u8; 4]),
            Family::V6 => IpAddr::from([0u8; 16]),
        };
        // The agent's own entry for everything says which.
        let everything = self.ipcache.and_then(|ipcache| ipcache.lookup(default));
        if let Some((_, info)) = everything.filter(|(_, info)| info.sec_identity.is_world()) {
            return Ok(info.sec_identity);
        }
        if !(self.world.config.ipv4 && self.world.config.ipv6) {
            return Ok(Identity::WORLD);
        }
        // 1.13 has one, from 1.16.4 on there are two; the layout between is that of 1.14 and of 1.15.
        let layouts = layouts(self.world);
        let is_split = |layout| match layout {
            PolicyLayout::HashKey => Some(false),
            PolicyLayout::WildcardBits => None,
            _ => Some(true),
        };
        match agreed(layouts, is_split).flatten() {
            Some(true) => Ok(split),
            Some(false) => Ok(Identity::WORLD),
            None => Err(Unknown::Version("which identity the world has")),
        }
    }

    /// The node behind which the ipcache has an address.
    pub(super) fn tunnel_endpoint(&self, address: IpAddr) -> Option<IpAddr> {
        let (_, info) = self.ipcache?.lookup(address)?;
        info.tunnel_endpoint.filter(|node| !self.world.host_addresses().contains(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8.6 of the reference: 24 bits of the identity around the magic.
    #[test]
    fn a_mark_carries_24_bits() {
        for number in [300, 63_921, 0x0001_0002, 0x00FF_FFFF] {
            let mark = identity_mark(Identity(number));
            assert_eq!(mark & MAGIC_MASK, MAGIC_IDENTITY);
            assert_eq!(carried(mark), Some((Identity(number), IdentityOrigin::Mark)));
        }
        assert_eq!(identity_mark(Identity(0x0001_0002)), 0x0002_0F01);
        assert_eq!(carried(0x0C00), Some((Identity::HOST, IdentityOrigin::HostMark)));
        assert_eq!(carried(0x4000), None, "kube-proxy's mark");
    }
}
