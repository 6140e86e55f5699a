//! Made-up sightings in the shapes that matter, and what path they must give in whatever order they arrive.

mod buffers;
mod confirm;
mod evidence;
mod outcomes;
mod together;

use probe_common::{EVENT_META_MAX, EVENT_PACKET_MAX, EventRecord, PacketRecord, RecordHeader};

use super::fragments::Fragments;
use super::*;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::events::{
    CaptureHeader, DebugCapture, DropNotify, Notification, NotifyFlags, PolicyVerdictNotify, Stream,
};
use crate::cilium::identity::Identity;
use crate::cilium::policy::MatchType;
use crate::cilium::{Direction, EndpointId};
use crate::tuple::{Protocol, Tuple};
use crate::world::PolicyRef;

const NAT_IP: &str = "10.224.0.8:40000";
const FRONTEND: &str = "10.224.0.7:80";
const NODE: &str = "10.224.0.4:51000";
const POD: &str = "10.0.0.143:80";
const UPLINK: u32 = 2;
const VETH: u32 = 7;
const CILIUM_HOST: u32 = 4;
const MS: u64 = 1_000_000;

/// The flows of these sightings, of which later fragments need their first one.
fn assemble(sightings: &[Sighting]) -> Vec<Path> {
    let mut fragments = Fragments::default();
    for sighting in sightings {
        fragments.learn(sighting);
    }
    let completed: Vec<_> = sightings.iter().filter_map(|seen| fragments.complete(seen)).collect();
    flow::assemble(completed.iter().map(AsRef::as_ref))
}

fn tuple(from: &str, to: &str, protocol: Protocol) -> Tuple {
    let end = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
    let (from, to) = (end(from), end(to));
    Tuple { saddr: from.ip(), daddr: to.ip(), sport: from.port(), dport: to.port(), protocol }
}

fn packet(tuple: Tuple) -> Packet {
    Packet {
        tuple,
        flags: TcpFlags::default(),
        seq: 0,
        ack: 0,
        payload_len: 0,
        payload_hash: 0,
        ip_id: 0,
        ttl: 64,
        fragment: Fragment::Whole,
        vlan: 0,
        tunnel: None,
        icmp: None,
        quoted: None,
    }
}

fn tcp(from: &str, to: &str, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet { flags: TcpFlags(flags), seq, ack, ..packet(tuple(from, to, Protocol::TCP)) }
}

fn syn(from: &str, to: &str, isn: u32) -> Packet {
    tcp(from, to, 0x02, isn, 0)
}

fn syn_ack(from: &str, to: &str, isn: u32) -> Packet {
    tcp(from, to, 0x12, 777_000, isn.wrapping_add(1))
}

fn udp(from: &str, to: &str, ip_id: u16, payload_hash: u32) -> Packet {
    Packet { ip_id, payload_hash, payload_len: 20, ..packet(tuple(from, to, Protocol::UDP)) }
}

fn at(ms: u64, point: HookPoint, packet: Packet) -> Sighting {
    let ifindex = match point {
        HookPoint::UplinkIn | HookPoint::UplinkOut => UPLINK,
        HookPoint::PodIn | HookPoint::PodOut => VETH,
        HookPoint::HostIn | HookPoint::HostOut => CILIUM_HOST,
        _ => 0,
    };
    let place = Place { point, ifindex, namespace: Namespace::Node };
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Hook { place, mark: 0, buffer: 0 } }
}

fn freed(ms: u64, reason: u32, packet: Packet) -> Sighting {
    let seen = Seen::KernelDrop { reason, location: 1, ifindex: VETH, netns: 1, buffer: 0 };
    Sighting { ktime_ns: ms * MS, packet, seen }
}

fn header() -> CaptureHeader {
    CaptureHeader { source: EndpointId(413), hash: 1, len_orig: 74, len_cap: 74, ext_version: 0 }
}

fn verdict(ms: u64, verdict: i32, packet: Packet) -> Sighting {
    let notification = Notification::PolicyVerdict(PolicyVerdictNotify {
        header: header(),
        remote_label: Identity(2),
        verdict,
        dst_port: packet.tuple.dport,
        proto: packet.tuple.protocol.0,
        direction: Direction::Ingress,
        ipv6: false,
        match_type: MatchType::from_number(0).unwrap(),
        audited: false,
        l3_device: false,
        auth_type: 0,
        cookie: None,
    });
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Cilium { notification } }
}

fn dropped(ms: u64, reason: u8, packet: Packet) -> Sighting {
    let notification = Notification::Drop(DropNotify {
        header: header(),
        reason: DropReason(reason),
        src_label: Identity(2),
        dst_label: Identity(1234),
        dst_id: 413,
        line: 1,
        file: 2,
        ext_error: 0,
        ifindex: UPLINK,
        flags: None,
        ip_trace_id: None,
    });
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Cilium { notification } }
}

/// Assembles in several orders, which must all give the same, and wants exactly one path.
#[track_caller]
fn one_path(sightings: &[Sighting]) -> Path {
    let mut paths = paths(sightings);
    assert_eq!(paths.len(), 1, "{paths:#?}");
    paths.remove(0)
}

#[track_caller]
fn paths(sightings: &[Sighting]) -> Vec<Path> {
    let expected = assemble(sightings);
    let mut shuffled = sightings.to_vec();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..50 {
        for index in (1..shuffled.len()).rev() {
            // xorshift64: any permutation will do.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            shuffled.swap(index, (random % (index as u64 + 1)) as usize);
        }
        assert_eq!(assemble(&shuffled), expected, "the order of arrival changed the path");
    }
    expected
}

fn points(hops: &[Hop]) -> Vec<HookPoint> {
    hops.iter().map(|hop| hop.place.point).collect()
}

/// The endpoint-routes shape: DNAT at the uplink, policy at the pod's veth.
fn allowed_through_dnat(isn: u32, ms: u64) -> Vec<Sighting> {
    vec![
        at(ms, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, isn)),
        at(ms + 1, HookPoint::PodIn, syn(NAT_IP, POD, isn)),
        verdict(ms + 9, 0, syn(NAT_IP, POD, isn)),
        at(ms + 2, HookPoint::PodOut, syn_ack(POD, NAT_IP, isn)),
        at(ms + 3, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, isn)),
        at(ms + 4, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x10, isn + 1, 777_001)),
        at(ms + 5, HookPoint::PodIn, tcp(NAT_IP, POD, 0x10, isn + 1, 777_001)),
    ]
}

#[test]
fn a_flow_through_dnat_is_one_path() {
    let path = one_path(&allowed_through_dnat(1000, 0));
    assert_eq!(path.tuple, tuple(NAT_IP, FRONTEND, Protocol::TCP));
    assert_eq!(points(&path.hops), [HookPoint::UplinkIn, HookPoint::PodIn]);
    assert_eq!(points(&path.replies), [HookPoint::PodOut, HookPoint::UplinkOut]);
    assert_eq!(path.rewrites.len(), 1);
    assert!(path.rewrites[0].is_dnat() && !path.rewrites[0].is_snat());
    assert_eq!(path.final_tuple(), tuple(NAT_IP, POD, Protocol::TCP));
    assert_eq!(path.outcome, Outcome::Answered);
    assert_eq!(path.answered_ns, Some(2 * MS));
    assert!(path.is_answer_complete());
    assert_eq!(path.cilium.len(), 1);
    assert_eq!(path.retransmissions, 0);
}

#[test]
fn kube_proxy_rewrites_both_ends() {
    // Masquerading with --random-fully: nothing but the sequence number stays.
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 5)),
        at(1, HookPoint::HostOut, syn(NODE, POD, 5)),
        at(2, HookPoint::PodIn, syn(NODE, POD, 5)),
        at(3, HookPoint::PodOut, syn_ack(POD, NODE, 5)),
        at(4, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, 5)),
    ]);
    assert_eq!(path.rewrites.len(), 1);
    assert!(path.rewrites[0].is_dnat() && path.rewrites[0].is_snat());
    assert_eq!(path.final_tuple(), tuple(NODE, POD, Protocol::TCP));
    assert_eq!(path.outcome, Outcome::Answered);
}

#[test]
fn a_policy_drop_with_retransmissions() {
    let mut sightings = Vec::new();
    for ms in [0, 1000, 3000] {
        sightings.push(at(ms, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)));
        sightings.push(at(ms + 1, HookPoint::PodIn, syn(NAT_IP, POD, 9)));
        sightings.push(verdict(ms + 2, -133, syn(NAT_IP, POD, 9)));
        sightings.push(dropped(ms + 2, 133, syn(NAT_IP, POD, 9)));
        sightings.push(freed(ms + 2, 40, syn(NAT_IP, POD, 9)));
    }
    let path = one_path(&sightings);
    assert_eq!(
        path.outcome,
        Outcome::DroppedByCilium { reason: DropReason::POLICY, established: false, reply: false }
    );
    assert_eq!(path.retransmissions, 2);
    assert_eq!(path.cilium.iter().map(|event| event.count).collect::<Vec<_>>(), [3, 3]);
    assert_eq!((path.drops.len(), path.drops[0].count, path.drops[0].reply), (1, 3, false));
}

#[test]
fn host_routing_shows_the_policy_drop_on_the_uplink_only() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        verdict(30, -181, syn(NAT_IP, POD, 9)),
    ]);
    assert_eq!(
        path.outcome,
        Outcome::DroppedByCilium { reason: DropReason::POLICY_DENY, established: false, reply: false }
    );
    assert_eq!(path.final_tuple(), tuple(NAT_IP, POD, Protocol::TCP));
}

#[test]
fn host_routing_without_a_packet_at_the_pod_is_no_silence() {
    let path =
        one_path(&[at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)), verdict(3, 0, syn(NAT_IP, POD, 9))]);
    assert_eq!(path.outcome, Outcome::NoAnswer);
    let silent = one_path(&[at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9))]);
    assert_eq!(silent.outcome, Outcome::Silent);
}

#[test]
fn a_reset_from_the_pod_is_a_refusal() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
        at(1, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
        freed(1, 3, syn(NAT_IP, POD, 9)),
        at(2, HookPoint::PodOut, tcp(POD, NAT_IP, 0x14, 0, 10)),
        at(3, HookPoint::UplinkOut, tcp(FRONTEND, NAT_IP, 0x14, 0, 10)),
    ]);
    let from = "10.0.0.143".parse().unwrap();
    assert_eq!(path.outcome, Outcome::Refused { refusal: Refusal::Reset, from });
    assert_eq!(points(&path.replies), [HookPoint::PodOut, HookPoint::UplinkOut]);
    assert!(path.is_answer_complete());
}

#[test]
fn the_kernels_drop_counts_when_nothing_else_tells() {
    let path =
        one_path(&[at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)), freed(1, 5, syn(NAT_IP, POD, 9))]);
    assert_eq!(path.outcome, Outcome::DroppedByKernel { reason: 5, reply: false });
}

#[test]
fn a_lost_record_leaves_the_rest() {
    let whole = allowed_through_dnat(1000, 0);
    for missing in 0..whole.len() {
        let mut sightings = whole.clone();
        sightings.remove(missing);
        let path = one_path(&sightings);
        assert_eq!(path.outcome, Outcome::Answered, "without {:?}", whole[missing]);
        assert_eq!(path.final_tuple(), tuple(NAT_IP, POD, Protocol::TCP));
    }
}

#[test]
fn the_same_ports_again_are_another_flow() {
    let mut sightings = allowed_through_dnat(1000, 0);
    sightings.extend([
        at(60_000, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 88_000)),
        at(60_001, HookPoint::PodIn, syn(NAT_IP, POD, 88_000)),
        dropped(60_002, 133, syn(NAT_IP, POD, 88_000)),
    ]);
    let paths = paths(&sightings);
    assert_eq!(paths.len(), 2, "{paths:#?}");
    assert_eq!(paths[0].outcome, Outcome::Answered);
    assert!(matches!(paths[1].outcome, Outcome::DroppedByCilium { .. }));
    assert_eq!(paths[1].retransmissions, 0);
}

#[test]
fn flows_at_once_do_not_mix() {
    let mut sightings = allowed_through_dnat(1000, 0);
    let other = "10.224.0.9:40000";
    sightings.extend([
        at(0, HookPoint::UplinkIn, syn(other, FRONTEND, 2000)),
        at(1, HookPoint::PodIn, syn(other, POD, 2000)),
        dropped(2, 133, syn(other, POD, 2000)),
    ]);
    assert_eq!(paths(&sightings).len(), 2);
}

#[test]
fn an_open_connection_that_is_cut() {
    let mut sightings = allowed_through_dnat(1000, 0);
    sightings.push(dropped(5000, 133, tcp(NAT_IP, POD, 0x18, 1001, 777_001)));
    let cut = one_path(&sightings).outcome;
    assert_eq!(cut, Outcome::DroppedByCilium { reason: DropReason::POLICY, established: true, reply: false });
    // A stray packet after the end is dropped for another reason: that cuts nothing.
    sightings.pop();
    sightings.push(dropped(5000, 163, tcp(NAT_IP, POD, 0x18, 1001, 777_001)));
    assert_eq!(one_path(&sightings).outcome, Outcome::Answered);
}

#[test]
fn datagrams_are_known_again_by_identification_or_by_the_end_that_stays() {
    let dns = "10.0.0.143:53";
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, udp(NAT_IP, FRONTEND, 71, 0xabc)),
        at(1, HookPoint::PodIn, udp(NODE, dns, 71, 0xabc)),
        at(2, HookPoint::PodOut, udp(dns, NODE, 99, 0xdef)),
        at(3, HookPoint::UplinkOut, udp(FRONTEND, NAT_IP, 99, 0xdef)),
    ]);
    assert_eq!(path.outcome, Outcome::Answered);
    assert_eq!(path.rewrites.len(), 1);
    // No identification (DF): the source that stays links them, and two clients with one payload are two flows.
    let other = "10.224.0.9:40000";
    let two = paths(&[
        at(0, HookPoint::UplinkIn, udp(NAT_IP, FRONTEND, 0, 0xabc)),
        at(0, HookPoint::UplinkIn, udp(other, FRONTEND, 0, 0xabc)),
        at(1, HookPoint::PodIn, udp(NAT_IP, dns, 0, 0xabc)),
        at(1, HookPoint::PodIn, udp(other, dns, 0, 0xabc)),
    ]);
    assert_eq!(two.len(), 2, "{two:#?}");
    assert!(two.iter().all(|path| path.outcome == Outcome::NoAnswer && path.rewrites.len() == 1));
}

#[test]
fn an_icmp_error_is_the_answer_to_what_it_quotes() {
    let error = |from: &str, to: &str, daddr: &str| Packet {
        icmp: Some(Icmp { icmp_type: 3, code: 3, id: 0, seq: 0 }),
        quoted: Some(Quoted {
            daddr: daddr.parse().unwrap(),
            sport: 40000,
            dport: 80,
            protocol: Protocol::UDP,
        }),
        ..packet(Tuple { sport: 0, dport: 0, ..tuple(from, to, Protocol::ICMP) })
    };
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, udp(NAT_IP, POD, 71, 1)),
        at(1, HookPoint::PodIn, udp(NAT_IP, POD, 71, 1)),
        at(2, HookPoint::PodOut, error(POD, NAT_IP, "10.0.0.143")),
        at(3, HookPoint::UplinkOut, error(POD, NAT_IP, "10.0.0.143")),
    ]);
    let from = "10.0.0.143".parse().unwrap();
    assert_eq!(path.outcome, Outcome::Refused { refusal: Refusal::Icmp { icmp_type: 3, code: 3 }, from });
    assert!(path.is_answer_complete());
    assert_eq!(path.rewrites, []);
}

#[test]
fn echoes_pair_by_their_identifier() {
    let echo = |from: &str, to: &str, icmp_type: u8, id: u16| Packet {
        icmp: Some(Icmp { icmp_type, code: 0, id, seq: 1 }),
        payload_len: 56,
        payload_hash: u32::from(id),
        ..packet(Tuple { sport: 0, dport: 0, ..tuple(from, to, Protocol::ICMP) })
    };
    let paths = paths(&[
        at(0, HookPoint::UplinkIn, echo(NAT_IP, POD, 8, 1)),
        at(1, HookPoint::PodIn, echo(NAT_IP, POD, 8, 1)),
        at(2, HookPoint::PodOut, echo(POD, NAT_IP, 0, 1)),
        at(5, HookPoint::UplinkIn, echo(NAT_IP, POD, 8, 2)),
    ]);
    assert_eq!(paths.len(), 2, "{paths:#?}");
    assert_eq!((paths[0].outcome, paths[1].outcome), (Outcome::Answered, Outcome::Silent));
}

#[test]
fn a_captured_frame_gives_the_packet_that_our_programs_see() {
    let mut frame = vec![0u8; 12];
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 63, 6, 0, 0, 10, 224, 0, 8, 10, 0, 0, 143]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let packet = Packet::from_ethernet(&frame).unwrap();
    assert_eq!(packet, Packet { ip_id: 0x1234, ttl: 63, ..syn(NAT_IP, POD, 9) });
    for cut in 0..frame.len() {
        // Never panics, and a cut layer 4 is no layer 4.
        let short = Packet::from_ethernet(&frame[..cut]);
        assert_eq!(short.is_some(), cut >= 34, "{cut} bytes");
    }
}

/// As our probe keeps it: the notification and the packet apart, with the size that Cilium's program gave.
fn event(notification: Notification, packet: &[u8]) -> EventRecord {
    let meta = notification.encode();
    let mut record = EventRecord {
        header: RecordHeader { ktime_ns: MS, ..RecordHeader::default() },
        map_id: 1,
        meta_size: meta.len() as u32,
        cap_len: packet.len() as u32,
        meta_len: meta.len() as u32,
        packet_len: packet.len() as u32,
        skb_len: 74,
        meta: [0; EVENT_META_MAX],
        packet: [0; EVENT_PACKET_MAX],
    };
    record.meta[..meta.len()].copy_from_slice(&meta);
    record.packet[..packet.len()].copy_from_slice(packet);
    record
}

#[test]
fn a_notification_of_a_device_without_layer_2_has_its_packet_at_once() {
    let packet = [
        [0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 63, 6, 0, 0, 10, 224, 0, 8, 10, 0, 0, 143],
        [0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0],
    ]
    .concat();
    let Seen::Cilium { notification } = dropped(1, 133, syn(NAT_IP, POD, 9)).seen else { unreachable!() };
    let Notification::Drop(drop) = notification else { unreachable!() };
    let drop = DropNotify { header: CaptureHeader { len_cap: 40, ..drop.header }, ..drop };
    let on_l3 = Notification::Drop(DropNotify { flags: Some(NotifyFlags(2)), ..drop });
    let expected = Sighting {
        ktime_ns: MS,
        packet: Packet { ip_id: 0x1234, ttl: 63, ..syn(NAT_IP, POD, 9) },
        seen: Seen::Cilium { notification: on_l3 },
    };
    assert_eq!(Sighting::from_event(&event(on_l3, &packet)), Ok(Some(expected.clone())));
    let raw = [on_l3.encode(), packet.clone()].concat();
    assert_eq!(Sighting::from_stream(MS, &mut Stream::default(), &raw), Ok(Some(expected)));
    // The same bytes are no frame.
    let on_l2 = Notification::Drop(DropNotify { flags: Some(NotifyFlags(0)), ..drop });
    assert_eq!(Sighting::from_event(&event(on_l2, &packet)), Ok(None));
    for cut in 0..packet.len() {
        assert_eq!(Packet::from_network(&packet[..cut]).is_some(), cut >= 20, "{cut} bytes");
    }
}

#[test]
fn a_size_that_no_known_layout_has_is_refused() {
    let Seen::Cilium { notification } = dropped(1, 133, syn(NAT_IP, POD, 9)).seen else { unreachable!() };
    let mut record = event(notification, &[]);
    record.meta_size += 4;
    let error = Sighting::from_event(&record).unwrap_err().to_string();
    assert!(error.starts_with("no known layout of `drop_notify`: found 40 bytes, 36 of which"), "{error}");
    // What could not be read of the kernel's memory.
    record.meta_len = 0;
    assert!(Sighting::from_event(&record).is_err());
}

/// It says what the datapath thought, not where the packet went.
#[test]
fn a_debug_capture_is_no_sighting() {
    let mut frame = [0u8; 54];
    (frame[12], frame[14]) = (0x08, 0x45);
    assert!(Packet::from_ethernet(&frame).is_some());
    let capture = DebugCapture { header: header(), subtype: 4, args: [0; 2] };
    assert_eq!(Sighting::from_event(&event(Notification::DebugCapture(capture), &frame)), Ok(None));
}

mod tracking {
    use super::*;

    fn tracker(sightings: &[Sighting]) -> Tracker {
        let mut tracker = Tracker::new(Patience::default());
        for sighting in sightings {
            tracker.push(sighting);
        }
        tracker
    }

    #[test]
    fn an_answered_flow_is_given_once_and_soon() {
        let mut tracker = tracker(&allowed_through_dnat(1000, 0));
        assert_eq!(tracker.poll(10 * MS), []);
        assert_eq!(tracker.poll(300 * MS).len(), 1);
        tracker.push(&at(400, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x18, 1001, 777_001)));
        tracker.push(&at(401, HookPoint::PodIn, tcp(NAT_IP, POD, 0x18, 1001, 777_001)));
        assert_eq!(tracker.poll(10_000 * MS), []);
        assert_eq!(tracker.finish(), []);
        assert_eq!(tracker.later_packets(), 2);
    }

    /// Every kind of packet that a record may be of, with the ends of an open connection.
    fn records() -> impl Iterator<Item = PacketRecord> {
        use probe_common::{FRAGMENT, FRAGMENT_LATER};
        let ends =
            [([10, 224, 0, 8], 40_000, [10, 0, 0, 143], 80), ([10, 0, 0, 143], 80, [10, 224, 0, 8], 40_000)];
        let fragments = [0, FRAGMENT, FRAGMENT | FRAGMENT_LATER];
        let kinds = [(4, 6), (4, 17), (4, 1), (6, 6), (6, 58), (0, 6)];
        let all = ends.into_iter().flat_map(move |end| kinds.map(|kind| (end, kind)));
        let all = all.flat_map(move |(end, kind)| fragments.map(|fragment| (end, kind, fragment)));
        all.flat_map(|(end, kind, fragment)| (0..=255).map(move |flags| (end, kind, fragment, flags)))
            .flat_map(|((src, src_port, dst, dst_port), (version, proto), fragment, tcp_flags)| {
                [0, 6].map(|quoted_proto| {
                    let mut packet = probe_common::Packet {
                        version,
                        proto,
                        fragment,
                        tcp_flags,
                        src_port,
                        dst_port,
                        quoted_proto,
                        ip_id: 7,
                        ..Default::default()
                    };
                    packet.src[..4].copy_from_slice(&src);
                    packet.dst[..4].copy_from_slice(&dst);
                    let header = RecordHeader { ktime_ns: 60_000 * MS, ..RecordHeader::default() };
                    PacketRecord { header, buffer: 0, skb_len: 0, mark: 0, hash: 0, netns: 0, packet }
                })
            })
    }

    #[test]
    fn a_record_of_a_decided_flow_tells_what_its_sighting_does() {
        let place = Place { point: HookPoint::PodIn, ifindex: VETH, namespace: Namespace::Node };
        let decided = || {
            let mut tracker = tracker(&[
                at(0, HookPoint::PodIn, syn(NAT_IP, POD, 9)),
                at(1, HookPoint::PodOut, syn_ack(POD, NAT_IP, 9)),
                at(2, HookPoint::PodIn, tcp(NAT_IP, POD, 0x10, 10, 777_001)),
            ]);
            assert_eq!(tracker.poll(4_000 * MS).len(), 1);
            tracker
        };
        // What is told of it, and what of a reset long after.
        let told = |mut tracker: Tracker| {
            let counts = (tracker.later_packets(), tracker.later_retransmissions(), tracker.overflowed());
            tracker.push(&at(100_000, HookPoint::PodIn, tcp(NAT_IP, POD, 0x04, 11, 0)));
            (counts, tracker.late_resets(u64::MAX), tracker.finish())
        };
        let mut short = 0;
        for record in records() {
            let (mut by_record, mut by_sighting) = (decided(), decided());
            by_record.push_packet(&record, place);
            if let Some(sighting) = Sighting::at(&record, place) {
                by_sighting.push(&sighting);
            }
            short += u32::from(decided().more_of_decided(&record).is_some());
            assert_eq!(told(by_record), told(by_sighting), "{record:?}");
        }
        // Whole TCP segments over IPv4 of either end, without SYN and RST.
        assert_eq!(short, 2 * 64);
    }

    #[test]
    fn where_many_are_under_way_a_flow_is_given_a_little_later() {
        let mut tracker = tracker(&allowed_through_dnat(1000, 100));
        for number in 1..=5_000 {
            let client = format!("10.224.0.9:{}", 5_000 + number);
            tracker.push(&at(0, HookPoint::UplinkIn, udp(&client, POD, number, 1)));
        }
        assert_eq!(tracker.poll(260 * MS), []);
        assert_eq!(tracker.poll(355 * MS), [], "it is not looked yet");
        assert_eq!(tracker.poll(360 * MS).len(), 1);
    }

    /// Requests and answers through DNAT: what is left out of a stream tells nothing but how long it went on.
    #[test]
    fn of_a_stream_of_datagrams_the_first_tell_all() {
        let request = |number: u16| {
            [(HookPoint::UplinkIn, FRONTEND), (HookPoint::PodIn, POD)]
                .map(|(point, to)| at(number.into(), point, udp(NAT_IP, to, number, 7)))
        };
        let answer = |number: u16| {
            [(HookPoint::PodOut, POD), (HookPoint::UplinkOut, FRONTEND)]
                .map(|(point, from)| at(number.into(), point, udp(from, NAT_IP, number, 8)))
        };
        for answers_from in [0, 150, 300, 2_000] {
            let mut all: Vec<_> = (1..=1_000).flat_map(request).collect();
            all.extend(
                (1_000..1_300).filter(|number| u32::from(number - 1_000) >= answers_from).flat_map(answer),
            );
            let of_all = assemble(&all).remove(0);
            let mut kept = tracker(&all);
            assert!(kept.pending() <= 4 * 64, "{}", kept.pending());
            let mut of_some = kept.finish().remove(0);
            assert!(kept.finish().is_empty());
            of_some.last_ns = of_all.last_ns;
            of_some.evidence.sightings = of_all.evidence.sightings;
            for (some, all) in of_some.legs.iter_mut().zip(&of_all.legs) {
                some.last_ns = all.last_ns;
            }
            assert_eq!(of_some, of_all, "answers from {answers_from}");
            // What comes on its ports later is a flow of its own, if that was decided.
            kept.push(&at(50_000, HookPoint::PodIn, udp(NAT_IP, POD, 9, 7)));
            assert_eq!((kept.finish().len(), kept.later_packets()), (0, 1));
        }
    }

    #[test]
    fn silence_is_decided_after_the_grace_time() {
        let mut tracker = tracker(&[at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9))]);
        assert_eq!(tracker.poll(2_900 * MS), []);
        assert_eq!(tracker.poll(3_000 * MS)[0].outcome, Outcome::Silent);
    }

    #[test]
    fn a_syn_that_comes_again_after_the_verdict_is_counted() {
        let mut tracker = tracker(&[
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
            dropped(1, 133, syn(NAT_IP, POD, 9)),
        ]);
        assert_eq!(tracker.poll(300 * MS).len(), 1);
        tracker.push(&at(1000, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)));
        tracker.push(&dropped(1001, 133, syn(NAT_IP, POD, 9)));
        assert_eq!(tracker.poll(9_000 * MS), []);
        assert_eq!(tracker.later_retransmissions(), 1);
    }

    #[test]
    fn ports_used_again_before_the_first_flow_is_decided() {
        let mut tracker = tracker(&[
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
            dropped(1, 133, syn(NAT_IP, POD, 9)),
            at(200, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 50_000)),
        ]);
        let first = tracker.poll(260 * MS);
        assert_eq!(first.len(), 1);
        assert!(matches!(first[0].outcome, Outcome::DroppedByCilium { .. }));
        tracker.push(&at(270, HookPoint::PodOut, syn_ack(POD, NAT_IP, 50_000)));
        tracker.push(&at(271, HookPoint::UplinkOut, syn_ack(FRONTEND, NAT_IP, 50_000)));
        tracker.push(&at(272, HookPoint::UplinkIn, tcp(NAT_IP, FRONTEND, 0x10, 50_001, 777_001)));
        let second = tracker.poll(600 * MS);
        assert_eq!((second.len(), second[0].outcome), (1, Outcome::Answered));
    }

    #[test]
    fn a_cut_connection_is_news() {
        let mut tracker = tracker(&allowed_through_dnat(1000, 0));
        assert_eq!(tracker.poll(300 * MS)[0].outcome, Outcome::Answered);
        tracker.push(&dropped(5000, 133, tcp(NAT_IP, POD, 0x18, 1001, 777_001)));
        let cut = tracker.poll(6_000 * MS);
        assert_eq!(cut.len(), 1);
        assert_eq!(cut[0].tuple, tuple(NAT_IP, POD, Protocol::TCP));
        tracker.push(&dropped(7000, 133, tcp(NAT_IP, POD, 0x18, 1001, 777_001)));
        assert_eq!(tracker.poll(20_000 * MS), []);
    }
}

/// As Hubble passes a verdict on: no TCP numbers.
fn hubble(ms: u64, sighting: &Sighting) -> Sighting {
    let notification = sighting.seen.notification().unwrap();
    let packet = Packet { seq: 0, ack: 0, ..sighting.packet };
    let policy = PolicyRef {
        kind: "NetworkPolicy".to_owned(),
        namespace: Some("default".to_owned()),
        name: "allow-pls-nat".to_owned(),
    };
    Sighting { ktime_ns: ms * MS, packet, seen: Seen::Hubble { notification, policies: [policy].into() } }
}

#[test]
fn hubble_s_word_belongs_to_the_connection_open_at_its_time() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, syn(NAT_IP, POD, 5)),
        hubble(1, &verdict(1, 0, syn(NAT_IP, POD, 5))),
        at(2, HookPoint::PodIn, syn(NAT_IP, POD, 5)),
        at(3, HookPoint::PodOut, syn_ack(POD, NAT_IP, 5)),
    ]);
    assert_eq!((path.outcome, path.hops.len(), path.retransmissions), (Outcome::Answered, 2, 0));
    let [event] = path.cilium.as_slice() else { panic!("{:?}", path.cilium) };
    assert_eq!(event.hubble.as_deref().unwrap()[0].name, "allow-pls-nat");
    // Another clock: said to be before the packet.
    let early = one_path(&[
        at(5, HookPoint::UplinkIn, syn(NAT_IP, POD, 5)),
        hubble(4, &dropped(4, 133, syn(NAT_IP, POD, 5))),
    ]);
    assert!(matches!(early.outcome, Outcome::DroppedByCilium { .. }), "{early:?}");
}

#[test]
fn hubble_s_word_behind_dnat_is_joined_by_the_sender_if_only_one_flow_fits() {
    let before = at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 5));
    let after = hubble(1, &dropped(1, 181, syn(NAT_IP, POD, 5)));
    let path = one_path(&[before.clone(), after.clone()]);
    assert_eq!(path.tuple, tuple(NAT_IP, FRONTEND, Protocol::TCP));
    assert_eq!(path.final_tuple(), tuple(NAT_IP, POD, Protocol::TCP));
    assert_eq!(
        path.outcome,
        Outcome::DroppedByCilium { reason: DropReason(181), established: false, reply: false }
    );
    let other = at(0, HookPoint::UplinkIn, syn(NAT_IP, "10.224.0.7:81", 6));
    let late = hubble(9_000, &dropped(1, 181, syn(NAT_IP, POD, 5)));
    assert_eq!(assemble(&[before.clone(), other, after]).len(), 3, "two flows fit");
    assert_eq!(assemble(&[before, late]).len(), 2, "too late");
}

#[test]
fn hubble_s_late_word_does_not_begin_a_flow() {
    let mut tracker = Tracker::new(Patience::default());
    tracker.push(&at(0, HookPoint::UplinkIn, syn(NAT_IP, POD, 5)));
    tracker.push(&at(1, HookPoint::UplinkOut, syn_ack(POD, NAT_IP, 5)));
    tracker.push(&at(2, HookPoint::UplinkIn, tcp(NAT_IP, POD, 0x10, 6, 777_001)));
    assert_eq!(tracker.poll(1_000 * MS).len(), 1);
    tracker.push(&hubble(1_500, &verdict(1_500, 0, syn(NAT_IP, POD, 5))));
    assert_eq!((tracker.finish().len(), tracker.later_packets()), (0, 1));
    assert_eq!(tracker.later_retransmissions(), 0);
}
