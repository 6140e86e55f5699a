//! What the stand-in for Cilium's datapath saw of a load.
use anyhow::{Context as _, Result, ensure};

use super::Report;
use crate::lab::{Lab, Shape};

/// The programs that each datagram to the pod and each from it passes.
fn ways(shape: Shape) -> [&'static [&'static str]; 2] {
    match shape {
        Shape::Aks => [&["cil_from_netdev", "cil_to_container"], &["cil_from_container", "cil_to_netdev"]],
        Shape::Kpr => [&["cil_from_netdev", "handle_policy"], &["cil_from_container", "cil_to_netdev"]],
        Shape::KubeProxy => [&["cil_from_netdev", "cil_from_host", "handle_policy"], &["cil_from_container"]],
    }
}

/// Checks that the stand-in saw each datagram exactly once at every point of its way.
///
/// The load must be the only one since the lab is up: its programs count from then on.
///
/// # Errors
///
/// A program saw more or fewer, or the lab is up without the stand-in.
pub fn check_seen_once(lab: &Lab, report: &Report) -> Result<()> {
    let standin = lab.standin().context("the lab is up without its datapath")?;
    let [to_pod, from_pod] = ways(lab.shape());
    for (way, sent) in [(to_pod, report.to_pod.sent), (from_pod, report.from_pod.sent)] {
        for program in way {
            let seen = standin.seen(program)?.udp;
            ensure!(seen == sent, "`{program}` saw {seen} datagrams of {sent}:\n{report}");
        }
    }
    Ok(())
}
