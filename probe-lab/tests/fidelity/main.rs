//! How faithful the stand-in is: fed with a recorded scenario's maps and sent its probes, it must say what a real
//! Cilium 1.14 said.
//!
//! Verdict and drop notifications are compared byte for byte, but for the flow hash, the source line and what is
//! random in a packet (identification, checksums, sequence numbers, timestamps). Trace notifications are compared
//! as sets, by everything but the segment that caused them; conntrack by what does not depend on time.
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, process};

use anyhow::{Context as _, Result, ensure};
use probe_lab::standin::{self, Aggregation, EventReader, MapContents, Standin, StandinConfig};
use probe_lab::{ClientSaw, Lab, LabOptions, Ns, Shape};

mod conntrack;
mod kube_proxy;
mod notification;
mod others;
mod recording;
mod traffic;

use notification::{Flow, Notification};
use recording::{Expected, RecordedProbe, notifications};

/// What cannot be expressed, of which scenario, and why. `*` stands for every scenario.
const NOT_EXPRESSED: &[(&str, &str, &str)] = &[
    (
        "cilium-1.14/*",
        "nginx-clusterip, app-nginxsvc: traces and conntrack",
        "recorded with socket load balancing, which the stand-in replaces by translating each packet",
    ),
    ("*", "socket traces and agent notifications", "not the datapath's at tc, which the stand-in stands for"),
    ("*", "traces of ARP packets", "who asks, and when, depends on neighbour tables"),
    ("*", "file and line of a drop", "they are places in Cilium's source"),
    (
        "cilium-1.14-tunnel-kubeproxy/*",
        "nginx-remotepod: the interface of its trace",
        "the lab has no tunnel: the packet ends where it would enter one",
    ),
    (
        "cilium-1.14/misc-drops",
        "gone-backend beyond its silence",
        "the stand-in has no backends on other nodes",
    ),
    (
        "cilium-1.14/misc-drops",
        "IPv6 beyond its first packet",
        "the rest is the pod's kernel repeating itself",
    ),
];

/// How long the last notifications may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// A recording, and what of it is not expressed.
struct Recording {
    name: &'static str,
    /// Probes whose traces and conntrack entries are not.
    socket_balanced: &'static [&'static str],
    /// The number in the lab of an interface of the recorded node.
    ifindex: fn(u32) -> u32,
}

const KPR: Recording = Recording {
    name: "cilium-1.14",
    socket_balanced: &["nginx-clusterip", "app-nginxsvc"],
    ifindex: |ifindex| ifindex,
};

/// Its `cilium_vxlan` is number 5, before the pods' interfaces.
const KUBE_PROXY: Recording = Recording {
    name: "cilium-1.14-tunnel-kubeproxy",
    socket_balanced: &[],
    ifindex: |ifindex| match ifindex {
        5 => 0,
        6 | 7 => ifindex - 1,
        _ => ifindex,
    },
};

/// A lab with a stand-in, and its notifications. In this order: the stand-in goes first.
struct World {
    standin: Standin,
    events: EventReader,
    lab: Lab,
    recording: Recording,
}

impl World {
    /// Brings it up, or prints why not.
    fn up(instance: &str, recording: Recording) -> Result<Option<Self>> {
        if let Some(reason) = standin::unavailable() {
            fixtures::skip!("{reason}");
            return Ok(None);
        }
        let shape = if recording.name == KUBE_PROXY.name { Shape::KubeProxy } else { Shape::Kpr };
        let options =
            LabOptions { instance: format!("{instance}-{}", process::id()), shape, ..LabOptions::default() };
        let lab = Lab::up_without_datapath(&options)?;
        like_the_recorded_node(&lab)?;
        let mut config = StandinConfig::for_lab(&lab);
        if shape == Shape::KubeProxy {
            kube_proxy::like_the_recorded_node(&lab, &mut config)?;
        }
        let standin = Standin::start(config)?;
        let events = standin.events()?;
        Ok(Some(Self { standin, events, lab, recording }))
    }

    /// Puts the recorded control plane in place, and forgets connections.
    fn load(&mut self, scenario: &Path) -> Result<()> {
        self.standin.fill(&MapContents::from_recording(scenario)?)?;
        self.standin.map("cilium_ct4_global")?.clear()?;
        self.standin.map("cilium_ct_any4_global")?.clear()?;
        self.events.drain()?;
        Ok(())
    }

    /// What was recorded of a scenario, with the lab's interface numbers.
    fn recorded(&self, scenario: &Path) -> Result<Vec<Notification>> {
        let recorded = notifications(scenario)?;
        Ok(recorded.into_iter().map(|notification| notification.moved(self.recording.ifindex)).collect())
    }

    /// What was notified since the last call, and a little later: the last segments of a connection are sent after
    /// the client has its answer.
    fn seen(&mut self) -> Result<Vec<Notification>> {
        std::thread::sleep(Duration::from_millis(100));
        Ok(self.events.drain()?.iter().filter_map(|sample| Notification::parse(sample)).collect())
    }
}

/// What of the recorded node shows in captured packets, and the lab leaves to chance or has otherwise.
fn like_the_recorded_node(lab: &Lab) -> Result<()> {
    ip(lab, Ns::Node, "link set cilium_host address f2:c6:ad:05:61:82")?;
    ip(lab, Ns::Node, "link set cilium_net address 6e:8f:d0:6a:cb:94")?;
    // The recorded load balancer's probe sat one hop behind the router; the lab's sits on it.
    lab.run_in(Ns::Fabric, || fs::write("/proc/sys/net/ipv4/ip_default_ttl", "63"))??;
    Ok(())
}

fn ip(lab: &Lab, ns: Ns, arguments: &str) -> Result<()> {
    let mut ip = process::Command::new("ip");
    ip.args(["-n", lab.netns(ns).name()]).args(arguments.split(' '));
    ensure!(ip.status()?.success(), "`ip {arguments}` failed");
    Ok(())
}

#[test]
fn recorded_probes() -> Result<()> {
    for (scenario, what, why) in NOT_EXPRESSED {
        println!("not expressed: {scenario}: {what}: {why}");
    }
    let Some(world) = World::up("fidelity", KPR)? else { return Ok(()) };
    check(world, 280)
}

#[test]
fn recorded_probes_behind_kube_proxy() -> Result<()> {
    let Some(world) = World::up("fidelity-kp", KUBE_PROXY)? else { return Ok(()) };
    check(world, 176)
}

/// Replays every scenario that is a list of probes; there are `n_recorded` of them in all.
fn check(mut world: World, n_recorded: usize) -> Result<()> {
    let mut failures = String::new();
    let mut n_probes = 0;
    for scenario in fixtures::scenarios(world.recording.name) {
        if others::NAMES.contains(&scenario.name.as_str()) {
            continue;
        }
        let expected = Expected::read(&scenario.path)?;
        let found = replay(&mut world, &scenario.path, &expected)
            .with_context(|| format!("in scenario `{}`", scenario.name))?;
        println!("{}: {} probes, {} differences", scenario.name, expected.probes.len(), found.len());
        n_probes += expected.probes.len();
        for failure in found {
            writeln!(failures, "{}: {failure}", scenario.name)?;
        }
    }
    assert!(failures.is_empty(), "the stand-in differs from the recordings:\n{failures}");
    assert_eq!(n_probes, n_recorded, "probes in the recordings");
    Ok(())
}

/// Sends a scenario's probes, all at once, and says what differs.
fn replay(world: &mut World, scenario: &Path, expected: &Expected) -> Result<Vec<String>> {
    let aggregation =
        if expected.monitor_aggregation == "none" { Aggregation::None } else { Aggregation::Medium };
    if world.standin.config().aggregation != aggregation {
        world.standin.set_aggregation(aggregation)?;
    }
    let enabled = |direction| expected.policy_enabled == direction || expected.policy_enabled == "both";
    world.standin.set_enforcement(expected.endpoint_id, enabled("ingress"), enabled("egress"))?;
    world.load(scenario)?;

    let recorded = world.recorded(scenario)?;
    let saw = send_all(&world.lab, &expected.probes, &recorded);
    let mut failures = Vec::new();
    for (probe, saw) in expected.probes.iter().zip(saw) {
        let saw = saw.with_context(|| format!("probe `{}`", probe.id))?;
        if saw.to_string() != probe.client_saw {
            failures.push(format!("{}: the client saw {saw}, recorded {}", probe.id, probe.client_saw));
        }
    }
    let end = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        seen.extend(world.seen()?);
        let found = differences(world, scenario, &expected.probes, &recorded, &seen)?;
        if found.is_empty() || Instant::now() >= end {
            failures.extend(found);
            return Ok(failures);
        }
    }
}

/// What differs between the recording and what was seen so far.
fn differences(
    world: &World,
    scenario: &Path,
    probes: &[RecordedProbe],
    recorded: &[Notification],
    seen: &[Notification],
) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for probe in probes {
        let found = [decided(probe, recorded, seen), traced(&world.recording, probe, recorded, seen)];
        differences.extend(found.into_iter().flatten().map(|text| format!("{}: {text}", probe.id)));
    }
    let unknown = |of: &[Notification]| -> BTreeSet<_> {
        of.iter().filter(|n| n.is_trace() && n.flow() == Flow::Unknown && !n.is_arp()).cloned().collect()
    };
    differences.extend(set_difference(&unknown(recorded), &unknown(seen)));
    let tracked = probes.iter().filter(|probe| !world.recording.socket_balanced.contains(&probe.id.as_str()));
    let ports: Vec<_> = tracked.filter_map(|probe| probe.from_port).collect();
    differences.extend(conntrack::differences(world, scenario, &ports)?);
    Ok(differences)
}

/// Sends every probe from a thread of its own, with what the recorded packet carried.
fn send_all(lab: &Lab, probes: &[RecordedProbe], recorded: &[Notification]) -> Vec<Result<ClientSaw>> {
    std::thread::scope(|scope| {
        let send = |probe: &RecordedProbe| {
            let first = recorded.iter().find(|n| probe.owns(n) && !n.is_trace());
            let payload = first.map_or(b"hi".as_slice(), Notification::payload).to_vec();
            let probe = probe.clone();
            scope.spawn(move || {
                let ns = probe.ns().context("no namespace has the source")?;
                traffic::send(lab, ns, &probe, &payload)
            })
        };
        let sent: Vec<_> = probes.iter().map(send).collect();
        sent.into_iter().map(|thread| thread.join().expect("a probe does not panic")).collect()
    })
}

/// What differs between the recorded and the seen verdicts and drops of one probe.
fn decided(probe: &RecordedProbe, recorded: &[Notification], seen: &[Notification]) -> Option<String> {
    let of = |all: &[Notification]| {
        once(all.iter().filter(|n| probe.owns(n) && !n.is_trace()).cloned().collect::<Vec<_>>())
    };
    let (recorded, seen) = (of(recorded), of(seen));
    (recorded != seen).then(|| format!("decided\n  recorded {recorded:#?}\n  seen {seen:#?}"))
}

/// What the first packet was answered with, if every retransmission was answered with the same: how many there are
/// is the client's patience.
fn once(all: Vec<Notification>) -> Vec<Notification> {
    let mut first: Vec<Notification> = Vec::new();
    for notification in &all {
        if !first.contains(notification) {
            first.push(notification.clone());
        }
    }
    let repeats = !first.is_empty() && all.chunks(first.len()).all(|chunk| chunk == first);
    if repeats { first } else { all }
}

/// What differs between the recorded and the seen traces of one probe.
fn traced(
    recording: &Recording,
    probe: &RecordedProbe,
    recorded: &[Notification],
    seen: &[Notification],
) -> Option<String> {
    if recording.socket_balanced.contains(&probe.id.as_str()) {
        return None;
    }
    let of = |all: &[Notification]| -> BTreeSet<_> {
        all.iter().filter(|n| probe.owns(n) && n.is_trace()).cloned().collect()
    };
    set_difference(&of(recorded), &of(seen))
}

fn set_difference(recorded: &BTreeSet<Notification>, seen: &BTreeSet<Notification>) -> Option<String> {
    if recorded == seen {
        return None;
    }
    let missing: Vec<_> = recorded.difference(seen).collect();
    let extra: Vec<_> = seen.difference(recorded).collect();
    Some(format!("traced\n  missing {missing:#?}\n  extra {extra:#?}"))
}
