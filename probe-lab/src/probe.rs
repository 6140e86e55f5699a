//! One client's attempt, bounded in time, and what it saw.
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::{Netns, Ns};

/// Long enough for the retransmission of one SYN, as in the recordings.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Between the two segments of a split header: what is sent in one go may be put together on the way.
const BETWEEN_SEGMENTS: Duration = Duration::from_millis(20);

/// What a client tries: a TCP connection with one HTTP request, a UDP datagram or an ICMP echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Where the client sits.
    pub from: Ns,
    /// The address it binds to; `None` leaves it to the routes.
    pub src_ip: Option<Ipv4Addr>,
    /// The port it binds to; `None` leaves it to the kernel. For ICMP the echo's identifier.
    pub src_port: Option<u16>,
    /// The address it wants.
    pub dst: Ipv4Addr,
    /// The port it wants; ignored for ICMP.
    pub port: u16,
    /// Which protocol.
    pub proto: Proto,
    /// After which time it gives up.
    pub timeout: Duration,
    /// What it sends before its HTTP request.
    pub header: Header,
}

/// A PROXY header of version 2 that a [`Probe`] sends in front of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// None.
    None,
    /// As Azure's Private Link has it: the consumer as source, and [`LINK_ID`].
    Consumer {
        /// After how many bytes the first segment ends, if the header is to come in two.
        split_at: Option<usize>,
    },
    /// As its load balancer has it in front of a health probe: without a client.
    Probe,
}

/// The link identifier in [`Header::Consumer`].
pub const LINK_ID: u32 = 553_665_985;

impl Header {
    /// Its bytes, with the client's own end of the connection.
    fn bytes(self, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
        const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        match self {
            Self::None => Vec::new(),
            // Version 2 LOCAL, no family, no bytes more.
            Self::Probe => [SIGNATURE, &[0x20, 0x00, 0, 0]].concat(),
            // Version 2 PROXY, IPv4 STREAM, 20 bytes: two ends, and the TLV 0xEE of 5 bytes with subtype 1.
            Self::Consumer { .. } => [
                SIGNATURE,
                &[0x21, 0x11, 0, 20],
                &from.ip().octets(),
                &to.ip().octets(),
                &from.port().to_be_bytes(),
                &to.port().to_be_bytes(),
                &[0xee, 0, 5, 1],
                &LINK_ID.to_le_bytes(),
            ]
            .concat(),
        }
    }
}

/// A protocol that a [`Probe`] speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP, with an HTTP request once connected.
    Tcp,
    /// One UDP datagram, which an echo server sends back.
    Udp,
    /// One ICMP echo request.
    Icmp,
}

/// What the client saw; the words of the recordings' `expected.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientSaw {
    /// An answer.
    Ok,
    /// A reset, or an ICMP error that says so.
    Refused,
    /// Nothing.
    Timeout,
    /// Its connection was accepted, and what it sent then was turned away: by a reset, or by an HTTP error.
    Rejected,
}

/// What the client saw, and whom the server said it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What the client saw.
    pub saw: ClientSaw,
    /// The client's address as the server saw it; only HTTP servers tell.
    pub server_saw: Option<SocketAddrV4>,
}

impl Probe {
    /// A TCP probe from `src_ip`.
    pub fn tcp(from: Ns, src_ip: Ipv4Addr, dst: Ipv4Addr, port: u16) -> Self {
        Self {
            from,
            src_ip: Some(src_ip),
            src_port: None,
            dst,
            port,
            proto: Proto::Tcp,
            timeout: TIMEOUT,
            header: Header::None,
        }
    }

    /// The same from a fixed source port.
    #[must_use]
    pub fn with_src_port(self, src_port: u16) -> Self {
        Self { src_port: Some(src_port), ..self }
    }

    /// The same with a PROXY header in front of the request.
    #[must_use]
    pub fn with_header(self, header: Header) -> Self {
        Self { header, ..self }
    }

    /// The same with another protocol.
    #[must_use]
    pub fn with_proto(self, proto: Proto) -> Self {
        Self { proto, ..self }
    }

    /// Makes the attempt inside `netns`.
    pub(crate) fn send(&self, netns: &Netns) -> Result<Probed> {
        netns.run_in(|| self.attempt())?.with_context(|| format!("failed to probe {self}"))
    }

    fn attempt(&self) -> Result<Probed> {
        match self.proto {
            Proto::Tcp => self.http(),
            Proto::Udp => self.udp_echo().map(Probed::without_server),
            Proto::Icmp => self.icmp_echo().map(Probed::without_server),
        }
    }

    fn http(&self) -> Result<Probed> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        self.bind(&socket)?;
        let to = SocketAddrV4::new(self.dst, self.port);
        if let Err(err) = socket.connect_timeout(&to.into(), self.timeout) {
            return Ok(Probed::without_server(ClientSaw::from_error(err)?));
        }
        match self.request(socket.into()) {
            Ok(probed) => Ok(probed),
            Err(err) => Ok(Probed::without_server(match ClientSaw::from_error(err)? {
                ClientSaw::Refused => ClientSaw::Rejected,
                saw => saw,
            })),
        }
    }

    /// Sends the request and reads what the server answers.
    fn request(&self, mut stream: TcpStream) -> io::Result<Probed> {
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.set_nodelay(true)?;
        self.send_header(&mut stream)?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.dst);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            let server_saw = answer.rsplit_once(" saw ").and_then(|(_, peer)| peer.trim().parse().ok());
            return Ok(Probed { saw: ClientSaw::Ok, server_saw });
        }
        if answer.starts_with("HTTP/1.1 ") {
            return Ok(Probed::without_server(ClientSaw::Rejected));
        }
        Err(io::Error::other(format!("not an HTTP answer: `{answer}`")))
    }

    fn send_header(&self, stream: &mut TcpStream) -> io::Result<()> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (stream.local_addr()?, stream.peer_addr()?) else {
            return Err(io::Error::other("an IPv4 socket has other addresses"));
        };
        let bytes = self.header.bytes(from, to);
        let split_at = match self.header {
            Header::Consumer { split_at: Some(split_at) } => split_at,
            _ => bytes.len(),
        };
        let (first, rest) = bytes.split_at(split_at);
        stream.write_all(first)?;
        if !rest.is_empty() {
            // Without Nagle each write is a segment; one after the other was acknowledged stays one on any link.
            std::thread::sleep(BETWEEN_SEGMENTS);
            stream.write_all(rest)?;
        }
        Ok(())
    }

    fn udp_echo(&self) -> Result<ClientSaw> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        self.bind(&socket)?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(self.timeout))?;
        let exchange = || -> io::Result<()> {
            socket.connect((self.dst, self.port))?;
            socket.send(b"plsprobe-lab")?;
            socket.recv(&mut [0; 64])?;
            Ok(())
        };
        exchange().map_or_else(ClientSaw::from_error, |()| Ok(ClientSaw::Ok))
    }

    fn icmp_echo(&self) -> Result<ClientSaw> {
        static NEXT_ID: AtomicU16 = AtomicU16::new(0x4000);
        let id = self.src_port.unwrap_or_else(|| NEXT_ID.fetch_add(1, Ordering::Relaxed));
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        if let Some(src_ip) = self.src_ip {
            socket.bind(&SocketAddrV4::new(src_ip, 0).into())?;
        }
        if let Err(err) = socket.send_to(&echo_request(id), &SocketAddrV4::new(self.dst, 0).into()) {
            return ClientSaw::from_error(err);
        }
        let end = Instant::now() + self.timeout;
        // A raw socket sees every ICMP packet of the namespace: wait for ours.
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(ClientSaw::Timeout);
            }
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [MaybeUninit::uninit(); 256];
            match socket.recv_from(&mut buffer) {
                Ok((n, from)) => {
                    // SAFETY: `recv_from` initialized the first `n` bytes.
                    let packet = unsafe { buffer[..n].assume_init_ref() };
                    let from = from.as_socket_ipv4().map(|from| *from.ip());
                    if from == Some(self.dst) && is_echo_reply(packet, id) {
                        return Ok(ClientSaw::Ok);
                    }
                }
                Err(err) => return ClientSaw::from_error(err),
            }
        }
    }

    fn bind(&self, socket: &Socket) -> io::Result<()> {
        let address = SocketAddrV4::new(
            self.src_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
            self.src_port.unwrap_or_default(),
        );
        socket.bind(&address.into())
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = match self.proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Icmp => "icmp",
        };
        match self.src_ip {
            Some(src_ip) => write!(f, "{src_ip} -> {}:{}/{proto}", self.dst, self.port),
            None => write!(f, "{} -> {}:{}/{proto}", self.from.suffix(), self.dst, self.port),
        }
    }
}

impl Probed {
    fn without_server(saw: ClientSaw) -> Self {
        Self { saw, server_saw: None }
    }
}

impl ClientSaw {
    /// What the client sees in `err`, or the error again if it is none of the network's making.
    fn from_error(err: io::Error) -> Result<Self> {
        match err.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Ok(Self::Refused),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Ok(Self::Timeout),
            _ => Err(err.into()),
        }
    }
}

impl fmt::Display for ClientSaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
        })
    }
}

/// An ICMP echo request without data.
fn echo_request(id: u16) -> [u8; 8] {
    let [id_high, id_low] = id.to_be_bytes();
    let mut packet = [8, 0, 0, 0, id_high, id_low, 0, 1];
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Whether `packet`, with its IPv4 header, answers [`echo_request`]`(id)`.
fn is_echo_reply(packet: &[u8], id: u16) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.get(header..).is_some_and(|icmp| icmp.len() >= 8 && icmp[0] == 0 && icmp[4..6] == id.to_be_bytes())
}
