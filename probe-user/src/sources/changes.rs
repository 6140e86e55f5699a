//! Tells when an interface or a tc filter of this network namespace comes, goes or changes.

use std::io;

use anyhow::{Context as _, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// `RTNLGRP_LINK` and `RTNLGRP_TC` of `include/uapi/linux/rtnetlink.h`. Nothing tells of tcx.
const GROUPS: [u32; 2] = [1, 4];
/// Messages taken in one go, so that a flood does not keep its reader from everything else.
const TAKEN_MAX: usize = 256;

/// `RTM_NEWLINK` and `RTM_DELLINK`.
const LINK_MESSAGES: [u16; 2] = [16, 17];

/// What changed, as far as it is read: whoever is told looks for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Filters alone.
    Filters,
    /// An interface, or nobody knows what.
    Interfaces,
}

/// The stream of changes.
#[derive(Debug)]
pub struct Changes(AsyncFd<Socket>);

impl Changes {
    /// Begins to listen, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no such socket.
    pub fn listen() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("failed to open a netlink socket")?;
        socket.bind(&SocketAddr::new(0, 0)).context("failed to bind a netlink socket")?;
        socket.set_non_blocking(true).context("failed to keep a netlink socket from blocking")?;
        for group in GROUPS {
            socket.add_membership(group).context("failed to listen to the kernel's changes by netlink")?;
        }
        Ok(Self(sys::watch_netlink(socket).context("failed to watch a netlink socket")?))
    }

    /// Waits until something has changed. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the socket breaks.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut changed = None;
            for _ in 0..TAKEN_MAX {
                match one(self.0.get_ref()) {
                    Ok(change) => changed = changed.max(Some(change)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some(change) = changed {
                return Ok(change);
            }
        }
    }
}

/// What one message tells of: its header says it, the rest is cut off.
fn one(socket: &Socket) -> io::Result<Change> {
    let mut header = [0; 16];
    match socket.recv(&mut &mut header[..], 0) {
        Ok(_) if !LINK_MESSAGES.contains(&u16::from_ne_bytes([header[4], header[5]])) => Ok(Change::Filters),
        Ok(_) => Ok(Change::Interfaces),
        // So much changed that the kernel gave up telling.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Change::Interfaces),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attach::tests::{scratch, sh};

    #[test]
    fn a_filter_and_an_interface_are_told_of() {
        scratch(|_| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                sh("tc qdisc replace dev v0 clsact");
                let mut changes = Changes::listen().unwrap();
                let quiet = tokio::time::timeout(Duration::from_millis(10), changes.next()).await;
                assert!(quiet.is_err(), "nothing changes by itself");
                for (change, what) in [
                    (
                        "tc filter add dev v0 ingress prio 1 handle 1 bpf da bytecode '1,6 0 0 0'",
                        Change::Filters,
                    ),
                    ("tc filter del dev v0 ingress", Change::Filters),
                    ("ip link add p0 type veth peer name p1", Change::Interfaces),
                    ("ip link del p0", Change::Interfaces),
                ] {
                    sh(change);
                    let told = tokio::time::timeout(Duration::from_secs(30), changes.next()).await;
                    let told = told.unwrap_or_else(|_| panic!("not told of `{change}`")).unwrap();
                    assert_eq!(told, what, "{change}");
                    // The kernel tells of one change in several messages, some a moment later.
                    while tokio::time::timeout(Duration::from_millis(100), changes.next()).await.is_ok() {}
                }
                // More than the socket has room for.
                for _ in 0..40 {
                    sh("for i in 1 2 3 4 5 6 7 8; do ip link set v0 alias $i; done");
                }
                assert_eq!(changes.next().await.unwrap(), Change::Interfaces);
            });
        });
    }
}
