//! `cilium_policystats`: what each policy entry let through or stopped (1.18 on; before, the entries count themselves).

use core::cmp::Ordering;

use super::identity::Identity;
use super::policy::{PolicyCounters, PolicyKey, port_mask};
use super::{DecodeError, Direction, EndpointId, per_cpu, sized, u16_be, u16_le, u32_le, u64_le};

/// The pin of the map.
pub const PIN: &str = "cilium_policystats";

/// A key of `cilium_policystats`: one policy entry of one endpoint.
///
/// Its fields are those of the policy entry that decided, so an entry finds its counters by equality.
/// No such key: never matched, or forgotten, as the map drops what was not used for long.
///
/// Source: `struct policy_stats_key`, Cilium 1.18 `bpf/lib/policy.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyStatsKey {
    /// The endpoint whose policy map has the entry.
    pub endpoint_id: EndpointId,
    /// The entry's identity, 0 for any.
    pub sec_label: Identity,
    /// The entry's direction.
    pub direction: Direction,
    /// The entry's bits of protocol and port: 0 any, 8 a protocol, 24 a protocol and a port, between them a port range.
    pub prefix_len: u8,
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// The first port, host order (stored in network order), 0 for any.
    pub dport: u16,
}

impl PolicyStatsKey {
    /// Bytes of a key.
    pub const SIZE: usize = 12;
    const EGRESS: u8 = 1;

    /// Where the datapath counts what an entry of `endpoint_id`'s policy map decides.
    pub fn of_entry(endpoint_id: EndpointId, key: &PolicyKey) -> Self {
        let prefix_len = key.l4_prefix();
        Self {
            endpoint_id,
            sec_label: key.sec_label,
            direction: key.direction,
            prefix_len,
            // What the prefix leaves open is zero here, whatever the entry's key has.
            protocol: if prefix_len < 8 { 0 } else { key.protocol },
            dport: key.dport & port_mask(prefix_len),
        }
    }

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "policy_stats_key", "12")?;
        Ok(Self {
            endpoint_id: EndpointId(u16_le(&raw, 0)),
            prefix_len: raw[3],
            sec_label: Identity(u32_le(&raw, 4)),
            direction: if raw[8] & Self::EGRESS == 0 { Direction::Ingress } else { Direction::Egress },
            protocol: raw[9],
            dport: u16_be(&raw, 10),
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..2].copy_from_slice(&self.endpoint_id.0.to_le_bytes());
        raw[3] = self.prefix_len;
        raw[4..8].copy_from_slice(&self.sec_label.0.to_le_bytes());
        raw[8] = if self.direction == Direction::Egress { Self::EGRESS } else { 0 };
        raw[9] = self.protocol;
        raw[10..].copy_from_slice(&self.dport.to_be_bytes());
        raw
    }

    fn order(&self) -> (EndpointId, Direction, Identity, core::cmp::Reverse<u8>, u8, u16) {
        let Self { endpoint_id, sec_label, direction, prefix_len, protocol, dport } = *self;
        (endpoint_id, direction, sec_label, core::cmp::Reverse(prefix_len), protocol, dport)
    }
}

impl PartialOrd for PolicyStatsKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PolicyStatsKey {
    /// By endpoint, direction and identity, the narrowest entry first.
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// A value of `cilium_policystats` holds for each processor what an older policy entry has in itself.
///
/// Source: `struct policy_stats_value`, Cilium 1.18 `bpf/lib/policy.h`.
impl PolicyCounters {
    /// Bytes of one processor's value.
    pub const SIZE: usize = 16;

    /// Decodes one processor's value.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "policy_stats_value", "16")?;
        Ok(Self { packets: u64_le(&raw, 0), bytes: u64_le(&raw, 8) })
    }

    /// The value as the kernel stores it for one processor.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.packets.to_le_bytes());
        raw[8..].copy_from_slice(&self.bytes.to_le_bytes());
        raw
    }

    /// Adds up the values of every processor, one after another in `raw`; what overflows stays at the highest number.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is a positive multiple of 16 bytes.
    pub fn sum(raw: &[u8]) -> Result<Self, DecodeError> {
        let mut total = Self::default();
        for value in per_cpu(raw, Self::SIZE, "policy_stats_value", "16 for each processor")? {
            let Self { packets, bytes } = Self::decode(value)?;
            total.packets = total.packets.saturating_add(packets);
            total.bytes = total.bytes.saturating_add(bytes);
        }
        Ok(total)
    }
}
