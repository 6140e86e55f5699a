//! Where a World comes from: a live node or a folder of recordings, both as one [`raw::RawNode`].

pub mod addresses;
pub mod agent;
pub mod assemble;
pub mod btf;
pub mod classifiers;
pub mod features;
pub mod folder;
pub mod in_use;
pub mod live;
pub mod maps;
pub mod monitor;
pub mod netfilter;
mod netlink;
pub mod network_text;
pub mod programs;
pub mod raw;
pub mod rest;
pub mod unusable;

#[cfg(test)]
mod testing;

use std::path::PathBuf;

use anyhow::Result;
use probe_model::world::World;

pub use live::LiveOptions;
use raw::RawNode;

/// `--from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// This node.
    Live,
    /// A folder of recordings.
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
/// If there is no Cilium, or no recording, or it cannot be read.
pub fn raw(from: &From, live: &LiveOptions) -> Result<RawNode> {
    match from {
        From::Live => live::read_whole(live).map(|live| live.node),
        From::Path(folder) => folder::read(folder),
    }
}

/// Everything known, from `from`.
///
/// # Errors
///
/// As [`raw()`].
pub fn world(from: &From, live: &LiveOptions) -> Result<World> {
    let node = match from {
        From::Live => live::read(live)?.node,
        From::Path(_) => raw(from, live)?,
    };
    Ok(assemble::assemble(&node))
}
