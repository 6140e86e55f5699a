//! The lookup procedures of section 2.7 of the ABI reference, line by line: every lookup reads every entry, every prefix
//! is compared bit by bit, and no procedure shares its decisions with another.

use super::tables::{Raw, Version};

/// One packet at one endpoint, ready for the lookup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) identity: u32,
    pub(crate) egress: bool,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// An IPv4 fragment that nobody tracks.
    pub(crate) fragment: bool,
}

/// What the node is configured with. Only F asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) dual_stack: bool,
    pub(crate) cluster_id: u8,
}

/// What the datapath's function leaves behind. Entries are named by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0, or the drop reason as a negative number.
    pub(crate) code: i32,
    pub(crate) match_type: u8,
    pub(crate) ext_error: u8,
    /// Of the chosen entry; left in place when authentication is what is missing.
    pub(crate) proxy_port: u16,
    pub(crate) chosen: Option<usize>,
    /// Another entry that matched.
    pub(crate) other: Option<usize>,
}

const L3_ONLY: u8 = 1;
const L3_L4: u8 = 2;
const L4_ONLY: u8 = 3;
const ALL: u8 = 4;
const L3_PROTO: u8 = 5;
const PROTO_ONLY: u8 = 6;

pub(crate) fn lookup(version: Version, entries: &[Raw], node: Node, packet: Packet) -> Answer {
    let map = Map { entries, packet };
    match version {
        Version::V1_13 => map.finish_1(version, map.a()),
        Version::V1_14 => map.finish_1(version, map.b()),
        Version::V1_16_4 => map.finish_1(version, map.c()),
        Version::V1_17 | Version::V1_18 => map.finish_2(version, map.d()),
        Version::V1_19 => map.finish_2(version, map.e()),
        Version::V1_20 => map.finish_2(version, map.f(node)),
    }
}

/// Which entry was chosen, as what match type.
type Hit = Option<(usize, u8)>;

/// What a choice between two entries came to.
#[derive(Clone, Copy)]
struct Choice {
    chosen: usize,
    /// The entry of the packet's own identity, not of one that stands for many.
    is_own: bool,
    other: Option<usize>,
}

#[derive(Clone, Copy)]
struct Map<'a> {
    entries: &'a [Raw],
    packet: Packet,
}

impl Map<'_> {
    /// A hash map's answer. Of equal keys the last one counts, as an update replaces.
    fn exact(self, identity: u32, protocol: u8, port: u16) -> Option<usize> {
        let mut wanted = identity.to_le_bytes().to_vec();
        wanted.extend(port.to_be_bytes());
        wanted.push(protocol);
        wanted.push(u8::from(self.packet.egress));
        self.entries.iter().rposition(|entry| entry.key == wanted)
    }

    /// An LPM trie's answer for a key of the full 64 bits. Of equal keys the last one counts.
    fn lpm(self, identity: u32) -> Option<usize> {
        let mut wanted = identity.to_le_bytes().to_vec();
        wanted.push(u8::from(self.packet.egress));
        wanted.push(self.packet.protocol);
        wanted.extend(self.packet.port.to_be_bytes());
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        let mut longest = None;
        for (idx, entry) in self.entries.iter().enumerate() {
            let prefixlen = usize::from(entry.key[0]);
            let is_longer = longest.is_none_or(|(_, so_far)| prefixlen >= so_far);
            if is_longer && (0..prefixlen).all(|at| bit(&entry.key[4..], at) == bit(&wanted, at)) {
                longest = Some((idx, prefixlen));
            }
        }
        longest.map(|(idx, _)| idx)
    }

    fn a(self) -> Hit {
        let Packet { identity: id, protocol: proto, port, fragment: frag, .. } = self.packet;
        let probes = [
            (id, proto, port, frag, L3_L4),
            (0, proto, port, frag, L4_ONLY),
            (id, proto, 0, false, L3_PROTO),
            (0, proto, 0, false, PROTO_ONLY),
            (id, 0, 0, false, L3_ONLY),
            (0, 0, 0, false, ALL),
        ];
        for (identity, protocol, port, is_skipped, match_type) in probes {
            if is_skipped {
                continue;
            }
            if let Some(hit) = self.exact(identity, protocol, port) {
                return Some((hit, match_type));
            }
        }
        None
    }

    fn b(self) -> Hit {
        let p = self.lpm(self.packet.identity);
        if let Some(p) = p
            && !self.entries[p].wildcard_dport()
        {
            return Some((p, L3_L4));
        }
        let l = self.lpm(0);
        if let Some(l) = l
            && !self.entries[l].wildcard_dport()
        {
            return Some((l, L4_ONLY));
        }
        if let Some(p) = p
            && !self.entries[p].wildcard_protocol()
        {
            return Some((p, L3_PROTO));
        }
        if let Some(l) = l
            && !self.entries[l].wildcard_protocol()
        {
            return Some((l, PROTO_ONLY));
        }
        if let Some(p) = p {
            return Some((p, L3_ONLY));
        }
        l.map(|l| (l, ALL))
    }

    fn c(self) -> Hit {
        let plen = |idx: usize| self.entries[idx].plen();
        let p = self.lpm(self.packet.identity);
        if let Some(p) = p
            && plen(p) == 24
        {
            return Some((p, L3_L4));
        }
        let l = self.lpm(0);
        if let Some(l) = l
            && p.is_none_or(|p| plen(l) > plen(p))
        {
            return Some(match plen(l) {
                0 => (l, ALL),
                1..=8 => (l, PROTO_ONLY),
                _ => (l, L4_ONLY),
            });
        }
        let p = p?;
        Some(if plen(p) > 0 { (p, L3_PROTO) } else { (p, L3_ONLY) })
    }

    fn d(self) -> Option<Choice> {
        let p = self.lpm(self.packet.identity);
        if let Some(p) = p
            && self.entries[p].deny()
        {
            return Some(Choice { chosen: p, is_own: true, other: None });
        }
        let l = self.lpm(0);
        let l_wins = |l: usize| {
            let Some(p) = p else { return true };
            let (p, l) = (&self.entries[p], &self.entries[l]);
            l.deny()
                || l.proxy_port_priority() > p.proxy_port_priority()
                || (l.proxy_port_priority() == p.proxy_port_priority() && l.plen() > p.plen())
        };
        if let Some(l) = l
            && l_wins(l)
        {
            return Some(Choice { chosen: l, is_own: false, other: p });
        }
        p.map(|p| Choice { chosen: p, is_own: true, other: l })
    }

    fn e(self) -> Option<Choice> {
        let p = self.lpm(self.packet.identity);
        if let Some(p) = p
            && self.entries[p].precedence() == 0xFFFF_FFFF
        {
            return Some(Choice { chosen: p, is_own: true, other: None });
        }
        self.by_precedence(p, self.lpm(0))
    }

    fn f(self, node: Node) -> Option<Choice> {
        let id = self.packet.identity;
        let p = self.lpm(id);
        if let Some(p) = p
            && self.entries[p].precedence() == 0xFFFF_FFFF
        {
            return Some(Choice { chosen: p, is_own: true, other: None });
        }
        let a = aggregate(id, node);
        let mut aggregated = None;
        if a != id {
            aggregated = self.lpm(a);
        }
        if aggregated.is_none() && p.is_none() && a != 0 {
            aggregated = self.lpm(0);
        }
        self.by_precedence(p, aggregated)
    }

    /// The second half of E, which F shares by its own words.
    fn by_precedence(self, p: Option<usize>, l: Option<usize>) -> Option<Choice> {
        let l_wins = |l: usize| {
            let Some(p) = p else { return true };
            let (p, l) = (&self.entries[p], &self.entries[l]);
            l.precedence() > p.precedence() || (l.precedence() == p.precedence() && l.plen() > p.plen())
        };
        if let Some(l) = l
            && l_wins(l)
        {
            return Some(Choice { chosen: l, is_own: false, other: p });
        }
        p.map(|p| Choice { chosen: p, is_own: true, other: l })
    }

    /// FINISH-1.
    fn finish_1(self, version: Version, hit: Hit) -> Answer {
        let Some((chosen, match_type)) = hit else { return miss(self.packet) };
        let entry = &self.entries[chosen];
        let other = self.also(version, chosen);
        let hit = Answer { code: 0, match_type, ext_error: 0, proxy_port: 0, chosen: Some(chosen), other };
        if entry.deny() {
            return Answer { code: -181, ..hit };
        }
        let proxy_port = entry.proxy_port();
        match entry.auth_type(version) {
            0 => Answer { proxy_port, ..hit },
            auth => Answer { code: -189, ext_error: auth, proxy_port, ..hit },
        }
    }

    /// What else matches the packet, in the procedures whose outcome it cannot touch (A, B, C): the next in their order.
    fn also(self, version: Version, chosen: usize) -> Option<usize> {
        let Packet { identity: id, protocol: proto, port, fragment, .. } = self.packet;
        let mut all = match version {
            Version::V1_13 if fragment => vec![],
            Version::V1_13 => vec![self.exact(id, proto, port), self.exact(0, proto, port)],
            _ => vec![self.lpm(id), self.lpm(0)],
        };
        if version == Version::V1_13 {
            for (protocol, port) in [(proto, 0), (0, 0)] {
                all.extend([self.exact(id, protocol, port), self.exact(0, protocol, port)]);
            }
        }
        let mut rest =
            all.into_iter().flatten().skip_while(|idx| version == Version::V1_13 && *idx != chosen);
        rest.find(|idx| *idx != chosen)
    }

    /// CHOOSE.
    fn finish_2(self, version: Version, choice: Option<Choice>) -> Answer {
        let Some(Choice { chosen, is_own, other }) = choice else { return miss(self.packet) };
        let entry = &self.entries[chosen];
        let match_type = match (is_own, entry.plen()) {
            (true, 0) => L3_ONLY,
            (true, 1..=8) => L3_PROTO,
            (true, _) => L3_L4,
            (false, 0) => ALL,
            (false, 1..=8) => PROTO_ONLY,
            (false, _) => L4_ONLY,
        };
        // Of identity 0 both lookups find the same one.
        let lost = other.filter(|other| *other != chosen);
        let hit =
            Answer { code: 0, match_type, ext_error: 0, proxy_port: 0, chosen: Some(chosen), other: lost };
        if entry.deny() {
            return Answer { code: -181, ..hit };
        }
        let proxy_port = entry.proxy_port();
        let mut auth = entry.auth_type(version);
        if let Some(other) = other
            && !entry.has_explicit_auth_type()
        {
            let other = &self.entries[other];
            let is_asked = version < Version::V1_19 || other.precedence() == entry.precedence();
            if is_asked && other.auth_type(version) > auth {
                auth = other.auth_type(version);
            }
        }
        if auth != 0 {
            return Answer { code: -189, ext_error: auth, proxy_port, ..hit };
        }
        Answer { proxy_port, ..hit }
    }
}

fn miss(packet: Packet) -> Answer {
    let code = if packet.fragment { -157 } else { -133 };
    Answer { code, match_type: 0, ext_error: 0, proxy_port: 0, chosen: None, other: None }
}

/// AGG, the datapath's variant.
pub(crate) fn aggregate(id: u32, node: Node) -> u32 {
    if id == 6 || id == 7 || id & 0xFF00_0000 == 0x0200_0000 {
        return 6;
    }
    if id == 2 || (node.dual_stack && (id == 9 || id == 10)) || (0x0100_0001..=0x0100_FFFF).contains(&id) {
        return 2;
    }
    if id == 0 || id == 11 || id == 12 {
        return id;
    }
    if id < 100 {
        return 0;
    }
    if id >> 16 == u32::from(node.cluster_id) { 11 } else { 12 }
}
