//! Policy objects: what is written, as one kind of rule.
//!
//! A `NetworkPolicy`, a `CiliumNetworkPolicy`, a `CiliumClusterwideNetworkPolicy` and the agent's own rules (`GET /policy`)
//! all become [`Policy`]s. What Cilium's parser refuses is [`Rejected`] with its reasons, and nothing of that object holds.
//! What plsprobe does not evaluate is [`Unevaluated`] by name, and never left out in silence.

mod agent;
mod cidr;
mod cilium;
mod kubernetes;
mod node;
mod ports;

use std::fmt;

use ipnet::IpNet;
use serde_json::Value;

use super::path::Path;
use super::port::PortTerm;
use super::selector::Selector;
use crate::cilium::Direction;
use crate::world::PolicyRef;
use node::Node;

pub use agent::read_agent_rules;
pub(super) use cidr::without;

/// How the agent is configured, as far as it changes what an object means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `cluster-name`.
    pub cluster_name: String,
    /// Cilium runs for IPv4.
    pub ipv4: bool,
    /// Cilium runs for IPv6 too.
    pub ipv6: bool,
    /// `enable-policy`.
    pub enforcement: Enforcement,
    /// `allow-localhost` is `always`: the node itself may reach every pod unless a rule denies it.
    pub allow_localhost: bool,
}

impl Default for Options {
    /// The agent's defaults on an IPv4 cluster.
    fn default() -> Self {
        Self {
            cluster_name: "default".to_owned(),
            ipv4: true,
            ipv6: false,
            enforcement: Enforcement::Default,
            allow_localhost: true,
        }
    }
}

/// When policy is enforced (`enable-policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Where a rule selects the pod.
    Default,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// A policy object that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its number among the objects read.
    pub object: usize,
    /// Kind, namespace and name.
    pub reference: PolicyRef,
    /// Labels of its rules, as an entry's `derived_from` has them, sorted.
    pub labels: Vec<String>,
    /// Its rules: one for `spec`, one for each of `specs`.
    pub rules: Vec<Rule>,
}

/// What one `spec` says of the endpoints that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it is written.
    pub path: Path,
    /// Whom it is about.
    pub subject: RuleSubject,
    /// Its ingress part.
    pub ingress: Side,
    /// Its egress part.
    pub egress: Side,
}

impl Rule {
    /// Its part for a direction.
    pub fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSubject {
    /// Pods with these labels.
    Endpoints(Selector),
    /// Nodes with these labels, under the host firewall.
    Nodes(Selector),
}

/// One direction of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// The direction is enforced for whom the rule selects.
    pub enforces: bool,
    /// What no rule admits is denied, as opposed to `enableDefaultDeny: false`.
    pub default_deny: bool,
    /// What is admitted or denied.
    pub parts: Vec<Part>,
}

/// One element of `ingress`, `egress`, `ingressDeny` or `egressDeny`; of a `NetworkPolicy`, one peer of such an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The element: `spec.ingress[0]`.
    pub path: Path,
    /// It denies.
    pub deny: bool,
    /// Whom.
    pub peers: Peers,
    /// Which protocols and ports; `None` where the rule names none and means all.
    pub ports: Option<Vec<PortTerm>>,
    /// The authentication that it asks for.
    pub authentication: Option<Authentication>,
    /// Peers and conditions in it that plsprobe does not evaluate.
    pub unevaluated: Vec<Unevaluated>,
}

/// Whom a part means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Nobody, because a list of peers is written and empty, whatever stands beside it. Where that list is.
    pub nobody: Option<Path>,
    /// These. None at all is everybody where ports are named, and nobody where none are.
    pub listed: Vec<Peer>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is written.
    pub path: Path,
    /// How it is written.
    pub kind: PeerKind,
    /// What it comes to: an identity is meant if one of these selects it.
    pub selectors: Vec<Selector>,
}

/// How a peer is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// By labels.
    Labels,
    /// By the name of an entity.
    Entity(String),
    /// By addresses.
    Cidr {
        /// The prefix, host bits cleared.
        cidr: IpNet,
        /// What is taken out of it again.
        except: Vec<IpNet>,
        /// What is left, as few prefixes as possible.
        remaining: Vec<IpNet>,
    },
}

/// Authentication that a rule asks for, with Cilium's numbers: the larger one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Authentication {
    /// None, explicitly.
    Disabled = 0,
    /// Mutual authentication by SPIRE.
    Required = 1,
    /// Always fails, for tests of Cilium's.
    AlwaysFail = 2,
}

/// Something in an object that plsprobe does not evaluate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unevaluated {
    /// The object.
    pub policy: PolicyRef,
    /// Where in it.
    pub path: Path,
    /// What it is, and why it is not evaluated, as a clause.
    pub why: String,
    /// What it could do to an answer.
    pub effect: Effect,
}

impl fmt::Display for Unevaluated {
    /// `CiliumNetworkPolicy default/web, spec.egress[0].toFQDNs: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.policy, self.path, self.why)
    }
}

/// What a thing that is not evaluated could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Admit more.
    Admits,
    /// Deny more.
    Denies,
    /// Either.
    Either,
}

/// An object that Cilium refuses. Nothing of it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its number among the objects read.
    pub object: usize,
    /// Kind, namespace and name, as far as they are there.
    pub policy: PolicyRef,
    /// Why: every reason found, in the order in which Cilium looks. It names the first.
    pub reasons: Vec<String>,
}

/// What came of a list of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Those that were understood.
    pub policies: Vec<Policy>,
    /// Those that Cilium refuses.
    pub rejected: Vec<Rejected>,
    /// Those that Cilium has and plsprobe cannot read.
    pub unread: Vec<Unevaluated>,
}

/// Reads objects as the Kubernetes API has them; their order numbers them.
pub fn read(objects: &[Value], options: &Options) -> Objects {
    let mut read = Objects::default();
    for (number, object) in objects.iter().enumerate() {
        match read_one(number, object, options) {
            Ok(policy) => read.policies.push(policy),
            Err(rejected) => read.rejected.push(rejected),
        }
    }
    read
}

/// Reads one object, the `number`th of its list.
///
/// # Errors
///
/// [`Rejected`] if Cilium refuses it, or if it is no policy.
pub fn read_one(number: usize, object: &Value, options: &Options) -> Result<Policy, Rejected> {
    let reference = reference(object);
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut reader = Reader { policy: reference.clone(), options, reasons: Vec::new() };
    let rules = match (text("apiVersion"), reference.kind.as_str()) {
        ("networking.k8s.io/v1", "NetworkPolicy") => kubernetes::rules(&mut reader, object),
        ("cilium.io/v2", "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
            cilium::rules(&mut reader, object)
        }
        (version, kind) => {
            let known = "NetworkPolicy (networking.k8s.io/v1), CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy (cilium.io/v2)";
            reader.refuse(format!("found kind `{kind}` of `{version}`, expected {known}"));
            Vec::new()
        }
    };
    if reader.reasons.is_empty() {
        Ok(Policy { object: number, labels: labels(object, &reference), reference, rules })
    } else {
        Err(Rejected { object: number, policy: reference, reasons: reader.reasons })
    }
}

/// Kind, namespace and name of an object. A namespaced one without a namespace is in `default`, as for kubectl.
fn reference(object: &Value) -> PolicyRef {
    let metadata = |name: &str| object.get("metadata")?.get(name)?.as_str().filter(|text| !text.is_empty());
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespaced = kind != "CiliumClusterwideNetworkPolicy";
    PolicyRef {
        namespace: namespaced.then(|| metadata("namespace").unwrap_or("default").to_owned()),
        name: metadata("name").unwrap_or_default().to_owned(),
        kind,
    }
}

/// The labels that Cilium gives the rules of an object.
fn labels(object: &Value, reference: &PolicyRef) -> Vec<String> {
    let uid = object.get("metadata").and_then(|metadata| metadata.get("uid")).and_then(Value::as_str);
    let label = |name: &str, value: &str| {
        let key = format!("k8s:io.cilium.k8s.policy.{name}");
        if value.is_empty() { key } else { format!("{key}={value}") }
    };
    let mut labels = vec![
        label("derived-from", &reference.kind),
        label("name", &reference.name),
        label("uid", uid.unwrap_or_default()),
    ];
    labels.extend(reference.namespace.as_deref().map(|namespace| label("namespace", namespace)));
    labels.sort();
    labels
}

/// Reads one object: whose it is, and what speaks against it.
struct Reader<'a> {
    policy: PolicyRef,
    options: &'a Options,
    reasons: Vec<String>,
}

impl Reader<'_> {
    /// Cilium refuses the object for this reason.
    fn refuse(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason.into());
    }

    /// The value has another type than it must have.
    fn wrong(&mut self, node: &Node<'_>, expected: &str) {
        self.refuse(format!("`{}` is {}, expected {expected}", node.path, node.type_name()));
    }

    fn unevaluated(&self, path: Path, why: impl Into<String>, effect: Effect) -> Unevaluated {
        Unevaluated { policy: self.policy.clone(), path, why: why.into(), effect }
    }

    /// Whatever fields there are beside the known ones.
    fn unknown_fields(&self, node: &Node<'_>, known: &[&str]) -> Vec<Unevaluated> {
        let unknown = node.fields().filter(|(name, _)| !known.contains(&name.as_str()));
        let found = unknown.map(|(name, field)| {
            let why = format!("plsprobe does not know the field `{name}`");
            self.unevaluated(field.path, why, Effect::Either)
        });
        found.collect()
    }
}
