//! One packet judged by [`explain`], as a finding.

use std::net::IpAddr;

use super::scope::Entry;
use crate::explain::{Explanation, Finding, Verdict, advise, explain};
use crate::world::World;

/// What becomes of a packet.
pub(super) enum Judged {
    /// It gets through.
    Allowed(Box<Explanation>),
    /// It is dropped, and why.
    Dropped(Finding),
    /// It cannot be said, and why.
    Unknown(Box<Explanation>, String),
}

/// Judges the first packet of a connection from `source`.
pub(super) fn judge(world: &World, entry: Entry, source: IpAddr) -> Judged {
    let explanation = explain(world, &entry.question(source));
    match &explanation.verdict {
        Verdict::Allowed => Judged::Allowed(Box::new(explanation)),
        Verdict::Inconclusive(facts) => {
            let why = facts.join("; ");
            Judged::Unknown(Box::new(explanation), why)
        }
        Verdict::Dropped(_) | Verdict::Filtered => {
            let mut finding = explanation.finding(world);
            if let Ok(advice) = advise(world, &explanation) {
                finding.remedy.extend(advice.remedies());
            }
            Judged::Dropped(finding)
        }
    }
}
