//! The compiler: recent enough, and with the LLVM that bpf-linker is built for.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::project::{Project, Rustc};
use crate::sh;

/// The first stable release that the pinned crates build with; `rust-version` in `Cargo.toml` says the same.
const OLDEST: (u32, u32) = (1, 95);
/// bpf-linker 0.10 loads rustc's own libLLVM, and knows this one.
const LLVM: u32 = 22;

/// Refuses a compiler that cannot build this project.
///
/// # Errors
///
/// If it is too old, or its LLVM is not the one bpf-linker needs.
pub(crate) fn check(rustc: &Rustc) -> Result<()> {
    let mut release = rustc.release.split('.').map_while(|part| part.parse::<u32>().ok());
    let found = release.next().zip(release.next());
    let found = found.with_context(|| format!("rustc's release `{}` is not a version", rustc.release))?;
    if found < OLDEST {
        bail!(
            "rustc is {}, {}.{} or later is needed; run `rustup update stable`",
            rustc.release,
            OLDEST.0,
            OLDEST.1
        );
    }
    let llvm = rustc.llvm.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if llvm != Some(LLVM) {
        bail!(
            "rustc {} carries LLVM {}, the pinned bpf-linker needs {LLVM}; install rustc {}.{} as toolchain `stable`",
            rustc.release,
            rustc.llvm,
            OLDEST.0,
            OLDEST.1
        );
    }
    Ok(())
}

/// Brings clippy and rustfmt, which a minimal rustup profile lacks.
///
/// # Errors
///
/// If they are missing and rustup cannot bring them.
pub(crate) fn ensure_components(project: &Project) -> Result<()> {
    for (component, subcommand) in [("clippy", "clippy"), ("rustfmt", "fmt")] {
        let mut version = Command::new("cargo");
        version.args([subcommand, "--version"]).current_dir(&project.root);
        if version.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
            continue;
        }
        sh::say(&format!("adding rustup's component {component}, for `cargo xtask test`"));
        let mut add = Command::new("rustup");
        sh::run(add.args(["component", "add", component]).current_dir(&project.root))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(release: &str, llvm: &str) -> String {
        let [release, llvm] = [release, llvm].map(str::to_owned);
        let rustc = Rustc { release, llvm, host: String::new(), sysroot: std::path::PathBuf::new() };
        check(&rustc).map_or_else(|err| format!("{err:#}"), |()| "accepted".to_owned())
    }

    #[test]
    fn only_what_the_pins_allow_is_accepted() {
        assert_eq!(refused("1.95.0", "22.1.2"), "accepted");
        assert_eq!(refused("1.96.1", "22.1.4"), "accepted");
        assert!(refused("1.94.1", "21.1.8").starts_with("rustc is 1.94.1, 1.95 or later is needed; "));
        assert!(refused("1.99.0", "23.1.0").starts_with("rustc 1.99.0 carries LLVM 23.1.0, "));
        assert_eq!(refused("nightly", "22.1.2"), "rustc's release `nightly` is not a version");
    }
}
