//! Frames of WebSocket, a client's side: what a server sends is taken apart, what is sent is masked.
//!
//! Nothing here reads or writes. Source: RFC 6455, sections 1.3, 5.2 and 5.5.

use anyhow::{Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use ring::digest;

/// A frame that says it is longer is refused: Kubernetes copies 32 KiB at a time.
pub(in crate::sources) const FRAME_MAX: u64 = 1 << 20;
/// Control frames are no longer. Source: section 5.5.
const CONTROL_MAX: u64 = 125;
/// Instead of a length: it follows in two bytes, or in eight.
const SHORT: u8 = 0x7e;
const LONG: u8 = 0x7f;
/// The bit beside the length of a masked frame.
const MASKED: u8 = 0x80;
/// What both sides add to the key. Source: section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a frame is. The numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) enum Opcode {
    /// More of the message that began before.
    Continuation = 0,
    /// The beginning of a message of text.
    Text = 1,
    /// The beginning of a message of bytes.
    Binary = 2,
    /// The end.
    Close = 8,
    /// A question whether the other side is there.
    Ping = 9,
    /// The answer to it.
    Pong = 10,
}

impl Opcode {
    fn from_number(number: u8) -> Result<Self> {
        let all = [Self::Continuation, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong];
        match all.into_iter().find(|opcode| *opcode as u8 == number) {
            Some(opcode) => Ok(opcode),
            None => bail!("found a frame of kind {number}, which WebSocket does not have"),
        }
    }

    fn is_control(self) -> bool {
        self as u8 >= Self::Close as u8
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Frame {
    /// What it is.
    pub(in crate::sources) opcode: Opcode,
    /// Whether its message ends with it.
    pub(in crate::sources) is_last: bool,
    /// What it holds.
    pub(in crate::sources) payload: Bytes,
}

/// Bytes in, frames out.
#[derive(Debug, Default)]
pub(in crate::sources) struct Decoder {
    buffer: BytesMut,
    /// Whether a message has begun and not ended.
    in_message: bool,
}

impl Decoder {
    /// Takes bytes as they come.
    pub(in crate::sources) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    ///
    /// For bytes that no server may send.
    pub(in crate::sources) fn next(&mut self) -> Result<Option<Frame>> {
        let Some(&[first, second]) = self.buffer.first_chunk::<2>() else { return Ok(None) };
        let opcode = Opcode::from_number(first & 0x0f)?;
        let is_last = first & 0x80 != 0;
        ensure!(first & 0x70 == 0, "found a frame of an extension that was not asked for");
        ensure!(second & MASKED == 0, "found a masked frame, which a server does not send");
        let Some((length, head)) = self.length(second & 0x7f) else { return Ok(None) };
        if opcode.is_control() {
            ensure!(is_last && length <= CONTROL_MAX, "found a control frame in parts or of {length} bytes");
        } else {
            let continues = opcode == Opcode::Continuation;
            ensure!(continues == self.in_message, "found a message inside another, or the rest of none");
        }
        ensure!(length <= FRAME_MAX, "found a frame of {length} bytes, at most {FRAME_MAX} are read");
        let length = length as usize;
        if self.buffer.len() < head + length {
            return Ok(None);
        }
        if !opcode.is_control() {
            self.in_message = !is_last;
        }
        self.buffer.advance(head);
        Ok(Some(Frame { opcode, is_last, payload: self.buffer.split_to(length).freeze() }))
    }

    /// How long the payload is, and what stands before it.
    fn length(&self, short: u8) -> Option<(u64, usize)> {
        let rest = &self.buffer[2..];
        match short {
            SHORT => rest.first_chunk().map(|bytes| (u16::from_be_bytes(*bytes).into(), 4)),
            LONG => rest.first_chunk().map(|bytes| (u64::from_be_bytes(*bytes), 10)),
            short => Some((short.into(), 2)),
        }
    }
}

/// A whole message in one frame, masked as a client must.
pub(in crate::sources) fn encode(opcode: Opcode, mask: [u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(length + 14);
    frame.push(0x80 | opcode as u8);
    match length {
        0..126 => frame.push(MASKED | length as u8),
        126..0x1_0000 => {
            frame.push(MASKED | SHORT);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(MASKED | LONG);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    let bytes = parts.iter().flat_map(|part| part.iter());
    frame.extend(bytes.zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The key that a client asks with, of 16 random bytes.
pub(in crate::sources) fn key(random: [u8; 16]) -> String {
    base64(&random)
}

/// What a server answers to a key.
pub(in crate::sources) fn accept(key: &str) -> String {
    let answer = format!("{key}{GUID}");
    base64(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, answer.as_bytes()).as_ref())
}

/// Base64 with padding. Source: RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        let digit =
            |idx| if idx > group.len() { '=' } else { DIGITS[(bits >> (18 - 6 * idx)) as usize & 63].into() };
        [0, 1, 2, 3].map(digit)
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of `bytes` that come in pieces of `piece`, or why not.
    fn decoded(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, String> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(frame) = decoder.next().map_err(|error| error.to_string())? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn frame(opcode: Opcode, is_last: bool, payload: &[u8]) -> Frame {
        Frame { opcode, is_last, payload: Bytes::copy_from_slice(payload) }
    }

    /// The examples of RFC 6455, section 5.7, and lengths at their limits, in pieces of every size.
    #[test]
    fn frames_of_a_server() {
        let fragments = [&[0x01, 0x03][..], b"Hel", &[0x89, 0x05], b"Hello", &[0x80, 0x02], b"lo"].concat();
        let expected = [
            frame(Opcode::Text, false, b"Hel"),
            frame(Opcode::Ping, true, b"Hello"),
            frame(Opcode::Continuation, true, b"lo"),
        ];
        for piece in [1, 2, 3, 100] {
            assert_eq!(decoded(&fragments, piece).unwrap(), expected);
        }
        let long = vec![7; 300];
        let bytes = [&[0x82, 126, 1, 44][..], &long].concat();
        assert_eq!(decoded(&bytes, 5).unwrap(), [frame(Opcode::Binary, true, &long)]);
        let longest = vec![7; FRAME_MAX as usize];
        let bytes = [&[0x82, 127][..], &FRAME_MAX.to_be_bytes(), &longest].concat();
        assert_eq!(decoded(&bytes, 65_536).unwrap(), [frame(Opcode::Binary, true, &longest)]);
    }

    #[test]
    fn what_no_server_may_send() {
        let too_long = [&[0x82, 127][..], &(FRAME_MAX + 1).to_be_bytes()].concat();
        for (bytes, expected) in [
            (&[0x83, 0][..], "found a frame of kind 3, which WebSocket does not have"),
            (&[0xc2, 0], "found a frame of an extension that was not asked for"),
            (&[0x82, 0x81, 0, 0, 0, 0, 1], "found a masked frame, which a server does not send"),
            (&[0x09, 0], "found a control frame in parts or of 0 bytes"),
            (&[0x89, 126, 0, 126], "found a control frame in parts or of 126 bytes"),
            (&[0x80, 0], "found a message inside another, or the rest of none"),
            (&[0x02, 0, 0x82, 0], "found a message inside another, or the rest of none"),
            (&too_long, "found a frame of 1048577 bytes, at most 1048576 are read"),
        ] {
            assert_eq!(decoded(bytes, 1).unwrap_err(), expected, "{bytes:x?}");
        }
    }

    /// The examples of RFC 6455, sections 5.7 and 1.3.
    #[test]
    fn what_a_client_sends() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(encode(Opcode::Text, mask, &[b"He", b"llo"]), hello);
        assert_eq!(encode(Opcode::Binary, mask, &[&[0; 126]])[..4], [0x82, 0xfe, 0, 126]);
        assert_eq!(
            encode(Opcode::Binary, mask, &[&vec![0; 65_536]])[..10],
            [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]
        );
        assert_eq!(key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
