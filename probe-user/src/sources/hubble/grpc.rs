//! As much of gRPC as a client over a unix socket needs: one message out, one or many back.
//!
//! A library would bring a balancer, a pool and reconnecting of its own, which a local socket has no use for.
//!
//! Source: gRPC's `doc/PROTOCOL-HTTP2.md`.

use core::fmt;
use std::marker::PhantomData;
use std::path::Path;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// A message that says it is longer is refused: the longest flow takes some kilobytes.
const MESSAGE_MAX: usize = 4 << 20;
/// A flag of one byte and a length of four stand before every message.
const PREFIX: usize = 5;

/// Why there is no answer, in the words of whoever failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self(error.to_string())
    }
}

/// A connection to a server.
#[derive(Clone, Debug)]
pub(super) struct Client(SendRequest<Bytes>);

impl Client {
    /// Connects to the socket at `path`; the connection is kept until the client and its answers are dropped.
    pub(super) async fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let (client, connection) = h2::client::handshake(stream).await.map_err(std::io::Error::other)?;
        // How it ends, every open answer says too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(client))
    }

    /// Calls `method` (`/package.Service/Method`) with one message.
    pub(super) async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<Answers<M>, Failure> {
        let mut client = self.0.clone().ready().await?;
        let request = Request::post(format!("http://localhost{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| Failure(error.to_string()))?;
        let (response, mut body) = client.send_request(request, false)?;
        let encoded = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend((encoded.len() as u32).to_be_bytes());
        framed.extend(encoded);
        body.send_data(framed.into(), true)?;
        Ok(Answers { state: State::Called(response), buffer: BytesMut::new(), message: PhantomData })
    }

    /// Calls `method` for the one message that it answers with.
    pub(super) async fn ask<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
    ) -> Result<M, Failure> {
        let answer = self.call(method, message).await?.next().await?;
        answer.ok_or_else(|| Failure("the answer is empty".to_owned()))
    }
}

enum State {
    /// The server sends its header with its first message.
    Called(ResponseFuture),
    Open(RecvStream),
}

/// What a call is answered with.
pub(super) struct Answers<M> {
    state: State,
    /// Bytes that are no whole message yet.
    buffer: BytesMut,
    message: PhantomData<M>,
}

impl<M: Message + Default> Answers<M> {
    /// The next message, or `None` after the last of a call that succeeded.
    ///
    /// Cancelling the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Failure> {
        loop {
            let stream = match &mut self.state {
                State::Called(response) => {
                    let response = response.await?;
                    if response.status() != http::StatusCode::OK {
                        return Err(Failure(format!("HTTP status {}", response.status())));
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
            if let Some(message) = unframed(&mut self.buffer)? {
                return M::decode(message).map(Some).map_err(|error| Failure(error.to_string()));
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
                None => return Err(Failure("it ended inside a message".to_owned())),
            }
        }
    }
}

/// Takes the first whole message.
fn unframed(buffer: &mut BytesMut) -> Result<Option<Bytes>, Failure> {
    let Some(&[is_compressed, a, b, c, d]) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if is_compressed != 0 {
        return Err(Failure("it sends compressed messages, which were not asked for".to_owned()));
    }
    if length > MESSAGE_MAX {
        return Err(Failure(format!(
            "it announces a message of {length} bytes, at most {MESSAGE_MAX} are read"
        )));
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Whether a call's status is 0.
fn succeeded(trailers: &HeaderMap) -> Result<(), Failure> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    match (text("grpc-status"), text("grpc-message")) {
        (Some("0"), _) => Ok(()),
        (Some(status), None | Some("")) => Err(Failure(format!("gRPC status {status}"))),
        (Some(_), Some(message)) => Err(Failure(message.to_owned())),
        (None, _) => Err(Failure("it ended without a status".to_owned())),
    }
}
