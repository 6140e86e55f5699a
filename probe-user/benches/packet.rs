//! What a packet costs at each of our programs, beside an empty program at the same place. Needs root.
//!
//! Classifiers run by the kernel's test run, millions of times over one frame. Tracepoints cannot be run so: they see
//! real datagrams through a veth, timed by the kernel's own statistics (`BPF_ENABLE_STATS`), an empty one among them.
//! Figures are medians; a line's difference to its empty program is what plsprobe adds.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use libbpf_rs::query::ProgInfoIter;
use probe_common::{Counter, Stream};
use probe_model::path::{Namespace, Patience, Place, Tracker};
use probe_user::attach::{
    Attachment, Filter, Interface, PortRange, Probe, RING_BYTES, Record, Records, Role, Settings, Target,
    TypeIds,
};
use probe_user::sources::btf::Btf;
use probe_user::trace::kernel;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs of each measurement: the figures are their medians.
const RUNS: usize = 9;
/// Packets of a run that makes no record.
const PACKETS: u32 = 1_000_000;
/// Packets of a run that makes records: as many as the ring holds without a reader.
const RECORDS: u32 = 12_000;
/// Datagrams that tracepoints see in a run.
const DATAGRAMS: u32 = 20_000;
const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const NODE_NET: &str = "10.99.0.1/32";
const PORT: u16 = 4040;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn main() {
    if let Err(why) = own_namespace() {
        println!("skipped: no network namespace of its own: {why}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let peer = connect_peer();
    println!("| program | empty | turned away | matched |\n|---|---|---|---|");
    classifier();
    tracepoints(&peer);
    consumer();
}

fn classifier() {
    let empty = empty(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS);
    let empty_ns = median(|| test_run(&empty, PACKETS));
    let away_ns = turned_away(&[target("10.1.2.3/32", &[])]);
    let (attachment, mut records) = attached(&[target(NODE_NET, &[])], false);
    let program = last_classifier();
    let matched_ns = median(|| {
        let spent = test_run(&program, RECORDS);
        records.drain(|_| {});
        spent
    });
    assert_eq!(attachment.counters().expect("counters").lost(), 0, "the ring holds a run");
    drop(attachment);
    line("a classifier, by test run", empty_ns, away_ns, matched_ns);
    // As many bits count as the shortest prefix has: by them the packet may be one for the longer.
    let miss_ns = turned_away(&[target("10.99.0.8/29", &[]), target("10.99.0.64/26", &[])]);
    let port_ns = turned_away(&[target(NODE_NET, &[PortRange::one(81, 6)])]);
    println!(
        "\n| no record is made | |\n|---|---|\n| turned away by its addresses, which a set excludes | +{} ns |\n\
         | by its addresses, which only the trie excludes | +{} ns |\n| by its port | +{} ns |\n\
         | only counted | +{} ns |\n",
        away_ns.saturating_sub(empty_ns),
        miss_ns.saturating_sub(empty_ns),
        port_ns.saturating_sub(empty_ns),
        counted().saturating_sub(empty_ns),
    );
}

/// Nanoseconds of a packet of a stream that is only counted.
fn counted() -> u32 {
    let (mut attachment, mut records) = attached(&[target(NODE_NET, &[])], false);
    let program = last_classifier();
    test_run_of(&program, 1, ACK);
    let mut stream = None;
    records.drain(|record| {
        if let Record::Packet(record) = record {
            stream = Some((Stream::of(record), record.header.ktime_ns));
        }
    });
    let (stream, ktime_ns) = stream.expect("a record of the packet");
    attachment.count_only(&stream, ktime_ns).expect("told");
    let spent = median(|| test_run_of(&program, PACKETS, ACK));
    let counted = attachment.counters().expect("counters").get(Counter::PacketCounted);
    assert!(counted > u64::from(PACKETS), "{counted} were only counted");
    spent
}

/// Nanoseconds of a packet that no record is made of.
fn turned_away(targets: &[Target]) -> u32 {
    let (attachment, _records) = attached(targets, false);
    let program = last_classifier();
    let spent = median(|| test_run(&program, PACKETS));
    assert_eq!(attachment.counters().expect("counters").made(), 0, "none is wanted");
    spent
}

fn target(net: &str, ports: &[PortRange]) -> Target {
    Target { net: net.parse().expect("a prefix"), ports: ports.to_vec() }
}

/// How many records of one flow a second are read from the ring, and how many are also made a flow's story of.
fn consumer() {
    let (_attachment, mut records) = attached(&[target(NODE_NET, &[])], false);
    let program = last_classifier();
    let mut tracker = Tracker::new(Patience::default());
    let mut rates = [const { Vec::new() }; 2];
    for run in 0..2 * RUNS {
        test_run(&program, RECORDS);
        let is_followed = run % 2 == 1;
        let (mut count, began) = (0, Instant::now());
        records.drain(|record| {
            count += 1;
            if let (true, Record::Packet(record)) = (is_followed, record) {
                let place = Place::of(&record.header, Namespace::Node).expect("a point that is known");
                tracker.push_packet(record, place);
            }
        });
        let spent = began.elapsed();
        // A stray packet of the kernel's own may be among them.
        assert!(count >= u128::from(RECORDS), "{count} of {RECORDS}");
        rates[usize::from(is_followed)].push((count * 1_000_000_000 / spent.as_nanos()) as u32);
    }
    let [read, followed] = rates.map(|mut rates| middle(&mut rates));
    println!(
        "\n| records of one flow | a second |\n|---|---|\n| read | {read} |\n| read and followed | {followed} |"
    );
}

/// With the kernel's clock read around every run, which the empty program pays too.
fn tracepoints(peer: &Peer) {
    // SAFETY: the call takes a number and gives a descriptor, which is checked and owned from here on.
    let _stats = unsafe {
        let stats = libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME);
        assert!(stats >= 0, "the kernel keeps statistics");
        OwnedFd::from_raw_fd(stats)
    };
    let typed = type_ids();
    for (means, ids) in [("tp_btf", &typed), ("raw", &TypeIds::default())] {
        let away = tracepoint_costs(peer, "10.1.2.3/32", ids);
        let matched = tracepoint_costs(peer, NODE_NET, ids);
        for (what, name) in [
            ("net:netif_receive_skb", "plsprobe_receiv"),
            ("net:net_dev_queue", "plsprobe_queued"),
            ("skb:kfree_skb", "plsprobe_kfree"),
        ] {
            let of = |costs: &BTreeMap<String, u32>| {
                *costs.iter().find(|(program, _)| program.starts_with(name)).expect("it ran").1
            };
            line(&format!("{what}, {means}"), away[EMPTY], of(&away), of(&matched));
        }
    }
}

/// Nanoseconds a run of each program, while datagrams come that nobody listens for: each is received, dropped with a
/// reason, and answered by an ICMP error.
fn tracepoint_costs(peer: &Peer, net: &str, ids: &TypeIds) -> BTreeMap<String, u32> {
    let (_attachment, mut records) = attached_with(&[target(net, &[])], true, ids.clone());
    let _empty = empty_tracepoint();
    let mut runs: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for _ in 0..RUNS {
        let before = times();
        peer.send_datagrams();
        records.drain(|_| {});
        for (name, (time, count)) in times() {
            let (time_before, count_before) = before.get(&name).copied().unwrap_or_default();
            if count > count_before {
                runs.entry(name).or_default().push(((time - time_before) / (count - count_before)) as u32);
            }
        }
    }
    runs.into_iter().map(|(name, mut runs)| (name, middle(&mut runs))).collect()
}

fn line(what: &str, empty: u32, away: u32, matched: u32) {
    println!(
        "| {what} | {empty} ns | {away} ns (+{}) | {matched} ns (+{}) |",
        away.saturating_sub(empty),
        matched.saturating_sub(empty)
    );
}

fn median(measure: impl FnMut() -> u32) -> u32 {
    let mut runs: Vec<u32> = std::iter::repeat_with(measure).take(RUNS).collect();
    middle(&mut runs)
}

fn middle(runs: &mut [u32]) -> u32 {
    runs.sort_unstable();
    runs[runs.len() / 2]
}

/// Our programs, looking for packets of `targets`.
fn attached(targets: &[Target], no_tc: bool) -> (Attachment, Records) {
    attached_with(targets, no_tc, type_ids())
}

fn type_ids() -> TypeIds {
    kernel::type_ids(&Btf::load().expect("the kernel's types"))
}

/// Typed where there are ids of types.
fn attached_with(targets: &[Target], no_tc: bool, type_ids: TypeIds) -> (Attachment, Records) {
    let config = kernel::config(&Btf::load().expect("the kernel's types")).expect("offsets");
    let interfaces = vec![Interface { name: "v0".into(), role: Role::Uplink }];
    let filter = Filter { targets: targets.to_vec(), ..Filter::default() };
    let (ring_bytes, probe) = (RING_BYTES, Probe::Any);
    let namespaces = std::collections::BTreeSet::new();
    let settings = Settings { filter, config, type_ids, ring_bytes, interfaces, namespaces, no_tc, probe };
    Attachment::start(&settings).expect("attached")
}

/// The classifier that looks, of those of ours the one that was loaded last.
fn last_classifier() -> OwnedFd {
    let ours =
        |info: &libbpf_rs::query::ProgramInfo| info.name.to_string_lossy().starts_with("plsprobe_look_u");
    let id = ProgInfoIter::default().filter(ours).map(|info| info.id).max().expect("a classifier of ours");
    // SAFETY: the call takes a number and gives a descriptor, which is checked and owned from here on.
    unsafe {
        let program = libbpf_sys::bpf_prog_get_fd_by_id(id);
        assert!(program >= 0, "a program with this id");
        OwnedFd::from_raw_fd(program)
    }
}

/// Nanoseconds a packet that opens a connection.
fn test_run(program: &OwnedFd, repeat: u32) -> u32 {
    test_run_of(program, repeat, SYN)
}

/// Nanoseconds a TCP segment with these flags from 10.99.0.2 to 10.99.0.1:80.
fn test_run_of(program: &OwnedFd, repeat: u32, flags: u8) -> u32 {
    let mut frame = vec![0u8; 12];
    frame.extend([0x08, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: repeat.cast_signed(),
        ..Default::default()
    };
    // SAFETY: the options point to the frame, which outlives the call; nothing else is written to.
    let done = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
    assert_eq!(done, 0, "the kernel runs it");
    opts.duration
}

const EMPTY: &str = "bench_empty";

/// A program that does nothing.
fn empty(kind: libbpf_sys::bpf_prog_type) -> OwnedFd {
    let instruction = |code: u32, imm| libbpf_sys::bpf_insn { code: code as u8, imm, ..Default::default() };
    let moves = libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K;
    let program = [instruction(moves, 0), instruction(libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT, 0)];
    let name = std::ffi::CString::new(EMPTY).expect("no zero byte");
    // SAFETY: name, license and instructions are valid for the call, which gives a descriptor that is checked.
    unsafe {
        let fd = libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        );
        assert!(fd >= 0, "the kernel loads an empty program");
        OwnedFd::from_raw_fd(fd)
    }
}

/// An empty program at `net:netif_receive_skb`, until dropped.
fn empty_tracepoint() -> (OwnedFd, OwnedFd) {
    let program = empty(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT);
    // SAFETY: a valid name and descriptor; the call gives a descriptor, which is checked.
    let link = unsafe {
        let fd = libbpf_sys::bpf_raw_tracepoint_open(c"netif_receive_skb".as_ptr(), program.as_raw_fd());
        assert!(fd >= 0, "the tracepoint takes a program");
        OwnedFd::from_raw_fd(fd)
    };
    (program, link)
}

/// Nanoseconds and runs of each program so far.
fn times() -> BTreeMap<String, (u64, u64)> {
    let time = |info: libbpf_rs::query::ProgramInfo| {
        (info.name.to_string_lossy().into_owned(), (info.run_time_ns, info.run_cnt))
    };
    ProgInfoIter::default().map(time).collect()
}

fn own_namespace() -> Result<(), rustix::io::Errno> {
    // SAFETY: changes only this thread's network namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// A thread at the far end of a veth.
struct Peer {
    orders: SyncSender<()>,
    done: Receiver<()>,
}

impl Peer {
    fn send_datagrams(&self) {
        self.orders.send(()).expect("the peer lives");
        self.done.recv().expect("the peer sends");
    }
}

fn connect_peer() -> Peer {
    let (orders, queue) = sync_channel(0);
    let (finished, done) = sync_channel(1);
    std::thread::spawn(move || {
        own_namespace().expect("a second namespace");
        finished.send(()).expect("the bench waits");
        queue.recv().expect("the veth is there");
        ip("addr add 10.99.0.2/24 dev v1");
        ip("link set v1 up");
        finished.send(()).expect("the bench waits");
        let socket = UdpSocket::bind("10.99.0.2:5050").expect("a socket");
        for () in queue {
            for _ in 0..DATAGRAMS {
                // An ICMP error for an earlier one may stand in its place.
                let _ = socket.send_to(&[7; 32], (NODE, PORT));
            }
            finished.send(()).expect("the bench waits");
        }
    });
    let peer = Peer { orders, done };
    peer.done.recv().expect("the peer lives");
    ip("link set lo up");
    let thread = std::fs::read_dir("/proc/self/task").expect("threads");
    let threads = thread.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let peers = threads.max_by_key(|id| id.parse::<u32>().unwrap_or(0)).expect("the peer's thread");
    ip(&format!("link add v0 type veth peer name v1 netns {peers}"));
    ip("addr add 10.99.0.1/24 dev v0");
    ip("link set v0 up");
    peer.send_datagrams();
    peer
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2");
    assert!(status.success(), "`ip {arguments}`");
}
