//! A plsprobe that traces in the lab's node while traffic flows.
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use probe_lab::{Lab, Ns};

use super::interrupt::Interrupt;

/// How long plsprobe traces at most.
const DURATION: Duration = Duration::from_secs(20);
/// How long it may take to attach.
const ATTACH: Duration = Duration::from_secs(5);
/// How long it may take to end after its duration.
const GRACE: Duration = Duration::from_secs(5);

/// The running program; killed when dropped.
#[derive(Debug)]
pub(super) struct Plsprobe {
    child: Child,
    started: Instant,
}

impl Plsprobe {
    /// Starts `plsprobe trace --dst pls-app --count COUNT`, its output going where ours goes, and waits until its
    /// programs are attached.
    pub(super) fn trace(program: &Path, lab: &mut Lab, count: usize) -> Result<Self> {
        let before = filters(lab)?;
        let mut command = lab.netns(Ns::Node).command(program)?;
        command.args(["trace", "--dst", "pls-app", "--count", &count.to_string(), "--duration"]);
        command.arg(format!("{}s", DURATION.as_secs()));
        command.arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
        let child = command.spawn().with_context(|| format!("failed to run `{}`", program.display()))?;
        let mut plsprobe = Self { child, started: Instant::now() };
        lab.adopt(plsprobe.child.id())?;
        while filters(lab)? <= before {
            let ended = plsprobe.child.try_wait().context("failed to wait for plsprobe")?;
            ensure!(ended.is_none(), "`{}` ended before it traced", program.display());
            ensure!(plsprobe.started.elapsed() < ATTACH, "`{}` attached nothing", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        // The uplink is not its only hook: the rest follows at once.
        std::thread::sleep(Duration::from_millis(300));
        Ok(plsprobe)
    }

    /// Waits for its end, which comes by itself.
    pub(super) fn finish(mut self, interrupt: &Interrupt) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().context("failed to wait for plsprobe")? {
                return Ok(status);
            }
            let late = self.started.elapsed() > DURATION + GRACE;
            ensure!(!late, "plsprobe did not end {} s after its duration", GRACE.as_secs());
            ensure!(!interrupt.requested(), "interrupted");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Plsprobe {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many programs are attached at the uplink's ingress.
fn filters(lab: &Lab) -> Result<usize> {
    let node = lab.netns(Ns::Node).name();
    let mut show = Command::new("tc");
    show.args(["-n", node, "filter", "show", "dev", "eth0", "ingress"]);
    let output = show.output().context("failed to run `tc`")?;
    ensure!(output.status.success(), "`tc` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).matches(" handle ").count())
}
