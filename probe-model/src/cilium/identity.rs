//! Security identities.

use core::fmt;

use super::release::Release;

/// The security identity of a set of labels.
///
/// Source: `pkg/identity/numericidentity.go`, Cilium 1.13 to 1.20.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

/// Where an identity's number is valid: its highest byte.
///
/// Source: `IdentityScopeMask`, Cilium 1.15 `pkg/identity/numericidentity.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The same on every node: reserved ones and those made from labels.
    Global,
    /// A CIDR or FQDN: every node numbers its own, other numbers after a restart.
    Local,
    /// Another node (1.15 on, if policies select nodes): every node numbers its own.
    RemoteNode,
    /// None that plsprobe knows.
    Unknown(u8),
}

impl Identity {
    /// Unknown; in a policy key it stands for every identity.
    pub const UNKNOWN: Self = Self(0);
    /// This node.
    pub const HOST: Self = Self(1);
    /// Everything outside the cluster that no CIDR identity covers.
    pub const WORLD: Self = Self(2);
    /// Other nodes of the cluster.
    pub const REMOTE_NODE: Self = Self(6);
    /// The nodes with the Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// [`Identity::WORLD`] for IPv4 where both families are on (1.15 on).
    pub const WORLD_IPV4: Self = Self(9);
    /// [`Identity::WORLD`] for IPv6 where both families are on (1.15 on).
    pub const WORLD_IPV6: Self = Self(10);
    /// In policy maps only (from 1.20 on): every identity of the own cluster.
    pub const POLICY_CLUSTER: Self = Self(11);
    /// In policy maps only (from 1.20 on): every identity of other clusters of the mesh.
    pub const POLICY_CLUSTERMESH: Self = Self(12);

    /// Where the number is valid.
    pub fn scope(self) -> Scope {
        match (self.0 >> 24) as u8 {
            0 => Scope::Global,
            1 => Scope::Local,
            2 => Scope::RemoteNode,
            other => Scope::Unknown(other),
        }
    }

    /// Whether it is that of this node or of another.
    pub fn is_node(self) -> bool {
        matches!(self, Self::HOST | Self::REMOTE_NODE | Self::KUBE_APISERVER) || self.is_remote_node_scope()
    }

    /// A CIDR or FQDN identity: allocated on this node, other numbers elsewhere and after a restart.
    pub fn is_local_scope(self) -> bool {
        self.scope() == Scope::Local
    }

    /// Another node under a number of its own.
    pub fn is_remote_node_scope(self) -> bool {
        self.scope() == Scope::RemoteNode
    }

    /// Everything outside the cluster that no CIDR identity covers, under any of its three numbers.
    pub fn is_world(self) -> bool {
        matches!(self, Self::WORLD | Self::WORLD_IPV4 | Self::WORLD_IPV6)
    }

    /// The reserved label's name without `reserved:`, if the number is a reserved one in any version.
    ///
    /// 11 changed its meaning between 1.18 and 1.20 and has both names; [`Identity::reserved_name_in`] tells them apart.
    pub fn reserved_name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            1 => "host",
            2 => "world",
            3 => "unmanaged",
            4 => "health",
            5 => "init",
            6 => "remote-node",
            7 => "kube-apiserver",
            8 => "ingress",
            9 => "world-ipv4",
            10 => "world-ipv6",
            11 => "overlay-to-encrypt or policy-cluster",
            12 => "policy-clustermesh",
            _ => return None,
        })
    }

    /// The reserved label's name without `reserved:` in a release, if the number is reserved there.
    pub fn reserved_name_in(self, release: Release) -> Option<&'static str> {
        match (self.0, release.0) {
            (9 | 10, ..15) | (11, ..16 | 19) | (12, ..20) => None,
            (11, ..19) => Some("overlay-to-encrypt"),
            (11, _) => Some("policy-cluster"),
            _ => self.reserved_name(),
        }
    }
}

impl fmt::Display for Identity {
    /// The reserved name with its number, `world (2)`, or the number alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => self.0.fmt(f),
        }
    }
}
