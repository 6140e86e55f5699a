//! The binary on a live node: a lab with stand-ins for Cilium's datapath and agent, whole and broken.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use probe_lab::addresses::APP;
use probe_lab::{Lab, LabOptions, Ns, Shape};
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::tuple::{Protocol, Tuple};
use probe_user::sources::{self, LiveOptions, addresses, classifiers, live, raw::RawMap};
use rustix::process::{Pid, Signal, kill_process};

/// More than are read of a conntrack map for an answer.
const CONNECTIONS: u32 = 66_000;

/// A node with a pod `default/pls-app` that admits the NAT IP 10.224.0.8 alone.
struct Node {
    lab: Lab,
}

/// What a run printed, and its exit code.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Node {
    fn up(test: &str, shape: Shape) -> Option<Self> {
        if let Some(why) = probe_lab::standin::unavailable() {
            fixtures::skip!("{why}");
            return None;
        }
        let instance = format!("n{}-{test}", std::process::id());
        let scenario = if shape == Shape::KubeProxy { "kube-proxy" } else { "allow-nat-ip" };
        let options = LabOptions { instance, shape, scenario: scenario.to_owned() };
        Some(Self { lab: Lab::up(&options).unwrap_or_else(|error| panic!("{test}: {error:#}")) })
    }

    fn options(&self) -> LiveOptions {
        LiveOptions {
            bpffs: self.lab.bpffs().to_owned(),
            cilium_run: self.lab.run_dir().to_owned(),
            ..LiveOptions::default()
        }
    }

    fn command(&self, args: &str) -> Command {
        let mut command = self.lab.netns(Ns::Node).command(env!("CARGO_BIN_EXE_plsprobe")).unwrap();
        let LiveOptions { bpffs, cilium_run, .. } = self.options();
        command.args(args.split(' ')).arg("--bpffs").arg(bpffs).arg("--cilium-run").arg(cilium_run);
        command
    }

    fn run(&self, args: &str) -> Ran {
        ran(&mut self.command(args))
    }

    /// doctor's findings by what was looked at: status and what was found.
    fn doctor(&self) -> (i32, BTreeMap<String, (String, String)>) {
        let Ran { code, stdout, .. } = self.run("doctor -o json");
        let finding = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            assert_eq!(text("schema"), "plsprobe.doctor/1");
            (text("what"), (text("status"), text("found")))
        };
        (code, stdout.lines().map(finding).collect())
    }

    /// Maps and attached programs, as plsprobe itself reads them.
    fn state(&self) -> (BTreeMap<String, RawMap>, Vec<classifiers::Classifier>) {
        let read = || {
            let links = addresses::network().unwrap().links;
            (live::read(&self.options()).unwrap().node.maps, classifiers::classifiers(&links).unwrap())
        };
        self.lab.run_in(Ns::Node, read).unwrap()
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().expect("plsprobe runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran {
        code: output.status.code().expect("an exit code"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn doctor_finds_all_of_it() {
    for (name, shape) in [("d-aks", Shape::Aks), ("d-kpr", Shape::Kpr)] {
        let Some(node) = Node::up(name, shape) else { return };
        let (code, found) = node.doctor();
        assert_eq!(code, 0, "{found:#?}");
        let missing: Vec<_> = found.iter().filter(|(_, (status, _))| status == "missing").collect();
        assert!(missing.is_empty(), "{missing:#?}");
        let finding =
            |what: &str| found.get(what).unwrap_or_else(|| panic!("no {what} in {found:#?}")).1.as_str();
        assert!(finding("agent").starts_with("answers, Cilium 1.14."), "{}", finding("agent"));
        assert!(finding("attached programs").contains("of Cilium's by tc prio 1 handle 0x1 on "));
        assert!(finding("cilium_policy_*").starts_with("3 maps, lpm_trie, key 12, value 24"));
        assert_eq!(finding("pod interfaces"), "2 of 2 are in this network namespace");
    }
}

#[test]
fn reading_changes_nothing() {
    let Some(node) = Node::up("still", Shape::Aks) else { return };
    let before = node.state();
    for args in ["doctor", "dump policy", "dump ipcache", "explain --src 10.224.0.8 --dst pls-app:80"] {
        let ran = node.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args}: {}", ran.stdout);
    }
    assert_eq!(node.state(), before);
}

#[test]
fn without_the_agent_maps_still_answer() {
    let Some(mut node) = Node::up("silent", Shape::Aks) else { return };
    node.lab.stop_agent();
    let ran = node.run("explain --src 10.221.1.4 --dst 10.0.0.143:80");
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("Policy denied") && ran.stdout.contains("cilium.sock"), "{}", ran.stdout);
    let (code, found) = node.doctor();
    assert_eq!((code, found["agent cilium.sock"].0.as_str()), (0, "degraded"), "{found:#?}");
    assert_eq!(found["monitor socket"].0, "degraded");
}

#[test]
fn a_map_that_is_missing_is_named() {
    let Some(node) = Node::up("gone", Shape::Aks) else { return };
    fs::remove_file(node.lab.bpffs().join("tc/globals/cilium_ipcache")).unwrap();
    let ran = node.run("explain --src 10.221.1.4 --dst 10.0.0.143:80");
    assert_eq!(ran.code, 3, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("cilium_ipcache"), "{}", ran.stdout);
    let (code, found) = node.doctor();
    assert_eq!(code, 2);
    assert_eq!(found["cilium_ipcache"], ("missing".to_owned(), "no such pin".to_owned()));
    assert_eq!(found["explain, dump"], ("missing".to_owned(), "needs cilium_ipcache".to_owned()));
}

/// Puts a conntrack map in the place of the node's that holds more than is read for an answer: the connections of many
/// clients, by their ports and addresses, to the pod.
fn many_connections(node: &Node) {
    let pin = node.lab.bpffs().join("tc/globals/cilium_ct4_global");
    fs::remove_file(&pin).unwrap();
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let mut map = MapHandle::create(MapType::LruHash, Some("ct"), 14, 56, 4 * CONNECTIONS, &opts).unwrap();
    map.pin(&pin).unwrap();
    for number in 0..CONNECTIONS {
        let [_, first, second, third] = number.to_be_bytes();
        let (saddr, daddr) = ([10, 99 + first, second, third].into(), APP.into());
        let tuple = Tuple { saddr, daddr, sport: 40_000, dport: 80, protocol: Protocol::TCP };
        map.update(&CtTuple::ingress(tuple).encode(), &[0; CtEntry::SIZE], MapFlags::ANY).unwrap();
    }
}

/// Of more connections than are read those of a question are looked up; one that is not there is new.
#[test]
fn an_answer_among_many_connections_is_known() {
    let Some(node) = Node::up("many", Shape::Aks) else { return };
    many_connections(&node);
    for (client, is_answer) in
        [("10.99.1.2:40000", true), ("10.100.0.0:40000", true), ("10.99.1.2:40001", false)]
    {
        let ran = node.run(&format!("explain -o json --src {APP}:80 --dst {client}"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
        let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(said["cause"]["code"] == "REPLY", is_answer, "{client}: {said:#}");
        assert!(!ran.stdout.contains("conntrack-unknown"), "{said:#}");
        assert_eq!(said["world"]["missing"], serde_json::json!([]), "{said:#}");
    }
}

/// What the node says, its snapshot says: to every client's flow, of every map.
#[test]
fn a_snapshot_answers_as_the_node() {
    for (name, shape) in [("s-aks", Shape::Aks), ("s-kpr", Shape::Kpr), ("s-kp", Shape::KubeProxy)] {
        let Some(node) = Node::up(name, shape) else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.snap");
        let before = node.state();
        let taken = node.run(&format!("snapshot {} -o json", file.display()));
        assert_eq!((taken.code, taken.stderr.as_str()), (0, ""), "{}", taken.stdout);
        assert_eq!(node.state(), before);
        let taken: serde_json::Value = serde_json::from_str(&taken.stdout).unwrap();
        assert_eq!(taken["bytes"].as_u64(), Some(file.metadata().unwrap().len()), "{taken}");
        let origin = taken["origin"].as_str().unwrap();

        let clients = probe_lab::scenario::Client::ALL.iter();
        let flows = clients
            .map(|client| format!("explain --src {} --dst {}", client.address(), client.destination()));
        let maps = "policy ipcache endpoints services conntrack nat metrics policystats node tunnel auth affinity \
                    fragments source-ranges";
        let dumps = maps.split_whitespace().map(|map| format!("dump {map}"));
        let commands: Vec<_> = flows.chain(dumps).collect();
        for command in commands.iter().flat_map(|command| [command.clone(), format!("{command} -o json")]) {
            let live = node.run(&command);
            // Anywhere: neither the lab's namespaces nor its folders.
            let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_plsprobe"));
            let from = ran(elsewhere.args(command.split(' ')).arg("--from").arg(&file));
            let stdout = live.stdout.replace("the maps of this node", &format!("the maps of {origin}"));
            let stdout = stdout.replace(r#""origin":"live""#, &format!(r#""origin":"{origin}""#));
            assert_eq!((from.code, from.stdout, from.stderr), (live.code, stdout, live.stderr), "{command}");
        }
    }
}

/// Whenever the process is ended: the file is there whole, or nothing is.
#[test]
fn a_snapshot_that_is_ended_leaves_nothing() {
    let Some(node) = Node::up("s-end", Shape::Aks) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.snap");
    for millis in 0..40 {
        let mut command = node.command(&format!("snapshot {}", file.display()));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 * millis));
        let pid = Pid::from_child(&child);
        // It may have ended before.
        let _ = kill_process(pid, Signal::TERM);
        child.wait().unwrap();
        let there = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        for path in there.collect::<Vec<_>>() {
            assert_eq!(path, file);
            sources::snapshot::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn a_user_without_privileges() {
    let Some(node) = Node::up("nobody", Shape::Aks) else { return };
    // The binary's own folder may be closed to that user, and the lab's is.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let binary = folder.path().join("plsprobe");
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    // Copied by another process: a file that any thread's child still has open for writing cannot be run.
    let install =
        Command::new("install").args(["-m", "755", env!("CARGO_BIN_EXE_plsprobe")]).arg(&binary).status();
    assert!(install.unwrap().success());
    let ran = ran(Command::new(&binary)
        .args(["dump", "policy", "--bpffs"])
        .arg(node.lab.bpffs())
        .uid(65_534)
        .gid(65_534));
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.starts_with("plsprobe: no permission to read `"), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("`; run as root\n"), "{}", ran.stderr);
}
