//! Cilium's own notifications: what its datapath emits into `cilium_events` (1.14 layouts).
//!
//! Source: `struct drop_notify`, `trace_notify`, `policy_verdict_notify`, Cilium 1.14 `bpf/lib/{drop,trace,policy_log}.h`.

use core::fmt;

use super::drop_reason::DropReason;
use super::identity::Identity;
use super::policy::MatchType;
use super::{DecodeError, Direction, EndpointId, part, u16_le, u32_le};

/// Bytes of a drop notification before the packet, up to 1.17.3.
pub const DROP_NOTIFY_SIZE: usize = 36;
/// Bytes of a trace notification before the packet, up to 1.18.
pub const TRACE_NOTIFY_SIZE: usize = 48;
/// Bytes of a policy verdict notification before the packet, up to 1.18.
pub const POLICY_VERDICT_NOTIFY_SIZE: usize = 32;
/// Bytes of the header that drop, trace, verdict and capture notifications share.
const CAPTURE_HEADER_SIZE: usize = 16;
/// The `version` in the capture header of every notification of 1.14.
const NOTIFY_VERSION: u16 = 1;

const TYPE_DROP: u8 = 1;
const TYPE_TRACE: u8 = 4;
const TYPE_POLICY_VERDICT: u8 = 5;

/// What drop, trace and verdict notifications begin with.
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
}

impl CaptureHeader {
    fn decode(raw: &[u8], what: &'static str) -> Result<Self, DecodeError> {
        let version = u16_le(raw, 14);
        if version != NOTIFY_VERSION {
            let (field, expected) = ("version", "1 (Cilium 1.13 to 1.17.3)");
            return Err(DecodeError::Field { what, field, expected, found: version.into() });
        }
        Ok(Self {
            source: EndpointId(u16_le(raw, 2)),
            hash: u32_le(raw, 4),
            len_orig: u32_le(raw, 8),
            len_cap: u16_le(raw, 12),
        })
    }
}

/// A dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropNotify {
    /// Common header.
    pub header: CaptureHeader,
    /// Why.
    pub reason: DropReason,
    /// Source identity.
    pub src_label: Identity,
    /// Destination identity, 0 if unknown.
    pub dst_label: Identity,
    /// Destination endpoint, 0 on egress or if unknown.
    pub dst_id: u32,
    /// Line in Cilium's source; only meaningful with that very build.
    pub line: u16,
    /// File in Cilium's source, as a number.
    pub file: u8,
    /// More on the reason: an errno, an authentication type, a FIB result.
    pub ext_error: i8,
    /// The device that the dropping program ran on.
    pub ifindex: u32,
}

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

/// A packet that went on.
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
    /// Destination endpoint, or the proxy's port for `to-proxy`.
    pub dst_id: u16,
    /// Conntrack state: 0 new, 1 established, 2 reply, 3 related, 4 reopened, 5 unknown; bit 7 encrypted.
    pub reason: u8,
    /// Flag bits: bit 0 IPv6.
    pub flags: u8,
    /// Interface, 0 if unknown.
    pub ifindex: u32,
    /// Source address before NAT, IPv4 in the first four bytes.
    pub orig_ip: [u8; 16],
}

/// A decision of the policy program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyVerdictNotify {
    /// Common header; `source` is the endpoint whose policy decided.
    pub header: CaptureHeader,
    /// The peer's identity.
    pub remote_label: Identity,
    /// 0 allow, negative a drop reason, positive the proxy's port as [`Self::proxy_port`] reads it.
    pub verdict: i32,
    /// Destination port after DNAT, host order.
    pub dst_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Direction as the endpoint sees it.
    pub direction: Direction,
    /// IPv6.
    pub ipv6: bool,
    /// How much of the packet the deciding entry named.
    pub match_type: MatchType,
    /// Whether audit mode turned a drop into an allow.
    pub audited: bool,
    /// Authentication type.
    pub auth_type: u8,
}

impl PolicyVerdictNotify {
    /// The drop reason, if it was a drop.
    pub fn drop_reason(&self) -> Option<DropReason> {
        DropReason::from_return_code(self.verdict)
    }

    /// The L7 proxy's port in host order, if the packet was redirected. It travels in network order inside the `s32`.
    pub fn proxy_port(&self) -> Option<u16> {
        u16::try_from(self.verdict)
            .ok()
            .filter(|port| *port != 0)
            .map(|port| u16::from_be_bytes(port.to_le_bytes()))
    }
}

/// A notification, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A packet was dropped.
    Drop(DropNotify),
    /// A packet went on.
    Trace(TraceNotify),
    /// Policy decided.
    PolicyVerdict(PolicyVerdictNotify),
    /// A type that plsprobe has no use for: debug, capture, socket trace, agent messages.
    Other {
        /// The message type.
        message_type: u8,
    },
}

/// A perf sample: the notification and the packet bytes behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The notification.
    pub notification: Notification,
    /// The captured packet from its Ethernet header on, without the ring's padding.
    pub packet: &'a [u8],
}

impl<'a> Sample<'a> {
    /// Decodes one sample of `cilium_events` as the ring or the monitor socket carries it.
    ///
    /// Up to 7 bytes of padding may follow the packet. Types without a use here become [`Notification::Other`].
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if a drop, trace or verdict notification is shorter than its layout, or has another version, or
    /// holds a direction or match type that is not known. Never panics on any bytes.
    pub fn decode(raw: &'a [u8]) -> Result<Self, DecodeError> {
        let Some(message_type) = raw.first().copied() else {
            return Err(DecodeError::Size { what: "notification", expected: "at least 1", found: 0 });
        };
        let (notification, header, size) = match message_type {
            TYPE_DROP => {
                let drop = decode_drop(at_least(raw, DROP_NOTIFY_SIZE, "drop_notify", "at least 36")?)?;
                (Notification::Drop(drop), drop.header, DROP_NOTIFY_SIZE)
            }
            TYPE_TRACE => {
                let trace = decode_trace(at_least(raw, TRACE_NOTIFY_SIZE, "trace_notify", "at least 48")?)?;
                (Notification::Trace(trace), trace.header, TRACE_NOTIFY_SIZE)
            }
            TYPE_POLICY_VERDICT => {
                let (size, what) = (POLICY_VERDICT_NOTIFY_SIZE, "policy_verdict_notify");
                let verdict = decode_verdict(at_least(raw, size, what, "at least 32")?)?;
                (Notification::PolicyVerdict(verdict), verdict.header, size)
            }
            message_type => {
                return Ok(Self { notification: Notification::Other { message_type }, packet: &[] });
            }
        };
        let end = (size + usize::from(header.len_cap)).min(raw.len());
        Ok(Self { notification, packet: &raw[size..end] })
    }
}

fn at_least<'a>(
    raw: &'a [u8],
    size: usize,
    what: &'static str,
    expected: &'static str,
) -> Result<&'a [u8], DecodeError> {
    raw.get(..size).ok_or(DecodeError::Size { what, expected, found: raw.len() })
}

fn decode_drop(raw: &[u8]) -> Result<DropNotify, DecodeError> {
    Ok(DropNotify {
        header: CaptureHeader::decode(raw, "drop_notify")?,
        reason: DropReason(raw[1]),
        src_label: Identity(u32_le(raw, CAPTURE_HEADER_SIZE)),
        dst_label: Identity(u32_le(raw, 20)),
        dst_id: u32_le(raw, 24),
        line: u16_le(raw, 28),
        file: raw[30],
        ext_error: raw[31].cast_signed(),
        ifindex: u32_le(raw, 32),
    })
}

fn decode_trace(raw: &[u8]) -> Result<TraceNotify, DecodeError> {
    Ok(TraceNotify {
        header: CaptureHeader::decode(raw, "trace_notify")?,
        point: ObservationPoint(raw[1]),
        src_label: Identity(u32_le(raw, CAPTURE_HEADER_SIZE)),
        dst_label: Identity(u32_le(raw, 20)),
        dst_id: u16_le(raw, 24),
        reason: raw[26],
        flags: raw[27],
        ifindex: u32_le(raw, 28),
        orig_ip: part(raw, 32),
    })
}

fn decode_verdict(raw: &[u8]) -> Result<PolicyVerdictNotify, DecodeError> {
    let what = "policy_verdict_notify";
    let bits = raw[27];
    let direction = match bits & 3 {
        1 => Direction::Ingress,
        2 => Direction::Egress,
        found => {
            let (field, expected) = ("dir", "1 (ingress) or 2 (egress)");
            return Err(DecodeError::Field { what, field, expected, found: found.into() });
        }
    };
    let number = bits >> 3 & 7;
    let match_type = MatchType::from_number(number).ok_or(DecodeError::Field {
        what,
        field: "match_type",
        expected: "0 to 6",
        found: number.into(),
    })?;
    Ok(PolicyVerdictNotify {
        header: CaptureHeader::decode(raw, what)?,
        remote_label: Identity(u32_le(raw, CAPTURE_HEADER_SIZE)),
        verdict: u32_le(raw, 20).cast_signed(),
        dst_port: u16_le(raw, 24),
        proto: raw[26],
        direction,
        ipv6: bits & 4 != 0,
        match_type,
        audited: bits & 0x40 != 0,
        auth_type: raw[28],
    })
}
