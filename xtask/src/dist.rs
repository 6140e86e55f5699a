//! `cargo xtask dist`: the one static binary that is shipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{self, Ready};
use crate::{cargo, sh};

/// What it may have at most, in MiB. The design allows 6; TLS, the Kubernetes and Azure sources, the policy engine, the
/// causes and the agent have taken it past that (docs/speed.md).
const BUDGET: u64 = 10;

/// Builds `target/dist/plsprobe` and checks that it is static, small enough, and runs.
///
/// # Errors
///
/// If one of these is not so.
pub(crate) fn run() -> Result<()> {
    check(&build(&setup::ensure()?)?)
}

/// Builds `target/dist/plsprobe` and returns its path.
///
/// # Errors
///
/// If the build fails.
pub(crate) fn build(ready: &Ready) -> Result<PathBuf> {
    sh::say("building the static binary, with link-time optimisation");
    let mut build = cargo::host(ready, "rustc");
    build.args(["--release", "--package", "probe-user", "--bin", "plsprobe"]);
    // The profile's `strip` leaves the symbols in, a sixth of the file: rustc only passes `--strip-debug`.
    // Relocations packed as bits are a quarter of a megabyte less; glibc 2.36 applies them by itself.
    let link = "link-arg=-Wl,--strip-all,-z,pack-relative-relocs";
    sh::run(build.args(["--", "-C", link]))?;
    let dist = ready.project.target.join("dist");
    std::fs::create_dir_all(&dist).with_context(|| format!("failed to make `{}`", dist.display()))?;
    let built = ready.project.target.join(&ready.rustc.host).join("release/plsprobe");
    let binary = dist.join("plsprobe");
    std::fs::copy(&built, &binary).with_context(|| format!("failed to copy `{}`", built.display()))?;
    Ok(binary)
}

fn check(binary: &Path) -> Result<()> {
    let bytes = std::fs::read(binary).with_context(|| format!("failed to read `{}`", binary.display()))?;
    if let Some(loader) = interpreter(&bytes)? {
        bail!("`{}` is not static: it asks for `{loader}`", binary.display());
    }
    let kib = bytes.len() as u64 / 1024;
    ensure!(kib <= BUDGET * 1024, "`{}` has {kib} KiB, of {} KiB allowed", binary.display(), BUDGET * 1024);
    // Without an environment, as an initramfs or a bare container would run it.
    let version = sh::output(Command::new(binary).arg("--version").env_clear())?;
    ensure!(version.starts_with("plsprobe "), "`plsprobe --version` answered `{}`", version.trim());
    let sum = sh::output(Command::new("sha256sum").arg(binary))?;
    println!("{}", binary.display());
    println!("  {}", version.trim());
    println!("  {kib} KiB of {} KiB, static", BUDGET * 1024);
    println!("  sha256 {}", sum.split_whitespace().next().unwrap_or_default());
    Ok(())
}

/// The dynamic loader that a 64-bit little-endian ELF file asks for: its program header of type `PT_INTERP`.
///
/// Source: elf(5), `Elf64_Ehdr` and `Elf64_Phdr`.
///
/// # Errors
///
/// If `elf` is no such file, or cut short.
fn interpreter(elf: &[u8]) -> Result<Option<String>> {
    const PT_INTERP: usize = 3;
    ensure!(elf.get(..6) == Some(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let (table, size, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    for header in (0..count).map(|idx| table + idx * size) {
        if number(elf, header, 4)? == PT_INTERP {
            let (offset, len) = (number(elf, header + 8, 8)?, number(elf, header + 32, 8)?);
            let path = elf.get(offset..offset + len).context("its PT_INTERP points past its end")?;
            return Ok(Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

fn number(elf: &[u8], offset: usize, width: usize) -> Result<usize> {
    let bytes = elf.get(offset..offset + width).context("ELF file cut short")?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one program header of `kind` and the text it points to.
    fn elf(kind: u8) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56]) = (64, 56, 1);
        (elf[64], elf[64 + 8], elf[64 + 32]) = (kind, 120, 8);
        elf.extend(b"/lib/ld\0");
        elf
    }

    #[test]
    fn a_dynamic_binary_is_told_from_a_static_one() {
        assert_eq!(interpreter(&elf(3)).unwrap().as_deref(), Some("/lib/ld"));
        assert_eq!(interpreter(&elf(1)).unwrap(), None);
        assert!(interpreter(&elf(3)[..100]).is_err());
        assert!(interpreter(b"#!/bin/sh\n").is_err());
    }
}
