//! The bodies of the agent's REST answers for a scenario: field names as recorded from a Cilium 1.14 agent.
use std::net::Ipv4Addr;

use anyhow::Result;
use ipnet::Ipv4Net;
use probe_model::cilium::Direction;
use probe_model::cilium::identity::Identity;
use serde_json::{Map, Value, json};

use super::map_entries::{self, Service};
use super::realize::Realized;
use crate::addresses::{APP_POD, NGINX_POD, NODE, POD_CIDR, Pod};
use crate::lab::Shape;
use crate::scenario::{Policy, Rule, Scenario};

/// What the agent calls itself; readers take the minor version from it.
const VERSION: &str = "1.14.0-standin (v1.14.0-standin)";
const NODE_NAME: &str = "aks-nodepool1-12345678-vmss000000";
/// The host's endpoint id in the recordings.
const HOST_ENDPOINT: u16 = 512;
/// The repository's revision: any number, the same everywhere while nothing changes.
const REVISION: u64 = 8;

/// Everything the answers are computed from.
#[derive(Debug, Clone)]
pub struct Answers {
    scenario: &'static Scenario,
    shape: Shape,
    router: Ipv4Addr,
    app: Realized,
    open: Realized,
}

impl Answers {
    /// The answers of an agent that has realized `scenario`.
    ///
    /// # Errors
    ///
    /// A rule's prefix is none.
    pub fn new(scenario: &'static Scenario, shape: Shape, router: Ipv4Addr) -> Result<Self> {
        let app = Realized::new(scenario.policy.as_ref())?;
        Ok(Self { scenario, shape, router, app, open: Realized::new(None)? })
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

    fn endpoints(&self) -> Vec<Value> {
        vec![
            pod_endpoint(&APP_POD, &endpoint_policy(&APP_POD, &self.app, self.scenario.policy.as_ref())),
            pod_endpoint(&NGINX_POD, &endpoint_policy(&NGINX_POD, &self.open, None)),
            host_endpoint(),
        ]
    }

    /// By number, `cilium-local:2686`, `pod-name:ns/pod`, `cep-name:ns/pod` or `ipv4:10.0.0.143`.
    fn endpoint(&self, id: &str) -> Option<Value> {
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

    /// The rules as one JSON text inside the JSON, as the agent has it.
    fn policy(&self) -> Value {
        let rules: Vec<_> = self.scenario.policy.iter().map(policy_object).collect();
        json!({ "policy": format!("{:#}", Value::Array(rules)), "revision": REVISION })
    }

    fn selectors(&self) -> Value {
        let prefixes = self.app.cidr_identities.iter().map(|(prefix, _)| *prefix);
        let selector = |prefix: Ipv4Net| {
            let identities: Vec<_> = self.app.selected(prefix).map(|id| id.0).collect();
            json!({ "identities": identities, "selector": selector(&prefix.to_string()), "users": 1 })
        };
        prefixes.map(selector).collect()
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

    fn healthz(&self) -> Value {
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

    fn config(&self) -> Value {
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

/// Compares with what JSON holds as a number.
fn number(text: &str) -> Value {
    text.parse::<u64>().map_or(Value::Null, Value::from)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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

fn endpoint_options() -> Value {
    let mut options = options();
    options["DebugPolicy"] = json!("Disabled");
    options
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

fn endpoint_policy(pod: &Pod, realized: &Realized, policy: Option<&Policy>) -> Value {
    let ids = |direction, deny| -> Value {
        let ids = realized.l3_only(direction, deny);
        // Go leaves a list without elements null where it never made one.
        if deny && ids.is_empty() { Value::Null } else { ids.iter().map(|id| id.0).collect() }
    };
    let l4 = |direction| policy.map_or_else(|| json!([]), |policy| l4_filters(policy, direction));
    let now = json!({
        "allowed-egress-identities": ids(Direction::Egress, false),
        "allowed-ingress-identities": ids(Direction::Ingress, false),
        "build": REVISION,
        "denied-egress-identities": ids(Direction::Egress, true),
        "denied-ingress-identities": ids(Direction::Ingress, true),
        "id": pod.identity,
        "l4": { "egress": l4(Direction::Egress), "ingress": l4(Direction::Ingress) },
        "policy-enabled": realized.policy_enabled(),
        "policy-revision": REVISION,
    });
    json!({ "proxy-statistics": [], "realized": now, "spec": now })
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

fn host_endpoint() -> Value {
    let open = json!({
        "allowed-egress-identities": [0],
        "allowed-ingress-identities": [0],
        "build": REVISION,
        "denied-egress-identities": null,
        "denied-ingress-identities": null,
        "id": Identity::HOST.0,
        "l4": { "egress": [], "ingress": [] },
        "policy-enabled": "none",
        "policy-revision": REVISION,
    });
    json!({
        "id": HOST_ENDPOINT,
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

/// The labels of an object, by which every rule derived from it can be recognized.
fn derived_from(policy: &Policy) -> Value {
    json!([
        format!("k8s:io.cilium.k8s.policy.derived-from={}", policy.kind),
        format!("k8s:io.cilium.k8s.policy.name={}", policy.name),
        "k8s:io.cilium.k8s.policy.namespace=default",
        format!("k8s:io.cilium.k8s.policy.uid={}", policy.uid),
    ])
}

/// How the agent prints the selector of a prefix.
fn selector(cidr: &str) -> String {
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{cidr.{cidr}: ,}},\
         MatchExpressions:[]LabelSelectorRequirement{{}},}}"
    )
}

/// One filter per port, each with the selectors that it allows or denies.
fn l4_filters(policy: &Policy, direction: Direction) -> Value {
    let allowed = match direction {
        Direction::Ingress => policy.ingress,
        Direction::Egress => policy.egress,
    };
    let denied = if direction == Direction::Ingress { policy.ingress_deny } else { &[] };
    let rules =
        || allowed.unwrap_or_default().iter().map(|r| (r, false)).chain(denied.iter().map(|r| (r, true)));
    let mut ports: Vec<Option<u16>> = rules().map(|(rule, _)| rule.tcp_port).collect();
    ports.sort_unstable();
    ports.dedup();
    let filter = |port: Option<u16>| {
        let on_port: Vec<(&Rule, bool)> = rules().filter(|(rule, _)| rule.tcp_port == port).collect();
        let l7_rules: Vec<Value> = on_port
            .iter()
            .map(|(rule, deny)| {
                let l7 = if *deny { json!({ "IsDeny": true }) } else { Value::Null };
                Value::Object(Map::from_iter([(selector(rule.cidr), l7)]))
            })
            .collect();
        let protocol = if port.is_some() { "TCP" } else { "ANY" };
        let rule = json!({ "port": port.unwrap_or(0), "protocol": protocol, "l7-rules": l7_rules });
        let mut filter = json!({
            "derived-from-rules": [derived_from(policy)],
            "rule": rule.to_string(),
        });
        if direction == Direction::Ingress {
            let by_selector =
                on_port.iter().map(|(rule, _)| (selector(rule.cidr), json!([derived_from(policy)])));
            filter["rules-by-selector"] = Value::Object(by_selector.collect());
        }
        filter
    };
    ports.into_iter().map(filter).collect()
}

/// The object in the agent's own rule language.
fn policy_object(policy: &Policy) -> Value {
    let label = |key: &str, value: &str| json!({ "key": format!("io.cilium.k8s.policy.{key}"), "value": value, "source": "k8s" });
    let mut object = json!({
        "endpointSelector": {
            "matchLabels": { "k8s:app": APP_POD.name, "k8s:io.kubernetes.pod.namespace": "default" },
        },
        "labels": [
            label("derived-from", policy.kind),
            label("name", policy.name),
            label("namespace", "default"),
            label("uid", policy.uid),
        ],
    });
    let peers = |rules: &[Rule], member: &str| -> Value {
        // A direction that is enforced without any peer is one empty rule.
        if rules.is_empty() {
            return json!([{}]);
        }
        rules.iter().map(|rule| peer(rule, member)).collect()
    };
    if let Some(rules) = policy.ingress {
        object["ingress"] = peers(rules, "fromCIDRSet");
    }
    if let Some(rules) = policy.egress {
        object["egress"] = peers(rules, "toCIDRSet");
    }
    if !policy.ingress_deny.is_empty() {
        object["ingressDeny"] = peers(policy.ingress_deny, "fromCIDRSet");
    }
    object
}

fn peer(rule: &Rule, member: &str) -> Value {
    let mut peer = Map::from_iter([(member.to_owned(), json!([{ "cidr": rule.cidr }]))]);
    if let Some(port) = rule.tcp_port {
        let ports = json!([{ "ports": [{ "port": port.to_string(), "protocol": "TCP" }] }]);
        peer.insert("toPorts".to_owned(), ports);
    }
    Value::Object(peer)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::addresses::ROUTER;

    fn answers(scenario: &str) -> Answers {
        Answers::new(Scenario::named(scenario).unwrap(), Shape::Kpr, ROUTER).unwrap()
    }

    fn recorded(scenario: &str, file: &str) -> Value {
        let path = fixtures::recording("cilium-1.14").join(scenario).join("rest").join(file);
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// Every path of members in `value`, with the kind of what is there; list indices and map keys that are data do
    /// not count.
    fn members(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let data = name.starts_with("&LabelSelector");
                    members(value, &format!("{path}.{}", if data { "*" } else { name }), found);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| members(value, &format!("{path}[]"), found)),
            Value::Null => {}
            Value::Bool(_) => drop(found.insert(format!("{path}: bool"))),
            Value::Number(_) => drop(found.insert(format!("{path}: number"))),
            Value::String(_) => drop(found.insert(format!("{path}: string"))),
        }
    }

    /// We invent no member: each of ours is in the recorded answer, with the same kind of value.
    fn check_members(scenario: &str, path: &str, recorded_scenario: &str, file: &str) {
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        members(&answers(scenario).get(path).unwrap(), "", &mut ours);
        members(&recorded(recorded_scenario, file), "", &mut theirs);
        let invented: Vec<_> = ours.difference(&theirs).collect();
        assert!(!ours.is_empty() && invented.is_empty(), "{path}: {invented:#?}");
    }

    #[test]
    fn no_member_is_invented() {
        check_members("explicit-deny", "/endpoint", "deny-cidr", "endpoint.json");
        check_members("allow-nat-ip", "/endpoint/2686", "cidr-pls8-80", "endpoint-2686.json");
        check_members("none", "/endpoint/512", "none", "endpoint-512.json");
        check_members("allow-nat-ip", "/identity", "cidr-pls8-80", "identity.json");
        check_members("none", "/identity/endpoints", "none", "identity-endpoints.json");
        check_members("allow-nat-ip", "/ip", "cidr-pls8-80", "ip.json");
        check_members("explicit-deny", "/policy", "deny-cidr", "policy.json");
        check_members("explicit-deny", "/policy/selectors", "deny-cidr", "policy-selectors.json");
        check_members("none", "/cluster/nodes", "none", "cluster-nodes.json");
        check_members("none", "/map", "none", "map.json");
        check_members("none", "/map/cilium_ipcache", "none", "map-cilium_ipcache.json");
    }

    /// A recorded realized policy with what is not the rules' content made ours: numbers of identities and
    /// revisions, the object's name and UID.
    fn realized_like(scenario: &str, recorded_scenario: &str) {
        let policy = Scenario::named(scenario).unwrap().policy.unwrap();
        let ours = comparable(&answers(scenario).get("/endpoint/2686").unwrap());
        let theirs = comparable(&recorded(recorded_scenario, "endpoint-2686.json"));
        let object = &recorded(recorded_scenario, "policy.json")["policy"];
        let object: Value = serde_json::from_str(object.as_str().unwrap()).unwrap();
        let label = |idx: usize| object[0]["labels"][idx]["value"].as_str().unwrap().to_owned();
        let theirs = theirs.to_string().replace(&label(1), policy.name).replace(&label(3), policy.uid);
        assert_eq!(
            ours,
            serde_json::from_str::<Value>(&theirs).unwrap(),
            "{scenario} against {recorded_scenario}"
        );
    }

    fn comparable(endpoint: &Value) -> Value {
        let realized = &endpoint["status"]["policy"]["realized"];
        let filters = |direction: &str| -> Value {
            let list = realized["l4"][direction].as_array().unwrap();
            list.iter()
                .map(|filter| {
                    let mut filter = filter.clone();
                    let rule: Value = serde_json::from_str(filter["rule"].as_str().unwrap()).unwrap();
                    filter["rule"] = rule;
                    filter
                })
                .collect()
        };
        let count = |name: &str| realized[name].as_array().map(Vec::len);
        json!({
            "enabled": realized["policy-enabled"],
            "ingress": filters("ingress"),
            "egress": filters("egress"),
            "allowed-ingress": count("allowed-ingress-identities"),
            "allowed-egress": count("allowed-egress-identities"),
            "denied-ingress": count("denied-ingress-identities"),
            "denied-egress": count("denied-egress-identities"),
        })
    }

    #[test]
    fn realized_policies_equal_the_recorded() {
        realized_like("allow-nat-ip", "cidr-pls8-80");
        realized_like("allow-peered", "cidr-peered-80");
        realized_like("explicit-deny", "deny-cidr");
        realized_like("seed-egress-only", "egress-only");
    }

    #[test]
    fn endpoints_are_found_by_every_form_of_their_id() {
        let answers = answers("none");
        for id in
            ["2686", "cilium-local:2686", "pod-name:default/pls-app", "ipv4:10.0.0.143", "ipv4%3A10.0.0.143"]
        {
            assert_eq!(answers.endpoint(id).unwrap()["id"], 2686, "{id}");
        }
        assert_eq!(answers.endpoint("1"), None);
        for path in ["/endpoint/pod-name:default%2Fpls-app", "/endpoint/pod-name:default/pls-app"] {
            assert_eq!(answers.get(path).unwrap()["id"], 2686, "{path}");
        }
        assert_eq!(answers.get("/nothing"), None);
    }
}
