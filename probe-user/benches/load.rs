//! What a running `plsprobe trace` costs those whose packets it does not care for, and what it keeps up with.
//! Needs root. Everything is the whole process in the lab; figures are medians.

mod beside;

use std::time::Duration;

use probe_lab::load::{Load, LoadOptions, Report};
use probe_lab::{Lab, LabOptions};

use beside::{Beside, Tool, median};

/// Rounds; each measures every mode once, so that whatever else the machine does meets all of them.
const ROUNDS: usize = 5;
/// How long one measurement takes.
const SPAN: Duration = Duration::from_secs(4);
/// Packets a second under which the whole process is timed.
const GENTLE: u32 = 10_000;

/// Sizes of the ring buffer that are tried.
const RINGS: [u32; 5] = [256 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20];

/// Whose packets are the load's. With an expression each becomes a record, of flows that were told too.
const EVERY_PACKET: [&str; 4] = ["--dst", "pls-app", "--filter", "ip"];

/// Packets a second, less than the machine can, each of which is recorded twice or more.
const PACES: [u32; 3] = [50_000, 100_000, 150_000];

/// What runs beside the load.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Arguments of `plsprobe trace`; `None` runs none.
    trace: Option<&'static [&'static str]>,
}

const MODES: [Mode; 5] = [
    Mode { name: "nobody looks", trace: None },
    Mode { name: "`trace` of another pod", trace: Some(&["--dst", "my-nginx"]) },
    Mode { name: "`trace` of another pod, `--no-tc`", trace: Some(&["--dst", "my-nginx", "--no-tc"]) },
    Mode { name: "`trace` of the loaded pod", trace: Some(&["--dst", "pls-app"]) },
    Mode { name: "the same, a record of every packet (`--filter ip`)", trace: Some(&EVERY_PACKET) },
];

/// One measurement.
#[derive(Clone, Copy, Default)]
struct Measured {
    packets_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Records that were made, also per second, and how many of them found no room.
    made: f64,
    records_per_second: f64,
    lost: f64,
}

fn main() {
    if let Some(why) = probe_lab::standin::unavailable() {
        println!("skipped: {why}");
        return;
    }
    let options = LabOptions { instance: format!("bench{}", std::process::id()), ..LabOptions::default() };
    let mut lab = Lab::up(&options).expect("the lab comes up");
    bystanders(&mut lab);
    rings(&mut lab);
    paces(&mut lab);
    process(&mut lab);
}

fn bystanders(lab: &mut Lab) {
    let mut measured = [const { Vec::new() }; MODES.len()];
    for _ in 0..ROUNDS {
        for (mode, measured) in MODES.iter().zip(&mut measured) {
            measured.push(measure(lab, mode.trace, None));
        }
    }
    println!(
        "| beside a load of UDP and TCP | packets/s | of untraced | request p50 | p99 | records/s | lost |\n\
         |---|---|---|---|---|---|---|"
    );
    let rate = |of: &[Measured]| median(of.iter().map(|one| one.packets_per_second));
    let untraced = rate(&measured[0]);
    for (mode, measured) in MODES.iter().zip(&measured) {
        println!(
            "| {} | {:.0} | {:.1} % | {:.0} µs | {:.0} µs | {:.0} | {:.0} |",
            mode.name,
            rate(measured),
            rate(measured) / untraced * 100.0,
            median(measured.iter().map(|one| one.p50_us)),
            median(measured.iter().map(|one| one.p99_us)),
            median(measured.iter().map(|one| one.records_per_second)),
            median(measured.iter().map(|one| one.lost)),
        );
    }
}

fn start(lab: &mut Lab, args: &[&str]) -> Beside {
    let tool = Tool::plsprobe(env!("CARGO_BIN_EXE_plsprobe"), lab, args);
    Beside::start(lab, &tool, true)
}

/// How large the ring buffer must be, when every packet of the load is recorded at each place it passes.
fn rings(lab: &mut Lab) {
    println!("\n| ring buffer | packets/s | records/s | lost | of all |\n|---|---|---|---|---|");
    let mut measured = [const { Vec::new() }; RINGS.len()];
    for _ in 0..ROUNDS {
        for (bytes, measured) in RINGS.iter().zip(&mut measured) {
            let bytes = bytes.to_string();
            let args = [&EVERY_PACKET[..], &["--ring-bytes", &bytes]].concat();
            measured.push(measure(lab, Some(&args), None));
        }
    }
    for (bytes, measured) in RINGS.iter().zip(&measured) {
        println!("| {} KiB {}", bytes >> 10, losses(measured));
    }
}

/// Cells of a table: packets and records a second, and what was lost.
fn losses(measured: &[Measured]) -> String {
    let of = |what: fn(&Measured) -> f64| median(measured.iter().map(what));
    format!(
        "| {:.0} | {:.0} | {:.0} | {:.3} % |",
        of(|one| one.packets_per_second),
        of(|one| one.records_per_second),
        of(|one| one.lost),
        of(|one| one.lost / one.made.max(1.0) * 100.0),
    )
}

/// What is lost with the default ring buffer at a rate that leaves the machine some time.
fn paces(lab: &mut Lab) {
    println!("\n| packets/s | records/s | lost | of all |\n|---|---|---|---|");
    let mut measured = [const { Vec::new() }; PACES.len()];
    for _ in 0..ROUNDS {
        for (pps, measured) in PACES.iter().zip(&mut measured) {
            measured.push(measure(lab, Some(&EVERY_PACKET), Some(*pps)));
        }
    }
    for measured in &measured {
        println!("{}", losses(measured));
    }
}

/// A load of so many packets a second, or of as many as the machine can, beside this trace.
fn measure(lab: &mut Lab, trace: Option<&[&str]>, pps: Option<u32>) -> Measured {
    let trace = trace.map(|args| start(lab, args));
    let report = load(lab, &LoadOptions { pps, ..LoadOptions::default() }, SPAN);
    report.check_harmless().expect("nothing is lost");
    let (read, lost) = trace.map_or((0.0, 0.0), |trace| trace.stop().records());
    let made = read + lost;
    let latency = report.persistent.round_trip_us;
    Measured {
        packets_per_second: f64::from(u32::try_from(report.packets_per_second).expect("no such machine")),
        p50_us: latency.p50,
        p99_us: latency.p99,
        made,
        records_per_second: made / report.seconds,
        lost,
    }
}

fn process(lab: &mut Lab) {
    let runs: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let options = LoadOptions { pps: Some(GENTLE), ..LoadOptions::default() };
            let load = probe_lab::load::Load::start(lab.instance(), &options).expect("the load starts");
            let trace = start(lab, &["--dst", "pls-app", "-o", "json"]);
            let judged_after = trace.line_after(1);
            let (attached_after, memory) = (trace.attached_after, trace.memory_kib());
            let ended = trace.stop();
            load.stop().expect("the load ends").check_harmless().expect("nothing is lost");
            (attached_after, ended.first_record(), judged_after, ended.took, memory)
        })
        .collect();
    let millis =
        |times: &mut dyn Iterator<Item = Duration>| median(times.map(|time| time.as_secs_f64() * 1000.0));
    println!("\n| process, beside {GENTLE} packets a second of the traced pod | median |\n|---|---|");
    println!(
        "| from its start to attached, as it says | {:.0} ms |",
        millis(&mut runs.iter().map(|run| run.0))
    );
    println!(
        "| from its start to the first record read | {:.0} ms |",
        millis(&mut runs.iter().map(|run| run.1))
    );
    println!(
        "| from its start to the first flow judged | {:.0} ms |",
        millis(&mut runs.iter().map(|run| run.2))
    );
    println!(
        "| from SIGINT to its end, all detached | {:.0} ms |",
        millis(&mut runs.iter().map(|run| run.3))
    );
    for (what, idx) in [("memory while it traces", 0), ("memory at its most, at the start", 1)] {
        println!("| {what} | {:.0} KiB |", median(runs.iter().map(|run| run.4[idx])));
    }
}

/// What a load of `span` comes to.
fn load(lab: &Lab, options: &LoadOptions, span: Duration) -> Report {
    let load = Load::start(lab.instance(), options).expect("the load starts");
    std::thread::sleep(span);
    load.stop().expect("the load ends")
}
