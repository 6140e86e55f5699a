//! `GET /endpoint` and `/endpoint/{id}`.
use probe_model::cilium::Direction;
use probe_model::cilium::identity::Identity;
use serde_json::{Value, json};

use super::policy::l4_filters;
use super::{Answers, number, options, pod_labels};
use crate::addresses::{APP_POD, NGINX_POD, Pod};
use crate::agent::realize::Realized;
use crate::scenario::Policy;
use crate::standin::HOST_ENDPOINT_ID;

impl Answers {
    pub(super) fn endpoints(&self) -> Vec<Value> {
        vec![
            pod_endpoint(&APP_POD, &self.endpoint_policy(&APP_POD, &self.app, self.scenario.policy.as_ref())),
            pod_endpoint(&NGINX_POD, &self.endpoint_policy(&NGINX_POD, &self.open, None)),
            host_endpoint(self.revision),
        ]
    }

    /// By number, `cilium-local:2686`, `pod-name:ns/pod`, `cep-name:ns/pod` or `ipv4:10.0.0.143`.
    pub(super) fn endpoint(&self, id: &str) -> Option<Value> {
        // A pod's name has a slash of its own, which some clients escape.
        let id = id.replace("%2F", "/").replace("%3A", ":");
        self.endpoints().into_iter().find(|endpoint| {
            let status = &endpoint["status"];
            match id.split_once(':') {
                None => endpoint["id"] == number(&id),
                Some(("cilium-local", id)) => endpoint["id"] == number(id),
                Some(("pod-name" | "cep-name", name)) => status["external-identifiers"]["pod-name"] == name,
                Some(("ipv4", address)) => status["networking"]["addressing"][0]["ipv4"] == address,
                Some(_) => false,
            }
        })
    }

    fn endpoint_policy(&self, pod: &Pod, realized: &Realized, policy: Option<&Policy>) -> Value {
        let ids = |direction, deny| -> Value {
            let ids = realized.l3_only(direction, deny);
            // Go leaves a list without elements null where it never made one.
            if deny && ids.is_empty() { Value::Null } else { ids.iter().map(|id| id.0).collect() }
        };
        let l4 = |direction| policy.map_or_else(|| json!([]), |policy| l4_filters(policy, direction));
        let now = json!({
            "allowed-egress-identities": ids(Direction::Egress, false),
            "allowed-ingress-identities": ids(Direction::Ingress, false),
            "build": self.revision,
            "denied-egress-identities": ids(Direction::Egress, true),
            "denied-ingress-identities": ids(Direction::Ingress, true),
            "id": pod.identity,
            "l4": { "egress": l4(Direction::Egress), "ingress": l4(Direction::Ingress) },
            "policy-enabled": realized.policy_enabled(),
            "policy-revision": self.revision,
        });
        json!({ "proxy-statistics": [], "realized": now, "spec": now })
    }
}

fn pod_endpoint(pod: &Pod, policy: &Value) -> Value {
    let labels = pod_labels(pod);
    let container = format!("{:064x}", pod.identity);
    json!({
        "id": pod.endpoint_id,
        "spec": { "label-configuration": {}, "options": endpoint_options() },
        "status": {
            "external-identifiers": {
                "container-id": container,
                "container-name": pod.name,
                "k8s-namespace": "default",
                "k8s-pod-name": pod.name,
                "pod-name": format!("default/{}", pod.name),
            },
            "health": { "bpf": "OK", "connected": true, "overallHealth": "OK", "policy": "OK" },
            "identity": { "id": pod.identity, "labels": labels },
            "labels": { "realized": {}, "security-relevant": labels },
            "networking": {
                "addressing": [{ "ipv4": pod.address.to_string(), "ipv4-pool-name": "default" }],
                "host-mac": pod.host_mac,
                "interface-index": pod.host_ifindex,
                "interface-name": pod.host_interface,
                "mac": pod.mac,
            },
            "policy": policy,
            "realized": { "label-configuration": {}, "options": endpoint_options() },
            "state": "ready",
        },
    })
}

fn host_endpoint(revision: u64) -> Value {
    let open = json!({
        "allowed-egress-identities": [0],
        "allowed-ingress-identities": [0],
        "build": revision,
        "denied-egress-identities": null,
        "denied-ingress-identities": null,
        "id": Identity::HOST.0,
        "l4": { "egress": [], "ingress": [] },
        "policy-enabled": "none",
        "policy-revision": revision,
    });
    json!({
        "id": HOST_ENDPOINT_ID,
        "spec": { "label-configuration": {}, "options": endpoint_options() },
        "status": {
            "external-identifiers": { "pod-name": "/" },
            "health": { "bpf": "OK", "connected": true, "overallHealth": "OK", "policy": "OK" },
            "identity": { "id": Identity::HOST.0, "labels": ["reserved:host"] },
            "labels": { "derived": ["reserved:host"], "realized": {}, "security-relevant": ["reserved:host"] },
            "networking": { "addressing": [{}], "interface-name": "cilium_host" },
            "policy": { "proxy-statistics": [], "realized": open, "spec": open },
            "realized": { "label-configuration": {}, "options": endpoint_options() },
            "state": "ready",
        },
    })
}

fn endpoint_options() -> Value {
    let mut options = options();
    options["DebugPolicy"] = json!("Disabled");
    options
}
