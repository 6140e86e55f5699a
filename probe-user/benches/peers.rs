//! plsprobe, pwru and tcpdump beside the same load, with the same filter. Needs root, and all three on the PATH, which
//! `cargo xtask bench peers` brings into a virtual machine: pwru lives on kprobes. Figures are medians.
//!
//! The virtual machine's clock counts instructions, one a nanosecond, so that a time is work done or waited for, and the
//! same in every run.

mod beside;

use std::time::{Duration, Instant};

use probe_lab::addresses::{APP, APP_CLUSTER_IP, ILB, NGINX, NGINX_CLUSTER_IP};
use probe_lab::load::{Load, LoadOptions};
use probe_lab::{Lab, LabOptions};

use beside::{Beside, Ended, Tool, median, number_before};

/// Rounds; each measures every mode once, so that whatever else the machine does meets all of them.
const ROUNDS: usize = 5;
/// What who looks does once, as the first packets come, is not counted to each packet of a steady load.
const SETTLING: Duration = Duration::from_secs(1);
/// How long one measurement takes.
const SPAN: Duration = Duration::from_secs(1);
/// A load that leaves room for whoever looks: few enough packets that who records them loses none.
const STEADY: LoadOptions = LoadOptions {
    pps: Some(2000),
    connections: 32,
    requests: 200,
    new_connections: 10,
    patience: Duration::from_secs(20),
};
/// Packets a second under which a whole process is timed: few, so that an emulated machine can do both.
const GENTLE: u32 = 400;

/// A peer, or us.
#[derive(Clone, Copy)]
struct Peer {
    name: &'static str,
    /// The command, given where packets are to be written, and its filter.
    tool: fn(&Lab, Pod) -> Tool,
    /// How many lines it writes before its first packet; `None` if it says itself when that came.
    first_line: Option<usize>,
    /// Records it lost, by what it says; `None` if it says nothing.
    lost: fn(&Ended) -> Option<f64>,
}

/// Whose packets are traced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pod {
    /// The loaded one.
    App,
    /// One without any traffic.
    Nginx,
}

impl Pod {
    const fn name(self) -> &'static str {
        match self {
            Self::App => "pls-app",
            Self::Nginx => "my-nginx",
        }
    }

    /// All addresses it has, as pcap-filter(7) says it: what plsprobe finds by itself.
    fn expression(self) -> String {
        match self {
            Self::App => format!("host {APP} or host {ILB} or host {APP_CLUSTER_IP}"),
            Self::Nginx => format!("host {NGINX} or host {NGINX_CLUSTER_IP}"),
        }
    }
}

const PEERS: [Peer; 3] = [
    Peer {
        name: "plsprobe",
        tool: |lab, pod| Tool::plsprobe("plsprobe", lab, &["--dst", pod.name()]),
        first_line: None,
        lost: |ended| Some(ended.records().1),
    },
    Peer {
        name: "tcpdump",
        tool: |_, pod| {
            by_expression(&["tcpdump", "-i", "any", "-n", "-l", "-Z", "root"], pod, "listening on any")
        },
        first_line: Some(0),
        lost: |ended| number_before(&ended.stderr, " packets dropped by kernel"),
    },
    Peer {
        name: "pwru",
        tool: |_, pod| by_expression(&["pwru"], pod, "Listening for events"),
        // Its heading.
        first_line: Some(1),
        lost: |_| None,
    },
];

fn by_expression(words: &[&str], pod: Pod, attached: &'static str) -> Tool {
    let command = words.iter().map(|word| (*word).to_owned()).chain([pod.expression()]).collect();
    Tool { command, attached }
}

fn main() {
    if let Some(why) = probe_lab::standin::unavailable() {
        println!("skipped: {why}");
        return;
    }
    if let Some(missing) = PEERS.iter().find(|peer| !is_on_path(peer.name)) {
        println!("skipped: `{}` is not on the PATH", missing.name);
        return;
    }
    let options = LabOptions { instance: format!("bench{}", std::process::id()), ..LabOptions::default() };
    let mut lab = Lab::up(&options).expect("the lab comes up");
    let modes = modes();
    bystanders(&mut lab, &modes);
    costs(&mut lab, &modes);
    processes(&mut lab);
}

/// A peer and whose packets it traces; `None` is nobody.
type Mode = Option<(&'static Peer, Pod)>;

/// Nobody first, then everybody with each filter.
fn modes() -> Vec<Mode> {
    let with = |pod| PEERS.iter().map(move |peer| Some((peer, pod)));
    std::iter::once(None).chain(with(Pod::Nginx)).chain(with(Pod::App)).collect()
}

/// Its name and its filter, the first cells of a row.
fn cells(mode: Mode) -> String {
    match mode {
        None => "nobody | ".to_owned(),
        Some((peer, Pod::Nginx)) => format!("{} | another pod", peer.name),
        Some((peer, Pod::App)) => format!("{} | the loaded pod", peer.name),
    }
}

fn is_on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// One measurement of a load.
#[derive(Clone, Copy)]
struct Measured {
    packets_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Datagrams of the load that did not arrive.
    load_lost: f64,
    /// Records that the tool lost.
    records_lost: Option<f64>,
    /// Share of the time in which the CPUs had something to do.
    busy: f64,
}

impl Measured {
    /// What the CPUs did per packet, in nanoseconds.
    fn per_packet_ns(&self) -> f64 {
        self.busy * 1e9 / self.packets_per_second
    }
}

fn of(measured: &[Measured], what: fn(&Measured) -> f64) -> f64 {
    median(measured.iter().map(what))
}

/// Records lost, as a cell of a row.
fn lost(mode: Mode, measured: &[Measured]) -> String {
    match measured.iter().map(|one| one.records_lost).collect::<Option<Vec<_>>>() {
        None => "does not say".to_owned(),
        Some(_) if mode.is_none() => String::new(),
        Some(lost) => format!("{:.0}", median(lost.into_iter())),
    }
}

/// What a load that takes all there is comes to beside each.
fn bystanders(lab: &mut Lab, modes: &[Mode]) {
    let measured = rounds(lab, modes, &LoadOptions::default());
    println!(
        "| beside the load | its filter | packets/s | of untraced | request p50 | p99 | datagrams lost | records lost |\n\
         |---|---|---|---|---|---|---|---|"
    );
    let untraced = of(&measured[0], |one| one.packets_per_second);
    for (mode, measured) in modes.iter().zip(&measured) {
        let rate = of(measured, |one| one.packets_per_second);
        println!(
            "| {} | {rate:.0} | {:.1} % | {:.0} µs | {:.0} µs | {:.0} | {} |",
            cells(*mode),
            rate / untraced * 100.0,
            of(measured, |one| one.p50_us),
            of(measured, |one| one.p99_us),
            of(measured, |one| one.load_lost),
            lost(*mode, measured),
        );
    }
}

/// What each costs beside a load that leaves room for it: who loses half of what it is to record looks cheap beside one
/// that does not.
fn costs(lab: &mut Lab, modes: &[Mode]) {
    let measured = rounds(lab, modes, &STEADY);
    println!(
        "\n| beside a steady load | its filter | packets/s | CPU busy | CPU per packet | more than beside nobody | records lost |\n\
         |---|---|---|---|---|---|---|"
    );
    let untraced = of(&measured[0], Measured::per_packet_ns);
    for (mode, measured) in modes.iter().zip(&measured) {
        let per_packet = of(measured, Measured::per_packet_ns);
        println!(
            "| {} | {:.0} | {:.1} % | {per_packet:.0} ns | {:.0} ns | {} |",
            cells(*mode),
            of(measured, |one| one.packets_per_second),
            of(measured, |one| one.busy) * 100.0,
            per_packet - untraced,
            lost(*mode, measured),
        );
    }
}

/// Measures every mode once a round; what each came to, in the order of the modes.
fn rounds(lab: &mut Lab, modes: &[Mode], options: &LoadOptions) -> Vec<Vec<Measured>> {
    let mut measured = vec![Vec::new(); modes.len()];
    for _ in 0..ROUNDS {
        for (mode, measured) in modes.iter().zip(&mut measured) {
            measured.push(measure(lab, *mode, options));
        }
    }
    measured
}

fn measure(lab: &mut Lab, mode: Mode, options: &LoadOptions) -> Measured {
    let beside = mode.map(|(peer, pod)| {
        // plsprobe sums up at the end; the others only write packets, which nobody is to read.
        Beside::start(lab, &(peer.tool)(lab, pod), peer.first_line.is_none())
    });
    let load = Load::start(lab.instance(), options).expect("the load starts");
    if options.pps.is_some() {
        std::thread::sleep(SETTLING);
    }
    let busy = busy_for(SPAN);
    let report = load.stop().expect("the load ends");
    let ended = beside.map(Beside::stop);
    let latency = report.persistent.round_trip_us;
    Measured {
        packets_per_second: f64::from(u32::try_from(report.packets_per_second).expect("no such machine")),
        p50_us: latency.p50,
        p99_us: latency.p99,
        load_lost: u32::try_from(report.to_pod.lost + report.from_pod.lost).expect("a few").into(),
        records_lost: ended.zip(mode).map_or(Some(0.0), |(ended, (peer, _))| (peer.lost)(&ended)),
        busy,
    }
}

/// Which share of that time from now on the CPUs have something to do.
fn busy_for(span: Duration) -> f64 {
    let (began, before) = (Instant::now(), idle());
    std::thread::sleep(span);
    let (elapsed, idle) = (began.elapsed(), idle().saturating_sub(before));
    let cpus = std::thread::available_parallelism().expect("a CPU").get();
    let cpus = u32::try_from(cpus).expect("no such machine");
    1.0 - idle.as_secs_f64() / (elapsed * cpus).as_secs_f64()
}

/// How long the CPUs have had nothing to do so far, all together. `/proc/stat` says it in hundredths of a second.
fn idle() -> Duration {
    let timers = std::fs::read_to_string("/proc/timer_list").expect("root");
    let slept = timers.lines().filter_map(|line| {
        let (name, nanos) = line.split_once(':')?;
        let is_idle = ["idle_sleeptime", "iowait_sleeptime"].contains(&name.trim().trim_start_matches('.'));
        is_idle.then(|| nanos.trim().trim_end_matches(" nsecs").parse::<u64>().expect("a number"))
    });
    Duration::from_nanos(slept.sum())
}

/// What a process does and takes, beside few packets of the traced pod.
struct Process {
    attached: Duration,
    first: Duration,
    detached: Duration,
    memory_kib: [f64; 2],
}

fn processes(lab: &mut Lab) {
    println!(
        "\n| process | start to attached | start to first record | SIGINT to its end | memory | at its most |\n|---|---|---|---|---|---|"
    );
    let mut runs = [const { Vec::new() }; PEERS.len()];
    for _ in 0..ROUNDS {
        for (peer, runs) in PEERS.iter().zip(&mut runs) {
            runs.push(process(lab, peer));
        }
    }
    for (peer, runs) in PEERS.iter().zip(&runs) {
        let millis =
            |what: fn(&Process) -> Duration| median(runs.iter().map(|run| what(run).as_secs_f64() * 1000.0));
        println!(
            "| {} | {:.0} ms | {:.0} ms | {:.0} ms | {:.0} KiB | {:.0} KiB |",
            peer.name,
            millis(|run| run.attached),
            millis(|run| run.first),
            millis(|run| run.detached),
            median(runs.iter().map(|run| run.memory_kib[0])),
            median(runs.iter().map(|run| run.memory_kib[1])),
        );
    }
}

fn process(lab: &mut Lab, peer: &Peer) -> Process {
    let options =
        LoadOptions { pps: Some(GENTLE), requests: 20, new_connections: 5, ..LoadOptions::default() };
    let load = Load::start(lab.instance(), &options).expect("the load starts");
    let mut tool = (peer.tool)(lab, Pod::App);
    if peer.first_line.is_none() {
        tool.command.extend(["-o", "json"].map(str::to_owned));
    }
    let beside = Beside::start(lab, &tool, true);
    let first = peer.first_line.map(|before| beside.line_after(before + 1));
    if first.is_none() {
        // The first flow that it judges is much later than its first record.
        beside.line_after(1);
    }
    let (attached, memory_kib) = (beside.attached_after, beside.memory_kib());
    let ended = beside.stop();
    load.stop().expect("the load ends");
    let first = first.unwrap_or_else(|| ended.first_record());
    Process { attached, first, detached: ended.took, memory_kib }
}
