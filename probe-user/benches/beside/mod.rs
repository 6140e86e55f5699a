//! A program that looks at packets, beside a load in the lab; and what the load and the program then show.
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use probe_lab::{Lab, Ns};

/// How long a program may take to be attached, to see its first packet, and to end: on an emulated machine, long.
const PATIENCE: Duration = Duration::from_mins(4);

/// A program, and how it says what it does.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    /// Its name or path, and its arguments.
    pub(crate) command: Vec<String>,
    /// What is in the line on stderr by which it says that it is attached.
    pub(crate) attached: &'static str,
}

impl Tool {
    /// `plsprobe trace` with these arguments, in this lab. As an operator runs it, it writes text.
    pub(crate) fn plsprobe(program: &str, lab: &Lab, args: &[&str]) -> Self {
        let (bpffs, run) = (lab.bpffs().display().to_string(), lab.run_dir().display().to_string());
        let rest = ["--duration", "30m", "--bpffs", &bpffs, "--cilium-run", &run];
        let words = [&[program, "trace"], args, &rest].concat();
        Self { command: words.into_iter().map(str::to_owned).collect(), attached: "tracing `" }
    }
}

/// A [`Tool`] that runs in the lab's node.
pub(crate) struct Beside {
    child: Child,
    began: Instant,
    /// From its start to attached.
    pub(crate) attached_after: Duration,
    stderr: JoinHandle<String>,
    stdout: Option<JoinHandle<String>>,
    lines: Receiver<Instant>,
}

/// How a [`Beside`] ended.
pub(crate) struct Ended {
    /// From SIGINT to its end.
    pub(crate) took: Duration,
    /// What it wrote.
    pub(crate) stdout: String,
    /// What it said after it was attached.
    pub(crate) stderr: String,
}

impl Beside {
    /// Starts it and waits until it is attached. Without `keep`, what it writes to stdout goes nowhere.
    pub(crate) fn start(lab: &mut Lab, tool: &Tool, keep: bool) -> Self {
        let mut command = lab.netns(Ns::Node).command(&tool.command[0]).expect("a command");
        command.args(&tool.command[1..]).stderr(Stdio::piped());
        command.stdout(if keep { Stdio::piped() } else { Stdio::null() });
        let began = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("`{}`: {error}", tool.command[0]));
        lab.adopt(child.id()).expect("it belongs to the lab");
        let (attached, when) = mpsc::channel();
        let stderr = read_stderr(child.stderr.take().expect("a pipe"), tool.attached, attached);
        let (line, lines) = mpsc::channel();
        let stdout = child.stdout.take().map(|stdout| read_stdout(stdout, line));
        let Ok(attached_at) = when.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            panic!("`{}` was never attached: {}", tool.command.join(" "), stderr.join().expect("text"));
        };
        Self { child, began, attached_after: attached_at - began, stderr, stdout, lines }
    }

    /// From its start to the line number `count` that it wrote to stdout.
    pub(crate) fn line_after(&self, count: usize) -> Duration {
        let line = || self.lines.recv_timeout(PATIENCE).expect("it writes");
        for _ in 1..count {
            line();
        }
        line() - self.began
    }

    /// The memory it has now, and the most it ever had, in KiB.
    pub(crate) fn memory_kib(&self) -> [f64; 2] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        ["VmRSS:", "VmHWM:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("its memory");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        })
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn stop(mut self) -> Ended {
        let began = Instant::now();
        let kill = Command::new("kill").args(["-s", "INT", &self.child.id().to_string()]).status();
        assert!(kill.expect("a signal").success());
        self.child.wait().expect("it ends");
        let took = began.elapsed();
        let stdout = self.stdout.take().map(|thread| thread.join().expect("text")).unwrap_or_default();
        Ended { took, stdout, stderr: self.stderr.join().expect("text") }
    }
}

fn read_stderr(
    stderr: ChildStderr,
    attached: &'static str,
    tell: mpsc::Sender<Instant>,
) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains(attached) {
                let _ = tell.send(Instant::now());
            }
            text += &(line + "\n");
        }
        text
    })
}

fn read_stdout(stdout: ChildStdout, tell: mpsc::Sender<Instant>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = tell.send(Instant::now());
            text += &(line + "\n");
        }
        text
    })
}

impl Ended {
    /// How many records `plsprobe trace` says, at its end, that it read and lost.
    pub(crate) fn records(&self) -> (f64, f64) {
        let summary = self.stdout.lines().rfind(|line| line.starts_with("records "));
        let summary = summary.unwrap_or_else(|| panic!("no summary: {}", self.stderr));
        let before = |what| number_before(summary, what).expect("a number");
        (before(" seen"), before(" lost"))
    }

    /// From its start to its first record, as `plsprobe trace -o json` says at its end.
    pub(crate) fn first_record(&self) -> Duration {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("no summary: {}", self.stderr));
        let summary: serde_json::Value = serde_json::from_str(last).expect("JSON");
        Duration::from_millis(summary["first_record_ms"].as_u64().unwrap_or_default())
    }
}

/// The number that stands there before `what`.
pub(crate) fn number_before(text: &str, what: &str) -> Option<f64> {
    text.split_once(what)?.0.split_whitespace().last()?.parse().ok()
}

/// The middle one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
