//! The agent's rules of the recordings, against the policy maps of the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fixtures::Scenario;
use ipnet::IpNet;
use probe_model::cilium::Direction;
use probe_model::cilium::entries::Entries;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::Ipcache;
use probe_model::cilium::policy::{PolicyKey, PolicyLayout, PolicyMap, pin_name};
use probe_model::cilium::{Direction::Ingress, EndpointId};
use probe_model::intent::cluster::Cluster;
use probe_model::intent::engine::{Engine, IntentEntry};
use probe_model::intent::entries::Origin;
use probe_model::intent::object::{Options, read_agent_rules};
use probe_model::world::{Endpoint, PodName, World};
use serde_json::Value;

use crate::universe::{number, text};

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// A map as `bpftool map dump -j` writes it.
fn entries(path: &Path) -> Entries {
    let bytes = |list: &Value| -> Vec<u8> {
        let digits = list.as_array().expect("bytes").iter().map(|byte| byte.as_str().expect("a byte"));
        digits.map(|digits| u8::from_str_radix(digits.trim_start_matches("0x"), 16).expect("hex")).collect()
    };
    let dump = json(path);
    let dump = dump.as_array().expect("entries").iter();
    Entries::collect(dump.map(|entry| (bytes(&entry["key"]), bytes(&entry["value"]))))
        .expect("entries of one size")
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|text| text.as_str().expect("a label").to_owned()).collect()
}

/// What the constructor of a cluster reads of a node.
fn world(scenario: &Path) -> World {
    let identities = json(&scenario.join("rest/identity.json"));
    let identities = identities.as_array().expect("identities").iter();
    let endpoints = json(&scenario.join("rest/endpoint.json"));
    let endpoint = |value: &Value| {
        let status = &value["status"];
        let id = EndpointId(number(value, "id"));
        let pod = status["external-identifiers"]["k8s-pod-name"].as_str().map(|name| PodName {
            namespace: text(&status["external-identifiers"], "k8s-namespace").to_owned(),
            name: name.to_owned(),
        });
        let identity = Identity(number(&status["identity"], "id"));
        let labels = texts(&status["identity"]["labels"]);
        (id, Endpoint { id, identity, pod, labels, addresses: Vec::new(), interface: None, policy: None })
    };
    World {
        identities: identities.map(|one| (Identity(number(one, "id")), texts(&one["labels"]))).collect(),
        endpoints: endpoints.as_array().expect("endpoints").iter().map(endpoint).collect(),
        ipcache: Some(
            Ipcache::decode(&entries(&scenario.join("maps/cilium_ipcache.json"))).expect("an ipcache"),
        ),
        ..World::default()
    }
}

/// Key without what a prefix leaves open, and whether it denies.
type Row = (PolicyKey, bool);

fn check(scenario: &Scenario) -> usize {
    let world = world(&scenario.path);
    let cluster = Cluster::from_world(&world, Options::default());
    let policy = json(&scenario.path.join("rest/policy.json"));
    let rules: Value = serde_json::from_str(text(&policy, "policy")).expect("rules");
    let known: BTreeSet<IpNet> = cluster.prefixes.keys().copied().collect();
    let rules = read_agent_rules(rules.as_array().map(Vec::as_slice).unwrap_or_default(), &cluster.options);
    let engine = Engine::new(cluster, rules);
    let now: BTreeSet<IpNet> = engine.cluster().prefixes.keys().copied().collect();
    assert_eq!(known, now, "{scenario:?}: the agent has an identity for each prefix of its policies already");
    assert_eq!((engine.rejected(), engine.unread()), (&[][..], &[][..]), "{scenario:?}");
    let mut compared = 0;
    for endpoint in world.endpoints.values().filter(|endpoint| !endpoint.is_host()) {
        let name = endpoint.pod.as_ref().expect("a pod");
        let pod = engine.cluster().pod(&name.namespace, &name.name).expect("the same pod");
        let file = scenario.path.join("maps").join(format!("{}.json", pin_name(endpoint.id)));
        let map = PolicyMap::decode(PolicyLayout::WildcardBits, &entries(&file)).expect("a policy map");
        let expected: BTreeMap<_, _> = map.iter().map(|(key, entry)| (key, entry.deny())).collect();
        let judged = [Ingress, Direction::Egress].map(|direction| engine.judge(pod, direction));
        assert!(judged.iter().all(|intent| intent.unevaluated.is_empty()), "{scenario:?}");
        let entries = judged.iter().flat_map(|intent| &intent.entries);
        // 1.14 has no entry that spells out that the node needs no authentication for a port that is open to all.
        let is_new = |entry: &&IntentEntry| {
            let origins = &entry.entry.derived_from;
            scenario.recording != "cilium-1.16" && origins.contains(&Origin::Localhost) && origins.len() > 1
        };
        let entries = entries.filter(|entry| !is_new(entry));
        let found: BTreeMap<_, _> = entries.map(|entry| -> Row { (entry.key, entry.entry.deny) }).collect();
        assert_eq!(found, expected, "{} of {scenario:?}", endpoint.name());
        compared += found.len();
    }
    compared
}

#[test]
fn the_agents_rules_come_to_the_policy_maps_of_the_same_moment() {
    let recordings = ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"];
    let scenarios: Vec<_> = recordings.iter().flat_map(|name| fixtures::scenarios(name)).collect();
    assert_eq!(scenarios.len(), 28);
    let compared: usize = scenarios.iter().map(check).sum();
    assert!(compared > 150, "{compared} entries");
}
