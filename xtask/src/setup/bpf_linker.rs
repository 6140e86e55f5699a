//! bpf-linker: links the eBPF objects. Installed into the target directory, so that nothing global changes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::project::Project;
use crate::sh;

/// The pinned release. 0.11 and later want the development files of LLVM 23; this one uses rustc's own libLLVM.
const VERSION: &str = "0.10.4";
/// What `bpf-linker --version` prints for it.
pub(crate) const WANTED: &str = "bpf-linker 0.10.4";

/// Returns the path of the pinned bpf-linker, building it if there is none.
///
/// # Errors
///
/// If cargo cannot fetch or build it.
pub(crate) fn ensure(project: &Project) -> Result<PathBuf> {
    let ours = project.tools.join("bin/bpf-linker");
    let given = std::env::var_os("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER").map(PathBuf::from);
    let candidates = given.into_iter().chain([ours.clone()]).chain(sh::find("bpf-linker"));
    if let Some(found) = candidates.into_iter().find(|path| is_wanted(path)) {
        return Ok(found);
    }
    sh::say(&format!("building {WANTED}, to link eBPF objects, into `{}`", project.tools.display()));
    let mut install = Command::new("cargo");
    install.args(["install", "--quiet", "--locked", "--force", "bpf-linker", "--version", VERSION]);
    install.arg("--root").arg(&project.tools).current_dir(&project.root);
    // Of the finished binary's speed nothing is felt, of the time to optimise it much.
    install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    sh::run(&mut install)?;
    ensure!(is_wanted(&ours), "`{}` was built but does not answer as `{WANTED}`", ours.display());
    Ok(ours)
}

fn is_wanted(path: &Path) -> bool {
    sh::output(Command::new(path).arg("--version")).is_ok_and(|version| version.trim() == WANTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_and_what_is_asked_for_are_one_version() {
        assert_eq!(WANTED, format!("bpf-linker {VERSION}"));
    }
}
