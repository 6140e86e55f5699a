//! What is compared by classes and entries, against every class compared on every port that any entry names.

use fixtures::Random;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::*;
use crate::cilium::Direction;
use crate::intent::engine::Engine;
use crate::intent::label::Labels;
use crate::intent::object::{Options, read, read_one};

const SETS: usize = 300;
const PREFIXES: [&str; 8] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.224.0.0/16",
    "10.224.0.0/24",
    "10.224.0.8/32",
    "1.2.3.4/32",
    "8.8.8.0/24",
    "2001:db8::/32",
];
const APPS: [&str; 3] = ["web", "db", "api"];

fn cluster() -> Cluster {
    let mut cluster = Cluster::default().with_reserved();
    for (number, app) in (50_001..).zip(APPS) {
        let labels = [
            format!("k8s:app={app}"),
            "k8s:io.cilium.k8s.policy.cluster=default".to_owned(),
            "k8s:io.kubernetes.pod.namespace=default".to_owned(),
        ];
        let labels = Labels::parse(labels.iter().map(String::as_str));
        cluster.identities.insert(Identity(number), labels);
        let name = PodName { namespace: "default".to_owned(), name: app.to_owned() };
        let identity = Identity(number);
        cluster.pods.push(Pod { name, identity, addresses: Vec::new(), named_ports: None });
    }
    cluster.prefixes.insert("10.224.0.4/32".parse().expect("a prefix"), Identity::REMOTE_NODE);
    cluster
}

fn policy(random: &mut Random, number: usize) -> Value {
    let mut list = |deny: bool| {
        let peers = match random.index(5) {
            0 => json!({"fromEntities": [random.one(&["world", "cluster", "remote-node", "all"])]}),
            1 => json!({"fromEndpoints": [{"matchLabels": {"app": random.one(&APPS)}}]}),
            2 => json!({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": [random.one(&PREFIXES[2..5])]}]}),
            _ => json!({"fromCIDR": [random.one(&PREFIXES), random.one(&PREFIXES)]}),
        };
        let mut rule = peers;
        if !random.once_in(4) {
            let first = random.one(&[80_u16, 443, 8000, 8080]);
            let protocol = random.one(&["TCP", "UDP", "ANY"]);
            let mut port = json!({"port": first.to_string(), "protocol": protocol});
            if random.once_in(3) {
                port["endPort"] = json!(first + random.one(&[1, 15, 100, 7000]));
            }
            rule["toPorts"] = json!([{"ports": [port]}]);
            if !deny && random.once_in(4) {
                rule["authentication"] = json!({"mode": "required"});
            }
        }
        rule
    };
    let (allow, deny) = (list(false), list(true));
    let subject =
        if random.once_in(2) { json!({}) } else { json!({"matchLabels": {"app": random.one(&APPS)}}) };
    let mut spec = json!({"endpointSelector": subject, "ingress": [allow]});
    if random.once_in(3) {
        spec["ingressDeny"] = json!([deny]);
    }
    if random.once_in(6) {
        spec["enableDefaultDeny"] = json!({"ingress": false});
    }
    let metadata = json!({"name": format!("p{number}"), "namespace": "default"});
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
}

/// Every class on every range of ports that any entry of either begins or ends.
fn plain(classes: &Classes, judged: &Judged<'_>) -> Vec<Admitted> {
    let Judged { pod, before, after } = judged;
    let mut admitted = Vec::new();
    for (peers, [was, is]) in &classes.all {
        let mut newly: Vec<Ports> = Vec::new();
        for protocol in PROTOCOLS {
            let named = if protocol == OTHER_PROTOCOLS { Protocol::ANY } else { protocol };
            let keys = before.entries.iter().chain(&after.entries).map(|entry| &entry.key);
            let starts = starts(keys, protocol);
            for (number, first) in starts.iter().enumerate() {
                let last = starts.get(number + 1).map_or(u16::MAX, |next| next - 1);
                let is_admitted =
                    |intent: &DirectionIntent, peer| intent.verdict(peer, protocol, *first).admits();
                if is_admitted(before, *was) || !is_admitted(after, *is) {
                    continue;
                }
                match newly.last_mut() {
                    Some(one) if one.protocol == named && one.last.checked_add(1) == Some(*first) => {
                        one.last = last;
                    }
                    _ => newly.push(Ports { protocol: named, first: *first, last }),
                }
            }
        }
        for peers in classes.regions(*peers) {
            let at = |&Ports { protocol, first, last }: &Ports| Admitted {
                pod: pod.name.clone(),
                peers,
                protocol,
                first,
                last,
            };
            admitted.extend(newly.iter().map(at));
        }
    }
    admitted
}

#[test]
fn comparing_entries_tells_what_comparing_every_class_tells() {
    let mut random = Random::new(0x5eed);
    let options = Options::default();
    let (mut compared, mut found, mut shifted) = (0, 0, 0);
    for set in 0..SETS {
        let objects: Vec<_> = (0..=random.index(4)).map(|number| policy(&mut random, number)).collect();
        let before = Engine::new(cluster(), read(&objects, &options));
        let edited = random.index(objects.len() + 1);
        let Ok(edit) = read_one(edited, &policy(&mut random, edited), &options) else {
            panic!("set {set}: the edit is refused");
        };
        let after = before.with_policy(edit);
        let classes = Classes::new(before.cluster(), after.cluster());
        let moves =
            |(peers, [was, is]): &&(Peers, [Identity; 2])| matches!(peers, Peers::Rest(_)) && was != is;
        shifted += classes.all.iter().filter(moves).count();
        for pod in &before.cluster().pods {
            let (old, new) = (before.judge(pod, Direction::Ingress), after.judge(pod, Direction::Ingress));
            let judged = Judged { pod, before: &old, after: &new };
            let (fast, plain) = (difference(&classes, &judged), plain(&classes, &judged));
            assert_eq!(
                fast,
                plain,
                "set {set}, {}: {} edited to {:?}",
                pod.name,
                json!(objects),
                after.policies()
            );
            compared += 1;
            found += usize::from(!plain.is_empty());
        }
    }
    assert!(found > compared / 5 && found < compared / 5 * 4, "{found} of {compared} differ");
    assert!(shifted > SETS, "{shifted} prefixes have another identity after");
}

#[test]
fn a_new_prefix_before_the_others_changes_nothing_for_them() {
    let objects = |prefixes: &[&str]| {
        let spec = json!({"endpointSelector": {}, "ingress": [{"fromCIDR": prefixes}]});
        let metadata = json!({"name": "p", "namespace": "default"});
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    };
    let options = Options::default();
    let before = Engine::new(cluster(), read(&[objects(&["10.1.0.0/16", "10.2.0.0/16"])], &options));
    let edit = read_one(0, &objects(&["10.1.0.0/16", "10.2.0.0/16", "1.1.1.1/32"]), &options);
    let after = before.with_policy(edit.expect("a policy"));
    let pod = &before.cluster().pods[0];
    let (old, new) = (before.judge(pod, Direction::Ingress), after.judge(pod, Direction::Ingress));
    let classes = Classes::new(before.cluster(), after.cluster());
    let judged = Judged { pod, before: &old, after: &new };
    let one: IpNet = "1.1.1.1/32".parse().expect("a prefix");
    let admitted = difference(&classes, &judged);
    assert!(
        admitted.iter().all(|newly| newly.peers == Peers::Prefix(one)) && admitted.len() == 6,
        "{admitted:?}"
    );
}
