//! Reading `cilium_events`, which here is ours: nobody loses an event by it.
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Map, MapData, PerfEventArray};
use aya::util::online_cpus;

/// As Cilium's agent allots per CPU.
const PAGES: usize = 64;

/// Every CPU's notifications since it was made.
pub struct EventReader {
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
}

pub(super) fn open(globals: &Path) -> Result<PerfEventArray<MapData>> {
    let pin = globals.join("cilium_events");
    let map = MapData::from_pin(&pin).with_context(|| format!("failed to open `{}`", pin.display()))?;
    PerfEventArray::try_from(Map::PerfEventArray(map)).context("failed to open `cilium_events`")
}

impl EventReader {
    /// Opens a perf buffer per CPU.
    ///
    /// # Errors
    ///
    /// The kernel refuses one.
    pub fn new(mut events: PerfEventArray<MapData>) -> Result<Self> {
        let cpus = online_cpus().map_err(|(path, err)| anyhow::anyhow!("failed to read `{path}`: {err}"))?;
        let buffers = cpus
            .into_iter()
            .map(|cpu| {
                events.open(cpu, Some(PAGES)).with_context(|| format!("failed to open CPU {cpu}'s events"))
            })
            .collect::<Result<_>>()?;
        Ok(Self { buffers })
    }

    /// What has come since the last call: for each CPU in order, with up to seven bytes of padding behind the packet.
    ///
    /// # Errors
    ///
    /// Events were lost: what came would be taken for all there was.
    pub fn drain(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut samples = Vec::new();
        let mut lost = 0;
        for buffer in &mut self.buffers {
            buffer.for_each(|event| match event {
                PerfEvent::Sample { head, tail } => samples.push([head, tail].concat()),
                PerfEvent::Lost { count } => lost += count,
            });
        }
        anyhow::ensure!(lost == 0, "{lost} notifications were lost; drain more often");
        Ok(samples)
    }
}
