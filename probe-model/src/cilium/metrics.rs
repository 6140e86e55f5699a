//! `cilium_metrics`: packets by reason and direction.

use super::{DecodeError, per_cpu, sized, u16_le, u64_le};

/// A key of `cilium_metrics`.
///
/// Source: `struct metrics_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/metrics.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricsKey {
    /// A drop reason from 130 on, else a forward reason.
    pub reason: u8,
    /// 1 ingress, 2 egress, 3 service.
    pub direction: u8,
    /// Where in Cilium's source it was counted: the line (1.16 on, 0 before).
    pub line: u16,
    /// Where in Cilium's source it was counted: the file's number (1.16 on, 0 before).
    pub file: u8,
}

impl MetricsKey {
    /// Bytes of a key.
    pub const SIZE: usize = 8;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 8 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "metrics_key", "8")?;
        Ok(Self { reason: raw[0], direction: raw[1] & 3, line: u16_le(&raw, 2), file: raw[4] })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[0] = self.reason;
        raw[1] = self.direction & 3;
        raw[2..4].copy_from_slice(&self.line.to_le_bytes());
        raw[4] = self.file;
        raw
    }
}

/// One processor's value of `cilium_metrics`, or the sum of all.
///
/// Source: `struct metrics_value`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/metrics.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsValue {
    /// Packets.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl MetricsValue {
    /// Bytes of one processor's value.
    pub const SIZE: usize = 16;

    /// Decodes one processor's value.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 16 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "metrics_value", "16")?;
        Ok(Self { count: u64_le(&raw, 0), bytes: u64_le(&raw, 8) })
    }

    /// The value as the kernel stores it for one processor.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.count.to_le_bytes());
        raw[8..].copy_from_slice(&self.bytes.to_le_bytes());
        raw
    }

    /// Adds up the values of every processor, one after another in `raw`.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is a positive multiple of 16 bytes.
    pub fn sum(raw: &[u8]) -> Result<Self, DecodeError> {
        let mut total = Self::default();
        for value in per_cpu(raw, Self::SIZE, "metrics_value", "16 for each processor")? {
            total = total.plus(Self::decode(value)?);
        }
        Ok(total)
    }

    /// Both added up; what overflows stays at the highest number.
    pub fn plus(self, other: Self) -> Self {
        Self { count: self.count.saturating_add(other.count), bytes: self.bytes.saturating_add(other.bytes) }
    }
}
