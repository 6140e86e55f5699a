//! `plsprobe doctor`.

use std::io::Write as _;

use anyhow::{Result, bail};

use super::{Global, Outcome, Output};
use crate::doctor::Report;

/// `plsprobe doctor`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Examine nothing; remove the tc filters that a killed plsprobe has left, unless one is tracing here
    #[arg(long)]
    cleanup: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    if args.cleanup {
        print(&Report::clean_up()?, global)?;
        return Ok(Outcome::Allowed);
    }
    let report = Report::examine(&global.live_options()?);
    print(&report, global)?;
    if report.is_usable() {
        return Ok(Outcome::Allowed);
    }
    bail!("no answer is possible on this node; see the lines marked missing")
}

fn print(report: &Report, global: &Global) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => report.text(&mut out)?,
        Output::Json => report.json(&mut out)?,
    }
    Ok(out.flush()?)
}
