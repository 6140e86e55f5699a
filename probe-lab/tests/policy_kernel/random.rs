//! Policy maps and packets at random, from few values, so that they meet, tie and cover one another often.
use std::collections::HashSet;
use std::ops::Range;

use fastrand::Rng;

use crate::case::{Entry, Layout};
use crate::slot::Query;

/// Reserved identities, every scope, and both sides of every edge between scopes.
const IDENTITIES: [u32; 30] = [
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    99,
    100,
    128,
    255,
    256,
    0xffff,
    0x0001_0000,
    0x0001_0100,
    0x00ff_ffff,
    0x0100_0000,
    0x0100_0001,
    0x0100_ffff,
    0x0101_0000,
    0x01ff_ffff,
    0x0200_0000,
    0x02ff_ffff,
    0x0300_0000,
];
/// The classes of 1.20, which stand for many identities there.
const CLASSES: [u32; 5] = [0, 2, 6, 11, 12];
const CLUSTER_IDS: [u8; 6] = [0, 0, 0, 1, 2, 255];
const PROTOCOLS: [u8; 7] = [1, 6, 6, 17, 17, 58, 132];
const PORTS: [u16; 12] = [0, 1, 8, 53, 80, 81, 443, 0x1fff, 0x7fff, 0x8000, 8080, 0xffff];
const PRIORITIES: [u32; 8] = [0, 0, 1, 2, 127, 128, 254, 255];
const PRECEDENCES: [u32; 9] =
    [0, 1, 2, 0xff00, 0xffff_ff00, 0xffff_ff01, 0xffff_fffe, 0xffff_ffff, 0xffff_ffff];

/// A policy map and packets at it.
pub(crate) struct Case {
    pub(crate) entries: Vec<Entry>,
    pub(crate) queries: Vec<Query>,
}

impl Case {
    /// `queries` packets at a map of anything from nothing to thousands of entries.
    pub(crate) fn new(layout: Layout, queries: usize, rng: &mut Rng) -> Self {
        let entries = match rng.u8(..64) {
            0..4 => 0,
            4..24 => rng.usize(1..4),
            24..48 => rng.usize(4..25),
            48..62 => rng.usize(25..200),
            _ => rng.usize(500..4000),
        };
        let values = Values::new(layout, entries, rng);
        let entries = values.entries(entries, rng);
        let queries = (0..queries).map(|_| values.query(rng)).collect();
        Self { entries, queries }
    }
}

/// What one map and its packets are made of.
struct Values {
    layout: Layout,
    identities: Vec<u32>,
    protocols: Vec<u8>,
    ports: Vec<u16>,
    ranks: Vec<u32>,
    dual_stack: bool,
    cluster_id: u8,
}

impl Values {
    fn new(layout: Layout, entries: usize, rng: &mut Rng) -> Self {
        // A large map of few values would be a small one.
        let spread = 1 + entries / 64;
        let ranks = match layout {
            _ if layout.has_precedence() => &PRECEDENCES[..],
            _ if layout.is_ranked() => &PRIORITIES,
            _ => &[0],
        };
        Self {
            layout,
            identities: some(rng, 2..8, spread, identity),
            protocols: some(
                rng,
                1..4,
                1,
                |rng| if rng.u8(..16) == 0 { rng.u8(..) } else { one(&PROTOCOLS, rng) },
            ),
            ports: some(rng, 1..5, spread, |rng| if rng.bool() { one(&PORTS, rng) } else { rng.u16(..) }),
            ranks: some(rng, 1..5, 1, |rng| one(ranks, rng)),
            dual_stack: rng.bool(),
            cluster_id: one(&CLUSTER_IDS, rng),
        }
    }

    /// No more than `count` entries, each key once.
    fn entries(&self, count: usize, rng: &mut Rng) -> Vec<Entry> {
        let mut keys = HashSet::new();
        let entries = (0..count).map(|_| self.entry(rng));
        let distinct = entries.filter(|entry| keys.insert(entry.key(self.layout)));
        distinct.zip(1..).map(|(entry, tag)| Entry { tag, ..entry }).collect()
    }

    fn entry(&self, rng: &mut Rng) -> Entry {
        let plen = match rng.u8(..8) {
            0 => 0,
            1 | 2 => 8,
            3..6 if self.layout != Layout::V1_13 => rng.u8(9..24),
            _ => 24,
        };
        let identity = match rng.u8(..8) {
            0..3 => 0,
            3 if self.layout == Layout::V1_20 => one(&CLASSES, rng),
            _ => one(&self.identities, rng),
        };
        let protocol = if plen == 0 { 0 } else { one(&self.protocols, rng) };
        let port_mask = u16::MAX.checked_shl(u32::from(24 - plen.max(8))).unwrap_or(0);
        let port = one(&self.ports, rng) & port_mask;
        // A hash key has no prefix: what is zero is any.
        let plen = match (self.layout, protocol, port) {
            (Layout::V1_13, 0, 0) => 0,
            (Layout::V1_13, _, 0) => 8,
            (Layout::V1_13, ..) => 24,
            _ => plen,
        };
        let auth_type = match rng.u8(..8) {
            0 | 1 => rng.u8(1..4),
            2 if self.layout.is_ranked() => rng.u8(..0x80),
            2 => rng.u8(..),
            _ => 0,
        };
        Entry {
            identity,
            egress: rng.u8(..8) == 0,
            plen,
            protocol,
            port,
            deny: rng.u8(..5) == 0,
            proxy_port: if rng.u8(..4) == 0 { rng.u16(1..) } else { 0 },
            auth_type,
            explicit_auth: self.layout.is_ranked() && rng.u8(..3) == 0,
            rank: one(&self.ranks, rng),
            tag: 0,
        }
    }

    fn query(&self, rng: &mut Rng) -> Query {
        let identity = if rng.u8(..5) == 0 { identity(rng) } else { one(&self.identities, rng) };
        let port = match rng.u8(..8) {
            0 => rng.u16(..),
            // A neighbor, in or out of a range around the port.
            1..4 => one(&self.ports, rng) ^ (1 << rng.u8(..16)),
            _ => one(&self.ports, rng),
        };
        let protocol = if rng.u8(..8) == 0 { one(&PROTOCOLS, rng) } else { one(&self.protocols, rng) };
        Query {
            identity,
            port,
            protocol,
            egress: u8::from(rng.u8(..8) == 0),
            untracked_fragment: u8::from(rng.u8(..10) == 0),
            dual_stack: self.dual_stack.into(),
            cluster_id: self.cluster_id,
            pad: 0,
        }
    }
}

/// An identity that means something, or any of a scope.
fn identity(rng: &mut Rng) -> u32 {
    match rng.u8(..12) {
        0 => rng.u32(256..0x1_0000),
        1 => 0x0100_0000 | rng.u32(..0x2_0000),
        2 => 0x0200_0000 | rng.u32(..0x2_0000),
        3 => u32::from(one(&CLUSTER_IDS, rng)) << 16 | rng.u32(256..0x1_0000),
        _ => one(&IDENTITIES, rng),
    }
}

/// `count` values, `spread` times as many.
fn some<T>(rng: &mut Rng, count: Range<usize>, spread: usize, value: impl Fn(&mut Rng) -> T) -> Vec<T> {
    let count = rng.usize(count) * spread;
    (0..count).map(|_| value(rng)).collect()
}

fn one<T: Copy>(of: &[T], rng: &mut Rng) -> T {
    of[rng.usize(..of.len())]
}
