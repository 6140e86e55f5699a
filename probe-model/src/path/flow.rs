//! Sightings grouped into flows, and one flow's way through the node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use probe_common::HookPoint;

use super::outcome::{self, Outcome};
use super::packet::{Packet, TcpFlags};
use super::sighting::{Namespace, Place, Seen, Sighting, SocketEvent};
use crate::cilium::events::Notification;
use crate::tuple::{Protocol, Tuple};
use crate::world::PolicyRef;

/// Sightings of one packet at different tuples are at most this far apart; a notification from the agent's socket
/// arrives late.
const SAME_PACKET_NS: u64 = 2_000_000_000;
/// Datagrams of one tuple further apart than this are different flows.
const DATAGRAM_IDLE_NS: u64 = 30_000_000_000;
/// Earlier sightings that a packet is compared with to be known again.
const COMPARED_MAX: usize = 16;
/// Ports below this are servers' when nothing else tells the two ends apart.
const WELL_KNOWN_PORTS: u16 = 1024;

/// A packet of the flow at one of our classifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// When.
    pub ktime_ns: u64,
    /// Where.
    pub place: Place,
    /// `skb->mark`.
    pub mark: u32,
    /// The packet's tuple there, in its own direction.
    pub tuple: Tuple,
}

/// A change of addresses or ports on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Before.
    pub from: Tuple,
    /// After.
    pub to: Tuple,
}

impl Rewrite {
    /// Whether the destination changed.
    pub fn is_dnat(&self) -> bool {
        (self.from.daddr, self.from.dport) != (self.to.daddr, self.to.dport)
    }

    /// Whether the source changed.
    pub fn is_snat(&self) -> bool {
        (self.from.saddr, self.from.sport) != (self.to.saddr, self.to.sport)
    }
}

/// What Cilium said of the flow; equal notifications are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumEvent {
    /// When the first came.
    pub ktime_ns: u64,
    /// The first of them.
    pub notification: Notification,
    /// The packet's tuple in it.
    pub tuple: Tuple,
    /// How many came.
    pub count: u32,
    /// The policies that Hubble names behind it; `None` if it did not come from Hubble.
    pub hubble: Option<Arc<[PolicyRef]>>,
}

/// The kernel's drops of the flow's packets, equal ones counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathDrop {
    /// When the first was dropped.
    pub ktime_ns: u64,
    /// `enum skb_drop_reason` of the running kernel.
    pub reason: u32,
    /// Address in the kernel that freed the packet.
    pub location: u64,
    /// The interface, 0 if unknown.
    pub ifindex: u32,
    /// Inode number of the interface's network namespace, 0 if unknown.
    pub netns: u32,
    /// The packet's tuple.
    pub tuple: Tuple,
    /// Whether it was on its way back.
    pub reply: bool,
    /// How many were dropped.
    pub count: u32,
}

/// What a socket did about the flow; equal events are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSocket {
    /// When the first came.
    pub ktime_ns: u64,
    /// What it did.
    pub event: SocketEvent,
    /// Whose socket it is.
    pub namespace: Namespace,
    /// How often.
    pub count: u32,
}

/// One flow's way through the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The first packet's tuple where it was seen first.
    pub tuple: Tuple,
    /// Where the first packet was seen, in order.
    pub hops: Vec<Hop>,
    /// Where the first answer was seen, in order.
    pub replies: Vec<Hop>,
    /// What changed its addresses and ports, in order.
    pub rewrites: Vec<Rewrite>,
    /// What Cilium said.
    pub cilium: Vec<CiliumEvent>,
    /// What the kernel dropped.
    pub drops: Vec<PathDrop>,
    /// What sockets did.
    pub sockets: Vec<PathSocket>,
    /// What became of it.
    pub outcome: Outcome,
    /// How often the opening SYN was sent again.
    pub retransmissions: u32,
    /// Time of the first sighting.
    pub first_ns: u64,
    /// Time of the last sighting.
    pub last_ns: u64,
    /// Time of the first answer or refusal.
    pub answered_ns: Option<u64>,
    /// Every leg of the flow: what the tracker knows it by.
    pub(super) legs: Vec<(LegKey, Option<u32>)>,
}

impl Path {
    /// The tuple after every rewriting: what the pod sees and policy judges.
    pub fn final_tuple(&self) -> Tuple {
        self.rewrites.last().map_or(self.tuple, |rewrite| rewrite.to)
    }

    /// Whether anything of it was seen on the node itself, whose network namespace is `netns`: not only packets that
    /// the kernel freed in some other namespace of the machine.
    pub fn is_of_node(&self, netns: u32) -> bool {
        let hooked = !self.hops.is_empty() || !self.replies.is_empty() || !self.cilium.is_empty();
        hooked || self.drops.iter().any(|drop| drop.netns == netns)
    }

    /// Whether the answer was seen leaving by the side that the flow came in on.
    pub fn is_answer_complete(&self) -> bool {
        let back = match self.hops.first().map(|hop| hop.place.point) {
            Some(HookPoint::UplinkIn) => HookPoint::UplinkOut,
            Some(HookPoint::HostOut) => HookPoint::HostIn,
            _ => return self.answered_ns.is_some(),
        };
        self.replies.iter().any(|hop| hop.place.point == back)
    }
}

/// Both ends and the protocol, whichever way a packet goes; for echoes their identifier too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LegKey {
    low: (IpAddr, u16),
    high: (IpAddr, u16),
    protocol: Protocol,
    echo_id: u16,
}

impl LegKey {
    /// The leg of a packet; an ICMP error belongs to the leg of the packet that it quotes.
    /// `None` for what belongs to no flow: neighbour discovery, fragments without ports.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let tuple = about(packet);
        if packet.later_fragment {
            return None;
        }
        let echo_id = match packet.icmp {
            Some(_) if packet.quoted.is_some() => 0,
            Some(_) => echo(packet)?.1,
            None => 0,
        };
        let (a, b) = ((tuple.saddr, tuple.sport), (tuple.daddr, tuple.dport));
        Some(Self { low: a.min(b), high: a.max(b), protocol: tuple.protocol, echo_id })
    }
}

/// The tuple that a packet is about: its own, or for an ICMP error that of the quoted packet.
fn about(packet: &Packet) -> Tuple {
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
struct Segment<'a> {
    leg: LegKey,
    isn: Option<u32>,
    sightings: Vec<&'a Sighting>,
}

/// Puts sightings together. The order they are given in does not matter.
pub(super) fn assemble(sightings: &[Sighting]) -> Vec<Path> {
    let mut sorted: Vec<&Sighting> = sightings.iter().collect();
    sorted.sort_by(|a, b| a.order(b));
    let mut by_leg: BTreeMap<LegKey, Vec<&Sighting>> = BTreeMap::new();
    for sighting in sorted {
        if let Some(leg) = LegKey::of(&sighting.packet) {
            by_leg.entry(leg).or_default().push(sighting);
        }
    }
    let segments: Vec<Segment<'_>> =
        by_leg.into_iter().flat_map(|(leg, sightings)| split(leg, &sightings)).collect();
    let mut paths: Vec<Path> = link(&segments)
        .into_iter()
        .filter_map(|group| {
            let group: Vec<&Segment<'_>> = group.into_iter().map(|index| &segments[index]).collect();
            path(&group)
        })
        .collect();
    paths.sort_by_key(|path| (path.first_ns, path.tuple));
    paths
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
fn opening(sighting: &Sighting) -> Option<u32> {
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
    Opening {
        isn: u32,
        accepts: bool,
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
    if packet.quoted.is_some() || !sighting.has_numbers() {
        return None;
    }
    if packet.tuple.protocol == Protocol::TCP {
        let (flags, payload_len) = (packet.flags, packet.payload_len);
        return Some(match opening(sighting) {
            Some(isn) => Identity::Opening { isn, accepts: flags.accepts() },
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
fn link(segments: &[Segment<'_>]) -> Vec<Vec<usize>> {
    let mut known: HashMap<Identity, Vec<(&Sighting, usize)>> = HashMap::new();
    for (index, segment) in segments.iter().enumerate() {
        for sighting in &segment.sightings {
            if let Some(identity) = identity(sighting) {
                known.entry(identity).or_default().push((sighting, index));
            }
        }
    }
    let mut groups = Groups::new(segments.len());
    for (identity, mut seen) in known {
        seen.sort_by(|(a, i), (b, j)| a.order(b).then(i.cmp(j)));
        for (at, (later, segment)) in seen.iter().enumerate() {
            for (earlier, other) in &seen[at.saturating_sub(COMPARED_MAX)..at] {
                if segment != other && is_same_packet(identity, earlier, later) {
                    groups.join(*segment, *other);
                }
            }
        }
    }
    for (index, segment) in segments.iter().enumerate() {
        if let Some(other) = before_dnat(segments, &groups, segment) {
            groups.join(index, other);
        }
    }
    groups.members()
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
        Identity::Datagram { ip_id, .. } => {
            let (a, b) = (earlier.packet.tuple, later.packet.tuple);
            let keeps_source = (a.saddr, a.sport) == (b.saddr, b.sport);
            let keeps_destination = (a.daddr, a.dport) == (b.daddr, b.dport);
            // An echo has no ports: its sequence number and payload stand for them.
            ip_id != 0 || keeps_source || keeps_destination
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

/// One packet of a flow, with its direction in it.
pub(super) struct Oriented<'a> {
    pub(super) sighting: &'a Sighting,
    pub(super) reply: bool,
}

impl Oriented<'_> {
    pub(super) fn packet(&self) -> &Packet {
        &self.sighting.packet
    }

    fn hop(&self) -> Option<Hop> {
        let Seen::Hook { place, mark, .. } = self.sighting.seen else { return None };
        Some(Hop { ktime_ns: self.sighting.ktime_ns, place, mark, tuple: self.packet().tuple })
    }
}

fn path(group: &[&Segment<'_>]) -> Option<Path> {
    let mut oriented: Vec<Oriented<'_>> = Vec::new();
    for segment in group {
        let source = opener(segment)?;
        oriented.extend(segment.sightings.iter().map(|sighting| {
            let about = about(&sighting.packet);
            // An error goes back to the sender of what it quotes.
            let reply = ((about.saddr, about.sport) == source) == sighting.packet.quoted.is_some();
            Oriented { sighting, reply }
        }));
    }
    oriented.sort_by(|a, b| a.sighting.order(b.sighting));
    let (first, last) = (oriented.first()?, oriented.last()?);
    let hops = hops(&oriented, false);
    let tuple =
        outer_tuple(&oriented).or_else(|| Some(hops.first()?.tuple)).unwrap_or_else(|| forward_tuple(first));
    let judged = outcome::judge(&oriented);
    Some(Path {
        tuple,
        replies: self::hops(&oriented, true),
        rewrites: rewrites(tuple, &oriented),
        cilium: cilium_events(&oriented),
        drops: kernel_drops(&oriented),
        sockets: socket_events(&oriented),
        outcome: judged.outcome,
        retransmissions: retransmissions(&oriented),
        first_ns: first.sighting.ktime_ns,
        last_ns: last.sighting.ktime_ns,
        answered_ns: judged.answered_ns,
        legs: group.iter().map(|segment| (segment.leg, segment.isn)).collect(),
        hops,
    })
}

/// The end that began the connection, as far as one tuple's packets tell.
fn opener(segment: &Segment<'_>) -> Option<(IpAddr, u16)> {
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

fn forward_tuple(oriented: &Oriented<'_>) -> Tuple {
    let tuple = about(oriented.packet());
    // What an error quotes went the other way than the error.
    if oriented.reply == oriented.packet().quoted.is_some() { tuple } else { tuple.reversed() }
}

/// The tuple on the network's side of a flow that came from there, whichever of its packets tells: the first one's
/// record may be lost.
fn outer_tuple(oriented: &[Oriented<'_>]) -> Option<Tuple> {
    let outside = oriented.iter().find(|oriented| match oriented.sighting.seen {
        Seen::Hook { place, .. } if place.point == HookPoint::UplinkIn => !oriented.reply,
        Seen::Hook { place, .. } if place.point == HookPoint::UplinkOut => oriented.reply,
        _ => false,
    });
    outside.map(forward_tuple)
}

/// Where the first packet of one direction passed our classifiers: the opening one of a TCP connection if it was seen.
fn hops(oriented: &[Oriented<'_>], reply: bool) -> Vec<Hop> {
    let opens = |oriented: &&Oriented<'_>| opening(oriented.sighting).is_some();
    let ours = || oriented.iter().filter(|oriented| oriented.reply == reply);
    let has_opening = ours().any(|oriented| opens(&oriented));
    let mut hops: Vec<Hop> = Vec::new();
    for hop in ours().filter(|oriented| !has_opening || opens(oriented)).filter_map(Oriented::hop) {
        if !hops.iter().any(|known| known.place == hop.place) {
            hops.push(hop);
        }
    }
    hops
}

/// Every tuple of the way forth, in the order they were seen; those that only an answer tells come last.
fn rewrites(first: Tuple, oriented: &[Oriented<'_>]) -> Vec<Rewrite> {
    let mut tuples = vec![first];
    let at_hooks = |o: &&Oriented<'_>| !o.reply && matches!(o.sighting.seen, Seen::Hook { .. });
    let elsewhere = |o: &&Oriented<'_>| !o.reply && !matches!(o.sighting.seen, Seen::Hook { .. });
    let forth = oriented.iter().filter(at_hooks).chain(oriented.iter().filter(elsewhere));
    for oriented in forth.chain(oriented.iter().filter(|oriented| oriented.reply)) {
        let tuple = forward_tuple(oriented);
        if !tuples.contains(&tuple) {
            tuples.push(tuple);
        }
    }
    tuples.windows(2).map(|pair| Rewrite { from: pair[0], to: pair[1] }).collect()
}

fn cilium_events(oriented: &[Oriented<'_>]) -> Vec<CiliumEvent> {
    let mut events: Vec<CiliumEvent> = Vec::new();
    for oriented in oriented {
        let Some(notification) = oriented.sighting.seen.notification() else { continue };
        let tuple = oriented.packet().tuple;
        let hubble = match &oriented.sighting.seen {
            Seen::Hubble { policies, .. } => Some(policies.clone()),
            _ => None,
        };
        match events.iter_mut().find(|e| says_the_same(&e.notification, &notification) && e.tuple == tuple) {
            Some(event) => event.count += 1,
            None => {
                events.push(CiliumEvent {
                    ktime_ns: oriented.sighting.ktime_ns,
                    notification,
                    tuple,
                    count: 1,
                    hubble,
                });
            }
        }
    }
    events
}

/// Whether two notifications differ only in what belongs to one packet: lengths and flow hash.
fn says_the_same(a: &Notification, b: &Notification) -> bool {
    match (a, b) {
        (Notification::Drop(a), Notification::Drop(b)) => {
            a.header.source == b.header.source && a.reason == b.reason
        }
        (Notification::Trace(a), Notification::Trace(b)) => (a.point, a.reason) == (b.point, b.reason),
        (Notification::PolicyVerdict(a), Notification::PolicyVerdict(b)) => {
            (a.header.source, a.verdict, a.direction) == (b.header.source, b.verdict, b.direction)
        }
        (a, b) => a == b,
    }
}

fn kernel_drops(oriented: &[Oriented<'_>]) -> Vec<PathDrop> {
    let mut drops: Vec<PathDrop> = Vec::new();
    for oriented in oriented {
        let Seen::KernelDrop { reason, location, ifindex, netns } = oriented.sighting.seen else { continue };
        let (tuple, reply) = (oriented.packet().tuple, oriented.reply);
        let same = |drop: &&mut PathDrop| {
            (drop.reason, drop.location, drop.ifindex, drop.netns, drop.tuple)
                == (reason, location, ifindex, netns, tuple)
        };
        match drops.iter_mut().find(same) {
            Some(drop) => drop.count += 1,
            None => drops.push(PathDrop {
                ktime_ns: oriented.sighting.ktime_ns,
                reason,
                location,
                ifindex,
                netns,
                tuple,
                reply,
                count: 1,
            }),
        }
    }
    drops
}

fn socket_events(oriented: &[Oriented<'_>]) -> Vec<PathSocket> {
    let mut events: Vec<PathSocket> = Vec::new();
    for oriented in oriented {
        let Seen::Socket { event, namespace } = oriented.sighting.seen else { continue };
        let same = |known: &&mut PathSocket| (known.event, known.namespace) == (event, namespace);
        if let Some(known) = events.iter_mut().find(same) {
            known.count += 1;
        } else {
            let ktime_ns = oriented.sighting.ktime_ns;
            events.push(PathSocket { ktime_ns, event, namespace, count: 1 });
        }
    }
    events
}

/// Opening SYNs at the place that saw most of them, less the first.
fn retransmissions(oriented: &[Oriented<'_>]) -> u32 {
    let mut openings: HashMap<Place, u32> = HashMap::new();
    for oriented in oriented.iter().filter(|oriented| !oriented.reply && oriented.packet().flags.opens()) {
        if let Seen::Hook { place, .. } = oriented.sighting.seen {
            *openings.entry(place).or_default() += 1;
        }
    }
    openings.into_values().max().map_or(0, |most| most - 1)
}
