//! The simulator's side: `probe-model`'s own encoding, decoding and lookup.
use anyhow::{Context as _, Result, ensure};
use probe_model::cilium::Direction;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::entries::Entries;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{
    Aggregation, PolicyCounters, PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, PolicyQuery, PolicySlot,
    PolicyVerdict,
};

use crate::case::{Entry, Layout};
use crate::slot::{Answer, Query};

/// A policy map as `probe-model` read it.
pub(crate) struct Simulator {
    map: PolicyMap,
    /// What went in, by the tag that the kernel names it by.
    slots: Vec<(u32, PolicySlot)>,
}

impl Simulator {
    /// Reads a map of `layout` on the node that `query` describes.
    ///
    /// Fails unless `probe-model` writes the same bytes that the kernel is given.
    pub(crate) fn new(layout: Layout, entries: &[Entry], query: &Query) -> Result<Self> {
        let mut bytes = Vec::new();
        let mut slots = Vec::new();
        for entry in entries {
            let (key, value) = slot(entry, layout);
            check_bytes(entry, layout, &key.encode(model(layout)), &value.encode(model(layout)))?;
            bytes.extend(entry.key(layout));
            bytes.extend(entry.value(layout));
            slots.push((entry.tag, (key, value)));
        }
        let layout = model(layout);
        let entries = Entries::new(layout.key_size(), layout.value_size(), bytes)?;
        let aggregation = Aggregation { dual_stack: query.dual_stack != 0, cluster_id: query.cluster_id };
        let map = PolicyMap::decode(layout, &entries)?.with_aggregation(aggregation);
        ensure!(map.len() == entries.len(), "{} of {} entries were kept", map.len(), entries.len());
        Ok(Self { map, slots })
    }

    /// What the simulator says; `kernel` is only a hint where to look up the tags.
    pub(crate) fn ask(&self, query: &Query, kernel: &Answer) -> Result<Answer> {
        let decision = self.map.lookup(PolicyQuery {
            identity: Identity(query.identity),
            direction: direction(query.egress != 0),
            protocol: query.protocol,
            port: query.port,
            untracked_fragment: query.untracked_fragment != 0,
        });
        let (result, proxy_port) = match decision.verdict {
            PolicyVerdict::Allow { proxy_port } => (0, proxy_port),
            // The datapath has chosen the proxy before it asks for authentication.
            PolicyVerdict::Drop(reason) if reason == DropReason::POLICY_AUTH_REQUIRED => {
                (-i32::from(reason.0), decision.entry.map_or(0, |(_, entry)| entry.proxy_port))
            }
            PolicyVerdict::Drop(reason) => (-i32::from(reason.0), 0),
        };
        Ok(Answer {
            result,
            auth_type: decision.auth_type,
            match_type: decision.match_type as u8,
            proxy_port,
            chosen: self.tag(decision.entry, kernel.chosen)?,
            loser: self.tag(decision.loser, kernel.loser)?,
        })
    }

    /// The tag of an entry, in all its fields as it went in.
    fn tag(&self, found: Option<PolicySlot>, hint: u32) -> Result<u32> {
        let Some(found) = found else { return Ok(0) };
        let hinted = (hint as usize).checked_sub(1).and_then(|place| self.slots.get(place));
        let is_it = |(_, slot): &&(u32, PolicySlot)| *slot == found;
        let place = hinted.filter(is_it).or_else(|| self.slots.iter().find(is_it));
        place
            .map(|(tag, _)| *tag)
            .with_context(|| format!("the simulator answers with {found:?}, which went in otherwise"))
    }
}

/// The same layout, by `probe-model`'s name.
const fn model(layout: Layout) -> PolicyLayout {
    match layout {
        Layout::V1_13 => PolicyLayout::HashKey,
        Layout::V1_14 => PolicyLayout::WildcardBits,
        Layout::V1_16_4 => PolicyLayout::PrefixLength,
        Layout::V1_17 => PolicyLayout::ProxyPriority,
        Layout::V1_18 => PolicyLayout::CountersApart,
        Layout::V1_19 => PolicyLayout::Precedence,
        Layout::V1_20 => PolicyLayout::Aggregates,
    }
}

const fn direction(egress: bool) -> Direction {
    if egress { Direction::Egress } else { Direction::Ingress }
}

/// The entry in `probe-model`'s types.
fn slot(entry: &Entry, layout: Layout) -> PolicySlot {
    let key = PolicyKey {
        prefixlen: 40 + u32::from(entry.plen),
        sec_label: Identity(entry.identity),
        direction: direction(entry.egress),
        protocol: entry.protocol,
        dport: entry.port,
    };
    let fresh = PolicyEntry::for_key(&key, model(layout), entry.deny);
    let value = PolicyEntry {
        proxy_port: entry.proxy_port,
        auth_type: entry.auth_type,
        has_explicit_auth_type: entry.explicit_auth,
        proxy_port_priority: if layout.has_precedence() { 0 } else { entry.rank as u8 },
        precedence: if layout.has_precedence() { entry.rank } else { 0 },
        cookie: if layout.has_precedence() { entry.tag } else { 0 },
        counters: fresh.counters.map(|_| PolicyCounters { packets: entry.tag.into(), bytes: 0 }),
        ..fresh
    };
    (key, value)
}

/// Whether `probe-model` writes what this test writes. In 1.18's padding, where the tag is, it writes zeros.
fn check_bytes(entry: &Entry, layout: Layout, key: &[u8], value: &[u8]) -> Result<()> {
    let tag = if layout == Layout::V1_18 { 0 } else { entry.tag };
    let expected = Entry { tag, ..*entry };
    ensure!(
        (key, value) == (&expected.key(layout), &expected.value(layout)),
        "`probe-model` writes {entry} of {layout} as {key:02x?} {value:02x?}, expected {:02x?} {:02x?}",
        expected.key(layout),
        expected.value(layout)
    );
    Ok(())
}
