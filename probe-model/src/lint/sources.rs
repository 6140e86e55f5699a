//! What policy and the node make of Private Link's own packets: one packet of every NAT IP, judged.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Lint;
use super::judge::{Judged, judge};
use super::scope::{Entry, Scope};
use crate::cilium::identity::Identity;
use crate::cilium::ipcache::Ipcache;
use crate::explain::{
    Code, Explanation, Finding, Remedy, Severity, Source, SourceBy, Subject, keep_source, policies_behind,
    source_history,
};
use crate::simulate::{Destination, Outcome, PolicyStep, Sender, Step, Trajectory, Unknown};
use crate::world::nat::NatSource;
use crate::world::{PolicyRef, RoutingMode, World};

/// Addresses looked through for one that no prefix covers.
const CANDIDATES: usize = 256;

pub(super) fn check(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) {
    if sources.is_empty() {
        lint.unjudged(
            "Private Link's packets".to_owned(),
            "no source knows its NAT IPs: give them as --pls-nat-ip, or the subnet as --pls-subnet"
                .to_owned(),
        );
    }
    if scope.entries.is_empty() {
        lint.unjudged(
            "Private Link's packets".to_owned(),
            format!("no load balancer's address is known that leads to {}", scope.name),
        );
    }
    for entry in &scope.entries {
        for address in addresses(scope.world, sources) {
            check_one(scope, *entry, address, lint);
        }
    }
}

fn check_one(scope: &Scope<'_>, entry: Entry, address: IpAddr, lint: &mut Lint) {
    match judge(scope.world, entry, address) {
        Judged::Dropped(finding) => lint.findings.push(finding),
        Judged::Allowed(explanation) => passes_although(scope, &explanation, lint),
        Judged::Unknown(explanation, why) => {
            if let Some(finding) = decided_elsewhere(scope, &explanation) {
                lint.findings.push(finding);
            } else if !by_node(scope, &explanation, lint) {
                lint.unjudged(format!("a packet from {address} to {}", entry.socket), why);
            }
        }
    }
}

/// The addresses to judge: each known one, and of each range one of every identity in it.
fn addresses(world: &World, sources: &[NatSource]) -> BTreeSet<IpAddr> {
    sources.iter().flat_map(|source| of_range(world, source.prefix)).collect()
}

/// One address of every prefix of the ipcache within the range, and one that none of them covers.
fn of_range(world: &World, range: IpNet) -> Vec<IpAddr> {
    let inside = world.ipcache.iter().flat_map(Ipcache::entries);
    let inside: Vec<_> = inside.map(|(prefix, _)| prefix).filter(|prefix| range.contains(prefix)).collect();
    if range.prefix_len() == range.max_prefix_len() {
        return vec![range.addr()];
    }
    let covered = |address: &IpAddr| inside.iter().any(|prefix| prefix.contains(address));
    // Azure keeps a subnet's first three addresses to itself.
    let free =
        range.hosts().skip(3).take(CANDIDATES).find(|address| {
            !covered(address) && world.owner(*address) == crate::world::AddressOwner::Elsewhere
        });
    let own = inside.iter().map(IpNet::network).filter(|address| {
        world.ipcache.as_ref().and_then(|ipcache| ipcache.lookup(*address)).is_some_and(|(_, info)| {
            let identity = info.sec_identity;
            identity.is_local_scope() || identity.is_world()
        })
    });
    own.chain(free).collect()
}

/// What gets through that an operator may not expect to.
fn passes_although(scope: &Scope<'_>, explanation: &Explanation, lint: &mut Lint) {
    if explanation.cause.code == Code::EgressOnly {
        lint.findings.push(explanation.finding(scope.world));
        return;
    }
    let Some((key, _)) = explanation.policy().and_then(|step| step.decision.entry.as_ref()) else { return };
    if explanation.policies.is_empty() {
        return;
    }
    let whom = match key.sec_label {
        Identity::UNKNOWN => "everybody",
        label if label.is_world() => "everything outside the cluster (world)",
        Identity::REMOTE_NODE => "every other node, and so whoever comes by one",
        _ => return,
    };
    let policies = &explanation.policies;
    let names = policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let sentence = format!(
        "{names} admits {whom} to {}, not Private Link alone",
        explanation
            .policy()
            .map_or_else(|| scope.name.clone(), |step| scope.world.endpoint_name(step.endpoint))
    );
    let shown = format!(
        "the entry that admits {} is for {}",
        explanation.question.tuple.saddr,
        scope.world.identity_text(key.sec_label)
    );
    lint.findings.push(
        Finding::new(Code::TooWide, Subject::of_policy(&policies[0]), sentence)
            .because(Source::Maps, shown)
            .remedy(Remedy::Text("admit the NAT subnet by ipBlock, then take the wide rule away".to_owned())),
    );
}

/// Policy admits it by port and peer, and hands it to Cilium's proxy, or asks both ends to authenticate.
fn decided_elsewhere(scope: &Scope<'_>, explanation: &Explanation) -> Option<Finding> {
    let way = explanation.trajectories.iter().find_map(|way| match &way.outcome {
        Outcome::Unknown(unknown @ (Unknown::L7Proxy { .. } | Unknown::Authentication { .. })) => {
            Some((way, unknown))
        }
        _ => None,
    });
    let (way, unknown) = way?;
    let step = way.deciding_policy()?;
    let policies = policies_behind_step(scope.world, step);
    let names = policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let who = if names.is_empty() { "policy".to_owned() } else { names };
    let what = match unknown {
        Unknown::Authentication { .. } => {
            "asks both ends to authenticate, which Private Link's clients cannot"
        }
        _ => "hands the connection to Cilium's proxy, whose HTTP or other L7 rules decide",
    };
    let subject = policies.first().map_or_else(|| scope.subject(), Subject::of_policy);
    let pod = scope.world.endpoint_name(step.endpoint);
    let mut finding = Finding::new(Code::L7OrAuth, subject, format!("{who} admits the packet to {pod} by address and port, and {what}"))
        .because(Source::Maps, crate::explain::unknown_text(scope.world, unknown))
        .remedy(Remedy::Text("see what the policy's HTTP or authentication part asks for, and test it with a request of the consumer's".to_owned()));
    finding.severity = Severity::Warning;
    Some(finding)
}

fn policies_behind_step(world: &World, step: &PolicyStep) -> Vec<PolicyRef> {
    let entry = step.decision.entry.as_ref();
    entry.map_or_else(Vec::new, |(key, entry)| policies_behind(world, step.endpoint, key, entry.deny()))
}

/// Which way a packet takes by the backend that was chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To a pod of this node, which lets it in.
    Admitted,
    /// To a pod of this node, which does not.
    Denied,
    /// To a pod of another node, with this node's address as its source.
    Rewritten,
    /// Anything else.
    Other,
}

fn way_of(way: &Trajectory) -> Way {
    let rewritten =
        way.steps.iter().any(|step| matches!(step, Step::Forward { sender: Sender::ThisNode(_), .. }));
    match &way.outcome {
        _ if rewritten => Way::Rewritten,
        Outcome::Allowed(Destination::Endpoint(_)) => Way::Admitted,
        Outcome::Dropped(_) | Outcome::Filtered { .. } => Way::Denied,
        _ => Way::Other,
    }
}

/// Backends on other nodes see this node as the source: the causes that only the choice of the backend tells apart.
///
/// Whether it said all there is to say.
fn by_node(scope: &Scope<'_>, explanation: &Explanation, lint: &mut Lint) -> bool {
    let world = scope.world;
    let address = explanation.question.tuple.saddr;
    let ways: Vec<_> = explanation.trajectories.iter().map(way_of).collect();
    if !ways.contains(&Way::Rewritten) || !names_address(world, address, explanation) {
        return false;
    }
    let tunnel = world.config.routing == RoutingMode::Tunnel;
    let (code, seen) = match (ways.contains(&Way::Admitted), tunnel) {
        (true, _) => (Code::SomeNodesOnly, if tunnel { "world" } else { "a remote node" }),
        (false, true) => (Code::RemoteAsWorld, "world"),
        (false, false) => (Code::RemoteAsNode, "a remote node"),
    };
    let history = explanation.trajectories.iter().map(|way| source_history(world, way));
    let rewritten = history.flatten().find_map(|hop| match hop.by {
        SourceBy::CiliumForward { node } => Some((hop.address, node)),
        _ => None,
    });
    let node = rewritten.and_then(|(_, node)| node);
    let to = node.map_or_else(String::new, |node| format!(" (node {node})"));
    let by = rewritten.map_or_else(|| "its own address".to_owned(), |(address, _)| address.to_string());
    let remote = ways.iter().filter(|way| **way == Way::Rewritten).count();
    let sentence = match code {
        Code::SomeNodesOnly => format!(
            "{remote} of {} backends of {} are on other nodes, which see {by} instead of {address} and judge it as {seen}: a rule for the NAT IP admits only what is for a pod of the node it came to",
            ways.len(),
            scope.name
        ),
        _ => format!(
            "the pods of {} are on other nodes, which see {by} instead of {address} and judge it as {seen}: a rule for the NAT IP can never match there{to}",
            scope.name
        ),
    };
    let mut finding = Finding::new(code, scope.subject(), sentence)
        .because(Source::Maps, format!("{remote} of {} backends are no endpoints of this node", ways.len()));
    finding.remedy = keep_source(scope.service);
    lint.findings.push(finding);
    true
}

/// Whether a rule names the address: it has an identity of its own here, or the pods' policies admit it by one.
fn names_address(world: &World, address: IpAddr, explanation: &Explanation) -> bool {
    let own = world.ipcache.as_ref().and_then(|ipcache| ipcache.lookup(address));
    let is_named = own.is_some_and(|(_, info)| info.sec_identity.is_local_scope());
    is_named || explanation.trajectories.iter().any(|way| way_of(way) == Way::Denied)
}
