//! What to do about flows that are dropped: worked out once for all that are dropped alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use probe_model::cilium::policy::PolicyQuery;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::{Advice, Code, Remedy, advise};
use probe_model::world::World;

use super::judge::{FlowVerdict, Judgement};

/// So many answers are kept; more sources than that are asked for anew.
const KEPT: usize = 256;

/// What sets one question to the policy objects apart from another.
type Asked = (Code, EndpointId, Direction, IpAddr, u8, u16);

/// Remedies by what was asked, for one state of the maps.
#[derive(Default)]
pub(super) struct Adviser {
    known: BTreeMap<Asked, Vec<Remedy>>,
}

impl Adviser {
    /// Forgets everything: the maps have been read again.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// What to do about a flow; nothing about one that was let through, or where the maps say so.
    pub(super) fn remedies(&mut self, world: &World, judgement: &Judgement) -> Vec<Remedy> {
        if judgement.verdict != FlowVerdict::Dropped {
            return Vec::new();
        }
        let explanation = &judgement.explanation;
        let own = explanation.remedies(world);
        let Some(step) = explanation.policy() else { return own };
        let PolicyQuery { direction, protocol, port, .. } = step.query;
        let peer = match direction {
            Direction::Ingress => step.tuple.saddr,
            Direction::Egress => step.tuple.daddr,
        };
        let asked = (explanation.cause.code, step.endpoint, direction, peer, protocol, port);
        if self.known.len() >= KEPT {
            self.forget();
        }
        let edits = self
            .known
            .entry(asked)
            .or_insert_with(|| advise(world, explanation).as_ref().map(Advice::remedies).unwrap_or_default());
        own.into_iter().chain(edits.iter().cloned()).collect()
    }
}
