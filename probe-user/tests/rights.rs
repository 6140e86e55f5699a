//! With which of a container's capabilities plsprobe works, and what fails without each: the table of docs/deploy.md.
//!
//! Each run is root in name alone, as the agent in its pod: its capabilities are the given ones, and `no_new_privs` is set.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use probe_lab::scenario::Client;
use probe_lab::tracing::Trace;
use probe_lab::{Lab, LabOptions, Ns, Shape};
use serde_json::Value;
use tempfile::TempDir;

/// What the DaemonSet and the systemd unit give it.
const NEEDED: [&str; 3] = ["bpf", "perfmon", "net_admin"];

/// A node, and plsprobe with some capabilities on it.
struct Node {
    lab: Lab,
    folder: TempDir,
}

impl Node {
    fn up(test: &str) -> Option<Self> {
        let no_setpriv = Command::new("setpriv").arg("--version").output().is_err();
        let lacks = probe_lab::standin::unavailable().or(no_setpriv.then(|| "no setpriv".to_owned()));
        if let Some(why) = lacks {
            fixtures::skip!("{why}");
            return None;
        }
        let instance = format!("r{}-{test}", std::process::id());
        let scenario = "kube-proxy".to_owned();
        let lab = Lab::up(&LabOptions { instance, shape: Shape::KubeProxy, scenario }).unwrap();
        Some(Self { lab, folder: tempfile::tempdir().unwrap() })
    }

    /// A program that is plsprobe with these capabilities and no others.
    fn with(&self, capabilities: &[&str]) -> PathBuf {
        let bounding = [&["-all"], capabilities].concat().join(",+");
        let path = self.folder.path().join(&bounding);
        let text = format!(
            "#!/bin/sh\nexec setpriv --bounding-set={bounding} --inh-caps=-all --no-new-privs '{}' \"$@\"\n",
            env!("CARGO_BIN_EXE_plsprobe")
        );
        // Written by another process: a file that any thread's child still has open for writing cannot be run.
        let mut install = Command::new("install");
        install.args(["-m", "755", "/dev/stdin"]).arg(&path).stdin(Stdio::piped());
        let mut install = install.spawn().unwrap();
        install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
        path
    }

    /// Exit code, stdout and stderr of a run with these capabilities.
    fn run(&self, capabilities: &[&str], args: &str) -> (i32, String, String) {
        let mut command = self.lab.netns(Ns::Node).command(self.with(capabilities)).unwrap();
        command.args(args.split(' '));
        command.arg("--bpffs").arg(self.lab.bpffs()).arg("--cilium-run").arg(self.lab.run_dir());
        let output = command.output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), stdout, stderr)
    }

    /// What doctor calls missing with these capabilities.
    fn missing(&self, capabilities: &[&str]) -> Vec<String> {
        let (_, stdout, _) = self.run(capabilities, "doctor -o json");
        let lines = stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
        let missing = lines.filter(|line| line["status"] == "missing");
        missing.map(|line| line["what"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn three_capabilities_are_enough() {
    let Some(mut node) = Node::up("enough") else { return };
    assert_eq!(node.missing(&NEEDED), [""; 0]);
    let program = node.with(&NEEDED);
    let trace = Trace::attached(&mut node.lab, program, "--dst pls-app -o json --count 1 --duration 40s");
    node.lab.probe(&node.lab.scenario().probe(Client::ConsumerFirstNatIp)).unwrap();
    let traced = trace.finish();
    assert_eq!(traced.code, Some(1), "{}{}", traced.stdout, traced.stderr);
    // It takes netfilter's rules to know that kube-proxy replaced the source.
    assert!(traced.stdout.contains("PLS-03"), "{}", traced.stdout);
}

#[test]
fn what_fails_without_each() {
    let Some(node) = Node::up("without") else { return };
    for (without, missing) in [
        ("bpf", &["CAP_BPF", "classifier", "ring buffer", "trace", "explain, dump"][..]),
        ("perfmon", &["CAP_PERFMON", "trace"]),
        ("net_admin", &["CAP_NET_ADMIN", "classifier", "attached programs", "trace"]),
    ] {
        let rest: Vec<_> = NEEDED.into_iter().filter(|name| *name != without).collect();
        let found = node.missing(&rest);
        let overlooked: Vec<_> = missing.iter().filter(|what| !found.iter().any(|f| f == *what)).collect();
        assert!(overlooked.is_empty(), "without {without}: {overlooked:?} not in {found:?}");
        let named = found.iter().filter(|what| what.starts_with("CAP_")).count();
        assert_eq!(named, 1, "the one that lacks is named, and no other: {found:?}");

        let (code, _, stderr) = node.run(&rest, "trace --dst pls-app --duration 1s");
        assert_eq!(code, 2, "without {without}: {stderr}");
        assert!(stderr.contains(&format!("CAP_{}", without.to_uppercase())), "without {without}: {stderr}");

        if without == "bpf" {
            // Whether a pin can be read all the same is the kernel's version's to say; a runtime's seccomp refuses it.
            continue;
        }
        let (code, stdout, stderr) = node.run(&rest, "explain --src 10.224.0.8 --dst 10.0.0.143:80");
        assert_eq!(code, 0, "without {without}: {stdout}{stderr}");
        let caveat = stdout.contains("[netfilter-unknown]");
        assert_eq!(caveat, without == "net_admin", "without {without}: {stdout}");
    }
}
