//! `plsprobe trace`: records in, one judged flow after another out.

pub mod advice;
mod coverage;
pub(crate) mod engine;
mod gaps;
pub(crate) mod hub;
mod intake;
pub mod judge;
pub mod kernel;
pub(crate) mod listener;
pub(crate) mod neighbours;
mod reading;
pub mod scope;
pub(crate) mod session;
mod streams;
pub mod summary;
mod tally;
mod verdicts;
pub(crate) mod view;
pub mod watch;
pub mod watched;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_model::path::Capacity;
use probe_model::world::World;

use crate::attach::{Expression, PortRange};
use crate::cli::{Outcome, Output};
use crate::sources::LiveOptions;
use crate::sources::kubernetes::watch::Watcher;
use crate::sys;

pub use summary::Summary;

/// What is asked of packets.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// TARGET.
    pub dst: String,
    /// SRCs; empty is any.
    pub src: Vec<String>,
    /// Ports and protocols at the target or its service; empty is any.
    pub ports: Vec<PortRange>,
    /// What packets must match besides.
    pub expression: Option<Expression>,
}

/// Where and how to look.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The uplink, instead of the default route's interface.
    pub interface: Option<String>,
    /// Attach nothing to tc.
    pub no_tc: bool,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
    /// Flows and packets kept at most.
    pub capacity: Capacity,
    /// Where Cilium is.
    pub live: LiveOptions,
    /// What keeps the cluster's objects up to date, if anything does; else they are asked for once.
    pub cluster: Option<Arc<Watcher>>,
}

impl Setup {
    /// Puts what is known of the cluster now in the place of what was known before.
    fn put_cluster_into(&self, world: &mut World) {
        if let Some(cluster) = &self.cluster {
            cluster.put_into(world);
        }
    }
}

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of packets.
    pub ask: Ask,
    /// Where and how to look.
    pub setup: Setup,
    /// When to end.
    pub duration: Duration,
    /// After how many flows to end.
    pub count: Option<u64>,
    /// How to print.
    pub output: Output,
}

/// Traces until time, count or a signal ends it. Whatever ends it, our programs are detached.
///
/// # Errors
///
/// When there is no Cilium, no such target, no privilege, or output fails.
pub fn run(options: &Options) -> Result<Outcome> {
    sys::give_memory_back();
    // One thread: network namespaces belong to threads, and everything must happen in the caller's.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    runtime.block_on(session::run(options))
}
