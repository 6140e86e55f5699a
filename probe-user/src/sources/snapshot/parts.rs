//! What a snapshot consists of: one row per kind of part, with both directions.
//!
//! To add a kind, add a row. Old versions read such a snapshot without it once the schema's minor number is raised.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use ipnet::IpNet;
use probe_model::cilium::{
    entries::Entries,
    layout::{Member, policy_layout},
    policy::pin_endpoint,
    runtime_config::UTime,
};
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, MapFacts};
use crate::sources::{
    agent, beyond, in_use, live,
    raw::{Link, Network, Program, RawMap, RawNode, Route},
};

/// Stems and contents of the parts of one kind.
type Stems = Vec<(String, Bytes)>;

/// One kind of part.
pub(super) struct Kind {
    /// Its parts' names, with `*` for what tells several of them apart: the stem.
    pattern: &'static str,
    /// The parts of a node; what may be secret is taken out later.
    collect: fn(&RawNode) -> Stems,
    /// Puts the contents of the part with this stem back.
    restore: fn(&mut RawNode, &Manifest, &str, Bytes) -> Result<()>,
    /// Whether it is JSON from which secrets must be taken out.
    pub(super) is_scrubbed: bool,
}

/// Every kind, in the archive's order.
const KINDS: [Kind; 10] = [
    Kind { pattern: "maps/*.bin", collect: maps, restore: restore_map, is_scrubbed: false },
    Kind {
        pattern: "rest/*.json",
        collect: rest,
        restore: |node, _, stem, bytes| {
            node.rest.insert(stem.to_owned(), text(&bytes)?);
            Ok(())
        },
        is_scrubbed: true,
    },
    Kind {
        pattern: "node/iptables-save.txt",
        collect: |node| one(node.iptables_save.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes()))),
        restore: |node, _, _, bytes| {
            node.iptables_save = Some(text(&bytes)?);
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "node/nft-ruleset.json",
        collect: |node| one(node.nft_ruleset.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes()))),
        restore: |node, _, _, bytes| {
            node.nft_ruleset = Some(text(&bytes)?);
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "node/network.json",
        collect: network,
        restore: |node, _, _, bytes| {
            let network: StoredNetwork = serde_json::from_slice(&bytes).context("it is no network")?;
            node.network = Some(network.try_into()?);
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "node/read-at.txt",
        collect: |node| one(node.read_at.map(|UTime(units)| units.to_string().into())),
        restore: |node, _, _, bytes| {
            let units = text(&bytes)?.parse().context("it is no number")?;
            node.read_at = Some(UTime(units));
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "node/programs.json",
        collect: programs,
        restore: |node, _, _, bytes| {
            let stored: BTreeMap<u32, StoredProgram> =
                serde_json::from_slice(&bytes).context("it is no list of programs")?;
            node.programs = stored.into_iter().map(|(id, program)| (id, program.into())).collect();
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "policies/*.json",
        collect: |node| texts(&node.kubernetes, beyond::is_of_policies),
        restore: |node, _, stem, bytes| {
            node.kubernetes.insert(stem.to_owned(), text(&bytes)?);
            Ok(())
        },
        is_scrubbed: true,
    },
    // What is no policy was picked field by field when it was asked for.
    Kind {
        pattern: "kubernetes/*.json",
        collect: |node| texts(&node.kubernetes, |stem| !beyond::is_of_policies(stem)),
        restore: |node, _, stem, bytes| {
            node.kubernetes.insert(stem.to_owned(), text(&bytes)?);
            Ok(())
        },
        is_scrubbed: false,
    },
    Kind {
        pattern: "azure/*.json",
        collect: |node| texts(&node.azure, |_| true),
        restore: |node, _, stem, bytes| {
            node.azure.insert(stem.to_owned(), text(&bytes)?);
            Ok(())
        },
        is_scrubbed: false,
    },
];

/// A part before it is stored.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) kind: &'static Kind,
    pub(super) bytes: Bytes,
}

/// Every part of a node.
pub(super) fn collect(node: &RawNode) -> Result<Vec<Part>> {
    for (name, map) in &node.maps {
        let key_size = map.entries.key_size();
        ensure!(
            map.entries.is_empty() || key_size == map.key_size as usize,
            "`{name}` has keys of {key_size} bytes, expected {}",
            map.key_size
        );
    }
    let mut parts = Vec::new();
    for kind in &KINDS {
        for (stem, bytes) in (kind.collect)(node) {
            let name = kind.pattern.replace('*', &stem);
            ensure!(is_sound(&name), "`{}` cannot be a part's name", super::shown(&name));
            parts.push(Part { name, kind, bytes });
        }
    }
    Ok(parts)
}

/// The kind of a part by its name, and the stem.
pub(super) fn kind(name: &str) -> Option<(&'static Kind, &str)> {
    KINDS.iter().find_map(|kind| match kind.pattern.split_once('*') {
        Some((before, after)) => {
            let stem = name.strip_prefix(before)?.strip_suffix(after)?;
            (!stem.is_empty() && !stem.contains('/')).then_some((kind, stem))
        }
        None => (name == kind.pattern).then_some((kind, "")),
    })
}

impl Kind {
    /// Puts the contents of the part with this stem back into `node`.
    pub(super) fn restore(
        &self,
        node: &mut RawNode,
        manifest: &Manifest,
        stem: &str,
        bytes: Bytes,
    ) -> Result<()> {
        (self.restore)(node, manifest, stem, bytes)
    }
}

/// Whether a part may have this name: a relative path of letters, digits and `_-.:`, no component beginning with a dot.
pub(super) fn is_sound(name: &str) -> bool {
    let is_sound = |component: &str| {
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        !component.is_empty() && !component.starts_with('.') && component.chars().all(is_fine)
    };
    name.len() <= 200 && name.split('/').all(is_sound)
}

fn one(bytes: Option<Bytes>) -> Stems {
    bytes.map(|bytes| (String::new(), bytes)).into_iter().collect()
}

fn texts(parts: &BTreeMap<String, String>, is_wanted: impl Fn(&str) -> bool) -> Stems {
    let wanted = parts.iter().filter(|(stem, _)| is_wanted(stem));
    wanted.map(|(stem, text)| (stem.clone(), Bytes::copy_from_slice(text.as_bytes()))).collect()
}

fn text(bytes: &[u8]) -> Result<String> {
    Ok(core::str::from_utf8(bytes).context("it is not UTF-8")?.to_owned())
}

/// The maps that some command reads entries of; nobody needs the others', and `cilium_encrypt_state` or an unknown pin
/// may hold secrets.
fn maps(node: &RawNode) -> Stems {
    let shown = node.maps.iter().filter(|(name, _)| live::is_shown_by_some_command(name));
    shown.map(|(name, map)| (name.clone(), map.entries.bytes().clone())).collect()
}

/// Facts of a map, with its entries' if they are `stored`.
pub(super) fn map_facts(node: &RawNode, name: &str, map: &RawMap, is_stored: bool) -> MapFacts {
    let layout = |endpoint| {
        let program = in_use::policy_program(node, endpoint);
        let members = program.and_then(|program| program.policy_entry.as_deref());
        let layout = policy_layout(name, map.key_size, map.value_size, &map.entries, members);
        Some(layout.ok()?.versions().to_owned())
    };
    MapFacts {
        id: map.id,
        map_type: map.map_type.clone(),
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        entries: is_stored.then_some(map.entries.len() as u64),
        stored_value_size: if is_stored { map.entries.value_size() as u32 } else { 0 },
        layout: pin_endpoint(name).and_then(layout),
    }
}

/// A map without its entries.
pub(super) fn map_of_facts(facts: &MapFacts) -> RawMap {
    RawMap {
        id: facts.id,
        map_type: facts.map_type.clone(),
        key_size: facts.key_size,
        value_size: facts.value_size,
        max_entries: facts.max_entries,
        entries: Entries::default(),
    }
}

fn restore_map(node: &mut RawNode, manifest: &Manifest, name: &str, bytes: Bytes) -> Result<()> {
    let facts = manifest.maps.get(name).context("the manifest has no facts of this map")?;
    let Some(count) = facts.entries else { bail!("the manifest says that its entries are not stored") };
    let (key_size, value_size) = (u64::from(facts.key_size), u64::from(facts.stored_value_size));
    ensure!(
        count.checked_mul(key_size + value_size) == Some(bytes.len() as u64),
        "found {} bytes, expected {count} entries of {key_size} and {value_size} bytes",
        bytes.len()
    );
    let entries = match count {
        0 => Entries::empty(facts.key_size as usize, facts.stored_value_size as usize),
        _ => Entries::new(facts.key_size as usize, facts.stored_value_size as usize, bytes)?,
    };
    ensure!(entries.len() as u64 == count, "found {} entries, expected {count}", entries.len());
    node.maps.insert(name.to_owned(), RawMap { entries, ..map_of_facts(facts) });
    Ok(())
}

/// The agent's answers that plsprobe asks for; a folder may have others.
fn rest(node: &RawNode) -> Stems {
    let asked = agent::PATHS.map(|path| path.replace('/', "-"));
    let answers = node.rest.iter().filter(|(stem, _)| asked.contains(stem));
    answers.map(|(stem, text)| (stem.clone(), Bytes::copy_from_slice(text.as_bytes()))).collect()
}

fn network(node: &RawNode) -> Stems {
    let stored = node.network.as_ref().map(|network| serde_json::to_vec(&StoredNetwork::from(network)));
    one(stored.map(|bytes| bytes.expect("names, numbers and addresses are JSON").into()))
}

fn programs(node: &RawNode) -> Stems {
    let stored: BTreeMap<_, _> =
        node.programs.iter().map(|(id, program)| (id, StoredProgram::from(program))).collect();
    let bytes = (!stored.is_empty()).then(|| serde_json::to_vec(&stored));
    one(bytes.map(|bytes| bytes.expect("names and numbers are JSON").into()))
}

/// [`Program`] as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredProgram {
    name: String,
    map_ids: Vec<u32>,
    policy_entry: Option<Vec<StoredMember>>,
}

#[derive(Serialize, Deserialize)]
struct StoredMember {
    name: String,
    bit_offset: u32,
    bits: Option<u8>,
}

impl From<&Program> for StoredProgram {
    fn from(Program { name, map_ids, policy_entry }: &Program) -> Self {
        let member = |Member { name, bit_offset, bits }: &Member| StoredMember {
            name: name.clone(),
            bit_offset: *bit_offset,
            bits: *bits,
        };
        let policy_entry = policy_entry.as_ref().map(|members| members.iter().map(member).collect());
        Self { name: name.clone(), map_ids: map_ids.clone(), policy_entry }
    }
}

impl From<StoredProgram> for Program {
    fn from(StoredProgram { name, map_ids, policy_entry }: StoredProgram) -> Self {
        let member = |StoredMember { name, bit_offset, bits }| Member { name, bit_offset, bits };
        let policy_entry = policy_entry.map(|members| members.into_iter().map(member).collect());
        Self { name, map_ids, policy_entry }
    }
}

/// [`Network`] as it is stored: types of the model have no form of their own.
#[derive(Serialize, Deserialize)]
struct StoredNetwork {
    links: Vec<StoredLink>,
    routes: Vec<StoredRoute>,
}

#[derive(Serialize, Deserialize)]
struct StoredLink {
    name: String,
    ifindex: u32,
    addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredRoute {
    destination: String,
    via: Option<IpAddr>,
    dev: String,
    src: Option<IpAddr>,
    metric: u32,
}

impl From<&Network> for StoredNetwork {
    fn from(Network { links, routes }: &Network) -> Self {
        let link = |link: &Link| StoredLink {
            name: link.name.clone(),
            ifindex: link.ifindex,
            addresses: link.addresses.iter().map(ToString::to_string).collect(),
        };
        let route = |route: &Route| StoredRoute {
            destination: route.destination.to_string(),
            via: route.via,
            dev: route.dev.clone(),
            src: route.src,
            metric: route.metric,
        };
        Self { links: links.iter().map(link).collect(), routes: routes.iter().map(route).collect() }
    }
}

impl TryFrom<StoredNetwork> for Network {
    type Error = anyhow::Error;

    fn try_from(StoredNetwork { links, routes }: StoredNetwork) -> Result<Self> {
        let net = |text: &String| {
            text.parse::<IpNet>().with_context(|| {
                format!("found `{}`, expected an address with its prefix", super::shown(text))
            })
        };
        let link = |StoredLink { name, ifindex, addresses }: StoredLink| {
            Ok(Link { name, ifindex, addresses: addresses.iter().map(net).collect::<Result<_>>()? })
        };
        let route = |StoredRoute { destination, via, dev, src, metric }: StoredRoute| {
            Ok(Route { destination: net(&destination)?, via, dev, src, metric })
        };
        Ok(Self {
            links: links.into_iter().map(link).collect::<Result<_>>()?,
            routes: routes.into_iter().map(route).collect::<Result<_>>()?,
        })
    }
}
