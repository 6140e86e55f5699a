//! What packets show beyond the outcome, in whatever order they arrive; and the neighbouring case that shows it not.

use super::*;
use crate::path::evidence::{Entry, ReactionKind, Reset, Reuse, RoutedBack, Stall, TooBig};
use crate::proxy_protocol::{FirstBytes, Proxy, SIGNATURE};

const ISN: u32 = u32::MAX - 3;
const PEER_ISN: u32 = 777_000;

/// Azure's header: 10.221.1.4:51000, linkID 553665985.
pub(super) fn azure() -> Vec<u8> {
    let rest = [0x21, 0x11, 0, 20, 10, 221, 1, 4, 10, 224, 0, 7, 0xc7, 0x38, 0, 80];
    [&SIGNATURE[..], &rest, &[0xee, 0, 5, 1, 0xc1, 0x45, 0, 0x21]].concat()
}

/// A segment of the client's at this offset of its stream.
fn data(from: &str, to: &str, offset: u32, len: usize) -> Packet {
    let seq = ISN.wrapping_add(1).wrapping_add(offset);
    Packet { payload_len: len as u32, ..tcp(from, to, 0x18, seq, PEER_ISN + 1) }
}

/// A segment of the server's, which has so many bytes of the client's.
fn answer(from: &str, to: &str, flags: u8, len: usize, has: u32) -> Packet {
    let ack = ISN.wrapping_add(1).wrapping_add(has);
    Packet { payload_len: len as u32, ..tcp(from, to, flags, PEER_ISN + 1, ack) }
}

/// What a hook keeps of a segment, with the segment itself.
pub(super) fn carried(ms: u64, point: HookPoint, packet: Packet, bytes: &[u8]) -> [Sighting; 2] {
    let seen = at(ms, point, packet);
    let place = seen.place().unwrap();
    let kept = Seen::Payload { place, bytes: bytes[..bytes.len().min(256)].into() };
    [seen, Sighting { ktime_ns: ms * MS, packet, seen: kept }]
}

/// The client sends these bytes in these pieces, seen at the uplink and at the pod; the pod has acknowledged all.
fn sent(pieces: &[&[u8]]) -> Vec<Sighting> {
    let mut sightings = allowed_through_dnat(ISN, 0);
    let (mut offset, mut ms) = (0, 20);
    for piece in pieces {
        sightings.extend(carried(
            ms,
            HookPoint::UplinkIn,
            data(NAT_IP, FRONTEND, offset, piece.len()),
            piece,
        ));
        sightings.extend(carried(ms + 1, HookPoint::PodIn, data(NAT_IP, POD, offset, piece.len()), piece));
        (offset, ms) = (offset + piece.len() as u32, ms + 2);
    }
    sightings.push(at(ms, HookPoint::PodOut, answer(POD, NAT_IP, 0x10, 0, offset)));
    sightings
}

#[test]
fn a_proxy_header_at_the_uplink_and_at_the_pod() {
    let request = [&azure()[..], b"GET / HTTP/1.1\r\n"].concat();
    let path = one_path(&sent(&[&request]));
    let evidence = &path.evidence;
    let places: Vec<_> = evidence.beginnings.iter().map(|one| (one.place.point, one.reply)).collect();
    assert_eq!(places, [(HookPoint::UplinkIn, false), (HookPoint::PodIn, false)]);
    assert_eq!(evidence.link_id(), Some(553_665_985));
    assert_eq!(evidence.proxy_header().unwrap().source(), Some("10.221.1.4:51000".parse().unwrap()));
    let seen = evidence.request().unwrap();
    assert_eq!((seen.segments, seen.then), (1, Some(FirstBytes::Http)));
    assert_eq!((evidence.request_ns, evidence.reaction), (Some(20 * MS), None));
    assert_eq!(path.outcome, Outcome::Answered);
}

#[test]
fn a_header_split_anywhere_is_the_same_header() {
    let request = [&azure()[..], b"GET / HTTP/1.1\r\n"].concat();
    for cut in 1..36 {
        let (first, rest) = request.split_at(cut);
        let evidence = one_path(&sent(&[first, rest])).evidence;
        let seen = evidence.request().unwrap();
        assert_eq!((evidence.link_id(), seen.segments), (Some(553_665_985), 2), "cut at {cut}");
        assert_eq!(seen.then, Some(FirstBytes::Http), "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = request.chunks(1).collect();
    assert_eq!(one_path(&sent(&bytes)).evidence.request().unwrap().segments, 36);
}

#[test]
fn what_is_missing_is_not_made_up() {
    let request = azure();
    let pieces: Vec<&[u8]> = request.chunks(12).collect();
    let mut sightings = sent(&pieces);
    let middle = |sighting: &Sighting| {
        matches!(sighting.seen, Seen::Payload { .. }) && sighting.packet.seq == ISN.wrapping_add(13)
    };
    sightings.retain(|sighting| !middle(sighting));
    let evidence = one_path(&sightings).evidence;
    let cut = FirstBytes::ProxyV2(Proxy::Cut { wanted: 16, header: None });
    assert_eq!((evidence.request().unwrap().first, evidence.link_id()), (cut, None));
    // Without the first piece nothing is known, and without the SYN not which piece is the first.
    let without = |lost: &dyn Fn(&Sighting) -> bool| {
        let mut sightings = sent(&pieces);
        sightings.retain(|sighting| !lost(sighting));
        one_path(&sightings).evidence.beginnings
    };
    let first = |sighting: &Sighting| sighting.packet.seq == ISN.wrapping_add(1);
    assert_eq!(without(&|one| matches!(one.seen, Seen::Payload { .. }) && first(one)), []);
    assert_eq!(without(&|one| one.packet.flags.contains(TcpFlags::SYN)), []);
}

#[test]
fn a_segment_that_comes_again_is_not_another() {
    let request = azure();
    let mut sightings = sent(&[&request[..20], &request[20..]]);
    let again = &request[10..36];
    sightings.extend(carried(300, HookPoint::UplinkIn, data(NAT_IP, FRONTEND, 10, 26), again));
    let evidence = one_path(&sightings).evidence;
    assert_eq!((evidence.link_id(), evidence.request().unwrap().segments), (Some(553_665_985), 2));
}

#[test]
fn how_the_pod_takes_it() {
    let with = |sightings: Vec<Sighting>| {
        let all = [sent(&[&azure()]), sightings].concat();
        one_path(&all).evidence.reaction.map(|reaction| (reaction.kind, reaction.after_ns / MS))
    };
    let status = b"HTTP/1.1 400 Bad Request\r\n";
    let bad = carried(29, HookPoint::PodOut, answer(POD, NAT_IP, 0x18, status.len(), 36), status);
    assert_eq!(with(bad.to_vec()), Some((ReactionKind::Status(400), 9)));
    let some = at(29, HookPoint::PodOut, answer(POD, NAT_IP, 0x18, 9, 36));
    assert_eq!(with(vec![some]), Some((ReactionKind::Data, 9)));
    let reset = at(25, HookPoint::PodOut, answer(POD, NAT_IP, 0x14, 0, 36));
    assert_eq!(with(vec![reset]), Some((ReactionKind::Reset, 5)));
    let closed = at(25, HookPoint::PodOut, answer(POD, NAT_IP, 0x11, 0, 36));
    assert_eq!(with(vec![closed]), Some((ReactionKind::Closed, 5)));
    assert_eq!(with(vec![]), None);
    // The client's own end of it is no reaction.
    let gone = at(25, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x11, ISN.wrapping_add(37), PEER_ISN + 1));
    assert_eq!(with(vec![gone]), None);
}

#[test]
fn a_request_without_an_answer() {
    let path = one_path(&sent(&[b"GET / HTTP/1.1\r\n"]));
    assert_eq!(path.evidence.unanswered_ns(path.last_ns + 500 * MS), Some(502 * MS));
    assert!(path.evidence.is_unfinished());
    let idle = one_path(&allowed_through_dnat(ISN, 0));
    assert_eq!((idle.evidence.unanswered_ns(idle.last_ns), idle.evidence.is_unfinished()), (None, false));
}

#[test]
fn a_reset_after_a_long_silence() {
    let reset = |ms, point, packet| {
        let mut sightings = allowed_through_dnat(ISN, 0);
        sightings.push(at(ms, point, packet));
        one_path(&sightings).evidence.reset
    };
    let by_client = tcp(NAT_IP, FRONTEND, 0x04, ISN.wrapping_add(1), 0);
    let place = at(0, HookPoint::UplinkIn, by_client).place().unwrap();
    let expected =
        Reset { by_opener: true, place, ktime_ns: 300_005 * MS, idle_ns: 300_000 * MS, after_fin: false };
    assert_eq!(reset(300_005, HookPoint::UplinkIn, by_client), Some(expected));
    let by_pod = reset(300_005, HookPoint::PodOut, answer(POD, NAT_IP, 0x14, 0, 0)).unwrap();
    assert!(!by_pod.by_opener && by_pod.place.point == HookPoint::PodOut);
    assert_eq!(one_path(&allowed_through_dnat(ISN, 0)).evidence.reset, None);
}

/// A tracker of one connection.
fn opened() -> Tracker {
    let mut tracker = Tracker::default();
    for sighting in allowed_through_dnat(ISN, 0) {
        tracker.push(&sighting);
    }
    tracker
}

#[test]
fn a_decided_connection_that_is_reset_is_told_once() {
    let mut tracker = opened();
    assert_eq!(tracker.poll(10_000 * MS).len(), 1);
    let uplink = at(300_005, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x04, ISN.wrapping_add(1), 0));
    let pod = at(300_006, HookPoint::PodIn, tcp(NAT_IP, POD, 0x04, ISN.wrapping_add(1), 0));
    // The later one may come first.
    tracker.push(&pod);
    tracker.push(&uplink);
    assert_eq!(tracker.late_resets(300_010 * MS), [], "the records of other CPUs may still come");
    let late = tracker.late_resets(301_000 * MS);
    assert_eq!(late.len(), 1, "{late:?}");
    assert_eq!(late[0].tuple, tuple(NAT_IP, FRONTEND, Protocol::TCP));
    let Reset { by_opener, place, idle_ns, .. } = late[0].reset;
    assert_eq!((by_opener, place, idle_ns), (true, uplink.place().unwrap(), 300_001 * MS));
    assert_eq!(tracker.late_resets(400_000 * MS), []);
    assert_eq!(tracker.finish(), []);
}

#[test]
fn a_connection_that_was_closed_or_busy_has_no_late_reset() {
    let reset = |ms| at(ms, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x04, ISN.wrapping_add(2), 0));
    let fin = at(5_000, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x11, ISN.wrapping_add(1), PEER_ISN + 1));
    let busy = at(299_000, HookPoint::UplinkIn, data(NAT_IP, FRONTEND, 0, 9));
    for before in [fin, busy] {
        let mut tracker = opened();
        assert_eq!(tracker.poll(4_000 * MS).len(), 1);
        tracker.push(&before);
        tracker.push(&reset(300_005));
        assert_eq!(tracker.late_resets(u64::MAX), []);
    }
}

#[test]
fn ports_that_are_used_again() {
    let again = |closed: bool| {
        let mut sightings = allowed_through_dnat(1000, 0);
        if closed {
            sightings.push(at(900, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x11, 1001, PEER_ISN + 1)));
        }
        sightings.extend(allowed_through_dnat(88_000, 20_000));
        sightings
    };
    for was_closed in [false, true] {
        let since_ns = if was_closed { 19_100 * MS } else { 19_996 * MS };
        let expected = Some(Reuse { since_ns, was_closed });
        let both = paths(&again(was_closed));
        assert_eq!(both.len(), 2);
        assert_eq!((both[0].evidence.reuse, both[1].evidence.reuse), (None, expected));
        // A tracker that has decided the first long ago says the same.
        let mut tracker = Tracker::default();
        let mut decided = Vec::new();
        for sighting in again(was_closed) {
            decided.extend(tracker.poll(sighting.ktime_ns));
            tracker.push(&sighting);
        }
        decided.extend(tracker.finish());
        assert_eq!(decided.len(), 2);
        assert_eq!((decided[0].evidence.reuse, decided[1].evidence.reuse), (None, expected));
    }
}

#[test]
fn a_syn_that_an_old_connection_answers() {
    let bare = |ack| {
        one_path(&[
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, ISN)),
            at(1, HookPoint::PodIn, syn(NAT_IP, POD, ISN)),
            at(2, HookPoint::PodOut, tcp(POD, NAT_IP, 0x10, 99_000, ack)),
        ])
        .evidence
        .bare_ack_ns
    };
    assert_eq!(bare(5_000), Some(2 * MS));
    // Its SYN-ACK's record was lost, or an ACK of what it sent.
    assert_eq!(bare(ISN.wrapping_add(1)), None);
    assert_eq!(one_path(&allowed_through_dnat(ISN, 0)).evidence.bare_ack_ns, None);
}

#[test]
fn large_segments_that_do_not_arrive() {
    let stalled = |large: usize, has: u32| {
        let mut sightings = sent(&[b"small"]);
        for ms in [100, 320, 760] {
            sightings.push(at(ms, HookPoint::UplinkIn, data(NAT_IP, FRONTEND, 5, large)));
        }
        sightings.push(at(900, HookPoint::PodOut, answer(POD, NAT_IP, 0x10, 0, has)));
        one_path(&sightings).evidence.stall
    };
    let expected = Stall { by_opener: true, lost_len: 1448, times: 3, passed_len: 5 };
    assert_eq!(stalled(1448, 5), Some(expected));
    assert_eq!(stalled(1448, 5 + 1448), None, "at last it arrived");
    assert_eq!(stalled(40, 5), None, "small ones get lost as well");
}

#[test]
fn somebody_says_that_packets_are_too_big() {
    let error = |code| Packet {
        icmp: Some(Icmp { icmp_type: 3, code, id: 0, seq: 0 }),
        quoted: Some(Quoted {
            daddr: "10.224.0.8".parse().unwrap(),
            sport: 80,
            dport: 40000,
            protocol: Protocol::TCP,
        }),
        ..packet(Tuple { sport: 0, dport: 0, ..tuple("10.224.0.1:0", FRONTEND, Protocol::ICMP) })
    };
    let with = |code| {
        let mut sightings = allowed_through_dnat(ISN, 0);
        sightings.push(at(50, HookPoint::UplinkIn, error(code)));
        one_path(&sightings).evidence.too_big
    };
    let from = "10.224.0.1".parse().unwrap();
    assert_eq!(with(4), Some(TooBig { from, ktime_ns: 50 * MS, by_opener: false }));
    assert_eq!(with(13), None);
}

#[test]
fn a_packet_that_is_routed_back() {
    let out = |ttl, to| Packet { ttl, ..syn(NAT_IP, to, ISN) };
    let with = |left: Packet| {
        let path = one_path(&[
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, ISN)),
            at(1, HookPoint::UplinkOut, left),
        ]);
        (path.evidence.routed_back, path.outcome)
    };
    let place = |point| at(0, point, syn(NAT_IP, FRONTEND, ISN)).place().unwrap();
    let expected = RoutedBack { from: place(HookPoint::UplinkIn), to: place(HookPoint::UplinkOut), ttl: 63 };
    assert_eq!(with(out(63, FRONTEND)).0, Some(expected));
    assert_eq!(with(out(63, "10.0.1.124:80")).0, None, "to a backend on another node");
    assert_eq!(with(out(64, FRONTEND)).0, None, "as it came: a tap, no router");
}

#[test]
fn where_a_flow_came_from() {
    for (point, entry) in [
        (HookPoint::UplinkIn, Entry::Network),
        (HookPoint::VfIn, Entry::Network),
        (HookPoint::OverlayIn, Entry::OtherNode),
        (HookPoint::PodOut, Entry::Pod),
        (HookPoint::HostOut, Entry::Node),
    ] {
        let path =
            one_path(&[at(0, point, syn(NAT_IP, POD, ISN)), at(1, HookPoint::PodIn, syn(NAT_IP, POD, ISN))]);
        assert_eq!(path.evidence.entry, Some(entry), "{point:?}");
    }
}
