//! Why a flow is not admitted, and which edits admit it, in the fixture's cluster.

use std::net::IpAddr;

use expect_test::{Expect, expect};
use ipnet::IpNet;
use probe_model::cilium::Direction;
use probe_model::intent::admitted::lines;
use probe_model::intent::edit::{Wanted, edits};
use probe_model::intent::engine::{Engine, Flow};
use probe_model::intent::object::read;
use probe_model::intent::why::Why;
use probe_model::tuple::Protocol;
use serde_json::{Value, json};

use crate::universe::Universe;

/// A question in the fixture's cluster.
struct Asked {
    engine: Engine,
    objects: Vec<Value>,
    wider: Vec<IpNet>,
    pod: &'static str,
    flow: Flow,
    address: IpAddr,
}

/// `ingress default/pls-app 10.224.0.8 TCP/8080` of these objects.
fn ask(
    objects: Vec<Value>,
    pod: &'static str,
    direction: Direction,
    address: &str,
    protocol: Protocol,
    port: u16,
) -> Asked {
    let universe = Universe::fixture();
    let engine = Engine::new(universe.cluster.clone(), read(&objects, &universe.cluster.options));
    assert_eq!(engine.rejected(), []);
    let address: IpAddr = address.parse().expect("an address");
    let (_, peer) = engine.cluster().lookup(address);
    let flow = Flow { direction, peer, protocol, port };
    Asked { engine, objects, wider: Vec::new(), pod, flow, address }
}

impl Asked {
    fn pod(&self) -> &probe_model::intent::Pod {
        let (namespace, name) = self.pod.split_once('/').expect("namespace/name");
        self.engine.cluster().pod(namespace, name).expect("a pod")
    }

    fn why(&self) -> Why {
        self.engine.why(self.pod(), self.flow, Some(self.address))
    }

    /// The answer as text.
    fn check_why(&self, expected: &Expect) {
        let why = self.why();
        let mut text = vec![format!("{:?}, enforced: {}", why.verdict, why.enforced)];
        for part in &why.enforced_by {
            text.push(format!("enforced by {part}"));
        }
        for policy in &why.other_direction_only {
            text.push(format!("other direction only: {policy}"));
        }
        for (word, hits) in [("admitted", &why.admits), ("denied", &why.denies)] {
            for hit in hits {
                let place = |path: &Option<_>| path.as_ref().map_or("-".to_owned(), ToString::to_string);
                text.push(format!("{word} by {}: {}, {}", hit.part, place(&hit.peer), place(&hit.port)));
            }
        }
        for miss in &why.misses {
            for failed in &miss.failed {
                text.push(format!("{} of {}: {failed} ({})", miss.failed.len(), miss.part, failed.path));
            }
        }
        for unevaluated in &why.unevaluated {
            text.push(format!("not evaluated: {unevaluated}"));
        }
        expected.assert_eq(&(text.join("\n") + "\n"));
    }

    /// The edits, with what else they admit, and the YAML of the first.
    fn check_edits(&self, expected: &Expect) {
        let wanted = Wanted {
            pod: self.pod(),
            flow: self.flow,
            address: Some(self.address),
            wider: self.wider.clone(),
        };
        let edits = edits(&self.engine, &self.objects, &wanted);
        let mut text = Vec::new();
        for edit in &edits {
            text.push(format!("{:?} {}, {}: {}", edit.kind, edit.policy, edit.path, edit.summary));
            for line in lines(self.engine.cluster(), &edit.admits_also) {
                text.push(format!("  also {line}"));
            }
            assert!(edit.verdict.admits());
        }
        text.extend(edits.first().map(|edit| edit.yaml.clone()));
        expected.assert_eq(&text.join("\n"));
    }
}

fn network_policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": "default"});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

fn cilium_policy(name: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": "default"});
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})
}

fn pls_app() -> Value {
    json!({"matchLabels": {"app": "pls-app"}})
}

#[test]
fn a_nat_address_that_no_rule_names() {
    let objects = vec![
        network_policy(
            "consumers",
            &json!({"podSelector": pls_app(), "ingress": [
                {"from": [{"ipBlock": {"cidr": "10.221.1.0/24"}}], "ports": [{"port": 8080}]},
            ]}),
        ),
        network_policy("deny-all", &json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
    ];
    let mut asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080);
    asked.wider.push("10.224.0.0/24".parse().expect("a prefix"));
    asked.check_why(&expect![[r#"
        DefaultDeny, enforced: true
        enforced by NetworkPolicy default/consumers, spec
        enforced by NetworkPolicy default/deny-all, spec
        1 of NetworkPolicy default/consumers, spec.ingress[0]: the source is world at 10.224.0.8, the rule wants CIDR 10.221.1.0/24 (spec.ingress[0].from[0].ipBlock)
    "#]]);
    asked.check_edits(&expect![[r#"
        Widen NetworkPolicy default/consumers, spec.ingress[0].from: adds CIDR 10.224.0.8/32 to the peers of spec.ingress[0]
        Widen NetworkPolicy default/consumers, spec.ingress[0].from: adds CIDR 10.224.0.0/24 to the peers of spec.ingress[0]
          also CIDR 10.224.0.0/24 on TCP/8080 at default/pls-app
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: consumers
          namespace: default
        spec:
          ingress:
          - from:
            - ipBlock:
                cidr: "10.221.1.0/24"
            - ipBlock:
                cidr: "10.224.0.8/32"
            ports:
            - port: 8080
          podSelector:
            matchLabels:
              app: pls-app
    "#]]);
}

#[test]
fn a_rule_more_where_none_is_near() {
    let objects = vec![
        network_policy(
            "consumers",
            &json!({"podSelector": pls_app(), "ingress": [
                {"from": [{"ipBlock": {"cidr": "10.221.1.0/24"}}], "ports": [{"port": 443}]},
            ]}),
        ),
        network_policy("deny-all", &json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
    ];
    let mut asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080);
    asked.wider.push("10.224.0.0/24".parse().expect("a prefix"));
    asked.check_edits(&expect![[r#"
        AddRule NetworkPolicy default/consumers, spec.ingress: adds a rule for CIDR 10.224.0.8/32 on TCP/8080
        AddRule NetworkPolicy default/consumers, spec.ingress: adds a rule for CIDR 10.224.0.0/24 on TCP/8080
          also CIDR 10.224.0.0/24 on TCP/8080 at default/pls-app
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: consumers
          namespace: default
        spec:
          ingress:
          - from:
            - ipBlock:
                cidr: "10.221.1.0/24"
            ports:
            - port: 443
          - from:
            - ipBlock:
                cidr: "10.224.0.8/32"
            ports:
            - port: 8080
              protocol: TCP
          podSelector:
            matchLabels:
              app: pls-app
    "#]]);
    // Without the objects no rule can be edited.
    asked.objects.clear();
    asked.check_edits(&expect![[r#"
        NewPolicy NetworkPolicy default/allow-ingress-pls-app, spec: a new policy that admits CIDR 10.224.0.8/32 on TCP/8080
        NewPolicy NetworkPolicy default/allow-ingress-pls-app, spec: a new policy that admits CIDR 10.224.0.0/24 on TCP/8080
          also CIDR 10.224.0.0/24 on TCP/8080 at default/pls-app
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: allow-ingress-pls-app
          namespace: default
        spec:
          ingress:
          - from:
            - ipBlock:
                cidr: "10.224.0.8/32"
            ports:
            - port: 8080
              protocol: TCP
          podSelector:
            matchLabels:
              app: pls-app
              tier: front
          policyTypes:
          - Ingress
    "#]]);
}

#[test]
fn a_service_port_in_a_rule() {
    let objects = vec![network_policy(
        "web",
        &json!({"podSelector": {}, "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.224.0.0/24"}}], "ports": [{"port": 80}, {"port": 8000, "endPort": 8010}]},
        ]}),
    )];
    let asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080);
    asked.check_why(&expect![[r#"
        DefaultDeny, enforced: true
        enforced by NetworkPolicy default/web, spec
        1 of NetworkPolicy default/web, spec.ingress[0]: the rule names ports 8000-8010 (endPort), the packet is for 8080 (spec.ingress[0].ports[1])
    "#]]);
    asked.check_edits(&expect![[r#"
        Widen NetworkPolicy default/web, spec.ingress[0].ports: adds TCP/8080 to the ports of spec.ingress[0]
          also CIDR 10.224.0.0/24 on TCP/8080 at default/db and 2 more pods
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: web
          namespace: default
        spec:
          ingress:
          - from:
            - ipBlock:
                cidr: "10.224.0.0/24"
            ports:
            - port: 80
            - endPort: 8010
              port: 8000
            - port: 8080
              protocol: TCP
          podSelector: {}
    "#]]);
}

#[test]
fn a_node_that_no_cidr_rule_matches() {
    let objects = vec![network_policy(
        "nodes",
        &json!({"podSelector": pls_app(), "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.224.0.0/24"}}], "ports": [{"port": 8080}]},
        ]}),
    )];
    let asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.4", Protocol::TCP, 8080);
    asked.check_why(&expect![[r#"
        DefaultDeny, enforced: true
        enforced by NetworkPolicy default/nodes, spec
        1 of NetworkPolicy default/nodes, spec.ingress[0]: the source is another node (remote-node) at 10.224.0.4, the rule wants CIDR 10.224.0.0/24; CIDR rules never match a node or a pod, whatever its address (spec.ingress[0].from[0].ipBlock)
    "#]]);
    asked.check_edits(&expect![[r#"
        NewPolicy CiliumNetworkPolicy default/allow-ingress-pls-app, spec: a new policy that admits entity remote-node on TCP/8080
          also the node of the API server (kube-apiserver) on TCP/8080 at default/pls-app
        apiVersion: cilium.io/v2
        kind: CiliumNetworkPolicy
        metadata:
          name: allow-ingress-pls-app
          namespace: default
        spec:
          endpointSelector:
            matchLabels:
              app: pls-app
              tier: front
          ingress:
          - fromEntities:
            - remote-node
            toPorts:
            - ports:
              - port: "8080"
                protocol: TCP
    "#]]);
}

#[test]
fn an_exception() {
    let objects = vec![network_policy(
        "block",
        &json!({"podSelector": pls_app(), "ingress": [
            {"from": [{"ipBlock": {"cidr": "10.224.0.0/16", "except": ["10.224.0.8/31"]}}]},
        ]}),
    )];
    let asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080);
    asked.check_why(&expect![[r#"
        DefaultDeny, enforced: true
        enforced by NetworkPolicy default/block, spec
        1 of NetworkPolicy default/block, spec.ingress[0]: the source 10.224.0.8 is in 10.224.0.0/16, but the rule leaves out 10.224.0.8/31 (spec.ingress[0].from[0].ipBlock.except[0])
    "#]]);
    asked.check_edits(&expect![[r#"
        Except NetworkPolicy default/block, spec.ingress[0].from[0].ipBlock.except: takes 10.224.0.8 out of the exception 10.224.0.8/31
          also 10.224.0.8 on other protocols, ICMP, TCP, UDP, ICMPv6, SCTP at default/pls-app
        Except NetworkPolicy default/block, spec.ingress[0].from[0].ipBlock.except: removes the exception 10.224.0.8/31
          also CIDR 10.224.0.8/31 on other protocols, ICMP, TCP, UDP, ICMPv6, SCTP at default/pls-app
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: block
          namespace: default
        spec:
          ingress:
          - from:
            - ipBlock:
                cidr: "10.224.0.0/16"
                except:
                - "10.224.0.9/32"
          podSelector:
            matchLabels:
              app: pls-app
    "#]]);
}

#[test]
fn an_explicit_deny() {
    let objects = vec![cilium_policy(
        "deny",
        &json!({"endpointSelector": pls_app(),
            "ingress": [{"fromEntities": ["world"], "toPorts": [{"ports": [{"port": "http"}]}]}],
            "ingressDeny": [{"fromCIDR": ["10.0.0.0/8", "8.8.8.8"]}],
        }),
    )];
    let asked = ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080);
    asked.check_why(&expect![[r#"
        Denied, enforced: true
        enforced by CiliumNetworkPolicy default/deny, spec
        admitted by CiliumNetworkPolicy default/deny, spec.ingress[0]: spec.ingress[0].fromEntities[0], spec.ingress[0].toPorts[0].ports[0]
        denied by CiliumNetworkPolicy default/deny, spec.ingressDeny[0]: spec.ingressDeny[0].fromCIDR[0], -
    "#]]);
    asked.check_edits(&expect![[r#"
        Except CiliumNetworkPolicy default/deny, spec.ingressDeny[0]: takes 10.224.0.8 out of what spec.ingressDeny[0] denies
        apiVersion: cilium.io/v2
        kind: CiliumNetworkPolicy
        metadata:
          name: deny
          namespace: default
        spec:
          endpointSelector:
            matchLabels:
              app: pls-app
          ingress:
          - fromEntities:
            - world
            toPorts:
            - ports:
              - port: http
          ingressDeny:
          - fromCIDRSet:
            - cidr: "10.0.0.0/8"
              except:
              - "10.224.0.8/32"
            - cidr: "8.8.8.8/32"
    "#]]);
}

#[test]
fn a_named_port_that_the_pod_does_not_name() {
    let objects = vec![network_policy(
        "named",
        &json!({"podSelector": {}, "ingress": [
            {"ports": [{"port": "web"}, {"port": "http", "protocol": "UDP"}]},
        ]}),
    )];
    ask(objects, "default/pls-app", Direction::Ingress, "10.224.0.8", Protocol::TCP, 8080)
        .check_why(&expect![[r#"
            DefaultDeny, enforced: true
            enforced by NetworkPolicy default/named, spec
            1 of NetworkPolicy default/named, spec.ingress[0]: the rule names port `web`, but default/pls-app names no port `web`, the packet is for 8080 (spec.ingress[0].ports[0])
        "#]]);
}

#[test]
fn a_pod_as_the_peer() {
    let objects = vec![cilium_policy(
        "db",
        &json!({"endpointSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "my-nginx"}}], "toPorts": [{"ports": [{"port": "5432", "protocol": "TCP"}]}]}],
        }),
    )];
    let asked = ask(objects, "default/db", Direction::Ingress, "10.244.1.10", Protocol::TCP, 5432);
    asked.check_why(&expect![[r#"
        DefaultDeny, enforced: true
        enforced by CiliumNetworkPolicy default/db, spec
        1 of CiliumNetworkPolicy default/db, spec.ingress[0]: the source is pod default/pls-app at 10.244.1.10, the rule wants pods with app=my-nginx in namespace default (spec.ingress[0].fromEndpoints[0])
    "#]]);
    asked.check_edits(&expect![[r#"
        Widen CiliumNetworkPolicy default/db, spec.ingress[0].fromEndpoints: adds pod default/pls-app to the peers of spec.ingress[0]
        apiVersion: cilium.io/v2
        kind: CiliumNetworkPolicy
        metadata:
          name: db
          namespace: default
        spec:
          endpointSelector:
            matchLabels:
              app: db
          ingress:
          - fromEndpoints:
            - matchLabels:
                app: my-nginx
            - matchLabels:
                app: pls-app
                "k8s:io.kubernetes.pod.namespace": default
                tier: front
            toPorts:
            - ports:
              - port: "5432"
                protocol: TCP
    "#]]);
}

#[test]
fn an_allow_and_the_other_direction() {
    let objects = vec![network_policy(
        "egress",
        &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "8.8.8.0/24"}}], "ports": [{"port": 53, "protocol": "UDP"}]},
        ]}),
    )];
    ask(objects.clone(), "default/pls-app", Direction::Ingress, "8.8.8.8", Protocol::TCP, 8080).check_why(
        &expect![[r#"
            Allowed, enforced: false
            other direction only: NetworkPolicy default/egress
        "#]],
    );
    ask(objects.clone(), "default/pls-app", Direction::Egress, "8.8.8.8", Protocol::UDP, 53)
        .check_why(&expect![[r#"
            Allowed, enforced: true
            enforced by NetworkPolicy default/egress, spec
            admitted by NetworkPolicy default/egress, spec.egress[0]: spec.egress[0].to[0].ipBlock, spec.egress[0].ports[0]
        "#]]);
    ask(objects, "default/pls-app", Direction::Egress, "8.8.8.8", Protocol::ICMP, 8)
        .check_why(&expect![[r#"
            DefaultDeny, enforced: true
            enforced by NetworkPolicy default/egress, spec
            1 of NetworkPolicy default/egress, spec.egress[0]: the rule names UDP, the packet is ICMP (spec.egress[0].ports[0])
        "#]]);
}

#[test]
fn what_is_not_evaluated_is_said_where_it_matters() {
    let objects = vec![cilium_policy(
        "names",
        &json!({"endpointSelector": {}, "egress": [
        {"toFQDNs": [{"matchName": "example.com"}], "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}]},
        {"toCIDRSet": [{"cidrGroupRef": "group"}]},
        {"toEndpoints": [{}]},
    ], "tier": 3}),
    )];
    ask(objects.clone(), "default/pls-app", Direction::Egress, "8.8.8.8", Protocol::TCP, 443)
        .check_why(&expect![[r#"
            DefaultDeny, enforced: true
            enforced by CiliumNetworkPolicy default/names, spec
            1 of CiliumNetworkPolicy default/names, spec.egress[2]: the destination is world at 8.8.8.8, the rule wants any pod in namespace default (spec.egress[2].toEndpoints[0])
            not evaluated: CiliumNetworkPolicy default/names, spec.egress[0].toFQDNs: the addresses that Cilium has seen for these names are not known
            not evaluated: CiliumNetworkPolicy default/names, spec.egress[1].toCIDRSet[0].cidrGroupRef: the addresses of a CiliumCIDRGroup are not known
            not evaluated: CiliumNetworkPolicy default/names, spec.tier: plsprobe does not know the field `tier`
        "#]]);
    ask(objects.clone(), "default/pls-app", Direction::Egress, "8.8.8.8", Protocol::TCP, 80)
        .check_why(&expect![[r#"
            DefaultDeny, enforced: true
            enforced by CiliumNetworkPolicy default/names, spec
            1 of CiliumNetworkPolicy default/names, spec.egress[2]: the destination is world at 8.8.8.8, the rule wants any pod in namespace default (spec.egress[2].toEndpoints[0])
            not evaluated: CiliumNetworkPolicy default/names, spec.egress[1].toCIDRSet[0].cidrGroupRef: the addresses of a CiliumCIDRGroup are not known
            not evaluated: CiliumNetworkPolicy default/names, spec.tier: plsprobe does not know the field `tier`
        "#]]);
    ask(objects, "default/pls-app", Direction::Egress, "10.244.1.11", Protocol::TCP, 80)
        .check_why(&expect![[r#"
            Allowed, enforced: true
            enforced by CiliumNetworkPolicy default/names, spec
            admitted by CiliumNetworkPolicy default/names, spec.egress[2]: spec.egress[2].toEndpoints[0], -
            not evaluated: CiliumNetworkPolicy default/names, spec.tier: plsprobe does not know the field `tier`
        "#]]);
}
