//! HTTP/1.1 for a few requests: to the agent's socket, the Kubernetes API and Azure.
//!
//! One blocking request per connection; its answer is read as a whole, or as it comes ([`Client::follow`]). Every wait is bounded, as is the length of an answer; what the other side asks to
//! be tried again is tried again while there is time. Redirects are not followed: they would carry a token elsewhere.

mod answer;
mod resolve;
mod stop;
#[cfg(test)]
pub(crate) mod testing;
mod timed;
pub mod tls;
mod url;
pub(in crate::sources) mod websocket;

use std::{
    borrow::Cow,
    fmt,
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

#[cfg(test)]
pub(crate) use answer::line;
pub use answer::{BodyReader, Head, shown};
pub use resolve::Resolver;
pub use stop::Stopper;
pub use timed::{Timed, timed_out};
pub use url::{Url, escape};

/// The wait before a request is tried again, unless the other side says one; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How much of an API's own message is repeated.
const MAX_MESSAGE: usize = 400;

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For one answer, with its connection.
    pub each: Duration,
    /// For an answer with all that is tried again.
    pub total: Duration,
}

/// Who answers requests to one server.
#[derive(Clone)]
pub struct Client {
    /// Where; requests add to its path.
    pub base: Url,
    /// Whom to trust, for `https`.
    pub tls: Option<Arc<ClientConfig>>,
    /// How long to wait.
    pub patience: Patience,
    /// Bodies longer than this are refused.
    pub max_body: u64,
    /// How names become addresses.
    pub resolver: Resolver,
}

/// A body that is read as it comes.
pub type Stream = BodyReader<BufReader<Box<dyn Connection>>>;

/// A stream to a server, which gives up at a point in time.
pub trait Connection: Read + Write + Send {
    /// Gives up then.
    fn give_until(&mut self, deadline: Instant);
}

impl Connection for Timed<TcpStream> {
    fn give_until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }
}

impl Connection for StreamOwned<ClientConnection, Timed<TcpStream>> {
    fn give_until(&mut self, deadline: Instant) {
        self.sock.deadline = deadline;
    }
}

/// A request.
#[derive(Clone, Default)]
pub struct Request {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Headers beside those that every request has. Never shown: they hold tokens.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// A body, which makes it a `POST`. Never shown.
    pub body: Option<Body>,
}

/// A request's body.
#[derive(Clone)]
pub struct Body {
    /// What it is; an answer of the same kind is asked for, unless it is a form.
    pub content_type: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Body {
    const FORM: &'static str = "application/x-www-form-urlencoded";

    /// A form, its fields escaped.
    pub fn form(fields: String) -> Self {
        Self { content_type: Self::FORM, bytes: fields.into_bytes() }
    }
}

impl fmt::Debug for Request {
    /// Without headers and body, which hold tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method(), self.path)
    }
}

impl Request {
    /// A `GET`.
    pub fn get(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// With a header.
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn method(&self) -> &'static str {
        if self.body.is_some() { "POST" } else { "GET" }
    }
}

/// What kept a request from its answer.
#[derive(Debug)]
pub struct Error {
    /// Method and address, without a query.
    pub asked: String,
    /// Why.
    pub why: Why,
    /// How often it was tried.
    pub tries: u32,
}

/// Why a request has no answer.
#[derive(Debug)]
pub enum Why {
    /// Nobody could be reached.
    Unreachable(String),
    /// Who answered could not prove who it is, or speaks no TLS.
    Untrusted(String),
    /// No answer in time.
    TimedOut(Duration),
    /// Another status than success.
    Status {
        /// The status.
        status: u16,
        /// With its phrase.
        reason: String,
        /// What the API says of it, empty if nothing.
        message: String,
        /// After how long to try again, if it says so.
        retry_after: Option<Duration>,
    },
    /// What was answered is no answer: cut, too long, or not what was expected.
    Answer(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.asked)?;
        match &self.why {
            Why::Unreachable(why) | Why::Untrusted(why) | Why::Answer(why) => f.write_str(why)?,
            Why::TimedOut(after) => write!(f, "no answer within {after:?}")?,
            Why::Status { reason, message, retry_after, .. } => {
                write!(f, "status {}", shown(reason))?;
                if !message.is_empty() {
                    write!(f, ": {message}")?;
                }
                if let Some(after) = retry_after {
                    write!(f, "; it asks to wait {after:?}, more than is waited here; try again then")?;
                }
            }
        }
        if self.tries > 1 { write!(f, " (tried {} times)", self.tries) } else { Ok(()) }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The status, if there was one.
    pub fn status(&self) -> Option<u16> {
        match &self.why {
            Why::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long to wait before it is worth trying again; `None` if it is not.
    fn wait(&self) -> Option<Duration> {
        match &self.why {
            Why::Status { status: 429 | 500 | 502 | 503 | 504, retry_after, .. } => {
                Some(retry_after.unwrap_or(FIRST_WAIT * 2_u32.saturating_pow(self.tries - 1)))
            }
            _ => None,
        }
    }
}

impl Client {
    /// The body of a request that succeeds.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn send(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.patience.total;
        let mut tries = 1;
        loop {
            let each = deadline.min(Instant::now() + self.patience.each);
            let why = match self.attempt(request, each) {
                Ok(body) => return Ok(body),
                Err(why) => why,
            };
            let mut error = Error { asked: self.asked(request), why, tries };
            match error.wait() {
                Some(wait) if Instant::now() + wait < deadline => thread::sleep(wait),
                Some(_) => return Err(error),
                None => {
                    // Only where waiting would have helped does the wait it asked for matter.
                    if let Why::Status { retry_after, .. } = &mut error.why {
                        *retry_after = None;
                    }
                    return Err(error);
                }
            }
            tries += 1;
        }
    }

    /// As [`Self::send`], tried once: what to do about a failure is the caller's to say.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn send_once(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.patience.each;
        self.attempt(request, deadline).map_err(|why| Error { asked: self.asked(request), why, tries: 1 })
    }

    /// Whether there is anyone to connect to: nothing is said.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn reach(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience.connect;
        let addresses = self.resolver.resolve(&self.base.host, deadline);
        let addresses = addresses.map_err(|error| Why::Unreachable(format!("{error:#}")));
        let reached = addresses.and_then(|addresses| self.connect(&addresses, deadline).map(drop));
        reached.map_err(|why| Error { asked: self.base.to_string(), why, tries: 1 })
    }

    fn asked(&self, request: &Request) -> String {
        let path = request.path.split('?').next().unwrap_or_default();
        format!("{} {}{path}", request.method(), self.base)
    }

    /// An answer to read as it comes: its head within [`Patience::each`], its body until `deadline`. Tried once.
    ///
    /// # Errors
    ///
    /// [`Error`]; also when `stopper` ends it.
    pub fn follow(&self, request: &Request, deadline: Instant, stopper: &Stopper) -> Result<Stream, Error> {
        let until_head = deadline.min(Instant::now() + self.patience.each);
        let opened = self.open(request, until_head, Some(stopper)).and_then(|(head, mut reader)| {
            if !(200..=299).contains(&head.status) {
                let body = head.body(&mut reader, self.max_body);
                return Err(status(&head, &body.map_err(|error| self.why(&error, until_head))?));
            }
            reader.get_mut().give_until(deadline);
            Ok(head.follow(reader))
        });
        opened.map_err(|why| Error { asked: self.asked(request), why, tries: 1 })
    }

    fn attempt(&self, request: &Request, deadline: Instant) -> Result<Vec<u8>, Why> {
        let (head, mut reader) = self.open(request, deadline, None)?;
        let body = head.body(&mut reader, self.max_body).map_err(|error| self.why(&error, deadline))?;
        match head.status {
            200..=299 => Ok(body),
            _ => Err(status(&head, &body)),
        }
    }

    /// Connects, asks, and reads the answer's head.
    fn open(
        &self,
        request: &Request,
        deadline: Instant,
        stopper: Option<&Stopper>,
    ) -> Result<(Head, BufReader<Box<dyn Connection>>), Why> {
        // Parts of it were said by others, who must not add headers of theirs.
        let is_path = request.path.starts_with('/') && request.path.bytes().all(|b| b.is_ascii_graphic());
        if !is_path {
            return Err(Why::Answer(format!("`{}` is no path that can be asked for", shown(&request.path))));
        }
        let addresses = self.resolver.resolve(&self.base.host, deadline);
        let addresses = addresses.map_err(|error| Why::Unreachable(format!("{error:#}")))?;
        let tcp = self.connect(&addresses, deadline)?;
        if let Some(stopper) = stopper {
            stopper.hold(&tcp).map_err(|error| Why::Unreachable(error.to_string()))?;
        }
        let stream = Timed { stream: tcp, deadline };
        let stream: Box<dyn Connection> = match self.tls.as_ref().filter(|_| self.base.is_https) {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(self.base.host.clone())
                    .map_err(|_| Why::Untrusted(format!("`{}` cannot be a server's name", self.base.host)))?;
                let session = ClientConnection::new(config.clone(), name);
                let session = session.map_err(|error| Why::Untrusted(tls::explained(&error)))?;
                Box::new(StreamOwned::new(session, stream))
            }
        };
        self.ask(stream, request).map_err(|error| self.why(&error, deadline))
    }

    fn connect(&self, addresses: &[std::net::IpAddr], deadline: Instant) -> Result<TcpStream, Why> {
        let mut last = None;
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now()).min(self.patience.connect);
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&SocketAddr::new(*address, self.base.port), left) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(format!("failed to connect to {address}: {error}")),
            }
        }
        Err(Why::Unreachable(last.unwrap_or_else(|| "no time was left to connect".to_owned())))
    }

    fn ask(
        &self,
        mut stream: Box<dyn Connection>,
        request: &Request,
    ) -> anyhow::Result<(Head, BufReader<Box<dyn Connection>>)> {
        let sent = stream.write_all(&self.bytes(request)).and_then(|()| stream.flush());
        let mut reader = BufReader::new(stream);
        match (Head::read(&mut reader), sent) {
            (Ok(head), _) => Ok((head, reader)),
            // Who refuses a request may say why, and close before all of it is sent.
            (Err(said), _) if tls::cause(&said).is_some() => Err(said),
            (Err(_), Err(error)) => Err(error).context("failed to send the request"),
            (Err(error), Ok(())) => Err(error),
        }
    }

    fn why(&self, error: &anyhow::Error, deadline: Instant) -> Why {
        if let Some(tls) = tls::cause(error) {
            return Why::Untrusted(tls::explained(tls));
        }
        if timed_out(error) || Instant::now() >= deadline {
            return Why::TimedOut(self.patience.each.min(self.patience.total));
        }
        Why::Answer(format!("{error:#}"))
    }

    fn bytes(&self, request: &Request) -> Vec<u8> {
        let Url { authority, path, .. } = &self.base;
        let mut text =
            format!("{} {path}{} HTTP/1.1\r\nHost: {authority}\r\n", request.method(), request.path);
        let body = request.body.as_ref();
        let accept = body.map(|body| body.content_type).filter(|kind| *kind != Body::FORM);
        text.extend(["Accept: ", accept.unwrap_or("application/json"), "\r\n"]);
        text.push_str("Connection: close\r\nUser-Agent: plsprobe\r\n");
        for (name, value) in &request.headers {
            text.extend([name, ": ", value.as_str(), "\r\n"]);
        }
        if let Some(Body { content_type, bytes }) = body {
            let length = bytes.len().to_string();
            text.extend(["Content-Type: ", content_type, "\r\nContent-Length: ", &length, "\r\n"]);
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend(body.map(|body| body.bytes.as_slice()).unwrap_or_default());
        bytes
    }
}

/// Another status than the one that was wanted, with what the body says of it.
pub(in crate::sources) fn status(head: &Head, body: &[u8]) -> Why {
    let seconds = head.header("retry-after").and_then(|value| value.parse().ok());
    let message = match (head.status, head.header("location")) {
        (300..=399, Some(location)) => {
            // A query may hold what is secret.
            let place = location.split('?').next().unwrap_or_default();
            format!("it redirects to `{}`, which is not followed; is there a proxy between?", shown(place))
        }
        _ => message(body),
    };
    Why::Status {
        status: head.status,
        reason: head.reason.clone(),
        message,
        retry_after: seconds.map(Duration::from_secs),
    }
}

/// What an API says of an error, in the words of Kubernetes, ARM or Microsoft Entra; else the beginning of the body.
fn message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |pointer: &str| json.pointer(pointer).and_then(serde_json::Value::as_str);
    let said = match (text("/error/code"), text("/error/message")) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (None, Some(message)) => Some(message.to_owned()),
        _ => text("/error_description").or(text("/message")).or(text("/error")).map(str::to_owned),
    };
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    // Entra adds lines of ids for its support.
    let line = said.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.starts_with('<') { "it answers with a page, not as an API".to_owned() } else { cut }
}

#[cfg(test)]
mod tests;
