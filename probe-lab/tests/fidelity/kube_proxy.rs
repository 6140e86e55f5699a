//! The recorded node behind kube-proxy: its rules verbatim, its router address, its endpoints.
use std::fs::File;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use probe_lab::addresses::{APP_POD, NGINX_POD, POD_CIDR, ROUTER};
use probe_lab::standin::StandinConfig;
use probe_lab::{Lab, Ns};

use crate::{KUBE_PROXY, ip};

/// The address of the recorded `cilium_host`.
const RECORDED_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 104);
/// Pods of another node.
const REMOTE_POD_CIDR: &str = "10.0.2.0/24";

/// The recorded endpoints: pod's host interface, id, identity.
const ENDPOINTS: [(&str, u16, u32); 2] =
    [(APP_POD.host_interface, 847, 17974), (NGINX_POD.host_interface, 141, 34942)];
const HOST_ENDPOINT_ID: u16 = 2606;

/// Makes the lab's node and the stand-in's endpoints those of the recording.
pub(crate) fn like_the_recorded_node(lab: &Lab, config: &mut StandinConfig) -> Result<()> {
    for arguments in [
        format!("address add {RECORDED_ROUTER}/32 dev cilium_host"),
        format!("route add {RECORDED_ROUTER} dev cilium_host proto kernel scope link"),
        format!("route replace {POD_CIDR} via {RECORDED_ROUTER} dev cilium_host src {RECORDED_ROUTER}"),
        format!("route add {REMOTE_POD_CIDR} via {RECORDED_ROUTER} dev cilium_host src {RECORDED_ROUTER}"),
        format!("route del {ROUTER} dev cilium_host"),
        format!("address del {ROUTER}/32 dev cilium_host"),
    ] {
        ip(lab, Ns::Node, &arguments)?;
    }
    let rules = fixtures::recording(KUBE_PROXY.name).join("node/iptables-save.txt");
    let file = File::open(&rules).with_context(|| format!("failed to open `{}`", rules.display()))?;
    let status = lab.netns(Ns::Node).command("iptables-restore")?.stdin(file).status()?;
    ensure!(status.success(), "failed to restore the recorded iptables rules");

    config.host_endpoint_id = HOST_ENDPOINT_ID;
    for (host_ifname, id, identity) in ENDPOINTS {
        let endpoint = config.endpoints.iter_mut().find(|endpoint| endpoint.host_ifname == host_ifname);
        let endpoint = endpoint.context("the lab has no such pod")?;
        (endpoint.id, endpoint.identity) = (id, identity);
    }
    Ok(())
}
