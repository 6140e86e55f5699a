//! The endpoints map `cilium_lxc`: local address to endpoint.

use core::fmt;
use std::net::IpAddr;

use super::identity::Identity;
use super::{DecodeError, EndpointId, address, address_bytes, part, sized, u16_le, u32_le};

/// A key of `cilium_lxc`.
///
/// Source: `struct endpoint_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/eps.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// Always 0.
    pub key: u8,
    /// Cluster id, 0 without cluster-aware addressing and always in 1.13; at most 255 in 1.14.
    pub cluster_id: u16,
}

impl EndpointKey {
    /// Bytes of a key.
    pub const SIZE: usize = 20;

    /// The key that the datapath looks up `ip` with.
    pub fn new(ip: IpAddr) -> Self {
        Self { ip, key: 0, cluster_id: 0 }
    }

    /// Decodes a key as the kernel stores it; every version has its fields in the same places.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 20 bytes with a known family.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "endpoint_key", "20")?;
        let ip = address(&part(&raw, 0), raw[16], "endpoint_key")?;
        Ok(Self { ip, key: raw[17], cluster_id: u16_le(&raw, 18) })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.ip);
        let mut raw = [0; Self::SIZE];
        raw[..16].copy_from_slice(&ip);
        raw[16] = family;
        raw[17] = self.key;
        raw[18..].copy_from_slice(&self.cluster_id.to_le_bytes());
        raw
    }
}

/// A link-layer address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    /// As Cilium's CLI prints it: `46:B6:6F:2E:11:8F`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if idx == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// A value of `cilium_lxc`.
///
/// Every version has its fields in the same places; what a version lacks is zero.
///
/// Source: `struct endpoint_info`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/eps.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointInfo {
    /// The host side of the pod's veth; 0 for the node's own addresses.
    pub ifindex: u32,
    /// Endpoint id; 0 for the node's own addresses.
    pub lxc_id: EndpointId,
    /// [`Self::HOST`] and others.
    pub flags: u32,
    /// What the datapath needs of the endpoint's routing table (1.20 on).
    pub rt_info: u32,
    /// The pod's address on its veth.
    pub mac: Mac,
    /// The host side's address on the veth.
    pub node_mac: Mac,
    /// The endpoint's identity (1.14 on); [`EndpointInfo::identity`] is the safe way to it.
    pub sec_id: Identity,
    /// The interface that the endpoint's packets leave by, 0 if it has none of its own (1.17 on).
    pub parent_ifindex: u32,
}

impl EndpointInfo {
    /// Bytes of a value.
    pub const SIZE: usize = 48;
    /// Flag of the node's own addresses.
    pub const HOST: u32 = 1;
    /// Flag of endpoints in the host's network namespace (1.16 on).
    pub const AT_HOST_NS: u32 = 1 << 1;
    /// Flag of endpoints whose IPv4 packets are not masqueraded (1.19 on).
    pub const SKIP_MASQ_V4: u32 = 1 << 2;
    /// Flag of endpoints whose IPv6 packets are not masqueraded (1.19 on).
    pub const SKIP_MASQ_V6: u32 = 1 << 3;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 48 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "endpoint_info", "48")?;
        Ok(Self {
            ifindex: u32_le(&raw, 0),
            lxc_id: EndpointId(u16_le(&raw, 6)),
            flags: u32_le(&raw, 8),
            rt_info: u32_le(&raw, 12),
            mac: Mac(part(&raw, 16)),
            node_mac: Mac(part(&raw, 24)),
            sec_id: Identity(u32_le(&raw, 32)),
            parent_ifindex: u32_le(&raw, 36),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.ifindex.to_le_bytes());
        raw[6..8].copy_from_slice(&self.lxc_id.0.to_le_bytes());
        raw[8..12].copy_from_slice(&self.flags.to_le_bytes());
        raw[12..16].copy_from_slice(&self.rt_info.to_le_bytes());
        raw[16..22].copy_from_slice(&self.mac.0);
        raw[24..30].copy_from_slice(&self.node_mac.0);
        raw[32..36].copy_from_slice(&self.sec_id.0.to_le_bytes());
        raw[36..40].copy_from_slice(&self.parent_ifindex.to_le_bytes());
        raw
    }

    /// Whether the address is the node's own.
    pub fn is_host(&self) -> bool {
        self.flags & Self::HOST != 0
    }

    /// The endpoint's identity, if the entry has one: none has in 1.13, where the ipcache knows it, nor has the node.
    pub fn identity(&self) -> Option<Identity> {
        (self.sec_id != Identity::UNKNOWN).then_some(self.sec_id)
    }
}
