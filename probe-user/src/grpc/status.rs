//! How a call ended.

use core::fmt;

use http::{HeaderMap, HeaderValue};

/// The header of the code.
const STATUS: &str = "grpc-status";
/// The header of the words, percent-encoded.
const MESSAGE: &str = "grpc-message";
/// Words beyond this are cut: they travel in a header, and clients limit those.
const MESSAGE_MAX: usize = 1024;

/// gRPC's status codes, as far as plsprobe gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// It succeeded.
    Ok = 0,
    /// The client went away.
    Cancelled = 1,
    /// The request makes no sense, whatever the state of things.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// A limit was reached.
    ResourceExhausted = 8,
    /// There is no such method here.
    Unimplemented = 12,
    /// Something of ours broke.
    Internal = 13,
    /// Not now; it may be tried again.
    Unavailable = 14,
}

/// A code with words for whoever reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// Why, in words; empty for [`Code::Ok`].
    pub message: String,
}

impl Status {
    /// A status that is no success.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// There is no such method.
    pub fn unimplemented(method: &str) -> Self {
        Self::new(Code::Unimplemented, format!("there is no method `{method}` here"))
    }

    /// The client went away: nobody will read this.
    pub(super) fn gone() -> Self {
        Self::new(Code::Cancelled, "the client went away")
    }

    /// Writes it into headers or trailers.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from(self.code as u16));
        if !self.message.is_empty() {
            let end = self.message.floor_char_boundary(MESSAGE_MAX);
            let value = HeaderValue::try_from(encoded(&self.message[..end]));
            headers.insert(MESSAGE, value.expect("what is percent-encoded is printable ASCII"));
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (gRPC status {})", self.message, self.code as u8)
    }
}

/// What trailers say: the code and the words; `None` if they have no code.
pub(super) fn read(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Some((text(STATUS)?.to_owned(), decoded(text(MESSAGE).unwrap_or_default())))
}

fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value)]);
                encoded.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
            }
            plain => encoded.push(plain.into()),
        }
    }
    encoded
}

/// What is no encoding stays as it is, as the protocol asks.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (read, length) =
            if byte == b'%' { value.map_or((byte, 1), |value| (value, 3)) } else { (byte, 1) };
        decoded.push(read);
        at += length;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_header() {
        for words in ["", "plain", "100 % of `ü`\r\n\u{7f}", "%41", "a%"] {
            let mut headers = HeaderMap::new();
            Status::invalid(words).put(&mut headers);
            assert_eq!(read(&headers), Some(("3".to_owned(), words.to_owned())));
        }
        assert_eq!(encoded("50 %\n"), "50 %25%0A");
        assert_eq!(decoded("%zz%4"), "%zz%4", "no encoding");
        assert_eq!(decoded("%C3"), "\u{fffd}", "half a character");
    }

    #[test]
    fn words_are_cut() {
        let mut headers = HeaderMap::new();
        Status::invalid("ü".repeat(MESSAGE_MAX)).put(&mut headers);
        assert_eq!(read(&headers).unwrap().1, "ü".repeat(MESSAGE_MAX / 2));
        assert_eq!(read(&HeaderMap::new()), None);
    }
}
