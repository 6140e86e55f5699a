//! Which of Cilium's layouts a map has: from pin names, sizes and entries, never from a version string.

use core::fmt;

use super::entries::Entries;
use super::policy::{PolicyEntry, PolicyLayout, prefix_flags};
use super::u32_le;

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

const KNOWN_POLICY: &str = "key/value 8/24 (Cilium 1.13) or 12/24 bytes (1.14 to 1.16) under `cilium_policy_<id>`, \
     12/24 (1.17), 12/8 (1.18) or 12/12 (1.19) under `cilium_policy_v2_<id>`, 12/12 (1.20) under `cilium_policy_v3_<id>`";

/// The layout of a policy map, from its pin name, sizes and entries.
///
/// Only 1.14 to 1.16 need the entries: `lpm_prefix_length` in the flag byte repeats the key's prefix from 1.16.4 on,
/// wildcard bits follow it before. An empty map has the older of the two: nothing in it is read differently.
///
/// # Errors
///
/// [`UnknownLayout`] for sizes that no version has under such a pin, or flag bytes that fit neither layout.
pub fn policy_layout(
    pin: &str,
    key_size: u32,
    value_size: u32,
    entries: &Entries,
) -> Result<PolicyLayout, UnknownLayout> {
    let unknown = |found: String| UnknownLayout { found, known: KNOWN_POLICY };
    let sizes = (key_size as usize, value_size as usize);
    // The longest prefix of a pin's name counts: they begin alike.
    let prefix = PolicyLayout::ALL.map(PolicyLayout::pin_prefix).into_iter().rev();
    let Some(prefix) = prefix.into_iter().find(|prefix| pin.starts_with(prefix)) else {
        return Err(unknown(format!("a pin `{pin}`")));
    };
    let fitting = PolicyLayout::ALL
        .into_iter()
        .filter(|layout| layout.pin_prefix() == prefix && (layout.key_size(), layout.value_size()) == sizes);
    match fitting.collect::<Vec<_>>().as_slice() {
        [] => Err(unknown(format!("key {key_size} and value {value_size} bytes under `{prefix}<id>`"))),
        [layout] => Ok(*layout),
        several => by_flags(several, entries).map_err(unknown),
    }
}

/// The first layout that every entry's flag byte fits, or what was found.
fn by_flags(layouts: &[PolicyLayout], entries: &Entries) -> Result<PolicyLayout, String> {
    let fits = |layout: PolicyLayout, (key, value): (&[u8], &[u8])| {
        let flags = value.get(2).copied().unwrap_or_default() & !PolicyEntry::DENY;
        l4_prefix(key).is_some_and(|l4_prefix| flags == prefix_flags(l4_prefix, layout))
    };
    let whole = layouts.iter().find(|layout| entries.iter().all(|entry| fits(**layout, entry)));
    if let Some(layout) = whole {
        return Ok(*layout);
    }
    let odd = entries.iter().find(|entry| !layouts.iter().any(|layout| fits(*layout, *entry)));
    Err(match odd {
        Some((key, value)) => {
            let flags = value.get(2).copied().unwrap_or_default();
            let prefix = key.get(..4).map_or(0, |prefix| u32_le(prefix, 0));
            format!("flag byte {flags:#04x} in an entry with prefix {prefix}")
        }
        None => "entries of two layouts in one map".to_owned(),
    })
}

/// Bits of protocol and port in an LPM key's prefix, if it has at least the static bits and no more than all.
fn l4_prefix(key: &[u8]) -> Option<u32> {
    u32_le(key.get(..4)?, 0).checked_sub(40).filter(|bits| *bits <= 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(pin: &str, key: u32, value: u32) -> Result<PolicyLayout, String> {
        let none = Entries::empty(key as usize, value as usize);
        policy_layout(pin, key, value, &none).map_err(|error| error.found)
    }

    #[test]
    fn pins_and_sizes_decide() {
        use PolicyLayout as L;
        assert_eq!(layout("cilium_policy_00007", 8, 24), Ok(L::HashKey));
        assert_eq!(layout("cilium_policy_00007", 12, 24), Ok(L::WildcardBits));
        assert_eq!(layout("cilium_policy_v2_00007", 12, 24), Ok(L::ProxyPriority));
        assert_eq!(layout("cilium_policy_v2_00007", 12, 8), Ok(L::CountersApart));
        assert_eq!(layout("cilium_policy_v2_00007", 12, 12), Ok(L::Precedence));
        assert_eq!(layout("cilium_policy_v3_00007", 12, 12), Ok(L::Aggregates));
    }

    #[test]
    fn what_no_version_has_is_refused() {
        let found =
            |key, value, prefix: &str| Err(format!("key {key} and value {value} bytes under `{prefix}<id>`"));
        assert_eq!(layout("cilium_policy_00007", 12, 12), found(12, 12, "cilium_policy_"));
        assert_eq!(layout("cilium_policy_00007", 16, 24), found(16, 24, "cilium_policy_"));
        assert_eq!(layout("cilium_policy_v2_00007", 8, 24), found(8, 24, "cilium_policy_v2_"));
        assert_eq!(layout("cilium_policy_v3_00007", 12, 8), found(12, 8, "cilium_policy_v3_"));
        assert_eq!(layout("cilium_lxc", 20, 48), Err("a pin `cilium_lxc`".to_owned()));
    }

    #[test]
    fn one_entry_tells_the_wildcard_bits_from_the_prefix_length() {
        let check = |entries: &[(u32, u8)]| {
            let entry = |(prefixlen, flags): &(u32, u8)| {
                let mut value = vec![0; 24];
                value[2] = *flags;
                ([&prefixlen.to_le_bytes()[..], &[0; 8]].concat(), value)
            };
            let entries = Entries::collect(entries.iter().map(entry)).unwrap();
            policy_layout("cilium_policy_00007", 12, 24, &entries).map_err(|error| error.found)
        };
        assert_eq!(check(&[(40, 6)]), Ok(PolicyLayout::WildcardBits));
        assert_eq!(check(&[(40, 7), (64, 1), (48, 4)]), Ok(PolicyLayout::WildcardBits));
        assert_eq!(check(&[(40, 0)]), Ok(PolicyLayout::PrefixLength));
        assert_eq!(check(&[(64, 24 << 3), (40, 1), (58, 18 << 3 | 1)]), Ok(PolicyLayout::PrefixLength));
        assert_eq!(check(&[(40, 6), (64, 24 << 3)]), Err("entries of two layouts in one map".to_owned()));
        assert_eq!(check(&[(64, 2)]), Err("flag byte 0x02 in an entry with prefix 64".to_owned()));
        assert_eq!(check(&[(7, 0)]), Err("flag byte 0x00 in an entry with prefix 7".to_owned()));
    }
}
