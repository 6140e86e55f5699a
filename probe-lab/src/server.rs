//! Small servers inside the namespaces: HTTP on TCP, echo on UDP.
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::instance::Instance;
use crate::netns::Ns;

/// One service of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Http { ns: Ns, address: Ipv4Addr, port: u16 },
    UdpEcho { ns: Ns, address: Ipv4Addr, port: u16 },
}

/// A bound socket; it belongs to its namespace wherever it is served from.
#[derive(Debug)]
pub(crate) enum Bound {
    Http(TcpListener, &'static str),
    UdpEcho(UdpSocket),
}

impl Service {
    /// Binds inside the service's namespace.
    pub(crate) fn bind(self, instance: &Instance) -> Result<Bound> {
        match self {
            Self::Http { ns, address, port } => {
                let at = SocketAddrV4::new(address, port);
                let listener = instance
                    .netns(ns)
                    .run_in(|| {
                        let listener = TcpListener::bind(at)?;
                        listener.set_nonblocking(true)?;
                        io::Result::Ok(listener)
                    })?
                    .with_context(|| format!("failed to listen on `{at}` in `{}`", ns.suffix()))?;
                Ok(Bound::Http(listener, ns.suffix()))
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
            Self::Http(listener, place) => {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    // What `accept` reports is one connection's trouble; the pause keeps a lasting one from spinning.
                    let Ok((stream, peer)) = listener.accept().await else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    // A client that goes away is no concern of the others.
                    tokio::spawn(async move {
                        let _ = answer(stream, peer, place).await;
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
async fn answer(mut stream: tokio::net::TcpStream, peer: SocketAddr, place: &str) -> io::Result<()> {
    let mut request = [0; 2048];
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    let body = format!("{place} saw {peer}\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}
