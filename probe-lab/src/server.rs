//! Small servers inside the namespaces: HTTP on TCP, echo on UDP.
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use probe_model::proxy_protocol::{FirstBytes, Proxy};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::instance::Instance;
use crate::netns::Ns;

/// What an HTTP server makes of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// A request is answered, anything else is a bad request.
    Http,
    /// A request is answered, anything else gets a reset.
    HttpOrReset,
    /// A request is answered, with or without a PROXY header in front of it.
    TakesProxy,
    /// Without a PROXY header the connection is reset.
    DemandsProxy,
}

/// One service of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Http { ns: Ns, address: Ipv4Addr, port: u16, app: App },
    UdpEcho { ns: Ns, address: Ipv4Addr, port: u16 },
}

/// A bound socket; it belongs to its namespace wherever it is served from.
#[derive(Debug)]
pub(crate) enum Bound {
    Http(TcpListener, &'static str, App),
    UdpEcho(UdpSocket),
}

impl Service {
    /// Binds inside the service's namespace.
    pub(crate) fn bind(self, instance: &Instance) -> Result<Bound> {
        match self {
            Self::Http { ns, address, port, app } => {
                let at = SocketAddrV4::new(address, port);
                let listener = instance
                    .netns(ns)
                    .run_in(|| {
                        let listener = TcpListener::bind(at)?;
                        listener.set_nonblocking(true)?;
                        io::Result::Ok(listener)
                    })?
                    .with_context(|| format!("failed to listen on `{at}` in `{}`", ns.suffix()))?;
                Ok(Bound::Http(listener, ns.suffix(), app))
            }
            Self::UdpEcho { ns, address, port } => {
                let at = SocketAddrV4::new(address, port);
                let socket = instance
                    .netns(ns)
                    .run_in(|| {
                        let socket = UdpSocket::bind(at)?;
                        socket.set_nonblocking(true)?;
                        io::Result::Ok(socket)
                    })?
                    .with_context(|| format!("failed to bind UDP `{at}` in `{}`", ns.suffix()))?;
                Ok(Bound::UdpEcho(socket))
            }
        }
    }
}

impl Bound {
    /// Serves until dropped.
    pub(crate) async fn serve(self) -> Result<()> {
        match self {
            Self::Http(listener, place, app) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    // What `accept` reports is one connection's trouble; the pause keeps a lasting one from spinning.
                    let Ok((stream, peer)) = listener.accept().await else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    // A client that goes away is no concern of the others.
                    tokio::spawn(async move {
                        let _ = answer(stream, peer, place, app).await;
                    });
                }
            }
            Self::UdpEcho(socket) => {
                let socket = tokio::net::UdpSocket::from_std(socket)?;
                let mut buffer = [0; 2048];
                loop {
                    // An ICMP error to an earlier answer surfaces here: it ends no service.
                    let Ok((n, peer)) = socket.recv_from(&mut buffer).await else { continue };
                    let _ = socket.send_to(&buffer[..n], peer).await;
                }
            }
        }
    }
}

/// One request, one answer, which says whom the server saw: that is how a test knows what NAT did on the way.
async fn answer(mut stream: TcpStream, peer: SocketAddr, place: &str, app: App) -> io::Result<()> {
    let mut received = Vec::new();
    let takes_header = matches!(app, App::TakesProxy | App::DemandsProxy);
    if takes_header && !read_header(&mut stream, &mut received).await? && app == App::DemandsProxy {
        return reset(&stream);
    }
    if received.is_empty() && stream.read_buf(&mut received).await? == 0 {
        return Ok(());
    }
    if received.starts_with(b"GET ") {
        let body = format!("{place} saw {peer}\n");
        return respond(stream, "200 OK", &body).await;
    }
    if app == App::HttpOrReset {
        reset(&stream)
    } else {
        respond(stream, "400 Bad Request", "bad request\n").await
    }
}

async fn respond(mut stream: TcpStream, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await?;
    stream.shutdown().await
}

/// Has the connection end by a reset when it is dropped, as one does that a server closes without having read all.
fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Reads a PROXY header of version 2 if there is one, however it is split; what came behind it stays in `received`.
async fn read_header(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        if stream.read_buf(received).await? == 0 {
            return Ok(false);
        }
        match FirstBytes::of(received) {
            Some(FirstBytes::ProxyV2(Proxy::Whole(header))) => {
                received.drain(..header.len);
                return Ok(true);
            }
            Some(FirstBytes::ProxyV2(Proxy::Cut { .. })) => {}
            _ => return Ok(false),
        }
    }
}
