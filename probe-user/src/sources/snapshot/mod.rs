//! One file with everything that an answer needs, to be read on another machine.
//!
//! A zstd-compressed tar of plain files. Its first part, `manifest.json`, says what it is, lists every other part with
//! length and SHA-256, and ends with a digest of itself: damage and careless changes are found and named. That is no
//! signature: who changes a snapshot on purpose can compute the digests anew.
//!
//! | part | what |
//! |---|---|
//! | `manifest.json` | [`Manifest`] |
//! | `maps/PIN.bin` | entries of a map that some command reads: key, value, key, value, … as the kernel stores them |
//! | `rest/PATH.json` | the agent's answer to one of [`agent::PATHS`](super::agent::PATHS), without what may be secret |
//! | `node/iptables-save.txt` | netfilter rules of both back ends |
//! | `node/network.json` | interfaces, addresses and routes |
//! | `node/read-at.txt` | when the maps were read: units of 512 ns since 1970, as Cilium's datapath counts |
//! | `node/programs.json` | loaded programs that policy maps are judged by |
//! | `policies/LIST.json` | policy objects of the Kubernetes API and of files, without what may be secret (from 1.1 on) |
//! | `kubernetes/LIST.json` | the API's other lists: of each object only the fields that answers need (from 1.1 on) |
//! | `azure/PART.json` | Azure's resources in the same way, and what the operator said of NAT IPs (from 1.1 on) |
//!
//! What is read back equals what was read on the node, but for its origin, secrets, and entries of maps that no command
//! reads. Answers name it `snapshot DIGEST of TIME`: the same wherever the file lies.

mod archive;
mod file;
mod manifest;
mod parts;
mod scrub;
mod shape;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;

use super::{
    LiveOptions, assemble, live,
    raw::{Missing, RawNode},
    utc,
};
use archive::{LIMITS, Limits};
use parts::Part;

pub use manifest::{Circumstances, Manifest, MapFacts, MissingFact, PartFacts};

/// How much of foreign text is repeated.
const SHOWN: usize = 100;

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// What is in it.
    pub manifest: Manifest,
    /// How answers name it.
    pub origin: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// How long each step took: reading the node's parts beside one another, then packing and writing.
    pub took: Vec<(String, Duration)>,
}

/// Whether a file that begins so may be a snapshot.
pub fn begins_like(begin: &[u8]) -> bool {
    begin.starts_with(&archive::MAGIC)
}

/// Reads this node whole and writes it to `path`; with `force` over a file that is there.
///
/// # Errors
///
/// As [`live::read_whole`], and when the file cannot be written. Then nothing is left of it.
pub fn take(options: &LiveOptions, path: &Path, force: bool) -> Result<Written> {
    file::check(path, force)?;
    let began = SystemTime::now();
    let (live, reading) = live::timed(|| live::read_whole(options));
    let live = live?;
    let system = rustix::system::uname();
    let circumstances = Circumstances {
        began: utc::text(began),
        ended: utc::text(SystemTime::now()),
        monotonic_ns: crate::sys::monotonic().as_nanos() as u64,
        kernel: system.release().to_string_lossy().into_owned(),
        architecture: system.machine().to_string_lossy().into_owned(),
    };
    let (packed, packing) = live::timed(|| Packed::new(&live.node, circumstances));
    let packed = packed?;
    let (bytes, writing) = live::timed(|| file::write(path, force, |out| packed.write(out)));
    let steps = [("reading", reading), ("packing", packing), ("writing", writing)];
    let took = [live.took, steps.map(|(what, took)| (what.to_owned(), took)).to_vec()].concat();
    Ok(Written { origin: packed.origin(), manifest: packed.manifest, bytes: bytes?, took })
}

/// Reads the snapshot at `path`.
///
/// # Errors
///
/// If it is no snapshot, of a later major schema, or broken: with the part that is, and how.
pub fn read(path: &Path) -> Result<RawNode> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("failed to read `{shown}`"))?;
    read_from(BufReader::new(file)).with_context(|| format!("failed to read snapshot `{shown}`"))
}

/// As [`read`], from any stream of bytes.
///
/// # Errors
///
/// As [`read`].
pub fn read_from(input: impl BufRead) -> Result<RawNode> {
    read_within(input, LIMITS)
}

fn read_within(input: impl BufRead, limits: Limits) -> Result<RawNode> {
    let mut node = RawNode::default();
    let mut unknown = Vec::new();
    let (manifest, digest) = archive::read(input, limits, |manifest, name, bytes| {
        let Some((kind, stem)) = parts::kind(name) else {
            unknown.push(format!("`{name}`"));
            return Ok(());
        };
        kind.restore(&mut node, manifest, stem, bytes)
    })?;
    node.origin = manifest.origin(&digest);
    let missing = manifest.missing.iter();
    node.missing =
        missing.map(|MissingFact { what, why }| Missing { what: what.clone(), why: why.clone() }).collect();
    restore_facts(&mut node, &manifest)?;
    if manifest.is_newer() {
        let left_out =
            if unknown.is_empty() { String::new() } else { format!(" without {}", unknown.join(", ")) };
        let why = format!(
            "it has schema `{}` of plsprobe {}, read as `{}`{left_out}; read it with that version",
            shown(&manifest.schema),
            shown(&manifest.plsprobe),
            manifest::schema()
        );
        node.missing.push(Missing { what: "all of the snapshot".to_owned(), why });
    }
    Ok(node)
}

/// Adds the maps of which only facts are stored. Where this version would read their entries they are missing: they must
/// not be taken for empty.
fn restore_facts(node: &mut RawNode, manifest: &Manifest) -> Result<()> {
    for (name, facts) in &manifest.maps {
        match facts.entries {
            Some(_) => ensure!(node.maps.contains_key(name), "part `maps/{}.bin` is missing", shown(name)),
            None if !live::is_shown_by_some_command(name) => {
                node.maps.insert(name.clone(), parts::map_of_facts(facts));
            }
            None if node.missing.iter().any(|missing| missing.what == *name) => {}
            None => {
                let why = format!(
                    "its entries are not in the snapshot, which plsprobe {} wrote; take a new one with this version",
                    shown(&manifest.plsprobe)
                );
                node.missing.push(Missing { what: name.clone(), why });
            }
        }
    }
    Ok(())
}

/// A snapshot before it is written.
pub struct Packed {
    manifest: Manifest,
    encoded: Vec<u8>,
    digest: String,
    parts: Vec<Part>,
}

impl Packed {
    /// Packs what is known of a node, without what may be secret.
    ///
    /// # Errors
    ///
    /// If the node has what a snapshot cannot hold: more than 1 GiB of it, or a map whose name is no name.
    pub fn new(node: &RawNode, circumstances: Circumstances) -> Result<Self> {
        Self::within(node, circumstances, LIMITS)
    }

    fn within(node: &RawNode, circumstances: Circumstances, limits: Limits) -> Result<Self> {
        let mut removed = BTreeMap::new();
        let mut missing: Vec<_> =
            node.missing.iter().map(|missing| missing_fact(missing, &mut removed)).collect();
        let mut parts = Vec::new();
        for part in parts::collect(node)? {
            match stored(part, limits, &mut removed) {
                Ok(part) => parts.push(part),
                Err(left_out) => missing.push(left_out),
            }
        }
        let total: u64 = parts.iter().map(|part| part.bytes.len() as u64).sum();
        ensure!(
            total + limits.manifest <= limits.total,
            "the node's facts have {total} bytes, more than the {} that a snapshot holds",
            limits.total - limits.manifest
        );
        let is_stored = |name: &str| parts.iter().any(|part| part.name == format!("maps/{name}.bin"));
        let facts = |(name, map)| (String::clone(name), parts::map_facts(node, name, map, is_stored(name)));
        let manifest = Manifest {
            schema: manifest::schema(),
            plsprobe: env!("CARGO_PKG_VERSION").to_owned(),
            circumstances,
            cilium: assemble::version(node),
            maps: node.maps.iter().map(facts).collect(),
            missing,
            removed,
            parts: parts.iter().map(part_facts).collect(),
        };
        let (encoded, digest) = manifest.encode()?;
        ensure!(
            encoded.len() as u64 <= limits.manifest,
            "the snapshot's manifest has {} bytes, more than {}",
            encoded.len(),
            limits.manifest
        );
        Ok(Self { manifest, encoded, digest, parts })
    }

    /// How answers name it.
    pub fn origin(&self) -> String {
        self.manifest.origin(&self.digest)
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// What `out` says.
    pub fn write(&self, out: impl Write) -> Result<()> {
        let parts = self.parts.iter().map(|part| (part.name.as_str(), &part.bytes[..]));
        archive::write(out, &self.encoded, parts)?.flush()?;
        Ok(())
    }
}

/// The part as it is stored, or why it is not.
fn stored(part: Part, limits: Limits, removed: &mut BTreeMap<String, u64>) -> Result<Part, MissingFact> {
    let left_out = |why: String| {
        // A map goes by its pin's name, everything else by its part's.
        let stem = part.name.strip_prefix("maps/").and_then(|name| name.strip_suffix(".bin"));
        let what = stem.or(part.name.strip_suffix(".json")).unwrap_or(&part.name).to_owned();
        MissingFact { what, why }
    };
    let bytes = if part.kind.is_scrubbed {
        let scrubbed = scrubbed(&part.bytes, removed);
        let why =
            |error| format!("{error:#}, so that secrets in it cannot be told; it is not in the snapshot");
        scrubbed.map_err(|error| left_out(why(error)))?
    } else {
        part.bytes.clone()
    };
    if bytes.len() as u64 > limits.part {
        let (found, limit) = (bytes.len(), limits.part);
        return Err(left_out(format!(
            "it has {found} bytes, more than the {limit} that a part of a snapshot holds"
        )));
    }
    Ok(Part { bytes, ..part })
}

fn scrubbed(bytes: &Bytes, removed: &mut BTreeMap<String, u64>) -> Result<Bytes> {
    let text = core::str::from_utf8(bytes).context("it is not UTF-8")?;
    let scrubbed = scrub::scrub(text)?;
    for (name, count) in scrubbed.removed {
        *removed.entry(name).or_default() += count;
    }
    Ok(match scrubbed.text {
        std::borrow::Cow::Borrowed(_) => bytes.clone(),
        std::borrow::Cow::Owned(text) => text.into(),
    })
}

/// A missing fact, whose reason may repeat what the agent said. It names paths, which may look like keys.
fn missing_fact(missing: &Missing, removed: &mut BTreeMap<String, u64>) -> MissingFact {
    let plain = |text: &str| text.replace(char::is_control, " ");
    let (what, why) = (plain(&missing.what), plain(&missing.why));
    if shape::is_secret("id", &why) {
        *removed.entry("missing".to_owned()).or_default() += 1;
        return MissingFact {
            what,
            why: "the reason may hold a secret and is not in the snapshot".to_owned(),
        };
    }
    MissingFact { what, why }
}

fn part_facts(part: &Part) -> PartFacts {
    PartFacts {
        name: part.name.clone(),
        bytes: part.bytes.len() as u64,
        sha256: manifest::sha256(&part.bytes),
    }
}

/// Foreign text, cut and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
