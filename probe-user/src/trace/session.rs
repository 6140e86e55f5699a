//! A trace of the command line: one question, until time, count or a signal ends it.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::Options;
use super::hub::{Hub, Node};
use super::listener::{Printer, Terminal};
use super::scope::Scope;
use super::view::View;
use crate::cli::Outcome;

/// The only view.
const ONLY: u64 = 0;

/// What tells a trace to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Time,
    /// As many flows as were asked for, or nobody reads them.
    Done,
    Signal,
}

pub(super) async fn run(options: &Options) -> Result<Outcome> {
    let mut stop = Stop::new()?;
    let started = Instant::now();
    let Options { ask, setup, duration, count, output } = options.clone();
    let node = Node::read(&setup)?;
    let scope = Scope::new(&node.world, &ask, &setup)?;
    let listener = Box::new(Printer { output, paper: Terminal });
    let view = View::new(ask, scope, count, listener).started_at(started);
    let mut hub = Hub::for_one(setup, node, view).await?;
    hub.announce(ONLY);
    let end = follow(&mut hub, &mut stop, started + duration).await;
    let broken = hub.view_mut(ONLY).and_then(View::take_error);
    let closed = hub.close().into_iter().next().map(|(_, closed)| closed);
    let end = end?;
    if let Some(error) = broken {
        return Err(error);
    }
    let summary = closed.context("the trace was lost")??;
    let nothing = summary.flows == [0; 3];
    Ok(if end == End::Signal && nothing { Outcome::Interrupted } else { summary.outcome() })
}

async fn follow(hub: &mut Hub, stop: &mut Stop, until: Instant) -> Result<End> {
    loop {
        let woken = tokio::select! {
            () = stop.requested() => return Ok(End::Signal),
            () = sleep_until(until) => return Ok(End::Time),
            woken = hub.wait() => woken,
        };
        hub.turn(woken).await?;
        if hub.view(ONLY).is_none_or(View::is_done) {
            return Ok(End::Done);
        }
    }
}

/// Ctrl-C and SIGTERM; handled from the start, so that nothing is attached that is not detached.
pub(crate) struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self> {
        let handle = |kind| signal(kind).context("failed to handle signals");
        Ok(Self { interrupt: handle(SignalKind::interrupt())?, terminate: handle(SignalKind::terminate())? })
    }

    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
