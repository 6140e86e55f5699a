//! What an operator reads of flows that failed in other ways than by policy.

use std::collections::BTreeSet;

use expect_test::expect;
use probe_model::path::{
    Fragment, HookPoint, Namespace, Packet, Place, Seen, Sighting, SocketEvent, Tunnel, TunnelKind, Watch,
};

use super::tests::{FRONTEND, Given, POD, UPLINK, VETH, at, check_given, packet, watch};
use crate::trace::judge::EventSource;

const CLIENT: &str = "10.224.0.8:40000";
/// The recording's pod admits the client.
const ALLOWED: &str = "cidr-pls8-80";

fn syn_at(us: u64, point: HookPoint, ifindex: u32, to: &str) -> Sighting {
    at(us, point, ifindex, packet(CLIENT, to, 0x02, 9, 0))
}

fn in_pod(us: u64, point: HookPoint, packet: Packet) -> Sighting {
    let place = Place { point, ifindex: 3, namespace: Namespace::Pod };
    Sighting { ktime_ns: us * 1000, packet, seen: Seen::Hook { place, mark: 0, buffer: 0 } }
}

fn socket(us: u64, event: SocketEvent, packet: Packet) -> Sighting {
    Sighting { ktime_ns: us * 1000, packet, seen: Seen::Socket { event, namespace: Namespace::Pod } }
}

fn freed(us: u64, reason: u32, netns: u32, packet: Packet) -> Sighting {
    let seen = Seen::KernelDrop { reason, location: 1, ifindex: UPLINK, netns, buffer: 0 };
    Sighting { ktime_ns: us * 1000, packet, seen }
}

#[track_caller]
fn check(sightings: &[Sighting], watch: &Watch, expected: &expect_test::Expect) {
    check_given(
        &Given { recording: ALLOWED, events: &EventSource::MonitorSocket, watch },
        sightings,
        expected,
    );
}

#[test]
fn netfilter_drops_it() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        freed(12, 6, 1, packet(CLIENT, POD, 0x02, 9, 0)),
        syn_at(1_000_000, HookPoint::UplinkIn, UPLINK, FRONTEND),
        freed(1_000_012, 6, 1, packet(CLIENT, POD, 0x02, 9, 0)),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}

#[test]
fn another_tc_program_drops_it() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        freed(2, 5, 1, packet(CLIENT, FRONTEND, 0x02, 9, 0)),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}

#[test]
fn the_pod_drops_it() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        freed(31, 7, 2, packet(CLIENT, POD, 0x02, 9, 0)),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}

#[test]
fn nobody_listens_in_the_pod() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        socket(30, SocketEvent::Reset { had_socket: false }, packet(CLIENT, POD, 0x02, 9, 0)),
        at(41, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x14, 0, 10)),
        at(52, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, CLIENT, 0x14, 0, 10)),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}

#[test]
fn the_pod_does_not_answer() {
    let mut watch = watch();
    let inside = [HookPoint::IpReceive, HookPoint::IpDeliver];
    watch.points.extend(inside.map(|point| (Namespace::Pod, point)));
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        in_pod(31, HookPoint::IpReceive, packet(CLIENT, POD, 0x02, 9, 0)),
        in_pod(32, HookPoint::IpDeliver, packet(CLIENT, POD, 0x02, 9, 0)),
        syn_at(1_000_000, HookPoint::UplinkIn, UPLINK, FRONTEND),
    ];
    check(&sightings, &watch, &expect![[""]]);
}

#[test]
fn the_answer_is_lost_on_the_node() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        at(41, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x12, 50, 10)),
        at(1_000_041, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x12, 50, 10)),
    ];
    let deaf = Watch { drops: false, ..watch() };
    check(&sightings, &deaf, &expect![[""]]);
}

#[test]
fn the_answer_is_lost_behind_the_node() {
    let ends = Packet { ttl: 0, ..packet(POD, CLIENT, 0, 0, 0) };
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        at(41, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x12, 50, 10)),
        at(52, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, CLIENT, 0x12, 50, 10)),
        socket(1_000_040, SocketEvent::AcceptedAgain, ends),
        socket(3_000_040, SocketEvent::AcceptedAgain, ends),
        syn_at(1_000_000, HookPoint::UplinkIn, UPLINK, FRONTEND),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}

#[test]
fn silence_where_little_is_watched() {
    let points: BTreeSet<_> = [(Namespace::Node, HookPoint::UplinkIn)].into();
    let blind = Watch { points, drops: false, cilium: false, lost_records: true };
    let events = EventSource::None("nothing tells".to_owned());
    let given = Given { recording: ALLOWED, events: &events, watch: &blind };
    check_given(&given, &[syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND)], &expect![[""]]);
}

#[test]
fn every_hop_of_an_open_connection() {
    let tunnel = Some(Tunnel { kind: TunnelKind::Vxlan, id: 2 });
    let first = Packet { vlan: 100, tunnel, ..packet(CLIENT, FRONTEND, 0x02, 9, 0) };
    let ends = Packet { ttl: 0, ..packet(POD, CLIENT, 0, 0, 0) };
    assert_eq!(first.fragment, Fragment::Whole);
    let sightings = [
        at(0, HookPoint::UplinkIn, UPLINK, first),
        at(11, HookPoint::IpReceive, UPLINK, packet(CLIENT, POD, 0x02, 9, 0)),
        at(14, HookPoint::IpForward, UPLINK, packet(CLIENT, POD, 0x02, 9, 0)),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        in_pod(31, HookPoint::IpReceive, packet(CLIENT, POD, 0x02, 9, 0)),
        in_pod(32, HookPoint::IpDeliver, packet(CLIENT, POD, 0x02, 9, 0)),
        at(41, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x12, 50, 10)),
        at(52, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, CLIENT, 0x12, 50, 10)),
        socket(400, SocketEvent::Established, ends),
    ];
    check(&sightings, &watch(), &expect![[""]]);
}
