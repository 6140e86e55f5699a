//! Where a flow was lost from sight, in an operator's words.

use probe_model::path::{Candidate, Gap, HookPoint, Namespace, Place};

use crate::trace::kernel::Names;

/// Where it was seen last, and what may have become of it.
pub(super) fn text(gap: &Gap, names: &Names) -> String {
    let seen = match (gap.last, gap.reply) {
        (Some(hop), false) => format!("nothing after {}", place_text(hop.place, names)),
        (Some(hop), true) => format!("nothing of the answer after {}", place_text(hop.place, names)),
        (None, false) => "no hook of ours saw it".to_owned(),
        (None, true) => "no hook of ours saw the answer".to_owned(),
    };
    let candidates: Vec<_> = gap.candidates.iter().map(|one| candidate_text(*one, names)).collect();
    if candidates.is_empty() {
        return format!("{seen}; nothing that plsprobe knows of explains it");
    }
    format!("{seen}; perhaps {}", candidates.join(", or "))
}

/// What may have become of a packet, as a clause.
pub(super) fn candidate_text(candidate: Candidate, names: &Names) -> String {
    match candidate {
        Candidate::CiliumUnread => "Cilium dropped it (its notifications are not read here)".to_owned(),
        Candidate::TcProgram { place, may_drop } => {
            let did = if may_drop { "dropped, redirected or kept it" } else { "redirected or kept it" };
            format!("a tc program behind ours at {} {did}", whose_text(place, names))
        }
        Candidate::HostStack => {
            "the host's netfilter, routing or rp_filter dropped it (the kernel's drops are not watched here)"
                .to_owned()
        }
        Candidate::NetfilterQueue => "a program that reads netfilter's queue (NFQUEUE) holds it".to_owned(),
        Candidate::OtherNode => "it was sent on to a backend on another node".to_owned(),
        Candidate::Device { place } => format!("{} did not send it", whose_text(place, names)),
        Candidate::PodStack => {
            "the pod's netfilter or routing dropped it (the kernel's drops are not watched here)".to_owned()
        }
        Candidate::ListenQueue => "the application's queue of new connections is full".to_owned(),
        Candidate::Application => "the application did not answer".to_owned(),
        Candidate::Unwatched => "it went on where no hook of ours is attached".to_owned(),
        Candidate::OtherInterface => "it left by another interface".to_owned(),
        Candidate::BeyondNode => "it was lost behind this node".to_owned(),
        Candidate::LostRecord => "our own record of it was lost".to_owned(),
    }
}

/// A hook, as an operator would say it: `eth0 in`, `pod delivered`.
pub(crate) fn place_text(place: Place, names: &Names) -> String {
    format!("{} {}", whose_text(place, names), point_text(place.point))
}

/// The interface, the host's stack or the pod.
fn whose_text(place: Place, names: &Names) -> String {
    // An interface's number in the pod's namespace is none of ours.
    match (place.namespace, place.point) {
        (Namespace::Pod, _) => "pod".to_owned(),
        (Namespace::Node, HookPoint::IpReceive | HookPoint::IpForward | HookPoint::IpDeliver) => {
            "stack".to_owned()
        }
        (Namespace::Node, _) => names.interface(place.ifindex),
    }
}

/// What happens to the packet at a hook.
pub(super) fn point_text(point: HookPoint) -> &'static str {
    match point {
        HookPoint::UplinkIn | HookPoint::VfIn | HookPoint::OverlayIn => "in",
        HookPoint::UplinkOut | HookPoint::VfOut | HookPoint::OverlayOut => "out",
        HookPoint::PodOut => "from pod",
        HookPoint::PodIn => "to pod",
        HookPoint::HostOut => "from host",
        HookPoint::HostIn => "to host",
        HookPoint::Received | HookPoint::IpReceive => "received",
        HookPoint::Queued => "sent",
        HookPoint::IpForward => "forwarded",
        HookPoint::IpDeliver => "delivered",
    }
}
