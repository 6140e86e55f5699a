//! The load-balancer, conntrack and NAT structures against the offsets table, for every version in it.

use std::net::IpAddr;

use probe_model::cilium::ct::{CtCounters, CtEntry, CtLayout, CtTuple, ct_layouts};
use probe_model::cilium::family::Family;
use probe_model::cilium::lb::{
    LbAffinity, LbAffinityKey, LbAffinityMatch, LbBackend, LbKey, LbReverseNat, LbService, LbSourceRange,
};
use probe_model::cilium::nat::NatEntry;

/// `fixtures/cilium-abi-offsets.tsv`: struct, versions, size, field, offset, size, bits.
const TABLE: &str = include_str!("../../fixtures/cilium-abi-offsets.tsv");

/// One field of one structure in some versions.
#[derive(Debug)]
struct Field<'t> {
    structure: &'t str,
    versions: &'t str,
    sizeof: usize,
    name: &'t str,
    offset: usize,
    size: usize,
    /// First bit and number of bits, of a bit field.
    bits: Option<(u32, u32)>,
}

fn fields() -> impl Iterator<Item = Field<'static>> {
    let rows = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1);
    rows.map(|line| {
        let cells: Vec<_> = line.split('\t').collect();
        let number = |cell: &str| cell.parse().expect("a number");
        let bits = cells[6]
            .split_once(':')
            .map(|(start, width)| (start.parse().expect("a bit"), width.parse().expect("a width")));
        Field {
            structure: cells[0],
            versions: cells[1],
            sizeof: number(cells[2]),
            name: cells[3],
            offset: number(cells[4]),
            size: number(cells[5]),
            bits,
        }
    })
}

/// Bytes that are zero but for the field's, which count up from `0x11`; of a bit field all its bits are set.
fn marked(field: &Field<'_>) -> Vec<u8> {
    let mut raw = vec![0; field.sizeof];
    match field.bits {
        None => {
            for (idx, byte) in raw[field.offset..field.offset + field.size].iter_mut().enumerate() {
                *byte = 0x11 + idx as u8;
            }
        }
        Some((start, width)) => {
            let mask = (u32::MAX >> (32 - width)) << start;
            raw[field.offset..field.offset + field.size].copy_from_slice(&mask.to_le_bytes()[..field.size]);
        }
    }
    raw
}

/// What counting bytes are as a number, little-endian.
fn le(size: usize) -> u64 {
    (0..size).rev().fold(0, |number, idx| number << 8 | (0x11 + idx as u64))
}

/// The same in network order.
fn be(size: usize) -> u64 {
    (0..size).fold(0, |number, idx| number << 8 | (0x11 + idx as u64))
}

/// Counting bytes as an address of this size.
fn address(size: usize) -> IpAddr {
    let bytes: Vec<u8> = (0..size).map(|idx| 0x11 + idx as u8).collect();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).expect("16 bytes").into(),
    }
}

/// A value that a field must have, as found in what was decoded.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Number(u64),
    Address(IpAddr),
}

/// What the decoder makes of the marked bytes in the field of this name, and what it must be; `None` for fields that
/// plsprobe does not read (padding and reserved ones).
fn found(field: &Field<'_>, raw: &[u8]) -> Option<Pair> {
    let name = field.name;
    if name.starts_with("pad") || name.starts_with("reserved") || name == "unused_nat46" {
        return None;
    }
    Some(match field.structure {
        "lb4_key" | "lb6_key" => lb_key(field, raw),
        "lb4_service" | "lb6_service" => lb_service(field, raw),
        "lb4_backend" | "lb6_backend" => lb_backend(field, raw),
        "lb4_reverse_nat" | "lb6_reverse_nat" => lb_reverse_nat(field, raw),
        "lb4_src_range_key" | "lb6_src_range_key" => lb_source_range(field, raw),
        "lb4_affinity_key" | "lb6_affinity_key" => lb_affinity_key(field, raw),
        "lb_affinity_val" => lb_affinity(field, raw),
        "lb_affinity_match" => lb_affinity_match(field, raw),
        "ipv4_ct_tuple" | "ipv6_ct_tuple" => ct_tuple(field, raw),
        "ct_entry" => ct_entry(field, raw),
        // The structures inside, whose fields have rows of their own.
        "ipv4_nat_entry" | "ipv6_nat_entry" if matches!(name, "common" | "nat_info") => return None,
        "ipv4_nat_entry" | "ipv6_nat_entry" | "nat_entry" => nat_entry(field, raw),
        _ => return None,
    })
}

/// What was found and what must be.
type Pair = (Found, Found);

fn host_order(found: impl Into<u64>, field: &Field<'_>) -> Pair {
    (Found::Number(found.into()), Found::Number(le(field.size)))
}

fn network_order(found: u16, field: &Field<'_>) -> Pair {
    (Found::Number(found.into()), Found::Number(be(field.size)))
}

fn an_address(found: IpAddr, width: usize) -> Pair {
    (Found::Address(found), Found::Address(address(width)))
}

fn lb_key(field: &Field<'_>, raw: &[u8]) -> Pair {
    let key = LbKey::decode(raw).expect("decodes");
    match field.name {
        "address" => an_address(key.address, field.size),
        "dport" => network_order(key.dport, field),
        "backend_slot" => host_order(key.backend_slot, field),
        "proto" => host_order(key.proto, field),
        "scope" => host_order(key.scope, field),
        _ => panic!("{field:?}"),
    }
}

fn lb_service(field: &Field<'_>, raw: &[u8]) -> Pair {
    let service = LbService::decode(raw).expect("decodes");
    match field.name {
        "backend_id" => host_order(service.backend_id, field),
        "affinity_timeout" => {
            (Found::Number(service.affinity_timeout().into()), Found::Number(le(4) & 0xFF_FFFF))
        }
        "l7_lb_proxy_port" => (Found::Number(service.l7_proxy_port().into()), Found::Number(be(2))),
        "count" => host_order(service.count, field),
        "rev_nat_index" => network_order(service.rev_nat_index, field),
        "flags" => host_order(service.flags, field),
        "flags2" => host_order(service.flags2, field),
        "qcount" => host_order(service.qcount, field),
        _ => panic!("{field:?}"),
    }
}

fn lb_backend(field: &Field<'_>, raw: &[u8]) -> Pair {
    let backend = LbBackend::decode(raw).expect("decodes");
    match field.name {
        "address" => an_address(backend.address, field.size),
        "port" => network_order(backend.port, field),
        "proto" => host_order(backend.proto, field),
        "flags" => host_order(backend.flags, field),
        "cluster_id" => host_order(backend.cluster_id, field),
        "zone" => host_order(backend.zone, field),
        _ => panic!("{field:?}"),
    }
}

fn lb_reverse_nat(field: &Field<'_>, raw: &[u8]) -> Pair {
    let reverse = LbReverseNat::decode(raw).expect("decodes");
    match field.name {
        "address" => an_address(reverse.address, field.size),
        "port" => network_order(reverse.port, field),
        _ => panic!("{field:?}"),
    }
}

fn lb_source_range(field: &Field<'_>, raw: &[u8]) -> Pair {
    // A prefix that covers the whole address, so that nothing of it is cut off.
    let bits = if field.sizeof == 12 { 64u32 } else { 160 };
    let mut raw = raw.to_vec();
    raw[..4].copy_from_slice(&bits.to_le_bytes());
    let range = LbSourceRange::decode(&raw).expect("decodes");
    match field.name {
        "lpm_key" => (Found::Number(range.prefix.prefix_len().into()), Found::Number((bits - 32).into())),
        "rev_nat_id" => network_order(range.rev_nat_id, field),
        "addr" => an_address(range.prefix.addr(), field.size),
        _ => panic!("{field:?}"),
    }
}

fn lb_affinity_key(field: &Field<'_>, raw: &[u8]) -> Pair {
    let key = LbAffinityKey::decode(raw).expect("decodes");
    match field.name {
        // Of an IPv4 client the first four of eight bytes.
        "client_id" => an_address(key.client().expect("no cookie"), if field.sizeof == 16 { 4 } else { 16 }),
        "rev_nat_id" => network_order(key.rev_nat_id, field),
        "netns_cookie" => (Found::Number(key.netns_cookie.into()), Found::Number(1)),
        _ => panic!("{field:?}"),
    }
}

fn lb_affinity(field: &Field<'_>, raw: &[u8]) -> Pair {
    let value = LbAffinity::decode(raw).expect("decodes");
    match field.name {
        "last_used" => host_order(value.last_used, field),
        "backend_id" => host_order(value.backend_id, field),
        _ => panic!("{field:?}"),
    }
}

fn lb_affinity_match(field: &Field<'_>, raw: &[u8]) -> Pair {
    let key = LbAffinityMatch::decode(raw).expect("decodes");
    match field.name {
        "backend_id" => host_order(key.backend_id, field),
        "rev_nat_id" => network_order(key.rev_nat_id, field),
        _ => panic!("{field:?}"),
    }
}

fn ct_tuple(field: &Field<'_>, raw: &[u8]) -> Pair {
    let tuple = CtTuple::decode(raw).expect("decodes");
    match field.name {
        "daddr" => an_address(tuple.daddr, field.size),
        "saddr" => an_address(tuple.saddr, field.size),
        "dport" => network_order(tuple.dport, field),
        "sport" => network_order(tuple.sport, field),
        "nexthdr" => host_order(tuple.nexthdr, field),
        "flags" => host_order(tuple.flags, field),
        _ => panic!("{field:?}"),
    }
}

fn nat_entry(field: &Field<'_>, raw: &[u8]) -> Pair {
    let mut raw = raw.to_vec();
    raw.resize(raw.len().max(NatEntry::SIZES.0), 0);
    let entry = NatEntry::decode(&raw).expect("decodes");
    match field.name {
        "created" => host_order(entry.created, field),
        "needs_ct" | "host_local" => host_order(entry.needs_ct, field),
        "to_saddr" | "to_daddr" => an_address(entry.to_addr, field.size),
        "to_sport" | "to_dport" => network_order(entry.to_port, field),
        _ => panic!("{field:?}"),
    }
}

fn ct_entry(field: &Field<'_>, raw: &[u8]) -> Pair {
    let mut entry = CtEntry::decode(raw).expect("decodes");
    let layout = ct_layout(field.versions);
    if let (Some(bit), Some((start, _))) = (ct_flag(field.name), field.bits) {
        assert_eq!(entry.flags, bit, "{field:?}");
        return (Found::Number(entry.flags.into()), Found::Number(1 << start));
    }
    match field.name {
        name @ ("rx_packets" | "rx_bytes" | "tx_packets" | "tx_bytes" | "packets" | "bytes") => {
            host_order(counter(entry.counters(&[layout]), name), field)
        }
        "backend_id" => host_order(entry.backend_id(), field),
        "lifetime" => host_order(entry.lifetime, field),
        "rev_nat_index" => network_order(entry.rev_nat_index, field),
        "ifindex" => host_order(entry.ifindex(&[layout]).expect("one"), field),
        "nat_addr" => {
            assert_eq!(entry.nat(Family::V4, &[layout]).map(|(v4, _)| v4), Some(address(4)));
            an_address(entry.nat(Family::V6, &[layout]).expect("an address").0, 16)
        }
        "nat_port" => {
            entry.head[0] = 10;
            network_order(entry.nat(Family::V4, &[layout]).expect("an address").1, field)
        }
        "tx_flags_seen" => host_order(entry.tx_flags_seen, field),
        "rx_flags_seen" => host_order(entry.rx_flags_seen, field),
        "src_sec_id" => host_order(entry.src_sec_id.0, field),
        "last_tx_report" => host_order(entry.last_tx_report, field),
        "last_rx_report" => host_order(entry.last_rx_report, field),
        _ => panic!("{field:?}"),
    }
}

fn ct_layout(versions: &str) -> CtLayout {
    match &versions[..4] {
        "1.13" | "1.14" | "1.15" => CtLayout::PerDirection,
        "1.16" | "1.18" => CtLayout::Joint,
        "1.19" => CtLayout::NatAddress,
        _ => panic!("{versions}"),
    }
}

fn ct_flag(name: &str) -> Option<u16> {
    Some(match name {
        "rx_closing" => CtEntry::RX_CLOSING,
        "tx_closing" => CtEntry::TX_CLOSING,
        "nat46" => CtEntry::NAT46,
        "lb_loopback" => CtEntry::LB_LOOPBACK,
        "seen_non_syn" => CtEntry::SEEN_NON_SYN,
        "node_port" => CtEntry::NODE_PORT,
        "proxy_redirect" => CtEntry::PROXY_REDIRECT,
        "dsr" | "dsr_internal" => CtEntry::DSR,
        "from_l7lb" => CtEntry::FROM_L7LB,
        "auth_required" => CtEntry::AUTH_REQUIRED,
        "from_tunnel" => CtEntry::FROM_TUNNEL,
        _ => return None,
    })
}

fn counter(counters: Option<CtCounters>, name: &str) -> u64 {
    match (counters.expect("counters"), name) {
        (CtCounters::PerDirection { rx_packets, .. }, "rx_packets") => rx_packets,
        (CtCounters::PerDirection { rx_bytes, .. }, "rx_bytes") => rx_bytes,
        (CtCounters::PerDirection { tx_packets, .. }, "tx_packets") => tx_packets,
        (CtCounters::PerDirection { tx_bytes, .. }, "tx_bytes") => tx_bytes,
        (CtCounters::Joint { packets, .. }, "packets") => packets,
        (CtCounters::Joint { bytes, .. }, "bytes") => bytes,
        (counters, name) => panic!("{name} of {counters:?}"),
    }
}

#[test]
fn every_field_is_read_from_its_offset() {
    let mut checked = 0;
    for field in fields() {
        if let Some((found, expected)) = found(&field, &marked(&field)) {
            assert_eq!(found, expected, "{field:?}");
            checked += 1;
        }
    }
    assert_eq!(checked, CHECKED, "fields of the table");
}

/// Fields of the table that these structures have, padding aside.
const CHECKED: usize = 252;

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// What decodes encodes to the bytes it was made of, padding aside, in both families.
#[test]
fn what_decodes_encodes_to_the_same_bytes() {
    type Recode = fn(&[u8]) -> Option<Vec<u8>>;
    fn v4_v6(
        (v4, v6): (usize, usize),
        recode: Recode,
        pads: [&[usize]; 2],
    ) -> [(usize, Recode, Vec<usize>); 2] {
        [(v4, recode, pads[0].to_vec()), (v6, recode, pads[1].to_vec())]
    }
    let range = |from: usize, to: usize| (from..to).collect::<Vec<_>>();
    let key: Recode = |raw| Some(LbKey::decode(raw).ok()?.encode());
    let backend: Recode = |raw| Some(LbBackend::decode(raw).ok()?.encode());
    let reverse: Recode = |raw| Some(LbReverseNat::decode(raw).ok()?.encode());
    let affinity_key: Recode = |raw| Some(LbAffinityKey::decode(raw).ok()?.encode());
    let tuple: Recode = |raw| Some(CtTuple::decode(raw).ok()?.encode());
    let nat: Recode = |raw| Some(NatEntry::decode(raw).ok()?.encode());
    let mut all = [
        v4_v6(LbKey::SIZES, key, [&[10, 11], &[22, 23]]),
        v4_v6(LbBackend::SIZES, backend, [&[11], &[23]]),
        v4_v6(LbReverseNat::SIZES, reverse, [&[], &[]]),
        v4_v6(LbAffinityKey::SIZES, affinity_key, [&[10, 11, 12, 13, 14, 15], &[18, 19, 20, 21, 22, 23]]),
        v4_v6(CtTuple::SIZES, tuple, [&[], &[]]),
    ]
    .concat();
    all.extend([
        (NatEntry::SIZES.0, nat, [range(16, 32), range(38, 40)].concat()),
        (NatEntry::SIZES.1, nat, [range(16, 32), range(50, 56)].concat()),
        (LbService::SIZE, |raw| Some(LbService::decode(raw).ok()?.encode().into()), vec![]),
        (CtEntry::SIZE, |raw| Some(CtEntry::decode(raw).ok()?.encode().into()), vec![]),
        (LbAffinity::SIZE, |raw| Some(LbAffinity::decode(raw).ok()?.encode().into()), range(12, 16)),
        (LbAffinityMatch::SIZE, |raw| Some(LbAffinityMatch::decode(raw).ok()?.encode().into()), vec![6, 7]),
    ]);
    let mut random = Random(1);
    for (size, recode, padding) in all {
        for _ in 0..2_000 {
            let mut raw = random.bytes(size);
            for at in &padding {
                raw[*at] = 0;
            }
            assert_eq!(recode(&raw), Some(raw.clone()), "{size} bytes");
        }
    }
    for bits in (32..=64).chain(32..=160) {
        let size = if bits <= 64 { 12 } else { 24 };
        let mut raw = random.bytes(size);
        raw[..4].copy_from_slice(&u32::to_le_bytes(bits));
        raw[6..8].fill(0);
        let decoded = LbSourceRange::decode(&raw).expect("decodes");
        assert_eq!(LbSourceRange::decode(&decoded.encode()), Ok(decoded));
        assert_eq!(u32::from(decoded.prefix.prefix_len()), bits - 32);
    }
}

#[test]
fn no_bytes_panic_and_other_sizes_are_refused() {
    let mut random = Random(2);
    for length in 0..80 {
        let sizes = |(v4, v6): (usize, usize)| length == v4 || length == v6;
        for _ in 0..500 {
            let raw = random.bytes(length);
            assert_eq!(LbKey::decode(&raw).is_ok(), sizes(LbKey::SIZES));
            assert_eq!(LbBackend::decode(&raw).is_ok(), sizes(LbBackend::SIZES));
            assert_eq!(LbReverseNat::decode(&raw).is_ok(), sizes(LbReverseNat::SIZES));
            assert_eq!(LbAffinityKey::decode(&raw).is_ok(), sizes(LbAffinityKey::SIZES));
            assert_eq!(CtTuple::decode(&raw).is_ok(), sizes(CtTuple::SIZES));
            assert_eq!(NatEntry::decode(&raw).is_ok(), sizes(NatEntry::SIZES));
            assert_eq!(LbService::decode(&raw).is_ok(), length == LbService::SIZE);
            assert_eq!(CtEntry::decode(&raw).is_ok(), length == CtEntry::SIZE);
            assert_eq!(LbAffinity::decode(&raw).is_ok(), length == LbAffinity::SIZE);
            assert_eq!(LbAffinityMatch::decode(&raw).is_ok(), length == LbAffinityMatch::SIZE);
            let _ = LbSourceRange::decode(&raw);
            if let Ok(entry) = CtEntry::decode(&raw) {
                for layout in CtLayout::ALL {
                    let _ =
                        (entry.counters(&[layout]), entry.nat(Family::V6, &[layout]), entry.words(&[layout]));
                }
            }
        }
    }
    let error = LbSourceRange::decode(&[31, 0, 0, 0, 0, 1, 0, 0, 10, 0, 0, 0]).expect_err("31 bits");
    assert!(error.to_string().contains("expected 32 to 64 (IPv4) or 32 to 160 (IPv6)"), "{error}");
}

fn entry(head: [u64; 4], rx_flags_seen: u8) -> CtEntry {
    let mut entry = CtEntry { rx_flags_seen, ..CtEntry::default() };
    for (idx, word) in head.into_iter().enumerate() {
        entry.head[8 * idx..8 * idx + 8].copy_from_slice(&word.to_le_bytes());
    }
    entry
}

/// 6.2 of the reference: what each layout can and cannot hold.
#[test]
fn conntrack_layouts_by_what_entries_hold() {
    use CtLayout::{Joint, NatAddress, PerDirection};
    let tuple = |family: Family, flags| {
        let any = family.unspecified();
        CtTuple { daddr: any, saddr: any, dport: 80, sport: 40000, nexthdr: 6, flags }
    };
    let of = |family, flags, entry| ct_layouts([(&tuple(family, flags), &entry)], &CtLayout::ALL);
    let v4 = |head, rx_flags_seen| of(Family::V4, CtTuple::IN, entry(head, rx_flags_seen));
    assert_eq!(v4([5, 400, 5, 400], 0x1B), [PerDirection], "counters of the way in");
    assert_eq!(v4([0, 0, 10, 800], 0x1B), [Joint, NatAddress], "both ways were seen, one is counted");
    assert_eq!(v4([0, 0, 1, 74], 0), CtLayout::ALL, "a SYN without an answer tells nothing");
    assert_eq!(v4([0x0400_E00A, 0, 1, 74], 0), [NatAddress], "10.224.0.4 and no bytes");
    assert_eq!(v4([5, 400, 5, 400], 0).len(), 1);
    assert_eq!(v4([u64::MAX, 3, 0, 0], 0), [], "no layout");
    assert_eq!(of(Family::V6, CtTuple::IN, entry([0xFD, 0x0100_0000_0000_0000, 1, 94], 0)), [NatAddress]);
    // A service entry has its backend's id in every layout.
    assert_eq!(of(Family::V4, CtTuple::SERVICE, entry([0, 7, 0, 0], 0)), CtLayout::ALL);
    assert_eq!(entry([0, 7, 0, 0], 0).backend_id(), 7);
    // What other maps rule out stays out.
    let joint = entry([0, 0, 10, 800], 0x1B);
    assert_eq!(ct_layouts([(&tuple(Family::V4, CtTuple::IN), &joint)], &[PerDirection]), []);
    assert_eq!(joint.counters(&[Joint, NatAddress]), Some(CtCounters::Joint { packets: 10, bytes: 800 }));
    assert_eq!(joint.counters(&CtLayout::ALL), None);
    assert_eq!(joint.counters(&[]), None);
}

/// 6.1 of the reference, with the service entry as recordings have it.
#[test]
fn conntrack_tuples_are_swapped() {
    let packet = |saddr: &str, sport, daddr: &str, dport| probe_model::tuple::Tuple {
        saddr: saddr.parse().expect("an address"),
        daddr: daddr.parse().expect("an address"),
        sport,
        dport,
        protocol: probe_model::tuple::Protocol::TCP,
    };
    for (client, server) in [("10.224.0.8", "10.0.0.143"), ("fd00::8", "fd00::143")] {
        let packet = packet(client, 40000, server, 8080);
        let [a, b] = [packet.saddr, packet.daddr];
        let ingress = CtTuple::ingress(packet);
        assert_eq!((ingress.daddr, ingress.saddr, ingress.dport, ingress.sport), (a, b, 8080, 40000));
        let service = CtTuple::service(packet);
        assert_eq!((service.daddr, service.saddr, service.dport, service.sport), (b, a, 40000, 8080));
        for tuple in [ingress, CtTuple::egress(packet), service] {
            assert_eq!(tuple.connection(), packet, "{tuple}");
        }
    }
    let v6 = CtTuple::ingress(packet("fd00::8", 40000, "fd00::143", 8080));
    assert_eq!(v6.to_string(), "TCP IN [fd00::8]:40000 -> [fd00::143]:8080");
}
