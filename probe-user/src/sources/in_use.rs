//! Which of several pins of one thing Cilium's loaded programs really use.
//!
//! While Cilium is upgraded, maps of two generations are pinned side by side, and each endpoint moves over when its program
//! is loaded anew. A pin's name alone does not tell; the maps of the endpoint's policy program do.

use std::collections::BTreeMap;

use probe_model::cilium::EndpointId;
use probe_model::cilium::policy::pin_endpoint;

use super::programs::CALL_POLICY;
use super::raw::{Program, RawMap, RawNode};

/// The pins of the ipcache, by generation, the latest first.
pub const IPCACHE_PINS: [&str; 2] = ["cilium_ipcache_v2", "cilium_ipcache"];

/// A pin with its map.
pub type Pin<'n> = (&'n str, &'n RawMap);

/// The pin in use, or why it is not known.
pub type InUse<'n> = Result<Pin<'n>, String>;

/// Every endpoint's policy map, as far as it is pinned.
pub fn policy_maps(node: &RawNode) -> BTreeMap<EndpointId, InUse<'_>> {
    let mut pins: BTreeMap<EndpointId, Vec<Pin<'_>>> = BTreeMap::new();
    for (name, map) in &node.maps {
        if let Some(endpoint) = pin_endpoint(name) {
            pins.entry(endpoint).or_default().push((name, map));
        }
    }
    pins.into_iter()
        .map(|(endpoint, pins)| (endpoint, choose(&pins, endpoint, policy_program(node, endpoint))))
        .collect()
}

/// The ipcache that an endpoint's program asks; `None` if none is pinned.
pub fn ipcache(node: &RawNode, endpoint: EndpointId) -> Option<InUse<'_>> {
    let pins = pinned_ipcaches(node);
    (!pins.is_empty()).then(|| choose(&pins, endpoint, policy_program(node, endpoint)))
}

/// The ipcaches that are pinned, the latest generation first.
pub fn pinned_ipcaches(node: &RawNode) -> Vec<Pin<'_>> {
    let pin = |name| node.maps.get_key_value(name).map(|(name, map)| (name.as_str(), map));
    IPCACHE_PINS.into_iter().filter_map(pin).collect()
}

/// The loaded program that judges packets to an endpoint, if it is known.
pub fn policy_program(node: &RawNode, endpoint: EndpointId) -> Option<&Program> {
    let slot = u32::from(endpoint.0).to_le_bytes();
    let id = node.maps.get(CALL_POLICY)?.entries.find(&slot)?;
    node.programs.get(&u32::from_le_bytes(id.try_into().ok()?))
}

fn choose<'n>(pins: &[Pin<'n>], endpoint: EndpointId, program: Option<&Program>) -> InUse<'n> {
    let names = || pins.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
    let Some(program) = program else {
        return match pins {
            [pin] => Ok(*pin),
            _ => Err(format!(
                "{} are pinned, as during an upgrade of Cilium, and which of them endpoint {endpoint}'s loaded program uses is not known",
                names()
            )),
        };
    };
    let used: Vec<_> = pins.iter().filter(|(_, map)| program.map_ids.contains(&map.id)).collect();
    match (used.as_slice(), pins) {
        ([pin], _) => Ok(**pin),
        // A recording without map ids.
        ([], [pin]) if pin.1.id == 0 => Ok(*pin),
        ([], _) => Err(format!(
            "endpoint {endpoint}'s loaded program `{}` uses none of the maps pinned as {}: they were replaced under it; read again",
            program.name,
            names()
        )),
        _ => Err(format!("endpoint {endpoint}'s loaded program uses {} at once", names())),
    }
}

#[cfg(test)]
mod tests {
    use probe_model::cilium::entries::Entries;

    use super::*;

    const APP: EndpointId = EndpointId(7);
    const WEB: EndpointId = EndpointId(8);

    /// A node on which `maps` are pinned with these ids, and endpoint 7 and 8 have programs that use these maps.
    fn node(maps: &[(&str, u32)], programs: &[(EndpointId, &[u32])]) -> RawNode {
        let mut node = RawNode::default();
        for (name, id) in maps {
            node.maps.insert((*name).to_owned(), RawMap { id: *id, ..RawMap::default() });
        }
        let slot = |(endpoint, _): &(EndpointId, &[u32])| {
            (u32::from(endpoint.0).to_le_bytes(), (100 + u32::from(endpoint.0)).to_le_bytes())
        };
        let entries = Entries::collect(programs.iter().map(slot)).unwrap();
        node.maps.insert(CALL_POLICY.to_owned(), RawMap { entries, ..RawMap::default() });
        for (endpoint, map_ids) in programs {
            let name = "handle_policy".to_owned();
            let program = Program { name, map_ids: map_ids.to_vec(), policy_entry: None };
            node.programs.insert(100 + u32::from(endpoint.0), program);
        }
        node
    }

    fn chosen(node: &RawNode, endpoint: EndpointId) -> Result<String, String> {
        policy_maps(node)[&endpoint].clone().map(|(name, _)| name.to_owned())
    }

    #[test]
    fn each_endpoint_has_the_map_that_its_program_uses() {
        let maps = [
            ("cilium_policy_00007", 1),
            ("cilium_policy_v2_00007", 2),
            ("cilium_policy_00008", 3),
            ("cilium_policy_v2_00008", 4),
            ("cilium_ipcache", 5),
            ("cilium_ipcache_v2", 6),
        ];
        let node = node(&maps, &[(APP, &[1, 5, 9]), (WEB, &[6, 4, 9])]);
        assert_eq!(chosen(&node, APP), Ok("cilium_policy_00007".to_owned()));
        assert_eq!(chosen(&node, WEB), Ok("cilium_policy_v2_00008".to_owned()));
        let ipcache = |endpoint| ipcache(&node, endpoint).unwrap().map(|(name, _)| name);
        assert_eq!((ipcache(APP), ipcache(WEB)), (Ok("cilium_ipcache"), Ok("cilium_ipcache_v2")));
    }

    #[test]
    fn without_the_program_two_generations_are_not_guessed_between() {
        let node = node(&[("cilium_policy_00007", 1), ("cilium_policy_v2_00007", 2)], &[]);
        let why = chosen(&node, APP).unwrap_err();
        assert!(why.contains("`cilium_policy_00007` and `cilium_policy_v2_00007` are pinned"), "{why}");
        assert!(why.ends_with("which of them endpoint 7's loaded program uses is not known"), "{why}");
    }

    #[test]
    fn one_pin_needs_no_program() {
        assert_eq!(
            chosen(&node(&[("cilium_policy_00007", 1)], &[]), APP),
            Ok("cilium_policy_00007".to_owned())
        );
        assert!(super::ipcache(&node(&[], &[]), APP).is_none());
    }

    #[test]
    fn a_pin_that_its_program_does_not_use_is_not_believed() {
        let why = chosen(&node(&[("cilium_policy_00007", 1)], &[(APP, &[2])]), APP).unwrap_err();
        assert!(
            why.starts_with("endpoint 7's loaded program `handle_policy` uses none of the maps"),
            "{why}"
        );
        // A recording without `_show.json` has no ids to compare.
        let unnumbered = node(&[("cilium_policy_00007", 0)], &[(APP, &[2])]);
        assert_eq!(chosen(&unnumbered, APP), Ok("cilium_policy_00007".to_owned()));
    }
}
