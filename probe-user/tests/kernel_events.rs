//! Our probe on `bpf_skb_event_output`, on a kernel that allows it: `cargo xtask vm-test` runs this in a guest.
//!
//! A tc program of the test's own writes notifications into a perf event array called `cilium_events`, which nobody
//! reads; our probe must see each whole, in its layout, with its packet.

use std::ffi::CStr;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use libbpf_rs::{MapCore as _, MapHandle, MapType, TC_INGRESS, TcHookBuilder};
use probe_common::{Counter, EVENT_META_MAX, EventRecord};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{
    CaptureHeader, DropNotify, Notification, NotifyFlags, ObservationPoint, PolicyVerdictNotify, TraceNotify,
    TraceReason,
};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::MatchType;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::path::{Seen, Sighting};
use probe_user::attach::{
    Attachment, Filter, HookKind, HookState, Probe, RING_BYTES, Record, Settings, is_built_in,
};
use probe_user::sources::btf::{Btf, VMLINUX};
use probe_user::trace::kernel;

const PORT: u16 = 4041;
/// Packet bytes that the test's program appends: more than fit a UDP datagram's headers, less than the datagram.
const CAP_LEN: u64 = 60;

fn header(ext_version: u8) -> CaptureHeader {
    CaptureHeader {
        source: EndpointId(413),
        hash: 0x1122_3344,
        len_orig: 142,
        len_cap: CAP_LEN as u16,
        ext_version,
    }
}

fn drop_notify(flags: Option<NotifyFlags>, ip_trace_id: Option<u64>) -> Notification {
    Notification::Drop(DropNotify {
        header: header(0),
        reason: DropReason::POLICY,
        src_label: Identity(2),
        dst_label: Identity(1234),
        dst_id: 413,
        line: 1,
        file: 2,
        ext_error: 0,
        ifindex: 1,
        flags,
        ip_trace_id,
    })
}

fn trace_notify(ip_trace_id: Option<u64>) -> Notification {
    Notification::Trace(TraceNotify {
        header: header(0),
        point: ObservationPoint::TO_ENDPOINT,
        src_label: Identity(2),
        dst_label: Identity(1234),
        dst_id: 413,
        reason: TraceReason(0),
        flags: NotifyFlags(0),
        ifindex: 1,
        orig_ip: [0; 16],
        ip_trace_id,
    })
}

fn verdict_notify(ext_version: u8, cookie: Option<u32>) -> Notification {
    Notification::PolicyVerdict(PolicyVerdictNotify {
        header: header(ext_version),
        remote_label: Identity(2),
        verdict: -133,
        dst_port: PORT,
        proto: 17,
        direction: Direction::Ingress,
        ipv6: false,
        match_type: MatchType::None,
        audited: false,
        l3_device: false,
        auth_type: 0,
        cookie,
    })
}

/// Every layout of 1.13 to 1.20 that carries a packet: the notification, and how many bytes a vendor appended.
fn notifications() -> Vec<(Notification, usize)> {
    vec![
        (drop_notify(None, None), 0),
        (drop_notify(Some(NotifyFlags(0)), None), 0),
        (drop_notify(Some(NotifyFlags(0)), Some(7)), 0),
        (trace_notify(None), 0),
        (trace_notify(Some(7)), 0),
        (verdict_notify(0, None), 0),
        (verdict_notify(0, Some(0)), 0),
        (verdict_notify(1, Some(0)), 8),
        // Longer than what a record keeps.
        (verdict_notify(1, Some(0)), 40),
    ]
}

/// The bytes that a program writes: the notification, then a vendor's.
fn meta((notification, appended): &(Notification, usize)) -> Vec<u8> {
    let mut meta = notification.encode();
    meta.resize(meta.len() + appended, 0xee);
    meta
}

/// One eBPF instruction.
const fn instruction(code: u8, dst: u64, src: u64, off: i16, imm: u32) -> u64 {
    code as u64 | dst << 8 | src << 12 | (off.cast_unsigned() as u64) << 16 | (imm as u64) << 32
}

/// A 64-bit constant takes two; `src` 1 makes it the map of that descriptor.
fn wide(dst: u64, src: u64, value: u64) -> [u64; 2] {
    [instruction(0x18, dst, src, 0, value as u32), (value >> 32) << 32]
}

/// `bpf_perf_event_output(skb, cilium_events, CAP_LEN << 32 | BPF_F_CURRENT_CPU, notification, size)` of each
/// notification, then let it pass.
fn program(map_fd: u64) -> Vec<u64> {
    const MOVE: u8 = 0xbf;
    const MOVE_CONSTANT: u8 = 0xb7;
    const ADD_CONSTANT: u8 = 0x07;
    const STORE: u8 = 0x7b;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PERF_EVENT_OUTPUT: u32 = 25;
    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    for meta in notifications().iter().map(meta) {
        let mut padded = [0u8; 80];
        padded[..meta.len()].copy_from_slice(&meta);
        for (at, word) in (-80i16..0).step_by(8).zip(padded.chunks_exact(8)) {
            code.extend(wide(1, 0, u64::from_le_bytes(word.try_into().unwrap())));
            code.push(instruction(STORE, 10, 1, at, 0));
        }
        code.push(instruction(MOVE, 1, 6, 0, 0));
        code.extend(wide(2, 1, map_fd));
        code.extend(wide(3, 0, CAP_LEN << 32 | 0xffff_ffff));
        code.push(instruction(MOVE, 4, 10, 0, 0));
        code.push(instruction(ADD_CONSTANT, 4, 0, 0, (-80i32).cast_unsigned()));
        code.push(instruction(MOVE_CONSTANT, 5, 0, 0, meta.len() as u32));
        code.push(instruction(CALL, 0, 0, 0, PERF_EVENT_OUTPUT));
    }
    code.push(instruction(MOVE_CONSTANT, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn load(code: &[u64]) -> OwnedFd {
    let license: &CStr = c"GPL";
    // SAFETY: `code` is an array of whole instructions, eight bytes each as `struct bpf_insn`; both strings are C
    // strings; no options.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            c"emit".as_ptr(),
            license.as_ptr(),
            code.as_ptr().cast(),
            code.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "the test's own program is refused: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A perf event array with Cilium's name. libbpf offers one slot per CPU.
fn events_map() -> MapHandle {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    MapHandle::create(MapType::PerfEventArray, Some("cilium_events"), 4, 4, 64, &options).unwrap()
}

/// Runs `test` in a network namespace of its own, gone with its thread; prints why if it cannot.
fn scratch(test: impl FnOnce() + Send + 'static) {
    if !is_built_in() {
        fixtures::skip!("built without its eBPF object");
        return;
    }
    if !std::path::Path::new(VMLINUX).exists() {
        fixtures::skip!("no kernel BTF");
        return;
    }
    let test = std::thread::spawn(move || {
        // SAFETY: changes only this thread's network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            fixtures::skip!("no network namespace of its own ({})", std::io::Error::last_os_error());
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("`ip` runs").success());
        test();
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

fn notifications_arrive_whole_by(probe: Probe, means: &'static str) {
    scratch(move || {
        let events = events_map();
        let info = events.info().unwrap();
        // Before anything of ours, which a kernel may refuse: the test's own program is never what it refuses.
        let emitter = load(&program(events.as_fd().as_raw_fd().cast_unsigned().into()));
        let btf = Btf::load().unwrap();
        let mut config = kernel::config(&btf).unwrap();
        config.events_map_id = info.info.id;
        let settings = Settings {
            filter: Filter::default(),
            config,
            type_ids: kernel::type_ids(&btf),
            ring_bytes: RING_BYTES,
            interfaces: vec![],
            namespaces: std::collections::BTreeSet::new(),
            no_tc: false,
            probe,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let (attachment, mut records) = Attachment::start(&settings).unwrap();
        let hook = attachment.hooks().find(|hook| hook.kind == HookKind::CiliumEvents).unwrap();
        if let HookState::Refused(why) = &hook.state {
            assert!(!has_kprobes(), "a kernel with kprobes refuses it: {why}");
            fixtures::skip!("this kernel refuses it: {why}");
            return;
        }
        assert_eq!(hook.state, HookState::Attached(means));

        let mut lo = TcHookBuilder::new(emitter.as_fd()).ifindex(1).handle(1).priority(1).hook(TC_INGRESS);
        lo.create().unwrap();
        lo.attach().unwrap();
        let receiver = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        let sender = UdpSocket::bind(("127.0.0.1", 5051)).unwrap();
        sender.send_to(&[7; 100], ("127.0.0.1", PORT)).unwrap();
        assert_eq!(receiver.recv(&mut [0; 200]).unwrap(), 100, "the packet goes its way");

        let mut batch = Vec::new();
        records.drain(|record| {
            let Record::Event(event) = record else { panic!("{record:?}") };
            batch.push(*event);
        });
        let counters = attachment.counters().unwrap();
        let sent = notifications();
        assert_eq!(
            (counters.get(Counter::EventSeen), counters.lost()),
            (sent.len() as u64, 0),
            "{counters:?}"
        );
        assert_eq!(batch.len(), sent.len(), "{batch:?}");
        for (event, sent) in batch.iter().zip(&sent) {
            check(event, info.info.id, sent);
        }
    });
}

/// A kernel that has kprobes, and so tracing at all, must not refuse us: the guest's has them.
fn has_kprobes() -> bool {
    std::path::Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

/// Everything of the notification and its packet.
fn check(event: &EventRecord, map_id: u32, sent: &(Notification, usize)) {
    let meta = meta(sent);
    let kept = meta.len().min(EVENT_META_MAX);
    assert_eq!(event.map_id, map_id);
    assert_eq!((event.meta_size as usize, event.meta_len as usize), (meta.len(), kept));
    assert_eq!(event.meta[..kept], meta[..kept]);
    assert_eq!((u64::from(event.cap_len), u64::from(event.packet_len)), (CAP_LEN, CAP_LEN));
    assert_eq!(event.skb_len, 14 + 20 + 8 + 100);
    assert_eq!(event.header.ifindex, 1);
    let sighting = Sighting::from_event(event).unwrap().expect("an IP packet");
    let tuple = sighting.packet.tuple;
    assert_eq!(tuple.to_string(), format!("127.0.0.1:5051 -> 127.0.0.1:{PORT} UDP"));
    assert_eq!(sighting.seen, Seen::Cilium { notification: sent.0 });
}

#[test]
fn notifications_arrive_whole_by_fentry() {
    notifications_arrive_whole_by(Probe::Fentry, "fentry");
}

#[test]
fn notifications_arrive_whole_by_kprobe() {
    notifications_arrive_whole_by(Probe::Kprobe, "kprobe");
}
