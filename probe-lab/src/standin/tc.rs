//! Legacy tc filters as Cilium attaches them, by netlink: clsact, priority 1, handle 1, direct action, named.
//!
//! Done by hand for two things that aya has no word for: the filter's name, and replacing it in place. All of it
//! acts on the network namespace of the calling thread.
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

/// Which way packets pass the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Into the host.
    Ingress,
    /// Out of it.
    Egress,
}

/// One attached program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    /// As `tc filter show` prints it.
    pub(super) name: String,
    /// Interface.
    pub(super) ifname: String,
    /// Side.
    pub(super) direction: Direction,
}

const PRIORITY: u32 = 1;
const HANDLE: u32 = 1;

// linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const ETH_P_ALL_BE: u32 = 0x0300;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: i32 = 2;

impl Filter {
    /// Attaches `program`, in place of whatever is there.
    pub(super) fn replace(&self, program: BorrowedFd<'_>) -> Result<()> {
        let ifindex = ifindex(&self.ifname)?;
        add_clsact(ifindex).with_context(|| format!("failed to add clsact to `{}`", self.ifname))?;
        let mut message = self.message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, ifindex);
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
        attribute(&mut options, TCA_BPF_NAME, &zero_terminated(&self.name));
        attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        attribute(&mut message, TCA_OPTIONS, &options);
        request(message).with_context(|| format!("failed to attach `{}`", self.name))
    }

    /// Detaches; that it is gone already is as good.
    pub(super) fn delete(&self) -> Result<()> {
        let Ok(ifindex) = ifindex(&self.ifname) else { return Ok(()) };
        match request(self.message(RTM_DELTFILTER, 0, ifindex)) {
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.with_context(|| format!("failed to detach `{}`", self.name)),
        }
    }

    fn message(&self, kind: u16, flags: u16, ifindex: u32) -> Vec<u8> {
        let parent = match self.direction {
            Direction::Ingress => 0xffff_fff2,
            Direction::Egress => 0xffff_fff3,
        };
        let mut message = header(kind, flags, ifindex, HANDLE, parent, PRIORITY << 16 | ETH_P_ALL_BE);
        attribute(&mut message, TCA_KIND, b"bpf\0");
        message
    }
}

/// The number of an interface in the calling thread's network namespace.
pub(super) fn ifindex(ifname: &str) -> Result<u32> {
    let name = CString::new(ifname)?;
    // SAFETY: `name` is a zero-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => {
            let err = io::Error::last_os_error();
            bail!("failed to find interface `{ifname}` in the node's namespace: {err}")
        }
        ifindex => Ok(ifindex),
    }
}

fn add_clsact(ifindex: u32) -> io::Result<()> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let mut message = header(RTM_NEWQDISC, flags, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0);
    attribute(&mut message, TCA_KIND, b"clsact\0");
    match request(message) {
        Err(err) if err.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// `struct nlmsghdr` (its length still 0) and `struct tcmsg`.
fn header(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // family, padding
    for word in [ifindex, handle, parent, info] {
        message.extend(word.to_ne_bytes());
    }
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((value.len() as u16 + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn zero_terminated(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

/// Sends one request and waits for its acknowledgement.
fn request(mut message: Vec<u8>) -> io::Result<()> {
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    // SAFETY: no pointer is passed.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    let mut socket = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.write_all(&message)?;
    let mut answer = [0; 4096];
    let n = socket.read(&mut answer)?;
    let word = |at: usize| answer[..n].get(at..at + 4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (word(4), word(16)) {
        (Some(kind), Some(errno)) if kind & 0xffff == NLMSG_ERROR => match errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        },
        _ => Err(io::Error::other(format!("netlink answered {n} bytes, expected an acknowledgement"))),
    }
}
