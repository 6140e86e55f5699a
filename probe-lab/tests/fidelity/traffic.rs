//! Sending what was recorded: the lab's own TCP probe, and datagrams with the recorded bytes.
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use probe_lab::{ClientSaw, Lab, Ns, Probe, Proto};
use socket2::{Domain, Protocol, Socket, Type};

use crate::recording::RecordedProbe;

const TIMEOUT: Duration = Duration::from_millis(1500);

/// Sends a recorded probe; `payload` is what the recorded packet carried.
pub(crate) fn send(lab: &Lab, ns: Ns, probe: &RecordedProbe, payload: &[u8]) -> Result<ClientSaw> {
    let port = probe.from_port.unwrap_or_default();
    let from = SocketAddrV4::new(probe.from_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    match probe.proto() {
        Proto::Tcp => lab.probe(&Probe {
            src_ip: probe.from_ip,
            ..Probe::tcp(ns, *from.ip(), probe.to, probe.port).with_src_port(port)
        }),
        Proto::Udp => lab.run_in(ns, || udp(from, SocketAddrV4::new(probe.to, probe.port), payload))?,
        Proto::Icmp => lab.run_in(ns, || icmp_echo(*from.ip(), probe.to, payload))?,
    }
}

fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<ClientSaw> {
    let socket = UdpSocket::bind(from).with_context(|| format!("failed to bind `{from}`"))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(to)?;
    socket.send(payload)?;
    match socket.recv(&mut [0; 256]) {
        Ok(_) => Ok(ClientSaw::Ok),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(ClientSaw::Timeout),
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(ClientSaw::Refused),
        Err(err) => Err(err.into()),
    }
}

/// One echo request with the recorded data, and whether it was answered.
fn icmp_echo(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Result<ClientSaw> {
    const ID: u16 = 0x5a5a;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    let mut message = [[8, 0, 0, 0].as_slice(), &ID.to_be_bytes(), &1_u16.to_be_bytes(), data].concat();
    let checksum = checksum(&message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    // `ping` asks for it, and it is in the packet.
    set_mtu_discovery(&socket, libc::IP_PMTUDISC_DO)?;
    socket.send_to(&message, &SocketAddrV4::new(to, 0).into())?;
    let end = Instant::now() + TIMEOUT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(ClientSaw::Timeout);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [MaybeUninit::uninit(); 256];
        match socket.recv(&mut buffer) {
            Ok(n) => {
                // SAFETY: `recv` initialized the first `n` bytes.
                let packet = unsafe { buffer[..n].assume_init_ref() };
                if packet.get(20) == Some(&0) && packet.get(24..26) == Some(&ID.to_be_bytes()) {
                    return Ok(ClientSaw::Ok);
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(ClientSaw::Timeout),
            Err(err) => return Err(err.into()),
        }
    }
}

/// Sends `message`, an ICMP error with its checksum, as a kernel would: without waiting for anything.
pub(crate) fn icmp(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    // As the kernel's own: precedence network control, may be fragmented.
    socket.set_tos_v4(0xc0)?;
    set_mtu_discovery(&socket, libc::IP_PMTUDISC_DONT)?;
    socket.send_to(message, &SocketAddrV4::new(to, 0).into())?;
    Ok(())
}

/// Path MTU discovery decides on the "don't fragment" bit.
fn set_mtu_discovery(socket: &Socket, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn checksum(message: &[u8]) -> u16 {
    let sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
