//! Values of policy maps, byte by byte.
//!
//! The test numbers its entries. The number travels where no lookup looks: in `packets`, in 1.18's padding, in the
//! cookie.

/// What the lookups ask of a value; a field that a layout does not have is zero.
///
/// No `Option<Entry>`: where that is `None` the compiler leaves its fields undefined, and the verifier refuses to see
/// them copied.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Whether there is an entry; everything else is zero if not.
    pub found: bool,
    pub proxy_port: u16,
    pub deny: bool,
    pub wildcard_protocol: bool,
    pub wildcard_dport: bool,
    /// `lpm_prefix_length`.
    pub plen: u8,
    pub auth_type: u8,
    pub has_explicit_auth_type: bool,
    /// `proxy_port_priority` or `precedence`.
    pub rank: u32,
    /// The test's number of this entry.
    pub tag: u32,
}

/// No entry.
pub const NIL: Entry = Entry {
    found: false,
    proxy_port: 0,
    deny: false,
    wildcard_protocol: false,
    wildcard_dport: false,
    plen: 0,
    auth_type: 0,
    has_explicit_auth_type: false,
    rank: 0,
    tag: 0,
};

/// 1.13 to 1.16.3, 24 bytes; before 1.14 the wildcard bits are zero.
#[inline(always)]
pub fn wildcard_bits(raw: &[u8; 24]) -> Entry {
    Entry {
        found: true,
        proxy_port: proxy_port(raw[0], raw[1]),
        deny: raw[2] & 1 != 0,
        wildcard_protocol: raw[2] & 2 != 0,
        wildcard_dport: raw[2] & 4 != 0,
        plen: 0,
        auth_type: raw[3],
        has_explicit_auth_type: false,
        rank: 0,
        tag: u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]),
    }
}

/// 1.16.4 to 1.16.x, 24 bytes.
#[inline(always)]
pub fn prefix_length(raw: &[u8; 24]) -> Entry {
    Entry { plen: raw[2] >> 3, wildcard_protocol: false, wildcard_dport: false, ..wildcard_bits(raw) }
}

/// 1.17, 24 bytes.
#[inline(always)]
pub fn proxy_priority(raw: &[u8; 24]) -> Entry {
    let tag = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
    ranked([raw[0], raw[1], raw[2], raw[3]], raw[4].into(), tag)
}

/// 1.18, 8 bytes.
#[inline(always)]
pub fn counters_apart(raw: &[u8; 8]) -> Entry {
    let tag = u32::from_le_bytes([raw[5], raw[6], raw[7], 0]);
    ranked([raw[0], raw[1], raw[2], raw[3]], raw[4].into(), tag)
}

/// 1.19 and later, 12 bytes.
#[inline(always)]
pub fn precedence(raw: &[u8; 12]) -> Entry {
    let precedence = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
    let cookie = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
    ranked([raw[0], raw[1], raw[2], raw[3]], precedence, cookie)
}

/// The first four bytes are alike from 1.17 on.
#[inline(always)]
fn ranked(head: [u8; 4], rank: u32, tag: u32) -> Entry {
    Entry {
        found: true,
        proxy_port: proxy_port(head[0], head[1]),
        deny: head[2] & 1 != 0,
        wildcard_protocol: false,
        wildcard_dport: false,
        plen: head[2] >> 3,
        auth_type: head[3] & 0x7f,
        has_explicit_auth_type: head[3] & 0x80 != 0,
        rank,
        tag,
    }
}

/// Network order in memory.
#[inline(always)]
fn proxy_port(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}
