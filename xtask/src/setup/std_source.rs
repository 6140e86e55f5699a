//! The standard library's source, from which `core` is built for the BPF target.
//!
//! From rustup, or where it cannot reach its server, from the Debian package of exactly rustc's version.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::private_apt::PrivateApt;
use crate::project::{Project, Rustc};
use crate::sh;

/// The Debian suite that carries `rust-src` of the releases we build with.
const SUITE: &str = "trixie-backports";
/// Rustup's download takes seconds; a server that cannot be reached must not cost minutes.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(90);

/// Where the source comes from.
#[derive(clap::ValueEnum, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// rustup, else Debian
    #[default]
    Any,
    /// only rustup
    Rustup,
    /// only Debian
    Debian,
}

/// Puts the standard library's source into `sysroot` if it is not there.
///
/// # Errors
///
/// If no origin has it; the message says what each answered.
pub(crate) fn ensure(project: &Project, rustc: &Rustc, sysroot: &Path, origin: Origin) -> Result<()> {
    let library = sysroot.join("lib/rustlib/src/rust/library");
    let lock = library.join("Cargo.lock");
    if lock.is_file() {
        return Ok(());
    }
    sh::say(&format!("bringing the source of `core` {}, to build it for the BPF target", rustc.release));
    let from_rustup = match origin {
        Origin::Debian => Err(anyhow::anyhow!("not asked")),
        Origin::Any | Origin::Rustup => rustup(project, &lock),
    };
    if let Err(rustup_says) = from_rustup {
        if origin == Origin::Rustup {
            return Err(rustup_says);
        }
        sh::say(&format!("not from rustup ({rustup_says:#}); taking Debian's package `rust-src` of {SUITE}"));
        debian(project, rustc, &library).context(
            "failed to take the standard library's source from Debian; run `rustup component add rust-src`",
        )?;
    }
    ensure!(lock.is_file(), "`{}` is still missing; run `rustup component add rust-src`", lock.display());
    Ok(())
}

fn rustup(project: &Project, lock: &Path) -> Result<()> {
    ensure!(sh::find("rustup").is_some(), "there is no rustup");
    let mut add = Command::new("rustup");
    add.args(["component", "add", "rust-src"]).current_dir(&project.root);
    match sh::quietly_within(&mut add, RUSTUP_PATIENCE)? {
        Some((status, _)) if status.success() && lock.is_file() => Ok(()),
        // It believes its own list of what is installed rather than the disk.
        Some((status, _)) if status.success() => bail!("it says it is there, and it is not"),
        Some((_, stderr)) => bail!("{}", stderr.lines().last().unwrap_or("it failed without a word").trim()),
        None => bail!("no answer within {} seconds", RUSTUP_PATIENCE.as_secs()),
    }
}

fn debian(project: &Project, rustc: &Rustc, library: &Path) -> Result<()> {
    let apt = PrivateApt::new(project, SUITE)?;
    let known = apt.run("apt-cache", &["madison", "rust-src"])?;
    let version = matching_version(&known, &rustc.release)
        .with_context(|| format!("{SUITE} has no `rust-src` {}", rustc.release))?;
    let unpacked = project.tools.join("rust-src");
    apt.unpack(&format!("rust-src={version}"), &unpacked)?;
    let source = unpacked.join(format!("usr/src/rustc-{}", rustc.release));
    copy_library(&source, library)?;
    std::fs::remove_dir_all(&unpacked)
        .with_context(|| format!("failed to remove `{}`", unpacked.display()))?;
    apt.remove()
}

/// Copies `library` and, where the package keeps it one level up, its `Cargo.lock`.
fn copy_library(source: &Path, library: &Path) -> Result<()> {
    let parent = library.parent().context("the standard library's folder has no parent")?;
    let reason = format!("write to the toolchain in `{}`", parent.display());
    let copy = |args: &[&std::ffi::OsStr], program: &str| {
        let direct = Command::new(program).args(args).output().is_ok_and(|out| out.status.success());
        if direct { Ok(()) } else { sh::run(sh::as_root(program, &reason)?.args(args)) }
    };
    copy(&["-p".as_ref(), parent.as_os_str()], "mkdir")?;
    copy(&["-rT".as_ref(), source.join("library").as_os_str(), library.as_os_str()], "cp")?;
    let lock = library.join("Cargo.lock");
    if lock.is_file() {
        return Ok(());
    }
    copy(&[source.join("Cargo.lock").as_os_str(), lock.as_os_str()], "cp")
}

/// The package version of exactly rustc's release in the output of `apt-cache madison`.
fn matching_version<'a>(madison: &'a str, release: &str) -> Option<&'a str> {
    let versions = madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    versions.into_iter().find(|version| {
        let upstream = version.split(['+', '-', '~']).next();
        upstream == Some(release)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_package_of_exactly_this_release_will_do() {
        let madison = " rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://mirror.test trixie-backports/main amd64 Packages\n \
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror.test trixie-backports/main amd64 Packages\n";
        assert_eq!(matching_version(madison, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching_version(madison, "1.95"), None);
        assert_eq!(matching_version(madison, "1.95.1"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }
}
