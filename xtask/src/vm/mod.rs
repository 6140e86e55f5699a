//! `cargo xtask vm-test`: boots one distribution kernel in QEMU and runs the kernel tests in it.
//!
//! Emulated (TCG), so that it runs where there is no KVM and where the machine's own kernel refuses kprobes.

mod init;
mod initramfs;
mod kernel;
mod modules;
mod payload;
mod qemu;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::project::Project;
use crate::setup::{self, Ready};
use crate::sh;
use initramfs::Initramfs;

/// The package that always depends on the newest cloud kernel of a Debian release.
const DEFAULT_KERNEL: &str = "linux-image-cloud-amd64";

/// Modules that tests need; there is no modprobe in the guest that would bring one later.
const MODULES: &[&str] = &[
    "sch_ingress",
    "cls_bpf",
    "veth",
    // The lab's links.
    "bridge",
    "dummy",
    // The lab's NAT gateway.
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    // Its kube-proxy, in iptables rules.
    "nft_compat",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_nat",
    "xt_statistic",
    "xt_tcpudp",
];

/// Seconds after which a guest is taken for hung. Alone on two cores it needs a quarter of that.
const TIMEOUT: u64 = 600;

/// Arguments of `cargo xtask vm-test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Debian package of the kernel to boot; fetched, never installed.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_KERNEL)]
    kernel: String,
    /// Fail rather than skip where QEMU or the kernel cannot be had.
    #[arg(long)]
    require: bool,
    /// Give up on the guest after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT)]
    timeout: u64,
    /// Run only the payloads whose name contains this.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

impl Args {
    /// Defaults, for `cargo xtask test`.
    pub(crate) fn required(require: bool) -> Self {
        Self { kernel: DEFAULT_KERNEL.to_owned(), require, timeout: TIMEOUT, filter: None }
    }
}

/// Runs `cargo xtask vm-test`.
///
/// # Errors
///
/// If a payload fails in the guest, or with `--require` if there can be no guest.
pub(crate) fn run(args: &Args) -> Result<()> {
    let outcome = test(&setup::ensure()?, args)?;
    println!("vm-test: {outcome}");
    Ok(())
}

/// Boots the kernel, runs all payloads, and returns what to say of it.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn test(ready: &Ready, args: &Args) -> Result<String> {
    let kernel = match prepare(&ready.project, &args.kernel) {
        Ok(kernel) => kernel,
        Err(err) if args.require => return Err(err),
        Err(err) => {
            let skipped = format!("skipped: no virtual machine here: {err:#}");
            println!("{skipped}");
            return Ok(skipped);
        }
    };
    let (programs, payloads) = payload::build(ready, args.filter.as_deref())?;
    ensure!(!payloads.is_empty(), "no payload's name contains the given filter");
    let image = initramfs(&kernel, &programs, &payloads)?;
    let path = ready.project.tools.join("initramfs.cpio");
    image.write_to(&path)?;
    sh::say(&format!("booting {} with {} payloads", kernel.release, payloads.len()));
    let report = qemu::boot(&kernel.image, &path, Duration::from_secs(args.timeout))?;
    judge(&report, &payloads).map(|passed| format!("{passed} payloads passed on Linux {}", kernel.release))
}

/// Everything that may be impossible on this machine through no fault of ours.
fn prepare(project: &Project, package: &str) -> Result<kernel::Kernel> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the guest is x86_64, this machine is {}",
        std::env::consts::ARCH
    );
    setup::ensure_packages(setup::VM, "for the virtual machine")?;
    kernel::fetch(project, package)
}

fn initramfs(
    kernel: &kernel::Kernel,
    programs: &[payload::Program],
    payloads: &[payload::Payload],
) -> Result<Initramfs> {
    let mut image = Initramfs::new();
    for program in programs {
        image.file(&format!("bin/{}", program.name), 0o755, program.bytes.clone())?;
    }
    init::add_user_space(&mut image)?;
    let modules = modules::in_load_order(kernel, MODULES)?;
    let mut names = Vec::new();
    for module in &modules {
        image.file(&format!("modules/{}.ko", module.name), 0o644, module.bytes.clone())?;
        names.push(module.name.as_str());
    }
    for payload in payloads {
        image.file(&payload.guest_path(), 0o755, payload.bytes.clone())?;
    }
    image.file("init", 0o755, init::script(&names, payloads).into_bytes())?;
    Ok(image)
}

/// Every payload must have said that it ended, and how.
fn judge(report: &qemu::Report, payloads: &[payload::Payload]) -> Result<usize> {
    let failed: Vec<String> = payloads
        .iter()
        .filter_map(|payload| match report.exits.get(payload.name) {
            Some(0) => None,
            Some(code) => Some(format!("`{}` exited with {code}", payload.name)),
            None => Some(format!("`{}` did not end", payload.name)),
        })
        .collect();
    let trouble = [failed, report.trouble()].concat();
    if trouble.is_empty() {
        return Ok(payloads.len());
    }
    bail!("in the virtual machine: {}", trouble.join(", "));
}

/// Reads a file that goes into the image.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|err| anyhow::anyhow!("failed to read `{}`: {err}", path.display()))
}
