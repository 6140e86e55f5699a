//! `plsprobe trace`: records in, one judged flow after another out.

pub mod advice;
mod gaps;
pub mod judge;
pub mod kernel;
pub(crate) mod neighbours;
pub mod scope;
mod session;
mod tally;
mod verdicts;
pub mod watch;
pub mod watched;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::attach::{Expression, PortRange};
use crate::cli::{Outcome, Output};
use crate::sources::LiveOptions;
use crate::sys;

pub use session::Summary;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// TARGET.
    pub dst: String,
    /// SRCs; empty is any.
    pub src: Vec<String>,
    /// Ports and protocols at the target or its service; empty is any.
    pub ports: Vec<PortRange>,
    /// What packets must match besides.
    pub expression: Option<Expression>,
    /// When to end.
    pub duration: Duration,
    /// After how many flows to end.
    pub count: Option<u64>,
    /// The uplink, instead of the default route's interface.
    pub interface: Option<String>,
    /// Attach nothing to tc.
    pub no_tc: bool,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
    /// Where Cilium is.
    pub live: LiveOptions,
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
