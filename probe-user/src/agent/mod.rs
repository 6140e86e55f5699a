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
mod service;
mod session;
pub mod status;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::cli::Outcome;
use crate::grpc::server::{Limits, Notice, Server};
use crate::grpc::unix::Socket;
use crate::sys;
use crate::trace::Setup;
use crate::trace::session::Stop;
use feed::Feed;
use keeper::{Command, Keep};
use log::Log;
use record::Record;
use service::Agent;
use status::Board;

/// Flows that Hubble's clients can ask for after they were told.
const FEED_FLOWS: usize = 4096;
/// Commands that wait for the engine.
const COMMANDS: usize = 64;

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where and how to look.
    pub setup: Setup,
    /// TARGETs to watch, beside Services that ask for Private Link.
    pub watch: Vec<String>,
    /// Where its socket is to be.
    pub socket: PathBuf,
    /// A group that may use it too, by number.
    pub socket_group: Option<u32>,
    /// The node's name.
    pub node: String,
    /// Bytes of what it remembers.
    pub history_bytes: u64,
}

/// Runs until a signal ends it.
///
/// # Errors
///
/// When it cannot serve. Where nothing can be seen for now it says so, and looks again.
pub fn run(options: Options) -> Result<Outcome> {
    sys::give_memory_back();
    let engine = runtime()?;
    let log = Arc::new(Log::default());
    let feed = Arc::new(Feed::new(FEED_FLOWS));
    let board = Arc::new(Board::default());
    let (commands, orders) = mpsc::channel(COMMANDS);
    let serving = Serving::start(&options, commands, &log, &feed, &board)?;
    let record = Record::new(feed, Arc::clone(&log), options.history_bytes);
    let keep = Keep {
        setup: options.setup,
        targets: options.watch,
        record: Rc::new(RefCell::new(record)),
        board,
        log,
    };
    let kept = engine.block_on(async { Box::pin(keeper::run(keep, orders, Stop::new()?)).await });
    serving.stop()?;
    kept.map(|()| Outcome::Allowed)
}

/// One thread: network namespaces belong to threads, and everything must happen in the caller's.
fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("failed to start an event loop")
}

/// The thread that answers everyone: a slow client costs it time, and the engine none.
struct Serving {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Serving {
    /// Opens what is to be open, and then serves.
    fn start(
        options: &Options,
        commands: mpsc::Sender<Command>,
        log: &Arc<Log>,
        _feed: &Arc<Feed>,
        _board: &Arc<Board>,
    ) -> Result<Self> {
        let runtime = runtime()?;
        let notice: Notice = {
            let log = Arc::clone(log);
            Arc::new(move |line| log.say(&line))
        };
        let agent = Arc::new(Agent::new(commands, options.node.clone()));
        let server = Server::new(vec![(service::NAME, agent as _)], Limits::AGENT, notice);
        let socket = runtime.block_on(Socket::bind(&options.socket, options.socket_group))?;
        log.say(&format!("serving on `{}`", options.socket.display()));
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    never = server.serve_unix(&socket.listener) => match never {},
                    // Whoever started us has gone, if it is an error.
                    _ = stopped => {}
                }
            });
            drop(socket);
            Ok(())
        };
        let thread = thread::Builder::new().name("serve".to_owned()).spawn(serve);
        Ok(Self { stop, thread: thread.context("failed to start a thread")? })
    }

    fn stop(self) -> Result<()> {
        // It has ended by itself, if it is an error: how, it says below.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the serving thread panicked"))?
    }
}
