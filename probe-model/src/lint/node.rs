//! What this node's Cilium makes of it: whether policy is enforced at all, and whether the agent is up to date.

use super::Lint;
use super::scope::Scope;
use crate::explain::{Code, Finding, Remedy, Source, Subject};
use crate::world::kubernetes::{PolicyKind, PolicyObject, PolicyOrigin};
use crate::world::{Endpoint, PolicyRef};

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    for id in &scope.endpoints {
        let Some(endpoint) = scope.world.endpoints.get(id) else { continue };
        not_enforced(scope, endpoint, lint);
        behind(scope, endpoint, lint);
    }
    not_installed(scope, lint);
}

/// Audit mode, or enforcement switched off.
fn not_enforced(scope: &Scope<'_>, endpoint: &Endpoint, lint: &mut Lint) {
    let world = scope.world;
    let by_endpoint = endpoint.policy.as_ref().is_some_and(|policy| policy.audit_mode);
    let option = world.kubernetes.cilium_config.as_ref().and_then(|config| config.get("enable-policy"));
    let never = option.is_some_and(|value| value == "never");
    let (why, source, shown) = match (world.config.audit_mode, by_endpoint, never) {
        (true, ..) => {
            ("the agent is in policy audit mode", Source::Agent, "PolicyAuditMode is on for the agent")
        }
        (_, true, _) => {
            ("this endpoint is in policy audit mode", Source::Agent, "PolicyAuditMode is on for the endpoint")
        }
        (.., true) => {
            ("enable-policy is never", Source::Kubernetes, "cilium-config has enable-policy: never")
        }
        _ => return,
    };
    let sentence = format!(
        "policy is not enforced on {}: {why}, so what a policy forbids gets through",
        endpoint.name()
    );
    lint.findings.push(
        Finding::new(Code::EnforcementOff, Subject::of_endpoint(scope.world, endpoint.id), sentence)
            .because(source, shown)
            .remedy(Remedy::Text("switch it off once what it would drop is understood".to_owned())),
    );
}

/// The datapath has an older policy than the agent wants.
fn behind(scope: &Scope<'_>, endpoint: &Endpoint, lint: &mut Lint) {
    let Some(policy) = endpoint.policy.as_ref().filter(|policy| policy.revision < policy.desired_revision)
    else {
        return;
    };
    let (realized, desired) = (policy.revision, policy.desired_revision);
    let sentence = format!(
        "{} has policy revision {realized}, and the agent wants {desired}: until that is installed the older policy decides",
        endpoint.name()
    );
    lint.findings.push(
        Finding::new(Code::AgentStale, Subject::of_endpoint(scope.world, endpoint.id), sentence)
            .because(Source::Agent, format!("policy revision {realized} realized, {desired} wanted"))
            .remedy(Remedy::Text(
                "look again in a few seconds; if it stays so, read the agent's log on this node".to_owned(),
            )),
    );
}

/// Policies that the Kubernetes API has and the agent has not, or the other way round.
fn not_installed(scope: &Scope<'_>, lint: &mut Lint) {
    let world = scope.world;
    let Some(rules) = &world.rules else { return };
    let from_api = || world.kubernetes.policies.iter().filter(|own| own.origin == PolicyOrigin::Kubernetes);
    let installed = |wanted: &PolicyRef| rules.policies.iter().any(|own| own.reference == *wanted);
    let namespaces: Vec<_> = scope.namespaces().collect();
    let is_relevant = |namespace: &Option<String>| {
        namespace.as_ref().is_none_or(|own| namespaces.iter().any(|wanted| wanted == own))
    };
    for wanted in from_api()
        .map(PolicyObject::reference)
        .filter(|wanted| is_relevant(&wanted.namespace) && !installed(wanted))
    {
        push(
            lint,
            &wanted,
            format!("the agent of this node has not installed {wanted}, which the Kubernetes API has"),
        );
    }
    let gone = rules.policies.iter().map(|own| &own.reference).filter(|policy| {
        let kind = PolicyKind::ALL.into_iter().find(|kind| kind.name() == policy.kind);
        let is_listed = kind.is_some_and(|kind| world.kubernetes.complete.contains(&kind));
        is_listed && is_relevant(&policy.namespace) && !from_api().any(|own| own.reference() == **policy)
    });
    let mut gone: Vec<_> = gone.cloned().collect();
    gone.sort();
    gone.dedup();
    for policy in gone {
        push(
            lint,
            &policy,
            format!("the agent of this node still has {policy}, which the Kubernetes API has no more"),
        );
    }
}

fn push(lint: &mut Lint, policy: &PolicyRef, sentence: String) {
    let finding = Finding::new(Code::AgentStale, Subject::of_policy(policy), sentence);
    lint.findings.push(
        finding
            .because(Source::Agent, "GET /v1/policy")
            .because(Source::Kubernetes, "the list of policy objects")
            .remedy(Remedy::Text(
                "read the agent's log on this node for this object; restarting the agent installs every policy anew"
                    .to_owned(),
            )),
    );
}
