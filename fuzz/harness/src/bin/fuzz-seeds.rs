//! `fuzz-seeds FOLDER`: writes the seeds of every target into `FOLDER/TARGET/`, for `cargo xtask fuzz`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use fuzz_harness::TARGETS;

fn main() -> Result<()> {
    let folder =
        env::args_os().nth(1).map(PathBuf::from).context("expected a folder to write the seeds to")?;
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let seeds = (target.seeds)();
        for (idx, seed) in seeds.iter().enumerate() {
            let path = folder.join(format!("seed-{idx:04}"));
            fs::write(&path, seed).with_context(|| format!("failed to write `{}`", path.display()))?;
        }
        println!("{}: {} seeds", target.name, seeds.len());
    }
    Ok(())
}
