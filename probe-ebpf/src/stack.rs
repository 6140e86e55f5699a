//! Packets at points of the kernel's stack, in every network namespace.
//!
//! Where Cilium moves a packet past the host's side of a veth, or where tc must be left alone, these see it go on.
use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext};
use aya_log_ebpf::warn;
use probe_common::{Counter, HookPoint, PacketRecord, RecordKind};

use crate::emit::reserve;
use crate::filter;
use crate::kernel::{Access, MemorySource, SkBuff};
use crate::maps::{copy_packet, count};
use crate::{payload, stream};

/// `trace_netif_receive_skb(skb)`: before tc, and before a VLAN tag is taken off.
#[btf_tracepoint(function = "netif_receive_skb")]
pub(crate) fn plsprobe_received_btf(ctx: BtfTracePointContext) -> i32 {
    received(&ctx, SkBuff::typed(ctx.arg(0)))
}

/// The same where the verifier refuses the typed one.
#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub(crate) fn plsprobe_received(ctx: RawTracePointContext) -> i32 {
    received(&ctx, SkBuff::probed(ctx.arg(0)))
}

#[inline(always)]
fn received(ctx: &impl EbpfContext, skb: SkBuff<impl Access>) -> i32 {
    if look(skb, SkBuff::received, HookPoint::Received).is_none() {
        count(Counter::Unreadable);
        warn!(ctx, "a packet that an interface received could not be read");
    }
    0
}

/// `trace_net_dev_queue(skb)`: after tc.
#[btf_tracepoint(function = "net_dev_queue")]
pub(crate) fn plsprobe_queued_btf(ctx: BtfTracePointContext) -> i32 {
    queued(&ctx, SkBuff::typed(ctx.arg(0)))
}

/// The same where the verifier refuses the typed one.
#[raw_tracepoint(tracepoint = "net_dev_queue")]
pub(crate) fn plsprobe_queued(ctx: RawTracePointContext) -> i32 {
    queued(&ctx, SkBuff::probed(ctx.arg(0)))
}

#[inline(always)]
fn queued(ctx: &impl EbpfContext, skb: SkBuff<impl Access>) -> i32 {
    if look(skb, known, HookPoint::Queued).is_none() {
        count(Counter::Unreadable);
        warn!(ctx, "a packet that an interface sends could not be read");
    }
    0
}

/// A probe at a function of the IP layer whose first argument is the packet: as kprobe, and as fentry for each family.
macro_rules! ip_function {
    ($point:ident, $kprobe:ident, $($function:literal => $fentry:ident),+) => {
        #[doc = concat!("kprobe for `HookPoint::", stringify!($point), "`, whichever the family's function.")]
        #[kprobe]
        pub(crate) fn $kprobe(ctx: ProbeContext) -> u32 {
            let looked = ctx.arg(0).and_then(|skb| look(SkBuff::probed(skb), known, HookPoint::$point));
            if looked.is_none() {
                count(Counter::Unreadable);
                warn!(&ctx, "a packet in the IP layer could not be read");
            }
            0
        }
        $(
            #[doc = concat!("fentry for `", $function, "`.")]
            #[fentry(function = $function)]
            pub(crate) fn $fentry(ctx: FEntryContext) -> i32 {
                if look(SkBuff::typed(ctx.arg(0)), known, HookPoint::$point).is_none() {
                    count(Counter::Unreadable);
                    warn!(&ctx, "a packet in the IP layer could not be read");
                }
                0
            }
        )+
    };
}

ip_function!(IpReceive, plsprobe_ip_receive, "ip_rcv" => plsprobe_ip_rcv, "ipv6_rcv" => plsprobe_ipv6_rcv);
ip_function!(IpForward, plsprobe_ip_forwards, "ip_forward" => plsprobe_ip_forward, "ip6_forward" => plsprobe_ip6_forward);
ip_function!(IpDeliver, plsprobe_ip_delivers, "ip_local_deliver" => plsprobe_ip_deliver, "ip6_input" => plsprobe_ip6_input);

/// A packet whose headers the stack knows: no tag is in it any more.
#[inline(always)]
fn known<A: Access>(skb: SkBuff<A>) -> Option<(MemorySource<A>, u16)> {
    Some((skb.network()?, 0))
}

/// `None` if the kernel's memory could not be read.
#[inline(always)]
fn look<A: Access>(
    skb: SkBuff<A>,
    packet: impl FnOnce(SkBuff<A>) -> Option<(MemorySource<A>, u16)>,
    point: HookPoint,
) -> Option<()> {
    // Most packets of a node are in the namespaces of other pods.
    let device = if A::IS_CHEAP { Some(skb.device()?) } else { None };
    if device.is_some_and(|(_, netns)| !filter::may_be_watched(netns)) {
        return Some(());
    }
    if matches!(point, HookPoint::Received | HookPoint::Queued) {
        count(Counter::PacketSeen);
    }
    let Some((source, tag)) = packet(skb) else {
        return Some(()); // without a network header, no IP packet
    };
    let Some(network) = filter::network(&source) else {
        return Some(());
    };
    let (ifindex, netns) = match device {
        Some(device) => device,
        None => skb.device()?,
    };
    if !A::IS_CHEAP && !filter::may_be_watched(netns) {
        return Some(());
    }
    let place = (point, ifindex, netns);
    if stream::is_only_counted(&source, &network, place) {
        return Some(());
    }
    let Some(scratch) = filter::find(&source, &network, RecordKind::Packet) else {
        return Some(());
    };
    scratch.packet.vlan = if tag == 0 { skb.vlan() } else { tag };
    let (buffer, skb_len, mark) = (skb.head()?, skb.len()?, skb.mark()?);
    let counters = (Counter::PacketMatched, Counter::PacketLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Packet, point as u8), ifindex) {
        let record: &mut PacketRecord = entry.record();
        record.buffer = buffer;
        record.skb_len = skb_len;
        record.mark = mark;
        record.netns = netns;
        copy_packet(&scratch.packet, &mut record.packet);
        entry.submit();
    }
    payload::look(&source, scratch, place);
    Some(())
}
