//! Keys of a policy map.

use super::super::identity::Identity;
use super::super::{DecodeError, Direction, part, u16_be, u32_le};
use super::PolicyLayout;

/// Bits of a key's prefix that every entry has: identity and direction.
pub(super) const STATIC_PREFIX_BITS: u32 = 40;
/// `prefixlen` of a key whose protocol and port both count; what the datapath looks up with.
pub(super) const FULL_PREFIX: u32 = 64;
/// Prefix bits beyond the static ones that cover the protocol.
pub(super) const PROTOCOL_BITS: u32 = 8;

/// A key of `cilium_policy_*`: whom, which way, and how much of protocol and port.
///
/// From 1.14 on an LPM key of 12 bytes, in 1.13 a hash key of 8, whose prefix is what its zeros mean.
///
/// Source: `struct policy_key`, Cilium 1.13–1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/policy.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Significant bits after the `prefixlen` field itself: 40, 48, or 49–64.
    pub prefixlen: u32,
    /// The peer's identity; 0 stands for any.
    pub sec_label: Identity,
    /// Direction as the endpoint sees it.
    pub direction: Direction,
    /// IP protocol; counts from prefix 48.
    pub protocol: u8,
    /// Destination port in host order, the pod's own after any DNAT; counts from prefix 49.
    pub dport: u16,
}

impl PolicyKey {
    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` has the layout's size with no unknown bit beside `egress` and, in an LPM key, a prefix
    /// of 40–64 bits that ends with or after the protocol.
    pub fn decode(raw: &[u8], layout: PolicyLayout) -> Result<Self, DecodeError> {
        let unsized_key = |expected| DecodeError::Size { what: "policy_key", expected, found: raw.len() };
        if layout == PolicyLayout::HashKey {
            return Self::decode_hash(raw.try_into().map_err(|_| unsized_key("8"))?);
        }
        Self::decode_lpm(raw.try_into().map_err(|_| unsized_key("12"))?)
    }

    fn decode_hash(raw: [u8; 8]) -> Result<Self, DecodeError> {
        let (dport, protocol) = (u16_be(&raw, 4), raw[6]);
        let direction = direction(raw[7])?;
        let sec_label = Identity(u32_le(&raw, 0));
        Ok(Self { prefixlen: hash_prefix(protocol, dport), sec_label, direction, protocol, dport })
    }

    fn decode_lpm(raw: &[u8; 12]) -> Result<Self, DecodeError> {
        let prefixlen = u32_le(raw, 0);
        if !matches!(prefixlen, 40 | 48..=64) {
            let (field, expected) = ("prefixlen", "40 or 48 to 64");
            return Err(DecodeError::Field { what: "policy_key", field, expected, found: prefixlen.into() });
        }
        let direction = direction(raw[8])?;
        let sec_label = Identity(u32_le(raw, 4));
        Ok(Self { prefixlen, sec_label, direction, protocol: raw[9], dport: u16_be(raw, 10) })
    }

    /// The key as the kernel stores it. An 8-byte key has no prefix of its own.
    pub fn encode(&self, layout: PolicyLayout) -> Vec<u8> {
        let egress = u8::from(self.direction == Direction::Egress);
        let (label, dport) = (self.sec_label.0.to_le_bytes(), self.dport.to_be_bytes());
        if layout == PolicyLayout::HashKey {
            return [&label[..], &dport, &[self.protocol, egress]].concat();
        }
        [&self.prefixlen.to_le_bytes()[..], &label, &[egress, self.protocol], &dport].concat()
    }

    /// `lpm_prefix_length`: how many bits of protocol and port count, 0, 8, or 9–24.
    pub fn l4_prefix(&self) -> u8 {
        (self.prefixlen - STATIC_PREFIX_BITS) as u8
    }

    /// Whether the stored key covers a packet of `direction`, `protocol` and `port`, whatever its identity.
    pub fn covers_l4(&self, direction: Direction, protocol: u8, port: u16) -> bool {
        direction == self.direction && self.covers_protocol(protocol) && self.covers_port(port)
    }

    /// Whether the key leaves the protocol open or names this one.
    pub fn covers_protocol(&self, protocol: u8) -> bool {
        u32::from(self.l4_prefix()) < PROTOCOL_BITS || self.protocol == protocol
    }

    /// Whether the key leaves the port open or its port prefix covers this one.
    pub fn covers_port(&self, port: u16) -> bool {
        (self.dport ^ port) & port_mask(self.l4_prefix()) == 0
    }
}

/// The bits of a port that a prefix of so many protocol and port bits covers.
pub(in crate::cilium) fn port_mask(l4_prefix: u8) -> u16 {
    let bits = u32::from(l4_prefix).saturating_sub(PROTOCOL_BITS);
    u16::MAX.checked_shl(16_u32.saturating_sub(bits)).unwrap_or(0)
}

/// The prefix that an 8-byte key's zeros amount to.
fn hash_prefix(protocol: u8, dport: u16) -> u32 {
    match (protocol, dport) {
        (0, 0) => STATIC_PREFIX_BITS,
        (_, 0) => STATIC_PREFIX_BITS + PROTOCOL_BITS,
        _ => FULL_PREFIX,
    }
}

fn direction(egress: u8) -> Result<Direction, DecodeError> {
    match egress {
        0 => Ok(Direction::Ingress),
        1 => Ok(Direction::Egress),
        found => {
            let (field, expected) = ("egress", "0 or 1");
            Err(DecodeError::Field { what: "policy_key", field, expected, found: found.into() })
        }
    }
}

/// Identity, direction, protocol and port of a stored key in one word, whatever its layout: what the index hashes.
///
/// Byte 0–3 identity, 4 direction, 5 protocol, 6–7 port in network order, as `struct policy_key` has them after its prefix.
pub(super) fn word(raw: &[u8], layout: PolicyLayout) -> u64 {
    if layout == PolicyLayout::HashKey {
        let [a, b, c, d, port_hi, port_lo, protocol, egress] = part::<8>(raw, 0);
        return u64::from_le_bytes([a, b, c, d, egress, protocol, port_hi, port_lo]);
    }
    u64::from_le_bytes(part(raw, 4))
}
