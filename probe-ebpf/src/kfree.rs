//! Packets that the kernel dropped: the raw tracepoint behind `skb:kfree_skb`, which needs no tracefs.
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use probe_common::{Counter, DropRecord, RecordKind};

use crate::emit::emit;
use crate::filter;
use crate::kernel::SkBuff;
use crate::maps::{count, scratch, setting};
use crate::parse;

/// `trace_kfree_skb(skb, location)`, with `reason` as a third argument from 5.17 on.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn plsprobe_kfree(ctx: RawTracePointContext) -> i32 {
    if look(&ctx).is_none() {
        count(Counter::Unreadable);
        warn!(&ctx, "a packet that the kernel dropped could not be read");
    }
    0
}

#[inline(always)]
fn look(ctx: &RawTracePointContext) -> Option<()> {
    // The verifier knows the settings: without a reason the third argument, which the tracepoint then lacks,
    // is never touched.
    let reason = if setting!(has_drop_reason) != 0 { ctx.arg::<u32>(2) } else { 0 };
    if setting!(has_drop_reason) != 0 && reason == setting!(reason_consumed) {
        return Some(());
    }
    count(Counter::DropSeen);
    let skb = SkBuff(ctx.arg(0));
    let Some(source) = skb.network() else {
        return Some(());
    };
    let Some(network) = parse::network(&source) else {
        return Some(()); // netlink messages and unix sockets are freed here too
    };
    if !filter::may_match(&network) {
        return Some(());
    }
    let packet = &mut scratch(RecordKind::Drop)?.packet;
    parse::packet(&source, &network, packet);
    if !filter::wanted(packet) || !filter::matches_expression(&source, &network, RecordKind::Drop) {
        return Some(());
    }
    let (ifindex, netns) = skb.device()?;
    let (buffer, skb_len, mark) = (skb.head()?, skb.len()?, skb.mark()?);
    let counters = (Counter::DropMatched, Counter::DropLost);
    emit(counters, (RecordKind::Drop, 0), ifindex, |record: &mut DropRecord| {
        record.buffer = buffer;
        record.location = ctx.arg(1);
        record.reason = reason;
        record.netns = netns;
        record.skb_len = skb_len;
        record.mark = mark;
        record.packet = *packet;
    });
    Some(())
}
