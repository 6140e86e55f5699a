//! Snapshots: damaged files, files with digests that fit whatever they hold, and what a node becomes in one.

use std::io::Read as _;

use probe_model::cilium::entries::Entries;
use probe_user::sources::raw::{RawMap, RawNode};
use probe_user::sources::snapshot::{self, Circumstances, Packed};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{container, maps, whole};

pub(crate) const MANIFEST: &str = "manifest.json";

/// A snapshot. The first byte says how the rest is one: 0 as a file, 1 as a tar that is still to be compressed, 2 as
/// `container::texts` parts for which the manifest is completed, 3 as maps of a node that is packed and read again.
pub fn snapshot(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else { return };
    match how % 4 {
        0 => read(rest),
        1 => read(&compressed(rest)),
        2 => {
            if let Some(tar) = completed(rest) {
                read(&compressed(&tar));
            }
        }
        _ => packed_and_read(&maps::node(rest)),
    }
}

fn read(file: &[u8]) {
    match snapshot::read_from(file) {
        Ok(node) => whole::node(&node),
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
}

/// A node comes out of its snapshot as it went in, or with the reason why something is missing.
fn packed_and_read(node: &RawNode) {
    let Ok(packed) = Packed::new(node, circumstances()) else { return };
    let mut file = Vec::new();
    packed.write(&mut file).expect("memory takes everything");
    let again = snapshot::read_from(&file[..]).expect("a snapshot that was just written");
    for (name, map) in &node.maps {
        let is_missing = again.missing.iter().any(|missing| missing.what == *name);
        match again.maps.get(name) {
            Some(found) if !found.entries.is_empty() => assert_eq!(found, map, "{name}"),
            Some(_) => {}
            None => assert!(is_missing, "{name} is gone without a word"),
        }
    }
    whole::node(&again);
}

pub(crate) fn circumstances() -> Circumstances {
    let time = "2026-11-25T15:00:00Z".to_owned();
    Circumstances { began: time.clone(), ended: time, ..Circumstances::default() }
}

/// The parts as a tar whose manifest lists them, with digests that fit.
fn completed(data: &[u8]) -> Option<Vec<u8>> {
    let parts = container::texts(data);
    let (_, manifest) = parts.iter().find(|(name, _)| *name == MANIFEST)?;
    let mut manifest: Value = serde_json::from_slice(manifest).ok()?;
    let others: Vec<_> = parts.iter().filter(|(name, _)| *name != MANIFEST).collect();
    let facts = others
        .iter()
        .map(|(name, bytes)| json!({ "name": name, "bytes": bytes.len(), "sha256": sha256(bytes) }));
    manifest.as_object_mut()?.insert("parts".to_owned(), facts.collect());
    let mut encoded = manifest.to_string().into_bytes();
    encoded.pop();
    let digest = sha256(&encoded);
    encoded.extend_from_slice(format!(",\"digest\":\"{digest}\"}}\n").as_bytes());
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [(MANIFEST, &encoded[..])].into_iter().chain(others.into_iter().map(|(name, bytes)| (*name, *bytes)))
    {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).ok()?;
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        tar.append(&header, bytes).ok()?;
    }
    tar.into_inner().ok()
}

/// The inverse of what `completed` reads.
pub(crate) fn parts(file: &[u8]) -> Vec<u8> {
    let mut data = vec![2];
    let mut tar = tar::Archive::new(zstd::Decoder::new(file).expect("a frame"));
    for part in tar.entries().expect("a tar") {
        let mut part = part.expect("a part");
        let name = String::from_utf8_lossy(&part.path_bytes()).into_owned();
        data.extend_from_slice(format!("=== {name}\n").as_bytes());
        part.read_to_end(&mut data).expect("a part's bytes");
        // The next mark begins a line. Of a map it makes a torn one, which is worth a look as well.
        if data.last() != Some(&b'\n') {
            data.push(b'\n');
        }
    }
    data
}

fn compressed(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).expect("memory takes everything")
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A map of no more than so many entries.
pub(crate) fn shortened(map: &RawMap, entries: usize) -> RawMap {
    let (key_size, value_size) = (map.entries.key_size(), map.entries.value_size());
    let length = map.entries.len().min(entries) * (key_size + value_size);
    let entries =
        Entries::new(key_size, value_size, map.entries.bytes().slice(..length)).expect("whole entries");
    RawMap { entries, ..map.clone() }
}
