//! Services and their backends, connections, address translation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::family::Family;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::lb::{LbBackend, LbKey, LbReverseNat, LbService, LbSourceRange};
use probe_model::cilium::nat::NatEntry;

use super::table::{Codec, Field, Set, Table};

/// Every structure of the family.
pub(crate) fn check(table: &mut Table) {
    for family in Family::ALL {
        lb_key(table, family);
        lb_backend(table, family);
        lb_reverse_nat(table, family);
        lb_source_range(table, family);
        ct_tuple(table, family);
        nat_entry(table, family);
        lb_service(table, if family == Family::V4 { "lb4_service" } else { "lb6_service" });
    }
    ct_entry(table);
}

/// Puts as many of the bits as an address has in its place.
fn set_address(address: &mut IpAddr, bits: u128) {
    *address = match address {
        IpAddr::V4(_) => Ipv4Addr::from(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(bits).into(),
    };
}

fn name(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    if family == Family::V4 { v4 } else { v6 }
}

fn lb_key(table: &mut Table, family: Family) {
    let address = family.unspecified();
    let codec = Codec {
        zero: &|| LbKey { address, dport: 0, backend_slot: 0, proto: 0, scope: 0 },
        encode: &|key: &LbKey, _| key.encode(),
        decode: &LbKey::decode,
    };
    let fields: [Field<LbKey>; 5] = [
        ("address", Set::Bits(|key, bits| set_address(&mut key.address, bits))),
        ("dport", Set::Bits(|key, bits| key.dport = bits as u16)),
        ("backend_slot", Set::Bits(|key, bits| key.backend_slot = bits as u16)),
        ("proto", Set::Bits(|key, bits| key.proto = bits as u8)),
        ("scope", Set::Bits(|key, bits| key.scope = bits as u8)),
    ];
    table.check(name(family, "lb4_key", "lb6_key"), &codec, &fields);
}

fn lb_service(table: &mut Table, structure: &str) {
    let codec = Codec {
        zero: &LbService::default,
        encode: &|service: &LbService, _| service.encode().to_vec(),
        decode: &LbService::decode,
    };
    let first: Set<LbService> = Set::Bits(|service, bits| service.backend_id = bits as u32);
    let fields: [Field<LbService>; 8] = [
        ("backend_id", first.clone()),
        ("affinity_timeout", first.clone()),
        ("l7_lb_proxy_port", first),
        ("count", Set::Bits(|service, bits| service.count = bits as u16)),
        ("rev_nat_index", Set::Bits(|service, bits| service.rev_nat_index = bits as u16)),
        ("flags", Set::Bits(|service, bits| service.flags = bits as u8)),
        ("flags2", Set::Bits(|service, bits| service.flags2 = bits as u8)),
        ("qcount", Set::Bits(|service, bits| service.qcount = bits as u16)),
    ];
    table.check_in(structure, 13..=16, &codec, &fields[..7]);
    table.check_in(structure, 17..=u32::MAX, &codec, &fields);
}

fn lb_backend(table: &mut Table, family: Family) {
    let structure = name(family, "lb4_backend", "lb6_backend");
    let address = family.unspecified();
    let codec = Codec {
        zero: &|| LbBackend { address, port: 0, proto: 0, flags: 0, cluster_id: 0, zone: 0 },
        encode: &|backend: &LbBackend, _| backend.encode(),
        decode: &LbBackend::decode,
    };
    let fields: [Field<LbBackend>; 6] = [
        ("address", Set::Bits(|backend, bits| set_address(&mut backend.address, bits))),
        ("port", Set::Bits(|backend, bits| backend.port = bits as u16)),
        ("proto", Set::Bits(|backend, bits| backend.proto = bits as u8)),
        ("flags", Set::Bits(|backend, bits| backend.flags = bits as u8)),
        ("cluster_id", Set::Bits(|backend, bits| backend.cluster_id = bits as u16)),
        ("zone", Set::Bits(|backend, bits| backend.zone = bits as u8)),
    ];
    table.check_in(structure, 13..=15, &codec, &fields[..5]);
    table.check_in(structure, 16..=u32::MAX, &codec, &fields);
}

fn lb_reverse_nat(table: &mut Table, family: Family) {
    let codec = Codec {
        zero: &|| LbReverseNat { address: family.unspecified(), port: 0 },
        encode: &|reverse: &LbReverseNat, _| reverse.encode(),
        decode: &LbReverseNat::decode,
    };
    let fields: [Field<LbReverseNat>; 2] = [
        ("address", Set::Bits(|reverse, bits| set_address(&mut reverse.address, bits))),
        ("port", Set::Bits(|reverse, bits| reverse.port = bits as u16)),
    ];
    table.check(name(family, "lb4_reverse_nat", "lb6_reverse_nat"), &codec, &fields);
}

fn lb_source_range(table: &mut Table, family: Family) {
    let codec = Codec {
        zero: &|| LbSourceRange { rev_nat_id: 0, prefix: IpNet::from(family.unspecified()) },
        encode: &|range: &LbSourceRange, _| range.encode(),
        decode: &LbSourceRange::decode,
    };
    let fields: [Field<LbSourceRange>; 3] = [
        (
            "lpm_key",
            Set::Some(|range, whole| {
                let none = IpNet::new(range.prefix.addr(), 0).expect("a prefix");
                range.prefix = if whole { IpNet::from(range.prefix.addr()) } else { none };
            }),
        ),
        ("rev_nat_id", Set::Bits(|range, bits| range.rev_nat_id = bits as u16)),
        (
            "addr",
            Set::Bits(|range, bits| {
                let mut address = range.prefix.addr();
                set_address(&mut address, bits);
                range.prefix = address.into();
            }),
        ),
    ];
    table.check(name(family, "lb4_src_range_key", "lb6_src_range_key"), &codec, &fields);
}

fn ct_tuple(table: &mut Table, family: Family) {
    let any = family.unspecified();
    let codec = Codec {
        zero: &|| CtTuple { daddr: any, saddr: any, dport: 0, sport: 0, nexthdr: 0, flags: 0 },
        encode: &|tuple: &CtTuple, _| tuple.encode(),
        decode: &CtTuple::decode,
    };
    let fields: [Field<CtTuple>; 6] = [
        ("daddr", Set::Bits(|tuple, bits| set_address(&mut tuple.daddr, bits))),
        ("saddr", Set::Bits(|tuple, bits| set_address(&mut tuple.saddr, bits))),
        ("dport", Set::Bits(|tuple, bits| tuple.dport = bits as u16)),
        ("sport", Set::Bits(|tuple, bits| tuple.sport = bits as u16)),
        ("nexthdr", Set::Bits(|tuple, bits| tuple.nexthdr = bits as u8)),
        ("flags", Set::Bits(|tuple, bits| tuple.flags = bits as u8)),
    ];
    table.check(name(family, "ipv4_ct_tuple", "ipv6_ct_tuple"), &codec, &fields);
}

fn nat_entry(table: &mut Table, family: Family) {
    let structure = name(family, "ipv4_nat_entry", "ipv6_nat_entry");
    let entry = move || NatEntry { created: 0, needs_ct: 0, to_addr: family.unspecified(), to_port: 0 };
    let codec =
        Codec { zero: &entry, encode: &|entry: &NatEntry, _| entry.encode(), decode: &NatEntry::decode };
    let address: Set<NatEntry> = Set::Bits(|entry, bits| set_address(&mut entry.to_addr, bits));
    let port: Set<NatEntry> = Set::Bits(|entry, bits| entry.to_port = bits as u16);
    let whole: Set<NatEntry> = Set::Some(|entry, high| {
        entry.created = u64::from(high);
        entry.needs_ct = u64::from(high);
    });
    let both: Set<NatEntry> = Set::Some(|entry, high| {
        set_address(&mut entry.to_addr, u128::from(high));
        entry.to_port = u16::from(high);
    });
    let fields: [Field<NatEntry>; 6] = [
        ("common", whole),
        ("to_saddr", address.clone()),
        ("to_sport", port.clone()),
        ("to_daddr", address),
        ("to_dport", port),
        ("nat_info", both),
    ];
    // The structure with address and port has a name from 1.14.16 on only.
    table.check_in(structure, 13..=13, &codec, &fields[..5]);
    table.check_in(structure, 14..=u32::MAX, &codec, &fields);
    // The head by itself: what a map's value begins with.
    let head = Codec {
        zero: &entry,
        encode: &|entry: &NatEntry, _| entry.encode()[..32].to_vec(),
        decode: &|raw: &[u8]| {
            let mut raw = raw.to_vec();
            raw.resize(if family == Family::V4 { NatEntry::SIZES.0 } else { NatEntry::SIZES.1 }, 0);
            NatEntry::decode(&raw)
        },
    };
    let needs_ct: Set<NatEntry> = Set::Bits(|entry, bits| entry.needs_ct = bits as u64);
    let fields: [Field<NatEntry>; 3] = [
        ("created", Set::Bits(|entry, bits| entry.created = bits as u64)),
        ("host_local", needs_ct.clone()),
        ("needs_ct", needs_ct),
    ];
    table.check("nat_entry", &head, &fields);
}

/// Sets `N` bytes from `AT` of the part that only a layout can read.
fn set_head<const AT: usize, const N: usize>(entry: &mut CtEntry, bits: u128) {
    entry.head[AT..AT + N].copy_from_slice(&bits.to_le_bytes()[..N]);
}

fn set_bit<const FLAG: u16>(entry: &mut CtEntry, bits: u128) {
    entry.flags = if bits == 0 { 0 } else { FLAG };
}

fn ct_entry(table: &mut Table) {
    let codec = Codec {
        zero: &CtEntry::default,
        encode: &|entry: &CtEntry, _| entry.encode().to_vec(),
        decode: &CtEntry::decode,
    };
    let common: [Field<CtEntry>; 15] = [
        ("backend_id", Set::Bits(set_head::<8, 8>)),
        ("lifetime", Set::Bits(|entry, bits| entry.lifetime = bits as u32)),
        ("rx_closing", Set::Bits(set_bit::<{ CtEntry::RX_CLOSING }>)),
        ("tx_closing", Set::Bits(set_bit::<{ CtEntry::TX_CLOSING }>)),
        ("lb_loopback", Set::Bits(set_bit::<{ CtEntry::LB_LOOPBACK }>)),
        ("seen_non_syn", Set::Bits(set_bit::<{ CtEntry::SEEN_NON_SYN }>)),
        ("node_port", Set::Bits(set_bit::<{ CtEntry::NODE_PORT }>)),
        ("proxy_redirect", Set::Bits(set_bit::<{ CtEntry::PROXY_REDIRECT }>)),
        ("from_l7lb", Set::Bits(set_bit::<{ CtEntry::FROM_L7LB }>)),
        ("rev_nat_index", Set::Bits(|entry, bits| entry.rev_nat_index = bits as u16)),
        ("tx_flags_seen", Set::Bits(|entry, bits| entry.tx_flags_seen = bits as u8)),
        ("rx_flags_seen", Set::Bits(|entry, bits| entry.rx_flags_seen = bits as u8)),
        ("src_sec_id", Set::Bits(|entry, bits| entry.src_sec_id = Identity(bits as u32))),
        ("last_tx_report", Set::Bits(|entry, bits| entry.last_tx_report = bits as u32)),
        ("last_rx_report", Set::Bits(|entry, bits| entry.last_rx_report = bits as u32)),
    ];
    let offset_40 = Set::Bits(|entry: &mut CtEntry, bits| {
        entry.ifindex_or_nat_port = (bits as u16).to_le_bytes();
    });
    let per_direction: [Field<CtEntry>; 6] = [
        ("rx_packets", Set::Bits(set_head::<0, 8>)),
        ("rx_bytes", Set::Bits(set_head::<8, 8>)),
        ("tx_packets", Set::Bits(set_head::<16, 8>)),
        ("tx_bytes", Set::Bits(set_head::<24, 8>)),
        ("ifindex", offset_40.clone()),
        ("dsr", Set::Bits(set_bit::<{ CtEntry::DSR }>)),
    ];
    let nat46: Field<CtEntry> = ("nat46", Set::Bits(set_bit::<{ CtEntry::NAT46 }>));
    let auth: Field<CtEntry> = ("auth_required", Set::Bits(set_bit::<{ CtEntry::AUTH_REQUIRED }>));
    let from_tunnel: Field<CtEntry> = ("from_tunnel", Set::Bits(set_bit::<{ CtEntry::FROM_TUNNEL }>));
    let joint: [Field<CtEntry>; 4] = [
        ("packets", Set::Bits(set_head::<16, 8>)),
        ("bytes", Set::Bits(set_head::<24, 8>)),
        ("dsr_internal", Set::Bits(set_bit::<{ CtEntry::DSR }>)),
        from_tunnel.clone(),
    ];
    let nat: [Field<CtEntry>; 2] =
        [("nat_addr", Set::Bits(set_head::<0, 16>)), ("nat_port", offset_40.clone())];
    let old = [&common[..], &per_direction].concat();
    let mut check = |minors, fields: &[Field<CtEntry>]| table.check_in("ct_entry", minors, &codec, fields);
    check(13..=13, &[&old[..], &[nat46.clone(), auth]].concat());
    check(14..=14, &[&old[..], &[nat46, from_tunnel.clone()]].concat());
    check(15..=15, &[&old[..], &[from_tunnel]].concat());
    check(16..=17, &[&common[..], &joint, &[("ifindex", offset_40)]].concat());
    check(18..=18, &[&common[..], &joint].concat());
    check(19..=u32::MAX, &[&common[..], &joint, &nat].concat());
}
