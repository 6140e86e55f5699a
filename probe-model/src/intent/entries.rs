//! The policy map of one direction, and how Cilium's agent fills it: deny before allow, authentication handed down.
//!
//! The datapath matches an identity exactly or not at all, and an entry of the packet's own identity before one of any
//! identity. So the agent must itself see to it that a deny of many wins over an allow of few: it leaves out an allow that
//! a deny covers, and repeats a deny for the protocol and port of each allow that would otherwise be found first.
//!
//! Source: Cilium 1.16 `pkg/policy/mapstate.go`, in our own words.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::filter::SelectorId;
use super::kin::{Kin, Relatives};
use super::object::Authentication;
use super::port::L4Key;
use crate::cilium::identity::Identity;

/// Why an entry is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The policy of this number, as read.
    Policy(usize),
    /// No rule enforces this direction: everything is allowed.
    NotEnforced,
    /// The node itself may reach every pod.
    Localhost,
    /// Only rules without default deny enforce this direction: the rest is allowed.
    NoDefaultDeny,
}

/// An entry of the policy map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// It denies.
    pub deny: bool,
    /// It hands the packet to Cilium's proxy.
    pub redirect: bool,
    /// The authentication that must have happened.
    pub authentication: Authentication,
    /// A rule names the authentication itself, so that no other's is handed down to it.
    pub explicit: bool,
    /// What is behind it.
    pub derived_from: BTreeSet<Origin>,
    /// What asked for it.
    pub(super) owners: BTreeSet<Owner>,
}

/// What asked for an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Owner {
    /// Nothing that could go.
    Nobody,
    /// A selector, by its number.
    Selector(SelectorId),
    /// An entry of another key.
    Key(Key),
}

impl Entry {
    /// A deny without more.
    fn denying(owner: Owner, derived_from: BTreeSet<Origin>) -> Self {
        Self {
            deny: true,
            redirect: false,
            authentication: Authentication::Disabled,
            explicit: false,
            derived_from,
            owners: BTreeSet::from([owner]),
        }
    }

    /// The same for other owners.
    fn owned(self, owners: BTreeSet<Owner>) -> Self {
        Self { owners, ..self }
    }

    /// An allow that explicitly needs no authentication.
    pub(super) fn allowing(origin: Origin) -> Self {
        Self {
            deny: false,
            redirect: false,
            authentication: Authentication::Disabled,
            explicit: true,
            derived_from: BTreeSet::from([origin]),
            owners: BTreeSet::from([Owner::Nobody]),
        }
    }

    /// Takes in another entry for the same key.
    fn merge(&mut self, other: &Self) {
        self.deny |= other.deny;
        if self.deny {
            self.redirect = false;
            self.explicit = false;
            self.authentication = Authentication::Disabled;
        } else {
            self.redirect |= other.redirect;
            match (self.explicit, other.explicit) {
                (true, true) => self.authentication = self.authentication.max(other.authentication),
                (false, _) => {
                    self.authentication = other.authentication;
                    self.explicit = other.explicit;
                }
                (true, false) => {}
            }
        }
        self.derived_from.extend(&other.derived_from);
        self.owners.extend(other.owners.iter().cloned());
    }
}

/// What rules of a direction use: without denies or authentication much need not be looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) deny: bool,
    pub(super) authentication: bool,
}

/// A key: whom, and which protocol and port.
pub(super) type Key = (L4Key, Identity);

/// The entries of one direction.
pub(super) struct Entries<'a> {
    kin: &'a Kin,
    groups: BTreeMap<L4Key, BTreeMap<Identity, Entry>>,
    /// Those of identities that were asked for: each is, for many ports.
    relatives: HashMap<Identity, Rc<Relatives>>,
}

const ANYBODY: Identity = Identity::UNKNOWN;

/// How one protocol and port lie to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    /// They are the same.
    Same,
    /// They are a part of it.
    Inside,
    /// They hold it and more.
    Around,
}

impl<'a> Entries<'a> {
    pub(super) fn new(kin: &'a Kin) -> Self {
        Self { kin, groups: BTreeMap::new(), relatives: HashMap::new() }
    }

    pub(super) fn into_entries(self) -> impl Iterator<Item = (L4Key, Identity, Entry)> {
        let groups = self.groups.into_iter();
        groups.flat_map(|(l4, group)| group.into_iter().map(move |(identity, entry)| (l4, identity, entry)))
    }

    /// Puts in an entry with all that follows from it.
    pub(super) fn insert(&mut self, key: Key, mut entry: Entry, features: Features) {
        if features.deny {
            let denies_everything = self.get((L4Key::EVERYTHING, ANYBODY)).is_some_and(|entry| entry.deny);
            if denies_everything {
                return;
            }
            if entry.deny {
                self.insert_deny(key, entry);
                return;
            }
            match self.make_room_for_allow(key) {
                None => return,
                Some(true) => entry = Entry::denying(Owner::Nobody, entry.derived_from).owned(entry.owners),
                Some(false) => {}
            }
        }
        if features.authentication {
            self.insert_with_authentication(key, entry);
        } else {
            self.add(key, entry);
        }
    }

    /// A deny ends the allows that it covers, and is repeated wherever the datapath would find an allow before it.
    fn insert_deny(&mut self, (l4, identity): Key, entry: Entry) {
        let mut removed = Vec::new();
        let mut repeated = BTreeSet::new();
        let relatives = self.relatives(identity);
        for (other_l4, lies, group) in self.related_groups(l4) {
            let allows = group.iter().filter(|(_, other)| !other.deny).map(|(other, _)| *other);
            let is_allowed = |other: &Identity| group.get(other).is_some_and(|entry| !entry.deny);
            if lies == Lies::Inside
                && (identity != ANYBODY && is_allowed(&ANYBODY) || relatives.around.iter().any(is_allowed))
            {
                repeated.insert((other_l4, identity));
            }
            // One of the same addresses counts as around it alone.
            let narrower = relatives.inside.iter().filter(|other| !relatives.around.contains(other));
            let narrower = narrower.copied().filter(|other| is_allowed(other));
            match lies {
                Lies::Inside | Lies::Same if identity == ANYBODY => {
                    removed.extend(allows.map(|other| (other_l4, other)));
                }
                Lies::Inside | Lies::Same => {
                    removed.extend(is_allowed(&identity).then_some((other_l4, identity)));
                    // The datapath does not know that one identity is a part of another.
                    repeated.extend(narrower.map(|other| (other_l4, other)));
                }
                Lies::Around if identity == ANYBODY => {
                    repeated.extend(allows.filter(|other| *other != ANYBODY).map(|other| (l4, other)));
                }
                Lies::Around => repeated.extend(narrower.map(|other| (l4, other))),
            }
        }
        for key in removed {
            self.remove(key);
        }
        for key in &repeated {
            self.add(*key, Entry::denying(Owner::Key((l4, identity)), entry.derived_from.clone()));
        }
        if self.drop_needless_denies((l4, identity), &entry, &repeated) {
            self.add((l4, identity), entry);
        }
    }

    /// Removes denies that a new one makes needless, but for the `kept` ones. `false` if the new one is needless itself.
    fn drop_needless_denies(&mut self, (l4, identity): Key, entry: &Entry, kept: &BTreeSet<Key>) -> bool {
        let mut needless = Vec::new();
        for (other_l4, lies, group) in self.related_groups(l4) {
            let denies = group.iter().filter(|(_, other)| other.deny);
            if lies != Lies::Inside {
                let around =
                    [ANYBODY, identity].into_iter().filter_map(|other| Some((other, group.get(&other)?)));
                for (other, deny) in around.filter(|(_, deny)| deny.deny) {
                    // Of the same key, what another selector says is merged.
                    if (lies, other) != (Lies::Same, identity) || deny.owners == entry.owners {
                        return false;
                    }
                }
            }
            if lies == Lies::Around {
                continue;
            }
            let own = (other_l4, identity);
            if identity == ANYBODY {
                needless
                    .extend(denies.map(|(other, _)| (other_l4, *other)).filter(|key| *key != (l4, identity)));
            } else if lies == Lies::Inside && self.get(own).is_some_and(|entry| entry.deny) {
                needless.push(own);
            }
        }
        for key in needless.into_iter().filter(|key| !kept.contains(key)) {
            self.remove(key);
        }
        true
    }

    /// Repeats denies that an allow of this key would come before. `None` if a deny covers the allow, which then must not
    /// be put in; else whether it must be put in as a deny, because one of a wider identity covers it.
    fn make_room_for_allow(&mut self, (l4, identity): Key) -> Option<bool> {
        let mut repeated = Vec::new();
        let mut becomes_deny = false;
        let relatives = self.relatives(identity);
        for (other_l4, lies, group) in self.related_groups(l4) {
            let deny =
                |other: Identity| group.get(&other).filter(|entry| entry.deny).map(|entry| (other, entry));
            let repeat = |key: Key, (other, deny): (Identity, &Entry)| {
                (key, Entry::denying(Owner::Key((other_l4, other)), deny.derived_from.clone()))
            };
            if lies != Lies::Inside && (deny(ANYBODY).is_some() || deny(identity).is_some()) {
                return None;
            }
            let wider = relatives.around.iter().filter(|other| !relatives.inside.contains(other));
            let wider = wider.copied().filter_map(deny);
            match lies {
                Lies::Around if identity == ANYBODY => {
                    let denies =
                        group.iter().filter(|(_, entry)| entry.deny).map(|(other, entry)| (*other, entry));
                    repeated.extend(denies.map(|other| repeat((l4, other.0), other)));
                }
                Lies::Around => {
                    let narrower = relatives.inside.iter().copied().filter_map(deny);
                    repeated.extend(narrower.map(|other| repeat((l4, other.0), other)));
                    becomes_deny |= wider.count() > 0;
                }
                Lies::Same => becomes_deny |= wider.count() > 0,
                Lies::Inside => {
                    let any = deny(ANYBODY).filter(|_| identity != ANYBODY);
                    repeated.extend(
                        any.into_iter().chain(wider).map(|other| repeat((other_l4, identity), other)),
                    );
                }
            }
        }
        for (key, deny) in repeated {
            self.add(key, deny);
        }
        Some(becomes_deny)
    }

    /// The entries by protocol and port that have packets in common with a key's, and how they lie to it.
    fn related_groups(&self, l4: L4Key) -> impl Iterator<Item = (L4Key, Lies, &BTreeMap<Identity, Entry>)> {
        self.groups.iter().filter_map(move |(other, group)| {
            let lies = if *other == l4 {
                Lies::Same
            } else if l4.is_wider(*other) {
                Lies::Inside
            } else if other.is_wider(l4) {
                Lies::Around
            } else {
                return None;
            };
            Some((*other, lies, group))
        })
    }

    /// An allow without an authentication of its own takes that of the narrowest one around it that has one; one with its
    /// own hands it to those inside that have none.
    fn insert_with_authentication(&mut self, key: Key, mut entry: Entry) {
        if entry.explicit {
            self.hand_down(key, &entry);
        } else {
            self.inherit(key, &mut entry);
        }
        self.add(key, entry);
    }

    fn inherit(&mut self, (l4, identity): Key, entry: &mut Entry) {
        let mut narrowest = 0;
        let mut combined = Vec::new();
        for (other_key, other) in self.allows().filter(|(_, other)| other.explicit) {
            let around = specificity(other_key, (l4, identity));
            if around > narrowest {
                entry.authentication = other.authentication;
                narrowest = around;
            } else if around == 0 && is_combinable(other_key, (l4, identity)) {
                combined
                    .push(((l4, other_key.1), combination(other_key, other, other.authentication, entry)));
            }
        }
        if narrowest == 0 {
            for (key, both) in combined {
                self.add(key, both);
            }
        }
    }

    fn hand_down(&mut self, (l4, identity): Key, entry: &Entry) {
        let key = (l4, identity);
        let mut inside = Vec::new();
        let mut explicit = Vec::new();
        let mut combined = Vec::new();
        for (other_key, other) in self.allows() {
            let around = specificity(key, other_key);
            match (around > 0, other.explicit) {
                (true, true) => explicit.push(other_key),
                (true, false) => inside.push((other_key, around)),
                (false, false) if is_combinable(key, other_key) => {
                    combined.push((
                        (other_key.0, identity),
                        combination(key, entry, entry.authentication, other),
                    ));
                }
                (false, _) => {}
            }
        }
        for (key, both) in combined {
            self.add(key, both);
        }
        inside
            .retain(|(other, around)| explicit.iter().all(|nearer| specificity(*nearer, *other) <= *around));
        for (other, _) in inside {
            if let Some(found) = self.groups.get_mut(&other.0).and_then(|group| group.get_mut(&other.1)) {
                found.authentication = entry.authentication;
            }
        }
    }

    fn relatives(&mut self, identity: Identity) -> Rc<Relatives> {
        let known = self.relatives.entry(identity);
        Rc::clone(known.or_insert_with(|| Rc::new(self.kin.relatives(identity))))
    }

    fn allows(&self) -> impl Iterator<Item = (Key, &Entry)> {
        let all = self
            .groups
            .iter()
            .flat_map(|(l4, group)| group.iter().map(move |(id, entry)| ((*l4, *id), entry)));
        all.filter(|(_, entry)| !entry.deny)
    }

    fn get(&self, (l4, identity): Key) -> Option<&Entry> {
        self.groups.get(&l4)?.get(&identity)
    }

    fn remove(&mut self, (l4, identity): Key) {
        if let Some(group) = self.groups.get_mut(&l4) {
            group.remove(&identity);
        }
    }

    /// Puts in an entry; what is there is merged, and an allow never changes a deny.
    fn add(&mut self, (l4, identity): Key, entry: Entry) {
        let group = self.groups.entry(l4).or_default();
        match group.get_mut(&identity) {
            Some(old) if old.deny && !entry.deny => {}
            Some(old) => old.merge(&entry),
            None => {
                group.insert(identity, entry);
            }
        }
    }
}

/// How narrowly one key lies around another, 0 if it does not: any identity before one's own, then by protocol and port.
fn specificity((l4, identity): Key, (other_l4, other): Key) -> u8 {
    let is_any = identity == ANYBODY;
    if !is_any && identity != other {
        return 0;
    }
    let own = if is_any { 0 } else { 3 };
    if l4.protocol == 0 {
        // Around everything but itself.
        let is_around = other_l4.protocol != 0 || (is_any && other != ANYBODY);
        return if is_around { own + 1 } else { 0 };
    }
    if l4.protocol != other_l4.protocol {
        0
    } else if l4.port_is_wider(other_l4) {
        own + 2
    } else if is_any && other != ANYBODY && l4 == other_l4 {
        3
    } else {
        0
    }
}

/// Whether the first key is one of an identity alone and the other one of protocol and port alone: then neither lies
/// around the other, and what they have in common gets an entry of its own.
fn is_combinable((l4, identity): Key, (other_l4, other): Key) -> bool {
    identity != ANYBODY && l4.protocol == 0 && other == ANYBODY && other_l4.protocol != 0
}

/// The entry for what two keys have in common.
fn combination(key: Key, by_identity: &Entry, authentication: Authentication, by_port: &Entry) -> Entry {
    let derived_from = by_identity.derived_from.union(&by_port.derived_from).copied().collect();
    let owners = BTreeSet::from([Owner::Key(key)]);
    Entry { deny: false, redirect: false, authentication, explicit: false, derived_from, owners }
}
