//! `cilium_ratelimit`: token buckets of what the datapath itself sends (1.15 on).

use super::{DecodeError, sized, u32_le, u64_le};

/// A key of `cilium_ratelimit`: 4 bytes in 1.15 and 1.16, 8 from 1.17 on.
///
/// Source: `struct ratelimit_key`, Cilium 1.15 to 1.20 `bpf/lib/ratelimit.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RatelimitKey {
    /// What is limited: 1 `ICMPv6` errors, 2 the events map; `None` up to 1.16, where it is always the first.
    pub usage: Option<u32>,
    /// Of `ICMPv6` the interface's index.
    pub netdev_idx: u32,
}

impl RatelimitKey {
    /// Bytes of a key in 1.15 and 1.16.
    pub const SIZE: usize = 4;
    /// Bytes of a key from 1.17 on.
    pub const SIZE_V2: usize = 8;

    /// Decodes a key of either size as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 4 or 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        match raw.len() {
            Self::SIZE => Ok(Self { usage: None, netdev_idx: u32_le(raw, 0) }),
            Self::SIZE_V2 => Ok(Self { usage: Some(u32_le(raw, 0)), netdev_idx: u32_le(raw, 4) }),
            found => {
                let expected = "4 (Cilium 1.15 and 1.16) or 8 (1.17 on)";
                Err(DecodeError::Size { what: "ratelimit_key", expected, found })
            }
        }
    }

    /// The key as the kernel stores it: 8 bytes if it has a `usage`, else 4.
    pub fn encode(&self) -> Vec<u8> {
        let words = self.usage.into_iter().chain([self.netdev_idx]);
        words.flat_map(u32::to_le_bytes).collect()
    }
}

/// A value of `cilium_ratelimit`.
///
/// Source: `struct ratelimit_value`, Cilium 1.15 to 1.20 `bpf/lib/ratelimit.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RatelimitValue {
    /// When tokens were last added, nanoseconds since boot.
    pub last_topup: u64,
    /// Tokens that are left.
    pub tokens: u64,
}

impl RatelimitValue {
    /// Bytes of a value.
    pub const SIZE: usize = 16;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ratelimit_value", "16")?;
        Ok(Self { last_topup: u64_le(&raw, 0), tokens: u64_le(&raw, 8) })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.last_topup.to_le_bytes());
        raw[8..].copy_from_slice(&self.tokens.to_le_bytes());
        raw
    }
}
