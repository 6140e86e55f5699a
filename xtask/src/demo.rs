//! `cargo xtask demo`: the main job, on this machine, from nothing.

use std::ffi::OsString;

use anyhow::Result;

use crate::{lab, sh};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// More arguments for `plsprobe-lab demo`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs `cargo xtask demo`.
///
/// # Errors
///
/// If the lab cannot run here, or the demo itself fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let programs = lab::build()?;
    let mut demo = lab::as_root(&programs)?;
    demo.arg("demo").arg("--plsprobe").arg(&programs.plsprobe).args(&args.args);
    sh::run(&mut demo)
}
