//! Datagrams of undecided flows: a stream of them says in its first ones all that it has to say.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::link::LegKey;
use super::packet::Fragment;
use super::sighting::{Place, Seen, Sighting};
use crate::tuple::Protocol;

/// So many of one leg, one direction and one place are kept: enough for each to be known again on another leg.
const KEPT: u32 = 64;

/// How many were kept of each leg and direction at each place.
#[derive(Default)]
pub(super) struct Datagrams {
    kept: HashMap<(LegKey, bool, Place), u32, RandomState>,
}

impl Datagrams {
    /// Whether another one tells nothing. What Cilium or the kernel say of it, always does.
    pub(super) fn has_enough(&mut self, leg: LegKey, sighting: &Sighting) -> bool {
        let packet = &sighting.packet;
        let Seen::Hook { place, .. } = sighting.seen else { return false };
        let is_plain = packet.tuple.protocol == Protocol::UDP
            && packet.quoted.is_none()
            && packet.fragment == Fragment::Whole;
        if !is_plain {
            return false;
        }
        let is_from_lower = packet.tuple <= packet.tuple.reversed();
        let kept = self.kept.entry((leg, is_from_lower, place)).or_default();
        *kept += 1;
        *kept > KEPT
    }

    /// Begins anew for these legs. Gives those of which there was enough anywhere.
    pub(super) fn forget(&mut self, is_over: impl Fn(&LegKey) -> bool) -> Vec<LegKey> {
        let over = self.kept.extract_if(|(leg, ..), _| is_over(leg));
        over.filter(|(_, kept)| *kept > KEPT).map(|((leg, ..), _)| leg).collect()
    }
}
