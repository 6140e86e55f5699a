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

/// The pinned ipcaches that loaded programs ask.
pub fn used_ipcaches(node: &RawNode) -> Vec<Pin<'_>> {
    let in_use = |(_, map): &Pin<'_>| node.programs.values().any(|used| used.map_ids.contains(&map.id));
    pinned_ipcaches(node).into_iter().filter(in_use).collect()
}

/// The ipcache that every loaded program asks which asks one; `None` if none is pinned.
pub fn common_ipcache(node: &RawNode) -> Option<InUse<'_>> {
    let pins = pinned_ipcaches(node);
    let used = used_ipcaches(node);
    Some(match (used.as_slice(), pins.as_slice()) {
        (_, []) => return None,
        ([pin], _) | (_, [pin]) => Ok(*pin),
        ([], _) => {
            let names = quoted(&pins);
            Err(format!(
                "{names} are pinned, as during an upgrade of Cilium, and which of them is used is not known"
            ))
        }
        _ => Err(format!(
            "loaded programs use {}, as during an upgrade of Cilium, and these differ in what decides; ask again after it",
            quoted(&pins)
        )),
    })
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
    let Some(program) = program else {
        return match pins {
            [pin] => Ok(*pin),
            _ => Err(format!(
                "{} are pinned, as during an upgrade of Cilium, and which of them endpoint {endpoint}'s loaded program uses is not known",
                quoted(pins)
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
            quoted(pins)
        )),
        _ => Err(format!("endpoint {endpoint}'s loaded program uses {} at once", quoted(pins))),
    }
}

fn quoted(pins: &[Pin<'_>]) -> String {
    pins.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(" and ")
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
        let used: Vec<_> = used_ipcaches(&node).into_iter().map(|(name, _)| name).collect();
        assert_eq!(used, ["cilium_ipcache_v2", "cilium_ipcache"]);
    }

    #[test]
    fn one_ipcache_for_all_endpoints_or_none() {
        let pins = [("cilium_ipcache", 5), ("cilium_ipcache_v2", 6)];
        let common = |pins: &[(&str, u32)], programs: &[(EndpointId, &[u32])]| {
            common_ipcache(&node(pins, programs)).map(|in_use| in_use.map(|(name, _)| name.to_owned()))
        };
        let newer = Some(Ok("cilium_ipcache_v2".to_owned()));
        assert_eq!(common(&pins, &[(APP, &[1, 6]), (WEB, &[2])]), newer);
        assert_eq!(common(&pins[1..], &[]), newer);
        assert_eq!(common(&[], &[]), None);
        let both = common(&pins, &[(APP, &[5]), (WEB, &[6])]).unwrap().unwrap_err();
        assert!(both.starts_with("loaded programs use `cilium_ipcache_v2` and `cilium_ipcache`"), "{both}");
        let unknown = common(&pins, &[(APP, &[1])]).unwrap().unwrap_err();
        assert!(unknown.ends_with("which of them is used is not known"), "{unknown}");
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
        assert!(used_ipcaches(&node(&[], &[])).is_empty());
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
