//! `cargo xtask test`: every check this project has, one stage after the other.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo::EBPF_CRATES;
use crate::setup::Ready;
use crate::{cargo, lab, setup, sh, tidy, vm};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these stages.
    #[arg(value_enum)]
    stages: Vec<Stage>,
    /// Fail rather than skip where the virtual machine cannot be had.
    #[arg(long)]
    require_vm: bool,
}

impl Args {
    /// All stages, and no excuse for the virtual machine.
    pub(crate) fn for_release() -> Self {
        Self { stages: Vec::new(), require_vm: true }
    }
}

/// Lints that eBPF programs cannot keep: what is not inlined is another function to the verifier, which then knows
/// less, and aya's macros hand the context over by value.
const EBPF_EXCEPTIONS: [&str; 4] = ["-A", "clippy::inline_always", "-A", "clippy::needless_pass_by_value"];

/// A part of `cargo xtask test`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// the rules of the house that no compiler checks
    Tidy,
    /// formatting
    Fmt,
    /// clippy over the host crates and, for the BPF target, over the eBPF crates
    Clippy,
    /// documentation builds without a warning
    Doc,
    /// `cargo test` of the host crates, as root
    Cargo,
    /// `deploy/` and `scripts/`: what the chart gives, and that it runs; the systemd unit, `run-on-node`
    Deploy,
    /// the kernel tests in virtual machines of two kernels
    Vm,
}

const ALL: [Stage; 7] =
    [Stage::Tidy, Stage::Fmt, Stage::Clippy, Stage::Doc, Stage::Cargo, Stage::Deploy, Stage::Vm];

/// Runs `cargo xtask test`.
///
/// # Errors
///
/// If a stage fails. The others are run all the same: one run tells everything there is to repair.
pub(crate) fn run(args: &Args) -> Result<()> {
    for lack in setup::missing_in_kernel() {
        sh::say(&format!("{lack}; the tests that need it will be skipped"));
    }
    let stages = if args.stages.is_empty() { &ALL[..] } else { &args.stages };
    let ready = setup::ensure()?;
    setup::ensure_components(&ready.project)?;
    let mut summary = Vec::new();
    let mut failed = 0;
    for stage in stages {
        let start = Instant::now();
        sh::say(&format!("stage {stage:?}"));
        let outcome = stage.run(&ready, args).unwrap_or_else(|err| {
            sh::say(&format!("stage {stage:?} failed: {err:#}"));
            failed += 1;
            format!("FAILED: {err:#}")
        });
        summary.push(format!("  {:<7} {:>4} s  {outcome}", format!("{stage:?}"), start.elapsed().as_secs()));
    }
    println!("\n{} of {} stages passed:\n{}", stages.len() - failed, stages.len(), summary.join("\n"));
    ensure!(failed == 0, "{failed} of {} stages failed", stages.len());
    Ok(())
}

impl Stage {
    /// Runs one stage; returns what to say of it in the summary.
    fn run(self, ready: &Ready, args: &Args) -> Result<String> {
        match self {
            Self::Tidy => tidy::check(&ready.project).map(|rules| format!("{rules} rules hold")),
            Self::Fmt => fmt(ready),
            Self::Clippy => clippy(ready),
            Self::Doc => doc(ready),
            Self::Cargo => cargo_test(ready),
            Self::Deploy => deploy(ready),
            Self::Vm => vm::test(ready, &vm::Args::in_ci(args.require_vm)?),
        }
    }
}

fn fmt(ready: &Ready) -> Result<String> {
    let mut cmd = Command::new("cargo");
    sh::run(cmd.args(["fmt", "--all", "--check"]).current_dir(&ready.project.root))
        .context("run `cargo fmt --all`")?;
    Ok("formatted".to_owned())
}

fn clippy(ready: &Ready) -> Result<String> {
    sh::run(cargo::host(ready, "clippy").args(["--all-targets", "--", "-D", "warnings"]))?;
    let mut ebpf = cargo::bpf(ready, "clippy");
    sh::run(ebpf.args(["--", "-D", "warnings"]).args(EBPF_EXCEPTIONS))?;
    Ok(format!("clean, {} included", EBPF_CRATES.join(" and ")))
}

fn doc(ready: &Ready) -> Result<String> {
    let mut cmd = cargo::host(ready, "doc");
    sh::run(cmd.args(["--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok("no warning".to_owned())
}

fn cargo_test(ready: &Ready) -> Result<String> {
    let mut cmd = cargo::host(ready, "test");
    cargo::run_tests_as_root(ready, &mut cmd, "run the tests that make namespaces and load eBPF")?;
    let mut child = cmd.arg("--no-fail-fast").stdout(Stdio::piped()).spawn()?;
    let mut tally = Tally::default();
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("failed to read cargo's output")?;
        writeln!(std::io::stdout(), "{line}")?;
        tally.read(&line);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{tally}; `cargo test`: {status}");
    ensure!(tally.passed > 0, "`cargo test` ran no test");
    Ok(tally.to_string())
}

/// Runs the programs that the stage before it has built; without them, what needs them is skipped.
fn deploy(ready: &Ready) -> Result<String> {
    setup::ensure_packages(setup::DEPLOY, "to check `deploy`")?;
    let python = setup::ensure_python(&ready.project)?;
    let mut tests = sh::as_root(python, "run the DaemonSet's container in the lab")?;
    tests.args(["-B", "-m", "unittest", "discover", "--verbose", "--start-directory", "deploy/tests"]);
    for (variable, program) in [("PLSPROBE", "plsprobe"), ("PLSPROBE_LAB", "plsprobe-lab")] {
        tests.env(variable, lab::binary(ready, program));
    }
    let out = tests.current_dir(&ready.project.root).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    std::io::stderr().write_all(text.as_bytes())?;
    ensure!(out.status.success(), "`{}`: {}", sh::line(&tests), out.status);
    unittest_ran(&text).context("it did not say what it ran")
}

/// What Python's unittest says: how many tests it ran, and which it skipped and why. `None` if it ran none.
fn unittest_ran(text: &str) -> Option<String> {
    let ran = text.lines().find_map(|line| line.strip_prefix("Ran "))?.split(" in ").next()?;
    let skipped = text.lines().filter(|line| line.contains(" ... skipped "));
    let lines: Vec<&str> = std::iter::once(ran).chain(skipped).collect();
    (!ran.starts_with("0 ")).then(|| lines.join(&format!("\n{:>18}", "")))
}

/// What the test binaries reported, added up.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Reasons for which tests skipped themselves, and how often. The harness counts such a test as passed.
    skipped: BTreeMap<String, u32>,
}

impl Tally {
    fn read(&mut self, line: &str) {
        // `skipped (3 so far): not root`, as `fixtures::skip!` prints it.
        let skipped = line.strip_prefix("skipped (").and_then(|rest| rest.split_once(" so far): "));
        if let Some((_, reason)) = skipped {
            *self.skipped.entry(reason.trim().to_owned()).or_default() += 1;
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        for part in counts.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next().and_then(|n| n.parse::<u32>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let skipped: u32 = self.skipped.values().sum();
        // Saturating: one test may print more than one such line.
        write!(f, "{} tests passed, {skipped} skipped", self.passed.saturating_sub(skipped))?;
        for (what, count) in [("failed", self.failed), ("ignored", self.ignored)] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        for (reason, count) in &self.skipped {
            write!(f, "\n{:>18}skipped {count}: {reason}", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_over_test_binaries() {
        let mut tally = Tally::default();
        for line in [
            "test a ... ok",
            "skipped (1 so far): not root",
            "skipped (2 so far): not root",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.31s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.05s",
        ] {
            tally.read(line);
        }
        let skipped = BTreeMap::from([("not root".to_owned(), 2)]);
        assert_eq!(tally, Tally { passed: 15, failed: 2, ignored: 1, skipped });
        assert_eq!(
            tally.to_string(),
            "13 tests passed, 2 skipped, 2 failed, 1 ignored\n                  skipped 2: not root"
        );
    }

    #[test]
    fn what_unittest_says_is_understood() {
        let skipped = "setUpClass (a.B) ... skipped 'no lab'";
        let said = |end: &str| {
            unittest_ran(&format!("test_c (a.B) ... ok\n{skipped}\n\nRan {end} in 36.3s\n\nOK\n"))
        };
        assert_eq!(said("40 tests"), Some(format!("40 tests\n                  {skipped}")));
        assert_eq!(said("0 tests"), None);
        assert_eq!(unittest_ran("Segmentation fault\n"), None);
    }
}
