//! One endpoint's policy map, indexed for the datapath's lookups.

use std::collections::BTreeMap;

use super::super::entries::Entries;
use super::super::identity::Identity;
use super::super::{DecodeError, Direction, part, u32_le};
use super::entry::prefix_flags;
use super::key::{FULL_PREFIX, PROTOCOL_BITS, STATIC_PREFIX_BITS, port_mask, word};
use super::{Aggregation, PolicyEntry, PolicyKey, PolicyLayout, PolicyQuery};

/// A key with its entry.
pub type PolicySlot = (PolicyKey, PolicyEntry);

/// The longest prefix of protocol and port.
const LONGEST: u8 = (FULL_PREFIX - STATIC_PREFIX_BITS) as u8;
/// Where `egress` is in a [`word`].
const EGRESS_BIT: u32 = 32;

/// One endpoint's policy map: its bytes as they were read, checked, and a hash index over them.
///
/// Entries are decoded when a lookup finds them: a node has a hundred maps of up to 16,384 entries, and a question needs two.
#[derive(Clone, Debug)]
pub struct PolicyMap {
    layout: PolicyLayout,
    entries: Entries,
    aggregation: Aggregation,
    /// Number of an entry plus one by hash, 0 where there is none; a power of two, at most half full.
    index: Vec<u32>,
    /// Bit n: some key of this direction has n bits of protocol and port.
    prefixes: [u32; 2],
}

impl PolicyMap {
    /// Checks and indexes the entries of a map; a key that occurs twice keeps its last value, as a map would.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] for sizes that are not the layout's, a key that [`PolicyKey::decode`] refuses, or a flag byte that
    /// says something else than the key's prefix: the agent never writes one, so the layout is another.
    pub fn decode(layout: PolicyLayout, entries: &Entries) -> Result<Self, DecodeError> {
        let mut map = Self {
            layout,
            entries: entries.clone(),
            aggregation: Aggregation::default(),
            index: vec![0; (2 * entries.len()).next_power_of_two()],
            prefixes: [0; 2],
        };
        if entries.is_empty() {
            return Ok(map);
        }
        check_sizes(layout, entries)?;
        let mut twice = false;
        for (idx, (key, value)) in entries.iter().enumerate() {
            let (word, l4_prefix) = check(layout, key, value)?;
            map.prefixes[(word >> EGRESS_BIT & 1) as usize] |= 1 << l4_prefix;
            let place = map.place(word, l4_prefix);
            twice |= map.index[place] != 0;
            map.index[place] = idx as u32 + 1;
        }
        if twice { map.without_overwritten() } else { Ok(map) }
    }

    /// A map of `entries`, for tests and stand-ins; a key that occurs twice keeps its last value.
    pub fn new(layout: PolicyLayout, entries: impl IntoIterator<Item = PolicySlot>) -> Self {
        let raw = entries.into_iter().map(|(key, entry)| (key.encode(layout), entry.encode(layout)));
        let encoded = Entries::collect(raw).expect("encoded entries of one layout have one size");
        // An entry may be given that the layout has no bytes for; the index does not look at its flags.
        Self::decode(layout, &encoded).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same map with what group F must know of the node to say which aggregate an identity belongs to.
    #[must_use]
    pub fn with_aggregation(self, aggregation: Aggregation) -> Self {
        Self { aggregation, ..self }
    }

    /// What [`Self::with_aggregation`] was given.
    pub fn aggregation(&self) -> Aggregation {
        self.aggregation
    }

    /// How entries are read.
    pub fn layout(&self) -> PolicyLayout {
        self.layout
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the map holds nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every entry, in the order in which the map was read.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PolicySlot> {
        self.entries.iter().map(|(key, value)| self.slot(key, value))
    }

    /// Every entry, by identity and direction, longest prefix first.
    pub fn entries(&self) -> impl Iterator<Item = PolicySlot> {
        let mut all: Vec<_> = self.iter().collect();
        all.sort_by_key(|(key, _)| {
            (key.sec_label, key.direction, core::cmp::Reverse(key.prefixlen), key.protocol, key.dport)
        });
        all.into_iter()
    }

    /// The longest prefix for `identity`, as the kernel's LPM trie finds it for a lookup with all 64 bits.
    pub(super) fn longest(&self, identity: Identity, query: PolicyQuery) -> Option<PolicySlot> {
        let mut prefixes = self.prefixes[usize::from(query.direction == Direction::Egress)];
        while prefixes != 0 {
            let l4_prefix = (u32::BITS - 1 - prefixes.leading_zeros()) as u8;
            let wanted = packet_word(identity, query.direction, query.protocol, query.port);
            if let Some(found) = self.find(wanted, l4_prefix) {
                return Some(found);
            }
            prefixes &= !(1 << l4_prefix);
        }
        None
    }

    /// The entry of exactly this protocol and port, as a hash map finds it (1.13).
    pub(super) fn exact(
        &self,
        identity: Identity,
        query: PolicyQuery,
        protocol: u8,
        port: u16,
    ) -> Option<PolicySlot> {
        self.find(packet_word(identity, query.direction, protocol, port), LONGEST)
    }

    fn find(&self, word: u64, l4_prefix: u8) -> Option<PolicySlot> {
        let number = self.index[self.place(word & significant(l4_prefix), l4_prefix)];
        let (key, value) = self.entries.get((number as usize).checked_sub(1)?)?;
        Some(self.slot(key, value))
    }

    /// Where in the index the key is, or would be: the entry with the same significant bits, or an empty place.
    fn place(&self, word: u64, l4_prefix: u8) -> usize {
        let mask = self.index.len() - 1;
        // The high bits of the product are the ones that every bit of the word had a part in.
        let mut place = (hash(word, l4_prefix) >> 32) as usize & mask;
        loop {
            let number = self.index[place] as usize;
            if number == 0 {
                return place;
            }
            let Some((key, _)) = self.entries.get(number - 1) else { return place };
            let prefix = stored_prefix(key, self.layout);
            if prefix == l4_prefix && self::word(key, self.layout) & significant(prefix) == word {
                return place;
            }
            place = (place + 1) & mask;
        }
    }

    fn slot(&self, key: &[u8], value: &[u8]) -> PolicySlot {
        let checked = "checked when the map was decoded";
        (
            PolicyKey::decode(key, self.layout).expect(checked),
            PolicyEntry::decode(value, self.layout).expect(checked),
        )
    }

    /// The same map without the entries that a later one of the same key replaced.
    fn without_overwritten(self) -> Result<Self, DecodeError> {
        let mut last = BTreeMap::new();
        for (idx, (key, _)) in self.entries.iter().enumerate() {
            let prefix = stored_prefix(key, self.layout);
            last.insert((prefix, word(key, self.layout) & significant(prefix)), idx);
        }
        let mut kept: Vec<_> = last.into_values().collect();
        kept.sort_unstable();
        let kept = kept.into_iter().filter_map(|idx| self.entries.get(idx));
        Self::decode(self.layout, &Entries::collect(kept)?)
    }
}

fn check_sizes(layout: PolicyLayout, entries: &Entries) -> Result<(), DecodeError> {
    if entries.key_size() != layout.key_size() {
        let expected = layout.key_size_word();
        return Err(DecodeError::Size { what: "policy_key", expected, found: entries.key_size() });
    }
    if entries.value_size() != layout.value_size() {
        let expected = layout.value_size_word();
        return Err(DecodeError::Size { what: "policy_entry", expected, found: entries.value_size() });
    }
    Ok(())
}

/// Checks one entry of the right sizes; its significant bits and how many of them are protocol and port.
#[inline]
fn check(layout: PolicyLayout, key: &[u8], value: &[u8]) -> Result<(u64, u8), DecodeError> {
    let whole = word(key, layout);
    // The key's own decoder refuses the same keys, and says why.
    let refused = || PolicyKey::decode(key, layout).err().unwrap_or_else(|| odd_flags(value[2]));
    let l4_prefix = if layout == PolicyLayout::HashKey {
        LONGEST
    } else {
        let prefixlen = u32_le(key, 0);
        // Wraps to a large number below 40.
        let l4_prefix = prefixlen.wrapping_sub(STATIC_PREFIX_BITS);
        if !matches!(l4_prefix, 0 | PROTOCOL_BITS..=24) {
            return Err(refused());
        }
        l4_prefix as u8
    };
    if whole >> EGRESS_BIT & 0xfe != 0 {
        return Err(refused());
    }
    if value[2] & !PolicyEntry::DENY != prefix_flags(l4_prefix.into(), layout) {
        return Err(odd_flags(value[2]));
    }
    Ok((whole & significant(l4_prefix), l4_prefix))
}

fn odd_flags(found: u8) -> DecodeError {
    let (field, expected) = ("flags", "what the key's prefix says");
    DecodeError::Field { what: "policy_entry", field, expected, found: found.into() }
}

/// Bits of protocol and port in a stored key's prefix; a hash key is compared whole.
fn stored_prefix(key: &[u8], layout: PolicyLayout) -> u8 {
    if layout == PolicyLayout::HashKey { LONGEST } else { (u32_le(key, 0) - STATIC_PREFIX_BITS) as u8 }
}

/// The [`word`] of a packet or of an exact key.
fn packet_word(identity: Identity, direction: Direction, protocol: u8, port: u16) -> u64 {
    let [a, b, c, d] = identity.0.to_le_bytes();
    let [port_hi, port_lo] = port.to_be_bytes();
    let egress = u8::from(direction == Direction::Egress);
    u64::from_le_bytes([a, b, c, d, egress, protocol, port_hi, port_lo])
}

/// The bits of a [`word`] that a prefix of so many protocol and port bits covers.
fn significant(l4_prefix: u8) -> u64 {
    let protocol = if u32::from(l4_prefix) >= PROTOCOL_BITS { u8::MAX } else { 0 };
    let [hi, lo] = part::<2>(&port_mask(l4_prefix).to_be_bytes(), 0);
    u64::from_le_bytes([u8::MAX, u8::MAX, u8::MAX, u8::MAX, u8::MAX, protocol, hi, lo])
}

/// Multiplicative hashing. Identities and ports count up in the low and in the high half of the word, so these are folded
/// into one before they are multiplied.
fn hash(word: u64, l4_prefix: u8) -> u64 {
    let seed = word ^ u64::from(l4_prefix) << 40;
    (seed ^ seed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
