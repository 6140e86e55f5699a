//! Decodes what is known beyond the node: the Kubernetes API's lists, Azure's parts, policies of files.

use std::collections::BTreeMap;

use probe_model::world::{
    Missing, World,
    kubernetes::{Kubernetes, List, PolicyKind, PolicyObject, PolicyOrigin},
    nat::{Claim, Disagreement},
};
use serde_json::Value;

use super::{azure, cluster, kubernetes, kubernetes::decode, raw::RawNode};

/// Decodes it into `world`; what cannot be decoded is a missing fact.
pub(super) fn read(node: &RawNode, world: &mut World) {
    read_kubernetes(node, world);
    read_azure(node, world);
}

/// The list in which the API has the objects of a kind.
pub(super) fn list_name(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "networkpolicies",
        PolicyKind::CiliumNetworkPolicy => "ciliumnetworkpolicies",
        PolicyKind::CiliumClusterwideNetworkPolicy => "ciliumclusterwidenetworkpolicies",
    }
}

/// Whether a part holds policies, in which there may be secrets: headers of HTTP rules.
pub(super) fn is_of_policies(part: &str) -> bool {
    part == cluster::FILES || PolicyKind::ALL.into_iter().any(|kind| list_name(kind) == part)
}

fn read_kubernetes(node: &RawNode, world: &mut World) {
    let mut lists = Lists { lists: &node.kubernetes, missing: &mut world.missing };
    let mut found = Kubernetes {
        asked: asked(&node.kubernetes),
        services: lists.read("services", decode::services).map(List::from),
        endpoint_slices: lists.read("endpointslices", decode::endpoint_slices).map(List::from),
        pods: lists.read("pods", decode::pods).map(List::from),
        namespaces: lists.read("namespaces", decode::namespaces).map(List::from),
        nodes: lists.read("nodes", decode::nodes).map(List::from),
        cidr_groups: lists.read("ciliumcidrgroups", decode::cidr_groups),
        events: lists.read("events", decode::events).map(List::from),
        cilium_config: lists.read("cilium-config", decode::cilium_config),
        ..Kubernetes::default()
    };
    let mut policies = Vec::new();
    for kind in PolicyKind::ALL {
        if let Some(known) = lists.read(list_name(kind), |text| decode::policies(kind, text)) {
            policies.extend(known);
            found.complete.insert(kind);
        }
    }
    policies.extend(lists.read(cluster::FILES, decode::file_policies).unwrap_or_default());
    found.policies = policies.into();
    world.disagreements.extend(disagreements(&found.policies));
    world.kubernetes = found;
}

struct Lists<'a> {
    lists: &'a BTreeMap<String, String>,
    missing: &'a mut Vec<Missing>,
}

impl Lists<'_> {
    fn read<T>(&mut self, name: &str, read: impl Fn(&str) -> anyhow::Result<T>) -> Option<T> {
        match read(self.lists.get(name)?) {
            Ok(value) => Some(value),
            Err(error) => {
                let what = format!("{}{name}", kubernetes::PREFIX);
                self.missing.push(Missing { what, why: format!("{error:#}") });
                None
            }
        }
    }
}

fn asked(parts: &BTreeMap<String, String>) -> Option<String> {
    serde_json::from_str(parts.get(cluster::ASKED)?).ok()
}

/// Objects of one name that differ: of a file and the cluster, or of two files.
pub(super) fn disagreements(policies: &List<PolicyObject>) -> Vec<Disagreement> {
    let mut all = Vec::new();
    for (idx, policy) in policies.iter().enumerate() {
        let is_same = |other: &&PolicyObject| {
            (other.kind, &other.namespace, &other.name) == (policy.kind, &policy.namespace, &policy.name)
        };
        let Some(earlier) = policies.iter().take(idx).find(is_same) else { continue };
        if meaning(earlier) == meaning(policy) {
            continue;
        }
        let advice = match earlier.origin {
            PolicyOrigin::Kubernetes => {
                "the cluster goes by its own until the file is applied, which replaces it"
            }
            PolicyOrigin::File { .. } => "one replaces the other when it is applied: the last one stays",
        };
        let claim = |policy: &PolicyObject| Claim { who: policy.origin.to_string(), what: spec_text(policy) };
        all.push(Disagreement {
            about: policy.to_string(),
            claims: [claim(earlier), claim(policy)],
            advice: advice.to_owned(),
        });
    }
    all
}

fn object(policy: &PolicyObject) -> Value {
    serde_json::from_str(&policy.json).unwrap_or_default()
}

fn spec_text(policy: &PolicyObject) -> String {
    let object = object(policy);
    match (object.get("spec"), object.get("specs")) {
        (Some(spec), _) => spec.to_string(),
        (None, Some(specs)) => specs.to_string(),
        (None, None) => "nothing".to_owned(),
    }
}

/// What an object says, with what the API server adds where nothing is said. Source: `SetDefaults_NetworkPolicy` and its
/// neighbors, `pkg/apis/networking/v1/defaults.go`.
fn meaning(policy: &PolicyObject) -> (Value, Value) {
    let mut object = object(policy);
    let (mut spec, specs) = (object["spec"].take(), object["specs"].take());
    if policy.kind == PolicyKind::NetworkPolicy {
        if spec.get("policyTypes").is_none_or(Value::is_null) {
            let has_egress =
                spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
            spec["policyTypes"] =
                if has_egress { vec!["Ingress", "Egress"].into() } else { vec!["Ingress"].into() };
        }
        for direction in ["ingress", "egress"] {
            for rule in spec.get_mut(direction).and_then(Value::as_array_mut).into_iter().flatten() {
                for port in rule.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                    if port.get("protocol").is_none() {
                        port["protocol"] = "TCP".into();
                    }
                }
            }
        }
    }
    (without_nothing(spec), without_nothing(specs))
}

/// Without members that say nothing.
fn without_nothing(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, member)| !member.is_null());
            Value::Object(kept.map(|(name, member)| (name, without_nothing(member))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_nothing).collect::<Vec<_>>().into(),
        other => other,
    }
}

fn read_azure(node: &RawNode, world: &mut World) {
    let (mut found, wrong) = azure::decode::private_link(&node.azure);
    let missed = |(name, why)| Missing { what: format!("{}{name}", azure::PREFIX), why };
    world.missing.extend(wrong.into_iter().map(missed));
    let text = |name: &str| node.azure.get(name).map(String::as_str);
    match azure::place::place(text("azure-json"), text("instance")) {
        Ok((place, disagreements)) => {
            found.place.fill(place);
            world.disagreements.extend(disagreements);
        }
        Err(error) => {
            world
                .missing
                .push(Missing { what: format!("{}azure-json", azure::PREFIX), why: format!("{error:#}") });
        }
    }
    found.asked = asked(&node.azure);
    world.private_link = found;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(origin: PolicyOrigin, spec: &Value) -> PolicyObject {
        PolicyObject {
            kind: PolicyKind::NetworkPolicy,
            namespace: "n".to_owned(),
            name: "a".to_owned(),
            origin,
            json: json!({"spec": spec}).to_string(),
        }
    }

    fn file() -> PolicyOrigin {
        PolicyOrigin::File { path: "a.yaml".to_owned(), line: 1 }
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference() {
        let applied = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80, "protocol": "TCP"}]}]});
        let written = json!({"podSelector": {}, "egress": null, "ingress": [{"ports": [{"port": 80}]}]});
        let both = vec![policy(PolicyOrigin::Kubernetes, &applied), policy(file(), &written)].into();
        assert_eq!(disagreements(&both), []);
    }

    #[test]
    fn a_file_that_says_something_else() {
        let (one, other) =
            (json!({"podSelector": {}, "ingress": []}), json!({"podSelector": {}, "ingress": [{}]}));
        let both = vec![policy(PolicyOrigin::Kubernetes, &one), policy(file(), &other)].into();
        assert_eq!(
            disagreements(&both).iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                r#"NetworkPolicy n/a: kubernetes says {"ingress":[],"podSelector":{}}, a.yaml:1 says {"ingress":[{}],"podSelector":{}}; the cluster goes by its own until the file is applied, which replaces it"#
            ]
        );
        let both = vec![policy(file(), &one), policy(file(), &other)].into();
        assert!(
            disagreements(&both)[0]
                .to_string()
                .ends_with("one replaces the other when it is applied: the last one stays")
        );
        let another = PolicyObject { name: "b".to_owned(), ..policy(file(), &other) };
        assert_eq!(disagreements(&vec![policy(file(), &one), another].into()), []);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_missing() {
        let lists = [
            ("services", "[{\"spec\": 1}]"),
            ("networkpolicies", "[]"),
            ("pods", "[]"),
            ("asked", "\"who\""),
        ];
        let node = RawNode {
            kubernetes: lists.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
            azure: [("load-balancers".to_owned(), "{}".to_owned())].into(),
            ..RawNode::default()
        };
        let mut world = World::default();
        read(&node, &mut world);
        let names: Vec<_> = world.missing.iter().map(|own| own.what.as_str()).collect();
        assert_eq!(names, ["kubernetes/services", "azure/load-balancers"]);
        assert_eq!((world.kubernetes.services, world.kubernetes.pods), (None, Some(List::default())));
        assert_eq!(world.kubernetes.complete, [PolicyKind::NetworkPolicy].into());
        assert_eq!((world.kubernetes.asked.as_deref(), world.private_link.asked), (Some("who"), None));
    }
}
