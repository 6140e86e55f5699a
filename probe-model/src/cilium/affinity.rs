//! Session affinity: which backend of a service a client last had.

use core::net::{IpAddr, Ipv6Addr};

use super::{DecodeError, part, sized, u16_be, u32_le, u64_le};

/// Who asks for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// A peer outside, by address.
    Ip(IpAddr),
    /// A pod of this node, by its network namespace's cookie (socket load balancing).
    NetnsCookie(u64),
}

/// A key of `cilium_lb4_affinity` or `cilium_lb6_affinity`.
///
/// Source: `struct lb4_affinity_key` and `struct lb6_affinity_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on
/// `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The client.
    pub client: Client,
    /// The service's id, host order (stored in network order).
    pub rev_nat_id: u16,
}

impl AffinityKey {
    /// Bytes of a key of `cilium_lb4_affinity`.
    pub const SIZE_V4: usize = 16;
    /// Bytes of a key of `cilium_lb6_affinity`.
    pub const SIZE_V6: usize = 24;
    const NETNS_COOKIE: u8 = 1;

    /// Decodes a key as the kernel stores it; its size says of which map.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 or 24 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let (after_client, address): (_, IpAddr) = match raw.len() {
            Self::SIZE_V4 => (8, part::<4>(raw, 0).into()),
            Self::SIZE_V6 => (16, Ipv6Addr::from(part::<16>(raw, 0)).into()),
            found => {
                let expected = "16 (`cilium_lb4_affinity`) or 24 (`cilium_lb6_affinity`)";
                return Err(DecodeError::Size { what: "lb4_affinity_key", expected, found });
            }
        };
        let is_cookie = raw[after_client + 2] & Self::NETNS_COOKIE != 0;
        let client = if is_cookie { Client::NetnsCookie(u64_le(raw, 0)) } else { Client::Ip(address) };
        Ok(Self { client, rev_nat_id: u16_be(raw, after_client) })
    }

    /// The key as `cilium_lb4_affinity` has it; an IPv6 client does not fit and is left out.
    pub fn encode_v4(&self) -> [u8; Self::SIZE_V4] {
        let mut raw = [0; Self::SIZE_V4];
        self.fill(&mut raw, 8);
        raw
    }

    /// The key as `cilium_lb6_affinity` has it; an IPv4 client does not occur there and is left out.
    pub fn encode_v6(&self) -> [u8; Self::SIZE_V6] {
        let mut raw = [0; Self::SIZE_V6];
        self.fill(&mut raw, 16);
        raw
    }

    fn fill(&self, raw: &mut [u8], after_client: usize) {
        match self.client {
            Client::Ip(IpAddr::V4(ip)) if after_client == 8 => raw[..4].copy_from_slice(&ip.octets()),
            Client::Ip(IpAddr::V6(ip)) if after_client == 16 => raw[..16].copy_from_slice(&ip.octets()),
            Client::Ip(_) => {}
            Client::NetnsCookie(cookie) => {
                raw[..8].copy_from_slice(&cookie.to_le_bytes());
                raw[after_client + 2] = Self::NETNS_COOKIE;
            }
        }
        raw[after_client..after_client + 2].copy_from_slice(&self.rev_nat_id.to_be_bytes());
    }
}

/// A value of `cilium_lb4_affinity` and `cilium_lb6_affinity`.
///
/// Source: `struct lb_affinity_val`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityValue {
    /// When the client last asked, in the datapath's clock, which conntrack's `lifetime` has too.
    pub last_used: u64,
    /// The backend it had.
    pub backend_id: u32,
}

impl AffinityValue {
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

/// A key of `cilium_lb_affinity_match`: the backend still belongs to the service. The value says nothing.
///
/// Source: `struct lb_affinity_match`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityMatch {
    /// The service's id, host order (stored in network order).
    pub rev_nat_id: u16,
    /// The backend.
    pub backend_id: u32,
}

impl AffinityMatch {
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
