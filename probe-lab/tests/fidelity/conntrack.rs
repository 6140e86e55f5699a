//! Conntrack entries that a scenario's probes leave behind.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use probe_lab::standin::{Entries, read_dump};
use probe_model::cilium::ct::{CtEntry, CtLayout, CtTuple};

use crate::World;

/// `CtEntry::flags`: the connection came through a frontend.
const NODE_PORT: u16 = 1 << 5;

/// An entry by its tuple: what does not depend on when, and on how the client closed.
type Entered = BTreeMap<String, String>;

/// What differs between the recorded TCP entries and the stand-in's, of connections with one of these client ports.
pub(crate) fn differences(world: &World, scenario: &Path, ports: &[u16]) -> Result<Option<String>> {
    let recorded = entered(&read_dump(&scenario.join("maps/cilium_ct4_global.json"))?, ports)?;
    ensure!(!recorded.is_empty(), "no conntrack entry was recorded");
    let seen = entered(&world.standin.map("cilium_ct4_global")?.entries()?, ports)?;
    Ok((recorded != seen).then(|| format!("tracked\n  recorded {recorded:#?}\n  seen {seen:#?}")))
}

fn entered(entries: &Entries, ports: &[u16]) -> Result<Entered> {
    let mut entered = Entered::new();
    for (key, value) in entries {
        let tuple = CtTuple::decode(key)?;
        if !ports.contains(&tuple.sport) && !ports.contains(&tuple.dport) {
            continue;
        }
        let entry = CtEntry::decode(value)?;
        let backend = tuple.is_service().then(|| entry.backend_id());
        let facts = format!(
            "node port {}, reverse NAT {}, interface {:?}, source {:?}, backend {backend:?}",
            entry.flags & NODE_PORT != 0,
            entry.rev_nat_index,
            entry.ifindex(&[CtLayout::PerDirection]),
            entry.src_sec_id,
        );
        entered.insert(format!("{tuple:?}"), facts);
    }
    Ok(entered)
}
