//! What became of a flow, and where it was lost.

use std::collections::BTreeSet;

use super::*;

fn socket(ms: u64, event: SocketEvent, packet: Packet) -> Sighting {
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Socket { event, namespace: Namespace::Pod } }
}

/// The pod's socket and its peer: two ends, no TTL.
fn ends() -> Packet {
    Packet { ttl: 0, ..packet(tuple(POD, NAT_IP, Protocol::TCP)) }
}

fn in_pod(ms: u64, point: HookPoint, packet: Packet) -> Sighting {
    let place = Place { point, ifindex: 3, namespace: Namespace::Pod };
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Hook { place, mark: 0, buffer: 0 } }
}

/// Every classifier, drops and notifications.
fn watch() -> Watch {
    let points = [HookPoint::UplinkIn, HookPoint::UplinkOut, HookPoint::PodIn, HookPoint::PodOut];
    let points: BTreeSet<_> = points.map(|point| (Namespace::Node, point)).into();
    Watch { points, drops: true, cilium: true, lost_records: false }
}

const STACK: Ways = Ways { through_stack: true, may_be_queued: false, to_other_node: false };

#[track_caller]
fn check_gap(path: &Path, watch: &Watch, ways: Ways, last: Option<HookPoint>, codes: &[&str]) {
    let gap = path.gap(watch, ways).expect("a gap");
    let found: Vec<_> = gap.candidates.iter().map(|candidate| candidate.code().text()).collect();
    let found: Vec<_> = found.iter().map(AsRef::as_ref).collect();
    assert_eq!((gap.last.map(|hop| hop.place.point), found.as_slice()), (last, codes), "{path:#?}");
}

#[test]
fn silence_names_what_can_hide_in_it() {
    let path = one_path(&[at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9))]);
    let last = Some(HookPoint::UplinkIn);
    let all = watch();
    check_gap(&path, &all, STACK, last, &["tc-program"]);
    let deaf = Watch { drops: false, ..all.clone() };
    check_gap(&path, &deaf, STACK, last, &["tc-program", "host-stack"]);
    check_gap(&path, &deaf, Ways::default(), last, &["tc-program", "unwatched"]);
    let blind = Watch { cilium: false, ..deaf };
    check_gap(&path, &blind, STACK, last, &["cilium-unread", "tc-program", "host-stack"]);
    let queued = Ways { may_be_queued: true, ..STACK };
    check_gap(&path, &all, queued, last, &["tc-program", "netfilter-queue"]);
    let past_it = Ways { may_be_queued: true, ..Ways::default() };
    check_gap(&path, &all, past_it, last, &["tc-program", "unwatched"]);
    let on = Ways { to_other_node: true, ..STACK };
    check_gap(&path, &all, on, last, &["tc-program", "other-node"]);
    let lossy = Watch { lost_records: true, ..all.clone() };
    check_gap(&path, &lossy, STACK, last, &["tc-program", "lost-record"]);
    // Without a hook at the pod, it may have arrived unseen.
    let mut outside = all.clone();
    outside.points.remove(&(Namespace::Node, HookPoint::PodIn));
    check_gap(&path, &outside, STACK, last, &["tc-program", "unwatched"]);
    // With BPF host routing the veth's host side is passed by: only hooks in the pod would tell.
    check_gap(&path, &all, Ways::default(), last, &["tc-program", "unwatched"]);
    let mut inside = all;
    inside.points.insert((Namespace::Pod, HookPoint::IpReceive));
    check_gap(&path, &inside, Ways::default(), last, &["tc-program"]);
}

/// A packet that the stack has is past every classifier at the uplink.
#[test]
fn silence_in_the_stack() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1, HookPoint::IpForward, syn(NAT_IP, POD, 9)),
    ]);
    check_gap(&path, &watch(), STACK, Some(HookPoint::IpForward), &[]);
    let deaf = Watch { drops: false, ..watch() };
    check_gap(&path, &deaf, STACK, Some(HookPoint::IpForward), &["host-stack"]);
}

#[test]
fn a_flow_that_is_delivered_and_not_answered() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        in_pod(2, HookPoint::IpDeliver, syn(NAT_IP, POD, 9)),
    ]);
    assert_eq!(path.outcome, Outcome::NoAnswer);
    check_gap(&path, &watch(), STACK, Some(HookPoint::IpDeliver), &["listen-queue"]);
    let deaf = Watch { drops: false, ..watch() };
    check_gap(&path, &deaf, STACK, Some(HookPoint::IpDeliver), &["pod-stack", "listen-queue"]);
    let datagram = one_path(&[at(0, HookPoint::PodIn, udp(NAT_IP, POD, 7, 1))]);
    check_gap(&datagram, &watch(), STACK, Some(HookPoint::PodIn), &["tc-program", "application"]);
    let one_way = Watch { points: [(Namespace::Node, HookPoint::PodIn)].into(), ..watch() };
    check_gap(
        &datagram,
        &one_way,
        STACK,
        Some(HookPoint::PodIn),
        &["tc-program", "application", "unwatched"],
    );
}

#[test]
fn an_answer_that_was_not_seen_leaving_is_lost_where_it_should_have_been_seen() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
    ]);
    assert_eq!(path.outcome, Outcome::Answered);
    assert_eq!(path.outcome_under(&watch()), Outcome::AnswerLost);
    check_gap(&path, &watch(), STACK, Some(HookPoint::PodOut), &["tc-program", "other-interface"]);
    // Nobody can say so without a hook there, or when records were lost.
    let mut blind = watch();
    blind.points.remove(&(Namespace::Node, HookPoint::UplinkOut));
    let lossy = Watch { lost_records: true, ..watch() };
    for watch in [blind, lossy] {
        assert_eq!(path.outcome_under(&watch), Outcome::Answered);
        assert_eq!(path.gap(&watch, STACK), None);
    }
}

#[test]
fn an_answer_that_the_client_goes_on_with_is_not_lost() {
    let mut sightings = vec![
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
        at(3, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x10, 10, 777_001)),
    ];
    let path = one_path(&sightings);
    assert!(path.is_acknowledged && !path.is_answer_complete());
    assert_eq!(path.outcome_under(&watch()), Outcome::Answered);
    // The pod's socket says so as well.
    sightings[2] = socket(3, SocketEvent::Established, ends());
    let path = one_path(&sightings);
    assert!(path.is_acknowledged && path.is_open());
    assert_eq!(path.outcome_under(&watch()), Outcome::Answered);
}

#[test]
fn an_answer_that_left_and_is_sent_again_is_lost_behind_the_node() {
    let mut sightings = vec![
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
        at(3, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, 9)),
    ];
    assert_eq!(one_path(&sightings).outcome, Outcome::Answered);
    let again = [
        socket(1002, SocketEvent::AcceptedAgain, ends()),
        at(1000, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1002, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
    ];
    for again in again {
        sightings.push(again);
        let path = one_path(&sightings);
        assert_eq!(path.outcome, Outcome::AnswerLost);
        check_gap(&path, &watch(), STACK, Some(HookPoint::UplinkOut), &["device", "beyond-node"]);
        sightings.pop();
    }
    // The client went on in the end.
    sightings.push(socket(1002, SocketEvent::AcceptedAgain, ends()));
    sightings.push(at(1500, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x10, 10, 777_001)));
    let path = one_path(&sightings);
    assert_eq!((path.outcome, path.accepted_again), (Outcome::Answered, 1));
}

#[test]
fn only_the_pods_socket_saw_the_answer() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        socket(1000, SocketEvent::AcceptedAgain, ends()),
    ]);
    assert_eq!(path.outcome, Outcome::AnswerLost);
    check_gap(&path, &watch(), STACK, None, &["other-interface"]);
}

#[test]
fn an_answer_that_is_dropped_on_its_way_back() {
    let sightings = [
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
    ];
    let with = |last: Sighting| one_path(&[&sightings[..], &[last]].concat()).outcome;
    assert_eq!(
        with(dropped(3, 133, syn_ack(POD, NAT_IP, 9))),
        Outcome::DroppedByCilium { reason: DropReason::POLICY, established: false, reply: true }
    );
    assert_eq!(
        with(freed(3, 8, syn_ack(POD, NAT_IP, 9))),
        Outcome::DroppedByKernel { reason: 8, reply: true }
    );
}

#[test]
fn a_reset_says_whether_there_was_a_socket() {
    for had_socket in [false, true] {
        let told = socket(2, SocketEvent::Reset { had_socket }, syn(NAT_IP, POD, 9));
        let seen = at(3, HookPoint::PodOut, tcp(POD, NAT_IP, 0x14, 0, 10));
        let before = [
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
            at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        ];
        // With and without the reset itself.
        for rest in [vec![told.clone(), seen], vec![told]] {
            let path = one_path(&[before.to_vec(), rest].concat());
            let from = "10.0.0.143".parse().unwrap();
            assert_eq!(path.outcome, Outcome::Refused { refusal: Refusal::Reset, from });
            assert_eq!(path.reset_had_socket(), Some(had_socket));
            assert!(path.answered_ns.is_some());
        }
    }
}

#[test]
fn the_way_through_the_node_orders_what_comes_at_once() {
    let forth = [
        at(0, HookPoint::VfIn, syn(NAT_IP, FRONTEND, 9)),
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(0, HookPoint::IpReceive, syn(NAT_IP, POD, 9)),
        at(0, HookPoint::IpForward, syn(NAT_IP, POD, 9)),
        at(0, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        in_pod(0, HookPoint::Received, syn(NAT_IP, POD, 9)),
        in_pod(0, HookPoint::IpReceive, syn(NAT_IP, POD, 9)),
        in_pod(0, HookPoint::IpDeliver, syn(NAT_IP, POD, 9)),
    ];
    let back = [
        in_pod(0, HookPoint::Queued, syn_ack(POD, NAT_IP, 9)),
        at(0, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
        at(0, HookPoint::IpForward, syn_ack(POD, NAT_IP, 9)),
        at(0, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, 9)),
    ];
    let path = one_path(&[&forth[..], &back[..]].concat());
    let places = |sightings: &[Sighting]| -> Vec<Place> {
        sightings
            .iter()
            .map(|sighting| match sighting.seen {
                Seen::Hook { place, .. } => place,
                _ => unreachable!("all are hooks'"),
            })
            .collect()
    };
    let of = |hops: &[Hop]| hops.iter().map(|hop| hop.place).collect::<Vec<_>>();
    assert_eq!((of(&path.hops), of(&path.replies)), (places(&forth), places(&back)));
}

#[test]
fn an_answer_that_is_not_seen_leaving_is_waited_for() {
    let mut tracker = Tracker::new(Patience::default());
    tracker.push(&at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)));
    tracker.push(&at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)));
    assert_eq!(tracker.poll(2_900 * MS), []);
    tracker.push(&socket(2_950, SocketEvent::AcceptedAgain, ends()));
    assert_eq!(tracker.poll(3_100 * MS)[0].outcome, Outcome::AnswerLost);
}

#[test]
fn an_answer_that_left_is_waited_for_until_the_client_goes_on() {
    let answered = || {
        let mut tracker = Tracker::new(Patience::default());
        tracker.push(&at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)));
        tracker.push(&at(2, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)));
        tracker.push(&at(3, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, 9)));
        assert_eq!(tracker.poll(900 * MS), []);
        tracker
    };
    let mut tracker = answered();
    tracker.push(&at(901, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x10, 10, 777_001)));
    assert_eq!(tracker.poll(1_000 * MS)[0].outcome, Outcome::Answered);
    let mut tracker = answered();
    tracker.push(&at(1_000, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)));
    assert_eq!(tracker.poll(3_100 * MS)[0].outcome, Outcome::AnswerLost);
}

#[test]
fn headers_around_a_packet_are_kept() {
    let raw = probe_common::Packet {
        version: 4,
        proto: 6,
        vlan: 100,
        tunnel: probe_common::Tunnel::Geneve as u8,
        tunnel_id: 1234,
        ..probe_common::Packet::default()
    };
    let packet = Packet::from_record(&raw).unwrap();
    assert_eq!((packet.vlan, packet.tunnel), (100, Some(Tunnel { kind: TunnelKind::Geneve, id: 1234 })));
    let inner = Packet { vlan: 100, tunnel: packet.tunnel, ..syn(NAT_IP, POD, 9) };
    let path = one_path(&[at(0, HookPoint::UplinkIn, inner), at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9))]);
    assert_eq!((path.hops[0].vlan, path.hops[0].tunnel), (100, packet.tunnel));
    assert_eq!((path.hops[1].vlan, path.hops[1].tunnel), (0, None));
}
