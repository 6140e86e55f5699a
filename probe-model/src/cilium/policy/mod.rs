//! The policy map of an endpoint: keys, entries, and the datapath's lookup, in every layout from 1.13 to 1.20.

mod entry;
mod key;
mod lookup;
mod map;

use std::fmt;

use super::drop_reason::DropReason;
use super::identity::Identity;
use super::{Direction, EndpointId};

pub(super) use entry::prefix_flags;
pub use entry::{PolicyCounters, PolicyEntry};
pub use key::PolicyKey;
pub(super) use key::port_mask;
pub use map::{PolicyMap, PolicySlot};

/// What the pin names of policy maps begin with, by generation, the latest first; an endpoint id follows.
const PIN_PREFIXES: [&str; 3] = ["cilium_policy_v3_", "cilium_policy_v2_", "cilium_policy_"];

/// Which layout a policy map has, and with it which of the datapath's lookup procedures reads it. In the order of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyLayout {
    /// 1.13: a hash key of 8 bytes.
    HashKey,
    /// 1.14.0–1.16.3: an LPM key, `wildcard_protocol` and `wildcard_dport` bits in the flag byte.
    WildcardBits,
    /// 1.16.4–1.16.x: `lpm_prefix_length` in the high five bits of the flag byte, as in all that follow.
    PrefixLength,
    /// 1.17: `cilium_policy_v2_*`, a priority beside the proxy's port.
    ProxyPriority,
    /// 1.18: the same without counters, which are in `cilium_policystats`.
    CountersApart,
    /// 1.19: a precedence instead of the proxy's priority, and a cookie.
    Precedence,
    /// From 1.20 on: `cilium_policy_v3_*`, where an entry may stand for a whole class of identities.
    Aggregates,
}

impl PolicyLayout {
    /// Every layout, in the order of versions.
    pub const ALL: [Self; 7] = [
        Self::HashKey,
        Self::WildcardBits,
        Self::PrefixLength,
        Self::ProxyPriority,
        Self::CountersApart,
        Self::Precedence,
        Self::Aggregates,
    ];

    /// The lookup procedure, by its letter in the project's policy reference.
    pub fn group(self) -> char {
        match self {
            Self::HashKey => 'A',
            Self::WildcardBits => 'B',
            Self::PrefixLength => 'C',
            Self::ProxyPriority | Self::CountersApart => 'D',
            Self::Precedence => 'E',
            Self::Aggregates => 'F',
        }
    }

    /// The versions of Cilium that have it.
    pub fn versions(self) -> &'static str {
        match self {
            Self::HashKey => "1.13",
            Self::WildcardBits => "1.14.0–1.16.3",
            Self::PrefixLength => "1.16.4–1.16.x",
            Self::ProxyPriority => "1.17",
            Self::CountersApart => "1.18",
            Self::Precedence => "1.19",
            Self::Aggregates => "1.20",
        }
    }

    /// What its pins' names begin with.
    pub fn pin_prefix(self) -> &'static str {
        match self {
            Self::HashKey | Self::WildcardBits | Self::PrefixLength => "cilium_policy_",
            Self::ProxyPriority | Self::CountersApart | Self::Precedence => "cilium_policy_v2_",
            Self::Aggregates => "cilium_policy_v3_",
        }
    }

    /// Pin name of an endpoint's policy map.
    pub fn pin_name(self, endpoint: EndpointId) -> String {
        format!("{}{:05}", self.pin_prefix(), endpoint.0)
    }

    /// Bytes of a key.
    pub fn key_size(self) -> usize {
        if self == Self::HashKey { 8 } else { 12 }
    }

    /// Bytes of a value.
    pub fn value_size(self) -> usize {
        match self {
            Self::HashKey | Self::WildcardBits | Self::PrefixLength | Self::ProxyPriority => 24,
            Self::CountersApart => 8,
            Self::Precedence | Self::Aggregates => 12,
        }
    }

    /// [`Self::key_size`] as error messages have it.
    fn key_size_word(self) -> &'static str {
        if self == Self::HashKey { "8" } else { "12" }
    }

    /// [`Self::value_size`] as error messages have it.
    fn value_size_word(self) -> &'static str {
        match self.value_size() {
            8 => "8",
            12 => "12",
            _ => "24",
        }
    }

    /// Whether entries count packets themselves.
    pub fn has_counters(self) -> bool {
        self < Self::CountersApart
    }

    /// Whether an entry tells an authentication type that its own rule names from one it inherits.
    fn has_explicit_auth(self) -> bool {
        self >= Self::ProxyPriority
    }
}

impl fmt::Display for PolicyLayout {
    /// `1.14.0–1.16.3 (12/24 bytes, lookup B)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (versions, group) = (self.versions(), self.group());
        write!(f, "{versions} ({}/{} bytes, lookup {group})", self.key_size(), self.value_size())
    }
}

/// How an endpoint's policy map is called where none was found: as its pin up to 1.16.
pub fn pin_name(endpoint: EndpointId) -> String {
    PolicyLayout::WildcardBits.pin_name(endpoint)
}

/// The endpoint whose policy map this pin is; `None` for other pins.
pub fn pin_endpoint(pin: &str) -> Option<EndpointId> {
    let digits = PIN_PREFIXES.into_iter().find_map(|prefix| pin.strip_prefix(prefix))?;
    let is_id = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_id.then(|| digits.parse().ok().map(EndpointId)).flatten()
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
    /// An IPv4 fragment whose port is unknown, because fragments are not tracked (they are by default).
    pub untracked_fragment: bool,
}

/// What the policy map answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyVerdict {
    /// Let in or out, redirected to the L7 proxy if the port (host order) is not 0.
    Allow {
        /// The proxy's port.
        proxy_port: u16,
    },
    /// Dropped; for [`DropReason::POLICY_AUTH_REQUIRED`] [`PolicyDecision::auth_type`] says which.
    Drop(DropReason),
}

/// A lookup's answer and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyDecision {
    /// The answer.
    pub verdict: PolicyVerdict,
    /// The entry that decided, if one did.
    pub entry: Option<PolicySlot>,
    /// How much of the packet it named.
    pub match_type: MatchType,
    /// Another entry that matched too and lost. Where the procedure stops before it looks for one (a deny of the
    /// identity's own in group D, the highest precedence in E and F) there is none.
    pub loser: Option<PolicySlot>,
    /// The authentication that is required before the packet may pass, 0 if none.
    pub auth_type: u8,
}

/// What a node must know of itself to tell which aggregate an identity belongs to (from 1.20 on).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aggregation {
    /// Cilium runs for IPv4 and IPv6: world is 9 and 10 beside 2.
    pub dual_stack: bool,
    /// The cluster's own id, 0 without a cluster mesh.
    pub cluster_id: u8,
}
