//! Cilium's notifications: every field's place in every release, what is read back, what is refused.

mod hook;
mod layouts;
mod recordings;
mod streams;

use fixtures::Random;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::{
    CaptureHeader, DebugCapture, DebugMessage, DropNotify, Notification, NotifyFlags, ObservationPoint,
    PolicyVerdictNotify, SocketTrace, SocketTraceLayout, TraceNotify, TraceReason, XlatePoint,
};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::MatchType;
use probe_model::cilium::{Direction, EndpointId};

/// Every notification with every size that it has in a release.
const LAYOUTS: [(&str, usize); 11] = [
    ("drop_notify", 36),
    ("drop_notify", 40),
    ("drop_notify", 48),
    ("trace_notify", 48),
    ("trace_notify", 56),
    ("policy_verdict_notify", 32),
    ("policy_verdict_notify", 40),
    ("debug_msg", 20),
    ("debug_capture_msg", 24),
    ("trace_sock_notify", 38),
    ("trace_sock_notify", 40),
];

/// A notification of a layout, of which every field has the value that `number` gives next.
fn build(structure: &str, size: usize, mut number: impl FnMut() -> u64) -> Notification {
    let mut n = || number();
    let mut header = || CaptureHeader {
        source: EndpointId(n() as u16),
        hash: n() as u32,
        len_orig: n() as u32,
        len_cap: n() as u16,
        ext_version: 0,
    };
    match structure {
        "drop_notify" => Notification::Drop(DropNotify {
            header: header(),
            reason: DropReason(n() as u8),
            src_label: Identity(n() as u32),
            dst_label: Identity(n() as u32),
            dst_id: n() as u32,
            line: n() as u16,
            file: n() as u8,
            ext_error: n() as i8,
            ifindex: n() as u32,
            flags: (size >= 40).then(|| NotifyFlags(n() as u8)),
            ip_trace_id: (size >= 48).then(&mut n),
        }),
        "trace_notify" => Notification::Trace(TraceNotify {
            header: header(),
            point: ObservationPoint(n() as u8),
            src_label: Identity(n() as u32),
            dst_label: Identity(n() as u32),
            dst_id: n() as u16,
            reason: TraceReason(n() as u8),
            flags: NotifyFlags(n() as u8),
            ifindex: n() as u32,
            orig_ip: core::array::from_fn(|_| n() as u8),
            ip_trace_id: (size >= 56).then(&mut n),
        }),
        "policy_verdict_notify" => Notification::PolicyVerdict(PolicyVerdictNotify {
            header: header(),
            remote_label: Identity(n() as u32),
            verdict: n() as i32,
            dst_port: n() as u16,
            proto: n() as u8,
            direction: if n() % 2 == 0 { Direction::Ingress } else { Direction::Egress },
            ipv6: n() % 2 == 1,
            match_type: MatchType::from_number((n() % 7) as u8).unwrap(),
            audited: n() % 2 == 1,
            l3_device: n() % 2 == 1,
            auth_type: n() as u8,
            cookie: (size >= 40).then(|| n() as u32),
        }),
        "debug_msg" => Notification::DebugMessage(DebugMessage {
            subtype: n() as u8,
            source: EndpointId(n() as u16),
            hash: n() as u32,
            args: core::array::from_fn(|_| n() as u32),
        }),
        "debug_capture_msg" => Notification::DebugCapture(DebugCapture {
            header: header(),
            subtype: n() as u8,
            args: core::array::from_fn(|_| n() as u32),
        }),
        "trace_sock_notify" => Notification::SocketTrace(SocketTrace {
            layout: if size == 38 { SocketTraceLayout::Packed } else { SocketTraceLayout::Aligned },
            xlate_point: XlatePoint(n() as u8),
            l4_proto: n() as u8,
            ipv6: n() % 2 == 1,
            dst_port: n() as u16,
            dst_ip: core::array::from_fn(|_| n() as u8),
            sock_cookie: n(),
            cgroup_id: n(),
        }),
        other => panic!("no notification `{other}`"),
    }
}

fn header_mut(notification: &mut Notification) -> Option<&mut CaptureHeader> {
    match notification {
        Notification::Drop(drop) => Some(&mut drop.header),
        Notification::Trace(trace) => Some(&mut trace.header),
        Notification::PolicyVerdict(verdict) => Some(&mut verdict.header),
        Notification::DebugCapture(capture) => Some(&mut capture.header),
        _ => None,
    }
}
