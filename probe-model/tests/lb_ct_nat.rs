//! The load-balancer, conntrack and NAT structures: what decodes encodes, what no layout has is refused.
//! Where their fields lie is checked by `offsets`.

use fixtures::Random;
use probe_model::cilium::ct::{CtCounters, CtEntry, CtLayout, CtTuple, ct_layouts};
use probe_model::cilium::family::Family;
use probe_model::cilium::lb::{LbBackend, LbKey, LbReverseNat, LbService, LbSourceRange};
use probe_model::cilium::nat::NatEntry;

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
    let tuple: Recode = |raw| Some(CtTuple::decode(raw).ok()?.encode());
    let nat: Recode = |raw| Some(NatEntry::decode(raw).ok()?.encode());
    let mut all = [
        v4_v6(LbKey::SIZES, key, [&[10, 11], &[22, 23]]),
        v4_v6(LbBackend::SIZES, backend, [&[11], &[23]]),
        v4_v6(LbReverseNat::SIZES, reverse, [&[], &[]]),
        v4_v6(CtTuple::SIZES, tuple, [&[], &[]]),
    ]
    .concat();
    all.extend([
        (NatEntry::SIZES.0, nat, [range(16, 32), range(38, 40)].concat()),
        (NatEntry::SIZES.1, nat, [range(16, 32), range(50, 56)].concat()),
        (LbService::SIZE, |raw| Some(LbService::decode(raw).ok()?.encode().into()), vec![]),
        (CtEntry::SIZE, |raw| Some(CtEntry::decode(raw).ok()?.encode().into()), vec![]),
    ]);
    let mut random = Random::new(1);
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
    let mut random = Random::new(2);
    for length in 0..80 {
        let sizes = |(v4, v6): (usize, usize)| length == v4 || length == v6;
        for _ in 0..500 {
            let raw = random.bytes(length);
            assert_eq!(LbKey::decode(&raw).is_ok(), sizes(LbKey::SIZES));
            assert_eq!(LbBackend::decode(&raw).is_ok(), sizes(LbBackend::SIZES));
            assert_eq!(LbReverseNat::decode(&raw).is_ok(), sizes(LbReverseNat::SIZES));
            assert_eq!(CtTuple::decode(&raw).is_ok(), sizes(CtTuple::SIZES));
            assert_eq!(NatEntry::decode(&raw).is_ok(), sizes(NatEntry::SIZES));
            assert_eq!(LbService::decode(&raw).is_ok(), length == LbService::SIZE);
            assert_eq!(CtEntry::decode(&raw).is_ok(), length == CtEntry::SIZE);
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

#[test]
fn conntrack_entries_by_layout() {
    use CtLayout::{Joint, NatAddress, PerDirection};
    let mut entry = entry([1, 2, 3, 4], 0);
    entry.ifindex_or_nat_port = [0x12, 0x34];
    let (rx_packets, rx_bytes, tx_packets, tx_bytes) = (1, 2, 3, 4);
    let counters = CtCounters::PerDirection { rx_packets, rx_bytes, tx_packets, tx_bytes };
    assert_eq!(entry.counters(&[PerDirection]), Some(counters));
    assert_eq!(entry.ifindex(&[PerDirection, Joint]), Some(0x3412));
    assert_eq!(entry.ifindex(&CtLayout::ALL), None);
    let [v4, v6] = [[1, 0, 0, 0].into(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0].into()];
    assert_eq!(entry.nat(Family::V4, &[NatAddress]), Some((v4, 0x1234)));
    assert_eq!(entry.nat(Family::V6, &[NatAddress]), Some((v6, 0x1234)));
    assert_eq!(entry.nat(Family::V4, &[Joint, NatAddress]), None);
    entry.flags = CtEntry::DSR;
    assert_eq!(entry.words(&[PerDirection]), ["DSR"]);
    assert_eq!(entry.words(&[Joint, NatAddress]), ["DSRInternal"]);
    assert_eq!(entry.words(&CtLayout::ALL), ["DSR or DSRInternal"]);
}

/// 5.1 of the reference: what the first word of slot 0 holds.
#[test]
fn the_union_of_a_master_entry() {
    use probe_model::cilium::lb::LbAlgorithm;
    let of = |raw: [u8; 4]| LbService { backend_id: u32::from_le_bytes(raw), ..LbService::default() };
    let affinity = of([0x30, 0x2A, 0, 2]);
    assert_eq!((affinity.affinity_timeout(), affinity.algorithm()), (10_800, LbAlgorithm::Maglev));
    assert_eq!(of([0x27, 0x11, 0, 0]).l7_proxy_port(), 10_001, "in network order");
}
