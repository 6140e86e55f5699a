//! Notifications as a perf ring or the agent's monitor socket carries them: one run of bytes, with no word on where the
//! notification ends and the packet begins.

use core::fmt;

use super::debug::{DebugCapture, DebugMessage};
use super::drop::DropNotify;
use super::sock::{self, SocketTrace};
use super::trace::TraceNotify;
use super::verdict::{self, PolicyVerdictNotify};
use super::{
    DEBUG_CAPTURE, DEBUG_MESSAGE, DROP, Misfit, Notification, POLICY_VERDICT, SOCKET_TRACE, Sample, TRACE,
    first_byte, header, is_framed, is_within_padding,
};
use crate::cilium::DecodeError;

/// What the notifications of one stream have shown of the programs that write it.
///
/// Policy verdicts and socket traces changed their layout in 1.19 without a word in the notification; drops and traces have a
/// version. A verdict is read as a layout that the stream may have, where the sample's length and the packet fit it and
/// do not fit the other. Programs of both kinds run for a while after an upgrade: then both remain possible.
///
/// Begin anew with every connection to the agent: it may have been upgraded in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// A drop of version 1 or 2, or a trace of version 1, was seen: 1.13 to 1.18.
    before_1_19: bool,
    /// A drop of version 3, or a trace of version 2, was seen.
    since_1_19: bool,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.before_1_19, self.since_1_19) {
            (false, false) => "a stream without a drop or trace so far",
            (true, false) => "a stream with drops or traces of Cilium before 1.19",
            (false, true) => "a stream with drops or traces of Cilium 1.19 or later",
            (true, true) => "a stream with drops or traces of Cilium before and since 1.19",
        })
    }
}

impl Stream {
    /// Decodes the stream's next sample.
    ///
    /// Up to 7 bytes of the ring's padding may follow the packet. Types that are none of the datapath's, and those of a
    /// later Cilium, become [`Notification::Other`].
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the notification has a version that is not known or fields that a vendor appended, does not have
    /// the length it says, holds a direction or match type that is not known, or if neither its bytes nor the stream
    /// tell which of its type's layouts it has. Never panics on any bytes.
    pub fn decode<'a>(&mut self, raw: &'a [u8]) -> Result<Sample<'a>, DecodeError> {
        let sample = match first_byte(raw)? {
            DROP => framed(raw, DropNotify::size(raw)?, super::drop::WHAT),
            TRACE => framed(raw, TraceNotify::size(raw)?, super::trace::WHAT),
            POLICY_VERDICT => {
                PolicyVerdictNotify::check_version(raw)?;
                refuse_extension(raw, verdict::WHAT)?;
                let fits = |size| PolicyVerdictNotify::misfit(raw, size);
                framed(raw, self.size(raw, &VERDICT, fits)?, verdict::WHAT)
            }
            DEBUG_MESSAGE => alone(raw, DebugMessage::SIZE, DebugMessage::WHAT),
            DEBUG_CAPTURE => framed(raw, DebugCapture::size(raw)?, DebugCapture::WHAT),
            SOCKET_TRACE => {
                let fits = |size| SocketTrace::misfit(raw, size);
                alone(raw, self.size(raw, &SOCKET, fits)?, sock::WHAT)
            }
            message_type => Ok(Sample { notification: Notification::Other { message_type }, packet: &[] }),
        }?;
        self.note(&sample.notification);
        Ok(sample)
    }

    fn note(&mut self, notification: &Notification) {
        let since_1_19 = match notification {
            Notification::Drop(drop) => drop.ip_trace_id.is_some(),
            Notification::Trace(trace) => trace.ip_trace_id.is_some(),
            _ => return,
        };
        self.since_1_19 |= since_1_19;
        self.before_1_19 |= !since_1_19;
    }

    /// Which of two sizes a notification has that does not say it.
    fn size(
        self,
        raw: &[u8],
        choice: &Choice,
        misfit: impl Fn(usize) -> Option<Misfit>,
    ) -> Result<usize, DecodeError> {
        let nothing_seen = !self.before_1_19 && !self.since_1_19;
        let weigh = |size, seen: bool| if seen || nothing_seen { misfit(size) } else { Some(Misfit::Stream) };
        let older = weigh(choice.before_1_19, self.before_1_19);
        let newer = weigh(choice.since_1_19, self.since_1_19);
        match (older, newer) {
            (None, Some(_)) => Ok(choice.before_1_19),
            (Some(_), None) => Ok(choice.since_1_19),
            _ => {
                let word = |misfit: Option<Misfit>| misfit.map_or("it fits", Misfit::words);
                let found = format!(
                    "{} bytes in {self} (as {}: {}; as {}: {})",
                    raw.len(),
                    choice.before_1_19,
                    word(older),
                    choice.since_1_19,
                    word(newer)
                );
                Err(DecodeError::Layout { what: choice.what, found, known: choice.known })
            }
        }
    }
}

/// The two sizes of a notification that does not say which it has.
struct Choice {
    what: &'static str,
    known: &'static str,
    before_1_19: usize,
    since_1_19: usize,
}

const VERDICT: Choice = Choice {
    what: verdict::WHAT,
    known: verdict::KNOWN,
    before_1_19: verdict::SHORT,
    since_1_19: verdict::LONG,
};

const SOCKET: Choice =
    Choice { what: sock::WHAT, known: sock::KNOWN, before_1_19: sock::PACKED, since_1_19: sock::ALIGNED };

/// A notification of `size` bytes, the packet it captured, and padding.
fn framed<'a>(raw: &'a [u8], size: usize, what: &'static str) -> Result<Sample<'a>, DecodeError> {
    refuse_extension(raw, what)?;
    let len_cap = usize::from(header::len_cap(raw));
    if raw.len() < size || !is_framed(raw, size) {
        let found = format!("{} bytes with `version` {} and `len_cap` {len_cap}", raw.len(), raw[14]);
        let known = "the notification, `len_cap` bytes of packet and at most 7 of padding";
        return Err(DecodeError::Layout { what, found, known });
    }
    let notification = Notification::decode(&raw[..size])?;
    Ok(Sample { notification, packet: &raw[size..size + len_cap] })
}

/// A notification of `size` bytes and padding.
fn alone<'a>(raw: &'a [u8], size: usize, what: &'static str) -> Result<Sample<'a>, DecodeError> {
    if raw.len() < size || !is_within_padding(raw.len(), size) {
        let known = "the notification and at most 7 bytes of padding";
        return Err(DecodeError::Layout { what, found: format!("{} bytes", raw.len()), known });
    }
    Ok(Sample { notification: Notification::decode(&raw[..size])?, packet: &[] })
}

/// Without the size that its program gave, nobody knows how long the fields are that a vendor appended.
fn refuse_extension(raw: &[u8], what: &'static str) -> Result<(), DecodeError> {
    match header::ext_version(raw) {
        0 => Ok(()),
        found => {
            let known =
                "`ext_version` 0 (no vendor's fields), or any where a probe in the kernel gives the size";
            Err(DecodeError::Layout { what, found: format!("`ext_version` {found}"), known })
        }
    }
}
