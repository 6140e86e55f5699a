//! When a flow is told.

use super::super::clock::{Clock, Reading};
use super::super::testing::{part, tuple};
use super::*;

const CAME: &str = "10.224.0.8:40000 > 10.224.0.7:80";
const BETWEEN: &str = "10.224.0.4:61000 > 10.0.1.143:80";

fn clocks() -> Vec<Clock> {
    let mut clock = Clock::default();
    clock.read(&[Reading { asked_ns: 0, answered_ns: 1_000, theirs_ns: 500 }]);
    vec![clock.clone(), clock]
}

fn sent(at_ns: u64) -> Part {
    part(0, at_ns, tuple(CAME), tuple(BETWEEN), true)
}

fn got(at_ns: u64) -> Part {
    part(1, at_ns, tuple(BETWEEN), tuple(BETWEEN), false)
}

#[test]
fn a_flow_waits_for_its_other_part() {
    let (mut pending, clocks, start) = (Pending::default(), clocks(), Instant::now());
    let second = Duration::from_secs(1);
    let nearly = HOLD.saturating_sub(second);
    let due = |pending: &mut Pending, after: Duration| -> Vec<usize> {
        pending.due(&clocks, start + after, false).chains.iter().map(|chain| chain.parts.len()).collect()
    };
    pending.push(got(500_000), start);
    // Another target's trace of the node told of it too.
    pending.push(got(500_000), start + second);
    assert_eq!(due(&mut pending, nearly), [0; 0]);
    // It came in time, and waits for what may still come of it.
    pending.push(sent(1_000), start + nearly);
    assert_eq!(due(&mut pending, HOLD), [0; 0]);
    assert_eq!(due(&mut pending, HOLD + nearly), [2]);
    assert_eq!(due(&mut pending, HOLD * 2), [0; 0], "nothing is left");
}

#[test]
fn none_waits_longer_than_its_time() {
    let (mut pending, clocks, start) = (Pending::default(), clocks(), Instant::now());
    let mut told = Vec::new();
    for seconds in 0..20 {
        let now = start + Duration::from_secs(seconds);
        // Each could be what the first became, so that all of them belong together.
        pending.push(Part { last_ns: 60_000_000_000, ..sent(0) }, now);
        pending.push(got(1_000_000 + seconds * 1_000_000_000), now);
        let due = pending.due(&clocks, now, false);
        if !due.chains.is_empty() {
            told.push((seconds, due.chains.len()));
        }
    }
    assert_eq!(told, [(HOLD_MAX.as_secs(), 20)]);
    let rest = pending.due(&clocks, start, true);
    assert!(!rest.chains.is_empty() && pending.due(&clocks, start, true).chains.is_empty());
}

#[test]
fn too_many_do_not_wait() {
    let (mut pending, clocks, start) = (Pending::default(), clocks(), Instant::now());
    for idx in 0..PENDING_MAX as u64 {
        assert!(!pending.is_full());
        pending.push(sent(idx), start);
    }
    assert!(pending.is_full());
    assert_eq!(pending.due(&clocks, start, false).chains.len(), PENDING_MAX);
    assert_eq!(pending.hurried, PENDING_MAX as u64);
    assert!(!pending.is_full());
}
