//! The guest's kernel: a Debian package, fetched by apt with its signature, unpacked, and kept.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::project::Project;
use crate::{setup, sh};

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// `6.1.0-56-cloud-amd64`
    pub(crate) release: String,
    /// The compressed image that QEMU boots.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`
    pub(crate) modules: PathBuf,
}

/// Returns the kernel of Debian's `package`, fetching it if it is not there yet.
///
/// # Errors
///
/// If apt does not know it or cannot fetch it.
pub(crate) fn fetch(project: &Project, package: &str) -> Result<Kernel> {
    let dir = project.tools.join("kernels").join(package);
    if !dir.is_dir() {
        ensure!(sh::find("apt-get").is_some(), "there is no apt to fetch `{package}` with");
        let name = resolve(package)?;
        sh::say(&format!("fetching {name}, to boot it in QEMU"));
        download(&dir, &name).with_context(|| format!("failed to fetch `{name}`"))?;
    }
    open(&dir)
}

/// Follows a package that only depends on the newest kernel.
fn resolve(package: &str) -> Result<String> {
    let show = || sh::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]));
    let shown = match show() {
        Ok(shown) if !shown.trim().is_empty() => shown,
        _ => {
            setup::refresh_lists()?;
            show()?
        }
    };
    Ok(depended_kernel(&shown).unwrap_or_else(|| package.to_owned()))
}

fn depended_kernel(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let mut names = depends.split([',', '|']).filter_map(|part| part.split_whitespace().next());
    names.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

/// Unpacks into a folder beside `dir` first, so that an interrupted download is never taken for a kernel.
fn download(dir: &Path, name: &str) -> Result<()> {
    let partial = dir.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial)?;
    let mut apt = Command::new("apt-get");
    apt.args(["--quiet", "-o", "APT::Sandbox::User=root", "download", name]);
    sh::output(apt.current_dir(&partial))?;
    let deb = only_entry(&partial, |file| Path::new(file).extension().is_some_and(|ext| ext == "deb"))?;
    sh::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
    std::fs::remove_file(&deb)?;
    std::fs::rename(&partial, dir)?;
    Ok(())
}

fn open(dir: &Path) -> Result<Kernel> {
    let image = only_entry(&dir.join("boot"), |file| file.starts_with("vmlinuz-"))?;
    let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let release = name.trim_start_matches("vmlinuz-").to_owned();
    let modules = ["lib/modules", "usr/lib/modules"].map(|base| dir.join(base).join(&release));
    let modules = modules.into_iter().find(|path| path.is_dir());
    let modules = modules.with_context(|| format!("`{}` has no modules of {release}", dir.display()))?;
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
    fn a_package_that_only_depends_on_a_kernel_is_followed() {
        let meta =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(depended_kernel(meta).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        let real = "Package: linux-image-6.1.0-56-cloud-amd64\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools\n";
        assert_eq!(depended_kernel(real), None);
    }
}
