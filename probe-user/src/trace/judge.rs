//! One flow's judgement: what was observed and what the maps say, joined. Pure.
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use probe_model::cilium::Direction;
use probe_model::cilium::ct::CtTuple;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::Notification;
use probe_model::cilium::identity::Identity;
use probe_model::explain::{self, Explanation, Finding, Remedy, Verdict};
use probe_model::netfilter::Ruleset;
use probe_model::path::evidence::Entry;
use probe_model::path::probe::is_probe_source;
use probe_model::path::proxy::{self, Consumer, ProxyFault};
use probe_model::path::{CiliumEvent, Confirmation, Gap, Outcome, Path, Refusal, Watch, Ways};
use probe_model::simulate::{self, Question, Step, Unknown};
use probe_model::world::conntrack::Tracked;
use probe_model::world::nat::{Confidence, NatSources};
use probe_model::world::{AddressOwner, PolicyRef, World};

/// Where Cilium's notifications are read in this run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// At `bpf_skb_event_output`, by this means.
    Probe(&'static str),
    /// From the agent's monitor socket.
    MonitorSocket,
    /// From the agent's Hubble socket.
    Hubble,
    /// Nowhere, and why.
    None(String),
}

/// What the verdict rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Cilium said so, read here.
    Cilium(EventSource),
    /// The packets tell: an answer came, or the kernel freed the packet.
    Packets,
    /// The maps alone: nothing was observed that decides.
    Maps,
}

/// The verdict on a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowVerdict {
    /// Nothing on this node stopped it.
    Allowed,
    /// It was dropped here.
    Dropped,
    /// It cannot be said.
    Inconclusive,
}

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A NAT IP of the Private Link service, as sure as this.
    PlsNatIp(Confidence),
    /// Azure's health probe.
    AzureProbe,
    /// A pod of this node, by name.
    Pod(String),
    /// The node itself.
    Node,
    /// Another address in the uplink's subnet.
    Subnet(IpNet),
    /// Somewhere behind a router.
    Routed,
}

/// One flow, judged.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The flow.
    pub path: Path,
    /// What the maps say of it.
    pub explanation: Explanation,
    /// The verdict.
    pub verdict: FlowVerdict,
    /// What it rests on.
    pub evidence: Evidence,
    /// Who sends.
    pub origin: Origin,
    /// The identity Cilium gives the sender, from its own notification if there is one, else from the maps.
    pub identity: Option<Identity>,
    /// Where views disagree.
    pub findings: Vec<String>,
    /// Where it was lost from sight, if it was.
    pub gap: Option<Gap>,
    /// What Cilium's conntrack says of the two destinations that were put together.
    pub confirmation: Option<Confirmation>,
    /// The consumer that its PROXY header names.
    pub consumer: Option<Consumer>,
    /// Whether it was to begin with a PROXY header, if that is known.
    pub proxy_expected: Option<bool>,
    /// What is wrong with its first bytes.
    pub proxy_fault: Option<ProxyFault>,
    /// Whether its backend is on this node; `None` if it has none that is known.
    pub has_local_backend: Option<bool>,
    /// Whether it came to the node's own address with the service's port, where nobody waits for it.
    pub is_beside: bool,
    /// What to do about a drop by policy or by the node's rules, an edit of a policy tried before it is offered.
    pub remedies: Vec<Remedy>,
    /// Causes that the packets show, whatever policy says.
    pub causes: Vec<Finding>,
    /// Whether Cilium's notifications were read: what it did not notify of, it did not do.
    pub is_cilium_heard: bool,
}

/// Judges one flow, as far as it was watched.
pub fn judge(
    world: &World,
    mut path: Path,
    events: &EventSource,
    watch: &Watch,
    nat: &NatSources,
) -> Judgement {
    let explanation = explain(world, &path);
    path.outcome = path.outcome_under(watch);
    let observed = observed(&path);
    let (verdict, evidence) = verdict(&path, &explanation, observed, events);
    let findings = disagreement(&path, &explanation, observed).into_iter();
    let findings = findings.chain(other_policies(&path, &explanation)).collect();
    let origin = origin(world, path.tuple.saddr, nat);
    let identity = observed_identity(&path).or_else(|| simulated_identity(&explanation));
    let gap = path.gap(watch, ways(world, &explanation));
    let confirmation = path.confirmation(world);
    let proxy_expected = proxy_expected(world, &path, &origin);
    Judgement {
        consumer: proxy::consumer(&path.evidence),
        proxy_expected,
        proxy_fault: proxy::fault(&path.evidence, proxy_expected),
        has_local_backend: has_local_backend(world, &path),
        is_beside: false,
        remedies: Vec::new(),
        causes: Vec::new(),
        path,
        explanation,
        verdict,
        evidence,
        origin,
        identity,
        findings,
        gap,
        confirmation,
        is_cilium_heard: watch.cilium,
    }
}

/// Whether a flow of this origin begins with a PROXY header: Private Link's and its load balancer's probes may, nobody else
/// does.
fn proxy_expected(world: &World, path: &Path, origin: &Origin) -> Option<bool> {
    let is_enabled = proxy::is_enabled(world, SocketAddr::new(path.tuple.daddr, path.tuple.dport));
    match origin {
        Origin::PlsNatIp(_) | Origin::AzureProbe => is_enabled,
        Origin::Pod(_) | Origin::Node => Some(false),
        // It may be a NAT IP that nobody has named.
        Origin::Subnet(_) | Origin::Routed => is_enabled.filter(|is_enabled| !is_enabled),
    }
}

/// Whether a flow from the network ended at a pod of this node, or was sent on to one of another.
fn has_local_backend(world: &World, path: &Path) -> Option<bool> {
    let backend = path.final_tuple().daddr;
    let is_own = match world.owner(backend) {
        AddressOwner::Endpoint(id) => !world.is_host_endpoint(id),
        AddressOwner::Host => return None,
        AddressOwner::Elsewhere => false,
    };
    let is_translated = path.rewrites.iter().any(probe_model::path::Rewrite::is_dnat);
    (path.evidence.entry == Some(Entry::Network) && (is_own || is_translated)).then_some(is_own)
}

/// How packets like this one go through the node.
fn ways(world: &World, explanation: &Explanation) -> Ways {
    let to_other_node = explanation.trajectories.iter().any(|way| {
        let is_unknown = matches!(
            way.outcome,
            simulate::Outcome::Unknown(Unknown::RemotePod { .. } | Unknown::Frontend { .. })
        );
        is_unknown || way.steps.iter().any(|step| matches!(step, Step::Forward { .. }))
    });
    let through_stack = !world.config.node_port || world.config.host_legacy_routing;
    let may_be_queued = world.rules(explanation.question.tuple.daddr).is_none_or(Ruleset::may_queue);
    Ways { through_stack, may_be_queued, to_other_node }
}

/// Asks the maps about the packet as it came; where they leave the backend open, about the one that was observed.
fn explain(world: &World, path: &Path) -> Explanation {
    let (first, observed) = questions(path);
    let whole = explain::explain(world, &first);
    let Some(observed) = observed else { return whole };
    let backend_open = matches!(whole.verdict, Verdict::Inconclusive(_))
        || !whole.trajectories.iter().any(|way| way.tuple.daddr == observed.tuple.daddr);
    if backend_open { explain::explain(world, &observed) } else { whole }
}

/// The packet as it came, and as it was observed after only its destination was translated.
fn questions(path: &Path) -> (Question, Option<Question>) {
    let (first, last) = (path.tuple, path.final_tuple());
    let only_dnat = (last.saddr, last.sport) == (first.saddr, first.sport) && last != first;
    (Question::new(first), only_dnat.then(|| Question::new(last)))
}

/// The keys of conntrack that [`judge`] asks for and `world` does not know.
pub fn asked_of_conntrack(world: &World, path: &Path) -> BTreeSet<CtTuple> {
    let (first, observed) = questions(path);
    let asked = |question| simulate::simulate_noting(world, &question).1;
    let confirming = path.confirming_keys().into_iter();
    let unknown = confirming.filter(|key| world.connection(key) == Tracked::Unknown);
    asked(first).into_iter().chain(observed.into_iter().flat_map(asked)).chain(unknown).collect()
}

/// What Cilium did with the flow, as far as its notifications and the packets tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Observed {
    /// Its notification says dropped.
    Dropped(DropReason),
    /// Its notification says allowed.
    Allowed,
    /// Somebody behind it answered.
    Answered,
}

fn observed(path: &Path) -> Option<Observed> {
    match path.outcome {
        Outcome::DroppedByCilium { reason, .. } => return Some(Observed::Dropped(reason)),
        Outcome::DroppedByKernel { .. } => return None,
        Outcome::Answered
        | Outcome::AnswerLost
        | Outcome::Refused { .. }
        | Outcome::NoAnswer
        | Outcome::Silent => {}
    }
    let allows = |event: &CiliumEvent| match event.notification {
        Notification::PolicyVerdict(verdict) => verdict.drop_reason().is_none(),
        _ => false,
    };
    if path.cilium.iter().any(allows) {
        return Some(Observed::Allowed);
    }
    let answered = match path.outcome {
        Outcome::Answered | Outcome::AnswerLost => true,
        // A rule of the node that rejects answers too: only the target's own address speaks for the pod.
        Outcome::Refused { refusal, from } => refusal == Refusal::Reset || from == path.final_tuple().daddr,
        _ => false,
    };
    answered.then_some(Observed::Answered)
}

fn verdict(
    path: &Path,
    explanation: &Explanation,
    observed: Option<Observed>,
    events: &EventSource,
) -> (FlowVerdict, Evidence) {
    if path.outcome == Outcome::AnswerLost {
        // It was let in; whether the answer was let out only its leaving can tell.
        let has_left = path.is_answer_complete() && !path.replies.is_empty();
        let verdict = if has_left { FlowVerdict::Allowed } else { FlowVerdict::Inconclusive };
        return (verdict, Evidence::Packets);
    }
    match observed {
        Some(Observed::Dropped(_)) => return (FlowVerdict::Dropped, Evidence::Cilium(events.clone())),
        Some(Observed::Allowed) => return (FlowVerdict::Allowed, Evidence::Cilium(events.clone())),
        Some(Observed::Answered) => return (FlowVerdict::Allowed, Evidence::Packets),
        None => {}
    }
    match (path.outcome, &explanation.verdict) {
        (Outcome::DroppedByKernel { .. }, _) | (Outcome::Refused { .. }, Verdict::Filtered) => {
            (FlowVerdict::Dropped, Evidence::Packets)
        }
        (_, Verdict::Dropped(_) | Verdict::Filtered) => (FlowVerdict::Dropped, Evidence::Maps),
        // The maps would let it through, and yet nothing came back: the reason is not on this node, or not seen.
        _ => (FlowVerdict::Inconclusive, Evidence::Maps),
    }
}

/// Where Cilium did other than its maps say.
fn disagreement(path: &Path, explanation: &Explanation, observed: Option<Observed>) -> Option<String> {
    let did = match observed? {
        Observed::Dropped(reason) => format!("Cilium dropped it ({reason})"),
        Observed::Allowed => "Cilium let it through".to_owned(),
        Observed::Answered => "it was answered".to_owned(),
    };
    let said = match (&explanation.verdict, observed?) {
        (Verdict::Dropped(said), Observed::Dropped(reason)) if *said == reason => return None,
        (Verdict::Allowed, Observed::Allowed | Observed::Answered) | (Verdict::Inconclusive(_), _) => {
            return None;
        }
        (Verdict::Dropped(said), _) => format!("the maps say dropped ({said})"),
        (Verdict::Filtered, _) => "the node's netfilter rules say dropped".to_owned(),
        (Verdict::Allowed, Observed::Dropped(_)) => "the maps say allowed".to_owned(),
    };
    let since = if matches!(path.outcome, Outcome::DroppedByCilium { established: true, .. }) {
        " of an open connection"
    } else {
        ""
    };
    Some(format!(
        "{said}, but {did}{since}: the maps changed in between, or Cilium or plsprobe is wrong; run it again"
    ))
}

/// Where Hubble names other policies behind a verdict than the agent's realized policy does.
fn other_policies(path: &Path, explanation: &Explanation) -> Option<String> {
    let hubbles = hubble_policies(path);
    let ours = &explanation.policies;
    if hubbles.is_empty() || ours.is_empty() || hubbles.iter().any(|policy| ours.contains(policy)) {
        return None;
    }
    let list =
        |policies: &[PolicyRef]| policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(format!(
        "Hubble names {} behind the verdict, the maps and the agent's realized policy name {}: policy changed in between, or one of them is wrong",
        list(&hubbles),
        list(ours)
    ))
}

/// The policies that Hubble names behind a flow's verdicts.
pub fn hubble_policies(path: &Path) -> Vec<PolicyRef> {
    let named = path.cilium.iter().filter_map(|event| event.hubble.as_deref()).flatten();
    named.cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn origin(world: &World, address: IpAddr, nat: &NatSources) -> Origin {
    if let Some(source) = nat.names(address) {
        return Origin::PlsNatIp(source.confidence());
    }
    if is_probe_source(address) {
        return Origin::AzureProbe;
    }
    match world.owner(address) {
        AddressOwner::Endpoint(id) if !world.is_host_endpoint(id) => Origin::Pod(world.endpoint_name(id)),
        AddressOwner::Endpoint(_) | AddressOwner::Host => Origin::Node,
        AddressOwner::Elsewhere => {
            let on_link = world.links.iter().flatten().flat_map(|link| &link.addresses);
            let subnet = on_link.map(IpNet::trunc).find(|net| {
                net.prefix_len() > 0 && net.prefix_len() < net.max_prefix_len() && net.contains(&address)
            });
            subnet.map_or(Origin::Routed, Origin::Subnet)
        }
    }
}

/// The peer's identity in Cilium's own notification.
fn observed_identity(path: &Path) -> Option<Identity> {
    path.cilium.iter().find_map(|event| match event.notification {
        Notification::PolicyVerdict(verdict) if verdict.direction == Direction::Ingress => {
            Some(verdict.remote_label)
        }
        Notification::Drop(drop) => Some(drop.src_label),
        Notification::Trace(trace) => Some(trace.src_label),
        _ => None,
    })
}

fn simulated_identity(explanation: &Explanation) -> Option<Identity> {
    explanation.trajectory().steps.iter().find_map(|step| match step {
        Step::Identity { identity, .. } => Some(*identity),
        Step::Policy(step) if step.query.direction == Direction::Ingress => Some(step.query.identity),
        _ => None,
    })
}
