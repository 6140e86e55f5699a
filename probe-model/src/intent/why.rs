//! Why a flow is admitted or not, rule by rule.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::cluster::{Cluster, NamedPortIs, Pod};
use super::engine::{DirectionIntent, Engine, Flow, IntentVerdict};
use super::entries::Origin;
use super::label::Labels;
use super::object::{Effect, Part, Peer, PeerKind, Rule, Unevaluated};
use super::path::Path;
use super::port::{PortTerm, RulePort};
use super::selector::{NAMESPACE, Selector};
use crate::cilium::Direction;
use crate::cilium::identity::Identity;
use crate::tuple::Protocol;
use crate::world::PolicyRef;

/// A part of a rule, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePart {
    /// The number of the policy, see [`Engine::policy`].
    pub number: usize,
    /// Its kind, namespace and name.
    pub policy: PolicyRef,
    /// Where in it the part is: `spec.ingress[0]`.
    pub path: Path,
}

impl fmt::Display for RulePart {
    /// `NetworkPolicy default/web, spec.ingress[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.policy, self.path)
    }
}

/// A part that a flow fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The part.
    pub part: RulePart,
    /// The peer that it is; `None` where the part means everybody.
    pub peer: Option<Path>,
    /// The port that it is; `None` where the part means every one.
    pub port: Option<Path>,
    /// The part hands the flow to Cilium's proxy.
    pub redirect: bool,
}

/// A part that would admit the flow if some fields were otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The part.
    pub part: RulePart,
    /// What failed, one at least.
    pub failed: Vec<Failed>,
}

impl Miss {
    /// The one field that failed, if it is one.
    pub fn only(&self) -> Option<&Failed> {
        if let [failed] = self.failed.as_slice() { Some(failed) } else { None }
    }
}

/// Which field of a part failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Whom it names.
    Peer,
    /// What its CIDR leaves out.
    Except,
    /// Its protocol.
    Protocol,
    /// Its port, or ICMP type.
    Port,
    /// The name of its port.
    NamedPort,
}

/// A field that failed: what the rule wants and what the packet has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub field: Field,
    /// Where it is written: `spec.ingress[0].from[1].ipBlock`.
    pub path: Path,
    /// What the rule wants: `CIDR 10.221.1.0/24`.
    pub wants: String,
    /// What the packet has: `world (10.224.0.8)`.
    pub has: String,
    /// The whole as a clause.
    pub clause: String,
    /// How far it is off: ports between, or address bits not shared.
    distance: u32,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.clause)
    }
}

/// Why a flow is admitted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The flow.
    pub flow: Flow,
    /// What the policy objects come to.
    pub verdict: IntentVerdict,
    /// The direction is enforced.
    pub enforced: bool,
    /// The rules that select the pod and enforce the direction.
    pub enforced_by: Vec<RulePart>,
    /// Where none does: the policies that select the pod for the other direction only.
    pub other_direction_only: Vec<PolicyRef>,
    /// Allowing parts that the flow fits.
    pub admits: Vec<Hit>,
    /// Denying parts that it fits.
    pub denies: Vec<Hit>,
    /// Allowing parts that it does not fit, the nearest first.
    pub misses: Vec<Miss>,
    /// The policies behind the entry that decides. Of a deny that no part explains, it is one of a wider CIDR.
    pub deciding: Vec<PolicyRef>,
    /// What could turn the verdict and is not evaluated. If there is any, the verdict is inconclusive.
    pub unevaluated: Vec<Unevaluated>,
}

impl Why {
    /// Of which the one failed field, in the nearest rule, is the reason of a default deny.
    pub fn nearest(&self) -> Option<&Miss> {
        self.misses.first()
    }
}

impl Engine {
    /// Why a flow of a pod is admitted or not. `address` is the peer's, where it is known.
    pub fn why(&self, pod: &Pod, flow: Flow, address: Option<IpAddr>) -> Why {
        self.why_judged(&self.judge(pod, flow.direction), pod, flow, address)
    }

    /// The same of a pod whose direction is judged already.
    pub(super) fn why_judged(
        &self,
        intent: &DirectionIntent,
        pod: &Pod,
        flow: Flow,
        address: Option<IpAddr>,
    ) -> Why {
        let verdict = intent.verdict(flow.peer, flow.protocol, flow.port);
        let rules = self.rules_selecting(pod.identity);
        let matcher = Matcher { cluster: self.cluster(), pod, flow, address };
        let place = |number: usize, path: &Path| RulePart {
            number,
            policy: self.policies()[number].reference.clone(),
            path: path.clone(),
        };
        let mut why = Why {
            flow,
            verdict,
            enforced: intent.enforced,
            enforced_by: Vec::new(),
            other_direction_only: Vec::new(),
            admits: Vec::new(),
            denies: Vec::new(),
            misses: Vec::new(),
            deciding: self.deciding(intent, flow),
            unevaluated: self.unread().to_vec(),
        };
        for (number, rule) in &rules {
            let side = rule.side(flow.direction);
            if side.enforces {
                why.enforced_by.push(place(*number, &rule.path));
            }
            for part in &side.parts {
                why.take_part(&matcher, place(*number, &part.path), part);
            }
        }
        why.misses.sort_by(nearness);
        if !why.enforced {
            why.other_direction_only = self.selecting_otherwise(&rules, flow.direction);
        }
        let named = intent.unevaluated.iter().filter(|one| one.why.starts_with("port `"));
        why.unevaluated.extend(named.cloned());
        why.unevaluated.retain(|one| could_turn(verdict, one.effect));
        why.unevaluated.sort();
        why.unevaluated.dedup();
        why
    }

    fn deciding(&self, intent: &DirectionIntent, flow: Flow) -> Vec<PolicyRef> {
        let entry = intent.deciding(flow.peer, flow.protocol, flow.port);
        let origins = entry.into_iter().flat_map(|entry| &entry.entry.derived_from);
        let policies = origins.filter_map(|origin| match origin {
            Origin::Policy(number) => Some(self.policies()[*number].reference.clone()),
            Origin::NotEnforced | Origin::Localhost | Origin::NoDefaultDeny => None,
        });
        policies.collect()
    }

    /// The policies that select a pod, but not for a direction.
    fn selecting_otherwise(&self, rules: &[(usize, &Rule)], direction: Direction) -> Vec<PolicyRef> {
        let otherwise = rules.iter().filter(|(_, rule)| !rule.side(direction).enforces);
        let mut policies: Vec<_> =
            otherwise.map(|(number, _)| self.policies()[*number].reference.clone()).collect();
        policies.sort();
        policies.dedup();
        policies
    }
}

/// Whether something of this effect could turn the verdict.
fn could_turn(verdict: IntentVerdict, effect: Effect) -> bool {
    match verdict {
        IntentVerdict::DefaultDeny => effect != Effect::Denies,
        IntentVerdict::Denied => effect == Effect::Either,
        IntentVerdict::Allowed | IntentVerdict::Redirected | IntentVerdict::Authentication => {
            effect != Effect::Admits
        }
    }
}

/// Nearer misses first: fewer failed fields, then ports and address bits closer.
fn nearness(one: &Miss, other: &Miss) -> Ordering {
    let distance = |miss: &Miss| miss.failed.iter().map(|failed| failed.distance).sum::<u32>();
    one.failed.len().cmp(&other.failed.len()).then_with(|| distance(one).cmp(&distance(other)))
}

impl Why {
    fn take_part(&mut self, matcher: &Matcher<'_>, place: RulePart, part: &Part) {
        let peer = matcher.peer(part);
        let port = matcher.port(part);
        if !matches!(port, Fit::Fails(_)) {
            self.unevaluated.extend(part.unevaluated.iter().cloned());
        }
        let mut failed = Vec::new();
        let (mut peer_path, mut port_path, mut redirect) = (None, None, false);
        match peer {
            Fit::Fits(path, ()) => peer_path = path,
            Fit::Fails(fields) => failed.extend(fields),
            Fit::Unknown => return,
        }
        match port {
            Fit::Fits(path, redirects) => (port_path, redirect) = (path, redirects),
            Fit::Fails(fields) => failed.extend(fields),
            Fit::Unknown => return,
        }
        match (part.deny, failed.is_empty()) {
            (deny, true) => {
                let hits = if deny { &mut self.denies } else { &mut self.admits };
                hits.push(Hit { part: place, peer: peer_path, port: port_path, redirect });
            }
            (false, false) => self.misses.push(Miss { part: place, failed }),
            (true, false) => {}
        }
    }
}

/// Whether a flow fits a part's peers, or its ports.
enum Fit<T> {
    /// It does, by what is written here.
    Fits(Option<Path>, T),
    /// It does not.
    Fails(Vec<Failed>),
    /// A name is not known.
    Unknown,
}

/// A flow that parts are compared with.
struct Matcher<'a> {
    cluster: &'a Cluster,
    pod: &'a Pod,
    flow: Flow,
    address: Option<IpAddr>,
}

/// Further than any two addresses or ports are apart.
const FAR: u32 = 1 << 17;

impl Matcher<'_> {
    fn peer(&self, part: &Part) -> Fit<()> {
        let peers = &part.peers;
        if let Some(list) = &peers.nobody {
            return Fit::Fails(vec![self.nobody(list, "an empty list of peers, which means nobody")]);
        }
        let names_nobody = peers.listed.iter().all(|peer| peer.selectors.is_empty());
        if names_nobody && part.unevaluated.is_empty() {
            if part.ports.is_some() {
                return Fit::Fits(None, ());
            }
            return Fit::Fails(vec![self.nobody(&part.path, "neither peers nor ports, which means nobody")]);
        }
        let labels = self.labels();
        let fits = |peer: &&Peer| peer.selectors.iter().any(|selector| selector.selects(labels));
        if let Some(peer) = peers.listed.iter().find(fits) {
            return Fit::Fits(Some(peer.path.clone()), ());
        }
        let failed =
            peers.listed.iter().filter(|peer| !peer.selectors.is_empty()).map(|peer| self.failed_peer(peer));
        // Peers that are not evaluated only: the part says nothing that could be compared.
        failed.min_by_key(|failed| failed.distance).map_or(Fit::Unknown, |failed| Fit::Fails(vec![failed]))
    }

    fn labels(&self) -> &Labels {
        self.cluster.identities.get(&self.flow.peer).unwrap_or(const { &Labels::NONE })
    }

    /// `source` or `destination`.
    fn side(&self) -> &'static str {
        match self.flow.direction {
            Direction::Ingress => "source",
            Direction::Egress => "destination",
        }
    }

    fn has(&self) -> String {
        self.cluster.identity_words(self.flow.peer, self.address)
    }

    fn nobody(&self, path: &Path, wants: &str) -> Failed {
        let clause = format!("the rule has {wants}");
        let (wants, has) = (wants.to_owned(), self.has());
        Failed { field: Field::Peer, path: path.clone(), wants, has, clause, distance: 2 * FAR }
    }

    /// How far the flow's peer is from one that a rule names.
    fn distance(&self, peer: &Peer) -> u32 {
        match &peer.kind {
            PeerKind::Cidr { cidr, .. } => {
                let shared = self.address.map_or(0, |address| shared_bits(*cidr, address));
                u32::from(cidr.prefix_len()) - shared
            }
            PeerKind::Labels => {
                let unmet = peer.selectors.iter().map(|selector| selector.unmet(self.labels()).len());
                FAR / 2 + unmet.min().unwrap_or_default() as u32
            }
            PeerKind::Entity(_) => FAR,
        }
    }

    fn failed_peer(&self, peer: &Peer) -> Failed {
        let distance = self.distance(peer);
        match &peer.kind {
            PeerKind::Cidr { cidr, except, .. } => self.failed_cidr(peer, *cidr, except, distance),
            PeerKind::Entity(name) => {
                self.failed(Field::Peer, &peer.path, format!("entity `{name}`"), distance)
            }
            PeerKind::Labels => {
                let wants = peer.selectors.first().map(selector_words).unwrap_or_default();
                self.failed(Field::Peer, &peer.path, wants, distance)
            }
        }
    }

    fn failed(&self, field: Field, path: &Path, wants: String, distance: u32) -> Failed {
        let (side, has) = (self.side(), self.has());
        let clause = format!("the {side} is {has}, the rule wants {wants}");
        Failed { field, path: path.clone(), wants, has, clause, distance }
    }

    fn failed_cidr(&self, peer: &Peer, cidr: IpNet, except: &[IpNet], distance: u32) -> Failed {
        let wants = format!("CIDR {cidr}");
        let mut failed = self.failed(Field::Peer, &peer.path, wants.clone(), distance);
        let Some(address) = self.address.filter(|address| cidr.contains(address)) else { return failed };
        let (side, has) = (self.side(), &failed.has);
        if let Some((number, gone)) = except.iter().enumerate().find(|(_, gone)| gone.contains(&address)) {
            failed.clause = format!("the {side} {address} is in {cidr}, but the rule leaves out {gone}");
            failed.path = peer.path.field("except").index(number);
            failed.field = Field::Except;
            failed.wants = format!("{wants} without {gone}");
        } else if self.cluster.is_node(self.flow.peer) || self.cluster.is_pod(self.flow.peer) {
            failed.clause = format!(
                "the {side} is {has}, the rule wants {wants}; CIDR rules never match a node or a pod, whatever its address"
            );
        } else {
            failed.clause = format!(
                "the rule wants {wants}, which holds the {side} {address}, but Cilium knows it as {has}"
            );
        }
        failed
    }

    fn port(&self, part: &Part) -> Fit<bool> {
        let Some(terms) = &part.ports else { return Fit::Fits(None, false) };
        let mut nearest: Option<Vec<Failed>> = None;
        let mut is_unknown = false;
        for term in terms {
            match self.term(term) {
                Fit::Fits(path, redirect) => return Fit::Fits(path, redirect),
                Fit::Unknown => is_unknown = true,
                Fit::Fails(failed) => {
                    let distance = |failed: &[Failed]| {
                        (failed.len(), failed.iter().map(|one| one.distance).sum::<u32>())
                    };
                    if nearest.as_ref().is_none_or(|nearest| distance(&failed) < distance(nearest)) {
                        nearest = Some(failed);
                    }
                }
            }
        }
        if is_unknown {
            return Fit::Unknown;
        }
        let none = || {
            let (wants, has) = ("no port at all".to_owned(), self.packet_port());
            let clause = "the rule has a list of ports without any, which matches nothing".to_owned();
            vec![Failed { field: Field::Port, path: part.path.clone(), wants, has, clause, distance: FAR }]
        };
        Fit::Fails(nearest.unwrap_or_else(none))
    }

    fn term(&self, term: &PortTerm) -> Fit<bool> {
        let Flow { protocol, port, .. } = self.flow;
        let mut failed = Vec::new();
        let protocol_fits = term.protocol.protocols().contains(&protocol);
        if !protocol_fits {
            failed.push(self.failed_protocol(term));
        }
        match &term.port {
            RulePort::Name(name) => match self.named(name, term) {
                NamedPortIs::Unknown(_) => return Fit::Unknown,
                NamedPortIs::Port(number) if number == port => {}
                NamedPortIs::Port(number) => {
                    let wants = format!("port `{name}`, which is {number}");
                    failed.push(self.failed_port(Field::Port, term, wants, number.abs_diff(port).into()));
                }
                NamedPortIs::Nothing(why) => {
                    let wants = format!("port `{name}`, but {why}");
                    failed.push(self.failed_port(Field::NamedPort, term, wants, FAR));
                }
            },
            RulePort::Number { .. } if protocol.is_icmp() != is_icmp(term) => {} // not comparable
            RulePort::Number { .. } => {
                let (first, last) = term.port.range().unwrap_or_default();
                let is_every = term.port.is_every();
                if !is_every && !(first..=last).contains(&port) {
                    let distance = port.abs_diff(first).min(port.abs_diff(last));
                    let wants = port_words(&term.port, protocol);
                    failed.push(self.failed_port(Field::Port, term, wants, distance.into()));
                }
            }
        }
        if failed.is_empty() { Fit::Fits(Some(term.path.clone()), term.redirect) } else { Fit::Fails(failed) }
    }

    fn named(&self, name: &str, term: &PortTerm) -> NamedPortIs {
        let own = term.protocol.protocols().iter().find(|protocol| **protocol == self.flow.protocol);
        let protocol = own.or(term.protocol.protocols().first()).copied().unwrap_or(self.flow.protocol);
        match self.flow.direction {
            Direction::Ingress => self.cluster.own_port(self.pod, name, protocol),
            Direction::Egress => self.cluster.shared_port(name, protocol),
        }
    }

    fn failed_protocol(&self, term: &PortTerm) -> Failed {
        let (wants, has) = (term.protocol.to_string(), self.flow.protocol.to_string());
        let clause = format!("the rule names {wants}, the packet is {has}");
        Failed { field: Field::Protocol, path: term.path.clone(), wants, has, clause, distance: 1 }
    }

    fn failed_port(&self, field: Field, term: &PortTerm, wants: String, distance: u32) -> Failed {
        let has = self.packet_port();
        let clause = format!("the rule names {wants}, the packet is for {has}");
        Failed { field, path: term.path.clone(), wants, has, clause, distance }
    }

    fn packet_port(&self) -> String {
        let Flow { protocol, port, .. } = self.flow;
        if protocol.is_icmp() { format!("{protocol} type {port}") } else { port.to_string() }
    }
}

fn is_icmp(term: &PortTerm) -> bool {
    term.protocol.protocols().iter().any(|protocol| protocol.is_icmp())
}

/// A rule's ports in words.
fn port_words(port: &RulePort, protocol: Protocol) -> String {
    match port.range() {
        _ if protocol.is_icmp() => format!("{protocol} type {port}"),
        Some((first, last)) if first != last => format!("ports {first}-{last} (endPort)"),
        _ => format!("port {port}"),
    }
}

/// A selector in words, the namespace apart.
fn selector_words(selector: &Selector) -> String {
    let mut rest = selector.clone();
    let namespace = rest.labels.iter().find(|(key, _)| key.is(NAMESPACE)).map(|(_, value)| value.clone());
    rest.labels.retain(|key, _| !key.is(NAMESPACE));
    let pods = if rest.is_everybody() { "any pod".to_owned() } else { format!("pods with {rest}") };
    match namespace {
        Some(namespace) => format!("{pods} in namespace {namespace}"),
        None => pods,
    }
}

/// Leading bits that an address has in common with a prefix, at most the prefix's own; none of another family.
fn shared_bits(prefix: IpNet, address: IpAddr) -> u32 {
    let bits = match (prefix.network(), address) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => 0,
    };
    bits.min(prefix.prefix_len().into())
}

impl Cluster {
    /// An identity in plain words, with the address it was met by: `world (10.224.0.8)`, `another node (10.224.0.4)`,
    /// `pod default/web`.
    pub fn identity_words(&self, identity: Identity, address: Option<IpAddr>) -> String {
        let named = match identity {
            Identity::HOST => "the node itself".to_owned(),
            Identity::REMOTE_NODE => "another node (remote-node)".to_owned(),
            Identity::KUBE_APISERVER => "the node of the API server (kube-apiserver)".to_owned(),
            _ if identity.is_world() => "world".to_owned(),
            _ => self.unreserved_words(identity),
        };
        match address {
            Some(address) => format!("{named} at {address}"),
            None => named,
        }
    }

    fn unreserved_words(&self, identity: Identity) -> String {
        let mut pods = self.pods.iter().filter(|pod| pod.identity == identity);
        if let (Some(pod), None) = (pods.next(), pods.next()) {
            return format!("pod {}", pod.name);
        }
        let Some(labels) = self.identities.get(&identity) else { return format!("identity {identity}") };
        if let Some(prefix) = labels.prefix() {
            return format!("CIDR {prefix}");
        }
        let own = self.own_labels(identity);
        let namespace = labels.kubernetes(NAMESPACE);
        match (own.as_slice(), namespace) {
            ([], None) => labels.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ([], Some(namespace)) => format!("a pod in namespace {namespace}"),
            (own, namespace) => {
                let own: Vec<_> = own.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let at = namespace.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
                format!("a pod with {}{at}", own.join(", "))
            }
        }
    }

    /// The labels of an identity that a pod's author gave it, without those that Cilium and Kubernetes add.
    pub(super) fn own_labels(&self, identity: Identity) -> Vec<(&str, &str)> {
        let added = |key: &str| key.starts_with("io.cilium.") || key.starts_with("io.kubernetes.");
        let labels = self.identities.get(&identity).into_iter().flat_map(Labels::iter);
        let own = labels.filter(|label| label.source == "k8s" && !added(&label.key));
        own.map(|label| (label.key.as_str(), label.value.as_str())).collect()
    }
}
