//! Clusters as the API lists them, and who is asked.

use serde_json::{Value, json};

use super::*;
use crate::sources::kubernetes::decode;

/// What a cluster is made of: nodes `aks-1` and on, agents on some, pods, services.
pub(in crate::across) struct Lists {
    pub(in crate::across) pods: Vec<Value>,
    pub(in crate::across) services: Vec<Value>,
    pub(in crate::across) slices: Vec<Value>,
    pub(in crate::across) nodes: Vec<Value>,
}

pub(in crate::across) fn pod(name: &str, node: &str, address: &str, labels: &Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": address}], "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

pub(in crate::across) fn agent(node: &str) -> Value {
    let mut agent = pod(&format!("plsprobe-{node}"), node, "", &json!({AGENT_LABEL.0: AGENT_LABEL.1}));
    agent["metadata"]["namespace"] = "kube-system".into();
    agent
}

impl Lists {
    /// `count` nodes with an agent each, and the Service `pls-app` with this policy and one pod on each of `homes`.
    pub(in crate::across) fn new(count: usize, policy: &str, homes: &[usize]) -> Self {
        let name = |idx: usize| format!("aks-{idx}");
        let app = |idx: &usize| format!("pls-app-7d9c5bd5f4-x2v8{}", ["q", "r", "s", "t"][idx % 4]);
        let pods = homes
            .iter()
            .map(|idx| pod(&app(idx), &name(*idx), &format!("10.0.{idx}.143"), &json!({"app": "pls-app"})));
        let endpoints = homes.iter().map(|idx| {
            json!({"addresses": [format!("10.0.{idx}.143")], "nodeName": name(*idx), "targetRef": {"kind": "Pod", "name": app(idx)}})
        });
        let node = |idx| {
            json!({
                "metadata": {"name": name(idx)}, "spec": {"podCIDR": format!("10.0.{idx}.0/24")},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": format!("10.224.0.{}", 3 + idx)}],
                    "conditions": [{"type": "Ready", "status": "True"}]
                }
            })
        };
        Self {
            pods: pods.chain((1..=count).map(|idx| agent(&name(idx)))).collect(),
            services: vec![json!({
                "metadata": {"name": "pls-app", "namespace": "default"},
                "spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.167.20"], "externalTrafficPolicy": policy, "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "10.224.0.7"}]}}
            })],
            slices: vec![json!({
                "metadata": {"name": "pls-app-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "pls-app"}},
                "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(), "ports": [{"port": 80}]
            })],
            nodes: (1..=count).map(node).collect(),
        }
    }

    fn cluster(&self) -> Cluster {
        let text = |items: &[Value]| Value::from(items.to_vec()).to_string();
        Cluster {
            pods: decode::pods(&text(&self.pods)).unwrap(),
            services: Some(decode::services(&text(&self.services)).unwrap()),
            endpoint_slices: Some(decode::endpoint_slices(&text(&self.slices)).unwrap()),
            nodes: Some(decode::nodes(&text(&self.nodes)).unwrap()),
        }
    }

    fn plan(&self, dst: &str) -> Plan {
        Plan::new(&self.cluster(), dst, None).unwrap()
    }
}

/// `aks-1 R: TARGET, TARGET`: R where it receives, B where it has a backend.
fn told(plan: &Plan) -> Vec<String> {
    let node = |node: &PlanNode| {
        let roles = [(node.receives, "R"), (!node.backends.is_empty(), "B")];
        let roles: String = roles.into_iter().filter(|(has, _)| *has).map(|(_, role)| role).collect();
        format!("{} {roles}: {}", node.name, node.targets.join(", "))
    };
    plan.nodes.iter().map(node).collect()
}

const APP: &str = "default/pls-app-7d9c5bd5f4-x2v8";

#[test]
fn with_cluster_policy_every_node_receives() {
    let lists = Lists::new(3, "Cluster", &[2]);
    let expected = ["aks-1 R: 10.0.2.143", &format!("aks-2 RB: {APP}s"), "aks-3 R: 10.0.2.143"];
    for dst in ["pls-app", "default/pls-app", &format!("{APP}s"), "app=pls-app", "10.0.2.143"] {
        assert_eq!(told(&lists.plan(dst)), expected, "{dst}");
    }
    let service =
        ["aks-1 R: svc/default/pls-app", "aks-2 RB: svc/default/pls-app", "aks-3 R: svc/default/pls-app"];
    for dst in ["svc/pls-app", "svc/default/pls-app", "10.224.0.7", "10.0.167.20"] {
        assert_eq!(told(&lists.plan(dst)), service, "{dst}");
    }
    let plan = lists.plan("pls-app");
    assert_eq!(
        plan.owners[&"10.0.2.143".parse::<IpAddr>().unwrap()],
        ("aks-2".to_owned(), format!("{APP}s"))
    );
    let Agent { namespace, pod, port } = &plan.nodes[0].agent;
    assert_eq!((namespace.as_str(), pod.as_str(), *port), ("kube-system", "plsprobe-aks-1", 9966));
    let addresses: Vec<_> = plan.nodes[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.224.0.4/32", "10.0.1.0/24"]);
    assert!(plan.notes.is_empty() && plan.blind.is_empty(), "{plan:?}");
}

#[test]
fn with_local_policy_those_with_a_ready_backend() {
    let mut lists = Lists::new(4, "Local", &[2, 3]);
    let expected = [format!("aks-2 RB: {APP}s, 10.0.3.143"), format!("aks-3 RB: {APP}t, 10.0.2.143")];
    assert_eq!(told(&lists.plan("pls-app")), expected);
    lists.slices[0]["endpoints"][1]["conditions"] = json!({"ready": false});
    let expected = [format!("aks-2 RB: {APP}s, 10.0.3.143"), format!("aks-3 B: {APP}t")];
    assert_eq!(told(&lists.plan("pls-app")), expected);
}

#[test]
fn a_service_inside_the_cluster_is_received_nowhere() {
    let mut lists = Lists::new(2, "", &[2]);
    lists.services[0]["spec"]["type"] = "ClusterIP".into();
    assert_eq!(told(&lists.plan("pls-app")), [format!("aks-2 B: {APP}s")]);
}

#[test]
fn nodes_that_cannot_be_asked_are_named() {
    let mut lists = Lists::new(4, "Cluster", &[2]);
    // One has none, one is not ready, and of one a second is on its way.
    lists.pods.retain(|pod| pod["metadata"]["name"] != "plsprobe-aks-1");
    lists.pods.iter_mut().find(|pod| pod["metadata"]["name"] == "plsprobe-aks-3").unwrap()["status"]["conditions"] =
        json!([]);
    let mut second = agent("aks-4");
    second["metadata"]["name"] = "a-new-one".into();
    second["status"]["phase"] = "Pending".into();
    second["spec"]["containers"] = json!([{"ports": [{"name": "grpc", "containerPort": 7}]}]);
    lists.pods.insert(0, second);
    let plan = lists.plan("pls-app");
    assert_eq!(told(&plan), [format!("aks-2 RB: {APP}s"), "aks-4 R: 10.0.2.143".to_owned()]);
    assert_eq!(
        plan.blind.into_iter().collect::<Vec<_>>(),
        [
            ("aks-1".to_owned(), "it has no agent".to_owned()),
            ("aks-3".to_owned(), "its agent kube-system/plsprobe-aks-3 is not ready".to_owned())
        ]
    );
    assert_eq!(plan.nodes[1].agent.pod, "plsprobe-aks-4");
    lists.pods.retain(|pod| pod["metadata"]["namespace"] != "kube-system");
    let error = Plan::new(&lists.cluster(), "pls-app", None).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "no node that matters to {APP}s has an agent that can be asked (aks-1: it has no agent; "
        )),
        "{error}"
    );
}

#[test]
fn the_agents_port() {
    let mut lists = Lists::new(1, "Cluster", &[1]);
    lists.pods[1]["spec"]["containers"] =
        json!([{"ports": [{"name": "metrics", "containerPort": 7}, {"name": "grpc", "containerPort": 8}]}]);
    let port = |given| Plan::new(&lists.cluster(), "pls-app", given).unwrap().nodes[0].agent.port;
    assert_eq!((port(None), port(Some(9))), (8, 9));
}

#[test]
fn limits_are_said() {
    let plan = Lists::new(40, "Cluster", &[2]).plan("pls-app");
    assert_eq!(plan.nodes.len(), RECEIVERS_MAX + 1);
    assert_eq!(
        plan.notes,
        [
            "23 more nodes may receive the frontend's packets and are not traced: at most 16 that have no backend are"
        ]
    );
    let homes: Vec<_> = (1..=33).collect();
    let error =
        Plan::new(&Lists::new(33, "Local", &homes).cluster(), "svc/pls-app", None).unwrap_err().to_string();
    assert!(
        error.starts_with("svc/default/pls-app has backends on 4 nodes")
            || error.contains("at most 32 are traced"),
        "{error}"
    );
    let mut many = Lists::new(1, "Local", &[1]);
    let copies = (0..16).map(|idx| pod(&format!("pls-app-{idx}"), "aks-1", "10.0.1.9", &json!({})));
    many.pods.extend(copies);
    let error = Plan::new(&many.cluster(), "pls-app", None).unwrap_err().to_string();
    assert_eq!(error, "`pls-app` is 17 pods, at most 16 are traced at once; give their Service as svc/NAME");
}

#[test]
fn what_may_not_be_listed_costs_its_part() {
    let lists = Lists::new(2, "Cluster", &[2]);
    let cluster = Cluster { services: None, endpoint_slices: None, nodes: None, ..lists.cluster() };
    let plan = Plan::new(&cluster, "pls-app", None).unwrap();
    assert_eq!(told(&plan), [format!("aks-2 B: {APP}s")]);
    assert_eq!(plan.notes.len(), 3);
    assert_eq!(
        plan.notes[0],
        "services could not be listed: which nodes receive the frontend's packets is not known"
    );
    let error = Plan::new(&cluster, "svc/pls-app", None).unwrap_err().to_string();
    assert_eq!(error, "Services could not be listed; give a pod");
    let mut excluded = lists.cluster();
    excluded.nodes.as_mut().unwrap()[0].is_excluded = true;
    let plan = Plan::new(&excluded, "pls-app", None).unwrap();
    assert_eq!(told(&plan), [format!("aks-2 RB: {APP}s")]);
    assert!(plan.notes[0].starts_with("1 nodes are excluded from load balancers"), "{:?}", plan.notes);
}

#[test]
fn what_is_no_target() {
    let mut lists = Lists::new(2, "Cluster", &[2]);
    let mut other = pod("pls-app-7d9c5bd5f4-zzzzz", "aks-1", "10.0.1.9", &json!({}));
    other["metadata"]["namespace"] = "prod".into();
    lists.pods.push(other);
    let mut gone = pod("old-0", "aks-1", "10.0.1.10", &json!({}));
    gone["status"]["phase"] = "Failed".into();
    lists.pods.push(gone);
    let mut pending = pod("new-0", "", "", &json!({}));
    pending["status"]["phase"] = "Pending".into();
    lists.pods.push(pending);
    let mut twin = lists.services[0].clone();
    twin["metadata"]["namespace"] = "prod".into();
    lists.services.push(twin);
    let error = |dst: &str| Plan::new(&lists.cluster(), dst, None).unwrap_err().to_string();
    assert_eq!(
        error("pls-app"),
        "`pls-app` is ambiguous: there are such pods in default, prod; give NAMESPACE/NAME"
    );
    assert!(error("pls-ap").starts_with("unknown target `pls-ap`; expected a pod"), "{}", error("pls-ap"));
    assert!(error("pls-ap").ends_with("; there are default/pls-app-7d9c5bd5f4-x2v8s, kube-system/plsprobe-aks-1, kube-system/plsprobe-aks-2, prod/pls-app-7d9c5bd5f4-zzzzz"), "{}", error("pls-ap"));
    assert!(error("old-0").starts_with("unknown target `old-0`"));
    assert_eq!(error("new-0"), "no backend of default/new-0 is on a node: is any of its pods running?");
    assert_eq!(error("svc/web"), "unknown Service `svc/web`; give svc/NAME or svc/NAMESPACE/NAME");
    assert_eq!(
        error("svc/pls-app"),
        "`svc/pls-app` is ambiguous: svc/default/pls-app, svc/prod/pls-app; give one of them"
    );
    assert_eq!(error("10.9.9.9"), "`10.9.9.9` is no pod's and no Service's: trace it on a node");
    assert_eq!(error("10.0.0.0/8"), "`10.0.0.0/8` is a prefix, which is on no node: trace it on one");
    assert_eq!(error("ep/7"), "`ep/7` is one node's own number: give the pod's name");
}
