//! `plsprobe agent` for a long time: steady load, pods deleted and made anew, Cilium's programs replaced and its sockets
//! gone and back, the API server of Kubernetes as well, sessions of every end, garbage on its socket. It stays as large as it was, and misses nobody for long.
//!
//! `docs/agent.md` has the figures. Some 20 s, unless `PLSPROBE_SOAK_MINUTES=30` makes it more; with the binary that is
//! built with the tests, unless `PLSPROBE_BIN` names another.
mod api;
#[path = "../live/mod.rs"]
mod live;
mod pods;
mod samples;
mod visitors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use probe_lab::addresses::NGINX_POD;
use probe_lab::load::{Load, LoadOptions};
use probe_lab::plsprobe_agent::PlsprobeAgent;
use probe_lab::tracing::PATIENCE;
use probe_lab::{Lab, Shape};

use api::{Api, Mood};
use live::lab;
use pods::Pods;
use samples::Samples;
use visitors::visit;

/// How long, unless `PLSPROBE_SOAK_MINUTES` says otherwise.
const SHORT: Duration = Duration::from_secs(20);
/// From one thing that happens to the next.
const EVENT_EVERY: Duration = Duration::from_secs(3);
/// How long a pod may be there before a flow of its is seen.
const MISSED_MAX: Duration = Duration::from_secs(2);
/// Conntrack maps of a lab's node, which has no IPv6: TCP's and all else's.
const CONNTRACK_MAPS: usize = 2;
/// What an agent says when it begins anew.
const RESTARTED: &str = "nothing is seen for now";

/// What happens to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A pod is deleted and made again, with its interface.
    PodRecreated,
    /// Cilium's agent goes, and its sockets with it.
    SocketsGone,
    /// They are back.
    SocketsBack,
    /// The API server of Kubernetes goes, or is of no use, in one way after the other.
    ApiGone,
    /// It is well again.
    ApiBack,
    /// Cilium loads its programs anew and replaces each in its place.
    Regeneration,
    /// Cilium's programs are taken away and attached anew. The load holds its breath, since without them its packets
    /// would not come through.
    Restart,
}

impl Event {
    const ALL: [Self; 8] = [
        Self::PodRecreated,
        Self::SocketsGone,
        Self::ApiGone,
        Self::Regeneration,
        Self::SocketsBack,
        Self::PodRecreated,
        Self::ApiBack,
        Self::Restart,
    ];

    /// It happens, the `round`th time.
    fn happen(self, round: usize, lab: &mut Lab, api: &Api, load: &Load) {
        match self {
            Self::PodRecreated => lab.recreate_pod(&NGINX_POD).unwrap(),
            Self::SocketsGone => lab.stop_agent(),
            Self::SocketsBack => lab.start_agent().unwrap(),
            Self::ApiGone => api.become_(lab, Mood::BAD[round % Mood::BAD.len()]),
            Self::ApiBack => api.become_(lab, Mood::Well),
            Self::Regeneration => lab.standin_mut().unwrap().regenerate().unwrap(),
            Self::Restart => {
                load.pause();
                lab.standin_mut().unwrap().restart().unwrap();
                load.resume();
            }
        }
    }
}

/// How long it is to take.
fn span() -> Duration {
    let minutes = std::env::var("PLSPROBE_SOAK_MINUTES").ok();
    minutes
        .map_or(SHORT, |text| Duration::from_mins(text.parse().expect("PLSPROBE_SOAK_MINUTES is a number")))
}

fn plsprobe() -> PathBuf {
    std::env::var_os("PLSPROBE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_plsprobe").into(), PathBuf::from)
}

/// What a machine with other things to do can send as well; every packet of it is recorded where it passes.
fn start_load(lab: &Lab) -> Load {
    let options = LoadOptions {
        pps: Some(2000),
        connections: 8,
        requests: 100,
        new_connections: 40,
        ..LoadOptions::default()
    };
    Load::start(lab.instance(), &options).unwrap()
}

#[test]
fn steady() {
    let Some(mut lab) = lab("soak", Shape::Aks, "none") else { return };
    let span = span();
    let api = Api::start(&lab);
    let args = format!("--watch pls-app --watch my-nginx --kubeconfig {}", api.kubeconfig().display());
    let mut agent = PlsprobeAgent::attached(&mut lab, plsprobe(), &args);
    let mut pods = Pods::new(agent.tracing("--dst my-nginx -o json --duration 23h"));
    pods.wait_until_seen(&lab);
    let before = (agent.usage(), open_files(&agent));
    let load = start_load(&lab);
    let (pid, door) = (agent.process().id(), agent.door().clone());
    let is_over = AtomicBool::new(false);
    let (samples, visitors, events) = std::thread::scope(|scope| {
        let samples = scope.spawn(|| Samples::take(pid, span, &is_over));
        let visitors = scope.spawn(|| visit(&door, &is_over));
        let events = happen((&mut lab, &api), &load, &mut pods, span);
        is_over.store(true, Ordering::Relaxed);
        (samples.join().unwrap(), visitors.join().unwrap(), events)
    });
    let report = load.stop().unwrap();
    println!(
        "{samples}\n{pods}\n{visitors}\n{events} events, {} requests of the API\n{report}",
        api.requests()
    );
    println!("before {:?}\nafter  {:?}", before.0, agent.usage());

    all_are_gone(&agent, &before.1);
    report.check_harmless().unwrap();
    let missed = pods.longest_unseen();
    assert!(missed <= MISSED_MAX, "a pod was there for {missed:?} before a flow of its was seen");
    samples.check_flat(span);
    visitors.check();
    drop(pods);
    agent.process().signal("TERM");
    let ended = agent.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains(RESTARTED), "{}", ended.stderr);
}

/// One event after another until the time is over; how many there were.
fn happen((lab, api): (&mut Lab, &Api), load: &Load, pods: &mut Pods, span: Duration) -> usize {
    let until = Instant::now() + span;
    // In a short run each of them once.
    let every = EVENT_EVERY.min(span / (Event::ALL.len() as u32 + 1));
    let mut next = Instant::now();
    for (at, event) in Event::ALL.into_iter().cycle().enumerate() {
        next = (next + every).max(Instant::now());
        if next >= until {
            return at;
        }
        while Instant::now() < next {
            pods.read(next - Instant::now());
        }
        event.happen(at / Event::ALL.len(), lab, api, load);
        if event == Event::PodRecreated {
            pods.wait_until_seen(lab);
        }
    }
    unreachable!("events go round")
}

/// Nothing is open that was not before anybody came, soon after all have gone; but for conntrack maps that have become too
/// large to be read, which stay open for lookups.
fn all_are_gone(agent: &PlsprobeAgent, before: &BTreeMap<String, usize>) {
    let until = Instant::now() + PATIENCE;
    let for_lookups = |kind: &str| if kind == "anon_inode:bpf-map" { CONNTRACK_MAPS } else { 0 };
    let is_more = |(kind, count): (&String, &usize)| {
        before.get(kind).is_none_or(|before| *count > before + for_lookups(kind))
    };
    while open_files(agent).iter().any(is_more) {
        assert!(Instant::now() < until, "open before: {before:#?}, after: {:#?}", open_files(agent));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// By kind. At a new pod's interface ours are tcx links or legacy filters, whichever fits what is there at that moment,
/// so links, which are two a pod then, say nothing; the programs behind them are counted.
fn open_files(agent: &PlsprobeAgent) -> BTreeMap<String, usize> {
    let mut files = agent.open_files();
    files.remove("anon_inode:bpf_link");
    files
}
