//! Streams that give up at a point in time, however slowly the bytes come.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// A blocking stream whose calls can be bounded.
pub trait Bounded: Read + Write {
    /// Bounds the next reads and writes.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn bound(&self, time: Duration) -> io::Result<()>;
}

impl Bounded for UnixStream {
    fn bound(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Bounded for TcpStream {
    fn bound(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// A stream that gives up at a point in time.
pub struct Timed<S> {
    /// The stream.
    pub stream: S,
    /// When it gives up.
    pub deadline: Instant,
}

impl<S: Bounded> Timed<S> {
    fn bound(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.bound(left)
    }
}

impl<S: Bounded> Read for Timed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bound()?;
        self.stream.read(buffer)
    }
}

impl<S: Bounded> Write for Timed<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bound()?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Whether the error is a stream's that gave up.
pub fn timed_out(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
        // A socket's own time-outs say `WouldBlock`.
        matches!(cause.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
    })
}
