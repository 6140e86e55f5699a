//! Cases by hand, and any flows against a reference that looks at every pair.

use std::collections::BTreeSet;

use probe_model::path::HookPoint;

use super::super::clock::Reading;
use super::super::testing::{part, stop, tuple};
use super::*;

const CAME: &str = "10.224.0.8:40000 > 10.224.0.7:80";
const BETWEEN: &str = "10.224.0.4:61000 > 10.0.1.143:80";
const SECOND: u64 = 1_000_000_000;

/// A clock that is `ahead`, as well known as `error_ns`.
fn clock(ahead: i64, error_ns: u64) -> Clock {
    let mut clock = Clock::default();
    let asked_ns = 100 * SECOND;
    let theirs_ns = (asked_ns + error_ns).strict_add_signed(ahead);
    clock.read(&[Reading { asked_ns, answered_ns: asked_ns + 2 * error_ns, theirs_ns }]);
    clock
}

fn linked(parts: &[Part], clocks: &[Clock]) -> (Vec<Vec<usize>>, Vec<Why>) {
    let chains = join(parts, clocks);
    let whys: BTreeSet<_> = chains.iter().flat_map(|chain| chain.apart.iter().copied()).collect();
    (chains.into_iter().map(|chain| chain.parts).collect(), whys.into_iter().map(|apart| apart.why).collect())
}

fn sent(at_ns: u64) -> Part {
    part(0, at_ns, tuple(CAME), tuple(BETWEEN), true)
}

fn got(at_ns: u64) -> Part {
    part(1, at_ns, tuple(BETWEEN), tuple(BETWEEN), false)
}

#[test]
fn what_one_sends_on_and_another_receives() {
    let clocks = [clock(5 * SECOND.cast_signed(), 1_000), clock(-3, 1_000)];
    let base = 100 * SECOND;
    // Half a millisecond later, by another clock.
    let parts = [got(base + 500_000 - 3), sent(base + 5 * SECOND)];
    assert_eq!(linked(&parts, &clocks), (vec![vec![1, 0]], vec![]));
    // The same node, another tuple, or delivered where it came: not it.
    let same = [Part { node: 0, ..got(base + 5 * SECOND) }, sent(base + 5 * SECOND)];
    assert_eq!(linked(&same, &clocks).0.len(), 2);
    let other = [
        part(1, base, tuple("10.224.0.4:61001 > 10.0.1.143:80"), tuple(BETWEEN), false),
        sent(base + 5 * SECOND),
    ];
    assert_eq!(linked(&other, &clocks).0.len(), 2);
    let delivered = [got(base), part(0, base + 5 * SECOND, tuple(CAME), tuple(BETWEEN), false)];
    assert_eq!(linked(&delivered, &clocks).0.len(), 2);
}

#[test]
fn time_decides_where_ports_are_used_again() {
    let clocks = [clock(0, 1_000_000), clock(0, 1_000_000)];
    let base = 100 * SECOND;
    let parts = [sent(base), sent(base + 5 * SECOND), got(base + 5 * SECOND + 100_000), got(base + 100_000)];
    assert_eq!(linked(&parts, &clocks), (vec![vec![0, 3], vec![1, 2]], vec![]));
    // Before it was sent, or a second after its last packet, by more than the clocks may be wrong.
    let drift = 1_000;
    for (at_ns, fits) in [
        (base + 40_000 - 2_000_000, true),
        (base + 40_000 - 2_000_001 - drift, false),
        (base + 40_000 + WAY_MAX_NS + 2_000_000, true),
        (base + 40_000 + WAY_MAX_NS + 3_000_000, false),
    ] {
        let joined = linked(&[sent(base), got(at_ns)], &clocks).0.len() == 1;
        assert_eq!(joined, fits, "{at_ns}");
    }
    // A SYN that was lost on the way comes a second later.
    let again = Part { last_ns: base + 3 * SECOND, ..sent(base) };
    assert_eq!(linked(&[again, got(base + 3 * SECOND + 500_000)], &clocks).0.len(), 1);
}

#[test]
fn where_two_fit_none_is_chosen() {
    let clocks = [clock(0, 2 * SECOND), clock(0, 1_000), clock(0, 1_000)];
    let base = 100 * SECOND;
    let parts = [sent(base), got(base + 100_000), Part { node: 2, ..got(base + 200_000) }];
    assert_eq!(linked(&parts, &clocks), (vec![vec![0], vec![1], vec![2]], vec![Why::SeveralNext(2); 2]));
    let parts = [sent(base), sent(base + SECOND), got(base + 100_000)];
    assert_eq!(linked(&parts, &clocks), (vec![vec![0], vec![1], vec![2]], vec![Why::SeveralBefore(2); 2]));
    let groups: BTreeSet<_> = join(&parts, &clocks).into_iter().map(|chain| chain.group).collect();
    assert_eq!(groups.len(), 1, "they can change each other");
    // Neither shows where it came from or went, and the clocks do not tell.
    let bare =
        |node| Part { hops: vec![stop(base, HookPoint::UplinkIn, tuple(BETWEEN))], ..got(base) }.on(node);
    assert_eq!(linked(&[bare(1), bare(2)], &clocks), (vec![vec![0], vec![1]], vec![Why::Circle; 2]));
}

#[test]
fn a_crowd_is_left_alone() {
    let clocks = [clock(0, 1_000), clock(0, 1_000)];
    let base = 100 * SECOND;
    let mut parts: Vec<_> = (0..65).map(|idx| sent(base + idx * 10)).collect();
    parts.extend((0..65).map(|idx| got(base + idx * 10)));
    let chains = join(&parts, &clocks);
    assert_eq!(chains.len(), 130);
    assert!(chains.iter().all(|chain| chain.is_crowded && chain.apart.is_empty()));
}

impl Part {
    fn on(self, node: usize) -> Self {
        Self { node, ..self }
    }
}

/// What [`join`] should find, looking at every pair.
fn naive(parts: &[Part], clocks: &[Clock]) -> BTreeSet<(usize, usize)> {
    let all = |(from, to): &(usize, usize)| {
        let (one, other) = (&parts[*from], &parts[*to]);
        let (left, last) = (clocks[one.node].ours(one.hops[1].at_ns), clocks[one.node].ours(one.last_ns));
        let came = clocks[other.node].ours(other.first_ns);
        let goes = one.hops[1].point == HookPoint::UplinkOut;
        let slack = |own: u64| i128::from(own) + i128::from(came.error_ns);
        let in_time = came.ns >= left.ns - slack(left.error_ns)
            && came.ns <= last.ns + i128::from(WAY_MAX_NS) + slack(last.error_ns);
        one.node != other.node && goes && one.hops[1].tuple == other.hops[0].tuple && in_time
    };
    let pairs = (0..parts.len()).flat_map(|from| (0..parts.len()).map(move |to| (from, to)));
    let fitting: Vec<_> = pairs.filter(all).collect();
    let alone = |(from, to): &(usize, usize)| {
        fitting.iter().filter(|(own, _)| own == from).count() == 1
            && fitting.iter().filter(|(_, own)| own == to).count() == 1
    };
    let joined: BTreeSet<_> = fitting.iter().copied().filter(alone).collect();
    let next = |part: usize| joined.iter().find(|(from, _)| *from == part).map(|(_, to)| *to);
    let in_circle = |start: usize| {
        let mut part = start;
        (0..parts.len()).any(|_| match next(part) {
            Some(to) => {
                part = to;
                part == start
            }
            None => false,
        })
    };
    joined.iter().copied().filter(|(from, _)| !in_circle(*from)).collect()
}

/// Flows over up to three nodes, with ports used again, and some parts of them not seen.
#[test]
fn any_flows_as_the_reference_joins_them() {
    let mut random = fastrand::Rng::with_seed(17);
    let (mut joined_in_all, mut apart_in_all) = (0, 0);
    for round in 0..1_500 {
        let nodes = random.usize(2..5);
        let spread = *random.choice(&[100_i64, 1_000_000, 9_000_000_000]).unwrap();
        let error = *random.choice(&[500_u64, 200_000, 30_000_000]).unwrap();
        let ahead: Vec<i64> = (0..nodes).map(|_| random.i64(-spread..=spread)).collect();
        let clocks: Vec<Clock> = ahead.iter().map(|ahead| known(&mut random, *ahead, error)).collect();
        let span = *random.choice(&[1_000_000_u64, 100_000_000, 8 * SECOND]).unwrap();
        let seen_all = random.bool();
        let (mut parts, mut truth) = (Vec::new(), BTreeSet::new());
        for _ in 0..random.usize(1..30) {
            let mut at = 100 * SECOND + random.u64(0..span);
            let mut came = tuple(&format!("10.224.0.8:{} > 10.224.0.7:80", random.u16(40_000..40_004)));
            let mut before = None;
            let mut way: Vec<usize> = (0..nodes).collect();
            random.shuffle(&mut way);
            let length = random.usize(1..=nodes.min(3));
            for (idx, node) in way[..length].iter().enumerate() {
                let goes_on = idx + 1 < length;
                let left = if random.bool() && goes_on {
                    tuple(&format!("10.224.0.{}:{} > 10.0.1.143:80", 20 + node, random.u16(61_000..61_003)))
                } else {
                    came
                };
                if seen_all || random.u8(..10) > 0 {
                    let theirs = at.strict_add_signed(ahead[*node]);
                    parts.push(part(*node, theirs, came, left, goes_on));
                    truth.extend(before.map(|before| (before, parts.len() - 1)));
                    before = Some(parts.len() - 1);
                } else {
                    before = None;
                }
                at += 40_000 + random.u64(20_000..3_000_000);
                came = left;
            }
        }
        let chains = join(&parts, &clocks);
        let links = chains.iter().flat_map(|chain| chain.parts.windows(2).map(|two| (two[0], two[1])));
        let links: BTreeSet<_> = links.collect();
        assert_eq!(links, naive(&parts, &clocks), "round {round}");
        let mut all: Vec<_> = chains.iter().flat_map(|chain| chain.parts.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..parts.len()).collect::<Vec<_>>(), "every part is in one chain");
        if seen_all {
            assert!(links.is_subset(&truth), "round {round}: what was all seen is never joined wrongly");
        }
        joined_in_all += links.len();
        apart_in_all += chains.iter().map(|chain| chain.apart.len()).sum::<usize>();
    }
    assert!(joined_in_all > 2_000 && apart_in_all > 2_000, "both happen: {joined_in_all}, {apart_in_all}");
}

/// A clock as it is read over a way that takes so long, however that is divided.
fn known(random: &mut fastrand::Rng, ahead: i64, error_ns: u64) -> Clock {
    let mut clock = Clock::default();
    let (there, back) = (random.u64(0..=error_ns), random.u64(0..=error_ns));
    let asked_ns = 100 * SECOND;
    let theirs_ns = (asked_ns + there).strict_add_signed(ahead);
    clock.read(&[Reading { asked_ns, answered_ns: asked_ns + there + back, theirs_ns }]);
    clock
}
