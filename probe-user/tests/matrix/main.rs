//! Each cause is found where it is, and nowhere else: a confusion matrix over scenarios must be diagonal.
//!
//! A scenario is a cluster in which Private Link works, with one thing spoilt. Beside it stands a neighbour that looks
//! alike and in which nothing of the kind is wrong.

mod base;
mod observed;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use probe_model::cilium::drop_reason::DropReason;
use probe_model::explain::{Code, Finding, Severity};
use probe_model::lint::{Probes, Scope, lint, silence};
use probe_model::world::World;
use probe_model::world::private_link::ConnectionState;

use base::{FRONTEND, working};
use scenarios::{SCENARIOS, Scenario};

fn findings(world: &World) -> Vec<Finding> {
    let frontend = world.kubernetes.services.as_ref().expect("services")[0].ingress[0];
    lint(&Scope::of_service(world, "svc/default/pls-app", &[(frontend, 80)])).findings
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
        let found = findings(&spoilt());
        // With `--nocapture` this is the matrix, a row each, and what an operator reads.
        println!("{code}  {shows}");
        for finding in &found {
            println!("    {} {}", finding.code, finding.sentence);
        }
        let found: BTreeSet<_> = found.iter().map(|finding| finding.code).collect();
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

/// A cause that is told to be detected is detected in a test.
#[test]
fn every_detected_cause_has_a_scenario() {
    let by_lint = SCENARIOS.iter().map(|scenario| scenario.code);
    let by_drop_reason = [DropReason::CT_CREATE_FAILED, DropReason::NAT_NO_MAPPING].map(Code::of_drop);
    let tested: BTreeSet<_> = by_lint
        .chain(observed::shown())
        .chain(by_drop_reason)
        // By a rule's own words: `explain::cause::datapath`. By what is not seen: below.
        .chain([Code::KernelConntrack, Code::ConsumerSide])
        .collect();
    let detected: BTreeSet<_> = Code::DETECTED.iter().copied().collect();
    assert_eq!(tested, detected);
}

/// Nothing comes, and all that is known on this side is as it should be.
#[test]
fn the_consumer_is_to_blame_where_nobody_else_is() {
    let mut world = working("cilium-1.14", "cidr-pls8-80", &base::NAT_IPS[..1]);
    world.private_link.security_groups = Some(Vec::new());
    let codes = |world: &World, probes| {
        let found = silence(&Scope::of_service(world, "pls-app", &[(FRONTEND.into(), 80)]), probes);
        (found.causes.iter().map(|cause| cause.code).collect::<Vec<_>>(), found.candidates)
    };
    assert_eq!(codes(&world, Probes::Answered), (vec![Code::ConsumerSide], Vec::new()));
    let (causes, candidates) = codes(&world, Probes::Failing);
    assert_eq!((causes.len(), candidates.first()), (0, Some(&Code::ProbeDenied)));
    let link = &mut world.private_link.services.as_mut().expect("services")[0];
    link.connections[0].state = ConnectionState::Pending;
    assert_eq!(codes(&world, Probes::Answered), (vec![Code::NotApproved], Vec::new()));
}

/// Rules that admit nobody: pods are never matched by address, and a deny beats every allow.
#[test]
fn rules_without_effect_are_told() {
    let told = |cidrs: &str, denied: &str| {
        let mut world = working("cilium-1.14", "cidr-pls8-80", &base::NAT_IPS[..1]);
        scenarios::rules_with(&mut world, cidrs, denied);
        findings(&world)
            .into_iter()
            .filter(|finding| finding.severity == Severity::Warning)
            .collect::<Vec<_>>()
    };
    let never = told(r#"[{"cidr":"10.0.1.124/32"}]"#, "[]");
    assert_eq!(never.iter().map(|finding| finding.code).collect::<Vec<_>>(), [Code::WrongAddresses]);
    assert!(never[0].sentence.contains("ingress[0]: this rule admits nobody"), "{}", never[0].sentence);
    let shadowed = told(r#"[{"cidr":"10.224.0.8/32"}]"#, r#"[{"cidr":"10.224.0.0/16"}]"#);
    assert_eq!(shadowed.iter().map(|finding| finding.code).collect::<Vec<_>>(), [Code::ExplicitDeny]);
    assert!(shadowed[0].sentence.contains("a deny beats every allow"), "{}", shadowed[0].sentence);
    assert!(told(r#"[{"cidr":"10.224.0.8/32"}]"#, r#"[{"cidr":"10.224.0.9/32"}]"#).is_empty());
}
