//! Label selectors: which identities a policy means.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use super::label::{Label, Labels};

/// The label that says which namespace a pod is in.
pub(super) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// What the labels of a pod's namespace begin with among its own.
pub(super) const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// The label that says which cluster a pod is in.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// The key of a label in a selector: `any:app` is written `app` and matches every source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelKey {
    /// `any`, `k8s`, `reserved`, `cidr`, ….
    pub source: String,
    /// The key itself.
    pub key: String,
}

impl LabelKey {
    /// A key of Kubernetes.
    pub(super) fn kubernetes(key: &str) -> Self {
        Self { source: "k8s".to_owned(), key: key.to_owned() }
    }

    /// A key as a Cilium policy writes it: `app`, `any:app`, `k8s:app`, `reserved:host`, `$host`.
    pub fn parse(text: &str) -> Self {
        let text = text.split_once('=').map_or(text, |(key, _)| key);
        let (source, key) = match text.strip_prefix('$') {
            Some(reserved) => ("reserved", reserved),
            None => text.split_once(':').unwrap_or(("any", text)),
        };
        let source = if source.is_empty() { "any" } else { source };
        Self { source: source.to_owned(), key: key.to_owned() }
    }

    /// Whether it is the key of Kubernetes, with or without its source.
    pub(super) fn is(&self, key: &str) -> bool {
        matches!(self.source.as_str(), "k8s" | "any") && self.key == key
    }

    /// Whether it is a key of Kubernetes that begins so, with or without its source.
    fn begins(&self, prefix: &str) -> bool {
        matches!(self.source.as_str(), "k8s" | "any") && self.key.starts_with(prefix)
    }

    fn is_key_of(&self, label: &Label) -> bool {
        (self.source == "any" || self.source == label.source) && self.key == label.key
    }

    /// The value that the labels have under this key.
    fn value<'l>(&self, labels: &'l Labels) -> Option<&'l str> {
        if self.source == "cidr" {
            // A CIDR selector means every identity whose prefix lies inside.
            let wanted = Label::plain("cidr", self.key.as_str()).prefix()?;
            return labels.prefix().is_some_and(|own| wanted.contains(&own)).then_some("");
        }
        labels.iter().find(|label| self.is_key_of(label)).map(|label| label.value.as_str())
    }
}

impl fmt::Display for LabelKey {
    /// As a policy would write it: without `any:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.source == "any" { f.write_str(&self.key) } else { write!(f, "{}:{}", self.source, self.key) }
    }
}

/// What a `matchExpressions` asks of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values.
    In(Vec<String>),
    /// The key is not there, or with none of these values.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

/// One of a selector's `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expression {
    /// The key that it asks for.
    pub key: LabelKey,
    /// What it asks.
    pub operator: Operator,
}

impl Expression {
    fn holds(&self, labels: &Labels) -> bool {
        let value = self.key.value(labels);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|wanted| wanted != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.operator {
            Operator::In(values) => write!(f, "{key} in ({})", values.join(", ")),
            Operator::NotIn(values) => write!(f, "{key} not in ({})", values.join(", ")),
            Operator::Exists => write!(f, "{key} exists"),
            Operator::DoesNotExist => write!(f, "{key} does not exist"),
        }
    }
}

/// A selector of identities by their labels, as Cilium has it after reading an object: with the policy's namespace in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Keys that must have these values.
    pub labels: BTreeMap<LabelKey, String>,
    /// What else must hold.
    pub expressions: Vec<Expression>,
}

impl Selector {
    /// The one that asks for nothing: everybody, and in a policy map identity 0.
    pub fn everybody() -> Self {
        Self::default()
    }

    /// The one of a reserved label, or of a CIDR.
    fn label(source: &str, key: impl Into<String>) -> Self {
        let key = LabelKey { source: source.to_owned(), key: key.into() };
        Self { labels: BTreeMap::from([(key, String::new())]), expressions: Vec::new() }
    }

    /// The one of a reserved label such as `host`.
    pub fn reserved(name: &str) -> Self {
        Self::label("reserved", name)
    }

    /// Identities whose prefix lies inside.
    pub fn cidr(prefix: IpNet) -> Self {
        Self::label("cidr", Label::cidr(prefix).key)
    }

    /// Pods of this cluster.
    fn cluster(name: &str) -> Self {
        let labels = BTreeMap::from([(LabelKey::kubernetes(CLUSTER), name.to_owned())]);
        Self { labels, expressions: Vec::new() }
    }

    /// Adds that a key must have a value, in place of what was said of the key before.
    pub(super) fn require(&mut self, key: LabelKey, value: &str) {
        self.labels.insert(key, value.to_owned());
    }

    /// Adds that the pod must be in a namespace at all.
    pub(super) fn require_namespace(&mut self) {
        let key = LabelKey::kubernetes(NAMESPACE);
        self.expressions.push(Expression { key, operator: Operator::Exists });
    }

    /// The prefix, if it asks for nothing but a CIDR.
    pub(super) fn only_prefix(&self) -> Option<IpNet> {
        let mut labels = self.labels.keys();
        match (labels.next(), labels.next(), self.expressions.is_empty()) {
            (Some(key), None, true) => Label::plain(&key.source, key.key.as_str()).prefix(),
            _ => None,
        }
    }

    /// Whether it asks for nothing.
    pub fn is_everybody(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether an identity with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, wanted)| key.value(labels).is_some_and(|value| value == wanted))
            && self.expressions.iter().all(|expression| expression.holds(labels))
    }

    /// What it asks for and these labels have not, in words.
    pub fn unmet(&self, labels: &Labels) -> Vec<String> {
        let values = self.labels.iter().filter(|(key, wanted)| key.value(labels) != Some(wanted));
        let expressions = self.expressions.iter().filter(|expression| !expression.holds(labels));
        values
            .map(|(key, value)| format!("{key}={value}"))
            .chain(expressions.map(ToString::to_string))
            .collect()
    }

    /// Every key that it names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &LabelKey> {
        self.labels.keys().chain(self.expressions.iter().map(|expression| &expression.key))
    }

    /// Whether it says in which namespace the pod must be.
    pub(super) fn names_namespace(&self) -> bool {
        self.keys().any(|key| key.is(NAMESPACE))
    }

    /// Whether it asks for labels of the pod's namespace.
    pub(super) fn names_namespace_labels(&self) -> bool {
        self.keys().any(|key| key.begins(NAMESPACE_LABELS))
    }

    /// Whether it names a label of this source.
    pub(super) fn names_source(&self, source: &str) -> bool {
        self.keys().any(|key| key.source == source)
    }
}

impl fmt::Display for Selector {
    /// `app=web, tier in (a, b)`, or `everybody`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everybody() {
            return f.write_str("everybody");
        }
        let value = |(key, value): (&LabelKey, &String)| {
            if value.is_empty() { key.to_string() } else { format!("{key}={value}") }
        };
        let labels = self.labels.iter().map(value);
        let all: Vec<_> = labels.chain(self.expressions.iter().map(ToString::to_string)).collect();
        f.write_str(&all.join(", "))
    }
}

/// The selectors that an entity stands for; `None` if there is no such entity.
pub fn entity(name: &str, cluster: &str) -> Option<Vec<Selector>> {
    let known = |names: &[&str]| Some(names.iter().map(|name| Selector::reserved(name)).collect());
    match name {
        "all" => Some(vec![Selector::everybody()]),
        "world" => known(&["world", "world-ipv4", "world-ipv6"]),
        "cluster" => {
            let own = ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];
            let mut selectors: Vec<_> = own.iter().map(|name| Selector::reserved(name)).collect();
            selectors.push(Selector::cluster(cluster));
            Some(selectors)
        }
        "world-ipv4" | "world-ipv6" | "host" | "init" | "ingress" | "unmanaged" | "remote-node"
        | "health" | "none" | "kube-apiserver" => known(&[name]),
        _ => None,
    }
}
