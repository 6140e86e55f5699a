//! What is odd about the policy objects themselves.

use super::Lint;
use super::scope::Scope;
use crate::explain::{Code, Finding, Remedy, Source, Subject};
use crate::world::PolicyRef;
use crate::world::kubernetes::{PolicyObject, PolicyOrigin};

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    same_name(scope, lint);
}

fn reference(object: &PolicyObject) -> PolicyRef {
    PolicyRef {
        kind: object.kind.name().to_owned(),
        namespace: Some(object.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: object.name.clone(),
    }
}

/// Two objects of one name: whichever is applied last replaces the other.
fn same_name(scope: &Scope<'_>, lint: &mut Lint) {
    let all = &scope.world.kubernetes.policies;
    for (at, first) in all.iter().enumerate() {
        let other = all[at + 1..].iter().find(|other| {
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
            Finding::new(Code::PolicyReplaced, Subject::of_policy(&reference(first)), sentence)
                .because(
                    Source::Kubernetes,
                    format!("{} and {} have different specs", first.origin, other.origin),
                )
                .remedy(Remedy::Text("give each policy a name of its own".to_owned())),
        );
    }
}
