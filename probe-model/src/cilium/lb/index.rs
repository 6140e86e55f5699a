//! The load-balancer maps of one family together, for lookups.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{LbBackend, LbKey, LbService, LbSourceRange};

/// One backend slot of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number, from 1.
    pub slot: u16,
    /// The backend's id; 0 where the services map lacks the slot. Of several that it lacks only the first is listed.
    pub backend_id: u32,
    /// The backend, if the backends map has it.
    pub backend: Option<LbBackend>,
}

/// A service frontend with its backends, slot by slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Address, port, protocol, scope (slot 0).
    pub key: LbKey,
    /// The master entry.
    pub service: LbService,
    /// Slots 1…count, among which a backend is chosen.
    pub backends: Vec<Slot>,
    /// The slots after those, in quarantine.
    pub quarantined: Vec<Slot>,
}

/// The decoded maps of one family, as they were read.
#[derive(Clone, Debug, Default)]
pub struct LbMaps {
    /// `cilium_lb?_services_v2`.
    pub services: Vec<(LbKey, LbService)>,
    /// `cilium_lb?_backends_v3`, if it could be read.
    pub backends: Option<Vec<(u32, LbBackend)>>,
    /// `cilium_lb?_source_range`, if it could be read.
    pub source_ranges: Option<Vec<LbSourceRange>>,
}

/// The load-balancer maps of one family, indexed.
#[derive(Clone, Debug, Default)]
pub struct LoadBalancer {
    /// Slot 0 and then the others, as the map orders keys.
    services: BTreeMap<LbKey, LbService>,
    backends: Option<BTreeMap<u32, LbBackend>>,
    /// By service id; a service has few.
    source_ranges: Option<BTreeMap<u16, Vec<IpNet>>>,
    /// Some frontend names its protocol.
    names_protocols: bool,
}

impl LoadBalancer {
    /// Indexes the decoded maps; a key that occurs twice keeps its last value, as a map would.
    pub fn new(maps: LbMaps) -> Self {
        let services: BTreeMap<_, _> = maps.services.into_iter().collect();
        let by_service = |ranges: Vec<LbSourceRange>| {
            let mut all: BTreeMap<u16, Vec<IpNet>> = BTreeMap::new();
            for range in ranges {
                all.entry(range.rev_nat_id).or_default().push(range.prefix);
            }
            all
        };
        let names_protocols = services.keys().any(|key| key.proto != 0);
        Self {
            services,
            backends: maps.backends.map(|backends| backends.into_iter().collect()),
            source_ranges: maps.source_ranges.map(by_service),
            names_protocols,
        }
    }

    /// The frontend under exactly this key; `key.backend_slot` is taken for 0.
    pub fn frontend(&self, key: LbKey) -> Option<Frontend> {
        let key = LbKey { backend_slot: 0, ..key };
        self.services.get(&key).map(|service| self.with_backends(key, *service))
    }

    /// Whether a frontend names its protocol, as only versions that tell protocols apart write it.
    pub fn names_protocols(&self) -> bool {
        self.names_protocols
    }

    /// Every frontend, by address and port.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        let masters = self.services.iter().filter(|(key, _)| key.backend_slot == 0);
        masters.map(|(key, service)| self.with_backends(*key, *service))
    }

    /// Whether the backends map could be read.
    pub fn knows_backends(&self) -> bool {
        self.backends.is_some()
    }

    /// Every backend by id.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &LbBackend)> {
        self.backends.iter().flatten().map(|(id, backend)| (*id, backend))
    }

    /// The backend of this id.
    pub fn backend(&self, id: u32) -> Option<&LbBackend> {
        self.backends.as_ref()?.get(&id)
    }

    /// Whether a prefix of the service holds `client`; `None` if the source ranges could not be read.
    pub fn in_source_range(&self, rev_nat_id: u16, client: IpAddr) -> Option<bool> {
        let ranges = self.source_ranges.as_ref()?;
        Some(ranges.get(&rev_nat_id).is_some_and(|nets| nets.iter().any(|net| net.contains(&client))))
    }

    /// The prefixes of a service.
    pub fn source_ranges(&self, rev_nat_id: u16) -> impl Iterator<Item = IpNet> {
        self.source_ranges.iter().filter_map(move |ranges| ranges.get(&rev_nat_id)).flatten().copied()
    }

    fn with_backends(&self, key: LbKey, service: LbService) -> Frontend {
        let last = service.count.saturating_add(service.qcount);
        let backends = self.slots(key, 1, service.count);
        let after = service.count.checked_add(1);
        let quarantined = after.map_or_else(Vec::new, |first| self.slots(key, first, last));
        Frontend { key, service, backends, quarantined }
    }

    /// The slots from `first` to `last`, and of those that the map lacks the first: the count of a torn or damaged map would
    /// make tens of thousands.
    fn slots(&self, key: LbKey, first: u16, last: u16) -> Vec<Slot> {
        if first > last {
            return Vec::new();
        }
        let from = LbKey { backend_slot: first, proto: 0, scope: 0, ..key };
        let to = LbKey { backend_slot: last, proto: u8::MAX, scope: u8::MAX, ..key };
        let of_frontend = self
            .services
            .range(from..=to)
            .filter(|(slot, _)| (slot.proto, slot.scope) == (key.proto, key.scope));
        let slot = |slot, backend_id| Slot { slot, backend_id, backend: self.backend(backend_id).copied() };
        let mut slots: Vec<_> =
            of_frontend.map(|(found, entry)| slot(found.backend_slot, entry.backend_id)).collect();
        let lacking = (first..=last)
            .zip(0..)
            .find(|(number, idx)| slots.get(*idx).is_none_or(|has| has.slot != *number));
        if let Some((number, idx)) = lacking {
            slots.insert(idx, Slot { slot: number, backend_id: 0, backend: None });
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn slot_numbers(count: u16, qcount: u16, present: &[u16]) -> (Vec<u16>, Vec<u16>) {
        let key = |backend_slot| LbKey {
            address: IpAddr::from(Ipv4Addr::new(10, 0, 0, 9)),
            dport: 80,
            backend_slot,
            proto: 0,
            scope: 0,
        };
        let other = |slot: u16| LbKey { proto: 6, ..key(slot) };
        let mut services = vec![(key(0), LbService { count, qcount, ..LbService::default() })];
        services.extend(present.iter().map(|slot| (key(*slot), LbService::default())));
        // Another frontend of the same address and port.
        services.extend((1..=3).map(|slot| (other(slot), LbService::default())));
        let lb = LoadBalancer::new(LbMaps { services, ..LbMaps::default() });
        let frontend = lb.frontend(key(0)).unwrap();
        let numbers = |slots: Vec<Slot>| slots.into_iter().map(|slot| slot.slot).collect();
        (numbers(frontend.backends), numbers(frontend.quarantined))
    }

    #[test]
    fn slots_are_those_that_are_there_and_the_first_that_is_not() {
        assert_eq!(slot_numbers(2, 0, &[1, 2]), (vec![1, 2], vec![]));
        assert_eq!(slot_numbers(2, 1, &[1, 2, 3]), (vec![1, 2], vec![3]));
        assert_eq!(slot_numbers(0, 0, &[1]), (vec![], vec![]));
        assert_eq!(slot_numbers(4, 0, &[1, 4]), (vec![1, 2, 4], vec![]));
        assert_eq!(slot_numbers(4, 2, &[]), (vec![1], vec![5]));
        assert_eq!(slot_numbers(u16::MAX, u16::MAX, &[3]), (vec![1, 3], vec![]));
    }
}
