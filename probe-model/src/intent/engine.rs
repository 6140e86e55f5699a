//! What the policy objects make of one pod's policy map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::cluster::{Cluster, NamedPortIs, Pod};
use super::entries::{Entries, Entry, Features, Origin, Owner};
use super::filter::{Conflict, EVERYBODY, Filter, FilterKey, Filters, PerSelector, SelectorId};
use super::kin::Kin;
use super::label::Labels;
use super::object::{
    Authentication, Effect, Enforcement, Objects, Policy, Rejected, Rule, RuleSubject, Unevaluated,
};
use super::port::{L4Key, keys};
use super::selector::Selector;
use crate::cilium::Direction;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, PolicyQuery, PolicyVerdict};
use crate::tuple::Protocol;

/// The layout in which the entries are looked up: the one of Cilium 1.16.0, whose agent the entries are modelled on.
const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;
/// Stands for whichever port Cilium's proxy listens on.
const SOME_PROXY_PORT: u16 = u16::MAX;
/// Bits of a key's prefix before the port.
const BITS_BEFORE_PORT: u32 = 48;
/// Bits of a key's prefix before the protocol.
const BITS_BEFORE_PROTOCOL: u32 = 40;

/// What to ask of one pod's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Direction as the pod sees it.
    pub direction: Direction,
    /// The peer's identity: the source's on ingress, the destination's on egress.
    pub peer: Identity,
    /// IP protocol.
    pub protocol: Protocol,
    /// Destination port after any service translation; the type for ICMP.
    pub port: u16,
}

/// What the policy objects come to for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntentVerdict {
    /// Allowed.
    Allowed,
    /// Handed to Cilium's proxy, which judges what is inside.
    Redirected,
    /// Allowed once both ends have authenticated.
    Authentication,
    /// A rule denies it.
    Denied,
    /// The direction is enforced and no rule admits it.
    DefaultDeny,
}

impl IntentVerdict {
    /// Whether the packet goes on.
    pub fn admits(self) -> bool {
        matches!(self, Self::Allowed | Self::Redirected | Self::Authentication)
    }
}

/// An entry that the policy map must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntentEntry {
    /// Its key.
    pub key: PolicyKey,
    /// What it says, and what is behind it.
    pub entry: Entry,
}

/// What the policy objects make of one direction of one pod.
#[derive(Clone, Debug)]
pub struct DirectionIntent {
    /// The direction.
    pub direction: Direction,
    /// Cilium enforces it. With only `enableDefaultDeny: false` rules it does, and everything is allowed by an entry.
    pub enforced: bool,
    /// The entries, narrowest ports last.
    pub entries: Vec<IntentEntry>,
    /// What could change an answer and is not evaluated.
    pub unevaluated: Vec<Unevaluated>,
    map: PolicyMap,
}

impl DirectionIntent {
    /// What the datapath decides on these entries.
    pub fn verdict(&self, peer: Identity, protocol: Protocol, port: u16) -> IntentVerdict {
        let decision = self.map.lookup(self.query(peer, protocol, port));
        match decision.verdict {
            PolicyVerdict::Allow { proxy_port: 0 } => IntentVerdict::Allowed,
            PolicyVerdict::Allow { .. } => IntentVerdict::Redirected,
            PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED) => IntentVerdict::Authentication,
            PolicyVerdict::Drop(DropReason::POLICY_DENY) => IntentVerdict::Denied,
            PolicyVerdict::Drop(_) => IntentVerdict::DefaultDeny,
        }
    }

    /// The entry that decides, if one does.
    pub fn deciding(&self, peer: Identity, protocol: Protocol, port: u16) -> Option<&IntentEntry> {
        let (key, _) = self.map.lookup(self.query(peer, protocol, port)).entry?;
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The entries as a policy map.
    pub fn map(&self) -> &PolicyMap {
        &self.map
    }

    fn query(&self, identity: Identity, protocol: Protocol, port: u16) -> PolicyQuery {
        let direction = self.direction;
        PolicyQuery { identity, direction, protocol: protocol.0, port, untracked_fragment: false }
    }
}

/// Policy objects and the cluster that they are applied to.
///
/// Nothing is computed before it is asked for, and what a selector comes to only once.
#[derive(Debug)]
pub struct Engine {
    /// Without what the policies bring in.
    base: Arc<Cluster>,
    cluster: Cluster,
    kin: Kin,
    policies: Vec<Arc<Policy>>,
    rejected: Vec<Rejected>,
    unread: Vec<Unevaluated>,
    selected: Mutex<BTreeMap<Selector, Arc<[Identity]>>>,
}

impl Engine {
    /// Applies `objects` to a cluster.
    pub fn new(cluster: Cluster, objects: Objects) -> Self {
        let Objects { policies, rejected, unread } = objects;
        let policies = policies.into_iter().map(Arc::new).collect();
        Self::on(Arc::new(cluster), policies, rejected, unread)
    }

    fn on(
        base: Arc<Cluster>,
        policies: Vec<Arc<Policy>>,
        rejected: Vec<Rejected>,
        unread: Vec<Unevaluated>,
    ) -> Self {
        let cluster = base.with_prefixes_of(policies.iter().map(|policy| &**policy));
        let kin = Kin::new(&cluster);
        Self { base, cluster, kin, policies, rejected, unread, selected: Mutex::default() }
    }

    /// The same with one policy more, or in place of the one from the same object.
    #[must_use]
    pub fn with_policy(&self, policy: Policy) -> Self {
        let (mut policies, policy) = (self.policies.clone(), Arc::new(policy));
        match policies.iter_mut().find(|old| old.object == policy.object) {
            Some(old) => *old = policy,
            None => policies.push(policy),
        }
        Self::on(Arc::clone(&self.base), policies, self.rejected.clone(), self.unread.clone())
    }

    /// The cluster, with an identity for each prefix that the policies bring in.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The policies.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    /// The policy of this number, as an entry's [`Origin`] names it.
    pub fn policy(&self, number: usize) -> Option<&Policy> {
        self.policies.get(number).map(Arc::as_ref)
    }

    /// The objects that Cilium refuses.
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// What of the objects could not be read at all, and so could say anything.
    pub fn unread(&self) -> &[Unevaluated] {
        &self.unread
    }

    /// The labels of an identity, none if it is not known.
    pub(super) fn labels(&self, identity: Identity) -> &Labels {
        self.cluster.identities.get(&identity).unwrap_or(const { &Labels::NONE })
    }

    /// The rules that select an identity, each with the number of its policy.
    pub fn rules_selecting(&self, identity: Identity) -> Vec<(usize, &Rule)> {
        let labels = self.labels(identity);
        let all = self.policies.iter().enumerate();
        let rules = all.flat_map(|(number, policy)| policy.rules.iter().map(move |rule| (number, rule)));
        rules.filter(|(_, rule)| selects(rule, labels)).collect()
    }

    /// What the objects make of one direction of a pod.
    pub fn judge(&self, pod: &Pod, direction: Direction) -> DirectionIntent {
        let rules = self.rules_selecting(pod.identity);
        let sides: Vec<_> = rules.iter().map(|(number, rule)| (*number, rule.side(direction))).collect();
        let enforced = match self.cluster.options.enforcement {
            Enforcement::Never => false,
            Enforcement::Always => true,
            Enforcement::Default => sides.iter().any(|(_, side)| side.enforces),
        };
        let mut unevaluated = self.unread.clone();
        let mut entries = Entries::new(&self.kin);
        if enforced {
            let filters = self.filters(&sides, direction, &mut unevaluated);
            let features = features(&filters);
            let selected: Vec<_> = filters.selectors.iter().map(|selector| self.selected(selector)).collect();
            let filling = Filling { pod, direction, features, selected };
            for (key, filter) in &filters.by_port {
                self.fill(&mut entries, &filling, (key, filter), &mut unevaluated);
            }
        } else {
            let everything = (L4Key::EVERYTHING, Identity::UNKNOWN);
            entries.insert(everything, Entry::allowing(Origin::NotEnforced), Features::default());
        }
        if direction == Direction::Ingress && self.cluster.options.allow_localhost {
            let all = Features { deny: true, authentication: true };
            entries.insert((L4Key::EVERYTHING, Identity::HOST), Entry::allowing(Origin::Localhost), all);
        }
        let entries: Vec<_> = entries.into_entries().map(|entry| intent_entry(direction, entry)).collect();
        unevaluated.sort();
        unevaluated.dedup();
        let map = PolicyMap::new(LAYOUT, entries.iter().map(slot));
        DirectionIntent { direction, enforced, entries, unevaluated, map }
    }

    /// The rules of a direction, merged by protocol and port.
    fn filters(
        &self,
        sides: &[(usize, &super::object::Side)],
        direction: Direction,
        unevaluated: &mut Vec<Unevaluated>,
    ) -> Filters {
        let mut filters = Filters::default();
        let is_host = |selector: &Selector| self.selected(selector).contains(&Identity::HOST);
        let is_host: &dyn Fn(&Selector) -> bool = &is_host;
        let host_passes = direction == Direction::Ingress && self.cluster.options.allow_localhost;
        for (number, side) in sides {
            for part in &side.parts {
                unevaluated.extend(part.unevaluated.iter().cloned());
                let added = filters.add(part, Origin::Policy(*number), host_passes.then_some(is_host));
                if let Err(Conflict) = added {
                    let policy = self.policies[*number].reference.clone();
                    let why = "it asks for another authentication of the same peers and port than another rule, which Cilium cannot merge";
                    let (path, why) = (part.path.clone(), why.to_owned());
                    unevaluated.push(Unevaluated { policy, path, why, effect: Effect::Either });
                }
            }
        }
        let some = sides.iter().any(|(_, side)| side.enforces);
        if some && !sides.iter().any(|(_, side)| side.default_deny) {
            filters.allow_everybody();
        }
        filters
    }

    /// Puts the entries of one filter into the map.
    fn fill(
        &self,
        entries: &mut Entries<'_>,
        filling: &Filling<'_>,
        (key, filter): (&FilterKey, &Filter),
        unevaluated: &mut Vec<Unevaluated>,
    ) {
        let (protocol, first, end) = match key {
            FilterKey::Numbered { protocol, first, end, .. } => (*protocol, *first, *end),
            FilterKey::Named { name, protocol } => {
                match self.named_port(filling.pod, filling.direction, name, *protocol) {
                    NamedPortIs::Port(port) => (*protocol, port, 0),
                    NamedPortIs::Nothing(_) => return,
                    NamedPortIs::Unknown(why) => {
                        unevaluated.extend(self.unknown_port(filter, name, &why));
                        return;
                    }
                }
            }
        };
        let names_port = first != 0;
        let l4_keys = keys(protocol.0, first, end);
        let everybody = filter.answers.get(&EVERYBODY).filter(|_| names_port);
        for (selector, answer) in &filter.answers {
            let is_everybody = *selector == EVERYBODY;
            let around = everybody.filter(|_| !is_everybody);
            if around.is_some_and(|around| around.covers(answer)) {
                continue;
            }
            let redirected_with_all = !answer.deny && around.is_some_and(|around| around.redirect);
            let entry = entry(*selector, answer, redirected_with_all);
            let identities: &[Identity] =
                if is_everybody { &[Identity::UNKNOWN] } else { &filling.selected[*selector as usize] };
            for identity in identities {
                for l4 in &l4_keys {
                    entries.insert((*l4, *identity), entry.clone(), filling.features);
                }
            }
        }
    }

    fn named_port(&self, pod: &Pod, direction: Direction, name: &str, protocol: Protocol) -> NamedPortIs {
        match direction {
            Direction::Ingress => self.cluster.own_port(pod, name, protocol),
            Direction::Egress => self.cluster.shared_port(name, protocol),
        }
    }

    /// What stays open where a port's name could not be resolved.
    fn unknown_port(&self, filter: &Filter, name: &str, why: &str) -> Vec<Unevaluated> {
        let of_policy = |number: usize, deny: bool| {
            let policy = &self.policies[number];
            let effect = if deny { Effect::Denies } else { Effect::Admits };
            let why = format!("port `{name}` could be any: {why}");
            let path = policy.rules.first().map(|rule| rule.path.clone()).unwrap_or_default();
            Unevaluated { policy: policy.reference.clone(), path, why, effect }
        };
        let answers = filter.answers.values();
        let origins = answers.flat_map(|answer| answer.origins.iter().map(|origin| (*origin, answer.deny)));
        let policies = origins.filter_map(|(origin, deny)| match origin {
            Origin::Policy(number) => Some(of_policy(number, deny)),
            _ => None,
        });
        policies.collect()
    }

    /// The identities that a selector means, sorted.
    pub fn selected(&self, selector: &Selector) -> Arc<[Identity]> {
        let mut known = self.selected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(selector) {
            return Arc::clone(found);
        }
        let mut found: Vec<_> = if let Some(prefix) = selector.only_prefix() {
            self.kin.inside(prefix).collect()
        } else {
            let selected = self.cluster.identities.iter().filter(|(_, labels)| selector.selects(labels));
            selected.map(|(identity, _)| *identity).collect()
        };
        found.sort_unstable();
        let found: Arc<[Identity]> = found.into();
        known.insert(selector.clone(), Arc::clone(&found));
        found
    }
}

/// Whether a rule is for a pod with these labels.
pub(super) fn selects(rule: &Rule, labels: &Labels) -> bool {
    match &rule.subject {
        RuleSubject::Endpoints(selector) => selector.selects(labels),
        RuleSubject::Nodes(_) => false,
    }
}

/// What all filters of a direction are put into the map with.
struct Filling<'a> {
    pod: &'a Pod,
    direction: Direction,
    features: Features,
    /// The identities of every selector, by its number.
    selected: Vec<Arc<[Identity]>>,
}

fn features(filters: &Filters) -> Features {
    Features {
        deny: filters.answers().any(|answer| answer.deny),
        authentication: filters.answers().any(|answer| answer.authentication.is_some()),
    }
}

fn entry(selector: SelectorId, answer: &PerSelector, redirected_with_all: bool) -> Entry {
    Entry {
        deny: answer.deny,
        redirect: answer.redirect || redirected_with_all,
        authentication: answer.authentication.unwrap_or(Authentication::Disabled),
        explicit: answer.authentication.is_some(),
        derived_from: answer.origins.clone(),
        owners: BTreeSet::from([Owner::Selector(selector)]),
    }
}

fn intent_entry(direction: Direction, (l4, identity, entry): (L4Key, Identity, Entry)) -> IntentEntry {
    let prefixlen = match (l4.protocol, l4.port_bits) {
        (0, _) => BITS_BEFORE_PROTOCOL,
        (_, bits) => BITS_BEFORE_PORT + u32::from(bits),
    };
    let key = PolicyKey { prefixlen, sec_label: identity, direction, protocol: l4.protocol, dport: l4.port };
    IntentEntry { key, entry }
}

fn slot(entry: &IntentEntry) -> (PolicyKey, PolicyEntry) {
    let value = PolicyEntry::for_key(&entry.key, LAYOUT, entry.entry.deny);
    let proxy_port = if entry.entry.redirect { SOME_PROXY_PORT } else { 0 };
    (entry.key, PolicyEntry { proxy_port, auth_type: entry.entry.authentication as u8, ..value })
}
