//! What the node's maps tell of Cilium's version, where its versions behave differently.

use std::collections::BTreeSet;

use crate::cilium::family::Family;
use crate::cilium::lb::{LbLookup, LoadBalancer};
use crate::cilium::policy::PolicyLayout;
use crate::world::World;

/// The policy layouts that the node's Cilium may have: those of its policy maps, or every one.
///
/// While an agent is upgraded a node has two.
pub(super) fn layouts(world: &World) -> BTreeSet<PolicyLayout> {
    let told: BTreeSet<_> = world
        .policy
        .values()
        .filter(|policy| !policy.map.is_empty())
        .map(|policy| policy.map.layout())
        .collect();
    if !told.is_empty() {
        return told;
    }
    // An empty map was read in some layout that its pin's name allows.
    let prefixes: BTreeSet<_> =
        world.policy.values().map(|policy| policy.map.layout().pin_prefix()).collect();
    let allowed = |layout: &PolicyLayout| prefixes.is_empty() || prefixes.contains(layout.pin_prefix());
    PolicyLayout::ALL.into_iter().filter(allowed).collect()
}

/// How the node's Cilium may look up services.
pub(super) fn lb_lookups(world: &World, family: Family) -> BTreeSet<LbLookup> {
    let mut lookups: BTreeSet<_> = layouts(world).into_iter().map(LbLookup::of).collect();
    let names_protocols = world.load_balancer(family).is_some_and(LoadBalancer::names_protocols);
    if names_protocols {
        // Only a version that tells protocols apart writes such frontends.
        lookups.remove(&LbLookup::AnyProtocol);
        if lookups.is_empty() {
            lookups.insert(LbLookup::ProtocolFirst);
        }
    }
    lookups
}

/// What a property of versions is, if every layout that is possible has the same.
pub(super) fn agreed<T: PartialEq>(
    layouts: &BTreeSet<PolicyLayout>,
    property: impl Fn(PolicyLayout) -> T,
) -> Option<T> {
    let mut all = layouts.iter().map(|layout| property(*layout));
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}
