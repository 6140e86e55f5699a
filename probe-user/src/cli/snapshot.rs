//! `plsprobe snapshot`.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;

use super::{Global, Outcome, Output};
use crate::{render, sources::snapshot};

/// `plsprobe snapshot`'s flags.
#[derive(clap::Args)]
#[command(after_long_help = "\
The file is a zstd-compressed tar: manifest.json, which lists every part with length and SHA-256, then maps/PIN.bin, \
rest/PATH.json and node/. Damage and careless changes are found and named when it is read. That is no signature: who \
changes a snapshot on purpose can compute the digests anew.

What may be secret stays here: only maps that some command reads, only the agent's answers that plsprobe asks for, and in \
those no value whose name or shape is a secret's; manifest.json says how many were taken out. Names, labels, selectors, \
addresses and netfilter rules with their comments are in it.

Only its owner may read the file. It appears whole or not at all.")]
pub(super) struct Args {
    /// Where to write it; later commands take it as `--from FILE`, on any machine
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let written = snapshot::take(&global.live_options()?, &args.file, args.force)?;
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => render::snapshot::text(&args.file, &written, &mut out)?,
        Output::Json => render::snapshot::json(&args.file, &written, &mut out)?,
    }
    out.flush()?;
    Ok(Outcome::Allowed)
}
