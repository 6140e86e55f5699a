//! `cargo xtask bench`: what plsprobe costs, side by side with the plain way, in one run.

use anyhow::Result;

use crate::setup::{self, Ready};
use crate::{cargo, sh, vm};

/// The benchmarks of probe-user, `benches/NAME.rs`.
const BENCHES: [&str; 7] = ["packet", "load", "agent", "live", "model", "hubble", PEERS];

/// The one that runs in a virtual machine.
const PEERS: &str = "peers";

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these: `packet`, what one packet costs at each program; `load`, throughput and latency of bystanders,
    /// records, start, end and memory in the lab; `agent`, an agent that has nothing to do, and many traces at once;
    /// `live`, reading maps; `model`, judging; `hubble`, flows by the agent's API; `peers`, pwru and tcpdump beside
    /// plsprobe, in a virtual machine
    #[arg(value_name = "NAME", value_parser = BENCHES)]
    names: Vec<String>,
}

/// Runs the benchmarks that were named, else all of them. Nothing else should run on the machine meanwhile.
///
/// # Errors
///
/// If one cannot be built, or fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let ready = setup::ensure()?;
    let chosen =
        BENCHES.into_iter().filter(|name| args.names.is_empty() || args.names.iter().any(|n| n == name));
    for name in chosen {
        sh::say(&format!("benchmark {name}"));
        if name == PEERS { vm::bench_peers(&ready)? } else { bench(&ready, name)? }
    }
    Ok(())
}

fn bench(ready: &Ready, name: &str) -> Result<()> {
    let mut cmd = cargo::host(ready, "bench");
    cmd.args(["--package", "probe-user", "--bench", name]);
    cargo::run_tests_as_root(ready, &mut cmd, "run the benchmarks that make namespaces and load eBPF")?;
    sh::run(&mut cmd)
}
