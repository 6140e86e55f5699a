//! Policy maps in every layout.

use fixtures::Random;
use probe_model::cilium::entries::Entries;
use probe_model::cilium::layout::policy_layout;
use probe_model::cilium::policy::{PolicyKey, PolicyMap, pin_endpoint};

use crate::naive::generate::World;
use crate::naive::lookup::{Node, Packet, lookup};
use crate::naive::subject::{Found, aggregation, ask, decode, encode, layout};
use crate::naive::tables::{Raw, Version};

/// Layout, node, identity, direction and fragment, protocol, port.
const HEADER: usize = 11;

/// A policy map and a packet: the lookup against the slow reference, and the map against its own encoding.
///
/// One byte for the layout, one for dual stack, one for the cluster id; the packet: identity, a byte for egress (bit 0)
/// and fragment (bit 1), protocol, port; then keys and values.
pub fn policy_map(data: &[u8]) {
    let Some((header, bytes)) = data.split_first_chunk::<HEADER>() else { return };
    let version = Version::ALL[usize::from(header[0]) % Version::ALL.len()];
    let node = Node { dual_stack: header[1] & 1 != 0, cluster_id: header[2] };
    let packet = Packet {
        identity: u32::from_le_bytes([header[3], header[4], header[5], header[6]]),
        egress: header[7] & 1 != 0,
        fragment: header[7] & 2 != 0,
        protocol: header[8],
        port: u16::from_be_bytes([header[9], header[10]]),
    };
    names(version, bytes);
    let entries = entries(version, bytes);
    let Ok(map) = decode(version, &entries) else {
        assert!(entries.iter().any(|raw| !raw.is_possible(version)), "refused: {entries:#?}");
        return;
    };
    assert!(entries.iter().all(|raw| raw.is_possible(version)), "taken: {entries:#?}");
    encodes_again(version, &map);
    let map = map.with_aggregation(aggregation(node));
    for packet in around(packet, &entries) {
        let expected = lookup(version, &entries, node, packet);
        let expected = Found::from_reference(expected, &without_padding(version, &entries));
        assert_eq!(ask(&map, packet), expected, "{packet:?} on {node:?} in {entries:#?}");
    }
}

/// Seeds: maps and packets that meet.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut random = Random::new(3);
    let mut seeds = Vec::new();
    for (position, version) in Version::ALL.into_iter().enumerate() {
        for _ in 0..12 {
            let world = World::new(&mut random, version);
            let Packet { identity, egress, protocol, port, fragment } = world.packet(&mut random);
            let mut seed = vec![position as u8, u8::from(world.node.dual_stack), world.node.cluster_id];
            seed.extend(identity.to_le_bytes());
            seed.extend([u8::from(egress) | u8::from(fragment) << 1, protocol]);
            seed.extend(port.to_be_bytes());
            for raw in world.entries.iter().take(12) {
                seed.extend(&raw.key);
                seed.extend(&raw.value);
            }
            seeds.push(seed);
        }
    }
    seeds
}

/// The packet, and those that the map's own keys describe.
fn around(packet: Packet, entries: &[Raw]) -> Vec<Packet> {
    let of_key = |raw: &Raw| {
        let lpm = raw.key.len() > 8;
        let at = if lpm { 4 } else { 0 };
        let (port, protocol, egress) = if lpm { (10, 9, 8) } else { (4, 6, 7) };
        Packet {
            identity: u32::from_le_bytes([raw.key[at], raw.key[at + 1], raw.key[at + 2], raw.key[at + 3]]),
            egress: raw.key[egress] & 1 != 0,
            protocol: raw.key[protocol],
            port: u16::from_be_bytes([raw.key[port], raw.key[port + 1]]),
            fragment: packet.fragment,
        }
    };
    let mut packets = vec![packet];
    for raw in entries.iter().take(8) {
        let own = of_key(raw);
        packets.extend([
            own,
            Packet { identity: packet.identity, ..own },
            Packet { identity: own.identity, ..packet },
        ]);
    }
    packets
}

/// What precedes decoding: bytes as entries, layouts by pin name and sizes.
fn names(version: Version, bytes: &[u8]) {
    let layout = layout(version);
    let pin = layout.pin_name(pin_endpoint("cilium_policy_00042").expect("an endpoint's pin"));
    let (key_size, value_size) = version.sizes();
    let whole = bytes.len() - bytes.len() % (key_size + value_size);
    let entries = Entries::new(key_size, value_size, bytes[..whole].to_vec()).expect("whole entries");
    if let Ok(found) = policy_layout(&pin, key_size as u32, value_size as u32, &entries, None) {
        assert_eq!(found.pin_prefix(), layout.pin_prefix());
    }
    let _ = PolicyMap::decode(layout, &entries);
    let _ = PolicyKey::decode(bytes, layout);
}

fn entries(version: Version, bytes: &[u8]) -> Vec<Raw> {
    let (key_size, value_size) = version.sizes();
    let raw = |entry: &[u8]| Raw { key: entry[..key_size].to_vec(), value: entry[key_size..].to_vec() };
    bytes.chunks_exact(key_size + value_size).map(raw).collect()
}

fn encodes_again(version: Version, map: &PolicyMap) {
    let encoded: Vec<_> = map.iter().map(|slot| encode(slot, layout(version))).collect();
    let again = decode(version, &encoded).expect("what was decoded encodes to what decodes");
    assert!(again.iter().eq(map.iter()));
    assert_eq!(map.entries().count(), map.len());
}

/// Nobody keeps the padding.
fn without_padding(version: Version, entries: &[Raw]) -> Vec<Raw> {
    let cleared = entries.iter().cloned().map(|mut raw| {
        raw.value[version.padding()].fill(0);
        raw
    });
    cleared.collect()
}
