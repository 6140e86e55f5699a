//! Our probe on `bpf_skb_event_output`, on a kernel that allows it: `cargo xtask vm-test` runs this in a guest.
//!
//! A tc program of the test's own writes a notification into a perf event array called `cilium_events`, which nobody
//! reads; our probe must see it whole, with its packet.

use std::ffi::CStr;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use libbpf_rs::{MapCore as _, MapHandle, MapType, TC_INGRESS, TcHookBuilder};
use probe_common::{Counter, EventRecord};
use probe_model::cilium::EndpointId;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{DROP_NOTIFY_SIZE, Notification};
use probe_model::cilium::identity::Identity;
use probe_model::path::{Seen, Sighting};
use probe_user::attach::{
    Attachment, EventProbe, Filter, HookKind, HookState, RING_BYTES, Record, Settings, is_built_in,
};
use probe_user::sources::btf::{Btf, VMLINUX};
use probe_user::trace::kernel;

const PORT: u16 = 4041;
/// Packet bytes that the test's program appends: more than fit a UDP datagram's headers, less than the datagram.
const CAP_LEN: u64 = 60;

/// A drop notification of Cilium 1.14: `DROP_POLICY` at endpoint 413, from identity 2 to 1234.
fn notification() -> [u8; DROP_NOTIFY_SIZE] {
    let mut raw = [0; DROP_NOTIFY_SIZE];
    raw[..2].copy_from_slice(&[1, 133]);
    raw[2..4].copy_from_slice(&413u16.to_le_bytes());
    raw[4..8].copy_from_slice(&0x1122_3344u32.to_le_bytes());
    raw[8..12].copy_from_slice(&142u32.to_le_bytes());
    raw[12..14].copy_from_slice(&(CAP_LEN as u16).to_le_bytes());
    raw[14..16].copy_from_slice(&1u16.to_le_bytes());
    raw[16..20].copy_from_slice(&2u32.to_le_bytes());
    raw[20..24].copy_from_slice(&1234u32.to_le_bytes());
    raw[24..28].copy_from_slice(&413u32.to_le_bytes());
    raw
}

/// One eBPF instruction.
const fn instruction(code: u8, dst: u64, src: u64, off: i16, imm: u32) -> u64 {
    code as u64 | dst << 8 | src << 12 | (off.cast_unsigned() as u64) << 16 | (imm as u64) << 32
}

/// A 64-bit constant takes two; `src` 1 makes it the map of that descriptor.
fn wide(dst: u64, src: u64, value: u64) -> [u64; 2] {
    [instruction(0x18, dst, src, 0, value as u32), (value >> 32) << 32]
}

/// `bpf_perf_event_output(skb, cilium_events, CAP_LEN << 32 | BPF_F_CURRENT_CPU, notification, 36)`, then let it pass.
fn program(map_fd: u64) -> Vec<u64> {
    const MOVE: u8 = 0xbf;
    const MOVE_CONSTANT: u8 = 0xb7;
    const ADD_CONSTANT: u8 = 0x07;
    const STORE: u8 = 0x7b;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PERF_EVENT_OUTPUT: u32 = 25;
    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    let mut padded = [0u8; 40];
    padded[..DROP_NOTIFY_SIZE].copy_from_slice(&notification());
    for (at, word) in (-40i16..0).step_by(8).zip(padded.chunks_exact(8)) {
        code.extend(wide(1, 0, u64::from_le_bytes(word.try_into().unwrap())));
        code.push(instruction(STORE, 10, 1, at, 0));
    }
    code.push(instruction(MOVE, 1, 6, 0, 0));
    code.extend(wide(2, 1, map_fd));
    code.extend(wide(3, 0, CAP_LEN << 32 | 0xffff_ffff));
    code.push(instruction(MOVE, 4, 10, 0, 0));
    code.push(instruction(ADD_CONSTANT, 4, 0, 0, (-40i32).cast_unsigned()));
    code.push(instruction(MOVE_CONSTANT, 5, 0, 0, DROP_NOTIFY_SIZE as u32));
    code.push(instruction(CALL, 0, 0, 0, PERF_EVENT_OUTPUT));
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

fn a_notification_arrives_whole_by(probe: EventProbe, means: &'static str) {
    scratch(move || {
        let events = events_map();
        let info = events.info().unwrap();
        let mut config = kernel::config(&Btf::load().unwrap()).unwrap();
        config.events_map_id = info.info.id;
        let settings = Settings {
            filter: Filter::default(),
            config,
            ring_bytes: RING_BYTES,
            interfaces: vec![],
            event_probe: probe,
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

        let emitter = load(&program(events.as_fd().as_raw_fd().cast_unsigned().into()));
        let mut lo = TcHookBuilder::new(emitter.as_fd()).ifindex(1).handle(1).priority(1).hook(TC_INGRESS);
        lo.create().unwrap();
        lo.attach().unwrap();
        let receiver = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        let sender = UdpSocket::bind(("127.0.0.1", 5051)).unwrap();
        sender.send_to(&[7; 100], ("127.0.0.1", PORT)).unwrap();
        assert_eq!(receiver.recv(&mut [0; 200]).unwrap(), 100, "the packet goes its way");

        let mut batch = Vec::new();
        records.drain(&mut batch);
        let counters = attachment.counters().unwrap();
        assert_eq!((counters.get(Counter::EventSeen), counters.lost()), (1, 0), "{counters:?}");
        let [Record::Event(event)] = batch.as_slice() else { panic!("{batch:?}") };
        check(event, info.info.id);
    });
}

/// A kernel that has kprobes, and so tracing at all, must not refuse us: the guest's has them.
fn has_kprobes() -> bool {
    std::path::Path::new("/sys/bus/event_source/devices/kprobe/type").exists()
}

/// Everything of the notification and its packet.
fn check(event: &EventRecord, map_id: u32) {
    assert_eq!(event.map_id, map_id);
    assert_eq!((event.meta_size, event.meta_len), (36, 36));
    assert_eq!(event.meta[..DROP_NOTIFY_SIZE], notification());
    assert_eq!((u64::from(event.cap_len), u64::from(event.packet_len)), (CAP_LEN, CAP_LEN));
    assert_eq!(event.skb_len, 14 + 20 + 8 + 100);
    assert_eq!(event.header.ifindex, 1);
    let sighting = Sighting::from_event(event).unwrap().expect("an IP packet");
    let tuple = sighting.packet.tuple;
    assert_eq!(tuple.to_string(), format!("127.0.0.1:5051 -> 127.0.0.1:{PORT} UDP"));
    let Seen::Cilium { notification: Notification::Drop(drop) } = sighting.seen else {
        panic!("{sighting:?}")
    };
    assert_eq!((drop.reason, drop.header.source), (DropReason::POLICY, EndpointId(413)));
    assert_eq!((drop.src_label, drop.dst_label), (Identity(2), Identity(1234)));
}

#[test]
fn a_notification_arrives_whole_by_fentry() {
    a_notification_arrives_whole_by(EventProbe::Fentry, "fentry");
}

#[test]
fn a_notification_arrives_whole_by_kprobe() {
    a_notification_arrives_whole_by(EventProbe::Kprobe, "kprobe");
}
