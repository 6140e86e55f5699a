//! One loaded copy of the stand-in's eBPF object.
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::maps::ProgramArray;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};

use super::config::Config;
use super::contents::policy_map;
use super::tcx;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/standin"));

// SAFETY: `repr(C)`, only `u32` and byte fields that leave no padding; every value is valid.
unsafe impl aya::Pod for Config {}

/// The map in which the programs count their packets.
const SEEN: &str = "standin_seen";

/// Where that map is pinned: beside Cilium's folder, so that this looks as on a node.
pub(super) fn seen_pin(globals: &Path) -> PathBuf {
    globals.with_file_name(SEEN)
}

/// Whether the crate was built without it.
pub(super) fn is_empty() -> bool {
    OBJECT.is_empty()
}

/// A copy with its own constants and its own policy and tail-call maps; all other maps are shared by their pins.
#[derive(Debug)]
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads a copy; creates and pins the maps that are not there yet.
    pub(super) fn load(globals: &Path, config: Config, endpoint_id: u16, calls: &str) -> Result<Self> {
        if is_empty() {
            bail!("built without the stand-in's eBPF object; run `cargo xtask test`");
        }
        let ebpf = EbpfLoader::new()
            .default_map_pin_directory(globals)
            .map_pin_path("cilium_policy_00000", globals.join(policy_map(endpoint_id)))
            .map_pin_path("cilium_calls_00000", globals.join(calls))
            .map_pin_path(SEEN, seen_pin(globals))
            .override_global("CONFIG", &config, true)
            .load(OBJECT)
            .with_context(|| format!("failed to load the stand-in for endpoint `{endpoint_id}`"))?;
        Ok(Self { ebpf })
    }

    /// Hands a program to the kernel.
    pub(super) fn program(&mut self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.loaded(name)?.fd()?.as_fd())
    }

    /// Hands a program to the kernel and attaches it by tcx in the calling thread's network namespace: by the link
    /// that is pinned there, or behind all others by a new one.
    pub(super) fn attach_tcx(&mut self, name: &str, hook: &tcx::Hook) -> Result<()> {
        hook.replace(self.loaded(name)?)
    }

    fn loaded(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("failed to find program `{name}` in the stand-in's object"))?
            .try_into()?;
        load_again(|| program.load()).with_context(|| format!("failed to load program `{name}`"))?;
        Ok(program)
    }

    /// Makes the object's policy program the one that packets to the endpoint are tail-called into.
    pub(super) fn set_policy_program(&mut self, endpoint_id: u16) -> Result<()> {
        let fd = self.loaded("handle_policy")?.fd()?.try_clone()?;
        let map = self.ebpf.map_mut("cilium_call_policy").context("failed to find `cilium_call_policy`")?;
        ProgramArray::try_from(map)?
            .set(u32::from(endpoint_id), &fd, 0)
            .with_context(|| format!("failed to put endpoint `{endpoint_id}` into `cilium_call_policy`"))
    }
}

/// Loads a program, again if the kernel was interrupted: its verifier gives up with EAGAIN while a signal is pending.
///
/// # Errors
///
/// The kernel refuses it, or was interrupted every time.
pub fn load_again(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
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
