//! `plsprobe agent` on a live node: what its sessions print, how they end, and what goes wrong meanwhile.

mod live;
#[path = "harmless/state.rs"]
#[expect(dead_code, reason = "objects in the kernel are the harmlessness test's")]
mod state;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use probe_lab::addresses::{AKS_ROUTER, APP, NGINX, NGINX_POD, SERVICE_PORT, VM};
use probe_lab::agent::map_entries::map_entries;
use probe_lab::agent::realize::Realized;
use probe_lab::load::{Load, LoadOptions};
use probe_lab::plsprobe_agent::PlsprobeAgent;
use probe_lab::scenario::Client;
use probe_lab::standin::{Standin, StandinConfig};
use probe_lab::tracing::{PATIENCE, Trace, Traced, wait_until};
use probe_lab::{ClientSaw, Lab, Ns, Probe, Shape};
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::tuple::{Protocol, Tuple};
use probe_user::agent::proto::{Answer, TRACE, TraceAnswer, TraceRequest};
use probe_user::grpc::client::{self, Answers};
use serde_json::Value;

use live::lab;
use state::State;

const PLSPROBE: &str = env!("CARGO_BIN_EXE_plsprobe");
const WATCH: &str = "--watch pls-app --watch my-nginx";
/// More connections than the agent reads of a conntrack map, as `docs/agent.md` has it.
const CONNECTIONS: u32 = 9000;
/// Sessions at a time, as `docs/agent.md` has it.
const SESSIONS_MAX: usize = 64;

/// A lab without a policy and its agent.
fn watched(test: &str, scenario: &str) -> Option<(Lab, PlsprobeAgent)> {
    let mut lab = lab(test, Shape::Aks, scenario)?;
    let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, WATCH);
    Some((lab, agent))
}

/// Makes one attempt after another.
fn send(lab: &Lab, clients: &[Client]) {
    for client in clients {
        let saw = lab.probe(&lab.scenario().probe(*client)).unwrap();
        assert_eq!(saw, lab.scenario().expected(*client), "{client}");
    }
}

/// An agent that was told to end ends well.
#[track_caller]
fn end(mut agent: PlsprobeAgent) -> Traced {
    agent.process().signal("TERM");
    let ended = agent.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended
}

/// A flow without what depends on when its process looked: times, what was counted by then, and what the maps, which
/// are half a second old at most, confirm already.
fn comparable(value: &mut Value) {
    const LATER: [&str; 4] = ["packets", "bytes", "later_packets", "confirmed_by"];
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.ends_with("_ns") && !LATER.contains(&name.as_str()));
            fields.values_mut().for_each(comparable);
        }
        Value::Array(items) => {
            // The agent gives up the right to see them.
            items.retain(|item| item["what"] != "programs");
            items.iter_mut().for_each(comparable);
        }
        _ => {}
    }
}

/// What was told of each flow in JSON, by its ports and addresses.
fn flows_of(traced: &Traced) -> BTreeMap<String, Value> {
    let mut flows = traced.flows();
    flows.iter_mut().for_each(comparable);
    flows.into_iter().map(|flow| (flow["tuple"].to_string(), flow)).collect()
}

/// The same of text, by its first words.
fn blocks_of(traced: &Traced) -> BTreeMap<String, Vec<String>> {
    let mut blocks = BTreeMap::<String, Vec<String>>::new();
    let mut current = String::new();
    for line in traced.stdout.lines() {
        if !line.starts_with(' ') {
            current = line.split(' ').take(4).collect::<Vec<_>>().join(" ");
        }
        if current.contains(" -> ") {
            let line = line.replace(" (confirmed by cilium_ct4_global)", "");
            blocks.entry(current.clone()).or_default().push(without_times(&line));
        }
    }
    blocks
}

/// A line without numbers that have a point or a unit.
fn without_times(line: &str) -> String {
    const UNITS: [&str; 5] = ["ns", "µs", "ms", "s", "packets"];
    let words: Vec<&str> = line.split(' ').collect();
    let has_unit = |at: usize| {
        let next = words.get(at + 1).map(|word| word.trim_end_matches(|c: char| !c.is_alphabetic()));
        next.is_some_and(|next| UNITS.contains(&next))
    };
    let kept = words.iter().enumerate().map(|(at, word)| {
        let is_number = word.trim_start_matches('+').parse::<f64>().is_ok();
        if is_number && (word.contains('.') || has_unit(at)) { "N" } else { word }
    });
    kept.collect::<Vec<_>>().join(" ")
}

/// What a session prints is what `trace` prints that looks by itself at the same time.
fn same_as_alone(shape: Shape, scenario: &str) {
    let test = format!("{shape}: {scenario}");
    let Some(mut lab) = lab(&format!("same-{shape}"), shape, scenario) else { return };
    let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, "");
    let flows = Client::TO_APP.len();
    let args = |output: &str| format!("--dst pls-app -o {output} --count {flows} --duration 2m");
    let by_agent = ["json", "text"].map(|output| agent.tracing(&args(output)));
    let alone = ["json", "text"].map(|output| Trace::attached(&mut lab, PLSPROBE, &args(output)));
    send(&lab, &Client::TO_APP);
    let [json, text] = by_agent.map(Trace::finish);
    let [json_alone, text_alone] = alone.map(Trace::finish);
    assert_eq!(flows_of(&json).len(), flows, "{}{}", json.stdout, json.stderr);
    assert_eq!(flows_of(&json), flows_of(&json_alone), "{test}");
    assert_eq!(blocks_of(&text).len(), flows, "{}{}", text.stdout, text.stderr);
    assert_eq!(blocks_of(&text), blocks_of(&text_alone), "{test}");
    let summary = json.summary();
    assert_eq!(summary["flows"], json_alone.summary()["flows"], "{test}");
    assert_eq!(summary["records"]["lost"], 0, "{summary:#}");
    for (session, alone) in [(json, json_alone), (text, text_alone)] {
        assert_eq!(session.code, alone.code, "{test}: {}\n{}", session.stderr, alone.stderr);
        assert!(session.code.is_some_and(|code| code < 2), "{}", session.stderr);
    }
    end(agent);
}

#[test]
fn a_session_prints_what_a_trace_prints_with_endpoint_routes() {
    for scenario in ["none", "seed-deny", "allow-nat-ip"] {
        same_as_alone(Shape::Aks, scenario);
    }
}

#[test]
fn a_session_prints_what_a_trace_prints_with_host_routing() {
    same_as_alone(Shape::Kpr, "allow-peered");
}

#[test]
fn a_session_prints_what_a_trace_prints_behind_kube_proxy() {
    same_as_alone(Shape::KubeProxy, "kube-proxy");
}

#[test]
fn sessions_see_what_they_ask_for() {
    let Some((lab, agent)) = watched("theirs", "none") else { return };
    let json = |args: &str| agent.tracing(&format!("{args} -o json --duration 5m"));
    let first = json("--dst pls-app --src 10.224.0.8");
    let vm = json("--dst pls-app --src 10.221.1.0/24 --port 80");
    let other_port = json("--dst pls-app --port 443");
    let nginx = json("--dst my-nginx");
    let all = json("--dst pls-app --count 3");
    send(&lab, &[Client::ConsumerFirstNatIp, Client::ConsumerSecondNatIp, Client::PeeredVm]);
    assert_eq!(all.finish().flows().len(), 3);
    let ended = |session: Trace| {
        session.signal("INT");
        session.finish()
    };
    let (first, vm, other_port, nginx) = (ended(first), ended(vm), ended(other_port), ended(nginx));
    assert_eq!(first.flows().len(), 1, "{}", first.stdout);
    first.flow(Client::ConsumerFirstNatIp);
    assert_eq!(vm.flows().len(), 1, "{}", vm.stdout);
    vm.flow(Client::PeeredVm);
    for empty in [&other_port, &nginx] {
        assert_eq!(empty.flows(), [] as [Value; 0], "{}", empty.stdout);
        assert_eq!(empty.summary()["flows"]["total"], 0);
    }
    assert_eq!([first.code, vm.code, other_port.code, nginx.code], [0, 0, 130, 130].map(Some));
}

#[test]
fn sessions_end_as_a_trace_does() {
    let Some((lab, agent)) = watched("ends", "allow-nat-ip") else { return };
    // By count, and by what was dropped.
    let counted = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    send(&lab, &[Client::ConsumerFirstNatIp]);
    let counted = counted.finish();
    assert_eq!((counted.code, counted.flows().len()), (Some(0), 1), "{}", counted.stderr);
    let dropped = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    send(&lab, &[Client::ConsumerSecondNatIp]);
    assert_eq!(dropped.finish().code, Some(1));
    // By time, without a flow.
    let late = agent.tracing("--dst pls-app -o json --duration 200ms").finish();
    assert_eq!((late.code, late.summary()["flows"]["total"].as_u64()), (Some(3), Some(0)), "{}", late.stderr);
    // By signals, with a flow or without.
    for (signal, clients, code) in
        [("INT", &[][..], 130), ("TERM", &[], 130), ("INT", &[Client::ConsumerFirstNatIp], 0)]
    {
        let session = agent.tracing("--dst pls-app -o json --duration 5m");
        send(&lab, clients);
        session.signal(signal);
        let ended = session.finish();
        assert_eq!(ended.code, Some(code), "{signal}: {}\n{}", ended.stdout, ended.stderr);
        assert_eq!(ended.summary()["flows"]["total"], clients.len(), "{signal}");
    }
}

/// A conntrack map that is too large to be read is asked for each flow's own entries.
#[test]
fn a_flow_among_many_connections_is_confirmed() {
    let Some(mut lab) = lab("many", Shape::Aks, "none") else { return };
    let conntrack = lab.standin().expect("a stand-in").map("cilium_ct4_global").unwrap();
    let value = [0; CtEntry::SIZE];
    for number in 0..CONNECTIONS {
        let [_, _, high, low] = number.to_be_bytes();
        let (saddr, daddr) = ([10, 99, high, low].into(), APP.into());
        let tuple = Tuple { saddr, daddr, sport: 40_000, dport: 80, protocol: Protocol::TCP };
        conntrack.update(&CtTuple::ingress(tuple).encode(), &value).unwrap();
    }
    let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, "");
    let session = agent.tracing("--dst pls-app -o json --count 2 --duration 5m");
    send(&lab, &[Client::ConsumerFirstNatIp, Client::PeeredVm]);
    let traced = session.finish();
    for client in [Client::ConsumerFirstNatIp, Client::PeeredVm] {
        let flow = traced.flow(client);
        assert_eq!(flow["confirmed_by"]["map"], "cilium_ct4_global", "{flow:#}");
        assert!(!flow.to_string().contains("conntrack-unknown"), "{flow:#}");
    }
    end(agent);
}

#[test]
fn an_unknown_target_is_an_error_with_candidates() {
    let Some((_lab, agent)) = watched("unknown", "none") else { return };
    let ended = agent.trace("--dst pls-ap").finish();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let wanted = "unknown target `pls-ap`; pods on this node: default/";
    assert!(ended.stderr.contains(wanted) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    let no_nat_ips = agent.trace("--dst pls-app --src pls").finish();
    assert_eq!(no_nat_ips.code, Some(2), "{}", no_nat_ips.stderr);
}

#[test]
fn a_target_that_is_not_watched_is_attached_for_and_let_go() {
    let Some(mut lab) = lab("unwatched", Shape::Aks, "none") else { return };
    let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, "");
    let before = State::of(&lab);
    let session = agent.tracing("--dst my-nginx -o json --count 1 --duration 5m");
    assert_ne!(State::of(&lab), before, "the pod's interface is looked at");
    let probe = Probe::tcp(Ns::Vm, VM, NGINX, SERVICE_PORT);
    assert_eq!(lab.probe(&probe).unwrap(), ClientSaw::Ok);
    let ended = session.finish();
    assert_eq!((ended.code, ended.flows().len()), (Some(0), 1), "{}", ended.stderr);
    wait_until(|| State::of(&lab).same_as(&before));
}

#[test]
fn what_was_before_is_told() {
    let Some((lab, agent)) = watched("since", "allow-nat-ip") else { return };
    let history = |args: &str| agent.trace(&format!("{args} -o json")).finish();
    let lacks = |traced: &Traced| traced.with_schema("plsprobe.trace.history/1")[0]["lacks"].clone();
    let session = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    send(&lab, &[Client::ConsumerFirstNatIp]);
    let told = flows_of(&session.finish());
    let kept = history("--dst pls-app --since 10m");
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    assert_eq!(flows_of(&kept), told, "as it was told then");
    assert!(lacks(&kept)[0].as_str().unwrap().starts_with("the agent has been watching only since "));

    let session = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    send(&lab, &[Client::ConsumerSecondNatIp]);
    session.finish();
    let kept = history("--dst pls-app --since 10m");
    assert_eq!((kept.code, kept.flows().len()), (Some(1), 2), "{}", kept.stderr);
    let only = history("--dst pls-app --since 10m --src 10.224.0.9 --port 80");
    assert_eq!((only.code, only.flows().len()), (Some(1), 1), "{}", only.stdout);
    only.flow(Client::ConsumerSecondNatIp);
    let newest = history("--dst pls-app --since 10m --count 1");
    newest.flow(Client::ConsumerSecondNatIp);

    let nobody = history("--dst my-nginx --since 1ms");
    assert_eq!((nobody.code, nobody.flows().len()), (Some(3), 0), "{}", nobody.stderr);
    assert_eq!(lacks(&nobody), Value::Array(Vec::new()), "it reaches back that far");
    let text = agent.trace("--dst pls-app --since 10m").finish();
    assert!(text.stdout.contains("history   the agent has been watching only since "), "{}", text.stdout);
    assert!(
        text.stdout.contains("flows     2 kept of the last 600 s: 1 allowed, 1 dropped"),
        "{}",
        text.stdout
    );
    assert_eq!(agent.trace("--dst pls-ap --since 1m").finish().code, Some(2));
}

#[test]
fn what_is_not_watched_is_not_remembered_and_that_is_said() {
    let Some(mut lab) = lab("forgets", Shape::Aks, "none") else { return };
    let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, "--watch my-nginx");
    let kept = agent.trace("--dst pls-app --since 1m -o json").finish();
    assert_eq!(kept.code, Some(3), "{}", kept.stderr);
    assert_eq!(kept.with_schema("plsprobe.trace.history/1")[0]["watched"], false);
    let none = Trace::by_agent(PLSPROBE, Path::new("/nonexistent/agent.sock"), "--dst pls-app --since 1m");
    let none = none.finish();
    assert_eq!(none.code, Some(2));
    assert!(
        none.stderr.contains("only an agent remembers; start one with `plsprobe agent`"),
        "{}",
        none.stderr
    );
}

/// Opens a session in this process, and waits for its first word.
async fn session(agent: &PlsprobeAgent, count: u64) -> (client::Client, Answers<TraceAnswer>) {
    let client = client::Client::connect(agent.door().socket()).await.unwrap();
    let dst = "pls-app".to_owned();
    let request = TraceRequest { dst, count, duration_ms: 600_000, json: true, ..TraceRequest::default() };
    let mut answers: Answers<TraceAnswer> = client.call(TRACE, &request).await.unwrap();
    let first = answers.next().await.unwrap().unwrap().answer;
    assert!(matches!(first, Some(Answer::Notice(_))), "{first:?}");
    (client, answers)
}

/// Flows until the end, and its exit code.
async fn told(mut answers: Answers<TraceAnswer>) -> (usize, i32) {
    let mut flows = 0;
    while let Some(answer) = answers.next().await.unwrap() {
        match answer.answer.unwrap() {
            Answer::Out(lines) => {
                let text = String::from_utf8(lines).unwrap();
                flows += text.lines().filter(|line| line.contains("plsprobe.trace.flow/1")).count();
            }
            Answer::Notice(_) => {}
            Answer::End(end) => return (flows, end.exit),
        }
    }
    panic!("it ends without a word");
}

#[tokio::test]
async fn as_many_sessions_as_there_may_be_get_every_flow_and_no_more() {
    const FLOWS: u64 = 5;
    let Some((lab, mut agent)) = watched("many", "none") else { return };
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS_MAX - 1 {
        sessions.push(session(&agent, FLOWS).await);
    }
    let last = agent.tracing("--dst pls-app -o json --duration 10m");
    let one_more = agent.trace("--dst pls-app").finish();
    assert_eq!(one_more.code, Some(2), "{}", one_more.stderr);
    let wanted = "64 traces are running in this agent, which is its limit";
    assert!(one_more.stderr.contains(wanted), "{}", one_more.stderr);

    // The last one's client is killed: its place is free soon, and nobody else notices.
    let killed = Instant::now();
    drop(last);
    let again = wait_until(|| {
        let mut again = agent.trace("--dst pls-app -o json --count 5 --duration 10m");
        let until = Instant::now() + PATIENCE;
        while !again.has_ended() && Instant::now() < until {
            if again.is_attached() {
                return Ok(again);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(again.finish().stderr)
    });
    println!("the place of a killed client is free after {:.0?}", killed.elapsed());

    for _ in 0..FLOWS {
        send(&lab, &[Client::PeeredVm]);
    }
    for (_client, answers) in sessions {
        assert_eq!(told(answers).await, (FLOWS as usize, 0));
    }
    assert_eq!(again.finish().flows().len(), FLOWS as usize);
    assert!(!agent.process().has_ended());
    end(agent);
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up() {
    // A client that does not answer the agent's pings is taken for dead, on a machine that is busy enough.
    const SILENT_MAX: Duration = Duration::from_secs(40);
    // More than the 256 answers that wait for one client, and what is in buffers behind them.
    const FLOWS: usize = 400;
    let Some((lab, agent)) = watched("slow", "none") else { return };
    let mut slow = agent.tracing("--dst pls-app -o json --duration 5m");
    slow.signal("STOP");
    let stopped = Instant::now();
    let others =
        [(); 3].map(|()| agent.tracing(&format!("--dst pls-app -o json --count {FLOWS} --duration 5m")));
    let options = LoadOptions {
        pps: Some(400),
        connections: 1,
        requests: 10,
        new_connections: 100,
        ..LoadOptions::default()
    };
    let load = Load::start(lab.instance(), &options).unwrap();
    for other in others {
        let ended = other.finish();
        assert_eq!(ended.flows().len(), FLOWS, "{}", ended.stderr);
    }
    load.stop().unwrap().check_harmless().unwrap();
    slow.signal("CONT");
    let is_over = || Instant::now() > stopped + SILENT_MAX;
    if !is_over() {
        slow.wait_for("answers before this one were not sent: they were not read in time");
        slow.signal("INT");
    }
    let ended = slow.finish();
    // Records may be lost to a busy machine, and flows inconclusive then.
    assert!(matches!(ended.code, Some(0 | 3)) || is_over(), "{:?}: {}", ended.code, ended.stderr);
}

#[test]
fn an_agent_that_ends_sums_up_and_leaves_nothing() {
    let Some(mut lab) = lab("term", Shape::Aks, "none") else { return };
    let before = State::of(&lab);
    for signal in ["TERM", "INT"] {
        let mut agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, WATCH);
        assert_ne!(State::of(&lab), before);
        let with_flow = agent.tracing("--dst pls-app -o json --duration 10m");
        let without = agent.tracing("--dst my-nginx --duration 10m");
        send(&lab, &[Client::PeeredVm]);
        agent.process().signal(signal);
        let with_flow = with_flow.finish();
        assert_eq!(with_flow.code, Some(0), "{}", with_flow.stderr);
        assert_eq!(with_flow.summary()["flows"]["allowed"], 1);
        let without = without.finish();
        assert_eq!(without.code, Some(3), "{}", without.stderr);
        assert!(without.stdout.contains("flows "), "{}", without.stdout);
        let socket = agent.door().socket().to_owned();
        let ended = agent.finish();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(!socket.exists(), "its socket goes with it");
        State::of(&lab).same_as(&before).unwrap();
    }
}

#[test]
fn a_killed_agent_leaves_what_the_next_removes() {
    let Some((mut lab, agent)) = watched("kill", "none") else { return };
    let session = agent.tracing("--dst pls-app --duration 10m");
    let socket = agent.door().socket().to_owned();
    drop(agent);
    let ended = session.finish();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("the agent failed"), "{}", ended.stderr);
    assert!(socket.exists(), "nobody could remove it");
    let unanswered = Trace::by_agent(PLSPROBE, &socket, "--dst pls-app").finish();
    assert_eq!(unanswered.code, Some(2), "{}", unanswered.stderr);
    assert!(unanswered.stderr.contains("no agent answers on"), "{}", unanswered.stderr);
    // Packets pass all the same.
    send(&lab, &[Client::PeeredVm]);

    let mut agent = PlsprobeAgent::start(&mut lab, PLSPROBE, WATCH);
    agent.process().wait_for("removed a leftover of an earlier run");
    agent.process().wait_until_attached();
    let session = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    send(&lab, &[Client::PeeredVm]);
    assert_eq!(session.finish().flows().len(), 1);
    let second = PlsprobeAgent::start(&mut lab, PLSPROBE, WATCH).finish();
    assert_eq!(second.code, Some(2), "two agents on one socket: {}", second.stderr);
    end(agent);
}

#[test]
fn it_waits_for_cilium() {
    let Some(options) = live::options("waits", Shape::Aks, "none") else { return };
    let mut lab = Lab::up_without_datapath(&options).unwrap();
    let mut agent = PlsprobeAgent::start(&mut lab, PLSPROBE, WATCH);
    agent.process().wait_for("nothing is seen for now");
    let refused = agent.trace("--dst pls-app").finish();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("the agent sees nothing for now"), "{}", refused.stderr);
    let standin = Standin::start(StandinConfig::for_lab(&lab)).unwrap();
    let maps = map_entries(&Realized::new(None).unwrap(), Shape::Aks, AKS_ROUTER).unwrap();
    standin.fill(&maps).unwrap();
    agent.process().wait_until_attached();
    let session = wait_until(|| {
        let mut session = agent.trace("--dst pls-app -o json --count 1 --duration 5m");
        while !session.is_attached() {
            if session.has_ended() {
                return Err(session.finish().stderr);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(session)
    });
    send(&lab, &[Client::PeeredVm]);
    let ended = session.finish();
    assert_eq!((ended.code, ended.flows().len()), (Some(0), 1), "{}", ended.stderr);
    end(agent);
}

/// The programs at the node's uplink and at the pod, in the order in which they run.
fn order(lab: &Lab) -> String {
    let script = "for dev in eth0 cilium_host lxc6e1a54cbd011; do for d in ingress egress; do \
        tc filter show dev $dev $d | grep -o ' handle .* direct-action' | cut -d ' ' -f 4; done; done";
    let output = lab.netns(Ns::Node).command("sh").unwrap().args(["-c", script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cilium_replaces_its_programs_and_its_sockets_go() {
    let Some((mut lab, agent)) = watched("replaced", "allow-nat-ip") else { return };
    let clients = [Client::ConsumerFirstNatIp, Client::ConsumerSecondNatIp];
    let check = |lab: &mut Lab, what: &str| {
        let session = agent.tracing("--dst ep/2686 -o json --count 2 --duration 5m");
        send(lab, &clients);
        let ended = session.finish();
        let outcomes = clients.map(|client| {
            let flow = ended.flow(client);
            assert_eq!(flow["findings"], Value::Array(Vec::new()), "{what}: {flow:#}");
            (flow["verdict"].as_str().unwrap().to_owned(), flow["cilium"].as_array().unwrap().len())
        });
        assert_eq!((outcomes[0].0.as_str(), outcomes[1].0.as_str()), ("allowed", "dropped"), "{what}");
        outcomes.map(|(_, notifications)| notifications)
    };
    let [_, dropped] = check(&mut lab, "at first");
    assert!(dropped > 0, "Cilium says so itself");
    lab.standin_mut().unwrap().regenerate().unwrap();
    let [_, dropped] = check(&mut lab, "regenerated");
    assert!(dropped > 0, "Cilium says so itself");
    let before = order(&lab);
    lab.standin_mut().unwrap().restart().unwrap();
    // Filters that were added anew come before ours until the agent has seen them.
    wait_until(|| if order(&lab) == before { Ok(()) } else { Err(order(&lab)) });
    let [_, dropped] = check(&mut lab, "restarted");
    assert!(dropped > 0, "Cilium says so itself");
    lab.stop_agent();
    check(&mut lab, "without Cilium's agent");
    lab.start_agent().unwrap();
    check(&mut lab, "with it again");
    end(agent);
}

#[test]
fn a_pod_that_is_made_anew_is_seen() {
    let Some((mut lab, agent)) = watched("pod", "none") else { return };
    let session = agent.tracing("--dst my-nginx -o json --duration 10m");
    for port in [30_001, 30_101] {
        lab.recreate_pod(&NGINX_POD).unwrap();
        let there = Instant::now();
        let mut next = port;
        let seen = wait_until(|| {
            let probe = Probe::tcp(Ns::Vm, VM, NGINX, SERVICE_PORT).with_src_port(next);
            assert_eq!(lab.probe(&probe).unwrap(), ClientSaw::Ok);
            next += 1;
            let line = session.take_data(Duration::from_millis(50)).ok_or("nothing is told")?;
            let flow: Value = serde_json::from_str(&line).unwrap();
            let hops = flow["hops"].as_array().ok_or("no flow")?;
            let is_new = flow["tuple"]["sport"].as_u64().is_some_and(|sport| sport >= u64::from(port));
            let is_at_the_pod = hops.iter().any(|hop| hop["point"] == "PodIn");
            (is_new && is_at_the_pod).then(|| there.elapsed()).ok_or_else(|| line.clone())
        });
        println!("a flow of the new pod is told after {seen:.0?}");
    }
    session.signal("INT");
    assert_eq!(session.finish().code, Some(0));
    end(agent);
}

#[test]
fn garbage_on_its_socket() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let Some((lab, agent)) = watched("garbage", "none") else { return };
    let mut random = fastrand::Rng::with_seed(1);
    let session = agent.tracing("--dst pls-app -o json --count 1 --duration 5m");
    let before = agent.usage();
    let mut open = Vec::new();
    for number in 0..200 {
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 + number * 50).collect();
        let said = match number % 4 {
            0 => noise,
            1 => [PREFACE, &noise].concat(),
            2 => b"GET /metrics HTTP/1.1\r\n\r\n".to_vec(),
            _ => PREFACE.to_vec(),
        };
        let mut stream = UnixStream::connect(agent.door().socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        // It may be closed already.
        drop(stream.write(&said));
        open.push(stream);
        open.truncate(10);
    }
    send(&lab, &[Client::PeeredVm]);
    let ended = session.finish();
    assert_eq!((ended.code, ended.flows().len()), (Some(0), 1), "{}", ended.stderr);
    drop(open);
    wait_until(|| {
        let now = agent.usage();
        (now.fds < before.fds).then_some(()).ok_or_else(|| format!("{before:?}, then {now:?}"))
    });
    let grown = agent.usage().dirty_kib.saturating_sub(before.dirty_kib);
    assert!(grown < 16 << 10, "{grown} KiB more");
    let ended = end(agent);
    assert!(ended.stderr.lines().count() < 100, "{}", ended.stderr);
}

#[test]
fn its_socket_is_root_s_alone_or_a_group_s() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let Some(mut lab) = lab("mode", Shape::Aks, "none") else { return };
    for (args, mode, group) in [("", 0o600, 0), ("--socket-group 12345", 0o660, 12345)] {
        let agent = PlsprobeAgent::attached(&mut lab, PLSPROBE, args);
        let found = std::fs::metadata(agent.door().socket()).unwrap();
        assert_eq!((found.permissions().mode() & 0o777, found.gid(), found.uid()), (mode, group, 0));
        end(agent);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.sock");
    std::fs::write(&file, "not a socket").unwrap();
    let mut command = Command::new(PLSPROBE);
    let output = command.arg("agent").arg("--socket").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a socket");
}
