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

    /// A CIDR or FQDN identity: allocated on this node, other numbers elsewhere and after a restart.
    pub fn is_local_scope(self) -> bool {
        self.0 >> 24 == 1
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
