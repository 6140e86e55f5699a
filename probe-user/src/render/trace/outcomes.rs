//! What an operator reads of flows that failed in other ways than by policy.

use std::collections::BTreeSet;

use expect_test::expect;
use probe_model::path::{
    Fragment, HookPoint, Namespace, Packet, Place, Seen, Sighting, SocketEvent, Tunnel, TunnelKind, Watch,
};
use probe_model::proxy_protocol::SIGNATURE;

use super::tests::{FRONTEND, Given, POD, UPLINK, VETH, at, check_given, judged, packet, watch};
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
    check(
        &sightings,
        &watch(),
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: dropped at eth0 by netfilter (NETFILTER_DROP)
              cause    the kernel dropped it, not Cilium; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
              rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
              hops     eth0 in 0.000 ms
              answer   none seen; SYN sent again once
              verdict  by the packets seen
              entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
              policy   NetworkPolicy default/allow-pls-nat
              kernel   freed by the kernel at eth0, NETFILTER_DROP 2 times
        "#]],
    );
}

#[test]
fn another_tc_program_drops_it() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        freed(2, 5, 1, packet(CLIENT, FRONTEND, 0x02, 9, 0)),
    ];
    check(
        &sightings,
        &watch(),
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: dropped at eth0 by a tc program (TC_INGRESS)
              cause    another tc program dropped it, for Cilium notified of no drop; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
              hops     eth0 in 0.000 ms
              answer   none seen
              verdict  by the packets seen
              entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
              policy   NetworkPolicy default/allow-pls-nat
              kernel   freed by the kernel at eth0, TC_INGRESS
        "#]],
    );
}

#[test]
fn the_pod_drops_it() {
    let sightings = [
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        freed(31, 7, 2, packet(CLIENT, POD, 0x02, 9, 0)),
    ];
    check(
        &sightings,
        &watch(),
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: dropped in the pod by a listener whose queue of connections is full (TCP_LISTEN_OVERFLOW)
              cause    the kernel dropped it, not Cilium; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
              rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
              hops     eth0 in 0.000 > lxc1 to pod 0.020 ms
              answer   none seen
              verdict  by the packets seen
              entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
              policy   NetworkPolicy default/allow-pls-nat
              kernel   freed by the kernel in the pod, TCP_LISTEN_OVERFLOW
        "#]],
    );
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
    check(
        &sightings,
        &watch(),
        &expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, refused after 0.041 ms by 10.0.0.143 (a TCP reset, nobody listens)
          cause    10.0.0.143 refused it: nobody listens on that port there; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
          rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
          hops     eth0 in 0.000 > lxc1 to pod 0.020 ms
          answer   lxc1 from pod 0.041 > eth0 out 0.052 ms
          verdict  by the packets seen
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
    "#]],
    );
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
    check(
        &sightings,
        &watch,
        &expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: inconclusive: delivered, no answer; allowed by the maps
          cause    nothing that plsprobe knows of on this node stops it, and no answer was seen; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
          rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
          hops     eth0 in 0.000 > lxc1 to pod 0.020 > pod received 0.031 > pod delivered 0.032 ms
          answer   none seen; SYN sent again once
          gap      nothing after pod delivered; perhaps the application's queue of new connections is full
          verdict  by the maps alone, nothing observed decides
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
    "#]],
    );
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
    check(
        &sightings,
        &deaf,
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: inconclusive: answered after 0.041 ms, the answer lost; last seen at lxc1 from pod
              cause    it was let in and answered; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
              rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
              hops     eth0 in 0.000 > lxc1 to pod 0.020 ms
              answer   lxc1 from pod 0.041 ms; SYN-ACK sent again once
              gap      nothing of the answer after lxc1 from pod; perhaps a tc program behind ours at lxc1 dropped, redirected or kept it, or it left by another interface
              verdict  by the packets seen
              entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
              policy   NetworkPolicy default/allow-pls-nat
        "#]],
    );
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
    check(
        &sightings,
        &watch(),
        &expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, answered after 0.041 ms, the answer lost behind this node; last seen at eth0 out
          cause    it was let in and answered; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
          rewrite  DNAT 10.224.0.7:80 to 10.0.0.143:80
          hops     eth0 in 0.000 > lxc1 to pod 0.020 ms
          answer   lxc1 from pod 0.041 > eth0 out 0.052 ms; SYN sent again once; SYN-ACK sent again 2 times
          gap      nothing of the answer after eth0 out; perhaps eth0 did not send it, or it was lost behind this node
          verdict  by the packets seen
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
    "#]],
    );
}

#[test]
fn silence_where_little_is_watched() {
    let points: BTreeSet<_> = [(Namespace::Node, HookPoint::UplinkIn)].into();
    let blind = Watch { points, drops: false, cilium: false, lost_records: true };
    let events = EventSource::None("nothing tells".to_owned());
    let given = Given { recording: ALLOWED, events: &events, watch: &blind };
    check_given(
        &given,
        &[syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND)],
        &expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: inconclusive: seen at eth0 in, then silence; allowed by the maps
          cause    nothing that plsprobe knows of on this node stops it, and no answer was seen; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
          hops     eth0 in 0.000 ms
          answer   none seen
          gap      nothing after eth0 in; perhaps Cilium dropped it (its notifications are not read here), or a tc program behind ours at eth0 dropped, redirected or kept it, or it went on where no hook of ours is attached, or our own record of it was lost
          verdict  by the maps alone, nothing observed decides
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
    "#]],
    );
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
    check(
        &sightings,
        &watch(),
        &expect![[r#"
        10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, answered after 0.041 ms, connection open
          from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32); DNAT 10.224.0.7:80 to 10.0.0.143:80; eth0 in (VLAN 100, VXLAN 2) 0.000 > stack received 0.011 > stack forwarded 0.014 > lxc1 to pod 0.020 > pod received 0.031 > pod delivered 0.032 > lxc1 from pod 0.041 > eth0 out 0.052 ms
          why      NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80; cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far); by the packets seen
    "#]],
    );
}

/// The codes that scripts rely on.
#[test]
fn json_has_the_gap_and_its_candidates_by_code() {
    let given = Given { recording: ALLOWED, events: &EventSource::MonitorSocket, watch: &watch() };
    let json = |sightings: &[Sighting]| -> serde_json::Value {
        let (world, judgement, names) = judged(&given, sightings);
        let mut out = Vec::new();
        crate::render::trace_json::flow(&world, &judgement, &names, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    };
    let silent = json(&[syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND)]);
    assert_eq!(silent["schema"], "plsprobe.trace.flow/1");
    assert_eq!(silent["outcome"]["outcome"], "silent");
    assert_eq!(silent["gap"]["last"]["point"], "UplinkIn");
    assert_eq!(silent["gap"]["direction"], "forward");
    let candidates = silent["gap"]["candidates"].as_array().unwrap();
    let codes: Vec<_> = candidates.iter().map(|one| (&one["code"], &one["interface"])).collect();
    assert_eq!(
        codes,
        [(&"tc-program".into(), &"eth0".into()), (&"unwatched".into(), &serde_json::Value::Null)]
    );
    let dropped = json(&[
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        freed(12, 6, 1, packet(CLIENT, POD, 0x02, 9, 0)),
    ]);
    assert_eq!(dropped["outcome"]["outcome"], "dropped-by-kernel");
    assert_eq!(
        (&dropped["outcome"]["cause"], &dropped["gap"]),
        (&"netfilter".into(), &serde_json::Value::Null)
    );
    assert_eq!(dropped["kernel_drops"][0]["at"], "at eth0");
}

/// 10.221.1.4:51000, linkID 553665985, as Private Link sends it.
fn azure_header() -> Vec<u8> {
    let rest = [0x21, 0x11, 0, 20, 10, 221, 1, 4, 10, 224, 0, 7, 0xc7, 0x38, 0, 80];
    [&SIGNATURE[..], &rest, &[0xee, 0, 5, 1, 0xc1, 0x45, 0, 0x21]].concat()
}

/// A segment with these bytes at a hook, which keeps them.
fn carried(us: u64, point: HookPoint, ifindex: u32, packet: Packet, bytes: &[u8]) -> [Sighting; 2] {
    let seen = at(us, point, ifindex, Packet { payload_len: bytes.len() as u32, ..packet });
    let Seen::Hook { place, .. } = seen.seen else { unreachable!("made above") };
    let kept = Sighting { seen: Seen::Payload { place, bytes: bytes.into() }, ..seen.clone() };
    [seen, kept]
}

#[test]
fn a_header_in_two_segments_that_the_application_does_not_understand() {
    let header = azure_header();
    let mut sightings = vec![
        syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND),
        syn_at(20, HookPoint::PodIn, VETH, POD),
        at(41, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x12, 50, 10)),
        at(52, HookPoint::UplinkOut, UPLINK, packet(FRONTEND, CLIENT, 0x12, 50, 10)),
        at(60, HookPoint::UplinkIn, UPLINK, packet(CLIENT, FRONTEND, 0x10, 10, 51)),
    ];
    for (us, from, to) in [(100, 0, 20), (150, 20, header.len())] {
        let seq = 10 + from as u32;
        let bytes = &header[from..to];
        let (outside, inside) = (packet(CLIENT, FRONTEND, 0x18, seq, 51), packet(CLIENT, POD, 0x18, seq, 51));
        sightings.extend(carried(us, HookPoint::UplinkIn, UPLINK, outside, bytes));
        sightings.extend(carried(us + 11, HookPoint::PodIn, VETH, inside, bytes));
    }
    sightings.push(at(512, HookPoint::PodOut, VETH, packet(POD, CLIENT, 0x14, 51, 46)));
    check(
        &sightings,
        &watch(),
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: allowed, answered after 0.041 ms, then the pod's end reset the connection 0.412 ms after its first byte
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32); DNAT 10.224.0.7:80 to 10.0.0.143:80; eth0 in 0.000 > lxc1 to pod 0.020 > lxc1 from pod 0.041 > eth0 out 0.052 ms
              proxy    PROXY v2 header at eth0 in and lxc1 to pod; consumer 10.221.1.4:51000, linkID 553665985; split over 2 segments; the pod's end reset the connection 0.412 ms later
              why      NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80; cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far); by the packets seen
        "#]],
    );
}

#[test]
fn a_packet_that_is_routed_back() {
    let back = Packet { ttl: 63, ..packet(CLIENT, FRONTEND, 0x02, 9, 0) };
    check(
        &[syn_at(0, HookPoint::UplinkIn, UPLINK, FRONTEND), at(15, HookPoint::UplinkOut, UPLINK, back)],
        &watch(),
        &expect![[r#"
            10.224.0.8:40000 -> 10.224.0.7:80 TCP: inconclusive: seen at eth0 out, then silence; allowed by the maps
              cause    nothing that plsprobe knows of on this node stops it, and no answer was seen; NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
              from     PLS NAT IP 10.224.0.8, identity 16777218 (cidr:10.224.0.8/32)
              hops     eth0 in 0.000 > eth0 out 0.015 ms
              answer   none seen
              packets  the node sent it back to the network as it came, from eth0 in to eth0 out
              gap      nothing after eth0 out; perhaps a tc program behind ours at eth0 redirected or kept it, or it went on where no hook of ours is attached
              verdict  by the maps alone, nothing observed decides
              entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
              policy   NetworkPolicy default/allow-pls-nat
        "#]],
    );
}
