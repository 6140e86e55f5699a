//! Cargo as this project needs it called.

use std::process::Command;

use anyhow::Result;

use crate::setup::Ready;
use crate::sh;

/// The two crates that build for the BPF target only.
pub(crate) const EBPF_CRATES: [&str; 2] = ["probe-ebpf", "probe-lab-ebpf"];

/// `cargo SUBCOMMAND` for the host, with the eBPF objects built and everything linked statically.
///
/// Clippy, rustdoc, tests, demo and virtual machine all use this one shape, so that they share one build,
/// of which the eBPF objects are the slow part. Static, because the same binaries run in a bare initramfs.
pub(crate) fn host(ready: &Ready, subcommand: &str) -> Command {
    let mut cmd = plain(ready, subcommand);
    cmd.args(["--target", &ready.rustc.host]);
    cmd.env(for_host(ready, "RUSTFLAGS"), "-C target-feature=+crt-static");
    cmd
}

/// `cargo SUBCOMMAND` for the BPF target, with `core` built from source.
pub(crate) fn bpf(ready: &Ready, subcommand: &str) -> Command {
    let mut cmd = plain(ready, subcommand);
    // Cargo's own `-Z` needs it in cargo's environment; `.cargo/config.toml` only sets it for what cargo starts.
    cmd.env("RUSTC_BOOTSTRAP", "1");
    cmd.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--release"]);
    for package in EBPF_CRATES {
        cmd.args(["--package", package]);
    }
    cmd
}

/// Lets `cmd` run the test binaries it builds as root, and builds them as whoever we are.
///
/// # Errors
///
/// If we are not root and there is no sudo.
pub(crate) fn run_tests_as_root(ready: &Ready, cmd: &mut Command, reason: &str) -> Result<()> {
    if !sh::is_root()? {
        // Asks for the password now, rather than in the middle of cargo's output.
        sh::run(&mut sh::as_root("true", reason)?)?;
        cmd.env(for_host(ready, "RUNNER"), "sudo -E --");
    }
    Ok(())
}

fn plain(ready: &Ready, subcommand: &str) -> Command {
    let mut cmd = Command::new("cargo");
    cmd.arg(subcommand).current_dir(&ready.project.root);
    cmd.env("AYA_BUILD_SKIP", "0");
    // `cargo run` gave it to us out of `.cargo/config.toml`, where it is meant for build scripts.
    cmd.env_remove("CARGO_TERM_QUIET");
    cmd.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &ready.bpf_linker);
    cmd
}

/// `CARGO_TARGET_<HOST>_<KEY>`: cargo's setting for the host target alone, so that a nested cargo for BPF is spared.
fn for_host(ready: &Ready, key: &str) -> String {
    format!("CARGO_TARGET_{}_{key}", ready.rustc.host.to_uppercase().replace(['-', '.'], "_"))
}
