//! Probes, consumers, backends, and what a pod could not reach.

use super::evidence::{azure, carried};
use super::*;
use crate::path::probe::{AZURE_PROBE_V6, Conclusion, ProbeAnswer, Probes, THRESHOLD, is_probe_source};
use crate::path::proxy::{Consumer, ProxyFault, consumer, fault, observed};
use crate::path::together::{Accepted, CONSUMERS_MAX, EgressDrop, Flows, Together};

const PROBE: &str = "168.63.129.16:60000";
const NODE_PORT: &str = "10.224.0.4:32673";

/// A probe's connection, opened at this time.
fn probe(ms: u64, more: Vec<Sighting>) -> Path {
    let isn = 500;
    let mut sightings = vec![
        at(ms, HookPoint::UplinkIn, syn(PROBE, NODE_PORT, isn)),
        at(ms, HookPoint::PodIn, syn(PROBE, POD, isn)),
        at(ms + 1, HookPoint::PodOut, syn_ack(POD, PROBE, isn)),
        at(ms + 1, HookPoint::UplinkOut, syn_ack(NODE_PORT, PROBE, isn)),
        at(ms + 2, HookPoint::UplinkIn, tcp(PROBE, NODE_PORT, 0x10, isn + 1, 777_001)),
    ];
    sightings.extend(more);
    one_path(&sightings)
}

fn dropped_probe(ms: u64) -> Path {
    one_path(&[
        at(ms, HookPoint::UplinkIn, syn(PROBE, NODE_PORT, 500)),
        dropped(ms, 133, syn(PROBE, POD, 500)),
    ])
}

/// A segment of the probe's, with these bytes.
fn asks(ms: u64, bytes: &[u8]) -> Vec<Sighting> {
    let packet = Packet { payload_len: bytes.len() as u32, ..tcp(PROBE, NODE_PORT, 0x18, 501, 777_001) };
    carried(ms, HookPoint::UplinkIn, packet, bytes).to_vec()
}

fn answers(ms: u64, bytes: &[u8]) -> Vec<Sighting> {
    let packet = Packet { payload_len: bytes.len() as u32, ..tcp(POD, PROBE, 0x18, 777_001, 600) };
    carried(ms, HookPoint::PodOut, packet, bytes).to_vec()
}

#[test]
fn probes_that_begin_to_fail() {
    let mut probes = Probes::default();
    let mut told = Vec::new();
    let mut take = |path: Path| {
        let line = probes.take(&path).cloned();
        told.push(line.map(|line| (line.answer, line.conclusion(THRESHOLD), line.seen)));
    };
    take(probe(0, vec![]));
    take(probe(5_000, vec![]));
    take(dropped_probe(10_000));
    take(dropped_probe(15_010));
    take(probe(20_000, vec![]));
    let expected = [
        Some((ProbeAnswer::Accepted, Conclusion::Up, 1)),
        None,
        Some((ProbeAnswer::Dropped, Conclusion::Failing, 3)),
        // Nothing new but for what it leads to.
        None,
        Some((ProbeAnswer::Accepted, Conclusion::Up, 5)),
    ];
    assert_eq!(told, expected);
    let line = probes.lines().next().unwrap();
    assert_eq!((line.to, line.last_to), (NODE_PORT.parse().unwrap(), POD.parse().unwrap()));
    assert_eq!((line.interval_ns(), line.last_ns), (Some(5_000 * MS), 20_000 * MS));
    let mut failing = Probes::default();
    for ms in [0, 5_000] {
        failing.take(&dropped_probe(ms));
    }
    let line = failing.lines().next().unwrap();
    assert_eq!((line.conclusion(THRESHOLD), line.conclusion(3)), (Conclusion::Down, Conclusion::Failing));
}

#[test]
fn what_a_probe_asks_and_gets() {
    let line = |path: Path| {
        let mut probes = Probes::default();
        let line = probes.take(&path).unwrap();
        (line.answer, line.answer.is_healthy(), line.with_header)
    };
    let get = b"GET /healthz HTTP/1.1\r\n";
    let with_header = [&azure()[..], get].concat();
    let ok = answers(5, b"HTTP/1.1 200 OK\r\n");
    let bad = answers(5, b"HTTP/1.1 404 Not Found\r\n");
    let reset = vec![at(5, HookPoint::PodOut, tcp(POD, PROBE, 0x14, 777_001, 600))];
    for (more, expected) in [
        (vec![], (ProbeAnswer::Accepted, true, None)),
        ([asks(3, get), ok.clone()].concat(), (ProbeAnswer::Status(200), true, Some(false))),
        ([asks(3, get), bad].concat(), (ProbeAnswer::Status(404), false, Some(false))),
        (asks(3, get), (ProbeAnswer::Unanswered, false, Some(false))),
        ([asks(3, &with_header), ok].concat(), (ProbeAnswer::Status(200), true, Some(true))),
        ([asks(3, &azure()), reset].concat(), (ProbeAnswer::Reset, false, Some(true))),
        // A TCP probe asks for nothing behind its header.
        (asks(3, &azure()), (ProbeAnswer::Accepted, true, Some(true))),
    ] {
        assert_eq!(line(probe(0, more)), expected);
    }
    let nothing = one_path(&[at(0, HookPoint::UplinkIn, syn(PROBE, NODE_PORT, 500))]);
    assert_eq!(line(nothing).0, ProbeAnswer::None);
    assert!(is_probe_source(AZURE_PROBE_V6.into()) && AZURE_PROBE_V6.to_string() == "fe80::1234:5678:9abc");
    assert!(!is_probe_source("168.63.129.17".parse().unwrap()));
}

/// A consumer's flow through a NAT IP, with what it sends first.
fn flow(nat_ip: &str, bytes: &[u8]) -> Path {
    let mut sightings = vec![
        at(0, HookPoint::UplinkIn, syn(nat_ip, FRONTEND, 500)),
        at(1, HookPoint::PodOut, syn_ack(POD, nat_ip, 500)),
        at(2, HookPoint::UplinkIn, tcp(nat_ip, FRONTEND, 0x10, 501, 777_001)),
    ];
    if !bytes.is_empty() {
        let packet = Packet { payload_len: bytes.len() as u32, ..tcp(nat_ip, FRONTEND, 0x18, 501, 777_001) };
        sightings.extend(carried(3, HookPoint::UplinkIn, packet, bytes));
    }
    one_path(&sightings)
}

#[test]
fn consumers_behind_one_nat_ip() {
    let mut other = azure();
    (other[19], other[35]) = (5, 0x22);
    let mut together = Together::default();
    for (nat_ip, bytes) in
        [(NAT_IP, azure()), (NAT_IP, other), ("10.224.0.9:40000", azure()), (NAT_IP, b"GET / ".to_vec())]
    {
        together.add(&flow(nat_ip, &bytes), None, Some(true));
    }
    let found: Vec<_> = together
        .consumers
        .iter()
        .map(|(link_id, one)| (*link_id, one.nat_ips.len(), one.clients.len(), one.flows.total()))
        .collect();
    assert_eq!(found, [(553_665_985, 2, 1, 2), (570_443_201, 1, 1, 1)]);
    let path = flow(NAT_IP, &azure());
    let address = Some("10.221.1.4:51000".parse().unwrap());
    assert_eq!(consumer(&path.evidence), Some(Consumer { address, link_id: Some(553_665_985) }));
    assert_eq!(observed(&path).unwrap().source, "10.224.0.8".parse::<std::net::IpAddr>().unwrap());
    let local: Vec<u8> = [&azure()[..12], &[0x20], &azure()[13..]].concat();
    let probe = flow(NAT_IP, &local);
    assert_eq!((observed(&probe), consumer(&probe.evidence).unwrap().address), (None, None));
}

/// Anyone may send a header that names anyone.
#[test]
fn consumers_without_end_are_counted_together() {
    let mut together = Together::default();
    let flows = CONSUMERS_MAX as u32 + 10;
    for link_id in 0..flows {
        let mut header = azure();
        header[32..36].copy_from_slice(&link_id.to_le_bytes());
        header[18..20].copy_from_slice(&(link_id as u16).to_be_bytes());
        together.add(&flow(NAT_IP, &header), None, Some(true));
        together.add(&flow(NAT_IP, &azure()), None, Some(true));
    }
    assert_eq!(together.consumers.len(), CONSUMERS_MAX);
    let counted: u64 = together.consumers.values().map(|one| one.flows.total()).sum();
    assert_eq!(counted + together.other_consumers, 2 * u64::from(flows), "each flow counts");
    assert!(together.other_consumers > 0);
}

#[test]
fn headers_that_should_or_should_not_be_there() {
    let azure = azure();
    let mut broken = azure.clone();
    broken[12] = 0x31;
    let malformed = ProxyFault::Malformed(crate::proxy_protocol::Malformed::Version(3));
    for (bytes, expected, found) in [
        (&azure[..], Some(true), None),
        (&azure, None, None),
        (&azure, Some(false), Some(ProxyFault::Unexpected)),
        (b"PROXY TCP4 ", Some(false), Some(ProxyFault::Unexpected)),
        (b"GET / HTTP/1.1", Some(true), Some(ProxyFault::Missing)),
        (b"GET / HTTP/1.1", Some(false), None),
        (b"GET / HTTP/1.1", None, None),
        (&broken, Some(true), Some(malformed)),
        (&azure[..20], Some(true), Some(ProxyFault::Incomplete)),
        (b"", Some(true), None),
    ] {
        assert_eq!(fault(&flow(NAT_IP, bytes).evidence, expected), found, "{}", bytes.escape_ascii());
    }
}

#[test]
fn both_outcomes_by_backend() {
    let to = |backend: &str| {
        one_path(&[
            at(0, HookPoint::UplinkIn, syn(NAT_IP, FRONTEND, 9)),
            at(1, HookPoint::PodIn, syn(NAT_IP, backend, 9)),
        ])
    };
    let mut together = Together::default();
    assert_eq!(together.splits_by_node(), None);
    together.add(&to(POD), Some(true), Some(true));
    assert_eq!(together.splits_by_node(), None);
    together.add(&to("10.0.1.124:80"), Some(false), Some(false));
    assert_eq!(together.splits_by_node(), Some(true));
    let remote = together.backends[&"10.0.1.124:80".parse().unwrap()];
    assert_eq!((remote.is_local, remote.flows), (false, Flows { dropped: 1, ..Flows::default() }));
    together.add(&to("10.0.1.125:80"), Some(false), Some(true));
    assert_eq!(together.splits_by_node(), Some(false), "not every flow to another node fails");
}

#[test]
fn what_a_pod_could_not_reach_soon_after_it_accepted() {
    let dns = "10.0.1.2:53";
    let egress = |ms, reason| {
        one_path(&[
            at(ms, HookPoint::PodOut, udp("10.0.0.143:44000", dns, 7, 1)),
            dropped(ms, reason, udp("10.0.0.143:44000", dns, 7, 1)),
        ])
    };
    let mut accepted = Accepted::default();
    assert_eq!(accepted.egress_drop(&egress(500, 133)), None);
    accepted.remember(&one_path(&allowed_through_dnat(1000, 200)));
    accepted.remember(&one_path(&allowed_through_dnat(1000, 100)));
    let expected = EgressDrop {
        tuple: tuple("10.0.0.143:44000", dns, Protocol::UDP),
        reason: DropReason::POLICY,
        accepted: tuple(NAT_IP, POD, Protocol::TCP),
        after_ns: 300 * MS,
    };
    assert_eq!(accepted.egress_drop(&egress(500, 133)), Some(expected));
    assert_eq!(accepted.egress_drop(&egress(50, 133)), None, "before any was accepted");
    assert_eq!(accepted.egress_drop(&egress(20_000, 133)), None, "long after");
    assert_eq!(accepted.egress_drop(&egress(500, 163)), None, "not by policy");
}
