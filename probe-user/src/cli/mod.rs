//! The command line: clap's structures and one file per subcommand, no logic.

mod across;
mod agent;
mod beyond;
mod causes;
mod doctor;
mod dump;
mod explain;
mod lint;
mod snapshot;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::sources::{LiveOptions, live};

/// Why a Private Link flow reaches a pod behind Cilium, or does not.
#[derive(Parser)]
#[command(name = "plsprobe", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 judged, allowed; 1 judged, dropped; 2 error, nothing judged; 3 inconclusive; 130 interrupted before any answer."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Flags of every subcommand.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Where the BPF file system is mounted; Cilium's pins are in tc/globals below it.
    #[arg(long, global = true, default_value = live::BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Where the agent's sockets are.
    #[arg(long, global = true, default_value = live::CILIUM_RUN, value_name = "DIR")]
    pub cilium_run: PathBuf,
    /// Text for people, or JSON, one object a line.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// The cluster and Azure.
    #[command(flatten)]
    pub beyond: beyond::Args,
}

impl Global {
    /// Where a live node's facts are, and what is known beyond it.
    ///
    /// # Errors
    ///
    /// If a file that was given cannot be used.
    pub fn live_options(&self) -> Result<LiveOptions> {
        let cluster = self.beyond.options()?;
        let (bpffs, cilium_run) = (self.bpffs.clone(), self.cilium_run.clone());
        Ok(LiveOptions { bpffs, cilium_run, cluster, ..LiveOptions::default() })
    }
}

impl Global {
    /// A flag by which other sources are asked than those of an agent on this node.
    fn other_than_the_nodes(&self) -> Option<&'static str> {
        let is_elsewhere = |given: &PathBuf, usual: &str| given.as_os_str() != usual;
        if is_elsewhere(&self.bpffs, live::BPFFS) {
            return Some("--bpffs");
        }
        if is_elsewhere(&self.cilium_run, live::CILIUM_RUN) {
            return Some("--cilium-run");
        }
        self.beyond.given()
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line, each with `"schema"`.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Watch packets to a target on this node and say of each flow what became of it, and why
    Trace(Box<trace::Args>),
    /// Watch a node for as long as it runs: for many traces at once, for what happened before, for Hubble's clients
    Agent(Box<agent::Args>),
    /// Say what happens to a packet, and why: from the maps of this node, of a snapshot or of a recording
    Explain(explain::Args),
    /// Look for what is wrong with a service, its policies and its Private Link as they are configured, without a packet
    Lint(lint::Args),
    /// Print Cilium's maps, as its own command line does
    Dump(dump::Args),
    /// Write one file with everything an answer needs, for `--from` on any machine
    Snapshot(snapshot::Args),
    /// Say what this kernel, these privileges and this Cilium allow, and what to do about the rest
    Doctor(doctor::Args),
    /// Print the catalogue of codes, or the page of one: what proves it, what it is mistaken for, the fix
    Causes(causes::Args),
}

/// How a run ended; the process' exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 0: judged, allowed; or done, where nothing is judged.
    Allowed,
    /// 1: judged, dropped.
    Dropped,
    /// 3: the facts at hand do not decide.
    Inconclusive,
    /// 130: ended by a signal before any answer.
    Interrupted,
}

impl Outcome {
    /// Of flows by verdict: allowed, dropped, inconclusive. One that was dropped counts for all, none at all tells nothing.
    pub fn of_flows(flows: [u64; 3]) -> Self {
        match flows {
            [_, dropped, _] if dropped > 0 => Self::Dropped,
            [allowed, _, 0] if allowed > 0 => Self::Allowed,
            _ => Self::Inconclusive,
        }
    }

    /// The process' exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Allowed => 0,
            Self::Dropped => 1,
            Self::Inconclusive => 3,
            Self::Interrupted => 130,
        }
    }

    /// The outcome with this exit code; `None` for 2, which is an error, and for any other.
    pub fn of_code(code: i32) -> Option<Self> {
        let all = [Self::Allowed, Self::Dropped, Self::Inconclusive, Self::Interrupted];
        all.into_iter().find(|outcome| i32::from(outcome.code()) == code)
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.code())
    }
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    ///
    /// Whatever kept it from an answer.
    pub fn run(self) -> Result<Outcome> {
        match self.command {
            Command::Explain(args) => explain::run(&args, &self.global),
            Command::Lint(args) => lint::run(&args, &self.global),
            Command::Dump(args) => dump::run(&args, &self.global),
            Command::Snapshot(args) => snapshot::run(&args, &self.global),
            Command::Doctor(args) => doctor::run(&args, &self.global),
            Command::Causes(args) => causes::run(&args, &self.global),
            Command::Agent(args) => agent::run(*args, &self.global),
            Command::Trace(args) => trace::run(*args, &self.global),
        }
    }
}
