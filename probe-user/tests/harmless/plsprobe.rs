//! One `plsprobe trace` in the lab's node, ended by a signal.
use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use probe_lab::{Lab, Ns};
use serde_json::Value;

use crate::state::KernelObjects;
use crate::{PATIENCE, wait_until};

/// What it says once everything is attached.
const ATTACHED: &str = "verdicts come from";

/// A running one; killed when dropped.
pub(crate) struct Plsprobe {
    child: Child,
    lines: Receiver<String>,
    said: RefCell<Vec<String>>,
    stdout: Option<std::thread::JoinHandle<String>>,
}

/// By what it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
    Kill,
}

impl Signal {
    pub(crate) const ALL: [Self; 3] = [Self::Interrupt, Self::Terminate, Self::Kill];

    fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "INT",
            Self::Terminate => "TERM",
            Self::Kill => "KILL",
        }
    }
}

impl Plsprobe {
    /// Starts it; whether it is attached yet is another question.
    pub(crate) fn trace(lab: &mut Lab, args: &[&str]) -> Self {
        let mut command = lab.netns(Ns::Node).command(env!("CARGO_BIN_EXE_plsprobe")).unwrap();
        command.arg("trace").args(args).args(["--duration", "10m"]);
        command.arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("plsprobe runs");
        lab.adopt(child.id()).unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || stderr.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut pipe = child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).expect("it prints text");
            text
        });
        Self { child, lines, said: RefCell::default(), stdout: Some(stdout) }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.said.borrow_mut().extend(self.lines.try_iter());
        self.said.borrow().iter().any(|line| line.contains(ATTACHED))
    }

    pub(crate) fn wait_until_attached(&self) {
        self.wait_until_it_says(ATTACHED);
    }

    #[track_caller]
    pub(crate) fn wait_until_it_says(&self, text: &str) {
        loop {
            if self.said.borrow().iter().any(|line| line.contains(text)) {
                return;
            }
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.said.borrow_mut().push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("it does not say `{text}` but {:#?}", self.said.borrow())
                }
            }
        }
    }

    /// Our objects in the kernel that it has open; empty once it has ended.
    pub(crate) fn kernel_objects(&self) -> KernelObjects {
        KernelObjects::of(self.child.id())
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Ends it, waits for that, and returns its summary if it printed JSON.
    pub(crate) fn end(mut self, signal: Signal) -> Option<Value> {
        let was_attached = self.is_attached();
        self.signal(signal.name());
        let status =
            wait_until(|| self.child.try_wait().unwrap().ok_or(format!("{signal:?} does not end it")));
        let said = || self.said.borrow().join("\n");
        match (signal, was_attached) {
            (Signal::Kill, _) => assert_eq!(status.code(), None),
            // By itself, with whatever answer it had.
            (_, true) => assert!(matches!(status.code(), Some(0 | 1 | 3 | 130)), "{status}: {}", said()),
            // Before it handles signals there is nothing to undo; in between it is an interrupted start.
            (_, false) => assert_ne!(status.code(), Some(101), "{}", said()),
        }
        let stdout = self.stdout.take()?.join().expect("its output was read");
        let summary = |line: &str| {
            let value: Value = serde_json::from_str(line).ok()?;
            (value["schema"] == "plsprobe.trace.summary/1").then_some(value)
        };
        stdout.lines().find_map(summary)
    }
}

impl Drop for Plsprobe {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What it still says is nobody's concern.
        let _ = self.lines.recv_timeout(Duration::ZERO);
    }
}
