//! The fragment maps: the ports of a packet's first fragment, for those that follow it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{DecodeError, part, sized, u16_be};

/// A key of `cilium_ipv4_frag_datagrams` (12 bytes) or `cilium_ipv6_frag_datagrams` (40 bytes, 1.18 on).
///
/// Source: `struct ipv4_frag_id`, Cilium 1.13 `bpf/lib/common.h`; `struct ipv6_frag_id`, Cilium 1.18 `bpf/lib/ipv6.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FragmentId {
    /// A fragmented IPv4 packet.
    V4 {
        /// Sender.
        saddr: Ipv4Addr,
        /// Receiver.
        daddr: Ipv4Addr,
        /// The header's identification, host order (stored in network order).
        id: u16,
        /// IP protocol.
        proto: u8,
    },
    /// A fragmented IPv6 packet.
    V6 {
        /// Sender.
        saddr: Ipv6Addr,
        /// Receiver.
        daddr: Ipv6Addr,
        /// The fragment header's identification, host order (stored in network order).
        id: u32,
        /// IP protocol.
        proto: u8,
    },
}

impl FragmentId {
    /// Bytes of an IPv4 key.
    pub const SIZE_V4: usize = 12;
    /// Bytes of an IPv6 key.
    pub const SIZE_V6: usize = 40;

    /// Decodes a key as the kernel stores it; its size says which family it has.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 or 40 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        match raw.len() {
            Self::SIZE_V4 => Ok(Self::V4 {
                daddr: part::<4>(raw, 0).into(),
                saddr: part::<4>(raw, 4).into(),
                id: u16_be(raw, 8),
                proto: raw[10],
            }),
            Self::SIZE_V6 => Ok(Self::V6 {
                id: u32::from_be_bytes(part(raw, 0)),
                proto: raw[4],
                saddr: part::<16>(raw, 8).into(),
                daddr: part::<16>(raw, 24).into(),
            }),
            found => {
                let expected = "12 (IPv4) or 40 (IPv6)";
                Err(DecodeError::Size { what: "ipv4_frag_id or ipv6_frag_id", expected, found })
            }
        }
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::V4 { saddr, daddr, id, proto } => {
                [&daddr.octets()[..], &saddr.octets(), &id.to_be_bytes(), &[*proto, 0]].concat()
            }
            Self::V6 { saddr, daddr, id, proto } => {
                [&id.to_be_bytes()[..], &[*proto, 0, 0, 0], &saddr.octets(), &daddr.octets()].concat()
            }
        }
    }

    /// Sender and receiver.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        match *self {
            Self::V4 { saddr, daddr, .. } => (saddr.into(), daddr.into()),
            Self::V6 { saddr, daddr, .. } => (saddr.into(), daddr.into()),
        }
    }

    /// The header's identification.
    pub fn id(&self) -> u32 {
        match *self {
            Self::V4 { id, .. } => id.into(),
            Self::V6 { id, .. } => id,
        }
    }

    /// IP protocol.
    pub fn proto(&self) -> u8 {
        match *self {
            Self::V4 { proto, .. } | Self::V6 { proto, .. } => proto,
        }
    }
}

/// A value of both fragment maps.
///
/// Source: `struct ipv4_frag_l4ports`, Cilium 1.13 `bpf/lib/common.h`; IPv6 has the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentPorts {
    /// Source port, host order (stored in network order).
    pub sport: u16,
    /// Destination port, host order (stored in network order).
    pub dport: u16,
}

impl FragmentPorts {
    /// Bytes of a value.
    pub const SIZE: usize = 4;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 4 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ipv4_frag_l4ports", "4")?;
        Ok(Self { sport: u16_be(&raw, 0), dport: u16_be(&raw, 2) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (sport, dport) = (self.sport.to_be_bytes(), self.dport.to_be_bytes());
        [sport[0], sport[1], dport[0], dport[1]]
    }
}
