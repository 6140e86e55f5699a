//! The classifiers: one program per point of the node, so that each is recognised by name.
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use probe_common::{Counter, HookPoint, PacketRecord, RecordKind};

use crate::emit::emit;
use crate::filter;
use crate::kernel::SkBuff;
use crate::maps::{count, lease_holds, scratch};
use crate::parse::{self, Source, vlan_id};

/// Ingress of the uplink.
#[classifier]
pub(crate) fn plsprobe_uplink_in(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::UplinkIn);
    TC_ACT_UNSPEC
}

/// Egress of the uplink.
#[classifier]
pub(crate) fn plsprobe_uplink_out(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::UplinkOut);
    TC_ACT_UNSPEC
}

/// Ingress of the host side of a pod's veth.
#[classifier]
pub(crate) fn plsprobe_pod_out(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::PodOut);
    TC_ACT_UNSPEC
}

/// Egress of the host side of a pod's veth.
#[classifier]
pub(crate) fn plsprobe_pod_in(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::PodIn);
    TC_ACT_UNSPEC
}

/// Egress of `cilium_host`.
#[classifier]
pub(crate) fn plsprobe_host_out(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::HostOut);
    TC_ACT_UNSPEC
}

/// Ingress of `cilium_host`.
#[classifier]
pub(crate) fn plsprobe_host_in(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::HostIn);
    TC_ACT_UNSPEC
}

/// Ingress of the uplink's virtual function.
#[classifier]
pub(crate) fn plsprobe_vf_in(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::VfIn);
    TC_ACT_UNSPEC
}

/// Egress of the uplink's virtual function.
#[classifier]
pub(crate) fn plsprobe_vf_out(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::VfOut);
    TC_ACT_UNSPEC
}

/// Ingress of the overlay's interface.
#[classifier]
pub(crate) fn plsprobe_overlay_in(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::OverlayIn);
    TC_ACT_UNSPEC
}

/// Egress of the overlay's interface.
#[classifier]
pub(crate) fn plsprobe_overlay_out(ctx: TcContext) -> i32 {
    look(&ctx, HookPoint::OverlayOut);
    TC_ACT_UNSPEC
}

/// The packet of a classifier, from its network header on: link layers of any length, and none, read alike.
struct SkbSource<'a>(&'a TcContext);

impl Source for SkbSource<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes at most N bytes to a buffer of N bytes; it checks offset and length itself.
        let ret = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.as_ptr(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        (ret == 0).then_some(bytes)
    }
}

#[inline(always)]
fn look(ctx: &TcContext, point: HookPoint) {
    count(Counter::PacketSeen);
    let source = SkbSource(ctx);
    let Some(network) = parse::network(&source) else {
        return; // not IP, ARP for the most part
    };
    if !filter::may_match(&network) {
        return;
    }
    // SAFETY: the helper takes no argument and returns a number.
    if !lease_holds(unsafe { bpf_ktime_get_ns() }) {
        count(Counter::LeaseExpired);
        return;
    }
    let Some(packet) = scratch(RecordKind::Packet) else {
        return; // every kind has a slot
    };
    parse::packet(&source, &network, packet);
    if !filter::wanted(packet) {
        return;
    }
    // SAFETY: the context pointer of a classifier is a valid `__sk_buff` for the whole run.
    let skb = unsafe { &*ctx.skb.skb };
    if skb.vlan_present != 0 {
        packet.vlan = vlan_id(skb.vlan_tci as u16);
    }
    // To the kernel, the context of a classifier is the packet itself.
    let buffer = SkBuff(ctx.as_ptr() as u64).head().unwrap_or(0);
    let counters = (Counter::PacketMatched, Counter::PacketLost);
    emit(counters, (RecordKind::Packet, point as u8), skb.ifindex, |record: &mut PacketRecord| {
        record.buffer = buffer;
        record.skb_len = skb.len;
        record.mark = skb.mark;
        record.hash = skb.hash;
        record.packet = *packet;
    });
}
