//! The bodies of the agent's REST answers for a scenario: field names as recorded from a Cilium 1.14 agent.
mod endpoint;
mod policy;
mod status;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use anyhow::Result;
use ipnet::Ipv4Net;
use probe_model::cilium::identity::Identity;
use serde_json::{Value, json};

use crate::addresses::{APP_POD, NGINX_POD, NODE, POD_CIDR, Pod};
use crate::agent::map_entries::{self, Service};
use crate::agent::realize::Realized;
use crate::lab::Shape;
use crate::scenario::Scenario;

/// The name of the node, as the recorded agent has it.
const NODE_NAME: &str = "aks-nodepool1-12345678-vmss000000";

/// Everything the answers are computed from.
#[derive(Debug, Clone)]
pub struct Answers {
    scenario: &'static Scenario,
    shape: Shape,
    router: Ipv4Addr,
    app: Realized,
    open: Realized,
    revision: u64,
}

impl Answers {
    /// The answers of an agent that has realized `scenario` as the `revision`th state of its rules.
    ///
    /// # Errors
    ///
    /// A rule's prefix is none.
    pub fn new(scenario: &'static Scenario, shape: Shape, router: Ipv4Addr, revision: u64) -> Result<Self> {
        let app = Realized::new(scenario.policy.as_ref())?;
        Ok(Self { scenario, shape, router, app, open: Realized::new(None)?, revision })
    }

    /// The body of `GET /v1{path}`, or `None` where there is nothing.
    pub fn get(&self, path: &str) -> Option<Value> {
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        Some(match parts[..] {
            ["healthz"] => self.healthz(),
            ["config"] => self.config(),
            ["endpoint"] => Value::Array(self.endpoints()),
            ["endpoint", id] => self.endpoint(id)?,
            ["endpoint", namespaced, pod] => self.endpoint(&format!("{namespaced}/{pod}"))?,
            ["identity"] => Value::Array(self.identities()),
            ["identity", "endpoints"] => self.identity_endpoints(),
            ["identity", id] => {
                self.identities().into_iter().find(|identity| identity["id"] == number(id))?
            }
            ["ip"] => self.ip(),
            ["policy"] => self.policy(),
            ["policy", "selectors"] => self.selectors(),
            ["service"] => self.services(),
            ["service", id] => self
                .services()
                .as_array()?
                .iter()
                .find(|service| service["spec"]["id"] == number(id))?
                .clone(),
            ["cluster", "nodes"] => self.nodes(),
            ["node", "ids"] => json!([]),
            ["map"] => json!({ "maps": self.maps() }),
            ["map", name] => self
                .maps()
                .into_iter()
                .find(|map| map["path"].as_str().and_then(|path| path.rsplit('/').next()) == Some(name))?,
            _ => return None,
        })
    }

    fn identities(&self) -> Vec<Value> {
        let mut identities: Vec<_> =
            [(1, "host"), (2, "world"), (3, "unmanaged"), (4, "health"), (5, "init")]
                .into_iter()
                .chain([(6, "remote-node"), (8, "ingress")])
                .map(|(id, name)| json!({ "id": id, "labels": [format!("reserved:{name}")] }))
                .collect();
        identities.push(json!({ "id": 7, "labels": ["reserved:kube-apiserver", "reserved:remote-node"] }));
        identities.extend(
            [APP_POD, NGINX_POD].map(|pod| json!({ "id": pod.identity, "labels": pod_labels(&pod) })),
        );
        for (prefix, Identity(id)) in &self.app.cidr_identities {
            identities.push(json!({ "id": id, "labels": cidr_labels(*prefix) }));
        }
        identities
    }

    fn identity_endpoints(&self) -> Value {
        let ids = [Identity::HOST.0, APP_POD.identity, NGINX_POD.identity];
        let used =
            self.identities().into_iter().filter(|identity| ids.iter().any(|id| identity["id"] == *id));
        used.map(|identity| json!({ "identity": identity, "refCount": 1 })).collect()
    }

    fn ip(&self) -> Value {
        let entry = |(prefix, Identity(identity)): (Ipv4Net, Identity)| {
            let mut entry = json!({ "cidr": prefix.to_string(), "identity": identity });
            if let Some(pod) = [APP_POD, NGINX_POD].iter().find(|pod| Ipv4Net::from(pod.address) == prefix) {
                entry["hostIP"] = json!(NODE.to_string());
                entry["metadata"] = json!({ "name": pod.name, "namespace": "default", "source": "k8s" });
            } else if prefix == Ipv4Net::from(self.router) {
                entry["hostIP"] = json!(NODE.to_string());
            }
            entry
        };
        map_entries::ipcache(&self.app, self.router).into_iter().map(entry).collect()
    }

    fn services(&self) -> Value {
        map_entries::services(self.shape).iter().map(service).collect()
    }

    fn nodes(&self) -> Value {
        let ipv4 = json!({ "alloc-range": POD_CIDR, "enabled": true, "ip": NODE.to_string() });
        let node = json!({
            "name": NODE_NAME,
            "primary-address": { "ipv4": ipv4, "ipv6": {} },
            "secondary-addresses": [{ "ip": self.router.to_string() }],
        });
        json!({ "nodes-added": [node], "nodes-removed": null, "self": NODE_NAME })
    }

    fn maps(&self) -> Vec<Value> {
        let cached = |name: &str, entries: Vec<(String, String)>| {
            let cache: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| json!({ "desired-action": "sync", "key": key, "value": value }))
                .collect();
            json!({ "cache": cache, "path": format!("/sys/fs/bpf/tc/globals/{name}") })
        };
        let ipcache =
            map_entries::ipcache(&self.app, self.router).into_iter().map(|(prefix, Identity(id))| {
                (prefix.to_string(), format!("identity={id} encryptkey=0 tunnelendpoint=0.0.0.0 nodeid=0x0"))
            });
        let reverse_nat = map_entries::services(self.shape)
            .into_iter()
            .map(|service| (service.id.to_string(), format!("{}:{}", service.address, service.port)));
        vec![
            cached("cilium_ipcache", ipcache.collect()),
            cached("cilium_lb4_reverse_nat", reverse_nat.collect()),
        ]
    }
}

/// Compares with what JSON holds as a number.
fn number(text: &str) -> Value {
    text.parse::<u64>().map_or(Value::Null, Value::from)
}

fn pod_labels(pod: &Pod) -> Vec<String> {
    vec![
        format!("k8s:app={}", pod.name),
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default".to_owned(),
        "k8s:io.cilium.k8s.policy.cluster=default".to_owned(),
        "k8s:io.cilium.k8s.policy.serviceaccount=default".to_owned(),
        "k8s:io.kubernetes.pod.namespace=default".to_owned(),
    ]
}

/// A prefix carries the label of every prefix that contains it.
fn cidr_labels(prefix: Ipv4Net) -> Vec<String> {
    let mut labels = vec!["reserved:world".to_owned()];
    let wider = std::iter::successors(Some(prefix), Ipv4Net::supernet);
    labels.extend(wider.map(|prefix| format!("cidr:{prefix}")));
    labels
}

fn service(service: &Service) -> Value {
    let backend = json!({
        "ip": service.backend.address.to_string(),
        "port": crate::addresses::SERVICE_PORT,
        "state": "active",
        "weight": 100,
    });
    let spec = json!({
        "backend-addresses": [backend],
        "flags": {
            "extTrafficPolicy": "Cluster",
            "intTrafficPolicy": "Cluster",
            "name": service.backend.name,
            "namespace": "default",
            "trafficPolicy": "Cluster",
            "type": service.kind,
        },
        "frontend-address": { "ip": service.address.to_string(), "port": service.port, "scope": "external" },
        "id": service.id,
    });
    json!({ "spec": spec, "status": { "realized": spec } })
}

fn options() -> Value {
    json!({
        "ConntrackAccounting": "Enabled",
        "ConntrackLocal": "Disabled",
        "Debug": "Disabled",
        "DebugLB": "Disabled",
        "DropNotification": "Enabled",
        "MonitorAggregationLevel": "Medium",
        "PolicyAuditMode": "Disabled",
        "PolicyVerdictNotification": "Enabled",
        "SourceIPVerification": "Enabled",
        "TraceNotification": "Enabled",
    })
}
