//! 1.13 to 1.16: the order of the lookups alone decides which entry counts (groups A, B and C).

use crate::{
    MatchType,
    entry::{Entry, NIL},
    miss,
    slot::{Answer, Query},
    verdict,
};

/// Six exact probes, first hit wins. `probe` takes identity, protocol and port.
#[inline(always)]
pub fn a(query: &Query, probe: impl Fn(u32, u8, u16) -> Entry) -> Answer {
    let Query { identity, protocol, port, .. } = *query;
    if query.untracked_fragment == 0 {
        let entry = probe(identity, protocol, port);
        if entry.found {
            return verdict(entry, MatchType::L3L4, entry.auth_type, NIL);
        }
        let entry = probe(0, protocol, port);
        if entry.found {
            return verdict(entry, MatchType::L4Only, entry.auth_type, NIL);
        }
    }
    let entry = probe(identity, protocol, 0);
    if entry.found {
        return verdict(entry, MatchType::L3Proto, entry.auth_type, NIL);
    }
    let entry = probe(0, protocol, 0);
    if entry.found {
        return verdict(entry, MatchType::ProtoOnly, entry.auth_type, NIL);
    }
    let entry = probe(identity, 0, 0);
    if entry.found {
        return verdict(entry, MatchType::L3Only, entry.auth_type, NIL);
    }
    let entry = probe(0, 0, 0);
    if entry.found {
        return verdict(entry, MatchType::All, entry.auth_type, NIL);
    }
    miss(query)
}

/// Two longest-prefix lookups, told apart by the wildcard bits. `longest` takes the identity.
#[inline(always)]
pub fn b(query: &Query, longest: impl Fn(u32) -> Entry) -> Answer {
    let p = longest(query.identity);
    if p.found && !p.wildcard_dport {
        return verdict(p, MatchType::L3L4, p.auth_type, NIL);
    }
    let l = longest(0);
    if l.found && !l.wildcard_dport {
        return verdict(l, MatchType::L4Only, l.auth_type, p);
    }
    if p.found && !p.wildcard_protocol {
        return verdict(p, MatchType::L3Proto, p.auth_type, l);
    }
    if l.found && !l.wildcard_protocol {
        return verdict(l, MatchType::ProtoOnly, l.auth_type, p);
    }
    if p.found {
        return verdict(p, MatchType::L3Only, p.auth_type, l);
    }
    if l.found {
        return verdict(l, MatchType::All, l.auth_type, p);
    }
    miss(query)
}

/// Two longest-prefix lookups, the longer prefix wins, a tie goes to the identity's own entry.
#[inline(always)]
pub fn c(query: &Query, longest: impl Fn(u32) -> Entry) -> Answer {
    let p = longest(query.identity);
    if p.found && p.plen == 24 {
        return verdict(p, MatchType::L3L4, p.auth_type, NIL);
    }
    let l = longest(0);
    if l.found && (!p.found || l.plen > p.plen) {
        let kind = match l.plen {
            0 => MatchType::All,
            1..=8 => MatchType::ProtoOnly,
            _ => MatchType::L4Only,
        };
        return verdict(l, kind, l.auth_type, p);
    }
    if p.found {
        let kind = if p.plen > 0 { MatchType::L3Proto } else { MatchType::L3Only };
        return verdict(p, kind, p.auth_type, l);
    }
    miss(query)
}
