//! apt with sources, lists and cache of its own, for one suite of Debian that this machine does not follow.
//!
//! Signatures are checked as ever, the machine's state is not touched, and root is not needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt_sources::{self, Archive};
use crate::project::Project;
use crate::sh;

/// Debian's keys, where apt's configuration names none.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite, its lists fetched.
pub(crate) struct PrivateApt {
    suite: String,
    dir: PathBuf,
    options: Vec<String>,
}

impl PrivateApt {
    /// Fetches the lists of `suite` from where this machine has its own suite from.
    ///
    /// # Errors
    ///
    /// If this is no Debian, or the suite is not there.
    pub(crate) fn new(project: &Project, suite: &str) -> Result<Self> {
        ensure!(sh::find("apt-get").is_some(), "there is no apt");
        let archive = debian_archive(Path::new("/etc/apt"))?;
        let dir = project.tools.join("apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(part))
                .with_context(|| format!("failed to make `{}`", dir.display()))?;
        }
        let keys = archive.signed_by.as_deref().unwrap_or(Path::new(DEBIAN_KEYS));
        let list = dir.join("sources.list");
        std::fs::write(&list, format!("deb [signed-by={}] {} {suite} main\n", keys.display(), archive.uri))
            .with_context(|| format!("failed to write `{}`", list.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", dir.join("lists").display()),
            format!("Dir::Cache={}", dir.join("cache").display()),
            // What is installed here is nothing to this suite's packages.
            "Dir::State::status=/dev/null".to_owned(),
            // Its unprivileged helper may not reach a folder below the user's home.
            "APT::Sandbox::User=root".to_owned(),
            // Else a list that could not be fetched is a warning.
            "APT::Update::Error-Mode=any".to_owned(),
        ];
        let apt = Self { suite: suite.to_owned(), dir, options: options.into() };
        apt.run("apt-get", &["--quiet", "update"])
            .with_context(|| format!("failed to fetch the package lists of Debian's {suite}"))?;
        Ok(apt)
    }

    /// Runs `apt-get` or `apt-cache` and returns what it wrote to stdout.
    ///
    /// # Errors
    ///
    /// If it fails; the message carries its stderr.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut cmd = Command::new(program);
        for option in &self.options {
            cmd.args(["-o", option]);
        }
        sh::output(cmd.args(args).current_dir(&self.dir))
    }

    /// Fetches `package`, or `package=version`, and unpacks it over what is in `into`.
    ///
    /// # Errors
    ///
    /// If the suite has no such package, or it cannot be fetched or written.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        self.run("apt-get", &["--quiet", "download", package])
            .with_context(|| format!("failed to fetch `{package}` of Debian's {}", self.suite))?;
        let name = package.split('=').next().unwrap_or(package);
        let is_ours = |path: &PathBuf| {
            let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            file.starts_with(&format!("{name}_")) && path.extension().is_some_and(|ext| ext == "deb")
        };
        let files = std::fs::read_dir(&self.dir)?.map(|entry| entry.map(|e| e.path()));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let deb =
            files.iter().find(|path| is_ours(path)).with_context(|| format!("apt downloaded no `{name}`"))?;
        sh::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))?;
        std::fs::remove_file(deb).with_context(|| format!("failed to remove `{}`", deb.display()))
    }

    /// Removes the lists and all else that it keeps.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub(crate) fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir)
            .with_context(|| format!("failed to remove `{}`", self.dir.display()))
    }
}

/// The machine's own Debian archive; other suites are beside its main suite there.
fn debian_archive(etc_apt: &Path) -> Result<Archive> {
    let os = sh::read(Path::new("/etc/os-release"))?;
    let field = |key: &str| os.lines().find_map(|line| line.strip_prefix(key)).map(|v| v.trim_matches('"'));
    let (id, codename) = (field("ID="), field("VERSION_CODENAME="));
    ensure!(id == Some("debian"), "this machine is no Debian but `{}`", id.unwrap_or("unknown"));
    let codename = codename.context("`/etc/os-release` has no VERSION_CODENAME")?;
    apt_sources::main_archive(etc_apt, codename)?
        .with_context(|| format!("apt has no source for `{codename}`"))
}
