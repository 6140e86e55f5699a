//! An API server of the tests' own that forwards ports: lists as a closure says, `portforward` as the kubelet does it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::sources::http::{
    testing::{Reply, Seen},
    websocket::{Opcode, accept},
};

/// What it does with a request.
pub(crate) enum Answer {
    /// Answers without an upgrade.
    Reply(Reply),
    /// Upgrades, and forwards to this address.
    To(SocketAddr),
    /// Upgrades, and says on the error channel why it cannot.
    Refuse(&'static str),
    /// Upgrades, sends these bytes, `true` in one piece and `false` byte by byte, and waits until the client goes.
    Raw(Vec<u8>, bool),
    /// Upgrades, sends these bytes and cuts the connection.
    Cut(Vec<u8>),
    /// Says that it upgrades with these headers, and waits.
    Head(String),
}

/// A client's frame: what it is, and what it holds.
type Masked = (u8, Vec<u8>);

/// It; it lives as long as the test's runtime.
#[derive(Clone)]
pub(crate) struct Api {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    frames: Arc<Mutex<Vec<Masked>>>,
}

impl Api {
    /// Starts it, over TLS with a configuration.
    pub(crate) async fn start(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api =
            Self { address: listener.local_addr().unwrap(), seen: Arc::default(), frames: Arc::default() };
        let (all, answer) = (api.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (all, answer, tls) = (all.clone(), answer.clone(), tls.clone());
                let _ = stream.set_nodelay(true);
                // A client may go at any time: that is its affair.
                tokio::spawn(async move {
                    match tls {
                        Some(config) => {
                            let stream = TlsAcceptor::from(config).accept(stream).await?;
                            all.converse(stream, &*answer).await
                        }
                        None => all.converse(stream, &*answer).await,
                    }
                });
            }
        });
        api
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Frames from clients so far: what they are, and what they hold.
    pub(in crate::sources) fn frames(&self) -> Vec<Masked> {
        self.frames.lock().unwrap().clone()
    }

    async fn converse(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        answer: &(dyn Fn(&Seen) -> Answer + Send + Sync),
    ) -> anyhow::Result<()> {
        let seen = request(&mut stream).await?;
        self.seen.lock().unwrap().push(seen.clone());
        let upgrade = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n",
            accept(seen.header("sec-websocket-key").unwrap_or_default())
        );
        let port: u16 = seen.query("ports").and_then(|port| port.parse().ok()).unwrap_or_default();
        match answer(&seen) {
            Answer::Reply(Reply::Bytes(bytes)) => stream.write_all(&bytes).await?,
            Answer::Reply(Reply::Hang(bytes)) => {
                stream.write_all(&bytes).await?;
                self.listen(stream).await;
                return Ok(());
            }
            Answer::Reply(Reply::Stream(_)) => anyhow::bail!("a stream is another stand-in's"),
            Answer::Head(headers) => {
                stream.write_all(format!("HTTP/1.1 101 Switching\r\n{headers}\r\n").as_bytes()).await?;
                self.listen(stream).await;
                return Ok(());
            }
            Answer::Raw(bytes, whole) => {
                let all = [upgrade.as_bytes(), &bytes].concat();
                for piece in all.chunks(if whole { all.len() } else { 1 }) {
                    stream.write_all(piece).await?;
                    stream.flush().await?;
                }
                self.listen(stream).await;
                return Ok(());
            }
            Answer::Cut(bytes) => stream.write_all(&[upgrade.as_bytes(), &bytes].concat()).await?,
            Answer::Refuse(why) => {
                stream.write_all(upgrade.as_bytes()).await?;
                stream.write_all(&numbers(port)).await?;
                stream.write_all(&frame(Opcode::Binary, true, &[&[1], why.as_bytes()].concat())).await?;
                stream.write_all(&frame(Opcode::Close, true, &[3, 232])).await?;
            }
            Answer::To(address) => {
                stream.write_all(upgrade.as_bytes()).await?;
                stream.write_all(&numbers(port)).await?;
                return self.carry(stream, TcpStream::connect(address).await?).await;
            }
        }
        stream.flush().await?;
        stream.shutdown().await?;
        Ok(())
    }

    /// Keeps what the client sends until it goes.
    async fn listen(&self, mut stream: impl AsyncRead + Unpin) {
        while let Ok((opcode, payload)) = masked(&mut stream).await {
            self.frames.lock().unwrap().push((opcode, payload));
        }
    }

    /// As the kubelet: bytes of channel 0 to the port, the port's bytes in messages of channel 0.
    async fn carry(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        port: TcpStream,
    ) -> anyhow::Result<()> {
        let (mut from_client, mut to_client) = tokio::io::split(stream);
        port.set_nodelay(true)?;
        let (mut from_port, mut to_port) = port.into_split();
        let frames = self.frames.clone();
        let forth = async move {
            loop {
                let (opcode, payload) = masked(&mut from_client).await?;
                frames.lock().unwrap().push((opcode, Vec::new()));
                match payload.split_first() {
                    Some((0, bytes)) if opcode == 2 => to_port.write_all(bytes).await?,
                    _ if opcode == 8 => return anyhow::Ok(()),
                    _ => {}
                }
            }
        };
        let back = async move {
            let mut piece = vec![0; 32 << 10];
            loop {
                let read = from_port.read(&mut piece).await?;
                if read == 0 {
                    to_client.write_all(&frame(Opcode::Close, true, &[])).await?;
                    to_client.shutdown().await?;
                    return anyhow::Ok(());
                }
                // In parts, with a question between them: a proxy may do so.
                let (one, two) = piece[..read].split_at(read / 2);
                to_client.write_all(&frame(Opcode::Binary, false, &[&[0], one].concat())).await?;
                to_client.write_all(&frame(Opcode::Ping, true, b"?")).await?;
                to_client.write_all(&frame(Opcode::Continuation, true, two)).await?;
                to_client.flush().await?;
            }
        };
        tokio::select! { ended = forth => ended, ended = back => ended }
    }
}

/// A frame as a server sends it.
pub(in crate::sources) fn frame(opcode: Opcode, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(is_last) << 7 | opcode as u8, 126];
    frame.extend((payload.len() as u16).to_be_bytes());
    if payload.len() < 126 {
        frame.truncate(1);
        frame.push(payload.len() as u8);
    }
    frame.extend(payload);
    frame
}

/// The beginnings of both channels.
pub(in crate::sources) fn numbers(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [0, 1].map(|channel| frame(Opcode::Binary, true, &[channel, low, high])).concat()
}

async fn request(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Ok(Seen { method, path, headers, ..Seen::default() })
}

/// A client's frame, which must be masked.
async fn masked(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<Masked> {
    let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
    anyhow::ensure!(first & 0xf0 == 0x80 && second & 0x80 != 0, "a client's frame is whole and masked");
    let length = match second & 0x7f {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        short => short.into(),
    };
    let mask = stream.read_u32().await?.to_be_bytes();
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((first & 0x0f, payload))
}
