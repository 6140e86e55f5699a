//! Flows of several nodes that are one: by the tuple that one node sends on and another receives, and by time.
//!
//! Pure. A flow goes on to at most one other and comes from at most one: where several fit, none is chosen.

use std::collections::{HashMap, HashSet};

use probe_model::tuple::Tuple;

use super::clock::{Clock, Moment};
use super::part::Part;

/// A packet is not longer under way between two nodes of a cluster, in nanoseconds.
pub const WAY_MAX_NS: u64 = 1_000_000_000;
/// Pairs of flows with one tuple that are looked at. More are as many pings that all look alike: none of them is joined.
pub const PAIRS_MAX: usize = 4_096;

/// A flow of one node goes on as a flow of another, by their places among the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The one that goes on.
    pub from: usize,
    /// The one that it becomes.
    pub to: usize,
}

/// A pair that fits and is not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Apart {
    /// The pair.
    pub link: Link,
    /// Why not.
    pub why: Why,
}

/// Why a pair that fits is not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// So many flows could be what the first becomes.
    SeveralNext(usize),
    /// So many flows could be what the second was.
    SeveralBefore(usize),
    /// Each could be what the other becomes: the clocks do not tell which is first.
    Circle,
}

/// One path across nodes: parts in order, of one or more nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The parts, by their places.
    pub parts: Vec<usize>,
    /// Pairs with a part of it that are not joined.
    pub apart: Vec<Apart>,
    /// Whether more than [`PAIRS_MAX`] pairs have a tuple of it, so that none was looked at.
    pub is_crowded: bool,
    /// Which chains could still change each other: those of one number.
    pub group: usize,
}

/// What belongs together. Every part is in one chain; chains are in the order of their first parts.
pub fn join(parts: &[Part], clocks: &[Clock]) -> Vec<Chain> {
    let fitting = Fitting::find(parts, clocks);
    let mut next = HashMap::new();
    let mut apart: Vec<Apart> = Vec::new();
    for link in &fitting.links {
        match fitting.why_not(*link) {
            Some(why) => apart.push(Apart { link: *link, why }),
            None => drop(next.insert(link.from, link.to)),
        }
    }
    let mut chains = chains(parts.len(), &next, &mut apart);
    let groups = groups(parts.len(), &fitting.links);
    for chain in &mut chains {
        let touches =
            |own: &&Apart| chain.parts.iter().any(|part| [own.link.from, own.link.to].contains(part));
        chain.apart = apart.iter().filter(touches).copied().collect();
        chain.is_crowded = chain.parts.iter().any(|part| fitting.crowded.contains(part));
        chain.group = chain.parts.first().map_or(0, |part| groups[*part]);
    }
    chains
}

/// Pairs that fit by tuple and time.
#[derive(Default)]
struct Fitting {
    links: Vec<Link>,
    /// How many each part could become.
    nexts: HashMap<usize, usize>,
    /// How many each part could have been.
    befores: HashMap<usize, usize>,
    /// Those with more pairs than are looked at.
    crowded: HashSet<usize>,
}

impl Fitting {
    fn find(parts: &[Part], clocks: &[Clock]) -> Self {
        let mut by_tuple: HashMap<Tuple, (Vec<usize>, Vec<usize>)> = HashMap::new();
        for (idx, part) in parts.iter().enumerate() {
            if part.may_go_on() {
                by_tuple.entry(part.left()).or_default().0.push(idx);
            }
            if part.may_have_come() {
                by_tuple.entry(part.tuple).or_default().1.push(idx);
            }
        }
        let mut found = Self::default();
        for (going, coming) in by_tuple.values() {
            if going.len() * coming.len() > PAIRS_MAX {
                found.crowded.extend(going.iter().chain(coming));
                continue;
            }
            let pairs = going.iter().flat_map(|from| coming.iter().map(|to| Link { from: *from, to: *to }));
            for link in pairs.filter(|link| fits(&parts[link.from], &parts[link.to], clocks)) {
                found.links.push(link);
                *found.nexts.entry(link.from).or_default() += 1;
                *found.befores.entry(link.to).or_default() += 1;
            }
        }
        found.links.sort_unstable();
        found
    }

    fn why_not(&self, link: Link) -> Option<Why> {
        match (self.nexts[&link.from], self.befores[&link.to]) {
            (1, 1) => None,
            (1, befores) => Some(Why::SeveralBefore(befores)),
            (nexts, _) => Some(Why::SeveralNext(nexts)),
        }
    }
}

/// Whether one can be what the other becomes: it was seen elsewhere, not before it left, and not long after its last
/// packet here.
fn fits(from: &Part, to: &Part, clocks: &[Clock]) -> bool {
    let ours = |part: &Part, ns| {
        clocks.get(part.node).map_or_else(|| Clock::default().ours(ns), |clock| clock.ours(ns))
    };
    let latest = |moment: Moment| moment.ns + i128::from(moment.error_ns);
    let earliest = |moment: Moment| moment.ns - i128::from(moment.error_ns);
    let came = ours(to, to.first_ns);
    from.node != to.node
        && latest(came) >= earliest(ours(from, from.left_ns()))
        && earliest(came) <= latest(ours(from, from.last_ns)) + i128::from(WAY_MAX_NS)
}

/// Follows the links from every part that nothing leads to. What is left goes in circles, and is told apart.
fn chains(count: usize, next: &HashMap<usize, usize>, apart: &mut Vec<Apart>) -> Vec<Chain> {
    let reached: HashSet<usize> = next.values().copied().collect();
    let mut chains = Vec::new();
    let mut taken = vec![false; count];
    for first in (0..count).filter(|part| !reached.contains(part)) {
        let parts: Vec<_> = std::iter::successors(Some(first), |part| next.get(part).copied()).collect();
        for part in &parts {
            taken[*part] = true;
        }
        chains.push(Chain { parts, ..Chain::default() });
    }
    for part in (0..count).filter(|part| !taken[*part]) {
        chains.push(Chain { parts: vec![part], ..Chain::default() });
        apart
            .extend(next.get(&part).map(|to| Apart { link: Link { from: part, to: *to }, why: Why::Circle }));
    }
    chains.sort_by_key(|chain| chain.parts.first().copied());
    chains
}

/// A number for every part, the same for those that fitting pairs connect.
fn groups(count: usize, links: &[Link]) -> Vec<usize> {
    let mut parents: Vec<usize> = (0..count).collect();
    for link in links {
        let (one, other) = (root(&mut parents, link.from), root(&mut parents, link.to));
        parents[one.max(other)] = one.min(other);
    }
    (0..count).map(|part| root(&mut parents, part)).collect()
}

/// The least of those that a part is connected with; ways there get shorter each time.
fn root(parents: &mut [usize], mut part: usize) -> usize {
    while parents[part] != part {
        parents[part] = parents[parents[part]];
        part = parents[part];
    }
    part
}

#[cfg(test)]
mod tests;
