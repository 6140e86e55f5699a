//! The smallest edits of policy objects that admit a flow, each tried before it is offered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::admitted::{Admitted, Classes, Judged, Peers, difference};
use super::cluster::Pod;
use super::engine::{DirectionIntent, Engine, Flow, IntentVerdict, selects};
use super::object::{PeerKind, Policy, read_one};
use super::path::{Path, Step};
use super::selector::{NAMESPACE, NAMESPACE_LABELS};
use super::why::{Failed, Field, Hit, Miss, Why};
use super::yaml::manifest;
use crate::cilium::Direction;
use crate::cilium::identity::Identity;
use crate::world::{PodName, PolicyRef};

/// As many rules near to the flow are tried to be widened, and as many policies to be given a rule more.
const NEAREST: usize = 3;
/// As many edits are offered.
const OFFERED: usize = 2;

/// What kind of edit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EditKind {
    /// Widens the one field of a rule that failed.
    Widen,
    /// Takes an address out of what a rule leaves out, or of what it denies.
    Except,
    /// Adds a rule to a policy that selects the pod.
    AddRule,
    /// A new policy beside the ones that are there.
    NewPolicy,
}

/// An edit that was tried: with it, the flow is admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// What kind it is.
    pub kind: EditKind,
    /// The object that is edited or made.
    pub policy: PolicyRef,
    /// Where in it.
    pub path: Path,
    /// What it does, as a clause.
    pub summary: String,
    /// The object as it is; `None` for a new one.
    pub before: Option<Value>,
    /// The object as it would be.
    pub after: Value,
    /// The same as YAML for `kubectl apply -f -`.
    pub yaml: String,
    /// What the flow comes to with it.
    pub verdict: IntentVerdict,
    /// What it admits beside this flow.
    pub admits_also: Vec<Admitted>,
}

/// A flow that is to be admitted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The pod whose policy it is.
    pub pod: &'a Pod,
    /// The flow.
    pub flow: Flow,
    /// The peer's address, if it is known.
    pub address: Option<IpAddr>,
    /// Wider prefixes to offer beside the address, such as the NAT subnet of a Private Link service.
    pub wider: Vec<IpNet>,
}

/// Before it is tried.
struct Candidate {
    kind: EditKind,
    policy: PolicyRef,
    object: Option<usize>,
    path: Path,
    summary: String,
    after: Value,
}

/// Edits that admit a flow, of the first kind that does, at most two: the ones that admit least besides.
///
/// `objects` are those that the engine's policies were read from, in their order. Without them (policies read from the
/// agent) only new policies are offered.
pub fn edits(engine: &Engine, objects: &[Value], wanted: &Wanted<'_>) -> Vec<Edit> {
    let editor = Editor { engine, objects, wanted, before: RefCell::default() };
    let why = engine.why_judged(&editor.before(wanted.pod), wanted.pod, wanted.flow, wanted.address);
    if why.verdict.admits() {
        return Vec::new();
    }
    let mut by_kind: BTreeMap<EditKind, Vec<Candidate>> = BTreeMap::new();
    for candidate in editor.candidates(&why) {
        by_kind.entry(candidate.kind).or_default().push(candidate);
    }
    // To try one is to judge every pod that it selects: no other kind is tried once one admits.
    let mut tried = by_kind.into_values().map(|candidates| editor.all_tried(candidates));
    tried.find(|edits| !edits.is_empty()).unwrap_or_default()
}

struct Editor<'a> {
    engine: &'a Engine,
    objects: &'a [Value],
    wanted: &'a Wanted<'a>,
    /// What pods come to without an edit.
    before: RefCell<BTreeMap<PodName, Rc<DirectionIntent>>>,
}

/// How a peer can be named in a rule.
enum Named {
    /// By these prefixes, the smallest first.
    Prefixes(Vec<IpNet>),
    /// By an entity, in a Cilium policy only: no CIDR rule matches a node.
    Entity(&'static str),
    /// By the labels of a pod and the name of its namespace: no CIDR rule matches a pod.
    Pod { labels: Value, namespace: String },
    /// In no way that plsprobe knows.
    Not,
}

impl Editor<'_> {
    fn candidates(&self, why: &Why) -> Vec<Candidate> {
        if why.verdict == IntentVerdict::Denied {
            return why.denies.iter().flat_map(|hit| self.narrow_deny(hit)).collect();
        }
        let near = why.misses.iter().filter(|miss| miss.only().is_some()).take(NEAREST);
        let widened = near.flat_map(|miss| self.widen(miss));
        let enforcing: BTreeSet<_> = why.enforced_by.iter().map(|part| part.number).collect();
        let enforcing = enforcing.into_iter().filter_map(|number| Some((number, self.object(number)?.0)));
        let added = enforcing.take(NEAREST).flat_map(|(number, object)| self.add_rule(number, object));
        widened.chain(added).chain(self.new_policies()).collect()
    }

    /// The object of a policy, and its number.
    fn object(&self, number: usize) -> Option<(usize, &Value)> {
        let object = self.engine.policy(number)?.object;
        Some((object, self.objects.get(object)?))
    }

    fn is_kubernetes(policy: &PolicyRef) -> bool {
        policy.kind == "NetworkPolicy"
    }

    fn is_ingress(&self) -> bool {
        self.wanted.flow.direction == Direction::Ingress
    }

    /// `from` or `to`.
    fn preposition(&self) -> &'static str {
        if self.is_ingress() { "from" } else { "to" }
    }

    fn named(&self) -> Named {
        let cluster = self.engine.cluster();
        let peer = self.wanted.flow.peer;
        match peer {
            Identity::HOST => Named::Entity("host"),
            Identity::REMOTE_NODE => Named::Entity("remote-node"),
            Identity::KUBE_APISERVER => Named::Entity("kube-apiserver"),
            _ if peer.is_world() || peer.is_local_scope() => {
                let Some(address) = self.wanted.address else { return Named::Not };
                let wider =
                    self.wanted.wider.iter().map(IpNet::trunc).filter(|prefix| prefix.contains(&address));
                let mut prefixes: Vec<_> = [IpNet::from(address)].into_iter().chain(wider).collect();
                prefixes.dedup();
                Named::Prefixes(prefixes)
            }
            _ if cluster.is_node(peer) => Named::Entity("remote-node"),
            _ => {
                let labels = cluster.identities.get(&peer);
                let Some(namespace) = labels.and_then(|labels| labels.kubernetes(NAMESPACE)) else {
                    return Named::Not;
                };
                let labels = cluster.own_labels(peer).into_iter();
                let labels = labels.map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
                Named::Pod { labels: Value::Object(labels), namespace: namespace.to_owned() }
            }
        }
    }

    /// The peer as an element of a `NetworkPolicy`'s `from`, in every way that is offered.
    fn kubernetes_peers(&self) -> Vec<(Value, String)> {
        match self.named() {
            Named::Prefixes(prefixes) => {
                let block = |prefix: IpNet| {
                    (json!({"ipBlock": {"cidr": prefix.to_string()}}), format!("CIDR {prefix}"))
                };
                prefixes.into_iter().map(block).collect()
            }
            Named::Pod { labels, namespace } => {
                let of_namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
                let words = self.engine.cluster().identity_words(self.wanted.flow.peer, None);
                vec![(
                    json!({"namespaceSelector": of_namespace, "podSelector": {"matchLabels": labels}}),
                    words,
                )]
            }
            Named::Entity(_) | Named::Not => Vec::new(),
        }
    }

    /// The peer as an element of the list with this suffix in a Cilium policy, in every way that is offered.
    fn cilium_peers(&self) -> Vec<(&'static str, Value, String)> {
        match self.named() {
            Named::Prefixes(prefixes) => {
                let cidr = |prefix: IpNet| ("CIDR", json!(prefix.to_string()), format!("CIDR {prefix}"));
                prefixes.into_iter().map(cidr).collect()
            }
            Named::Entity(entity) => vec![("Entities", json!(entity), format!("entity {entity}"))],
            Named::Pod { labels, namespace } => {
                let mut labels = labels;
                labels[format!("k8s:{NAMESPACE}")] = namespace.into();
                let words = self.engine.cluster().identity_words(self.wanted.flow.peer, None);
                vec![("Endpoints", json!({"matchLabels": labels}), words)]
            }
            Named::Not => Vec::new(),
        }
    }

    fn widen(&self, miss: &Miss) -> Vec<Candidate> {
        let Some(failed) = miss.only() else { return Vec::new() };
        let Some((object, value)) = self.object(miss.part.number) else { return Vec::new() };
        let edited = match failed.field {
            Field::Port | Field::NamedPort | Field::Protocol => {
                self.add_port(miss, value).into_iter().collect()
            }
            Field::Peer => self.add_peer(miss, value),
            Field::Except => self.readmit(failed, value),
        };
        let candidate = |(kind, path, summary, after)| {
            let policy = miss.part.policy.clone();
            Candidate { kind, policy, object: Some(object), path, summary, after }
        };
        edited.into_iter().map(candidate).collect()
    }

    /// Adds the flow's port to a rule that names others.
    fn add_port(&self, miss: &Miss, object: &Value) -> Option<Edited> {
        let Flow { protocol, port, .. } = self.wanted.flow;
        let rule = &miss.part.path;
        if Self::is_kubernetes(&miss.part.policy) {
            let entry =
                protocol.has_ports().then(|| json!({"port": port, "protocol": protocol.to_string()}))?;
            let summary = format!("adds {protocol}/{port} to the ports of {rule}");
            return Some((
                EditKind::Widen,
                rule.field("ports"),
                summary,
                pushed(object, rule, "ports", entry)?,
            ));
        }
        let written = rule.get(object)?;
        if protocol.is_icmp() {
            written.get("toPorts").is_none().then_some(())?;
            let family = if protocol == crate::tuple::Protocol::ICMP { "IPv4" } else { "IPv6" };
            let entry = json!({"fields": [{"family": family, "type": port}]});
            let summary = format!("adds {protocol} type {port} to {rule}");
            return Some((
                EditKind::Widen,
                rule.field("icmps"),
                summary,
                pushed(object, rule, "icmps", entry)?,
            ));
        }
        (protocol.has_ports() && written.get("icmps").is_none()).then_some(())?;
        let entry = json!({"ports": [{"port": port.to_string(), "protocol": protocol.to_string()}]});
        let summary = format!("adds {protocol}/{port} to the ports of {rule}");
        Some((EditKind::Widen, rule.field("toPorts"), summary, pushed(object, rule, "toPorts", entry)?))
    }

    /// Adds the peer to a rule that names others.
    fn add_peer(&self, miss: &Miss, object: &Value) -> Vec<Edited> {
        let rule = &miss.part.path;
        if Self::is_kubernetes(&miss.part.policy) {
            let add = |(peer, words): (Value, String)| {
                let after = pushed(object, rule, self.preposition(), peer)?;
                let summary = format!("adds {words} to the peers of {rule}");
                Some((EditKind::Widen, rule.field(self.preposition()), summary, after))
            };
            return self.kubernetes_peers().into_iter().filter_map(add).collect();
        }
        let add = |(suffix, peer, words): (&'static str, Value, String)| {
            let (suffix, peer) = self.fitting_list(rule.get(object)?, suffix, peer)?;
            let list = format!("{}{suffix}", self.preposition());
            let after = pushed(object, rule, &list, peer)?;
            Some((EditKind::Widen, rule.field(list), format!("adds {words} to the peers of {rule}"), after))
        };
        self.cilium_peers().into_iter().filter_map(add).collect()
    }

    /// The list of a Cilium rule that a peer can be added to: a rule may have one only.
    fn fitting_list(&self, rule: &Value, suffix: &'static str, peer: Value) -> Option<(&'static str, Value)> {
        let lists = ["Endpoints", "CIDR", "CIDRSet", "Entities", "FQDNs", "Services", "Groups", "Nodes"];
        let has = |suffix: &&str| {
            rule.get(format!("{}{suffix}", self.preposition())).is_some_and(|list| !list.is_null())
        };
        let mut written = lists.into_iter().filter(has);
        match (written.next(), written.next()) {
            (None, _) => Some((suffix, peer)),
            (Some(list), None) if list == suffix => Some((suffix, peer)),
            (Some("CIDRSet"), None) if suffix == "CIDR" => Some(("CIDRSet", json!({"cidr": peer}))),
            _ => None,
        }
    }

    /// Takes the address out of an `except`: the element goes, or what is left of it stays.
    fn readmit(&self, failed: &Failed, object: &Value) -> Vec<Edited> {
        let edited = || {
            let address = self.wanted.address?;
            let (list, Step::Index(number)) = failed.path.split_last()? else { return None };
            let elements = list.get(object)?.as_array()?;
            let gone: IpNet = elements.get(*number)?.as_str()?.parse().ok()?;
            let rest = super::object::without(gone.trunc(), &[address.into()]);
            let with = |replacement: Vec<IpNet>| {
                let mut after = object.clone();
                let elements = list.get_mut(&mut after)?.as_array_mut()?;
                elements.splice(number..=number, replacement.iter().map(|prefix| json!(prefix.to_string())));
                Some(after)
            };
            let narrow = (
                EditKind::Except,
                list.clone(),
                format!("takes {address} out of the exception {gone}"),
                with(rest.clone())?,
            );
            let wide =
                (EditKind::Except, list.clone(), format!("removes the exception {gone}"), with(Vec::new())?);
            Some(if rest.is_empty() { vec![wide] } else { vec![narrow, wide] })
        };
        edited().unwrap_or_default()
    }

    /// Takes the address out of what a rule denies.
    fn narrow_deny(&self, hit: &Hit) -> Vec<Candidate> {
        let narrowed = || {
            let address = self.wanted.address?;
            let peer = hit.peer.as_ref()?;
            let (object, value) = self.object(hit.part.number)?;
            let (list, Step::Index(number)) = peer.split_last()? else { return None };
            let (rule, Step::Field(name)) = list.split_last()? else { return None };
            self.is_cidr(hit, peer).then_some(())?;
            let mut after = value.clone();
            let fields = rule.get_mut(&mut after)?.as_object_mut()?;
            let own = json!(IpNet::from(address).to_string());
            if name.ends_with("CIDRSet") {
                let element = fields.get_mut(name.as_ref())?.get_mut(number)?;
                match element.get_mut("except").and_then(Value::as_array_mut) {
                    Some(except) => except.push(own),
                    None => element["except"] = json!([own]),
                }
            } else {
                // A plain list has no place for an exception: it becomes a set.
                let plain = fields.remove(name.as_ref())?;
                let element = |(at, cidr): (usize, &Value)| {
                    if at == *number {
                        json!({"cidr": with_length(cidr), "except": [own]})
                    } else {
                        json!({"cidr": with_length(cidr)})
                    }
                };
                let set: Vec<_> = plain.as_array()?.iter().enumerate().map(element).collect();
                let existing = fields.entry(format!("{name}Set")).or_insert_with(|| json!([]));
                existing.as_array_mut()?.extend(set);
            }
            let policy = hit.part.policy.clone();
            let summary = format!("takes {address} out of what {} denies", hit.part.path);
            Some(Candidate {
                kind: EditKind::Except,
                policy,
                object: Some(object),
                path: rule.clone(),
                summary,
                after,
            })
        };
        narrowed().into_iter().collect()
    }

    fn is_cidr(&self, hit: &Hit, peer: &Path) -> bool {
        let policy = self.engine.policy(hit.part.number);
        let rules = policy.into_iter().flat_map(|policy| &policy.rules);
        let parts = rules.flat_map(|rule| &rule.side(self.wanted.flow.direction).parts);
        let mut peers = parts.flat_map(|part| &part.peers.listed);
        peers.any(|one| one.path == *peer && matches!(one.kind, PeerKind::Cidr { .. }))
    }

    /// The rule that admits exactly this flow, for a `NetworkPolicy`.
    fn kubernetes_rules(&self) -> Vec<(Value, String)> {
        let Flow { protocol, port, .. } = self.wanted.flow;
        if !protocol.has_ports() {
            return Vec::new();
        }
        let rule = |(peer, words): (Value, String)| {
            let rule = json!({self.preposition(): [peer], "ports": [{"port": port, "protocol": protocol.to_string()}]});
            (rule, format!("{words} on {protocol}/{port}"))
        };
        self.kubernetes_peers().into_iter().map(rule).collect()
    }

    /// The same for a Cilium policy.
    fn cilium_rules(&self) -> Vec<(Value, String)> {
        let Flow { protocol, port, .. } = self.wanted.flow;
        let ports = if protocol.is_icmp() {
            let family = if protocol == crate::tuple::Protocol::ICMP { "IPv4" } else { "IPv6" };
            ("icmps", json!([{"fields": [{"family": family, "type": port}]}]))
        } else if protocol.has_ports() {
            ("toPorts", json!([{"ports": [{"port": port.to_string(), "protocol": protocol.to_string()}]}]))
        } else {
            return Vec::new();
        };
        let rule = |(suffix, peer, words): (&str, Value, String)| {
            let list = format!("{}{suffix}", self.preposition());
            let rule = json!({list: [peer], ports.0: ports.1.clone()});
            let at = if protocol.is_icmp() {
                format!("{protocol} type {port}")
            } else {
                format!("{protocol}/{port}")
            };
            (rule, format!("{words} on {at}"))
        };
        self.cilium_peers().into_iter().map(rule).collect()
    }

    /// Adds a rule to a policy that selects the pod.
    fn add_rule(&self, number: usize, object: usize) -> Vec<Candidate> {
        let (Some(policy), Some(value)) = (self.engine.policy(number), self.objects.get(object)) else {
            return Vec::new();
        };
        let Some(spec) = self.selecting_spec(policy) else { return Vec::new() };
        let is_kubernetes = Self::is_kubernetes(&policy.reference);
        let rules = if is_kubernetes { self.kubernetes_rules() } else { self.cilium_rules() };
        let list = self.wanted.flow.direction.to_string();
        let add = |(rule, words): (Value, String)| {
            let after = pushed(value, &spec, &list, rule)?;
            let summary = format!("adds a rule for {words}");
            let (policy, path) = (policy.reference.clone(), spec.field(list.clone()));
            Some(Candidate { kind: EditKind::AddRule, policy, object: Some(object), path, summary, after })
        };
        rules.into_iter().filter_map(add).collect()
    }

    /// Where the rule of a policy is that selects the pod.
    fn selecting_spec(&self, policy: &Policy) -> Option<Path> {
        let labels = self.engine.cluster().identities.get(&self.wanted.pod.identity)?;
        policy.rules.iter().find(|rule| selects(rule, labels)).map(|rule| rule.path.clone())
    }

    /// A policy of its own for the pod and this flow.
    fn new_policies(&self) -> Vec<Candidate> {
        let pod = self.wanted.pod;
        let own = self.engine.cluster().own_labels(pod.identity).into_iter();
        let own = own.filter(|(key, _)| !key.starts_with(NAMESPACE_LABELS));
        let labels: serde_json::Map<_, _> =
            own.map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
        let selector = if labels.is_empty() { json!({}) } else { json!({"matchLabels": labels}) };
        let direction = self.wanted.flow.direction.to_string();
        let kubernetes = self.kubernetes_rules().into_iter().map(|(rule, words)| {
            let policy_type = if self.is_ingress() { "Ingress" } else { "Egress" };
            let spec =
                json!({"podSelector": selector, "policyTypes": [policy_type], direction.as_str(): [rule]});
            ("networking.k8s.io/v1", "NetworkPolicy", spec, words)
        });
        let mut all: Vec<_> = kubernetes.collect();
        if all.is_empty() {
            // What a NetworkPolicy cannot say: nodes, ICMP.
            let cilium = self.cilium_rules().into_iter().map(|(rule, words)| {
                let spec = json!({"endpointSelector": selector, direction.as_str(): [rule]});
                ("cilium.io/v2", "CiliumNetworkPolicy", spec, words)
            });
            all.extend(cilium);
        }
        let candidate = |(version, kind, spec, words): (&str, &str, Value, String)| {
            let policy = PolicyRef {
                kind: kind.to_owned(),
                namespace: Some(pod.name.namespace.clone()),
                name: self.free_name(kind),
            };
            let metadata = json!({"name": policy.name, "namespace": pod.name.namespace});
            let after = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
            let summary = format!("a new policy that admits {words}");
            let path = Path::root().field("spec");
            Candidate { kind: EditKind::NewPolicy, policy, object: None, path, summary, after }
        };
        all.into_iter().map(candidate).collect()
    }

    /// A name that no policy of the kind has in the pod's namespace.
    fn free_name(&self, kind: &str) -> String {
        let pod = &self.wanted.pod.name;
        let base = format!("allow-{}-{}", self.wanted.flow.direction, pod.name);
        let taken = |name: &str| {
            let own = self.engine.policies().iter().map(|policy| &policy.reference);
            let mut own = own.filter(|policy| policy.namespace.as_deref() == Some(&pod.namespace));
            own.any(|policy| policy.kind == kind && policy.name == name)
        };
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base)
    }

    /// What a pod comes to without an edit.
    fn before(&self, pod: &Pod) -> Rc<DirectionIntent> {
        let judge = || Rc::new(self.engine.judge(pod, self.wanted.flow.direction));
        Rc::clone(self.before.borrow_mut().entry(pod.name.clone()).or_insert_with(judge))
    }

    /// Those of the candidates that admit the flow, the ones that admit least besides first.
    fn all_tried(&self, candidates: Vec<Candidate>) -> Vec<Edit> {
        let mut edits: Vec<_> = candidates.into_iter().filter_map(|one| self.tried(one)).collect();
        edits.sort_by_key(|edit| edit.admits_also.len());
        edits.dedup_by(|one, other| one.after == other.after);
        edits.truncate(OFFERED);
        edits
    }

    /// Tries a candidate; `None` if Cilium would refuse it or it does not turn the verdict.
    fn tried(&self, candidate: Candidate) -> Option<Edit> {
        let Candidate { kind, policy, object, path, summary, after } = candidate;
        let number = object.unwrap_or(self.objects.len());
        let edited = read_one(number, &after, &self.engine.cluster().options).ok()?;
        let engine = self.engine.with_policy(edited);
        let Wanted { pod, flow, address, .. } = self.wanted;
        let moves = flow.peer.is_world() || flow.peer.is_local_scope();
        let peer = address.filter(|_| moves).map_or(flow.peer, |address| engine.cluster().lookup(address).1);
        let intent = engine.judge(pod, flow.direction);
        let verdict = intent.verdict(peer, flow.protocol, flow.port);
        if !verdict.admits() {
            return None;
        }
        let admits_also = self.admits_also(&engine, number, peer, &intent);
        let before = object.and_then(|object| self.objects.get(object)).cloned();
        let yaml = manifest(&after);
        Some(Edit { kind, policy, path, summary, before, after, yaml, verdict, admits_also })
    }

    /// What else is admitted at every pod that the edited object selects, sorted. `own` is what the pod asked for comes to.
    fn admits_also(
        &self,
        after: &Engine,
        object: usize,
        peer: Identity,
        own: &DirectionIntent,
    ) -> Vec<Admitted> {
        let is_selected = |engine: &Engine, pod: &Pod| {
            let labels = engine.labels(pod.identity);
            let edited = engine.policies().iter().filter(|policy| policy.object == object);
            edited.flat_map(|policy| &policy.rules).any(|rule| selects(rule, labels))
        };
        let pods = &self.engine.cluster().pods;
        let selected = pods.iter().filter(|pod| is_selected(self.engine, pod) || is_selected(after, pod));
        let classes = Classes::new(self.engine.cluster(), after.cluster());
        let at = |pod: &Pod| {
            let before = &*self.before(pod);
            if pod.name == self.wanted.pod.name {
                return difference(&classes, &Judged { pod, before, after: own });
            }
            let after = &after.judge(pod, self.wanted.flow.direction);
            difference(&classes, &Judged { pod, before, after })
        };
        let mut admitted: Vec<_> = selected.flat_map(at).collect();
        admitted.retain(|one| !self.is_the_flow(one, peer));
        admitted.sort();
        admitted
    }

    /// Whether it is the flow that was asked for and nothing else.
    fn is_the_flow(&self, admitted: &Admitted, peer: Identity) -> bool {
        let Wanted { pod, flow, address, .. } = self.wanted;
        let its_peer = match admitted.peers {
            Peers::Identity(identity) => identity == peer,
            Peers::Prefix(prefix) => address.is_some_and(|address| prefix == IpNet::from(address)),
            Peers::Rest(_) | Peers::World => false,
        };
        let its_port =
            (admitted.protocol, admitted.first, admitted.last) == (flow.protocol, flow.port, flow.port);
        its_peer && its_port && admitted.pod == pod.name
    }
}

/// An edited object: kind, place, what was done, and the object.
type Edited = (EditKind, Path, String, Value);

/// The object with an element added to a list, which is made if it is not there.
fn pushed(object: &Value, at: &Path, list: &str, element: Value) -> Option<Value> {
    let mut after = object.clone();
    let fields = at.get_mut(&mut after)?.as_object_mut()?;
    let elements = fields.entry(list).or_insert_with(|| json!([]));
    if elements.is_null() {
        *elements = json!([]);
    }
    elements.as_array_mut()?.push(element);
    Some(after)
}

/// A prefix with its length, which `fromCIDR` may leave out and `cidr` may not.
fn with_length(cidr: &Value) -> Value {
    let address = cidr.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    address.map_or_else(|| cidr.clone(), |address| json!(IpNet::from(address).to_string()))
}
