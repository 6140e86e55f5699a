//! A Python environment with what checks `deploy/` and `scripts/`: Helm's engine, the Kubernetes API's schemas, linters.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::packages;
use crate::project::Project;
use crate::sh;

/// What is installed, at pinned versions.
const REQUIREMENTS: &str = "deploy/tests/requirements.txt";

/// Returns the environment's Python; makes it where it is missing or has other versions.
///
/// # Errors
///
/// If there is no Python and none can be installed, or the package index cannot be reached.
pub(crate) fn ensure(project: &Project) -> Result<PathBuf> {
    let wanted = sh::read(&project.root.join(REQUIREMENTS))?;
    let dir = project.tools.join("deploy-tests");
    let python = dir.join("bin/python");
    // Written last, so that it vouches for all else.
    let stamp = dir.join("installed.txt");
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    // Debian has Python without the module that makes environments.
    let mut complete = Command::new("python3");
    if sh::output(complete.args(["-c", "import ensurepip, venv"])).is_err() {
        packages::ensure(packages::PYTHON, "to check `deploy`")?;
    }
    sh::say(&format!("installing `{REQUIREMENTS}` into `{}`", dir.display()));
    sh::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    // Nothing is built here: each has a wheel, with its program in it.
    install.args(["--only-binary", ":all:", "--requirement", REQUIREMENTS]).current_dir(&project.root);
    sh::run(&mut install).context("is the Python package index within reach?")?;
    std::fs::write(&stamp, wanted).with_context(|| format!("failed to write `{}`", stamp.display()))?;
    Ok(python)
}
