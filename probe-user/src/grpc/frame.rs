//! Messages as they lie in a stream: a flag of one byte and a length of four stand before each.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

/// Bytes before a message.
pub(super) const PREFIX: usize = 5;

/// What is no message that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is compressed.
    Compressed,
    /// It says that it is so long.
    TooLong(usize),
}

/// A message with its prefix.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

/// Takes the first message if it is whole. One of more than `max` bytes is refused as soon as it says so.
pub(super) fn unframed(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Refused> {
    let Some(&[is_compressed, a, b, c, d]) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if is_compressed != 0 {
        return Err(Refused::Compressed);
    }
    if length > max {
        return Err(Refused::TooLong(length));
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}
