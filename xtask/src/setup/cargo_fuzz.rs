//! cargo-fuzz: builds and runs the fuzz targets.

use std::path::PathBuf;

use anyhow::Result;

use super::cargo_install::Program;
use super::packages;
use crate::project::Project;

const PROGRAM: Program =
    Program { name: "cargo-fuzz", version: "0.13.2", purpose: "to run the fuzz targets" };

/// Returns the path of the pinned cargo-fuzz, with all that it and the targets need to build.
///
/// # Errors
///
/// If a package is missing and cannot be installed, or cargo cannot fetch or build it.
pub(crate) fn ensure(project: &Project) -> Result<PathBuf> {
    packages::ensure(packages::BUILD, "to build")?;
    packages::ensure(packages::FUZZ, "to build libFuzzer")?;
    PROGRAM.ensure(project, None)
}
