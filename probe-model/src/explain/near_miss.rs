//! The entry that almost matched, and the one field that failed.

use std::net::IpAddr;

use super::attribution::policies_behind;
use crate::cilium::identity::Identity;
use crate::cilium::policy::PolicyKey;
use crate::simulate::PolicyStep;
use crate::world::{PolicyRef, World};

/// An entry that would have allowed the packet but for one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The entry's key.
    pub key: PolicyKey,
    /// The policies behind it.
    pub policies: Vec<PolicyRef>,
    /// The field that differs.
    pub failed: FailedField,
}

/// The field in which an entry differs from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailedField {
    /// Same peer and protocol, another port.
    Port,
    /// Same peer and port, another protocol.
    Protocol,
    /// Same protocol and port, another peer.
    Identity,
}

/// Of the allow entries that differ from the packet in one field, the nearest: by port, by protocol, by identity, and
/// among identities the one whose prefix shares most bits with the peer's address.
pub fn near_miss(world: &World, step: &PolicyStep, peer: IpAddr) -> Option<NearMiss> {
    let query = step.query;
    let entries = &world.policy.get(&step.endpoint)?.map;
    let candidates = entries.iter().filter(|(key, entry)| key.direction == query.direction && !entry.deny());
    let misses = candidates.filter_map(|(key, _)| {
        let same_peer = key.sec_label == query.identity || key.sec_label == Identity::UNKNOWN;
        let same_protocol = key.covers_protocol(query.protocol);
        let same_port = key.covers_port(query.port);
        match (same_peer, same_protocol, same_port) {
            (true, true, false) => Some((FailedField::Port, 0, key)),
            (true, false, true) => Some((FailedField::Protocol, 0, key)),
            // Every pod admits its node; that says nothing of a peer elsewhere.
            (false, true, true) if key.sec_label != Identity::HOST => {
                Some((FailedField::Identity, shared_bits(world, key.sec_label, peer), key))
            }
            _ => None,
        }
    });
    let (failed, _, key) =
        misses.min_by_key(|(failed, shared, key)| (*failed, core::cmp::Reverse(*shared), *key))?;
    Some(NearMiss { key, policies: policies_behind(world, step.endpoint, &key, false), failed })
}

/// Leading bits that the prefixes of `identity` have in common with `peer`, at most.
fn shared_bits(world: &World, identity: Identity, peer: IpAddr) -> u32 {
    let prefixes = world.ipcache.iter().flat_map(|ipcache| ipcache.prefixes_of(identity));
    prefixes
        .map(|prefix| common_bits(prefix.network(), peer).min(u32::from(prefix.prefix_len())))
        .max()
        .unwrap_or(0)
}

fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => 0,
    }
}
