//! `cilium_auth_map`: which pairs of identities have authenticated each other (1.14 on).

use super::identity::Identity;
use super::runtime_config::UTime;
use super::{DecodeError, sized, u16_le, u32_le, u64_le};

/// A key of `cilium_auth_map`; every version has its fields in the same places.
///
/// Source: `struct auth_key`, Cilium 1.14 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/auth.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthKey {
    /// The identity on this node.
    pub local_sec_label: Identity,
    /// The peer's identity.
    pub remote_sec_label: Identity,
    /// The id of the peer's node, as the node map has it; 0 for this node.
    pub remote_node_id: u16,
    /// How they authenticated: 1 spire, 2 always fail (a test).
    pub auth_type: u8,
}

impl AuthKey {
    /// Bytes of a key.
    pub const SIZE: usize = 12;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "auth_key", "12")?;
        Ok(Self {
            local_sec_label: Identity(u32_le(&raw, 0)),
            remote_sec_label: Identity(u32_le(&raw, 4)),
            remote_node_id: u16_le(&raw, 8),
            auth_type: raw[10],
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.local_sec_label.0.to_le_bytes());
        raw[4..8].copy_from_slice(&self.remote_sec_label.0.to_le_bytes());
        raw[8..10].copy_from_slice(&self.remote_node_id.to_le_bytes());
        raw[10] = self.auth_type;
        raw
    }
}

/// A value of `cilium_auth_map`.
///
/// Source: `struct auth_info`, Cilium 1.14 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/auth.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthInfo {
    /// Until when it holds; from then on the datapath treats the entry as none.
    pub expiration: UTime,
}

impl AuthInfo {
    /// Bytes of a value.
    pub const SIZE: usize = 8;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "auth_info", "8")?;
        Ok(Self { expiration: UTime(u64_le(&raw, 0)) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        self.expiration.0.to_le_bytes()
    }
}
