//! Hooks on the kernel itself: its drops, its sockets, its IP layer, and the function that Cilium's notifications go
//! through. Each by the best means that the kernel allows.
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::loading::{Loader, no_program};
use super::{Hook, HookKind, HookState, Probe, Settings, Skipped};
use crate::sources::programs;

/// The kernel function behind `bpf_perf_event_output` of a tc program.
const EVENT_OUTPUT: &str = "bpf_skb_event_output";

/// A tracepoint.
struct Tracepoint {
    kind: HookKind,
    /// Subsystem and name.
    place: &'static str,
    /// Our programs: one that reads a packet as the type that it is, which costs less, and one that asks the kernel for
    /// each of its members.
    typed: Option<&'static str>,
    raw: &'static str,
}

impl Tracepoint {
    const fn of_packets(kind: HookKind, place: &'static str, typed: &'static str, raw: &'static str) -> Self {
        Self { kind, place, typed: Some(typed), raw }
    }

    const fn of_sockets(place: &'static str, raw: &'static str) -> Self {
        Self { kind: HookKind::Sockets, place, typed: None, raw }
    }

    /// As the kernel names it.
    fn name(&self) -> &'static str {
        without_subsystem(self.place)
    }
}

const DROPS: Tracepoint =
    Tracepoint::of_packets(HookKind::KernelDrops, "skb:kfree_skb", "plsprobe_kfree_btf", "plsprobe_kfree");

const SOCKETS: [Tracepoint; 4] = [
    Tracepoint::of_sockets("sock:inet_sock_set_state", "plsprobe_socket_state"),
    Tracepoint::of_sockets("tcp:tcp_send_reset", "plsprobe_reset"),
    Tracepoint::of_sockets("tcp:tcp_retransmit_skb", "plsprobe_retransmit"),
    Tracepoint::of_sockets("tcp:tcp_retransmit_synack", "plsprobe_retransmit_synack"),
];

/// What stands in for our classifiers where tc is to be left alone.
const DEVICES: [Tracepoint; 2] = [
    Tracepoint::of_packets(
        HookKind::Devices,
        "net:netif_receive_skb",
        "plsprobe_received_btf",
        "plsprobe_received",
    ),
    Tracepoint::of_packets(HookKind::Devices, "net:net_dev_queue", "plsprobe_queued_btf", "plsprobe_queued"),
];

/// A kernel function, with our programs for it.
#[derive(Clone, Copy)]
struct Function {
    name: &'static str,
    fentry: &'static str,
    kprobe: &'static str,
}

impl Function {
    const fn new(name: &'static str, fentry: &'static str, kprobe: &'static str) -> Self {
        Self { name, fentry, kprobe }
    }
}

/// The function that Cilium's notifications go through.
const EVENTS: Function = Function::new(EVENT_OUTPUT, "plsprobe_event_fentry", "plsprobe_event_kprobe");

/// Functions of the IP layer, of both families.
const IP_LAYER: [[Function; 2]; 3] = [
    [
        Function::new("ip_rcv", "plsprobe_ip_rcv", "plsprobe_ip_receive"),
        Function::new("ipv6_rcv", "plsprobe_ipv6_rcv", "plsprobe_ip_receive"),
    ],
    [
        Function::new("ip_forward", "plsprobe_ip_forward", "plsprobe_ip_forwards"),
        Function::new("ip6_forward", "plsprobe_ip6_forward", "plsprobe_ip_forwards"),
    ],
    [
        Function::new("ip_local_deliver", "plsprobe_ip_deliver", "plsprobe_ip_delivers"),
        Function::new("ip6_input", "plsprobe_ip6_input", "plsprobe_ip_delivers"),
    ],
];

fn without_subsystem(place: &str) -> &str {
    place.split_once(':').map_or(place, |(_, name)| name)
}

fn all_tracepoints() -> impl Iterator<Item = Tracepoint> {
    [DROPS].into_iter().chain(SOCKETS).chain(DEVICES)
}

/// Tracepoints that are hooked, with their subsystem, those that stand in for classifiers last.
pub fn tracepoints() -> impl Iterator<Item = &'static str> {
    all_tracepoints().map(|tracepoint| tracepoint.place)
}

/// Tracepoints whose packets are read as the type that they are, if their type ids are known.
pub fn typed_tracepoints() -> impl Iterator<Item = &'static str> {
    all_tracepoints().filter(|tracepoint| tracepoint.typed.is_some()).map(|tracepoint| tracepoint.name())
}

/// Functions of the IP layer that are hooked.
pub fn ip_functions() -> impl Iterator<Item = &'static str> {
    IP_LAYER.into_iter().flatten().map(|function| function.name)
}

/// Functions that are probed, by fentry if their type ids are known.
pub fn probed_functions() -> impl Iterator<Item = &'static str> {
    std::iter::once(EVENT_OUTPUT).chain(ip_functions())
}

/// How many hooks on the kernel are wanted beside classifiers, at most.
pub const KERNEL_HOOKS: usize = 2 + IP_LAYER.as_flattened().len() + SOCKETS.len();

/// The hooks on the kernel, each with the program that is attached there.
#[derive(Debug)]
pub(super) struct Tracing(Vec<Attached>);

impl Tracing {
    /// Attaches to all that is wanted; where the kernel refuses a program, the next is tried.
    pub(super) fn attach(loader: &mut Loader<'_>, settings: &Settings) -> Self {
        Self(wanted(settings).into_iter().map(|place| place.attach(loader)).collect())
    }

    pub(super) fn hooks(&self) -> impl Iterator<Item = &Hook> {
        self.0.iter().map(|(hook, _)| hook)
    }

    /// How often the kernel skipped our programs, by place; those only that it did. A program that is attached at
    /// several places counts for all of them.
    pub(super) fn skipped(&self, ebpf: &Ebpf) -> Result<Vec<Skipped>> {
        let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (hook, program) in &self.0 {
            if let Some(program) = program {
                places.entry(program).or_default().push(&hook.place);
            }
        }
        let fds = places
            .keys()
            .map(|name| Ok(program_of(ebpf, name)?.fd()?.as_fd()))
            .collect::<Result<Vec<_>>>()?;
        let runs = programs::skipped_runs(&fds)?;
        let skipped =
            places.values().zip(runs).map(|(places, runs)| Skipped { place: places.join(", "), runs });
        Ok(skipped.filter(|skipped| skipped.runs > 0).collect())
    }
}

fn program_of<'e>(ebpf: &'e Ebpf, name: &str) -> Result<&'e Program> {
    ebpf.program(name).ok_or_else(|| no_program(name))
}

/// Takes every hook away; the maps stay.
pub(super) fn detach(ebpf: &mut Ebpf) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        let unloaded = match program {
            Program::RawTracePoint(program) => program.unload(),
            Program::BtfTracePoint(program) => program.unload(),
            Program::KProbe(program) => program.unload(),
            Program::FEntry(program) => program.unload(),
            _ => Ok(()),
        };
        match unloaded {
            Ok(()) | Err(ProgramError::NotLoaded) => {}
            Err(error) => errors.push(anyhow!(error).context(format!("failed to unload `{name}`"))),
        }
    }
    errors
}

/// By which means a program of ours is attached, as an operator is told.
#[derive(Clone, Copy)]
enum Means {
    Typed,
    Raw,
    Fentry,
    Kprobe,
}

impl Means {
    const fn name(self) -> &'static str {
        match self {
            Self::Typed => "tp_btf",
            Self::Raw => "raw tracepoint",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// A place that is to be hooked.
struct Place {
    kind: HookKind,
    name: &'static str,
    /// Our programs for it, the best first.
    programs: Vec<(Means, &'static str)>,
    /// Why there is none for it, or each was refused.
    refusals: Vec<String>,
}

/// A hook, and the program that is attached there.
type Attached = (Hook, Option<&'static str>);

impl Place {
    /// The typed program first: it costs less.
    fn tracepoint(tracepoint: &Tracepoint) -> Self {
        let typed = tracepoint.typed.map(|typed| (Means::Typed, typed));
        let programs = typed.into_iter().chain([(Means::Raw, tracepoint.raw)]).collect();
        Self { kind: tracepoint.kind, name: tracepoint.place, programs, refusals: Vec::new() }
    }

    /// fentry first: it costs less and, unlike a kprobe, is not skipped while another program runs on the CPU.
    fn function(kind: HookKind, function: Function, probe: Probe) -> Self {
        let fentry = (probe != Probe::Kprobe).then_some((Means::Fentry, function.fentry));
        let kprobe = (probe != Probe::Fentry).then_some((Means::Kprobe, function.kprobe));
        let programs = fentry.into_iter().chain(kprobe).collect();
        Self { kind, name: function.name, programs, refusals: Vec::new() }
    }

    /// The function or tracepoint, as the kernel names it.
    fn target(&self) -> &'static str {
        without_subsystem(self.name)
    }

    fn attach(mut self, loader: &mut Loader<'_>) -> Attached {
        let hook = |state| Hook { kind: self.kind, place: self.name.into(), state };
        for (means, program) in &self.programs {
            match attach(loader, program, self.target()) {
                Ok(()) => return (hook(HookState::Attached(means.name())), Some(program)),
                Err(error) => self.refusals.push(format!("{}: {error:#}", means.name())),
            }
        }
        (hook(HookState::Refused(self.refusals.join("; "))), None)
    }
}

/// All places, in the order in which they are told.
fn wanted(settings: &Settings) -> Vec<Place> {
    let function = |kind, function| Place::function(kind, function, settings.probe);
    let mut events = function(HookKind::CiliumEvents, EVENTS);
    if settings.config.events_map_id == 0 {
        events.programs.clear();
        events.refusals.push("`cilium_events` was not found".into());
    }
    let families = if may_match_ipv6(settings) { 2 } else { 1 };
    let stack = IP_LAYER.iter().flat_map(|functions| &functions[..families]);
    let stack = stack.map(|of_family| function(HookKind::IpLayer, *of_family));
    let devices = settings.no_tc.then_some(&DEVICES).into_iter().flatten();
    let tracepoints = SOCKETS.iter().chain(devices).map(Place::tracepoint);
    [Place::tracepoint(&DROPS), events].into_iter().chain(stack).chain(tracepoints).collect()
}

/// Whether a packet that comes through IPv6's functions can be one that is asked for: by its own addresses, or by those
/// of what it carries in a tunnel.
///
/// To take a function's last program away the kernel waits for a tenth of a second, one after the other: `ftrace_shutdown`
/// for a grace period of RCU tasks.
fn may_match_ipv6(settings: &Settings) -> bool {
    let has_tunnels = settings.config.vxlan_port != 0 || settings.config.geneve_port != 0;
    has_tunnels || settings.filter.targets.iter().any(|target| target.net.addr().is_ipv6())
}

/// The program that is tried first at each place, with the tracepoint or function that it is for.
pub(super) fn first_choices(settings: &Settings) -> impl Iterator<Item = (&'static str, &'static str)> {
    wanted(settings).into_iter().filter_map(|place| Some((place.programs.first()?.1, place.target())))
}

fn attach(loader: &mut Loader<'_>, program: &str, target: &str) -> Result<()> {
    match loader.load(program, target)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::RawTracePoint(program) => program.attach(target).map(drop),
        Program::FEntry(program) => program.attach().map(drop),
        Program::KProbe(program) => program.attach(target, 0).map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .context("failed to attach")
}

#[cfg(test)]
mod tests {
    use probe_common::Config;

    use super::*;
    use crate::attach::tests::about;
    use crate::attach::{RING_BYTES, TypeIds};

    fn places(filter: &str, config: Config) -> Vec<&'static str> {
        let settings = Settings {
            filter: about(filter),
            config,
            type_ids: TypeIds::default(),
            ring_bytes: RING_BYTES,
            interfaces: Vec::new(),
            namespaces: std::collections::BTreeSet::new(),
            no_tc: false,
            probe: Probe::Any,
        };
        wanted(&settings).iter().map(|place| place.name).collect()
    }

    #[test]
    fn ipv6_is_hooked_where_it_can_be_asked_for() {
        let functions = ["ipv6_rcv", "ip6_forward", "ip6_input"];
        let has = |places: &[&str]| functions.map(|function| places.contains(&function));
        let ipv4_only = places("10.0.0.1", Config::default());
        assert_eq!(has(&ipv4_only), [false; 3]);
        assert!(
            ["ip_rcv", "ip_forward", "ip_local_deliver"].iter().all(|function| ipv4_only.contains(function))
        );
        assert_eq!(has(&places("fd00::1", Config::default())), [true; 3]);
        // IPv4 within IPv6.
        for port in [
            Config { vxlan_port: 8472, ..Config::default() },
            Config { geneve_port: 6081, ..Config::default() },
        ] {
            assert_eq!(has(&places("10.0.0.1", port)), [true; 3]);
        }
    }
}
