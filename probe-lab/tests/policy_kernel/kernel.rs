//! The kernel's side: the eBPF object, its maps, and `BPF_PROG_TEST_RUN`.
use std::io;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, include_bytes_aligned};
use probe_lab::standin::{RawMap, load_again};

use crate::case::{Entry, Layout};
use crate::slot::{Answer, Batch, Query, SLOTS, Slot};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookups"));

/// The least that the kernel takes for a packet.
const ETHERNET_HEADER: [u8; 14] = [0; 14];

// SAFETY: `repr(C)`, integers only, and asserted to leave no hole; every value is valid.
unsafe impl aya::Pod for Batch {}

/// Why the kernel cannot be asked.
pub(crate) fn unavailable() -> Option<String> {
    OBJECT
        .is_empty()
        .then(|| "built without the eBPF lookups; run `cargo xtask test`".to_owned())
        .or_else(probe_lab::unavailable)
}

/// One layout's lookup, loaded, with a policy map of its own.
pub(crate) struct Kernel {
    layout: Layout,
    ebpf: Ebpf,
    policy: RawMap,
    batch: Array<MapData, Batch>,
}

impl Kernel {
    /// Loads the lookup of `layout`.
    pub(crate) fn load(layout: Layout) -> Result<Self> {
        let mut ebpf = Ebpf::load(OBJECT).context("failed to load the eBPF lookups")?;
        let (program, map) = layout.program_and_map();
        let policy = match ebpf.take_map(map).with_context(|| format!("no map `{map}`"))? {
            Map::HashMap(data) | Map::LpmTrie(data) => RawMap::new(data)?,
            other => anyhow::bail!("`{map}` is {other:?}"),
        };
        let batch = ebpf.take_map("BATCH").context("no map `BATCH`")?.try_into()?;
        let loaded: &mut SchedClassifier =
            ebpf.program_mut(program).with_context(|| format!("no program `{program}`"))?.try_into()?;
        load_again(|| loaded.load()).with_context(|| format!("failed to load `{program}`"))?;
        Ok(Self { layout, ebpf, policy, batch })
    }

    /// Makes the policy map hold `entries` and nothing else.
    pub(crate) fn fill(&self, entries: &[Entry]) -> Result<()> {
        self.policy.clear()?;
        for entry in entries {
            self.policy.update(&entry.key(self.layout), &entry.value(self.layout))?;
        }
        Ok(())
    }

    /// Asks the kernel.
    pub(crate) fn ask(&mut self, queries: &[Query]) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(queries.len());
        for some in queries.chunks(SLOTS) {
            let done = self.run(some)?;
            answers.extend(done.slots[..some.len()].iter().map(|slot| without_self(slot.answer)));
        }
        Ok(answers)
    }

    /// One batch of no more than [`SLOTS`] questions.
    fn run(&mut self, queries: &[Query]) -> Result<Batch> {
        let mut batch = Batch { next: 0, slots: [Slot::default(); SLOTS] };
        for (slot, query) in batch.slots.iter_mut().zip(queries) {
            slot.query = *query;
        }
        let (name, _) = self.layout.program_and_map();
        let program: &SchedClassifier = self.ebpf.program(name).context("loaded above")?.try_into()?;
        loop {
            self.batch.set(0, batch, 0)?;
            let options = TestRunOptions {
                data_in: Some(&ETHERNET_HEADER),
                repeat: queries.len() as u32,
                ..TestRunOptions::default()
            };
            match program.test_run(options) {
                Ok(run) => ensure!(run.return_value == 0, "`{name}` returned {}", run.return_value),
                Err(error) if is_interrupted(&error) => continue,
                Err(error) => return Err(error).with_context(|| format!("failed to run `{name}`")),
            }
            let done = self.batch.get(&0, 0)?;
            ensure!(
                done.next as usize == queries.len(),
                "`{name}` answered {} of {} questions",
                done.next,
                queries.len()
            );
            return Ok(done);
        }
    }
}

/// For identity 0 both lookups find the same entry, which did not lose to itself.
fn without_self(answer: Answer) -> Answer {
    let loser = if answer.loser == answer.chosen { 0 } else { answer.loser };
    Answer { loser, ..answer }
}

/// The kernel gives up a test run while a signal is pending.
fn is_interrupted(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::Interrupted)
}
