//! Notifications in `cilium_events` and counters in `cilium_metrics`.
//!
//! Source: `struct drop_notify`, `trace_notify`, `policy_verdict_notify` of `bpf/lib/{drop,trace,policy_log}.h`
//! @1.14.
use aya_ebpf::{bindings::TC_ACT_SHOT, helpers::generated::bpf_get_hash_recalc, programs::TcContext};

use crate::{
    config,
    config::{FILTER_EGRESS, FILTER_INGRESS},
    conntrack::{IN, Status},
    maps::{EVENTS, METRICS, MetricsKey, MetricsValue},
    packet::{Packet, skb},
    policy::Decision,
    reason::POLICY_AUTH_REQUIRED,
};

const CAPTURE_LEN: u32 = 128;

const TYPE_DROP: u8 = 1;
const TYPE_TRACE: u8 = 4;
const TYPE_VERDICT: u8 = 5;

/// Metric directions.
pub const INGRESS: u8 = 1;
pub const EGRESS: u8 = 2;
/// Metric reason: come in plain text.
const PLAINTEXT: u8 = 3;

/// Aggregation levels: from here on no `from-…` traces, from here on only what conntrack finds worth one.
const AGGREGATE_RX: u32 = 1;
const AGGREGATE_ACTIVE: u32 = 3;

/// `enum trace_point`.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Point {
    ToEndpoint = 0,
    ToStack = 3,
    ToOverlay = 4,
    FromEndpoint = 5,
    FromHost = 7,
    FromStack = 8,
    FromNetwork = 10,
    ToNetwork = 11,
}

/// `reason` of a trace without conntrack state.
pub const REASON_UNKNOWN: u8 = 5;

#[repr(C)]
struct Header {
    kind: u8,
    subtype: u8,
    source: u16,
    hash: u32,
    len_orig: u32,
    len_cap: u16,
    version: u16,
}

#[repr(C)]
struct DropNotify {
    header: Header,
    src_label: u32,
    dst_label: u32,
    dst_id: u32,
    line: u16,
    file: u8,
    ext_error: i8,
    ifindex: u32,
}

#[repr(C)]
struct TraceNotify {
    header: Header,
    src_label: u32,
    dst_label: u32,
    dst_id: u16,
    reason: u8,
    flags: u8,
    ifindex: u32,
    orig_ip_be: [u32; 4],
}

#[repr(C)]
struct VerdictNotify {
    header: Header,
    remote_label: u32,
    verdict: i32,
    dst_port: u16,
    proto: u8,
    /// Bits 0-1 direction, bits 3-5 match type.
    bits: u8,
    auth_type: u8,
    pad: [u8; 3],
}

const _: () = {
    use core::mem::size_of;
    assert!(
        size_of::<DropNotify>() == 36 && size_of::<TraceNotify>() == 48 && size_of::<VerdictNotify>() == 32
    );
};

/// Whose packet a dropped one is, and what else its notification tells.
#[derive(Clone, Copy, Default)]
pub struct Labels {
    pub src: u32,
    pub dst: u32,
    pub dst_id: u32,
    /// The authentication that its policy entry asks for.
    pub auth_type: u8,
}

/// One trace notification, but for the packet.
pub struct Trace {
    pub point: Point,
    pub src_label: u32,
    pub dst_label: u32,
    pub dst_id: u16,
    pub reason: u8,
    pub ifindex: u32,
    pub orig_ip_be: u32,
    /// Conntrack's word that it is worth one.
    pub monitor: bool,
}

impl Trace {
    /// A trace at a `from-…` point or at the uplink's egress, where no conntrack state is known.
    #[inline(always)]
    pub fn stateless(point: Point, src_label: u32, ifindex: u32) -> Self {
        Self {
            point,
            src_label,
            dst_label: 0,
            dst_id: 0,
            reason: REASON_UNKNOWN,
            ifindex,
            orig_ip_be: 0,
            monitor: false,
        }
    }
}

#[inline(always)]
fn header(ctx: &TcContext, kind: u8, subtype: u8) -> Header {
    let len = ctx.len();
    Header {
        kind,
        subtype,
        source: config!(endpoint_id) as u16,
        // SAFETY: the program's own context.
        hash: unsafe { bpf_get_hash_recalc(skb(ctx)) },
        len_orig: len,
        len_cap: len.min(CAPTURE_LEN) as u16,
        version: 1,
    }
}

#[inline(always)]
fn emit<T>(ctx: &TcContext, event: &T) {
    // SAFETY: `T` is one of the three notifications above: plain, without padding.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const *event).cast::<u8>(), size_of::<T>()) };
    EVENTS.output(ctx, bytes, ctx.len().min(CAPTURE_LEN));
}

/// Notifies a drop, counts it in metric direction `dir`, and returns the action. `file` is Cilium's number of the
/// source file.
#[inline(always)]
pub fn drop(ctx: &TcContext, reason: i32, labels: Labels, file: u8, dir: u8) -> i32 {
    count(ctx, -reason as u8, dir);
    // SAFETY: reads a field of the program's own context.
    let ifindex = unsafe { (*skb(ctx)).ifindex };
    let event = DropNotify {
        header: header(ctx, TYPE_DROP, -reason as u8),
        src_label: labels.src,
        dst_label: labels.dst,
        dst_id: labels.dst_id,
        line: 0,
        file,
        ext_error: if reason == POLICY_AUTH_REQUIRED { labels.auth_type.cast_signed() } else { 0 },
        ifindex,
    };
    emit(ctx, &event);
    TC_ACT_SHOT
}

/// Notifies a packet's passing, as far as aggregation lets it.
#[inline(always)]
pub fn trace(ctx: &TcContext, trace: &Trace) {
    match trace.point {
        Point::ToEndpoint => count(ctx, 0, INGRESS),
        Point::ToStack | Point::ToOverlay | Point::ToNetwork => count(ctx, 0, EGRESS),
        Point::FromHost | Point::FromStack | Point::FromNetwork => count(ctx, PLAINTEXT, INGRESS),
        Point::FromEndpoint => {}
    }
    let level = config!(aggregation);
    let from = trace.point >= Point::FromEndpoint && trace.point <= Point::FromNetwork;
    if (from && level >= AGGREGATE_RX) || (level >= AGGREGATE_ACTIVE && !trace.monitor) {
        return;
    }
    let event = TraceNotify {
        header: header(ctx, TYPE_TRACE, trace.point as u8),
        src_label: trace.src_label,
        dst_label: trace.dst_label,
        dst_id: trace.dst_id,
        reason: trace.reason,
        flags: 0,
        ifindex: trace.ifindex,
        orig_ip_be: [trace.orig_ip_be, 0, 0, 0],
    };
    emit(ctx, &event);
}

/// Notifies a verdict, if its direction is enforced: every deny, and the allow of a new connection.
#[inline(always)]
pub fn verdict(ctx: &TcContext, packet: &Packet, dir: u8, remote: u32, status: Status, decision: Decision) {
    let (dir, filter) = if dir == IN { (INGRESS, FILTER_INGRESS) } else { (EGRESS, FILTER_EGRESS) };
    if config!(verdict_filter) & filter == 0 {
        return;
    }
    if decision.verdict == 0 && status == Status::Established {
        return;
    }
    let event = VerdictNotify {
        header: header(ctx, TYPE_VERDICT, 0),
        remote_label: remote,
        verdict: decision.verdict,
        dst_port: u16::from_be(packet.dport_be),
        proto: packet.proto,
        bits: dir | (decision.match_type as u8) << 3,
        auth_type: decision.auth_type,
        pad: [0; 3],
    };
    emit(ctx, &event);
}

#[inline(always)]
fn count(ctx: &TcContext, reason: u8, dir: u8) {
    let key = MetricsKey { reason, dir, pad: [0; 6] };
    let bytes = u64::from(ctx.len());
    if let Some(value) = METRICS.get_ptr_mut(key) {
        // SAFETY: this CPU's live map value, null-checked.
        unsafe {
            (*value).count += 1;
            (*value).bytes += bytes;
        }
    } else {
        // A full map loses a count, as in Cilium; nothing depends on it.
        let _ = METRICS.insert(key, MetricsValue { count: 1, bytes }, 0);
    }
}
