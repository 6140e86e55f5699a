//! Longest-prefix lookup in a whole ipcache: per prefix length in use one hash table, the longest first.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::HashMap;
use std::sync::OnceLock;

use ipnet::IpNet;

use super::{IpcacheKey, RemoteEndpointInfo};
use crate::cilium::DecodeError;
use crate::cilium::entries::Entries;
use crate::cilium::identity::Identity;

/// The whole ipcache, for longest-prefix lookups.
///
/// Made for the map's full 512,000 entries, of which then 24 bytes each are kept (48 of IPv6); a lookup is one access to
/// memory for each prefix length in use, until one has the address.
#[derive(Clone, Debug, Default)]
pub struct Ipcache {
    v4: Vec<Table<u32>>,
    v6: Vec<Table<V6>>,
    /// Everything of a value but its identity; few are different, so entries name them by position.
    details: Vec<RemoteEndpointInfo>,
    /// Identities, each with the position of a slot, counted over all tables, sorted; made when first asked for.
    by_identity: OnceLock<Vec<(Identity, u32)>>,
}

impl Ipcache {
    /// Indexes `entries`; those of other clusters are left out, as the datapath looks up cluster 0.
    ///
    /// Of equal prefixes the last one counts.
    pub fn new(entries: impl IntoIterator<Item = (IpcacheKey, RemoteEndpointInfo)>) -> Self {
        let mut collected = Collected::default();
        for (key, value) in entries {
            collected.push(key, value);
        }
        collected.index()
    }

    /// Decodes and indexes a map of any generation.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] of the first entry that is none.
    pub fn decode(entries: &Entries) -> Result<Self, DecodeError> {
        let mut collected = Collected::default();
        for (key, value) in entries.iter() {
            collected.push(IpcacheKey::decode(key)?, RemoteEndpointInfo::decode(value)?);
        }
        Ok(collected.index())
    }

    /// The longest prefix that holds `ip`, and its value.
    pub fn lookup(&self, ip: IpAddr) -> Option<(IpNet, RemoteEndpointInfo)> {
        match ip {
            IpAddr::V4(ip) => self.longest(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => self.longest(&self.v6, V6::new(ip)),
        }
    }

    /// Every prefix with its value, IPv4 before IPv6 and longer ones first, those of a length in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, RemoteEndpointInfo)> {
        let v4 = self.v4.iter().flat_map(|table| self.entries_of(table));
        v4.chain(self.v6.iter().flat_map(|table| self.entries_of(table)))
    }

    /// The prefixes of an identity, in the order of [`Ipcache::entries`].
    pub fn prefixes_of(&self, identity: Identity) -> impl Iterator<Item = IpNet> {
        let index = self.by_identity.get_or_init(|| self.index_identities());
        let first = index.partition_point(|(other, _)| *other < identity);
        let own = index[first..].iter().take_while(move |(other, _)| *other == identity);
        own.filter_map(|(_, position)| self.prefix_at(*position as usize))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        let v4 = self.v4.iter().map(|table| table.used().count());
        v4.chain(self.v6.iter().map(|table| table.used().count())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn index_identities(&self) -> Vec<(Identity, u32)> {
        let v4 = self.v4.iter().flat_map(|table| table.slots.iter().map(Slot::identity));
        let v6 = self.v6.iter().flat_map(|table| table.slots.iter().map(Slot::identity));
        let used = v4.chain(v6).zip(0..).filter_map(|(identity, position)| Some((identity?, position)));
        let mut index: Vec<_> = used.collect();
        index.sort_unstable();
        index
    }

    fn prefix_at(&self, position: usize) -> Option<IpNet> {
        let mut position = position;
        nth_prefix(&self.v4, &mut position).or_else(|| nth_prefix(&self.v6, &mut position))
    }

    fn entries_of<A: Address>(&self, table: &Table<A>) -> impl Iterator<Item = (IpNet, RemoteEndpointInfo)> {
        table.used().map(|slot| self.decoded(table.bits, slot))
    }

    fn longest<A: Address>(&self, tables: &[Table<A>], ip: A) -> Option<(IpNet, RemoteEndpointInfo)> {
        tables.iter().find_map(|table| Some(self.decoded(table.bits, table.get(ip.truncated(table.bits))?)))
    }

    fn decoded<A: Address>(&self, bits: u8, slot: &Slot<A>) -> (IpNet, RemoteEndpointInfo) {
        let detail = self.details[slot.detail as usize];
        let value = RemoteEndpointInfo { sec_identity: Identity(slot.identity), ..detail };
        (IpNet::new_assert(slot.prefix.ip(), bits), value)
    }
}

/// The prefix in the slot at `position`, counted over `tables` one after another; else `position` goes on behind them.
fn nth_prefix<A: Address>(tables: &[Table<A>], position: &mut usize) -> Option<IpNet> {
    for table in tables {
        match table.slots.get(*position) {
            Some(slot) => return Some(IpNet::new_assert(slot.prefix.ip(), table.bits)),
            None => *position -= table.slots.len(),
        }
    }
    None
}

/// An address as a number, first byte highest.
trait Address: Copy + Default + Eq {
    /// Without the bits beyond a prefix of `bits`.
    fn truncated(self, bits: u8) -> Self;
    /// 64 bits of which the high ones depend on every bit of the address.
    fn hash(self) -> u64;
    fn ip(self) -> IpAddr;
}

/// 2^64 divided by the golden ratio: the high bits of a product spread neighbouring addresses evenly.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Address for u32 {
    fn truncated(self, bits: u8) -> Self {
        self & Self::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
    }

    fn hash(self) -> u64 {
        u64::from(self).wrapping_mul(GOLDEN)
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from_bits(self).into()
    }
}

/// An IPv6 address in two halves: a `u128` would widen a slot by its alignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct V6 {
    network: u64,
    interface: u64,
}

impl V6 {
    fn new(ip: Ipv6Addr) -> Self {
        let bits = ip.to_bits();
        Self { network: (bits >> 64) as u64, interface: bits as u64 }
    }
}

impl Address for V6 {
    fn truncated(self, bits: u8) -> Self {
        let mask = |bits: u32| u64::MAX.checked_shl(64 - bits).unwrap_or(0);
        let bits = u32::from(bits);
        let network = self.network & mask(bits.min(64));
        Self { network, interface: self.interface & mask(bits.saturating_sub(64)) }
    }

    fn hash(self) -> u64 {
        let network = self.network.wrapping_mul(GOLDEN);
        (network ^ network >> 32 ^ self.interface).wrapping_mul(GOLDEN)
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from_bits(u128::from(self.network) << 64 | u128::from(self.interface)).into()
    }
}

/// An entry of a table, or none.
#[derive(Clone, Copy, Debug)]
struct Slot<A> {
    prefix: A,
    identity: u32,
    /// Where in [`Ipcache::details`] the rest of the value is, or [`NONE`].
    detail: u32,
}

/// [`Slot::detail`] of a slot without an entry.
const NONE: u32 = u32::MAX;

impl<A> Slot<A> {
    fn is_used(&self) -> bool {
        self.detail != NONE
    }

    fn identity(&self) -> Option<Identity> {
        self.is_used().then_some(Identity(self.identity))
    }
}

/// The entries of one prefix length: open addressing.
#[derive(Clone, Debug)]
struct Table<A> {
    /// The prefix length.
    bits: u8,
    /// A power of two, at least two; at most half of them used.
    slots: Vec<Slot<A>>,
}

impl<A: Address> Table<A> {
    fn new(bits: u8, entries: Vec<Slot<A>>) -> Self {
        let empty = Slot { prefix: A::default(), identity: 0, detail: NONE };
        let mut table = Self { bits, slots: vec![empty; (2 * entries.len()).next_power_of_two()] };
        for entry in entries {
            let slot = table.slot_of(entry.prefix);
            table.slots[slot] = entry;
        }
        table
    }

    fn get(&self, prefix: A) -> Option<&Slot<A>> {
        Some(&self.slots[self.slot_of(prefix)]).filter(|slot| slot.is_used())
    }

    fn used(&self) -> impl Iterator<Item = &Slot<A>> {
        self.slots.iter().filter(|slot| slot.is_used())
    }

    /// The slot that has a prefix, or would have it.
    fn slot_of(&self, prefix: A) -> usize {
        let mut at = (prefix.hash() >> (64 - self.slots.len().ilog2())) as usize;
        while self.slots[at].is_used() && self.slots[at].prefix != prefix {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }
}

/// Entries on their way into an [`Ipcache`].
struct Collected {
    v4: ByLength<u32>,
    v6: ByLength<V6>,
    details: Details,
}

impl Default for Collected {
    fn default() -> Self {
        Self { v4: ByLength::new(33), v6: ByLength::new(129), details: Details::default() }
    }
}

impl Collected {
    fn push(&mut self, key: IpcacheKey, value: RemoteEndpointInfo) {
        if key.cluster_id != 0 {
            return;
        }
        let (identity, detail) = (value.sec_identity.0, self.details.position(value));
        let bits = key.prefix.prefix_len();
        match key.prefix.network() {
            IpAddr::V4(ip) => self.v4.push(bits, Slot { prefix: ip.to_bits(), identity, detail }),
            IpAddr::V6(ip) => self.v6.push(bits, Slot { prefix: V6::new(ip), identity, detail }),
        }
    }

    fn index(self) -> Ipcache {
        let Self { v4, v6, details } = self;
        Ipcache { v4: v4.tables(), v6: v6.tables(), details: details.all, by_identity: OnceLock::new() }
    }
}

/// Entries sorted into their prefix lengths.
struct ByLength<A>(Vec<Vec<Slot<A>>>);

impl<A: Address> ByLength<A> {
    fn new(lengths: usize) -> Self {
        Self((0..lengths).map(|_| Vec::new()).collect())
    }

    fn push(&mut self, bits: u8, entry: Slot<A>) {
        self.0[usize::from(bits)].push(entry);
    }

    /// A table for each length in use, the longest first.
    fn tables(self) -> Vec<Table<A>> {
        let used = (0u8..).zip(self.0).filter(|(_, entries)| !entries.is_empty());
        let mut tables: Vec<_> = used.map(|(bits, entries)| Table::new(bits, entries)).collect();
        tables.reverse();
        tables
    }
}

/// The different values, identities aside.
#[derive(Default)]
struct Details {
    all: Vec<RemoteEndpointInfo>,
    positions: HashMap<RemoteEndpointInfo, u32>,
}

impl Details {
    fn position(&mut self, mut value: RemoteEndpointInfo) -> u32 {
        value.sec_identity = Identity::UNKNOWN;
        // Neighbours mostly lie behind the same node.
        if self.all.last() == Some(&value) {
            return self.all.len() as u32 - 1;
        }
        *self.positions.entry(value).or_insert_with(|| {
            self.all.push(value);
            self.all.len() as u32 - 1
        })
    }
}
