//! A port of a pod, reached through the API server.
//!
//! `GET …/pods/NAME/portforward?ports=N` becomes a WebSocket of the subprotocol `v4.channel.k8s.io`: each message begins
//! with a channel, 0 for the port's bytes and 1 for why it failed; the first of each channel is the port's number. The
//! kubelets of every version since 1.6 speak it and the API server hands it through; the newer tunnel of SPDY
//! (`SPDY/3.1+portforward.k8s.io`) is there from 1.31 on only and carries no more.
//!
//! Source: `handleWebSocketStreams` in Kubernetes' `kubelet/pkg/cri/streaming/portforward/websocket.go`.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::ServerName;
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf,
        WriteHalf,
    },
    net::TcpStream,
    sync::mpsc,
    time::{Instant, interval_at, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::access::Access;
use crate::sources::http::{
    self, Head, Why, escape, shown, tls,
    websocket::{Decoder, Frame, Opcode, accept, encode, key},
};

/// The subprotocol.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// What a pod must be allowed. GET is `get` to RBAC; from 1.35 on the API server asks for `create` as well.
const RIGHT: &str = "get and create pods/portforward";
/// The channel of the port's bytes.
const DATA: u8 = 0;
/// The channel that says why it failed.
const ERROR: u8 = 1;
/// Bytes on their way in each direction that nobody has taken yet.
const BUFFER: usize = 64 << 10;
/// Bytes read or sent at a time.
const PIECE: usize = 16 << 10;
/// An answer to the upgrade that is longer is not read on.
const ANSWER_MAX: usize = 64 << 10;
/// So much is kept of why it failed.
const WHY_MAX: usize = 600;
/// How often the other side is asked whether it is there: more often than any balancer on the way forgets a connection
/// (Azure's after four minutes).
const PING_EVERY: Duration = Duration::from_secs(20);
/// After so long without a word from the other side it is gone.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// Which port of which pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for PodPort {
    /// `port 9966 of pod kube-system/plsprobe-x2v8q`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {} of pod {}/{}", self.port, shown(&self.namespace), shown(&self.pod))
    }
}

/// What a connection is made of: TCP, or TLS over it.
trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// The bytes of a pod's port. Reading after it failed says why; dropping it closes the connection.
#[derive(Debug)]
pub struct Forwarded {
    stream: DuplexStream,
    why: Arc<OnceLock<String>>,
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        match self.why.get().filter(|_| is_end && buffer.remaining() > 0) {
            Some(why) => Poll::Ready(Err(io::Error::other(why.clone()))),
            None => polled,
        }
    }
}

impl Forwarded {
    /// What a write came to, in the words of whoever ended the connection if it has ended.
    fn told<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match (polled, self.why.get()) {
            (Poll::Ready(Err(_)), Some(why)) => Poll::Ready(Err(io::Error::other(why.clone()))),
            (polled, _) => polled,
        }
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.told(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.told(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connects to a pod's port through the API server. That nobody listens there is known only when it is used.
///
/// # Errors
///
/// If the API server cannot be reached, may not be asked for it, has no such pod, or does not speak the protocol.
pub async fn forward(access: &Access, to: &PodPort) -> Result<Forwarded> {
    let patience = access.client.patience;
    let (namespace, pod) = (escape(&to.namespace), escape(&to.pod));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward");
    let opened = timeout(patience.each, open(access, &path, to.port)).await;
    let opened = opened.unwrap_or(Err(Why::TimedOut(patience.each)));
    let (transport, rest) = opened.map_err(|why| {
        let asked = format!("GET {}{path}", access.client.base);
        let advice = advice(&why);
        anyhow!("{}{advice}", http::Error { asked, why, tries: 1 })
    })?;
    let (stream, ours) = tokio::io::duplex(BUFFER);
    let why = Arc::new(OnceLock::new());
    let (told, to) = (why.clone(), to.clone());
    tokio::spawn(async move {
        // Whoever reads must find the reason when the stream ends: it ends as `pump` returns its half.
        let (ended, ours) = pump(transport, ours, &rest, to.port).await;
        if let Err(error) = ended {
            let _ = told.set(format!("{to}: {error:#}"));
        }
        drop(ours);
    });
    Ok(Forwarded { stream, why })
}

fn advice(why: &Why) -> String {
    let Why::Status { status, .. } = why else { return String::new() };
    match status {
        200..=299 => {
            "; the API server, or a proxy before it, does not make WebSockets of requests".to_owned()
        }
        401 => {
            "; the token or the certificate is not accepted: is it expired, or another cluster's?".to_owned()
        }
        403 => format!("; allow whoever asks to {RIGHT} (docs/across.md)"),
        404 => "; the pod has gone".to_owned(),
        429 | 500..=599 => "; the API server or the node's kubelet is busy or not well: try again".to_owned(),
        _ => String::new(),
    }
}

/// Connects and asks for the upgrade: the connection, and what came after the answer.
async fn open(access: &Access, path: &str, port: u16) -> Result<(Box<dyn Transport>, Vec<u8>), Why> {
    let mut transport = connect(access).await?;
    let answer = |error: anyhow::Error| match tls::cause(&error) {
        Some(tls) => Why::Untrusted(tls::explained(tls)),
        None => Why::Answer(format!("{error:#}")),
    };
    let key = key(random().map_err(answer)?);
    let text = request(access, path, port, &key).map_err(answer)?;
    let ask = async {
        transport.write_all(text.as_bytes()).await?;
        transport.flush().await?;
        head(&mut transport).await
    };
    let (head, rest) = ask.await.map_err(answer)?;
    if head.status != 101 {
        let body = body(&mut transport, &head, rest).await;
        return Err(http::status(&head, &body));
    }
    check(&head, &key).map_err(answer)?;
    Ok((transport, rest))
}

async fn connect(access: &Access) -> Result<Box<dyn Transport>, Why> {
    let client = &access.client;
    let unreachable = Why::Unreachable;
    let deadline = std::time::Instant::now() + client.patience.connect;
    let (resolver, host) = (client.resolver.clone(), client.base.host.clone());
    let resolved = tokio::task::spawn_blocking(move || resolver.resolve(&host, deadline)).await;
    let addresses = resolved.map_err(|error| unreachable(error.to_string()))?;
    let addresses = addresses.map_err(|error| unreachable(format!("{error:#}")))?;
    let mut last = "no time was left to connect".to_owned();
    for address in addresses {
        let connecting = TcpStream::connect((address, client.base.port));
        match timeout_at(deadline.into(), connecting).await {
            Ok(Ok(tcp)) => {
                // A clock is asked through it: no byte must wait for others.
                tcp.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
                return secure(access, tcp).await;
            }
            Ok(Err(error)) => last = format!("failed to connect to {address}: {error}"),
            Err(_) => last = format!("failed to connect to {address} within {:?}", client.patience.connect),
        }
    }
    Err(Why::Unreachable(last))
}

async fn secure(access: &Access, tcp: TcpStream) -> Result<Box<dyn Transport>, Why> {
    let client = &access.client;
    let Some(config) = client.tls.as_ref().filter(|_| client.base.is_https) else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(client.base.host.clone())
        .map_err(|_| Why::Untrusted(format!("`{}` cannot be a server's name", client.base.host)))?;
    let secured = TlsConnector::from(config.clone()).connect(name, tcp).await;
    let secured = secured.map_err(|error| {
        let error = anyhow::Error::from(error);
        match tls::cause(&error) {
            Some(tls) => Why::Untrusted(tls::explained(tls)),
            None => Why::Unreachable(format!("{error:#}")),
        }
    })?;
    Ok(Box::new(secured))
}

fn request(access: &Access, path: &str, port: u16, key: &str) -> Result<String> {
    let request = access.request(path.to_owned())?;
    let base = &access.client.base;
    let mut text = format!(
        "GET {}{path}?ports={port} HTTP/1.1\r\nHost: {}\r\nUser-Agent: plsprobe\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n",
        base.path, base.authority
    );
    for (name, value) in &request.headers {
        text.extend([name.as_ref(), ": ", value.as_str(), "\r\n"]);
    }
    text.push_str("\r\n");
    Ok(text)
}

/// Status and headers, and what was read after them.
async fn head(transport: &mut Box<dyn Transport>) -> Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((Head::read(&mut bytes.as_slice())?, rest));
        }
        ensure!(bytes.len() < ANSWER_MAX, "the answer's headers are longer than {ANSWER_MAX} bytes");
        let read = transport.read_buf(&mut bytes).await?;
        ensure!(read > 0, "the answer ends inside its headers");
    }
}

/// As much of the body as comes; it only says why.
async fn body(transport: &mut Box<dyn Transport>, head: &Head, mut bytes: Vec<u8>) -> Vec<u8> {
    loop {
        if let Ok(body) = head.body(&mut bytes.as_slice(), ANSWER_MAX as u64)
            && !body.is_empty()
        {
            return body;
        }
        match transport.read_buf(&mut bytes).await {
            Ok(1..) if bytes.len() < ANSWER_MAX => {}
            _ => return bytes,
        }
    }
}

/// Whether it is the upgrade that was asked for.
fn check(head: &Head, key: &str) -> Result<()> {
    let is =
        |name: &str, wanted: &str| head.header(name).is_some_and(|value| value.eq_ignore_ascii_case(wanted));
    ensure!(is("upgrade", "websocket"), "the answer upgrades to something else than a WebSocket");
    let accepted = head.header("sec-websocket-accept") == Some(accept(key).as_str());
    ensure!(accepted, "the answer is to another question: its Sec-WebSocket-Accept does not fit");
    let protocol = head.header("sec-websocket-protocol").unwrap_or("none");
    ensure!(protocol == PROTOCOL, "the answer speaks `{}`, expected `{PROTOCOL}`", shown(protocol));
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}

/// Carries bytes both ways until either side ends: how it ended, and our side's half, which ends with it.
async fn pump(
    transport: Box<dyn Transport>,
    ours: DuplexStream,
    rest: &[u8],
    port: u16,
) -> (Result<()>, (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>)) {
    let (mut from_api, mut to_api) = tokio::io::split(transport);
    let (mut from_us, mut to_us) = tokio::io::split(ours);
    // Only the last ping needs an answer: one that floods us gets one for all (section 5.5.3).
    let (pongs, mut pings) = mpsc::channel(1);
    let ended = tokio::select! {
        ended = inbound(&mut from_api, &mut to_us, rest, Channels::new(port), &pongs) => ended,
        ended = outbound(&mut from_us, &mut to_api, &mut pings) => ended,
    };
    (ended, (from_us, to_us))
}

async fn inbound(
    from_api: &mut ReadHalf<Box<dyn Transport>>,
    to_us: &mut WriteHalf<DuplexStream>,
    rest: &[u8],
    mut channels: Channels,
    pongs: &mpsc::Sender<Frame>,
) -> Result<()> {
    let mut decoder = Decoder::default();
    decoder.push(rest);
    let mut piece = vec![0; PIECE];
    loop {
        while let Some(frame) = decoder.next().context("the API server's WebSocket")? {
            match frame.opcode {
                Opcode::Ping => drop(pongs.try_send(frame)),
                Opcode::Pong => {}
                Opcode::Close => return closed(&frame),
                Opcode::Text => bail!("found text, expected the bytes of `{PROTOCOL}`"),
                Opcode::Binary | Opcode::Continuation => {
                    to_us.write_all(channels.take(&frame)?).await?;
                }
            }
        }
        let read = timeout(SILENCE_MAX, from_api.read(&mut piece)).await;
        let read = read.map_err(|_| anyhow!("no sign of life from the API server for {SILENCE_MAX:?}"))?;
        let read = read.context("the connection to the API server broke")?;
        ensure!(read > 0, "the API server cut the connection");
        decoder.push(&piece[..read]);
    }
}

/// 1000 and none are a good end.
fn closed(frame: &Frame) -> Result<()> {
    let Some((code, why)) = frame.payload.split_first_chunk() else { return Ok(()) };
    let code = u16::from_be_bytes(*code);
    ensure!(
        code == 1000,
        "the API server closed the connection, code {code}: {}",
        shown(&String::from_utf8_lossy(why))
    );
    Ok(())
}

async fn outbound(
    from_us: &mut ReadHalf<DuplexStream>,
    to_api: &mut WriteHalf<Box<dyn Transport>>,
    pings: &mut mpsc::Receiver<Frame>,
) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    loop {
        let frame = tokio::select! {
            read = from_us.read(&mut piece) => match read? {
                0 => {
                    // A farewell: nobody waits for it.
                    to_api.write_all(&encode(Opcode::Close, random()?, &[])).await?;
                    return Ok(to_api.flush().await?);
                }
                read => encode(Opcode::Binary, random()?, &[&[DATA], &piece[..read]]),
            },
            Some(ping) = pings.recv() => encode(Opcode::Pong, random()?, &[&ping.payload]),
            _ = ping.tick() => encode(Opcode::Ping, random()?, &[]),
        };
        let sent = async {
            to_api.write_all(&frame).await?;
            to_api.flush().await
        };
        sent.await.context("the connection to the API server broke")?;
    }
}

/// The messages' channels, taken apart.
#[derive(Debug)]
struct Channels {
    port: u16,
    /// The channel of the message that is under way.
    current: Option<u8>,
    /// Of each channel's first message, the port's number as far as it has come.
    numbers: [Vec<u8>; 2],
    why: Vec<u8>,
}

impl Channels {
    fn new(port: u16) -> Self {
        Self { port, current: None, numbers: Default::default(), why: Vec::new() }
    }

    /// The port's bytes in a frame.
    fn take<'f>(&mut self, frame: &'f Frame) -> Result<&'f [u8]> {
        let mut bytes = frame.payload.as_ref();
        if self.current.is_none() {
            let Some((channel, rest)) = bytes.split_first() else {
                // The first part of a message may be empty, and so may a message.
                return Ok(&[]);
            };
            (self.current, bytes) = (Some(*channel), rest);
        }
        let channel = self.current.unwrap_or(DATA);
        if frame.is_last {
            self.current = None;
        }
        ensure!(channel <= ERROR, "found bytes of channel {channel}, expected 0 or 1");
        let number = &mut self.numbers[usize::from(channel)];
        while let (0 | 1, Some((byte, rest))) = (number.len(), bytes.split_first()) {
            number.push(*byte);
            bytes = rest;
        }
        if let [low, high] = number.as_slice() {
            let found = u16::from_le_bytes([*low, *high]);
            ensure!(found == self.port, "found bytes of port {found}, expected port {}", self.port);
        }
        if channel == DATA {
            return Ok(bytes);
        }
        self.why.extend(bytes.iter().take(WHY_MAX - self.why.len()));
        let is_whole = frame.is_last && !self.why.is_empty();
        ensure!(!is_whole, self.reason());
        Ok(&[])
    }

    /// Why the port cannot be reached, as the kubelet says it, and what to do.
    fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.why);
        let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let advice = if text.contains("connection refused") {
            "; nobody listens there: is it the agent's port, and does the agent listen on TCP?"
        } else {
            ""
        };
        format!("{text}{advice}")
    }
}

#[cfg(test)]
mod tests;
