//! `GET /policy` and `/policy/selectors`, and the L4 filters of an endpoint.
use ipnet::Ipv4Net;
use probe_model::cilium::Direction;
use serde_json::{Map, Value, json};

use super::Answers;
use crate::addresses::APP_POD;
use crate::scenario::{Policy, Rule};

impl Answers {
    /// The rules as one JSON text inside the JSON, as the agent has it.
    pub(super) fn policy(&self) -> Value {
        let rules: Vec<_> = self.scenario.policy.iter().map(policy_object).collect();
        json!({ "policy": format!("{:#}", Value::Array(rules)), "revision": self.revision })
    }

    pub(super) fn selectors(&self) -> Value {
        let prefixes = self.app.cidr_identities.iter().map(|(prefix, _)| *prefix);
        let selector = |prefix: Ipv4Net| {
            let identities: Vec<_> = self.app.selected(prefix).map(|id| id.0).collect();
            json!({ "identities": identities, "selector": selector(&prefix.to_string()), "users": 1 })
        };
        prefixes.map(selector).collect()
    }
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
pub(super) fn l4_filters(policy: &Policy, direction: Direction) -> Value {
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
