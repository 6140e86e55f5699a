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

/// A member of a struct in a program's type information (BTF).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it begins, in bits from the struct's begin.
    pub bit_offset: u32,
    /// How many bits, for a bit field.
    pub bits: Option<u8>,
}

/// The layout of a policy map, from its pin name, sizes and entries, and from `struct policy_entry` in the type information
/// of the program that uses it, where that has one.
///
/// Only 1.14 to 1.16 need the entries: `lpm_prefix_length` in the flag byte repeats the key's prefix from 1.16.4 on,
/// wildcard bits follow it before. An empty map has the older of the two: nothing in it is read differently.
///
/// # Errors
///
/// [`UnknownLayout`] for sizes that no version has under such a pin, fields that no version has, or flag bytes that fit
/// neither layout.
pub fn policy_layout(
    pin: &str,
    key_size: u32,
    value_size: u32,
    entries: &Entries,
    policy_entry: Option<&[Member]>,
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
    let mut fitting: Vec<_> = fitting.collect();
    if let (Some(members), Some(last)) = (policy_entry, fitting.last().copied()) {
        fitting.retain(|layout| odd_member(*layout, members).is_none());
        if fitting.is_empty() {
            return Err(unknown(odd_member(last, members).unwrap_or_default()));
        }
    }
    match fitting.as_slice() {
        [] => Err(unknown(format!("key {key_size} and value {value_size} bytes under `{prefix}<id>`"))),
        [layout] => Ok(*layout),
        several => by_flags(several, entries).map_err(unknown),
    }
}

/// The fields of `struct policy_entry`: name, first bit, and bits of a bit field. Padding is left out.
fn policy_entry_fields(layout: PolicyLayout) -> Vec<(&'static str, u32, Option<u8>)> {
    let mut fields = vec![("proxy_port", 0, None), ("deny", 16, Some(1))];
    if layout == PolicyLayout::WildcardBits {
        fields.extend([("wildcard_protocol", 17, Some(1)), ("wildcard_dport", 18, Some(1))]);
    }
    if layout >= PolicyLayout::PrefixLength {
        fields.push(("lpm_prefix_length", 19, Some(5)));
    }
    if layout >= PolicyLayout::ProxyPriority {
        fields.extend([("auth_type", 24, Some(7)), ("has_explicit_auth_type", 31, Some(1))]);
    } else {
        fields.push(("auth_type", 24, None));
    }
    match layout {
        PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => {
            fields.push(("proxy_port_priority", 32, None));
        }
        PolicyLayout::Precedence | PolicyLayout::Aggregates => {
            fields.extend([("precedence", 32, None), ("cookie", 64, None)]);
        }
        PolicyLayout::HashKey | PolicyLayout::WildcardBits | PolicyLayout::PrefixLength => {}
    }
    if layout.has_counters() {
        fields.extend([("packets", 64, None), ("bytes", 128, None)]);
    }
    fields
}

/// How `members` differ from the layout's fields: one that is elsewhere, unknown, or not there.
fn odd_member(layout: PolicyLayout, members: &[Member]) -> Option<String> {
    let fields = policy_entry_fields(layout);
    let is_padding = |name: &str| name.starts_with("pad") || name == "reserved";
    let odd = members
        .iter()
        .filter(|member| !is_padding(&member.name))
        .find(|member| !fields.contains(&(member.name.as_str(), member.bit_offset, member.bits)));
    if let Some(Member { name, bit_offset, bits }) = odd {
        let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits wide,"));
        return Some(format!(
            "field `{name}` at bit {bit_offset}{bits} in `policy_entry` of the loaded program"
        ));
    }
    let lacks = fields.iter().find(|(name, ..)| !members.iter().any(|member| member.name == *name));
    lacks.map(|(name, ..)| format!("no field `{name}` in `policy_entry` of the loaded program"))
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
        policy_layout(pin, key, value, &none, None).map_err(|error| error.found)
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
            policy_layout("cilium_policy_00007", 12, 24, &entries, None).map_err(|error| error.found)
        };
        assert_eq!(check(&[(40, 6)]), Ok(PolicyLayout::WildcardBits));
        assert_eq!(check(&[(40, 7), (64, 1), (48, 4)]), Ok(PolicyLayout::WildcardBits));
        assert_eq!(check(&[(40, 0)]), Ok(PolicyLayout::PrefixLength));
        assert_eq!(check(&[(64, 24 << 3), (40, 1), (58, 18 << 3 | 1)]), Ok(PolicyLayout::PrefixLength));
        assert_eq!(check(&[(40, 6), (64, 24 << 3)]), Err("entries of two layouts in one map".to_owned()));
        assert_eq!(check(&[(64, 2)]), Err("flag byte 0x02 in an entry with prefix 64".to_owned()));
        assert_eq!(check(&[(7, 0)]), Err("flag byte 0x00 in an entry with prefix 7".to_owned()));
    }

    #[test]
    fn type_information_decides_where_entries_do_not() {
        let members = |layout: PolicyLayout| -> Vec<Member> {
            let member = |(name, bit_offset, bits): (&str, u32, Option<u8>)| Member {
                name: name.to_owned(),
                bit_offset,
                bits,
            };
            let padding = member(("pad1", 32, None));
            policy_entry_fields(layout).into_iter().map(member).chain([padding]).collect()
        };
        let check = |pin: &str, value: u32, members: &[Member]| {
            let none = Entries::empty(12, value as usize);
            policy_layout(pin, 12, value, &none, Some(members)).map_err(|error| error.found)
        };
        for layout in PolicyLayout::ALL.into_iter().filter(|layout| *layout != PolicyLayout::HashKey) {
            let pin = layout.pin_name(crate::cilium::EndpointId(7));
            assert_eq!(check(&pin, layout.value_size() as u32, &members(layout)), Ok(layout));
        }
        let mut patched = members(PolicyLayout::CountersApart);
        patched.push(Member { name: "azure_zone".to_owned(), bit_offset: 40, bits: Some(3) });
        assert_eq!(
            check("cilium_policy_v2_00007", 8, &patched),
            Err("field `azure_zone` at bit 40, 3 bits wide, in `policy_entry` of the loaded program"
                .to_owned())
        );
        let mut moved = members(PolicyLayout::Precedence);
        moved.retain(|member| member.name != "cookie");
        assert_eq!(
            check("cilium_policy_v2_00007", 12, &moved),
            Err("no field `cookie` in `policy_entry` of the loaded program".to_owned())
        );
    }
}
