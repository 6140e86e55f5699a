//! Cilium's SNAT: `cilium_snat_v4_external` and `cilium_snat_v6_external`.
//!
//! Their keys are [`CtTuple`](super::ct::CtTuple)s, but **not** swapped: names mean what they say. The forward mapping
//! has flags 0 and the packet's own tuple, the reverse mapping flags 1 and the reply's.

use std::net::IpAddr;

use super::family::{Family, push_address};
use super::{DecodeError, u16_be, u64_le};

/// Bytes before the address: when, whether conntrack matters, padding.
const COMMON_SIZE: usize = 32;

/// A value of `cilium_snat_v4_external` or `cilium_snat_v6_external`.
///
/// Source: `struct ipv4_nat_entry`, `struct ipv6_nat_entry`, Cilium 1.13–1.20 `bpf/lib/nat.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatEntry {
    /// When the mapping was made, in the datapath's clock.
    pub created: u64,
    /// Whether conntrack has an entry for it. In 1.13.0: `host_local`, whether the node itself sent the packet.
    pub needs_ct: u64,
    /// The new source (forward mapping) or the original destination (reverse mapping).
    pub to_addr: IpAddr,
    /// Its port, host order.
    pub to_port: u16,
}

impl NatEntry {
    /// Bytes of an IPv4 and of an IPv6 value.
    pub const SIZES: (usize, usize) = (40, 56);

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 40 bytes (IPv4) or 56 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = Family::by_size(raw.len(), Self::SIZES.0, Self::SIZES.1);
        let (what, expected, found) = ("ipv4_nat_entry, ipv6_nat_entry", "40 or 56", raw.len());
        let family = family.ok_or(DecodeError::Size { what, expected, found })?;
        Ok(Self {
            created: u64_le(raw, 0),
            needs_ct: u64_le(raw, 8),
            to_addr: family.read(raw, COMMON_SIZE),
            to_port: u16_be(raw, COMMON_SIZE + family.width()),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let size = match Family::of(self.to_addr) {
            Family::V4 => Self::SIZES.0,
            Family::V6 => Self::SIZES.1,
        };
        let mut raw = Vec::with_capacity(size);
        raw.extend(self.created.to_le_bytes());
        raw.extend(self.needs_ct.to_le_bytes());
        raw.resize(COMMON_SIZE, 0);
        push_address(&mut raw, self.to_addr);
        raw.extend(self.to_port.to_be_bytes());
        raw.resize(size, 0);
        raw
    }
}
