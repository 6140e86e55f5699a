//! The load-balancer maps: services, backends, reverse NAT, source ranges (IPv4).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use bytes::Buf;
use ipnet::Ipv4Net;

use super::{DecodeError, part, sized, u16_be, u16_le, u32_le};

/// A key of `cilium_lb4_services_v2`.
///
/// Source: `struct lb4_key`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lb4Key {
    /// The frontend's address; 0.0.0.0 in the wildcard NodePort entries.
    pub address: Ipv4Addr,
    /// The frontend's port, host order.
    pub dport: u16,
    /// 0 for the frontend itself, 1…count for its backends.
    pub backend_slot: u16,
    /// IP protocol; always 0 (any) up to 1.16.
    pub proto: u8,
    /// 0 external, 1 internal.
    pub scope: u8,
}

impl Lb4Key {
    /// Bytes of a key.
    pub const SIZE: usize = 12;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_key", "12")?;
        Ok(Self {
            address: part::<4>(&raw, 0).into(),
            dport: u16_be(&raw, 4),
            backend_slot: u16_le(&raw, 6),
            proto: raw[8],
            scope: raw[9],
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.address.octets());
        raw[4..6].copy_from_slice(&self.dport.to_be_bytes());
        raw[6..8].copy_from_slice(&self.backend_slot.to_le_bytes());
        raw[8] = self.proto;
        raw[9] = self.scope;
        raw
    }
}

/// A value of `cilium_lb4_services_v2`.
///
/// Source: `struct lb4_service`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lb4Service {
    /// In slot 1…count the backend's id; in slot 0 affinity timeout or L7 proxy port.
    pub backend_id: u32,
    /// Backends, in slot 0.
    pub count: u16,
    /// The service's id, host order (stored in network order).
    pub rev_nat_index: u16,
    /// First flag byte.
    pub flags: u8,
    /// Second flag byte.
    pub flags2: u8,
}

impl Lb4Service {
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
    /// `flags2`: loopback HostPort.
    pub const LOOPBACK: u8 = 0x08;
    /// `flags2`: internalTrafficPolicy Local.
    pub const INT_LOCAL_SCOPE: u8 = 0x10;
    /// `flags2`: an external and an internal frontend exist.
    pub const TWO_SCOPES: u8 = 0x20;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_service", "12")?;
        Ok(Self {
            backend_id: u32_le(&raw, 0),
            count: u16_le(&raw, 4),
            rev_nat_index: u16_be(&raw, 6),
            flags: raw[8],
            flags2: raw[9],
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
        raw
    }

    /// Whether packets from outside may use the frontend.
    pub fn is_routable(&self) -> bool {
        self.flags & Self::ROUTABLE != 0
    }

    /// The service's type in Kubernetes' word. A master entry without a type bit is a ClusterIP.
    pub fn kind(&self) -> &'static str {
        let has = |bit| self.flags & bit != 0;
        if has(Self::EXTERNAL_IP) {
            "ExternalIPs"
        } else if has(Self::NODEPORT) {
            "NodePort"
        } else if has(Self::HOSTPORT) {
            "HostPort"
        } else if has(Self::LOADBALANCER) {
            "LoadBalancer"
        } else if self.flags2 & Self::LOCALREDIRECT != 0 {
            "LocalRedirect"
        } else {
            "ClusterIP"
        }
    }

    /// The flags as Cilium's CLI words them, the type first.
    ///
    /// Source: `ServiceFlags.String`, Cilium 1.14 `pkg/loadbalancer/loadbalancer.go`.
    pub fn words(&self) -> Vec<&'static str> {
        let has = |bit| self.flags & bit != 0;
        let has2 = |bit| self.flags2 & bit != 0;
        let mut words = vec![self.kind()];
        let optional = [
            (has(Self::EXT_LOCAL_SCOPE), "Local"),
            (has2(Self::INT_LOCAL_SCOPE), "InternalLocal"),
            (has2(Self::TWO_SCOPES), "two-scopes"),
            (has(Self::AFFINITY), "sessionAffinity"),
            (!self.is_routable(), "non-routable"),
            (has(Self::SOURCE_RANGE), "check source-range"),
            (has2(Self::NAT_46X64), "46x64"),
            (has2(Self::L7_LOADBALANCER), "l7-load-balancer"),
            (has2(Self::LOOPBACK), "loopback"),
        ];
        words.extend(optional.into_iter().filter(|(on, _)| *on).map(|(_, word)| word));
        words
    }
}

/// A value of `cilium_lb4_backends_v3`; the key is the backend's id, a `u32` in host order.
///
/// Source: `struct lb4_backend`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lb4Backend {
    /// The backend's address.
    pub address: Ipv4Addr,
    /// The backend's port, host order.
    pub port: u16,
    /// IP protocol, 0 for any.
    pub proto: u8,
    /// State: 0 active, 1 terminating, 2 quarantined, 3 maintenance.
    pub flags: u8,
    /// Cluster id.
    pub cluster_id: u8,
}

impl Lb4Backend {
    /// Bytes of a value.
    pub const SIZE: usize = 12;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_backend", "12")?;
        Ok(Self {
            address: part::<4>(&raw, 0).into(),
            port: u16_be(&raw, 4),
            proto: raw[6],
            flags: raw[7],
            cluster_id: raw[8],
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.address.octets());
        raw[4..6].copy_from_slice(&self.port.to_be_bytes());
        raw[6] = self.proto;
        raw[7] = self.flags;
        raw[8] = self.cluster_id;
        raw
    }

    /// Address and port.
    pub fn socket(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, self.port)
    }

    /// The state in the agent's word.
    pub fn state(&self) -> &'static str {
        match self.flags {
            0 => "active",
            1 => "terminating",
            2 => "quarantined",
            3 => "maintenance",
            _ => "unknown state",
        }
    }
}

/// A value of `cilium_lb4_reverse_nat`: the frontend to which replies are rewritten.
///
/// Source: `struct lb4_reverse_nat`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lb4ReverseNat {
    /// The frontend's address.
    pub address: Ipv4Addr,
    /// The frontend's port, host order.
    pub port: u16,
}

impl Lb4ReverseNat {
    /// Bytes of a value.
    pub const SIZE: usize = 6;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 6 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_reverse_nat", "6")?;
        Ok(Self { address: part::<4>(&raw, 0).into(), port: u16_be(&raw, 4) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.address.octets());
        raw[4..].copy_from_slice(&self.port.to_be_bytes());
        raw
    }

    /// Decodes a key: the service's id, stored in network order.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 2 bytes.
    pub fn decode_key(raw: &[u8]) -> Result<u16, DecodeError> {
        sized(raw, "lb4_reverse_nat key", "2").map(u16::from_be_bytes)
    }
}

/// A key of `cilium_lb4_source_range`: a client prefix that a service admits.
///
/// Source: `struct lb4_src_range_key`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lb4SourceRange {
    /// The service's id, host order.
    pub rev_nat_id: u16,
    /// The prefix.
    pub prefix: Ipv4Net,
}

impl Lb4SourceRange {
    /// Bytes of a key.
    pub const SIZE: usize = 12;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 12 bytes with a prefix of 32 to 64 bits.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb4_src_range_key", "12")?;
        let mut rest = &raw[..];
        let prefixlen = rest.get_u32_le();
        let rev_nat_id = rest.get_u16();
        rest.advance(2);
        let prefix = prefixlen
            .checked_sub(32)
            .and_then(|bits| Ipv4Net::new(rest.get_u32().into(), u8::try_from(bits).ok()?).ok())
            .ok_or(DecodeError::Field {
                what: "lb4_src_range_key",
                field: "prefixlen",
                expected: "32 to 64",
                found: prefixlen.into(),
            })?;
        Ok(Self { rev_nat_id, prefix: prefix.trunc() })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&(32 + u32::from(self.prefix.prefix_len())).to_le_bytes());
        raw[4..6].copy_from_slice(&self.rev_nat_id.to_be_bytes());
        raw[8..].copy_from_slice(&self.prefix.network().octets());
        raw
    }
}

/// A service frontend with its backends, slot by slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Address, port, protocol, scope (slot 0).
    pub key: Lb4Key,
    /// The master entry.
    pub service: Lb4Service,
    /// Slot, backend id, and the backend if the backends map has it.
    pub backends: Vec<(u16, u32, Option<Lb4Backend>)>,
}

/// The load-balancer maps together.
#[derive(Clone, Debug, Default)]
pub struct LoadBalancer {
    services: BTreeMap<Lb4Key, Lb4Service>,
    backends: BTreeMap<u32, Lb4Backend>,
    source_ranges: Vec<Lb4SourceRange>,
}

impl LoadBalancer {
    /// From the decoded maps.
    pub fn new(
        services: BTreeMap<Lb4Key, Lb4Service>,
        backends: BTreeMap<u32, Lb4Backend>,
        source_ranges: Vec<Lb4SourceRange>,
    ) -> Self {
        Self { services, backends, source_ranges }
    }

    /// The external frontend of an address and port, as `lb4_lookup_service` finds it up to 1.16 (protocol any).
    pub fn frontend(&self, address: IpAddr, dport: u16) -> Option<Frontend> {
        let IpAddr::V4(address) = address else { return None };
        let key = Lb4Key { address, dport, backend_slot: 0, proto: 0, scope: 0 };
        self.services.get(&key).map(|service| self.with_backends(key, *service))
    }

    /// Every frontend, by address and port.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.services
            .iter()
            .filter(|(key, _)| key.backend_slot == 0)
            .map(|(key, service)| self.with_backends(*key, *service))
    }

    /// Every backend by id.
    pub fn backends(&self) -> &BTreeMap<u32, Lb4Backend> {
        &self.backends
    }

    /// The prefixes that a service admits.
    pub fn source_ranges(&self, rev_nat_id: u16) -> impl Iterator<Item = Ipv4Net> {
        self.source_ranges
            .iter()
            .filter(move |range| range.rev_nat_id == rev_nat_id)
            .map(|range| range.prefix)
    }

    fn with_backends(&self, key: Lb4Key, service: Lb4Service) -> Frontend {
        let backends = (1..=service.count).filter_map(|backend_slot| {
            let id = self.services.get(&Lb4Key { backend_slot, ..key })?.backend_id;
            Some((backend_slot, id, self.backends.get(&id).copied()))
        });
        Frontend { key, service, backends: backends.collect() }
    }
}
