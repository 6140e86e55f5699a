//! The crate's own implementation, asked in the reference's terms.

use probe_model::cilium::entries::Entries;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{
    Aggregation, PolicyLayout, PolicyMap, PolicyQuery, PolicySlot, PolicyVerdict,
};
use probe_model::cilium::{DecodeError, Direction};

use super::lookup::{Answer, Node, Packet};
use super::tables::{Raw, Version};

pub(crate) fn layout(version: Version) -> PolicyLayout {
    match version {
        Version::V1_13 => PolicyLayout::HashKey,
        Version::V1_14 => PolicyLayout::WildcardBits,
        Version::V1_16_4 => PolicyLayout::PrefixLength,
        Version::V1_17 => PolicyLayout::ProxyPriority,
        Version::V1_18 => PolicyLayout::CountersApart,
        Version::V1_19 => PolicyLayout::Precedence,
        Version::V1_20 => PolicyLayout::Aggregates,
    }
}

pub(crate) fn decode(version: Version, entries: &[Raw]) -> Result<PolicyMap, DecodeError> {
    let (key_size, value_size) = version.sizes();
    let bytes: Vec<u8> = entries.iter().flat_map(|raw| raw.key.iter().chain(&raw.value)).copied().collect();
    PolicyMap::decode(layout(version), &Entries::new(key_size, value_size, bytes)?)
}

pub(crate) fn query(packet: Packet) -> PolicyQuery {
    PolicyQuery {
        identity: Identity(packet.identity),
        direction: if packet.egress { Direction::Egress } else { Direction::Ingress },
        protocol: packet.protocol,
        port: packet.port,
        untracked_fragment: packet.fragment,
    }
}

pub(crate) fn ask(map: &PolicyMap, packet: Packet) -> Found {
    let decision = map.lookup(query(packet));
    let (code, proxy_port) = match decision.verdict {
        PolicyVerdict::Allow { proxy_port } => (0, proxy_port),
        PolicyVerdict::Drop(reason) => (-i32::from(reason.0), 0),
    };
    let raw = |slot: Option<PolicySlot>| slot.map(|slot| encode(slot, map.layout()));
    Found {
        code,
        match_type: decision.match_type as u8,
        ext_error: decision.auth_type,
        proxy_port,
        chosen: raw(decision.entry),
        other: raw(decision.loser),
    }
}

pub(crate) fn encode((key, entry): PolicySlot, layout: PolicyLayout) -> Raw {
    Raw { key: key.encode(layout), value: entry.encode(layout) }
}

pub(crate) fn aggregation(node: Node) -> Aggregation {
    Aggregation { dual_stack: node.dual_stack, cluster_id: node.cluster_id }
}

/// An [`Answer`] with the entries themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    code: i32,
    match_type: u8,
    ext_error: u8,
    proxy_port: u16,
    chosen: Option<Raw>,
    other: Option<Raw>,
}

impl Found {
    /// The reference's answer in the form of [`ask`]'s.
    pub(crate) fn from_reference(answer: Answer, entries: &[Raw]) -> Self {
        let raw = |idx: Option<usize>| idx.map(|idx| entries[idx].clone());
        Self {
            code: answer.code,
            match_type: answer.match_type,
            ext_error: answer.ext_error,
            // A verdict that drops has no room for it.
            proxy_port: if answer.code == 0 { answer.proxy_port } else { 0 },
            chosen: raw(answer.chosen),
            other: raw(answer.other),
        }
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.chosen.is_some()
    }
}
