//! How faithful the stand-in is: fed with a recorded scenario's maps and sent its probes, it must say what a real
//! Cilium 1.14 said.
//!
//! Verdict and drop notifications are compared byte for byte, but for the flow hash, the source line and what is
//! random in a packet (identification, checksums, sequence numbers, timestamps). Trace notifications are compared
//! as sets, by everything but the segment that caused them; conntrack by what does not depend on time.
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;
use std::{fs, process};

use anyhow::{Context as _, Result, ensure};
use probe_lab::standin::{self, Aggregation, EventReader, MapContents, Standin, StandinConfig};
use probe_lab::{Lab, LabOptions, Ns, Shape};

mod conntrack;
mod notification;
mod others;
mod recording;
mod traffic;

use notification::{Flow, Notification};
use recording::{Expected, RecordedProbe, notifications};

/// What cannot be expressed, of which scenario, and why. `*` stands for every scenario.
const NOT_EXPRESSED: &[(&str, &str, &str)] = &[
    (
        "*",
        "nginx-clusterip, app-nginxsvc: traces and conntrack",
        "recorded with socket load balancing, which the stand-in replaces by translating each packet",
    ),
    ("*", "socket traces and agent notifications", "not the datapath's at tc, which the stand-in stands for"),
    ("*", "traces of ARP packets", "who asks, and when, depends on neighbour tables"),
    ("*", "file and line of a drop", "they are places in Cilium's source"),
    ("misc-drops", "gone-backend beyond its silence", "the stand-in has no backends on other nodes"),
    ("misc-drops", "IPv6 beyond its first packet", "the rest is the pod's kernel repeating itself"),
];

/// Probes whose traces and conntrack entries are not expressed.
const SOCKET_BALANCED: [&str; 2] = ["nginx-clusterip", "app-nginxsvc"];

/// A lab with a stand-in, and its notifications. In this order: the stand-in goes first.
struct World {
    standin: Standin,
    events: EventReader,
    lab: Lab,
}

impl World {
    /// Brings it up, or prints why not.
    fn up(instance: &str) -> Result<Option<Self>> {
        if let Some(reason) = standin::unavailable() {
            println!("skipped: {reason}");
            return Ok(None);
        }
        let options =
            LabOptions { instance: instance.to_owned(), shape: Shape::Kpr, ..LabOptions::default() };
        let lab = Lab::up_without_datapath(&options)?;
        like_the_recorded_node(&lab)?;
        let standin = Standin::start(StandinConfig::for_lab(&lab))?;
        let events = standin.events()?;
        Ok(Some(Self { standin, events, lab }))
    }

    /// Puts the recorded control plane in place, and forgets connections.
    fn load(&mut self, scenario: &Path) -> Result<()> {
        self.standin.fill(&MapContents::from_recording(scenario)?)?;
        for map in ["cilium_ct4_global", "cilium_ct_any4_global", "cilium_snat_v4_external"] {
            self.standin.map(map)?.clear()?;
        }
        self.events.drain()?;
        Ok(())
    }

    fn seen(&mut self) -> Result<Vec<Notification>> {
        // The last segments of a connection are sent after the client has its answer.
        std::thread::sleep(Duration::from_millis(100));
        Ok(self.events.drain()?.iter().filter_map(|sample| Notification::parse(sample)).collect())
    }
}

/// What of the recorded node shows in captured packets, and the lab leaves to chance or has otherwise.
fn like_the_recorded_node(lab: &Lab) -> Result<()> {
    for (interface, mac) in [("cilium_host", "f2:c6:ad:05:61:82"), ("cilium_net", "6e:8f:d0:6a:cb:94")] {
        let mut ip = process::Command::new("ip");
        ip.args(["-n", lab.netns(Ns::Node).name(), "link", "set", interface, "address", mac]);
        ensure!(ip.status()?.success(), "failed to set the MAC address of `{interface}`");
    }
    // The recorded load balancer's probe sat one hop behind the router; the lab's sits on it.
    lab.run_in(Ns::Fabric, || fs::write("/proc/sys/net/ipv4/ip_default_ttl", "63"))??;
    Ok(())
}

#[test]
fn recorded_probes() -> Result<()> {
    let Some(mut world) = World::up("fidelity")? else { return Ok(()) };
    for (scenario, what, why) in NOT_EXPRESSED {
        println!("not expressed: {scenario}: {what}: {why}");
    }
    let mut failures = String::new();
    let mut n_probes = 0;
    for scenario in fixtures::scenarios("cilium-1.14") {
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
    assert!(n_probes >= 280, "only {n_probes} probes were found in the recordings");
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

    let recorded = notifications(scenario)?;
    let saw = send_all(&world.lab, &expected.probes, &recorded);
    let seen = world.seen()?;
    let mut failures = Vec::new();
    for (probe, saw) in expected.probes.iter().zip(saw) {
        let saw = saw.with_context(|| format!("probe `{}`", probe.id))?;
        if saw.to_string() != probe.client_saw {
            failures.push(format!("{}: the client saw {saw}, recorded {}", probe.id, probe.client_saw));
        }
        failures.extend(differences(probe, &recorded, &seen).map(|text| format!("{}: {text}", probe.id)));
    }
    let unknown = |of: &[Notification]| -> BTreeSet<_> {
        of.iter().filter(|n| n.is_trace() && n.flow() == Flow::Unknown && !n.is_arp()).cloned().collect()
    };
    failures.extend(set_difference(&unknown(&recorded), &unknown(&seen)));
    let tracked = expected.probes.iter().filter(|probe| !SOCKET_BALANCED.contains(&probe.id.as_str()));
    let ports: Vec<_> = tracked.filter_map(|probe| probe.from_port).collect();
    failures.extend(conntrack::differences(world, scenario, &ports)?);
    Ok(failures)
}

/// Sends every probe from a thread of its own, with what the recorded packet carried.
fn send_all(
    lab: &Lab,
    probes: &[RecordedProbe],
    recorded: &[Notification],
) -> Vec<Result<probe_lab::ClientSaw>> {
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

/// What differs between the recorded and the seen notifications of one probe.
fn differences(
    probe: &RecordedProbe,
    recorded: &[Notification],
    seen: &[Notification],
) -> impl Iterator<Item = String> {
    let of = |all: &[Notification], traces: bool| -> Vec<Notification> {
        all.iter().filter(|n| probe.owns(n) && n.is_trace() == traces).cloned().collect()
    };
    let (decisions, seen_decisions) = (of(recorded, false), of(seen, false));
    let decisions = (decisions != seen_decisions)
        .then(|| format!("decided\n  recorded {decisions:#?}\n  seen {seen_decisions:#?}"));
    let traces = if SOCKET_BALANCED.contains(&probe.id.as_str()) {
        None
    } else {
        let set = |of: Vec<Notification>| of.into_iter().collect::<BTreeSet<_>>();
        set_difference(&set(of(recorded, true)), &set(of(seen, true)))
    };
    decisions.into_iter().chain(traces)
}

fn set_difference(recorded: &BTreeSet<Notification>, seen: &BTreeSet<Notification>) -> Option<String> {
    if recorded == seen {
        return None;
    }
    let missing: Vec<_> = recorded.difference(seen).collect();
    let extra: Vec<_> = seen.difference(recorded).collect();
    Some(format!("traced\n  missing {missing:#?}\n  extra {extra:#?}"))
}
