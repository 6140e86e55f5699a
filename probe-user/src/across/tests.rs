//! From the API server to the answer: a stand-in that forwards ports, agents behind it that speak gRPC over TLS, and flows
//! that the tracker and the judgement made of sightings, each on its node's own clock.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::plan::tests::Lists;
use super::*;
use crate::agent::proto::{
    Answer as Said, End, NowAnswer, StopAnswer, StopRequest, TraceAnswer, TraceRequest,
};
use crate::grpc::Status;
use crate::grpc::server::{Answering, Limits, Sender, Server, Service};
use crate::grpc::tls::{Files, Tls};
use crate::render::trace::tests::{
    FRONTEND, Given, POD, UPLINK, VETH, at, judged, packet, policy_drop, watch,
};
use crate::render::trace_json;
use crate::sources::http::testing::{Authority, Reply, Seen};
use crate::sources::kubernetes::standin::{Answer, Api};
use crate::sys;
use crate::trace::judge::EventSource;
use probe_model::path::{HookPoint, Seen as Sight, Sighting};

const CLIENT: &str = "10.224.0.8:40000";
const BETWEEN: &str = "10.224.0.5:61000";
/// When the flow's first packet came to the first node, by the true clock, in microseconds after the test began.
const FIRST_US: u64 = 1_000;

/// What an agent does with a trace.
#[derive(Clone, Default)]
struct Script {
    /// Lines of its answer.
    lines: Vec<String>,
    /// Its clock's lead, in microseconds.
    ahead_us: i64,
    /// Whether it goes on until it is told to stop.
    waits: bool,
    /// Whether it is cut in mid-trace.
    is_cut: bool,
    /// Whether it is so old that it has no such method.
    is_old: bool,
    /// An error that it ends with.
    error: &'static str,
}

struct Agent {
    script: Script,
    asked: Mutex<Vec<TraceRequest>>,
    stopped: AtomicBool,
    cut: tokio::sync::Notify,
}

impl Agent {
    async fn trace(&self, request: TraceRequest, sender: &mut Sender) -> Result<(), Status> {
        let id = request.id;
        self.asked.lock().unwrap().push(request);
        let script = &self.script;
        let mut say = async |answer| sender.send(&TraceAnswer { answer: Some(answer) }).await;
        if !script.error.is_empty() {
            return say(Said::End(End { exit: 2, error: script.error.to_owned() })).await;
        }
        say(Said::Notice("verdicts come from Cilium's own notifications".to_owned())).await?;
        for line in &script.lines {
            say(Said::Out(format!("{line}\n").into_bytes())).await?;
        }
        if script.is_cut {
            self.cut.notify_one();
            std::future::pending::<()>().await;
        }
        while script.waits && !self.stopped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(id, 0);
        say(Said::Out(format!("{}\n", summary()).into_bytes())).await?;
        say(Said::End(End { exit: 0, error: String::new() })).await
    }
}

/// As much of a trace's own summary as is read of it.
fn summary() -> Value {
    json!({
        "schema": "plsprobe.trace.summary/1",
        "records": {"read": 12, "lost": 1, "malformed": 0, "unaccounted": 0, "overflowed": 0, "disordered": 0, "unreadable": 0},
        "hooks": [
            {"place": "eth0 ingress", "state": "attached", "detail": "tcx"},
            {"place": "ip_rcv", "state": "refused", "detail": "no kprobes"}
        ]
    })
}

impl Service for Agent {
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            match method {
                "Now" => {
                    let monotonic_ns =
                        (sys::monotonic().as_nanos() as u64).strict_add_signed(self.script.ahead_us * 1_000);
                    sender.send(&NowAnswer { monotonic_ns, unix_ns: 0, node: String::new() }).await
                }
                "Trace" if !self.script.is_old => {
                    self.trace(TraceRequest::decode(request).unwrap(), sender).await
                }
                "Stop" => {
                    let StopRequest { id } = StopRequest::decode(request).unwrap();
                    assert!(self.asked.lock().unwrap().iter().any(|asked| asked.id == id));
                    self.stopped.store(true, Ordering::SeqCst);
                    sender.send(&StopAnswer {}).await
                }
                other => Err(Status::unimplemented(other)),
            }
        })
    }
}

/// Where a trace's lines go.
#[derive(Default)]
struct Page {
    data: String,
    notices: Vec<String>,
}

impl Paper for Page {
    fn data(&mut self, lines: &[u8]) -> Result<()> {
        self.data.push_str(std::str::from_utf8(lines)?);
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        self.notices.push(text.to_owned());
    }
}

/// A cluster: the API server, agents on its nodes, and an operator with a kubeconfig and a certificate.
struct World {
    folder: tempfile::TempDir,
    agents: Vec<Arc<Agent>>,
    options: Options,
}

impl World {
    /// Agents with these scripts, of the nodes `aks-1` and on; without one nobody listens on the agent's port.
    async fn start(scripts: Vec<Option<Script>>, lists: Lists) -> Self {
        Self::with(scripts, lists, |_| None).await
    }

    /// With an API server that answers some requests in another way.
    async fn with(
        scripts: Vec<Option<Script>>,
        lists: Lists,
        instead: impl Fn(&Seen) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        write(folder.path(), "ca.crt", &authority.pem());
        for (name, cn) in [("agent", AGENT_NAME), ("operator", "operator")] {
            let (certificate, key) = authority.issue(cn);
            write(folder.path(), &format!("{name}.crt"), &certificate);
            write(folder.path(), &format!("{name}.key"), &key);
        }
        let (mut agents, mut addresses) = (Vec::new(), Vec::new());
        for script in scripts {
            let Some(script) = script else {
                addresses.push(None);
                continue;
            };
            let (asked, stopped) = (Mutex::default(), AtomicBool::default());
            let agent = Arc::new(Agent { script, asked, stopped, cut: tokio::sync::Notify::new() });
            addresses.push(Some(serve(agent.clone(), folder.path()).await));
            agents.push(agent);
        }
        let Lists { pods, services, slices, nodes } = lists;
        let api = Api::start(None, move |seen| {
            if let Some(answer) = instead(seen) {
                return answer;
            }
            let path = seen.path.split('?').next().unwrap();
            if let Some(pod) = path.strip_suffix("/portforward").and_then(|path| path.rsplit('/').next()) {
                let node: usize = pod.rsplit('-').next().unwrap().parse().unwrap();
                return match addresses[node - 1] {
                    Some(address) => Answer::To(address),
                    None => Answer::Refuse("error forwarding port 9966: connect: connection refused"),
                };
            }
            let items = match path.rsplit('/').next().unwrap() {
                "pods" => &pods,
                "services" => &services,
                "endpointslices" => &slices,
                "nodes" => &nodes,
                other => panic!("nobody needs {other}"),
            };
            Answer::Reply(Reply::ok(&json!({"items": items}).to_string()))
        })
        .await;
        let kubeconfig = format!(
            "current-context: a\ncontexts:\n- name: a\n  context: {{cluster: c, user: u}}\nclusters:\n- name: c\n  cluster: {{server: 'http://{}'}}\n\
             users:\n- name: u\n  user: {{}}\n",
            api.address
        );
        let options = Options {
            dst: "pls-app".to_owned(),
            src: Vec::new(),
            ports: vec![PortRange { protocol: 6, first: 80, last: 80 }],
            duration: Duration::from_mins(1),
            count: None,
            since: None,
            kubeconfig: Some(write(folder.path(), "config", &kubeconfig)),
            context: Some("a".to_owned()),
            agents: Agents {
                certificate: folder.path().join("operator.crt"),
                key: folder.path().join("operator.key"),
                ca: folder.path().join("ca.crt"),
                name: AGENT_NAME.to_owned(),
                port: None,
            },
            output: Output::Json,
        };
        Self { folder, agents, options }
    }

    async fn trace(&self) -> (Result<Outcome>, Page) {
        self.trace_until(std::future::pending()).await
    }

    async fn trace_until(&self, stop: impl Future<Output = ()>) -> (Result<Outcome>, Page) {
        let mut page = Page::default();
        let outcome = trace(&self.options, self.options.access().unwrap(), stop, &mut page).await;
        (outcome, page)
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

async fn serve(agent: Arc<Agent>, folder: &Path) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let file = |name: &str| folder.join(name);
    let files = Files { certificate: file("agent.crt"), key: file("agent.key"), client_ca: file("ca.crt") };
    let tls = Tls::load(files).unwrap();
    let services: Vec<(_, Arc<dyn Service>)> = vec![("plsprobe.v1.Agent", agent.clone())];
    let server = Server::new(services, Limits::AGENT, Arc::new(|_| ()));
    tokio::spawn(async move {
        let serving = tokio::spawn(async move { server.serve_tls(&listener, &tls).await });
        agent.cut.notified().await;
        serving.abort();
    });
    address
}

/// An agent whose clock is ahead by so much, and whose one flow these sightings are of.
fn script(began_us: u64, ahead_us: i64, sightings: impl Fn(u64) -> Vec<Sighting>) -> Script {
    let lines = line(&sightings((began_us + FIRST_US).strict_add_signed(ahead_us)));
    Script { lines: vec![lines], ahead_us, ..Script::default() }
}

/// The line of the one flow that these sightings are of, where no policy selects the pod; or, if Cilium drops it, one
/// that admits the NAT IP alone.
fn line(sightings: &[Sighting]) -> String {
    let is_dropped = sightings.iter().any(|sighting| matches!(sighting.seen, Sight::Cilium { .. }));
    let recording = if is_dropped { "cidr-pls8-80" } else { "none" };
    let watch = watch();
    let given = Given { recording, events: &EventSource::MonitorSocket, watch: &watch };
    let (world, judgement, names) = judged(&given, sightings);
    let mut line = Vec::new();
    trace_json::flow(&world, &judgement, &names, &mut line).unwrap();
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// The first node: from the client to the frontend, on to the pod of the other node by an address of its own, and back.
fn forwarded(us: u64, is_answered: bool) -> Vec<Sighting> {
    let mut sightings = vec![
        at(us, HookPoint::UplinkIn, UPLINK, packet(CLIENT, FRONTEND, 0x02, 9, 0)),
        at(us + 40, HookPoint::UplinkOut, UPLINK, packet(BETWEEN, POD, 0x02, 9, 0)),
    ];
    if is_answered {
        sightings.push(at(us + 900, HookPoint::UplinkIn, UPLINK, packet(POD, BETWEEN, 0x12, 50, 10)));
        sightings.push(at(us + 930, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, CLIENT, 0x12, 50, 10)));
    }
    sightings
}

/// The second: from the first to the pod, and back. `us` is when it came to the first.
fn delivered(us: u64) -> Vec<Sighting> {
    vec![
        at(us + 300, HookPoint::UplinkIn, UPLINK, packet(BETWEEN, POD, 0x02, 9, 0)),
        at(us + 340, HookPoint::PodIn, VETH, packet(BETWEEN, POD, 0x02, 9, 0)),
        at(us + 500, HookPoint::PodOut, VETH, packet(POD, BETWEEN, 0x12, 50, 10)),
        at(us + 540, HookPoint::UplinkOut, UPLINK, packet(POD, BETWEEN, 0x12, 50, 10)),
    ]
}

/// The second, whose policy drops it.
fn denied(us: u64) -> Vec<Sighting> {
    vec![
        at(us + 300, HookPoint::UplinkIn, UPLINK, packet(BETWEEN, POD, 0x02, 9, 0)),
        policy_drop(us + 360, packet(BETWEEN, POD, 0x02, 9, 0)),
    ]
}

/// `aks-1` receives, and `aks-2`, the node of the recordings, has their pod.
fn lists() -> Lists {
    let mut lists = Lists::new(2, "Cluster", &[2]);
    for (node, address) in lists.nodes.iter_mut().zip(["10.224.0.5", "10.224.0.4"]) {
        node["status"]["addresses"][0]["address"] = address.into();
    }
    lists.pods[0]["status"]["podIPs"][0]["ip"] = "10.0.0.143".into();
    lists.slices[0]["endpoints"][0]["addresses"][0] = "10.0.0.143".into();
    lists
}

/// Lines with this schema.
fn with_schema(page: &Page, schema: &str) -> Vec<Value> {
    let lines = page.data.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|value| value["schema"] == schema).collect()
}

fn paths(page: &Page) -> Vec<Value> {
    with_schema(page, "plsprobe.across.flow/1")
}

fn now_us() -> u64 {
    sys::monotonic().as_micros() as u64
}

/// However the clocks are off, it is one path, and every time is right within the error that is said.
#[tokio::test]
async fn one_path_whatever_the_clocks_say() {
    for (one, other) in [(0, 0), (7_000_000, -3_000_000), (-40, 25)] {
        let began = now_us();
        let scripts =
            vec![Some(script(began, one, |us| forwarded(us, true))), Some(script(began, other, delivered))];
        let world = World::start(scripts, lists()).await;
        let (outcome, page) = world.trace().await;
        assert_eq!(outcome.unwrap(), Outcome::Allowed, "{:?}", page.notices);
        let [path] = &paths(&page)[..] else { panic!("one path: {}", page.data) };
        assert_eq!(
            (&path["verdict"], &path["judged_by"], &path["notes"]),
            (&json!("allowed"), &json!("aks-2"), &json!([])),
            "{path:#}"
        );
        let stops = |name: &str| -> Vec<(String, i64, i64)> {
            let all = path[name].as_array().unwrap().iter();
            all.map(|stop| {
                let since = &stop["since_first"];
                let place = format!("{} {}", stop["node"].as_str().unwrap(), stop["point"].as_str().unwrap());
                (place, since["ns"].as_i64().unwrap(), since["error_ns"].as_i64().unwrap())
            })
            .collect()
        };
        let truth = |own: &[(&str, i64)], told: &[(String, i64, i64)]| {
            let places: Vec<_> = told.iter().map(|(place, _, _)| place.as_str()).collect();
            assert_eq!(places, own.iter().map(|(place, _)| *place).collect::<Vec<_>>());
            for ((_, us), (place, ns, error)) in own.iter().zip(told) {
                assert!((ns - us * 1_000).abs() <= *error, "{place}: {ns} is not {us} µs ± {error}");
            }
        };
        truth(
            &[("aks-1 UplinkIn", 0), ("aks-1 UplinkOut", 40), ("aks-2 UplinkIn", 300), ("aks-2 PodIn", 340)],
            &stops("hops"),
        );
        truth(
            &[
                ("aks-2 PodOut", 500),
                ("aks-2 UplinkOut", 540),
                ("aks-1 UplinkIn", 900),
                ("aks-1 UplinkOut", 930),
            ],
            &stops("replies"),
        );
        let [asked] = &world.agents[0].asked.lock().unwrap()[..] else { panic!("one trace") };
        assert_eq!((asked.dst.as_str(), asked.json, asked.count), ("10.0.0.143", true, 0));
        assert_eq!(asked.ports, [Ports { protocol: 6, first: 80, last: 80 }]);
    }
}

/// What an operator reads, with what the machine's clocks make different each time taken out.
#[tokio::test]
async fn a_drop_on_the_other_node_as_text() {
    let began = now_us();
    let scripts =
        vec![Some(script(began, 5_000_000, |us| forwarded(us, false))), Some(script(began, 0, denied))];
    let mut world = World::start(scripts, lists()).await;
    world.options.output = Output::Text;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Dropped, "{:?}", page.notices);
    expect_test::expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: dropped by Cilium on aks-2, Policy denied (133)
          cause    NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from world (2) on TCP/80 [PLS-01]
          from     PLS NAT IP 10.224.0.8, identity world (2)
          rewrite  aks-1: DNAT 10.224.0.7:80 to 10.0.0.143:80 and SNAT 10.224.0.8:40000 to 10.224.0.5:61000
          hops     aks-1: eth0 in 0.000 > eth0 out 0.040; aks-2: eth0 in ~ ±~ ms
          answer   none seen
          node     aks-1 alone says: inconclusive, silent; nothing that plsprobe knows of on this node stops it, and no answer was seen; ingress of default/pls-app-7d9c5bd5f4-x2v8q is open: no policy selects it for ingress
          note     aks-2 judged 10.224.0.5, identity world (2), which aks-1 had put in the place of the sender 10.224.0.8: no rule admits the sender by its own address there; `externalTrafficPolicy: Local` on the Service keeps it
        paths     1 in ~ s: 0 allowed, 1 dropped, 0 inconclusive; 1 across nodes, 0 with parts that fit several and were not joined
        node      aks-1: clock known to ±~ ms; 1 flows; 12 records seen, 1 lost; 1 hooks attached of 2; not ip_rcv: no kprobes
        node      aks-2: clock known to ±~ ms; 1 flows; 12 records seen, 1 lost; 1 hooks attached of 2; not ip_rcv: no kprobes
    "#]]
    .assert_eq(&settled(&page.data));
    println!("{}{}", page.notices.join("\n"), page.data);
    let [who, nodes @ ..] = &page.notices[..] else { panic!("it says whom it asks") };
    assert!(who.starts_with("http://127.0.0.1:") && who.ends_with("config`, context `a`"), "{who}");
    assert_eq!(
        nodes[..2],
        [
            "node aks-1 receives the frontend's packets: asking its agent kube-system/plsprobe-aks-1",
            "node aks-2 has default/pls-app-7d9c5bd5f4-x2v8s and receives the frontend's packets: asking its agent kube-system/plsprobe-aks-2"
        ]
    );
    assert!(
        nodes[2..].iter().any(|line| line.starts_with("tracing on 2 of 2 nodes; their clocks are known to ")),
        "{nodes:?}"
    );
}

#[tokio::test]
async fn an_answer_by_way_of_both_as_text() {
    let began = now_us();
    let scripts = vec![Some(script(began, 9, |us| forwarded(us, true))), Some(script(began, 0, delivered))];
    let mut world = World::start(scripts, lists()).await;
    world.options.output = Output::Text;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Allowed, "{:?}", page.notices);
    expect_test::expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, answered after 0.900 ms by way of aks-1 and aks-2
          cause    ingress of default/pls-app-7d9c5bd5f4-x2v8q is open: no policy selects it for ingress [OPEN]
          from     PLS NAT IP 10.224.0.8, identity world (2)
          rewrite  aks-1: DNAT 10.224.0.7:80 to 10.0.0.143:80 and SNAT 10.224.0.8:40000 to 10.224.0.5:61000
          hops     aks-1: eth0 in 0.000 > eth0 out 0.040; aks-2: eth0 in ~ ±~ > lxc1 to pod ~ ms
          answer   aks-2: lxc1 from pod ~ ±~ > eth0 out ~; aks-1: eth0 in 0.900 > eth0 out 0.930 ms
        paths     1 in ~ s: 1 allowed, 0 dropped, 0 inconclusive; 1 across nodes, 0 with parts that fit several and were not joined
        node      aks-1: clock known to ±~ ms; 1 flows; 12 records seen, 1 lost; 1 hooks attached of 2; not ip_rcv: no kprobes
        node      aks-2: clock known to ±~ ms; 1 flows; 12 records seen, 1 lost; 1 hooks attached of 2; not ip_rcv: no kprobes
    "#]]
    .assert_eq(&settled(&page.data));
}

/// Numbers that differ from run to run as `~`.
fn settled(text: &str) -> String {
    let mut settled = String::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let is_time =
            |word: &str| word.contains('.') && word.trim_matches(['+', '-', '±', ';']).parse::<f64>().is_ok();
        let (mut elsewhere, is_hops) = (false, line.starts_with("  hops") || line.starts_with("  answer"));
        for word in &mut words {
            if word.ends_with(':') && word.starts_with("aks-") {
                elsewhere = word != "aks-1:";
            }
            let differs = if is_hops { elsewhere } else { !line.contains(" -> ") };
            if differs && is_time(word) {
                let sign = if word.starts_with('±') { "±" } else { "" };
                *word = format!("{sign}~{}", if word.ends_with(';') { ";" } else { "" });
            }
        }
        settled.push_str(&words.join(" "));
        settled.push('\n');
    }
    settled
}

/// What the notes of the paths of two nodes' lines say, and the verdicts.
async fn notes(first: Vec<String>, second: Vec<String>) -> Vec<(String, String)> {
    let with = |lines| Some(Script { lines, ..Script::default() });
    let world = World::start(vec![with(first), with(second)], lists()).await;
    let (_, page) = world.trace().await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = |path: &Value| {
        let notes: Vec<_> = path["notes"].as_array().unwrap().iter().map(text).collect();
        (text(&path["verdict"]), notes.join("; "))
    };
    paths(&page).iter().map(told).collect()
}

#[tokio::test]
async fn an_answer_that_is_lost_between_the_nodes() {
    let began = now_us();
    let told = notes(vec![line(&forwarded(began, false))], vec![line(&delivered(began))]).await;
    let note = "answered on aks-2; aks-1 put its own address in the sender's place, so the answer must come back through it, \
                and was not seen there: it was lost between them, or not seen";
    assert_eq!(told, [("inconclusive".to_owned(), note.to_owned())]);
    let told = notes(vec![line(&forwarded(began, false))], Vec::new()).await;
    let note = "it went on towards default/pls-app-7d9c5bd5f4-x2v8s on aks-2, where nothing of it was seen";
    assert_eq!(told, [("inconclusive".to_owned(), note.to_owned())]);
}

#[tokio::test]
async fn two_that_fit_are_both_told() {
    let began = now_us();
    let told = notes(
        vec![line(&forwarded(began, true))],
        vec![line(&delivered(began)), line(&delivered(began + 2_000))],
    )
    .await;
    let one = "it may have gone on as 10.224.0.5:61000 -> 10.0.0.143:80 TCP on aks-2, and is not joined with it: \
               2 flows fit alike to be what it became";
    let other = "it may be what became of 10.224.0.8:40000 -> 10.224.0.7:80 TCP on aks-1, and is not joined with it: \
                 2 flows fit alike to be what it became";
    let mut notes: Vec<_> = told.into_iter().map(|(_, note)| note).collect();
    let mut expected = vec![format!("{one}; {one}"), other.to_owned(), other.to_owned()];
    notes.sort();
    expected.sort();
    assert_eq!(notes, expected);
}

#[tokio::test]
async fn an_agent_that_is_down_costs_its_part() {
    let began = now_us();
    let scripts = vec![Some(script(began, 0, |us| forwarded(us, false))), None];
    let world = World::start(scripts, lists()).await;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Inconclusive);
    let [path] = &paths(&page)[..] else { panic!("one path: {}", page.data) };
    let note = path["notes"][0].as_str().unwrap();
    assert!(
        note.starts_with("it went on towards default/pls-app-7d9c5bd5f4-x2v8s on aks-2, which is not traced: port 9966 of pod kube-system/plsprobe-aks-2: error forwarding"),
        "{note}"
    );
    assert!(
        page.notices
            .iter()
            .any(|line| line.starts_with("node aks-2: port 9966 of pod")
                && line.ends_with("; it is not traced")),
        "{:?}",
        page.notices
    );
    assert!(
        page.notices
            .iter()
            .any(|line| line.starts_with("tracing on 1 of 2 nodes; their clocks are known to ")),
        "{:?}",
        page.notices
    );
    let [summary] = &with_schema(&page, "plsprobe.across.summary/1")[..] else { panic!("one summary") };
    assert_eq!(summary["nodes"][0]["quality"]["records_lost"], 1);
    assert_eq!(summary["nodes"][0]["quality"]["not_attached"], json!(["ip_rcv: no kprobes"]));
    assert_eq!(summary["nodes"][1]["quality"], Value::Null);
    assert_eq!(
        summary["paths"],
        json!({"total": 1, "allowed": 0, "dropped": 0, "inconclusive": 1, "across": 0, "not_joined": 0})
    );
}

#[tokio::test]
async fn an_agent_that_vanishes_in_mid_trace() {
    let began = now_us();
    let vanishing = Script { is_cut: true, ..script(began, 0, |us| forwarded(us, true)) };
    let scripts = vec![Some(vanishing), Some(script(began, 2_000, delivered))];
    let world = World::start(scripts, lists()).await;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Allowed, "what it said before stays: {:?}", page.notices);
    assert_eq!(paths(&page).len(), 1);
    assert_eq!(paths(&page)[0]["parts"].as_array().unwrap().len(), 2);
    let told = page.notices.iter().find(|line| {
        line.starts_with("node aks-1: the ") && line.ends_with("; its part from here on is missing")
    });
    assert!(told.is_some(), "{:?}", page.notices);
    let [summary] = &with_schema(&page, "plsprobe.across.summary/1")[..] else { panic!("one summary") };
    assert!(
        summary["nodes"][0]["error"].is_string() && summary["nodes"][1]["error"].is_null(),
        "{summary:#}"
    );
}

#[tokio::test]
async fn agents_of_other_versions_are_told_apart() {
    let began = now_us();
    let mut newer = script(began, 0, |us| forwarded(us, true));
    let flow = newer.lines[0].replace("plsprobe.trace.flow/1", "plsprobe.trace.flow/2");
    newer.lines = vec![
        flow,
        "{\"schema\":\"plsprobe.trace.flow/1\"}".to_owned(),
        "[".to_owned(),
        "{\"schema\":\"plsprobe.trace.probe/1\"}".to_owned(),
    ];
    let old = Script { is_old: true, ..Script::default() };
    let mut world = World::start(vec![Some(newer), Some(old)], lists()).await;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Inconclusive);
    let [summary] = &with_schema(&page, "plsprobe.across.summary/1")[..] else { panic!("one summary") };
    assert_eq!(summary["nodes"][0]["unknown_schemas"], json!({"plsprobe.trace.flow/2": 1}));
    assert_eq!(summary["nodes"][0]["unread_lines"], 2);
    assert_eq!(
        summary["nodes"][1]["error"],
        "the agent does not know /plsprobe.v1.Agent/Trace: it is of another version than this plsprobe"
    );
    world.options.output = Output::Text;
    let (_, page) = world.trace().await;
    assert!(page.data.contains("1 lines of schema `plsprobe.trace.flow/2`, which this plsprobe does not know: its agent is of another version"), "{}", page.data);
    assert!(
        page.data.contains("2 lines of its answer could not be read (it has no `verdict`)"),
        "{}",
        page.data
    );
}

#[tokio::test]
async fn rights_that_lack() {
    let forbid = |what: &'static str| {
        move |seen: &Seen| {
            let body = r#"{"message":"forbidden: User \"u\""}"#;
            seen.path.contains(what).then(|| Answer::Reply(Reply::json("403 Forbidden", body)))
        }
    };
    let scripts = || vec![Some(Script::default()), Some(Script::default())];
    let world = World::with(scripts(), lists(), forbid("/api/v1/pods?")).await;
    let error = world.trace().await.0.unwrap_err().to_string();
    assert!(error.starts_with("without the cluster's pods there is nobody to ask: GET http"), "{error}");
    assert!(error.contains("allow whoever asks to list pods"), "{error}");
    let world = World::with(scripts(), lists(), forbid("portforward")).await;
    let error = world.trace().await.0.unwrap_err().to_string();
    assert!(error.starts_with("no agent could be asked: aks-1: GET http"), "{error}");
    assert!(
        error.contains("allow whoever asks to get and create pods/portforward (docs/across.md); aks-2: "),
        "{error}"
    );
    // Without services it is not known who receives, and that is said.
    let world = World::with(scripts(), lists(), forbid("/services")).await;
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Inconclusive, "no flow was seen");
    assert!(
        page.notices.iter().any(|line| line.starts_with("services could not be listed: ")),
        "{:?}",
        page.notices
    );
    assert!(!page.notices.iter().any(|line| line.starts_with("node aks-1")), "{:?}", page.notices);
}

#[tokio::test]
async fn certificates_that_do_not_fit() {
    let mut world = World::start(vec![Some(Script::default()), Some(Script::default())], lists()).await;
    let (certificate, key) = Authority::new().issue("operator");
    world.options.agents.certificate = write(world.folder.path(), "other.crt", &certificate);
    world.options.agents.key = write(world.folder.path(), "other.key", &key);
    let error = world.trace().await.0.unwrap_err().to_string();
    assert!(error.starts_with("no agent could be asked: aks-1: "), "{error}");
    world.options.agents.name = "another".to_owned();
    let error = world.trace().await.0.unwrap_err().to_string();
    assert!(error.contains("its certificate is for another name"), "{error}");
    world.options.agents.ca = write(world.folder.path(), "other-ca.crt", &Authority::new().pem());
    let error = world.trace().await.0.unwrap_err().to_string();
    assert!(error.contains("no authority that is trusted here has signed its certificate"), "{error}");
    world.options.agents.key = world.folder.path().join("none.key");
    let error = format!("{:#}", world.trace().await.0.unwrap_err());
    assert!(error.starts_with("failed to read `") && error.contains("none.key"), "{error}");
}

#[tokio::test]
async fn an_agent_s_own_error() {
    let failing = Script { error: "unknown target `svc/default/pls-app`", ..Script::default() };
    let world = World::start(vec![Some(failing.clone()), Some(failing)], lists()).await;
    let error = world.trace().await.0.unwrap_err().to_string();
    assert_eq!(
        error,
        "no agent could be asked: aks-1: unknown target `svc/default/pls-app`; aks-2: unknown target `svc/default/pls-app`"
    );
}

#[tokio::test]
async fn told_to_stop_it_sums_up() {
    let began = now_us();
    let waiting = |script: Script| Script { waits: true, ..script };
    let scripts = vec![
        Some(waiting(script(began, 0, |us| forwarded(us, true)))),
        Some(waiting(script(began, 0, delivered))),
    ];
    let world = World::start(scripts, lists()).await;
    let agents = world.agents.clone();
    let both_asked = async move {
        while agents.iter().any(|agent| agent.asked.lock().unwrap().is_empty()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (outcome, page) = world.trace_until(both_asked).await;
    assert_eq!(outcome.unwrap(), Outcome::Allowed, "{:?}", page.notices);
    assert_eq!(paths(&page).len(), 1, "{}", page.data);
    let [summary] = &with_schema(&page, "plsprobe.across.summary/1")[..] else { panic!("one summary") };
    for node in summary["nodes"].as_array().unwrap() {
        assert_eq!(
            (&node["error"], &node["quality"]["records_read"]),
            (&Value::Null, &json!(12)),
            "{node:#}"
        );
    }
}

/// With `--src` the other nodes' addresses are asked about too; what of them fits nothing is left out.
#[tokio::test]
async fn senders_that_a_node_put_itself_in_place_of() {
    let began = now_us();
    let mut second = script(began, 0, delivered);
    let stranger = |us: u64| -> Vec<Sighting> {
        vec![
            at(us, HookPoint::UplinkIn, UPLINK, packet("10.224.0.5:55555", POD, 0x02, 9, 0)),
            at(us + 40, HookPoint::PodOut, VETH, packet(POD, "10.224.0.5:55555", 0x12, 50, 10)),
        ]
    };
    second.lines.push(line(&stranger(began)));
    let scripts = vec![Some(script(began, 0, |us| forwarded(us, true))), Some(second)];
    let mut world = World::start(scripts, lists()).await;
    world.options.src = vec!["10.224.0.8".to_owned()];
    let (outcome, page) = world.trace().await;
    assert_eq!(outcome.unwrap(), Outcome::Allowed, "{:?}", page.notices);
    assert_eq!(paths(&page).len(), 1, "{}", page.data);
    let [summary] = &with_schema(&page, "plsprobe.across.summary/1")[..] else { panic!("one summary") };
    assert_eq!(summary["left_out"], 1);
    let src = |idx: usize| world.agents[idx].asked.lock().unwrap()[0].src.clone();
    assert_eq!(src(0), ["10.224.0.8", "10.224.0.4/32", "10.0.2.0/24"]);
    assert_eq!(src(1), ["10.224.0.8", "10.224.0.5/32", "10.0.1.0/24"]);
    // Asked about anybody, it is told as what it is.
    world.options.src = Vec::new();
    let (_, page) = world.trace().await;
    let notes: Vec<_> = paths(&page).into_iter().map(|path| path["notes"].clone()).collect();
    let expected = "it comes from aks-1, and no flow seen there fits: aks-1 itself sends it, or what it was there was not seen";
    assert!(notes.contains(&json!([expected])), "{notes:?}");
}
