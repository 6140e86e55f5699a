//! Numbered datagrams between a client and the pod, in both directions over one pair of sockets.
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::control::{Control, Turn};
use super::pace::Pace;
use super::{CLIENTS, LoadOptions, pattern};
use crate::addresses::APP;
use crate::instance::Instance;
use crate::netns::Ns;

/// Bytes of a datagram: its number, then what follows from it.
const LEN: usize = 64;
/// Datagrams sent before the other end is read.
const BURST: u32 = 32;
/// Datagrams under way in one direction: all directions of all pairs together stay below `netdev_max_backlog` (1000),
/// the shortest queue on the way.
const WINDOW: u64 = 200;
/// Asked for, beyond the system's limit: far more than a window.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;

/// Two connected sockets.
#[derive(Debug)]
pub(super) struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    /// Datagrams per second in one direction.
    rate: Option<u32>,
    patience: Duration,
}

/// What became of the datagrams of a pair.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) to_pod: Direction,
    pub(super) from_pod: Direction,
    /// Datagrams that found a receive buffer full.
    pub(super) overrun: u64,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) sent: u64,
    /// Once each.
    pub(super) received: u64,
    pub(super) duplicated: u64,
    /// With other bytes than were sent.
    pub(super) changed: u64,
    /// What the socket said, the first time.
    pub(super) error: Option<String>,
    /// One bit for each number.
    arrived: Vec<u64>,
    /// Numbers given up on, so that others can be sent.
    written_off: u64,
    /// Tells the numbers of one direction from those of another.
    salt: u64,
    progress: Option<Instant>,
}

impl Pair {
    /// Opens both ends: the client's in its namespace, the server's in the pod's.
    pub(super) fn open(
        instance: &Instance,
        (ns, address): (Ns, Ipv4Addr),
        options: &LoadOptions,
    ) -> Result<Self> {
        let bound = |ns, address| {
            let socket = instance.netns(ns).run_in(|| bind(address))?;
            socket.with_context(|| format!("failed to open a UDP socket at `{address}` in `{}`", ns.suffix()))
        };
        let (client, server) = (bound(ns, address)?, bound(Ns::App, APP)?);
        client.connect(server.local_addr()?)?;
        server.connect(client.local_addr()?)?;
        let rate = options.pps.map(|pps| pps / (2 * CLIENTS.len() as u32));
        Ok(Self { client, server, rate, patience: options.patience })
    }

    /// Sends until told to end, then waits for what is under way.
    pub(super) fn run(self, control: &Control) -> Sent {
        let mut pace = Pace::new(self.rate);
        let port = self.client.local_addr().map_or(0, |at| u64::from(at.port()));
        let (mut to_pod, mut from_pod) = (Direction::new(port << 1), Direction::new(port << 1 | 1));
        let mut turn = Turn::Send;
        let mut settled = true;
        while turn != Turn::End || !settled {
            if turn == Turn::Send {
                let due = pace.due(BURST);
                to_pod.send(&self.client, due);
                from_pod.send(&self.server, due);
            }
            let arrived = to_pod.receive(&self.server) + from_pod.receive(&self.client);
            if arrived == 0 {
                // Under way in some queue, of a CPU that has other things to do.
                std::thread::sleep(Duration::from_micros(50));
            }
            to_pod.give_up_after(self.patience);
            from_pod.give_up_after(self.patience);
            settled = to_pod.under_way() + from_pod.under_way() == 0;
            turn = control.goes_on(settled);
        }
        let overrun = dropped(&self.client) + dropped(&self.server);
        Sent { to_pod, from_pod, overrun }
    }
}

impl Direction {
    fn new(salt: u64) -> Self {
        Self { salt: salt << 48, ..Self::default() }
    }

    /// What did not arrive.
    pub(super) fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// Writes off what is under way if nothing has arrived for this long.
    fn give_up_after(&mut self, patience: Duration) {
        if self.under_way() > 0 && self.progress.is_some_and(|at| at.elapsed() > patience) {
            self.written_off = self.lost();
        }
    }

    fn under_way(&self) -> u64 {
        self.lost().saturating_sub(self.written_off)
    }

    /// Sends as many as are due and the window allows.
    fn send(&mut self, socket: &UdpSocket, due: u32) {
        if self.under_way() == 0 {
            self.progress = Some(Instant::now());
        }
        for _ in 0..u64::from(due).min(WINDOW.saturating_sub(self.under_way())) {
            let mut datagram = [0; LEN];
            let (number, rest) = datagram.split_at_mut(8);
            number.copy_from_slice(&self.sent.to_le_bytes());
            pattern::fill(self.salt ^ self.sent, rest);
            match socket.send(&datagram) {
                Ok(_) => self.sent += 1,
                // Not taken, so not sent: the number is used again.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) => return self.fail(&err),
            }
        }
    }

    /// Reads all that is there, and says how much that was.
    fn receive(&mut self, socket: &UdpSocket) -> u64 {
        let mut datagram = [0; 2 * LEN];
        let mut count = 0;
        loop {
            match socket.recv(&mut datagram) {
                Ok(len) => self.take(&datagram[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return count,
                Err(err) => {
                    self.fail(&err);
                    return count;
                }
            }
            count += 1;
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        self.progress = Some(Instant::now());
        let number = datagram.first_chunk().map(|number| u64::from_le_bytes(*number));
        let known = number.filter(|number| {
            datagram.len() == LEN
                && *number < self.sent
                && pattern::matches(self.salt ^ number, &datagram[8..])
        });
        let Some(number) = known else {
            self.changed += 1;
            return;
        };
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.arrived.len() <= word {
            self.arrived.resize(word + 1, 0);
        }
        if self.arrived[word] & bit == 0 {
            self.arrived[word] |= bit;
            self.received += 1;
        } else {
            self.duplicated += 1;
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.error.get_or_insert_with(|| error.to_string());
    }
}

fn bind(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // With CAP_NET_ADMIN, which a lab needs anyway.
    set_receive_buffer(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(address, 0).into())?;
    Ok(socket.into())
}

fn set_receive_buffer(socket: &Socket) -> io::Result<()> {
    let bytes = RECEIVE_BUFFER;
    // SAFETY: the option is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the socket could not keep, the number that `SO_RXQ_OVFL` puts beside a datagram.
fn dropped(socket: &UdpSocket) -> u64 {
    /// `SK_MEMINFO_DROPS` and `SK_MEMINFO_VARS` of `linux/sock_diag.h`.
    const DROPS: usize = 8;
    const VARS: usize = 9;
    let mut info = [0_u32; VARS];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`; both outlive the call.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    u64::from(info[DROPS])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(direction: &Direction, number: u64) -> [u8; LEN] {
        let mut datagram = [0; LEN];
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        pattern::fill(direction.salt ^ number, &mut datagram[8..]);
        datagram
    }

    #[test]
    fn what_is_lost_twice_there_or_changed_is_told_apart() {
        let mut direction = Direction { sent: 200, ..Direction::new(9) };
        for number in (0..200).filter(|number| *number != 77) {
            direction.take(&datagram(&direction, number));
        }
        direction.take(&datagram(&direction, 3));
        direction.take(&datagram(&direction, 200));
        let mut changed = datagram(&direction, 77);
        changed[20] ^= 1;
        direction.take(&changed);
        direction.take(&datagram(&Direction::new(8), 77));
        direction.take(&datagram(&direction, 5)[..LEN - 1]);
        direction.take(&[]);
        let Direction { received, duplicated, changed, .. } = direction;
        assert_eq!((received, direction.lost(), duplicated, changed), (199, 1, 1, 5));
    }
}
