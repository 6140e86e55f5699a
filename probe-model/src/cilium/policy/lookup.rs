//! The datapath's decision, in the six procedures that Cilium has had (groups A–F of the project's policy reference).

use super::super::drop_reason::DropReason;
use super::super::identity::Identity;
use super::map::PolicySlot;
use super::{
    Aggregation, MatchType, PolicyDecision, PolicyEntry, PolicyLayout, PolicyMap, PolicyQuery, PolicyVerdict,
};

/// What a procedure chose: the entry, how much of the packet it names, and the other one that matched.
struct Choice {
    entry: PolicySlot,
    match_type: MatchType,
    other: Option<PolicySlot>,
}

impl PolicyMap {
    /// What the datapath decides for `query`.
    ///
    /// Source: `__policy_can_access`, Cilium 1.13–1.20 `bpf/lib/policy.h`; which of its forms is [`PolicyLayout::group`].
    pub fn lookup(&self, query: PolicyQuery) -> PolicyDecision {
        let choice = match self.layout() {
            PolicyLayout::HashKey => self.by_exact_keys(query),
            PolicyLayout::WildcardBits => self.by_wildcard_bits(query),
            PolicyLayout::PrefixLength => self.by_prefix_length(query),
            PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => self.by_deny_and_proxy(query),
            PolicyLayout::Precedence => self.by_precedence(query),
            PolicyLayout::Aggregates => self.by_aggregate(query),
        };
        let Some(Choice { entry, match_type, other }) = choice else {
            let reason =
                if query.untracked_fragment { DropReason::FRAG_NOSUPPORT } else { DropReason::POLICY };
            return PolicyDecision {
                verdict: PolicyVerdict::Drop(reason),
                entry: None,
                match_type: MatchType::None,
                loser: None,
                auth_type: 0,
            };
        };
        let auth_type = self.auth_type(&entry.1, other.as_ref().map(|(_, other)| other));
        let verdict = if entry.1.deny() {
            PolicyVerdict::Drop(DropReason::POLICY_DENY)
        } else if auth_type != 0 {
            PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED)
        } else {
            PolicyVerdict::Allow { proxy_port: entry.1.proxy_port }
        };
        let auth_type = if entry.1.deny() { 0 } else { auth_type };
        // Identity 0 is its own wildcard: both lookups then find the same entry.
        let loser = other.filter(|other| other.0 != entry.0);
        PolicyDecision { verdict, entry: Some(entry), match_type, loser, auth_type }
    }

    /// Group A (1.13): six exact probes, the first hit wins.
    fn by_exact_keys(&self, query: PolicyQuery) -> Option<Choice> {
        let PolicyQuery { identity, protocol, port, untracked_fragment, .. } = query;
        let any = Identity::UNKNOWN;
        let probes = [
            (identity, protocol, port, MatchType::L3L4),
            (any, protocol, port, MatchType::L4Only),
            (identity, protocol, 0, MatchType::L3Proto),
            (any, protocol, 0, MatchType::ProtoOnly),
            (identity, 0, 0, MatchType::L3Only),
            (any, 0, 0, MatchType::All),
        ];
        // A fragment that nobody tracks has no port to ask for.
        let asked = &probes[if untracked_fragment { 2 } else { 0 }..];
        let mut hits = asked.iter().filter_map(|(identity, protocol, port, match_type)| {
            self.exact(*identity, query, *protocol, *port).map(|entry| (entry, *match_type))
        });
        let (entry, match_type) = hits.next()?;
        let other = hits.map(|(slot, _)| slot).find(|slot| slot.0 != entry.0);
        Some(Choice { entry, match_type, other })
    }

    /// Group B (1.14.0–1.16.3): the wildcard bits of the two longest matches decide which one counts.
    fn by_wildcard_bits(&self, query: PolicyQuery) -> Option<Choice> {
        let by_identity = self.longest(query.identity, query);
        let by_any = self.longest(Identity::UNKNOWN, query);
        let names_port = |slot: &PolicySlot| slot.1.flags & PolicyEntry::WILDCARD_DPORT == 0;
        let names_protocol = |slot: &PolicySlot| slot.1.flags & PolicyEntry::WILDCARD_PROTOCOL == 0;
        let ranked = [
            (by_identity.filter(names_port), MatchType::L3L4),
            (by_any.filter(names_port), MatchType::L4Only),
            (by_identity.filter(names_protocol), MatchType::L3Proto),
            (by_any.filter(names_protocol), MatchType::ProtoOnly),
            (by_identity, MatchType::L3Only),
            (by_any, MatchType::All),
        ];
        let (entry, match_type) =
            ranked.into_iter().find_map(|(slot, match_type)| Some((slot?, match_type)))?;
        Some(Choice { entry, match_type, other: the_other(entry, by_identity, by_any) })
    }

    /// Group C (1.16.4–1.16.x): the longer prefix counts, the identity's own entry on a tie.
    fn by_prefix_length(&self, query: PolicyQuery) -> Option<Choice> {
        let by_identity = self.longest(query.identity, query);
        let by_any = self.longest(Identity::UNKNOWN, query);
        let prefix = |slot: PolicySlot| slot.0.l4_prefix();
        let any_is_longer = by_any.filter(|slot| by_identity.is_none_or(|own| prefix(*slot) > prefix(own)));
        let (entry, match_type) = match (by_identity, any_is_longer) {
            (Some(own), None) => {
                // A part of the port's bits counts as none here.
                let match_type = match prefix(own) {
                    24 => MatchType::L3L4,
                    0 => MatchType::L3Only,
                    _ => MatchType::L3Proto,
                };
                (own, match_type)
            }
            (_, any) => any.map(|slot| (slot, match_of_any(&slot)))?,
        };
        Some(Choice { entry, match_type, other: the_other(entry, by_identity, by_any) })
    }

    /// Group D (1.17, 1.18): a deny first, then the redirect of higher priority, then the longer prefix.
    fn by_deny_and_proxy(&self, query: PolicyQuery) -> Option<Choice> {
        let own = self.longest(query.identity, query);
        if let Some(entry) = own.filter(|slot| slot.1.deny()) {
            return Some(Choice { entry, match_type: match_of_own(&entry), other: None });
        }
        let any = self.longest(Identity::UNKNOWN, query);
        let rank = |slot: &PolicySlot| (slot.1.proxy_port_priority, slot.0.l4_prefix());
        choose(own, any, |any, own| any.1.deny() || rank(any) > rank(own))
    }

    /// Group E (1.19): the higher precedence, then the longer prefix.
    fn by_precedence(&self, query: PolicyQuery) -> Option<Choice> {
        let own = self.longest(query.identity, query);
        if let Some(entry) = own.filter(is_highest) {
            return Some(Choice { entry, match_type: match_of_own(&entry), other: None });
        }
        choose(own, self.longest(Identity::UNKNOWN, query), outranks)
    }

    /// Group F (from 1.20 on): as E, but beside the identity's own entry stands that of its aggregate.
    fn by_aggregate(&self, query: PolicyQuery) -> Option<Choice> {
        let own = self.longest(query.identity, query);
        if let Some(entry) = own.filter(is_highest) {
            return Some(Choice { entry, match_type: match_of_own(&entry), other: None });
        }
        let aggregate = self.aggregation().of(query.identity);
        let mut class = None;
        if aggregate != query.identity {
            class = self.longest(aggregate, query);
        }
        if class.is_none() && own.is_none() && aggregate != Identity::UNKNOWN {
            class = self.longest(Identity::UNKNOWN, query);
        }
        choose(own, class, outranks)
    }

    /// The authentication that the decision asks for: from 1.17 on that of the losing entry, too, unless the winner's own
    /// rule names one.
    fn auth_type(&self, chosen: &PolicyEntry, other: Option<&PolicyEntry>) -> u8 {
        if !self.layout().has_explicit_auth() || chosen.has_explicit_auth_type {
            return chosen.auth_type;
        }
        // Up to 1.18 both are 0.
        let same_rank = |other: &&PolicyEntry| other.precedence == chosen.precedence;
        other.filter(same_rank).map_or(chosen.auth_type, |other| chosen.auth_type.max(other.auth_type))
    }
}

/// `any` if there is no `own` or it `wins` over it, else `own`.
fn choose(
    own: Option<PolicySlot>,
    any: Option<PolicySlot>,
    wins: impl Fn(&PolicySlot, &PolicySlot) -> bool,
) -> Option<Choice> {
    match (own, any) {
        (own, Some(entry)) if own.is_none_or(|own| wins(&entry, &own)) => {
            Some(Choice { entry, match_type: match_of_any(&entry), other: own })
        }
        (Some(entry), other) => Some(Choice { entry, match_type: match_of_own(&entry), other }),
        (None, _) => None,
    }
}

fn outranks(any: &PolicySlot, own: &PolicySlot) -> bool {
    let rank = |slot: &PolicySlot| (slot.1.precedence, slot.0.l4_prefix());
    rank(any) > rank(own)
}

fn is_highest(slot: &PolicySlot) -> bool {
    slot.1.precedence == PolicyEntry::HIGHEST_PRECEDENCE
}

fn the_other(chosen: PolicySlot, own: Option<PolicySlot>, any: Option<PolicySlot>) -> Option<PolicySlot> {
    [own, any].into_iter().flatten().find(|other| other.0 != chosen.0)
}

/// Match type of an entry of the packet's identity (groups D, E, F).
fn match_of_own((key, _): &PolicySlot) -> MatchType {
    match key.l4_prefix() {
        0 => MatchType::L3Only,
        1..=8 => MatchType::L3Proto,
        _ => MatchType::L3L4,
    }
}

/// Match type of an entry of any identity, or of an aggregate.
fn match_of_any((key, _): &PolicySlot) -> MatchType {
    match key.l4_prefix() {
        0 => MatchType::All,
        1..=8 => MatchType::ProtoOnly,
        _ => MatchType::L4Only,
    }
}

impl Aggregation {
    /// The identity under which the map holds what is said of the whole class that `identity` belongs to.
    ///
    /// Source: `aggregate_for_identity`, Cilium 1.20 branch point, `bpf/lib/identity.h`.
    pub fn of(self, identity: Identity) -> Identity {
        let is_world = match identity {
            Identity::WORLD => true,
            Identity::WORLD_IPV4 | Identity::WORLD_IPV6 => self.dual_stack,
            // The datapath's test covers these ids only, the agent's the whole scope.
            Identity(id) => matches!(id, 0x0100_0001..=0x0100_FFFF),
        };
        match identity {
            Identity::REMOTE_NODE | Identity::KUBE_APISERVER => Identity::REMOTE_NODE,
            _ if identity.is_remote_node_scope() => Identity::REMOTE_NODE,
            _ if is_world => Identity::WORLD,
            Identity::UNKNOWN | Identity::POLICY_CLUSTER | Identity::POLICY_CLUSTERMESH => identity,
            Identity(id) if id < 100 => Identity::UNKNOWN,
            Identity(id) if id >> 16 == u32::from(self.cluster_id) => Identity::POLICY_CLUSTER,
            _ => Identity::POLICY_CLUSTERMESH,
        }
    }
}
