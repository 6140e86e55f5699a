//! Longest-prefix lookup in a whole ipcache: per prefix length in use one hash table, the longest first.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::HashMap;
use std::sync::OnceLock;

use ipnet::IpNet;

use super::{IpcacheKey, RemoteEndpointInfo};
use crate::cilium::identity::Identity;

/// The whole ipcache, for longest-prefix lookups.
///
/// Made for the map's full 512,000 entries: 20 bytes an IPv4 and 32 an IPv6 entry, a hash probe per prefix length in use.
#[derive(Clone, Debug, Default)]
pub struct Ipcache {
    v4: Vec<Table<u32>>,
    v6: Vec<Table<u128>>,
    /// Everything of a value but its identity; few are different, so entries name them by position.
    details: Vec<RemoteEndpointInfo>,
    /// Identities, each with a position among [`Ipcache::entries`], sorted; made when first asked for.
    by_identity: OnceLock<Vec<(Identity, u32)>>,
}

impl Ipcache {
    /// Indexes `entries`; those of other clusters are left out, as the datapath looks up cluster 0.
    ///
    /// Of equal prefixes the last one counts.
    pub fn new(entries: impl IntoIterator<Item = (IpcacheKey, RemoteEndpointInfo)>) -> Self {
        let mut details = Details::default();
        let mut v4 = ByLength::new(33);
        let mut v6 = ByLength::new(129);
        for (key, value) in entries.into_iter().filter(|(key, _)| key.cluster_id == 0) {
            let (identity, detail) = (value.sec_identity.0, details.position(value));
            let bits = key.prefix.prefix_len();
            match key.prefix.network() {
                IpAddr::V4(ip) => v4.push(bits, Entry { prefix: ip.to_bits(), identity, detail }),
                IpAddr::V6(ip) => v6.push(bits, Entry { prefix: ip.to_bits(), identity, detail }),
            }
        }
        Self { v4: v4.tables(), v6: v6.tables(), details: details.all, by_identity: OnceLock::new() }
    }

    /// The longest prefix that holds `ip`, and its value.
    pub fn lookup(&self, ip: IpAddr) -> Option<(IpNet, RemoteEndpointInfo)> {
        match ip {
            IpAddr::V4(ip) => self.longest(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => self.longest(&self.v6, ip.to_bits()),
        }
    }

    /// Every prefix with its value, IPv4 before IPv6, each longest prefix first and then by address.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, RemoteEndpointInfo)> {
        let v4 = self.v4.iter().flat_map(|table| self.entries_of(table));
        v4.chain(self.v6.iter().flat_map(|table| self.entries_of(table)))
    }

    /// The prefixes of an identity, in the order of [`Ipcache::entries`].
    pub fn prefixes_of(&self, identity: Identity) -> impl Iterator<Item = IpNet> {
        let index = self.by_identity.get_or_init(|| {
            let mut index: Vec<_> = self.entries().map(|(_, value)| value.sec_identity).zip(0..).collect();
            index.sort_unstable();
            index
        });
        let first = index.partition_point(|(other, _)| *other < identity);
        let own = index[first..].iter().take_while(move |(other, _)| *other == identity);
        own.filter_map(|(_, position)| self.prefix_at(*position as usize))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        let v4 = self.v4.iter().map(|table| table.entries.len());
        v4.chain(self.v6.iter().map(|table| table.entries.len())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn prefix_at(&self, position: usize) -> Option<IpNet> {
        let mut position = position;
        nth_prefix(&self.v4, &mut position).or_else(|| nth_prefix(&self.v6, &mut position))
    }

    fn entries_of<A: Address>(&self, table: &Table<A>) -> impl Iterator<Item = (IpNet, RemoteEndpointInfo)> {
        table.entries.iter().map(|entry| self.decoded(table.bits, entry))
    }

    fn longest<A: Address>(&self, tables: &[Table<A>], ip: A) -> Option<(IpNet, RemoteEndpointInfo)> {
        tables.iter().find_map(|table| Some(self.decoded(table.bits, table.get(ip.truncated(table.bits))?)))
    }

    fn decoded<A: Address>(&self, bits: u8, entry: &Entry<A>) -> (IpNet, RemoteEndpointInfo) {
        let detail = self.details[entry.detail as usize];
        let value = RemoteEndpointInfo { sec_identity: Identity(entry.identity), ..detail };
        (IpNet::new_assert(entry.prefix.ip(), bits), value)
    }
}

/// The prefix at `position`, counted over `tables` one after another; else `position` goes on behind them.
fn nth_prefix<A: Address>(tables: &[Table<A>], position: &mut usize) -> Option<IpNet> {
    for table in tables {
        match table.entries.get(*position) {
            Some(entry) => return Some(IpNet::new_assert(entry.prefix.ip(), table.bits)),
            None => *position -= table.entries.len(),
        }
    }
    None
}

/// An address as a number of 32 or 128 bits, first byte highest.
trait Address: Copy + Ord {
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

impl Address for u128 {
    fn truncated(self, bits: u8) -> Self {
        self & Self::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
    }

    fn hash(self) -> u64 {
        let network = ((self >> 64) as u64).wrapping_mul(GOLDEN);
        (network ^ network >> 32 ^ self as u64).wrapping_mul(GOLDEN)
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from_bits(self).into()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry<A> {
    prefix: A,
    identity: u32,
    /// Where in [`Ipcache::details`] the rest of the value is.
    detail: u32,
}

/// The entries of one prefix length.
#[derive(Clone, Debug)]
struct Table<A> {
    /// The prefix length.
    bits: u8,
    /// By prefix.
    entries: Vec<Entry<A>>,
    /// Open addressing, at most half full: a position in `entries` plus 1, or 0. A power of two long.
    slots: Vec<u32>,
}

impl<A: Address> Table<A> {
    fn new(bits: u8, mut entries: Vec<Entry<A>>) -> Self {
        // The last of equal prefixes shall stay: the sort is stable, and `dedup` keeps the first.
        entries.reverse();
        entries.sort_by_key(|entry| entry.prefix);
        entries.dedup_by_key(|entry| entry.prefix);
        let mut table = Self { bits, slots: vec![0; (2 * entries.len()).next_power_of_two()], entries };
        for position in 0..table.entries.len() {
            let mut slot = table.first_slot(table.entries[position].prefix);
            while table.slots[slot] != 0 {
                slot = table.next_slot(slot);
            }
            table.slots[slot] = position as u32 + 1;
        }
        table
    }

    fn get(&self, prefix: A) -> Option<&Entry<A>> {
        let mut slot = self.first_slot(prefix);
        loop {
            let position = self.slots[slot].checked_sub(1)?;
            let entry = &self.entries[position as usize];
            if entry.prefix == prefix {
                return Some(entry);
            }
            slot = self.next_slot(slot);
        }
    }

    fn first_slot(&self, prefix: A) -> usize {
        // At least two slots, so that the shift is below 64.
        (prefix.hash() >> (64 - self.slots.len().ilog2())) as usize
    }

    fn next_slot(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }
}

/// Entries sorted into their prefix lengths.
struct ByLength<A>(Vec<Vec<Entry<A>>>);

impl<A: Address> ByLength<A> {
    fn new(lengths: usize) -> Self {
        Self((0..lengths).map(|_| Vec::new()).collect())
    }

    fn push(&mut self, bits: u8, entry: Entry<A>) {
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
