//! Random maps and packets, of few values each, so that they meet often.

use fixtures::Random;

use super::lookup::{Node, Packet};
use super::tables::{Raw, Rule, Version};

/// Around every edge at which an identity changes its class.
const IDENTITIES: [u32; 28] = [
    0,
    1,
    2,
    3,
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
    300,
    0xFFFF,
    0x0001_0123,
    0x0005_0001,
    0x00FF_FFFF,
    0x0100_0000,
    0x0100_0001,
    0x0100_FFFF,
    0x0101_0000,
    0x0200_0000,
    0x02FF_FFFF,
    0x0300_0000,
    0x8000_0000,
    u32::MAX,
];
const PROTOCOLS: [u8; 5] = [0, 1, 6, 17, 58];
/// Beside others such as differ in one bit, high or low.
const PORTS: [u16; 10] = [0, 1, 8, 80, 81, 8080, 8081, 8085, 0x8000, u16::MAX];

/// The values one map and its packets are made of: with fewer of them they meet more often.
pub(crate) struct World {
    identities: Vec<u32>,
    pub(crate) node: Node,
    pub(crate) entries: Vec<Raw>,
}

impl World {
    pub(crate) fn new(random: &mut Random, version: Version) -> Self {
        let mut identities: Vec<u32> = (0..=random.below(5)).map(|_| random.one(&IDENTITIES)).collect();
        // Those that stand for others.
        identities.extend([0, 0, random.one(&[2, 6, 11, 12])]);
        let node = Node { dual_stack: random.once_in(2), cluster_id: random.one(&[0, 0, 1, 5, 255]) };
        let count = if random.once_in(20) { random.below(300) } else { random.below(24) };
        let rules = (0..count).map(|_| rule(random, &identities, version));
        Self { entries: rules.map(|rule| rule.store(version)).collect(), identities, node }
    }

    pub(crate) fn packet(&self, random: &mut Random) -> Packet {
        let identity = if random.once_in(4) { random.one(&IDENTITIES) } else { random.one(&self.identities) };
        Packet {
            identity,
            egress: random.once_in(4),
            protocol: random.one(&PROTOCOLS),
            port: if random.once_in(16) { random.number() as u16 } else { random.one(&PORTS) },
            fragment: random.once_in(8),
        }
    }
}

fn rule(random: &mut Random, identities: &[u32], version: Version) -> Rule {
    let plen = match random.below(4) {
        0 => 0,
        1 => 8,
        2 => 24,
        _ => 9 + random.below(15) as u8,
    };
    let (mut protocol, mut port) = (random.one(&PROTOCOLS), random.one(&PORTS));
    // A trie does not look at the bits behind the prefix, so an agent may leave there what it likes.
    if version == Version::V1_13 || !random.once_in(8) {
        protocol = if plen == 0 { 0 } else { protocol };
        port &= (0xFF_FFFF_u32 << (24 - plen)) as u16;
    }
    let priorities: &[u32] = &[0, 0, 1, 1, 2, 120, 255];
    let precedences: &[u32] =
        &[0, 1, 0xFFFF_FE01, 0xFFFF_FF00, 0xFFFF_FF01, 0xFFFF_FF02, 0xFFFF_FFFE, u32::MAX];
    Rule {
        identity: random.one(identities),
        egress: random.once_in(4),
        plen,
        protocol,
        port,
        deny: random.once_in(4),
        proxy_port: random.one(&[0, 0, 1, 10001, u16::MAX]),
        auth_type: random.one(&[0, 0, 0, 1, 2, 127]),
        explicit_auth: random.once_in(3),
        rank: random.one(if version < Version::V1_19 { priorities } else { precedences }),
        cookie: random.number() as u32,
        packets: random.number(),
        bytes: random.number(),
    }
}
