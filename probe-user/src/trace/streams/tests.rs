//! A trace that is told of each packet, and one that is not told of those that are only counted, say the same.

use std::collections::{BTreeMap, HashMap};

use fastrand::Rng;
use probe_common::{HookPoint, Packet, PacketRecord, RecordHeader, RecordKind, Stream};
use probe_model::path::evidence::LateReset;
use probe_model::path::{Namespace, Need, Path, Patience, Place, Tracker};

use super::{Order, Streams};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const POD: [u8; 4] = [10, 0, 0, 143];

/// A packet to the pod or from it, where it comes in, or at the pod.
fn packet(ktime_ns: u64, to_pod: bool, port: u16, proto: u8, tcp_flags: u8, seq: u32) -> [PacketRecord; 2] {
    let points = if to_pod {
        [HookPoint::UplinkIn, HookPoint::PodIn]
    } else {
        [HookPoint::PodOut, HookPoint::UplinkOut]
    };
    let (client, pod) = (([10, 224, 0, 8], port), (POD, 80));
    let (src, dst) = if to_pod { (client, pod) } else { (pod, client) };
    let mut packet = Packet { version: 4, proto, tcp_flags, seq, ..Packet::default() };
    (packet.src_port, packet.dst_port) = (src.1, dst.1);
    packet.src[..4].copy_from_slice(&src.0);
    packet.dst[..4].copy_from_slice(&dst.0);
    [(points[0], 0), (points[1], 20_000)].map(|(point, later_ns)| {
        let ktime_ns = ktime_ns + later_ns;
        let header = RecordHeader {
            kind: RecordKind::Packet as u8,
            point: point as u8,
            ifindex: 2,
            ktime_ns,
            ..RecordHeader::default()
        };
        PacketRecord { header, buffer: 0, skb_len: 60, mark: 0, hash: 0, netns: 0, packet }
    })
}

/// What the programs do, as `probe-ebpf/src/stream.rs` has it.
#[derive(Default)]
struct Programs {
    since_ns: HashMap<Stream, u64>,
    counted: u64,
}

impl Programs {
    fn makes_record(&mut self, record: &PacketRecord) -> bool {
        let (flags, now_ns) = (record.packet.tcp_flags, record.header.ktime_ns);
        let Some(since_ns) = self.since_ns.get_mut(&Stream::of(record)) else { return true };
        if flags & SYN != 0 {
            *since_ns = 0;
        }
        if flags & (SYN | FIN | RST) != 0 || *since_ns == 0 || now_ns < *since_ns {
            return true;
        }
        if now_ns - *since_ns >= Stream::COUNTED_NS {
            *since_ns = now_ns;
            return true;
        }
        self.counted += 1;
        false
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Count { stream, since_ns } => {
                    assert_eq!(self.since_ns.insert(stream, since_ns), None, "the slot was free");
                }
                Order::Record { stream } => assert!(self.since_ns.remove(&stream).is_some()),
            }
        }
    }
}

/// Some seconds of a few clients, each of which opens one connection after another on one port, some before the last was
/// closed, and of datagrams. In the order of time.
fn traffic(random: &mut Rng) -> Vec<PacketRecord> {
    let mut records = Vec::new();
    for client in 0..random.u16(1..4) {
        let port = 40_000 + client;
        let mut now_ns = random.u64(1..500) * MS;
        let proto = if random.u8(0..4) == 0 { UDP } else { TCP };
        while now_ns < 20 * SECOND {
            let isn = random.u32(..);
            let mut send = |ktime_ns, to_pod, flags, seq| {
                records.extend(packet(
                    ktime_ns,
                    to_pod,
                    port,
                    proto,
                    if proto == TCP { flags } else { 0 },
                    seq,
                ));
            };
            send(now_ns, true, SYN, isn);
            let is_answered = random.u8(0..5) > 0;
            if is_answered {
                send(now_ns + MS / 2, false, SYN | ACK, isn / 2);
                send(now_ns + MS, true, ACK, isn + 1);
            }
            // Up to a few thousand packets, one every few microseconds to one every two seconds.
            let gap_ns = 10 * 10_u64.pow(random.u32(0..9)) * random.u64(1..20).min(2 * SECOND);
            let gap_ns = gap_ns.clamp(20_000, 2 * SECOND);
            let until_ns = now_ns + (random.u64(1..3_000) * gap_ns).min(random.u64(1..8) * SECOND);
            now_ns += 2 * MS;
            while now_ns < until_ns {
                send(now_ns, !is_answered || random.bool(), ACK, isn + 2);
                now_ns += random.u64(gap_ns / 2..=gap_ns);
            }
            match random.u8(0..4) {
                0 => send(now_ns, true, FIN | ACK, isn + 3),
                1 => send(now_ns, random.bool(), RST, isn + 3),
                _ => {}
            }
            now_ns += random.u64(1..100) * random.u64(1..100) * MS;
        }
    }
    records.sort_by_key(|record| record.header.ktime_ns);
    records
}

/// What a trace tells, and what it need not have been told.
#[derive(Default)]
struct Told {
    /// By when they began.
    paths: BTreeMap<u64, Vec<Path>>,
    late_resets: Vec<LateReset>,
    counted: u64,
}

/// Reads what the programs make every few milliseconds, as an engine does.
fn trace(records: &[PacketRecord], mut reads: Rng, is_told_all: bool) -> Told {
    let (mut tracker, mut streams) = (Tracker::new(Patience::default()), Streams::default());
    let (mut programs, mut told) = (Programs::default(), Told::default());
    let (mut made, mut rest) = (Vec::<&PacketRecord>::new(), records);
    let mut now_ns = 0;
    let mut housekept_ns = 0;
    while !rest.is_empty() {
        now_ns += reads.u64(1..=150) * MS;
        let (come, later) = rest.split_at(rest.partition_point(|record| record.header.ktime_ns < now_ns));
        made.extend(come.iter().filter(|record| is_told_all || programs.makes_record(record)));
        rest = later;
        for record in made.drain(..) {
            let place = Place::of(&record.header, Namespace::Node).unwrap();
            let need = tracker.push_packet(record, place);
            streams.note(record, need, || now_ns);
        }
        if now_ns - housekept_ns > SECOND {
            housekept_ns = now_ns;
            streams.forget(now_ns);
        }
        let orders = streams.take_orders();
        if !is_told_all {
            programs.obey(orders);
        }
        tell(&mut told, tracker.poll(now_ns));
        told.late_resets.extend(tracker.late_resets(now_ns));
    }
    assert!(!streams.was_late());
    tell(&mut told, tracker.finish());
    told.counted = programs.counted;
    told
}

fn tell(told: &mut Told, paths: Vec<Path>) {
    for mut path in paths {
        // One record a second: how long ago the last packet of the connection before was is known to a second.
        path.evidence.reuse = path.evidence.reuse.map(|mut reuse| {
            reuse.since_ns = 0;
            reuse
        });
        told.paths.entry(path.first_ns).or_default().push(path);
    }
}

#[test]
fn who_is_not_told_of_packets_that_are_only_counted_tells_the_same_flows() {
    let mut counted = 0;
    for seed in 0..60 {
        let mut random = Rng::with_seed(seed);
        let records = traffic(&mut random);
        let all = trace(&records, Rng::with_seed(seed), true);
        let few = trace(&records, Rng::with_seed(seed), false);
        assert_eq!(few.paths, all.paths, "seed {seed}");
        assert_eq!(all.counted, 0);
        let tuples = |told: &Told| told.late_resets.iter().map(|late| late.tuple).collect::<Vec<_>>();
        assert_eq!(tuples(&few), tuples(&all), "seed {seed}");
        counted += few.counted;
    }
    assert!(counted > 20_000, "only {counted} packets were only counted");
}

/// A busy connection that is decided: what the tracker knows, and the streams that it has no more need of.
fn busy() -> (Tracker, Streams) {
    let (mut tracker, mut streams) = (Tracker::new(Patience::default()), Streams::default());
    let opening = [(0, true, SYN, 9), (1, false, SYN | ACK, 70), (2, true, ACK, 10)];
    let more = (3..300).map(|ms| (ms, ms % 2 == 0, ACK, 11));
    for (ms, to_pod, flags, seq) in opening.into_iter().chain(more) {
        read(&mut tracker, &mut streams, SECOND, &packet(ms * MS, to_pod, 40_000, TCP, flags, seq));
    }
    assert_eq!(tracker.poll(SECOND).len(), 1);
    for ms in 300..500 {
        read(&mut tracker, &mut streams, SECOND, &packet(ms * MS, ms % 2 == 0, 40_000, TCP, ACK, 11));
    }
    (tracker, streams)
}

fn read(tracker: &mut Tracker, streams: &mut Streams, now_ns: u64, records: &[PacketRecord; 2]) {
    for record in records {
        let place = Place::of(&record.header, Namespace::Node).unwrap();
        streams.note(record, tracker.push_packet(record, place), || now_ns);
    }
}

#[test]
fn a_connection_is_seen_whole_that_begins_before_the_programs_know_of_the_one_before() {
    let (mut tracker, mut streams) = busy();
    let mut programs = Programs::default();
    let orders = streams.take_orders();
    assert_eq!(orders.len(), 4, "two directions at two places: {orders:?}");
    // Its SYN is made, and not yet read, when the programs are told.
    let mut made = Vec::from(packet(SECOND - MS, true, 40_000, TCP, SYN, 7_000));
    programs.obey(orders);
    for record in [
        packet(SECOND + MS, false, 40_000, TCP, SYN | ACK, 90),
        packet(SECOND + 2 * MS, true, 40_000, TCP, ACK, 7_001),
        packet(SECOND + 100 * MS, true, 40_000, TCP, ACK, 7_001),
    ] {
        made.extend(record.into_iter().filter(|record| programs.makes_record(record)));
    }
    assert_eq!(made.len(), 8);
    for record in made {
        let place = Place::of(&record.header, Namespace::Node).unwrap();
        streams.note(&record, tracker.push_packet(&record, place), || SECOND + 150 * MS);
    }
    programs.obey(streams.take_orders());
    assert!(!streams.was_late() && programs.since_ns.is_empty());
    let paths = tracker.poll(2 * SECOND);
    assert_eq!(paths.iter().map(|path| path.is_acknowledged).collect::<Vec<_>>(), [true]);
}

#[test]
fn records_that_are_read_too_late_are_told() {
    for (syn_ms, read_ms, was_late) in [(999, 1100, false), (999, 1300, true), (1100, 60_000, false)] {
        let (mut tracker, mut streams) = busy();
        streams.take_orders();
        let syn = packet(syn_ms * MS, true, 40_000, TCP, SYN, 7_000);
        read(&mut tracker, &mut streams, read_ms * MS, &syn);
        assert_eq!(streams.was_late(), was_late, "a SYN at {syn_ms} ms, read at {read_ms} ms");
        streams.begin_anew();
        assert_eq!(streams.was_late(), was_late);
    }
}

#[test]
fn streams_that_are_over_make_room_and_those_that_go_on_stay() {
    let (mut tracker, mut streams) = busy();
    assert_eq!(streams.take_orders().len(), 4);
    // One record a second of one direction.
    for second in 1..=20 {
        read(&mut tracker, &mut streams, SECOND, &packet(second * SECOND, true, 40_000, TCP, ACK, 11));
        streams.forget(second * SECOND);
    }
    let over = streams.take_orders();
    assert_eq!(over.len(), 2, "{over:?}");
    let from_pod = |order: &Order| matches!(order, Order::Record { stream } if stream.src_port == 80);
    assert!(over.iter().all(from_pod), "{over:?}");
}

#[test]
fn of_two_streams_that_share_a_slot_the_first_is_only_counted() {
    let slot = |port| {
        let [record, _] = packet(0, true, port, UDP, 0, 0);
        Stream::slot(Stream::of(&record).words())
    };
    let other = (40_001..u16::MAX).find(|port| slot(*port) == slot(40_000)).expect("of 25,000 in 8,192");
    let mut streams = Streams::default();
    for port in [40_000, other, 40_000] {
        streams.note(&packet(5, true, port, UDP, 0, 0)[0], Need::Count, || 10);
    }
    let orders = streams.take_orders();
    assert!(
        matches!(orders[..], [Order::Count { stream, since_ns: 10 }] if stream.src_port == 40_000),
        "{orders:?}"
    );
    // What ended makes room for the other.
    streams.note(&packet(6, true, 40_000, UDP, 0, 0)[0], Need::Records, || 10);
    streams.note(&packet(7, true, other, UDP, 0, 0)[0], Need::Count, || 11);
    let ports = streams.take_orders().into_iter().map(|order| match order {
        Order::Count { stream, .. } => (true, stream.src_port),
        Order::Record { stream } => (false, stream.src_port),
    });
    assert_eq!(ports.collect::<Vec<_>>(), [(false, 40_000), (true, other)]);
}
