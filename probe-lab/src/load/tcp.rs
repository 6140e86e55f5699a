//! Requests over TCP connections, old and new.
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::control::{Control, Turn};
use super::latency::Latencies;
use super::pace::Pace;
use super::{LoadOptions, pattern};
use crate::addresses::{APP, ILB, NAT_IPS, SERVICE_PORT};
use crate::instance::Instance;
use crate::netns::{Netns, Ns};

/// Bytes of a request, one segment.
const REQUEST: usize = 200;
/// Bytes of the answer, three segments.
const ANSWER: usize = 4000;
/// How many requests are sent before the word to go on is asked for again.
const BURST: u32 = 8;

/// What became of the exchanges.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// Connections opened.
    pub(super) opened: u64,
    /// Requests answered with the right bytes.
    pub(super) answered: u64,
    /// Connections that were refused or reset.
    pub(super) reset: u64,
    /// Connections on which nothing came for too long.
    pub(super) stalled: u64,
    /// Exchanges with other bytes than expected.
    pub(super) wrong: u64,
    /// What the first failure was.
    pub(super) error: Option<String>,
    /// From the request to the whole answer.
    pub(super) latencies: Latencies,
}

/// Both ends of connections that live as long as the load.
#[derive(Debug)]
pub(super) struct Persistent {
    connections: Vec<(TcpStream, TcpStream)>,
    rate: u32,
}

/// Connections with one request each, from a NAT IP to the load balancer's frontend.
#[derive(Debug)]
pub(super) struct Newcomers {
    netns: Netns,
    rate: u32,
    patience: Duration,
}

impl Exchanged {
    fn new() -> Self {
        Self {
            opened: 0,
            answered: 0,
            reset: 0,
            stalled: 0,
            wrong: 0,
            error: None,
            latencies: Latencies::new(),
        }
    }

    fn count(&mut self, result: io::Result<Duration>) {
        let error = match result {
            Ok(took) => {
                self.answered += 1;
                return self.latencies.add(took);
            }
            Err(error) => error,
        };
        *match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => &mut self.stalled,
            io::ErrorKind::InvalidData => &mut self.wrong,
            _ => &mut self.reset,
        } += 1;
        self.error.get_or_insert_with(|| error.to_string());
    }
}

impl Persistent {
    /// Opens every connection, from the clients in turn.
    pub(super) fn open(
        instance: &Instance,
        clients: &[(Ns, Ipv4Addr)],
        options: &LoadOptions,
    ) -> Result<Self> {
        let listener = instance
            .netns(Ns::App)
            .run_in(|| TcpListener::bind((APP, 0)))?
            .with_context(|| format!("failed to listen at `{APP}` in the pod"))?;
        let to = match listener.local_addr()? {
            std::net::SocketAddr::V4(to) => to,
            other @ std::net::SocketAddr::V6(_) => anyhow::bail!("listening at {other}, expected IPv4"),
        };
        let connections = (0..options.connections)
            .zip(clients.iter().cycle())
            .map(|(_, (ns, from))| {
                let client = instance.netns(*ns).run_in(|| connect(*from, to, options.patience))?;
                let client = client.with_context(|| format!("failed to connect from `{from}` to `{to}`"))?;
                let (server, _) = listener.accept()?;
                prepare(&server, options.patience)?;
                Ok((client, server))
            })
            .collect::<Result<_>>()?;
        Ok(Self { connections, rate: options.requests })
    }

    /// One request after another on each connection in turn; one that failed is not used again.
    pub(super) fn run(mut self, control: &Control) -> Exchanged {
        let mut exchanged = Exchanged { opened: self.connections.len() as u64, ..Exchanged::new() };
        let mut pace = Pace::new(Some(self.rate));
        let mut number = 0_usize;
        while control.goes_on(true) == Turn::Send {
            for _ in 0..pace.due(BURST) {
                let Some(at) = number.checked_rem(self.connections.len()) else { break };
                let (client, server) = &mut self.connections[at];
                let result = exchange(client, server, number as u64);
                if result.is_err() {
                    self.connections.swap_remove(at);
                }
                exchanged.count(result);
                number += 1;
            }
        }
        exchanged
    }
}

impl Newcomers {
    pub(super) fn new(instance: &Instance, options: &LoadOptions) -> Self {
        Self { netns: instance.netns(Ns::Pls), rate: options.new_connections, patience: options.patience }
    }

    pub(super) fn run(self, control: &Control) -> Exchanged {
        let entered = self.netns.run_in(|| {
            let mut exchanged = Exchanged::new();
            let mut pace = Pace::new(Some(self.rate));
            while control.goes_on(true) == Turn::Send {
                for _ in 0..pace.due(1) {
                    exchanged.opened += 1;
                    exchanged.count(ask_frontend(self.patience));
                }
            }
            exchanged
        });
        entered.unwrap_or_else(|error| Exchanged { error: Some(format!("{error:#}")), ..Exchanged::new() })
    }
}

fn connect(from: Ipv4Addr, to: SocketAddrV4, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), patience)?;
    let stream = socket.into();
    prepare(&stream, patience)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}

/// One request and its answer, both ends of it; says how long it took from the first byte to the last.
fn exchange(client: &mut TcpStream, server: &mut TcpStream, number: u64) -> io::Result<Duration> {
    let began = Instant::now();
    send(client, server, number << 1, &mut [0; REQUEST])?;
    send(server, client, number << 1 | 1, &mut [0; ANSWER])?;
    Ok(began.elapsed())
}

fn send(from: &mut TcpStream, to: &mut TcpStream, seed: u64, bytes: &mut [u8]) -> io::Result<()> {
    pattern::fill(seed, bytes);
    from.write_all(bytes)?;
    bytes.fill(0);
    to.read_exact(bytes)?;
    if pattern::matches(seed, bytes) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes than were sent"))
}

/// A connection to the load balancer's frontend, which the lab's own server in the pod answers with whom it saw.
fn ask_frontend(patience: Duration) -> io::Result<Duration> {
    let began = Instant::now();
    let mut stream = connect(NAT_IPS[1], SocketAddrV4::new(ILB, SERVICE_PORT), patience)?;
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    // Whom, depends on the shape: kube-proxy's rules may masquerade.
    if answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\n\r\napp saw ") {
        return Ok(began.elapsed());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("not the pod's answer: `{answer}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_reset_a_stall_and_wrong_bytes_are_told_apart() {
        let mut exchanged = Exchanged::new();
        let (mut client, mut server) = pair();
        exchanged.count(exchange(&mut client, &mut server, 1));
        assert_eq!(exchanged.answered, 1);

        server.write_all(b"stray").unwrap();
        exchanged.count(exchange(&mut client, &mut server, 2));
        assert_eq!(exchanged.wrong, 1);

        let ((mut client, _far), (_near, mut other)) = (pair(), pair());
        other.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        exchanged.count(exchange(&mut client, &mut other, 3));
        assert_eq!(exchanged.stalled, 1);

        let (mut client, mut server) = pair();
        client.shutdown(std::net::Shutdown::Both).unwrap();
        exchanged.count(exchange(&mut client, &mut server, 4));
        assert_eq!(exchanged.reset, 1);
        assert!(exchanged.error.is_some());
    }
}
