//! A folder of recordings: `maps/*.json` (`bpftool map dump -j`), `rest/*.json` (the agent's answers), `node/`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use probe_model::cilium::entries::Entries;
use serde::Deserialize;

use super::network_text;
use super::raw::{Missing, RawMap, RawNode};

/// One map of `_show.json` (`bpftool map show -j`).
#[derive(Deserialize)]
struct ShownMap {
    id: u32,
    #[serde(rename = "type")]
    map_type: String,
    bytes_key: u32,
    bytes_value: u32,
    max_entries: u32,
    pinned: Option<Pins>,
}

/// `pinned` is one path in some versions of bpftool and a list in others.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pins {
    One(String),
    Many(Vec<String>),
}

/// One entry of a dump: hex bytes, one value, or one value per CPU.
#[derive(Deserialize)]
struct DumpedEntry {
    key: Vec<String>,
    value: Option<Vec<String>>,
    values: Option<Vec<CpuValue>>,
}

#[derive(Deserialize)]
struct CpuValue {
    value: Vec<String>,
}

/// Reads a recorded node from `folder`.
///
/// `node/` is taken from the folder itself or from its parent. What is not there is listed in [`RawNode::missing`].
///
/// # Errors
///
/// If the folder has no `maps/`, or cannot be listed. A dump that is truncated or no dump is a missing fact, whose reason
/// names file and place.
pub fn read(folder: &Path) -> Result<RawNode> {
    let maps_folder = folder.join("maps");
    if !maps_folder.is_dir() {
        bail!(
            "`{}` has no folder `maps`; expected `bpftool map dump -j` files as maps/NAME.json, and optionally rest/ and node/",
            folder.display()
        );
    }
    let mut node = RawNode { origin: folder.display().to_string(), ..RawNode::default() };
    read_maps(&maps_folder, &mut node)?;
    read_rest(&folder.join("rest"), &mut node)?;
    read_node_folder(folder, &mut node)?;
    Ok(node)
}

fn read_maps(folder: &Path, node: &mut RawNode) -> Result<()> {
    let mut shown = match read_show(&folder.join("_show.json")) {
        Ok(shown) => shown,
        Err(error) => {
            let why = format!("{error:#}; key and value sizes are taken from the entries");
            node.missing.push(Missing { what: "maps/_show.json".to_owned(), why });
            BTreeMap::new()
        }
    };
    for path in json_files(folder)? {
        let name = stem(&path);
        if name == "_show" {
            continue;
        }
        // One unreadable dump is a missing fact, not the end of the others.
        match read_map(&path, shown.remove(&name)) {
            Ok(map) => {
                node.maps.insert(name, map);
            }
            Err(error) => node.missing.push(Missing { what: name, why: format!("{error:#}") }),
        }
    }
    for name in shown.into_keys().filter(|name| is_dumpable(name)) {
        let why = "listed in _show.json, but its dump is not in the folder".to_owned();
        node.missing.push(Missing { what: name, why });
    }
    Ok(())
}

/// Facts of maps by pin name, without entries.
fn read_show(path: &Path) -> Result<BTreeMap<String, RawMap>> {
    let maps: Vec<ShownMap> = read_json(path)?;
    let by_pin = maps.into_iter().flat_map(|map| {
        let pins = pin_names(map.pinned.as_ref());
        let ShownMap { id, map_type, bytes_key: key_size, bytes_value: value_size, max_entries, .. } = map;
        let facts = RawMap { id, map_type, key_size, value_size, max_entries, entries: Entries::default() };
        pins.into_iter().map(move |pin| (pin, facts.clone()))
    });
    Ok(by_pin.collect())
}

/// One dump, with what `_show.json` says of the map, if it does.
fn read_map(path: &Path, shown: Option<RawMap>) -> Result<RawMap> {
    let entries: Vec<DumpedEntry> = read_json(path)?;
    let entries = entries.iter().enumerate().map(|(idx, entry)| {
        decode_entry(entry).with_context(|| format!("failed to read entry {idx} of `{}`", path.display()))
    });
    let entries: Vec<_> = entries.collect::<Result<_>>()?;
    let map = shown.unwrap_or_else(|| unshown(&entries));
    check_sizes(path, &map, &entries)?;
    let entries = Entries::collect(entries);
    let entries = entries.with_context(|| format!("failed to read the entries of `{}`", path.display()))?;
    Ok(RawMap { entries, ..map })
}

/// Perf event arrays and the like have no entries to dump.
fn is_dumpable(name: &str) -> bool {
    !matches!(name, "cilium_events" | "cilium_signals")
        && !name.contains("_throttle")
        && !name.contains("maglev")
}

fn pin_names(pinned: Option<&Pins>) -> Vec<String> {
    let paths = match pinned {
        None => &[][..],
        Some(Pins::One(path)) => std::slice::from_ref(path),
        Some(Pins::Many(paths)) => paths,
    };
    paths.iter().filter_map(|path| path.rsplit('/').next()).map(str::to_owned).collect()
}

/// Facts of a map that `_show.json` does not list: what its first entry shows.
fn unshown(entries: &[(Vec<u8>, Vec<u8>)]) -> RawMap {
    let (key_size, value_size) =
        entries.first().map_or((0, 0), |(key, value)| (key.len() as u32, value.len() as u32));
    RawMap { key_size, value_size, ..RawMap::default() }
}

fn check_sizes(path: &Path, map: &RawMap, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    let per_cpu = map.map_type.contains("percpu");
    for (idx, (key, value)) in entries.iter().enumerate() {
        ensure!(
            key.len() as u32 == map.key_size && (per_cpu || value.len() as u32 == map.value_size),
            "entry {idx} of `{}` has a key of {} and a value of {} bytes, expected {} and {}",
            path.display(),
            key.len(),
            value.len(),
            map.key_size,
            map.value_size
        );
    }
    Ok(())
}

fn decode_entry(entry: &DumpedEntry) -> Result<(Vec<u8>, Vec<u8>)> {
    let value = match (&entry.value, &entry.values) {
        (Some(value), _) => hex_bytes(value)?,
        (None, Some(values)) => {
            let per_cpu: Vec<_> = values.iter().map(|cpu| hex_bytes(&cpu.value)).collect::<Result<_>>()?;
            per_cpu.concat()
        }
        (None, None) => bail!("found no `value`, expected hex bytes"),
    };
    Ok((hex_bytes(&entry.key)?, value))
}

fn hex_bytes(words: &[String]) -> Result<Vec<u8>> {
    let byte = |word: &String| {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        u8::from_str_radix(digits, 16)
            .with_context(|| format!("found `{word}`, expected a byte such as `0x0a`"))
    };
    words.iter().map(byte).collect()
}

fn read_rest(folder: &Path, node: &mut RawNode) -> Result<()> {
    if !folder.is_dir() {
        let why = "not in the folder; names, labels and policies are not known".to_owned();
        node.missing.push(Missing { what: "rest".to_owned(), why });
        return Ok(());
    }
    for path in json_files(folder)? {
        node.rest.insert(stem(&path), read_text(&path)?);
    }
    Ok(())
}

/// `node/` there or one level up.
fn read_node_folder(folder: &Path, node: &mut RawNode) -> Result<()> {
    let beside = folder.join("node");
    // `..` would not do for a folder that is itself named by `.`.
    let above = folder.canonicalize().ok().and_then(|path| Some(path.parent()?.join("node")));
    let Some(folder) = std::iter::once(beside).chain(above).find(|path| path.is_dir()) else {
        let why =
            "neither in the folder nor one level up; netfilter rules, addresses and routes are not known";
        node.missing.push(Missing { what: "node".to_owned(), why: why.to_owned() });
        return Ok(());
    };
    let optional = |name: &str, node: &mut RawNode| -> Result<Option<String>> {
        let path = folder.join(name);
        if path.exists() {
            return read_text(&path).map(Some);
        }
        let why = format!("not in `{}`", folder.display());
        node.missing.push(Missing { what: format!("node/{name}"), why });
        Ok(None)
    };
    // A node without nftables' rules has no such file.
    let nft = folder.join("nft-ruleset.json");
    node.nft_ruleset = if nft.exists() { Some(read_text(&nft)?) } else { None };
    node.iptables_save = optional("iptables-save.txt", node)?;
    if let Some(text) = optional("ip.txt", node)? {
        let network = network_text::parse(&text);
        node.network =
            Some(network.with_context(|| format!("failed to read `{}`", folder.join("ip.txt").display()))?);
    }
    Ok(())
}

fn json_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("failed to list `{}`", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("failed to list `{}`", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "failed to read `{}`; expected `bpftool map dump -j` output, is the file truncated?",
            path.display()
        )
    })
}
