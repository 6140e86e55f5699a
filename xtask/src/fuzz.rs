//! `cargo xtask fuzz`: the fuzz targets, each for a while, from the recordings as seeds.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::project::{Project, Rustc};
use crate::{setup, sh};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only these targets, the files in `fuzz/targets`.
    targets: Vec<String>,
    /// How long to run each.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
///
/// If there is no such target, it cannot be built, or an input breaks it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let project = Project::find()?;
    let known = targets(&project)?;
    let unknown: Vec<_> = args.targets.iter().filter(|target| !known.contains(target)).collect();
    ensure!(unknown.is_empty(), "no fuzz target {unknown:?}; there are {}", known.join(", "));
    let fuzzer = Fuzzer::ready(project)?;
    let wanted = if args.targets.is_empty() { &known } else { &args.targets };
    let mut broken = Vec::new();
    for target in wanted {
        match fuzzer.run(target, args.seconds) {
            Ok(summary) => println!("{target}: {summary}, nothing found"),
            Err(error) => {
                println!("{target}: {error:#}");
                broken.push(target.as_str());
            }
        }
    }
    ensure!(broken.is_empty(), "{} of {} targets broke: {}", broken.len(), wanted.len(), broken.join(", "));
    Ok(())
}

/// Names of the targets.
fn targets(project: &Project) -> Result<Vec<String>> {
    let folder = project.root.join("fuzz/targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("failed to list `{}`", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// What a run needs: cargo-fuzz, seeds, a sanitizer.
struct Fuzzer {
    project: Project,
    cargo_fuzz: std::path::PathBuf,
    sanitizer: &'static str,
}

impl Fuzzer {
    fn ready(project: Project) -> Result<Self> {
        let cargo_fuzz = setup::ensure_cargo_fuzz(&project)?;
        let sanitizer = sanitizer(&Rustc::ask(&project)?);
        let mut seeds = Command::new("cargo");
        seeds.args(["run", "--package", "fuzz-harness", "--bin", "fuzz-seeds", "--"]);
        seeds.arg(project.target.join("fuzz-corpus")).current_dir(&project.root);
        // Decoders need no eBPF object.
        sh::run(seeds.env("AYA_BUILD_SKIP", "1").env_remove("CARGO_TERM_QUIET"))?;
        Ok(Self { project, cargo_fuzz, sanitizer })
    }

    /// Runs one target; returns what it did.
    fn run(&self, target: &str, seconds: u32) -> Result<Stats> {
        let folder = |name: &str| -> Result<std::path::PathBuf> {
            let path = self.project.target.join(name).join(target);
            fs::create_dir_all(&path).with_context(|| format!("failed to make `{}`", path.display()))?;
            Ok(path)
        };
        let (corpus, broken, logs) = (folder("fuzz-corpus")?, folder("fuzz-found")?, folder("fuzz-logs")?);
        // By itself, as it takes minutes the first time and says so.
        sh::run(self.cargo_fuzz("build").arg(target))?;
        let mut cmd = self.cargo_fuzz("run");
        cmd.arg(target).arg(&corpus);
        let regressions = self.project.root.join("fuzz/regressions").join(target);
        if regressions.is_dir() {
            cmd.arg(&regressions);
        }
        cmd.arg("--").arg(format!("-max_total_time={seconds}"));
        // The slowest seed takes some milliseconds; half a minute is a loop that the input's author controls.
        cmd.args(["-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        cmd.arg(format!("-artifact_prefix={}/", broken.display()));
        let log = logs.join("last.log");
        sh::say(&format!(
            "{target} for {seconds} s (sanitizer {}); log in `{}`",
            self.sanitizer,
            log.display()
        ));
        let stats = logged(&mut cmd, &log)?;
        if let Some(found) = &stats.found {
            bail!(
                "{stats}; broken by `{found}`; once repaired, keep it as `fuzz/regressions/{target}/NAME`, made small by \
                 `cargo fuzz tmin`"
            );
        }
        Ok(stats)
    }

    /// `cargo fuzz SUBCOMMAND`, which wants a nightly compiler or one that takes itself for one.
    fn cargo_fuzz(&self, subcommand: &str) -> Command {
        let mut cmd = Command::new(&self.cargo_fuzz);
        cmd.arg("fuzz").arg(subcommand).arg("--fuzz-dir").arg(self.project.root.join("fuzz"));
        cmd.arg("--target-dir").arg(self.project.target.join("fuzz")).args(["--sanitizer", self.sanitizer]);
        cmd.env("RUSTC_BOOTSTRAP", "1").env("AYA_BUILD_SKIP", "1").env_remove("CARGO_TERM_QUIET");
        cmd.current_dir(self.project.root.join("fuzz"));
        cmd
    }
}

/// The address sanitizer, where the toolchain brings its runtime.
fn sanitizer(rustc: &Rustc) -> &'static str {
    let folder = rustc.sysroot.join("lib/rustlib").join(&rustc.host).join("lib");
    let has_runtime = fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.asan.a"))
    });
    if has_runtime { "address" } else { "none" }
}

/// Runs libFuzzer, with all it says in `log`; an input that broke the target is no error here.
fn logged(cmd: &mut Command, log: &Path) -> Result<Stats> {
    let line = sh::line(cmd);
    let mut out = File::create(log).with_context(|| format!("failed to write `{}`", log.display()))?;
    let mut child = cmd
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run `{line}`"))?;
    let stderr = child.stderr.take().context("child has no stderr")?;
    let mut stats = Stats::default();
    for line in BufReader::new(stderr).split(b'\n') {
        // A panic's message may hold any byte.
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(out, "{line}")?;
        stats.read(&line);
    }
    let status = child.wait()?;
    let log = log.display();
    ensure!(status.success() || stats.found.is_some(), "`{line}` failed: {status}; see `{log}`");
    ensure!(stats.executions > 0, "`{line}` ran nothing; see `{log}`");
    Ok(stats)
}

/// What libFuzzer reports of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stats {
    executions: u64,
    coverage: u64,
    features: u64,
    seconds: u64,
    /// The file with the input that broke the target.
    found: Option<String>,
}

impl Stats {
    fn read(&mut self, line: &str) {
        // `#1024 pulse  cov: 12 ft: 34 corp: …`
        if line.starts_with('#') {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                let number = match word {
                    "cov:" => &mut self.coverage,
                    "ft:" => &mut self.features,
                    _ => continue,
                };
                *number = words.next().and_then(|word| word.parse().ok()).unwrap_or(*number);
            }
            // A broken run prints no final statistics.
            let executed = line.trim_start_matches('#').split_whitespace().next();
            self.executions = executed.and_then(|word| word.parse().ok()).unwrap_or(self.executions);
        } else if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = number.trim().parse().unwrap_or(self.executions);
        } else if let Some(rest) = line.strip_prefix("Done ") {
            // `Done 1024 runs in 11 second(s)`
            let seconds = rest.split_whitespace().nth(3);
            self.seconds = seconds.and_then(|word| word.parse().ok()).unwrap_or(0);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.found = Some(path.trim().to_owned());
        }
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, coverage, features, seconds, .. } = self;
        write!(f, "{executions} executions in {seconds} s, {coverage} edges, {features} features")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_words_are_understood() {
        let mut stats = Stats::default();
        for line in [
            "INFO: seed corpus: files: 23 min: 1b max: 1001b total: 22k rss: 50Mb",
            "#24\tINITED cov: 421 ft: 1103 corp: 19/17Kb exec/s: 0 rss: 51Mb",
            "#65536\tpulse  cov: 460 ft: 1391 corp: 75/30Kb lim: 1001 exec/s: 21845 rss: 60Mb",
            "Done 70001 runs in 3 second(s)",
            "stat::number_of_executed_units: 70001",
        ] {
            stats.read(line);
        }
        let expected = Stats { executions: 70001, coverage: 460, features: 1391, seconds: 3, found: None };
        assert_eq!(stats, expected);
        stats.read("artifact_prefix='x/'; Test unit written to x/crash-1234");
        assert_eq!(stats.found.as_deref(), Some("x/crash-1234"));
    }
}
