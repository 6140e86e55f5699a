//! The guest's user space: busybox, the real `ip` and `tc`, dash, and pid 1.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::initramfs::Initramfs;
use super::payload::Payload;
use crate::sh;

/// What every line for us begins with on the serial console.
pub(crate) const MARK: &str = "PLSPROBE-VM:";

/// Programs taken from this machine, with their libraries. Busybox' own `ip` breaks namespaces and veth.
const PROGRAMS: [&str; 8] =
    ["ip", "iptables", "iptables-restore", "iptables-save", "mount", "nft", "tc", "umount"];

/// Where Debian's iptables has the extensions that it opens by itself, so that ldd does not list them.
const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Adds everything but modules, payloads and `/init`.
///
/// # Errors
///
/// If a program is missing here or its libraries cannot be listed.
pub(crate) fn add_user_space(image: &mut Initramfs) -> Result<()> {
    // Where tests put namespaces, temporary files, and what pid 1 mounts.
    for dir in ["dev/shm", "proc", "run/netns", "sys", "tmp", "var/run"] {
        image.directory(dir);
    }
    let dash = sh::find("dash").context("`dash` not found")?;
    program(image, &dash, "bin/sh")?;
    for name in PROGRAMS {
        let path = sh::find(name).with_context(|| format!("`{name}` not found"))?;
        program(image, &path, &format!("bin/{name}"))?;
    }
    for entry in std::fs::read_dir(EXTENSIONS).with_context(|| format!("failed to list `{EXTENSIONS}`"))? {
        library(image, &entry?.path())?;
    }
    let busybox = sh::find("busybox").context("`busybox` not found")?;
    image.file("bin/busybox", 0o755, super::bytes(&busybox)?)?;
    for applet in sh::output(Command::new(&busybox).arg("--list"))?.lines() {
        let path = format!("bin/{applet}");
        if !image.has(&path) {
            image.symlink(&path, "busybox")?;
        }
    }
    Ok(())
}

fn program(image: &mut Initramfs, path: &Path, guest_path: &str) -> Result<()> {
    image.file(guest_path, 0o755, super::bytes(path)?)?;
    for path in libraries(&sh::output(Command::new("ldd").arg(path))?) {
        library(image, &path)?;
    }
    Ok(())
}

/// Adds a library where it is on this machine, unless another program brought it.
fn library(image: &mut Initramfs, path: &Path) -> Result<()> {
    let guest_path = path.to_string_lossy().trim_start_matches('/').to_owned();
    if image.has(&guest_path) {
        return Ok(());
    }
    image.file(&guest_path, 0o755, super::bytes(path)?)
}

/// The absolute paths in the output of ldd(1).
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// Pid 1: mounts, loads modules, runs every payload, reports, and ends the machine.
pub(crate) fn script(modules: &[&str], payloads: &[Payload]) -> String {
    let mut script = format!("#!/bin/sh\nMARK='{MARK}'\n{}", include_str!("init.sh"));
    for module in modules {
        let _ = writeln!(script, "load {module}");
    }
    for payload in payloads {
        let _ = writeln!(script, "payload {} {}", payload.name, payload.args.join(" "));
    }
    script.push_str("finish\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_in_ldds_output() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(ldd),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }

    #[test]
    fn pid_1_loads_modules_in_order_runs_payloads_and_finishes() {
        let payload = Payload { name: "a", args: vec!["--x".into(), "y".into()], bytes: Vec::new() };
        let script = script(&["one", "two"], &[payload]);
        assert!(script.ends_with("load one\nload two\npayload a --x y\nfinish\n"), "{script}");
    }
}
