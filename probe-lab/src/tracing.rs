//! A `plsprobe trace` in the lab's node, as tests want it: started, listened to, told to end, and read.
//!
//! It panics where a test would: whatever is not as it should be is the test's failure.
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::Lab;
use crate::netns::Ns;
use crate::scenario::Client;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The last line of its start, which says where verdicts come from: all is attached then.
const ATTACHED: &str = "verdicts come from";

/// A running one; killed when dropped.
#[derive(Debug)]
pub struct Trace {
    child: Child,
    data: Receiver<String>,
    lines: Receiver<String>,
    stderr: String,
}

/// What one left behind.
#[derive(Debug)]
pub struct Traced {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said beside that.
    pub stderr: String,
}

impl Trace {
    /// Starts the binary `plsprobe` with arguments, divided by spaces, in the lab's node; it ends with the lab.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(lab: &mut Lab, plsprobe: impl AsRef<Path>, args: &str) -> Self {
        Self::start_in_node(lab, plsprobe, &format!("trace {args}"))
    }

    /// The same with any subcommand, which is the first of `args`.
    pub(crate) fn start_in_node(lab: &mut Lab, plsprobe: impl AsRef<Path>, args: &str) -> Self {
        let mut command = lab.netns(Ns::Node).command(plsprobe.as_ref()).expect("the lab's node");
        command.args(args.split_whitespace());
        command.arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
        let trace = Self::spawn(&mut command);
        lab.adopt(trace.id()).expect("it belongs to the lab");
        trace
    }

    /// Starts `plsprobe trace` by way of the agent at `socket`. It needs no lab, and ends with its agent.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn by_agent(plsprobe: impl AsRef<Path>, socket: &Path, args: &str) -> Self {
        let mut command = Command::new(plsprobe.as_ref());
        Self::spawn(command.arg("trace").args(args.split_whitespace()).arg("--agent").arg(socket))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("plsprobe runs");
        let data = lines(child.stdout.take().expect("a pipe"));
        let lines = lines(child.stderr.take().expect("a pipe"));
        Self { child, data, lines, stderr: String::new() }
    }

    /// Starts it and waits until it is attached.
    ///
    /// # Panics
    ///
    /// If it does not come to that.
    pub fn attached(lab: &mut Lab, plsprobe: impl AsRef<Path>, args: &str) -> Self {
        let mut trace = Self::start(lab, plsprobe, args);
        trace.wait_until_attached();
        trace
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has said that it is attached.
    pub fn is_attached(&mut self) -> bool {
        while let Ok(line) = self.lines.try_recv() {
            self.hear(&line);
        }
        self.stderr.contains(ATTACHED)
    }

    /// Waits until it is attached.
    ///
    /// # Panics
    ///
    /// If it does not come to that.
    #[track_caller]
    pub fn wait_until_attached(&mut self) {
        if !self.is_attached() {
            self.wait_for(ATTACHED);
        }
    }

    /// Waits for its next line on stderr that contains `text`.
    ///
    /// # Panics
    ///
    /// If none comes within [`PATIENCE`].
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.hear(&line);
            if line.contains(text) {
                return line;
            }
        }
        panic!("it does not say `{text}`:\n{}", self.stderr);
    }

    /// Takes its next line of data, if one comes within this time; [`Self::finish`] gives those that were not taken.
    pub fn take_data(&self, within: Duration) -> Option<String> {
        self.data.recv_timeout(within).ok()
    }

    fn hear(&mut self, line: &str) {
        self.stderr.push_str(line);
        self.stderr.push('\n');
    }

    /// Sends it a signal by its name: `INT`, `STOP`.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(kill.expect("`kill` runs").success(), "it has ended");
    }

    /// The same, unless it has ended by itself meanwhile.
    ///
    /// # Panics
    ///
    /// If it cannot be sent.
    pub fn signal_if_alive(&mut self, name: &str) {
        // Until it was waited for, its number is nobody else's.
        if !self.has_ended() {
            self.signal(name);
        }
    }

    /// Whether it has ended.
    ///
    /// # Panics
    ///
    /// If the kernel does not say.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// What it leaves behind, once it ends by itself or as it was told to.
    ///
    /// # Panics
    ///
    /// If it does not end within [`PATIENCE`].
    #[track_caller]
    pub fn finish(mut self) -> Traced {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.stderr);
            std::thread::sleep(Duration::from_millis(10));
        };
        while let Ok(line) = self.lines.recv() {
            self.hear(&line);
        }
        let stdout = self.data.iter().map(|line| line + "\n").collect();
        Traced { code: status.code(), stdout, stderr: std::mem::take(&mut self.stderr) }
    }
}

/// Tries until it is so, and gives what it gave.
///
/// # Panics
///
/// With what is still wrong after [`PATIENCE`].
#[track_caller]
pub fn wait_until<T>(mut what: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match what() {
            Ok(value) => return value,
            Err(wrong) => assert!(Instant::now() < until, "still after {PATIENCE:?}: {wrong}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads a pipe to its end, a line at a time.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    let pipe = BufReader::new(pipe).lines();
    std::thread::spawn(move || pipe.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

impl Drop for Trace {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traced {
    /// The flows of its JSON.
    ///
    /// # Panics
    ///
    /// If a line is none.
    pub fn flows(&self) -> Vec<Value> {
        self.with_schema("plsprobe.trace.flow/1")
    }

    /// The summary of its JSON.
    ///
    /// # Panics
    ///
    /// If there is not exactly one.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let mut found = self.with_schema("plsprobe.trace.summary/1");
        assert_eq!(found.len(), 1, "{}{}", self.stdout, self.stderr);
        found.remove(0)
    }

    /// What was told of health probes in its JSON, in order.
    ///
    /// # Panics
    ///
    /// If a line is none.
    pub fn probes(&self) -> Vec<Value> {
        self.with_schema("plsprobe.trace.probe/1")
    }

    /// The lines of its JSON with this schema, in order.
    ///
    /// # Panics
    ///
    /// If a line is no JSON.
    pub fn with_schema(&self, schema: &str) -> Vec<Value> {
        let lines = self.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter(|value| value["schema"] == schema).collect()
    }

    /// The flow of a client, by the address that the node sees.
    ///
    /// # Panics
    ///
    /// If there is not exactly one.
    #[track_caller]
    pub fn flow(&self, client: Client) -> Value {
        let address = client.address().to_string();
        let mut flows = self.flows();
        flows.retain(|flow| flow["tuple"]["saddr"] == address.as_str());
        assert_eq!(flows.len(), 1, "{client}: {flows:#?}\n{}", self.stderr);
        flows.remove(0)
    }
}
