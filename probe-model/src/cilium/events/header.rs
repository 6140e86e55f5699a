//! What every notification that captures a packet begins with, and what packs its flag bytes.

use crate::cilium::{DecodeError, EndpointId, u16_le, u32_le};

/// What drop, trace, verdict and debug-capture notifications begin with.
///
/// Source: `NOTIFY_CAPTURE_HDR`, Cilium 1.13 to 1.20 `bpf/lib/{common,notify}.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureHeader {
    /// The endpoint the emitting program was compiled for: the pod's, the host endpoint's, or 0.
    pub source: EndpointId,
    /// Hash of the packet's flow.
    pub hash: u32,
    /// The packet's full length in bytes.
    pub len_orig: u32,
    /// How many of them follow the notification.
    pub len_cap: u16,
    /// 0, or which fields a vendor appended to the notification. Always 0 before 1.19, which has no such field.
    pub ext_version: u8,
}

impl CaptureHeader {
    /// Bytes of the header.
    pub const SIZE: usize = 16;

    /// Reads the header of a notification that is known to be whole.
    pub(super) fn decode(raw: &[u8]) -> Self {
        Self {
            source: EndpointId(u16_le(raw, 2)),
            hash: u32_le(raw, 4),
            len_orig: u32_le(raw, 8),
            len_cap: len_cap(raw),
            ext_version: ext_version(raw),
        }
    }

    /// Writes the header into a notification.
    pub(super) fn encode(&self, raw: &mut [u8], message_type: u8, subtype: u8, version: u8) {
        (raw[0], raw[1]) = (message_type, subtype);
        put(raw, 2, self.source.0.to_le_bytes());
        put(raw, 4, self.hash.to_le_bytes());
        put(raw, 8, self.len_orig.to_le_bytes());
        put(raw, 12, self.len_cap.to_le_bytes());
        (raw[14], raw[15]) = (version, self.ext_version);
    }
}

/// `len_cap` of a notification that holds at least the header.
pub(super) fn len_cap(raw: &[u8]) -> u16 {
    u16_le(raw, 12)
}

/// `version` of a notification, with `ext_version` as the high byte: the whole 16 bits are the version before 1.19.
pub(super) fn version(raw: &[u8], what: &'static str) -> Result<u16, DecodeError> {
    match raw.get(..CaptureHeader::SIZE) {
        Some(header) => Ok(u16_le(header, 14)),
        None => Err(DecodeError::Size { what, expected: "at least 16", found: raw.len() }),
    }
}

/// `ext_version` of a notification that holds at least the header.
pub(super) fn ext_version(raw: &[u8]) -> u8 {
    raw[15]
}

/// Overwrites the bytes of `raw` from `at`.
pub(super) fn put<const N: usize>(raw: &mut [u8], at: usize, bytes: [u8; N]) {
    raw[at..at + N].copy_from_slice(&bytes);
}

/// What kind of packet a drop or trace notification carries.
///
/// Source: `flags` of `struct drop_notify` and `trace_notify`, `CLS_FLAG_*` of Cilium 1.18 `bpf/lib/classifiers.h`; bit
/// fields of the same meaning before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NotifyFlags(pub u8);

impl NotifyFlags {
    /// IPv6.
    pub fn is_ipv6(self) -> bool {
        self.0 & 1 != 0
    }

    /// The packet has no Ethernet header. Never set before 1.17.4, on any device.
    pub fn is_l3_device(self) -> bool {
        self.0 & 2 != 0
    }

    /// The packet is a VXLAN tunnel's. Never set before 1.18.
    pub fn is_vxlan(self) -> bool {
        self.0 & 4 != 0
    }

    /// The packet is a Geneve tunnel's. Never set before 1.18.
    pub fn is_geneve(self) -> bool {
        self.0 & 8 != 0
    }
}
