//! The classifiers: one program per point of the node, so that each is recognised by name.
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{TC_ACT_UNSPEC, bpf_hdr_start_off::BPF_HDR_START_NET};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use probe_common::{CAPTURE_MAX, Counter, HookPoint, PacketRecord, RecordKind};

use crate::emit::reserve;
use crate::filter;
use crate::kernel::SkBuff;
use crate::maps::{LOOKERS, copy_packet, count};
use crate::parse::{Source, copy_len, vlan_id};
use crate::{payload, stream};

/// A point of the node: the program that is attached there, and the one that looks.
///
/// The first only hands on to the second, through [`LOOKERS`]. A legacy filter survives a plsprobe that is killed; with
/// the map empty all that is left of it is one failed tail call.
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident: $attached:ident -> $looks:ident;)+) => {$(
        $(#[$doc])*
        #[classifier]
        pub(crate) fn $attached(ctx: TcContext) -> i32 {
            // SAFETY: nothing here has to be dropped when control does not come back.
            unsafe { LOOKERS.tail_call(&ctx, HookPoint::$point as u32) };
            TC_ACT_UNSPEC
        }

        #[doc = concat!("Looks for [`", stringify!($attached), "`].")]
        #[classifier]
        pub(crate) fn $looks(ctx: TcContext) -> i32 {
            look(&ctx, HookPoint::$point);
            TC_ACT_UNSPEC
        }
    )+};
}

points! {
    /// Ingress of the uplink.
    UplinkIn: plsprobe_uplink_in -> plsprobe_look_uplink_in;
    /// Egress of the uplink.
    UplinkOut: plsprobe_uplink_out -> plsprobe_look_uplink_out;
    /// Ingress of the host side of a pod's veth.
    PodOut: plsprobe_pod_out -> plsprobe_look_pod_out;
    /// Egress of the host side of a pod's veth.
    PodIn: plsprobe_pod_in -> plsprobe_look_pod_in;
    /// Egress of `cilium_host`.
    HostOut: plsprobe_host_out -> plsprobe_look_host_out;
    /// Ingress of `cilium_host`.
    HostIn: plsprobe_host_in -> plsprobe_look_host_in;
    /// Ingress of the uplink's virtual function.
    VfIn: plsprobe_vf_in -> plsprobe_look_vf_in;
    /// Egress of the uplink's virtual function.
    VfOut: plsprobe_vf_out -> plsprobe_look_vf_out;
    /// Ingress of the overlay's interface.
    OverlayIn: plsprobe_overlay_in -> plsprobe_look_overlay_in;
    /// Egress of the overlay's interface.
    OverlayOut: plsprobe_overlay_out -> plsprobe_look_overlay_out;
}

/// The packet of a classifier, from its network header on: link layers of any length, and none, read alike.
struct SkbSource<'a>(&'a TcContext);

impl Source for SkbSource<'_> {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: u32) -> Option<T> {
        // Not zeroed: LLVM would call a function for that, which goes byte by byte.
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes as many bytes as a `T` has, or answers an error; it checks offset and length.
        let ret = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.as_ptr(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                BPF_HDR_START_NET,
            )
        };
        // SAFETY: the helper has written all of it; values read here are plain bytes.
        (ret == 0).then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn copy(&self, offset: u32, len: u32, to: &mut [u8; CAPTURE_MAX]) -> Option<u32> {
        let len = copy_len(len);
        // To the kernel, the context of a classifier is the packet itself. The helper that counts from the network header
        // reaches only what lies together, which of a packet that was sent on this machine are its headers.
        let at = SkBuff::probed(self.0.as_ptr() as u64).network_offset()? + offset;
        // SAFETY: `copy_len` is at most the buffer's length; the helper checks offset and length itself.
        let ret = unsafe { bpf_skb_load_bytes(self.0.as_ptr(), at, to.as_mut_ptr().cast(), len) };
        (ret == 0).then_some(len)
    }
}

#[inline(always)]
fn look(ctx: &TcContext, point: HookPoint) {
    count(Counter::PacketSeen);
    let source = SkbSource(ctx);
    let Some(network) = filter::network(&source) else {
        return;
    };
    // SAFETY: the context pointer of a classifier is a valid `__sk_buff` for the whole run.
    let skb = unsafe { &*ctx.skb.skb };
    let place = (point, skb.ifindex, 0);
    if stream::is_only_counted(&source, &network, place) {
        return;
    }
    let Some(scratch) = filter::find(&source, &network, RecordKind::Packet) else {
        return;
    };
    if skb.vlan_present != 0 {
        scratch.packet.vlan = vlan_id(skb.vlan_tci as u16);
    }
    // To the kernel, the context of a classifier is the packet itself.
    let buffer = SkBuff::probed(ctx.as_ptr() as u64).head().unwrap_or(0);
    let counters = (Counter::PacketMatched, Counter::PacketLost);
    if let Some(mut entry) = reserve(counters, (RecordKind::Packet, point as u8), skb.ifindex) {
        let record: &mut PacketRecord = entry.record();
        record.buffer = buffer;
        record.skb_len = skb.len;
        record.mark = skb.mark;
        record.hash = skb.hash;
        copy_packet(&scratch.packet, &mut record.packet);
        entry.submit();
    }
    payload::look(&source, scratch, place);
}
