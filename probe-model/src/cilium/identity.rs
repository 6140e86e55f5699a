//! Security identities.

use core::fmt;

/// The security identity of a set of labels.
///
/// Source: `pkg/identity/numericidentity.go`, `bpf/node_config.h`, Cilium 1.14.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

impl Identity {
    /// Unknown; in a policy key it stands for every identity.
    pub const UNKNOWN: Self = Self(0);
    /// This node.
    pub const HOST: Self = Self(1);
    /// Everything outside the cluster that no CIDR identity covers.
    pub const WORLD: Self = Self(2);
    /// Another node of the cluster.
    pub const REMOTE_NODE: Self = Self(6);
    /// A node that runs the Kubernetes API server.
    pub const KUBE_APISERVER: Self = Self(7);
    /// World by IPv4, on a node with both families (from 1.15 on).
    pub const WORLD_IPV4: Self = Self(9);
    /// World by IPv6, on a node with both families (from 1.15 on).
    pub const WORLD_IPV6: Self = Self(10);
    /// In policy maps only (from 1.20 on): every identity of the own cluster.
    pub const POLICY_CLUSTER: Self = Self(11);
    /// In policy maps only (from 1.20 on): every identity of other clusters of the mesh.
    pub const POLICY_CLUSTERMESH: Self = Self(12);

    /// A CIDR or FQDN identity: allocated on this node, other numbers elsewhere and after a restart.
    pub fn is_local_scope(self) -> bool {
        self.0 >> 24 == 1
    }

    /// An identity of another node, allocated on this one.
    pub fn is_remote_node_scope(self) -> bool {
        self.0 >> 24 == 2
    }

    /// The reserved label's name without `reserved:`, if the number is a reserved one.
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
            _ => return None,
        })
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
