//! Hooks on the kernel itself: its drops, its sockets, its IP layer, and the function that Cilium's notifications go
//! through. Each by the best means that the kernel allows.
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{BtfTracePoint, FEntry, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf};

use super::classifiers::{describe_load, load_again};
use super::kernel_types::{self, TypeIds};
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
        self.place.split_once(':').map_or(self.place, |(_, name)| name)
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

/// Functions of the IP layer, with our programs for them: fentry, kprobe.
const IP_LAYER: [(&str, &str, &str); 6] = [
    ("ip_rcv", "plsprobe_ip_rcv", "plsprobe_ip_receive"),
    ("ipv6_rcv", "plsprobe_ipv6_rcv", "plsprobe_ip_receive"),
    ("ip_forward", "plsprobe_ip_forward", "plsprobe_ip_forwards"),
    ("ip6_forward", "plsprobe_ip6_forward", "plsprobe_ip_forwards"),
    ("ip_local_deliver", "plsprobe_ip_deliver", "plsprobe_ip_delivers"),
    ("ip6_input", "plsprobe_ip6_input", "plsprobe_ip_delivers"),
];

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
pub(super) struct Tracing(Vec<Attached>);

impl Tracing {
    pub(super) fn attach(ebpf: &mut Ebpf, settings: &Settings) -> Self {
        let mut attacher = Attacher { ebpf, probe: settings.probe, ids: &settings.type_ids, btf: None };
        let mut hooks = vec![attacher.tracepoint(&DROPS)];
        hooks.push(if settings.config.events_map_id == 0 {
            let state = HookState::Refused("`cilium_events` was not found".into());
            (Hook { kind: HookKind::CiliumEvents, place: EVENT_OUTPUT.into(), state }, None)
        } else {
            attacher.function(
                HookKind::CiliumEvents,
                (EVENT_OUTPUT, "plsprobe_event_fentry", "plsprobe_event_kprobe"),
            )
        });
        hooks.extend(IP_LAYER.map(|function| attacher.function(HookKind::IpLayer, function)));
        let devices = settings.no_tc.then_some(DEVICES).into_iter().flatten();
        hooks.extend(SOCKETS.into_iter().chain(devices).map(|wanted| attacher.tracepoint(&wanted)));
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

/// Attaches to the kernel.
struct Attacher<'e> {
    ebpf: &'e mut Ebpf,
    probe: Probe,
    ids: &'e TypeIds,
    /// The kernel's types, made when they are first needed.
    btf: Option<Btf>,
}

/// A hook, and the program that is attached there.
type Attached = (Hook, Option<&'static str>);

impl Attacher<'_> {
    /// The typed program first: it costs less.
    fn tracepoint(&mut self, wanted: &Tracepoint) -> Attached {
        let mut tries = Tries::new(wanted.kind, wanted.place);
        if let Some(typed) = wanted.typed
            && let Some(attached) = tries.take("tp_btf", typed, self.typed(wanted.name(), typed))
        {
            return attached;
        }
        let raw = self.raw(wanted.name(), wanted.raw);
        tries.take("raw tracepoint", wanted.raw, raw).unwrap_or_else(|| tries.refused())
    }

    /// fentry first: it costs less and, unlike a kprobe, is not skipped while another program runs on the CPU.
    fn function(
        &mut self,
        kind: HookKind,
        (function, fentry, kprobe): (&'static str, &'static str, &'static str),
    ) -> Attached {
        let mut tries = Tries::new(kind, function);
        if self.probe != Probe::Kprobe
            && let Some(attached) = tries.take("fentry", fentry, self.fentry(function, fentry))
        {
            return attached;
        }
        if self.probe != Probe::Fentry
            && let Some(attached) = tries.take("kprobe", kprobe, self.kprobe(function, kprobe))
        {
            return attached;
        }
        tries.refused()
    }

    fn typed(&mut self, tracepoint: &str, name: &str) -> Result<()> {
        let (program, btf) = self.typed_program(name)?;
        let program: &mut BtfTracePoint = program.try_into()?;
        load_again(|| program.load(tracepoint, btf)).map_err(describe_load)?;
        program.attach().context("failed to attach")?;
        Ok(())
    }

    fn raw(&mut self, tracepoint: &str, name: &str) -> Result<()> {
        let program: &mut RawTracePoint = program(self.ebpf, name)?.try_into()?;
        load_again(|| program.load()).map_err(describe_load)?;
        program.attach(tracepoint).context("failed to attach")?;
        Ok(())
    }

    fn fentry(&mut self, function: &str, name: &str) -> Result<()> {
        let (program, btf) = self.typed_program(name)?;
        let program: &mut FEntry = program.try_into()?;
        load_again(|| program.load(function, btf)).map_err(describe_load)?;
        program.attach().context("failed to attach")?;
        Ok(())
    }

    fn kprobe(&mut self, function: &str, name: &str) -> Result<()> {
        let program: &mut KProbe = program(self.ebpf, name)?.try_into()?;
        match load_again(|| program.load()) {
            // One program serves both families.
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(describe_load(error)),
        }
        program.attach(function, 0).context("failed to attach")?;
        Ok(())
    }

    /// A program, and the kernel's types to load it with.
    fn typed_program(&mut self, name: &str) -> Result<(&mut Program, &Btf)> {
        let btf = match &mut self.btf {
            Some(btf) => btf,
            none => none.insert(kernel_types::of_hooks(self.ids)?),
        };
        Ok((program(self.ebpf, name)?, btf))
    }
}

/// One means after the other to attach at a place.
struct Tries {
    kind: HookKind,
    place: &'static str,
    refusals: Vec<String>,
}

impl Tries {
    const fn new(kind: HookKind, place: &'static str) -> Self {
        Self { kind, place, refusals: Vec::new() }
    }

    fn hook(&self, state: HookState) -> Hook {
        Hook { kind: self.kind, place: self.place.into(), state }
    }

    /// The hook, if it could be attached; else why not is kept.
    fn take(&mut self, means: &'static str, program: &'static str, outcome: Result<()>) -> Option<Attached> {
        match outcome {
            Ok(()) => Some((self.hook(HookState::Attached(means)), Some(program))),
            Err(error) => {
                self.refusals.push(format!("{means}: {error:#}"));
                None
            }
        }
    }

    fn refused(&self) -> Attached {
        (self.hook(HookState::Refused(self.refusals.join("; "))), None)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).ok_or_else(|| no_program(name))
}

fn no_program(name: &str) -> anyhow::Error {
    anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe")
}
