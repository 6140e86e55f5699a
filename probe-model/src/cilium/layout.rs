//! Which of Cilium's layouts a set of maps has: from sizes and entries, never from a version string.

use core::fmt;

use super::policy::{PolicyEntry, PolicyKey, PolicyLayout};

/// A layout that plsprobe does not know: what was found and what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownLayout {
    /// What was found.
    pub found: String,
    /// What is known.
    pub known: &'static str,
}

impl fmt::Display for UnknownLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, known } = self;
        write!(
            f,
            "no known layout: found {found}, known is {known}; run `plsprobe doctor` and attach its output"
        )
    }
}

impl std::error::Error for UnknownLayout {}

const KNOWN_POLICY: &str = "key 12 and value 24 bytes under `cilium_policy_<id>` (Cilium 1.14 to 1.16)";

/// The layout of a policy map, from its pin name, sizes and entries.
///
/// An empty map, or one in which no entry can tell the two apart, has the older layout: nothing in it is read differently.
///
/// # Errors
///
/// [`UnknownLayout`] for another generation of pins, other sizes, or flag bytes that fit neither layout.
pub fn policy_layout(
    pin: &str,
    key_size: u32,
    value_size: u32,
    entries: &[(PolicyKey, PolicyEntry)],
) -> Result<PolicyLayout, UnknownLayout> {
    let unknown = |found: String| UnknownLayout { found, known: KNOWN_POLICY };
    let generation =
        ["cilium_policy_v2_", "cilium_policy_v3_"].into_iter().find(|prefix| pin.starts_with(prefix));
    if let Some(prefix) = generation {
        return Err(unknown(format!(
            "a pin `{prefix}<id>` with key {key_size} and value {value_size} bytes (Cilium 1.17 or later)"
        )));
    }
    if (key_size, value_size) != (PolicyKey::SIZE as u32, PolicyEntry::SIZE as u32) {
        return Err(unknown(format!("key {key_size} and value {value_size} bytes")));
    }
    if entries.iter().all(fits_wildcard_bits) {
        Ok(PolicyLayout::WildcardBits)
    } else if entries.iter().all(fits_prefix_length) {
        Ok(PolicyLayout::PrefixLength)
    } else {
        let odd = entries.iter().find(|slot| !fits_wildcard_bits(slot) && !fits_prefix_length(slot));
        let found = match odd {
            Some((key, entry)) => {
                format!("flag byte {:#04x} in an entry with prefix {}", entry.flags, key.prefixlen)
            }
            None => "entries of two layouts in one map".to_owned(),
        };
        Err(unknown(found))
    }
}

/// 1.14.0–1.16.3: the wildcard bits say what the key's prefix says, the higher bits are zero.
fn fits_wildcard_bits((key, entry): &(PolicyKey, PolicyEntry)) -> bool {
    let expected = PolicyEntry::for_key(key, entry.deny()).flags;
    entry.flags == expected
}

/// 1.16.4–1.16.x: the high five bits repeat the key's prefix, bits 1 and 2 are zero.
fn fits_prefix_length((key, entry): &(PolicyKey, PolicyEntry)) -> bool {
    entry.flags >> 3 == key.l4_prefix() && entry.flags & 6 == 0
}
