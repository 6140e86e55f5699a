//! `cargo xtask vm-test`: boots Debian's kernels in QEMU, runs the kernel tests in each, and compares what plsprobe
//! answers there with what it answers here.
//!
//! Emulated (TCG), so that it runs where there is no KVM and where the machine's own kernel refuses kprobes.

mod answers;
mod init;
mod initramfs;
mod kernel;
mod matrix;
mod modules;
mod normalize;
mod payload;
mod peers;
mod qemu;
mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::setup::{self, Ready};
use crate::{dist, sh};
pub(crate) use peers::bench as bench_peers;

use answers::Answers;
use initramfs::Initramfs;
use kernel::{Kernel, SERIES, Wanted};
use payload::{Built, Payload};
use qemu::Clock;
use report::{Guest, Outcome, Row};

/// Modules that tests need; there is no modprobe in the guest that would bring one later.
const MODULES: &[&str] = &[
    "sch_ingress",
    "cls_bpf",
    "veth",
    // The lab's links.
    "bridge",
    "dummy",
    // By which a trace asks for one connection.
    "nf_conntrack_netlink",
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

/// Seconds after which a guest is taken for hung. On two cores beside a load of 13 it needs a third of that.
const TIMEOUT: u64 = 900;

/// Modules of older kernels that have since become a part of another one: a counter is in every rule that iptables makes,
/// apart on 5.10 and in `nf_tables` on 6.1.
const MERGED: &[&str] = &["nft_counter"];

/// How often a kernel is booted that dies before our pid 1 runs. On a loaded machine QEMU 7.2's emulation sometimes loses
/// a race with a kernel of two CPUs that patches its own code (`int3` in `sched_clock_cpu`); nothing of ours is there yet.
const BOOTS: u32 = 3;

/// What is booted when nobody says what.
const DEFAULT: &str = "6.1";

/// What `cargo xtask test` boots: the oldest, which lacks most, and one of the newer way to drop a packet and to keep a
/// module.
const IN_CI: [&str; 2] = ["5.10", "6.12"];

/// Arguments of `cargo xtask vm-test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel to boot: 5.10, 6.1, 6.12, 6.18, 7, or a Debian package as SUITE/PACKAGE; fetched, never installed.
    #[arg(long = "kernel", value_name = "KERNEL", default_value = DEFAULT)]
    kernels: Vec<Wanted>,
    /// Boot every kernel of the matrix, with the binary of `cargo xtask dist`, and compare more scenarios.
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
    /// Write the matrix into docs/kernels.md and README.md.
    #[arg(long, requires = "all")]
    write: bool,
    /// Fail rather than skip where QEMU or a kernel cannot be had.
    #[arg(long)]
    require: bool,
    /// Give up on a guest after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT)]
    timeout: u64,
    /// Run only the payloads whose name contains this.
    #[arg(value_name = "FILTER", conflicts_with = "write")]
    filter: Option<String>,
}

impl Args {
    /// What `cargo xtask test` runs.
    ///
    /// # Errors
    ///
    /// If [`IN_CI`] names a kernel that is not known.
    pub(crate) fn in_ci(require: bool) -> Result<Self> {
        let kernels = IN_CI.into_iter().map(str::parse).collect::<Result<_>>()?;
        Ok(Self { kernels, all: false, write: false, require, timeout: TIMEOUT, filter: None })
    }

    fn wanted(&self) -> Vec<Wanted> {
        if self.all { SERIES.map(Wanted::Newest).into() } else { self.kernels.clone() }
    }
}

/// Runs `cargo xtask vm-test`.
///
/// # Errors
///
/// If a guest fails or answers otherwise than this machine, or with `--require` if there can be no guest.
pub(crate) fn run(args: &Args) -> Result<()> {
    let outcome = test(&setup::ensure()?, args)?;
    println!("vm-test: {outcome}");
    Ok(())
}

/// Boots the kernels one after the other, runs all payloads in each, and returns what to say of it.
///
/// # Errors
///
/// As [`run`].
pub(crate) fn test(ready: &Ready, args: &Args) -> Result<String> {
    if let Err(err) = can_boot() {
        ensure!(!args.require, "no virtual machine here: {err:#}");
        return Ok(format!("skipped: no virtual machine here: {err:#}"));
    }
    let shipped = if args.all { Some(dist::build(ready)?) } else { None };
    let worlds = if args.all { answers::MANY } else { answers::FEW };
    let built = payload::build(ready, args.filter.as_deref(), shipped.as_deref(), worlds)?;
    ensure!(!built.payloads.is_empty(), "no payload's name contains the given filter");
    let lab = Lab::prepare(ready, &built, worlds, args.require || args.write)?;
    let mut rows = Vec::new();
    for wanted in args.wanted() {
        let outcome = match kernel::fetch(&ready.project, &wanted) {
            Err(err) => Outcome::NotToBeHad(format!("{err:#}")),
            Ok(kernel) => {
                Outcome::Ran(boot(ready, &wanted, &kernel, &built, &lab, Duration::from_secs(args.timeout))?)
            }
        };
        let row = Row { series: wanted.to_string(), suite: wanted.suite().to_owned(), outcome };
        println!("{}", row.text());
        rows.push(row);
    }
    if args.write {
        matrix::write(&ready.project.root, &rows)?;
    }
    report::judge(&rows, args.require)
}

/// What may be impossible on this machine through no fault of ours.
fn can_boot() -> Result<()> {
    let arch = std::env::consts::ARCH;
    ensure!(arch == "x86_64", "the guest is x86_64, this machine is {arch}");
    setup::ensure_packages(setup::VM, "for the virtual machine")
}

/// The lab's scenarios that are traced in every guest.
struct Lab<'a> {
    /// `SCENARIO/SHAPE`; empty if none are asked for.
    worlds: &'a [&'a str],
    /// What the guests' answers are compared with, where this machine can run the lab.
    host: Option<Answers>,
}

impl<'a> Lab<'a> {
    fn prepare(ready: &Ready, built: &Built, worlds: &'a [&'a str], require: bool) -> Result<Self> {
        if !built.payloads.iter().any(|payload| payload.name == payload::ANSWERS) {
            return Ok(Self { worlds: &[], host: None });
        }
        let lacks = setup::missing_in_kernel().join("\n");
        if !lacks.is_empty() {
            ensure!(!require, "nothing to compare the guests' answers with: {lacks}");
            sh::say(&format!("the guests' answers are compared with nothing: {lacks}"));
            return Ok(Self { worlds, host: None });
        }
        sh::say(&format!("tracing {} scenarios here, to compare the guests' answers with", worlds.len()));
        let host = Answers::of_this_machine(&ready.project, &built.programs, worlds)?;
        Ok(Self { worlds, host: Some(host) })
    }
}

fn boot(
    ready: &Ready,
    wanted: &Wanted,
    kernel: &Kernel,
    built: &Built,
    lab: &Lab<'_>,
    limit: Duration,
) -> Result<Guest> {
    let start = Instant::now();
    let image = ready.project.tools.join("initramfs.cpio");
    initramfs(kernel, built)?.write_to(&image)?;
    let sent = ready.project.tools.join("sent.tar");
    sh::say(&format!("booting {} with {} payloads", kernel.release, built.payloads.len()));
    let mut console = qemu::boot(&kernel.image, &image, &sent, Clock::OfHost, limit)?;
    for _ in 1..BOOTS {
        if console.started {
            break;
        }
        sh::say("it did not come as far as our pid 1; booting it again");
        console = qemu::boot(&kernel.image, &image, &sent, Clock::OfHost, limit)?;
    }
    let seconds = start.elapsed().as_secs();
    let mut trouble = [failed(&console, &built.payloads), console.trouble()].concat();
    let answers = match &lab.host {
        None => Answers::default(),
        Some(_) => {
            Answers::of_guest(&ready.project, &wanted.to_string(), &sent, lab.worlds).unwrap_or_else(|err| {
                trouble.push(format!("{err:#}"));
                Answers::default()
            })
        }
    };
    Ok(Guest {
        release: kernel.release.clone(),
        payloads: built.payloads.len(),
        programs: console.programs,
        hooks: answers.hooks(),
        compared: Answers::compare(&answers, lab.host.as_ref(), lab.worlds),
        beside_host: lab.host.is_some(),
        trouble,
        seconds,
    })
}

fn initramfs(kernel: &Kernel, built: &Built) -> Result<Initramfs> {
    let mut image = Initramfs::new();
    for program in &built.programs {
        image.file(&format!("bin/{}", program.name), 0o755, program.bytes.clone())?;
    }
    init::add_user_space(&mut image)?;
    let modules = modules::in_load_order(kernel, MODULES, MERGED)?;
    let mut names = Vec::new();
    for module in &modules {
        image.file(&format!("modules/{}.ko", module.name), 0o644, module.bytes.clone())?;
        names.push(module.name.as_str());
    }
    for payload in &built.payloads {
        image.file(&payload.guest_path(), 0o755, payload.bytes.clone())?;
    }
    image.file("init", 0o755, init::script(&names, &built.payloads).into_bytes())?;
    Ok(image)
}

/// Every payload must have said that it ended, and how.
fn failed(console: &qemu::Report, payloads: &[Payload]) -> Vec<String> {
    let failure = |payload: &Payload| match console.exits.get(payload.name) {
        Some(0) => None,
        Some(code) => Some(format!("`{}` exited with {code}", payload.name)),
        None => Some(format!("`{}` did not end", payload.name)),
    };
    payloads.iter().filter_map(failure).collect()
}

/// Reads a file that goes into the image.
fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|err| anyhow::anyhow!("failed to read `{}`: {err}", path.display()))
}
