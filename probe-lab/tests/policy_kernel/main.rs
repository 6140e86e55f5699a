//! The simulator's policy lookup against the kernel: the same maps, the same packets, two transcriptions.
//!
//! The kernel's side is eBPF on maps of the true type and sizes (`probe-lab-ebpf`, `lookups`), so that hashing,
//! longest-prefix matching and the order of bytes are not ours. `PLSPROBE_POLICY_CASES` is the number of packets for
//! each layout; `PLSPROBE_POLICY_SEED` picks others.
mod argument;
mod case;
mod kernel;
mod random;
mod simulator;
mod vectors;

#[path = "../../../probe-lab-ebpf/src/lookups/slot.rs"]
#[expect(unreachable_pub, reason = "the eBPF crate's file")]
mod slot;

use std::io::Write as _;

use anyhow::Result;

use crate::argument::{argue, setting};
use crate::case::{Entry, Layout};
use crate::kernel::Kernel;
use crate::simulator::Simulator;

const CASES: u64 = 1_000_000;
const SEED: u64 = 0x0070_6c73_7072_6f62;

/// Whether the kernel cannot be asked; says why.
fn skipped() -> bool {
    let reason = kernel::unavailable();
    if let Some(reason) = &reason {
        fixtures::skip!("{reason}");
    }
    reason.is_some()
}

/// The judge is judged first: by the datapath's own answers, without any code of ours that it will judge.
#[test]
fn the_ebpf_lookups_give_the_golden_answers() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for layout in Layout::ALL {
        let mut kernel = Kernel::load(layout)?;
        let vectors = vectors::of(layout)?;
        assert_eq!(vectors.len(), 150);
        for vector in vectors {
            kernel.fill(&vector.entries)?;
            let answer = kernel.ask(&[vector.query])?[0];
            assert_eq!(
                (answer.result, answer.match_type, answer.auth_type, answer.proxy_port),
                (vector.result, vector.match_type, vector.auth_type, vector.proxy_port),
                "{layout}: {}",
                vector.line
            );
        }
    }
    Ok(())
}

fn agree(layout: Layout) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let cases = setting("PLSPROBE_POLICY_CASES", CASES)?;
    let seed = setting("PLSPROBE_POLICY_SEED", SEED)?.wrapping_add(layout as u64);
    let simulate = |entries: &[Entry], query: &_| Simulator::new(layout, entries, query);
    let (tally, difference) = argue(layout, cases, seed, &simulate)?;
    if let Some(difference) = difference {
        panic!("{layout}, seed {seed}: kernel and simulator differ after {tally}\n{difference}");
    }
    // Past the harness, which swallows what a passing test prints.
    writeln!(std::io::stdout(), "\npolicy lookup, {layout}, seed {seed}: the kernel agrees on {tally}")?;
    assert!(
        tally.match_types.iter().all(|count| *count > cases / 1000),
        "every match type is tried often: {tally}"
    );
    Ok(())
}

#[test]
fn kernel_and_simulator_agree_on_group_a() -> Result<()> {
    agree(Layout::V1_13)
}

#[test]
fn kernel_and_simulator_agree_on_group_b() -> Result<()> {
    agree(Layout::V1_14)
}

#[test]
fn kernel_and_simulator_agree_on_group_c() -> Result<()> {
    agree(Layout::V1_16_4)
}

#[test]
fn kernel_and_simulator_agree_on_group_d_as_of_1_17() -> Result<()> {
    agree(Layout::V1_17)
}

#[test]
fn kernel_and_simulator_agree_on_group_d_as_of_1_18() -> Result<()> {
    agree(Layout::V1_18)
}

#[test]
fn kernel_and_simulator_agree_on_group_e() -> Result<()> {
    agree(Layout::V1_19)
}

#[test]
fn kernel_and_simulator_agree_on_group_f() -> Result<()> {
    agree(Layout::V1_20)
}

/// A simulator with the procedure of another version is found out, by a map of a few entries.
#[test]
fn a_wrong_procedure_is_found() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for layout in Layout::ALL {
        // A hash key cannot say what the others can.
        let others = Layout::ALL.into_iter().skip(1).filter(|other| other.group().0 != layout.group().0);
        for other in others {
            let simulate =
                |entries: &[Entry], query: &_| Simulator::new(other, &reduced(entries, other), query);
            let (tally, difference) = argue(layout, 100_000, SEED, &simulate)?;
            let difference = difference.unwrap_or_else(|| panic!("{layout} passed for {other}: {tally}"));
            assert!(difference.entries.len() <= 3, "{layout} is not {other}:\n{difference}");
        }
    }
    Ok(())
}

/// A simulator that lets the wildcard win a tie is found out.
#[test]
fn a_wrong_tie_is_found() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for layout in [Layout::V1_17, Layout::V1_18, Layout::V1_19] {
        let simulate = |entries: &[Entry], query: &_| {
            let raised = |entry: &Entry| {
                // Not to the highest precedence, which says more than that it is higher.
                let raise = entry.identity == 0 && entry.rank < 0xfe;
                Entry { rank: entry.rank + u32::from(raise), ..*entry }
            };
            Simulator::new(layout, &entries.iter().map(raised).collect::<Vec<_>>(), query)
        };
        let (tally, difference) = argue(layout, 100_000, SEED, &simulate)?;
        let difference = difference.unwrap_or_else(|| panic!("{layout}: {tally}"));
        assert_eq!(difference.entries.len(), 2, "{layout}:\n{difference}");
    }
    Ok(())
}

/// What `layout` can hold of the entries.
fn reduced(entries: &[Entry], layout: Layout) -> Vec<Entry> {
    let reduced = |entry: &Entry| Entry {
        rank: match () {
            () if layout.has_precedence() => entry.rank,
            () if layout.is_ranked() => entry.rank & 0xff,
            () => 0,
        },
        auth_type: if layout.is_ranked() { entry.auth_type & 0x7f } else { entry.auth_type },
        explicit_auth: entry.explicit_auth && layout.is_ranked(),
        ..*entry
    };
    entries.iter().map(reduced).collect()
}
