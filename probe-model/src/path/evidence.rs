//! What a flow's packets show beyond its outcome, for causes that nobody notifies of. Times are the records' own; what was
//! not seen is absent.

use std::collections::HashMap;
use std::net::IpAddr;

use probe_common::HookPoint;

use super::flow::Oriented;
use super::link::about;
use super::packet::{Packet, TcpFlags};
use super::payload::{self, Beginning};
use super::sighting::{Namespace, Place, Seen};
use crate::proxy_protocol::{FirstBytes, Header};
use crate::tuple::{Protocol, Tuple};

/// Segments of at least so many bytes are large: a way with too small an MTU lets others through.
const LARGE: u32 = 512;

/// What a flow's packets show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Where the flow came from.
    pub entry: Option<Entry>,
    /// What each end sends first, the opener's before its peer's, each in the order of the way.
    pub beginnings: Vec<Beginning>,
    /// When the opener's first byte of payload was seen first.
    pub request_ns: Option<u64>,
    /// What its peer did then.
    pub reaction: Option<Reaction>,
    /// The first TCP reset.
    pub reset: Option<Reset>,
    /// An earlier connection had the same addresses and ports.
    pub reuse: Option<Reuse>,
    /// When the opening SYN was answered by an ACK without SYN: its receiver still has an earlier connection.
    pub bare_ack_ns: Option<u64>,
    /// Large segments do not arrive.
    pub stall: Option<Stall>,
    /// Somebody on the way says that packets are too big.
    pub too_big: Option<TooBig>,
    /// The node sent it back to the network as it came.
    pub routed_back: Option<RoutedBack>,
    /// Either end closed or reset it.
    pub is_closed: bool,
    /// Data that was seen and not acknowledged, of either end.
    pub(super) outstanding: bool,
    /// How many sightings this is of.
    pub(super) sightings: usize,
}

/// Where a flow came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The network.
    Network,
    /// Another node, through the overlay.
    OtherNode,
    /// A pod of this node.
    Pod,
    /// The node's own stack.
    Node,
}

/// What an end did after its peer's first payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// What.
    pub kind: ReactionKind,
    /// How long after the payload was first seen, in nanoseconds.
    pub after_ns: u64,
}

/// The first thing that is more than an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReactionKind {
    /// It reset the connection.
    Reset,
    /// It closed the connection without a byte.
    Closed,
    /// It answered with this HTTP status.
    Status(u16),
    /// It answered with other data, or nobody saw with which.
    Data,
}

/// A TCP reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Whether the opener's side sent it; else its peer's.
    pub by_opener: bool,
    /// Where it was seen first.
    pub place: Place,
    /// When.
    pub ktime_ns: u64,
    /// Since the flow's packet before it, in nanoseconds.
    pub idle_ns: u64,
    /// Whether either end had closed before.
    pub after_fin: bool,
}

/// A reset of a connection that had been decided long before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateReset {
    /// The flow's tuple, as [`Path::tuple`](super::Path::tuple).
    pub tuple: Tuple,
    /// The reset.
    pub reset: Reset,
}

/// A connection whose addresses and ports an earlier one had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// Since the earlier one's last packet that was seen, in nanoseconds.
    pub since_ns: u64,
    /// Whether the earlier one was seen to be closed or reset.
    pub was_closed: bool,
}

impl Reuse {
    /// The same, told of on another leg of the flow: a packet may be seen on one of them only.
    pub(super) fn join(self, other: Self) -> Self {
        Self { since_ns: self.since_ns.min(other.since_ns), was_closed: self.was_closed || other.was_closed }
    }
}

/// Large segments are sent again and again while small ones arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Whether it is the opener's segments.
    pub by_opener: bool,
    /// Payload of the smallest segment that does not arrive.
    pub lost_len: u32,
    /// How often one of them was seen at one place, at most.
    pub times: u32,
    /// Payload of the largest segment that was acknowledged, 0 without one.
    pub passed_len: u32,
}

/// ICMP's "fragmentation needed" or "packet too big" about the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// Who says so.
    pub from: IpAddr,
    /// When it was first seen.
    pub ktime_ns: u64,
    /// Whether the opener's packets are too big, else its peer's.
    pub by_opener: bool,
}

/// A packet that left by the network's side as it came, one hop older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedBack {
    /// Where it came in.
    pub from: Place,
    /// Where it left.
    pub to: Place,
    /// Its time to live as it left.
    pub ttl: u8,
}

impl Evidence {
    /// What the opener sends first, nearest to the pod.
    pub fn request(&self) -> Option<&Beginning> {
        self.beginnings.iter().rev().find(|beginning| !beginning.reply)
    }

    /// What its peer answers first, nearest to the pod.
    pub fn answer(&self) -> Option<&Beginning> {
        self.beginnings.iter().find(|beginning| beginning.reply)
    }

    /// The opener's PROXY header of version 2, wherever it was seen.
    pub fn proxy_header(&self) -> Option<&Header> {
        let headers = self.beginnings.iter().filter(|beginning| !beginning.reply).map(Beginning::header);
        // Where it was seen whole, it says most.
        headers.flatten().max_by_key(|header| (header.tlvs, header.len))
    }

    /// Azure's identifier of the private endpoint connection. A source that sends one is a NAT IP of a Private Link
    /// Service.
    pub fn link_id(&self) -> Option<u32> {
        self.proxy_header()?.link_id
    }

    /// How long the request had gone unanswered when the last packet was seen; `None` with an answer or without a request.
    pub fn unanswered_ns(&self, last_ns: u64) -> Option<u64> {
        let request_ns = self.request_ns.filter(|_| self.reaction.is_none() && self.reset.is_none())?;
        Some(last_ns.saturating_sub(request_ns))
    }

    /// Whether what is still to come may tell more: an answer to what was sent, or the rest of a header.
    pub(super) fn is_unfinished(&self) -> bool {
        /// A flow of more sightings is under way, and none that waits for its first answer.
        const WAITING_MAX: usize = 128;
        let is_open = self.reset.is_none() && self.sightings < WAITING_MAX;
        is_open && (self.outstanding || self.unanswered_ns(0).is_some())
    }
}

/// What a flow's packets show, sorted by time. `isn` is the opener's initial sequence number.
pub(super) fn of(oriented: &[Oriented<'_>], isn: Option<u32>, entry: Option<Place>) -> Evidence {
    let accepted = oriented.iter().find(|one| one.reply && one.packet().flags.accepts() && one.is_packet());
    let peer_isn = accepted.map(|one| one.packet().seq);
    let beginnings = payload::beginnings(oriented, [isn, peer_isn]);
    let request_ns = first(oriented, false, |packet| packet.payload_len > 0);
    Evidence {
        entry: entry.map(origin),
        request_ns,
        reaction: request_ns.and_then(|since_ns| reaction(oriented, since_ns, &beginnings)),
        reset: reset(oriented),
        reuse: None,
        bare_ack_ns: bare_ack(oriented, isn),
        stall: [true, false].into_iter().find_map(|by_opener| stall(oriented, by_opener)),
        too_big: too_big(oriented),
        routed_back: routed_back(oriented),
        outstanding: [true, false].into_iter().any(|by_opener| is_outstanding(oriented, by_opener)),
        sightings: oriented.len(),
        is_closed: oriented.iter().any(|one| one.segment().is_some_and(|packet| packet.flags.closes())),
        beginnings,
    }
}

impl Oriented<'_> {
    /// Whether the packet itself was seen at a hook, with all its numbers.
    fn is_packet(&self) -> bool {
        matches!(self.sighting.seen, Seen::Hook { .. })
    }

    /// A segment of TCP's that was seen at a hook.
    fn segment(&self) -> Option<&Packet> {
        let packet = self.packet();
        (self.is_packet() && packet.tuple.protocol == Protocol::TCP && packet.quoted.is_none())
            .then_some(packet)
    }
}

fn origin(place: Place) -> Entry {
    match (place.namespace, place.point) {
        (_, HookPoint::UplinkIn | HookPoint::VfIn) => Entry::Network,
        (_, HookPoint::OverlayIn) => Entry::OtherNode,
        (Namespace::Pod, _) | (_, HookPoint::PodOut) => Entry::Pod,
        _ => Entry::Node,
    }
}

/// When the first segment of one direction was seen that is as wanted.
fn first(oriented: &[Oriented<'_>], reply: bool, wanted: impl Fn(&Packet) -> bool) -> Option<u64> {
    let mut ours = oriented.iter().filter(|one| one.reply == reply);
    ours.find(|one| one.segment().is_some_and(&wanted)).map(|one| one.sighting.ktime_ns)
}

fn reaction(oriented: &[Oriented<'_>], since_ns: u64, beginnings: &[Beginning]) -> Option<Reaction> {
    let after = |one: &&Oriented<'_>| one.reply && one.sighting.ktime_ns >= since_ns;
    oriented.iter().filter(after).find_map(|one| {
        let packet = one.segment()?;
        let kind = if packet.flags.contains(TcpFlags::RST) {
            ReactionKind::Reset
        } else if packet.payload_len > 0 {
            let answers = beginnings.iter().filter(|beginning| beginning.reply);
            let mut statuses = answers.filter_map(|answer| match answer.first {
                FirstBytes::HttpStatus(status) => Some(status),
                _ => None,
            });
            statuses.next().map_or(ReactionKind::Data, ReactionKind::Status)
        } else if packet.flags.contains(TcpFlags::FIN) {
            ReactionKind::Closed
        } else {
            return None;
        };
        Some(Reaction { kind, after_ns: one.sighting.ktime_ns - since_ns })
    })
}

fn reset(oriented: &[Oriented<'_>]) -> Option<Reset> {
    let is_reset = |packet: &Packet| packet.flags.contains(TcpFlags::RST);
    let at = oriented.iter().position(|one| one.segment().is_some_and(is_reset))?;
    let reset = &oriented[at];
    let before = || oriented[..at].iter().filter(|one| one.segment().is_some());
    Some(Reset {
        by_opener: !reset.reply,
        place: reset.sighting.place()?,
        ktime_ns: reset.sighting.ktime_ns,
        idle_ns: reset.sighting.ktime_ns - before().next_back()?.sighting.ktime_ns,
        after_fin: before().any(|one| one.packet().flags.contains(TcpFlags::FIN)),
    })
}

/// An ACK of something else than the SYN, before anything else came back.
fn bare_ack(oriented: &[Oriented<'_>], isn: Option<u32>) -> Option<u64> {
    let isn = isn?;
    let mut answers = oriented.iter().filter(|one| one.reply && one.segment().is_some());
    let first = answers.next()?;
    let Packet { flags, ack, payload_len, .. } = *first.packet();
    let is_bare = flags == TcpFlags::ACK && payload_len == 0 && ack != isn.wrapping_add(1);
    is_bare.then_some(first.sighting.ktime_ns)
}

/// The highest number that the other end acknowledged.
fn acknowledged(oriented: &[Oriented<'_>], by_opener: bool) -> Option<u32> {
    let others = oriented.iter().filter(|one| one.reply == by_opener).filter_map(Oriented::segment);
    let acks = others.filter(|packet| packet.flags.contains(TcpFlags::ACK)).map(|packet| packet.ack);
    acks.reduce(|a, b| if is_before(a, b) { b } else { a })
}

/// Whether a sequence number lies before another, on the circle that they are.
fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

/// One end's segments with payload.
fn segments<'o>(oriented: &'o [Oriented<'_>], by_opener: bool) -> impl Iterator<Item = (Place, &'o Packet)> {
    let ours = oriented.iter().filter(move |one| one.reply != by_opener);
    ours.filter_map(|one| Some((one.sighting.place()?, one.segment()?)))
        .filter(|(_, packet)| packet.payload_len > 0)
}

fn is_outstanding(oriented: &[Oriented<'_>], by_opener: bool) -> bool {
    let acknowledged = acknowledged(oriented, by_opener);
    segments(oriented, by_opener).any(|(_, packet)| !has_arrived(packet, acknowledged))
}

fn has_arrived(packet: &Packet, acknowledged: Option<u32>) -> bool {
    let end = packet.seq.wrapping_add(packet.payload_len);
    acknowledged.is_some_and(|ack| !is_before(ack, end))
}

fn stall(oriented: &[Oriented<'_>], by_opener: bool) -> Option<Stall> {
    let acknowledged = acknowledged(oriented, by_opener);
    let mut seen: HashMap<(Place, u32, u32), u32> = HashMap::new();
    let mut passed_len = 0;
    for (place, packet) in segments(oriented, by_opener) {
        if has_arrived(packet, acknowledged) {
            passed_len = passed_len.max(packet.payload_len);
        } else {
            *seen.entry((place, packet.seq, packet.payload_len)).or_default() += 1;
        }
    }
    let again = || seen.iter().filter(|((_, _, len), times)| **times > 1 && *len >= LARGE);
    let lost_len = again().map(|((_, _, len), _)| *len).min()?;
    let times = again().map(|(_, times)| *times).max()?;
    (passed_len < lost_len).then_some(Stall { by_opener, lost_len, times, passed_len })
}

fn too_big(oriented: &[Oriented<'_>]) -> Option<TooBig> {
    oriented.iter().find_map(|one| {
        let packet = one.packet();
        let icmp = packet.icmp.filter(|_| packet.quoted.is_some())?;
        let is_too_big = match packet.tuple.protocol {
            Protocol::ICMP => (icmp.icmp_type, icmp.code) == (3, 4),
            _ => icmp.icmp_type == 2,
        };
        // An error goes back to the sender of what it quotes.
        let too_big =
            TooBig { from: packet.tuple.saddr, ktime_ns: one.sighting.ktime_ns, by_opener: one.reply };
        (is_too_big && one.is_packet()).then_some(too_big)
    })
}

fn routed_back(oriented: &[Oriented<'_>]) -> Option<RoutedBack> {
    let at = |points: [HookPoint; 2]| {
        oriented.iter().filter(move |one| {
            !one.reply && one.sighting.place().is_some_and(|place| points.contains(&place.point))
        })
    };
    let numbers = |packet: &Packet| {
        (about(packet), packet.seq, packet.ack, packet.flags, packet.payload_len, packet.ip_id)
    };
    let left: Vec<_> = at([HookPoint::UplinkOut, HookPoint::VfOut]).collect();
    at([HookPoint::UplinkIn, HookPoint::VfIn]).find_map(|came| {
        let is_same = |left: &&&Oriented<'_>| {
            numbers(left.packet()) == numbers(came.packet())
                && left.packet().ttl.checked_add(1) == Some(came.packet().ttl)
                && left.sighting.ktime_ns >= came.sighting.ktime_ns
        };
        let gone = left.iter().find(is_same)?;
        let (from, to) = (came.sighting.place()?, gone.sighting.place()?);
        Some(RoutedBack { from, to, ttl: gone.packet().ttl })
    })
}
