//! Cilium's notifications, at the kernel function its programs hand them to.
//!
//! `bpf_skb_event_output(skb, map, flags, meta, meta_size)` is what `bpf_perf_event_output` of a tc program calls.
//! A probe there sees every notification with its packet, whether or not anybody reads the perf buffer, and takes
//! nothing from whoever does.
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::{fentry, kprobe};
use aya_ebpf::programs::{FEntryContext, ProbeContext};
use aya_log_ebpf::warn;
use probe_common::{Counter, EventRecord, RecordKind};

use crate::emit::reserve;
use crate::kernel::{self, SkBuff};
use crate::maps::{count, setting};

/// The arguments of `bpf_skb_event_output`; all five are 64 bits wide (`BPF_CALL_5`).
struct Call {
    skb: u64,
    map: u64,
    flags: u64,
    meta: u64,
    meta_size: u64,
}

/// Where the kernel allows kprobes.
#[kprobe]
pub(crate) fn plsprobe_event_kprobe(ctx: ProbeContext) -> u32 {
    let call = (|| {
        Some(Call {
            skb: ctx.arg(0)?,
            map: ctx.arg(1)?,
            flags: ctx.arg(2)?,
            meta: ctx.arg(3)?,
            meta_size: ctx.arg(4)?,
        })
    })();
    if call.and_then(|call| keep(&call)).is_none() {
        count(Counter::Unreadable);
        warn!(&ctx, "a notification of Cilium's could not be read");
    }
    0
}

/// Where the kernel allows trampolines: cheaper, and never skipped because another program runs on this CPU.
#[fentry(function = "bpf_skb_event_output")]
pub(crate) fn plsprobe_event_fentry(ctx: FEntryContext) -> i32 {
    let call =
        Call { skb: ctx.arg(0), map: ctx.arg(1), flags: ctx.arg(2), meta: ctx.arg(3), meta_size: ctx.arg(4) };
    if keep(&call).is_none() {
        count(Counter::Unreadable);
        warn!(&ctx, "a notification of Cilium's could not be read");
    }
    0
}

#[inline(always)]
fn keep(call: &Call) -> Option<()> {
    let map_id: u32 = kernel::read(call.map, setting!(offsets.map_id))?;
    if map_id != setting!(events_map_id) || map_id == 0 {
        return Some(());
    }
    let skb = SkBuff::probed(call.skb);
    let (data, linear_len) = skb.linear()?;
    let (ifindex, _) = skb.device()?;
    let skb_len = skb.len()?;
    // Bits 32–51 of the flags: how many packet bytes the helper appends (`BPF_F_CTXLEN_MASK`).
    let cap_len = ((call.flags >> 32) & 0xf_ffff) as u32;
    let counters = (Counter::EventSeen, Counter::EventLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Event, 0), ifindex) {
        let record: &mut EventRecord = entry.record();
        record.map_id = map_id;
        record.meta_size = call.meta_size as u32;
        record.cap_len = cap_len;
        record.skb_len = skb_len;
        record.meta_len = copy(&mut record.meta, call.meta, call.meta_size as u32);
        record.packet_len = copy(&mut record.packet, data, cap_len.min(linear_len));
        entry.submit();
    }
    Some(())
}

/// Copies `len` bytes of kernel memory, at most as many as fit; returns how many, 0 when they cannot be read.
#[inline(always)]
fn copy<const MAX: usize>(to: &mut [u8; MAX], from: u64, len: u32) -> u32 {
    let capped = len.min(MAX as u32);
    // The verifier follows a bound only on the register it was checked on; the volatile read keeps the compiler
    // from checking one copy and using another.
    // SAFETY: reading a local.
    let wanted = unsafe { core::ptr::read_volatile(&raw const capped) };
    if wanted == 0 || wanted > MAX as u32 {
        return 0;
    }
    // SAFETY: `wanted` is at most MAX, the length of `to`; the helper checks `from`.
    let ret = unsafe { bpf_probe_read_kernel(to.as_mut_ptr().cast(), wanted, from as *const _) };
    if ret == 0 { wanted } else { 0 }
}
