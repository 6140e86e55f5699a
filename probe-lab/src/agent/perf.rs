//! Reads the stand-in's `cilium_events` and passes it on, as the agent does with the datapath's.
//!
//! Only the lab may: on a real node that buffer has one reader, the agent.
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Map, MapData, PerfEventArray};
use probe_model::cilium::gob::Payload;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use super::monitor::Publisher;

/// Pages per CPU, as `nodeMonitor.npages` of the recorded agent says.
const PAGES: usize = 64;

/// Reads the perf event array pinned at `pin` for as long as there are listeners, each time there are some.
///
/// # Errors
///
/// The map cannot be opened or read, or the monitor has gone.
pub(crate) async fn forward(pin: &Path, publisher: Publisher) -> Result<()> {
    let mut listeners = publisher.listeners();
    loop {
        listeners.wait_for(|count| *count > 0).await.context("the monitor has gone")?;
        let mut readers = open(pin, &publisher)?;
        tokio::select! {
            changed = listeners.wait_for(|count| *count == 0) => { changed.context("the monitor has gone")?; }
            Some(ended) = readers.join_next() => ended.context("a perf reader panicked")??,
        }
    }
}

/// One reader per CPU; dropping them closes their buffers.
fn open(pin: &Path, publisher: &Publisher) -> Result<JoinSet<Result<()>>> {
    let map = MapData::from_pin(pin).with_context(|| format!("failed to open `{}`", pin.display()))?;
    let mut array = PerfEventArray::try_from(Map::PerfEventArray(map))
        .with_context(|| format!("failed to use `{}`", pin.display()))?;
    let mut readers = JoinSet::new();
    for cpu in aya::util::online_cpus().map_err(|(what, err)| anyhow!("failed to read `{what}`: {err}"))? {
        let buffer = array
            .open(cpu, Some(PAGES))
            .with_context(|| format!("failed to open the perf buffer of CPU {cpu}"))?;
        readers.spawn(read(cpu, buffer, publisher.clone()));
    }
    Ok(readers)
}

async fn read(cpu: u32, buffer: PerfEventArrayBuffer<MapData>, publisher: Publisher) -> Result<()> {
    let cpu = i64::from(cpu);
    // SAFETY: `AsyncFd` owns the buffer, which keeps its one descriptor open until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(buffer, Interest::READABLE) };
    let mut buffer = registered.context("failed to wait for a perf buffer")?;
    loop {
        let mut guard = buffer.readable_mut().await.context("failed to wait for a perf buffer")?;
        guard.get_inner_mut().for_each(|event| match event {
            PerfEvent::Sample { head, tail } => {
                publisher.publish(&Payload::Sample { cpu, data: [head, tail].concat() });
            }
            PerfEvent::Lost { count } => publisher.publish(&Payload::Lost { cpu, count }),
        });
        guard.clear_ready();
    }
}
