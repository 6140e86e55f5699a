//! Packets that only their buffer tells from others, and fragments.

use fixtures::Random;

use super::*;

/// A sighting in a buffer.
fn held(buffer: u64, ttl: u8, mut sighting: Sighting) -> Sighting {
    sighting.packet.ttl = ttl;
    match &mut sighting.seen {
        Seen::Hook { buffer: at, .. } | Seen::KernelDrop { buffer: at, .. } => *at = buffer,
        _ => unreachable!("only these know their buffer"),
    }
    sighting
}

/// An empty datagram without an identification, as IPv6 has them: nothing in it tells it from another.
fn empty(from: &str, to: &str) -> Packet {
    Packet { payload_len: 0, payload_hash: 0, ..udp(from, to, 0, 0) }
}

const CLIENT6: &str = "[2001:db8::8]:40000";
const FRONTEND6: &str = "[2001:db8::7]:53";
const NODE6: &str = "[2001:db8::4]:51000";
const POD6: &str = "[fd00::143]:53";

#[test]
fn an_empty_datagram_is_known_again_by_its_buffer() {
    let sightings = |buffer: u64| {
        [
            held(7, 63, at(0, HookPoint::UplinkIn, empty(CLIENT6, FRONTEND6))),
            held(buffer, 62, at(1, HookPoint::PodIn, empty(CLIENT6, POD6))),
        ]
    };
    let path = one_path(&sightings(7));
    assert_eq!(path.final_tuple(), tuple(CLIENT6, POD6, Protocol::UDP));
    assert_eq!(path.outcome, Outcome::NoAnswer);
    assert_eq!(paths(&sightings(8)).len(), 2, "another buffer");
    assert_eq!(paths(&sightings(0)).len(), 2, "no buffer is known");
}

#[test]
fn both_ends_may_change_in_a_datagram_that_was_forwarded() {
    let sightings = |buffer: u64, ttl: u8| {
        [
            held(7, 63, at(0, HookPoint::UplinkIn, udp(CLIENT6, FRONTEND6, 0, 0xabc))),
            held(buffer, ttl, at(1, HookPoint::HostOut, udp(NODE6, POD6, 0, 0xabc))),
        ]
    };
    assert_eq!(one_path(&sightings(7, 62)).final_tuple(), tuple(NODE6, POD6, Protocol::UDP));
    assert_eq!(paths(&sightings(8, 62)).len(), 2, "another buffer");
    assert_eq!(paths(&sightings(7, 64)).len(), 2, "the node's own: nobody took one off its TTL");
}

#[test]
fn a_buffer_that_is_used_again_joins_nothing() {
    let first = held(7, 63, at(0, HookPoint::UplinkIn, empty(CLIENT6, FRONTEND6)));
    let again = |ms, point, packet| held(7, 63, at(ms, point, packet));
    // The same client, so that the source is no help.
    let other = |point| again(1, point, empty(CLIENT6, POD6));
    for (what, sightings) in [
        ("too late", vec![first.clone(), again(6, HookPoint::PodIn, empty(CLIENT6, POD6))]),
        ("the same place", vec![first.clone(), other(HookPoint::UplinkIn)]),
        ("an earlier place", vec![first.clone(), other(HookPoint::PodOut)]),
        (
            "freed in between",
            vec![
                first.clone(),
                held(7, 63, Sighting { ktime_ns: 1, ..freed(0, 5, empty(CLIENT6, FRONTEND6)) }),
                other(HookPoint::PodIn),
            ],
        ),
        (
            "another length",
            vec![
                first.clone(),
                again(1, HookPoint::PodIn, Packet { payload_len: 9, ..empty(CLIENT6, POD6) }),
            ],
        ),
        (
            "another identification",
            vec![first.clone(), again(1, HookPoint::PodIn, Packet { ip_id: 9, ..empty(CLIENT6, POD6) })],
        ),
        ("a TTL that rose", vec![first.clone(), held(7, 64, other(HookPoint::PodIn))]),
        ("another sender", vec![first, again(1, HookPoint::PodIn, empty(NODE6, POD6))]),
    ] {
        assert_eq!(paths(&sightings).len(), 2, "{what}");
    }
}

#[test]
fn senders_of_the_same_payload_to_one_pod_stay_apart() {
    let other = "[2001:db8::9]:40000";
    let sightings = [
        held(7, 63, at(0, HookPoint::UplinkIn, udp(CLIENT6, POD6, 0, 0xabc))),
        held(8, 62, at(1, HookPoint::PodIn, udp(other, POD6, 0, 0xabc))),
    ];
    assert_eq!(paths(&sightings).len(), 2);
}

/// One of the flows that the property below mixes.
struct Made {
    client: String,
    /// Who it comes from after masquerading.
    masqueraded: String,
    frontend: &'static str,
    pod: &'static str,
    /// Index into [`WAYS`].
    way: usize,
    ttl: u8,
}

/// A place on a flow's way, and what was rewritten until there.
struct Step {
    point: HookPoint,
    dnat: bool,
    snat: bool,
    forwarded: bool,
}

const fn step(point: HookPoint, dnat: bool, snat: bool, forwarded: bool) -> Step {
    Step { point, dnat, snat, forwarded }
}

const WAYS: [&[Step]; 5] = [
    // Through the host's stack, by BPF host routing, dropped at once, masqueraded, and the node's own.
    &[
        step(HookPoint::UplinkIn, false, false, false),
        step(HookPoint::IpForward, true, false, false),
        step(HookPoint::PodIn, true, false, true),
    ],
    &[step(HookPoint::UplinkIn, false, false, false), step(HookPoint::PodIn, true, false, true)],
    &[step(HookPoint::UplinkIn, false, false, false)],
    &[
        step(HookPoint::UplinkIn, false, false, false),
        step(HookPoint::HostOut, true, true, true),
        step(HookPoint::PodIn, true, true, true),
    ],
    &[step(HookPoint::HostOut, true, false, false), step(HookPoint::PodIn, true, false, false)],
];
const MASQUERADED: usize = 3;
const OWN: usize = 4;

impl Made {
    fn new(number: u64, random: &mut Random) -> Self {
        let way = random.below(5) as usize;
        Self {
            client: format!("[2001:db8::{:x}]:{}", 16 + number / 4, 40_000 + number),
            masqueraded: format!("[2001:db8::4]:{}", 50_000 + number),
            frontend: ["[2001:db8::7]:53", "[2001:db8::6]:53"][random.below(2) as usize],
            pod: ["[fd00::143]:53", "[fd00::144]:53"][random.below(2) as usize],
            way,
            // What the node sends itself has the default; what comes from elsewhere has less, or another's default.
            ttl: if way == OWN { 64 } else { [62, 63, 64, 128][random.below(4) as usize] },
        }
    }

    /// The sightings of one packet in a buffer from `ns` on, a microsecond apart.
    fn packet(&self, buffer: u64, ns: u64, payload: u32) -> Vec<Sighting> {
        let payload_len = if payload == 0 { 0 } else { 20 };
        let seen = WAYS[self.way].iter().enumerate().map(|(index, step)| {
            let from = if step.snat { &self.masqueraded } else { &self.client };
            let to = if step.dnat { self.pod } else { self.frontend };
            let packet = Packet { payload_len, payload_hash: payload, ..udp(from, to, 0, 0) };
            let ttl = self.ttl - u8::from(step.forwarded);
            Sighting { ktime_ns: ns + index as u64 * 1000, ..held(buffer, ttl, at(0, step.point, packet)) }
        });
        seen.collect()
    }

    fn is(&self, tuple: &Tuple) -> bool {
        let source = std::net::SocketAddr::from((tuple.saddr, tuple.sport)).to_string();
        [&self.client, &self.masqueraded].contains(&&source)
    }
}

/// Packets of some flows, in few buffers: one after another in each, and several buffers at once.
fn mixed(flows: &[Made], payloads: impl Fn(usize, &mut Random) -> u32, random: &mut Random) -> Vec<Sighting> {
    let mut free_ns = vec![0; 1 + random.below(3) as usize];
    let mut sightings = Vec::new();
    for _ in 0..3 * flows.len() {
        let number = random.below(flows.len() as u64) as usize;
        let slot = random.below(free_ns.len() as u64) as usize;
        let buffer = 0xffff_8880_0000_0000 + slot as u64 * 1024;
        let payload = payloads(number, random);
        let seen = flows[number].packet(buffer, free_ns[slot], payload);
        free_ns[slot] += seen.len() as u64 * 1000 + random.below(3) * 500;
        sightings.extend(seen);
    }
    sightings
}

#[track_caller]
fn check_apart(flows: &[Made], paths: &[Path]) {
    for path in paths {
        let of = |hop: &Hop| flows.iter().position(|flow| flow.is(&hop.tuple));
        let found: std::collections::BTreeSet<_> = path.hops.iter().map(of).collect();
        assert_eq!(found.len(), 1, "{path:#?}");
    }
}

/// Flows that nothing but their addresses tells apart share and reuse buffers, as the kernel's allocator has it. No
/// path has packets of two, and every translation is known.
#[test]
fn flows_that_share_buffers_never_mix() {
    let mut random = Random::new(41);
    for _ in 0..200 {
        let flows: Vec<Made> =
            (0..2 + random.below(7)).map(|number| Made::new(number, &mut random)).collect();
        let payloads = |_, random: &mut Random| [0, 0xabc, 0xdef][random.below(3) as usize];
        let sightings = mixed(&flows, payloads, &mut random);
        let paths = paths(&sightings);
        check_apart(&flows, &paths);
        for flow in &flows {
            let of_flow: Vec<_> = paths.iter().filter(|path| flow.is(&path.tuple)).collect();
            // Nothing tells where an empty datagram goes when both its ends change.
            assert!(of_flow.len() <= 1 || flow.way == MASQUERADED, "{of_flow:#?}");
        }
    }
}

/// The same where records are lost, and with them what would have told that a buffer is used again.
#[test]
fn lost_records_do_not_mix_flows_in_one_buffer() {
    let mut random = Random::new(43);
    for _ in 0..200 {
        let flows: Vec<Made> =
            (0..2 + random.below(7)).map(|number| Made::new(number, &mut random)).collect();
        // Each has its own payload: two of the same in one buffer, with only the first half of one and the second of
        // the other recorded, would be one to anybody.
        let payloads =
            |number: usize, random: &mut Random| [0, 0xabc + number as u32][random.below(2) as usize];
        let mut sightings = mixed(&flows, payloads, &mut random);
        sightings.retain(|_| random.below(5) != 0);
        check_apart(&flows, &paths(&sightings));
    }
}

fn fragment(from: &str, to: &str, ip_id: u16, which: Fragment) -> Packet {
    let whole = udp(from, to, ip_id, 0xabc);
    match which {
        Fragment::Later => {
            let ports = Tuple { sport: 0, dport: 0, ..whole.tuple };
            Packet { fragment: which, payload_len: 700, payload_hash: 0, ..packet(ports) }
        }
        which => Packet { fragment: which, ..whole },
    }
    .with_id(ip_id)
}

impl Packet {
    fn with_id(self, ip_id: u16) -> Self {
        Self { ip_id, ..self }
    }
}

#[test]
fn later_fragments_belong_to_the_flow_of_the_first() {
    let path = one_path(&[
        at(0, HookPoint::UplinkIn, fragment(NAT_IP, FRONTEND, 71, Fragment::First)),
        at(1, HookPoint::UplinkIn, fragment(NAT_IP, FRONTEND, 71, Fragment::Later)),
        at(2, HookPoint::PodIn, fragment(NAT_IP, POD, 71, Fragment::First)),
        freed(3, 5, fragment(NAT_IP, POD, 71, Fragment::Later)),
    ]);
    assert_eq!(path.outcome, Outcome::DroppedByKernel { reason: 5, reply: false });
    assert_eq!(path.drops[0].tuple, tuple(NAT_IP, POD, Protocol::UDP), "with the first one's ports");
    assert_eq!(points(&path.hops), [HookPoint::UplinkIn, HookPoint::PodIn]);
}

#[test]
fn a_fragment_of_another_packet_is_no_part_of_the_flow() {
    for (what, ms, ip_id) in [("another identification", 1, 72), ("long after", 5_000, 71)] {
        let path = one_path(&[
            at(0, HookPoint::UplinkIn, fragment(NAT_IP, FRONTEND, 71, Fragment::First)),
            freed(ms, 5, fragment(NAT_IP, FRONTEND, ip_id, Fragment::Later)),
        ]);
        assert_eq!((path.outcome, path.drops.len()), (Outcome::Silent, 0), "{what}");
    }
}

#[test]
fn a_fragment_may_come_before_the_first_one() {
    let mut tracker = Tracker::new(Patience::default());
    tracker.push(&freed(1, 5, fragment(NAT_IP, POD, 71, Fragment::Later)));
    assert_eq!(tracker.poll(10 * MS), []);
    tracker.push(&at(2, HookPoint::PodIn, fragment(NAT_IP, POD, 71, Fragment::First)));
    let paths = tracker.finish();
    assert_eq!(paths.len(), 1, "{paths:#?}");
    assert_eq!(paths[0].outcome, Outcome::DroppedByKernel { reason: 5, reply: false });
}
