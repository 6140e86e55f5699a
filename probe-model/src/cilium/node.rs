//! The node map: a node's address to its id.

use core::net::IpAddr;

use super::{DecodeError, address, address_bytes, part, sized, u16_le};

/// The pins of the node map, the newest first: 1.16 and 1.17 have both and use the newest.
pub const PINS: [&str; 2] = ["cilium_node_map_v2", "cilium_node_map"];

/// A key of `cilium_node_map` and `cilium_node_map_v2`.
///
/// Source: `struct node_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/node.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// One of the node's addresses.
    pub ip: IpAddr,
}

impl NodeKey {
    /// Bytes of a key.
    pub const SIZE: usize = 20;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 20 bytes with a known family.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "node_key", "20")?;
        Ok(Self { ip: address(&part(&raw, 4), raw[3], "node_key")? })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.ip);
        let mut raw = [0; Self::SIZE];
        raw[3] = family;
        raw[4..].copy_from_slice(&ip);
        raw
    }
}

/// A value of `cilium_node_map` (2 bytes) and `cilium_node_map_v2` (4 bytes).
///
/// Source: `struct node_value`, Cilium 1.16 and 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/node.h`; a bare `__u16` before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeValue {
    /// The node's id on this node; another node has another.
    pub id: u16,
    /// The `IPsec` key of the node, 0 for none; `None` in a map that has no such field.
    pub spi: Option<u8>,
}

impl NodeValue {
    /// Bytes of a value of `cilium_node_map`.
    pub const SIZE: usize = 2;
    /// Bytes of a value of `cilium_node_map_v2`.
    pub const SIZE_V2: usize = 4;

    /// Decodes a value of either size as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 2 or 4 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let spi = match raw.len() {
            Self::SIZE => None,
            Self::SIZE_V2 => Some(raw[2]),
            found => {
                let expected = "2 (`cilium_node_map`) or 4 (`cilium_node_map_v2`)";
                return Err(DecodeError::Size { what: "node_value", expected, found });
            }
        };
        Ok(Self { id: u16_le(raw, 0), spi })
    }

    /// The value as the kernel stores it: 4 bytes if it has an `spi`, else 2.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = self.id.to_le_bytes().to_vec();
        raw.extend(self.spi.into_iter().flat_map(|spi| [spi, 0]));
        raw
    }
}
