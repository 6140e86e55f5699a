//! What it would take to see with which action Cilium's entry programs end: fexit on the stand-in's, on a kernel that
//! allows it. `cargo xtask vm-test` runs this in a guest; docs/limitations.md says why plsprobe does not do it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};
use probe_lab::scenario::Client;
use probe_lab::{ClientSaw, Lab, LabOptions, Ns, Probe, Shape};
use probe_model::cilium::Direction::{self, Egress, Ingress};
use probe_user::sources::btf::Btf;
use probe_user::sources::{addresses, classifiers};

/// The name of the test's program.
const NAME: &std::ffi::CStr = c"plsprobe_fexit";
/// Tells the test that is started to be killed which program to attach to.
const TARGET: &str = "PLSPROBE_TEST_TARGET";
/// The actions that are counted, `TC_ACT_OK` and `TC_ACT_SHOT` among them, fit below.
const ACTIONS: u32 = 16;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// An fexit program on another program, which counts by its result; detached when dropped.
struct Exit {
    counts: MapHandle,
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Exit {
    /// Attaches to the main function of the program with this id; what the kernel says if it refuses.
    fn attach(target: u32, function: &str) -> Result<Self, String> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let counts =
            MapHandle::create(MapType::Array, Some("plsprobe_counts"), 4, 8, ACTIONS, &options).unwrap();
        let type_id = Btf::of_program(target).unwrap().function_id(function);
        // SAFETY: takes a number; the result is checked and owned by `owned`.
        let target = owned(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(target) })?;
        let mut options = libbpf_sys::bpf_prog_load_opts {
            sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: libbpf_sys::BPF_TRACE_FEXIT,
            attach_btf_id: type_id.ok_or_else(|| format!("no `{function}` in the program's types"))?,
            attach_prog_fd: target.as_raw_fd().cast_unsigned(),
            ..Default::default()
        };
        let code = count_by_result(counts.as_fd().as_raw_fd().cast_unsigned().into());
        // SAFETY: whole instructions, as many as said; C strings; options of the size they say. All outlive the call.
        let program = owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_TRACING,
                NAME.as_ptr(),
                c"GPL".as_ptr(),
                code.as_ptr().cast(),
                code.len() as libbpf_sys::size_t,
                &raw mut options,
            )
        })?;
        // SAFETY: no name, as the kernel wants for programs with a target; the descriptor is open.
        let link =
            owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) })?;
        Ok(Self { counts, _program: program, _link: link })
    }

    /// How often the target ended with each action that it ended with at all.
    fn counts(&self) -> BTreeMap<u32, u64> {
        let count = |action: u32| {
            let value = self.counts.lookup(&action.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
            (action, u64::from_ne_bytes(value.try_into().unwrap()))
        };
        (0..ACTIONS).map(count).filter(|(_, count)| *count > 0).collect()
    }
}

fn owned(fd: i32) -> Result<OwnedFd, String> {
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(-fd).to_string());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one in the map for the traced function's result, which follows its only argument.
fn count_by_result(map_fd: u64) -> Vec<u64> {
    const MAP_LOOKUP_ELEM: u32 = 1;
    const ATOMIC_ADD: u8 = 0xdb;
    let one = |code: u8, dst: u64, src: u64, off: i16, imm: u32| {
        u64::from(code) | dst << 8 | src << 12 | u64::from(off.cast_unsigned()) << 16 | u64::from(imm) << 32
    };
    vec![
        one(0x79, 6, 1, 8, 0),                       // r6 = *(u64 *)(r1 + 8)
        one(0x63, 10, 6, -4, 0),                     // *(u32 *)(r10 - 4) = r6
        one(0x18, 1, 1, 0, map_fd as u32),           // r1 = map
        0,                                           // its second half
        one(0xbf, 2, 10, 0, 0),                      // r2 = r10
        one(0x07, 2, 0, 0, (-4i32).cast_unsigned()), // r2 += -4
        one(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),         // r0 = bpf_map_lookup_elem(r1, r2)
        one(0x15, 0, 0, 2, 0),                       // if r0 == 0 goto +2
        one(0xb7, 1, 0, 0, 1),                       // r1 = 1
        one(ATOMIC_ADD, 0, 1, 0, 0),                 // lock *(u64 *)(r0 + 0) += r1
        one(0xb7, 0, 0, 0, 0),                       // r0 = 0
        one(0x95, 0, 0, 0, 0),                       // exit
    ]
}

/// The stand-in's entry program at a place: its id and its name.
fn entry(lab: &Lab, dev: &str, direction: Direction) -> (u32, String) {
    let list = || classifiers::classifiers(&addresses::network().unwrap().links).unwrap();
    let all = lab.run_in(Ns::Node, list).unwrap();
    let is_meant =
        |one: &&classifiers::Classifier| one.dev == dev && one.direction == direction && one.is_ciliums();
    let found = all.iter().find(is_meant).unwrap_or_else(|| panic!("nothing of the stand-in's: {all:?}"));
    (found.program, found.name.split('-').next().unwrap().to_owned())
}

fn is_loaded(is_meant: impl Fn(&libbpf_rs::query::ProgramInfo) -> bool) -> bool {
    ProgInfoIter::default().any(|info| is_meant(&info))
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One test looks whether anything of its kind is left, anywhere on the machine.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab of a shape, and ours at the program of its uplink; `None` where that cannot be.
fn lab_and_exit(shape: Shape) -> Option<(Lab, u32, Exit)> {
    if let Some(why) = probe_lab::standin::unavailable() {
        fixtures::skip!("{why}");
        return None;
    }
    let instance = format!("e{}-{shape}", std::process::id());
    let options = LabOptions { instance, shape, scenario: "allow-nat-ip".to_owned() };
    let lab = Lab::up(&options).unwrap();
    let (uplink, name) = entry(&lab, "eth0", Ingress);
    match Exit::attach(uplink, &name) {
        Ok(exit) => Some((lab, uplink, exit)),
        Err(why) => {
            assert!(!std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists(), "refused: {why}");
            fixtures::skip!("this kernel refuses it: {why}");
            None
        }
    }
}

/// What a client sees that is let in, however slow an emulated machine is.
fn welcome(lab: &Lab, client: Client) -> ClientSaw {
    lab.probe(&Probe { timeout: PATIENCE, ..client.probe() }).unwrap()
}

/// What one sees that is not.
fn unwelcome(lab: &Lab, client: Client) -> ClientSaw {
    lab.probe(&client.probe()).unwrap()
}

/// With BPF host routing the uplink's program hands on to the pod's policy program by a tail call, and that one ends it.
#[test]
fn the_action_of_a_tail_called_program_is_its_callers() {
    let _alone = alone();
    let Some((lab, _, at_uplink)) = lab_and_exit(Shape::Kpr) else { return };
    assert_eq!(welcome(&lab, Client::ConsumerFirstNatIp), ClientSaw::Ok);
    assert_eq!(unwelcome(&lab, Client::ConsumerSecondNatIp), ClientSaw::Timeout);
    let counts = at_uplink.counts();
    println!("fexit: with host routing {counts:?}");
    assert!(counts.contains_key(&TC_ACT_REDIRECT) && counts.contains_key(&TC_ACT_SHOT), "{counts:?}");
}

#[test]
fn the_action_is_seen_and_nothing_is_held_up() {
    let _alone = alone();
    let Some((mut lab, uplink, at_uplink)) = lab_and_exit(Shape::Aks) else { return };
    let (pod, pod_name) = entry(&lab, probe_lab::addresses::APP_POD.host_interface, Egress);
    let at_pod = Exit::attach(pod, &pod_name).unwrap();
    // What it sees, and that nobody is in the way.
    assert_eq!(welcome(&lab, Client::ConsumerFirstNatIp), ClientSaw::Ok);
    assert_eq!(unwelcome(&lab, Client::ConsumerSecondNatIp), ClientSaw::Timeout);
    let (uplink_counts, pod_counts) = (at_uplink.counts(), at_pod.counts());
    println!("fexit: uplink {uplink_counts:?}, {pod_name} {pod_counts:?}");
    assert!(uplink_counts.values().sum::<u64>() > 0, "{uplink_counts:?}");
    assert!(pod_counts.contains_key(&TC_ACT_SHOT), "the drop is the pod's program's result: {pod_counts:?}");
    // Replaced while it is attached, as Cilium does: the new one runs, and ours still holds the old one.
    lab.change_policy("none").unwrap();
    lab.standin_mut().unwrap().regenerate().unwrap();
    let (renewed, _) = entry(&lab, "eth0", Ingress);
    println!("fexit: the program was {uplink} and is {renewed}");
    let before = at_uplink.counts();
    assert_eq!(welcome(&lab, Client::ConsumerSecondNatIp), ClientSaw::Ok);
    assert_ne!(renewed, uplink);
    assert_eq!(at_uplink.counts(), before, "the new program is not the one that is traced");
    assert!(is_loaded(|info| info.id == uplink), "a traced program stays loaded while it is traced");
    drop(at_uplink);
    wait_until("the replaced program goes", || !is_loaded(|info| info.id == uplink));
    drop(at_pod);
    killed_it_leaves_nothing(renewed);
    assert_eq!(welcome(&lab, Client::ConsumerFirstNatIp), ClientSaw::Ok);
}

fn killed_it_leaves_nothing(target: u32) {
    let is_ours = |info: &libbpf_rs::query::ProgramInfo| info.name.as_encoded_bytes() == NAME.to_bytes();
    wait_until("the test's own are gone", || !is_loaded(is_ours));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_until_it_is_killed", "--ignored", "--nocapture"])
        .env(TARGET, target.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_attached = lines.map_while(Result::ok).any(|line| line.contains("it holds"));
    let was_there = is_loaded(is_ours);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_attached && was_there, "it was attached before it was killed");
    wait_until("what it attached has gone", || !is_loaded(is_ours));
}

/// Not a test by itself: the process that [`killed_it_leaves_nothing`] kills.
#[test]
#[ignore = "started by another test, to be killed"]
fn holds_until_it_is_killed() {
    let Ok(target) = std::env::var(TARGET) else { return };
    let _exit = Exit::attach(target.parse().unwrap(), "cil_from_netdev").unwrap();
    println!("it holds");
    std::thread::sleep(PATIENCE);
}
