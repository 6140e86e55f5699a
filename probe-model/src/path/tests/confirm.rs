//! Conntrack entries that have both destinations of a flow together, and those that do not.

use super::*;
use crate::cilium::ct::{CtEntry, CtTuple};
use crate::cilium::lb::{LbBackend, LbKey, LbMaps, LbService, LoadBalancer};
use crate::world::World;
use crate::world::conntrack::Conntrack;

const BACKEND_ID: u32 = 7;
const SERVICE: u16 = 5;

/// A world with one service, and one conntrack entry.
fn world(key: CtTuple, entry: CtEntry) -> World {
    let frontend = tuple(NAT_IP, FRONTEND, Protocol::TCP);
    let backend = tuple(NAT_IP, POD, Protocol::TCP);
    let lb_key = LbKey { address: frontend.daddr, dport: 80, backend_slot: 0, proto: 0, scope: 0 };
    let service = LbService { count: 1, rev_nat_index: SERVICE, ..LbService::default() };
    let slot = LbService { backend_id: BACKEND_ID, rev_nat_index: SERVICE, ..LbService::default() };
    let known = LbBackend { address: backend.daddr, port: 80, proto: 0, flags: 0, cluster_id: 0, zone: 0 };
    let maps = LbMaps {
        services: vec![(lb_key, service), (LbKey { backend_slot: 1, ..lb_key }, slot)],
        backends: Some(vec![(BACKEND_ID, known)]),
        source_ranges: None,
    };
    World {
        lb: Some(LoadBalancer::new(maps)),
        conntrack: [(key, entry)].into_iter().collect(),
        ..World::default()
    }
}

fn service_entry(backend_id: u8) -> CtEntry {
    let mut entry = CtEntry::default();
    entry.head[8] = backend_id;
    entry
}

fn of_service(rev_nat_index: u16) -> CtEntry {
    CtEntry { rev_nat_index, ..CtEntry::default() }
}

#[test]
fn conntrack_confirms_a_translation() {
    let (before, after) = (tuple(NAT_IP, FRONTEND, Protocol::TCP), tuple(NAT_IP, POD, Protocol::TCP));
    let path = one_path(&allowed_through_dnat(1000, 0));
    for (what, key, entry, confirmed) in [
        ("the service's entry", CtTuple::service(before), service_entry(BACKEND_ID as u8), true),
        ("another backend", CtTuple::service(before), service_entry(8), false),
        ("the pod's entry", CtTuple::ingress(after), of_service(SERVICE), true),
        ("the node's entry", CtTuple::egress(after), of_service(SERVICE), true),
        ("another service", CtTuple::ingress(after), of_service(6), false),
        ("no service", CtTuple::ingress(after), of_service(0), false),
        ("another client", CtTuple::ingress(tuple(NODE, POD, Protocol::TCP)), of_service(SERVICE), false),
    ] {
        let whole = world(key, entry);
        let found = path.confirmation(&whole);
        let mut looked_up = World { conntrack: Conntrack::default(), ..whole.clone() };
        assert_eq!(path.confirmation(&looked_up), None, "{what}: nobody looked");
        for key in path.confirming_keys() {
            looked_up.learn_connection(key, whole.connection(&key).entry().copied());
        }
        assert_eq!(path.confirmation(&looked_up), found, "{what}: by lookups");
        assert_eq!(found.is_some(), confirmed, "{what}");
        if let Some(found) = found {
            assert_eq!((found.map.as_str(), found.entry), ("cilium_ct4_global", key.to_string()), "{what}");
        }
    }
    assert_eq!(path.confirmation(&World::default()), None, "conntrack was not read");
}

#[test]
fn without_a_translation_there_is_nothing_to_confirm() {
    let path = one_path(&[at(0, HookPoint::PodIn, syn(NAT_IP, POD, 9))]);
    let key = CtTuple::ingress(tuple(NAT_IP, POD, Protocol::TCP));
    assert_eq!(path.confirmation(&world(key, of_service(SERVICE))), None);
}
