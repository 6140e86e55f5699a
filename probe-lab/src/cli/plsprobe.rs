//! A plsprobe in the lab's node: asked about a flow, or tracing while traffic flows.
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use probe_lab::addresses::NAT_IPS;
use probe_lab::scenario::Client;
use probe_lab::{Lab, Ns};

use super::interrupt::Interrupt;

/// How long plsprobe traces at most.
const DURATION: &str = "20s";
/// How long it may take to say that it traces.
const ATTACH: Duration = Duration::from_secs(10);
/// The agent opens its perf buffers for its first listener, which plsprobe has just become: what passes in that moment
/// is notified to nobody.
const SETTLE: Duration = Duration::from_millis(200);
/// After which time something is wrong if it has not ended.
const LIFETIME: Duration = Duration::from_secs(40);

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
    /// What [`Self::trace`] runs, for people, without the places of the lab.
    pub(super) fn line(count: usize) -> String {
        format!("plsprobe {}", trace_args(count).join(" "))
    }

    /// Starts `plsprobe trace`, its output going where ours goes, and waits until it says that it traces.
    pub(super) fn trace(program: &Path, lab: &mut Lab, count: usize) -> Result<Self> {
        let mut command = lab.netns(Ns::Node).command(program)?;
        command.args(trace_args(count)).args(["--duration", DURATION]).args(places(lab));
        command.stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to run `{}`", program.display()))?;
        let stderr = child.stderr.take().context("a piped child has no standard error")?;
        let plsprobe = Self { child, started: Instant::now() };
        lab.adopt(plsprobe.child.id())?;
        match pass_on(stderr).recv_timeout(ATTACH) {
            Ok(()) => {
                std::thread::sleep(SETTLE);
                Ok(plsprobe)
            }
            Err(RecvTimeoutError::Disconnected) => bail!("`{}` ended before it traced", program.display()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` did not say within {} s that it traces", program.display(), ATTACH.as_secs())
            }
        }
    }

    /// Waits for its end, which comes by itself.
    pub(super) fn finish(mut self, interrupt: &Interrupt) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().context("failed to wait for plsprobe")? {
                return Ok(status);
            }
            ensure!(self.started.elapsed() < LIFETIME, "plsprobe did not end after {DURATION}");
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

/// The NAT IPs are told, since only Azure's API knows them.
fn trace_args(count: usize) -> Vec<String> {
    let mut args = vec!["trace".to_owned(), "--dst".to_owned(), "pls-app".to_owned()];
    for nat_ip in NAT_IPS {
        args.extend(["--pls-nat-ip".to_owned(), nat_ip.to_string()]);
    }
    args.extend(["--count".to_owned(), count.to_string()]);
    args
}

/// Copies plsprobe's messages to our standard error; hears of the one that says that every hook is in place.
fn pass_on(stderr: ChildStderr) -> Receiver<()> {
    let (ready, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if line.starts_with("plsprobe: tracing ") {
                // Nobody waits a second time.
                let _ = ready.send(());
            }
        }
    });
    told
}
