//! What policy objects mean, against the answers of Cilium's own policy engine (`fixtures/README.md`).

mod answers;
mod case;
mod naive;
mod recorded;
mod universe;

use std::collections::BTreeSet;

use case::Case;

/// Differences printed in full; there may be thousands.
const SHOWN: usize = 20;

/// The file that has other cases than the fixture's.
const CASES: &str = "PLSPROBE_INTENT_CASES";

#[test]
fn intent_is_as_ciliums_own_engine_has_it() {
    let fixture = fixtures::recording("intent-1.16");
    let other = std::env::var_os(CASES).map(std::path::PathBuf::from);
    let path = other.clone().unwrap_or_else(|| fixture.join("cases.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let universe = universe::Universe::fixture();
    let (mut cases, mut entries, mut verdicts) = (0, 0, 0);
    let mut differences = Vec::new();
    for line in text.lines() {
        let case = Case::parse(line);
        cases += 1;
        let compared = case.compare(&universe);
        entries += compared.entries;
        verdicts += compared.verdicts;
        differences
            .extend(compared.differences.into_iter().map(|text| format!("case {}: {text}", case.name())));
    }
    if other.is_none() {
        assert_eq!((cases, verdicts), (300, 244_800), "cases and verdicts");
    }
    let wrong: BTreeSet<_> =
        differences.iter().map(|text| text.split(':').next().unwrap_or_default()).collect();
    let shown = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        differences.is_empty(),
        "{} differences in {} of {cases} cases ({entries} entries, {verdicts} verdicts):\n{shown}",
        differences.len(),
        wrong.len()
    );
    println!("{cases} cases, {entries} entries, {verdicts} verdicts: no difference");
}
