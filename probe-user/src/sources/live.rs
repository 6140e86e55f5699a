//! Reads this node. (Being written beside this; the API is final.)

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::raw::RawNode;

/// Where a live node's facts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOptions {
    /// The BPF file system with Cilium's maps.
    pub bpffs: PathBuf,
    /// The agent's run directory, with its sockets.
    pub cilium_run: PathBuf,
}

/// A live node's facts and what they cost.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// The facts.
    pub node: RawNode,
    /// How long each part took.
    pub took: Vec<(String, Duration)>,
}

/// Reads this node.
///
/// # Errors
///
/// Always, until this lands.
pub fn read(options: &LiveOptions) -> Result<LiveNode> {
    bail!("reading a live node from `{}` is not built yet; use `--from FOLDER`", options.bpffs.display())
}
