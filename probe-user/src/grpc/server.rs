//! The side that answers: which services there are, who may connect, and how much of everything one may have.

use core::fmt;
use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time;

use super::Status;
pub use super::connection::Sender;
use super::connection::converse;
use super::tls::Tls;

/// How much one may have. What is over a limit is refused; nothing waits in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one listener.
    pub connections: usize,
    /// Of them, those that have not yet said who they are.
    pub handshakes: usize,
    /// Calls that are open on one connection.
    pub streams: u32,
    /// Calls that are open in all, on every listener.
    pub calls: usize,
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a request's headers.
    pub headers: u32,
    /// Bytes of a call's answers that wait for the client.
    pub unsent: usize,
    /// How long a connection may take to begin: TLS, and the first bytes of HTTP/2.
    pub handshake: Duration,
    /// How long a request may take to come.
    pub request_time: Duration,
    /// How long a connection may be without a call.
    pub idle: Duration,
    /// How long after the last sign of life a client is asked for one.
    pub ping_every: Duration,
    /// How long it may take to give it.
    pub pong_within: Duration,
}

impl Limits {
    /// For an agent of 32 MB. All calls together hold 128 requests of 64 KiB and as many unsent answers of 32 KiB at
    /// most: 12 MiB, if every client is one that only wants to use it up.
    pub const AGENT: Self = Self {
        // Fifty traces at once, each with its own connection, and Relay, `hubble` and health checks beside them.
        connections: 80,
        handshakes: 20,
        // Hubble Relay has one connection, for everybody who asks it.
        streams: 64,
        calls: 128,
        // A filter of a thousand addresses.
        request: 64 << 10,
        headers: 8 << 10,
        // Some dozens of flows: enough that the client always has something to read.
        unsent: 32 << 10,
        handshake: Duration::from_secs(5),
        request_time: Duration::from_secs(10),
        idle: Duration::from_mins(10),
        ping_every: Duration::from_secs(30),
        pong_within: Duration::from_secs(20),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::AGENT
    }
}

/// Resets that a client may have in flight before its connection is closed, as RFC 9113 §10.5 asks for.
pub(super) const RESETS_MAX: usize = 20;

/// An answer in the making. It is dropped, wherever it is, when the client went away.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

/// A service: some methods.
pub trait Service: Send + Sync {
    /// Answers a call with messages for `sender` and, at the end, a status.
    ///
    /// `method` is the name alone, `GetFlows`; `request` is one message. For a method that is not there:
    /// [`Status::unimplemented`].
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a>;
}

/// Told in a line of what an operator should know. What is in it from the network is escaped.
pub type Notice = Arc<dyn Fn(String) + Send + Sync>;

/// Services and their limits; a clone is the same server.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

pub(super) struct Inner {
    services: Vec<(&'static str, Arc<dyn Service>)>,
    pub(super) limits: Limits,
    /// One permit per call.
    pub(super) calls: Semaphore,
    notice: Notice,
    quiet: Mutex<Quiet>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.services.iter().map(|(name, _)| name).collect();
        f.debug_struct("Server").field("services", &names).field("limits", &self.0.limits).finish()
    }
}

impl Server {
    /// A server of these services, each under its full name (`observer.Observer`).
    pub fn new(services: Vec<(&'static str, Arc<dyn Service>)>, limits: Limits, notice: Notice) -> Self {
        let calls = Semaphore::new(limits.calls);
        Self(Arc::new(Inner { services, limits, calls, notice, quiet: Mutex::default() }))
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Serves who connects to a unix socket; whoever may open it may call. For ever: dropping the future closes every
    /// connection.
    pub async fn serve_unix(&self, listener: &UnixListener) -> Infallible {
        self.serve(|cx| listener.poll_accept(cx).map_ok(|(stream, _)| ready(Ok(stream)))).await
    }

    /// Serves who connects by TCP and proves by a certificate who it is. There is no other way by TCP. For ever, as
    /// [`Self::serve_unix`].
    pub async fn serve_tls(&self, listener: &TcpListener, tls: &Tls) -> Infallible {
        self.serve(|cx| {
            listener.poll_accept(cx).map_ok(|(stream, peer)| {
                let acceptor = tls.acceptor(&self.0.notice);
                async move {
                    // Flows are small, and somebody is looking at them.
                    stream.set_nodelay(true)?;
                    let accepted = acceptor.accept(stream).await;
                    accepted.map_err(|error| io::Error::other(format!("refused {peer}: {error}")))
                }
            })
        })
        .await
    }

    /// Accepts for ever. What `accept` gives is what is left to do before HTTP/2, for that connection alone.
    async fn serve<F, S>(&self, accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<F>>) -> Infallible
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = self.0.limits;
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = poll_fn(&accept) => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let secured = match accepted {
                Ok(secured) => secured,
                Err(error) => {
                    self.say(&format!("failed to accept a connection: {error}"));
                    // Out of descriptors, perhaps: whoever waits is still there in a moment.
                    time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Those that ended in the meantime count no more.
            while connections.try_join_next().is_some() {}
            if connections.len() >= limits.connections {
                self.say(&format!(
                    "refused a connection: {} are open, which is the limit",
                    connections.len()
                ));
                continue;
            }
            let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
                self.say(&format!("refused a connection: {} are beginning, the limit", limits.handshakes));
                continue;
            };
            let server = self.clone();
            connections.spawn(async move {
                match time::timeout(limits.handshake, secured).await {
                    Ok(Ok(stream)) => converse(&server, stream, handshake).await,
                    Ok(Err(error)) => server.say(&error.to_string()),
                    Err(_) => server.say("a connection was closed: it did not begin in time"),
                }
            });
        }
    }

    pub(super) fn service(&self, name: &str) -> Option<&dyn Service> {
        self.0.services.iter().find(|(own, _)| *own == name).map(|(_, service)| &**service)
    }

    /// Tells the operator; whoever makes much noise gets one line a while.
    fn say(&self, line: &str) {
        let mut quiet = self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(unsaid) = quiet.may_speak(Instant::now()) {
            let more =
                if unsaid > 0 { format!(" ({unsaid} more since the last line)") } else { String::new() };
            (self.0.notice)(format!("{}{more}", crate::render::clean(line)));
        }
    }
}

/// Lets one line through per [`Self::SPAN`].
#[derive(Default)]
struct Quiet {
    last: Option<Instant>,
    unsaid: u64,
}

impl Quiet {
    const SPAN: Duration = Duration::from_secs(10);

    /// Whether it is time for a line, and how many were not let through before it.
    fn may_speak(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < Self::SPAN) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}
