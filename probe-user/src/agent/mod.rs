//! `plsprobe agent`: the long-running half of a node. One engine sees, judges and remembers, on a thread of its own;
//! everyone else is told of what it judged by the [`feed`], and of how it is by the [`status`] board.

pub mod client;
pub mod clock;
pub mod feed;
pub mod flow;
mod history;
pub mod hubble;
mod keeper;
mod log;
pub mod metrics;
pub mod otlp;
pub mod proto;
mod record;
mod rights;
mod service;
pub mod serving;
mod session;
pub mod status;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::cli::Outcome;
use crate::sources::kubernetes::watch::{self, Watcher};
use crate::sys;
use crate::trace::Setup;
use crate::trace::session::Stop;
use feed::Feed;
use keeper::Keep;
use log::Log;
use record::Record;
use serving::{Neighbours, Open, Serving, Sources};
use status::Board;

/// Flows that Hubble's clients can ask for after they were told: some 2 MB.
const FEED_FLOWS: usize = 1024;
/// Commands that wait for the engine.
const COMMANDS: usize = 64;

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where and how to look.
    pub setup: Setup,
    /// TARGETs to watch, beside Services that ask for Private Link.
    pub watch: Vec<String>,
    /// Bytes of what it remembers.
    pub history_bytes: u64,
    /// Where it is to be asked.
    pub serving: serving::Options,
}

/// Runs until a signal ends it.
///
/// # Errors
///
/// When it cannot serve. Where nothing can be seen for now it says so, and looks again.
pub fn run(mut options: Options) -> Result<Outcome> {
    sys::give_memory_back();
    let engine = runtime()?;
    let log = Arc::new(Log::default());
    let feed = Arc::new(Feed::new(FEED_FLOWS));
    let board = Arc::new(Board::default());
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (neighbours, peers) = Neighbours::new(&options.serving);
    let sources = Sources {
        commands,
        feed: Arc::clone(&feed),
        board: Arc::clone(&board),
        log: Arc::clone(&log),
        peers,
    };
    let open = Open::new(&options.serving, &log)?;
    // After the socket was given to its group, before there is another thread.
    rights::limit(&log)?;
    watch_cluster(&mut options)?;
    let serving = Serving::start(open, options.serving, sources)?;
    let record = Record::new(feed, Arc::clone(&log), options.history_bytes);
    let keep = Keep {
        setup: options.setup,
        targets: options.watch,
        record: Rc::new(RefCell::new(record)),
        board,
        log,
        neighbours,
    };
    let kept = engine.block_on(async { Box::pin(keeper::run(keep, orders, Stop::new()?)).await });
    serving.stop()?;
    kept.map(|()| Outcome::Allowed)
}

/// Has the Kubernetes API watched, where it would be asked once.
fn watch_cluster(options: &mut Options) -> Result<()> {
    let asked = std::mem::take(&mut options.setup.live.cluster.kubernetes);
    let Some(access) = asked.access()? else { return Ok(()) };
    let of_node = watch::Options::of_node(options.serving.node.clone());
    // Who keeps the engine looks once a second whether there is anything new.
    let watcher = Watcher::start(access, of_node, || ())?;
    options.setup.cluster = Some(Arc::new(watcher));
    Ok(())
}

/// One thread: network namespaces belong to threads, and everything must happen in the caller's.
fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("failed to start an event loop")
}
