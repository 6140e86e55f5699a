//! The answer to a request of HTTP/1.1, read by hand: nothing here needs more of the protocol than a length or chunks.

use std::io::{self, BufRead, Read};

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
        let too_long = || format!("the answer is longer than {limit} bytes");
        if let Length::Known(length) = self.length {
            ensure!(length <= limit, too_long());
        }
        let mut body = Vec::new();
        self.follow(reader).take(limit + 1).read_to_end(&mut body)?;
        ensure!(body.len() as u64 <= limit, too_long());
        Ok(body)
    }

    /// The body that follows, as it comes.
    pub fn follow<R: BufRead>(&self, reader: R) -> BodyReader<R> {
        let size = match self.length {
            Length::Known(length) => length,
            Length::Chunked => 0,
            Length::ToTheEnd => u64::MAX,
        };
        BodyReader { reader, length: self.length, size, left: size, begun: false, ended: false }
    }
}

/// A body as it comes: an end that comes too early is an error.
#[derive(Debug)]
pub struct BodyReader<R> {
    reader: R,
    length: Length,
    /// Bytes of it, or of the chunk that is read.
    size: u64,
    /// How many of them are still to come.
    left: u64,
    /// Whether a chunk was read.
    begun: bool,
    ended: bool,
}

impl<R: BufRead> BodyReader<R> {
    fn next_chunk(&mut self) -> Result<()> {
        let mut next = || line(&mut self.reader).context("the answer ends inside its chunks");
        if self.begun {
            let end = next()?;
            ensure!(end.is_empty(), "expected a chunk's end, found `{}`", shown(&end));
        }
        let size = next()?;
        let size = size.split(';').next().unwrap_or_default().trim();
        self.size = u64::from_str_radix(size, 16)
            .map_err(|_| anyhow!("expected a chunk's size, found `{}`", shown(size)))?;
        (self.left, self.begun, self.ended) = (self.size, true, self.size == 0);
        Ok(())
    }
}

impl<R: BufRead> BufRead for BodyReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && self.length == Length::Chunked && !self.ended {
            self.next_chunk().map_err(broken)?;
        }
        if self.left == 0 {
            return Ok(&[]);
        }
        let found = self.reader.fill_buf()?;
        if found.is_empty() && self.length != Length::ToTheEnd {
            let (size, read) = (self.size, self.size - self.left);
            return Err(broken(anyhow!("the answer ends after {read} bytes, expected {size}")));
        }
        Ok(&found[..found.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.left -= count as u64;
    }
}

impl<R: BufRead> Read for BodyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// What is wrong with an answer, unless it is the stream that failed.
fn broken(error: anyhow::Error) -> io::Error {
    match error.downcast::<io::Error>() {
        Ok(error) => error,
        Err(error) => io::Error::new(io::ErrorKind::InvalidData, format!("{error:#}")),
    }
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
