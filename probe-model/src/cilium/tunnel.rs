//! `cilium_tunnel_map`: pod prefix to the node behind which it is; used by the datapath up to 1.17, in tunnel mode only.

use core::net::IpAddr;

use super::ipcache::one_cluster_id;
use super::{DecodeError, address, address_bytes, part, sized, u16_le};

/// Where a key of the tunnel map has its cluster id. [`TunnelKey::decode`] does not need to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelLayout {
    /// One byte after the family: 1.13 and 1.14.
    ClusterByte,
    /// The last two bytes: 1.15 to 1.17.
    ClusterWord,
}

/// A key of `cilium_tunnel_map`.
///
/// Source: `struct tunnel_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey {
    /// The first address of the other node's pod prefix; how long the prefix is, the datapath knows from elsewhere.
    pub ip: IpAddr,
    /// Cluster id, 0 without cluster-aware addressing; at most 255 up to 1.14.
    pub cluster_id: u16,
}

impl TunnelKey {
    /// Bytes of a key.
    pub const SIZE: usize = 20;

    /// Decodes a key of any version as the kernel stores it: where one version has the cluster id, the other has zeros.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 20 bytes with a known family and at most one cluster id.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "tunnel_key", "20")?;
        let ip = address(&part(&raw, 0), raw[16], "tunnel_key")?;
        Ok(Self { ip, cluster_id: one_cluster_id(u16_le(&raw, 18), raw[17], "tunnel_key")? })
    }

    /// The key as the kernel stores it; what of the cluster id `layout` has no room for is left out.
    pub fn encode(&self, layout: TunnelLayout) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.ip);
        let mut raw = [0; Self::SIZE];
        raw[..16].copy_from_slice(&ip);
        raw[16] = family;
        match layout {
            TunnelLayout::ClusterByte => raw[17] = self.cluster_id as u8,
            TunnelLayout::ClusterWord => raw[18..].copy_from_slice(&self.cluster_id.to_le_bytes()),
        }
        raw
    }
}

/// A value of `cilium_tunnel_map`; every version has its fields in the same places.
///
/// Source: `struct tunnel_value`, Cilium 1.13 to 1.17 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelValue {
    /// The node's address.
    pub ip: IpAddr,
    /// Encryption key id, 0 for none.
    pub key: u8,
    /// Node id (1.13.0 and 1.14.0 only; padding later).
    pub node_id: u16,
}

impl TunnelValue {
    /// Bytes of a value.
    pub const SIZE: usize = 20;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 20 bytes with a known family.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "tunnel_value", "20")?;
        let ip = address(&part(&raw, 0), raw[16], "tunnel_value")?;
        Ok(Self { ip, key: raw[17], node_id: u16_le(&raw, 18) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.ip);
        let mut raw = [0; Self::SIZE];
        raw[..16].copy_from_slice(&ip);
        raw[16] = family;
        raw[17] = self.key;
        raw[18..].copy_from_slice(&self.node_id.to_le_bytes());
        raw
    }
}
