//! Packets that the kernel dropped: the tracepoint behind `skb:kfree_skb`, typed or raw, which needs no tracefs.
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use aya_log_ebpf::warn;
use probe_common::{Counter, DropRecord, RecordKind};

use crate::emit::reserve;
use crate::filter;
use crate::kernel::{Access, SkBuff};
use crate::maps::{copy_packet, count, setting};

/// `trace_kfree_skb(skb, location)`, with `reason` as a third argument from 5.17 on.
macro_rules! kfree_skb {
    ($ctx:ident, $access:ident) => {{
        // The verifier knows the settings: without a reason the third argument, which the tracepoint then lacks,
        // is never touched.
        let reason = if setting!(has_drop_reason) != 0 { $ctx.arg::<u32>(2) } else { 0 };
        if look(SkBuff::$access($ctx.arg(0)), $ctx.arg(1), reason).is_none() {
            count(Counter::Unreadable);
            warn!(&$ctx, "a packet that the kernel dropped could not be read");
        }
        0
    }};
}

#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn plsprobe_kfree_btf(ctx: BtfTracePointContext) -> i32 {
    kfree_skb!(ctx, typed)
}

/// Where the verifier refuses the typed one.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn plsprobe_kfree(ctx: RawTracePointContext) -> i32 {
    kfree_skb!(ctx, probed)
}

#[inline(always)]
fn look(skb: SkBuff<impl Access>, location: u64, reason: u32) -> Option<()> {
    if setting!(has_drop_reason) != 0 && reason == setting!(reason_consumed) {
        return Some(());
    }
    count(Counter::DropSeen);
    let Some(source) = skb.network() else {
        return Some(());
    };
    let network = filter::network(&source);
    let Some(scratch) = network.and_then(|network| filter::find(&source, &network, RecordKind::Drop)) else {
        return Some(());
    };
    let (ifindex, netns) = skb.device()?;
    let (buffer, skb_len, mark) = (skb.head()?, skb.len()?, skb.mark()?);
    let counters = (Counter::DropMatched, Counter::DropLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Drop, 0), ifindex) {
        let record: &mut DropRecord = entry.record();
        record.buffer = buffer;
        record.location = location;
        record.reason = reason;
        record.netns = netns;
        record.skb_len = skb_len;
        record.mark = mark;
        copy_packet(&scratch.packet, &mut record.packet);
        entry.submit();
    }
    Some(())
}
