//! What the node's maps tell of Cilium's version, where its versions behave differently.

use crate::cilium::family::Family;
use crate::cilium::lb::{LbLookup, LoadBalancer};
use crate::cilium::policy::{PolicyLayout, PolicyMap};
use crate::world::World;

/// A set of policy layouts, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layouts(u8);

impl Layouts {
    fn with(self, layout: PolicyLayout) -> Self {
        Self(self.0 | 1 << layout as u8)
    }

    fn iter(self) -> impl Iterator<Item = PolicyLayout> {
        PolicyLayout::ALL.into_iter().filter(move |layout| self.0 & 1 << *layout as u8 != 0)
    }
}

impl FromIterator<PolicyLayout> for Layouts {
    fn from_iter<I: IntoIterator<Item = PolicyLayout>>(layouts: I) -> Self {
        layouts.into_iter().fold(Self::default(), Self::with)
    }
}

/// The policy layouts that the node's Cilium may have: those of its policy maps, or every one.
///
/// While an agent is upgraded a node has two.
pub(super) fn layouts(world: &World) -> Layouts {
    let maps = || world.policy.values().map(|policy| &policy.map);
    let told: Layouts = maps().filter(|map| !map.is_empty()).map(PolicyMap::layout).collect();
    if told != Layouts::default() {
        return told;
    }
    // An empty map was read in some layout that its pin's name allows.
    let named: Layouts = maps().map(PolicyMap::layout).collect();
    let allowed = |layout: &PolicyLayout| {
        named == Layouts::default() || named.iter().any(|named| named.pin_prefix() == layout.pin_prefix())
    };
    PolicyLayout::ALL.into_iter().filter(allowed).collect()
}

/// How the node's Cilium may look up services, each way once.
pub(super) fn lb_lookups(world: &World, family: Family) -> impl Iterator<Item = LbLookup> {
    let mut may = [false; LbLookup::ALL.len()];
    for layout in layouts(world).iter() {
        may[LbLookup::of(layout) as usize] = true;
    }
    if world.load_balancer(family).is_some_and(LoadBalancer::names_protocols) {
        // Only a version that tells protocols apart writes such frontends.
        may[LbLookup::AnyProtocol as usize] = false;
        if may == [false; LbLookup::ALL.len()] {
            may[LbLookup::ProtocolFirst as usize] = true;
        }
    }
    LbLookup::ALL.into_iter().filter(move |lookup| may[*lookup as usize])
}

/// What a property of versions is, if every layout that is possible has the same.
pub(super) fn agreed<T: PartialEq>(layouts: Layouts, property: impl Fn(PolicyLayout) -> T) -> Option<T> {
    let mut all = layouts.iter().map(property);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}
