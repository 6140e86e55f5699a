//! plsprobe is started and ended in every way under a steady load, while interfaces go and Cilium's programs are
//! replaced: no packet is lost, changed or seen twice, no connection ends, and the node is afterwards as it was.
//!
//! `docs/harmless.md` has the method and the figures. `PLSPROBE_HARMLESS_CYCLES=200` makes it as many cycles.
#[path = "../live/mod.rs"]
#[expect(dead_code, reason = "its labs choose how the datapath is attached")]
mod live;
mod plsprobe;
mod state;

use std::fmt;
use std::time::Duration;

use probe_lab::addresses::NGINX_POD;
use probe_lab::load::{Load, LoadOptions, check_seen_once};
use probe_lab::standin::AttachBy;
use probe_lab::tracing::wait_until;
use probe_lab::{Lab, Ns, Shape};

use plsprobe::{Signal, end, trace};
use state::{KernelObjects, State};

/// Datagrams per second, as far as the machine can beside everything else.
const PPS: u32 = 100_000;
/// Cycles of each test, unless `PLSPROBE_HARMLESS_CYCLES` says otherwise.
const CYCLES: usize = 12;
/// Every so many cycles something else happens meanwhile.
const EVENT_EVERY: usize = 4;

/// Whose packets are traced: of all the load, of none of it, of its new connections.
const TARGETS: [&str; 3] = ["--dst pls-app", "--dst my-nginx", "--dst pls-app --port 80/tcp"];

/// What happens to the node while plsprobe traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Cilium loads its programs anew and replaces each in its place.
    Regeneration,
    /// The agent starts again: programs are taken away and attached anew. The load holds its breath, since without
    /// Cilium's programs its packets would not come through.
    Restart,
    /// A pod is deleted and made again, with its interface.
    PodRecreated,
}

impl Event {
    const ALL: [Self; 3] = [Self::Regeneration, Self::Restart, Self::PodRecreated];

    fn happen(self, lab: &mut Lab, load: &Load) {
        match self {
            Self::Regeneration => lab.standin_mut().unwrap().regenerate().unwrap(),
            Self::Restart => {
                load.pause();
                lab.standin_mut().unwrap().restart().unwrap();
                load.resume();
            }
            Self::PodRecreated => lab.recreate_pod(&NGINX_POD).unwrap(),
        }
    }
}

/// How the cycles went.
#[derive(Debug, Default)]
struct Tally {
    cycles: usize,
    ended_by: [usize; 3],
    before_it_was_attached: usize,
    events: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cycles,
            ended_by: [interrupted, terminated, killed],
            before_it_was_attached: early,
            events,
        } = self;
        write!(
            f,
            "{cycles} cycles, {interrupted} ended by SIGINT, {terminated} by SIGTERM, {killed} by SIGKILL, "
        )?;
        write!(f, "{early} before all was attached; {events} times Cilium or a pod was replaced")
    }
}

fn lab(test: &str, shape: Shape, attach_by: AttachBy) -> Option<Lab> {
    let options = live::options(test, shape, "none")?;
    if attach_by == AttachBy::Tcx && !probe_user::sources::classifiers::has_tcx() {
        fixtures::skip!("no tcx in this kernel");
        return None;
    }
    Some(Lab::up_attached(&options, attach_by).unwrap_or_else(|error| panic!("{test}: {error:#}")))
}

fn start_load(lab: &Lab) -> Load {
    let options = LoadOptions { pps: Some(PPS), ..LoadOptions::default() };
    Load::start(lab.instance(), &options).unwrap()
}

fn harmless(test: &str, shape: Shape, attach_by: AttachBy, seed: u64) {
    let Some(mut lab) = lab(test, shape, attach_by) else { return };
    let cycles = std::env::var("PLSPROBE_HARMLESS_CYCLES")
        .map_or(CYCLES, |text| text.parse().expect("PLSPROBE_HARMLESS_CYCLES is a number"));
    let mut random = fastrand::Rng::with_seed(seed);
    let before = State::of(&lab);
    let load = start_load(&lab);
    let mut tally = Tally { cycles, ..Tally::default() };
    let mut objects = KernelObjects::default();
    for cycle in 0..cycles {
        let target = TARGETS[random.usize(..TARGETS.len())];
        let mut plsprobe = trace(&mut lab, target);
        // One in three ends before it is attached, somewhere in between, or right after.
        if random.u8(..3) == 0 {
            std::thread::sleep(Duration::from_millis(random.u64(..600)));
            tally.before_it_was_attached += usize::from(!plsprobe.is_attached());
        } else {
            plsprobe.wait_until_attached();
        }
        if cycle % EVENT_EVERY == EVENT_EVERY - 1 {
            Event::ALL[cycle / EVENT_EVERY % Event::ALL.len()].happen(&mut lab, &load);
            tally.events += 1;
        }
        let mine = KernelObjects::of(plsprobe.id());
        objects.extend(&mine);
        let signal = Signal::ALL[random.usize(..Signal::ALL.len())];
        tally.ended_by[signal as usize] += 1;
        end(plsprobe, signal);
        if signal == Signal::Kill {
            // Its legacy filters stay until the next one starts, with nothing behind them.
            wait_until(|| State::of(&lab).without_our_filters().same_as(&before));
            wait_until(|| mine.only_husks_left());
        } else {
            wait_until(|| State::of(&lab).same_as(&before));
            wait_until(|| mine.all_gone());
        }
    }
    let mut last = trace(&mut lab, TARGETS[0]);
    last.wait_until_attached();
    objects.extend(&KernelObjects::of(last.id()));
    end(last, Signal::Interrupt);
    let report = load.stop().unwrap();
    println!("{test}: {tally}, {} objects made in the kernel\n{report}", objects.len());
    report.check_harmless().unwrap();
    check_seen_once(&lab, &report).unwrap();
    wait_until(|| State::of(&lab).same_as(&before));
    wait_until(|| objects.all_gone());
    println!("{test}: {} program arrays leaked by the kernel", objects.leaked());
}

#[test]
fn beside_legacy_filters() {
    harmless("harmless-tc", Shape::Aks, AttachBy::LegacyTc, 1);
}

#[test]
fn beside_tcx_links() {
    harmless("harmless-tcx", Shape::Kpr, AttachBy::Tcx, 2);
}

/// SIGSTOP under load with a ring that is far too small: what was lost is told, and nobody else notices. With an expression
/// no packet is only counted.
fn stopped_for(span: Duration) {
    let Some(mut lab) = lab("harmless-stop", Shape::Aks, AttachBy::LegacyTc) else { return };
    let before = State::of(&lab);
    let load = start_load(&lab);
    let mut plsprobe = trace(&mut lab, "--dst pls-app --filter ip --ring-bytes 4096 -o json");
    plsprobe.wait_until_attached();
    plsprobe.signal("STOP");
    std::thread::sleep(span);
    plsprobe.signal("CONT");
    plsprobe.wait_for("records lost in the last second");
    let traced = end(plsprobe, Signal::Interrupt);
    let report = load.stop().unwrap();
    report.check_harmless().unwrap();
    check_seen_once(&lab, &report).unwrap();
    wait_until(|| State::of(&lab).same_as(&before));
    let records = &traced.summary()["records"];
    assert_eq!(records["unaccounted"], 0, "{records}");
    let lost = records["lost"].as_u64().unwrap();
    // More than half of all packets passed while it was stopped, each at two of its hooks at least.
    assert!(lost > report.to_pod.sent, "{records}, {report}");
    println!("stopped for {span:?}: {records}\n{report}");
}

#[test]
fn stopped_for_some_seconds() {
    stopped_for(Duration::from_secs(6));
}

/// `cargo test -p probe-user --test harmless -- --ignored --nocapture stopped_for_a_minute`
#[test]
#[ignore = "takes more than a minute"]
fn stopped_for_a_minute() {
    stopped_for(Duration::from_mins(1));
}

fn doctor(lab: &Lab, args: &[&str]) -> (Option<i32>, String) {
    let mut command = lab.netns(Ns::Node).command(env!("CARGO_BIN_EXE_plsprobe")).unwrap();
    command.arg("doctor").args(args).arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.code(), text)
}

#[test]
fn doctor_finds_and_removes_what_a_killed_one_left() {
    let Some(mut lab) = lab("harmless-doctor", Shape::Aks, AttachBy::LegacyTc) else { return };
    let line =
        |text: &str| text.lines().find(|line| line.contains("plsprobe's own filters")).unwrap().to_owned();
    let before = State::of(&lab);
    let mut plsprobe = trace(&mut lab, TARGETS[0]);
    plsprobe.wait_until_attached();
    let tracing = State::of(&lab);
    let (code, text) = doctor(&lab, &["--cleanup"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("a plsprobe is tracing in this network namespace, nothing was removed"), "{text}");
    let (code, text) = doctor(&lab, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(line(&text).starts_with("ok ") && line(&text).contains("a plsprobe is tracing here"), "{text}");
    assert_eq!(State::of(&lab), tracing, "nothing was removed");

    end(plsprobe, Signal::Kill);
    let (_, text) = doctor(&lab, &[]);
    let found = line(&text);
    assert!(found.starts_with("degraded "), "{text}");
    assert!(found.contains("`plsprobe_uplink_in` at `eth0 ingress`"), "{text}");
    assert!(found.contains("remove them by `plsprobe doctor --cleanup`"), "{text}");
    let (code, text) = doctor(&lab, &["--cleanup"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("removed `plsprobe_")).count(), 6, "{text}");
    assert_eq!(State::of(&lab), before);
    let (code, text) = doctor(&lab, &["--cleanup"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("none is left of an earlier run") && text.lines().count() == 1, "{text}");
}
