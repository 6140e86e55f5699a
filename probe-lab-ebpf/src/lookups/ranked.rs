//! 1.17 and later: entries carry what decides between them (groups D, E and F).

use crate::{
    MatchType,
    entry::{Entry, NIL},
    miss,
    slot::{Answer, Query},
    verdict,
};

const HIGHEST_PRECEDENCE: u32 = 0xffff_ffff;

const WORLD: u32 = 2;
const REMOTE_NODE: u32 = 6;
const KUBE_APISERVER: u32 = 7;
const WORLD_IPV4: u32 = 9;
const WORLD_IPV6: u32 = 10;
const POLICY_CLUSTER: u32 = 11;
const POLICY_CLUSTERMESH: u32 = 12;
const FIRST_IDENTITY_OF_A_CLUSTER: u32 = 100;

/// 1.17 and 1.18: deny first, then the proxy port's priority, then the longer prefix.
#[inline(always)]
pub fn d(query: &Query, longest: impl Fn(u32) -> Entry) -> Answer {
    let p = longest(query.identity);
    if p.found && p.deny {
        return choose(p, own_type(p.plen), NIL, false);
    }
    let l = longest(0);
    if l.found && (!p.found || l.deny || l.rank > p.rank || (l.rank == p.rank && l.plen > p.plen)) {
        return choose(l, wildcard_type(l.plen), p, false);
    }
    if p.found { choose(p, own_type(p.plen), l, false) } else { miss(query) }
}

/// 1.19: precedence, then the longer prefix.
#[inline(always)]
pub fn e(query: &Query, longest: impl Fn(u32) -> Entry) -> Answer {
    let p = longest(query.identity);
    if p.found && p.rank == HIGHEST_PRECEDENCE {
        return choose(p, own_type(p.plen), NIL, true);
    }
    by_precedence(query, p, longest(0))
}

/// 1.20: as 1.19, with the class of the identity in place of any identity.
#[inline(always)]
pub fn f(query: &Query, longest: impl Fn(u32) -> Entry) -> Answer {
    let p = longest(query.identity);
    if p.found && p.rank == HIGHEST_PRECEDENCE {
        return choose(p, own_type(p.plen), NIL, true);
    }
    let class = aggregate(query);
    let mut a = NIL;
    if class != query.identity {
        a = longest(class);
    }
    if !a.found && !p.found && class != 0 {
        a = longest(0);
    }
    by_precedence(query, p, a)
}

#[inline(always)]
fn by_precedence(query: &Query, p: Entry, l: Entry) -> Answer {
    if l.found && (!p.found || l.rank > p.rank || (l.rank == p.rank && l.plen > p.plen)) {
        return choose(l, wildcard_type(l.plen), p, true);
    }
    if p.found { choose(p, own_type(p.plen), l, true) } else { miss(query) }
}

/// `aggregate_for_identity`: the class of an identity, first match wins.
#[inline(always)]
fn aggregate(query: &Query) -> u32 {
    let id = query.identity;
    let dual_stack = query.dual_stack != 0;
    if id == REMOTE_NODE || id == KUBE_APISERVER || id & 0xff00_0000 == 0x0200_0000 {
        return REMOTE_NODE;
    }
    let family = dual_stack && (id == WORLD_IPV4 || id == WORLD_IPV6);
    if id == WORLD || family || (0x0100_0001..=0x0100_ffff).contains(&id) {
        return WORLD;
    }
    if id == 0 || id == POLICY_CLUSTER || id == POLICY_CLUSTERMESH {
        return id;
    }
    if id < FIRST_IDENTITY_OF_A_CLUSTER {
        return 0;
    }
    if id >> 16 == u32::from(query.cluster_id) { POLICY_CLUSTER } else { POLICY_CLUSTERMESH }
}

/// The match type of an entry with the packet's own identity.
#[inline(always)]
fn own_type(plen: u8) -> MatchType {
    match plen {
        0 => MatchType::L3Only,
        1..=8 => MatchType::L3Proto,
        _ => MatchType::L3L4,
    }
}

/// The match type of an entry with another identity: any, or a class.
#[inline(always)]
fn wildcard_type(plen: u8) -> MatchType {
    match plen {
        0 => MatchType::All,
        1..=8 => MatchType::ProtoOnly,
        _ => MatchType::L4Only,
    }
}

/// The verdict of the chosen entry; the other one may ask for authentication where this one does not say.
#[inline(always)]
fn choose(chosen: Entry, kind: MatchType, other: Entry, same_rank_only: bool) -> Answer {
    let mut auth_type = chosen.auth_type;
    if other.found
        && !chosen.has_explicit_auth_type
        && other.auth_type > auth_type
        && (!same_rank_only || other.rank == chosen.rank)
    {
        auth_type = other.auth_type;
    }
    verdict(chosen, kind, auth_type, other)
}
