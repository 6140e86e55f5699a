//! The socket trace: a socket's service address was translated.

use core::fmt;

use super::header::put;
use super::{Misfit, SOCKET_TRACE, is_within_padding};
use crate::cilium::{part, u16_le, u64_le};

pub(super) const WHAT: &str = "trace_sock_notify";
pub(super) const KNOWN: &str = "38 bytes (Cilium 1.13 to 1.18) and 40 (1.19 and later)";
/// Bytes up to 1.18, where the structure is packed.
pub(super) const PACKED: usize = 38;
/// Bytes from 1.19 on, where its fields are aligned.
pub(super) const ALIGNED: usize = 40;

/// On which side of which translation a socket trace was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XlatePoint(pub u8);

impl XlatePoint {
    /// The name that Cilium prints.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 5] =
            ["unknown", "pre-xlate-fwd", "post-xlate-fwd", "pre-xlate-rev", "post-xlate-rev"];
        NAMES.get(usize::from(self.0)).copied()
    }
}

impl fmt::Display for XlatePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "translation point {}", self.0),
        }
    }
}

/// Which of its two layouts a socket trace has. The notification does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketTraceLayout {
    /// 38 bytes, up to 1.18.
    Packed,
    /// 40 bytes, from 1.19 on.
    Aligned,
}

/// A socket's service address was translated. Only with socket load balancing; no packet follows.
///
/// Source: `struct trace_sock_notify`, Cilium 1.13 to 1.20 `bpf/lib/trace_sock.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketTrace {
    /// The layout it came in.
    pub layout: SocketTraceLayout,
    /// On which side of which translation.
    pub xlate_point: XlatePoint,
    /// 0 unknown, 1 TCP, 2 UDP: Cilium's own numbers, not the IP protocol's.
    pub l4_proto: u8,
    /// IPv6.
    pub ipv6: bool,
    /// Destination port, host order.
    pub dst_port: u16,
    /// Destination address, IPv4 in the first four bytes.
    pub dst_ip: [u8; 16],
    /// The kernel's cookie of the socket.
    pub sock_cookie: u64,
    /// The process's control group.
    pub cgroup_id: u64,
}

/// Where the fields lie.
struct Places {
    l4_proto: usize,
    ipv6: usize,
    dst_port: usize,
    dst_ip: usize,
    sock_cookie: usize,
    cgroup_id: usize,
}

const PACKED_PLACES: Places =
    Places { dst_ip: 2, dst_port: 18, sock_cookie: 20, cgroup_id: 28, l4_proto: 36, ipv6: 37 };
const ALIGNED_PLACES: Places =
    Places { l4_proto: 2, ipv6: 3, dst_port: 4, sock_cookie: 8, cgroup_id: 16, dst_ip: 24 };

impl SocketTraceLayout {
    /// Bytes of the notification.
    pub fn size(self) -> usize {
        match self {
            Self::Packed => PACKED,
            Self::Aligned => ALIGNED,
        }
    }

    fn places(self) -> &'static Places {
        match self {
            Self::Packed => &PACKED_PLACES,
            Self::Aligned => &ALIGNED_PLACES,
        }
    }
}

impl SocketTrace {
    /// Why the bytes of a sample cannot be a socket trace of `size` bytes. Only asks what is true of every genuine one.
    pub(super) fn misfit(raw: &[u8], size: usize) -> Option<Misfit> {
        if raw.len() < size || !is_within_padding(raw.len(), size) {
            return Some(Misfit::Length);
        }
        let places = if size == PACKED { PACKED_PLACES } else { ALIGNED_PLACES };
        let is_ipv4 = raw[places.ipv6] == 0;
        let rest_of_address = &raw[places.dst_ip + 4..places.dst_ip + 16];
        if raw[places.ipv6] > 1
            || size == ALIGNED && raw[6..8] != [0; 2]
            || is_ipv4 && rest_of_address.iter().any(|byte| *byte != 0)
        {
            return Some(Misfit::Padding);
        }
        (raw[places.l4_proto] > 2).then_some(Misfit::Protocol)
    }

    /// Reads a notification of exactly 38 or 40 bytes.
    pub(super) fn decode(raw: &[u8]) -> Self {
        let layout = if raw.len() == PACKED { SocketTraceLayout::Packed } else { SocketTraceLayout::Aligned };
        let places = layout.places();
        Self {
            layout,
            xlate_point: XlatePoint(raw[1]),
            l4_proto: raw[places.l4_proto],
            ipv6: raw[places.ipv6] & 1 != 0,
            dst_port: u16_le(raw, places.dst_port),
            dst_ip: part(raw, places.dst_ip),
            sock_cookie: u64_le(raw, places.sock_cookie),
            cgroup_id: u64_le(raw, places.cgroup_id),
        }
    }

    /// The notification in its layout.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; self.layout.size()];
        let places = self.layout.places();
        (raw[0], raw[1]) = (SOCKET_TRACE, self.xlate_point.0);
        raw[places.l4_proto] = self.l4_proto;
        raw[places.ipv6] = self.ipv6.into();
        put(&mut raw, places.dst_port, self.dst_port.to_le_bytes());
        put(&mut raw, places.dst_ip, self.dst_ip);
        put(&mut raw, places.sock_cookie, self.sock_cookie.to_le_bytes());
        put(&mut raw, places.cgroup_id, self.cgroup_id.to_le_bytes());
        raw
    }
}
