//! `cilium_runtime_config`: what the agent tells its datapath while it runs (1.14 on), and Cilium's wall clock.

use super::{DecodeError, sized};

/// A wall clock time as the datapath counts it: units of 512 ns since 1970-01-01 UTC.
///
/// Source: `utime_get_time`, Cilium 1.14 `bpf/lib/utime.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UTime(pub u64);

impl UTime {
    /// Nanoseconds of one unit.
    pub const UNIT_NS: u64 = 512;

    /// Nanoseconds since 1970-01-01 UTC.
    pub fn unix_ns(self) -> u128 {
        u128::from(self.0) * u128::from(Self::UNIT_NS)
    }
}

/// The entries of `cilium_runtime_config` that have a meaning, of 256.
///
/// Source: `RUNTIME_CONFIG_UTIME_OFFSET` and `RUNTIME_CONFIG_AGENT_LIVENESS`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuntimeConfig {
    /// Index 0: when the node booted, to be added to the time since then; 0 until the agent has set it.
    pub utime_offset: UTime,
    /// Index 1: when the agent last said that it lives, nanoseconds since boot; 0 until it has.
    pub agent_liveness_ns: u64,
}

impl RuntimeConfig {
    /// Bytes of a key, the index.
    pub const KEY_SIZE: usize = 4;
    /// Bytes of a value.
    pub const VALUE_SIZE: usize = 8;
    const UTIME_OFFSET: u32 = 0;
    const AGENT_LIVENESS: u32 = 1;

    /// Decodes the entries of the map; indexes without a meaning are passed over.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless each key is 4 and each value 8 bytes.
    pub fn decode<'a>(entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Self, DecodeError> {
        let mut config = Self::default();
        for (key, value) in entries {
            let index = u32::from_le_bytes(sized(key, "cilium_runtime_config key", "4")?);
            let value = u64::from_le_bytes(sized(value, "cilium_runtime_config value", "8")?);
            match index {
                Self::UTIME_OFFSET => config.utime_offset = UTime(value),
                Self::AGENT_LIVENESS => config.agent_liveness_ns = value,
                _ => {}
            }
        }
        Ok(config)
    }

    /// The entries as the kernel stores them, those without a meaning left out.
    pub fn encode(&self) -> [([u8; Self::KEY_SIZE], [u8; Self::VALUE_SIZE]); 2] {
        [
            (Self::UTIME_OFFSET.to_le_bytes(), self.utime_offset.0.to_le_bytes()),
            (Self::AGENT_LIVENESS.to_le_bytes(), self.agent_liveness_ns.to_le_bytes()),
        ]
    }

    /// The wall clock at a time since boot, as the datapath reckons it; `None` until the agent has set the offset.
    pub fn wall_clock(&self, since_boot_ns: u64) -> Option<UTime> {
        let booted = self.utime_offset.0;
        (booted != 0).then(|| UTime(booted.saturating_add(since_boot_ns / UTime::UNIT_NS)))
    }
}
