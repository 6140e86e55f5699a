//! What Prometheus reads of the agent.

mod http;
mod monitoring;
mod parse;

use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::expect;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::explain::Code;
use probe_model::world::PodName;

use super::counts::{CAUSES_MAX, SERVICES_MAX};
use super::health::{SILENCE_MAX, START_MAX};
use super::testing::{dropped, flow};
use super::*;
use crate::agent::flow::{Flow, SourceClass};
use crate::agent::status::HookStatus;
use crate::trace::judge::FlowVerdict;

/// Long enough on a busy machine.
const PATIENT: Duration = Duration::from_mins(1);

/// An agent that is well.
fn status() -> Status {
    let hook = |place: &str, means| HookStatus { place: place.to_owned(), state: Ok(means) };
    Status {
        serving_since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        said: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_100_500)),
        hooks: vec![hook("eth0 ingress", "tcx"), hook("bpf_skb_event_output", "fentry")],
        verdicts_from: "probe",
        cilium_version: Some("1.16.5".to_owned()),
        records_made: 12,
        records_read: 11,
        records_lost: 1,
        flows: 4,
        world_age: Duration::from_millis(250),
        ..Status::default()
    }
}

/// An agent in that state, which has counted these flows.
fn metrics(status: Status, flows: &[Flow]) -> Arc<Metrics> {
    let board = Arc::new(Board::default());
    board.write(status);
    let metrics = Metrics::new(board, Arc::default());
    for flow in flows {
        lock(&metrics.counts).add(flow);
    }
    Arc::new(metrics)
}

fn of_service(name: &str, flow: Flow) -> Flow {
    Flow { service: Some(("default".to_owned(), name.to_owned())), ..flow }
}

/// Samples whose value is not 0, without those of the process.
fn counted(page: &str) -> String {
    let lines = page
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("process_") && !line.ends_with(" 0"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn a_page() {
    let probe = Flow { class: SourceClass::Probe, retransmissions: 2, is_refused: true, ..flow() };
    let other = Flow {
        service: None,
        drop_reason: Some(DropReason(255)),
        disagreements: vec!["a".into(), "b".into()],
        ..dropped()
    };
    let page = metrics(status(), &[flow(), flow(), dropped(), probe, other]).page(Format::Text);
    let counted = counted(&page).replace(env!("CARGO_PKG_VERSION"), "VERSION");
    expect![[r#"
        plsprobe_build_info{version="VERSION",cilium_version="1.16.5",verdicts_from="probe"} 1
        plsprobe_flows_total{service="default/pls-app",source="private_link",verdict="allowed"} 2
        plsprobe_flows_total{service="default/pls-app",source="private_link",verdict="dropped"} 1
        plsprobe_flows_total{service="default/pls-app",source="probe",verdict="allowed"} 1
        plsprobe_flows_total{service="none",source="private_link",verdict="dropped"} 1
        plsprobe_causes_total{service="default/pls-app",cause="PLS-01",verdict="dropped"} 1
        plsprobe_causes_total{service="default/pls-app",cause="ALLOWED",verdict="allowed"} 3
        plsprobe_causes_total{service="none",cause="PLS-01",verdict="dropped"} 1
        plsprobe_flows_refused_total{service="default/pls-app"} 1
        plsprobe_syn_retransmissions_total{service="default/pls-app"} 2
        plsprobe_disagreements_total{service="none"} 2
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.005"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.01"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.025"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.05"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.1"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.25"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="0.5"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="1.0"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="2.5"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="5.0"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="10.0"} 3
        plsprobe_answer_latency_seconds_bucket{service="default/pls-app",le="+Inf"} 3
        plsprobe_answer_latency_seconds_sum{service="default/pls-app"} 0.009
        plsprobe_answer_latency_seconds_count{service="default/pls-app"} 3
        plsprobe_cilium_drops_total{reason="POLICY"} 1
        plsprobe_cilium_drops_total{reason="255"} 1
        plsprobe_flows_judged_total 4
        plsprobe_records_made_total 12
        plsprobe_records_read_total 11
        plsprobe_records_lost_total 1
        plsprobe_hooks_wanted 2
        plsprobe_hooks_attached{means="fentry"} 1
        plsprobe_hooks_attached{means="tcx"} 1
        plsprobe_ready 1
        plsprobe_engine_said_timestamp_seconds 1700000100.5
        plsprobe_serving_since_timestamp_seconds 1700000000
        plsprobe_world_age_seconds 0.25
    "#]]
    .assert_eq(&counted);
}

/// A count as it was read.
fn whole(value: f64) -> u64 {
    value.to_string().parse().unwrap()
}

/// Each series once, with its value, whatever the format calls its family.
fn series(families: &[parse::Read]) -> Vec<(String, parse::Labels, String)> {
    let all = families.iter().flat_map(|family| &family.samples);
    let ours = all.filter(|(name, ..)| !name.starts_with("process_"));
    ours.map(|(name, labels, value)| (name.clone(), labels.clone(), value.to_string())).collect()
}

#[test]
fn both_formats_say_the_same() {
    let metrics = metrics(status(), &[flow(), dropped()]);
    let text = parse::page(&metrics.page(Format::Text), false).unwrap();
    let openmetrics = parse::page(&metrics.page(Format::OpenMetrics), true).unwrap();
    assert_eq!(series(&text), series(&openmetrics));
    assert!(series(&text).len() > 60);
    let kind = |families: &[parse::Read], name: &str| {
        families.iter().find(|family| family.name == name).map(|family| family.kind.clone()).unwrap()
    };
    assert_eq!(kind(&text, "plsprobe_flows_total"), "counter");
    assert_eq!(kind(&openmetrics, "plsprobe_flows"), "counter");
    assert_eq!(kind(&text, "plsprobe_build_info"), "gauge");
    assert_eq!(kind(&openmetrics, "plsprobe_build"), "info");
}

#[test]
fn the_reader_refuses_what_is_wrong() {
    let head = "# HELP a_total b\n# TYPE a_total counter\n";
    for (samples, expected) in [
        ("a_total 1\na_total 2\n", "a series again"),
        ("b_total 1\n", "a sample of another family"),
        ("a_total{x=\"1\" 1\n", "labels are not closed"),
        ("a_total{x=\"\\t\"} 1\n", "escape `t`"),
        ("a_total{x=\"1\",x=\"2\"} 1\n", "label `x` again"),
        ("a_total one\n", "invalid float literal"),
        ("a_total 1", "the last line has no end"),
    ] {
        let error = format!("{:#}", parse::page(&format!("{head}{samples}"), false).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    assert!(parse::page(&format!("{head}a_total 1\n# EOF\n"), true).is_err(), "OpenMetrics cuts the suffix");
    let histogram = "# HELP h b\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 3\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n";
    assert!(parse::page(histogram, false).is_err(), "buckets that shrink");
}

#[test]
fn every_family_is_on_the_page_and_in_its_order() {
    let page = metrics(status(), &[flow(), dropped()]).page(Format::Text);
    let read = parse::page(&page, false).unwrap();
    let names: Vec<_> = read.iter().map(|family| (family.name.as_str(), family.help.as_str())).collect();
    let expected: Vec<_> = FAMILIES.iter().map(|family| (family.name, family.help)).collect();
    assert_eq!(names, expected);
    for (family, read) in FAMILIES.iter().zip(&read) {
        assert!(!read.samples.is_empty(), "{}", family.name);
        let labels: BTreeSet<_> = family.labels.iter().copied().collect();
        for (_, own, _) in &read.samples {
            let own: BTreeSet<_> = own.keys().map(String::as_str).filter(|name| *name != "le").collect();
            assert_eq!(own, labels, "{}", family.name);
        }
    }
}

#[test]
fn what_a_label_may_not_hold_is_escaped() {
    let evil = "a\"b\\c\nd\u{1b}[2Je";
    let mut status = status();
    status.cilium_version = Some("v".repeat(10_000));
    let metrics = metrics(status, &[of_service(evil, flow())]);
    for (format, is_openmetrics) in [(Format::Text, false), (Format::OpenMetrics, true)] {
        let page = metrics.page(format);
        let read = parse::page(&page, is_openmetrics).unwrap();
        let services: BTreeSet<_> = read
            .iter()
            .flat_map(|family| &family.samples)
            .filter_map(|(_, labels, _)| labels.get("service").cloned())
            .collect();
        assert_eq!(services, BTreeSet::from(["default/a\"b\\c\nd\u{fffd}[2Je".to_owned()]));
        let longest = read.iter().flat_map(|family| &family.samples).flat_map(|sample| sample.1.values());
        assert_eq!(longest.map(String::len).max(), Some(256));
    }
}

#[test]
fn no_address_and_no_pod_is_a_label() {
    let mut status = status();
    status
        .hooks
        .push(HookStatus { place: "lxc6e1a ingress".to_owned(), state: Err("gone: 10.9.9.9".to_owned()) });
    status.trouble = Some("10.9.9.9".to_owned());
    status.targets = vec!["10.9.9.9".to_owned()];
    let page = metrics(status, &[flow(), dropped()]).page(Format::Text);
    let read = parse::page(&page, false).unwrap();
    let labels = read.iter().flat_map(|family| &family.samples).flat_map(|sample| &sample.1);
    for (label, value) in labels.filter(|(label, _)| *label != "le") {
        let is_secret = ["10.", "x2x9p", "lxc", "eth0"].iter().any(|secret| value.contains(secret));
        assert!(!is_secret, "{label}={value}");
    }
}

#[test]
fn the_number_of_series_is_bounded() {
    let longest_namespace = "n".repeat(63);
    let metrics = metrics(status(), &[]);
    let flood = |from: usize, to: usize| {
        for idx in from..to {
            for (cause, reason) in
                (0..=255).map(|reason| (Code::Drop(DropReason(reason)), DropReason(reason)))
            {
                let service = Some((longest_namespace.clone(), format!("{idx:0>63}")));
                let pod = Some(PodName { namespace: format!("n{idx}"), name: format!("p{reason}") });
                let mut flow = Flow { service, cause, drop_reason: Some(reason), ..dropped() };
                flow.destination.pod = pod;
                lock(&metrics.counts).add(&flow);
            }
        }
        let page = metrics.page(Format::OpenMetrics);
        let read = parse::page(&page, true).unwrap();
        (page.len(), read.iter().map(|family| family.samples.len()).sum::<usize>(), read)
    };
    let (_, series, _) = flood(0, SERVICES_MAX + 1);
    let (bytes, after, read) = flood(SERVICES_MAX + 1, SERVICES_MAX + 50);
    assert_eq!(series, after, "more services are no more series");
    assert!(bytes < 1_300_000, "{bytes} bytes, {series} series");
    let family = |name: &str| &read.iter().find(|family| family.name == name).unwrap().samples;
    let services: BTreeSet<_> = family("plsprobe_flows").iter().map(|sample| &sample.1["service"]).collect();
    assert_eq!(services.len(), SERVICES_MAX + 1);
    let others = ("service", "other");
    let is_others = |labels: &parse::Labels| labels[others.0] == others.1;
    let of_others = family("plsprobe_flows").iter().filter(|s| is_others(&s.1)).map(|s| whole(s.2)).sum();
    assert_eq!([of_others, whole(family("plsprobe_flows_of_other_services")[0].2)], [50 * 256; 2], "counted");
    assert_eq!(family("plsprobe_causes").len(), (SERVICES_MAX + 1) * (CAUSES_MAX + 1));
    let total: u64 = family("plsprobe_causes").iter().map(|sample| whole(sample.2)).sum();
    assert_eq!(total, 256 * (SERVICES_MAX as u64 + 50), "none is lost");
    // A service that is there keeps its series.
    lock(&metrics.counts)
        .add(&Flow { service: Some((longest_namespace.clone(), format!("{:0>63}", 3))), ..flow() });
    let page = metrics.page(Format::Text);
    assert!(page.contains(&format!("{:0>63}\",source=\"private_link\",verdict=\"allowed\"}} 1\n", 3)));
}

#[test]
fn which_format_is_asked_for() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, expected) in [
        ("", Format::Text),
        ("*/*", Format::Text),
        ("text/html, text/plain", Format::Text),
        (prometheus, Format::OpenMetrics),
        ("application/openmetrics-text", Format::OpenMetrics),
        ("Application/OpenMetrics-Text; Version=1.0.0", Format::OpenMetrics),
        ("application/openmetrics-text; version=\"1.0.0\"", Format::OpenMetrics),
        ("application/openmetrics-text;version=2.0.0, text/plain", Format::Text),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.5", Format::Text),
        ("application/openmetrics-text;q=0", Format::Text),
        ("application/openmetrics-text;q=x", Format::Text),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
            Format::Text,
        ),
        (";;;,,=,q=", Format::Text),
    ] {
        assert_eq!(Format::accepted(accept), expected, "{accept}");
    }
}

/// Follows a feed until `until` flows were counted or missed.
async fn follow(metrics: &Metrics, until: u64) -> (u64, u64) {
    let so_far = || {
        let read = parse::page(&metrics.page(Format::Text), false).unwrap();
        let sum = |name: &str| -> u64 {
            let family = read.iter().find(|family| family.name == name).unwrap();
            family.samples.iter().map(|sample| whole(sample.2)).sum()
        };
        (sum("plsprobe_flows_total"), sum("plsprobe_flows_uncounted_total"))
    };
    let reached = async {
        loop {
            let (counted, missed) = so_far();
            if counted + missed >= until {
                return (counted, missed);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENT, reached).await.expect("flows are counted")
}

#[tokio::test]
async fn kept_flows_and_those_that_come_are_counted_once() {
    let feed = Arc::new(Feed::new(3));
    for _ in 0..5 {
        feed.push(flow());
    }
    let metrics = metrics(status(), &[]);
    let (counter, its_feed) = (Arc::clone(&metrics), Arc::clone(&feed));
    let task = tokio::spawn(async move { counter.count(its_feed).await });
    assert_eq!(follow(&metrics, 3).await, (3, 0));
    for _ in 0..100 {
        feed.push(dropped());
    }
    assert_eq!(follow(&metrics, 103).await, (103, 0));
    drop(feed);
    tokio::time::timeout(PATIENT, task).await.expect("it ends with the feed").unwrap();
}

#[tokio::test]
async fn flows_that_come_too_fast_are_counted_as_missing() {
    let feed = Arc::new(Feed::new(1));
    let metrics = metrics(status(), &[]);
    let (counter, its_feed) = (Arc::clone(&metrics), Arc::clone(&feed));
    tokio::spawn(async move { counter.count(its_feed).await });
    feed.push(flow());
    assert_eq!(follow(&metrics, 1).await, (1, 0));
    // Nobody else runs on this thread meanwhile.
    for _ in 0..6000 {
        feed.push(flow());
    }
    let (counted, missed) = follow(&metrics, 6001).await;
    assert_eq!(counted + missed, 6001);
    assert!(missed > 0 && counted > 1, "{counted} counted, {missed} missed");
}

#[test]
fn an_engine_that_says_nothing_is_dead_whatever_the_clock_says() {
    let start = Instant::now();
    let said = |seconds: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let mut pulse = Pulse::new(start);
    assert_eq!(pulse.check(None, start + START_MAX), Ok(()), "programs are loading");
    let late = pulse.check(None, start + START_MAX + Duration::from_secs(1));
    assert_eq!(late, Err("the engine did not begin for 61 s, expected a word within 60 s".to_owned()));
    // Its first word; then the clock is set back by an hour, and it goes on.
    let later = start + Duration::from_secs(100);
    assert_eq!(pulse.check(said(10_000), later), Ok(()));
    assert_eq!(pulse.check(said(6_400), later + Duration::from_secs(20)), Ok(()));
    // It hangs, and the clock, which is ahead of its word now or far behind, does not matter.
    assert_eq!(pulse.check(said(6_400), later + Duration::from_secs(20) + SILENCE_MAX), Ok(()));
    let dead = pulse.check(said(6_400), later + Duration::from_secs(37));
    assert_eq!(dead, Err("the engine said nothing for 17 s, expected a word within 15 s".to_owned()));
    assert_eq!(pulse.check(said(6_401), later + Duration::from_secs(38)), Ok(()), "it lives again");
}

#[test]
fn what_is_told_of_readiness() {
    let tell = |status: &Status| health::body(status, &health::lacks(status, Ok(())));
    assert_eq!(tell(&status()), "ready: 2 hooks attached of 2\n");
    let mut ill = status();
    ill.serving_since = None;
    ill.trouble = Some("no Cilium\u{1b}[2J".to_owned());
    ill.hooks[0].state = Err("refused\nby the kernel".to_owned());
    ill.missing = vec!["kubernetes/services".to_owned()];
    expect![[r#"
        it does not serve yet
        no Cilium\u{1b}[2J
        note: hook `eth0 ingress` is not attached: refused\nby the kernel
        note: `kubernetes/services` could not be had
    "#]]
    .assert_eq(&tell(&ill));
    let refused = Status { serving_since: status().serving_since, trouble: None, ..ill.clone() };
    assert!(health::lacks(&refused, Ok(())).is_empty(), "another hook sees packets");
    ill.hooks = vec![ill.hooks[0].clone(); 1000];
    assert_eq!(tell(&ill).lines().count(), 25, "bounded");
    assert!(tell(&ill).contains("\nno hook is attached\n"));
    assert!(tell(&ill).contains("and 980 more such\n"));
    assert!(!health::lacks(&status(), Err("dead".to_owned())).is_empty());
}

#[test]
fn what_hooks_and_readiness_count() {
    let mut ill = status();
    ill.hooks[0].state = Err("refused".to_owned());
    let page = counted(&metrics(ill, &[]).page(Format::Text));
    let lines: Vec<_> =
        page.lines().filter(|line| line.contains("hooks") || line.contains("ready")).collect();
    assert_eq!(
        lines,
        [
            "plsprobe_hooks_wanted 2",
            "plsprobe_hooks_missing 1",
            "plsprobe_hooks_attached{means=\"fentry\"} 1",
            "plsprobe_ready 1"
        ]
    );
    let page = counted(&metrics(status(), &[]).page(Format::Text));
    assert!(page.contains("plsprobe_ready 1\n"));
    assert_eq!(flow().verdict, FlowVerdict::Allowed);
}
