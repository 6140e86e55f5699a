//! Every field of every structure of Cilium's that we read lies where its compilers put it, in every version: the fields
//! are compared bit by bit with `fixtures/cilium-abi-offsets.tsv`.
//!
//! One module per family of structures has one function `check(&mut Table)`; add it to [`FAMILIES`].

mod addresses;
mod datapath;
mod policy;
mod small;
mod table;

use table::{Codec, Set, Table};

/// What checks the structs of one family.
type Check = fn(&mut Table);

/// Each family with its checks.
const FAMILIES: [(&str, Check); 4] = [
    ("addresses", addresses::check),
    ("datapath", datapath::check),
    ("policy", policy::check),
    ("small", small::check),
];

/// Structures of the table that no family checks, and why.
const UNCHECKED: &[(&str, &str)] = &[
    ("debug_capture_msg", "tests/events/layouts.rs checks it, with the notification's packet"),
    ("debug_msg", "tests/events/layouts.rs checks it, with the notification's packet"),
    ("drop_notify", "tests/events/layouts.rs checks it, with the notification's packet"),
    ("policy_verdict_notify", "tests/events/layouts.rs checks it, with the notification's packet"),
    ("signal_msg", "`cilium_signals` is the agent's alone, and never read"),
    ("skip_lb4_key", "`cilium_skip_lb4` serves local redirect policies, which no answer needs"),
    ("trace_notify", "tests/events/layouts.rs checks it, with the notification's packet"),
    ("trace_sock_notify", "tests/events/layouts.rs checks it, with the notification's packet"),
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
