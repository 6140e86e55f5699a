//! Hooks on the kernel itself: its drops, its sockets, its IP layer, and the function that Cilium's notifications go
//! through. Each by the best means that the kernel allows.
use anyhow::{Context as _, Result, anyhow};
use aya::programs::{FEntry, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf};

use super::classifiers::{describe_load, load_again};
use super::{Hook, HookKind, HookState, Probe, Settings};

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

pub(super) fn attach(ebpf: &mut Ebpf, settings: &Settings) -> Vec<Hook> {
    let mut hooks = vec![tracepoint(ebpf, DROPS)];
    let mut functions = Functions { ebpf, probe: settings.probe, btf: None };
    let state = if settings.config.events_map_id == 0 {
        HookState::Refused("`cilium_events` was not found".into())
    } else {
        functions.attach(EVENT_OUTPUT, "plsprobe_event_fentry", "plsprobe_event_kprobe")
    };
    hooks.push(Hook { kind: HookKind::CiliumEvents, place: EVENT_OUTPUT.into(), state });
    for (function, fentry, kprobe) in IP_LAYER {
        let state = functions.attach(function, fentry, kprobe);
        hooks.push(Hook { kind: HookKind::IpLayer, place: function.into(), state });
    }
    let devices = settings.no_tc.then_some(DEVICES).into_iter().flatten();
    hooks.extend(SOCKETS.into_iter().chain(devices).map(|wanted| tracepoint(ebpf, wanted)));
    hooks
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

fn tracepoint(ebpf: &mut Ebpf, (kind, place, name): Tracepoint) -> Hook {
    let state = match attach_tracepoint(ebpf, place, name) {
        Ok(()) => HookState::Attached("raw tracepoint"),
        Err(error) => HookState::Refused(format!("{error:#}")),
    };
    Hook { kind, place: place.into(), state }
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
    /// The kernel's types, read when they are first needed; or why not.
    btf: Option<Result<Btf, String>>,
}

impl Functions<'_> {
    /// fentry first: it costs less and, unlike a kprobe, is not skipped while another program runs on the CPU.
    fn attach(&mut self, function: &str, fentry: &str, kprobe: &str) -> HookState {
        let mut refusals = Vec::new();
        if self.probe != Probe::Kprobe {
            match self.attach_fentry(function, fentry) {
                Ok(()) => return HookState::Attached("fentry"),
                Err(error) => refusals.push(format!("fentry: {error:#}")),
            }
        }
        if self.probe != Probe::Fentry {
            match self.attach_kprobe(function, kprobe) {
                Ok(()) => return HookState::Attached("kprobe"),
                Err(error) => refusals.push(format!("kprobe: {error:#}")),
            }
        }
        HookState::Refused(refusals.join("; "))
    }

    fn attach_fentry(&mut self, function: &str, name: &str) -> Result<()> {
        let read = || Btf::from_sys_fs().map_err(|error| format!("{error}"));
        let btf = self.btf.get_or_insert_with(read).as_ref();
        let btf = btf.map_err(|error| anyhow!("failed to read the kernel's BTF: {error}"))?;
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
    ebpf.program_mut(name).ok_or_else(|| anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe"))
}
