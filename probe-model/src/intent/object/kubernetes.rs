//! `NetworkPolicy` of `networking.k8s.io/v1`, as Cilium reads it.

use super::{Node, Part, Peer, PeerKind, Peers, Reader, Rule, RuleSubject, Side};
use crate::cilium::Direction;
use crate::intent::path::Path;
use crate::intent::selector::{Expression, LabelKey, NAMESPACE, NAMESPACE_LABELS, Selector};

/// The one rule of an object.
pub(super) fn rules(reader: &mut Reader<'_>, object: &serde_json::Value) -> Vec<Rule> {
    let root = Node::root(object);
    let Some(spec) = root.field("spec") else {
        reader.refuse("`spec` is missing");
        return Vec::new();
    };
    let pods = spec.field("podSelector");
    let selector = reader.pod_selector(pods.as_ref());
    let mut ingress = reader.parts(&spec, Direction::Ingress);
    let mut egress = reader.parts(&spec, Direction::Egress);
    let unknown = reader.unknown_fields(&spec, &["podSelector", "policyTypes", "ingress", "egress"]);
    for part in ingress.iter_mut().chain(&mut egress) {
        part.unevaluated.extend(unknown.iter().cloned());
    }
    let types: Vec<_> = spec.field("policyTypes").and_then(|types| types.list()).unwrap_or_default();
    let has_type = |name: &str| types.iter().any(|node| node.text() == Some(name));
    // Rules count whatever the types say; the types only matter where there are no rules.
    let denies_ingress = ingress.is_empty() && (has_type("Ingress") || !has_type("Egress"));
    let denies_egress = egress.is_empty() && has_type("Egress");
    let side = |parts: Vec<Part>, denies: bool| {
        let enforces = denies || !parts.is_empty();
        Side { enforces, default_deny: enforces, parts }
    };
    vec![Rule {
        path: spec.path.clone(),
        subject: RuleSubject::Endpoints(selector),
        ingress: side(ingress, denies_ingress),
        egress: side(egress, denies_egress),
    }]
}

impl Reader<'_> {
    fn parts(&mut self, spec: &Node<'_>, direction: Direction) -> Vec<Part> {
        let (name, peers) = match direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let rules = self.list(spec, name);
        rules.iter().flat_map(|rule| self.parts_of(rule, peers)).collect()
    }

    /// One part for each peer of a rule, or the one of a rule without peers, which means everybody.
    fn parts_of(&mut self, rule: &Node<'_>, peers_name: &'static str) -> Vec<Part> {
        let ports = self.list(rule, "ports");
        let ports = self.kubernetes_ports(&ports);
        let unevaluated = self.unknown_fields(rule, &[peers_name, "ports"]);
        let peers = self.list(rule, peers_name);
        let everybody = || Peer {
            path: rule.path.clone(),
            kind: PeerKind::Labels,
            selectors: vec![Selector::everybody()],
        };
        let listed: Vec<Vec<Peer>> = if peers.is_empty() {
            vec![vec![everybody()]]
        } else {
            peers.iter().map(|peer| self.peer(peer)).collect()
        };
        let part = |peers: Vec<Peer>| Part {
            path: rule.path.clone(),
            deny: false,
            peers: Peers { nobody: None, listed: peers },
            ports: ports.clone(),
            authentication: None,
            unevaluated: unevaluated.clone(),
        };
        listed.into_iter().map(part).collect()
    }

    fn peer(&mut self, node: &Node<'_>) -> Vec<Peer> {
        let mut peers = Vec::new();
        let (namespaces, pods) = (node.field("namespaceSelector"), node.field("podSelector"));
        let labels =
            |selector| Peer { path: node.path.clone(), kind: PeerKind::Labels, selectors: vec![selector] };
        if let Some(namespaces) = &namespaces {
            peers.push(labels(self.namespaced_selector(namespaces, pods.as_ref())));
        } else if pods.is_some() {
            peers.push(labels(self.pod_selector(pods.as_ref())));
        }
        if let Some(block) = node.field("ipBlock") {
            if !peers.is_empty() {
                // The API server refuses it. Cilium has no such check of its own, but cannot combine them either.
                self.refuse(combining("FromEndpoints", "FromCIDRSet", &node.path));
            }
            peers.extend(self.cidr_rule(&block));
        }
        peers
    }

    /// A selector of pods in the policy's own namespace.
    fn pod_selector(&mut self, node: Option<&Node<'_>>) -> Selector {
        let mut selector = node.map(|node| self.selector(node, LabelKey::kubernetes)).unwrap_or_default();
        let namespace = self.policy.namespace.clone().unwrap_or_default();
        selector.require(LabelKey::kubernetes(NAMESPACE), &namespace);
        selector
    }

    /// A selector of namespaces by their labels, and of the pods in them.
    fn namespaced_selector(&mut self, namespaces: &Node<'_>, pods: Option<&Node<'_>>) -> Selector {
        let of_namespace = |key: &str| LabelKey::kubernetes(&format!("{NAMESPACE_LABELS}{key}"));
        let mut selector = self.selector(namespaces, of_namespace);
        if selector.is_everybody() {
            selector.require_namespace();
        }
        if let Some(pods) = pods {
            let Selector { labels, expressions } = self.selector(pods, LabelKey::kubernetes);
            selector.labels.extend(labels);
            selector.expressions.extend::<Vec<Expression>>(expressions);
        }
        selector
    }
}

/// That two ways of naming peers stand in one rule.
pub(super) fn combining(one: &str, other: &str, _at: &Path) -> String {
    format!("Combining {one} and {other} is not supported yet")
}
