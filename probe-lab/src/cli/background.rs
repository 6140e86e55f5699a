//! `up` and the process behind it that owns the lab.
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use probe_lab::{Instance, Lab, LabOptions, Ns};

use super::interrupt::Interrupt;

/// What the owner writes once the lab is up.
const READY: &str = "ready";

/// Starts a process that owns the lab and comes back once it is up.
pub(super) fn up(options: &LabOptions) -> Result<bool> {
    let instance = Instance::new(&options.instance)?;
    let mut log = instance.create_log()?;
    let stderr = log.try_clone().context("failed to share the log")?;
    let program = std::env::current_exe().context("failed to find this program")?;
    let mut owner = Command::new(program)
        .args(["serve", "--instance", &options.instance, "--scenario", &options.scenario, "--shape"])
        .arg(options.shape.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        // Out of reach of the terminal's Ctrl-C: it stays until `down`.
        .process_group(0)
        .spawn()
        .context("failed to start the lab's owner")?;
    let stdout = owner.stdout.take().context("a piped child has no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("failed to hear from the lab's owner")?;
    if line.trim_end() != READY {
        let status = owner.wait().context("failed to wait for the lab's owner")?;
        let said = failure(&mut log);
        instance.remove_log()?;
        return Err(said.context(format!("the lab's owner ended with {status}")));
    }
    explain(&instance, options)?;
    Ok(true)
}

/// What the owner said before it ended, without its own prefix.
fn failure(log: &mut File) -> anyhow::Error {
    let mut said = String::new();
    match log.rewind().and_then(|()| log.read_to_string(&mut said)) {
        Ok(_) => anyhow::Error::msg(said.trim_end().trim_start_matches("plsprobe-lab: ").to_owned()),
        Err(err) => anyhow::Error::new(err).context("failed to read the log"),
    }
}

fn explain(instance: &Instance, options: &LabOptions) -> Result<()> {
    let name = instance.name();
    say!("lab `{name}` is up: scenario {}, shape {}", options.scenario, options.shape);
    say!("trace in its node:");
    say!(
        "  nsenter --net={} plsprobe trace --dst pls-app --bpffs {} --cilium-run {}",
        instance.netns(Ns::Node).path().display(),
        instance.bpffs().display(),
        instance.run_dir().display()
    );
    say!("send traffic:  plsprobe-lab traffic --instance {name}");
    say!("take it down:  plsprobe-lab down --instance {name}");
    Ok(())
}

/// Owns the lab until SIGTERM, SIGINT or SIGHUP.
pub(super) fn serve(options: &LabOptions) -> Result<bool> {
    let interrupt = Interrupt::listen()?;
    let lab = Lab::up(options)?;
    say!("{READY}");
    interrupt.wait();
    lab.down()?;
    Ok(true)
}

/// Refuses when there is nothing to talk to.
pub(super) fn check_up(instance: &Instance) -> Result<()> {
    if instance.netns(Ns::Node).path().exists() {
        return Ok(());
    }
    let name = instance.name();
    bail!("lab `{name}` is not up; run `plsprobe-lab up --instance {name}`")
}
