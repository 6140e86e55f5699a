//! Each cause is found where it is, and nowhere else: a confusion matrix over scenarios must be diagonal.
//!
//! A scenario is a cluster in which Private Link works, with one thing spoilt. Beside it stands a neighbour that looks
//! alike and in which nothing of the kind is wrong.

mod base;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use probe_model::explain::{Code, Finding};
use probe_model::lint::{Scope, lint};
use probe_model::world::World;

use base::{FRONTEND, working};
use scenarios::{SCENARIOS, Scenario};

fn findings(world: &World) -> Vec<Finding> {
    let frontend = world.kubernetes.services.as_ref().expect("services")[0].ingress[0];
    lint(&Scope::of_service(world, "svc/default/pls-app", &[(frontend, 80)])).findings
}

fn codes(world: &World) -> BTreeSet<Code> {
    findings(world).iter().map(|finding| finding.code).collect()
}

#[test]
fn nothing_is_found_where_everything_works() {
    let world = working("cilium-1.14", "cidr-pls8-80", &base::NAT_IPS[..1]);
    let scope = Scope::of_service(&world, "svc/default/pls-app", &[(FRONTEND.into(), 80)]);
    let found = lint(&scope);
    assert!(found.findings.is_empty(), "{:#?}", found.findings);
    assert!(found.disagreements.is_empty(), "{:#?}", found.disagreements);
    assert!(found.unjudged.is_empty(), "{:#?}", found.unjudged);
}

#[test]
fn each_cause_is_found_in_its_own_scenario_alone() {
    let mut wrong = Vec::new();
    let mut seen = BTreeMap::new();
    for Scenario { code, shows, spoilt, .. } in SCENARIOS {
        let found = codes(&spoilt());
        if found != BTreeSet::from([*code]) {
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            wrong.push(format!("{code} ({shows}): found {found:?}"));
        }
        *seen.entry(*code).or_insert(0) += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.values().all(|count| *count == 1), "one scenario for each: {seen:?}");
}

#[test]
fn none_is_found_in_the_neighbours() {
    let mut wrong = Vec::new();
    for Scenario { code, neighbour: (shows, world), .. } in SCENARIOS {
        let found = findings(&world());
        let called: Vec<_> = found.iter().filter(|finding| finding.code == *code).collect();
        if !called.is_empty() {
            wrong.push(format!("{code} in its neighbour ({shows}): {called:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every finding says what proves it and what to do.
#[test]
fn findings_have_evidence_and_a_remedy() {
    for Scenario { code, spoilt, .. } in SCENARIOS {
        for finding in findings(&spoilt()) {
            assert!(!finding.evidence.is_empty(), "{code}: {finding:#?}");
            assert!(!finding.remedy.is_empty(), "{code}: no remedy in {finding:#?}");
            assert!(!finding.sentence.ends_with('.'), "{code}: {finding:#?}");
        }
    }
}
