//! Against the recorded agent.
use std::collections::BTreeSet;
use std::fs;

use super::*;
use crate::addresses::ROUTER;

fn answers(scenario: &str) -> Answers {
    Answers::new(Scenario::named(scenario).unwrap(), Shape::Kpr, ROUTER, 1).unwrap()
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
