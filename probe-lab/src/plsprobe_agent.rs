//! A `plsprobe agent` in the lab's node, as tests want it: started, asked, told to end, and measured.
//!
//! It panics where a test would: whatever is not as it should be is the test's failure.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::Lab;
use crate::tracing::{Trace, Traced};

/// A running one; killed when dropped.
#[derive(Debug)]
pub struct PlsprobeAgent {
    door: Door,
    process: Trace,
}

/// Where it is asked, by whoever wants to.
#[derive(Debug, Clone)]
pub struct Door {
    plsprobe: PathBuf,
    socket: PathBuf,
}

/// What a process takes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// `VmRSS`: with pages of the binary that nobody else need pay for.
    pub rss_kib: u64,
    /// Its share of what it has in memory (`Pss`).
    pub pss_kib: u64,
    /// What is its own and written (`Private_Dirty`): what a leak would grow.
    pub dirty_kib: u64,
    /// Open descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: u64,
    /// User and system time since its start.
    pub cpu: Duration,
}

impl PlsprobeAgent {
    /// Starts the binary `plsprobe` as an agent with arguments, divided by spaces, in the lab's node; it ends with the
    /// lab, and its socket is in the lab's folder.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(lab: &mut Lab, plsprobe: impl AsRef<Path>, args: &str) -> Self {
        let plsprobe = plsprobe.as_ref().to_owned();
        let socket = lab.instance().dir().join("agent/agent.sock");
        let args = format!("agent --socket {} {args}", socket.display());
        let process = Trace::start_in_node(lab, &plsprobe, &args);
        Self { door: Door { plsprobe, socket }, process }
    }

    /// Starts it and waits until it is attached.
    ///
    /// # Panics
    ///
    /// If it does not come to that.
    pub fn attached(lab: &mut Lab, plsprobe: impl AsRef<Path>, args: &str) -> Self {
        let mut agent = Self::start(lab, plsprobe, args);
        agent.process.wait_until_attached();
        agent
    }

    /// Its process: what it says on stderr, and signals to it.
    pub fn process(&mut self) -> &mut Trace {
        &mut self.process
    }

    /// Where it is asked.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Starts `plsprobe trace` by way of it.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn trace(&self, args: &str) -> Trace {
        self.door.trace(args)
    }

    /// The same, and waits until it is told that all is attached.
    ///
    /// # Panics
    ///
    /// If it does not come to that.
    #[track_caller]
    pub fn tracing(&self, args: &str) -> Trace {
        let mut trace = self.trace(args);
        trace.wait_until_attached();
        trace
    }

    /// What it leaves behind, once it ends as it was told to.
    ///
    /// # Panics
    ///
    /// If it does not end.
    #[track_caller]
    pub fn finish(self) -> Traced {
        self.process.finish()
    }

    /// How many of each kind of file it has open, as the kernel names kinds: `socket`, `anon_inode:bpf-map`.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[track_caller]
    pub fn open_files(&self) -> BTreeMap<String, usize> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("it runs");
        let mut kinds = BTreeMap::new();
        // One that it has just closed has no name any more.
        for name in folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
            let name = name.display().to_string();
            let kind = name.split(":[").next().expect("a part");
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }

    /// What it takes of the machine by now.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[track_caller]
    pub fn usage(&self) -> Usage {
        Usage::of(self.process.id())
    }
}

impl Door {
    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts `plsprobe trace` by way of it.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn trace(&self, args: &str) -> Trace {
        Trace::by_agent(&self.plsprobe, &self.socket, args)
    }
}

impl Usage {
    /// Of a process of ours, by now.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).expect("it runs");
        let (status, memory, stat) = (read("status"), read("smaps_rollup"), read("stat"));
        // Behind the name, which may have anything in it: utime and stime are fields 14 and 15 of proc(5).
        let ticks = stat.rsplit(')').next().expect("a part").split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Self {
            rss_kib: number(&status, "VmRSS:"),
            pss_kib: number(&memory, "Pss:"),
            dirty_kib: number(&memory, "Private_Dirty:"),
            fds: fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count(),
            threads: number(&status, "Threads:"),
            // A hundredth of a second each, on every kernel that Linux has built for user space to see.
            cpu: Duration::from_millis(ticks * 10),
        }
    }
}

/// The number that follows a name at the beginning of a line.
fn number(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("proc(5) has it");
    value.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let usage = Usage::of(std::process::id());
        assert!(usage.rss_kib >= usage.pss_kib && usage.pss_kib >= usage.dirty_kib, "{usage:?}");
        assert!(usage.fds >= 3 && usage.threads >= 1 && usage.dirty_kib > 0, "{usage:?}");
    }
}
