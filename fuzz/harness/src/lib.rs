//! What the fuzz targets do with their bytes, and where their seeds come from. Never shipped.
//!
//! A crate of the main workspace, so that `cargo test` replays every crash ever found, and the seeds, without libFuzzer.
//! It uses what the two libraries give to everybody: no door is opened for the fuzzer.
#![forbid(unsafe_code)]

mod bugtool;
mod container;
mod events;
mod folder;
mod gob;
mod maps;
mod naive;
mod node_text;
mod policy_map;
mod proxy;
mod records;
mod rest;
mod seeds;
mod snapshot;
mod whole;

pub use bugtool::bugtool;
pub use events::events;
pub use folder::dump_folder;
pub use gob::gob;
pub use maps::maps;
pub use node_text::node_text;
pub use policy_map::policy_map;
pub use proxy::proxy;
pub use rest::rest;
pub use snapshot::snapshot;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, in `fuzz/targets/`, in `fuzz/regressions/` and on the command line.
    pub name: &'static str,
    /// What it does with its bytes; a bug is a panic.
    pub run: fn(&[u8]),
    /// Inputs made of the recordings, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every fuzz target.
pub const TARGETS: &[Target] = &[
    Target { name: "bugtool", run: bugtool, seeds: seeds::bugtool },
    Target { name: "dump_folder", run: dump_folder, seeds: seeds::dump_folder },
    Target { name: "events", run: events, seeds: seeds::events },
    Target { name: "gob", run: gob, seeds: seeds::gob },
    Target { name: "maps", run: maps, seeds: seeds::maps },
    Target { name: "node_text", run: node_text, seeds: seeds::node_text },
    Target { name: "policy_map", run: policy_map, seeds: policy_map::seeds },
    Target { name: "proxy", run: proxy, seeds: proxy::seeds },
    Target { name: "rest", run: rest, seeds: seeds::rest },
    Target { name: "snapshot", run: snapshot, seeds: seeds::snapshot },
];
