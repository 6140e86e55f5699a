//! The guests' kernels: Debian's cloud kernels, fetched by apt with their signatures, unpacked, and kept.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::project::Project;
use crate::setup::PrivateApt;
use crate::sh;

/// A series of kernels and the Debian suite that has its newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Series {
    /// `6.1`, or `7` for the newest of 7.
    pub(crate) name: &'static str,
    /// The suite of Debian's main archive.
    pub(crate) suite: &'static str,
}

/// What we say plsprobe works on, oldest first.
pub(crate) const SERIES: [Series; 5] = [
    Series { name: "5.10", suite: "bullseye" },
    Series { name: "6.1", suite: "bookworm" },
    Series { name: "6.12", suite: "trixie" },
    Series { name: "6.18", suite: "trixie-backports" },
    Series { name: "7", suite: "trixie-backports" },
];

/// What `--kernel` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest kernel of a known series.
    Newest(Series),
    /// One kernel: a package of a suite, `SUITE/PACKAGE`.
    Package {
        /// `bookworm`
        suite: String,
        /// `linux-image-6.1.0-56-cloud-amd64`
        package: String,
    },
}

impl std::str::FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(series) = SERIES.into_iter().find(|series| series.name == text) {
            return Ok(Self::Newest(series));
        }
        if let Some((suite, package)) = text.split_once('/')
            && !suite.is_empty()
            && package.starts_with("linux-image-")
        {
            return Ok(Self::Package { suite: suite.to_owned(), package: package.to_owned() });
        }
        let known = SERIES.map(|series| series.name).join(", ");
        bail!("no kernel `{text}`, expected one of {known}, or SUITE/linux-image-…")
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newest(series) => f.pad(series.name),
            Self::Package { suite, package } => f.pad(&format!("{suite}/{package}")),
        }
    }
}

impl Wanted {
    /// The Debian suite it comes from.
    pub(crate) fn suite(&self) -> &str {
        match self {
            Self::Newest(series) => series.suite,
            Self::Package { suite, .. } => suite,
        }
    }
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// `6.1.0-56-cloud-amd64`
    pub(crate) release: String,
    /// The compressed image that QEMU boots.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`
    pub(crate) modules: PathBuf,
}

/// Returns the kernel, fetching it if it is not there yet.
///
/// # Errors
///
/// If its suite cannot be had, or has no such kernel.
pub(crate) fn fetch(project: &Project, wanted: &Wanted) -> Result<Kernel> {
    let dir = project.tools.join("kernels").join(wanted.to_string().replace('/', "_"));
    if !dir.is_dir() {
        let apt = PrivateApt::new(project, wanted.suite())?;
        let image = match wanted {
            Wanted::Package { package, .. } => package.clone(),
            Wanted::Newest(series) => {
                let names = apt.run("apt-cache", &["pkgnames", "linux-image-"])?;
                newest(&names, series.name)
                    .with_context(|| {
                        format!("Debian's {} has no cloud kernel {}", series.suite, series.name)
                    })?
                    .to_owned()
            }
        };
        sh::say(&format!("fetching {image} of Debian's {}, to boot it in QEMU", wanted.suite()));
        download(&apt, &dir, &image)?;
        apt.remove()?;
    }
    open(&dir)
}

/// The newest cloud kernel of a series among package names: not its debug information, and not what is still to be
/// signed.
fn newest<'a>(names: &'a str, series: &str) -> Option<&'a str> {
    let prefix = format!("linux-image-{series}.");
    let is_of_series = |name: &&str| name.starts_with(&prefix) && name.ends_with("-cloud-amd64");
    names.lines().filter(is_of_series).max_by(|a, b| by_version(a, b))
}

/// By the numbers in the names: `6.1.0-9` comes before `6.1.0-56`.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// Unpacks into a folder beside `dir` first, so that an interrupted download is never taken for a kernel.
fn download(apt: &PrivateApt, dir: &Path, image: &str) -> Result<()> {
    let partial = dir.with_file_name("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial)?;
    let shown = apt.run("apt-cache", &["show", "--no-all-versions", image])?;
    for package in std::iter::once(image).chain(parts(&shown)) {
        // Backports drop packages that an image still depends on. Its lists are the image's own where it is whole;
        // where they are missing all the same, the modules cannot be put in order, and that is said.
        if package.starts_with(LISTS) && !has(apt, package)? {
            sh::say(&format!("`{package}` is not to be had; going on without it"));
            continue;
        }
        apt.unpack(package, &partial)?;
    }
    std::fs::rename(&partial, dir)?;
    Ok(())
}

/// Whether a suite has a package of this name.
fn has(apt: &PrivateApt, package: &str) -> Result<bool> {
    Ok(apt.run("apt-cache", &["pkgnames", package])?.lines().any(|name| name == package))
}

/// How the name begins of the package with a newer kernel's lists of modules.
const LISTS: &str = "linux-base-";

/// What the package of a newer kernel only depends on: its image, its modules, its lists of them.
fn parts(shown: &str) -> Vec<&str> {
    const PREFIXES: [&str; 3] = [LISTS, "linux-binary-", "linux-modules-"];
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
    let names = depends.split([',', '|']).filter_map(|part| part.split_whitespace().next());
    names.filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix))).collect()
}

/// `boot/vmlinuz-RELEASE` and `lib/modules/RELEASE`, or all of it in `usr/lib/modules/RELEASE`.
fn open(dir: &Path) -> Result<Kernel> {
    let modules = ["lib/modules", "usr/lib/modules"].map(|base| dir.join(base));
    let modules = modules.iter().find(|base| base.is_dir());
    let modules = modules.with_context(|| format!("`{}` has no modules", dir.display()))?;
    let modules = only_entry(modules, |_| true)?;
    let release = modules.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let images = [dir.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|path| path.is_file());
    let image = image.with_context(|| format!("`{}` has no image of {release}", dir.display()))?;
    Ok(Kernel { release, image, modules })
}

fn only_entry(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("failed to list `{}`", dir.display()))?;
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    let is_wanted = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(&wanted);
    let mut found: Vec<PathBuf> = paths.into_iter().filter(is_wanted).collect();
    ensure!(found.len() == 1, "`{}` has {} such files, expected 1", dir.display(), found.len());
    Ok(found.remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_wanted_by_its_name() {
        for series in SERIES {
            assert_eq!(series.name.parse::<Wanted>().unwrap(), Wanted::Newest(series));
        }
        let package = Wanted::Package { suite: "sid".into(), package: "linux-image-7.4-cloud-amd64".into() };
        assert_eq!("sid/linux-image-7.4-cloud-amd64".parse::<Wanted>().unwrap(), package);
        for wrong in ["6", "linux-image-6.1-cloud-amd64", "sid/bash", "/linux-image-6.1"] {
            let err = wrong.parse::<Wanted>().unwrap_err().to_string();
            assert!(err.ends_with("5.10, 6.1, 6.12, 6.18, 7, or SUITE/linux-image-…"), "{err}");
        }
    }

    #[test]
    fn the_newest_of_a_series_is_no_other_series_and_no_half_of_one() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64-dbg\n\
                     linux-image-6.1.0-57-cloud-amd64-unsigned\nlinux-image-6.12.1+deb13-cloud-amd64\nlinux-image-6.1.0-58-amd64\n\
                     linux-image-7.3.4+deb13-cloud-amd64\nlinux-image-7.2.12+deb13-cloud-amd64\n";
        assert_eq!(newest(names, "6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(names, "7"), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(names, "5.10"), None);
    }

    #[test]
    fn a_kernel_in_parts_is_put_together() {
        let split = "Package: linux-image-7.3.4+deb13-cloud-amd64\nDepends: linux-base-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), \
                     linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)\n";
        assert_eq!(
            parts(split),
            ["linux-base-", "linux-binary-", "linux-modules-"]
                .map(|part| format!("{part}7.3.4+deb13-cloud-amd64"))
        );
        let whole = "Package: linux-image-6.1.0-56-cloud-amd64\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools\n";
        assert!(parts(whole).is_empty());
    }
}
