//! Which sightings belong together: one connection at one tuple, and the same connection at another.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use super::buffer;
use super::fragments;
use super::packet::{Fragment, Packet, TcpFlags};
use super::sighting::{Seen, Sighting};
use crate::tuple::{Protocol, Tuple};

/// Sightings of one packet at different tuples are at most this far apart; a notification from the agent's socket
/// arrives late.
const SAME_PACKET_NS: u64 = 2_000_000_000;
/// Datagrams of one tuple further apart than this are different flows.
const DATAGRAM_IDLE_NS: u64 = 30_000_000_000;
/// Earlier sightings that a packet is compared with to be known again.
const COMPARED_MAX: usize = 16;
/// Ports below this are servers' when nothing else tells the two ends apart.
const WELL_KNOWN_PORTS: u16 = 1024;

/// Both ends and the protocol, whichever way a packet goes; for echoes their identifier too. Small, as it is made and
/// looked up for every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LegKey {
    low: u128,
    high: u128,
    low_port: u16,
    high_port: u16,
    echo_id: u16,
    protocol: Protocol,
    is_v4: bool,
}

impl Hash for LegKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { low, high, low_port, high_port, echo_id, protocol, is_v4: _ } = *self;
        state.write_u128(low);
        state.write_u128(high);
        let ports = u64::from(low_port) << 16 | u64::from(high_port);
        state.write_u64(ports << 24 | u64::from(echo_id) << 8 | u64::from(protocol.0));
    }
}

impl LegKey {
    /// The leg of a packet; an ICMP error belongs to the leg of the packet that it quotes.
    /// `None` for what belongs to no flow: neighbour discovery, later fragments whose first was not seen.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let tuple = about(packet);
        if fragments::is_incomplete(packet) {
            return None;
        }
        let echo_id = match packet.icmp {
            Some(_) if packet.quoted.is_some() => 0,
            Some(_) => echo(packet)?.1,
            None => 0,
        };
        // IPv4 in the first bytes, as records have it.
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let (a, b) = ((bits(tuple.saddr), tuple.sport), (bits(tuple.daddr), tuple.dport));
        Some(Self { echo_id, ..Self::between(a, b, tuple.protocol, tuple.saddr.is_ipv4()) })
    }

    /// The same of a packet as it is in a record, if that is simple: it is neither fragment nor ICMP.
    pub fn of_record(packet: &probe_common::Packet) -> Option<Self> {
        let protocol = Protocol(packet.proto);
        if packet.fragment != 0 || protocol.is_icmp() || !matches!(packet.version, 4 | 6) {
            return None;
        }
        let a = (u128::from_be_bytes(packet.src), packet.src_port);
        let b = (u128::from_be_bytes(packet.dst), packet.dst_port);
        Some(Self::between(a, b, protocol, packet.version == 4))
    }

    fn between(a: (u128, u16), b: (u128, u16), protocol: Protocol, is_v4: bool) -> Self {
        let ((low, low_port), (high, high_port)) = if a <= b { (a, b) } else { (b, a) };
        Self { low, high, low_port, high_port, echo_id: 0, protocol, is_v4 }
    }
}

/// The tuple that a packet is about: its own, or for an ICMP error that of the quoted packet.
pub(super) fn about(packet: &Packet) -> Tuple {
    packet.quoted.map_or(packet.tuple, |quoted| Tuple {
        saddr: packet.tuple.daddr,
        daddr: quoted.daddr,
        sport: quoted.sport,
        dport: quoted.dport,
        protocol: quoted.protocol,
    })
}

/// Whether the packet is an echo's answer, and the echo's identifier; `None` if it is no echo.
fn echo(packet: &Packet) -> Option<(bool, u16)> {
    let icmp = packet.icmp?;
    let is_reply = match (packet.tuple.protocol, icmp.icmp_type) {
        (Protocol::ICMP, 8) | (Protocol::ICMPV6, 128) => false,
        (Protocol::ICMP, 0) | (Protocol::ICMPV6, 129) => true,
        _ => return None,
    };
    Some((is_reply, icmp.id))
}

/// One connection's sightings at one tuple.
pub(super) struct Segment<'a> {
    pub(super) leg: LegKey,
    pub(super) isn: Option<u32>,
    pub(super) sightings: Vec<&'a Sighting>,
}

/// Sightings by tuple and connection. The order they are given in does not matter.
pub(super) fn segments<'a>(sightings: impl Iterator<Item = &'a Sighting>) -> Vec<Segment<'a>> {
    let mut sorted: Vec<&Sighting> = sightings.collect();
    sorted.sort_by(|a, b| a.order(b));
    let mut by_leg: HashMap<LegKey, Vec<&Sighting>, RandomState> = HashMap::default();
    for sighting in sorted {
        if let Some(leg) = LegKey::of(&sighting.packet) {
            by_leg.entry(leg).or_default().push(sighting);
        }
    }
    let mut by_leg: Vec<_> = by_leg.into_iter().collect();
    by_leg.sort_by_key(|(leg, _)| *leg);
    by_leg.into_iter().flat_map(|(leg, sightings)| split(leg, &sightings)).collect()
}

/// Splits one tuple's sightings into connections: the same ports may be used again.
fn split<'a>(leg: LegKey, sightings: &[&'a Sighting]) -> Vec<Segment<'a>> {
    if leg.protocol == Protocol::TCP { split_tcp(leg, sightings) } else { split_idle(leg, sightings) }
}

fn split_tcp<'a>(leg: LegKey, sightings: &[&'a Sighting]) -> Vec<Segment<'a>> {
    // The first time each initial sequence number was seen; an answer knows it as its acknowledgement less one.
    let mut opened: BTreeMap<u32, u64> = BTreeMap::new();
    for sighting in sightings {
        if let Some(isn) = opening(sighting) {
            opened.entry(isn).or_insert(sighting.ktime_ns);
        }
    }
    let mut segments: BTreeMap<Option<u32>, Vec<&'a Sighting>> = BTreeMap::new();
    for sighting in sightings {
        let answers = sighting.packet.ack.wrapping_sub(1);
        let is_answer = sighting.has_numbers() && opened.contains_key(&answers);
        let isn = opening(sighting).or_else(|| is_answer.then_some(answers)).or_else(|| {
            let before = opened.iter().filter(|(_, since)| **since <= sighting.ktime_ns);
            let latest = before.max_by_key(|(_, since)| **since);
            // Hubble's times are another clock's, put into ours.
            let first = || opened.iter().min_by_key(|(_, since)| **since).filter(|_| !sighting.has_numbers());
            latest.or_else(first).map(|(isn, _)| *isn)
        });
        segments.entry(isn).or_default().push(sighting);
    }
    segments.into_iter().map(|(isn, sightings)| Segment { leg, isn, sightings }).collect()
}

/// The initial sequence number of the opener, from a packet that tells it.
pub(super) fn opening(sighting: &Sighting) -> Option<u32> {
    let packet = &sighting.packet;
    if packet.quoted.is_some() || !sighting.has_numbers() {
        None
    } else if packet.flags.opens() {
        Some(packet.seq)
    } else if packet.flags.accepts() {
        Some(packet.ack.wrapping_sub(1))
    } else {
        None
    }
}

fn split_idle<'a>(leg: LegKey, sightings: &[&'a Sighting]) -> Vec<Segment<'a>> {
    let mut segments: Vec<Segment<'a>> = Vec::new();
    let mut last_ns = 0;
    for sighting in sightings {
        match segments.last_mut() {
            Some(segment) if sighting.ktime_ns - last_ns < DATAGRAM_IDLE_NS => {
                segment.sightings.push(sighting);
            }
            _ => segments.push(Segment { leg, isn: None, sightings: vec![sighting] }),
        }
        last_ns = sighting.ktime_ns;
    }
    segments
}

/// What NAT leaves as it was: by this a packet is known again under another tuple.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Identity {
    /// A SYN or the SYN-ACK to it: either tells the connection.
    Opening {
        isn: u32,
    },
    Tcp {
        seq: u32,
        ack: u32,
        flags: TcpFlags,
        payload_len: u32,
    },
    Datagram {
        protocol: Protocol,
        ip_id: u16,
        payload_len: u32,
        payload_hash: u32,
        echo_seq: Option<(bool, u16)>,
    },
}

fn identity(sighting: &Sighting) -> Option<Identity> {
    let packet = &sighting.packet;
    // A payload's packet was seen at its hook as well.
    let is_payload = matches!(sighting.seen, Seen::Payload { .. });
    if packet.quoted.is_some() || !sighting.has_numbers() || is_payload {
        return None;
    }
    if packet.tuple.protocol == Protocol::TCP && packet.fragment == Fragment::Later {
        return None; // its numbers are the first fragment's
    }
    if packet.tuple.protocol == Protocol::TCP {
        let (flags, payload_len) = (packet.flags, packet.payload_len);
        return Some(match opening(sighting) {
            Some(isn) => Identity::Opening { isn },
            None => Identity::Tcp { seq: packet.seq, ack: packet.ack, flags, payload_len },
        });
    }
    let echo_seq = echo(packet).map(|(is_reply, _)| (is_reply, packet.icmp.map_or(0, |icmp| icmp.seq)));
    let (protocol, ip_id) = (packet.tuple.protocol, packet.ip_id);
    let (payload_len, payload_hash) = (packet.payload_len, packet.payload_hash);
    // Without an identification, an empty datagram looks like any other.
    (ip_id != 0 || payload_len != 0).then_some(Identity::Datagram {
        protocol,
        ip_id,
        payload_len,
        payload_hash,
        echo_seq,
    })
}

/// Groups of segments that hold the same packets: indices into `segments`, in order.
pub(super) fn link(segments: &[Segment<'_>]) -> Vec<Vec<usize>> {
    let mut all: Vec<(&Sighting, usize)> = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        all.extend(segment.sightings.iter().map(|sighting| (*sighting, index)));
    }
    all.sort_by(|(a, i), (b, j)| a.order(b).then(i.cmp(j)));
    let mut groups = Groups::new(segments.len());
    join_identities(&all, &mut groups);
    join_buffers(&all, &mut groups);
    for (index, segment) in segments.iter().enumerate() {
        if let Some(other) = before_dnat(segments, &groups, segment) {
            groups.join(index, other);
        }
    }
    groups.members()
}

/// Joins the segments that one packet was seen in by what NAT leaves as it was. `all` is sorted.
fn join_identities(all: &[(&Sighting, usize)], groups: &mut Groups) {
    // Of each identity its last sighting, and of each sighting the one before it with the same.
    let mut last: HashMap<Identity, usize, RandomState> = HashMap::default();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(all.len());
    for (at, (later, segment)) in all.iter().enumerate() {
        let Some(identity) = identity(later) else {
            before.push(None);
            continue;
        };
        before.push(last.insert(identity, at));
        let earlier = std::iter::successors(before[at], |at| before[*at]).take(COMPARED_MAX);
        for (earlier, other) in earlier.map(|at| all[at]) {
            if *segment != other && is_same_packet(identity, earlier, later) {
                groups.join(*segment, other);
            }
        }
    }
}

/// Joins the segments that one packet was seen in by the buffer that held it: where its numbers are too weak. `all` is
/// sorted.
fn join_buffers(all: &[(&Sighting, usize)], groups: &mut Groups) {
    let mut last: HashMap<u64, (&Sighting, usize), RandomState> = HashMap::default();
    for (later, segment) in all {
        let Some((earlier, other)) = later.buffer().and_then(|at| last.insert(at, (later, *segment))) else {
            continue;
        };
        if *segment != other && buffer::is_same_packet(earlier, later) {
            groups.join(*segment, other);
        }
    }
}

/// A segment of the only flow that a segment known from Hubble alone can be a part of: of the same sender and port at
/// the same time. `None` if there are several, or the segment has packets of its own.
fn before_dnat(segments: &[Segment<'_>], groups: &Groups, segment: &Segment<'_>) -> Option<usize> {
    let has_numbers = |segment: &Segment<'_>| segment.sightings.iter().any(|seen| seen.has_numbers());
    if has_numbers(segment) {
        return None;
    }
    let (source, protocol) = (opener(segment)?, segment.leg.protocol);
    let is_near = |a: &Sighting, b: &Sighting| a.ktime_ns.abs_diff(b.ktime_ns) <= SAME_PACKET_NS;
    let mut fitting = segments.iter().enumerate().filter(|(_, other)| {
        other.leg.protocol == protocol
            && has_numbers(other)
            && opener(other) == Some(source)
            && segment.sightings.iter().any(|a| other.sightings.iter().any(|b| is_near(a, b)))
    });
    let (first, _) = fitting.next()?;
    fitting.all(|(other, _)| groups.root(other) == groups.root(first)).then_some(first)
}

/// Whether two sightings with one identity and different tuples can be one packet, or for an opening one connection.
fn is_same_packet(identity: Identity, earlier: &Sighting, later: &Sighting) -> bool {
    // One classifier sees a packet once: two tuples at one place are two packets.
    let place = |sighting: &Sighting| match sighting.seen {
        Seen::Hook { place, .. } => Some(place),
        _ => None,
    };
    if place(earlier).is_some_and(|at| Some(at) == place(later)) {
        return false;
    }
    match identity {
        Identity::Opening { .. } => true,
        _ if later.ktime_ns - earlier.ktime_ns > SAME_PACKET_NS => false,
        Identity::Tcp { .. } => true,
        Identity::Datagram { ip_id, payload_hash, .. } => {
            let (a, b) = (earlier.packet.tuple, later.packet.tuple);
            let keeps_source = (a.saddr, a.sport) == (b.saddr, b.sport);
            // Several senders may send the same to one server: that the destination stays says little, and nothing
            // where the buffers tell more.
            let keeps_destination = (a.daddr, a.dport) == (b.daddr, b.dport)
                && earlier.buffer().is_none()
                && later.buffer().is_none();
            // An echo has no ports: its sequence number and payload stand for them.
            (ip_id != 0 && payload_hash != 0) || keeps_source || keeps_destination
        }
    }
}

/// Disjoint sets of segments.
struct Groups(Vec<usize>);

impl Groups {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn root(&self, mut index: usize) -> usize {
        while self.0[index] != index {
            index = self.0[index];
        }
        index
    }

    /// The smaller root wins, so that the order of joining does not matter.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn members(&self) -> Vec<Vec<usize>> {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for index in 0..self.0.len() {
            members.entry(self.root(index)).or_default().push(index);
        }
        members.into_values().collect()
    }
}

/// The end that began the connection, as far as one tuple's packets tell.
pub(super) fn opener(segment: &Segment<'_>) -> Option<(IpAddr, u16)> {
    let source = |tuple: Tuple| (tuple.saddr, tuple.sport);
    for sighting in &segment.sightings {
        let packet = &sighting.packet;
        if packet.quoted.is_some() {
            continue;
        }
        let answers = packet.flags.accepts() || echo(packet).is_some_and(|(is_reply, _)| is_reply);
        if packet.flags.opens() || echo(packet).is_some_and(|(is_reply, _)| !is_reply) {
            return Some(source(packet.tuple));
        }
        if answers {
            return Some(source(packet.tuple.reversed()));
        }
    }
    // Joined in mid-stream: whoever was seen first began it, unless its port looks like a server's.
    let first = about(&segment.sightings.first()?.packet);
    let is_server = match first.protocol {
        Protocol::TCP => first.sport < first.dport,
        _ => first.sport < WELL_KNOWN_PORTS && first.dport >= WELL_KNOWN_PORTS,
    };
    Some(source(if is_server { first.reversed() } else { first }))
}
