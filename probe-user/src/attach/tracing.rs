//! Hooks on the kernel itself: its drops, and the function that Cilium's notifications go through.
use anyhow::{Context as _, Result, anyhow};
use aya::programs::{FEntry, KProbe, RawTracePoint};
use aya::{Btf, Ebpf};

use super::classifiers::{describe_load, load_again};
use super::{EventProbe, Hook, HookKind, HookState, Settings};

/// The kernel function behind `bpf_perf_event_output` of a tc program.
const EVENT_OUTPUT: &str = "bpf_skb_event_output";

pub(super) fn attach(ebpf: &mut Ebpf, settings: &Settings) -> Vec<Hook> {
    let drops = Hook {
        kind: HookKind::KernelDrops,
        place: "skb:kfree_skb".into(),
        state: match attach_kfree(ebpf) {
            Ok(()) => HookState::Attached("raw tracepoint"),
            Err(error) => HookState::Refused(format!("{error:#}")),
        },
    };
    let state = if settings.config.events_map_id == 0 {
        HookState::Refused("`cilium_events` was not found".into())
    } else {
        attach_events(ebpf, settings.event_probe)
    };
    let events = Hook { kind: HookKind::CiliumEvents, place: EVENT_OUTPUT.into(), state };
    vec![drops, events]
}

fn attach_kfree(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut RawTracePoint = program(ebpf, "plsprobe_kfree")?.try_into()?;
    load_again(|| program.load()).map_err(describe_load)?;
    program.attach("kfree_skb").context("failed to attach")?;
    Ok(())
}

/// fentry first: it costs less and, unlike a kprobe, is not skipped while another program runs on the CPU.
fn attach_events(ebpf: &mut Ebpf, probe: EventProbe) -> HookState {
    let mut refusals = Vec::new();
    if probe != EventProbe::Kprobe {
        match attach_fentry(ebpf) {
            Ok(()) => return HookState::Attached("fentry"),
            Err(error) => refusals.push(format!("fentry: {error:#}")),
        }
    }
    if probe != EventProbe::Fentry {
        match attach_kprobe(ebpf) {
            Ok(()) => return HookState::Attached("kprobe"),
            Err(error) => refusals.push(format!("kprobe: {error:#}")),
        }
    }
    HookState::Refused(refusals.join("; "))
}

fn attach_fentry(ebpf: &mut Ebpf) -> Result<()> {
    let btf = Btf::from_sys_fs().context("failed to read the kernel's BTF")?;
    let program: &mut FEntry = program(ebpf, "plsprobe_event_fentry")?.try_into()?;
    load_again(|| program.load(EVENT_OUTPUT, &btf)).map_err(describe_load)?;
    program.attach().context("failed to attach")?;
    Ok(())
}

fn attach_kprobe(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut KProbe = program(ebpf, "plsprobe_event_kprobe")?.try_into()?;
    load_again(|| program.load()).map_err(describe_load)?;
    program.attach(EVENT_OUTPUT, 0).context("failed to attach")?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).ok_or_else(|| anyhow!("our eBPF object has no program `{name}`; rebuild plsprobe"))
}
