//! What a running `plsprobe trace` costs those whose packets it does not care for, and what it keeps up with.
//! Needs root. Everything is the whole process in the lab; figures are medians.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use probe_lab::load::{Load, LoadOptions};
use probe_lab::{Lab, LabOptions, Ns};

/// Rounds; each measures every mode once, so that whatever else the machine does meets all of them.
const ROUNDS: usize = 5;
/// How long one measurement takes.
const SPAN: Duration = Duration::from_secs(4);

/// What runs beside the load.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Arguments of `plsprobe trace`; `None` runs none.
    trace: Option<&'static [&'static str]>,
}

const MODES: [Mode; 4] = [
    Mode { name: "nobody looks", trace: None },
    Mode { name: "`trace` of another pod", trace: Some(&["--dst", "my-nginx"]) },
    Mode { name: "`trace` of another pod, `--no-tc`", trace: Some(&["--dst", "my-nginx", "--no-tc"]) },
    Mode { name: "`trace` of the loaded pod", trace: Some(&["--dst", "pls-app"]) },
];

/// One measurement.
#[derive(Clone, Copy, Default)]
struct Measured {
    packets_per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() {
    if let Some(why) = probe_lab::standin::unavailable() {
        println!("skipped: {why}");
        return;
    }
    let options = LabOptions { instance: format!("bench{}", std::process::id()), ..LabOptions::default() };
    let mut lab = Lab::up(&options).expect("the lab comes up");
    bystanders(&mut lab);
    process(&mut lab);
}

fn bystanders(lab: &mut Lab) {
    let mut measured = [const { Vec::new() }; MODES.len()];
    for _ in 0..ROUNDS {
        for (mode, measured) in MODES.iter().zip(&mut measured) {
            measured.push(measure(lab, mode));
        }
    }
    println!(
        "| beside a load of UDP and TCP | packets/s | of untraced | request p50 | p99 |\n|---|---|---|---|---|"
    );
    let rate = |of: &[Measured]| median(of.iter().map(|one| one.packets_per_second));
    let untraced = rate(&measured[0]);
    for (mode, measured) in MODES.iter().zip(&measured) {
        println!(
            "| {} | {:.0} | {:.1} % | {:.0} µs | {:.0} µs |",
            mode.name,
            rate(measured),
            rate(measured) / untraced * 100.0,
            median(measured.iter().map(|one| one.p50_us)),
            median(measured.iter().map(|one| one.p99_us)),
        );
    }
}

fn measure(lab: &mut Lab, mode: &Mode) -> Measured {
    let trace = mode.trace.map(|args| Trace::start(lab, args));
    let load = Load::start(lab.instance(), &LoadOptions::default()).expect("the load starts");
    std::thread::sleep(SPAN);
    let report = load.stop().expect("the load ends");
    report.check_harmless().expect("nothing is lost");
    if let Some(trace) = trace {
        trace.stop();
    }
    let latency = report.persistent.round_trip_us;
    Measured {
        packets_per_second: f64::from(u32::try_from(report.packets_per_second).expect("no such machine")),
        p50_us: latency.p50,
        p99_us: latency.p99,
    }
}

fn process(lab: &mut Lab) {
    let runs: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let trace = Trace::start(lab, &["--dst", "pls-app"]);
            (trace.attached_after, trace.peak_kib(), trace.stop())
        })
        .collect();
    let millis =
        |times: &mut dyn Iterator<Item = Duration>| median(times.map(|time| time.as_secs_f64() * 1000.0));
    println!("\n| process | median |\n|---|---|");
    println!("| from its start to attached | {:.0} ms |", millis(&mut runs.iter().map(|run| run.0)));
    println!(
        "| from SIGINT to its end, all detached | {:.0} ms |",
        millis(&mut runs.iter().map(|run| run.2))
    );
    println!("| memory at its most | {:.0} KiB |", median(runs.iter().map(|run| run.1)));
}

/// A running `plsprobe trace`.
struct Trace {
    child: Child,
    attached_after: Duration,
}

impl Trace {
    fn start(lab: &mut Lab, args: &[&str]) -> Self {
        let mut command = lab.netns(Ns::Node).command(env!("CARGO_BIN_EXE_plsprobe")).expect("a command");
        command.arg("trace").args(args).args(["--duration", "10m", "-o", "json"]);
        command.arg("--bpffs").arg(lab.bpffs()).arg("--cilium-run").arg(lab.run_dir());
        let began = Instant::now();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("plsprobe runs");
        lab.adopt(child.id()).expect("it belongs to the lab");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("tracing `") {
            line.clear();
            assert_ne!(
                stderr.read_line(&mut line).expect("text"),
                0,
                "plsprobe ended before it was attached"
            );
        }
        let attached_after = began.elapsed();
        std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        Self { child, attached_after }
    }

    fn peak_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn stop(mut self) -> Duration {
        let began = Instant::now();
        let kill = Command::new("kill").args(["-s", "INT", &self.child.id().to_string()]).status();
        assert!(kill.expect("a signal").success());
        self.child.wait().expect("it ends");
        began.elapsed()
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
