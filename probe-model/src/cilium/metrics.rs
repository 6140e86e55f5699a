//! `cilium_metrics`: packets by reason and direction.

use super::{DecodeError, sized, u64_le};

/// A key of `cilium_metrics`: reason and direction; line and file only from 1.16 on.
///
/// Source: `struct metrics_key`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricsKey {
    /// A drop reason from 130 on, else a forward reason.
    pub reason: u8,
    /// 1 ingress, 2 egress, 3 service.
    pub direction: u8,
}

impl MetricsKey {
    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; 8] = sized(raw, "metrics_key", "8")?;
        Ok(Self { reason: raw[0], direction: raw[1] & 3 })
    }
}

/// One processor's value of `cilium_metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsValue {
    /// Packets.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl MetricsValue {
    /// Decodes one processor's value.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; 16] = sized(raw, "metrics_value", "16")?;
        Ok(Self { count: u64_le(&raw, 0), bytes: u64_le(&raw, 8) })
    }
}
