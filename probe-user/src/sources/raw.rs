//! What every source fills: undecoded maps and texts of one node, and what was missing.

use std::collections::BTreeMap;

use probe_model::cilium::entries::Entries;
use probe_model::cilium::layout::Member;
use probe_model::cilium::runtime_config::UTime;

/// Undecoded facts of one node.
#[derive(Clone, Debug, Default)]
pub struct RawNode {
    /// Where the facts are from, as the answer names it: `live`, the folder, or `snapshot DIGEST of TIME`.
    pub origin: String,
    /// When the maps were read, by the wall clock as Cilium's datapath counts it; `None` for a recording that does not say.
    pub read_at: Option<UTime>,
    /// Cilium's pinned maps by pin name.
    pub maps: BTreeMap<String, RawMap>,
    /// Cilium's loaded programs by id, those that policy maps are judged by at least; empty if not known.
    pub programs: BTreeMap<u32, Program>,
    /// The agent's REST answers, as JSON text, by path with `/` as `-`: `endpoint`, `identity`, `policy-selectors`, …
    pub rest: BTreeMap<String, String>,
    /// `iptables-save`'s output, all tables.
    pub iptables_save: Option<String>,
    /// `nft -j list ruleset`'s output, where nftables has tables that `iptables-save` does not show.
    pub nft_ruleset: Option<String>,
    /// The Kubernetes API's lists, as far as they are needed, as JSON text by name: `services`, `pods`, …; and who asked.
    pub kubernetes: BTreeMap<String, String>,
    /// Azure's resources, as far as they are needed, as JSON text by name: `private-link-services`, …; and who asked.
    pub azure: BTreeMap<String, String>,
    /// Interfaces and routes of the node.
    pub network: Option<Network>,
    /// Conntrack maps that were too large to be read for an answer, and in which it can look keys up; not in `maps`.
    pub unread: Vec<Missing>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

/// A loaded program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its name, cut to 15 bytes by the kernel.
    pub name: String,
    /// Kernel ids of the maps it uses.
    pub map_ids: Vec<u32>,
    /// The members of `struct policy_entry`, if its type information has it.
    pub policy_entry: Option<Vec<Member>>,
}

/// A pinned map's facts and entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawMap {
    /// Kernel id, 0 if unknown.
    pub id: u32,
    /// Type in bpftool's word (`lpm_trie`, `hash`, …), empty if unknown.
    pub map_type: String,
    /// Bytes of a key, as the map declares it.
    pub key_size: u32,
    /// Bytes of a value, as the map declares it.
    pub value_size: u32,
    /// Capacity, 0 if unknown.
    pub max_entries: u32,
    /// Keys and values as the kernel stores them, sorted by key; per-CPU maps have their values one after another.
    pub entries: Entries,
}

/// Interfaces and routes of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Routes of the main table, and host routes of others where the source shows them.
    pub routes: Vec<Route>,
}

pub use probe_model::world::{Link, Missing, Route};
