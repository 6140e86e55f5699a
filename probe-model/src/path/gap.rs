//! Where a flow was seen last, and what can hide between there and the next place that should have seen it.

use std::collections::BTreeSet;

use probe_common::HookPoint;

use super::flow::{Hop, Path, exits};
use super::outcome::Outcome;
use super::sighting::{Namespace, Place};
use crate::explain::Code;
use crate::tuple::Protocol;

/// What was watched while a flow was traced: what is not seen there did not happen there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Points where hooks are attached.
    pub points: BTreeSet<(Namespace, HookPoint)>,
    /// The kernel's drops.
    pub drops: bool,
    /// Cilium's notifications.
    pub cilium: bool,
    /// Records were lost: what is not seen may have happened all the same.
    pub lost_records: bool,
}

impl Watch {
    fn sees(&self, namespace: Namespace, point: HookPoint) -> bool {
        self.points.contains(&(namespace, point))
    }

    fn sees_any(&self, points: &[HookPoint]) -> bool {
        points.iter().any(|point| self.sees(Namespace::Node, *point))
    }

    /// Whether a packet that arrives in the pod is seen there.
    fn sees_in_pod(&self) -> bool {
        [HookPoint::Received, HookPoint::IpReceive, HookPoint::IpDeliver]
            .into_iter()
            .any(|point| self.sees(Namespace::Pod, point))
    }

    /// Whether a packet that the pod sends is seen.
    fn sees_from_pod(&self) -> bool {
        self.sees(Namespace::Node, HookPoint::PodOut) || self.sees(Namespace::Pod, HookPoint::Queued)
    }
}

/// How packets go through this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// By the host's stack, where netfilter and routing decide; else Cilium moves them straight into the pod, past the
    /// host's side of its veth.
    pub through_stack: bool,
    /// By rules of netfilter's that may give packets to a program, or that are not known.
    pub may_be_queued: bool,
    /// Perhaps to a backend on another node.
    pub to_other_node: bool,
}

/// Where a flow was seen last, and what may have become of it from there on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last place on the way forth, or of the answer; `None` if no hook saw it.
    pub last: Option<Hop>,
    /// Whether it is the answer that was lost.
    pub reply: bool,
    /// What nothing observed excludes.
    pub candidates: Vec<Candidate>,
}

/// What may have become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// Cilium dropped it, and neither its notifications nor the kernel's drops are watched.
    CiliumUnread,
    /// A tc program behind ours took it.
    TcProgram {
        /// Where.
        place: Place,
        /// It may have dropped it; else only redirected or kept it, for a drop would have been seen.
        may_drop: bool,
    },
    /// Netfilter, routing or the reverse path filter of the host dropped it: the kernel's drops are not watched.
    HostStack,
    /// A program that reads a queue of netfilter's has it, and did not decide; a drop of its would have been seen.
    NetfilterQueue,
    /// It was sent on to a backend on another node, which our filter does not follow.
    OtherNode,
    /// The interface did not send it.
    Device {
        /// Which.
        place: Place,
    },
    /// Netfilter or routing of the pod dropped it: the kernel's drops are not watched.
    PodStack,
    /// Too many connections wait for the application to accept them.
    ListenQueue,
    /// The application did not answer.
    Application,
    /// It went on where nothing watches.
    Unwatched,
    /// It left by another interface than it came in by.
    OtherInterface,
    /// It left this node and got lost behind it.
    BeyondNode,
    /// Our own record of it was lost.
    LostRecord,
}

impl Candidate {
    /// A stable code.
    pub fn code(self) -> Code {
        match self {
            Self::CiliumUnread => Code::CiliumUnread,
            Self::TcProgram { .. } => Code::TcProgram,
            Self::HostStack => Code::HostStack,
            Self::NetfilterQueue => Code::NetfilterQueue,
            Self::OtherNode => Code::OtherNode,
            Self::Device { .. } => Code::Device,
            Self::PodStack => Code::PodStack,
            Self::ListenQueue => Code::ListenQueue,
            Self::Application => Code::Application,
            Self::Unwatched => Code::Unwatched,
            Self::OtherInterface => Code::OtherInterface,
            Self::BeyondNode => Code::BeyondNode,
            Self::LostRecord => Code::LostRecord,
        }
    }
}

impl Path {
    /// What became of it, given what was watched: an answer that should have been seen leaving, and was not, is lost.
    pub fn outcome_under(&self, watch: &Watch) -> Outcome {
        let exits = self.hops.first().and_then(|hop| exits(hop.place));
        let is_watched = exits.is_some_and(|exits| watch.sees_any(exits)) && !watch.lost_records;
        let is_missing = !self.is_acknowledged && !self.is_answer_complete();
        match self.outcome {
            Outcome::Answered if is_watched && is_missing => Outcome::AnswerLost,
            outcome => outcome,
        }
    }

    /// The gap in a flow that failed for no reason seen; `None` for one that works or was turned away.
    pub fn gap(&self, watch: &Watch, ways: Ways) -> Option<Gap> {
        let last = |hops: &[Hop]| hops.last().copied();
        let (last, reply, mut candidates) = match self.outcome_under(watch) {
            Outcome::Silent => (last(&self.hops), false, on_the_way(last(&self.hops), watch, ways)),
            Outcome::NoAnswer => (last(&self.hops), false, self.unanswered(watch)),
            Outcome::AnswerLost => (last(&self.replies), true, self.answer_lost(watch, ways)),
            _ => return None,
        };
        if watch.lost_records {
            candidates.push(Candidate::LostRecord);
        }
        Some(Gap { last, reply, candidates })
    }

    /// It arrived where it was to go, and nothing came back.
    fn unanswered(&self, watch: &Watch) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let last = self.hops.last().map(|hop| hop.place);
        if let Some(place) = last.filter(|place| exits_of_node(place.point)) {
            candidates.extend([Candidate::Device { place }, Candidate::BeyondNode]);
            return candidates;
        }
        if let Some(place) = last.filter(|place| place.point == HookPoint::PodIn) {
            candidates.extend(at_classifier(place, watch));
        }
        if !watch.drops {
            candidates.push(Candidate::PodStack);
        }
        candidates.push(match self.tuple.protocol {
            Protocol::TCP => Candidate::ListenQueue,
            _ => Candidate::Application,
        });
        if !watch.sees_from_pod() {
            candidates.push(Candidate::Unwatched);
        }
        candidates
    }

    /// Somebody answered, and the answer did not get to whoever asked.
    fn answer_lost(&self, watch: &Watch, ways: Ways) -> Vec<Candidate> {
        let exits = self.hops.first().and_then(|hop| exits(hop.place)).unwrap_or_default();
        let last = self.replies.last().map(|hop| hop.place);
        if let Some(place) = last.filter(|place| exits.contains(&place.point)) {
            return vec![Candidate::Device { place }, Candidate::BeyondNode];
        }
        let mut candidates = Vec::new();
        if let Some(place) = last {
            candidates.extend(at_classifier(place, watch));
        }
        candidates.extend(in_host_stack(watch, ways));
        if watch.sees_any(exits) {
            candidates.push(Candidate::OtherInterface);
        } else {
            candidates.extend([Candidate::Unwatched, Candidate::BeyondNode]);
        }
        candidates
    }
}

/// It was seen, and did not arrive.
fn on_the_way(last: Option<Hop>, watch: &Watch, ways: Ways) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if let Some(hop) = last {
        candidates.extend(at_classifier(hop.place, watch));
    }
    candidates.extend(in_host_stack(watch, ways));
    if ways.to_other_node {
        candidates.push(Candidate::OtherNode);
    }
    let sees_arrival =
        watch.sees_in_pod() || (ways.through_stack && watch.sees(Namespace::Node, HookPoint::PodIn));
    if !sees_arrival {
        candidates.push(Candidate::Unwatched);
    }
    candidates
}

/// What the host's stack may have done.
fn in_host_stack(watch: &Watch, ways: Ways) -> impl Iterator<Item = Candidate> {
    let dropped = (ways.through_stack && !watch.drops).then_some(Candidate::HostStack);
    let queued = (ways.through_stack && ways.may_be_queued).then_some(Candidate::NetfilterQueue);
    dropped.into_iter().chain(queued)
}

/// What may follow a classifier of ours at its place; nothing at places of the stack.
fn at_classifier(place: Place, watch: &Watch) -> Vec<Candidate> {
    let is_classifier = place.point < HookPoint::Received;
    if !is_classifier {
        return Vec::new();
    }
    let mut candidates = Vec::new();
    if !watch.cilium && !watch.drops {
        candidates.push(Candidate::CiliumUnread);
    }
    candidates.push(Candidate::TcProgram { place, may_drop: !watch.drops });
    candidates
}

/// Whether a packet leaves the node there.
fn exits_of_node(point: HookPoint) -> bool {
    matches!(point, HookPoint::UplinkOut | HookPoint::VfOut | HookPoint::OverlayOut)
}
