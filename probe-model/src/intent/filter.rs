//! The rules of one direction for one pod, merged by protocol and port.
//!
//! Cilium calls this an L4 filter: for each protocol and port that any rule names, who is meant, and what happens to them.
//! A selector that several rules name for the same port has one answer there: a deny wins, a redirect stays.
//!
//! Source: Cilium 1.16 `pkg/policy/{l4,rule}.go`, in our own words.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::entries::Origin;
use super::object::{Authentication, Part};
use super::port::{PortTerm, RulePort};
use super::selector::Selector;
use crate::tuple::Protocol;

/// Which filter a rule's port belongs to: ranges and names each have their own, whatever ports they cover.
///
/// In the order in which Cilium fills the map, which shows where denies overlap: names first, then each protocol's ports,
/// a wider range before what begins where it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FilterKey {
    Named { name: String, protocol: Protocol },
    Numbered { protocol: Protocol, first: u16, last: Reverse<u16>, end: u16 },
}

impl FilterKey {
    /// The filter of a port, with the `endPort` as it is written.
    fn numbered(protocol: Protocol, first: u16, end: u16) -> Self {
        let (_, last) = RulePort::Number { first, end }.range().unwrap_or((first, first));
        Self::Numbered { protocol, first, last: Reverse(last), end }
    }

    /// The filter of rules that name no port: everything.
    pub(super) fn everything() -> Self {
        Self::numbered(Protocol::ANY, 0, 0)
    }
}

/// What rules say of one selector for one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PerSelector {
    pub(super) deny: bool,
    pub(super) redirect: bool,
    pub(super) authentication: Option<Authentication>,
    pub(super) origins: BTreeSet<Origin>,
}

impl PerSelector {
    /// Whether an entry for any identity with this answer makes one with the other answer for the same port needless.
    pub(super) fn covers(&self, other: &Self) -> bool {
        if self.deny || other.deny {
            return self.deny;
        }
        let other_has_own = other.authentication.is_some() && other.authentication != self.authentication;
        !other_has_own && (self.redirect || !other.redirect)
    }

    fn merge(&mut self, other: Self) -> Result<(), Conflict> {
        self.origins.extend(other.origins);
        if self.deny || other.deny {
            let deny = Self { deny: true, origins: std::mem::take(&mut self.origins), ..Self::default() };
            *self = deny;
            return Ok(());
        }
        self.redirect |= other.redirect;
        match (self.authentication, other.authentication) {
            (Some(one), Some(two)) if one != two => return Err(Conflict),
            (own, new) => self.authentication = own.or(new),
        }
        Ok(())
    }
}

/// Two rules ask for different authentication of the same peers on the same port, which Cilium cannot merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict;

/// The number of a selector among those of a direction.
pub(super) type SelectorId = u32;

/// One filter.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) answers: BTreeMap<SelectorId, PerSelector>,
}

impl Filter {
    fn add(&mut self, selector: SelectorId, answer: PerSelector) -> Result<(), Conflict> {
        if let Some(old) = self.answers.get_mut(&selector) {
            return old.merge(answer);
        }
        self.answers.insert(selector, answer);
        Ok(())
    }
}

/// The filters of one direction.
#[derive(Clone, Debug)]
pub(super) struct Filters {
    pub(super) by_port: BTreeMap<FilterKey, Filter>,
    /// Every selector by its number; the first means everybody.
    pub(super) selectors: Vec<Arc<Selector>>,
    numbers: HashMap<Arc<Selector>, SelectorId>,
}

/// The number of the selector that means everybody.
pub(super) const EVERYBODY: SelectorId = 0;

impl Default for Filters {
    fn default() -> Self {
        let mut filters = Self { by_port: BTreeMap::new(), selectors: Vec::new(), numbers: HashMap::new() };
        filters.number(&Selector::everybody());
        filters
    }
}

impl Filters {
    /// Adds what a part of a rule says. `is_host` tells whether a selector means the node itself: where that may always
    /// reach the pod on ingress, and a rule hands it to the proxy, the proxy is told to let it through.
    pub(super) fn add(
        &mut self,
        part: &Part,
        origin: Origin,
        is_host: Option<&dyn Fn(&Selector) -> bool>,
    ) -> Result<(), Conflict> {
        if part.peers.nobody.is_some() {
            return Ok(());
        }
        let peers = || part.peers.listed.iter().flat_map(|peer| &peer.selectors);
        let names_nobody = peers().next().is_none();
        if names_nobody && (part.ports.is_none() || !part.unevaluated.is_empty()) {
            return Ok(());
        }
        let selectors: BTreeSet<_> = if names_nobody || peers().any(Selector::is_everybody) {
            BTreeSet::from([EVERYBODY])
        } else {
            peers().map(|selector| self.number(selector)).collect()
        };
        let host = self.number(&Selector::reserved("host"));
        for (key, redirect) in keys(part) {
            let answer = PerSelector {
                deny: part.deny,
                redirect: redirect && !part.deny,
                authentication: part.authentication,
                origins: BTreeSet::from([origin]),
            };
            let means_host = || {
                is_host.is_some_and(|is_host| {
                    selectors.iter().any(|one| is_host(&self.selectors[*one as usize]))
                })
            };
            let lets_host = answer.redirect && means_host();
            let filter = self.by_port.entry(key).or_default();
            for selector in &selectors {
                filter.add(*selector, answer.clone())?;
            }
            if lets_host {
                filter.add(host, PerSelector::default())?;
            }
        }
        Ok(())
    }

    /// Allows everybody, where only rules without default deny enforce the direction.
    pub(super) fn allow_everybody(&mut self) {
        let answer =
            PerSelector { origins: BTreeSet::from([Origin::NoDefaultDeny]), ..PerSelector::default() };
        // It has no authentication to conflict with.
        let _merged = self.by_port.entry(FilterKey::everything()).or_default().add(EVERYBODY, answer);
    }

    /// What every filter says of every selector.
    pub(super) fn answers(&self) -> impl Iterator<Item = &PerSelector> {
        self.by_port.values().flat_map(|filter| filter.answers.values())
    }

    /// The number of a selector, a new one if it has none.
    fn number(&mut self, selector: &Selector) -> SelectorId {
        if let Some(number) = self.numbers.get(selector) {
            return *number;
        }
        let (number, selector) = (self.selectors.len() as SelectorId, Arc::new(selector.clone()));
        self.selectors.push(Arc::clone(&selector));
        self.numbers.insert(selector, number);
        number
    }
}

/// The filters that a part belongs to, and whether it hands to the proxy there.
fn keys(part: &Part) -> Vec<(FilterKey, bool)> {
    let Some(ports) = &part.ports else { return vec![(FilterKey::everything(), false)] };
    let of_term = |term: &PortTerm| {
        let key = |protocol: &Protocol| match &term.port {
            RulePort::Number { first, end } => FilterKey::numbered(*protocol, *first, *end),
            RulePort::Name(name) => FilterKey::Named { name: name.clone(), protocol: *protocol },
        };
        term.protocol.protocols().iter().map(|protocol| (key(protocol), term.redirect)).collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_term).collect()
}
