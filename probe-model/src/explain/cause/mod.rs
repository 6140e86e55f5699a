//! The cause in one line, with a stable code.
//!
//! Codes `PLS-nn` are those of the project's catalogue of root causes.

mod datapath;
mod policy;

use std::net::Ipv4Addr;

use super::catalogue::Code;
use super::near_miss::NearMiss;
use super::{Verdict, policies_selecting};
use crate::cilium::Direction;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::identity::Identity;
use crate::cilium::policy::{PolicyKey, PolicyLayout};
use crate::simulate::{Destination, Outcome, PolicyStep, Step, Trajectory, Unjudged, Unknown};
use crate::tuple::Protocol;
use crate::world::{Missing, PolicyRef, World};

/// The address of Azure's health probes and DNS.
pub const AZURE_PROBE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Why, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Stable code.
    pub code: Code,
    /// One sentence without its full stop.
    pub sentence: String,
}

impl Cause {
    fn new(code: Code, sentence: String) -> Self {
        Self { code, sentence }
    }
}

pub(super) fn cause(
    world: &World,
    verdict: &Verdict,
    way: &Trajectory,
    policies: &[PolicyRef],
    near_miss: Option<&NearMiss>,
) -> Cause {
    if let Verdict::Inconclusive(facts) = verdict {
        return Cause::new(Code::Inconclusive, facts.join("; "));
    }
    match &way.outcome {
        Outcome::Dropped(DropReason::POLICY) => policy::default_deny(world, way, policies, near_miss),
        Outcome::Dropped(DropReason::POLICY_DENY) => policy::explicit_deny(world, way, policies),
        Outcome::Dropped(reason) => datapath::dropped(world, way, *reason),
        Outcome::Filtered { rule, rejected } => datapath::filtered(rule, *rejected),
        Outcome::Allowed(destination) => allowed(world, way, destination, policies),
        Outcome::Unknown(unknown) => Cause::new(Code::Inconclusive, unknown_text(world, unknown)),
    }
}

/// A missing fact that decides, as a clause.
pub fn unknown_text(world: &World, unknown: &Unknown) -> String {
    match unknown {
        Unknown::Frontend { address, port } => {
            let (lb, rules) = (world.load_balancer(Family::of(*address)), world.rules(*address));
            let sources = match (lb, rules) {
                (Some(_), Some(_)) => "neither Cilium's service map nor the node's netfilter rules have it",
                (Some(_), None) => {
                    "Cilium's service map has none, and the node's netfilter rules are not known"
                }
                (None, Some(_)) => "the netfilter rules have none, and Cilium's service map is not known",
                (None, None) => "neither Cilium's service map nor the node's netfilter rules are known",
            };
            let frontend = std::net::SocketAddr::new(*address, *port);
            format!("no source knows a frontend {frontend}: {sources}")
        }
        Unknown::RemotePod { address, node: Some(node) } => {
            format!("{address} is on node {node}, whose policy decides and is not known here")
        }
        Unknown::RemotePod { address, node: None } => {
            format!("{address} is no endpoint of this node, and no node is known to have it")
        }
        Unknown::Rule(rule) => format!("a netfilter rule decides by what plsprobe cannot know: {rule}"),
        Unknown::Fact(name) => match world.missing(name).or_else(|| other_generation(world, name)) {
            Some(missing) => missing.to_string(),
            None => format!("`{name}` is not known"),
        },
        Unknown::L7Proxy { port } => {
            format!("Cilium redirects to the L7 proxy on port {port}, which decides")
        }
        Unknown::Authentication { auth_type } => {
            format!("mutual authentication (type {auth_type}) decides, and whether it holds is not known")
        }
        Unknown::Nat46x64 => {
            "it would have to be translated between IPv4 and IPv6, which is not simulated".to_owned()
        }
        Unknown::Version(what) => {
            format!("Cilium's versions differ in {what}, and no policy map tells which version this is")
        }
    }
}

/// The same endpoint's policy map under a pin of another generation, which was not read.
fn other_generation<'w>(world: &'w World, pin: &str) -> Option<&'w Missing> {
    let id = pin.strip_prefix("cilium_policy_")?;
    world
        .missing
        .iter()
        .find(|missing| missing.what.starts_with("cilium_policy_") && missing.what.ends_with(id))
}

/// The pod's name and what it is asked for, `default/pls-app` and `TCP/80`.
fn subject(world: &World, step: &PolicyStep) -> (String, String) {
    let name = world.endpoint_name(step.endpoint);
    let protocol = Protocol(step.query.protocol);
    let port = if protocol.has_ports() || protocol.is_icmp() {
        let port = step.query.port;
        if protocol.is_icmp() { format!("{protocol} type {port}") } else { format!("{protocol}/{port}") }
    } else {
        protocol.to_string()
    };
    (name, port)
}

fn list(policies: &[PolicyRef]) -> String {
    policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn allowed(world: &World, way: &Trajectory, destination: &Destination, policies: &[PolicyRef]) -> Cause {
    if let Some(Step::Reply(entry)) = way.steps.iter().find(|step| matches!(step, Step::Reply(_))) {
        return Cause::new(
            Code::Reply,
            format!("it answers a connection that conntrack knows ({entry}); answers are not judged"),
        );
    }
    if let Some(Step::Related(entry)) = way.steps.iter().find(|step| matches!(step, Step::Related(_))) {
        let text = format!("it is an ICMP error about a connection that conntrack knows ({entry})");
        return Cause::new(Code::Related, format!("{text}; those are not judged"));
    }
    let Some(step) = way.deciding_policy() else {
        return Cause::new(Code::NoPolicy, no_policy(way, destination).to_owned());
    };
    let (name, port) = subject(world, step);
    let direction = step.query.direction;
    let peer = world.identity_text(step.query.identity);
    match step.decision.entry {
        Some((key, _)) if policies.is_empty() && is_open(world, step, &key) => open(world, step, &name),
        Some((key, _)) if key.sec_label == Identity::HOST && policies.is_empty() => Cause::new(
            Code::AllowLocalhost,
            format!("Cilium always lets the node reach its own pods ({name})"),
        ),
        Some((key, _)) => {
            let who =
                if policies.is_empty() { "an entry of no known policy".to_owned() } else { list(policies) };
            let verb = if policies.len() > 1 { "admit" } else { "admits" };
            let whom =
                if key.sec_label == Identity::UNKNOWN { format!("everybody, so also {peer},") } else { peer };
            let preposition = if direction == Direction::Ingress { "to" } else { "from" };
            Cause::new(Code::Allowed, format!("{who} {verb} {whom} {preposition} {name} on {port}"))
        }
        None => Cause::new(Code::Audit, format!("policy audit mode lets {peer} through to {name} on {port}")),
    }
}

/// Why no policy was asked, as a clause.
fn no_policy(way: &Trajectory, destination: &Destination) -> &'static str {
    let unjudged = way.steps.iter().find_map(|step| match step {
        Step::Unjudged(why) => Some(*why),
        _ => None,
    });
    match (unjudged, destination) {
        (Some(Unjudged::Loopback), _) => "a pod reaches itself through a service, which no policy judges",
        (Some(Unjudged::FragmentationNeeded), _) => {
            "ICMP fragmentation needed is let through before any policy is asked"
        }
        (None, Destination::Host) => "it goes to the node itself, which pod policies do not cover",
        (None, _) => "no policy is asked on its way through this node",
    }
}

/// Whether the entry is the agent's own for everybody, where nothing is enforced; from 1.20 on there is one for every class
/// of identities.
fn is_open(world: &World, step: &PolicyStep, key: &PolicyKey) -> bool {
    const CLASSES: [Identity; 5] = [
        Identity::UNKNOWN,
        Identity::WORLD,
        Identity::REMOTE_NODE,
        Identity::POLICY_CLUSTER,
        Identity::POLICY_CLUSTERMESH,
    ];
    if key.l4_prefix() != 0 {
        return false;
    }
    let map = world.policy.get(&step.endpoint).map(|policy| &policy.map);
    let Some(map) = map.filter(|map| map.layout() == PolicyLayout::Aggregates) else {
        return key.sec_label == Identity::UNKNOWN;
    };
    let all = map.iter().filter(|(other, entry)| {
        other.l4_prefix() == 0
            && other.direction == key.direction
            && !entry.deny()
            && CLASSES.contains(&other.sec_label)
    });
    CLASSES.contains(&key.sec_label) && all.count() == CLASSES.len()
}

/// The direction is not enforced: said with the policies that select the pod for the other direction only.
fn open(world: &World, step: &PolicyStep, name: &str) -> Cause {
    let direction = step.query.direction;
    let other = match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    };
    let nobody = format!("{direction} of {name} is open: no policy selects it for {direction}");
    let only_other = policies_selecting(world, step.endpoint, other);
    if only_other.is_empty() || direction == Direction::Egress {
        return Cause::new(Code::Open, nobody);
    }
    let verb = if only_other.len() == 1 { "limits" } else { "limit" };
    Cause::new(Code::EgressOnly, format!("{nobody} ({} only {verb} {other})", list(&only_other)))
}
