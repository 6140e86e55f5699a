//! A plsprobe in the lab's node: asked about a flow, or tracing while traffic flows.
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_lab::scenario::Client;
use probe_lab::{Lab, Ns};

use super::interrupt::Interrupt;

/// How long plsprobe traces at most.
const DURATION: Duration = Duration::from_secs(20);
/// How long it may take to attach.
const ATTACH: Duration = Duration::from_secs(5);
/// How long it may take to end after its duration.
const GRACE: Duration = Duration::from_secs(5);

/// What `plsprobe explain` said of one client's flow.
#[derive(Debug)]
pub(super) struct Said {
    /// Whether it says that the flow gets to its end; `None` where it does not know.
    pub(super) allowed: Option<bool>,
    /// Its verdict and the code of the cause.
    pub(super) verdict: String,
}

/// Asks `plsprobe explain` in the lab's node about what `client` sends.
pub(super) fn explain(program: &Path, lab: &Lab, client: Client) -> Result<Said> {
    let mut command = lab.netns(Ns::Node).command(program)?;
    command.args(["explain", "--src", &client.address().to_string()]);
    command.args(["--dst", &client.destination().to_string()]);
    command.args(places(lab));
    let output = command.output().with_context(|| format!("failed to run `{}`", program.display()))?;
    let allowed = match output.status.code() {
        Some(0) => Some(true),
        Some(1) => Some(false),
        Some(3) => None,
        _ => bail!("`plsprobe explain` failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // The first line is `TUPLE: VERDICT`; the cause's code stands in brackets at the end of a line below it.
    let verdict =
        text.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, verdict)| verdict);
    let code =
        text.lines().find_map(|line| line.strip_suffix(']')?.rsplit_once('[')).map_or("", |(_, code)| code);
    Ok(Said { allowed, verdict: format!("{verdict} [{code}]") })
}

/// Where a plsprobe finds the lab's pins and sockets.
fn places(lab: &Lab) -> [OsString; 4] {
    ["--bpffs".into(), lab.bpffs().into(), "--cilium-run".into(), lab.run_dir().into()]
}

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
        command.args(places(lab));
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
