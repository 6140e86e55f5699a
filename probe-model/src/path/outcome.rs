//! What became of a flow.

use std::net::IpAddr;

use probe_common::HookPoint;

use super::flow::{Oriented, exits};
use super::packet::{Fragment, TcpFlags};
use super::sighting::{Namespace, Seen, SocketEvent};
use crate::cilium::drop_reason::DropReason;
use crate::cilium::events::{Notification, ObservationPoint};
use crate::explain::Code;
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
    /// An answer was seen, and it did not get to whoever asked.
    AnswerLost,
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
        /// Whether it was the answer that was dropped.
        reply: bool,
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

impl Outcome {
    /// Its code in the catalogue.
    pub fn code(self) -> Code {
        match self {
            Self::Answered => Code::Answered,
            Self::AnswerLost => Code::AnswerLost,
            Self::Refused { .. } => Code::Refused,
            Self::DroppedByCilium { .. } => Code::DroppedByCilium,
            Self::DroppedByKernel { .. } => Code::DroppedByKernel,
            Self::NoAnswer => Code::NoAnswer,
            Self::Silent => Code::Silent,
        }
    }
}

/// What one flow's packets tell.
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    pub(super) answered_ns: Option<u64>,
    pub(super) is_acknowledged: bool,
}

/// Judges a flow's packets, sorted by time.
pub(super) fn judge(packets: &[Oriented<'_>]) -> Judged {
    let answered_ns = first(packets, is_answer);
    let is_acknowledged = answered_ns.is_some_and(|answered_ns| is_acknowledged(packets, answered_ns));
    let refusal = packets.iter().find_map(|oriented| Some((oriented.sighting.ktime_ns, refusal(oriented)?)));
    let outcome = match (answered_ns, refusal) {
        (Some(answered_ns), _) => answered(packets, answered_ns, is_acknowledged),
        (None, refusal) => turned_away(packets, refusal.map(|(_, outcome)| outcome)),
    };
    let refused_ns = || refusal.map(|(ktime_ns, _)| ktime_ns).or_else(|| first(packets, is_reset_by_pod));
    Judged { outcome, answered_ns: answered_ns.or_else(refused_ns), is_acknowledged }
}

fn first(packets: &[Oriented<'_>], matches: impl Fn(&Oriented<'_>) -> bool) -> Option<u64> {
    packets.iter().find(|oriented| matches(oriented)).map(|oriented| oriented.sighting.ktime_ns)
}

/// Somebody took the flow: what became of the answer, and of what came after it.
fn answered(packets: &[Oriented<'_>], answered_ns: u64, is_acknowledged: bool) -> Outcome {
    let dropped = last_cilium_drop(packets).filter(|(dropped, _)| dropped.sighting.ktime_ns > answered_ns);
    match dropped {
        Some((dropped, reason)) if is_undelivered(dropped, is_acknowledged) => {
            return Outcome::DroppedByCilium { reason, established: false, reply: true };
        }
        // A drop that an answer followed was overcome, by a retransmission after a change of policy.
        Some((dropped, reason)) => return cut(dropped, reason),
        None => {}
    }
    if is_acknowledged || has_left(packets) && !is_repeated(packets, answered_ns) {
        return Outcome::Answered;
    }
    let freed = kernel_drop(packets, true).filter(|_| !has_left(packets));
    match freed {
        Some(outcome) => outcome,
        None if is_repeated(packets, answered_ns) => Outcome::AnswerLost,
        None => Outcome::Answered,
    }
}

/// Nobody took it.
fn turned_away(packets: &[Oriented<'_>], refusal: Option<Outcome>) -> Outcome {
    if let Some((dropped, reason)) = last_cilium_drop(packets) {
        return Outcome::DroppedByCilium { reason, established: false, reply: dropped.reply };
    }
    let reset = || packets.iter().find(|oriented| is_reset_by_pod(oriented)).map(reset);
    let freed = || kernel_drop(packets, false).or_else(|| kernel_drop(packets, true));
    let accepted_again = packets.iter().any(is_accepted_again);
    let lost = || accepted_again.then_some(Outcome::AnswerLost);
    refusal.or_else(reset).or_else(freed).or_else(lost).unwrap_or_else(|| unanswered(packets))
}

/// A drop after the answer cuts an open connection only if policy did it: stray packets of closed connections are
/// dropped for other reasons.
fn cut(dropped: &Oriented<'_>, reason: DropReason) -> Outcome {
    if is_policy(reason) && !dropped.packet().flags.opens() {
        Outcome::DroppedByCilium { reason, established: true, reply: dropped.reply }
    } else {
        Outcome::Answered
    }
}

/// Whether a dropped packet is the answer to a SYN that nobody has acknowledged.
fn is_undelivered(dropped: &Oriented<'_>, is_acknowledged: bool) -> bool {
    dropped.reply && dropped.packet().flags.accepts() && !is_acknowledged
}

/// Whether the client went on with the answer, or the pod's socket says so.
fn is_acknowledged(packets: &[Oriented<'_>], answered_ns: u64) -> bool {
    packets.iter().any(|oriented| {
        if let Seen::Socket { event, namespace } = oriented.sighting.seen {
            return (event, namespace) == (SocketEvent::Established, Namespace::Pod);
        }
        let packet = oriented.packet();
        oriented.sighting.ktime_ns > answered_ns
            && !oriented.reply
            && packet.tuple.protocol == Protocol::TCP
            && oriented.sighting.has_numbers()
            && !packet.flags.contains(TcpFlags::SYN)
            && packet.fragment != Fragment::Later
    })
}

/// Whether an answer was seen leaving by the side that the flow came in on.
fn has_left(packets: &[Oriented<'_>]) -> bool {
    let places = |reply: bool| {
        packets.iter().filter(move |oriented| oriented.reply == reply).filter_map(|oriented| {
            match oriented.sighting.seen {
                Seen::Hook { place, .. } => Some(place),
                _ => None,
            }
        })
    };
    let exits = places(false).next().and_then(exits);
    exits.is_some_and(|exits| places(true).any(|place| exits.contains(&place.point)))
}

/// Whether a SYN came again after it had been answered, or its answer was sent again.
fn is_repeated(packets: &[Oriented<'_>], answered_ns: u64) -> bool {
    let mut seen = Vec::new();
    packets.iter().any(|oriented| match oriented.sighting.seen {
        Seen::Socket { .. } => is_accepted_again(oriented),
        Seen::Hook { place, .. } => {
            let flags = oriented.packet().flags;
            if !flags.opens() && !flags.accepts() {
                return false;
            }
            let again = seen.contains(&(place, flags));
            seen.push((place, flags));
            again && oriented.sighting.ktime_ns > answered_ns
        }
        _ => false,
    })
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

/// Whether the pod's socket sent its SYN-ACK again.
pub(super) fn is_accepted_again(oriented: &Oriented<'_>) -> bool {
    let Seen::Socket { event, namespace } = oriented.sighting.seen else { return false };
    namespace == Namespace::Pod && event == SocketEvent::AcceptedAgain
}

/// Whether the pod's stack says that it answered a packet with a reset.
fn is_reset_by_pod(oriented: &Oriented<'_>) -> bool {
    let Seen::Socket { event, namespace } = oriented.sighting.seen else { return false };
    namespace == Namespace::Pod && event.had_socket().is_some()
}

/// The refusal that a socket's event tells of; its packet is the one that was answered.
fn reset(oriented: &Oriented<'_>) -> Outcome {
    let tuple = oriented.packet().tuple;
    let from = if oriented.reply { tuple.saddr } else { tuple.daddr };
    Outcome::Refused { refusal: Refusal::Reset, from }
}

fn last_cilium_drop<'o, 'a>(packets: &'o [Oriented<'a>]) -> Option<(&'o Oriented<'a>, DropReason)> {
    packets.iter().filter_map(|oriented| Some((oriented, cilium_drop(oriented)?))).next_back()
}

fn cilium_drop(oriented: &Oriented<'_>) -> Option<DropReason> {
    match oriented.sighting.seen.notification()? {
        Notification::Drop(drop) => Some(drop.reason),
        Notification::PolicyVerdict(verdict) => verdict.drop_reason(),
        _ => None,
    }
}

/// The kernel's first drop of the way forth, or of the way back.
fn kernel_drop(packets: &[Oriented<'_>], reply: bool) -> Option<Outcome> {
    packets.iter().filter(|oriented| oriented.reply == reply).find_map(|oriented| {
        match oriented.sighting.seen {
            Seen::KernelDrop { reason, .. } => Some(Outcome::DroppedByKernel { reason, reply }),
            _ => None,
        }
    })
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
