//! What conntrack knows of a packet.

use super::walk::Walk;
use crate::cilium::Direction;
use crate::cilium::ct::{CtEntry, CtLayout, CtTuple};
use crate::cilium::family::Family;
use crate::tuple::{Protocol, Tuple};
use crate::world::conntrack::Tracked;

/// ICMP types that speak of another packet: destination unreachable, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];
/// The same in `ICMPv6`, with packet too big.
const ICMPV6_ERRORS: [u8; 4] = [1, 2, 3, 4];

/// What answers a ping.
const ICMP_ECHO_REPLY: u8 = 0;
/// The same in `ICMPv6`.
const ICMPV6_ECHO_REPLY: u8 = 129;

/// A connection to which a packet belongs without being judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is an answer.
    Reply(CtTuple),
    /// It is an ICMP error about the connection.
    Related(CtTuple),
}

impl<'w> Walk<'w> {
    /// The connection that lets a packet pass the endpoint's policy in `direction` unasked.
    ///
    /// Looked up as the datapath does: the opposite direction first (an answer), then the own one, which only counts for
    /// ICMP errors: an established connection is judged with every packet.
    pub(super) fn known(&self, direction: Direction) -> Option<Known> {
        let related = self.icmp_error();
        let packet = if related { Tuple { sport: 0, dport: 0, ..self.tuple } } else { self.tuple };
        let [answered, own] = match direction {
            Direction::Egress => [CtTuple::ingress(packet.reversed()), CtTuple::egress(packet)],
            Direction::Ingress => [CtTuple::egress(packet.reversed()), CtTuple::ingress(packet)],
        };
        if related {
            let about = |tuple: CtTuple| CtTuple { flags: tuple.flags | CtTuple::RELATED, ..tuple };
            let found = [about(answered), about(own)].into_iter().find(|tuple| self.entry(tuple).is_some());
            return found.map(Known::Related);
        }
        if self.is_echo_reply() {
            return self.echo_of(answered).map(Known::Reply);
        }
        let has_ports = packet.protocol.has_ports() && packet.sport != 0 && packet.dport != 0;
        (has_ports && self.entry(&answered).is_some()).then_some(Known::Reply(answered))
    }

    /// The service entry that keeps this client with a backend, still before translation.
    pub(super) fn service_entry(&self) -> Option<(CtTuple, CtEntry)> {
        if self.tuple.sport == 0 {
            return None;
        }
        let tuple = CtTuple::service(self.tuple);
        let entry = self.entry(&tuple)?;
        // The first packet of a new connection: up to 1.15 it opens a closing entry again, later it makes a new one.
        let layouts = &self.world.ct_layouts;
        let begins_anew = entry.is_closing() && *layouts != [CtLayout::PerDirection];
        if begins_anew && layouts.contains(&CtLayout::PerDirection) {
            self.unknown_entries.borrow_mut().insert(tuple);
        }
        (!begins_anew).then_some((tuple, *entry))
    }

    /// An echo request between the same ends; conntrack has its identifier in the client's port, the packet's is not known.
    fn echo_of(&self, request: CtTuple) -> Option<CtTuple> {
        let Some(entries) = self.world.connections(Family::of(request.daddr)).other.whole() else {
            // A lookup finds it with its identifier alone, and tells of no other.
            let found = self.entry(&request).map(|_| request);
            if found.is_none() {
                self.unknown_entries.borrow_mut().insert(request);
            }
            return found;
        };
        let first = CtTuple { nexthdr: 0, flags: 0, ..request };
        let last = CtTuple { sport: u16::MAX, nexthdr: u8::MAX, flags: u8::MAX, ..request };
        let same_kind = |tuple: &&CtTuple| (tuple.nexthdr, tuple.flags) == (request.nexthdr, request.flags);
        entries.range(first..=last).map(|(tuple, _)| tuple).find(same_kind).copied()
    }

    fn is_echo_reply(&self) -> bool {
        let icmp_type = self.question.icmp.map(|(icmp_type, _)| icmp_type);
        icmp_type
            == match self.tuple.protocol {
                Protocol::ICMP => Some(ICMP_ECHO_REPLY),
                Protocol::ICMPV6 => Some(ICMPV6_ECHO_REPLY),
                _ => return false,
            }
    }

    /// The entry under a key; one that is not known counts as absent, and is noted.
    fn entry(&self, key: &CtTuple) -> Option<&'w CtEntry> {
        let found = self.world.connection(key);
        if found == Tracked::Unknown {
            self.unknown_entries.borrow_mut().insert(*key);
        }
        found.entry()
    }

    fn icmp_error(&self) -> bool {
        let Some((icmp_type, _)) = self.question.icmp else { return false };
        match self.tuple.protocol {
            Protocol::ICMP => ICMP_ERRORS.contains(&icmp_type),
            Protocol::ICMPV6 => ICMPV6_ERRORS.contains(&icmp_type),
            _ => false,
        }
    }
}
