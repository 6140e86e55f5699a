//! Cilium's SNAT: `cilium_snat_v4_external`.
//!
//! Its keys are [`Ipv4CtTuple`](super::ct::Ipv4CtTuple)s, but **not** swapped: names mean what they say.

use std::net::Ipv4Addr;

use super::{DecodeError, part, sized, u16_be, u64_le};

/// A value of `cilium_snat_v4_external`.
///
/// Source: `struct ipv4_nat_entry`, Cilium 1.14 `bpf/lib/nat.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4NatEntry {
    /// When the mapping was made, in the datapath's clock.
    pub created: u64,
    /// Whether conntrack has an entry for it.
    pub needs_ct: u64,
    /// The new source (forward mapping) or the original destination (reverse mapping).
    pub to_addr: Ipv4Addr,
    /// Its port, host order.
    pub to_port: u16,
}

impl Ipv4NatEntry {
    /// Bytes of a value.
    pub const SIZE: usize = 40;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 40 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ipv4_nat_entry", "40")?;
        Ok(Self {
            created: u64_le(&raw, 0),
            needs_ct: u64_le(&raw, 8),
            to_addr: part::<4>(&raw, 32).into(),
            to_port: u16_be(&raw, 36),
        })
    }
}
