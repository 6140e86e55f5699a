//! What Cilium's conntrack says of two tuples that were put together as one flow.

use super::flow::Path;
use crate::cilium::ct::{CtEntry, CtTuple};
use crate::cilium::family::Family;
use crate::tuple::{Protocol, Tuple};
use crate::world::World;

/// An entry of Cilium's that says that a frontend's connection is this backend's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The map's pin name.
    pub map: String,
    /// The entry's key.
    pub entry: CtTuple,
}

impl Path {
    /// The conntrack entry that has the flow's first and last destination together; `None` if nothing was translated,
    /// conntrack was not read, or somebody else translated it.
    pub fn confirmation(&self, world: &World) -> Option<Confirmation> {
        let (first, last) = (self.tuple, self.final_tuple());
        let family = Family::of(first.daddr);
        if (first.daddr, first.dport) == (last.daddr, last.dport) || family != Family::of(last.daddr) {
            return None;
        }
        let connections = world.connections(family)?;
        let service = CtTuple::service(first);
        let of_service = connections.get(&service).filter(|entry| keeps_with(world, entry, last));
        let backends = [CtTuple::ingress(last), CtTuple::egress(last)].into_iter();
        let of_backend = || {
            backends
                .into_iter()
                .find(|tuple| connections.get(tuple).is_some_and(|entry| came_by(world, entry, first)))
        };
        let entry = of_service.map(|_| service).or_else(of_backend)?;
        let name =
            if first.protocol == Protocol::TCP { "cilium_ct4_global" } else { "cilium_ct_any4_global" };
        Some(Confirmation { map: family.pin(name), entry })
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
