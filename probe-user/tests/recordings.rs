//! What plsprobe says of every recorded probe, against what a real Cilium did.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::explain::{Verdict, explain};
use probe_model::simulate::{Question, simulate_noting};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::{Missing, World};
use probe_user::sources::{assemble, folder};
use serde::Deserialize;

/// The node's own address in every recording.
const NODE: &str = "10.224.0.4";

#[derive(Deserialize)]
struct Expected {
    probes: Option<Vec<Probe>>,
}

#[derive(Deserialize)]
struct Probe {
    id: String,
    from_ip: Option<String>,
    from_port: Option<u16>,
    to: Option<String>,
    port: Option<u16>,
    proto: Option<String>,
    observed: Option<String>,
    drop_reasons: Vec<String>,
    #[serde(default)]
    policy_verdict_lines: Vec<String>,
}

fn world(scenario: &fixtures::Scenario) -> World {
    assemble::assemble(&folder::read(&scenario.path).expect("a readable recording"))
}

fn probes(scenario: &fixtures::Scenario) -> Vec<Probe> {
    let text = std::fs::read_to_string(scenario.path.join("expected.json")).expect("expected.json");
    serde_json::from_str::<Expected>(&text).expect("expected.json").probes.unwrap_or_default()
}

fn question(probe: &Probe) -> Option<Question> {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    Some(Question::new(Tuple {
        saddr: address(probe.from_ip.as_deref().unwrap_or(NODE)),
        sport: probe.from_port.unwrap_or(0),
        daddr: address(probe.to.as_deref()?),
        dport: probe.port?,
        protocol: Protocol::parse(probe.proto.as_deref()?).expect("a protocol"),
    }))
}

/// What Cilium recorded, as a verdict; `None` where it recorded none.
fn recorded(probe: &Probe) -> Option<Result<(), &str>> {
    match (probe.observed.as_deref(), probe.drop_reasons.first()) {
        (_, Some(reason)) => Some(Err(reason)),
        (Some("allowed"), None) => Some(Ok(())),
        _ => None,
    }
}

#[test]
fn every_probe_gets_the_recorded_verdict() {
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let world = world(&scenario);
            for probe in probes(&scenario) {
                let Some(question) = question(&probe) else { continue };
                let explanation = explain(&world, &question);
                let said = match &explanation.verdict {
                    Verdict::Allowed => "allowed".to_owned(),
                    Verdict::Dropped(reason) => reason.text().unwrap_or("unknown").to_owned(),
                    Verdict::Filtered => "filtered".to_owned(),
                    Verdict::Inconclusive(_) => "inconclusive".to_owned(),
                };
                let right = match recorded(&probe) {
                    Some(Ok(())) => said == "allowed",
                    Some(Err(reason)) => said == reason,
                    // A timeout without a reason: the answer must not claim a drop.
                    None => said == "inconclusive" || said == "allowed",
                };
                *counts.entry(recording).or_default() += 1;
                if !right {
                    let (id, reasons) = (&probe.id, &probe.drop_reasons);
                    let name = &scenario.name;
                    wrong.push(format!(
                        "{recording}/{name} {id}: recorded {:?} {reasons:?}, said {said}: {}",
                        probe.observed, explanation.cause.sentence
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {counts:?} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(counts.values().sum::<usize>(), 516, "{counts:?}");
}

/// The identity in a verdict line: a number or a reserved name.
fn identity(text: &str) -> Identity {
    let reserved = (0..=10).map(Identity).find(|identity| identity.reserved_name() == Some(text));
    reserved.unwrap_or_else(|| Identity(text.parse().expect("a number")))
}

/// The part of `line` between `before` and the next comma or the end.
fn field<'a>(line: &'a str, before: &str) -> &'a str {
    let rest = line.split_once(before).unwrap_or_else(|| panic!("no `{before}` in `{line}`")).1;
    rest.split_once(',').map_or(rest, |(field, _)| field)
}

/// Cilium's own policy verdicts name endpoint, peer identity, direction, match and the addresses that policy saw: the
/// simulated policy check must be the same in each.
#[test]
fn every_policy_check_is_the_recorded_one() {
    let mut compared = 0;
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let world = world(&scenario);
            for probe in probes(&scenario) {
                let (Some(question), Some(line)) = (question(&probe), probe.policy_verdict_lines.first())
                else {
                    continue;
                };
                let at = format!("{recording}/{} {}: {line}", scenario.name, probe.id);
                let explanation = explain(&world, &question);
                let direction = if line.contains(", ingress,") { "ingress" } else { "egress" };
                let mut steps = explanation.trajectory().policy_steps();
                let step = steps.find(|step| step.query.direction.to_string() == direction);
                let step = step.unwrap_or_else(|| panic!("no {direction} check: {at}"));
                assert_eq!(step.endpoint.to_string(), field(line, "local EP ID "), "{at}");
                assert_eq!(step.query.identity, identity(field(line, "remote ID ")), "{at}");
                assert_eq!(step.query.protocol.to_string(), field(line, "proto "), "{at}");
                let allowed =
                    matches!(step.decision.verdict, probe_model::cilium::policy::PolicyVerdict::Allow { .. });
                assert_eq!(if allowed { "allow" } else { "deny" }, field(line, "action "), "{at}");
                assert_eq!(step.decision.match_type.to_string(), field(line, "match "), "{at}");
                // The kernel chooses the node's own source address by route, and ICMP lines have no ports.
                if probe.from_ip.is_some() && question.tuple.protocol.has_ports() {
                    let tuple = step.tuple;
                    let addresses =
                        format!("{}:{} -> {}:{}", tuple.saddr, tuple.sport, tuple.daddr, tuple.dport);
                    assert!(line.contains(&format!(", {addresses} ")), "{addresses} in {at}");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 320, "verdict lines compared");
}

/// Cilium's own text and ours, as sets of lines with single spaces.
fn lines(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<_> = text.lines().map(words).filter(|line| !line.is_empty()).collect();
    lines.sort();
    lines
}

fn dumped(dump: &probe_user::render::dump::Dump) -> Vec<String> {
    let mut text = Vec::new();
    dump.text(&mut text).expect("writing to memory");
    lines(&String::from_utf8(text).expect("UTF-8"))
}

/// Every line of Cilium's must be one of ours, which may go on with labels or a name, and in the same number.
#[track_caller]
fn same_entries(at: &str, cilium: &[String], ours: &[String]) {
    assert_eq!(cilium.len(), ours.len(), "{at}: {cilium:#?} and {ours:#?}");
    for (theirs, line) in cilium.iter().zip(ours) {
        let rest = line.strip_prefix(theirs.as_str());
        assert!(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')), "{at}:\n{theirs}\n{line}");
    }
}

/// `dump` prints what Cilium's own command line printed of the same maps.
#[test]
fn dumps_print_the_recorded_entries() {
    use probe_user::render::dump;
    let mut compared = 0;
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy"] {
        for scenario in fixtures::scenarios(recording) {
            let node = folder::read(&scenario.path).expect("a readable recording");
            let world = assemble::assemble(&node);
            let at = |what: &str| format!("{recording}/{} {what}", scenario.name);
            let cli = |name: &str| {
                lines(
                    &std::fs::read_to_string(scenario.path.join("cli").join(name)).expect("a recorded text"),
                )
            };
            let policy = cli("bpf-policy-get-all-n.txt")
                .into_iter()
                .map(|line| line.replace("/sys/fs/bpf/tc/globals/", ""));
            let mut policy: Vec<_> = policy.collect();
            policy.sort();
            same_entries(&at("policy"), &policy, &dumped(&dump::policy(&world, None).expect("policy maps")));
            same_entries(
                &at("ipcache"),
                &cli("bpf-ipcache-list.txt"),
                &dumped(&dump::ipcache(&world).expect("ipcache")),
            );
            let endpoints = dumped(&dump::endpoints(&world, None).expect("endpoints"));
            same_entries(&at("endpoints"), &cli("bpf-endpoint-list.txt"), &endpoints);
            let services = service_lines(&scenario.path.join("cli/bpf-lb-list.txt"));
            let mut ours = Vec::new();
            dump::services(&world).expect("services").text(&mut ours).expect("writing to memory");
            assert_eq!(
                services,
                service_blocks(&String::from_utf8(ours).expect("UTF-8")),
                "{}",
                at("services")
            );
            same_entries(
                &at("conntrack"),
                &cli("bpf-ct-list-global.txt"),
                &dumped(&dump::conntrack(&world).expect("conntrack")),
            );
            let metrics = dumped(&dump::metrics(&node).expect("metrics"));
            assert_eq!(reasons(&cli("bpf-metrics-list.txt")), reasons(&metrics), "{}", at("metrics"));
            compared += policy.len() + services.len();
        }
    }
    assert!(compared > 500, "{compared} lines compared");
}

/// As far as Cilium 1.16 prints the same: it has words for no flags.
#[test]
fn dumps_print_the_recorded_entries_of_1_16() {
    use probe_user::render::dump;
    let mut places = 0;
    for scenario in fixtures::scenarios("cilium-1.16") {
        let node = folder::read(&scenario.path).expect("a readable recording");
        let world = assemble::assemble(&node);
        let cli = |name: &str| {
            let text = std::fs::read_to_string(scenario.path.join("cli").join(name));
            lines(&text.expect("a recorded text").replace(", flags=<none>", ""))
        };
        let at = |what: &str| format!("{} {what}", scenario.name);
        let ipcache = dumped(&dump::ipcache(&world).expect("ipcache"));
        same_entries(&at("ipcache"), &cli("bpf-ipcache-list.txt"), &ipcache);
        let endpoints = dumped(&dump::endpoints(&world, None).expect("endpoints"));
        same_entries(&at("endpoints"), &cli("bpf-endpoint-list.txt"), &endpoints);
        let theirs = counted_places(&cli("bpf-metrics-list.txt"));
        let ours = counted_places(&dumped(&dump::metrics(&node).expect("metrics")));
        places += ours.len();
        for (place, (packets, bytes, file)) in ours {
            let (theirs_packets, theirs_bytes, theirs_file) = &theirs[&place];
            // They went on counting between the recording of the bytes and of the text.
            assert!(packets <= *theirs_packets && bytes <= *theirs_bytes, "{place:?}");
            // Which file some numbers are, only a release tells, which this recording is not.
            assert!(
                file == *theirs_file || file.parse::<u8>().is_ok_and(|file| file > 100),
                "{place:?}: {file}"
            );
        }
    }
    assert!(places > 20, "{places} places compared");
}

/// Reason, direction and line of Cilium's source with packets, bytes and file.
fn counted_places(lines: &[String]) -> BTreeMap<(String, String), (u64, u64, String)> {
    let entries = lines.iter().filter(|line| !line.starts_with("REASON "));
    let fields = entries.map(|line| {
        let mut words = line.rsplitn(5, ' ').map(str::to_owned);
        let mut word = || words.next().expect("six columns");
        let (file, line, bytes, packets, reason) = (word(), word(), word(), word(), word());
        let number = |text: String| text.parse().expect("a number");
        ((reason, line), (number(packets), number(bytes), file))
    });
    fields.collect()
}

/// Metrics without their counters: they went on between the recording of the bytes and of the text.
fn reasons(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')).collect()
}

fn service_lines(path: &std::path::Path) -> Vec<(String, String)> {
    service_blocks(&std::fs::read_to_string(path).expect("a recorded text"))
}

/// Frontend and backend of each line; Cilium prints a frontend's address once, on the first line of its block.
fn service_blocks(text: &str) -> Vec<(String, String)> {
    let mut frontend = String::new();
    let mut all = Vec::new();
    for line in text.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        let mut rest = line.trim();
        if !line.starts_with(' ') {
            let (address, backend) = rest.split_once(' ').expect("two columns");
            address.clone_into(&mut frontend);
            rest = backend.trim();
        }
        all.push((frontend.clone(), rest.to_owned()));
    }
    all.sort();
    all
}

/// Drops for other reasons than policy. The recording names the probes but not their addresses, which its README and
/// monitor lines give; a timeout without any event is no verdict.
#[test]
fn other_drops_are_told_apart() {
    let scenario =
        fixtures::scenarios("cilium-1.14").into_iter().find(|scenario| scenario.name == "misc-drops");
    let scenario = scenario.expect("the scenario");
    let world = world(&scenario);
    let recorded: BTreeMap<_, _> =
        probes(&scenario).into_iter().map(|probe| (probe.id, probe.drop_reasons)).collect();
    let addresses = [
        ("no-backend", "10.224.0.7", 81),
        ("gone-backend", "10.224.0.7", 82),
        ("no-service", "10.224.0.7", 83),
        ("no-pod", "10.0.0.99", 80),
    ];
    for (id, daddr, dport) in addresses {
        let saddr = "10.224.0.8".parse().expect("an address");
        let daddr = daddr.parse().expect("an address");
        let question = Question::new(Tuple { saddr, daddr, sport: 0, dport, protocol: Protocol::TCP });
        let verdict = explain(&world, &question).verdict;
        match recorded[id].first() {
            Some(reason) => assert!(
                matches!(verdict, Verdict::Dropped(said) if said.text() == Some(reason)),
                "{id}: {reason} and {verdict:?}"
            ),
            None => assert!(matches!(verdict, Verdict::Inconclusive(_)), "{id}: {verdict:?}"),
        }
    }
}

/// An open connection is judged anew with every packet: after the deny its next packet is dropped.
#[test]
fn an_open_connection_is_judged_anew() {
    for (recording, daddr) in [("cilium-1.14", "10.224.0.7"), ("cilium-1.14-tunnel-kubeproxy", "10.224.0.7")]
    {
        let mut scenarios = fixtures::scenarios(recording).into_iter();
        let scenario =
            scenarios.find(|scenario| scenario.name == "established-then-deny").expect("the scenario");
        let (saddr, daddr) = ("10.224.0.8".parse().expect("an address"), daddr.parse().expect("an address"));
        let tuple = Tuple { saddr, daddr, sport: 29001, dport: 80, protocol: Protocol::TCP };
        let explanation = explain(&world(&scenario), &Question::new(tuple));
        assert_eq!(explanation.verdict, Verdict::Dropped(DropReason::POLICY), "{recording}");
    }
}

/// A fact that is missing may make an answer inconclusive, never another one.
#[test]
fn a_missing_fact_never_turns_a_verdict() {
    let mut wrong = BTreeSet::new();
    let mut judged = 0;
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy"] {
        for scenario in fixtures::scenarios(recording) {
            let node = folder::read(&scenario.path).expect("a readable recording");
            let whole = assemble::assemble(&node);
            let questions: Vec<_> = probes(&scenario).iter().filter_map(question).collect();
            let verdicts: Vec<_> =
                questions.iter().map(|question| explain(&whole, question).verdict).collect();
            for (lost, node) in without_each_fact(&node) {
                let world = assemble::assemble(&node);
                for (question, verdict) in questions.iter().zip(&verdicts) {
                    let said = explain(&world, question).verdict;
                    judged += 1;
                    let same = said == *verdict || matches!(said, Verdict::Inconclusive(_));
                    if !same && !matches!(verdict, Verdict::Inconclusive(_)) {
                        wrong.insert(format!(
                            "{recording} without {lost}: {} {verdict:?} became {said:?}",
                            question.tuple
                        ));
                    }
                }
            }
        }
    }
    let shown: Vec<_> = wrong.iter().take(40).cloned().collect();
    assert!(wrong.is_empty(), "{} of {judged}:\n{}", wrong.len(), shown.join("\n"));
}

/// The node with each map, REST answer and node fact taken away in turn.
fn without_each_fact(
    node: &probe_user::sources::raw::RawNode,
) -> Vec<(String, probe_user::sources::raw::RawNode)> {
    let maps = node.maps.keys().map(|name| {
        let mut less = node.clone();
        less.maps.remove(name);
        (name.clone(), less)
    });
    let rest = node.rest.keys().map(|name| {
        let mut less = node.clone();
        less.rest.remove(name);
        (format!("rest/{name}"), less)
    });
    let mut without_agent = node.clone();
    without_agent.rest.clear();
    let mut without_rules = node.clone();
    without_rules.iptables_save = None;
    let mut without_network = node.clone();
    without_network.network = None;
    let others = [
        ("the agent".to_owned(), without_agent),
        ("netfilter rules".to_owned(), without_rules),
        ("addresses and routes".to_owned(), without_network),
    ];
    maps.chain(rest).chain(others).collect()
}

/// What conntrack entries hold tells 1.14's counters, where policy maps leave 1.14 to 1.16 open; 1.16 ran without counting
/// and tells nothing.
#[test]
fn conntrack_entries_tell_their_layout() {
    use probe_model::cilium::ct::CtLayout;
    let mut undecided = Vec::new();
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let layouts = world(&scenario).ct_layouts;
            if layouts == [CtLayout::PerDirection, CtLayout::Joint] {
                undecided.push(format!("{recording}/{}", scenario.name));
            } else {
                assert_eq!(layouts, [CtLayout::PerDirection], "{recording}/{}", scenario.name);
            }
        }
    }
    assert_eq!(undecided, ["cilium-1.16/deny-all", "cilium-1.16/none", "cilium-1.16/port-range"]);
}

/// Every packet of a recorded connection and of a probe, first or answer, is judged by lookups as by the whole maps; where
/// only more entries tell their layout, which decides of one that is closing, the answer says what it assumes.
#[test]
fn what_is_looked_up_answers_as_the_whole_maps() {
    let (mut asked, mut decided, mut assumed, mut lookups) = (0, 0, 0, 0);
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let (whole, mut unread) = (world(&scenario), without_conntrack(&scenario));
            let connections = whole.conntrack.known().map(|(key, _)| Question::new(key.connection()));
            let probes = probes(&scenario).into_iter().filter_map(|probe| question(&probe));
            let packets = connections.chain(probes);
            for question in packets.flat_map(|first| [first, Question::new(first.tuple.reversed())]) {
                let without = simulate_noting(&unread, &question).0;
                let asked_of = |world: &World| simulate_noting(world, &question).1;
                unread.look_up(asked_of, |key| {
                    lookups += 1;
                    Ok::<_, ()>(whole.connection(key).entry().copied())
                });
                let expected = simulate_noting(&whole, &question);
                let said = simulate_noting(&unread, &question);
                let is_closing =
                    |key: &CtTuple| unread.connection(key).entry().is_some_and(CtEntry::is_closing);
                let is_assumed = !said.1.is_empty() && said.1.iter().all(is_closing);
                assert!(is_assumed || said == expected, "{recording}/{} {question:?}", scenario.name);
                asked += 1;
                decided += usize::from(without != expected.0);
                assumed += usize::from(said.1 != expected.1);
                unread.forget_lookups();
            }
        }
    }
    let counts = format!("{asked} packets, {lookups} lookups, {decided} decided by them, {assumed} assumed");
    assert!(decided > 500 && assumed < asked / 10 && lookups < 4 * asked, "{counts}");
}

/// A recorded node whose conntrack maps were too large to be read.
fn without_conntrack(scenario: &fixtures::Scenario) -> World {
    let mut node = folder::read(&scenario.path).expect("a readable recording");
    let unread = node.maps.extract_if(.., |name, _| name.starts_with("cilium_ct"));
    node.unread = unread.map(|(what, _)| Missing { what, why: "it is too large".to_owned() }).collect();
    let world = assemble::assemble(&node);
    assert!(
        world.missing.iter().all(|missing| !missing.what.starts_with("cilium_ct")),
        "{:?}",
        world.missing
    );
    world
}
