//! Hooks of a running `plsprobe trace` on a live node: without tc, after others have interfered, and after the pod
//! that is traced was made anew.

mod live;

use std::net::TcpStream;
use std::process::Command;

use probe_lab::addresses::{AKS_ROUTER, APP_POD};
use probe_lab::agent::answers::Answers;
use probe_lab::agent::rest::Source;
use probe_lab::scenario::{Client, SCENARIOS};
use probe_lab::tracing::{PATIENCE, Trace};
use probe_lab::{ClientSaw, Lab, Ns, Shape};
use probe_model::cilium::EndpointId;
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use serde_json::Value;

use live::lab;

/// The host's side of `pls-app`'s veth.
const VETH: &str = APP_POD.host_interface;

/// Starts one of `pls-app` in the lab's node and waits until it is attached.
fn start(lab: &mut Lab, args: &str) -> Trace {
    let args = format!("--dst pls-app -o json {args}");
    Trace::attached(lab, env!("CARGO_BIN_EXE_plsprobe"), &args)
}

/// Runs a shell script in a namespace of the lab.
#[track_caller]
fn sh(lab: &Lab, ns: Ns, script: &str) -> String {
    let output = lab.netns(ns).command("sh").unwrap().args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "`{script}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// tc's filters of every interface of the node.
fn filters(lab: &Lab) -> String {
    let show = "tc filter show dev $dev $d 2>/dev/null || true";
    sh(
        lab,
        Ns::Node,
        &format!("for dev in eth0 cilium_host {VETH}; do for d in ingress egress; do {show}; done; done"),
    )
}

/// Makes the attempts, one after another as the table has them.
fn send(lab: &Lab, clients: &[Client]) -> Vec<ClientSaw> {
    std::thread::scope(|scope| {
        let attempts: Vec<_> =
            clients.iter().map(|client| scope.spawn(|| lab.probe(&client.probe()).unwrap())).collect();
        attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    })
}

/// Verdict and outcome of each client's flow, and where it was seen. Who is heard first of a drop, Cilium or the kernel,
/// depends on how soon the agent passes its notification on.
fn judged(flows: &[Value], client: Client) -> (String, String, Vec<String>) {
    let address = client.address().to_string();
    let of: Vec<&Value> = flows.iter().filter(|flow| flow["tuple"]["saddr"] == address.as_str()).collect();
    assert_eq!(of.len(), 1, "{client}: {flows:#?}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let points = of[0]["hops"].as_array().unwrap().iter().map(|hop| text(&hop["point"])).collect();
    let outcome = text(&of[0]["outcome"]["outcome"]).replace("-by-kernel", "-by-cilium");
    (text(&of[0]["verdict"]), outcome, points)
}

fn without_tc(shape: Shape) {
    // One that lets some pass and drops others.
    let name = ["allow-nat-ip", "seed-deny", "none"]
        .into_iter()
        .find(|name| SCENARIOS.iter().any(|one| one.name == *name && one.shapes.contains(&shape)));
    let Some(mut lab) = lab(&format!("notc-{shape}"), shape, name.unwrap()) else { return };
    let before = filters(&lab);
    let mut by = |args: &str| {
        let trace = start(&mut lab, &format!("--count 4 --duration 40s {args}"));
        if args.contains("--no-tc") {
            assert_eq!(filters(&lab), before, "nothing is attached to tc");
        }
        let saw = send(&lab, &Client::TO_APP);
        (saw, trace.finish())
    };
    let (with_saw, with) = by("");
    let (without_saw, traced) = by("--no-tc");
    let (with, without, summary) = (with.flows(), traced.flows(), traced.summary());
    assert_eq!(with_saw, without_saw);
    for client in Client::TO_APP {
        let (tc, no_tc) = (judged(&with, client), judged(&without, client));
        assert_eq!((tc.0, tc.1), (no_tc.0, no_tc.1), "{client} in {shape}: {without:#?}");
    }
    let arrived = judged(&without, Client::PeeredVm).2;
    assert_eq!(arrived[0], "UplinkIn", "receiving stands in for the classifier: {arrived:?}");
    assert_eq!(filters(&lab), before);
    let said = "nothing is attached to tc: every packet of the machine passes";
    assert!(traced.stderr.contains(said), "{}", traced.stderr);
    let tc_hooks = |hook: &&Value| hook["place"].as_str().unwrap().contains("gress");
    assert_eq!(summary["hooks"].as_array().unwrap().iter().filter(tc_hooks).count(), 0, "{summary:#}");
}

#[test]
fn without_tc_the_verdicts_are_the_same_with_endpoint_routes() {
    without_tc(Shape::Aks);
}

#[test]
fn without_tc_the_verdicts_are_the_same_with_host_routing() {
    without_tc(Shape::Kpr);
}

#[test]
fn without_tc_the_verdicts_are_the_same_behind_kube_proxy() {
    without_tc(Shape::KubeProxy);
}

#[test]
fn a_filter_that_somebody_removes_comes_back_and_the_gap_is_told() {
    let Some(mut lab) = lab("gap", Shape::Aks, "none") else { return };
    let mut trace = start(&mut lab, "--duration 120s");
    sh(
        &lab,
        Ns::Node,
        "tc filter del dev eth0 ingress prio 1 handle 1 bpf; tc qdisc del dev cilium_host clsact",
    );
    let told = trace.wait_for("somebody had removed our filter at `cilium_host ");
    assert!(told.contains("attached anew; nothing was seen there for 0."), "{told}");
    // What is deleted and then added again by a regeneration is the newest of its priority, and runs first.
    sh(&lab, Ns::Node, &format!("tc filter del dev {VETH} ingress prio 1 handle 1 bpf"));
    lab.change_policy("none").unwrap();
    trace.wait_for(&format!("another filter had come before ours at `{VETH} ingress`"));
    trace.signal("INT");
    let traced = trace.finish();
    let summary = traced.summary();
    let gaps = summary["gaps"].as_array().unwrap();
    let at = |place: &str| {
        gaps.iter().find(|gap| gap["place"] == place).unwrap_or_else(|| panic!("{}", traced.stderr))
    };
    let removed = at("cilium_host ingress");
    assert_eq!(removed["why"], "somebody had removed our filter");
    assert!(removed["from_ns"].as_u64() < removed["until_ns"].as_u64(), "{removed}");
    assert_eq!(at(&format!("{VETH} ingress"))["why"], "another filter had come before ours");
    let is_attached = |hook: &Value| hook["state"] == "attached" || hook["state"] == "refused";
    assert!(summary["hooks"].as_array().unwrap().iter().all(is_attached), "{summary:#}");
    assert!(!filters(&lab).contains("plsprobe"));
}

/// Where the pod is after it was made anew.
const NEW_ADDRESS: &str = "10.0.0.150";
const NEW_VETH: &str = "lxc0123456789ab";
const NEW_ENDPOINT: u16 = 2687;

/// The agent's answers once the pod has been made anew, in the form of a recording.
fn answers_after(lab: &Lab, ifindex: u32) -> tempfile::TempDir {
    let answers = Answers::new(lab.scenario(), lab.shape(), AKS_ROUTER, 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for path in ["endpoint", "identity", "policy", "policy/selectors", "service", "ip", "healthz", "config"] {
        let text = answers.get(path).unwrap_or_else(|| panic!("no `{path}`")).to_string();
        let text = text
            .replace(&APP_POD.endpoint_id.to_string(), &NEW_ENDPOINT.to_string())
            .replace(&APP_POD.address.to_string(), NEW_ADDRESS)
            .replace(APP_POD.host_interface, NEW_VETH)
            .replace("\"interface-index\":5", &format!("\"interface-index\":{ifindex}"));
        std::fs::write(folder.path().join(path.replace('/', "-") + ".json"), text).unwrap();
    }
    folder
}

#[test]
fn a_pod_that_is_made_anew_is_followed() {
    let Some(mut lab) = lab("anew", Shape::Aks, "none") else { return };
    let mut trace = start(&mut lab, "--duration 120s --count 1");
    sh(&lab, Ns::Node, &format!("ip link del {VETH}"));
    trace.wait_for(&format!("interface `{VETH}` has gone"));
    let app = lab.netns(Ns::App).name().to_owned();
    sh(
        &lab,
        Ns::Node,
        &format!(
            "ip link add {NEW_VETH} type veth peer name eth0 netns {app}; ip link set {NEW_VETH} up; ip route add {NEW_ADDRESS} dev {NEW_VETH}"
        ),
    );
    sh(
        &lab,
        Ns::App,
        &format!("ip addr add {NEW_ADDRESS}/32 dev eth0; ip link set eth0 up; ip route add default dev eth0"),
    );
    let ifindex = lab.ifindex(Ns::Node, NEW_VETH).unwrap();
    let answers = answers_after(&lab, ifindex);
    let map = lab.standin().unwrap().map("cilium_lxc").unwrap();
    let old = EndpointKey::new(APP_POD.address.into()).encode();
    let mut entries = map.entries().unwrap();
    for (key, value) in &mut entries {
        if key[..] == old[..] {
            *key = EndpointKey::new(NEW_ADDRESS.parse().unwrap()).encode().into();
            let info = EndpointInfo::decode(value).unwrap();
            let info = EndpointInfo { ifindex, lxc_id: EndpointId(NEW_ENDPOINT), ..info };
            *value = info.encode().into();
        }
    }
    map.replace(&entries).unwrap();
    lab.start_agent_with(Source::Recorded(answers.path().to_owned())).unwrap();
    trace.wait_for("`pls-app` was made anew or became more");
    let told = trace.wait_for("tracing `pls-app` at ");
    assert!(told.contains(NEW_VETH) && !told.contains(VETH), "{told}");
    // Nobody listens there: the pod resets.
    let to = format!("{NEW_ADDRESS}:81").parse().unwrap();
    let connected = lab.run_in(Ns::Node, || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    assert_eq!(connected.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let traced = trace.finish();
    let (flows, summary) = (traced.flows(), traced.summary());
    assert_eq!(flows.len(), 1, "{}", traced.stderr);
    assert_eq!(flows[0]["tuple"]["daddr"], NEW_ADDRESS, "{flows:#?}");
    let seen = |key: &str| flows[0][key].as_array().unwrap().iter().any(|hop| hop["interface"] == NEW_VETH);
    assert!(seen("hops"), "{flows:#?}");
    assert_eq!(summary["records"]["unaccounted"], 0, "{summary:#}");
    let lost = summary["gaps"].as_array().unwrap().iter().filter(|gap| gap["until_ns"].is_u64()).count();
    assert_eq!(lost, 2, "the old interface's gaps end with it: {summary:#}");
}

/// Runs a trace of a second with less than root may do.
fn confined(lab: &Lab, by: &str) -> (Option<i32>, String) {
    let plsprobe = env!("CARGO_BIN_EXE_plsprobe");
    let places = format!("--bpffs {} --cilium-run {}", lab.bpffs().display(), lab.run_dir().display());
    let script = format!("{by} {plsprobe} trace --dst pls-app --duration 1s {places}");
    let output = lab.netns(Ns::Node).command("sh").unwrap().args(["-c", &script]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_is_not_allowed_is_said() {
    let Some(lab) = lab("caps", Shape::Aks, "none") else { return };
    if Command::new("setpriv").arg("--version").output().is_err() {
        fixtures::skip!("no `setpriv`");
        return;
    }
    let before = filters(&lab);
    for (lacks, reason) in [
        ("bpf", "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed"),
        ("perfmon", "in a container with CAP_PERFMON"),
        ("net_admin", "in a container with CAP_NET_ADMIN"),
    ] {
        let by = format!("exec setpriv --bounding-set=-sys_admin,-{lacks} --inh-caps=-all");
        let (code, stderr) = confined(&lab, &by);
        assert_eq!(code, Some(2), "{lacks}: {stderr}");
        assert!(stderr.contains(reason) && stderr.lines().count() == 1, "{lacks}: {stderr}");
    }
    // What a container has that is given what is needed and no more.
    let (code, stderr) = confined(&lab, "exec setpriv --bounding-set=-sys_admin --inh-caps=-all");
    assert_eq!(code, Some(3), "nothing was seen, which is all that is wrong: {stderr}");
    assert!(
        stderr.contains("tracing `pls-app` at eth0 ingress") && !stderr.contains("not known"),
        "{stderr}"
    );
    assert_eq!(filters(&lab), before);
    let (code, stderr) = confined(&lab, "ulimit -l 64; exec");
    assert_eq!(code, Some(3), "nothing was seen, which is all that is wrong: {stderr}");
}
