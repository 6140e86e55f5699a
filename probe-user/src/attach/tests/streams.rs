//! Which packets are only counted, by the programs themselves.
use fastrand::Rng;
use probe_common::Stream;

use super::*;
use crate::trace::engine::now_ns;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Has ports, too.
const SCTP: u8 = 132;
/// No test comes near it.
const HOUR_NS: u64 = 3_600_000_000_000;

/// One packet from the peer, and what the programs were told of its stream.
#[derive(Clone, Copy, Debug)]
struct Case {
    is_ipv6: bool,
    proto: u8,
    flags: u8,
    is_fragment: bool,
    port: u16,
    told: Told,
}

/// What the programs are told of a stream, just before its packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    /// To count its packets from now on.
    Now,
    /// From another time on.
    From(u64),
}

impl Case {
    fn random(random: &mut Rng, port: u16) -> Self {
        let ahead = Told::From(now_ns() + HOUR_NS);
        Self {
            is_ipv6: random.bool(),
            proto: [TCP, TCP, UDP, SCTP][random.usize(0..4)],
            flags: if random.bool() { ACK } else { random.u8(..) },
            is_fragment: random.u8(0..8) == 0,
            port,
            told: [Told::Nothing, Told::From(0), Told::Now, Told::Now, ahead][random.usize(0..5)],
        }
    }

    /// Of which nothing was told.
    fn datagram(port: u16) -> Self {
        Self { is_ipv6: false, proto: UDP, flags: 0, is_fragment: false, port, told: Told::Nothing }
    }

    fn opens(&self) -> bool {
        self.proto == TCP && self.flags & SYN != 0
    }

    /// Whether a record is made of it.
    fn makes_record(&self) -> bool {
        let is_of_an_end = self.proto == TCP && self.flags & (SYN | FIN | RST) != 0;
        self.is_fragment || self.proto == SCTP || is_of_an_end || self.told != Told::Now
    }

    fn stream(&self, (point, ifindex, netns): (HookPoint, u32, u32)) -> Stream {
        let (src, dst) = if self.is_ipv6 { ("fd99::2", NODE_V6) } else { ("10.99.0.2", NODE) };
        let words = |text: &str| {
            let mut bytes = [0; 16];
            match text.parse().unwrap() {
                IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes = address.octets(),
            }
            probe_common::address_words(&bytes)
        };
        Stream {
            src: words(src),
            dst: words(dst),
            src_port: self.port,
            dst_port: PORT,
            proto: self.proto,
            version: if self.is_ipv6 { 6 } else { 4 },
            point: point as u8,
            ifindex,
            netns,
        }
    }

    fn frame(&self) -> Vec<u8> {
        let ports = [self.port.to_be_bytes(), PORT.to_be_bytes()].concat();
        let payload = match self.proto {
            TCP => [&ports[..], &[0; 8], &[0x50, self.flags], &[0; 6], &[5; 8]].concat(),
            UDP => udp(self.port, PORT, &[5; 16]),
            _ => [&ports[..], &[0; 8]].concat(),
        };
        if !self.is_ipv6 {
            let fragment = if self.is_fragment { 0x2000 } else { 0 };
            return ethernet(0x0800, &ipv4(self.proto, fragment, ("10.99.0.2", NODE), &payload));
        }
        // A fragment header says of itself whether more come.
        let extension = if self.is_fragment { vec![self.proto, 0, 0, 1, 0, 0, 0, 9] } else { Vec::new() };
        let next = if self.is_fragment { 44 } else { self.proto };
        let mut header = vec![0x60, 0, 0, 0, 0, 0, next, 61];
        header[4..6].copy_from_slice(&((extension.len() + payload.len()) as u16).to_be_bytes());
        let ends = ["fd99::2", NODE_V6].map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets());
        ethernet(0x86dd, &[header, ends.concat(), extension, payload].concat())
    }
}

/// So many packets are sent well within the second in which they are only counted.
const AT_ONCE: usize = 50;

/// Tells of the streams of these packets and sends them; the ports of those that records were made of at a place, and how
/// many packets were only counted at any.
fn send(
    peer: &Peer,
    (attachment, records): (&mut Attachment, &mut Records),
    place: (HookPoint, u32, u32),
    cases: &[Case],
) -> (Vec<u16>, usize) {
    let before = attachment.counters().unwrap();
    let mut kept = Vec::new();
    for cases in cases.chunks(AT_ONCE) {
        for case in cases {
            let since_ns = match case.told {
                Told::Nothing => continue,
                Told::Now => now_ns(),
                Told::From(since_ns) => since_ns,
            };
            attachment.count_only(&case.stream(place), since_ns).unwrap();
        }
        send_frames(peer, cases.iter().map(Case::frame).collect());
        settle(|| attachment.counters().unwrap().get(Counter::PacketSeen));
        records.drain(keep(&mut kept));
    }
    let counters = attachment.counters().unwrap().since(&before);
    assert_eq!(counters.lost(), 0);
    let ours = packets(&kept, place.0).into_iter().filter(|packet| packet.dst_port == PORT);
    (ours.map(|packet| packet.src_port).collect(), counters.get(Counter::PacketCounted) as usize)
}

fn ports<'c>(cases: impl Iterator<Item = &'c Case>) -> Vec<u16> {
    cases.map(|case| case.port).collect()
}

/// Packets of every kind, of streams of which the programs were told anything.
fn only_counted(peer: &Peer, settings: &Settings, point: HookPoint) {
    let netns = if point == HookPoint::UplinkIn { 0 } else { network_namespace() };
    let place = (point, crate::sys::ifindex("v0").unwrap(), netns);
    in_runtime(|| {
        let (mut attachment, mut records) = Attachment::start(settings).unwrap();
        let mut random = Rng::with_seed(11);
        let mut slots = BTreeSet::new();
        let cases: Vec<Case> = (10_000..10_250)
            .map(|port| Case::random(&mut random, port))
            .filter(|case| slots.insert(Stream::slot(case.stream(place).words())))
            .collect();
        let (recorded, counted) = send(peer, (&mut attachment, &mut records), place, &cases);
        let expected = ports(cases.iter().filter(|case| case.makes_record()));
        assert_eq!(recorded, expected);
        assert_eq!(counted, cases.len() - expected.len());
        assert!(counted > 30, "{counted}");
        // What opened a connection ended the counting of its stream.
        let opened = cases.iter().filter(|case| case.opens());
        let opened: Vec<Case> =
            opened.map(|case| Case { flags: ACK, told: Told::Nothing, ..*case }).collect();
        assert!(opened.len() > 10, "{}", opened.len());
        let (recorded, again) = send(peer, (&mut attachment, &mut records), place, &opened);
        assert_eq!((recorded, again), (ports(opened.iter()), 0));
        // Another place, another port, another protocol: other streams.
        let case = Case::datagram(9);
        for stream in [
            case.stream((HookPoint::PodIn, place.1, netns)),
            case.stream((point, place.1 + 1, netns)),
            case.stream((point, place.1, netns + 1)),
            Case { port: 8, ..case }.stream(place),
            Case { proto: TCP, ..case }.stream(place),
        ] {
            attachment.count_only(&stream, now_ns()).unwrap();
        }
        let (recorded, others) = send(peer, (&mut attachment, &mut records), place, &[case]);
        assert_eq!((recorded, others), (vec![9], 0));
        // One record a second, and after the stream was taken back one of each.
        attachment.count_only(&case.stream(place), now_ns()).unwrap();
        std::thread::sleep(Duration::from_nanos(Stream::COUNTED_NS));
        let (recorded, later) = send(peer, (&mut attachment, &mut records), place, &[case; 5]);
        assert_eq!((recorded, later), (vec![9], 4));
        attachment.record_each(&case.stream(place)).unwrap();
        let (recorded, last) = send(peer, (&mut attachment, &mut records), place, &[case; 5]);
        assert_eq!((recorded, last), (vec![9; 5], 0));
        assert!(attachment.detach().is_empty());
        let counters = attachment.finish(&mut records, |_| ()).unwrap();
        assert_eq!(records.read() + counters.lost(), counters.made(), "{counters:?}");
        assert_eq!(records.missing(), 0, "what is only counted has no number");
    });
}

#[test]
fn a_classifier_only_counts_what_it_was_told_of() {
    scratch(|peer| {
        let targets = vec![target(NODE, &[]), target(NODE_V6, &[])];
        only_counted(peer, &settings(Filter { targets, ..Filter::default() }), HookPoint::UplinkIn);
    });
}

#[test]
fn a_tracepoint_only_counts_what_it_was_told_of_whichever_kind_it_is() {
    scratch(|peer| {
        let targets = vec![target(NODE, &[]), target(NODE_V6, &[])];
        let filter = Filter { targets, ..Filter::default() };
        let typed = Settings { filter, ..of_this_namespace_alone() };
        only_counted(peer, &typed, HookPoint::Received);
        let raw = Settings { type_ids: TypeIds::default(), ..typed };
        only_counted(peer, &raw, HookPoint::Received);
    });
}

/// No host takes these frames for its own, which the IP layer finds out itself.
#[test]
fn a_probe_in_the_ip_layer_only_counts_what_it_was_told_of_by_whichever_means() {
    scratch(|peer| {
        let targets = vec![target(NODE, &[]), target(NODE_V6, &[])];
        for probe in [Probe::Fentry, Probe::Kprobe] {
            let filter = Filter { targets: targets.clone(), ..Filter::default() };
            let settings = Settings { filter, probe, ..of_this_namespace_alone() };
            if means(&settings, &[HookKind::IpLayer]).is_none() {
                fixtures::skip!("this kernel refuses it: {probe:?}");
                continue;
            }
            only_counted(peer, &settings, HookPoint::IpReceive);
        }
    });
}

/// What an expression asks of each packet cannot be known of a stream.
#[test]
fn with_an_expression_every_packet_that_matches_is_recorded() {
    scratch(|peer| {
        in_runtime(|| {
            let expression = Some(Expression::parse("udp").unwrap());
            let (mut attachment, mut records) =
                Attachment::start(&settings(Filter { expression, ..about(NODE) })).unwrap();
            let case = Case { told: Told::Now, ..Case::datagram(9) };
            let place = (HookPoint::UplinkIn, crate::sys::ifindex("v0").unwrap(), 0);
            let sent = send(peer, (&mut attachment, &mut records), place, &[case; 3]);
            assert_eq!(sent, (vec![9; 3], 0));
        });
    });
}
