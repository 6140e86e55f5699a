//! Debug messages and captures: only with an endpoint's `Debug` options, off in production.

use super::header::{self, CaptureHeader, put};
use super::{DEBUG_CAPTURE, DEBUG_MESSAGE, unknown_version};
use crate::cilium::{DecodeError, EndpointId, u16_le, u32_le};

/// A message from inside the datapath.
///
/// Source: `struct debug_msg`, Cilium 1.13 to 1.20 `bpf/lib/dbg.h`. The same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugMessage {
    /// Which message. New ones were mostly appended: above 40 a number's meaning depends on the version.
    pub subtype: u8,
    /// The endpoint the emitting program was compiled for, or 0.
    pub source: EndpointId,
    /// Hash of the packet's flow.
    pub hash: u32,
    /// What the message says, as its `subtype` defines it.
    pub args: [u32; 3],
}

impl DebugMessage {
    pub(super) const WHAT: &str = "debug_msg";
    /// Bytes of the message. No packet follows.
    pub const SIZE: usize = 20;

    /// Reads a message of exactly [`Self::SIZE`] bytes.
    pub(super) fn decode(raw: &[u8]) -> Self {
        Self {
            subtype: raw[1],
            source: EndpointId(u16_le(raw, 2)),
            hash: u32_le(raw, 4),
            args: [u32_le(raw, 8), u32_le(raw, 12), u32_le(raw, 16)],
        }
    }

    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; Self::SIZE];
        (raw[0], raw[1]) = (DEBUG_MESSAGE, self.subtype);
        put(&mut raw, 2, self.source.0.to_le_bytes());
        put(&mut raw, 4, self.hash.to_le_bytes());
        for (at, arg) in (8..).step_by(4).zip(self.args) {
            put(&mut raw, at, arg.to_le_bytes());
        }
        raw
    }
}

/// A packet captured inside the datapath.
///
/// Source: `struct debug_capture_msg`, Cilium 1.13 to 1.20 `bpf/lib/dbg.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugCapture {
    /// Common header.
    pub header: CaptureHeader,
    /// Where it was captured, as a number.
    pub subtype: u8,
    /// What the capture says, as its `subtype` defines it.
    pub args: [u32; 2],
}

impl DebugCapture {
    pub(super) const WHAT: &str = "debug_capture_msg";
    /// Bytes before the packet.
    pub const SIZE: usize = 24;
    const VERSION: u8 = 1;

    /// The size, if the header's version is known.
    pub(super) fn size(raw: &[u8]) -> Result<usize, DecodeError> {
        let version = header::version(raw, Self::WHAT)?;
        if version & 0xff == u16::from(Self::VERSION) {
            return Ok(Self::SIZE);
        }
        Err(unknown_version(Self::WHAT, "1 (Cilium 1.13 and later)", version))
    }

    /// Reads a notification of exactly [`Self::SIZE`] bytes.
    pub(super) fn decode(raw: &[u8]) -> Self {
        Self { header: CaptureHeader::decode(raw), subtype: raw[1], args: [u32_le(raw, 16), u32_le(raw, 20)] }
    }

    /// The notification without a packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; Self::SIZE];
        self.header.encode(&mut raw, DEBUG_CAPTURE, self.subtype, Self::VERSION);
        put(&mut raw, 16, self.args[0].to_le_bytes());
        put(&mut raw, 20, self.args[1].to_le_bytes());
        raw
    }
}
