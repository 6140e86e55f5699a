//! The indexed lookups against slow references written apart, over random inputs.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use probe_model::cilium::Direction;
use probe_model::cilium::events::Sample;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_model::cilium::policy::{
    PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, PolicyQuery, PolicyVerdict,
};
use probe_model::netfilter::Ruleset;

/// xorshift64*: the same numbers in every run, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Few values, so that entries and packets meet often.
const IDENTITIES: [u32; 6] = [0, 1, 2, 6, 300, 16_777_217];
const PROTOCOLS: [u8; 3] = [1, 6, 17];
const PORTS: [u16; 5] = [0, 8, 80, 8080, 8085];

fn random_entry(random: &mut Random) -> (PolicyKey, PolicyEntry) {
    let prefixlen = random.one(&[40, 48, 56, 60, 61, 63, 64]);
    let bits = u32::saturating_sub(prefixlen, 48);
    let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
    let key = PolicyKey {
        prefixlen,
        sec_label: Identity(random.one(&IDENTITIES)),
        direction: random.one(&[Direction::Ingress, Direction::Egress]),
        protocol: if prefixlen == 40 { 0 } else { random.one(&PROTOCOLS) },
        dport: random.one(&PORTS) & mask,
    };
    let mut entry = PolicyEntry::for_key(&key, PolicyLayout::WildcardBits, random.below(4) == 0);
    entry.proxy_port = random.one(&[0, 0, 0, 10001]);
    entry.auth_type = random.one(&[0, 0, 0, 1]);
    (key, entry)
}

/// Group B straight from its description: six questions in order, each answered by looking at every entry.
fn reference(entries: &[(PolicyKey, PolicyEntry)], query: PolicyQuery) -> (i32, u8) {
    let longest = |identity: Identity| {
        let covers = |key: &PolicyKey| {
            let mut packet = [0u8; 3];
            packet[0] = query.protocol;
            packet[1..].copy_from_slice(&query.port.to_be_bytes());
            let mut stored = [0u8; 3];
            stored[0] = key.protocol;
            stored[1..].copy_from_slice(&key.dport.to_be_bytes());
            let bits = key.prefixlen as usize - 40;
            let bit = |bytes: &[u8; 3], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
            (0..bits).all(|at| bit(&packet, at) == bit(&stored, at))
        };
        let fitting = entries
            .iter()
            .filter(|(key, _)| key.sec_label == identity && key.direction == query.direction && covers(key));
        fitting.max_by_key(|(key, _)| key.prefixlen).map(|(_, entry)| *entry)
    };
    let (by_identity, by_any) = (longest(query.identity), longest(Identity(0)));
    let port = |entry: &PolicyEntry| entry.flags & 4 == 0;
    let protocol = |entry: &PolicyEntry| entry.flags & 2 == 0;
    let chosen = if let Some(entry) = by_identity.filter(port) {
        Some((entry, 2))
    } else if let Some(entry) = by_any.filter(port) {
        Some((entry, 3))
    } else if let Some(entry) = by_identity.filter(protocol) {
        Some((entry, 5))
    } else if let Some(entry) = by_any.filter(protocol) {
        Some((entry, 6))
    } else if let Some(entry) = by_identity {
        Some((entry, 1))
    } else {
        by_any.map(|entry| (entry, 4))
    };
    match chosen {
        None => (-133, 0),
        Some((entry, match_type)) if entry.flags & 1 != 0 => (-181, match_type),
        Some((entry, match_type)) if entry.auth_type != 0 => (-189, match_type),
        Some((entry, match_type)) => (i32::from(entry.proxy_port), match_type),
    }
}

#[test]
fn policy_lookup_agrees_with_the_reference() {
    let mut random = Random(1);
    let mut hits = 0;
    for _ in 0..4_000 {
        let count = random.below(40);
        let entries: std::collections::BTreeMap<_, _> =
            (0..count).map(|_| random_entry(&mut random)).collect();
        let entries: Vec<_> = entries.into_iter().collect();
        let map = PolicyMap::new(PolicyLayout::WildcardBits, entries.iter().copied());
        for _ in 0..50 {
            let query = PolicyQuery {
                identity: Identity(random.one(&IDENTITIES)),
                direction: random.one(&[Direction::Ingress, Direction::Egress]),
                protocol: random.one(&PROTOCOLS),
                port: random.one(&PORTS),
                untracked_fragment: false,
            };
            let decision = map.lookup(query);
            let code = match decision.verdict {
                PolicyVerdict::Allow { proxy_port } => i32::from(proxy_port),
                PolicyVerdict::Drop(reason) => -i32::from(reason.0),
            };
            assert_eq!(
                (code, decision.match_type as u8),
                reference(&entries, query),
                "{query:?} in {entries:?}"
            );
            hits += u32::from(decision.entry.is_some());
        }
    }
    assert!(hits > 50_000, "only {hits} of 200,000 questions met an entry");
}

/// Decodes random bytes of the right size; what decodes must encode to the bytes it was made of.
macro_rules! round_trip {
    ($random:expr, $type:ty, $ignored:expr) => {{
        let mut decoded = 0;
        for _ in 0..20_000 {
            let mut raw = $random.bytes(<$type>::SIZE);
            let ignored: &[(usize, usize)] = $ignored;
            for (from, to) in ignored {
                raw[*from..*to].fill(0);
            }
            if let Ok(value) = <$type>::decode(&raw) {
                assert_eq!(value.encode().as_slice(), raw, "{value:?}");
                decoded += 1;
            }
        }
        decoded
    }};
}

#[test]
fn what_decodes_encodes_to_the_same_bytes() {
    let mut random = Random(3);
    assert_eq!(round_trip!(random, EndpointInfo, &[(4, 6), (22, 24), (30, 32), (40, 48)]), 20_000);
}

#[test]
fn keys_encode_and_decode() {
    let mut random = Random(4);
    for _ in 0..20_000 {
        let (key, _) = random_entry(&mut random);
        assert_eq!(
            PolicyKey::decode(&key.encode(PolicyLayout::WildcardBits), PolicyLayout::WildcardBits),
            Ok(key)
        );
        let v4 = Ipv4Addr::from(random.next() as u32);
        let v6 = std::net::Ipv6Addr::from(u128::from(random.next()) << 64 | u128::from(random.next()));
        let key = EndpointKey::new(random.one(&[v4.into(), v6.into()]));
        assert_eq!(EndpointKey::decode(&key.encode()), Ok(key));
    }
}

#[test]
fn no_bytes_panic() {
    let mut random = Random(5);
    for _ in 0..200_000 {
        let length = random.below(80) as usize;
        let mut raw = random.bytes(length);
        if let Some(first) = raw.first_mut() {
            *first %= 8;
        }
        let _ = Sample::decode(&raw);
        let _ = PolicyKey::decode(&raw, PolicyLayout::WildcardBits);
    }
    for _ in 0..20_000 {
        let words = [
            "*nat",
            "COMMIT",
            ":A ACCEPT",
            "-A",
            "A",
            "-j",
            "DNAT",
            "--to-destination",
            "1.2.3.4:5",
            "!",
            "-d",
            "\n",
            " ",
            "[",
            "\"",
        ];
        let text: Vec<_> = (0..random.below(30)).map(|_| random.one(&words)).collect();
        let _ = Ruleset::parse(&text.join(" "));
    }
}
