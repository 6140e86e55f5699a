//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` of `cilium.io/v2`, and the rules that they hold.

use serde_json::Value;

use super::ports::L7;
use super::{
    Authentication, Effect, Node, Part, Peer, PeerKind, Peers, Reader, Rule, RuleSubject, Side, Unevaluated,
};
use crate::cilium::Direction;
use crate::intent::port::PortTerm;
use crate::intent::selector::{Expression, LabelKey, NAMESPACE, Operator, Selector, entity};

/// The rules of an object: its `spec`, then its `specs`.
pub(super) fn rules(reader: &mut Reader<'_>, object: &Value) -> Vec<Rule> {
    let root = Node::root(object);
    let kind = reader.policy.kind.clone();
    if reader.policy.name.is_empty() {
        reader.refuse(format!("{kind} must have name"));
    }
    let (spec, specs) = (root.field("spec"), root.field("specs"));
    if spec.is_none() && specs.is_none() {
        reader.refuse(format!("Invalid {kind} spec(s): empty policy"));
    }
    let mut rules = Vec::new();
    let list = specs.and_then(|specs| specs.list()).unwrap_or_default();
    let all = spec.iter().map(|spec| ("spec", spec)).chain(list.iter().map(|spec| ("specs", spec)));
    for (field, node) in all {
        let before = reader.reasons.len();
        let scope = match (kind.as_str(), reader.policy.namespace.clone()) {
            ("CiliumClusterwideNetworkPolicy", _) | (_, None) => Scope::Clusterwide,
            (_, Some(namespace)) => Scope::Namespace(namespace),
        };
        rules.extend(reader.rule(node, &scope));
        for reason in &mut reader.reasons[before..] {
            *reason = format!("Invalid {kind} {field}: {reason}");
        }
    }
    rules
}

/// Where a rule's selectors look for pods.
pub(super) enum Scope {
    /// In the policy's namespace, unless they name one.
    Namespace(String),
    /// In every namespace.
    Clusterwide,
    /// As the selectors say: the agent has added the namespace already.
    AsWritten,
}

/// The lists of one direction, allowing and denying.
struct Words {
    direction: Direction,
    allow: &'static str,
    deny: &'static str,
    /// What the names of its peers' lists begin with.
    preposition: &'static str,
}

const WORDS: [Words; 2] = [
    Words { direction: Direction::Ingress, allow: "ingress", deny: "ingressDeny", preposition: "from" },
    Words { direction: Direction::Egress, allow: "egress", deny: "egressDeny", preposition: "to" },
];

/// What plsprobe knows of a rule, and needs not evaluate.
const RULE_FIELDS: [&str; 10] = [
    "endpointSelector",
    "nodeSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "labels",
    "description",
    "log",
];

impl Reader<'_> {
    /// Reads one rule; none where it is too broken to say more than that.
    pub(super) fn rule(&mut self, node: &Node<'_>, scope: &Scope) -> Option<Rule> {
        let subject = self.subject(node, scope)?;
        let is_host = matches!(subject, RuleSubject::Nodes(_));
        let init = matches!(&subject, RuleSubject::Endpoints(selector) if selects_init(selector));
        let mut sides = WORDS.iter().map(|words| self.side(node, words, scope, init, is_host));
        let (mut ingress, mut egress) = (sides.next()?, sides.next()?);
        drop(sides);
        let unknown = self.unknown_fields(node, &RULE_FIELDS);
        for part in ingress.parts.iter_mut().chain(&mut egress.parts) {
            part.unevaluated.extend(unknown.iter().cloned());
        }
        Some(Rule { path: node.path.clone(), subject, ingress, egress })
    }

    fn subject(&mut self, node: &Node<'_>, scope: &Scope) -> Option<RuleSubject> {
        match (node.field("endpointSelector"), node.field("nodeSelector")) {
            (Some(endpoints), None) => {
                let mut selector = self.selector(&endpoints, LabelKey::parse);
                if let Scope::Namespace(namespace) = scope {
                    selector.require(LabelKey::kubernetes(NAMESPACE), namespace);
                }
                Some(RuleSubject::Endpoints(selector))
            }
            (None, Some(nodes)) => {
                if matches!(scope, Scope::Namespace(_)) {
                    self.refuse("rule cannot have NodeSelector");
                }
                Some(RuleSubject::Nodes(self.selector(&nodes, LabelKey::parse)))
            }
            (None, None) => {
                self.refuse("rule must have one of EndpointSelector or NodeSelector");
                None
            }
            (Some(_), Some(_)) => {
                self.refuse("rule cannot have both EndpointSelector and NodeSelector");
                None
            }
        }
    }

    fn side(&mut self, node: &Node<'_>, words: &Words, scope: &Scope, init: bool, is_host: bool) -> Side {
        let mut parts = Vec::new();
        for (name, deny) in [(words.allow, false), (words.deny, true)] {
            for element in self.list(node, name) {
                let before = self.reasons.len();
                let mut part = self.part(&element, words, deny, scope, init, is_host);
                if deny {
                    self.leave_out_wrong(&mut part, before);
                }
                parts.push(part);
            }
        }
        let switch = node.field("enableDefaultDeny").and_then(|switch| switch.field(words.allow));
        let default_deny = switch.and_then(|switch| switch.value.as_bool()).unwrap_or(true);
        Side { enforces: !parts.is_empty(), default_deny: default_deny && !parts.is_empty(), parts }
    }

    /// Cilium 1.16 does not check denying rules: it takes peers named in several ways together, and leaves out what it
    /// cannot read.
    fn leave_out_wrong(&mut self, part: &mut Part, before: usize) {
        for reason in self.reasons.split_off(before) {
            if !reason.starts_with("Combining") {
                let why = format!(
                    "Cilium does not check denying rules, and leaves out what it cannot read: {reason}"
                );
                part.unevaluated.push(self.unevaluated(part.path.clone(), why, Effect::Denies));
            }
        }
    }

    fn part(
        &mut self,
        node: &Node<'_>,
        words: &Words,
        deny: bool,
        scope: &Scope,
        init: bool,
        is_host: bool,
    ) -> Part {
        let ingress = words.direction == Direction::Ingress;
        let effect = if deny { Effect::Denies } else { Effect::Admits };
        self.check_combination(node, words);
        let mut unevaluated = self.unevaluated_peers(node, words, effect);
        let peers = self.peers(node, words, scope, init, effect, &mut unevaluated);
        let ports = self.ports(node, ingress, is_host);
        let name = |suffix: &str| format!("{}{suffix}", words.preposition);
        let known: Vec<_> = PEER_LISTS.iter().chain(&UNEVALUATED_LISTS).map(|suffix| name(suffix)).collect();
        let mut known: Vec<_> = known.iter().map(String::as_str).collect();
        known.extend(["toPorts", "icmps", "authentication"]);
        unevaluated.extend(self.unknown_fields(node, &known));
        let authentication = self.authentication(node).filter(|_| !deny);
        Part { path: node.path.clone(), deny, peers, ports, authentication, unevaluated }
    }

    /// Cilium refuses a rule that names its peers in two ways.
    fn check_combination(&mut self, node: &Node<'_>, words: &Words) {
        let is_written = |name: &str| {
            let list = node.field(name.to_owned()).and_then(|list| list.list());
            list.is_some_and(|list| !list.is_empty())
        };
        let lists = COMBINED_LISTS.iter().map(|suffix| format!("{}{suffix}", words.preposition));
        let written: Vec<_> = lists.filter(|name| is_written(name)).map(|name| capitalized(&name)).collect();
        for (number, one) in written.iter().enumerate() {
            for other in &written[number + 1..] {
                self.refuse(format!("Combining {one} and {other} is not supported yet"));
            }
        }
        if is_written("toServices") && is_written("toPorts") {
            self.refuse("Combining ToServices and ToPorts is not supported yet");
        }
    }

    fn peers(
        &mut self,
        node: &Node<'_>,
        words: &Words,
        scope: &Scope,
        init: bool,
        effect: Effect,
        unevaluated: &mut Vec<Unevaluated>,
    ) -> Peers {
        let (mut peers, mut nobody) = (Vec::new(), None);
        for suffix in PEER_LISTS {
            let Some(list) = node.field(format!("{}{suffix}", words.preposition)) else { continue };
            let elements = self.elements(&list);
            if elements.is_empty() {
                nobody = Some(list.path.clone());
            }
            for element in elements {
                match suffix {
                    "Endpoints" => peers.push(self.endpoints(&element, scope, init)),
                    "Entities" => peers.extend(self.entity(&element)),
                    "CIDR" => peers.extend(self.cidr(&element)),
                    _ => match element.field("cidrGroupRef").or_else(|| element.field("cidrGroupSelector")) {
                        Some(group) => {
                            let why = "the addresses of a CiliumCIDRGroup are not known";
                            unevaluated.push(self.unevaluated(group.path, why, effect));
                        }
                        None => peers.extend(self.cidr_rule(&element)),
                    },
                }
            }
        }
        Peers { nobody, listed: peers }
    }

    /// Peers whose addresses or labels plsprobe does not know.
    fn unevaluated_peers(&self, node: &Node<'_>, words: &Words, effect: Effect) -> Vec<Unevaluated> {
        let lists = UNEVALUATED_LISTS.iter().filter_map(|suffix| {
            let list = node.field(format!("{}{suffix}", words.preposition))?;
            let is_empty = list.list().is_some_and(|list| list.is_empty());
            let (why, effect) = match *suffix {
                "FQDNs" => ("the addresses that Cilium has seen for these names are not known", effect),
                "Services" => ("the backends of the service are not known", effect),
                "Groups" => ("the addresses of the cloud provider's group are not known", effect),
                "Nodes" => ("the labels of nodes are not known", effect),
                _ => ("it restricts the other rules for the same pods", Effect::Either),
            };
            (!is_empty).then(|| self.unevaluated(list.path, why, effect))
        });
        lists.collect()
    }

    fn endpoints(&mut self, node: &Node<'_>, scope: &Scope, init: bool) -> Peer {
        let mut selector = self.selector(node, LabelKey::parse);
        if !selector.names_source("reserved") && !selector.names_namespace() {
            match scope {
                Scope::Namespace(_) if selector.names_namespace_labels() => {}
                Scope::Namespace(namespace) => selector.require(LabelKey::kubernetes(NAMESPACE), namespace),
                Scope::Clusterwide if init => {}
                Scope::Clusterwide => selector.require_namespace(),
                Scope::AsWritten => {}
            }
        }
        Peer { path: node.path.clone(), kind: PeerKind::Labels, selectors: vec![selector] }
    }

    fn entity(&mut self, node: &Node<'_>) -> Option<Peer> {
        let name = node.text().unwrap_or_default();
        let Some(selectors) = entity(name, &self.options.cluster_name) else {
            self.refuse(format!("unsupported entity: {name}"));
            return None;
        };
        Some(Peer { path: node.path.clone(), kind: PeerKind::Entity(name.to_owned()), selectors })
    }

    fn ports(&mut self, node: &Node<'_>, ingress: bool, is_host: bool) -> Option<Vec<PortTerm>> {
        let (to_ports, icmps) = (self.list(node, "toPorts"), self.list(node, "icmps"));
        if is_host && to_ports.iter().any(|to_ports| L7::of(to_ports).has_rules()) {
            self.refuse("host policies do not support L7 rules yet");
        }
        if !to_ports.is_empty() && !icmps.is_empty() {
            self.refuse(
                "The ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts.",
            );
        }
        if ingress && to_ports.iter().any(|to_ports| L7::of(to_ports).dns) {
            self.refuse("L7 protocol DNS is not supported on ingress yet");
        }
        self.cilium_ports(&to_ports, ingress).or_else(|| self.icmps(&icmps))
    }

    fn authentication(&mut self, node: &Node<'_>) -> Option<Authentication> {
        let mode = node.field("authentication")?.field("mode")?;
        match mode.text() {
            Some("disabled") => Some(Authentication::Disabled),
            Some("required") => Some(Authentication::Required),
            Some("test-always-fail") => Some(Authentication::AlwaysFail),
            _ => {
                self.refuse(format!("`{}` is {}, expected disabled or required", mode.path, mode.value));
                None
            }
        }
    }

    /// A `LabelSelector`, its keys read by `key`.
    pub(super) fn selector(&mut self, node: &Node<'_>, key: fn(&str) -> LabelKey) -> Selector {
        if !node.value.is_object() {
            self.wrong(node, "a selector");
        }
        let labels = node.field("matchLabels");
        let labels = labels.iter().flat_map(Node::fields).map(|(name, value)| (key(name), value));
        let labels =
            labels.map(|(name, value)| (name, value.text().unwrap_or_default().to_owned())).collect();
        let expressions = self.list(node, "matchExpressions");
        let expressions = expressions.iter().filter_map(|node| self.expression(node, key)).collect();
        Selector { labels, expressions }
    }

    fn expression(&mut self, node: &Node<'_>, key: fn(&str) -> LabelKey) -> Option<Expression> {
        let name = node.field("key").and_then(|key| key.text()).unwrap_or_default();
        let values = self.list(node, "values");
        let values: Vec<_> = values.iter().filter_map(Node::text).map(str::to_owned).collect();
        let operator = node.field("operator").and_then(|operator| operator.text()).unwrap_or_default();
        let operator = match (operator, values.is_empty()) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            ("In" | "NotIn", true) => {
                self.refuse(format!("invalid label selector: `{}` needs values for {operator}", node.path));
                return None;
            }
            ("Exists" | "DoesNotExist", false) => {
                self.refuse(format!(
                    "invalid label selector: `{}` has values, which {operator} takes none of",
                    node.path
                ));
                return None;
            }
            (other, _) => {
                let known = "In, NotIn, Exists or DoesNotExist";
                self.refuse(format!(
                    "invalid label selector: `{}` has operator `{other}`, expected {known}",
                    node.path
                ));
                return None;
            }
        };
        Some(Expression { key: key(name), operator })
    }

    /// The elements of a field that is a list or not there.
    pub(super) fn list<'v>(&mut self, node: &Node<'v>, name: &'static str) -> Vec<Node<'v>> {
        node.field(name).map(|field| self.elements(&field)).unwrap_or_default()
    }

    fn elements<'v>(&mut self, node: &Node<'v>) -> Vec<Node<'v>> {
        let elements = node.list();
        if elements.is_none() {
            self.wrong(node, "a list");
        }
        elements.unwrap_or_default()
    }
}

/// The lists of peers that plsprobe evaluates, without `from` or `to`.
const PEER_LISTS: [&str; 4] = ["Endpoints", "CIDR", "CIDRSet", "Entities"];
/// Those that it does not.
const UNEVALUATED_LISTS: [&str; 5] = ["FQDNs", "Services", "Groups", "Nodes", "Requires"];
/// Those of which Cilium allows one in a rule.
const COMBINED_LISTS: [&str; 8] =
    ["Endpoints", "CIDR", "CIDRSet", "Entities", "FQDNs", "Services", "Groups", "Nodes"];

fn capitalized(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// Whether a selector is that of pods which have no labels yet, and so no namespace.
fn selects_init(selector: &Selector) -> bool {
    selector.keys().any(|key| key.source == "reserved" && key.key == "init")
}
