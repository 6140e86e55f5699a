//! The cluster of every case.

use std::net::IpAddr;
use std::path::Path;

use probe_model::cilium::identity::Identity;
use probe_model::intent::cluster::{Cluster, NamedPort, Pod};
use probe_model::intent::label::Labels;
use probe_model::tuple::Protocol;
use probe_model::world::PodName;
use serde_json::Value;

/// The cluster, and what the verdicts were asked for.
pub(crate) struct Universe {
    pub(crate) cluster: Cluster,
    /// Protocol and port of each letter of a verdict.
    pub(crate) ports: Vec<(Protocol, u16)>,
}

/// The text under a name.
pub(crate) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {value}"))
}

/// The number under a name.
pub(crate) fn number<T: TryFrom<u64>>(value: &Value, name: &str) -> T {
    let number = value[name].as_u64().unwrap_or_else(|| panic!("no number `{name}` in {value}"));
    T::try_from(number).unwrap_or_else(|_| panic!("`{name}` is {number} in {value}"))
}

/// The elements of the list under a name, none if it is not there.
pub(crate) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Labels as they are written in a list.
pub(crate) fn labels(list: &Value) -> Labels {
    Labels::parse(list.as_array().expect("labels").iter().filter_map(Value::as_str))
}

fn protocol(value: &Value) -> Protocol {
    Protocol::parse(text(value, "proto")).expect("a protocol")
}

impl Universe {
    /// The fixture's.
    pub(crate) fn fixture() -> Self {
        Self::read(&fixtures::recording("intent-1.16").join("universe.json"))
    }

    pub(crate) fn read(path: &Path) -> Self {
        let json = std::fs::read_to_string(path).expect("the universe");
        let universe: Value = serde_json::from_str(&json).expect("JSON");
        let mut cluster =
            Cluster { pods: list(&universe, "pods").iter().map(pod).collect(), ..Cluster::default() };
        text(&universe, "cluster_name").clone_into(&mut cluster.options.cluster_name);
        for pod in list(&universe, "pods") {
            let identity = Identity(number(pod, "identity"));
            cluster.identities.insert(identity, labels(&pod["identity_labels"]));
            cluster.prefixes.insert(address(text(pod, "ip")).into(), identity);
        }
        let reserved = universe["reserved_identities"].as_object().expect("reserved identities");
        for (identity, names) in reserved {
            cluster.identities.insert(Identity(identity.parse().expect("a number")), labels(names));
        }
        for node in list(&universe, "nodes") {
            cluster.prefixes.insert(address(text(node, "ip")).into(), Identity(number(node, "identity")));
        }
        let api = address(text(&universe["kube_apiserver"], "ip"));
        let own = ["cidr:20.50.60.70/32", "reserved:kube-apiserver", "reserved:world"];
        cluster.identities.insert(Identity(16_777_217), Labels::parse(own));
        cluster.prefixes.insert(api.into(), Identity(16_777_217));
        let ports = list(&universe, "probe_ports").iter();
        Self { cluster, ports: ports.map(|port| (protocol(port), number(port, "port"))).collect() }
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(value: &Value) -> Pod {
    let named = |port: &Value| NamedPort {
        name: text(port, "name").to_owned(),
        protocol: protocol(port),
        port: number(port, "port"),
    };
    Pod {
        name: PodName {
            namespace: text(value, "namespace").to_owned(),
            name: text(value, "name").to_owned(),
        },
        identity: Identity(number(value, "identity")),
        addresses: vec![address(text(value, "ip"))],
        named_ports: Some(list(value, "named_ports").iter().map(named).collect()),
    }
}
