//! `cargo xtask lab`: builds the test world's program and hands it our arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::Ready;
use crate::{cargo, setup, sh};

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for `plsprobe-lab`: `up`, `down`, `run SCENARIO`, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// The two programs, built.
pub(crate) struct Programs {
    /// `plsprobe`
    pub(crate) plsprobe: PathBuf,
    /// `plsprobe-lab`
    pub(crate) lab: PathBuf,
}

/// Runs `cargo xtask lab ARGS…`, and ends with the exit code of `plsprobe-lab`.
///
/// # Errors
///
/// If set-up or the build fails, or the program cannot be run as root.
pub(crate) fn run(args: &Args) -> Result<()> {
    let programs = build()?;
    let status = as_root(&programs)?.args(&args.args).status().context("failed to run `plsprobe-lab`")?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(2));
    }
    Ok(())
}

/// Builds both programs, after making sure that this machine can run the lab at all.
///
/// # Errors
///
/// If the kernel or our privileges do not suffice, or set-up or the build fails.
pub(crate) fn build() -> Result<Programs> {
    let lacks = setup::missing_in_kernel();
    ensure!(lacks.is_empty(), "{}", lacks.join("\n"));
    ensure!(
        sh::is_root()? || sh::find("sudo").is_some(),
        "the lab makes network namespaces and loads eBPF, for which root is needed, and there is no `sudo`; run this command as root"
    );
    let ready = setup::ensure()?;
    sh::run(cargo::host(&ready, "build").args(["--bin", "plsprobe", "--bin", "plsprobe-lab"]))?;
    Ok(Programs { plsprobe: binary(&ready, "plsprobe"), lab: binary(&ready, "plsprobe-lab") })
}

/// `plsprobe-lab` as root; it finds the other program by `PLSPROBE`.
///
/// # Errors
///
/// If we are not root and there is no sudo.
pub(crate) fn as_root(programs: &Programs) -> Result<Command> {
    let mut cmd = sh::as_root(&programs.lab, "make the lab's network namespaces and load its eBPF programs")?;
    cmd.env("PLSPROBE", &programs.plsprobe);
    Ok(cmd)
}

/// Where cargo puts a debug build of `name`.
pub(crate) fn binary(ready: &Ready, name: &str) -> PathBuf {
    ready.project.target.join(&ready.rustc.host).join("debug").join(name)
}
