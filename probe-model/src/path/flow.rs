//! Sightings grouped into flows, and one flow's way through the node.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use probe_common::HookPoint;

use super::evidence::{self, Evidence, Reuse};
use super::link::{self, LegKey, Segment, about, opener, opening};
use super::outcome::{self, Outcome};
use super::packet::{Packet, Tunnel};
use super::sighting::{Namespace, Place, Seen, Sighting, SocketEvent};
use crate::cilium::events::Notification;
use crate::tuple::Tuple;
use crate::world::PolicyRef;

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
    /// The tunnel it was in there.
    pub tunnel: Option<Tunnel>,
    /// Its VLAN there, 0 without a tag.
    pub vlan: u16,
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
    /// How often the SYN-ACK was.
    pub accepted_again: u32,
    /// Time of the first sighting.
    pub first_ns: u64,
    /// Time of the last sighting.
    pub last_ns: u64,
    /// Time of the first answer or refusal.
    pub answered_ns: Option<u64>,
    /// Whether the answer is known to have reached whoever asked: they, or the pod's socket, went on with it.
    pub is_acknowledged: bool,
    /// What its packets show beyond that.
    pub evidence: Evidence,
    /// Every leg of the flow: what the tracker knows it by.
    pub(super) legs: Vec<Leg>,
}

/// One connection at one tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) key: LegKey,
    /// The initial sequence number of whoever began it.
    pub(super) isn: Option<u32>,
    /// Who began it.
    pub(super) opener: (IpAddr, u16),
    /// Time of the last packet of it at a hook, 0 without one.
    pub(super) last_ns: u64,
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
        match self.hops.first().and_then(|hop| exits(hop.place)) {
            Some(exits) => self.replies.iter().any(|hop| exits.contains(&hop.place.point)),
            None => self.answered_ns.is_some(),
        }
    }

    /// Whether a socket of the traced pod says that the connection is open.
    pub fn is_open(&self) -> bool {
        let is_open = |socket: &PathSocket| {
            (socket.namespace, socket.event) == (Namespace::Pod, SocketEvent::Established)
        };
        self.sockets.iter().any(is_open)
    }

    /// Whether the reset came from a socket of the traced pod; `Some(false)`: nobody listens there. `None` if the
    /// pod's stack was not seen to send one.
    pub fn reset_had_socket(&self) -> Option<bool> {
        let of_pod = self.sockets.iter().filter(|socket| socket.namespace == Namespace::Pod);
        let mut of_pod = of_pod.map(|socket| socket.event);
        of_pod.find_map(SocketEvent::had_socket)
    }
}

/// By where the answer leaves to whoever sent a packet that was first seen at a place, if that is known.
pub(super) fn exits(entry: Place) -> Option<&'static [HookPoint]> {
    match entry.point {
        HookPoint::UplinkIn | HookPoint::VfIn | HookPoint::OverlayIn => {
            Some(&[HookPoint::UplinkOut, HookPoint::VfOut, HookPoint::OverlayOut])
        }
        HookPoint::HostOut => Some(&[HookPoint::HostIn]),
        _ => None,
    }
}

/// Puts sightings together, each of a packet that tells its flow. The order they are given in does not matter.
pub(super) fn assemble<'s>(sightings: impl Iterator<Item = &'s Sighting>) -> Vec<Path> {
    let segments = link::segments(sightings);
    let mut paths: Vec<Path> = link::link(&segments)
        .into_iter()
        .filter_map(|group| {
            let group: Vec<&Segment<'_>> = group.into_iter().map(|index| &segments[index]).collect();
            let mut path = path(&group)?;
            let reused = group.iter().filter_map(|segment| reuse(segment, &segments));
            path.evidence.reuse = reused.reduce(Reuse::join);
            Some(path)
        })
        .collect();
    paths.sort_by_key(|path| (path.first_ns, path.tuple));
    paths
}

/// The connection before a segment's on the same addresses and ports, if it was seen.
fn reuse(segment: &Segment<'_>, all: &[Segment<'_>]) -> Option<Reuse> {
    let first_ns = segment.isn.and(segment.sightings.first())?.ktime_ns;
    // They are in the order of their legs.
    let from = all.partition_point(|other| other.leg < segment.leg);
    let of_leg = all[from..].iter().take_while(|other| other.leg == segment.leg);
    let others = of_leg.filter(|other| other.isn != segment.isn);
    let last = others.map(|other| (last_packet_ns(other), other));
    let (last_ns, before) =
        last.filter(|(last_ns, _)| (1..first_ns).contains(last_ns)).max_by_key(|last| last.0)?;
    let was_closed = before.sightings.iter().any(|sighting| sighting.packet.flags.closes());
    Some(Reuse { since_ns: first_ns - last_ns, was_closed })
}

/// When the last packet of a segment was at a hook, 0 without one: a notification may come much later.
fn last_packet_ns(segment: &Segment<'_>) -> u64 {
    let mut packets = segment.sightings.iter().rev().filter(|sighting| sighting.place().is_some());
    packets.next().map_or(0, |sighting| sighting.ktime_ns)
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
        let Packet { tuple, tunnel, vlan, .. } = *self.packet();
        Some(Hop { ktime_ns: self.sighting.ktime_ns, place, mark, tuple, tunnel, vlan })
    }
}

fn path(group: &[&Segment<'_>]) -> Option<Path> {
    let mut oriented: Vec<Oriented<'_>> = Vec::new();
    let mut legs = Vec::new();
    for segment in group {
        let source = opener(segment)?;
        let last_ns = last_packet_ns(segment);
        legs.push(Leg { key: segment.leg, isn: segment.isn, opener: source, last_ns });
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
        retransmissions: sent_again(&oriented, |packet| !packet.reply && packet.packet().flags.opens()),
        accepted_again: sent_again(&oriented, |packet| packet.reply && packet.packet().flags.accepts())
            .max(told_again(&oriented)),
        first_ns: first.sighting.ktime_ns,
        last_ns: last.sighting.ktime_ns,
        answered_ns: judged.answered_ns,
        is_acknowledged: judged.is_acknowledged,
        evidence: evidence::of(
            &oriented,
            legs.iter().find_map(|leg| leg.isn),
            hops.first().map(|hop| hop.place),
        ),
        legs,
        hops,
    })
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
    // The order of sightings has the way through the node for those of the same nanosecond.
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
        let Seen::KernelDrop { reason, location, ifindex, netns, .. } = oriented.sighting.seen else {
            continue;
        };
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

/// Packets at the place that saw most of them, less the first.
fn sent_again(oriented: &[Oriented<'_>], wanted: impl Fn(&Oriented<'_>) -> bool) -> u32 {
    let mut seen: HashMap<Place, u32> = HashMap::new();
    for oriented in oriented.iter().filter(|oriented| wanted(oriented)) {
        if let Seen::Hook { place, .. } = oriented.sighting.seen {
            *seen.entry(place).or_default() += 1;
        }
    }
    seen.into_values().max().map_or(0, |most| most - 1)
}

/// How often the pod's socket says that it sent its SYN-ACK again.
fn told_again(oriented: &[Oriented<'_>]) -> u32 {
    oriented.iter().filter(|oriented| outcome::is_accepted_again(oriented)).count() as u32
}
