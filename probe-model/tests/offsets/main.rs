//! Every field of every structure of Cilium's that we read lies where its compilers put it, in every version: the fields
//! are compared bit by bit with `fixtures/cilium-abi-offsets.tsv`.
//!
//! One module per family of structures has one function `check(&mut Table)`; add it to [`FAMILIES`].

mod addresses;
mod small;
mod table;

use table::{Codec, Set, Table};

/// Each family with its checks.
const FAMILIES: [(&str, fn(&mut Table)); 2] = [("addresses", addresses::check), ("small", small::check)];

/// Structures of the table that no family checks, and why.
const UNCHECKED: &[(&str, &str)] = &[
    ("ct_entry", "conntrack's family is checked in another branch"),
    ("debug_capture_msg", "events' family is checked in another branch"),
    ("debug_msg", "events' family is checked in another branch"),
    ("drop_notify", "events' family is checked in another branch"),
    ("ipv4_ct_tuple", "conntrack's family is checked in another branch"),
    ("ipv4_nat_entry", "NAT's family is checked in another branch"),
    ("ipv6_ct_tuple", "conntrack's family is checked in another branch"),
    ("ipv6_nat_entry", "NAT's family is checked in another branch"),
    ("lb4_backend", "the load balancer's family is checked in another branch"),
    ("lb4_key", "the load balancer's family is checked in another branch"),
    ("lb4_reverse_nat", "the load balancer's family is checked in another branch"),
    ("lb4_service", "the load balancer's family is checked in another branch"),
    ("lb4_src_range_key", "the load balancer's family is checked in another branch"),
    ("lb6_backend", "the load balancer's family is checked in another branch"),
    ("lb6_key", "the load balancer's family is checked in another branch"),
    ("lb6_reverse_nat", "the load balancer's family is checked in another branch"),
    ("lb6_service", "the load balancer's family is checked in another branch"),
    ("lb6_src_range_key", "the load balancer's family is checked in another branch"),
    ("nat_entry", "the head of `ipv4_nat_entry` and `ipv6_nat_entry`, never a map's value by itself"),
    ("policy_entry", "policy's family is checked in another branch"),
    ("policy_key", "policy's family is checked in another branch"),
    ("policy_verdict_notify", "events' family is checked in another branch"),
    ("signal_msg", "`cilium_signals` is the agent's alone, and never read"),
    ("skip_lb4_key", "`cilium_skip_lb4` serves local redirect policies, which no answer needs"),
    ("trace_notify", "events' family is checked in another branch"),
    ("trace_sock_notify", "events' family is checked in another branch"),
];

#[test]
fn every_structure_is_checked_or_named_with_a_reason() {
    let mut table = Table::read();
    for (_, check) in FAMILIES {
        check(&mut table);
    }
    assert_eq!(table.unchecked(), UNCHECKED.iter().map(|(structure, _)| *structure).collect::<Vec<_>>());
    println!("{} layouts, {} fields checked", table.checked.len(), table.fields);
}

/// A field `id` that is written two bytes too late.
#[test]
#[should_panic(expected = "bits of `node_value.id` in 1.16.0-rc.2..1.20bp")]
fn a_field_in_another_place_is_noticed() {
    let shifted = Codec {
        zero: &|| 0u16,
        encode: &|id, _| [[0, 0], id.to_le_bytes()].concat(),
        decode: &|raw| Ok(u16::from_le_bytes([raw[2], raw[3]])),
    };
    Table::read().check("node_value", &shifted, &[("id", Set::Bits(|id, bits| *id = bits as u16))]);
}
