//! The crate's lookup and codecs against the reference.
//!
//! The generators are written by hand, as in `random.rs`: entries and packets must be drawn from the same few values or
//! they never meet, most cases are cheap enough for a hundred thousand of them, and what proptest would add, making a
//! failing case small, is [`smallest`].

use fixtures::Random;

use probe_model::cilium::entries::Entries;
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyMap};

use super::generate::World;
use super::lookup::{Node, Packet, lookup};
use super::subject::{Found, aggregation, ask, decode, encode, layout, query};
use super::tables::{Raw, Rule, Version};

/// Maps per layout; more of them if `POLICY_MAPS` says so: `POLICY_MAPS=100000 cargo test --release --test naive`.
fn maps() -> u64 {
    let wanted = std::env::var("POLICY_MAPS").ok();
    wanted.map_or(1_500, |number| number.parse().expect("`POLICY_MAPS` is a number"))
}

const PACKETS_PER_MAP: u32 = 40;

/// What both say of one packet.
fn both(version: Version, entries: &[Raw], node: Node, packet: Packet) -> (Found, Found) {
    let map = decode(version, entries).expect("a map that an agent could write");
    let found = ask(&map.with_aggregation(aggregation(node)), packet);
    (found, Found::from_reference(lookup(version, entries, node, packet), entries))
}

/// As few of the entries as still make both disagree.
fn smallest(version: Version, entries: &[Raw], node: Node, packet: Packet) -> Vec<Raw> {
    let mut entries = entries.to_vec();
    let mut idx = 0;
    while idx < entries.len() {
        let removed = entries.remove(idx);
        let (found, expected) = both(version, &entries, node, packet);
        if found == expected {
            entries.insert(idx, removed);
            idx += 1;
        }
    }
    entries
}

#[track_caller]
fn agree(version: Version, seed: u64) {
    let mut random = Random::new(seed);
    let (mut hits, mut packets) = (0_u64, 0_u64);
    for _ in 0..maps() {
        let world = World::new(&mut random, version);
        let (entries, node) = (world.entries.as_slice(), world.node);
        let map = decode(version, entries).expect("a map that an agent could write");
        let map = map.with_aggregation(aggregation(node));
        for _ in 0..PACKETS_PER_MAP {
            let packet = world.packet(&mut random);
            let found = ask(&map, packet);
            let expected = Found::from_reference(lookup(version, entries, node, packet), entries);
            if found != expected {
                let entries = smallest(version, entries, node, packet);
                let (found, expected) = both(version, &entries, node, packet);
                panic!(
                    "{version:?}: {packet:?} on {node:?} in {entries:#?}\nfound {found:#?}\nexpected {expected:#?}"
                );
            }
            hits += u64::from(found.is_hit());
            packets += 1;
        }
    }
    assert!(hits * 4 > packets, "{version:?}: only {hits} of {packets} packets met an entry");
    assert!(hits < packets, "{version:?}: no packet met nothing");
}

/// A test per layout, so that they run side by side.
macro_rules! for_every_layout {
    ($check:ident: $($name:ident $version:ident $seed:literal),*) => {
        mod $check {
            $(#[test]
            fn $name() {
                super::$check(super::Version::$version, $seed);
            })*
        }
    };
}

for_every_layout!(agree: v1_13 V1_13 1, v1_14 V1_14 2, v1_16_4 V1_16_4 3, v1_17 V1_17 4, v1_18 V1_18 5, v1_19 V1_19 6, v1_20 V1_20 7);
for_every_layout!(round_trip: v1_13 V1_13 11, v1_14 V1_14 12, v1_16_4 V1_16_4 13, v1_17 V1_17 14, v1_18 V1_18 15, v1_19 V1_19 16, v1_20 V1_20 17);
for_every_layout!(no_order: v1_13 V1_13 21, v1_14 V1_14 22, v1_16_4 V1_16_4 23, v1_17 V1_17 24, v1_18 V1_18 25, v1_19 V1_19 26, v1_20 V1_20 27);
for_every_layout!(last_counts: v1_13 V1_13 31, v1_14 V1_14 32, v1_16_4 V1_16_4 33, v1_17 V1_17 34, v1_18 V1_18 35, v1_19 V1_19 36, v1_20 V1_20 37);
for_every_layout!(any_bytes: v1_13 V1_13 41, v1_14 V1_14 42, v1_16_4 V1_16_4 43, v1_17 V1_17 44, v1_18 V1_18 45, v1_19 V1_19 46, v1_20 V1_20 47);

/// Identity 0 is its own wildcard: both lookups find one entry, which then has not lost to itself.
#[test]
fn no_entry_loses_to_itself() {
    let allow = Rule { identity: 0, plen: 24, protocol: 6, port: 80, ..Rule::default() };
    for version in Version::ALL {
        let map = decode(version, &[allow.store(version)]).expect("a map that an agent could write");
        let packet = Packet { identity: 0, egress: false, protocol: 6, port: 80, fragment: false };
        let query = query(packet);
        assert_eq!(map.lookup(query).loser, None, "{version:?}");
    }
}

/// The entries of which no later one has the same significant bits: what a map would still hold.
fn kept(version: Version, entries: &[Raw]) -> Vec<Raw> {
    let same = |a: &Raw, b: &Raw| significant(version, a) == significant(version, b);
    let is_last = |(idx, raw): &(usize, &Raw)| !entries[idx + 1..].iter().any(|later| same(raw, later));
    entries.iter().enumerate().filter(is_last).map(|(_, raw)| raw.clone()).collect()
}

/// A key without the bits that its prefix leaves out.
fn significant(version: Version, raw: &Raw) -> Vec<u8> {
    let mut key = raw.key.clone();
    if version == Version::V1_13 {
        return key;
    }
    for bit in usize::from(key[0])..64 {
        key[4 + bit / 8] &= !(0x80 >> (bit % 8));
    }
    key
}

/// Keys, entries and whole maps encode to the bytes they were decoded from.
fn round_trip(version: Version, seed: u64) {
    let mut random = Random::new(seed);
    let layout = layout(version);
    for _ in 0..300 {
        let entries = kept(version, &World::new(&mut random, version).entries);
        for raw in &entries {
            let key = PolicyKey::decode(&raw.key, layout).expect("a key that an agent could write");
            let entry = PolicyEntry::decode(&raw.value, layout).expect("a value that an agent could write");
            assert_eq!(encode((key, entry), layout), *raw);
            assert_eq!(PolicyKey::decode(&key.encode(layout), layout), Ok(key));
            assert_eq!(PolicyEntry::decode(&entry.encode(layout), layout), Ok(entry));
        }
        let map = decode(version, &entries).expect("a map that an agent could write");
        assert_eq!(map.len(), entries.len());
        let again: Vec<_> = map.iter().map(|slot| encode(slot, layout)).collect();
        assert_eq!(again, entries);
        let made = PolicyMap::new(layout, map.iter());
        assert!(made.iter().eq(map.iter()), "made of its own entries a map is another");
        let mut sorted: Vec<_> = map.entries().map(|slot| encode(slot, layout)).collect();
        let mut all = entries;
        for list in [&mut sorted, &mut all] {
            list.sort_by(|a, b| a.key.cmp(&b.key));
        }
        assert_eq!(sorted, all);
    }
}

/// Whatever order a map was read in, it answers the same.
fn no_order(version: Version, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..300 {
        let world = World::new(&mut random, version);
        let mut entries = kept(version, &world.entries);
        let map = decode(version, &entries).expect("a map that an agent could write");
        random.shuffle(&mut entries);
        let shuffled = decode(version, &entries).expect("a map that an agent could write");
        let node = aggregation(world.node);
        let (map, shuffled) = (map.with_aggregation(node), shuffled.with_aggregation(node));
        for _ in 0..20 {
            let packet = world.packet(&mut random);
            assert_eq!(ask(&map, packet), ask(&shuffled, packet), "{packet:?} in {entries:#?}");
        }
    }
}

/// A key that comes again replaces the entry it had.
fn last_counts(version: Version, seed: u64) {
    let mut random = Random::new(seed);
    let mut replaced = 0;
    for _ in 0..300 {
        let entries = World::new(&mut random, version).entries;
        let kept = kept(version, &entries);
        let map = decode(version, &entries).expect("a map that an agent could write");
        let found: Vec<_> = map.iter().map(|slot| encode(slot, layout(version))).collect();
        assert_eq!(found, kept, "of {entries:#?}");
        replaced += entries.len() - kept.len();
    }
    assert!(replaced > 100, "only {replaced} entries were replaced");
}

/// Bytes that nobody wrote: refused or decoded as the tables say, never a panic, whatever is asked then.
fn any_bytes(version: Version, seed: u64) {
    let mut random = Random::new(seed);
    let layout = layout(version);
    let (key_size, value_size) = version.sizes();
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..1_000 {
        let world = World::new(&mut random, version);
        let mut entries = world.entries.clone();
        entries.truncate(8);
        for _ in 0..random.below(4) {
            flip_a_bit(&mut random, &mut entries);
        }
        let is_possible = entries.iter().all(|raw| raw.is_possible(version));
        match decode(version, &entries) {
            Ok(map) => {
                assert!(is_possible, "taken: {entries:#?}");
                let map = map.with_aggregation(aggregation(world.node));
                let packet = world.packet(&mut random);
                let expected = lookup(version, &entries, world.node, packet);
                let expected = Found::from_reference(expected, &without_padding(version, &entries));
                assert_eq!(ask(&map, packet), expected);
                taken += 1;
            }
            Err(error) => {
                assert!(!is_possible, "{error}: {entries:#?}");
                refused += 1;
            }
        }
        let bytes: Vec<u8> =
            entries.iter().flat_map(|raw| raw.key.iter().chain(&raw.value)).copied().collect();
        for end in 0..bytes.len() {
            let whole = Entries::new(key_size, value_size, bytes[..end].to_vec());
            assert_eq!(whole.is_ok(), end % (key_size + value_size) == 0, "{end} bytes");
        }
    }
    assert!(refused > 50 && taken > 50, "{refused} maps refused, {taken} taken");
    for length in 0..40 {
        for _ in 0..200 {
            let raw = random.bytes(length);
            assert!(PolicyKey::decode(&raw, layout).is_err() || length == key_size);
            assert_eq!(PolicyEntry::decode(&raw, layout).is_ok(), length == value_size);
            let (key_size, value_size) = (random.index(length + 1), random.index(length + 1));
            if let Ok(entries) = Entries::new(key_size, value_size, raw) {
                let is_right = (key_size, value_size) == version.sizes();
                assert!(PolicyMap::decode(layout, &entries).is_err() || is_right || entries.is_empty());
            }
        }
    }
}

fn flip_a_bit(random: &mut Random, entries: &mut [Raw]) {
    if entries.is_empty() {
        return;
    }
    let raw = &mut entries[random.index(entries.len())];
    let part = if random.once_in(2) { &mut raw.key } else { &mut raw.value };
    let at = random.index(part.len());
    part[at] ^= 1 << random.below(8);
}

/// The entries as they encode again: nobody keeps the padding.
fn without_padding(version: Version, entries: &[Raw]) -> Vec<Raw> {
    let cleared = entries.iter().cloned().map(|mut raw| {
        raw.value[version.padding()].fill(0);
        raw
    });
    cleared.collect()
}
