//! One lab's name, its folder and its lock, and the removal of whatever a lab has left behind.
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::{Netns, Ns};
use crate::probe::{ClientSaw, Probe, Probed};
use crate::shell;

/// Where every lab keeps its folder.
pub const RUN_ROOT: &str = "/run/plsprobe-lab";

/// A lab by its name; it may be up, down, or left behind by a killed owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

/// What `state.json` holds: enough to end our own processes and no others.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) owner: Option<Process>,
    /// Children that must not outlive the owner.
    pub(crate) children: Vec<Process>,
}

/// A process, told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    start_time: u64,
}

/// Ownership of an instance, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The log and, last, the lock itself: all that lies outside the lab's folder.
    paths: [PathBuf; 2],
    _file: File,
}

impl Instance {
    /// An instance by its name.
    ///
    /// # Errors
    ///
    /// The name is not 1 to 32 of `a-z`, `0-9` and `-`.
    pub fn new(name: &str) -> Result<Self> {
        let fits = (1..=32).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        ensure!(fits, "instance name `{name}` is unusable, expected 1 to 32 of a-z, 0-9 and `-`");
        Ok(Self { name: name.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One of its namespaces, whether it exists or not.
    pub fn netns(&self, ns: Ns) -> Netns {
        Netns::new(&self.name, ns)
    }

    /// Its folder.
    pub fn dir(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(&self.name)
    }

    /// Where its bpffs is mounted.
    pub fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// What stands for `/var/run/cilium`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// Makes one attempt inside the lab, whoever owns it, and says what the client saw.
    ///
    /// # Errors
    ///
    /// The attempt could not be made: nothing about the network between can be concluded.
    pub fn probe(&self, probe: &Probe) -> Result<ClientSaw> {
        self.probe_both_ends(probe).map(|probed| probed.saw)
    }

    /// Makes one attempt inside the lab and says what both ends saw.
    ///
    /// # Errors
    ///
    /// As [`Self::probe`].
    pub fn probe_both_ends(&self, probe: &Probe) -> Result<Probed> {
        probe.send(&self.netns(probe.from))
    }

    /// A fresh file beside the lab's folder for what a background owner has to say; it goes when the owner ends, or
    /// by [`Self::remove_log`] if there never was one.
    ///
    /// # Errors
    ///
    /// The lab is up, so the log is its owner's; or the file cannot be created.
    pub fn create_log(&self) -> Result<File> {
        self.lock()?;
        let path = self.log_path();
        let mut options = File::options();
        options.create(true).truncate(true).read(true).write(true);
        options.open(&path).with_context(|| format!("failed to create `{}`", path.display()))
    }

    /// Removes the log of an owner that did not get the lab up.
    ///
    /// # Errors
    ///
    /// The lab is up.
    pub fn remove_log(&self) -> Result<()> {
        // Whoever gives the lock back removes what lies beside the folder.
        self.lock().map(drop)
    }

    fn log_path(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(format!("{}.log", self.name))
    }

    /// Ends the lab's owner if it lives, then removes everything of the lab. Says whether there was anything.
    ///
    /// # Errors
    ///
    /// The owner does not end, or something cannot be removed.
    pub fn down(&self) -> Result<bool> {
        let (lock, was_up) = match self.try_lock()? {
            Some(lock) => (lock, false),
            None => (self.end_owner()?, true),
        };
        let found = self.sweep()?;
        drop(lock);
        Ok(found || was_up)
    }

    /// Takes the lock.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let name = &self.name;
        self.try_lock()?.with_context(|| {
            format!("instance `{name}` is up already; run `plsprobe-lab down --instance {name}`")
        })
    }

    /// Takes the lock, or `None` if another owner has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>> {
        make_run_root()?;
        let path = Path::new(RUN_ROOT).join(format!("{}.lock", self.name));
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("failed to open `{}`", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(err)) => {
                    return Err(err).with_context(|| format!("failed to lock `{}`", path.display()));
                }
            }
            // The last owner removes the file: a lock on a removed file guards nothing.
            let ours = file.metadata().with_context(|| format!("failed to stat `{}`", path.display()))?;
            if fs::metadata(&path).is_ok_and(|now| now.ino() == ours.ino()) {
                return Ok(Some(Lock { paths: [self.log_path(), path], _file: file }));
            }
        }
    }

    /// Asks the living owner to end, insists after some seconds, and takes over its lock.
    fn end_owner(&self) -> Result<Lock> {
        let owner = self.state()?.owner;
        let Some(owner) = owner.filter(|owner| owner.is_alive()) else {
            bail!(
                "instance `{}` is locked by a process that has not written its state yet; try again",
                self.name
            );
        };
        owner.signal("TERM")?;
        let began = Instant::now();
        loop {
            if let Some(lock) = self.try_lock()? {
                return Ok(lock);
            }
            let waited = began.elapsed();
            ensure!(
                waited < Duration::from_secs(8),
                "owner of instance `{}`, process {}, does not end; end it yourself, then run this again",
                self.name,
                owner.pid
            );
            if waited > Duration::from_secs(5) && owner.is_alive() {
                owner.signal("KILL")?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes everything that a lab of this name may have left. The caller holds the lock.
    pub(crate) fn sweep(&self) -> Result<bool> {
        let mut found = false;
        let me = Process::of(std::process::id()).ok();
        for child in self.state()?.children {
            if child.is_alive() && Some(child) != me {
                child.signal("KILL")?;
                found = true;
            }
        }
        while mounts()?.contains(&self.bpffs()) {
            // Lazily: a plsprobe that still runs inside the lab may have it open.
            shell::run(Command::new("umount").arg("-l").arg(self.bpffs()))?;
            found = true;
        }
        let mut batch = String::new();
        for ns in Ns::ALL {
            let netns = self.netns(ns);
            if netns.path().exists() {
                batch.push_str("netns del ");
                batch.push_str(netns.name());
                batch.push('\n');
            }
        }
        if !batch.is_empty() {
            shell::run_with_input(Command::new("ip").args(["-force", "-batch", "-"]), &batch)?;
            found = true;
        }
        match fs::remove_dir_all(self.dir()) {
            Ok(()) => found = true,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                return Err(err).with_context(|| format!("failed to remove `{}`", self.dir().display()));
            }
        }
        Ok(found)
    }

    /// What is written in `state.json`; empty without one.
    pub(crate) fn state(&self) -> Result<State> {
        let path = self.state_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(err) => return Err(err).with_context(|| format!("failed to read `{}`", path.display())),
        };
        // A killed writer leaves nothing half-written (see `write_state`); anything else is not ours to guess.
        serde_json::from_slice(&text).with_context(|| format!("failed to parse `{}`", path.display()))
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        let path = self.state_path();
        let draft = path.with_extension("draft");
        let text = serde_json::to_vec_pretty(state).context("failed to encode the lab's state")?;
        fs::write(&draft, text).with_context(|| format!("failed to write `{}`", draft.display()))?;
        fs::rename(&draft, &path).with_context(|| format!("failed to write `{}`", path.display()))
    }

    fn state_path(&self) -> PathBuf {
        self.dir().join("state.json")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for path in &self.paths {
            // Best effort: a file that stays is found unlocked and taken over by the next owner.
            let _ = fs::remove_file(path);
        }
    }
}

impl Process {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("failed to read the state of process {pid}"))?;
        // The command's name, in parentheses, may hold anything: count fields after the last one.
        let start_time = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("failed to parse `/proc/{pid}/stat`"))?;
        Ok(Self { pid, start_time })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    fn signal(self, signal: &str) -> Result<()> {
        match shell::run(Command::new("kill").args([&format!("-{signal}"), &self.pid.to_string()])) {
            Err(err) if self.is_alive() => Err(err),
            _ => Ok(()),
        }
    }
}

fn make_run_root() -> Result<()> {
    fs::create_dir_all(RUN_ROOT).with_context(|| format!("failed to create `{RUN_ROOT}`; are you root?"))
}

/// Every mount point of this mount namespace.
fn mounts() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("failed to read the mounts")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_only_with_its_start_time() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let later = Process { start_time: process.start_time + 1, ..process };
        assert!(process.is_alive());
        assert!(!later.is_alive(), "another process that was given the same number");
        process.signal("KILL").unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
        process.signal("KILL").unwrap();
    }

    #[test]
    fn down_ends_the_children_of_a_killed_owner_and_nobody_else() {
        if let Some(why) = crate::unavailable() {
            return fixtures::skip!("{why}");
        }
        let instance = Instance::new(&format!("t{}-children", std::process::id())).unwrap();
        let sleep = || Command::new("sleep").arg("60").spawn().unwrap();
        let (mut child, mut other) = (sleep(), sleep());
        let process = Process::of(child.id()).unwrap();
        let stranger = Process { start_time: 1, ..Process::of(other.id()).unwrap() };
        fs::create_dir_all(instance.dir()).unwrap();
        instance.write_state(&State { owner: None, children: vec![process, stranger] }).unwrap();
        assert!(instance.down().unwrap());
        assert!(!child.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None, "it only has the number of one of ours");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
