//! Later fragments of a packet, which have no ports: they are the flow's that the first fragment belongs to.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use super::packet::{Fragment, Icmp, Packet};
use super::sighting::Sighting;
use crate::tuple::Protocol;

/// Fragments of one packet are seen at most this far apart; afterwards its identification may be another's.
const FRAGMENT_NS: u64 = 2_000_000_000;

/// What all fragments of a packet have in common, at each place of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    saddr: IpAddr,
    daddr: IpAddr,
    protocol: Protocol,
    ip_id: u16,
}

impl Key {
    /// `None` without an identification.
    fn of(packet: &Packet) -> Option<Self> {
        let tuple = packet.tuple;
        let key =
            Self { saddr: tuple.saddr, daddr: tuple.daddr, protocol: tuple.protocol, ip_id: packet.ip_id };
        (packet.ip_id != 0).then_some(key)
    }
}

/// What only the first fragment has, in an order that does not depend on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct First {
    ktime_ns: u64,
    sport: u16,
    dport: u16,
    icmp: Option<Icmp>,
}

/// First fragments that were seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Fragments(HashMap<Key, Vec<First>>);

impl Fragments {
    /// Remembers it if it is a first fragment; says whether it is.
    pub(super) fn learn(&mut self, sighting: &Sighting) -> bool {
        let packet = &sighting.packet;
        if packet.fragment != Fragment::First {
            return false;
        }
        let Some(key) = Key::of(packet) else { return false };
        let (sport, dport) = (packet.tuple.sport, packet.tuple.dport);
        let first = First { ktime_ns: sighting.ktime_ns, sport, dport, icmp: packet.icmp };
        self.0.entry(key).or_default().push(first);
        true
    }

    /// The sighting with what its packet's first fragment says, if it needs that; `None` if that was not seen.
    pub(super) fn complete<'s>(&self, sighting: &'s Sighting) -> Option<Cow<'s, Sighting>> {
        if !is_incomplete(&sighting.packet) {
            return Some(Cow::Borrowed(sighting));
        }
        let firsts = self.0.get(&Key::of(&sighting.packet)?)?;
        let distance = |first: &First| first.ktime_ns.abs_diff(sighting.ktime_ns);
        let near = firsts.iter().filter(|first| distance(first) <= FRAGMENT_NS);
        let first = near.min_by_key(|first| (distance(first), **first))?;
        let mut completed = sighting.clone();
        let packet = &mut completed.packet;
        (packet.tuple.sport, packet.tuple.dport, packet.icmp) = (first.sport, first.dport, first.icmp);
        Some(Cow::Owned(completed))
    }

    /// Drops what is too old for any fragment still to come.
    pub(super) fn forget(&mut self, now_ns: u64) {
        self.0.retain(|_, firsts| {
            firsts.retain(|first| first.ktime_ns.saturating_add(FRAGMENT_NS) >= now_ns);
            !firsts.is_empty()
        });
    }
}

/// Whether it is too late for the first fragment of a later one to come.
pub(super) fn is_overdue(sighting: &Sighting, now_ns: u64) -> bool {
    sighting.ktime_ns.saturating_add(FRAGMENT_NS) < now_ns
}

/// Whether a packet lacks what tells its flow, because the first fragment has it.
pub(super) fn is_incomplete(packet: &Packet) -> bool {
    let tuple = packet.tuple;
    packet.fragment == Fragment::Later
        && ((tuple.protocol.has_ports() && (tuple.sport, tuple.dport) == (0, 0))
            || (tuple.protocol.is_icmp() && packet.icmp.is_none()))
}
