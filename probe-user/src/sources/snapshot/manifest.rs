//! The first part of a snapshot: what it is, what is in it, and what is not.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{parts, shown};
use crate::sources::utc;

/// The first part's name.
pub(super) const NAME: &str = "manifest.json";
/// What the schema's text begins with.
const SCHEMA: &str = "plsprobe.snapshot/";
/// Another shape of what is there: older versions refuse it.
const MAJOR: u32 = 1;
/// Parts or fields were added: older versions read the rest and say so.
const MINOR: u32 = 1;
/// What comes between the facts and their digest; the digest covers every byte before.
const BEFORE_DIGEST: &str = ",\"digest\":\"";
/// What comes after the digest, which is the manifest's last field.
const AFTER_DIGEST: &str = "\"}\n";
/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;
/// Digits of the digest that name a snapshot.
const NAMING_DIGITS: usize = 12;

/// Everything known of a snapshot but its parts' bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `plsprobe.snapshot/1.1`: this format, its major and its minor number.
    pub schema: String,
    /// The version of plsprobe that wrote it.
    pub plsprobe: String,
    /// When it was read, and on what machine.
    #[serde(flatten)]
    pub circumstances: Circumstances,
    /// Cilium's version as its agent says it, if it was asked and did.
    pub cilium: Option<String>,
    /// Maps by pin name, also those of which no entries are stored.
    pub maps: BTreeMap<String, MapFacts>,
    /// What could not be read, or was changing while it was read, and why.
    pub missing: Vec<MissingFact>,
    /// How many values were taken out of the agent's answers because they may be secret, by their field's name.
    pub removed: BTreeMap<String, u64>,
    /// Every other part, in the archive's order.
    pub parts: Vec<PartFacts>,
}

/// When and where a snapshot was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// When reading began: wall clock, UTC.
    pub began: String,
    /// When reading had ended: wall clock, UTC.
    pub ended: String,
    /// When reading had ended: nanoseconds of `CLOCK_MONOTONIC`, in which conntrack lifetimes are counted.
    pub monotonic_ns: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's architecture.
    pub architecture: String,
}

/// A pinned map's facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFacts {
    /// Kernel id, 0 if unknown.
    pub id: u32,
    /// Type in bpftool's word, empty if unknown.
    #[serde(rename = "type")]
    pub map_type: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, as the map declares it.
    pub value_size: u32,
    /// Capacity, 0 if unknown.
    pub max_entries: u32,
    /// Number of entries, `None` if they are not stored.
    pub entries: Option<u64>,
    /// Bytes of a value as stored: of a per-CPU map the values of all CPUs.
    pub stored_value_size: u32,
    /// Of a policy map with a known layout the versions of Cilium that have it.
    pub layout: Option<String>,
}

/// A fact that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingFact {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A part of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// Its name in the archive.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// The field that is read before all others: a later manifest may have none of them.
#[derive(Deserialize)]
struct Head {
    schema: String,
    plsprobe: Option<String>,
}

/// This version's schema.
pub(super) fn schema() -> String {
    format!("{SCHEMA}{MAJOR}.{MINOR}")
}

/// SHA-256 in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use core::fmt::Write as _;
    let mut digits = String::with_capacity(DIGITS);
    for byte in Sha256::digest(bytes) {
        write!(digits, "{byte:02x}").expect("a string takes everything");
    }
    digits
}

impl Manifest {
    /// As it is stored, and its digest.
    pub(super) fn encode(&self) -> Result<(Vec<u8>, String)> {
        let mut bytes = serde_json::to_vec(self).context("failed to write the manifest")?;
        bytes.pop();
        let digest = sha256(&bytes);
        bytes.extend_from_slice([BEFORE_DIGEST, &digest, AFTER_DIGEST].concat().as_bytes());
        Ok((bytes, digest))
    }

    /// The manifest in `bytes`, and its digest.
    ///
    /// # Errors
    ///
    /// If it is none, of a later major schema, does not fit its digest, or says what cannot be.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, String)> {
        let head: Head = serde_json::from_slice(bytes).context("it is no manifest")?;
        head.check()?;
        let digest = check_digest(bytes)?;
        let manifest: Self = serde_json::from_slice(bytes).context("it is no manifest")?;
        manifest.check()?;
        Ok((manifest, digest))
    }

    /// How an answer names the snapshot: the same wherever its file lies and however it is called.
    pub(super) fn origin(&self, digest: &str) -> String {
        format!("snapshot {} of {}", &digest[..NAMING_DIGITS], self.circumstances.ended)
    }

    /// Whether it was written by a later version, which may have added to it.
    pub(super) fn is_newer(&self) -> bool {
        numbers(&self.schema).is_some_and(|(_, minor)| minor > MINOR)
    }

    fn check(&self) -> Result<()> {
        for time in [&self.circumstances.began, &self.circumstances.ended] {
            ensure!(
                utc::is_text(time),
                "found time `{}`, expected one such as `2026-11-25T15:00:00Z`",
                shown(time)
            );
        }
        for name in self.maps.keys() {
            ensure!(parts::is_sound(name) && !name.contains('/'), "`{}` is no map's name", shown(name));
        }
        // They are printed, and must not steer a terminal.
        for MissingFact { what, why } in &self.missing {
            let is_plain = !what.chars().chain(why.chars()).any(char::is_control);
            ensure!(is_plain, "found control characters in what is missing: `{}`", shown(what));
        }
        let mut names = std::collections::BTreeSet::from([NAME]);
        for PartFacts { name, sha256, .. } in &self.parts {
            ensure!(
                parts::is_sound(name),
                "found part name `{}`, expected one such as `maps/cilium_lxc.bin`",
                shown(name)
            );
            ensure!(names.insert(name), "it lists part `{name}` twice");
            let is_digest =
                sha256.len() == DIGITS && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            ensure!(is_digest, "it has no SHA-256 of part `{name}`");
            ensure!(
                self.is_newer() || parts::kind(name).is_some(),
                "it lists part `{name}`, which schema {} does not have",
                shown(&self.schema)
            );
        }
        Ok(())
    }
}

impl Head {
    fn check(&self) -> Result<()> {
        let Self { schema, plsprobe } = self;
        let writer = plsprobe.as_deref().map(shown).unwrap_or_default();
        match numbers(schema) {
            Some((MAJOR, _)) => Ok(()),
            Some((major, _)) if major > MAJOR => bail!(
                "it has schema `{}` of plsprobe {writer}, expected `{SCHEMA}{MAJOR}`; \
                 read it with plsprobe {writer} or later",
                shown(schema)
            ),
            _ => bail!("found schema `{}`, expected `{SCHEMA}{MAJOR}`", shown(schema)),
        }
    }
}

/// Major and minor number of a schema.
fn numbers(schema: &str) -> Option<(u32, u32)> {
    let (major, minor) = schema.strip_prefix(SCHEMA)?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The digest that ends a manifest, if what is before fits it.
fn check_digest(bytes: &[u8]) -> Result<String> {
    let rest = bytes.strip_suffix(AFTER_DIGEST.as_bytes());
    let split = rest.and_then(|rest| rest.split_at_checked(rest.len().checked_sub(DIGITS)?));
    let parts = split.and_then(|(rest, digest)| {
        Some((rest.strip_suffix(BEFORE_DIGEST.as_bytes())?, core::str::from_utf8(digest).ok()?))
    });
    let Some((facts, found)) = parts else {
        bail!("it does not end with its digest, which covers every byte before");
    };
    let expected = sha256(facts);
    ensure!(found == expected, "found digest `{}`, expected `{expected}`; it was changed", shown(found));
    Ok(expected)
}
