//! The load-balancer maps: services, backends, reverse NAT, source ranges, session affinity.
//!
//! `cilium_lb4_*` and `cilium_lb6_*` differ in the width of the address alone, so one type stands for both; which one
//! the bytes are is told by their number.

mod affinity;
mod index;
mod lookup;

pub use affinity::{LbAffinity, LbAffinityKey, LbAffinityMatch};
pub use index::{Frontend, LbMaps, LoadBalancer, Slot};
pub use lookup::{LbClient, LbFound, LbLookup};

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::family::{Family, prefix, push_address};
use super::{DecodeError, sized, u16_be, u16_le, u32_le};

/// The family of a structure by its size, or the size error.
fn family(
    raw: &[u8],
    what: &'static str,
    (v4, v6): (usize, usize),
    expected: &'static str,
) -> Result<Family, DecodeError> {
    Family::by_size(raw.len(), v4, v6).ok_or(DecodeError::Size { what, expected, found: raw.len() })
}

/// A key of `cilium_lb4_services_v2` or `cilium_lb6_services_v2`.
///
/// Source: `struct lb4_key`, `struct lb6_key`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LbKey {
    /// The frontend's address.
    pub address: IpAddr,
    /// The frontend's port, host order; 0 with `proto` 0 in the entry of a whole address (from 1.19 on).
    pub dport: u16,
    /// 0 for the frontend itself, 1…count for its backends, then those in quarantine.
    pub backend_slot: u16,
    /// IP protocol; 0 is any, and always so up to 1.16.
    pub proto: u8,
    /// [`Self::SCOPE_EXTERNAL`] or [`Self::SCOPE_INTERNAL`].
    pub scope: u8,
}

impl LbKey {
    /// Bytes of an IPv4 and of an IPv6 key.
    pub const SIZES: (usize, usize) = (12, 24);
    /// `scope`: what packets from outside look up.
    pub const SCOPE_EXTERNAL: u8 = 0;
    /// `scope`: what packets from inside the cluster look up where a frontend has two scopes.
    pub const SCOPE_INTERNAL: u8 = 1;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes (IPv4) or 24 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = family(raw, "lb4_key, lb6_key", Self::SIZES, "12 or 24")?;
        let at = family.width();
        Ok(Self {
            address: family.read(raw, 0),
            dport: u16_be(raw, at),
            backend_slot: u16_le(raw, at + 2),
            proto: raw[at + 4],
            scope: raw[at + 5],
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(Self::SIZES.1);
        push_address(&mut raw, self.address);
        raw.extend(self.dport.to_be_bytes());
        raw.extend(self.backend_slot.to_le_bytes());
        raw.extend([self.proto, self.scope, 0, 0]);
        raw
    }
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LbAlgorithm {
    /// The agent's default.
    Default,
    /// At random.
    Random,
    /// By the hash of the packet's addresses and ports.
    Maglev,
    /// A number that no known version writes.
    Unknown(u8),
}

/// A value of `cilium_lb4_services_v2` or `cilium_lb6_services_v2`.
///
/// Source: `struct lb4_service`, `struct lb6_service`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LbService {
    /// From slot 1 on the backend's id. In slot 0 [`Self::affinity_timeout`] with [`Self::algorithm`], or
    /// [`Self::l7_proxy_port`].
    pub backend_id: u32,
    /// Backends, in slot 0.
    pub count: u16,
    /// The service's id, host order (stored in network order).
    pub rev_nat_index: u16,
    /// First flag byte.
    pub flags: u8,
    /// Second flag byte.
    pub flags2: u8,
    /// Backends in quarantine, in the slots after the others, in slot 0 (from 1.17 on; padding before).
    pub qcount: u16,
}

impl LbService {
    /// Bytes of a value.
    pub const SIZE: usize = 12;
    /// `flags`: ExternalIP.
    pub const EXTERNAL_IP: u8 = 0x01;
    /// `flags`: NodePort.
    pub const NODEPORT: u8 = 0x02;
    /// `flags`: externalTrafficPolicy Local.
    pub const EXT_LOCAL_SCOPE: u8 = 0x04;
    /// `flags`: HostPort.
    pub const HOSTPORT: u8 = 0x08;
    /// `flags`: session affinity.
    pub const AFFINITY: u8 = 0x10;
    /// `flags`: LoadBalancer.
    pub const LOADBALANCER: u8 = 0x20;
    /// `flags`: reachable from outside.
    pub const ROUTABLE: u8 = 0x40;
    /// `flags`: loadBalancerSourceRanges are checked.
    pub const SOURCE_RANGE: u8 = 0x80;
    /// `flags2`: local redirect policy.
    pub const LOCALREDIRECT: u8 = 0x01;
    /// `flags2`: NAT46x64.
    pub const NAT_46X64: u8 = 0x02;
    /// `flags2`: redirected to the L7 load balancer.
    pub const L7_LOADBALANCER: u8 = 0x04;
    /// `flags2`: loopback HostPort; on other types (from 1.18 on) L7 delegation.
    pub const LOOPBACK: u8 = 0x08;
    /// `flags2`: internalTrafficPolicy Local.
    pub const INT_LOCAL_SCOPE: u8 = 0x10;
    /// `flags2`: an external and an internal frontend exist.
    pub const TWO_SCOPES: u8 = 0x20;
    /// `flags2` in slot 0: the source ranges are those to refuse (from 1.17 on).
    pub const SOURCE_RANGE_DENY: u8 = 0x40;
    /// `flags2` from slot 1 on: the backend is in quarantine.
    pub const QUARANTINED: u8 = 0x40;
    /// `flags2`: forwarded by direct server return (from 1.17 on).
    pub const FWD_MODE_DSR: u8 = 0x80;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_service, lb6_service", "12")?;
        Ok(Self {
            backend_id: u32_le(&raw, 0),
            count: u16_le(&raw, 4),
            rev_nat_index: u16_be(&raw, 6),
            flags: raw[8],
            flags2: raw[9],
            qcount: u16_le(&raw, 10),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.backend_id.to_le_bytes());
        raw[4..6].copy_from_slice(&self.count.to_le_bytes());
        raw[6..8].copy_from_slice(&self.rev_nat_index.to_be_bytes());
        raw[8] = self.flags;
        raw[9] = self.flags2;
        raw[10..].copy_from_slice(&self.qcount.to_le_bytes());
        raw
    }

    /// Whether a bit of the first flag byte is set.
    pub fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }

    /// Whether a bit of the second flag byte is set.
    pub fn has2(&self, bit: u8) -> bool {
        self.flags2 & bit != 0
    }

    /// Whether packets from outside may use the frontend.
    pub fn is_routable(&self) -> bool {
        self.has(Self::ROUTABLE)
    }

    /// Session affinity's timeout in seconds, in slot 0.
    pub fn affinity_timeout(&self) -> u32 {
        self.backend_id & 0x00FF_FFFF
    }

    /// How this service's backend is chosen, in slot 0 (from 1.17 on; the default before).
    pub fn algorithm(&self) -> LbAlgorithm {
        match self.backend_id >> 24 {
            0 => LbAlgorithm::Default,
            1 => LbAlgorithm::Random,
            2 => LbAlgorithm::Maglev,
            other => LbAlgorithm::Unknown(other as u8),
        }
    }

    /// The L7 load balancer's port, host order, in slot 0 of a service with [`Self::L7_LOADBALANCER`]; 0 is none.
    ///
    /// Stored in network order.
    pub fn l7_proxy_port(&self) -> u16 {
        let raw = self.backend_id.to_le_bytes();
        u16::from_be_bytes([raw[0], raw[1]])
    }

    /// The service's type in Kubernetes' word. A master entry without a type bit is a ClusterIP.
    pub fn kind(&self) -> &'static str {
        if self.has(Self::EXTERNAL_IP) {
            "ExternalIPs"
        } else if self.has(Self::NODEPORT) {
            "NodePort"
        } else if self.has(Self::HOSTPORT) {
            "HostPort"
        } else if self.has(Self::LOADBALANCER) {
            "LoadBalancer"
        } else if self.has2(Self::LOCALREDIRECT) {
            "LocalRedirect"
        } else {
            "ClusterIP"
        }
    }

    /// A master entry's flags as Cilium's CLI words them, the type first.
    ///
    /// Source: `ServiceFlags.String`, Cilium 1.14 `pkg/loadbalancer/loadbalancer.go`.
    pub fn words(&self) -> Vec<&'static str> {
        let mut words = vec![self.kind()];
        let optional = [
            (self.has(Self::EXT_LOCAL_SCOPE), "Local"),
            (self.has2(Self::INT_LOCAL_SCOPE), "InternalLocal"),
            (self.has2(Self::TWO_SCOPES), "two-scopes"),
            (self.has(Self::AFFINITY), "sessionAffinity"),
            (!self.is_routable(), "non-routable"),
            (self.has(Self::SOURCE_RANGE), "check source-range"),
            (self.has2(Self::SOURCE_RANGE_DENY), "deny source-range"),
            (self.has2(Self::NAT_46X64), "46x64"),
            (self.has2(Self::L7_LOADBALANCER), "l7-load-balancer"),
            (self.has2(Self::LOOPBACK), "loopback"),
            (self.has2(Self::FWD_MODE_DSR), "dsr"),
        ];
        words.extend(optional.into_iter().filter(|(on, _)| *on).map(|(_, word)| word));
        words
    }
}

/// A backend's state, as its `flags` byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Takes connections.
    Active,
    /// Its pod is on its way out: keeps those it has.
    Terminating,
    /// Health checks fail.
    Quarantined,
    /// Taken out by hand.
    Maintenance,
    /// A number that no known version writes.
    Unknown(u8),
}

impl BackendState {
    /// The state in the agent's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Quarantined => "quarantined",
            Self::Maintenance => "maintenance",
            Self::Unknown(_) => "unknown state",
        }
    }
}

/// A value of `cilium_lb4_backends_v3` or `cilium_lb6_backends_v3`; the key is the backend's id, a `u32` in host order.
///
/// Source: `struct lb4_backend`, `struct lb6_backend`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbBackend {
    /// The backend's address.
    pub address: IpAddr,
    /// The backend's port, host order.
    pub port: u16,
    /// IP protocol, 0 for any.
    pub proto: u8,
    /// [`Self::state`] as a number.
    pub flags: u8,
    /// Cluster id; one byte up to 1.14, whose second is zero.
    pub cluster_id: u16,
    /// Zone, 0 if none (from 1.16 on).
    pub zone: u8,
}

impl LbBackend {
    /// Bytes of an IPv4 and of an IPv6 value.
    pub const SIZES: (usize, usize) = (12, 24);

    /// Decodes a key: the backend's id.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 4 bytes.
    pub fn decode_key(raw: &[u8]) -> Result<u32, DecodeError> {
        sized(raw, "lb4_backend, lb6_backend key", "4").map(u32::from_le_bytes)
    }

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes (IPv4) or 24 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = family(raw, "lb4_backend, lb6_backend", Self::SIZES, "12 or 24")?;
        let at = family.width();
        Ok(Self {
            address: family.read(raw, 0),
            port: u16_be(raw, at),
            proto: raw[at + 2],
            flags: raw[at + 3],
            cluster_id: u16_le(raw, at + 4),
            zone: raw[at + 6],
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(Self::SIZES.1);
        push_address(&mut raw, self.address);
        raw.extend(self.port.to_be_bytes());
        raw.extend([self.proto, self.flags]);
        raw.extend(self.cluster_id.to_le_bytes());
        raw.extend([self.zone, 0]);
        raw
    }

    /// Address and port.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// What the agent says of the backend.
    pub fn state(&self) -> BackendState {
        match self.flags {
            0 => BackendState::Active,
            1 => BackendState::Terminating,
            2 => BackendState::Quarantined,
            3 => BackendState::Maintenance,
            other => BackendState::Unknown(other),
        }
    }
}

/// A value of `cilium_lb4_reverse_nat` or `cilium_lb6_reverse_nat`: the frontend to which replies are rewritten.
///
/// Source: `struct lb4_reverse_nat`, `struct lb6_reverse_nat`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbReverseNat {
    /// The frontend's address.
    pub address: IpAddr,
    /// The frontend's port, host order.
    pub port: u16,
}

impl LbReverseNat {
    /// Bytes of an IPv4 and of an IPv6 value.
    pub const SIZES: (usize, usize) = (6, 18);

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 6 bytes (IPv4) or 18 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = family(raw, "lb4_reverse_nat, lb6_reverse_nat", Self::SIZES, "6 or 18")?;
        Ok(Self { address: family.read(raw, 0), port: u16_be(raw, family.width()) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(Self::SIZES.1);
        push_address(&mut raw, self.address);
        raw.extend(self.port.to_be_bytes());
        raw
    }

    /// Decodes a key: the service's id, stored in network order.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 2 bytes.
    pub fn decode_key(raw: &[u8]) -> Result<u16, DecodeError> {
        sized(raw, "lb4_reverse_nat, lb6_reverse_nat key", "2").map(u16::from_be_bytes)
    }
}

/// A key of `cilium_lb4_source_range` or `cilium_lb6_source_range`: a client prefix that a service admits or refuses.
///
/// Source: `struct lb4_src_range_key`, `struct lb6_src_range_key`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LbSourceRange {
    /// The service's id, host order.
    pub rev_nat_id: u16,
    /// The prefix.
    pub prefix: IpNet,
}

impl LbSourceRange {
    /// Bytes of an IPv4 and of an IPv6 key.
    pub const SIZES: (usize, usize) = (12, 24);
    /// Bits of a key's prefix before the address: service id and padding.
    const STATIC_PREFIX_BITS: u32 = 32;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 12 bytes (IPv4) or 24 (IPv6) with a prefix that fits.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "lb4_src_range_key, lb6_src_range_key";
        let family = family(raw, WHAT, Self::SIZES, "12 or 24")?;
        let prefixlen = u32_le(raw, 0);
        let prefix = prefixlen
            .checked_sub(Self::STATIC_PREFIX_BITS)
            .and_then(|bits| prefix(family.read(raw, 8), bits))
            .ok_or(DecodeError::Field {
                what: WHAT,
                field: "prefixlen",
                expected: "32 to 64 (IPv4) or 32 to 160 (IPv6)",
                found: prefixlen.into(),
            })?;
        Ok(Self { rev_nat_id: u16_be(raw, 4), prefix })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let prefixlen = Self::STATIC_PREFIX_BITS + u32::from(self.prefix.prefix_len());
        let mut raw = Vec::with_capacity(Self::SIZES.1);
        raw.extend(prefixlen.to_le_bytes());
        raw.extend(self.rev_nat_id.to_be_bytes());
        raw.extend([0, 0]);
        push_address(&mut raw, self.prefix.network());
        raw
    }
}
