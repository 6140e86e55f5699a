//! The verdict on a path across nodes: the one of the node that saw how it ended.

use super::part::{Fate, Part};
use crate::trace::judge::FlowVerdict;

/// A verdict and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: FlowVerdict,
    /// Whose it is, by the part's place on the path.
    pub by: usize,
    /// What the nodes' words are together that none of them says alone.
    pub finding: Option<Finding>,
}

/// What only both nodes together tell; places are on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It was answered there, the answer must come back through `through`, and was not seen.
    AnswerMissing {
        /// Where it should have come.
        through: usize,
    },
    /// It was dropped behind a node that had put its own address in the sender's place.
    Hidden {
        /// That node.
        by: usize,
    },
    /// The maps of `at` drop it, and yet it went on.
    WentOn {
        /// Whose maps.
        at: usize,
    },
}

/// The verdict on a path, of its parts in order.
///
/// # Panics
///
/// Without a part.
pub fn judge(path: &[&Part]) -> Judged {
    let last = path.len().checked_sub(1).expect("a path has a part");
    let of = |by: usize| Judged { verdict: path[by].verdict, by, finding: None };
    let dropped = |by: &usize, wanted: bool| {
        path[*by].verdict == FlowVerdict::Dropped && path[*by].fate == Fate::Dropped { reply: wanted }
    };
    // On its way there, then on the way back.
    let hidden = |by: usize| (0..by).find(|at| path[*at].is_snat()).map(|by| Finding::Hidden { by });
    if let Some(by) = (0..=last).find(|by| dropped(by, false)) {
        return Judged { finding: hidden(by), ..of(by) };
    }
    if let Some(by) = (0..=last).rev().find(|by| dropped(by, true)) {
        return of(by);
    }
    let went_on = (0..last).find(|at| path[*at].verdict == FlowVerdict::Dropped);
    let finding = went_on.map(|at| Finding::WentOn { at });
    if path[last].verdict != FlowVerdict::Allowed {
        // Whoever saw the answer come back knows more than who saw none.
        let answered =
            |by: &usize| path[*by].verdict == FlowVerdict::Allowed && path[*by].answered_ns.is_some();
        let knows = (0..last).rev().find(answered);
        let by = knows.filter(|_| path[last].verdict == FlowVerdict::Inconclusive).unwrap_or(last);
        let is_dropped = path[by].verdict == FlowVerdict::Dropped;
        return Judged { finding: finding.or(hidden(by).filter(|_| is_dropped)), ..of(by) };
    }
    let back = (0..last).rev();
    if let Some(by) = back.clone().find(|by| path[*by].fate == Fate::AnswerLost) {
        return Judged { finding, ..of(by) };
    }
    let is_missing = |through: &usize| path[*through].is_snat() && path[*through].answered_ns.is_none();
    if let Some(through) = back.clone().find(is_missing).filter(|_| path[last].answered_ns.is_some()) {
        let finding = Some(Finding::AnswerMissing { through });
        return Judged { verdict: FlowVerdict::Inconclusive, by: through, finding };
    }
    Judged { finding, ..of(last) }
}

#[cfg(test)]
mod tests;
