//! `plsprobe doctor`.

use std::io::Write as _;

use anyhow::{Result, bail};

use super::{Global, Outcome, Output};
use crate::doctor::Report;

pub(super) fn run(global: &Global) -> Result<Outcome> {
    let report = Report::examine(&global.live_options());
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => report.text(&mut out)?,
        Output::Json => report.json(&mut out)?,
    }
    out.flush()?;
    if report.is_usable() {
        return Ok(Outcome::Allowed);
    }
    bail!("no answer is possible on this node; see the lines marked missing")
}
