//! The endpoints map `cilium_lxc`: local address to endpoint.

use core::fmt;
use std::net::IpAddr;

use super::identity::Identity;
use super::{DecodeError, EndpointId, address, address_bytes, part, sized, u16_le, u32_le};

/// A key of `cilium_lxc`.
///
/// Source: `struct endpoint_key`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The endpoint's address.
    pub ip: IpAddr,
}

impl EndpointKey {
    /// Bytes of a key.
    pub const SIZE: usize = 20;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 20 bytes with a known family.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "endpoint_key", "20")?;
        Ok(Self { ip: address(&part(&raw, 0), raw[16], "endpoint_key")? })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.ip);
        let mut raw = [0; Self::SIZE];
        raw[..16].copy_from_slice(&ip);
        raw[16] = family;
        raw
    }
}

/// A link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
/// Source: `struct endpoint_info`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointInfo {
    /// The host side of the pod's veth; 0 for the node's own addresses.
    pub ifindex: u32,
    /// Endpoint id; 0 for the node's own addresses.
    pub lxc_id: EndpointId,
    /// [`Self::HOST`] and others.
    pub flags: u32,
    /// The pod's address on its veth.
    pub mac: Mac,
    /// The host side's address on the veth.
    pub node_mac: Mac,
    /// The endpoint's identity (from 1.14 on).
    pub sec_id: Identity,
}

impl EndpointInfo {
    /// Bytes of a value.
    pub const SIZE: usize = 48;
    /// Flag of the node's own addresses.
    pub const HOST: u32 = 1;

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
            mac: Mac(part(&raw, 16)),
            node_mac: Mac(part(&raw, 24)),
            sec_id: Identity(u32_le(&raw, 32)),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.ifindex.to_le_bytes());
        raw[6..8].copy_from_slice(&self.lxc_id.0.to_le_bytes());
        raw[8..12].copy_from_slice(&self.flags.to_le_bytes());
        raw[16..22].copy_from_slice(&self.mac.0);
        raw[24..30].copy_from_slice(&self.node_mac.0);
        raw[32..36].copy_from_slice(&self.sec_id.0.to_le_bytes());
        raw
    }

    /// Whether the address is the node's own.
    pub fn is_host(&self) -> bool {
        self.flags & Self::HOST != 0
    }
}
