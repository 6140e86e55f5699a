//! Every input that ever crashed a target, and the seeds, some of them bent, without libFuzzer.

use std::fs;
use std::path::Path;

use fixtures::Random;
use fuzz_harness::{TARGETS, Target};

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("a target")
}

/// Spoils a seed in the ways that a torn or foreign file would be.
fn bent(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bent = seed.to_vec();
    for _ in 0..=random.below(3) {
        if bent.is_empty() {
            return bent;
        }
        let at = random.index(bent.len());
        match random.below(5) {
            0 => bent.truncate(at),
            1 => bent[at] ^= 1 << random.below(8),
            2 => bent[at] = random.one(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => {
                bent.remove(at);
            }
            _ => bent.insert(at, random.number() as u8),
        }
    }
    bent
}

/// Runs some seeds as they are and many bent ones.
#[track_caller]
fn replay(name: &str, runs: usize) {
    let target = target(name);
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let mut random = Random::new(7);
    for _ in 0..runs {
        let seed = &seeds[random.index(seeds.len())];
        (target.run)(seed);
        (target.run)(&bent(seed, &mut random));
    }
    (target.run)(&[]);
}

#[test]
fn regressions_stay_repaired() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../regressions");
    let mut found = 0;
    for entry in fs::read_dir(&folder).expect("`fuzz/regressions`") {
        let path = entry.expect("a readable folder").path();
        if !path.is_dir() {
            continue;
        }
        let target = target(&path.file_name().unwrap_or_default().to_string_lossy());
        for input in fs::read_dir(&path).expect("a target's folder") {
            let input = input.expect("a readable folder").path();
            (target.run)(&fs::read(&input).expect("an input"));
            found += 1;
        }
    }
    assert!(found > 0, "`{}` holds nothing", folder.display());
}

#[test]
fn every_target_has_its_program() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../targets");
    let mut programs: Vec<_> = fs::read_dir(targets)
        .expect("`fuzz/targets`")
        .map(|entry| entry.expect("a readable folder").path().file_stem().unwrap_or_default().to_owned())
        .collect();
    programs.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(programs, names);
}

#[test]
fn bugtool() {
    replay("bugtool", 100);
}

#[test]
fn dump_folder() {
    replay("dump_folder", 100);
}

#[test]
fn events() {
    replay("events", 20_000);
}

#[test]
fn gob() {
    replay("gob", 2_000);
}

#[test]
fn maps() {
    replay("maps", 250);
}

#[test]
fn node_text() {
    replay("node_text", 150);
}

#[test]
fn policy_map() {
    replay("policy_map", 1_000);
}

#[test]
fn proxy() {
    replay("proxy", 20_000);
}

#[test]
fn rest() {
    replay("rest", 1_000);
}

#[test]
fn snapshot() {
    replay("snapshot", 60);
}
