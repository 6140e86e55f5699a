//! Lookups in Cilium's conntrack maps, where they are too large to be read for one answer: of hundreds of thousands of
//! entries a question needs a handful.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::world::{Missing, World};

use super::maps::PinnedMap;

/// Maps that were too large to be read, open, by their pins' names.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    maps: BTreeMap<String, Arc<PinnedMap>>,
}

impl Lookups {
    /// Adds a map.
    pub(super) fn add(&mut self, name: String, map: PinnedMap) {
        self.maps.insert(name, Arc::new(map));
    }

    /// Puts into `world` what one question needs of these maps ([`World::look_up`]). One that refuses is missing, with
    /// the reason.
    pub fn complete(&self, world: &mut World, asked: impl Fn(&World) -> BTreeSet<CtTuple>) {
        if self.maps.is_empty() {
            return;
        }
        // Of an earlier question.
        world.missing.retain(|missing| !self.maps.contains_key(&missing.what));
        let refused = world.look_up(asked, |key| {
            let map = self.maps.get(&key.map()).ok_or(None)?;
            lookup(map, key).map_err(Some)
        });
        // Why the others are not open, is known already.
        let refused = refused.into_iter().filter_map(|(what, why)| Some((what, why?)));
        world.missing.extend(refused.map(|(what, why)| Missing { what, why: format!("{why:#}") }));
    }
}

fn lookup(map: &PinnedMap, key: &CtTuple) -> Result<Option<CtEntry>> {
    let (raw, key_size) = (key.encode(), map.key_size());
    ensure!(raw.len() == key_size as usize, "a key of it has {key_size} bytes, expected {}", raw.len());
    let found = map.lookup(&raw)?;
    let decoded = found.map(|value| CtEntry::decode(&value)).transpose();
    decoded.with_context(|| format!("failed to read the entry `{key}`"))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
    use probe_model::cilium::EndpointId;
    use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
    use probe_model::explain::{Code, explain};
    use probe_model::simulate::{Question, simulate_noting};
    use probe_model::tuple::{Protocol, Tuple};
    use probe_model::world::conntrack::Tracked;

    use super::*;
    use crate::sources::assemble::assemble;
    use crate::sources::live::{LiveNode, LiveOptions, read};
    use crate::sources::testing::PrivateBpffs;

    const POD: [u8; 4] = [10, 0, 0, 143];
    const CLIENT: [u8; 4] = [10, 224, 0, 8];

    /// The pod's answer to a client on this port, which only passes as an answer: its egress is not known.
    fn answer(port: u16) -> Question {
        let [saddr, daddr] = [POD, CLIENT].map(IpAddr::from);
        Question::new(Tuple { saddr, daddr, sport: 80, dport: port, protocol: Protocol::TCP })
    }

    /// A node with one pod and TCP connections of this many clients, by ports from 1 on, too many to be read.
    fn node(clients: u16, key_size: u32) -> Option<(PrivateBpffs, MapHandle, LiveNode)> {
        let bpffs = PrivateBpffs::mount()?;
        let lxc = bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16);
        let pod = EndpointInfo { ifindex: 5, lxc_id: EndpointId(7), ..EndpointInfo::default() };
        lxc.update(&EndpointKey::new(POD.into()).encode(), &pod.encode(), MapFlags::ANY).unwrap();
        drop(bpffs.create("cilium_lb4_services_v2", MapType::Hash, 12, 12, 16));
        let conntrack = bpffs.create("cilium_ct4_global", MapType::LruHash, key_size, 56, 1024);
        for port in 1..=clients {
            let key = CtTuple::ingress(answer(port).tuple.reversed()).encode();
            let key = [key, vec![0; key_size as usize - 14]].concat();
            conntrack.update(&key, &CtEntry::default().encode(), MapFlags::ANY).unwrap();
        }
        let cilium_run = bpffs.path().join("run");
        let options = LiveOptions {
            bpffs: bpffs.path().into(),
            cilium_run,
            conntrack_entries: 1,
            ..LiveOptions::default()
        };
        let live = read(&options).unwrap();
        Some((bpffs, conntrack, live))
    }

    /// What is said of a question: whether it is a known answer, and the caveat if conntrack is not known.
    fn ask(live: &LiveNode, world: &mut World, question: &Question) -> (bool, Option<String>) {
        live.lookups.complete(world, |world| simulate_noting(world, question).1);
        let explanation = explain(world, question);
        let mut caveats = explanation.caveats.into_iter();
        let caveat = caveats.find(|caveat| caveat.code == Code::ConntrackUnknown);
        (explanation.cause.code == Code::Reply, caveat.map(|caveat| caveat.text))
    }

    #[test]
    fn a_connection_is_found_and_one_that_is_not_there_is_new() {
        let Some((_bpffs, conntrack, live)) = node(300, 14) else { return };
        let mut world = assemble(&live.node);
        let unread = explain(&world, &answer(300));
        assert!(unread.caveats.iter().any(|caveat| caveat.code == Code::ConntrackUnknown), "{unread:?}");
        for port in [1, 300, 301, 2, 0] {
            let is_there = (1..=300).contains(&port);
            assert_eq!(ask(&live, &mut world, &answer(port)), (is_there, None), "{port}");
        }
        // As it is now, not as it was when the node was read.
        conntrack.delete(&CtTuple::ingress(answer(2).tuple.reversed()).encode()).unwrap();
        assert_eq!(ask(&live, &mut world, &answer(2)), (false, None));
    }

    #[test]
    fn a_map_that_is_gone_from_its_pin_is_asked_as_long_as_it_is_open() {
        let Some((bpffs, conntrack, live)) = node(2, 14) else { return };
        std::fs::remove_file(bpffs.globals().join("cilium_ct4_global")).unwrap();
        drop(conntrack);
        let mut world = assemble(&live.node);
        assert_eq!(ask(&live, &mut world, &answer(2)), (true, None));
    }

    /// Asked once, and the answer says what was found.
    #[test]
    fn a_map_of_other_keys_is_named_with_the_assumption() {
        let Some((_bpffs, _conntrack, live)) = node(2, 16) else { return };
        let mut world = assemble(&live.node);
        for _ in 0..2 {
            let (is_reply, caveat) = ask(&live, &mut world, &answer(2));
            let caveat = caveat.unwrap();
            assert!(!is_reply && caveat.ends_with(": judged as a new connection"), "{caveat}");
            assert!(
                caveat.contains("`cilium_ct4_global`: a key of it has 16 bytes, expected 14"),
                "{caveat}"
            );
            let named = world.missing.iter().filter(|missing| missing.what == "cilium_ct4_global");
            assert_eq!(named.count(), 1);
        }
    }

    #[test]
    fn a_value_of_another_size_is_named() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        let conntrack = bpffs.create("cilium_ct4_global", MapType::Hash, 14, 48, 16);
        let key = CtTuple::ingress(answer(1).tuple.reversed());
        conntrack.update(&key.encode(), &[0; 48], MapFlags::ANY).unwrap();
        let mut lookups = Lookups::default();
        let pin = bpffs.globals().join("cilium_ct4_global");
        lookups.add("cilium_ct4_global".to_owned(), PinnedMap::open(&pin).unwrap());
        let mut world = World::default();
        lookups.complete(&mut world, |_| [key].into());
        assert_eq!(world.connection(&key), Tracked::Unknown);
        let missing = world.missing("cilium_ct4_global").unwrap();
        assert!(missing.why.contains("expected 56"), "{missing}");
    }
}
