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

// Protobuf's wire format, by hand: a key is the field's number and the wire type, 0 a varint, 2 bytes with a length.

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub(crate) fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

pub(crate) fn nested(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    let bytes = parts.concat();
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes].concat()
}

pub(crate) fn text(field: u64, text: &str) -> Vec<u8> {
    nested(field, &[text.as_bytes().to_vec()])
}

/// Numbers of a repeated field, as proto3 sends them.
pub(crate) fn packed(field: u64, values: &[u64]) -> Vec<u8> {
    nested(field, &values.iter().map(|value| varint(*value)).collect::<Vec<_>>())
}

/// A message by its fields' numbers, whatever they are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message(Vec<(u64, Content)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    pub(crate) fn read(mut bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        let varint = |bytes: &mut &[u8]| {
            let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (taken, rest) = bytes.split_at(length);
            *bytes = rest;
            taken.iter().rev().fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f))
        };
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let content = match key & 7 {
                0 => Content::Number(varint(&mut bytes)),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (taken, rest) = bytes.split_at(length);
                    bytes = rest;
                    Content::Bytes(taken.to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, content));
        }
        Self(fields)
    }

    /// The numbers of the fields that there are.
    pub(crate) fn fields(&self) -> Vec<u64> {
        self.0.iter().map(|(field, _)| *field).collect()
    }

    /// A number, 0 if it is not there.
    pub(crate) fn number(&self, field: u64) -> u64 {
        let found = self.0.iter().rfind(|(own, _)| *own == field);
        found.map_or(0, |(_, content)| match content {
            Content::Number(number) => *number,
            Content::Bytes(_) => panic!("field {field} is no number"),
        })
    }

    fn all(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(own, _)| *own == field).map(move |(_, content)| match content {
            Content::Bytes(bytes) => bytes.as_slice(),
            Content::Number(_) => panic!("field {field} is a number"),
        })
    }

    /// Texts.
    pub(crate) fn texts(&self, field: u64) -> Vec<String> {
        self.all(field).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).collect()
    }

    /// Text, empty if it is not there.
    pub(crate) fn text(&self, field: u64) -> String {
        self.texts(field).pop().unwrap_or_default()
    }

    /// Messages.
    pub(crate) fn messages(&self, field: u64) -> Vec<Self> {
        self.all(field).map(Self::read).collect()
    }

    /// A message, if it is there.
    pub(crate) fn message(&self, field: u64) -> Option<Self> {
        self.messages(field).pop()
    }
}

/// A call of h2's own client, whose messages are read as they are.
pub(crate) struct Call {
    response: Option<h2::client::ResponseFuture>,
    head: http::HeaderMap,
    body: Option<h2::RecvStream>,
    buffer: Vec<u8>,
}

/// `grpc-status` and `grpc-message`.
pub(crate) type End = (String, String);

impl Call {
    /// Sends these bytes as a request's only message.
    pub(crate) async fn new(socket: &std::path::Path, path: &str, request: &[u8]) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        // As grpc-go's clients do it.
        let head = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("user-agent", "grpc-go/1.75.0")
            .header("grpc-accept-encoding", "gzip")
            .header("te", "trailers");
        let (response, mut body) = client.send_request(head.body(()).unwrap(), false).unwrap();
        body.send_data(framed(request).into(), true).unwrap();
        Self { response: Some(response), head: http::HeaderMap::new(), body: None, buffer: Vec::new() }
    }

    /// The next message, or how it ended. Cancelling the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Vec<u8>, End> {
        tokio::time::timeout(DEADLINE, self.take()).await.expect("the server answers")
    }

    async fn take(&mut self) -> Result<Vec<u8>, End> {
        if let Some(response) = &mut self.response {
            let (head, body) = response.await.unwrap().into_parts();
            (self.response, self.head, self.body) = (None, head.headers, Some(body));
        }
        let body = self.body.as_mut().unwrap();
        loop {
            if let Some((&[0, a, b, c, d], rest)) = self.buffer.split_first_chunk() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if rest.len() >= length {
                    let message = rest[..length].to_vec();
                    self.buffer.drain(..5 + length);
                    return Ok(message);
                }
            }
            let Some(chunk) = body.data().await else {
                let trailers = body.trailers().await.unwrap();
                return Err(end(&trailers.unwrap_or_else(|| self.head.clone())));
            };
            let chunk = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            self.buffer.extend(chunk);
        }
    }

    /// Every message to the end, and the status.
    pub(crate) async fn all(mut self) -> (Vec<Message>, End) {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Ok(message) => messages.push(Message::read(&message)),
                Err(end) => return (messages, end),
            }
        }
    }
}

fn end(headers: &http::HeaderMap) -> End {
    super::status::read(headers).expect("there is a status")
}
