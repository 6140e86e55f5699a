//! A server in a folder of the test's own, and clients that speak HTTP/2 and protobuf by hand: what they send and read
//! is checked against what is published, not against ourselves.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::server::{Limits, Server, Service};
use super::unix::Socket;

/// How long something may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Serves on a unix socket until it is dropped.
pub(crate) struct Served {
    /// The socket.
    pub(crate) path: PathBuf,
    /// What the operator was told.
    pub(crate) notices: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    pub(crate) async fn start(services: Vec<(&'static str, Arc<dyn Service>)>, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let server = Server::new(services, limits, Arc::new(move |line| told.lock().unwrap().push(line)));
        let socket = Socket::bind(&path, None).await.unwrap();
        let task = tokio::spawn(async move {
            server.serve_unix(&socket.listener).await;
        });
        Self { path, notices, task, _folder: folder }
    }

    pub(crate) async fn raw(&self) -> Raw<UnixStream> {
        Raw::over(UnixStream::connect(&self.path).await.unwrap()).await
    }
}

/// A frame of HTTP/2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A client without any manners but those it is given. Source: RFC 9113 and RFC 7541.
pub(crate) struct Raw<S>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Sends what a client begins with, with windows that never close.
    pub(crate) async fn over(stream: S) -> Self {
        let mut raw = Self(stream);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE.
        raw.send(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
        raw.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).await;
        raw
    }

    /// What the server does not read any more is lost, as it is to every client.
    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        let frame = [length, &[kind, flags], &stream.to_be_bytes(), payload].concat();
        drop(self.0.write_all(&frame).await);
    }

    /// A call's headers; the request is still to come.
    pub(crate) async fn call(&mut self, stream: u32, path: &str) {
        // `:method: POST` and `:scheme: http` of the static table; the rest by name, without an index.
        let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
        block.extend(path.as_bytes());
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
            block.extend([0, name.len() as u8]);
            block.extend(name.as_bytes());
            block.push(value.len() as u8);
            block.extend(value.as_bytes());
        }
        self.send(HEADERS, END_HEADERS, stream, &block).await;
    }

    /// A message of a call, its last.
    pub(crate) async fn message(&mut self, stream: u32, message: &[u8]) {
        self.send(DATA, END_STREAM, stream, &framed(message)).await;
    }

    /// The next frame, or `None` when the server has closed.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        let reading = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
        };
        tokio::time::timeout(DEADLINE, reading).await.expect("the server says something, or closes")
    }

    /// The next frame that it holds for.
    pub(crate) async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.frame().await.expect("the connection is open");
            if wanted(&frame) {
                return frame;
            }
        }
    }
}

/// A message with its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], (message.len() as u32).to_be_bytes().as_slice(), message].concat()
}
