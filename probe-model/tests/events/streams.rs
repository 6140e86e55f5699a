//! Streams without a word on the layout of verdicts and socket traces: told where it can be told, refused where not.

use probe_model::cilium::DecodeError;
use probe_model::cilium::events::{
    Notification, NotifyFlags, PolicyVerdictNotify, Sample, SocketTrace, Stream,
};

use super::{Random, build, header_mut};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A release's layouts: sizes of drop, trace, verdict and socket trace.
#[derive(Clone, Copy)]
struct Cilium {
    drop: usize,
    trace: usize,
    verdict: usize,
    socket: usize,
    flags: u8,
}

const V1_17_3: Cilium = Cilium { drop: 36, trace: 48, verdict: 32, socket: 38, flags: 0 };
const V1_17_4: Cilium = Cilium { drop: 40, trace: 48, verdict: 32, socket: 38, flags: 0x03 };
const V1_18: Cilium = Cilium { drop: 40, trace: 48, verdict: 32, socket: 38, flags: 0x0f };
const V1_19: Cilium = Cilium { drop: 48, trace: 56, verdict: 40, socket: 40, flags: 0x0f };
const RELEASES: [Cilium; 4] = [V1_17_3, V1_17_4, V1_18, V1_19];

/// An Ethernet frame with a packet of `length` bytes in all, cut or filled up.
fn frame(ipv6: bool, proto: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0x46, 0xb6, 0x6f, 0x2e, 0x11, 0x02, 0x5a, 0x1d, 0x0c, 0x33, 0x70];
    frame.extend(if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(ip(ipv6, proto));
    frame.resize(length, 0xa5);
    frame
}

fn ip(ipv6: bool, proto: u8) -> Vec<u8> {
    let mut packet = vec![if ipv6 { 0x60 } else { 0x45 }; 1];
    packet.resize(if ipv6 { 40 } else { 20 }, 0x11);
    packet[if ipv6 { 6 } else { 9 }] = proto;
    packet
}

/// A sample as the ring has it: what follows aligns the next one, and is anything.
fn ring(mut notification: Notification, packet: &[u8], random: &mut Random) -> Vec<u8> {
    if let Some(header) = header_mut(&mut notification) {
        header.len_cap = packet.len() as u16;
        header.len_orig = packet.len() as u32;
    }
    let mut raw = notification.encode();
    raw.extend(packet);
    // The kernel puts a length of 4 bytes before it and makes both a multiple of 8.
    let padding = (raw.len() + 4).next_multiple_of(8) - 4 - raw.len();
    raw.extend(random.bytes(padding));
    raw
}

fn verdict(size: usize, random: &mut Random) -> PolicyVerdictNotify {
    let Notification::PolicyVerdict(mut verdict) = build("policy_verdict_notify", size, || random.number())
    else {
        unreachable!()
    };
    verdict.l3_device = false;
    verdict.proto = if random.index(2) == 0 { TCP } else { UDP };
    verdict
}

fn verdict_sample(size: usize, length: usize, random: &mut Random) -> (Notification, Vec<u8>, Vec<u8>) {
    let verdict = verdict(size, random);
    let packet = frame(verdict.ipv6, verdict.proto, length);
    let mut notification = Notification::PolicyVerdict(verdict);
    let raw = ring(notification, &packet, random);
    let header = header_mut(&mut notification).unwrap();
    (header.len_cap, header.len_orig) = (length as u16, length as u32);
    (notification, packet, raw)
}

fn drop_sample(cilium: Cilium, random: &mut Random) -> Vec<u8> {
    let mut drop = build("drop_notify", cilium.drop, || random.number());
    if let Notification::Drop(drop) = &mut drop {
        drop.flags = drop.flags.map(|flags| NotifyFlags(flags.0 & cilium.flags));
    }
    let length = random.index(129);
    ring(drop, &frame(false, TCP, length), random)
}

fn trace_sample(cilium: Cilium, random: &mut Random) -> Vec<u8> {
    let mut trace = build("trace_notify", cilium.trace, || random.number());
    if let Notification::Trace(trace) = &mut trace {
        trace.flags.0 &= cilium.flags;
    }
    let length = random.index(129);
    ring(trace, &frame(false, TCP, length), random)
}

fn socket_trace(size: usize, dst_ip: [u8; 4], random: &mut Random) -> SocketTrace {
    let Notification::SocketTrace(mut trace) = build("trace_sock_notify", size, || random.number()) else {
        unreachable!()
    };
    (trace.ipv6, trace.l4_proto, trace.dst_ip) = (false, 1, [0; 16]);
    trace.dst_ip[..4].copy_from_slice(&dst_ip);
    trace
}

#[track_caller]
fn undecidable(result: Result<Sample<'_>, DecodeError>, words: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, DecodeError::Layout { .. }), "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` in {error}");
    }
}

#[test]
fn streams_of_each_release() {
    let mut random = Random::new(11);
    for cilium in RELEASES {
        let mut stream = Stream::default();
        for _ in 0..5_000 {
            match random.index(4) {
                0 => {
                    let raw = drop_sample(cilium, &mut random);
                    let sample = stream.decode(&raw).unwrap();
                    assert_eq!(sample.notification.encode(), raw[..cilium.drop]);
                    assert_eq!(sample.packet, &raw[cilium.drop..][..sample.packet.len()]);
                }
                1 => {
                    let raw = trace_sample(cilium, &mut random);
                    let sample = stream.decode(&raw).unwrap();
                    assert_eq!(sample.notification.encode(), raw[..cilium.trace]);
                }
                2 => {
                    let length = random.index(193);
                    let (notification, packet, raw) = verdict_sample(cilium.verdict, length, &mut random);
                    assert_eq!(stream.decode(&raw), Ok(Sample { notification, packet: &packet }));
                }
                _ => {
                    let trace = socket_trace(cilium.socket, [10, 0, 0, 143], &mut random);
                    let notification = Notification::SocketTrace(trace);
                    let raw = ring(notification, &[], &mut random);
                    assert_eq!(raw.len(), 44, "both layouts have the same length in a ring");
                    assert_eq!(stream.decode(&raw), Ok(Sample { notification, packet: &[] }));
                }
            }
        }
    }
}

/// Nothing came before, and every length a packet may be captured with.
#[test]
fn a_verdict_by_itself() {
    let mut random = Random::new(12);
    for size in [32, 40] {
        for length in (0..=192).cycle().take(20_000) {
            let (notification, packet, raw) = verdict_sample(size, length, &mut random);
            assert_eq!(Sample::decode(&raw), Ok(Sample { notification, packet: &packet }), "{size} {length}");
        }
    }
}

/// The padding may be stripped, or be any of what alignment needs.
#[test]
fn any_padding() {
    let mut random = Random::new(13);
    for size in [32, 40] {
        let (notification, packet, raw) = verdict_sample(size, 74, &mut random);
        for padding in 0..=7 {
            let mut raw = raw[..size + 74].to_vec();
            raw.extend(vec![0x45; padding]);
            assert_eq!(
                Sample::decode(&raw),
                Ok(Sample { notification, packet: &packet }),
                "{size} {padding}"
            );
        }
    }
}

/// Programs of the older agent run on until their endpoints are regenerated.
#[test]
fn an_upgrade_under_way() {
    let mut random = Random::new(14);
    let mut stream = Stream::default();
    for round in 0..2_000 {
        let cilium = if round < 500 || random.index(2) == 0 { V1_18 } else { V1_19 };
        stream.decode(&drop_sample(cilium, &mut random)).unwrap();
        let (notification, packet, raw) = verdict_sample(cilium.verdict, 74, &mut random);
        assert_eq!(stream.decode(&raw), Ok(Sample { notification, packet: &packet }), "round {round}");
    }
}

#[test]
fn a_verdict_that_is_not_the_streams() {
    let mut random = Random::new(15);
    for (cilium, other, words) in [
        (V1_18, 40, ["before 1.19", "as 32: not the sample's length; as 40: not the stream's Cilium"]),
        (V1_19, 32, ["1.19 or later", "as 32: not the stream's Cilium; as 40: not the sample's length"]),
    ] {
        for evidence in [drop_sample(cilium, &mut random), trace_sample(cilium, &mut random)] {
            let mut stream = Stream::default();
            stream.decode(&evidence).unwrap();
            let (notification, packet, raw) = verdict_sample(other, 74, &mut random);
            undecidable(stream.decode(&raw), &words);
            // A connection to another agent has not seen what this one has.
            assert_eq!(Stream::default().decode(&raw), Ok(Sample { notification, packet: &packet }));
        }
    }
}

/// Whoever sends the packet chooses its bytes: here such that the rest of it, 8 bytes on, is a frame too.
#[test]
fn a_short_verdict_whose_packet_looks_like_that_of_a_long_one() {
    let mut random = Random::new(16);
    for length in 62..=192 {
        let mut verdict = verdict(32, &mut random);
        (verdict.ipv6, verdict.proto) = (false, TCP);
        verdict.header.len_cap = length;
        verdict.header.len_orig = length.into();
        // A frame from 00:00:…, whose address bytes 2 and 3 make the ethertype of the one that begins 8 bytes later.
        let mut packet = frame(false, TCP, length.into());
        packet[4..8].fill(0);
        packet[14 + 6..14 + 8].copy_from_slice(&[0x08, 0x00]);
        packet[14 + 8] = 0x45;
        packet[8 + 14 + 9] = TCP;
        let notification = Notification::PolicyVerdict(verdict);
        let raw = ring(notification, &packet, &mut random);
        assert_eq!(Sample::decode(&raw), Ok(Sample { notification, packet: &packet }), "{length}");

        // Had the ring more padding than it has, both would do as far as the packet goes: the length alone speaks.
        let mut longer = raw[..32 + usize::from(length)].to_vec();
        longer.extend([0; 8]);
        let as_long = Sample::decode(&longer).unwrap();
        assert_eq!(as_long.packet, &longer[40..], "a sample of exactly a long verdict's length");
        // What came before contradicts it.
        let mut stream = Stream::default();
        stream.decode(&drop_sample(V1_18, &mut random)).unwrap();
        undecidable(
            stream.decode(&longer),
            &["as 32: not the sample's length", "as 40: not the stream's Cilium"],
        );
    }
}

/// The same with a long one: cookie, padding and addresses such that a frame begins 8 bytes before the packet.
#[test]
fn a_long_verdict_whose_cookie_looks_like_a_short_ones_packet() {
    let mut random = Random::new(17);
    for length in 34..=192 {
        let mut verdict = verdict(40, &mut random);
        (verdict.ipv6, verdict.proto) = (false, TCP);
        verdict.header.len_cap = length;
        verdict.header.len_orig = length.into();
        let mut packet = frame(false, TCP, length.into());
        packet[4..6].copy_from_slice(&[0x08, 0x00]);
        packet[6] = 0x45;
        packet[6 + 9] = TCP;
        let notification = Notification::PolicyVerdict(verdict);
        let raw = ring(notification, &packet, &mut random);
        assert_eq!(Sample::decode(&raw), Ok(Sample { notification, packet: &packet }), "{length}");
    }
}

#[test]
fn verdicts_that_fit_no_layout() {
    let mut random = Random::new(18);
    for size in [32, 40] {
        let (_, _, raw) = verdict_sample(size, 74, &mut random);
        for length in (16..32 + 74).chain(48 + 74..200) {
            let mut raw = raw.clone();
            raw.resize(length, 0);
            let words = format!("found {length} bytes in a stream without a drop or trace so far");
            undecidable(
                Sample::decode(&raw),
                &[&words, "as 32: not the sample's length; as 40: not the sample's"],
            );
        }
    }
    // Of a long verdict's length, and nothing in it is one.
    let (_, _, mut raw) = verdict_sample(32, 74, &mut random);
    raw.truncate(32 + 74);
    raw.extend([0; 8]);
    undecidable(Sample::decode(&raw), &["as 40: its padding would not be 0"]);
    raw[36..40].fill(0);
    undecidable(Sample::decode(&raw), &["as 40: no such packet would follow"]);
    // Of a short verdict's length, with another packet than it says.
    let (_, _, mut raw) = verdict_sample(32, 74, &mut random);
    raw[32 + 12] ^= 0x40;
    undecidable(
        Sample::decode(&raw),
        &["as 32: no such packet would follow; as 40: not the sample's length"],
    );
}

/// Devices without layer 2: the packet begins with its IP header, which verdicts tell since 1.17.12 and 1.18.6.
#[test]
fn devices_without_layer_2() {
    let mut random = Random::new(19);
    for (size, l3_device) in [(32, false), (32, true), (40, true)] {
        for ipv6 in [false, true] {
            let mut verdict = verdict(size, &mut random);
            (verdict.ipv6, verdict.l3_device) = (ipv6, l3_device);
            let packet = ip(ipv6, verdict.proto);
            verdict.header.len_cap = packet.len() as u16;
            verdict.header.len_orig = packet.len() as u32;
            let notification = Notification::PolicyVerdict(verdict);
            assert_eq!(notification.is_l3_device(), l3_device);
            let raw = ring(notification, &packet, &mut random);
            assert_eq!(Sample::decode(&raw), Ok(Sample { notification, packet: &packet }), "{size} {ipv6}");
        }
    }
    // A frame where the verdict says that there is none.
    let (notification, _, mut raw) = verdict_sample(40, 74, &mut random);
    assert!(!notification.is_l3_device());
    raw[27] |= 0x80;
    undecidable(Sample::decode(&raw), &["as 40: no such packet would follow"]);
}

#[test]
fn drops_and_traces_of_another_length() {
    let mut random = Random::new(20);
    for cilium in RELEASES {
        for raw in [drop_sample(cilium, &mut random), trace_sample(cilium, &mut random)] {
            let mut longer = raw.clone();
            longer.extend([0; 8]);
            undecidable(Sample::decode(&longer), &["`len_cap`", "at most 7 of padding"]);
            undecidable(Sample::decode(&raw[..raw.len() - 8]), &["`len_cap`"]);
        }
    }
}

/// Both layouts of a socket trace are as long in a ring: the stream tells, or the bytes, or nothing does.
#[test]
fn socket_traces() {
    let mut random = Random::new(21);
    for (cilium, other) in [(V1_18, V1_19), (V1_19, V1_18)] {
        let mut stream = Stream::default();
        stream.decode(&trace_sample(cilium, &mut random)).unwrap();
        for dst_ip in [[10, 0, 0, 143], [1, 1, 1, 1], [0, 0, 0, 0]] {
            let notification = Notification::SocketTrace(socket_trace(cilium.socket, dst_ip, &mut random));
            let raw = ring(notification, &[], &mut random);
            assert_eq!(stream.decode(&raw), Ok(Sample { notification, packet: &[] }), "{dst_ip:?}");
        }
        let foreign = socket_trace(other.socket, [10, 0, 0, 143], &mut random);
        let raw = ring(Notification::SocketTrace(foreign), &[], &mut random);
        undecidable(stream.decode(&raw), &["not the stream's Cilium"]);
    }
    // 1.1.1.1 in the packed layout is what the other would say of TCP over IPv6.
    let packed = socket_trace(38, [1, 1, 1, 1], &mut random);
    let raw = ring(Notification::SocketTrace(packed), &[], &mut random);
    undecidable(Sample::decode(&raw), &["44 bytes in a stream without", "as 38: it fits; as 40: it fits"]);
}

#[test]
fn types_without_a_decoder() {
    for message_type in [0, 6, 8, 129, 130, 255] {
        let sample = Sample { notification: Notification::Other { message_type }, packet: &[] };
        assert_eq!(Sample::decode(&[message_type, 1, 2]), Ok(sample));
    }
    assert!(Sample::decode(&[]).is_err());
}
