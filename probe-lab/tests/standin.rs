//! The stand-in loads, attaches as Cilium does, decides, and leaves nothing behind.
use std::process::Command;

use anyhow::Result;
use probe_lab::addresses::{APP, APP_POD, ILB, NAT_IPS, VM};
use probe_lab::standin::{self, MapContents, Standin, StandinConfig, policy_map};
use probe_lab::{ClientSaw, Lab, LabOptions, Ns, Probe, Shape};

/// A lab and a stand-in with the maps of a recorded scenario, or a line that says why not.
fn start(instance: &str, shape: Shape, scenario: &str) -> Result<Option<(Standin, Lab)>> {
    if let Some(reason) = standin::unavailable() {
        println!("skipped: {reason}");
        return Ok(None);
    }
    let lab = Lab::up_without_datapath(&LabOptions {
        instance: instance.to_owned(),
        shape,
        ..LabOptions::default()
    })?;
    let standin = Standin::start(StandinConfig::for_lab(&lab))?;
    standin.fill(&recorded(scenario)?)?;
    Ok(Some((standin, lab)))
}

fn recorded(scenario: &str) -> Result<MapContents> {
    MapContents::from_recording(&fixtures::recording("cilium-1.14").join(scenario))
}

fn filters(lab: &Lab, interface: &str, direction: &str) -> Result<String> {
    let node = lab.netns(Ns::Node).name();
    let show =
        Command::new("tc").args(["-n", node, "filter", "show", "dev", interface, direction]).output()?;
    Ok(String::from_utf8(show.stdout)?)
}

#[track_caller]
fn check(lab: &Lab, probe: &Probe, expected: ClientSaw) {
    assert_eq!(lab.probe(probe).unwrap(), expected, "{probe}");
}

#[test]
fn aks_shape_translates_at_the_uplink_and_decides_at_the_veth() -> Result<()> {
    let Some((standin, lab)) = start("standin-aks", Shape::Aks, "cidr-pls8-80")? else { return Ok(()) };
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[1], ILB, 80), ClientSaw::Timeout);
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], APP, 80), ClientSaw::Ok);
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], APP, 8080), ClientSaw::Timeout);
    check(&lab, &Probe::tcp(Ns::App, APP, VM, 80), ClientSaw::Ok);
    assert!(filters(&lab, APP_POD.host_interface, "egress")?.contains("handle 0x1 cil_to_container-lxc"));
    standin.stop()?;
    assert_eq!(filters(&lab, "eth0", "ingress")?, "");
    lab.down()
}

#[test]
fn kpr_shape_delivers_from_the_uplink() -> Result<()> {
    let Some((mut standin, lab)) = start("standin-kpr", Shape::Kpr, "none")? else { return Ok(()) };
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[1], APP, 443), ClientSaw::Ok);
    check(&lab, &Probe::tcp(Ns::App, APP, VM, 80), ClientSaw::Ok);
    assert_eq!(filters(&lab, APP_POD.host_interface, "egress")?, "", "nothing is at the pod's veth egress");

    let before = filters(&lab, "eth0", "ingress")?;
    assert!(before.contains("pref 1 bpf chain 0 handle 0x1 cil_from_netdev-eth0 direct-action"), "{before}");
    standin.regenerate()?;
    let after = filters(&lab, "eth0", "ingress")?;
    assert_eq!(after.matches("handle 0x1").count(), 1, "replaced in place: {after}");
    assert_ne!(before, after, "another program");
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Ok);

    let deny = recorded("deny-all")?;
    standin
        .replace_policy(APP_POD.endpoint_id, deny.get(&policy_map(APP_POD.endpoint_id)).expect("recorded"))?;
    check(&lab, &Probe::tcp(Ns::Pls, NAT_IPS[0], ILB, 80), ClientSaw::Timeout);
    Ok(())
}
