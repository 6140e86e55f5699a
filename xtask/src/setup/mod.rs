//! `cargo xtask setup`: brings what the build and the tests need and this machine lacks.
//!
//! Idempotent, and fast when there is nothing to do. Nothing global is touched but Debian packages and, where
//! rustup cannot bring it, the folder of the toolchain's own standard library source.

mod apt_sources;
mod bpf_linker;
mod cargo_fuzz;
mod cargo_install;
mod kernel;
mod packages;
mod private_apt;
mod promtool;
mod python;
mod std_source;
mod toolchain;

use std::path::PathBuf;

use anyhow::Result;

use crate::project::{Project, Rustc};
use crate::sh;

pub(crate) use cargo_fuzz::ensure as ensure_cargo_fuzz;
pub(crate) use kernel::missing as missing_in_kernel;
pub(crate) use packages::{DEPLOY, VM, ensure as ensure_packages};
pub(crate) use private_apt::PrivateApt;
pub(crate) use python::ensure as ensure_python;
pub(crate) use toolchain::ensure_components;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Where to take the standard library's source from when it is missing.
    #[arg(long, value_enum, default_value_t)]
    std_source: std_source::Origin,
    /// Put the standard library's source into this toolchain folder instead of rustc's own (to try this step out).
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
}

/// What a build needs to know of the machine once it is set up.
pub(crate) struct Ready {
    /// The workspace.
    pub(crate) project: Project,
    /// The compiler.
    pub(crate) rustc: Rustc,
    /// The linker of the eBPF objects.
    pub(crate) bpf_linker: PathBuf,
}

/// Runs `cargo xtask setup`.
///
/// # Errors
///
/// If something is missing and cannot be brought; the message says what to do.
pub(crate) fn run(args: &Args) -> Result<()> {
    let ready = everything(args)?;
    for lack in missing_in_kernel() {
        sh::say(&lack);
    }
    sh::say(&format!(
        "ready: rustc {}, {}, standard library's source, packages",
        ready.rustc.release,
        bpf_linker::PROGRAM.wanted()
    ));
    Ok(())
}

/// Sets up all that building and testing needs, without a word where nothing is to do.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn ensure() -> Result<Ready> {
    everything(&Args::default())
}

fn everything(args: &Args) -> Result<Ready> {
    let project = Project::find()?;
    let rustc = Rustc::ask(&project)?;
    toolchain::check(&rustc)?;
    packages::ensure(packages::BUILD, "to build")?;
    packages::ensure(packages::LAB, "for the lab")?;
    let sysroot = args.sysroot.as_deref().unwrap_or(&rustc.sysroot);
    std_source::ensure(&project, &rustc, sysroot, args.std_source)?;
    let bpf_linker = bpf_linker::ensure(&project)?;
    promtool::ensure(&project);
    Ok(Ready { project, rustc, bpf_linker })
}
