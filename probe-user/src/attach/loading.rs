//! Has the kernel verify our programs, several at once: it does so on the CPU of whoever asks, some milliseconds for each.
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Result, anyhow};
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};

/// CPUs of a node that are kept from other work, at most, for as long as that takes.
const THREADS_MAX: usize = 4;

/// What is to be loaded, by our programs' names: each with the tracepoint or function that it is typed for, if it is.
pub(super) type Wanted = BTreeMap<String, &'static str>;

/// Loads programs, each once.
pub(super) struct Loader<'e> {
    ebpf: &'e mut Ebpf,
    types: Btf,
    /// What came of those that were loaded side by side, until it is asked for.
    outcomes: BTreeMap<String, Result<()>>,
}

impl<'e> Loader<'e> {
    /// Loads those that are wanted, side by side; what came of each says [`Self::load`].
    pub(super) fn new(ebpf: &'e mut Ebpf, types: Btf, wanted: &Wanted) -> Self {
        let programs = ebpf.programs_mut().filter_map(|(name, program)| {
            let target = wanted.get(name)?;
            Some((name.to_owned(), *target, program))
        });
        let queue = Mutex::new(programs.collect::<Vec<_>>());
        let outcomes = Mutex::new(BTreeMap::new());
        let work = || {
            while let Some((name, target, program)) = next(&queue) {
                let outcome = load(program, target, &types);
                locked(&outcomes).insert(name, outcome);
            }
        };
        let threads = thread::available_parallelism().map_or(1, |cpus| cpus.get().min(THREADS_MAX));
        thread::scope(|scope| {
            for _ in 1..threads {
                // Where there can be no thread this one does it all.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        drop(queue);
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        Self { ebpf, types, outcomes }
    }

    /// The program, loaded for a tracepoint or function if its kind asks for one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or there is none of that name.
    pub(super) fn load(&mut self, name: &str, target: &str) -> Result<&mut Program> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
        self.outcomes.remove(name).unwrap_or_else(|| load(program, target, &self.types))?;
        Ok(program)
    }
}

fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    locked(queue).pop()
}

/// Nothing that panics holds it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(program: &mut Program, target: &str, types: &Btf) -> Result<()> {
    let loaded = load_again(|| match program {
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::KProbe(program) => program.load(),
        Program::FEntry(program) => program.load(target, types),
        Program::BtfTracePoint(program) => program.load(target, types),
        _ => Err(ProgramError::UnexpectedProgramType),
    });
    match loaded {
        // One kprobe serves both families.
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(error) => Err(describe_load(error)),
    }
}

pub(super) fn no_program(name: &str) -> anyhow::Error {
    anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe")
}

/// Loads a program, again if the kernel was interrupted: its verifier gives up with EAGAIN while a signal is pending.
pub(super) fn load_again(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 10;
    let interrupted = |error: &ProgramError| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == std::io::ErrorKind::WouldBlock);
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if interrupted(&error) => {}
            done => return done,
        }
    }
    load()
}

/// The verifier's log is long; its last line says what it objects to.
pub(super) fn describe_load(error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError { io_error, verifier_log } = &error {
        let log = verifier_log.to_string();
        let is_summary = |line: &&str| {
            line.is_empty()
                || ["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|begin| line.starts_with(begin))
        };
        let last = log.lines().rev().find(|line| !is_summary(line));
        return match last {
            Some(line) => anyhow!("the kernel refused to load it: {io_error}: {line}"),
            None => anyhow!("the kernel refused to load it: {io_error}"),
        };
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::tests::{NODE, about, in_runtime, settings};
    use crate::attach::{kernel_types, object};

    #[test]
    fn what_is_wanted_is_loaded_before_it_is_asked_for() {
        if !object::is_built_in() || !std::path::Path::new(crate::sources::btf::VMLINUX).exists() {
            fixtures::skip!("no eBPF object, or no kernel BTF");
            return;
        }
        let settings = settings(about(NODE));
        let mut ebpf = match object::load(&settings) {
            Ok(ebpf) => ebpf,
            Err(error) => {
                fixtures::skip!("no privilege to load programs ({error:#})");
                return;
            }
        };
        let wanted = ["plsprobe_retransmit", "plsprobe_look_uplink_in", "plsprobe_kfree_btf"];
        let target = |name: &str| if name.ends_with("_btf") { "kfree_skb" } else { "" };
        let types = kernel_types::of_hooks(&settings.type_ids).unwrap();
        let is_loaded = |ebpf: &Ebpf, name| ebpf.program(name).unwrap().fd().is_ok();
        in_runtime(|| {
            let all = wanted.map(|name| (name.to_owned(), target(name))).into();
            let mut loader = Loader::new(&mut ebpf, types, &all);
            assert!(wanted.iter().all(|name| is_loaded(loader.ebpf, name)));
            assert!(!is_loaded(loader.ebpf, "plsprobe_reset"));
            // Once more, and one that was not wanted.
            for name in wanted.into_iter().chain(["plsprobe_reset"]) {
                loader.load(name, target(name)).map(drop).unwrap();
                loader.load(name, target(name)).map(drop).unwrap();
            }
            let error = loader.load("plsprobe_none", "").map(drop).unwrap_err().to_string();
            assert!(error.contains("no program `plsprobe_none`"), "{error}");
        });
        // A refusal is told to whoever asks.
        let wanted = Wanted::from([("plsprobe_queued_btf".to_owned(), "no_such_tracepoint")]);
        let types = kernel_types::of_hooks(&settings.type_ids).unwrap();
        let mut loader = Loader::new(&mut ebpf, types, &wanted);
        assert!(loader.load("plsprobe_queued_btf", "no_such_tracepoint").is_err());
    }
}
