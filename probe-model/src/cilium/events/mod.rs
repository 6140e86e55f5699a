//! Cilium's own notifications: what its datapath emits into `cilium_events`, in every layout of 1.13 to 1.20.
//!
//! One file per notification. `version` in the capture header decides the layout of drops and traces. Policy verdicts and
//! socket traces do not say theirs: [`Sample::from_hook`] takes it from the size that the emitting program gave,
//! [`Stream`] infers it or refuses.
//!
//! Source: `bpf/lib/{notify,drop,trace,policy_log,dbg,trace_sock}.h`, Cilium 1.13 to 1.20.

mod debug;
mod drop;
mod header;
mod sock;
mod stream;
mod trace;
mod verdict;

pub use debug::{DebugCapture, DebugMessage};
pub use drop::DropNotify;
pub use header::{CaptureHeader, NotifyFlags};
pub use sock::{SocketTrace, SocketTraceLayout, XlatePoint};
pub use stream::Stream;
pub use trace::{ObservationPoint, TraceNotify, TraceReason};
pub use verdict::PolicyVerdictNotify;

use super::DecodeError;

/// Message types: the first byte of every notification.
const DROP: u8 = 1;
const DEBUG_MESSAGE: u8 = 2;
const DEBUG_CAPTURE: u8 = 3;
const TRACE: u8 = 4;
const POLICY_VERDICT: u8 = 5;
const SOCKET_TRACE: u8 = 7;

/// Most bytes that a perf ring appends to a sample, to align the next.
const PADDING_MAX: usize = 7;

/// A notification, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A packet was dropped.
    Drop(DropNotify),
    /// A message from inside the datapath.
    DebugMessage(DebugMessage),
    /// A packet captured inside the datapath.
    DebugCapture(DebugCapture),
    /// A packet went on.
    Trace(TraceNotify),
    /// Policy decided.
    PolicyVerdict(PolicyVerdictNotify),
    /// A socket's service address was translated.
    SocketTrace(SocketTrace),
    /// A type that plsprobe has no use for: recorder captures, messages of the agent's own.
    Other {
        /// The message type.
        message_type: u8,
    },
}

impl Notification {
    /// The message type: the first byte.
    pub fn message_type(&self) -> u8 {
        match self {
            Self::Drop(_) => DROP,
            Self::DebugMessage(_) => DEBUG_MESSAGE,
            Self::DebugCapture(_) => DEBUG_CAPTURE,
            Self::Trace(_) => TRACE,
            Self::PolicyVerdict(_) => POLICY_VERDICT,
            Self::SocketTrace(_) => SOCKET_TRACE,
            Self::Other { message_type } => *message_type,
        }
    }

    /// Whether the packet that follows begins with its IP header, as far as the notification tells.
    pub fn is_l3_device(&self) -> bool {
        match self {
            Self::Drop(drop) => drop.flags.is_some_and(NotifyFlags::is_l3_device),
            Self::Trace(trace) => trace.flags.is_l3_device(),
            Self::PolicyVerdict(verdict) => verdict.l3_device,
            _ => false,
        }
    }

    /// The notification's bytes as the datapath writes them, without a packet. Of a type without a decoder only the first.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Drop(drop) => drop.encode(),
            Self::DebugMessage(message) => message.encode(),
            Self::DebugCapture(capture) => capture.encode(),
            Self::Trace(trace) => trace.encode(),
            Self::PolicyVerdict(verdict) => verdict.encode(),
            Self::SocketTrace(trace) => trace.encode(),
            Self::Other { message_type } => vec![*message_type],
        }
    }

    /// Reads a notification from as many bytes as its layout has.
    fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        Ok(match first_byte(raw)? {
            DROP => Self::Drop(DropNotify::decode(raw)),
            DEBUG_MESSAGE => Self::DebugMessage(DebugMessage::decode(raw)),
            DEBUG_CAPTURE => Self::DebugCapture(DebugCapture::decode(raw)),
            TRACE => Self::Trace(TraceNotify::decode(raw)),
            POLICY_VERDICT => Self::PolicyVerdict(PolicyVerdictNotify::decode(raw)?),
            SOCKET_TRACE => Self::SocketTrace(SocketTrace::decode(raw)),
            message_type => Self::Other { message_type },
        })
    }
}

/// A notification and the packet that came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The notification.
    pub notification: Notification,
    /// The captured packet from its link-layer header on, without the ring's padding.
    pub packet: &'a [u8],
}

impl<'a> Sample<'a> {
    /// Decodes a notification at the kernel function that a program handed it to, where its size is known.
    ///
    /// `meta_size` is the size that the program gave. `meta` holds that many bytes, or as many as were kept of a notification
    /// that a vendor made longer; `packet` is what was captured.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if `meta_size` is no size of the type and version and no vendor's field explains it, if the
    /// version is not known, or if a direction or match type is not known. Never panics on any bytes.
    pub fn from_hook(meta: &'a [u8], meta_size: usize, packet: &'a [u8]) -> Result<Self, DecodeError> {
        let message_type = first_byte(meta)?;
        let Some((what, size)) = hook_layout(message_type, meta, meta_size)? else {
            return Ok(Self { notification: Notification::Other { message_type }, packet });
        };
        // A vendor's fields follow ours, and the packet follows them.
        let captures = !matches!(message_type, DEBUG_MESSAGE | SOCKET_TRACE);
        let extended = captures && header::ext_version(meta) != 0 && meta_size > size;
        if meta_size != size && !extended {
            let found = format!("{meta_size} bytes, {size} of which are known");
            let known = "the size of its version, or a longer one with `ext_version` not 0";
            return Err(DecodeError::Layout { what, found, known });
        }
        let Some(known) = meta.get(..size) else {
            let (expected, found) = ("as long as its version", meta.len());
            return Err(DecodeError::Size { what, expected, found });
        };
        Ok(Self { notification: Notification::decode(known)?, packet })
    }

    /// Decodes one sample of a ring or the monitor socket by itself: [`Stream::decode`] without anything seen before.
    ///
    /// # Errors
    ///
    /// Those of [`Stream::decode`].
    pub fn decode(raw: &'a [u8]) -> Result<Self, DecodeError> {
        Stream::default().decode(raw)
    }
}

/// The name and the known size of a notification of which the emitting program gave the size; `None` for a type without
/// a decoder.
fn hook_layout(
    message_type: u8,
    meta: &[u8],
    meta_size: usize,
) -> Result<Option<(&'static str, usize)>, DecodeError> {
    Ok(Some(match message_type {
        DROP => (drop::WHAT, DropNotify::size(meta)?),
        TRACE => (trace::WHAT, TraceNotify::size(meta)?),
        POLICY_VERDICT => {
            PolicyVerdictNotify::check_version(meta)?;
            // Vendors may append only since 1.19.
            let is_short = meta_size <= verdict::SHORT && header::ext_version(meta) == 0;
            (verdict::WHAT, if is_short { verdict::SHORT } else { verdict::LONG })
        }
        DEBUG_MESSAGE => (DebugMessage::WHAT, DebugMessage::SIZE),
        DEBUG_CAPTURE => (DebugCapture::WHAT, DebugCapture::size(meta)?),
        SOCKET_TRACE => (sock::WHAT, if meta_size <= sock::PACKED { sock::PACKED } else { sock::ALIGNED }),
        _ => return Ok(None),
    }))
}

/// Why a sample is not of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misfit {
    /// The sample would be longer or shorter.
    Length,
    /// Bytes that are always 0 are not.
    Padding,
    /// There would be no packet of the notification's family and protocol behind it.
    Packet,
    /// It would have a protocol that the datapath has no number for.
    Protocol,
    /// The stream is of other releases.
    Stream,
}

impl Misfit {
    fn words(self) -> &'static str {
        match self {
            Self::Length => "not the sample's length",
            Self::Padding => "its padding would not be 0",
            Self::Packet => "no such packet would follow",
            Self::Protocol => "its protocol would be unknown",
            Self::Stream => "not the stream's Cilium",
        }
    }
}

fn first_byte(raw: &[u8]) -> Result<u8, DecodeError> {
    raw.first().copied().ok_or(DecodeError::Size { what: "notification", expected: "at least 1", found: 0 })
}

/// Whether a sample with a capture header is as long as `size` bytes and its packet, and the ring's padding.
fn is_framed(raw: &[u8], size: usize) -> bool {
    is_within_padding(raw.len(), size + usize::from(header::len_cap(raw)))
}

/// Whether `len` bytes are `expected` bytes and the ring's padding.
fn is_within_padding(len: usize, expected: usize) -> bool {
    (expected..=expected + PADDING_MAX).contains(&len)
}

fn unknown_version(what: &'static str, expected: &'static str, found: u16) -> DecodeError {
    DecodeError::Field { what, field: "version", expected, found: found.into() }
}
