//! Cilium's maps, events and decisions, one file per thing, named as Cilium names it.
//!
//! Integers named host order are little-endian in the bytes (every supported node is), whatever machine decodes them.

pub mod auth;
pub mod ct;
pub mod drop_reason;
pub mod entries;
pub mod events;
pub mod family;
pub mod forward_reason;
pub mod fragments;
pub mod gob;
pub mod identity;
pub mod ipcache;
pub mod layout;
pub mod lb;
pub mod lxc;
pub mod metrics;
pub mod nat;
pub mod node;
pub mod policy;
pub mod policystats;
pub mod ratelimit;
pub mod release;
pub mod runtime_config;
pub mod source_file;
pub mod tunnel;

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why bytes were not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes have another length than the structure.
    Size {
        /// The structure, as Cilium names it.
        what: &'static str,
        /// Its sizes in bytes, as words.
        expected: &'static str,
        /// The length found.
        found: usize,
    },
    /// A field holds what no known layout allows.
    Field {
        /// The structure, as Cilium names it.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds.
        found: u64,
    },
    /// The bytes fit no known layout, or more than one, and nothing tells which it is.
    Layout {
        /// The structure, as Cilium names it.
        what: &'static str,
        /// What was found.
        found: String,
        /// What is known.
        known: &'static str,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { what, expected, found } => {
                write!(f, "`{what}` is {found} bytes, expected {expected}")
            }
            Self::Field { what, field, expected, found } => {
                write!(f, "`{what}` has `{field}` {found}, expected {expected}")
            }
            Self::Layout { what, found, known } => {
                write!(f, "no known layout of `{what}`: found {found}, known is {known}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// Direction of a packet as the endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Cilium's id of a workload attachment on this node: `lxc_id`, the number in map names, the `source` of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u16);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `raw` as an array, or the size error of `what`.
fn sized<const N: usize>(
    raw: &[u8],
    what: &'static str,
    expected: &'static str,
) -> Result<[u8; N], DecodeError> {
    raw.try_into().map_err(|_| DecodeError::Size { what, expected, found: raw.len() })
}

/// The values of each processor, `size` bytes each, one after another in `raw`.
fn per_cpu<'a>(
    raw: &'a [u8],
    size: usize,
    what: &'static str,
    expected: &'static str,
) -> Result<core::slice::ChunksExact<'a, u8>, DecodeError> {
    if raw.is_empty() || !raw.len().is_multiple_of(size) {
        return Err(DecodeError::Size { what, expected, found: raw.len() });
    }
    Ok(raw.chunks_exact(size))
}

/// The value of `family` in Cilium's keys for IPv4, `ENDPOINT_KEY_IPV4`.
const FAMILY_IPV4: u8 = 1;
/// The value of `family` in Cilium's keys for IPv6, `ENDPOINT_KEY_IPV6`.
const FAMILY_IPV6: u8 = 2;

/// A 16-byte address field: IPv4 in the first four bytes, network order.
fn address(raw: &[u8; 16], family: u8, what: &'static str) -> Result<IpAddr, DecodeError> {
    match family {
        FAMILY_IPV4 => Ok(Ipv4Addr::new(raw[0], raw[1], raw[2], raw[3]).into()),
        FAMILY_IPV6 => Ok(Ipv6Addr::from(*raw).into()),
        found => Err(DecodeError::Field {
            what,
            field: "family",
            expected: "1 (IPv4) or 2 (IPv6)",
            found: found.into(),
        }),
    }
}

/// The inverse of [`address`]: the 16 bytes and the family.
fn address_bytes(address: IpAddr) -> ([u8; 16], u8) {
    match address {
        IpAddr::V4(v4) => {
            let mut raw = [0; 16];
            raw[..4].copy_from_slice(&v4.octets());
            (raw, FAMILY_IPV4)
        }
        IpAddr::V6(v6) => (v6.octets(), FAMILY_IPV6),
    }
}

/// The `N` bytes of `raw` from `at`.
///
/// Only called with constants inside a structure whose size was checked.
fn part<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

fn u16_le(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(part(raw, at))
}

fn u16_be(raw: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(part(raw, at))
}

fn u32_le(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(raw, at))
}

fn u64_le(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(raw, at))
}
