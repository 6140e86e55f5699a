//! The answer to a request of HTTP/1.1, read by hand: nothing here needs more of the protocol than a length or chunks.

use std::io::{BufRead, Read as _};

use anyhow::{Context as _, Result, anyhow, ensure};

/// Status line and headers longer than this are refused.
const MAX_HEAD: u64 = 64 << 10;
/// How much of foreign text is repeated.
const MAX_SHOWN: usize = 200;

/// Status line and headers.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The status with its phrase, as in `404 Not Found`.
    pub reason: String,
    headers: Vec<(String, String)>,
    length: Length,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Known(u64),
    Chunked,
    ToTheEnd,
}

impl Head {
    /// Reads it, up to the empty line.
    ///
    /// # Errors
    ///
    /// If it is no head of HTTP/1.1, or its end is not there.
    pub fn read(reader: &mut impl BufRead) -> Result<Self> {
        let mut reader = reader.take(MAX_HEAD);
        let status_line = line(&mut reader).context("no HTTP answer")?;
        let reason = status_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split_once(' '))
            .map(|(_, reason)| reason.to_owned())
            .ok_or_else(|| anyhow!("expected an HTTP/1.1 status, found `{}`", shown(&status_line)))?;
        let status = reason
            .split(' ')
            .next()
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| anyhow!("expected an HTTP status, found `{}`", shown(&reason)))?;
        let mut head = Self { status, reason, headers: Vec::new(), length: Length::ToTheEnd };
        loop {
            let header = line(&mut reader).context("the answer ends inside its headers")?;
            if header.is_empty() {
                head.length = head.length()?;
                return Ok(head);
            }
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| anyhow!("expected an HTTP header, found `{}`", shown(&header)))?;
            head.headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The value of a header, by its name in any case; of several the first.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> Result<Length> {
        if let Some(encoding) = self.header("transfer-encoding") {
            let is_chunked = encoding.eq_ignore_ascii_case("chunked");
            ensure!(is_chunked, "unknown transfer encoding `{}`", shown(encoding));
            return Ok(Length::Chunked);
        }
        let Some(length) = self.header("content-length") else { return Ok(Length::ToTheEnd) };
        let bytes = length.parse();
        Ok(Length::Known(bytes.map_err(|_| anyhow!("content length `{}` is no number", shown(length)))?))
    }

    /// Reads the body that follows, of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// If it is longer, or ends before it should.
    pub fn body(&self, reader: &mut impl BufRead, limit: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        match self.length {
            Length::Known(length) => read_exactly(reader, length, limit, &mut body)?,
            Length::Chunked => loop {
                let size = line(reader).context("the answer ends inside its chunks")?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16)
                    .map_err(|_| anyhow!("expected a chunk's size, found `{}`", shown(size)))?;
                read_exactly(reader, size, limit, &mut body)?;
                if size == 0 {
                    break;
                }
                let end = line(reader).context("the answer ends inside its chunks")?;
                ensure!(end.is_empty(), "expected a chunk's end, found `{}`", shown(&end));
            },
            Length::ToTheEnd => {
                reader.take(limit + 1).read_to_end(&mut body)?;
                ensure!(body.len() as u64 <= limit, too_long(limit));
            }
        }
        Ok(body)
    }
}

/// Appends `length` bytes, or says how many there were.
fn read_exactly(reader: &mut impl BufRead, length: u64, limit: u64, body: &mut Vec<u8>) -> Result<()> {
    ensure!(length <= limit.saturating_sub(body.len() as u64), too_long(limit));
    let read = reader.take(length).read_to_end(body)? as u64;
    ensure!(read == length, "the answer ends after {read} bytes, expected {length}");
    Ok(())
}

fn too_long(limit: u64) -> String {
    format!("the answer is longer than {limit} bytes")
}

/// One line without its end. A stream that ends before the line does is an error.
pub(crate) fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.take(MAX_HEAD).read_until(b'\n', &mut line)?;
    ensure!(line.pop() == Some(b'\n'), "the connection ended or a line is longer than {MAX_HEAD} bytes");
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Foreign text, cut and without control characters.
pub fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
