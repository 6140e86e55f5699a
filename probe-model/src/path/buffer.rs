//! Which sightings of one buffer are one packet.
//!
//! A packet keeps its buffer through clones, NAT and tunnel headers. The kernel gives a freed one to the next packet,
//! so a buffer alone says nothing: time, the way through the node and every number that NAT leaves must agree.

use super::packet::Packet;
use super::sighting::{Seen, Sighting};
use crate::tuple::Protocol;

/// A packet passes the node in less.
const TRANSIT_NS: u64 = 5_000_000;

/// Whether two sightings of one buffer, with no other of it in between, are one packet though their addresses differ.
pub(super) fn is_same_packet(earlier: &Sighting, later: &Sighting) -> bool {
    let (a, b) = (&earlier.packet, &later.packet);
    later.ktime_ns.saturating_sub(earlier.ktime_ns) <= TRANSIT_NS
        && leads_on(earlier, later)
        && same_numbers(a, b)
        && may_be_translated(a, b)
}

/// A buffer that is seen at an earlier place again holds another packet; so does one that was freed.
fn leads_on(earlier: &Sighting, later: &Sighting) -> bool {
    match (&earlier.seen, &later.seen) {
        (Seen::Hook { place: from, .. }, Seen::Hook { place: to, .. }) => from.stage() < to.stage(),
        (Seen::Hook { .. }, Seen::KernelDrop { .. }) => true,
        _ => false,
    }
}

/// Whether everything agrees that NAT leaves alone.
fn same_numbers(a: &Packet, b: &Packet) -> bool {
    let kind = |packet: &Packet| packet.icmp.map(|icmp| (icmp.icmp_type, icmp.code, icmp.seq));
    let numbers = |packet: &Packet| {
        let (protocol, v4) = (packet.tuple.protocol, packet.tuple.saddr.is_ipv4());
        let payload = (packet.payload_len, packet.payload_hash);
        (protocol, v4, payload, packet.ip_id, packet.fragment, kind(packet), packet.quoted.is_some())
    };
    let tcp = |packet: &Packet| (packet.flags, packet.seq, packet.ack);
    numbers(a) == numbers(b) && tcp(a) == tcp(b) && b.ttl <= a.ttl
}

/// Whether NAT can have made `b` of `a`: the source stays, or both ends change in a packet that was forwarded and can
/// be told from others by its payload. Of an error, the quoted sender's peer stays as well.
fn may_be_translated(a: &Packet, b: &Packet) -> bool {
    let quoted_stays = match (a.quoted, b.quoted) {
        (Some(a), Some(b)) => (a.daddr, a.dport, a.protocol) == (b.daddr, b.dport, b.protocol),
        (a, b) => a == b,
    };
    let keeps_source = (a.tuple.saddr, a.tuple.sport) == (b.tuple.saddr, b.tuple.sport);
    let forwarded = a.ttl == b.ttl.saturating_add(1);
    let is_known = a.payload_hash != 0 && a.tuple.protocol != Protocol::TCP;
    quoted_stays && (keeps_source || (forwarded && is_known))
}
