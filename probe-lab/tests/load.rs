//! A load comes through the lab, the stand-in sees all of it once, and what does not come through is told.
use std::process::Command;
use std::time::Duration;

use probe_lab::addresses::NGINX_POD;
use probe_lab::load::{Load, LoadOptions, Report, check_seen_once};
use probe_lab::standin::AttachBy;
use probe_lab::{Lab, LabOptions, Ns, Shape};

fn lab(test: &str, shape: Shape, attach_by: AttachBy) -> Option<Lab> {
    if let Some(why) = probe_lab::standin::unavailable() {
        fixtures::skip!("{why}");
        return None;
    }
    let options =
        LabOptions { instance: format!("t{}-{test}", std::process::id()), shape, ..LabOptions::default() };
    match Lab::up_attached(&options, attach_by) {
        // A kernel before 6.6.
        Err(error) if attach_by == AttachBy::Tcx && format!("{error:#}").contains("by tcx") => {
            fixtures::skip!("no tcx");
            None
        }
        lab => Some(lab.unwrap_or_else(|error| panic!("{test}: {error:#}"))),
    }
}

/// Datagrams that one of the stand-in's programs was given.
fn udp(lab: &Lab, program: &str) -> u64 {
    lab.standin().unwrap().seen(program).unwrap().udp
}

/// Sends until each direction has had thousands, with `meanwhile` in between.
fn load(lab: &mut Lab, pps: u32, meanwhile: impl FnOnce(&mut Lab, &Load)) -> Report {
    let patience = Duration::from_secs(if pps < 10_000 { 1 } else { 20 });
    let options = LoadOptions { pps: Some(pps), patience, ..LoadOptions::default() };
    let load = Load::start(lab.instance(), &options).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    meanwhile(lab, &load);
    std::thread::sleep(Duration::from_millis(300));
    load.stop().unwrap()
}

fn comes_through(test: &str, shape: Shape, attach_by: AttachBy) {
    let Some(mut lab) = lab(test, shape, attach_by) else { return };
    let report = load(&mut lab, 40_000, |lab, load| {
        // The filters are replaced in place, so that no packet passes by.
        lab.standin_mut().unwrap().regenerate().unwrap();
        lab.recreate_pod(&NGINX_POD).unwrap();
        load.pause();
        lab.standin_mut().unwrap().restart().unwrap();
        load.resume();
    });
    report.check_harmless().unwrap();
    assert!(report.persistent.answered > 0 && report.newcomers.answered > 0, "{report}");
    check_seen_once(&lab, &report).unwrap();
}

#[test]
fn comes_through_with_endpoint_routes() {
    comes_through("load-aks", Shape::Aks, AttachBy::LegacyTc);
}

#[test]
fn comes_through_with_host_routing() {
    comes_through("load-kpr", Shape::Kpr, AttachBy::LegacyTc);
}

#[test]
fn comes_through_behind_kube_proxy() {
    comes_through("load-kubeproxy", Shape::KubeProxy, AttachBy::LegacyTc);
}

#[test]
fn comes_through_by_tcx() {
    comes_through("load-tcx", Shape::Aks, AttachBy::Tcx);
}

#[test]
fn what_is_dropped_on_the_way_is_counted() {
    let Some(mut lab) = lab("load-loss", Shape::Aks, AttachBy::LegacyTc) else { return };
    let rules = "add table ip loss; add chain ip loss way { type filter hook forward priority 0; }; \
        add rule ip loss way iifname eth0 meta l4proto udp numgen inc mod 100 == 99 counter drop";
    let mut nft = lab.netns(Ns::Node).command("nft").unwrap();
    assert!(nft.arg(rules).status().unwrap().success());
    let report = load(&mut lab, 2_000, |_, _| {});
    let mut list = lab.netns(Ns::Node).command("nft").unwrap();
    let listed =
        String::from_utf8(list.args(["list", "table", "ip", "loss"]).output().unwrap().stdout).unwrap();
    let counted = listed.split_once("counter packets ").and_then(|(_, rest)| rest.split(' ').next());
    assert_eq!(Some(report.to_pod.lost.to_string().as_str()), counted, "{report}");
    assert!(report.to_pod.lost > 0 && report.from_pod.lost == 0 && report.overrun == 0, "{report}");
    assert!(report.check_harmless().is_err());
    assert!(check_seen_once(&lab, &report).is_err());
    // The stand-in before the rule has seen what its program behind it has not.
    assert_eq!(udp(&lab, "cil_from_netdev"), report.to_pod.sent);
    assert_eq!(udp(&lab, "cil_to_container"), report.to_pod.received);
}

#[test]
fn the_command_line_says_what_became_of_it() {
    let Some(lab) = lab("load-cli", Shape::Aks, AttachBy::LegacyTc) else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_plsprobe-lab"))
        .args(["load", "--instance", lab.instance().name(), "--seconds", "1", "--pps", "1000", "-o", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["to_pod"]["sent"], report["to_pod"]["received"], "{text}");
    assert!(report["persistent"]["round_trip_us"]["p99"].as_f64().unwrap() > 0.0, "{text}");
}
