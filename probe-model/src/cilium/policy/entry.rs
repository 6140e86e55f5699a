//! Values of a policy map.

use super::super::{DecodeError, u16_be, u32_le, u64_le};
use super::key::PROTOCOL_BITS;
use super::{PolicyKey, PolicyLayout};

/// A value of `cilium_policy_*`.
///
/// Source: `struct policy_entry`, Cilium 1.13–1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/policy.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyEntry {
    /// Port of the L7 proxy in host order; 0 is no redirect.
    pub proxy_port: u16,
    /// The whole flag byte; beyond [`Self::DENY`] its meaning depends on [`PolicyLayout`].
    pub flags: u8,
    /// 0 disabled, 1 SPIRE, 2 always fails.
    pub auth_type: u8,
    /// The rule itself names `auth_type`, so that no other rule's may replace it (from 1.17 on).
    pub has_explicit_auth_type: bool,
    /// Which redirect wins over which (1.17 and 1.18): 0 is no redirect, a larger number wins.
    pub proxy_port_priority: u8,
    /// Which entry wins over which (from 1.19 on): opaque, a larger number wins.
    pub precedence: u32,
    /// Stands for the rule's log string (from 1.19 on); 0 is none.
    pub cookie: u32,
    /// Packets and bytes that this entry decided; from 1.18 on they are in `cilium_policystats`.
    pub counters: Option<PolicyCounters>,
}

/// What an entry decided, denied packets included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PolicyCounters {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PolicyEntry {
    /// `deny` in the flag byte, in every layout.
    pub const DENY: u8 = 1;
    /// `wildcard_protocol` in the flag byte, [`PolicyLayout::WildcardBits`] only.
    pub const WILDCARD_PROTOCOL: u8 = 2;
    /// `wildcard_dport` in the flag byte, [`PolicyLayout::WildcardBits`] only.
    pub const WILDCARD_DPORT: u8 = 4;
    /// `precedence` of a deny that nothing can outrank: the datapath looks no further.
    pub const HIGHEST_PRECEDENCE: u32 = u32::MAX;
    /// `has_explicit_auth_type` in the byte of the authentication type.
    const EXPLICIT_AUTH: u8 = 0x80;

    /// Decodes an entry as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` has the layout's size.
    pub fn decode(raw: &[u8], layout: PolicyLayout) -> Result<Self, DecodeError> {
        if raw.len() != layout.value_size() {
            let expected = layout.value_size_word();
            return Err(DecodeError::Size { what: "policy_entry", expected, found: raw.len() });
        }
        let explicit = layout.has_explicit_auth() && raw[3] & Self::EXPLICIT_AUTH != 0;
        let mut entry = Self {
            proxy_port: u16_be(raw, 0),
            flags: raw[2],
            auth_type: if layout.has_explicit_auth() { raw[3] & !Self::EXPLICIT_AUTH } else { raw[3] },
            has_explicit_auth_type: explicit,
            ..Self::default()
        };
        match layout {
            PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => entry.proxy_port_priority = raw[4],
            PolicyLayout::Precedence | PolicyLayout::Aggregates => {
                entry.precedence = u32_le(raw, 4);
                entry.cookie = u32_le(raw, 8);
            }
            PolicyLayout::HashKey | PolicyLayout::WildcardBits | PolicyLayout::PrefixLength => {}
        }
        if layout.has_counters() {
            entry.counters = Some(PolicyCounters { packets: u64_le(raw, 8), bytes: u64_le(raw, 16) });
        }
        Ok(entry)
    }

    /// Whether an entry as the kernel stores it may demand authentication, whatever its layout: `auth_type` is the fourth byte
    /// of each, a pad before Cilium 1.14.
    pub fn may_demand_authentication(raw: &[u8]) -> bool {
        raw.get(3).is_none_or(|auth_type| *auth_type != 0)
    }

    /// The entry as the kernel stores it; what the layout has no field for is left out.
    pub fn encode(&self, layout: PolicyLayout) -> Vec<u8> {
        let mut raw = vec![0; layout.value_size()];
        raw[..2].copy_from_slice(&self.proxy_port.to_be_bytes());
        raw[2] = self.flags;
        raw[3] = self.auth_type;
        if layout.has_explicit_auth() {
            raw[3] = self.auth_type & !Self::EXPLICIT_AUTH;
            raw[3] |= if self.has_explicit_auth_type { Self::EXPLICIT_AUTH } else { 0 };
        }
        match layout {
            PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => raw[4] = self.proxy_port_priority,
            PolicyLayout::Precedence | PolicyLayout::Aggregates => {
                raw[4..8].copy_from_slice(&self.precedence.to_le_bytes());
                raw[8..12].copy_from_slice(&self.cookie.to_le_bytes());
            }
            PolicyLayout::HashKey | PolicyLayout::WildcardBits | PolicyLayout::PrefixLength => {}
        }
        if layout.has_counters() {
            let PolicyCounters { packets, bytes } = self.counters.unwrap_or_default();
            raw[8..16].copy_from_slice(&packets.to_le_bytes());
            raw[16..24].copy_from_slice(&bytes.to_le_bytes());
        }
        raw
    }

    /// A fresh entry for `key` as the agent of the layout's versions writes it: its flags repeat the key's prefix.
    pub fn for_key(key: &PolicyKey, layout: PolicyLayout, deny: bool) -> Self {
        let flags = prefix_flags(u32::from(key.l4_prefix()), layout) | if deny { Self::DENY } else { 0 };
        let counters = layout.has_counters().then(PolicyCounters::default);
        Self { flags, counters, ..Self::default() }
    }

    /// Whether the entry is a deny rule.
    pub fn deny(&self) -> bool {
        self.flags & Self::DENY != 0
    }
}

/// What the flag byte beside `deny` has to be for a key with so many protocol and port bits.
pub(in crate::cilium) fn prefix_flags(l4_prefix: u32, layout: PolicyLayout) -> u8 {
    match layout {
        PolicyLayout::HashKey => 0,
        PolicyLayout::WildcardBits => {
            let protocol = if l4_prefix == 0 { PolicyEntry::WILDCARD_PROTOCOL } else { 0 };
            let port = if l4_prefix <= PROTOCOL_BITS { PolicyEntry::WILDCARD_DPORT } else { 0 };
            protocol | port
        }
        _ => (l4_prefix << 3) as u8,
    }
}
