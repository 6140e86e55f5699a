//! Maps as bytes: every decoder and every index over what it decoded.

use probe_model::cilium::entries::Entries;
use probe_user::sources::raw::{RawMap, RawNode};

use crate::{records, whole};

/// Maps that something reads, with the sizes of a key and a value as the kernel declares them. Several lines of one name
/// are layouts of several versions. The position is in the inputs: append, never insert.
pub(crate) const MAPS: &[(&str, usize, usize)] = &[
    ("cilium_lxc", 20, 48),
    ("cilium_ipcache", 24, 12),
    ("cilium_policy_00001", 12, 24),
    ("cilium_ct4_global", 14, 56),
    ("cilium_ct_any4_global", 14, 56),
    ("cilium_lb4_services_v2", 12, 12),
    ("cilium_lb4_backends_v3", 4, 12),
    ("cilium_lb4_reverse_nat", 2, 6),
    ("cilium_lb4_source_range", 12, 1),
    ("cilium_snat_v4_external", 14, 40),
    ("cilium_metrics", 8, 16),
    ("cilium_policy_v2_00001", 12, 8),
    ("cilium_policy_v3_00001", 12, 12),
    ("cilium_ipcache_v2", 24, 24),
    ("cilium_policystats", 12, 16),
    ("cilium_tunnel_map", 20, 20),
    ("cilium_node_map", 20, 2),
    ("cilium_runtime_config", 4, 8),
    ("cilium_lb4_affinity", 16, 16),
    ("cilium_lb_affinity_match", 8, 1),
    ("cilium_ct6_global", 38, 56),
    ("cilium_ct_any6_global", 38, 56),
    ("cilium_lb6_services_v2", 24, 12),
    ("cilium_lb6_backends_v3", 4, 24),
    ("cilium_lb6_source_range", 24, 1),
    ("cilium_lb6_affinity", 28, 16),
    ("cilium_auth_map", 12, 8),
    ("cilium_node_map_v2", 20, 4),
    ("cilium_ipv4_frag_datagrams", 12, 4),
    ("cilium_ipv6_frag_datagrams", 40, 4),
    ("cilium_snat_v6_external", 38, 56),
];

/// A map of other sizes than `MAPS` has for it: they follow, one byte each.
const OTHER_SIZES: u8 = 0x80;

/// Maps one after another: a byte that is the position in `MAPS`, a byte that is the number of entries, the entries.
pub fn maps(data: &[u8]) {
    let node = node(data);
    for (key, value) in node.maps.values().flat_map(|map| map.entries.iter()) {
        records::record(key);
        records::record(value);
    }
    records::record(data);
    whole::node(&node);
}

/// A node with the maps in `data` and nothing else.
pub(crate) fn node(data: &[u8]) -> RawNode {
    let mut node = RawNode { origin: "fuzz".to_owned(), ..RawNode::default() };
    let mut rest = data;
    while let Some((name, map, after)) = next_map(rest) {
        node.maps.insert(name.to_owned(), map);
        rest = after;
    }
    node
}

/// The inverse of what [`maps`] reads.
pub(crate) fn encode(position: usize, entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let (_, key_size, value_size) = MAPS[position];
    let sizes = entries.first().map_or((key_size, value_size), |(key, value)| (key.len(), value.len()));
    let mut data = if sizes == (key_size, value_size) {
        vec![position as u8, entries.len() as u8]
    } else {
        vec![position as u8 | OTHER_SIZES, sizes.0 as u8, sizes.1 as u8, entries.len() as u8]
    };
    for (key, value) in entries.iter().take(usize::from(u8::MAX)) {
        data.extend(key);
        data.extend(value);
    }
    data
}

fn next_map(rest: &[u8]) -> Option<(&'static str, RawMap, &[u8])> {
    let (first, mut rest) = rest.split_first()?;
    let (name, mut key_size, mut value_size) = MAPS[usize::from(first & !OTHER_SIZES) % MAPS.len()];
    if first & OTHER_SIZES != 0 {
        let (sizes, after) = rest.split_at_checked(2)?;
        (key_size, value_size, rest) = (sizes[0].into(), sizes[1].into(), after);
    }
    let (count, rest) = rest.split_first()?;
    // What the input is too short for is not there.
    let size = key_size + value_size;
    let present = rest.len().checked_div(size).unwrap_or(0).min(usize::from(*count));
    let (bytes, rest) = rest.split_at(present * size);
    let entries = Entries::new(key_size, value_size, bytes.to_vec()).expect("whole entries");
    let map =
        RawMap { key_size: key_size as u32, value_size: value_size as u32, entries, ..RawMap::default() };
    Some((name, map, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_comes_back_as_it_was_encoded() {
        for (position, (name, key_size, value_size)) in MAPS.iter().enumerate() {
            for (key_size, value_size) in [(*key_size, *value_size), (3, 5)] {
                let entries =
                    [(vec![1; key_size], vec![2; value_size]), (vec![3; key_size], vec![4; value_size])];
                let data = encode(position, &entries);
                let (found, map, rest) = next_map(&data).unwrap();
                let raw: Vec<_> =
                    map.entries.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                assert_eq!((found, &raw[..], rest), (*name, &entries[..], &[][..]));
                assert_eq!((map.key_size as usize, map.value_size as usize), (key_size, value_size));
            }
        }
    }
}
