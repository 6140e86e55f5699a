//! Policy maps.

use probe_model::cilium::Direction;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey, PolicyLayout};

use super::table::{Codec, Field, Set, Table};

/// Every structure of the family.
pub(crate) fn check(table: &mut Table) {
    keys(table);
    for layout in PolicyLayout::ALL {
        entries(table, layout);
    }
}

/// The first minor version that has a layout.
fn minor(layout: PolicyLayout) -> u32 {
    match layout {
        PolicyLayout::HashKey => 13,
        PolicyLayout::WildcardBits => 14,
        PolicyLayout::PrefixLength => 16,
        PolicyLayout::ProxyPriority => 17,
        PolicyLayout::CountersApart => 18,
        // The table has 1.20 in the row of 1.19.
        PolicyLayout::Precedence | PolicyLayout::Aggregates => 19,
    }
}

fn keys(table: &mut Table) {
    let fields: [Field<PolicyKey>; 5] = [
        ("sec_label", Set::Bits(|key, bits| key.sec_label = Identity(bits as u32))),
        (
            "egress",
            Set::Bits(|key, bits| {
                key.direction = if bits == 1 { Direction::Egress } else { Direction::Ingress };
            }),
        ),
        ("protocol", Set::Bits(|key, bits| key.protocol = bits as u8)),
        ("dport", Set::Bits(|key, bits| key.dport = bits as u16)),
        // No number is all zeros or all ones: a prefix covers identity and direction at least.
        ("lpm_key", Set::Some(|key, high| key.prefixlen = if high { 64 } else { 40 })),
    ];
    let zero = |prefixlen| PolicyKey {
        prefixlen,
        sec_label: Identity(0),
        direction: Direction::Ingress,
        protocol: 0,
        dport: 0,
    };
    let layout = PolicyLayout::Aggregates;
    let lpm = Codec {
        zero: &|| zero(64),
        encode: &|key: &PolicyKey, _| key.encode(layout),
        decode: &|raw| PolicyKey::decode(raw, layout),
    };
    table.check_in("policy_key", 14..=u32::MAX, &lpm, &fields);
    // A hash key has no prefix of its own: what is read back has the one that its zeros amount to.
    let layout = PolicyLayout::HashKey;
    let hash = Codec {
        zero: &|| zero(0),
        encode: &|key: &PolicyKey, _| key.encode(layout),
        decode: &|raw| PolicyKey::decode(raw, layout).map(|key| PolicyKey { prefixlen: 0, ..key }),
    };
    table.check_in("policy_key", 13..=13, &hash, &fields[..4]);
}

fn entries(table: &mut Table, layout: PolicyLayout) {
    let codec = Codec {
        zero: &|| PolicyEntry {
            counters: layout.has_counters().then(PolicyCounters::default),
            ..PolicyEntry::default()
        },
        encode: &|entry: &PolicyEntry, _| entry.encode(layout),
        decode: &|raw| PolicyEntry::decode(raw, layout),
    };
    let mut fields: Vec<Field<PolicyEntry>> = vec![
        ("proxy_port", Set::Bits(|entry: &mut PolicyEntry, bits| entry.proxy_port = bits as u16)),
        ("deny", Set::Bits(|entry: &mut PolicyEntry, bits| entry.flags = bits as u8 * PolicyEntry::DENY)),
        ("auth_type", Set::Bits(|entry: &mut PolicyEntry, bits| entry.auth_type = bits as u8)),
    ];
    if layout == PolicyLayout::WildcardBits {
        fields.extend([
            (
                "wildcard_protocol",
                Set::Bits(|entry: &mut PolicyEntry, bits| {
                    entry.flags = bits as u8 * PolicyEntry::WILDCARD_PROTOCOL;
                }),
            ),
            (
                "wildcard_dport",
                Set::Bits(|entry: &mut PolicyEntry, bits| {
                    entry.flags = bits as u8 * PolicyEntry::WILDCARD_DPORT;
                }),
            ),
        ]);
    }
    if layout >= PolicyLayout::PrefixLength {
        fields.push((
            "lpm_prefix_length",
            Set::Bits(|entry: &mut PolicyEntry, bits| entry.flags = (bits as u8) << 3),
        ));
    }
    if layout >= PolicyLayout::ProxyPriority {
        fields.push((
            "has_explicit_auth_type",
            Set::Bits(|entry: &mut PolicyEntry, bits| entry.has_explicit_auth_type = bits == 1),
        ));
    }
    match layout {
        PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => fields.push((
            "proxy_port_priority",
            Set::Bits(|entry: &mut PolicyEntry, bits| entry.proxy_port_priority = bits as u8),
        )),
        PolicyLayout::Precedence | PolicyLayout::Aggregates => fields.extend([
            ("precedence", Set::Bits(|entry: &mut PolicyEntry, bits| entry.precedence = bits as u32)),
            ("cookie", Set::Bits(|entry: &mut PolicyEntry, bits| entry.cookie = bits as u32)),
        ]),
        _ => {}
    }
    if layout.has_counters() {
        fields.extend([
            ("packets", Set::Bits(|entry: &mut PolicyEntry, bits| counters(entry).packets = bits as u64)),
            ("bytes", Set::Bits(|entry: &mut PolicyEntry, bits| counters(entry).bytes = bits as u64)),
        ]);
    }
    table.check_in("policy_entry", minor(layout)..=minor(layout), &codec, &fields);
}

fn counters(entry: &mut PolicyEntry) -> &mut PolicyCounters {
    entry.counters.get_or_insert_default()
}
