//! What to fill Cilium's maps with.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Keys and values, as the kernel stores them.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// What a recording holds of the control plane; the rest (conntrack, NAT, counters, programs) is the datapath's own.
const RECORDED: [&str; 6] = [
    "cilium_ipcache",
    "cilium_lxc",
    "cilium_lb4_services_v2",
    "cilium_lb4_backends_v3",
    "cilium_lb4_reverse_nat",
    "cilium_lb4_source_range",
];

/// The contents of some maps, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapContents {
    maps: BTreeMap<String, Entries>,
}

/// One element of `bpftool map dump -j`.
#[derive(Deserialize)]
struct Dumped {
    key: Vec<String>,
    value: Vec<String>,
}

/// The name of an endpoint's policy map.
pub fn policy_map(endpoint_id: u16) -> String {
    format!("cilium_policy_{endpoint_id:05}")
}

impl MapContents {
    /// Reads the control plane's maps of a recorded scenario: `FOLDER/maps/*.json`.
    ///
    /// # Errors
    ///
    /// A file is missing or is not a dump of hex bytes.
    pub fn from_recording(folder: &Path) -> Result<Self> {
        let maps = folder.join("maps");
        let mut contents = Self::default();
        for file in fs::read_dir(&maps).with_context(|| format!("failed to read `{}`", maps.display()))? {
            let path = file?.path();
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            if RECORDED.contains(&name) || name.starts_with("cilium_policy_") {
                contents.insert(name, read_dump(&path)?);
            }
        }
        Ok(contents)
    }

    /// Sets what a map is to hold.
    pub fn insert(&mut self, map: impl Into<String>, entries: Entries) {
        self.maps.insert(map.into(), entries);
    }

    /// What a map is to hold, if anything was said of it.
    pub fn get(&self, map: &str) -> Option<&Entries> {
        self.maps.get(map)
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entries)> {
        self.maps.iter().map(|(name, entries)| (name.as_str(), entries))
    }
}

impl<S: Into<String>> FromIterator<(S, Entries)> for MapContents {
    fn from_iter<I: IntoIterator<Item = (S, Entries)>>(maps: I) -> Self {
        Self { maps: maps.into_iter().map(|(name, entries)| (name.into(), entries)).collect() }
    }
}

/// Reads the output of `bpftool map dump -j`.
///
/// # Errors
///
/// The file is missing or is not a dump of hex bytes with one value per key.
pub fn read_dump(path: &Path) -> Result<Entries> {
    let what = || format!("failed to read the dump `{}`", path.display());
    let text = fs::read_to_string(path).with_context(what)?;
    let dumped: Vec<Dumped> = serde_json::from_str(&text).with_context(what)?;
    dumped
        .iter()
        .map(|entry| Ok((bytes(&entry.key)?, bytes(&entry.value)?)))
        .collect::<Result<_>>()
        .with_context(what)
}

fn bytes(hex: &[String]) -> Result<Vec<u8>> {
    hex.iter()
        .map(|byte| {
            let digits = byte.strip_prefix("0x").unwrap_or(byte);
            u8::from_str_radix(digits, 16).with_context(|| format!("`{byte}` is not a hex byte"))
        })
        .collect()
}
