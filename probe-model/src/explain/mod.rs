//! Why: from the ways through the node to one verdict, its cause, and the policies behind it.

mod advice;
mod attribution;
mod catalogue;
mod cause;
mod finding;
mod history;
mod near_miss;
mod observed;
mod remedy;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::cilium::ct::CtTuple;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::policy::PolicyVerdict;
use crate::simulate::{IdentityOrigin, Outcome, PolicyStep, Question, Step, Trajectory, simulate_noting};
use crate::tuple::Protocol;
use crate::world::{ConfigSource, PolicyRef, World};

pub use advice::{Advice, Origin, Tried, advise};
pub use attribution::{policies_behind, policies_selecting, rules_selecting};
pub use catalogue::{Area, Code, Severity};
pub use cause::{AZURE_PROBE, Cause, unknown_text};
pub use finding::{Evidence, FilePosition, Finding, Remedy, Source, Subject, SubjectKind};
pub use history::{JudgedAs, Masquerade, SourceBy, SourceHop, source_history};
pub use near_miss::{FailedField, NearMiss, near_miss};
pub use observed::{idle_reset, observed};
pub(crate) use remedy::{keep_source, patch};

/// What plsprobe says of a packet, with its evidence.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The packet asked about.
    pub question: Question,
    /// The answer.
    pub verdict: Verdict,
    /// Every way through the node; more than one where a backend is chosen at random.
    pub trajectories: Vec<Trajectory>,
    /// The cause, in one line.
    pub cause: Cause,
    /// The policies behind the verdict: those that put the deciding entry there, or whose selection makes none a deny.
    pub policies: Vec<PolicyRef>,
    /// For a default deny: the entry that came nearest.
    pub near_miss: Option<NearMiss>,
    /// What the answer assumes, and what is odd.
    pub caveats: Vec<Caveat>,
}

impl Explanation {
    /// The first way; the answer's evidence, as a verdict is only given where every way has it.
    pub fn trajectory(&self) -> &Trajectory {
        // `simulate` gives at least one way.
        &self.trajectories[0]
    }

    /// The answer's cause as a finding, with what proves it.
    pub fn finding(&self, world: &World) -> Finding {
        let subject = match self.policies.first() {
            Some(policy) => Subject::of_policy(policy),
            None => {
                self.policy().map_or_else(Subject::of_node, |step| Subject::of_endpoint(world, step.endpoint))
            }
        };
        let mut finding = Finding::new(self.cause.code, subject, self.cause.sentence.clone());
        for (source, what) in evidence(world, self.trajectory()) {
            finding = finding.because(source, what);
        }
        finding.remedy = self.remedies(world);
        finding.assumptions.extend(self.caveats.iter().map(|caveat| caveat.code));
        finding
    }

    /// The policy check that decided, if one did.
    pub fn policy(&self) -> Option<&PolicyStep> {
        self.trajectory().deciding_policy()
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing on this node stops the packet.
    Allowed,
    /// Cilium drops it.
    Dropped(DropReason),
    /// The node's netfilter drops or rejects it.
    Filtered,
    /// It cannot be said: the facts that decide and are missing, or backends that fare differently.
    Inconclusive(Vec<String>),
}

/// Something the reader must know to trust the answer, with a stable code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caveat {
    /// Stable code.
    pub code: Code,
    /// One clause.
    pub text: String,
}

/// Explains what happens to the packet of `question`, and why.
///
/// Cannot fail: a missing fact that decides makes the verdict inconclusive, any other becomes a caveat.
pub fn explain(world: &World, question: &Question) -> Explanation {
    let (trajectories, unknown_entries) = simulate_noting(world, question);
    let verdict = verdict(world, &trajectories);
    let first = &trajectories[0];
    let policies =
        first.deciding_policy().map(|step| attribution::policies_of(world, step)).unwrap_or_default();
    let default_deny = matches!(first.outcome, Outcome::Dropped(DropReason::POLICY));
    let near_miss =
        first.deciding_policy().filter(|_| default_deny).and_then(|step| near_miss(world, step, step.peer()));
    let cause = cause::cause(world, &verdict, first, &policies, near_miss.as_ref());
    let mut caveats = caveats(world, question, first);
    caveats.extend(conntrack_unknown(world, &unknown_entries));
    Explanation { question: *question, verdict, trajectories, cause, policies, near_miss, caveats }
}

/// What proves a way: the identity of the peer, the rules that rewrote it, the entry that decided.
fn evidence(world: &World, way: &Trajectory) -> Vec<(Source, String)> {
    let ended = match &way.outcome {
        Outcome::Dropped(reason) if way.deciding_policy().is_none() => {
            Some((Source::Maps, format!("by its maps Cilium drops it: {reason}")))
        }
        Outcome::Filtered { rule, .. } => Some((Source::Netfilter, rule.clone())),
        _ => None,
    };
    let steps = way.steps.iter();
    let steps = steps.filter_map(|step| match step {
        Step::Netfilter { rule, after, .. } => Some((Source::Netfilter, format!("{rule} makes it {after}"))),
        Step::Identity { address, identity, .. } => {
            Some((Source::Maps, format!("{address} is {}", world.identity_text(*identity))))
        }
        Step::Policy(step) => Some((Source::Maps, entry_evidence(world, step))),
        _ => None,
    });
    steps.chain(ended).collect()
}

fn entry_evidence(world: &World, step: &PolicyStep) -> String {
    let PolicyStep { map, query, decision, .. } = step;
    let protocol = Protocol(query.protocol);
    match &decision.entry {
        Some((key, entry)) => {
            let verb = if entry.deny() { "denies" } else { "admits" };
            let whom = match key.sec_label {
                Identity::UNKNOWN => "everybody".to_owned(),
                label => world.identity_text(label),
            };
            format!("the entry for {whom} in {map} {verb} it")
        }
        None => format!(
            "no entry in {map} for {} of {}, {}/{protocol}",
            query.direction,
            world.identity_text(query.identity),
            query.port
        ),
    }
}

/// One verdict from every way.
fn verdict(world: &World, trajectories: &[Trajectory]) -> Verdict {
    let unknown: Vec<_> = trajectories
        .iter()
        .filter_map(|way| match &way.outcome {
            Outcome::Unknown(unknown) => Some(unknown_text(world, unknown)),
            _ => None,
        })
        .collect();
    if !unknown.is_empty() {
        return Verdict::Inconclusive(unknown);
    }
    let verdicts: Vec<_> = trajectories.iter().map(|way| of_outcome(&way.outcome)).collect();
    if verdicts.iter().all(|verdict| *verdict == verdicts[0]) {
        return verdicts.into_iter().next().unwrap_or(Verdict::Allowed);
    }
    let each = trajectories.iter().zip(&verdicts).map(|(way, verdict)| {
        let case = case(world, way);
        match verdict {
            Verdict::Dropped(reason) => format!("{case} is dropped: {reason}"),
            Verdict::Filtered => format!("{case} is dropped by netfilter"),
            _ => format!("{case} is allowed"),
        }
    });
    Verdict::Inconclusive(each.collect())
}

/// What sets a way apart from the others: the backend, or what the sending node marked the packet as.
fn case(world: &World, way: &Trajectory) -> String {
    let from_tunnel = matches!(way.steps.first(), Some(Step::FromNetwork { overlay: true, .. }));
    let judged = way.steps.iter().find_map(|step| match step {
        Step::Identity { identity, origin, .. } if from_tunnel => Some((*identity, *origin)),
        _ => None,
    });
    let source = way.sent.saddr;
    match judged {
        Some((identity, IdentityOrigin::SentOn)) => {
            let whose = world.identity_text(identity);
            format!("what {source}'s node sends on from outside, judged as {whose},")
        }
        Some((identity, _)) => format!("{source}'s own, judged as {},", world.identity_text(identity)),
        None => format!("backend {}", SocketAddr::new(way.tuple.daddr, way.tuple.dport)),
    }
}

fn of_outcome(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Allowed(_) => Verdict::Allowed,
        Outcome::Dropped(reason) => Verdict::Dropped(*reason),
        Outcome::Filtered { .. } => Verdict::Filtered,
        Outcome::Unknown(_) => Verdict::Inconclusive(Vec::new()),
    }
}

/// What conntrack has of the packet and nobody can tell: by the maps' names, with the reasons.
fn conntrack_unknown(world: &World, entries: &BTreeSet<CtTuple>) -> Option<Caveat> {
    let first = entries.first()?;
    let unread = entries.iter().filter(|key| world.connection(key).entry().is_none());
    let unread: BTreeSet<_> = unread.map(CtTuple::map).collect();
    let named = |map: &String| world.missing(map).map_or_else(|| format!("`{map}`"), ToString::to_string);
    let unread = unread.iter().map(named).collect::<Vec<_>>().join("; ");
    let what = if unread.is_empty() {
        format!(
            "`{}` has a closing entry of it, which Cilium opens again up to 1.15 and not later",
            first.map()
        )
    } else {
        format!("what conntrack has of it is not known ({unread})")
    };
    Some(Caveat { code: Code::ConntrackUnknown, text: format!("{what}: judged as a new connection") })
}

fn caveats(world: &World, question: &Question, way: &Trajectory) -> Vec<Caveat> {
    let mut all = Vec::new();
    let mut add = |code, text: String| all.push(Caveat { code, text });
    if world.config.source == ConfigSource::Pins {
        let mode =
            if world.config.node_port { "kube-proxy replacement" } else { "no kube-proxy replacement" };
        add(
            Code::ConfigByPins,
            format!("the agent's configuration is not known; the pinned maps say {mode}"),
        );
    }
    let from_host = matches!(way.steps.first(), Some(Step::FromHost));
    if from_host {
        let address = question.tuple.saddr;
        add(
            Code::LocallySent,
            format!("{address} is this node's own address: judged as sent by the node itself"),
        );
    }
    let rules = world.rules(question.tuple.daddr);
    if from_host && rules.is_none() {
        let text = "the node's netfilter rules are not known: assumed that Cilium's own rule marks what the host sends";
        add(Code::HostMark, text.to_owned());
    }
    let through_stack = !world.config.node_port || world.config.host_legacy_routing;
    if through_stack && rules.is_none() && !from_host {
        let text = "the packet passes the host's stack, where netfilter may rewrite or drop it; its rules are not known";
        add(Code::NetfilterUnknown, text.to_owned());
    }
    for step in way.policy_steps().filter(|step| step.audited) {
        let endpoint = step.endpoint;
        let PolicyVerdict::Drop(reason) = step.decision.verdict else { continue };
        add(
            Code::AuditMode,
            format!("policy audit mode lets through what endpoint {endpoint} would drop: {reason}"),
        );
    }
    if let Some(step) = way.deciding_policy() {
        let policy = world.endpoints.get(&step.endpoint).and_then(|endpoint| endpoint.policy.as_ref());
        if let Some(policy) = policy.filter(|policy| policy.revision < policy.desired_revision) {
            let (realized, desired) = (policy.revision, policy.desired_revision);
            add(
                Code::PolicyPending,
                format!("the datapath has policy revision {realized}, the agent wants {desired}"),
            );
        }
    }
    all
}
