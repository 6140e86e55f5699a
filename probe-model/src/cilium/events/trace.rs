//! The trace notification: a packet went on.

use core::fmt;

use super::header::{self, CaptureHeader, NotifyFlags, put};
use super::{TRACE, unknown_version};
use crate::cilium::identity::Identity;
use crate::cilium::{DecodeError, part, u16_le, u32_le, u64_le};

pub(super) const WHAT: &str = "trace_notify";
/// Sizes of versions 1 and 2.
const SIZES: [usize; 2] = [48, 56];

/// Where in Cilium's datapath a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObservationPoint(pub u8);

impl ObservationPoint {
    /// On its way into the endpoint.
    pub const TO_ENDPOINT: Self = Self(0);
    /// To the host's stack.
    pub const TO_STACK: Self = Self(3);
    /// Out of the node.
    pub const TO_NETWORK: Self = Self(11);

    /// The name that Cilium prints.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "to-endpoint",
            "to-proxy",
            "to-host",
            "to-stack",
            "to-overlay",
            "from-endpoint",
            "from-proxy",
            "from-host",
            "from-stack",
            "from-overlay",
            "from-network",
            "to-network",
            "from-crypto",
            "to-crypto",
        ];
        NAMES.get(usize::from(self.0)).copied()
    }
}

impl fmt::Display for ObservationPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "observation point {}", self.0),
        }
    }
}

/// What conntrack knew of a traced packet, and in bit 7 whether it was encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceReason(pub u8);

impl TraceReason {
    const ENCRYPTED: u8 = 0x80;

    /// The reason without the encrypted bit.
    pub fn number(self) -> u8 {
        self.0 & !Self::ENCRYPTED
    }

    /// Whether the packet was, or is going to be, encrypted.
    pub fn is_encrypted(self) -> bool {
        self.0 & Self::ENCRYPTED != 0
    }

    /// The reason in words, if its number is known.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 9] = [
            "new",
            "established",
            "reply",
            "related",
            "reopened",
            "unknown",
            "srv6-encap",
            "srv6-decap",
            "encrypt-overlay",
        ];
        NAMES.get(usize::from(self.number())).copied()
    }
}

impl fmt::Display for TraceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "reason {}", self.number())?,
        }
        f.write_str(if self.is_encrypted() { ", encrypted" } else { "" })
    }
}

/// A packet that went on.
///
/// Source: `struct trace_notify`, Cilium 1.13 to 1.20 `bpf/lib/trace.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceNotify {
    /// Common header.
    pub header: CaptureHeader,
    /// Where it was seen.
    pub point: ObservationPoint,
    /// Source identity.
    pub src_label: Identity,
    /// Destination identity.
    pub dst_label: Identity,
    /// Destination endpoint, or the proxy's port in host order for `to-proxy`.
    pub dst_id: u16,
    /// Conntrack's state of it.
    pub reason: TraceReason,
    /// What kind of packet it is.
    pub flags: NotifyFlags,
    /// Interface, 0 if unknown.
    pub ifindex: u32,
    /// Source address before NAT, IPv4 in the first four bytes; 0 if there was none.
    pub orig_ip: [u8; 16],
    /// The trace id found in the packet's IP options, 0 if none; `None` before 1.19 (version 1).
    pub ip_trace_id: Option<u64>,
}

impl TraceNotify {
    /// The size that the header's version gives.
    pub(super) fn size(raw: &[u8]) -> Result<usize, DecodeError> {
        match header::version(raw, WHAT)? {
            1 => Ok(SIZES[0]),
            version if version & 0xff == 2 => Ok(SIZES[1]),
            found => Err(unknown_version(WHAT, "1 (Cilium 1.13 to 1.18) or 2 (1.19 and later)", found)),
        }
    }

    /// Reads a notification of exactly the size of its version.
    pub(super) fn decode(raw: &[u8]) -> Self {
        Self {
            header: CaptureHeader::decode(raw),
            point: ObservationPoint(raw[1]),
            src_label: Identity(u32_le(raw, 16)),
            dst_label: Identity(u32_le(raw, 20)),
            dst_id: u16_le(raw, 24),
            reason: TraceReason(raw[26]),
            flags: NotifyFlags(raw[27]),
            ifindex: u32_le(raw, 28),
            orig_ip: part(raw, 32),
            ip_trace_id: (raw.len() >= SIZES[1]).then(|| u64_le(raw, 48)),
        }
    }

    /// The notification without a packet, of the oldest version that has its fields.
    pub fn encode(&self) -> Vec<u8> {
        let version = if self.ip_trace_id.is_some() { 2 } else { 1 };
        let mut raw = vec![0; SIZES[usize::from(version) - 1]];
        self.header.encode(&mut raw, TRACE, self.point.0, version);
        put(&mut raw, 16, self.src_label.0.to_le_bytes());
        put(&mut raw, 20, self.dst_label.0.to_le_bytes());
        put(&mut raw, 24, self.dst_id.to_le_bytes());
        put(&mut raw, 26, [self.reason.0, self.flags.0]);
        put(&mut raw, 28, self.ifindex.to_le_bytes());
        put(&mut raw, 32, self.orig_ip);
        if let Some(ip_trace_id) = self.ip_trace_id {
            put(&mut raw, 48, ip_trace_id.to_le_bytes());
        }
        raw
    }
}
