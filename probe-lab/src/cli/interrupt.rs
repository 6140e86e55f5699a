//! SIGINT, SIGTERM and SIGHUP as a request to end in order.
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Whether we were asked to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// Takes the three signals from now on.
    pub(super) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the signals' runtime")?;
        let guard = runtime.enter();
        let handler = |kind| signal(kind).context("failed to handle signals");
        let mut terminate = handler(SignalKind::terminate())?;
        let mut interrupt = handler(SignalKind::interrupt())?;
        let mut hangup = handler(SignalKind::hangup())?;
        drop(guard);
        let this = Self::default();
        let told = this.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {}
                    }
                });
                let (requested, changed) = &*told.0;
                *requested.lock().unwrap_or_else(PoisonError::into_inner) = true;
                changed.notify_all();
            })
            .context("failed to start the signals' thread")?;
        Ok(this)
    }

    /// Waits until asked to end.
    pub(super) fn wait(&self) {
        let (requested, changed) = &*self.0;
        let mut now = requested.lock().unwrap_or_else(PoisonError::into_inner);
        while !*now {
            now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until asked to end, this long at most.
    pub(super) fn wait_for(&self, time: Duration) {
        let (requested, changed) = &*self.0;
        let now = requested.lock().unwrap_or_else(PoisonError::into_inner);
        drop(changed.wait_timeout_while(now, time, |requested| !*requested));
    }

    /// Whether we were asked to end.
    pub(super) fn requested(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
