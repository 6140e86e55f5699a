//! The maps, read beside the records.

use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Error, Result};
use probe_model::world::World;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::sources::assemble::assemble;
use crate::sources::live::{self, LiveNode, LiveOptions};

/// The maps, and what they say.
pub(super) type Maps = Box<(LiveNode, World)>;

/// Reads them anew, as far as they may differ from `last`.
///
/// # Errors
///
/// As [`live::refresh`].
pub(super) fn read(options: &LiveOptions, last: &LiveNode) -> Result<(LiveNode, World)> {
    let node = live::refresh(options, last)?;
    let world = assemble(&node.node);
    Ok((node, world))
}

/// A reading of the maps that is under way, on a thread of its own: on a busy node it takes longer than the ring buffer
/// lasts. Nobody waits for the thread if this is dropped.
pub(super) struct Reading {
    began: Instant,
    outcome: oneshot::Receiver<Result<Maps>>,
}

impl Reading {
    /// Begins it.
    pub(super) fn begin(options: LiveOptions, last: Arc<LiveNode>) -> Self {
        let (teller, outcome) = oneshot::channel();
        let began = Instant::now();
        // Whoever asked may be gone.
        let read = move || drop(teller.send(read(&options, &last).map(Box::new)));
        // Without a thread nobody tells, which is an error to whoever waits.
        drop(thread::Builder::new().name("maps".to_owned()).spawn(read));
        Self { began, outcome }
    }

    /// When it began.
    pub(super) const fn began(&self) -> Instant {
        self.began
    }

    /// What was read. To cancel it loses nothing.
    ///
    /// # Errors
    ///
    /// As [`read`], or when it could not be begun.
    pub(super) async fn outcome(&mut self) -> Result<Maps> {
        (&mut self.outcome).await.map_err(Error::from).context("the thread that reads the maps ended")?
    }
}
