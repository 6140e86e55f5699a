//! A lab in the background: taken down in order, or after its owner was killed.
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;

const PLSPROBE_LAB: &str = env!("CARGO_BIN_EXE_plsprobe-lab");

/// A lab's name; taken down when dropped, whatever the test came to.
struct Named(String);

impl Named {
    fn new(test: &str) -> Option<Self> {
        if let Some(why) = probe_lab::standin::unavailable() {
            fixtures::skip!("{why}");
            return None;
        }
        Some(Self(format!("t{}-{test}", std::process::id())))
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(PLSPROBE_LAB);
        command.args(args).args(["--instance", &self.0]).env_remove("PLSPROBE");
        command.output().unwrap()
    }

    /// Runs and returns what was said, which must be no failure.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn owner(&self) -> u64 {
        let text = fs::read_to_string(format!("/run/plsprobe-lab/{}/state.json", self.0)).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["owner"]["pid"].as_u64().unwrap()
    }

    /// Everything on the machine that bears the lab's name.
    fn traces(&self) -> Vec<String> {
        let list = |dir: &str| -> Vec<String> {
            let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
            entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned());
        let found = list("/run/netns").into_iter().chain(list("/run/plsprobe-lab")).chain(mounts);
        found.filter(|path| path.contains(&self.0)).collect()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

fn signal(signal: &str, pid: u64) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_mins(1), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn up_stays_and_down_leaves_nothing() {
    let Some(lab) = Named::new("updown") else { return };
    assert!(
        lab.ok(&["up", "--scenario", "allow-nat-ip"]).contains("is up: scenario allow-nat-ip, shape aks")
    );
    let again = lab.run(&["up"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("is up already; run `plsprobe-lab down --instance")
    );
    let saw = lab.ok(&["traffic"]);
    assert!(saw.starts_with(
        "consumer through NAT IP 10.224.0.8  ok\nconsumer through NAT IP 10.224.0.9  timeout\n"
    ));
    assert_eq!(lab.ok(&["down"]), format!("lab `{}` is down\n", lab.0));
    assert_eq!(lab.traces(), Vec::<String>::new());
    assert_eq!(lab.ok(&["down"]), format!("lab `{}` was not up\n", lab.0));
}

#[test]
fn a_killed_owner_is_cleaned_up_after_by_the_next() {
    let Some(lab) = Named::new("killed") else { return };
    lab.ok(&["up"]);
    let owner = lab.owner();
    signal("-KILL", owner);
    // Its other threads, which still hold its lock, may end later.
    wait_until("the owner ends", || {
        !fs::exists(format!("/proc/{owner}/cmdline")).unwrap() || is_zombie(owner) && threads(owner) < 2
    });
    assert!(!lab.traces().is_empty());
    lab.ok(&["up", "--scenario", "not-listening"]);
    assert!(lab.ok(&["traffic"]).starts_with("consumer through NAT IP 10.224.0.8  refused\n"));
    lab.ok(&["down"]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[test]
fn down_cleans_up_after_a_killed_owner() {
    let Some(lab) = Named::new("remains") else { return };
    lab.ok(&["up"]);
    signal("-KILL", lab.owner());
    assert_eq!(lab.ok(&["down"]), format!("lab `{}` is down\n", lab.0));
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[test]
fn a_terminated_owner_takes_its_lab_down() {
    let Some(lab) = Named::new("terminated") else { return };
    lab.ok(&["up"]);
    signal("-TERM", lab.owner());
    wait_until("everything goes", || lab.traces().is_empty());
}

#[test]
fn a_lab_that_does_not_come_up_leaves_nothing() {
    let Some(lab) = Named::new("refused") else { return };
    let output = lab.run(&["up", "--scenario", "kube-proxy", "--shape", "aks"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.ends_with("scenario `kube-proxy` makes no sense in shape `aks`, expected kubeproxy\n"),
        "{said}"
    );
    assert_eq!(lab.traces(), Vec::<String>::new());
}

#[test]
fn a_run_says_what_every_client_saw() {
    let Some(lab) = Named::new("run") else { return };
    let said = lab.ok(&["run", "not-listening", "--shape", "kpr"]);
    let clients: Vec<_> = said.lines().skip(1).map(|line| line.split_whitespace().last().unwrap()).collect();
    assert_eq!(clients, ["refused", "refused", "timeout", "timeout", "timeout", "ok", "ok"]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}

/// The test's process is no parent of the owner, but a container's first process may leave zombies lying about.
fn threads(pid: u64) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn is_zombie(pid: u64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
