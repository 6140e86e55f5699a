//! The side that calls.
//!
//! A library would bring a balancer, a pool and reconnecting of its own, which one connection has no use for.

use core::fmt;
use std::marker::PhantomData;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::frame::{self, Refused};
use super::status;

/// A message that says it is longer is refused: the longest flow takes some kilobytes.
const MESSAGE_MAX: usize = 4 << 20;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status, if the server gave one: numbers as in [`super::Code`].
    pub code: Option<u8>,
    /// In the words of whoever failed; they may come from the network.
    pub words: String,
}

impl Failure {
    fn new(words: impl Into<String>) -> Self {
        Self { code: None, words: words.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// What messages that are not read yet may take beside their own bytes, as h2 counts it: 255 bytes for one of a byte. With
/// a window of 64 KiB no server comes to more. h2's own limit ends a connection with a hundred short lines unread.
const UNREAD_OVERHEAD: usize = 16 << 20;

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client(SendRequest<Bytes>);

impl Client {
    /// Connects to the socket at `path`; the connection is kept until the client and its answers are dropped.
    ///
    /// # Errors
    ///
    /// When nobody accepts there.
    pub async fn connect(path: &Path) -> std::io::Result<Self> {
        Self::over(UnixStream::connect(path).await?).await
    }

    /// Speaks over a stream that is open.
    ///
    /// # Errors
    ///
    /// When it is not open any more.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> std::io::Result<Self> {
        let mut builder = h2::client::Builder::new();
        builder.data_frame_budget(UNREAD_OVERHEAD);
        let (client, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
        // How it ends, every open answer says too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(client))
    }

    /// Calls `method` (`/package.Service/Method`) with one message.
    ///
    /// # Errors
    ///
    /// When the connection broke. What the server refuses, the answers say.
    pub async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<Answers<M>, Failure> {
        let mut client = self.0.clone().ready().await?;
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| Failure::new(error.to_string()))?;
        let (response, mut body) = client.send_request(request, false)?;
        body.send_data(frame::framed(message), true)?;
        Ok(Answers { state: State::Called(response), buffer: BytesMut::new(), message: PhantomData })
    }

    /// Calls `method` for the one message that it answers with.
    ///
    /// # Errors
    ///
    /// When the connection broke, or the server refuses.
    pub async fn ask<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<M, Failure> {
        let answer = self.call(method, message).await?.next().await?;
        answer.ok_or_else(|| Failure::new("the answer is empty"))
    }
}

enum State {
    /// The server sends its header with its first message.
    Called(ResponseFuture),
    Open(RecvStream),
}

/// What a call is answered with.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Answers<M> {
    state: State,
    /// Bytes that are no whole message yet.
    buffer: BytesMut,
    message: PhantomData<M>,
}

impl<M: Message + Default> Answers<M> {
    /// The next message, or `None` after the last of a call that succeeded.
    ///
    /// Cancelling the future loses nothing.
    ///
    /// # Errors
    ///
    /// When the connection broke, the call failed, or what came is not a message of this kind.
    pub async fn next(&mut self) -> Result<Option<M>, Failure> {
        loop {
            let stream = match &mut self.state {
                State::Called(response) => {
                    let response = response.await?;
                    if response.status() != http::StatusCode::OK {
                        return Err(Failure::new(format!("HTTP status {}", response.status())));
                    }
                    // Without any message the status may stand here.
                    if response.headers().contains_key("grpc-status") {
                        return succeeded(response.headers()).map(|()| None);
                    }
                    self.state = State::Open(response.into_body());
                    continue;
                }
                State::Open(stream) => stream,
            };
            if let Some(message) = frame::unframed(&mut self.buffer, MESSAGE_MAX)? {
                return M::decode(message).map(Some).map_err(|error| Failure::new(error.to_string()));
            }
            match stream.data().await {
                Some(chunk) => {
                    let chunk = chunk?;
                    stream.flow_control().release_capacity(chunk.len())?;
                    self.buffer.extend_from_slice(&chunk);
                }
                None if self.buffer.is_empty() => {
                    let trailers = stream.trailers().await?;
                    return succeeded(&trailers.unwrap_or_default()).map(|()| None);
                }
                None => return Err(Failure::new("it ended inside a message")),
            }
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Compressed => Self::new("it sends compressed messages, which were not asked for"),
            Refused::TooLong(length) => {
                Self::new(format!("it announces a message of {length} bytes, at most {MESSAGE_MAX} are read"))
            }
        }
    }
}

/// Whether a call's status is 0.
fn succeeded(trailers: &HeaderMap) -> Result<(), Failure> {
    let (code, mut words) =
        status::read(trailers).ok_or_else(|| Failure::new("it ended without a status"))?;
    if code == "0" {
        return Ok(());
    }
    if words.is_empty() {
        words = format!("gRPC status {code}");
    }
    Err(Failure { code: code.parse().ok(), words })
}
