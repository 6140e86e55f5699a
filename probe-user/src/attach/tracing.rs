//! Hooks on the kernel itself: its drops, its sockets, its IP layer, and the function that Cilium's notifications go
//! through. Each by the best means that the kernel allows.
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{FEntry, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf};

use super::classifiers::{describe_load, load_again};
use super::kernel_types::{self, FunctionIds};
use super::{Hook, HookKind, HookState, Probe, Settings, Skipped};
use crate::sources::programs;

/// The kernel function behind `bpf_perf_event_output` of a tc program.
const EVENT_OUTPUT: &str = "bpf_skb_event_output";

/// A raw tracepoint: what for, subsystem and name, our program.
type Tracepoint = (HookKind, &'static str, &'static str);

const DROPS: Tracepoint = (HookKind::KernelDrops, "skb:kfree_skb", "plsprobe_kfree");

const SOCKETS: [Tracepoint; 4] = [
    (HookKind::Sockets, "sock:inet_sock_set_state", "plsprobe_socket_state"),
    (HookKind::Sockets, "tcp:tcp_send_reset", "plsprobe_reset"),
    (HookKind::Sockets, "tcp:tcp_retransmit_skb", "plsprobe_retransmit"),
    (HookKind::Sockets, "tcp:tcp_retransmit_synack", "plsprobe_retransmit_synack"),
];

/// What stands in for our classifiers where tc is to be left alone.
const DEVICES: [Tracepoint; 2] = [
    (HookKind::Devices, "net:netif_receive_skb", "plsprobe_received"),
    (HookKind::Devices, "net:net_dev_queue", "plsprobe_queued"),
];

/// Functions of the IP layer, with our programs for them: fentry, kprobe.
const IP_LAYER: [(&str, &str, &str); 6] = [
    ("ip_rcv", "plsprobe_ip_rcv", "plsprobe_ip_receive"),
    ("ipv6_rcv", "plsprobe_ipv6_rcv", "plsprobe_ip_receive"),
    ("ip_forward", "plsprobe_ip_forward", "plsprobe_ip_forwards"),
    ("ip6_forward", "plsprobe_ip6_forward", "plsprobe_ip_forwards"),
    ("ip_local_deliver", "plsprobe_ip_deliver", "plsprobe_ip_delivers"),
    ("ip6_input", "plsprobe_ip6_input", "plsprobe_ip_delivers"),
];

/// Tracepoints that are hooked, as the kernel names them, those that stand in for classifiers last.
pub fn tracepoints() -> impl Iterator<Item = &'static str> {
    [DROPS].into_iter().chain(SOCKETS).chain(DEVICES).map(|(_, place, _)| place)
}

/// Functions of the IP layer that are hooked.
pub fn ip_functions() -> impl Iterator<Item = &'static str> {
    IP_LAYER.into_iter().map(|(function, ..)| function)
}

/// Functions that are probed, by fentry if their type ids are known.
pub fn probed_functions() -> impl Iterator<Item = &'static str> {
    std::iter::once(EVENT_OUTPUT).chain(ip_functions())
}

/// How many hooks on the kernel are wanted beside classifiers.
pub const KERNEL_HOOKS: usize = 2 + IP_LAYER.len() + SOCKETS.len();

/// The hooks on the kernel, each with the program that is attached there.
#[derive(Debug)]
pub(super) struct Tracing(Vec<(Hook, Option<&'static str>)>);

impl Tracing {
    pub(super) fn attach(ebpf: &mut Ebpf, settings: &Settings) -> Self {
        let mut hooks = vec![tracepoint(ebpf, DROPS)];
        let mut functions = Functions { ebpf, probe: settings.probe, ids: &settings.function_ids, btf: None };
        hooks.push(if settings.config.events_map_id == 0 {
            let state = HookState::Refused("`cilium_events` was not found".into());
            (Hook { kind: HookKind::CiliumEvents, place: EVENT_OUTPUT.into(), state }, None)
        } else {
            functions.attach(
                HookKind::CiliumEvents,
                (EVENT_OUTPUT, "plsprobe_event_fentry", "plsprobe_event_kprobe"),
            )
        });
        hooks.extend(IP_LAYER.map(|function| functions.attach(HookKind::IpLayer, function)));
        let devices = settings.no_tc.then_some(DEVICES).into_iter().flatten();
        hooks.extend(SOCKETS.into_iter().chain(devices).map(|wanted| tracepoint(ebpf, wanted)));
        Self(hooks)
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

fn tracepoint(ebpf: &mut Ebpf, (kind, place, name): Tracepoint) -> (Hook, Option<&'static str>) {
    let (state, program) = match attach_tracepoint(ebpf, place, name) {
        Ok(()) => (HookState::Attached("raw tracepoint"), Some(name)),
        Err(error) => (HookState::Refused(format!("{error:#}")), None),
    };
    (Hook { kind, place: place.into(), state }, program)
}

fn attach_tracepoint(ebpf: &mut Ebpf, place: &str, name: &str) -> Result<()> {
    let program: &mut RawTracePoint = program(ebpf, name)?.try_into()?;
    load_again(|| program.load()).map_err(describe_load)?;
    let tracepoint = place.split_once(':').map_or(place, |(_, name)| name);
    program.attach(tracepoint).context("failed to attach")?;
    Ok(())
}

/// Attaches to kernel functions.
struct Functions<'e> {
    ebpf: &'e mut Ebpf,
    probe: Probe,
    ids: &'e FunctionIds,
    /// The kernel's types, made when they are first needed.
    btf: Option<Btf>,
}

impl Functions<'_> {
    /// fentry first: it costs less and, unlike a kprobe, is not skipped while another program runs on the CPU.
    fn attach(
        &mut self,
        kind: HookKind,
        (function, fentry, kprobe): (&'static str, &'static str, &'static str),
    ) -> (Hook, Option<&'static str>) {
        let hook = |state| Hook { kind, place: function.into(), state };
        let mut refusals = Vec::new();
        if self.probe != Probe::Kprobe {
            match self.attach_fentry(function, fentry) {
                Ok(()) => return (hook(HookState::Attached("fentry")), Some(fentry)),
                Err(error) => refusals.push(format!("fentry: {error:#}")),
            }
        }
        if self.probe != Probe::Fentry {
            match self.attach_kprobe(function, kprobe) {
                Ok(()) => return (hook(HookState::Attached("kprobe")), Some(kprobe)),
                Err(error) => refusals.push(format!("kprobe: {error:#}")),
            }
        }
        (hook(HookState::Refused(refusals.join("; "))), None)
    }

    fn attach_fentry(&mut self, function: &str, name: &str) -> Result<()> {
        let btf = match &mut self.btf {
            Some(btf) => btf,
            none => none.insert(kernel_types::of_functions(self.ids)?),
        };
        let program: &mut FEntry = program(self.ebpf, name)?.try_into()?;
        load_again(|| program.load(function, btf)).map_err(describe_load)?;
        program.attach().context("failed to attach")?;
        Ok(())
    }

    fn attach_kprobe(&mut self, function: &str, name: &str) -> Result<()> {
        let program: &mut KProbe = program(self.ebpf, name)?.try_into()?;
        match load_again(|| program.load()) {
            // One program serves both families.
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(describe_load(error)),
        }
        program.attach(function, 0).context("failed to attach")?;
        Ok(())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).ok_or_else(|| no_program(name))
}

fn no_program(name: &str) -> anyhow::Error {
    anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe")
}
