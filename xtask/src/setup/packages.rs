//! Debian packages: asks dpkg what is missing, asks apt for only that.

use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// What the host crates link with: libbpf's C code, and libelf, zlib and libpcap as static libraries.
pub(crate) const BUILD: &[&str] =
    &["gcc", "libc6-dev", "libelf-dev", "libpcap-dev", "make", "pkg-config", "zlib1g-dev"];
/// What libFuzzer's C++ code is built with.
pub(crate) const FUZZ: &[&str] = &["g++"];
/// What the lab and the tests call.
pub(crate) const LAB: &[&str] = &["bpftool", "iproute2", "iptables", "nftables", "procps"];
/// What the virtual machine is made of. Its kernel is fetched apart from this and never installed.
pub(crate) const VM: &[&str] = &["binutils", "busybox-static", "dash", "qemu-system-x86", "xz-utils"];

/// What the tests of `deploy` and `scripts` call: a container runtime, systemd's own judgement, two shells, a terminal.
pub(crate) const DEPLOY: &[&str] = &["bash", "crun", "dash", "systemd", "util-linux"];
/// What makes the environment that these tests run in.
pub(crate) const PYTHON: &[&str] = &["python3", "python3-venv"];

/// Installs those of `wanted` that are missing.
///
/// # Errors
///
/// If this is not a machine with dpkg and apt, or we may not install, or apt fails.
pub(crate) fn ensure(wanted: &[&str], purpose: &str) -> Result<()> {
    if sh::find("dpkg-query").is_none() || sh::find("apt-get").is_none() {
        return without_apt(wanted, purpose);
    }
    let missing = not_installed(wanted, &installed(wanted)?);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    sh::say(&format!("installing packages {purpose}: {names}"));
    if apt_get(&missing, &names).is_ok() {
        return Ok(());
    }
    sh::say("apt-get could not install them with the package lists it has; fetching new ones");
    refresh_lists()?;
    apt_get(&missing, &names)
}

/// Fetches apt's package lists anew.
///
/// # Errors
///
/// If we are not root and may not become it, or apt fails.
pub(super) fn refresh_lists() -> Result<()> {
    sh::run(sh::as_root("apt-get", "fetch apt's package lists")?.args(["--quiet", "update"]))
}

fn apt_get(packages: &[&str], names: &str) -> Result<()> {
    let mut cmd = sh::as_root("apt-get", &format!("install {names}"))?;
    cmd.env("DEBIAN_FRONTEND", "noninteractive");
    // Unattended upgrades of a fresh machine may hold the lock for a while.
    cmd.args(["--quiet", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "install"]);
    sh::run(cmd.args(packages))
}

/// dpkg's answer: one line `name status` for each package it knows.
fn installed(wanted: &[&str]) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\\n"]).args(wanted);
    // It exits with 1 when it does not know one of them, which is an answer as well.
    let out = query.output()?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn not_installed<'a>(wanted: &[&'a str], dpkg: &str) -> Vec<&'a str> {
    let has = |name: &str| dpkg.lines().any(|line| line.split_once(' ') == Some((name, "installed")));
    wanted.iter().copied().filter(|name| !has(name)).collect()
}

/// Elsewhere we cannot tell package names, so we look for the programs and leave the rest to the linker.
fn without_apt(wanted: &[&str], purpose: &str) -> Result<()> {
    let programs = wanted.iter().filter_map(|package| match *package {
        "iproute2" => Some("ip"),
        "nftables" => Some("nft"),
        "procps" => Some("kill"),
        "python3-venv" => Some("python3"),
        "qemu-system-x86" => Some("qemu-system-x86_64"),
        "busybox-static" => Some("busybox"),
        "systemd" => Some("systemd-analyze"),
        "util-linux" => Some("setsid"),
        "xz-utils" => Some("xz"),
        "libc6-dev" | "libelf-dev" | "libpcap-dev" | "zlib1g-dev" => None,
        same => Some(same),
    });
    let missing: Vec<&str> = programs.filter(|program| sh::find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "`{}` not found {purpose}, and this is no Debian or Ubuntu; install what these are there: {}",
        missing.join("`, `"),
        wanted.join(" ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_calls_installed_counts() {
        let dpkg = "gcc installed\nmake config-files\nlibelf-dev not-installed\n";
        assert_eq!(
            not_installed(&["gcc", "libelf-dev", "make", "zlib1g-dev"], dpkg),
            ["libelf-dev", "make", "zlib1g-dev"]
        );
    }
}
