//! What the intent view of one flow costs on a large node: 100 endpoints, 500 policies, 16,384 entries of the pod asked for.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};
use probe_model::cilium::Direction;
use probe_model::cilium::EndpointId;
use probe_model::cilium::identity::Identity;
use probe_model::intent::cluster::Cluster;
use probe_model::intent::edit::{Wanted, edits};
use probe_model::intent::engine::{Engine, Flow};
use probe_model::intent::object::{Options, read};
use probe_model::tuple::Protocol;
use probe_model::world::{Endpoint, PodName, World};
use serde_json::{Value, json};

const ENDPOINTS: u16 = 100;
const POLICIES: u32 = 500;
/// Policies of those that select the pod asked for: with 64 prefixes and 16 ports each they fill its map.
const OWN: u32 = 16;

criterion_group!(benches, intent);
criterion_main!(benches);

fn world() -> World {
    let endpoint = |number: u16| {
        let labels = [
            format!("k8s:app=app-{number}"),
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default".to_owned(),
            "k8s:io.cilium.k8s.policy.cluster=default".to_owned(),
            "k8s:io.cilium.k8s.policy.serviceaccount=default".to_owned(),
            "k8s:io.kubernetes.pod.namespace=default".to_owned(),
        ];
        let endpoint = Endpoint {
            id: EndpointId(number),
            identity: Identity(50_000 + u32::from(number)),
            pod: Some(PodName { namespace: "default".to_owned(), name: format!("app-{number}") }),
            labels: labels.to_vec(),
            addresses: Vec::new(),
            interface: None,
            policy: None,
        };
        (endpoint.id, endpoint)
    };
    World { endpoints: (0..ENDPOINTS).map(endpoint).collect(), ..World::default() }
}

/// The prefix of this number: each another one.
fn prefix(number: u32) -> String {
    format!("{}/24", Ipv4Addr::from_bits(0x0a00_0000 + (number << 8)))
}

/// Policies of some prefixes and ports each; with `denies`, every second one denies.
fn objects(denies: bool) -> Vec<Value> {
    let object = |number: u32| {
        let app = if number < OWN { 0 } else { 1 + number % (u32::from(ENDPOINTS) - 1) };
        let (prefixes, ports) = if number < OWN { (64, 16) } else { (4, 2) };
        let prefixes: Vec<_> =
            (0..prefixes).map(|at| json!({"cidr": prefix(number % 64 * 64 + at)})).collect();
        let ports: Vec<_> =
            (0..ports).map(|at| json!({"port": (8000 + at).to_string(), "protocol": "TCP"})).collect();
        let list = if denies && number % 2 == 1 { "ingressDeny" } else { "ingress" };
        let rule = json!({"fromCIDRSet": prefixes, "toPorts": [{"ports": ports}]});
        let metadata = json!({"name": format!("policy-{number}"), "namespace": "default"});
        let selector = json!({"matchLabels": {"app": format!("app-{app}")}});
        let spec = json!({"endpointSelector": selector, list: [rule]});
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
    };
    (0..POLICIES).map(object).collect()
}

fn intent(criterion: &mut Criterion) {
    let world = world();
    let flow = |engine: &Engine| {
        let address = Ipv4Addr::new(192, 0, 2, 1).into();
        let (_, peer) = engine.cluster().lookup(address);
        (Flow { direction: Direction::Ingress, peer, protocol: Protocol::TCP, port: 8003 }, address)
    };
    let mut group = criterion.benchmark_group("intent");
    group.sample_size(20);
    for denies in [false, true] {
        let objects = objects(denies);
        let engine = || {
            let cluster = Cluster::from_world(&world, Options::default());
            let read = read(black_box(&objects), &cluster.options);
            Engine::new(cluster, read)
        };
        let made = engine();
        let pod = made.cluster().pod("default", "app-0").expect("the pod").clone();
        let (flow, address) = flow(&made);
        assert_eq!(made.judge(&pod, Direction::Ingress).entries.len(), 16_384 + 1, "with the node's own");
        let with = if denies { ", half of them denies" } else { "" };
        group.bench_function(format!("read the objects and apply them{with}"), |bench| bench.iter(engine));
        group.bench_function(format!("why not, on it{with}"), |bench| {
            bench.iter(|| engine().why(&pod, black_box(flow), Some(address)));
        });
        // The prefix of an address before all others gets the first number, and theirs move.
        for (place, address) in [("after", address), ("before", Ipv4Addr::new(1, 2, 3, 4).into())] {
            let wanted = Wanted { pod: &pod, flow, address: Some(address), wider: Vec::new() };
            assert_eq!(edits(&made, &objects, &wanted).len(), 2, "of one kind");
            group.bench_function(format!("edits for an address {place} all others{with}"), |bench| {
                bench.iter(|| edits(&made, &objects, black_box(&wanted)));
            });
        }
    }
    group.finish();
}
