//! What `plsprobe agent` takes of a node on which nothing happens, how soon it serves, and what many traces at once
//! cost it. Needs root. Everything is the whole process in the lab, whose maps are those of a node with a hundred pods.
//!
//! `PLSPROBE_BIN` names the binary that is measured, instead of the one that is built with the benchmark.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "kilobytes and counts of one process"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use probe_lab::load::{Load, LoadOptions};
use probe_lab::plsprobe_agent::{PlsprobeAgent, Usage};
use probe_lab::standin::policy_map;
use probe_lab::{Lab, LabOptions, Ns};
use probe_model::cilium::EndpointId;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_user::agent::proto::{Answer, NOW, NowAnswer, NowRequest, TRACE, TraceAnswer, TraceRequest};
use probe_user::grpc::client::{Answers, Client};
use tokio::time::sleep;

/// Pods of the node, the lab's two among them.
const PODS: u16 = 100;
/// Entries of each one's policy map.
const ENTRIES: u32 = 40;
/// Addresses of other nodes' pods in the ipcache.
const REMOTE: u16 = 2000;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(30);
/// Starts that are timed.
const STARTS: usize = 5;
/// Traces at once, and flows for each.
const SESSIONS: usize = 50;
const FLOWS: u64 = 100;
/// Flows a second: each trace is told some 8 kB of each.
const RATE: u32 = 20;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(2);

fn main() {
    if let Some(why) = probe_lab::standin::unavailable() {
        println!("skipped: {why}");
        return;
    }
    let options = LabOptions { instance: format!("bench{}", std::process::id()), ..LabOptions::default() };
    let mut lab = Lab::up(&options).expect("the lab comes up");
    // Kept open: what is pinned in the lab goes with it.
    fill(&lab);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("| `plsprobe agent`, {PODS} pods | |\n|---|---|");
    starts(&mut lab, &runtime);
    let mut agent = start(&mut lab);
    idle(&lab, &agent);
    runtime.block_on(sessions(&lab, &agent));
    agent.process().signal("TERM");
    agent.finish();
}

fn plsprobe() -> PathBuf {
    std::env::var_os("PLSPROBE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_plsprobe").into(), PathBuf::from)
}

fn start(lab: &mut Lab) -> PlsprobeAgent {
    PlsprobeAgent::attached(lab, plsprobe(), WATCH)
}

const WATCH: &str = "--watch pls-app --watch my-nginx";

/// Makes the node's maps those of a hundred pods, of which only the lab's two send anything.
fn fill(lab: &Lab) {
    let standin = lab.standin().expect("the lab has a datapath");
    let (lxc, ipcache) =
        (standin.map("cilium_lxc").expect("a pin"), standin.map("cilium_ipcache").expect("a pin"));
    let identity_of = |address: [u8; 4], identity: u32| {
        let prefix = ipnet::Ipv4Net::from(std::net::Ipv4Addr::from(address));
        let info = RemoteEndpointInfo { sec_identity: Identity(identity), ..RemoteEndpointInfo::default() };
        let layout = IpcacheLayout::ClusterByte;
        let key = IpcacheKey { prefix: prefix.into(), cluster_id: 0 }.encode(layout);
        ipcache.update(&key, &info.encode(layout)).expect("room");
    };
    for number in 2..PODS {
        let (id, identity) = (4000 + number, 50_000 + u32::from(number));
        let address = [10, 0, 1, 130 + (number % 100) as u8];
        let info = EndpointInfo {
            ifindex: 1000 + u32::from(number),
            lxc_id: EndpointId(id),
            sec_id: Identity(identity),
            ..EndpointInfo::default()
        };
        let key = EndpointKey::new(std::net::Ipv4Addr::from(address).into()).encode();
        lxc.update(&key, &info.encode()).expect("room");
        identity_of(address, identity);
        fill_policy(&standin.globals(), id);
    }
    for number in 0..REMOTE {
        let [high, low] = number.to_be_bytes();
        identity_of([10, 1, high, low], 60_000 + u32::from(number % 300));
    }
}

/// A policy map as the lab's own are, of so many identities.
fn fill_policy(globals: &Path, id: u16) {
    let model = MapHandle::from_pinned_path(globals.join(policy_map(2686))).expect("a pin");
    let info = model.info().expect("the kernel tells").info;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: info.map_flags,
        ..Default::default()
    };
    let map = MapHandle::create(
        model.map_type(),
        Some(policy_map(id)),
        model.key_size(),
        model.value_size(),
        model.max_entries(),
        &options,
    );
    let mut map = map.expect("a map");
    let any = model.keys().next().expect("an entry");
    let value = model.lookup(&any, MapFlags::ANY).expect("the kernel reads").expect("it is there");
    for number in 0..ENTRIES {
        // The identity is first, or behind the length of a prefix; which, the sizes say.
        let at = model.key_size() as usize - 8;
        let mut key = any.clone();
        key[at..at + 4].copy_from_slice(&(50_000 + number).to_le_bytes());
        map.update(&key, &value, MapFlags::ANY).expect("room");
    }
    map.pin(globals.join(policy_map(id))).expect("a pin");
}

/// From its start to its first answers.
fn starts(lab: &mut Lab, runtime: &tokio::runtime::Runtime) {
    let mut took = [const { Vec::new() }; 2];
    for _ in 0..STARTS {
        let began = Instant::now();
        let mut agent = PlsprobeAgent::start(lab, plsprobe(), WATCH);
        runtime.block_on(async {
            let client = connect(agent.door().socket()).await;
            let _: NowAnswer = client.ask(NOW, &NowRequest {}).await.expect("it tells the time");
            took[0].push(began.elapsed());
            let mut answers = trace(&client, FLOWS).await;
            answers.next().await.expect("it answers").expect("it has something to say");
            took[1].push(began.elapsed());
        });
        agent.process().signal("TERM");
        agent.finish();
    }
    for (what, took) in
        ["from its start to its first answer", "… to a trace that is attached"].iter().zip(&mut took)
    {
        took.sort_unstable();
        println!("| {what} | {:.0} ms |", took[STARTS / 2].as_secs_f64() * 1000.0);
    }
}

async fn connect(socket: &Path) -> Client {
    let began = Instant::now();
    loop {
        match Client::connect(socket).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn trace(client: &Client, count: u64) -> Answers<TraceAnswer> {
    let duration_ms = PATIENCE.as_millis() as u64;
    let request =
        TraceRequest { dst: "pls-app".to_owned(), count, duration_ms, json: true, ..TraceRequest::default() };
    client.call(TRACE, &request).await.expect("it takes a trace")
}

/// Nothing happens, and nobody asks.
fn idle(lab: &Lab, agent: &PlsprobeAgent) {
    // What the start has left to do.
    std::thread::sleep(Duration::from_secs(10));
    let (before, records_before) = (agent.usage(), records(lab));
    std::thread::sleep(IDLE);
    let (after, records_after) = (agent.usage(), records(lab));
    let seconds = IDLE.as_secs();
    // Tracepoints see the whole machine, and every lab on it has the same addresses.
    println!("| records meanwhile, of other labs on this machine | {} |", records_after - records_before);
    println!(
        "| CPU over {seconds} s without a packet | {:.2} % of one |",
        busy(&before, &after, IDLE) * 100.0
    );
    for (what, kib) in [
        ("memory, `VmRSS`", after.rss_kib),
        ("memory, its share (`Pss`)", after.pss_kib),
        ("memory, its own and written (`Private_Dirty`)", after.dirty_kib),
    ] {
        println!("| {what} | {:.1} MiB |", kib as f64 / 1024.0);
    }
    println!("| descriptors, threads | {}, {} |", after.fds, after.threads);
}

/// Records that our programs made by now, by the agent's metrics.
fn records(lab: &Lab) -> u64 {
    let page = lab.run_in(Ns::Node, || {
        let mut stream = TcpStream::connect("127.0.0.1:9967")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page).map(|_| page)
    });
    let page = page.expect("the node").expect("metrics");
    let made = page.lines().find_map(|line| line.strip_prefix("plsprobe_records_made_total "));
    made.and_then(|number| number.trim().parse::<f64>().ok()).expect("a number") as u64
}

fn busy(before: &Usage, after: &Usage, span: Duration) -> f64 {
    after.cpu.saturating_sub(before.cpu).as_secs_f64() / span.as_secs_f64()
}

/// Every trace gets every flow.
async fn sessions(lab: &Lab, agent: &PlsprobeAgent) {
    let mut traces = Vec::new();
    for _ in 0..SESSIONS {
        let client = connect(agent.door().socket()).await;
        let mut answers = trace(&client, FLOWS).await;
        answers.next().await.expect("it answers").expect("it has something to say");
        traces.push((client, answers));
    }
    let (before, began) = (agent.usage(), Instant::now());
    let options = LoadOptions {
        pps: Some(400),
        connections: 2,
        requests: 50,
        new_connections: RATE,
        ..LoadOptions::default()
    };
    let load = Load::start(lab.instance(), &options).expect("a load");
    // All at once: one that does not read is told what it missed instead.
    let reading: Vec<_> = traces.into_iter().map(|(_client, answers)| tokio::spawn(told(answers))).collect();
    let mut flows = 0;
    for one in reading {
        flows += one.await.expect("it reads to the end");
    }
    let (after, took) = (agent.usage(), began.elapsed());
    load.stop().expect("the load ends").check_harmless().expect("nothing is lost");
    println!(
        "| {SESSIONS} traces at once, {FLOWS} flows each | {flows} flows told in {:.1} s, {:.0} % of one CPU, {:.1} MiB |",
        took.as_secs_f64(),
        busy(&before, &after, took) * 100.0,
        after.rss_kib as f64 / 1024.0,
    );
}

/// Flows that a trace is told of until it ends.
async fn told(mut answers: Answers<TraceAnswer>) -> usize {
    let mut flows = 0;
    while let Some(answer) = answers.next().await.expect("it goes on") {
        match answer.answer {
            Some(Answer::Out(lines)) => {
                let text = String::from_utf8(lines).expect("JSON");
                flows += text.lines().filter(|line| line.contains("plsprobe.trace.flow/1")).count();
            }
            // What it lost, it is missing from the sum.
            Some(Answer::Notice(_) | Answer::End(_)) | None => {}
        }
    }
    flows
}
