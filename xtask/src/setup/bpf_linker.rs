//! bpf-linker: links the eBPF objects.

use std::path::PathBuf;

use anyhow::Result;

use super::cargo_install::Program;
use crate::project::Project;

/// 0.11 and later want the development files of LLVM 23; this one uses rustc's own libLLVM.
pub(super) const PROGRAM: Program =
    Program { name: "bpf-linker", version: "0.10.4", purpose: "to link eBPF objects" };

/// Returns the path of the pinned bpf-linker, building it if there is none.
///
/// # Errors
///
/// If cargo cannot fetch or build it.
pub(crate) fn ensure(project: &Project) -> Result<PathBuf> {
    let given = std::env::var_os("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER").map(PathBuf::from);
    PROGRAM.ensure(project, given)
}
