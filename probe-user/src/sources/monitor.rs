//! The agent's monitor socket: Cilium's own verdicts, drops and traces as they happen, without touching its perf buffer.
//!
//! The client only connects and reads. While nobody listens (and Hubble is off) the agent reads no events at all, so a
//! connection costs it some CPU, and events from before the connection are not to be had. The agent queues a bounded number
//! of events per listener and drops the rest silently: read promptly.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use probe_model::cilium::gob::Decoder;
use tokio::{io::AsyncReadExt as _, net::UnixStream};

use super::unusable::Unusable;

pub use probe_model::cilium::gob::Payload;

/// The socket's name in the agent's run directory, since Cilium 1.2.
pub const SOCKET: &str = "monitor1_2.sock";

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// A connection to the agent's monitor socket.
#[derive(Debug)]
pub struct Monitor {
    path: PathBuf,
    stream: UnixStream,
    decoder: Decoder,
    chunk: Box<[u8]>,
    samples: u64,
    lost: u64,
}

impl Monitor {
    /// Connects to the socket at `path`: [`SOCKET`] in the agent's run directory.
    ///
    /// # Errors
    ///
    /// When there is no socket, nobody accepts, or this user may not.
    pub async fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).await.map_err(|error| refused(path, error))?;
        let (decoder, chunk) = (Decoder::new(), vec![0; CHUNK].into_boxed_slice());
        Ok(Self { path: path.to_owned(), stream, decoder, chunk, samples: 0, lost: 0 })
    }

    /// The next value, or `None` when the agent closed the connection after a whole one, as it does when it stops.
    ///
    /// Cancelling the future loses nothing: it may stand in `tokio::select!`.
    ///
    /// # Errors
    ///
    /// When the connection broke, or what it carries is no monitor stream. Connect anew then.
    pub async fn next(&mut self) -> Result<Option<Payload>> {
        loop {
            let next = self.decoder.next();
            if let Some(payload) = next.with_context(|| self.failed("decode"))? {
                match &payload {
                    Payload::Sample { .. } => self.samples += 1,
                    Payload::Lost { count, .. } => self.lost = self.lost.saturating_add(*count),
                    Payload::Unknown { .. } => {}
                }
                return Ok(Some(payload));
            }
            let read = self.stream.read(&mut self.chunk).await.with_context(|| self.failed("read"))?;
            if read == 0 {
                return self.closed();
            }
            self.decoder.feed(&self.chunk[..read]);
        }
    }

    /// Events received so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Events that the agent says it lost before they reached any listener.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn closed(&self) -> Result<Option<Payload>> {
        match self.decoder.pending() {
            0 => Ok(None),
            left => {
                bail!("the agent closed `{}` inside a message, {left} bytes of it read", self.path.display())
            }
        }
    }

    fn failed(&self, what: &str) -> String {
        format!("failed to {what} `{}`", self.path.display())
    }
}

/// Why a socket of the agent's could not be connected, with the next step.
pub(crate) fn refused(path: &Path, error: io::Error) -> anyhow::Error {
    let shown = path.display();
    let (found, next) = match error.kind() {
        io::ErrorKind::NotFound => (
            format!("no socket at `{shown}`"),
            "is the cilium-agent running on this node, is `--cilium-run` right?",
        ),
        io::ErrorKind::ConnectionRefused => {
            (format!("nobody listens on `{shown}`"), "the cilium-agent has stopped, look at its pod")
        }
        io::ErrorKind::PermissionDenied => (format!("no permission to connect to `{shown}`"), "run as root"),
        _ => return anyhow::Error::new(error).context(format!("failed to connect to `{shown}`")),
    };
    Unusable::new(found, next).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::{io::AsyncWriteExt as _, net::UnixListener};

    use super::*;

    /// Serves `bytes` in chunks of `size` to the first client, then closes; returns all the client saw.
    async fn served(bytes: &[u8], size: usize) -> (Vec<Payload>, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            for chunk in bytes.chunks(size) {
                // The client hangs up on what it cannot decode.
                if stream.write_all(chunk).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let read = async {
            let mut monitor = Monitor::connect(&path).await.unwrap();
            let mut payloads = Vec::new();
            loop {
                match monitor.next().await {
                    Ok(Some(payload)) => payloads.push(payload),
                    Ok(None) => break (payloads, Ok(())),
                    Err(error) => break (payloads, Err(error)),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(serve, read).1 }).await.unwrap()
    }

    fn recording() -> Vec<u8> {
        fs::read(fixtures::recording("cilium-1.14").join("deny-all/events/events.bin")).unwrap()
    }

    #[tokio::test]
    async fn a_recording_arrives_whole() {
        let bytes = recording();
        let jsonl = fixtures::recording("cilium-1.14").join("deny-all/events/events.jsonl");
        let lines = fs::read_to_string(jsonl).unwrap().lines().count();
        for size in [5, 1000, bytes.len()] {
            let (payloads, end) = served(&bytes, size).await;
            end.unwrap();
            assert_eq!(payloads.len(), lines, "in chunks of {size}");
        }
    }

    #[tokio::test]
    async fn a_connection_cut_inside_a_message() {
        let bytes = recording();
        let (payloads, end) = served(&bytes[..bytes.len() - 3], 4096).await;
        assert!(!payloads.is_empty());
        let error = end.unwrap_err().to_string();
        assert!(error.starts_with("the agent closed `") && error.ends_with(" of it read"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_monitor_stream() {
        let (payloads, end) = served(b"HTTP/1.1 400 Bad Request\r\n\r\nthis is another protocol altogether, with enough bytes for a first message", 7).await;
        assert!(payloads.is_empty());
        let error = format!("{:#}", end.unwrap_err());
        assert!(error.starts_with("failed to decode `"), "{error}");
        assert!(error.contains("gob"), "{error}");
    }

    #[tokio::test]
    async fn no_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let error = Monitor::connect(&path).await.unwrap_err().to_string();
        assert!(error.contains("no socket at `") && error.contains("cilium-agent"), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        let error = Monitor::connect(&path).await.unwrap_err().to_string();
        assert!(error.contains("nobody listens on `"), "{error}");
    }
}
