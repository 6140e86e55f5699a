//! What is odd about the policy objects themselves.

use super::Lint;
use super::scope::Scope;
use ipnet::IpNet;

use crate::explain::{Code, Finding, Remedy, Severity, Source, Subject, rules_selecting};
use crate::intent::object::{Part, PeerKind, Policy};
use crate::world::kubernetes::PolicyOrigin;

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    same_name(scope, lint);
    for id in &scope.endpoints {
        let rules = rules_selecting(scope.world, *id);
        let ingress = rules
            .iter()
            .flat_map(|(policy, rule)| rule.ingress.parts.iter().map(move |part| (*policy, part)));
        let parts: Vec<_> = ingress.collect();
        for (policy, part) in parts.iter().filter(|(_, part)| !part.deny) {
            never_matches(scope, policy, part, lint);
            shadowed(policy, part, &parts, lint);
        }
    }
}

/// The prefixes that a part names, with what is left of each; `None` if it names peers in another way, too.
fn prefixes(part: &Part) -> Option<Vec<(IpNet, &[IpNet])>> {
    let named = part.peers.listed.iter().map(|peer| match &peer.kind {
        PeerKind::Cidr { cidr, remaining, .. } => Some((*cidr, remaining.as_slice())),
        PeerKind::Labels | PeerKind::Entity(_) => None,
    });
    named.collect::<Option<Vec<_>>>().filter(|named| !named.is_empty())
}

/// A rule that names only what Cilium never matches by address, or nothing at all.
fn never_matches(scope: &Scope<'_>, policy: &Policy, part: &Part, lint: &mut Lint) {
    let Some(named) = prefixes(part) else { return };
    let ipcache = scope.world.ipcache.as_ref();
    let whose = |prefix: &IpNet| {
        let (known, info) = ipcache?.lookup(prefix.network())?;
        let identity = info.sec_identity;
        let is_outside = identity.is_world() || identity.is_local_scope();
        (known.contains(prefix) && !is_outside).then_some(identity)
    };
    let why = |(cidr, remaining): &(IpNet, &[IpNet])| match (remaining.is_empty(), whose(cidr)) {
        (true, _) => Some(format!("nothing is left of {cidr} once its excepts are taken out")),
        (false, Some(identity)) => Some(format!("{cidr} is {}", scope.world.identity_text(identity))),
        (false, None) => None,
    };
    let Some(reasons) = named.iter().map(why).collect::<Option<Vec<_>>>() else { return };
    let reference = &policy.reference;
    let sentence = format!(
        "{reference}, {}: this rule admits nobody: Cilium never matches pods and nodes by address, and what is taken out is not there",
        part.path
    );
    let mut finding = Finding::new(Code::WrongAddresses, Subject::of_policy(reference), sentence);
    finding.severity = Severity::Warning;
    for reason in reasons {
        finding = finding.because(Source::Maps, reason);
    }
    lint.findings.push(finding.remedy(Remedy::Text(
        "name pods by their labels, nodes by the entities host and remote-node (in a CiliumNetworkPolicy), and Private Link by the NAT subnet"
            .to_owned(),
    )));
}

/// A rule whose peers and ports a deny rule has, too: a deny beats every allow.
fn shadowed(policy: &Policy, part: &Part, all: &[(&Policy, &Part)], lint: &mut Lint) {
    let Some(named) = prefixes(part) else { return };
    let covers = |deny: &Part| {
        let Some(denied) = prefixes(deny) else { return false };
        let is_denied =
            |left: &IpNet| denied.iter().any(|(_, gone)| gone.iter().any(|own| own.contains(left)));
        // Only a deny of every port is known to beat all of an allow.
        deny.ports.is_none() && named.iter().all(|(_, left)| !left.is_empty() && left.iter().all(is_denied))
    };
    let Some((by, deny)) = all.iter().find(|(_, other)| other.deny && covers(other)) else { return };
    let reference = &policy.reference;
    let sentence = format!(
        "{reference}, {}: this rule has no effect: {}, {} denies the same addresses, and a deny beats every allow",
        part.path, by.reference, deny.path
    );
    let mut finding = Finding::new(Code::ExplicitDeny, Subject::of_policy(reference), sentence);
    finding.severity = Severity::Warning;
    let prefixes = named.iter().map(|(cidr, _)| cidr.to_string()).collect::<Vec<_>>().join(", ");
    lint.findings.push(
        finding.because(Source::Agent, format!("both rules are in force, for {prefixes}")).remedy(
            Remedy::Text(
                "take the addresses out of the deny rule by an except, or take the allow rule away"
                    .to_owned(),
            ),
        ),
    );
}

/// Two objects of one name: whichever is applied last replaces the other.
fn same_name(scope: &Scope<'_>, lint: &mut Lint) {
    let all = &scope.world.kubernetes.policies;
    for (at, first) in all.iter().enumerate() {
        let other = all.iter().skip(at + 1).find(|other| {
            (other.kind, &other.namespace, &other.name) == (first.kind, &first.namespace, &first.name)
        });
        let Some(other) = other.filter(|other| other.json != first.json) else { continue };
        let sentence = match (&first.origin, &other.origin) {
            (PolicyOrigin::File { .. }, PolicyOrigin::File { .. }) => format!(
                "two objects are named {first} ({} and {}): whichever is applied last replaces the other, and its rules are gone",
                first.origin, other.origin
            ),
            _ => format!(
                "{first} of {} replaces that of {}, which says something else",
                other.origin, first.origin
            ),
        };
        lint.findings.push(
            Finding::new(Code::PolicyReplaced, Subject::of_policy(&first.reference()), sentence)
                .because(
                    Source::Kubernetes,
                    format!("{} and {} have different specs", first.origin, other.origin),
                )
                .remedy(Remedy::Text("give each policy a name of its own".to_owned())),
        );
    }
}
