//! Session affinity: which backend a client had last, and which backends still count for it.

use std::net::{IpAddr, Ipv6Addr};

use super::super::family::Family;
use super::super::{DecodeError, part, sized, u16_be, u32_le, u64_le};
use super::family;

/// A key of `cilium_lb4_affinity` or `cilium_lb6_affinity`.
///
/// Source: `struct lb4_affinity_key`, `struct lb6_affinity_key`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LbAffinityKey {
    /// Whose map it is in.
    pub family: Family,
    /// The client: its address, network order and zero-padded, or the cookie of its network namespace. IPv4 keys hold
    /// the first eight bytes.
    pub client_id: [u8; 16],
    /// The service's id, host order.
    pub rev_nat_id: u16,
    /// `client_id` is a cookie: the client is on this node, seen at its socket.
    pub netns_cookie: bool,
}

impl LbAffinityKey {
    /// Bytes of an IPv4 and of an IPv6 key.
    pub const SIZES: (usize, usize) = (16, 24);

    /// The key of a client seen on the wire.
    pub fn of_client(client: IpAddr, rev_nat_id: u16) -> Self {
        let mut client_id = [0; 16];
        match client {
            IpAddr::V4(v4) => client_id[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => client_id = v6.octets(),
        }
        Self { family: Family::of(client), client_id, rev_nat_id, netns_cookie: false }
    }

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes (IPv4) or 24 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = family(raw, "lb4_affinity_key, lb6_affinity_key", Self::SIZES, "16 or 24")?;
        let at = Self::client_width(family);
        let mut client_id = [0; 16];
        client_id[..at].copy_from_slice(&raw[..at]);
        Ok(Self { family, client_id, rev_nat_id: u16_be(raw, at), netns_cookie: raw[at + 2] & 1 != 0 })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let at = Self::client_width(self.family);
        let mut raw = self.client_id[..at].to_vec();
        raw.extend(self.rev_nat_id.to_be_bytes());
        raw.extend([u8::from(self.netns_cookie), 0, 0, 0, 0, 0]);
        raw
    }

    /// The client's address; `None` for a cookie.
    pub fn client(&self) -> Option<IpAddr> {
        let address = match self.family {
            Family::V4 => IpAddr::from(part::<4>(&self.client_id, 0)),
            Family::V6 => Ipv6Addr::from(self.client_id).into(),
        };
        (!self.netns_cookie).then_some(address)
    }

    fn client_width(family: Family) -> usize {
        match family {
            Family::V4 => 8,
            Family::V6 => 16,
        }
    }
}

/// A value of `cilium_lb4_affinity` or `cilium_lb6_affinity`.
///
/// Source: `struct lb_affinity_val`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbAffinity {
    /// When the client last used the backend, in the datapath's clock.
    pub last_used: u64,
    /// The backend's id.
    pub backend_id: u32,
}

impl LbAffinity {
    /// Bytes of a value.
    pub const SIZE: usize = 16;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb_affinity_val", "16")?;
        Ok(Self { last_used: u64_le(&raw, 0), backend_id: u32_le(&raw, 8) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.last_used.to_le_bytes());
        raw[8..12].copy_from_slice(&self.backend_id.to_le_bytes());
        raw
    }
}

/// A key of `cilium_lb_affinity_match`, which has no values worth reading: a backend that counts for a service's
/// affinity.
///
/// Source: `struct lb_affinity_match`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LbAffinityMatch {
    /// The backend's id.
    pub backend_id: u32,
    /// The service's id, host order.
    pub rev_nat_id: u16,
}

impl LbAffinityMatch {
    /// Bytes of a key.
    pub const SIZE: usize = 8;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "lb_affinity_match", "8")?;
        Ok(Self { backend_id: u32_le(&raw, 0), rev_nat_id: u16_be(&raw, 4) })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.backend_id.to_le_bytes());
        raw[4..6].copy_from_slice(&self.rev_nat_id.to_be_bytes());
        raw
    }
}
