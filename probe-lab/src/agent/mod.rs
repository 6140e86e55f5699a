//! A stand-in for the agent: what it computes from a policy, and the two sockets it answers on.
use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub mod answers;
pub mod gob;
pub mod map_entries;
pub mod monitor;
mod perf;
pub mod realize;
pub mod rest;

use monitor::{Monitor, Publisher};
use rest::{Rest, Source};

/// The agent's two sockets, while it runs.
#[derive(Debug)]
pub struct Agent {
    monitor: Monitor,
    rest: Rest,
    forwarding: AbortHandle,
}

impl Agent {
    /// Starts it with its sockets in `run_dir`; events come from `cilium_events` below `bpffs`, once it is pinned
    /// there.
    ///
    /// # Errors
    ///
    /// A socket cannot be bound.
    pub fn start(runtime: &Handle, run_dir: &Path, bpffs: &Path, source: Source) -> Result<Self> {
        let monitor = Monitor::start(runtime, &run_dir.join("monitor1_2.sock"))?;
        let rest = Rest::start(runtime, &run_dir.join("cilium.sock"), source)?;
        let forwarding =
            runtime.spawn(forward(bpffs.join("tc/globals/cilium_events"), monitor.publisher().clone()));
        Ok(Self { monitor, rest, forwarding: forwarding.abort_handle() })
    }

    /// The REST socket.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// Sends events of the caller's choice to every listener of the monitor socket.
    pub fn publisher(&self) -> &Publisher {
        self.monitor.publisher()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.forwarding.abort();
    }
}

/// Forwards the datapath's events, if there is a datapath.
async fn forward(pin: PathBuf, publisher: Publisher) {
    if let Err(err) = perf::forward(&pin, publisher).await {
        eprintln!("plsprobe-lab: the monitor socket gets no events: {err:#}");
    }
}
