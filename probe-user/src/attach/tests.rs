//! The programs in real network namespaces: needs root, iproute2 and the built object, else each test skips.
//!
//! A scratch namespace belongs to a thread: nothing has a name, and all of it goes when the threads end.
mod streams;

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use probe_common::{
    Config, Counter, DropRecord, FRAGMENT, FRAGMENT_LATER, HookPoint, Packet, PacketRecord, RecordHeader,
};

use super::*;
use crate::sources::btf::Btf;
use crate::trace::kernel;

pub(crate) const NODE: &str = "10.99.0.1";
/// Instructions that the verifier may walk through for one program; it gives up at a million.
const VERIFIED_MAX: u32 = 30_000;
const NODE_V6: &str = "fd99::1";
pub(crate) const PORT: u16 = 4040;

/// The far end of the veth: a thread in a network namespace of its own.
pub(crate) struct Peer {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Peer {
    /// Runs `job` in the peer's namespace and waits for it.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        result.recv().expect("the job in the peer's namespace failed")
    }
}

/// Runs `test` in a thread with its own network namespace and a veth `v0` (10.99.0.1) to the peer's (10.99.0.2).
pub(crate) fn scratch(test: impl FnOnce(&Peer) + Send + 'static) {
    if !is_built_in() {
        fixtures::skip!("built without its eBPF object");
        return;
    }
    let test = std::thread::spawn(move || {
        if let Err(error) = unshare_network() {
            fixtures::skip!("no network namespace of its own ({error})");
            return;
        }
        if Command::new("tc").arg("-V").output().is_err() {
            fixtures::skip!("no `tc`");
            return;
        }
        test(&connect_peer());
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

fn unshare_network() -> std::io::Result<()> {
    // SAFETY: changes only this thread's network namespace.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Inode number of this thread's network namespace.
fn network_namespace() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino() as u32
}

fn connect_peer() -> Peer {
    let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
    let (ready, tid) = mpsc::channel();
    std::thread::spawn(move || {
        unshare_network().unwrap();
        // SAFETY: takes no argument.
        ready.send(unsafe { libc::gettid() }).unwrap();
        for job in queue {
            job();
        }
    });
    let tid = tid.recv().unwrap().to_string();
    sh("ip link set lo up");
    sh(&format!("ip link add v0 type veth peer name v1 netns {tid}"));
    sh("ip addr add 10.99.0.1/24 dev v0");
    sh("ip addr add fd99::1/64 dev v0 nodad");
    sh("ip link set v0 up");
    let peer = Peer { jobs };
    peer.run(|| {
        sh("ip addr add 10.99.0.2/24 dev v1");
        sh("ip addr add fd99::2/64 dev v1 nodad");
        sh("ip link set v1 up");
    });
    peer
}

#[track_caller]
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn filters() -> String {
    sh("tc filter show dev v0 ingress; tc filter show dev v0 egress")
}

pub(crate) fn settings(filter: Filter) -> Settings {
    let btf = Btf::load().unwrap();
    let (config, type_ids) = (kernel::config(&btf).unwrap(), kernel::type_ids(&btf));
    let interfaces = vec![Interface { name: "v0".into(), role: Role::Uplink }];
    Settings {
        filter,
        config,
        type_ids,
        ring_bytes: RING_BYTES,
        interfaces,
        namespaces: BTreeSet::new(),
        no_tc: false,
        probe: Probe::Any,
    }
}

/// Packets to or from `addr`.
pub(crate) fn about(addr: &str) -> Filter {
    Filter { targets: vec![target(addr, &[])], ..Filter::default() }
}

/// Packets of these ports to or from an address or prefix.
fn target(net: &str, ports: &[PortRange]) -> Target {
    let net = net.parse().unwrap_or_else(|_| net.parse::<IpAddr>().unwrap().into());
    Target { net, ports: ports.to_vec() }
}

/// A record that was read, as far as tests ask for it.
#[derive(Debug)]
pub(crate) enum Kept {
    Packet(PacketRecord),
    Drop(DropRecord),
    Other,
}

/// Keeps the records that it is given.
pub(crate) fn keep(kept: &mut Vec<Kept>) -> impl FnMut(Record<'_>) {
    |record| {
        kept.push(match record {
            Record::Packet(record) => Kept::Packet(*record),
            Record::Drop(record) => Kept::Drop(*record),
            _ => Kept::Other,
        });
    }
}

/// Attaches, runs `traffic`, detaches, and gives what was recorded and counted.
fn observe(settings: &Settings, traffic: impl FnOnce()) -> (Vec<Kept>, Counters) {
    in_runtime(|| {
        let (mut attachment, mut records) = Attachment::start(settings).unwrap();
        for hook in attachment.hooks().filter(|hook| hook.kind == HookKind::Classifier) {
            assert!(hook.state.is_attached(), "{hook:?}");
        }
        traffic();
        settle(|| attachment.counters().unwrap().get(Counter::PacketSeen));
        assert!(attachment.detach().is_empty());
        let mut batch = Vec::new();
        let counters = attachment.finish(&mut records, keep(&mut batch)).unwrap();
        assert_eq!(records.malformed(), 0);
        assert_eq!(records.read() + counters.lost(), counters.made(), "{counters:?}");
        (batch, counters)
    })
}

/// Waits until no packet of the traffic is under way: on a busy machine it is received by a thread of the kernel's.
fn settle(seen: impl Fn() -> u64) {
    let mut before = seen();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = seen();
        if now == before {
            return;
        }
        before = now;
    }
}

pub(crate) fn in_runtime<T>(body: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    body()
}

pub(crate) fn packets(records: &[Kept], point: HookPoint) -> Vec<Packet> {
    let at = |record: &Kept| match record {
        Kept::Packet(record) if record.header.point == point as u8 => Some(record.packet),
        _ => None,
    };
    records.iter().filter_map(at).collect()
}

/// Packets at a hook that sees every namespace of the machine, where other tests use the same addresses.
fn of_this_namespace(records: &[Kept], point: HookPoint) -> Vec<Packet> {
    let netns = network_namespace();
    let at = |record: &Kept| match record {
        Kept::Packet(record) if record.header.point == point as u8 => {
            (record.netns == 0 || record.netns == netns).then_some(record.packet)
        }
        _ => None,
    };
    records.iter().filter_map(at).collect()
}

/// Sends `count` datagrams of `len` bytes from the peer to the node.
pub(crate) fn send_udp(peer: &Peer, to: &str, count: usize, len: usize) {
    let to: IpAddr = to.parse().unwrap();
    peer.run(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 5050)).unwrap();
        for _ in 0..count {
            socket.send_to(&vec![7; len], (to, PORT)).unwrap();
        }
    });
}

/// Sends whole Ethernet frames from the peer's `v1`.
fn send_frames(peer: &Peer, frames: Vec<Vec<u8>>) {
    peer.run(move || {
        // SAFETY: takes numbers, returns a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: zeros are valid for a struct of integers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = crate::sys::ifindex("v1").unwrap().cast_signed();
        for frame in frames {
            // SAFETY: the frame and the address are as long as said and outlive the call.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const to).cast(),
                    size_of_val(&to) as u32,
                )
            };
            assert_eq!(sent, frame.len().cast_signed(), "{}", std::io::Error::last_os_error());
        }
    });
}

/// An Ethernet frame that no host takes for its own: the stack drops it after tc has seen it.
fn ethernet(protocol: u16, payload: &[u8]) -> Vec<u8> {
    let addresses = [[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]].concat();
    [&addresses[..], &protocol.to_be_bytes(), payload].concat()
}

fn ipv4(proto: u8, fragment: u16, (src, dst): (&str, &str), payload: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut header = vec![0x45, 0, 0, 0, 0, 9, 0, 0, 61, proto, 0, 0];
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    [&header[..], &octets(src), &octets(dst), payload].concat()
}

fn udp(src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let words = [src_port, dst_port, 8 + payload.len() as u16, 0].map(u16::to_be_bytes);
    [words.as_flattened(), payload].concat()
}

/// Makes a VXLAN interface in this namespace; `Err` says why this kernel does not.
pub(crate) fn add_vxlan(name: &str, options: &str) -> Result<(), String> {
    let add = format!("ip link add {name} type vxlan {options}");
    let output = Command::new("sh").args(["-c", &add]).output().unwrap();
    let why = || format!("no VXLAN interface: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(why)
}

/// A direct-action filter as Cilium attaches them, that returns `action`.
fn add_foreign(direction: &str, action: u32) {
    sh("tc qdisc replace dev v0 clsact");
    sh(&format!("tc filter add dev v0 {direction} prio 1 handle 1 bpf da bytecode '1,6 0 0 {action}'"));
}

#[test]
fn ours_sees_every_packet_that_a_foreign_filter_at_the_same_priority_then_judges() {
    const SHOT: u32 = 2;
    scratch(|peer| {
        add_foreign("ingress", SHOT);
        let before = filters();
        let receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // ARP would be dropped too.
        let link_address = sh("ip -br link show v0").split_whitespace().nth(2).unwrap().to_owned();
        peer.run(move || sh(&format!("ip neigh replace 10.99.0.1 lladdr {link_address} dev v1")));
        let (records, counters) = observe(&settings(about(NODE)), || {
            send_udp(peer, NODE, 100, 32);
            assert!(receiver.recv(&mut [0; 64]).is_err(), "the foreign filter drops every packet");
        });
        assert_eq!(counters.get(Counter::PacketMatched), 100);
        assert_eq!(counters.lost(), 0);
        let seen = packets(&records, HookPoint::UplinkIn);
        assert_eq!(seen.len(), 100);
        let tuple = |p: &Packet| (p.version, p.proto, p.src_port, p.dst_port, p.payload_len);
        assert!(seen.iter().all(|packet| tuple(packet) == (4, 17, 5050, PORT, 32)), "{seen:?}");
        assert_eq!(filters(), before, "the foreign filter is as it was");
    });
}

#[test]
fn packets_pass_us_and_nothing_of_ours_remains() {
    scratch(|peer| {
        sh("tc qdisc replace dev v0 clsact");
        let before = filters();
        let listener = std::net::TcpListener::bind((NODE, PORT)).unwrap();
        let (records, _) = observe(&settings(about(NODE)), || {
            peer.run(|| TcpStream::connect((NODE, PORT)).unwrap());
            listener.accept().unwrap();
        });
        let inbound = packets(&records, HookPoint::UplinkIn);
        let outbound = packets(&records, HookPoint::UplinkOut);
        let (syn, syn_ack) = (inbound[0], outbound[0]);
        assert_eq!((syn.tcp_flags, syn.dst_port, syn.ttl), (0x02, PORT, 64));
        assert_eq!(syn_ack.tcp_flags & 0x3f, 0x12);
        assert_eq!(syn_ack.ack, syn.seq.wrapping_add(1));
        assert_eq!((syn_ack.src, syn_ack.dst_port), (syn.dst, syn.src_port));
        assert_eq!(inbound[1].tcp_flags, 0x10);
        assert_eq!(filters(), before);
    });
}

#[test]
fn a_filter_that_comes_where_none_was_is_not_ours_to_remove() {
    scratch(|_| {
        sh("tc qdisc replace dev v0 clsact");
        // Cilium comes to an interface where we are already: a new pod's, or while its agent starts again.
        observe(&settings(about(NODE)), || {
            for direction in ["ingress", "egress"] {
                sh(&format!(
                    "tc filter replace dev v0 {direction} prio 1 handle 1 bpf da bytecode '1,6 0 0 0'"
                ));
            }
            assert_eq!(filters().matches("plsprobe_uplink").count(), 4, "it took our place: {}", filters());
        });
        assert_eq!(filters().matches("handle 0x1 ").count(), 2, "{}", filters());
    });
}

#[test]
fn where_there_was_no_qdisc_none_stays() {
    scratch(|peer| {
        if !crate::sources::classifiers::has_tcx() {
            fixtures::skip!("no tcx: the qdisc stays, as docs/limitations.md says");
            return;
        }
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let qdiscs = || sh("tc qdisc show dev v0");
        let before = qdiscs();
        assert!(!before.contains("clsact"), "{before}");
        let (records, _) = observe(&settings(about(NODE)), || {
            assert_eq!(qdiscs(), before);
            send_udp(peer, NODE, 10, 8);
        });
        assert_eq!(packets(&records, HookPoint::UplinkIn).len(), 10);
        assert_eq!(qdiscs(), before);
    });
}

#[test]
fn only_the_ports_and_sources_asked_for() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let to =
            |port| Filter { targets: vec![target(NODE, &[PortRange::one(port, 17)])], ..Filter::default() };
        let matched = |filter| {
            let (_, counters) = observe(&settings(filter), || send_udp(peer, NODE, 10, 8));
            counters.get(Counter::PacketMatched)
        };
        let from = |net: &str, port| Filter { sources: vec![net.parse().unwrap()], ..to(port) };
        assert_eq!(matched(to(PORT)), 10);
        assert_eq!(matched(to(PORT + 1)), 0);
        assert_eq!(matched(from("10.99.0.0/24", PORT)), 10);
        assert_eq!(matched(from("10.99.0.2/32", PORT)), 10);
        assert_eq!(matched(from("10.99.0.3/32", PORT)), 0);
        assert_eq!(matched(about("10.99.0.77")), 0);
    });
}

#[test]
fn prefixes_ranges_and_protocols() {
    scratch(|peer| {
        let _receivers = [NODE, NODE_V6].map(|addr| UdpSocket::bind((addr, PORT)).unwrap());
        let matched = |to: &'static str, targets: &[Target]| {
            let filter = Filter { targets: targets.to_vec(), ..Filter::default() };
            let (_, counters) = observe(&settings(filter), || send_udp(peer, to, 10, 8));
            counters.get(Counter::PacketMatched)
        };
        let range = |protocol, first, last| [PortRange { protocol, first, last }];
        // Neighbour discovery would count at a whole prefix of IPv6: its addresses are in it.
        let udp = [PortRange::all(17)];
        for (to, near, far) in [(NODE, "10.99.0.0/24", "10.98.0.0/16"), (NODE_V6, "fd99::/16", "fd98::/16")] {
            assert_eq!(matched(to, &[target(near, &udp)]), 10);
            assert_eq!(matched(to, &[target(far, &udp)]), 0);
            assert_eq!(matched(to, &[target(near, &[PortRange::all(6)])]), 0);
            assert_eq!(matched(to, &[target(near, &range(17, PORT - 100, PORT + 3))]), 10);
            assert_eq!(matched(to, &[target(near, &range(17, PORT + 1, 5049))]), 0);
            assert_eq!(matched(to, &[target(near, &range(6, 0, u16::MAX)), target(to, &udp)]), 10);
            // The longer prefix does not hide what holds around it.
            assert_eq!(matched(to, &[target(near, &udp), target(to, &range(6, 80, 80))]), 10);
        }
    });
}

/// What the node receives and `text` matches too.
fn selected(text: &str) -> Filter {
    Filter { expression: Some(Expression::parse(text).unwrap()), ..about(NODE) }
}

#[test]
fn an_expression_leaves_out_the_rest() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        // Five datagrams of 400 bytes, all of them 7: to a classifier, and to a hook that reads the kernel's memory.
        let matched = |text: &str, no_tc: bool| {
            let settings = Settings { no_tc, ..settings(selected(text)) };
            let (records, counters) = observe(&settings, || send_udp(peer, NODE, 5, 400));
            if !no_tc {
                return counters.get(Counter::PacketMatched);
            }
            let is_ours = |record: &&Kept| match record {
                Kept::Packet(packet) => {
                    packet.header.point == HookPoint::Received as u8 && packet.netns == network_namespace()
                }
                _ => false,
            };
            records.iter().filter(is_ours).count() as u64
        };
        for no_tc in [false, true] {
            assert_eq!(matched("udp[8] = 7 and udp[200:4] = 0x07070707", no_tc), 5);
            assert_eq!(matched("udp[8] = 8", no_tc), 0);
            assert_eq!(matched("udp src port 5050 and dst host 10.99.0.1 and len = 428", no_tc), 5);
            assert_eq!(matched("tcp", no_tc), 0);
            // Bytes 256 and on are not looked at: of IP, and of UDP behind it.
            assert_eq!(matched("ip[255] = 7 and udp[235] = 7", no_tc), 5);
            assert_eq!(matched("ip[256] = 7", no_tc), 0);
            assert_eq!(matched("udp[236] = 7", no_tc), 0);
        }
    });
}

#[test]
fn an_expression_is_asked_of_drops() {
    scratch(|peer| {
        let drops = |text: &str| {
            let (records, _) = observe(&settings(selected(text)), || send_udp(peer, NODE, 3, 16));
            let is_ours = |record: &&Kept| match record {
                Kept::Drop(drop) => drop.netns == network_namespace() && drop.packet.proto == 17,
                _ => false,
            };
            records.iter().filter(is_ours).count()
        };
        assert_eq!(drops("udp port 4040"), 3);
        assert_eq!(drops("udp port 4041"), 0);
    });
}

#[test]
fn the_kernel_agrees_with_libpcap() {
    use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
    const PROTOCOL: u8 = 253; // for experiments: nothing behind the IP header is parsed
    scratch(|_| {
        let mut random = fixtures::Random::new(7);
        let mut matches = 0;
        for _ in 0..30 {
            let program = expression::tests::random_program(&mut random);
            let filter = Filter { expression: Some(Expression::translate(&program).unwrap()), ..about(NODE) };
            let mut ebpf = object::load(&settings(filter)).unwrap();
            let counters: PerCpuArray<MapData, u64> = take(&mut ebpf, "COUNTERS").unwrap();
            let classifier: &mut SchedClassifier =
                ebpf.program_mut("plsprobe_look_uplink_in").unwrap().try_into().unwrap();
            classifier.load().unwrap();
            for len in [20usize, 37, 100, 255, 256, 257, 400] {
                let mut packet =
                    vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 1, 0x40, 0, 64, PROTOCOL, 0, 0];
                packet.extend([10, 99, 0, 2, 10, 99, 0, 1]);
                packet.extend(expression::tests::random_bytes(&mut random, len - 20));
                let frame = [&[0; 12][..], &[0x08, 0x00], &packet].concat();
                let matched =
                    || counters.get(&(Counter::PacketMatched as u32), 0).unwrap().iter().sum::<u64>();
                let before = matched();
                let options = TestRunOptions { data_in: Some(&frame), ..Default::default() };
                classifier.test_run(options).unwrap();
                let captured = &packet[..len.min(probe_common::CAPTURE_MAX)];
                let expected = u64::from(crate::pcap::run(&program, captured, len as u32) != 0);
                assert_eq!(matched() - before, expected, "{program:x?}\n{packet:x?}");
                matches += expected;
            }
        }
        assert!((25..185).contains(&matches), "{matches} of 210 match: too few of one kind");
    });
}

#[test]
fn a_record_that_is_not_wanted_does_not_hold_up_the_next() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let target = target(NODE, &[PortRange::one(PORT, 17)]);
        let settings = settings(Filter { targets: vec![target], ..Filter::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_attachment, mut records) = Attachment::start(&settings).unwrap();
            // To another port: looked at, and passed over.
            peer.run(|| UdpSocket::bind(("10.99.0.2", 0)).unwrap().send_to(&[1], (NODE, PORT + 1)).unwrap());
            send_udp(peer, NODE, 1, 8);
            let mut batch = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(2), async {
                while packets(&batch, HookPoint::UplinkIn).is_empty() {
                    records.ready().await.unwrap();
                    records.take(keep(&mut batch));
                }
            });
            read.await.expect("the reader is woken for a wanted record behind an unwanted one");
        });
    });
}

#[test]
fn ipv6_and_the_error_that_quotes_it() {
    scratch(|peer| {
        let (records, _) = observe(&settings(about(NODE_V6)), || send_udp(peer, NODE_V6, 1, 40));
        let udp =
            packets(&records, HookPoint::UplinkIn).into_iter().find(|packet| packet.proto == 17).unwrap();
        assert_eq!((udp.version, udp.src_port, udp.dst_port, udp.payload_len), (6, 5050, PORT, 40));
        assert_ne!(udp.payload_hash, 0);
        // Nobody listens: ICMPv6 destination unreachable, port unreachable, with the datagram inside.
        let error = packets(&records, HookPoint::UplinkOut)
            .into_iter()
            .find(|packet| packet.quoted_proto != 0)
            .unwrap();
        assert_eq!((error.icmp_type, error.icmp_code, error.quoted_proto), (1, 4, 17));
        assert_eq!((error.quoted_src_port, error.quoted_dst_port), (5050, PORT));
        assert_eq!(error.quoted_dst, udp.dst);
    });
}

#[test]
fn fragments_of_one_packet_have_one_identification() {
    for to in [NODE, NODE_V6] {
        scratch(move |peer| {
            let (records, _) = observe(&settings(about(to)), || send_udp(peer, to, 2, 4000));
            let seen = packets(&records, HookPoint::UplinkIn).into_iter().filter(|packet| packet.proto == 17);
            let seen: Vec<_> = seen.map(|packet| (packet.ip_id, packet.fragment)).collect();
            let (first, later) = (FRAGMENT, FRAGMENT | FRAGMENT_LATER);
            let fragments: Vec<_> = seen.iter().map(|(_, fragment)| *fragment).collect();
            assert_eq!(fragments, [first, later, later, first, later, later], "{to}");
            let ids = [seen[0].0, seen[3].0];
            assert!(seen[..3].iter().all(|(id, _)| *id == ids[0]), "{to}: {seen:?}");
            assert!(seen[3..].iter().all(|(id, _)| *id == ids[1]), "{to}: {seen:?}");
            assert_ne!(ids, [0, 0], "{to}");
        });
    }
}

#[test]
fn the_kernels_drop_has_its_reason() {
    scratch(|peer| {
        let names = Btf::load().unwrap().enum_names("skb_drop_reason").unwrap();
        let (records, counters) = observe(&settings(about(NODE)), || send_udp(peer, NODE, 3, 16));
        let drops: Vec<_> = records
            .iter()
            .filter_map(|record| match record {
                // The tracepoint is the whole machine's: other tests' namespaces use the same addresses.
                Kept::Drop(drop) if drop.netns == network_namespace() && drop.packet.proto == 17 => {
                    Some(drop)
                }
                _ => None,
            })
            .collect();
        assert_eq!(drops.len(), 3, "{counters:?}");
        assert_eq!(names[&drops[0].reason], "SKB_DROP_REASON_NO_SOCKET");
        assert_eq!((drops[0].packet.src_port, drops[0].packet.dst_port), (5050, PORT));
        assert_ne!(drops[0].location, 0);
    });
}

/// What a hook that sees every namespace kept of this one, in an order that does not depend on when it looked.
fn told(records: &[Kept]) -> Vec<String> {
    let netns = network_namespace();
    let what = |record: &Kept| match record {
        Kept::Packet(PacketRecord { header, buffer, skb_len, mark, hash, netns: seen, packet }) => {
            let (point, ifindex) = (header.point, header.ifindex);
            (*seen == netns)
                .then(|| format!("{point} {ifindex} {buffer:x} {skb_len} {mark} {hash} {packet:?}"))
        }
        Kept::Drop(drop) if drop.netns == netns => {
            Some(format!("{:?}", DropRecord { header: RecordHeader::default(), ..*drop }))
        }
        _ => None,
    };
    let mut told: Vec<_> = records.iter().filter_map(what).collect();
    told.sort();
    told
}

/// Hooks that see every namespace, of which other tests have some with the same addresses.
fn of_this_namespace_alone() -> Settings {
    Settings { no_tc: true, namespaces: BTreeSet::from([network_namespace()]), ..settings(about(NODE)) }
}

/// By which means the hooks of these kinds are attached; `None` if the kernel refuses one.
fn means(settings: &Settings, kinds: &[HookKind]) -> Option<BTreeSet<&'static str>> {
    let (attachment, _) = in_runtime(|| Attachment::start(settings).unwrap());
    let wanted = attachment.hooks().filter(|hook| kinds.contains(&hook.kind));
    let means = wanted.map(|hook| match hook.state {
        HookState::Attached(means) => Some(means),
        _ => None,
    });
    means.collect()
}

/// The same packets are told alike by both. They are received and dropped with an answer, in fragments, with a tag, and
/// open a TCP connection that is refused.
fn tell_the_same(peer: &Peer, one: &Settings, other: &Settings) -> Vec<String> {
    in_runtime(|| {
        let mut both = [one, other].map(|settings| Attachment::start(settings).unwrap());
        send_udp(peer, NODE, 3, 16);
        send_udp(peer, NODE, 1, 4000);
        send_frames(peer, vec![tagged()]);
        peer.run(|| TcpStream::connect((NODE, PORT)).unwrap_err());
        settle(|| both.iter().map(|(attachment, _)| attachment.counters().unwrap().made()).sum());
        for (attachment, _) in &mut both {
            assert!(attachment.detach().is_empty());
        }
        let [by_one, by_other] = both.map(|(attachment, mut records)| {
            let mut batch = Vec::new();
            let counters = attachment.finish(&mut records, keep(&mut batch)).unwrap();
            assert_eq!((records.read(), counters.lost()), (counters.made(), 0), "{counters:?}");
            told(&batch)
        });
        assert_eq!(by_one, by_other);
        by_one
    })
}

/// By programs to which the verifier knows the packet's type, and by programs that ask for each member.
#[test]
fn typed_and_raw_tracepoints_tell_the_same() {
    scratch(|peer| {
        let typed = of_this_namespace_alone();
        let raw = Settings { type_ids: TypeIds::default(), ..typed.clone() };
        let kinds = [HookKind::KernelDrops, HookKind::Devices];
        assert_eq!(means(&typed, &kinds), Some(BTreeSet::from(["tp_btf"])));
        assert_eq!(means(&raw, &kinds), Some(BTreeSet::from(["raw tracepoint"])));
        let told = tell_the_same(peer, &typed, &raw);
        assert!(told.len() >= 14, "{told:#?}");
    });
}

/// Of a hook that sees every namespace, whichever way it reads packets.
#[test]
fn only_the_namespaces_asked_for() {
    scratch(|peer| {
        let own = network_namespace();
        for type_ids in [settings(about(NODE)).type_ids, TypeIds::default()] {
            let kept = |namespaces: BTreeSet<u32>| {
                let settings =
                    Settings { namespaces, no_tc: true, type_ids: type_ids.clone(), ..settings(about(NODE)) };
                let (records, counters) = observe(&settings, || send_udp(peer, NODE, 3, 16));
                let is_own = settings.namespaces.is_empty() || settings.namespaces.contains(&own);
                assert!(!is_own || counters.get(Counter::PacketSeen) >= 3, "{counters:?}");
                of_this_namespace(&records, HookPoint::Received).iter().filter(|one| one.proto == 17).count()
            };
            assert_eq!(kept(BTreeSet::new()), 3);
            assert_eq!(kept(BTreeSet::from([own, own + 1])), 3);
            assert_eq!(kept(BTreeSet::from([own + 1])), 0);
        }
    });
}

/// The same at functions of the IP layer.
#[test]
fn fentry_and_kprobes_tell_the_same() {
    scratch(|peer| {
        let by = |probe| Settings { probe, ..of_this_namespace_alone() };
        let (fentry, kprobe) = (by(Probe::Fentry), by(Probe::Kprobe));
        let kinds = [HookKind::IpLayer];
        let found = [means(&fentry, &kinds), means(&kprobe, &kinds)];
        if found.contains(&None) {
            fixtures::skip!("this kernel refuses fentry or kprobes");
            return;
        }
        assert_eq!(found, ["fentry", "kprobe"].map(|means| Some(BTreeSet::from([means]))));
        let told = tell_the_same(peer, &fentry, &kprobe);
        let in_ip = |point: HookPoint| {
            let prefix = format!("{} ", point as u8);
            told.iter().filter(|told| told.starts_with(&prefix)).count()
        };
        // Three datagrams, the fragments before they are one again, the tagged one, the SYN.
        assert!(in_ip(HookPoint::IpReceive) >= 7 && in_ip(HookPoint::IpDeliver) >= 7, "{told:#?}");
    });
}

#[test]
fn records_that_reach_past_the_end_of_the_ring_are_whole() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let settings = Settings { ring_bytes: 4096, ..settings(about(NODE)) };
        in_runtime(|| {
            let (attachment, mut records) = Attachment::start(&settings).unwrap();
            let mut lengths = Vec::new();
            for round in 1..=10 {
                send_udp(peer, NODE, 10, 100 + round);
                settle(|| attachment.counters().unwrap().get(Counter::PacketSeen));
                let mut kept = Vec::new();
                records.drain(keep(&mut kept));
                let seen =
                    packets(&kept, HookPoint::UplinkIn).into_iter().filter(|packet| packet.proto == 17);
                lengths.extend(seen.map(|packet| packet.payload_len as usize));
            }
            // Some 25 records fill the ring, and it is no multiple of one.
            let sent = (1..=10).flat_map(|round| [100 + round; 10]);
            assert!(lengths.iter().copied().eq(sent), "{lengths:?}");
            assert_eq!((records.malformed(), records.missing(), records.disordered()), (0, 0, 0));
        });
    });
}

#[test]
fn records_that_find_no_room_are_counted() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let settings = Settings { ring_bytes: 4096, ..settings(about(NODE)) };
        let (records, counters) = observe(&settings, || send_udp(peer, NODE, 200, 8));
        let kept = packets(&records, HookPoint::UplinkIn).len() as u64;
        let lost = counters.get(Counter::PacketLost);
        assert!(kept > 0 && lost > 0, "{kept} kept, {lost} lost");
        assert_eq!(counters.get(Counter::PacketMatched), 200);
        assert_eq!(kept + lost, 200);
    });
}

const INSIDE: (&str, &str) = ("10.1.0.7", "10.2.0.9");

/// The datagram of [`INSIDE`] with a tunnel's headers around it.
fn in_tunnel(port: u16, tunnel_header: &[u8]) -> Vec<u8> {
    let inner = ethernet(0x0800, &ipv4(17, 0, INSIDE, &udp(1111, 2222, &[5; 24])));
    let outer = udp(50_000, port, &[tunnel_header, &inner].concat());
    ethernet(0x0800, &ipv4(17, 0, ("10.99.0.2", NODE), &outer))
}

#[test]
fn a_packet_in_a_tunnel_is_known_by_what_is_inside() {
    const VXLAN: u16 = 8473;
    const GENEVE: u16 = 6082;
    let vxlan = [8, 0, 0, 0, 0, 0x12, 0x34, 0];
    // Two words of options.
    let geneve = [2, 0, 0x65, 0x58, 0, 0x56, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    scratch(move |peer| {
        let mut settings = settings(about(INSIDE.1));
        (settings.config.vxlan_port, settings.config.geneve_port) = (VXLAN, GENEVE);
        let (records, _) = observe(&settings, || {
            let without_id = [0, 0, 0, 0, 0, 0x12, 0x34, 0];
            let frames = vec![
                in_tunnel(VXLAN, &vxlan),
                in_tunnel(GENEVE, &geneve),
                in_tunnel(VXLAN + 1, &vxlan),
                in_tunnel(VXLAN, &without_id),
            ];
            send_frames(peer, frames);
        });
        let seen = packets(&records, HookPoint::UplinkIn);
        let tunnels: Vec<_> = seen.iter().map(|packet| (packet.tunnel, packet.tunnel_id)).collect();
        assert_eq!(
            tunnels,
            [(1, 0x1234), (2, 0x5678)],
            "another port or no identifier is no tunnel: {seen:?}"
        );
        for packet in seen {
            assert_eq!(
                (packet.src[..4].to_vec(), packet.dst[..4].to_vec()),
                (vec![10, 1, 0, 7], vec![10, 2, 0, 9])
            );
            assert_eq!((packet.src_port, packet.dst_port, packet.payload_len), (1111, 2222, 24));
        }
    });
}

#[test]
fn a_packet_between_nodes_is_seen_with_and_without_its_tunnel() {
    scratch(|peer| {
        let tunnel = |remote: &str, dev: &str| format!("id 5 dstport 8473 remote {remote} dev {dev}");
        if let Err(why) = add_vxlan("cilium_vxlan", &tunnel("10.99.0.2", "v0")) {
            fixtures::skip!("{why}");
            return;
        }
        sh("ip addr add 10.98.0.1/24 dev cilium_vxlan && ip link set cilium_vxlan up");
        let theirs = tunnel(NODE, "v1");
        peer.run(move || {
            add_vxlan("vx1", &theirs).unwrap();
            sh("ip addr add 10.98.0.2/24 dev vx1 && ip link set vx1 up");
        });
        let receiver = UdpSocket::bind(("10.98.0.1", PORT)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut settings = settings(about("10.98.0.1"));
        settings.config.vxlan_port = 8473;
        settings.interfaces.push(Interface { name: "cilium_vxlan".into(), role: Role::Overlay });
        let (records, _) = observe(&settings, || {
            send_udp(peer, "10.98.0.1", 1, 40);
            receiver.recv(&mut [0; 64]).unwrap();
        });
        let tuple =
            |packet: &Packet| (packet.src_port, packet.dst_port, packet.payload_len, packet.payload_hash);
        let is_udp = |packet: &&Packet| packet.proto == 17;
        let (outside, inside) =
            (packets(&records, HookPoint::UplinkIn), packets(&records, HookPoint::OverlayIn));
        let (outside, inside) = (outside.iter().find(is_udp).unwrap(), inside.iter().find(is_udp).unwrap());
        assert_eq!((outside.tunnel, outside.tunnel_id, inside.tunnel), (1, 5, 0));
        assert_eq!(tuple(outside), tuple(inside));
        assert_eq!(tuple(inside), (5050, PORT, 40, inside.payload_hash));
    });
}

/// A datagram to the node with the tag of VLAN 7, priority 5.
fn tagged() -> Vec<u8> {
    let datagram = ipv4(17, 0, ("10.99.0.2", NODE), &udp(5050, PORT, &[1; 16]));
    let tag = [0xa0, 7, 0x08, 0];
    ethernet(0x8100, &[&tag[..], &datagram].concat())
}

#[test]
fn a_vlan_tag_is_no_obstacle() {
    scratch(|peer| {
        for no_tc in [false, true] {
            let settings = Settings { no_tc, ..settings(about(NODE)) };
            let (records, _) = observe(&settings, || send_frames(peer, vec![tagged()]));
            let point = if no_tc { HookPoint::Received } else { HookPoint::UplinkIn };
            let seen = of_this_namespace(&records, point);
            let seen: Vec<_> = seen.iter().map(|packet| (packet.vlan, packet.dst_port)).collect();
            assert_eq!(seen, [(7, PORT)], "{point:?}");
        }
    });
}

#[test]
fn a_later_fragment_is_known_by_its_addresses() {
    const MORE: u16 = 0x2000;
    scratch(|peer| {
        let seen = |port| {
            let targets = vec![target(NODE, &[PortRange::one(port, 17)])];
            let settings = settings(Filter { targets, ..Filter::default() });
            let (records, _) = observe(&settings, || {
                let ends = ("10.99.0.2", NODE);
                let first = ipv4(17, MORE, ends, &udp(5050, PORT, &[1; 16]));
                let later = ipv4(17, 3, ends, &[2; 16]);
                send_frames(peer, vec![ethernet(0x0800, &first), ethernet(0x0800, &later)]);
            });
            let seen = packets(&records, HookPoint::UplinkIn);
            seen.iter().map(|packet| (packet.fragment, packet.dst_port)).collect::<Vec<_>>()
        };
        assert_eq!(seen(PORT), [(1, PORT), (3, 0)]);
        assert_eq!(seen(PORT + 1), [(3, 0)], "without ports of its own the address decides");
    });
}

/// What SIGKILL leaves: filters in place, and nobody who has the map open that makes them look.
fn orphan(settings: &Settings) -> (Ebpf, PerCpuArray<MapData, u64>) {
    let (attachment, _records) = Attachment::start(settings).unwrap();
    let Attachment { classifiers, counters, mut ebpf, .. } = attachment;
    std::mem::forget(classifiers);
    drop(ebpf.take_map("LOOKERS").expect("a map of our object"));
    (ebpf, counters)
}

#[test]
fn an_orphan_is_inert_and_the_next_start_removes_it() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        add_foreign("ingress", 0);
        let before = filters();
        let settings = settings(about(NODE));
        let (ebpf, counters) = in_runtime(|| orphan(&settings));
        assert!(filters().contains("plsprobe_uplink_in"), "{}", filters());
        let seen = || counters.get(&(Counter::PacketSeen as u32), 0).unwrap().iter().sum::<u64>();
        // The kernel empties the map a moment later, on a thread of its own.
        let is_inert = (0..400).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            let before = seen();
            send_udp(peer, NODE, 10, 8);
            seen() == before
        });
        assert!(is_inert, "it still looks at packets");
        std::mem::forget(ebpf);
        // A child that another test is just starting holds our descriptors, the slot's among them, until it is that
        // other program.
        for _ in 0..400 {
            if alone::Slot::take().unwrap().is_alone() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }

        let (records, _) = observe(&settings, || {
            assert_eq!(filters().matches("plsprobe_uplink_in").count(), 1, "{}", filters());
            send_udp(peer, NODE, 10, 8);
        });
        assert_eq!(packets(&records, HookPoint::UplinkIn).len(), 10);
        assert_eq!(filters(), before);
    });
}

#[test]
fn a_second_plsprobe_leaves_the_first_alone() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let settings = settings(about(NODE));
        let (records, _) = observe(&settings, || {
            let (second, _) = observe(&settings, || send_udp(peer, NODE, 5, 8));
            assert_eq!(packets(&second, HookPoint::UplinkIn).len(), 5);
            send_udp(peer, NODE, 5, 8);
        });
        assert_eq!(packets(&records, HookPoint::UplinkIn).len(), 10);
    });
}

#[test]
fn beside_tcx_ours_is_tcx_and_first() {
    scratch(|peer| {
        let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
        let settings = settings(about(NODE));
        in_runtime(|| {
            use aya::programs::tc::{TcAttachOptions, TcAttachType};
            use aya::programs::{LinkOrder, SchedClassifier};
            let mut neighbour = object::load(&settings).unwrap();
            let program: &mut SchedClassifier =
                neighbour.program_mut("plsprobe_look_pod_in").unwrap().try_into().unwrap();
            program.load().unwrap();
            let order = TcAttachOptions::TcxOrder(LinkOrder::last());
            if let Err(error) = program.attach_with_options("v0", TcAttachType::Ingress, order) {
                fixtures::skip!("no tcx ({error})");
                return;
            }
            let (mut attachment, mut records) = Attachment::start(&settings).unwrap();
            let ingress = attachment.hooks().find(|hook| hook.place == "v0 ingress").unwrap();
            assert_eq!(ingress.state, HookState::Attached("tcx"));
            let egress = attachment.hooks().find(|hook| hook.place == "v0 egress").unwrap();
            assert_eq!(egress.state, HookState::Attached("tcx"), "legacy tc would leave a qdisc behind");
            let (_, programs) = SchedClassifier::query_tcx("v0", TcAttachType::Ingress).unwrap();
            let names: Vec<_> = programs.iter().map(|program| program.name_as_str().unwrap()).collect();
            assert_eq!(names, ["plsprobe_uplink", "plsprobe_look_p"]);
            send_udp(peer, NODE, 10, 8);
            let neighbour_saw: PerCpuArray<_, u64> = take(&mut neighbour, "COUNTERS").unwrap();
            let seen: u64 = neighbour_saw.get(&(Counter::PacketSeen as u32), 0).unwrap().iter().sum();
            assert!(seen >= 10, "the neighbour saw {seen}");
            assert!(attachment.detach().is_empty());
            let mut batch = Vec::new();
            records.drain(keep(&mut batch));
            assert_eq!(packets(&batch, HookPoint::UplinkIn).len(), 10);
            let (_, programs) = SchedClassifier::query_tcx("v0", TcAttachType::Ingress).unwrap();
            assert_eq!(programs.len(), 1);
        });
    });
}

#[test]
fn an_interface_that_goes_and_one_that_does_not_exist() {
    scratch(|_| {
        let missing = Interface { name: "nosuch0".into(), role: Role::Pod };
        let mut settings = settings(about(NODE));
        settings.interfaces.push(missing);
        in_runtime(|| {
            let (mut attachment, _records) = Attachment::start(&settings).unwrap();
            let refused: Vec<_> =
                attachment.hooks().filter(|hook| matches!(hook.state, HookState::Refused(_))).collect();
            assert!(refused.iter().any(|hook| hook.place == "nosuch0 ingress"), "{refused:?}");
            assert_eq!(attachment.recheck(&settings.interfaces), []);
            sh("ip link del v0");
            let changed = attachment.recheck(&settings.interfaces);
            assert_eq!(changed.len(), 2);
            assert_eq!(changed[0].state, HookState::Lost("interface `v0` has gone".into()));
            assert_eq!(attachment.recheck(&settings.interfaces), [], "told once");
            sh("ip link add v0 type veth peer name v9 && ip link set v0 up");
            let changed = attachment.recheck(&settings.interfaces);
            assert_eq!(changed.len(), 2);
            assert!(changed.iter().all(|hook| hook.state.is_attached()), "{changed:?}");
            let at_v0 = |hook: &&Hook| hook.place.starts_with("v0 ");
            assert_eq!(attachment.hooks().filter(at_v0).count(), 2, "the new ones stand for the old");
            assert!(attachment.detach().is_empty());
        });
    });
}

/// `cargo test -p probe-user --release --lib cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn cost_of_a_packet() {
    use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
    const REPEAT: u32 = 1_000_000;
    scratch(|_| {
        in_runtime(|| {
            // An Ethernet frame with a TCP SYN from 10.99.0.2 to 10.99.0.1:80.
            let mut frame = vec![0u8; 12];
            frame.extend([0x08, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1]);
            frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
            let measure = |what: &str, filter: Filter| {
                let (mut attachment, records) = Attachment::start(&settings(filter)).unwrap();
                let program: &mut SchedClassifier =
                    attachment.ebpf.program_mut("plsprobe_uplink_in").unwrap().try_into().unwrap();
                let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..Default::default() };
                let result = program.test_run(options).unwrap();
                let counters = attachment.counters().unwrap();
                println!("{what}: {:?} a packet, {} lost", result.duration, counters.lost());
                drop(records);
            };
            measure("turned away by its addresses", about("10.1.2.3"));
            measure("matched (the ring fills)", about(NODE));
            let prefix = |net| Filter { targets: vec![target(net, &[])], ..Filter::default() };
            measure("turned away by a prefix", prefix("10.1.2.0/24"));
            let both = vec![target("11.0.0.0/8", &[]), target("0.0.0.0/5", &[])];
            measure("turned away by a lookup", Filter { targets: both, ..Filter::default() });
            measure("matched by a prefix", prefix("10.99.0.0/24"));
            let ports =
                |ports: &[PortRange]| Filter { targets: vec![target(NODE, ports)], ..Filter::default() };
            let range = |first, last| PortRange { protocol: 6, first, last };
            measure("turned away by its port", ports(&[range(8000, 8100)]));
            measure("matched by its port", ports(&[range(80, 80)]));
            measure("matched by a range", ports(&[range(1, 65534)]));
            for (what, text) in [
                ("turned away", "tcp[tcpflags] & tcp-syn == 0"),
                ("matched", "tcp[tcpflags] & tcp-syn != 0"),
                (
                    "matched",
                    "host 10.99.0.2 and (tcp port 80 or tcp port 443) and tcp[tcpflags] & tcp-syn != 0",
                ),
            ] {
                let expression = Some(Expression::parse(text).unwrap());
                measure(&format!("{what} by `{text}`"), Filter { expression, ..about(NODE) });
                let expression = Some(Expression::parse(text).unwrap());
                measure("  turned away by its addresses", Filter { expression, ..about("10.1.2.3") });
            }
        });
    });
}

#[test]
fn the_verifier_is_soon_done() {
    scratch(|_| {
        in_runtime(|| {
            let started = std::time::Instant::now();
            let text = "src net 10.99.0.0/24 and (tcp[tcpflags] & tcp-syn != 0 or udp[8:4] = 7 or icmp6)";
            let filter = Filter {
                targets: vec![target("10.99.0.0/24", &[PortRange::one(80, 6)])],
                sources: vec!["10.99.0.0/16".parse().unwrap()],
                expression: Some(Expression::parse(text).unwrap()),
            };
            let (attachment, _records) = Attachment::start(&settings(filter)).unwrap();
            println!("started in {:?}", started.elapsed());
            // What the kernel does not allow at all is refused for another reason.
            let rejected = attachment.hooks().find(|hook| match &hook.state {
                HookState::Refused(why) => why.contains("verifier") || why.contains("processed"),
                _ => false,
            });
            assert_eq!(rejected, None);
            for (name, program) in attachment.ebpf.programs() {
                let Ok(info) = program.info() else { continue };
                let verified = info.verified_instruction_count().unwrap_or(0);
                println!("{name}: {verified} instructions verified, {:?} bytes", info.size_translated());
                assert!(verified < VERIFIED_MAX, "{name}: {verified}");
            }
        });
    });
}

#[test]
fn counters_of_every_possible_cpu_are_summed_whether_or_not_it_is_online() {
    scratch(|_| {
        in_runtime(|| {
            let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
            let cpus = possible.trim().split(',').map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1
            });
            let (attachment, _records) = Attachment::start(&settings(about(NODE))).unwrap();
            assert_eq!(attachment.counters.get(&0, 0).unwrap().len(), cpus.sum::<usize>());
        });
    });
}

#[test]
fn the_kernels_offsets_are_all_there() {
    if !std::path::Path::new(crate::sources::btf::VMLINUX).exists() {
        fixtures::skip!("no kernel BTF");
        return;
    }
    let config: Config = kernel::config(&Btf::load().unwrap()).unwrap();
    assert_ne!(config.offsets.skb_dev, 0);
    assert_ne!(config.offsets.net_inum, config.offsets.dev_net);
}
