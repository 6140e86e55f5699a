//! What became of a flow.

use std::net::IpAddr;

use probe_common::HookPoint;

use super::flow::Oriented;
use super::packet::TcpFlags;
use super::sighting::{Namespace, Seen};
use crate::cilium::drop_reason::DropReason;
use crate::cilium::events::{Notification, ObservationPoint};
use crate::tuple::Protocol;

/// How a flow was turned away by somebody who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TCP reset.
    Reset,
    /// ICMP destination unreachable and the like.
    Icmp {
        /// Type.
        icmp_type: u8,
        /// Code.
        code: u8,
    },
}

/// What became of a flow, as far as was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer was seen: SYN-ACK, data, an echo reply.
    Answered,
    /// It was refused; `from` sent the refusal.
    Refused {
        /// How.
        refusal: Refusal,
        /// By whom.
        from: IpAddr,
    },
    /// Cilium says it dropped it.
    DroppedByCilium {
        /// Cilium's reason.
        reason: DropReason,
        /// Whether the flow had been answered before: an open connection was cut.
        established: bool,
    },
    /// The kernel dropped it.
    DroppedByKernel {
        /// `enum skb_drop_reason` of the running kernel.
        reason: u32,
        /// Whether it was the answer that was dropped.
        reply: bool,
    },
    /// It reached the pod, or Cilium let it in, and nothing came back.
    NoAnswer,
    /// It was seen, and then neither further on nor answered nor dropped.
    Silent,
}

/// What one flow's packets tell.
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    pub(super) answered_ns: Option<u64>,
}

/// Judges a flow's packets, sorted by time.
pub(super) fn judge(packets: &[Oriented<'_>]) -> Judged {
    let answered_ns = first(packets, is_answer);
    let refusal = packets.iter().find_map(|oriented| Some((oriented.sighting.ktime_ns, refusal(oriented)?)));
    let drop = packets.iter().filter_map(|oriented| Some((oriented, cilium_drop(oriented)?))).next_back();
    let outcome = match (answered_ns, drop, refusal) {
        // A drop that an answer followed was overcome, by a retransmission after a change of policy.
        (Some(answered_ns), Some((dropped, reason)), _) if dropped.sighting.ktime_ns > answered_ns => {
            cut(dropped, reason)
        }
        (Some(_), _, _) => Outcome::Answered,
        (None, Some((_, reason)), _) => Outcome::DroppedByCilium { reason, established: false },
        (None, None, Some((_, outcome))) => outcome,
        (None, None, None) => kernel_drop(packets).unwrap_or_else(|| unanswered(packets)),
    };
    Judged { outcome, answered_ns: answered_ns.or(refusal.map(|(ktime_ns, _)| ktime_ns)) }
}

fn first(packets: &[Oriented<'_>], matches: impl Fn(&Oriented<'_>) -> bool) -> Option<u64> {
    packets.iter().find(|oriented| matches(oriented)).map(|oriented| oriented.sighting.ktime_ns)
}

/// A drop after the answer cuts an open connection only if policy did it: stray packets of closed connections are
/// dropped for other reasons.
fn cut(dropped: &Oriented<'_>, reason: DropReason) -> Outcome {
    if is_policy(reason) && !dropped.packet().flags.opens() {
        Outcome::DroppedByCilium { reason, established: true }
    } else {
        Outcome::Answered
    }
}

/// Whether policy decided so: no entry matched, an entry denies, or authentication is missing.
pub(super) fn is_policy(reason: DropReason) -> bool {
    matches!(reason, DropReason::POLICY | DropReason::POLICY_DENY | DropReason::POLICY_AUTH_REQUIRED)
}

/// Whether a packet on its way back means that somebody took the flow.
fn is_answer(oriented: &Oriented<'_>) -> bool {
    let packet = oriented.packet();
    let is_packet = !matches!(oriented.sighting.seen, Seen::Socket { .. });
    oriented.reply && is_packet && packet.quoted.is_none() && !packet.flags.contains(TcpFlags::RST)
}

fn refusal(oriented: &Oriented<'_>) -> Option<Outcome> {
    let packet = oriented.packet();
    if !oriented.reply || matches!(oriented.sighting.seen, Seen::KernelDrop { .. } | Seen::Socket { .. }) {
        return None;
    }
    let refusal = match (packet.quoted, packet.icmp) {
        (Some(_), Some(icmp)) => Refusal::Icmp { icmp_type: icmp.icmp_type, code: icmp.code },
        _ if packet.tuple.protocol == Protocol::TCP && packet.flags.contains(TcpFlags::RST) => Refusal::Reset,
        _ => return None,
    };
    Some(Outcome::Refused { refusal, from: packet.tuple.saddr })
}

fn cilium_drop(oriented: &Oriented<'_>) -> Option<DropReason> {
    match oriented.sighting.seen.notification()? {
        Notification::Drop(drop) => Some(drop.reason),
        Notification::PolicyVerdict(verdict) => verdict.drop_reason(),
        _ => None,
    }
}

/// The kernel's first drop of the way forth, else of the way back.
fn kernel_drop(packets: &[Oriented<'_>]) -> Option<Outcome> {
    let drop = |back: bool| {
        packets.iter().filter(|oriented| oriented.reply == back).find_map(|oriented| {
            match oriented.sighting.seen {
                Seen::KernelDrop { reason, .. } => Some(Outcome::DroppedByKernel { reason, reply: back }),
                _ => None,
            }
        })
    };
    drop(false).or_else(|| drop(true))
}

fn unanswered(packets: &[Oriented<'_>]) -> Outcome {
    let from_pod = packets.first().is_some_and(|oriented| {
        matches!(oriented.sighting.seen, Seen::Hook { place, .. } if place.point == HookPoint::PodOut)
    });
    let delivered = packets.iter().any(|oriented| match oriented.sighting.seen {
        Seen::Hook { place, .. } if !oriented.reply => {
            place.point == HookPoint::PodIn
                || place.namespace == Namespace::Pod
                || (place.point == HookPoint::UplinkOut && from_pod)
        }
        _ => oriented.sighting.seen.notification().is_some_and(|notification| match notification {
            Notification::PolicyVerdict(verdict) => verdict.drop_reason().is_none(),
            Notification::Trace(trace) => trace.point == ObservationPoint::TO_ENDPOINT,
            _ => false,
        }),
    });
    if delivered { Outcome::NoAnswer } else { Outcome::Silent }
}
