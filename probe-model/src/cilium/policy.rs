//! The policy map of an endpoint: keys, entries, and the datapath's lookup (1.14–1.16).

use std::collections::BTreeMap;
use std::fmt;

use super::drop_reason::DropReason;
use super::identity::Identity;
use super::{DecodeError, Direction, EndpointId, sized, u16_be, u32_le, u64_le};

/// What the pin names of policy maps begin with up to 1.16; an endpoint id of five digits follows.
const PIN_PREFIX: &str = "cilium_policy_";
/// Bits of a key's prefix that every entry has: identity and direction.
const STATIC_PREFIX_BITS: u32 = 40;
/// `prefixlen` of a key whose protocol and port both count; what the datapath looks up with.
const FULL_PREFIX: u32 = 64;
/// Prefix bits beyond the static ones that cover the protocol.
const PROTOCOL_BITS: u32 = 8;

/// Pin name of an endpoint's policy map up to 1.16.
pub fn pin_name(endpoint: EndpointId) -> String {
    format!("{PIN_PREFIX}{:05}", endpoint.0)
}

/// The endpoint whose policy map this pin is, up to 1.16; `None` for other pins and other generations.
pub fn pin_endpoint(pin: &str) -> Option<EndpointId> {
    let digits = pin.strip_prefix(PIN_PREFIX)?;
    (digits.len() == 5).then(|| digits.parse().ok().map(EndpointId)).flatten()
}

/// A key of `cilium_policy_*`, as stored: an LPM key whose prefix says which of protocol and port count.
///
/// Source: `struct policy_key`, Cilium 1.14 `bpf/lib/common.h`.
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
    /// Bytes of a key.
    pub const SIZE: usize = 12;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 12 bytes with a prefix of 40–64 bits that ends with or after the protocol,
    /// and with no unknown bit beside `egress`.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "policy_key", "12")?;
        let prefixlen = u32_le(&raw, 0);
        if !matches!(prefixlen, 40 | 48..=64) {
            let (field, expected) = ("prefixlen", "40 or 48 to 64");
            return Err(DecodeError::Field { what: "policy_key", field, expected, found: prefixlen.into() });
        }
        let direction = match raw[8] {
            0 => Direction::Ingress,
            1 => Direction::Egress,
            found => {
                let (field, expected) = ("egress", "0 or 1");
                return Err(DecodeError::Field { what: "policy_key", field, expected, found: found.into() });
            }
        };
        let sec_label = Identity(u32_le(&raw, 4));
        Ok(Self { prefixlen, sec_label, direction, protocol: raw[9], dport: u16_be(&raw, 10) })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.prefixlen.to_le_bytes());
        raw[4..8].copy_from_slice(&self.sec_label.0.to_le_bytes());
        raw[8] = u8::from(self.direction == Direction::Egress);
        raw[9] = self.protocol;
        raw[10..].copy_from_slice(&self.dport.to_be_bytes());
        raw
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
        let bits = u32::from(self.l4_prefix()).saturating_sub(PROTOCOL_BITS);
        let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
        (self.dport ^ port) & mask == 0
    }
}

/// Which meaning the flag byte of a 24-byte entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyLayout {
    /// 1.14.0–1.16.3: `wildcard_protocol` and `wildcard_dport` bits; lookup group B.
    WildcardBits,
    /// 1.16.4–1.16.x: `lpm_prefix_length` in the high five bits; lookup group C.
    PrefixLength,
}

impl fmt::Display for PolicyLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WildcardBits => "1.14.0–1.16.3 (12/24 bytes, wildcard bits)",
            Self::PrefixLength => "1.16.4–1.16.x (12/24 bytes, prefix length in the flags)",
        })
    }
}

/// A value of `cilium_policy_*`.
///
/// Source: `struct policy_entry`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyEntry {
    /// Port of the L7 proxy in host order; 0 is no redirect.
    pub proxy_port: u16,
    /// The whole flag byte; its meaning depends on [`PolicyLayout`].
    pub flags: u8,
    /// 0 disabled, 1 SPIRE, 2 always fails.
    pub auth_type: u8,
    /// Packets that this entry decided, denied ones included.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PolicyEntry {
    /// Bytes of an entry.
    pub const SIZE: usize = 24;
    /// `deny` in the flag byte.
    pub const DENY: u8 = 1;
    /// `wildcard_protocol` in the flag byte, [`PolicyLayout::WildcardBits`] only.
    pub const WILDCARD_PROTOCOL: u8 = 2;
    /// `wildcard_dport` in the flag byte, [`PolicyLayout::WildcardBits`] only.
    pub const WILDCARD_DPORT: u8 = 4;

    /// Decodes an entry as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 24 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "policy_entry", "24")?;
        Ok(Self {
            proxy_port: u16_be(&raw, 0),
            flags: raw[2],
            auth_type: raw[3],
            packets: u64_le(&raw, 8),
            bytes: u64_le(&raw, 16),
        })
    }

    /// The entry as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..2].copy_from_slice(&self.proxy_port.to_be_bytes());
        raw[2] = self.flags;
        raw[3] = self.auth_type;
        raw[8..16].copy_from_slice(&self.packets.to_le_bytes());
        raw[16..].copy_from_slice(&self.bytes.to_le_bytes());
        raw
    }

    /// A fresh entry for `key` as the 1.14 agent writes it: its wildcard bits follow the key's prefix.
    pub fn for_key(key: &PolicyKey, deny: bool) -> Self {
        let mut flags = if deny { Self::DENY } else { 0 };
        if key.l4_prefix() == 0 {
            flags |= Self::WILDCARD_PROTOCOL;
        }
        if u32::from(key.l4_prefix()) <= PROTOCOL_BITS {
            flags |= Self::WILDCARD_DPORT;
        }
        Self { proxy_port: 0, flags, auth_type: 0, packets: 0, bytes: 0 }
    }

    /// Whether the entry denies.
    pub fn deny(&self) -> bool {
        self.flags & Self::DENY != 0
    }
}

/// How much of the packet the deciding entry named. Numbers as in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MatchType {
    /// No entry decided.
    None = 0,
    /// Identity alone.
    L3Only = 1,
    /// Identity, protocol and port.
    L3L4 = 2,
    /// Protocol and port, any identity.
    L4Only = 3,
    /// Everything.
    All = 4,
    /// Identity and protocol.
    L3Proto = 5,
    /// Protocol, any identity.
    ProtoOnly = 6,
}

impl MatchType {
    /// From the number in a policy verdict notification.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::L3Only,
            2 => Self::L3L4,
            3 => Self::L4Only,
            4 => Self::All,
            5 => Self::L3Proto,
            6 => Self::ProtoOnly,
            _ => return None,
        })
    }
}

impl fmt::Display for MatchType {
    /// As Cilium's monitor prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::L3Only => "L3-Only",
            Self::L3L4 => "L3-L4",
            Self::L4Only => "L4-Only",
            Self::All => "all",
            Self::L3Proto => "L3-Proto",
            Self::ProtoOnly => "Proto-Only",
        })
    }
}

/// What the datapath asks a policy map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyQuery {
    /// The peer's identity: the source's on ingress, the destination's on egress.
    pub identity: Identity,
    /// Direction as the endpoint sees it.
    pub direction: Direction,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port after any service DNAT, host order; the ICMP type for ICMP (with `enable-icmp-rules`).
    pub port: u16,
}

/// What the policy map answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyVerdict {
    /// Let in or out, redirected to the L7 proxy if the port (host order) is not 0.
    Allow {
        /// The proxy's port.
        proxy_port: u16,
    },
    /// Dropped; for [`DropReason::POLICY_AUTH_REQUIRED`] the entry's `auth_type` says which.
    Drop(DropReason),
}

/// A lookup's answer and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyDecision {
    /// The answer.
    pub verdict: PolicyVerdict,
    /// The entry that decided, if one did.
    pub entry: Option<(PolicyKey, PolicyEntry)>,
    /// How much of the packet it named.
    pub match_type: MatchType,
    /// The other lookup's entry, which matched too and lost.
    pub loser: Option<(PolicyKey, PolicyEntry)>,
}

/// One endpoint's policy map, indexed for lookups.
#[derive(Clone, Debug)]
pub struct PolicyMap {
    layout: PolicyLayout,
    /// By identity and direction, longest prefix first; within one prefix length by key.
    slots: BTreeMap<(Identity, Direction), Vec<(PolicyKey, PolicyEntry)>>,
}

impl PolicyMap {
    /// Indexes `entries`; a key that occurs twice keeps its last value, as a map would.
    pub fn new(layout: PolicyLayout, entries: impl IntoIterator<Item = (PolicyKey, PolicyEntry)>) -> Self {
        let unique: BTreeMap<_, _> = entries.into_iter().collect();
        let mut slots: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, entry) in unique {
            slots.entry((key.sec_label, key.direction)).or_default().push((key, entry));
        }
        for slot in slots.values_mut() {
            slot.sort_by_key(|(key, _)| core::cmp::Reverse(key.prefixlen));
        }
        Self { layout, slots }
    }

    /// How entries are read.
    pub fn layout(&self) -> PolicyLayout {
        self.layout
    }

    /// Every entry, by identity and direction, longest prefix first.
    pub fn entries(&self) -> impl Iterator<Item = &(PolicyKey, PolicyEntry)> {
        self.slots.values().flatten()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.slots.values().map(Vec::len).sum()
    }

    /// Whether the map holds nothing.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The longest prefix for `identity`, as the kernel's LPM trie finds it for a lookup with prefix 64.
    fn longest(&self, identity: Identity, query: PolicyQuery) -> Option<(PolicyKey, PolicyEntry)> {
        self.slots
            .get(&(identity, query.direction))?
            .iter()
            .find(|(key, _)| {
                key.prefixlen <= FULL_PREFIX && key.covers_l4(query.direction, query.protocol, query.port)
            })
            .copied()
    }

    /// What the datapath decides for `query`.
    ///
    /// Source: `__policy_can_access`, Cilium `bpf/lib/policy.h`: group B (1.14.0–1.16.3) or C (1.16.4–1.16.x) of the
    /// project's policy reference, by [`PolicyLayout`].
    pub fn lookup(&self, query: PolicyQuery) -> PolicyDecision {
        let by_identity = self.longest(query.identity, query);
        let by_any = self.longest(Identity::UNKNOWN, query);
        let chosen = match self.layout {
            PolicyLayout::WildcardBits => choose_by_wildcard_bits(by_identity, by_any),
            PolicyLayout::PrefixLength => choose_by_prefix_length(by_identity, by_any),
        };
        let Some((entry, match_type)) = chosen else {
            return PolicyDecision {
                verdict: PolicyVerdict::Drop(DropReason::POLICY),
                entry: None,
                match_type: MatchType::None,
                loser: None,
            };
        };
        let loser = [by_identity, by_any].into_iter().flatten().find(|other| other.0 != entry.0);
        PolicyDecision { verdict: finish(&entry.1), entry: Some(entry), match_type, loser }
    }
}

type Slot = (PolicyKey, PolicyEntry);

/// Group B: the wildcard bits of the two longest matches decide which one counts.
fn choose_by_wildcard_bits(by_identity: Option<Slot>, by_any: Option<Slot>) -> Option<(Slot, MatchType)> {
    let names_port = |slot: &Slot| slot.1.flags & PolicyEntry::WILDCARD_DPORT == 0;
    let names_protocol = |slot: &Slot| slot.1.flags & PolicyEntry::WILDCARD_PROTOCOL == 0;
    [
        (by_identity.filter(names_port), MatchType::L3L4),
        (by_any.filter(names_port), MatchType::L4Only),
        (by_identity.filter(names_protocol), MatchType::L3Proto),
        (by_any.filter(names_protocol), MatchType::ProtoOnly),
        (by_identity, MatchType::L3Only),
        (by_any, MatchType::All),
    ]
    .into_iter()
    .find_map(|(slot, match_type)| Some((slot?, match_type)))
}

/// Group C: the longer prefix counts, the identity's own entry on a tie.
fn choose_by_prefix_length(by_identity: Option<Slot>, by_any: Option<Slot>) -> Option<(Slot, MatchType)> {
    let prefix = |slot: Slot| slot.0.l4_prefix();
    if let Some(slot) = by_identity.filter(|slot| prefix(*slot) == 24) {
        return Some((slot, MatchType::L3L4));
    }
    if let Some(slot) = by_any
        && by_identity.is_none_or(|other| prefix(slot) > prefix(other))
    {
        let match_type = match prefix(slot) {
            0 => MatchType::All,
            1..=8 => MatchType::ProtoOnly,
            _ => MatchType::L4Only,
        };
        return Some((slot, match_type));
    }
    let slot = by_identity?;
    Some((slot, if prefix(slot) > 0 { MatchType::L3Proto } else { MatchType::L3Only }))
}

/// What the chosen entry says (`FINISH-1` of the policy reference).
fn finish(entry: &PolicyEntry) -> PolicyVerdict {
    if entry.deny() {
        PolicyVerdict::Drop(DropReason::POLICY_DENY)
    } else if entry.auth_type != 0 {
        PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED)
    } else {
        PolicyVerdict::Allow { proxy_port: entry.proxy_port }
    }
}
