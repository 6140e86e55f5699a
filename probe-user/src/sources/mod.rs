//! Where a World comes from: a live node, a snapshot or a folder of recordings, each as one [`raw::RawNode`].

pub mod addresses;
pub mod agent;
pub mod assemble;
pub mod azure;
mod beyond;
pub mod btf;
pub mod bugtool;
pub mod changes;
pub mod classifiers;
pub mod cluster;
mod command;
pub mod features;
pub mod folder;
pub mod http;
pub mod hubble;
pub mod in_use;
pub mod kubernetes;
pub mod links;
pub mod live;
pub mod lookups;
pub mod maps;
pub mod monitor;
pub mod namespaces;
pub mod netfilter;
mod netlink;
pub mod network_text;
pub mod nf_conntrack;
pub mod nft;
mod pick;
pub mod policy_files;
pub mod programs;
pub mod raw;
pub mod rest;
pub mod snapshot;
pub mod unusable;
pub mod utc;
pub mod yaml;

#[cfg(test)]
mod testing;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use probe_model::world::World;

pub use live::LiveOptions;
use lookups::Lookups;
use raw::RawNode;

/// How much of a file's beginning tells what it is: a block of a tar.
const BEGIN: u64 = 512;
/// What `--from` takes beside `live`.
const EXPECTED: &str =
    "a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/";

/// `--from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// This node.
    Live,
    /// A snapshot or a folder of recordings: what is there decides.
    Path(PathBuf),
}

impl std::str::FromStr for From {
    type Err = std::convert::Infallible;

    /// `live`, or a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "live" { Self::Live } else { Self::Path(text.into()) })
    }
}

/// Undecoded facts from `from`.
///
/// # Errors
///
/// If there is no Cilium, or no snapshot or recording, or it cannot be read.
pub fn raw(from: &From, live: &LiveOptions) -> Result<RawNode> {
    match from {
        From::Live => live::read_whole(live).map(|live| live.node),
        From::Path(path) => {
            live.cluster.check_recorded(path)?;
            let mut node = read_path(path)?;
            live.cluster.add_given(&mut node);
            Ok(node)
        }
    }
}

/// Undecoded facts from what is at `path`, by what is in it: its name says nothing.
fn read_path(path: &Path) -> Result<RawNode> {
    let shown = path.display();
    let found =
        path.metadata().with_context(|| format!("failed to look for `{shown}`; expected {EXPECTED}"))?;
    if found.is_dir() {
        return folder::read(path);
    }
    // A pipe or a device may never end.
    if !found.is_file() {
        bail!("`{shown}` is neither a plain file nor a folder; expected {EXPECTED}");
    }
    let mut begin = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BEGIN).read_to_end(&mut begin))
        .with_context(|| format!("failed to read `{shown}`"))?;
    if snapshot::begins_like(&begin) {
        return snapshot::read(path);
    }
    if bugtool::is_bugtool(path)? {
        return bugtool::read(path);
    }
    let what = if begin.is_empty() { "is empty" } else { "is no snapshot" };
    bail!("`{shown}` {what}; expected {EXPECTED}")
}

/// Everything known, from `from`.
///
/// # Errors
///
/// As [`raw()`].
pub fn world(from: &From, live: &LiveOptions) -> Result<World> {
    let mut node = match from {
        From::Live => live::read(live)?.node,
        From::Path(_) => raw(from, live)?,
    };
    // Nobody looks anything up in them.
    node.missing.append(&mut node.unread);
    Ok(assemble::assemble(&node))
}

/// The same for single questions: each has to look up what it needs of the maps that were too large to be read.
///
/// # Errors
///
/// As [`raw()`].
pub fn world_to_ask(from: &From, live: &LiveOptions) -> Result<(World, Lookups)> {
    let (node, lookups) = match from {
        From::Live => live::read(live).map(|live| (live.node, live.lookups))?,
        From::Path(_) => (raw(from, live)?, Lookups::default()),
    };
    Ok((assemble::assemble(&node), lookups))
}
