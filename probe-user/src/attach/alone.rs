//! Whether another plsprobe is tracing in this network namespace.
//!
//! Leftovers are recognised by name, and so are the filters of a plsprobe that is alive. Abstract sockets belong to a
//! network namespace exactly as tc filters do, and go with their process: each plsprobe holds one of a few names, and
//! only one that could have had all of them is alone and may remove what it finds.
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Result, bail};

/// Names, and so plsprobes at a time in one network namespace.
pub(super) const SLOTS: u32 = 16;
/// How often all names are found taken before giving up: a plsprobe that starts holds all of them for a moment.
const ATTEMPTS: u32 = 20;

/// One of the names, until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _socket: UnixDatagram,
    alone: bool,
}

impl Slot {
    pub(super) fn take() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let mut taken = false;
            let mut free = Vec::new();
            for slot in 0..SLOTS {
                match bind(slot) {
                    Ok(socket) => free.push(socket),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = true,
                    Err(error) => return Err(error.into()),
                }
            }
            if let Some(socket) = free.pop() {
                return Ok(Self { _socket: socket, alone: !taken });
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        bail!("{SLOTS} plsprobes are tracing on this node already; wait for one to end")
    }

    /// Whether no other plsprobe was tracing here.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }
}

fn bind(slot: u32) -> io::Result<UnixDatagram> {
    let name = format!("plsprobe-trace.{slot}");
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}
