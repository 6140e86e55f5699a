//! Programs that cargo builds for us, at a pinned version, into the target directory, so that nothing global changes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::project::Project;
use crate::sh;

/// A program at its pinned version.
pub(super) struct Program {
    /// Its crate's name, and its own.
    pub(super) name: &'static str,
    /// The pinned release.
    pub(super) version: &'static str,
    /// What it is for: `to link eBPF objects`.
    pub(super) purpose: &'static str,
}

impl Program {
    /// What its `--version` prints.
    pub(super) fn wanted(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// Returns its path: one of `elsewhere` or of PATH that has the version, else ours, built if it is not there yet.
    ///
    /// # Errors
    ///
    /// If cargo cannot fetch or build it.
    pub(super) fn ensure(&self, project: &Project, elsewhere: Option<PathBuf>) -> Result<PathBuf> {
        let ours = project.tools.join("bin").join(self.name);
        let candidates = elsewhere.into_iter().chain([ours.clone()]).chain(sh::find(self.name));
        if let Some(found) = candidates.into_iter().find(|path| self.is_wanted(path)) {
            return Ok(found);
        }
        let wanted = self.wanted();
        sh::say(&format!("building {wanted}, {}, into `{}`", self.purpose, project.tools.display()));
        let mut install = Command::new("cargo");
        install.args(["install", "--quiet", "--locked", "--force", self.name, "--version", self.version]);
        install.arg("--root").arg(&project.tools).current_dir(&project.root);
        // Of the finished binary's speed nothing is felt, of the time to optimise it much.
        install.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        sh::run(&mut install)?;
        ensure!(self.is_wanted(&ours), "`{}` was built but does not answer as `{wanted}`", ours.display());
        Ok(ours)
    }

    fn is_wanted(&self, path: &Path) -> bool {
        let version = sh::output(Command::new(path).arg(OsStr::new("--version")));
        version.is_ok_and(|version| version.trim() == self.wanted())
    }
}
