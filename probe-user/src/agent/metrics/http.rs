//! HTTP/1.1, as much as a scrape and a probe need: one `GET` or `HEAD` per connection.
//!
//! Source: RFC 9112. Whoever asks is a stranger: every connection has bounded bytes and a bounded time, there are a
//! bounded number of them, and no address may have all.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::exposition::Format;
use super::{Metrics, health, lock};
use crate::grpc::server::Notice;

/// A request that is longer is refused: Prometheus' has some 300 bytes, the kubelet's fewer.
const REQUEST_MAX: usize = 8 << 10;
/// What a client sends beyond its request is read up to here, so that closing does not destroy the answer on its way.
const REST_MAX: usize = 64 << 10;
/// After an error of the listener's own, such as no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How much one listener takes upon it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once. One has a page of at most 1.3 MB.
    pub connections: usize,
    /// Connections at once of one address: whoever opens all it can still leaves room for the others.
    pub connections_of_one: usize,
    /// For a request to be there.
    pub request: Duration,
    /// For its answer to be taken.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            connections_of_one: 4,
            request: Duration::from_secs(5),
            answer: Duration::from_secs(10),
        }
    }
}

/// Answers whoever connects, for ever.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, limits: Limits, notice: Notice) {
    let guests = Guests::default();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                notice(format!("metrics: failed to take a connection: {error}"));
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(guest) = guests.admit(address, limits) else {
            metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            // How a client goes is its own affair.
            drop(converse(stream, &metrics, limits).await);
            drop(guest);
        });
    }
}

/// Who is connected.
#[derive(Clone, Default)]
struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place; free again when it is dropped.
struct Guest {
    guests: Guests,
    address: IpAddr,
}

impl Guests {
    fn admit(&self, address: IpAddr, limits: Limits) -> Option<Guest> {
        let mut all = lock(&self.0);
        let own = all.get(&address).copied().unwrap_or_default();
        if own >= limits.connections_of_one || all.values().sum::<usize>() >= limits.connections {
            return None;
        }
        all.insert(address, own + 1);
        Some(Guest { guests: self.clone(), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut all = lock(&self.guests.0);
        if let Some(own) = all.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.address);
            }
        }
    }
}

async fn converse(mut stream: TcpStream, metrics: &Metrics, limits: Limits) -> io::Result<()> {
    let request = timeout(limits.request, read(&mut stream)).await;
    let answer = match request {
        Ok(Ok(text)) => answer(&text, metrics),
        Ok(Err(Unread::TooLong)) => Answer::error("431 Request Header Fields Too Large"),
        Ok(Err(Unread::Gone)) => return Ok(()),
        Err(_) => Answer::error("408 Request Timeout"),
    };
    timeout(limits.answer, async {
        stream.write_all(&answer.bytes()).await?;
        stream.shutdown().await
    })
    .await??;
    timeout(limits.request, drain(&mut stream)).await?
}

enum Unread {
    TooLong,
    Gone,
}

/// A request's head, without its empty line. A client may close its side once it has sent it.
async fn read(stream: &mut TcpStream) -> Result<Vec<u8>, Unread> {
    let mut text = Vec::with_capacity(1 << 10);
    loop {
        let before = text.len();
        let room = (REQUEST_MAX - before) as u64;
        let read = (&mut *stream).take(room).read_buf(&mut text).await.map_err(|_| Unread::Gone)?;
        if read == 0 {
            return Err(if room == 0 { Unread::TooLong } else { Unread::Gone });
        }
        // The end may have begun in what was there before.
        let from = before.saturating_sub(3);
        if let Some(end) = text[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            text.truncate(from + end);
            return Ok(text);
        }
    }
}

/// Reads what a client still sends: a socket that is closed with unread bytes resets, and the answer may be lost.
async fn drain(stream: &mut TcpStream) -> io::Result<()> {
    let mut left = REST_MAX;
    let mut buffer = [0; 1 << 10];
    while left > 0 {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read);
    }
    Ok(())
}

/// What is answered.
pub(super) struct Answer {
    pub(super) status: &'static str,
    content_type: &'static str,
    /// Header lines beside those that every answer has, each with its end.
    headers: &'static str,
    body: String,
    /// The request was a `HEAD`.
    is_head: bool,
}

impl Answer {
    fn plain(status: &'static str, body: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", headers: "", body, is_head: false }
    }

    fn error(status: &'static str) -> Self {
        Self::plain(status, format!("{status}\n"))
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { status, content_type, headers, body, is_head } = self;
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             {headers}Connection: close\r\n\r\n",
            body.len()
        );
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend(body.as_bytes());
        }
        bytes
    }
}

/// The answer to a request's head.
pub(super) fn answer(text: &[u8], metrics: &Metrics) -> Answer {
    let Some(request) = Request::parse(text) else { return Answer::error("400 Bad Request") };
    let path = request.target.split('?').next().unwrap_or_default();
    if !["/metrics", "/healthz", "/readyz"].contains(&path) {
        return Answer { is_head: request.method == "HEAD", ..Answer::error("404 Not Found") };
    }
    if !["GET", "HEAD"].contains(&request.method) {
        return Answer { headers: "Allow: GET, HEAD\r\n", ..Answer::error("405 Method Not Allowed") };
    }
    let answer = match path {
        "/metrics" => {
            let format = Format::accepted(&request.accept);
            let body = metrics.page(format);
            Answer { content_type: format.content_type(), ..Answer::plain("200 OK", body) }
        }
        "/healthz" => healthz(metrics),
        _ => readyz(metrics),
    };
    Answer { is_head: request.method == "HEAD", ..answer }
}

fn healthz(metrics: &Metrics) -> Answer {
    match metrics.health(&metrics.board.read()) {
        Ok(()) => Answer::plain("200 OK", "alive\n".to_owned()),
        Err(why) => Answer::plain("503 Service Unavailable", format!("{why}\n")),
    }
}

fn readyz(metrics: &Metrics) -> Answer {
    let status = metrics.board.read();
    let lacks = health::lacks(&status, metrics.health(&status));
    let code = if lacks.is_empty() { "200 OK" } else { "503 Service Unavailable" };
    Answer::plain(code, health::body(&status, &lacks))
}

/// As much of a request as counts here.
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    /// All `Accept` headers.
    accept: String,
}

impl<'a> Request<'a> {
    /// `None` if it is none of HTTP/1.
    fn parse(head: &'a [u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let is_token = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
        if words.next().is_some() || !is_token || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
            return None;
        }
        let mut accept = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
                return None;
            }
            if name.eq_ignore_ascii_case("accept") {
                accept.push(value.trim());
            }
        }
        Some(Self { method, target, accept: accept.join(",") })
    }
}
