//! One connection, and the calls on it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{PingPong, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::frame::{self, Refused};
use super::server::{Limits, RESETS_MAX, Server};
use super::{Code, Status};

/// Serves a connection until its end. `handshake` is given back once it speaks HTTP/2.
pub(super) async fn converse(
    server: &Server,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    handshake: OwnedSemaphorePermit,
) {
    let limits = server.inner().limits;
    let begun = time::timeout(limits.handshake, builder(limits).handshake(stream)).await;
    // Whoever connects and says nothing that is HTTP/2 is of no interest to an operator: a port scan, a health check.
    let Ok(Ok(mut connection)) = begun else { return };
    drop(handshake);
    let mut alive = pin!(alive(connection.ping_pong(), limits));
    let mut idle = pin!(time::sleep(limits.idle));
    let mut is_closing = false;
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, response))) => {
                    calls.spawn(answer(server.clone(), request, response));
                }
                // With the connection, every call on it ends.
                Some(Err(_)) | None => return,
            },
            Some(_) = calls.join_next() => idle.as_mut().reset(Instant::now() + limits.idle),
            () = &mut idle, if calls.is_empty() && !is_closing => {
                is_closing = true;
                connection.graceful_shutdown();
            }
            () = &mut alive => return,
        }
    }
}

fn builder(limits: Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.headers)
        .max_send_buffer_size(limits.unsent)
        .max_pending_accept_reset_streams(RESETS_MAX);
    builder
}

/// Ends when the client gives no sign of life: its machine is gone, or it reads nothing at all.
async fn alive(pings: Option<PingPong>, limits: Limits) {
    let mut pings = pings.expect("it is taken once");
    loop {
        time::sleep(limits.ping_every).await;
        let pong = pings.ping(h2::Ping::opaque());
        if !matches!(time::timeout(limits.pong_within, pong).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Answers one call.
async fn answer(server: Server, request: Request<RecvStream>, mut response: SendResponse<Bytes>) {
    let (head, body) = request.into_parts();
    if let Err(status) = is_grpc(&head.method, &head.headers) {
        let mut refusal = Response::new(());
        *refusal.status_mut() = status;
        drop(response.send_response(refusal, true));
        return;
    }
    let half = Arc::new(Mutex::new(Half::Unanswered(response)));
    let mut sender = Sender(Arc::clone(&half));
    let work = async {
        let inner = server.inner();
        let Ok(_permit) = inner.calls.try_acquire() else {
            let limit = inner.limits.calls;
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("{limit} calls are open, which is the limit"),
            ));
        };
        let request = time::timeout(inner.limits.request_time, request_of(body, inner.limits.request));
        let request = request
            .await
            .map_err(|_| Status::new(Code::DeadlineExceeded, "the request did not come in time"))??;
        let path = head.uri.path();
        let (service, method) =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
        let service = server.service(service).ok_or_else(|| Status::unimplemented(path))?;
        service.call(method, request, &mut sender).await
    };
    let outcome = tokio::select! {
        biased;
        () = std::future::poll_fn(|cx| lock(&half).poll_gone(cx)) => return,
        outcome = work => outcome,
    };
    lock(&half).end(&outcome.err().unwrap_or_else(|| Status::new(Code::Ok, "")));
}

/// Or the HTTP status that says what it is instead.
fn is_grpc(method: &Method, headers: &HeaderMap) -> Result<(), StatusCode> {
    if method != Method::POST {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let kind = headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    match kind.strip_prefix(b"application/grpc") {
        Some([] | [b'+' | b';', ..]) => Ok(()),
        _ => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    }
}

/// The one message of a request.
async fn request_of(mut body: RecvStream, max: usize) -> Result<Bytes, Status> {
    let mut buffer = BytesMut::new();
    let mut message = None;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|_| Status::gone())?;
        drop(body.flow_control().release_capacity(chunk.len()));
        buffer.extend_from_slice(&chunk);
        if message.is_none() {
            message = frame::unframed(&mut buffer, max)?;
        }
        if message.is_some() && !buffer.is_empty() {
            return Err(Status::invalid("the call has more than one message; expected one"));
        }
    }
    let found = if buffer.is_empty() { "none" } else { "a part of one" };
    message.ok_or_else(|| Status::invalid(format!("the call has {found} message; expected a whole one")))
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Compressed => {
                Self::new(Code::Unimplemented, "the message is compressed; expected it as it is")
            }
            Refused::TooLong(length) => Self::new(
                Code::ResourceExhausted,
                format!("the message has {length} bytes, which is too many"),
            ),
        }
    }
}

/// What every answer begins with.
fn head() -> Response<()> {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    head
}

/// Takes what a call is answered with, as fast as the client does.
#[derive(Debug)]
pub struct Sender(Arc<Mutex<Half>>);

impl Sender {
    /// Sends a message; returns when what is left of it to be sent is no more than a client may leave unread.
    ///
    /// # Errors
    ///
    /// When the client went away.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), Status> {
        let mut rest = frame::framed(message);
        lock(&self.0).open()?;
        while !rest.is_empty() {
            let capacity = std::future::poll_fn(|cx| lock(&self.0).poll_capacity(cx, rest.len())).await?;
            let part = rest.split_to(capacity.min(rest.len()));
            lock(&self.0).send(part)?;
        }
        Ok(())
    }
}

/// Our half of a call.
#[derive(Debug)]
enum Half {
    Unanswered(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
}

fn lock(half: &Mutex<Half>) -> MutexGuard<'_, Half> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Half {
    /// Ready when the client reset the call, or the connection broke.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match self {
            Self::Unanswered(response) => response.poll_reset(cx),
            Self::Open(stream) => stream.poll_reset(cx),
        };
        reset.map(|_| ())
    }

    fn open(&mut self) -> Result<&mut SendStream<Bytes>, Status> {
        if let Self::Unanswered(response) = self {
            *self = Self::Open(response.send_response(head(), false).map_err(|_| Status::gone())?);
        }
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Unanswered(_) => unreachable!("it was opened above"),
        }
    }

    /// How many bytes the client and our own buffer take now; ready when it is one at least.
    fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Status>> {
        let stream = self.open()?;
        stream.reserve_capacity(wanted);
        loop {
            match stream.capacity() {
                0 => match std::task::ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(Status::gone())),
                },
                capacity => return Poll::Ready(Ok(capacity)),
            }
        }
    }

    fn send(&mut self, part: Bytes) -> Result<(), Status> {
        self.open()?.send_data(part, false).map_err(|_| Status::gone())
    }

    fn end(&mut self, status: &Status) {
        // That the client went away in the meantime is its affair.
        match self {
            Self::Unanswered(response) => {
                let mut head = head();
                status.put(head.headers_mut());
                drop(response.send_response(head, true));
            }
            Self::Open(stream) => {
                let mut trailers = HeaderMap::new();
                status.put(&mut trailers);
                drop(stream.send_trailers(trailers));
            }
        }
    }
}
