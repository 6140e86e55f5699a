//! The engine against a plain reading of the same rules, which knows no identities of prefixes, no filters and no entries:
//! it looks at every rule and at the address itself.

use std::net::IpAddr;

use fixtures::Random;
use probe_model::cilium::Direction;
use probe_model::intent::cluster::{Cluster, NamedPortIs};
use probe_model::intent::engine::Engine;
use probe_model::intent::label::Labels;
use probe_model::intent::object::{Part, PeerKind, RuleSubject, read};
use probe_model::intent::port::{PortTerm, RulePort};
use probe_model::intent::{Flow, Pod};
use probe_model::tuple::Protocol;
use serde_json::{Value, json};

use crate::universe::Universe;

const SETS: u64 = 400;
const PORTS: [u16; 6] = [80, 443, 8080, 8443, 9090, 31000];
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::ICMP];
const PREFIXES: [&str; 7] = [
    "10.224.0.8/32",
    "10.224.0.0/24",
    "10.224.0.0/16",
    "10.0.0.0/8",
    "10.244.0.0/16",
    "8.8.8.0/24",
    "0.0.0.0/0",
];
const OUTSIDE: [&str; 6] = ["10.224.0.8", "10.224.0.9", "10.221.1.4", "8.8.8.8", "10.0.0.5", "192.0.2.1"];
const NODES: [&str; 2] = ["10.224.0.4", "10.224.0.5"];

/// A peer as the plain reading has it: an address, and labels if it is not just any address outside.
struct Peer {
    address: IpAddr,
    labels: Option<Labels>,
}

fn means(part: &Part, peer: &Peer) -> bool {
    if part.peers.nobody.is_some() {
        return false;
    }
    let peers = &part.peers.listed;
    let nobody_is_named = peers.iter().all(|one| one.selectors.is_empty());
    if nobody_is_named {
        return part.ports.is_some();
    }
    let world = Labels::parse(["reserved:world"]);
    peers.iter().any(|one| match &one.kind {
        PeerKind::Cidr { cidr, except, .. } => {
            let left_out = except.iter().any(|gone| gone.contains(&peer.address));
            peer.labels.is_none() && cidr.contains(&peer.address) && !left_out
        }
        PeerKind::Labels | PeerKind::Entity(_) => {
            one.selectors.iter().any(|selector| selector.selects(peer.labels.as_ref().unwrap_or(&world)))
        }
    })
}

fn covers(term: &PortTerm, cluster: &Cluster, pod: &Pod, flow: Flow) -> bool {
    let port = match &term.port {
        RulePort::Number { .. } => term.port.range(),
        RulePort::Name(name) => {
            let port = match flow.direction {
                Direction::Ingress => cluster.own_port(pod, name, flow.protocol),
                Direction::Egress => cluster.shared_port(name, flow.protocol),
            };
            if let NamedPortIs::Port(port) = port { Some((port, port)) } else { None }
        }
    };
    term.protocol.protocols().contains(&flow.protocol)
        && port.is_some_and(|(first, last)| (first..=last).contains(&flow.port))
}

/// Whether the rules admit a flow: what is denied is not, else what is allowed is, else what is not enforced is.
fn admits(engine: &Engine, pod: &Pod, peer: &Peer, flow: Flow) -> bool {
    let labels = &engine.cluster().identities[&pod.identity];
    let rules = engine.policies().iter().flat_map(|policy| &policy.rules);
    let selecting = rules.filter(|rule| match &rule.subject {
        RuleSubject::Endpoints(selector) => selector.selects(labels),
        RuleSubject::Nodes(_) => false,
    });
    let sides: Vec<_> = selecting.map(|rule| rule.side(flow.direction)).collect();
    let covers = |part: &Part| {
        part.ports
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| covers(term, engine.cluster(), pod, flow)))
    };
    let matching = |deny: bool| {
        sides
            .iter()
            .flat_map(|side| &side.parts)
            .any(|part| part.deny == deny && means(part, peer) && covers(part))
    };
    let is_local = flow.direction == Direction::Ingress
        && peer.labels.as_ref().is_some_and(|labels| labels.has_reserved("host"));
    !matching(true) && (matching(false) || is_local || !sides.iter().any(|side| side.default_deny))
}

fn ports(random: &mut Random) -> Vec<Value> {
    let protocol = random.one(&["TCP", "UDP", "ANY"]);
    match random.below(4) {
        0 => vec![json!({"port": "0", "protocol": protocol})],
        1 => vec![json!({"port": "8000", "endPort": 9000, "protocol": protocol})],
        2 => vec![json!({"port": random.one(&["http", "metrics", "web"]), "protocol": "TCP"})],
        _ => vec![json!({"port": random.one(&PORTS).to_string(), "protocol": protocol})],
    }
}

fn part(random: &mut Random, preposition: &str) -> Value {
    let mut part = json!({});
    let (list, peers) = match random.below(5) {
        0 => ("CIDR", json!([random.one(&PREFIXES), random.one(&PREFIXES)])),
        1 => (
            "CIDRSet",
            json!([{"cidr": "10.224.0.0/16", "except": [random.one(&["10.224.0.8/32", "10.224.0.0/24"])]}]),
        ),
        2 => (
            "Endpoints",
            random.one(&["[{}]", "[]", r#"[{"matchLabels": {"app": "db"}}]"#]).parse().expect("JSON"),
        ),
        3 => ("Entities", json!([random.one(&["world", "cluster", "host", "remote-node", "all"])])),
        _ => ("", Value::Null),
    };
    if !list.is_empty() {
        part[format!("{preposition}{list}")] = peers;
    }
    match random.below(4) {
        0 => part["icmps"] = json!([{"fields": [{"type": 8, "family": "IPv4"}]}]),
        1 => {}
        _ => part["toPorts"] = json!([{"ports": ports(random)}, {"ports": ports(random)}]),
    }
    part
}

fn policy(random: &mut Random, number: usize) -> Value {
    let selector =
        random.one(&[r#"{}"#, r#"{"matchLabels": {"tier": "front"}}"#, r#"{"matchLabels": {"app": "web"}}"#]);
    let selector: Value = selector.parse().expect("JSON");
    let mut spec = json!({"endpointSelector": selector});
    for (list, preposition) in
        [("ingress", "from"), ("ingressDeny", "from"), ("egress", "to"), ("egressDeny", "to")]
    {
        let parts: Vec<_> = (0..random.below(3)).map(|_| part(random, preposition)).collect();
        if !parts.is_empty() {
            spec[list] = parts.into();
        }
    }
    if random.once_in(4) {
        spec["enableDefaultDeny"] = json!({"ingress": false, "egress": random.once_in(2)});
    }
    let kind = "CiliumClusterwideNetworkPolicy";
    json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": format!("p{number}")}, "spec": spec})
}

fn peers(cluster: &Cluster) -> Vec<Peer> {
    let known = |address: IpAddr| {
        let (_, identity) = cluster.lookup(address);
        Peer { address, labels: cluster.identities.get(&identity).cloned() }
    };
    let pods = cluster.pods.iter().filter_map(|pod| pod.addresses.first().copied());
    let nodes = NODES.iter().map(|text| text.parse().expect("an address"));
    let outside =
        OUTSIDE.iter().map(|text| Peer { address: text.parse().expect("an address"), labels: None });
    pods.chain(nodes).map(known).chain(outside).collect()
}

#[test]
fn intent_is_what_a_plain_reading_of_the_rules_says() {
    let universe = Universe::fixture();
    let mut random = Random::new(0x5eed);
    let (mut compared, mut admitted) = (0, 0);
    for set in 0..SETS {
        let objects: Vec<_> = (0..=random.index(4)).map(|number| policy(&mut random, number)).collect();
        let engine = Engine::new(universe.cluster.clone(), read(&objects, &universe.cluster.options));
        assert_eq!(engine.rejected(), []);
        let peers = peers(&universe.cluster);
        let pod = engine.cluster().pods[random.index(engine.cluster().pods.len())].clone();
        for direction in [Direction::Ingress, Direction::Egress] {
            let intent = engine.judge(&pod, direction);
            for peer in &peers {
                let (_, identity) = engine.cluster().lookup(peer.address);
                for protocol in PROTOCOLS {
                    for port in if protocol == Protocol::ICMP { &[8, 3][..] } else { &PORTS } {
                        let flow = Flow { direction, peer: identity, protocol, port: *port };
                        let plain = admits(&engine, &pod, peer, flow);
                        let found = intent.verdict(identity, protocol, *port).admits();
                        let address = peer.address;
                        assert_eq!(
                            found,
                            plain,
                            "set {set}, {} {direction} {address} {protocol}/{port}: {}",
                            pod.name,
                            json!(objects)
                        );
                        compared += 1;
                        admitted += usize::from(found);
                    }
                }
            }
        }
    }
    assert!(
        compared > 100_000 && admitted > compared / 20 && admitted < compared / 20 * 19,
        "{admitted} of {compared}"
    );
}
