//! What Cilium's conntrack says of two tuples that were put together as one flow.

use super::flow::Path;
use crate::cilium::ct::{CtEntry, CtTuple};
use crate::cilium::family::Family;
use crate::tuple::Tuple;
use crate::world::World;

/// An entry, Cilium's or netfilter's, that says that a frontend's connection is this backend's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The map's pin name, or `nf_conntrack`.
    pub map: String,
    /// The entry's key.
    pub entry: String,
}

impl Path {
    /// The conntrack entry that has the flow's first and last destination together; `None` if nothing was translated,
    /// conntrack is not known there, or somebody else translated it.
    pub fn confirmation(&self, world: &World) -> Option<Confirmation> {
        let (first, last) = self.translation()?;
        let confirms = |key: &CtTuple| {
            let Some(entry) = world.connection(key).entry() else { return false };
            if key.is_service() { keeps_with(world, entry, last) } else { came_by(world, entry, first) }
        };
        let entry = self.confirming_keys().into_iter().find(confirms)?;
        Some(Confirmation { map: entry.map(), entry: entry.to_string() })
    }

    /// The keys of conntrack under which [`Self::confirmation`] looks, in its order.
    pub fn confirming_keys(&self) -> Vec<CtTuple> {
        let keys = |(first, last)| [CtTuple::service(first), CtTuple::ingress(last), CtTuple::egress(last)];
        self.translation().map(keys).into_iter().flatten().collect()
    }

    /// The same by netfilter, whose table says with which tuple the answers will come.
    pub fn confirmation_by_netfilter(&self, expected_answer: Tuple) -> Option<Confirmation> {
        let (first, last) = self.translation()?;
        let is_backend = (expected_answer.saddr, expected_answer.sport) == (last.daddr, last.dport);
        is_backend.then(|| Confirmation { map: "nf_conntrack".to_owned(), entry: first.to_string() })
    }

    /// The first and the last tuple, if somebody translated the destination.
    pub fn translation(&self) -> Option<(Tuple, Tuple)> {
        let (first, last) = (self.tuple, self.final_tuple());
        let is_translated = (first.daddr, first.dport) != (last.daddr, last.dport);
        (is_translated && Family::of(first.daddr) == Family::of(last.daddr)).then_some((first, last))
    }
}

/// Whether a service's entry keeps its client with this backend.
fn keeps_with(world: &World, entry: &CtEntry, backend: Tuple) -> bool {
    let lb = world.load_balancer(Family::of(backend.daddr));
    let id = u32::try_from(entry.backend_id()).ok();
    let known = lb.zip(id).and_then(|(lb, id)| lb.backend(id));
    known.is_some_and(|known| (known.address, known.port) == (backend.daddr, backend.dport))
}

/// Whether an entry was translated from this frontend: by the number of its service.
fn came_by(world: &World, entry: &CtEntry, frontend: Tuple) -> bool {
    entry.rev_nat_index != 0
        && world.frontends().any(|known| {
            known.service.rev_nat_index == entry.rev_nat_index
                && (known.key.address, known.key.dport) == (frontend.daddr, frontend.dport)
        })
}
