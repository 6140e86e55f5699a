//! `GET /healthz` and `/config`.
use serde_json::{Value, json};

use super::{Answers, NODE_NAME, options};
use crate::addresses::{NODE, POD_CIDR};
use crate::lab::Shape;

/// What the agent calls itself; readers take the minor version from it.
const VERSION: &str = "1.14.0-standin (v1.14.0-standin)";

impl Answers {
    pub(super) fn healthz(&self) -> Value {
        json!({
            "bpf-maps": { "dynamic-size-ratio": 0.0025, "maps": [{ "name": "Global policy", "size": 16384 }] },
            "cilium": { "msg": VERSION, "state": "Ok" },
            "cluster": { "nodes": null, "self": NODE_NAME },
            "cni-chaining": { "mode": "none" },
            "encryption": { "mode": "Disabled" },
            "host-firewall": { "devices": ["eth0"], "mode": "Disabled" },
            "host-routing": { "mode": if self.shape == Shape::Kpr { "BPF" } else { "Legacy" } },
            "hubble": { "state": "Disabled" },
            "identity-range": { "max-identity": 65535, "min-identity": 256 },
            "kube-proxy-replacement": self.kube_proxy_replacement(),
            "kubernetes": { "k8s-api-versions": null, "state": "Ok" },
            "kvstore": { "msg": "Disabled", "state": "Disabled" },
            "masquerading": self.masquerading(),
            "nodeMonitor": { "cpus": cpus(), "npages": 64, "pagesize": 4096 },
        })
    }

    fn kube_proxy_replacement(&self) -> Value {
        if self.shape == Shape::KubeProxy {
            return json!({ "mode": "False", "features": {} });
        }
        let device = json!({ "ip": [NODE.to_string()], "name": "eth0" });
        json!({ "deviceList": [device], "devices": ["eth0"], "features": {}, "mode": "Strict" })
    }

    fn masquerading(&self) -> Value {
        match self.shape {
            Shape::Aks => json!({ "enabled": false, "enabledProtocols": {} }),
            Shape::Kpr => json!({ "enabled": true, "enabledProtocols": { "ipv4": true }, "mode": "BPF" }),
            Shape::KubeProxy => {
                json!({ "enabled": true, "enabledProtocols": { "ipv4": true }, "mode": "IPTables" })
            }
        }
    }

    pub(super) fn config(&self) -> Value {
        let replaces = self.shape != Shape::KubeProxy;
        let mut options = options();
        options["PolicyTracing"] = json!("Disabled");
        let spec = json!({ "options": options, "policy-enforcement": "default" });
        let agent = json!({
            "AllowLocalhost": "always",
            "BPFSocketLBHostnsOnly": false,
            "BpfDir": "/var/lib/cilium/bpf",
            "ClusterID": 0,
            "ClusterName": "default",
            "DatapathMode": "veth",
            "Devices": ["eth0"],
            "DirectRoutingDevice": "eth0",
            "EnableBPFMasquerade": self.shape == Shape::Kpr,
            "EnableEndpointRoutes": self.shape == Shape::Aks,
            "EnableHostFirewall": false,
            "EnableHostLegacyRouting": self.shape != Shape::Kpr,
            "EnableHubble": false,
            "EnableIPv4": true,
            "EnableIPv4Masquerade": self.shape != Shape::Aks,
            "EnableIPv6": false,
            "EnableK8sNetworkPolicy": true,
            "EnableL7Proxy": false,
            "EnableNodePort": replaces,
            "EnablePolicy": "default",
            "EnableRemoteNodeIdentity": true,
            "EnableSVCSourceRangeCheck": replaces,
            "EnableSessionAffinity": replaces,
            "EnableSocketLB": false,
            "IPAM": if self.shape == Shape::Aks { "delegated-plugin" } else { "cluster-pool" },
            "KubeProxyReplacement": if replaces { "strict" } else { "false" },
            "MonitorAggregation": "Medium",
            "NodePortMode": "snat",
            "RoutingMode": "native",
        });
        let ipv4 = json!({ "alloc-range": POD_CIDR, "enabled": true, "ip": self.router.to_string() });
        let status = json!({
            "addressing": { "ipv4": ipv4 },
            "daemonConfigurationMap": agent,
            "datapathMode": "veth",
            "deviceMTU": 1500,
            "ipam-mode": if self.shape == Shape::Aks { "delegated-plugin" } else { "cluster-pool" },
            "masquerade": self.shape != Shape::Aks,
            "nodeMonitor": { "cpus": cpus(), "npages": 64, "pagesize": 4096 },
            "realized": spec.clone(),
            "routeMTU": 1500,
        });
        json!({ "spec": spec, "status": status })
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
