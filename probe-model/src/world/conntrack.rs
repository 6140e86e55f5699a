//! What is known of a node's conntrack maps: every entry, or the keys that were looked up.

use std::collections::{BTreeMap, BTreeSet};

use super::World;
use crate::cilium::ct::{CtEntry, CtTuple, ct_layouts};
use crate::cilium::family::Family;
use crate::tuple::Protocol;

/// What is known of one conntrack map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CtTable {
    /// Every entry.
    Whole(BTreeMap<CtTuple, CtEntry>),
    /// The keys that were looked up, each with its entry or that there is none; nothing of any other key.
    Asked(BTreeMap<CtTuple, Option<CtEntry>>),
}

impl Default for CtTable {
    /// Nothing is known.
    fn default() -> Self {
        Self::Asked(BTreeMap::new())
    }
}

impl CtTable {
    /// Every entry, if they are known.
    pub fn whole(&self) -> Option<&BTreeMap<CtTuple, CtEntry>> {
        match self {
            Self::Whole(entries) => Some(entries),
            Self::Asked(_) => None,
        }
    }

    fn known(&self) -> impl Iterator<Item = (&CtTuple, &CtEntry)> {
        let asked = match self {
            Self::Whole(_) => None,
            Self::Asked(asked) => Some(asked),
        };
        let found = asked.into_iter().flatten().filter_map(|(key, found)| Some((key, found.as_ref()?)));
        self.whole().into_iter().flatten().chain(found)
    }

    fn get(&self, key: &CtTuple) -> Tracked<'_> {
        match self {
            Self::Whole(entries) => entries.get(key).map_or(Tracked::Absent, Tracked::Entry),
            Self::Asked(asked) => match asked.get(key) {
                Some(Some(entry)) => Tracked::Entry(entry),
                Some(None) => Tracked::Absent,
                None => Tracked::Unknown,
            },
        }
    }

    fn learn(&mut self, key: CtTuple, found: Option<CtEntry>) {
        match (self, found) {
            (Self::Asked(asked), found) => drop(asked.insert(key, found)),
            (Self::Whole(entries), Some(entry)) => drop(entries.insert(key, entry)),
            (Self::Whole(entries), None) => drop(entries.remove(&key)),
        }
    }

    fn forget(&mut self) {
        if let Self::Asked(asked) = self {
            asked.clear();
        }
    }
}

/// What is known of one key of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked<'t> {
    /// There is this entry.
    Entry(&'t CtEntry),
    /// There is none.
    Absent,
    /// Nobody looked.
    Unknown,
}

impl<'t> Tracked<'t> {
    /// The entry, if there is one for certain.
    pub fn entry(self) -> Option<&'t CtEntry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// The conntrack maps of one family. Nothing is known of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// TCP's.
    pub tcp: CtTable,
    /// Every other protocol's.
    pub other: CtTable,
}

impl Conntrack {
    /// What is known of a key.
    pub fn get(&self, key: &CtTuple) -> Tracked<'_> {
        if Protocol(key.nexthdr) == Protocol::TCP { self.tcp.get(key) } else { self.other.get(key) }
    }

    /// Every entry, if they are known of both maps: for who looks through all of them.
    pub fn whole(&self) -> Option<impl Iterator<Item = (&CtTuple, &CtEntry)>> {
        Some(self.tcp.whole()?.iter().chain(self.other.whole()?))
    }

    /// The entries that are known, all or not.
    pub fn known(&self) -> impl Iterator<Item = (&CtTuple, &CtEntry)> {
        self.tcp.known().chain(self.other.known())
    }

    /// Takes over what a lookup found.
    pub fn learn(&mut self, key: CtTuple, found: Option<CtEntry>) {
        let is_tcp = Protocol(key.nexthdr) == Protocol::TCP;
        if is_tcp { self.tcp.learn(key, found) } else { self.other.learn(key, found) }
    }
}

impl FromIterator<(CtTuple, CtEntry)> for Conntrack {
    /// Of every entry of both maps.
    fn from_iter<I: IntoIterator<Item = (CtTuple, CtEntry)>>(entries: I) -> Self {
        let is_tcp = |(key, _): &(CtTuple, CtEntry)| Protocol(key.nexthdr) == Protocol::TCP;
        let (tcp, other) = entries.into_iter().partition(is_tcp);
        Self { tcp: CtTable::Whole(tcp), other: CtTable::Whole(other) }
    }
}

impl World {
    /// Conntrack of a family.
    pub fn connections(&self, family: Family) -> &Conntrack {
        match family {
            Family::V4 => &self.conntrack,
            Family::V6 => &self.conntrack6,
        }
    }

    /// What conntrack is known to have under a key.
    pub fn connection(&self, key: &CtTuple) -> Tracked<'_> {
        self.connections(Family::of(key.daddr)).get(key)
    }

    /// Takes over what a lookup found under a key of conntrack, and what it says of the entries' layout.
    pub fn learn_connection(&mut self, key: CtTuple, found: Option<CtEntry>) {
        if let Some(entry) = &found {
            self.ct_layouts = ct_layouts([(&key, entry)], &self.ct_layouts);
        }
        match Family::of(key.daddr) {
            Family::V4 => self.conntrack.learn(key, found),
            Family::V6 => self.conntrack6.learn(key, found),
        }
    }

    /// Looks up in conntrack what one question needs, in the place of what another needed.
    ///
    /// `asked` gives the keys that its answer rests on, such as [`crate::simulate::simulate_noting`] does. What `lookup`
    /// finds may have it ask for more; so it is asked until there is nothing left that is not known. A map that refuses a
    /// key is not asked again: it is given back by its name, with the reason, and its keys stay unknown.
    pub fn look_up<E>(
        &mut self,
        asked: impl Fn(&Self) -> BTreeSet<CtTuple>,
        mut lookup: impl FnMut(&CtTuple) -> Result<Option<CtEntry>, E>,
    ) -> BTreeMap<String, E> {
        self.forget_lookups();
        let mut refused = BTreeMap::new();
        loop {
            let mut open = asked(self);
            open.retain(|key| self.connection(key) == Tracked::Unknown && !refused.contains_key(&key.map()));
            if open.is_empty() {
                return refused;
            }
            for key in open {
                match lookup(&key) {
                    Ok(found) => self.learn_connection(key, found),
                    Err(why) => drop(refused.insert(key.map(), why)),
                }
            }
        }
    }

    /// Forgets what was looked up: it was true when it was asked.
    pub fn forget_lookups(&mut self) {
        for table in [&mut self.conntrack, &mut self.conntrack6] {
            table.tcp.forget();
            table.other.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cilium::ct::CtLayout;
    use crate::tuple::Tuple;

    fn key(protocol: Protocol) -> CtTuple {
        let address = |last| [10, 0, 0, last].into();
        CtTuple::ingress(Tuple { saddr: address(1), daddr: address(2), sport: 3, dport: 4, protocol })
    }

    #[test]
    fn a_key_that_nobody_asked_for_is_not_absent() {
        let [asked, absent, other] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(key);
        let entry = CtEntry::default();
        let mut partial = Conntrack::default();
        partial.learn(asked, Some(entry));
        partial.learn(absent, None);
        assert_eq!(partial.get(&asked), Tracked::Entry(&entry));
        assert_eq!(partial.get(&absent), Tracked::Absent);
        assert_eq!(partial.get(&other), Tracked::Unknown);
        assert_eq!(partial.known().collect::<Vec<_>>(), [(&asked, &entry)]);
        assert!(partial.whole().is_none(), "who looks through all must not take some for all");

        let whole: Conntrack = [(asked, entry)].into_iter().collect();
        assert_eq!([absent, other].map(|key| whole.get(&key)), [Tracked::Absent; 2]);
        assert_eq!(whole.whole().map(Iterator::count), Some(1));
        let half = Conntrack { other: CtTable::default(), ..whole };
        assert_eq!((half.get(&asked), half.get(&other)), (Tracked::Entry(&entry), Tracked::Unknown));
        assert!(half.whole().is_none());
    }

    /// What one answer leads to is asked for, too, and nothing twice.
    #[test]
    fn keys_are_looked_up_until_nothing_more_is_asked() {
        let [first, second, never] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(key);
        let mut world = World::default();
        let mut looked_up = Vec::new();
        let asked = |world: &World| match world.connection(&first) {
            Tracked::Unknown => [first].into(),
            _ => [first, second, never].into(),
        };
        let refused = world.look_up(asked, |key| {
            looked_up.push(*key);
            if *key == first { Ok(Some(CtEntry::default())) } else { Err("no") }
        });
        // The two are in one map, which was found to refuse after both were asked for.
        assert_eq!(looked_up, [first, second, never]);
        assert_eq!(refused, [("cilium_ct_any4_global".to_owned(), "no")].into());
        assert_eq!(world.connection(&first), Tracked::Entry(&CtEntry::default()));
        assert_eq!([second, never].map(|key| world.connection(&key)), [Tracked::Unknown; 2]);
        // The next question's take their place.
        world.look_up(|_| [second].into(), |_| Ok::<_, ()>(None));
        assert_eq!([first, second].map(|key| world.connection(&key)), [Tracked::Unknown, Tracked::Absent]);
    }

    #[test]
    fn what_was_looked_up_is_forgotten_and_its_layout_is_not() {
        let mut world = World { ct_layouts: CtLayout::ALL.to_vec(), ..World::default() };
        let mut entry = CtEntry::default();
        // A packet of 60 bytes towards the endpoint: only counters per direction have that.
        (entry.head[0], entry.head[8]) = (1, 60);
        world.learn_connection(key(Protocol::TCP), Some(entry));
        assert_eq!(world.connection(&key(Protocol::TCP)), Tracked::Entry(&entry));
        world.forget_lookups();
        assert_eq!(world.connection(&key(Protocol::TCP)), Tracked::Unknown);
        assert_eq!(world.ct_layouts, [CtLayout::PerDirection]);

        world.conntrack = [(key(Protocol::TCP), entry)].into_iter().collect();
        world.forget_lookups();
        assert_eq!(world.connection(&key(Protocol::TCP)), Tracked::Entry(&entry), "it was read");
    }
}
