//! promtool, Prometheus' own judge of metrics, rules and their tests: out of Debian's package, which is not installed,
//! as it would start a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::packages;
use crate::project::Project;
use crate::sh;

const PACKAGE: &str = "prometheus";
const INSIDE: &str = "./usr/bin/promtool";

/// Brings it if there is none: 19 MB to fetch, 48 MB to keep. Nothing depends on it but tests, which skip without it.
pub(crate) fn ensure(project: &Project) {
    let ours = project.tools.join("bin").join("promtool");
    if ours.is_file() || sh::find("promtool").is_some() {
        return;
    }
    sh::say(&format!("taking promtool out of Debian's `{PACKAGE}`, to check metrics and alerts"));
    if let Err(error) = fetch(&project.tools, &ours) {
        sh::say(&format!("no promtool: {error:#}; the tests that need it will be skipped"));
    }
}

fn fetch(tools: &Path, ours: &Path) -> Result<()> {
    ensure!(sh::find("apt-get").is_some(), "there is no apt; install Prometheus to have it");
    let dir = tools.join("promtool");
    std::fs::create_dir_all(&dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    let fetched = download(&dir).or_else(|_| {
        packages::refresh_lists()?;
        download(&dir)
    });
    let taken = fetched.and_then(|deb| unpack(&deb, &dir)).and_then(|()| {
        std::fs::create_dir_all(ours.with_file_name(""))?;
        // Whole or not at all.
        std::fs::rename(dir.join(INSIDE), ours)
            .with_context(|| format!("failed to make `{}`", ours.display()))
    });
    std::fs::remove_dir_all(&dir).with_context(|| format!("failed to remove `{}`", dir.display()))?;
    taken
}

fn download(dir: &Path) -> Result<PathBuf> {
    let mut cmd = Command::new("apt-get");
    // Its unprivileged helper may not reach a folder below the user's home.
    cmd.args(["--quiet", "-o", "APT::Sandbox::User=root", "download", PACKAGE]).current_dir(dir);
    sh::output(&mut cmd)?;
    let files = std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let deb = files.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "deb"));
    deb.with_context(|| format!("apt downloaded no `{PACKAGE}`"))
}

fn unpack(deb: &Path, dir: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb");
    let mut dpkg = dpkg.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
    let files = dpkg.stdout.take().context("dpkg-deb has no stdout")?;
    sh::run(Command::new("tar").args(["-x", INSIDE]).current_dir(dir).stdin(files))?;
    let status = dpkg.wait()?;
    ensure!(status.success(), "dpkg-deb: {status}");
    Ok(())
}
