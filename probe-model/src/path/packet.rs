//! One packet, as much of it as tells flows and packets apart.

use core::{array, fmt};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Buf as _;

use crate::tuple::{Protocol, Tuple};

/// Flags of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    pub const FIN: Self = Self(0x01);
    /// SYN.
    pub const SYN: Self = Self(0x02);
    /// RST.
    pub const RST: Self = Self(0x04);
    /// ACK.
    pub const ACK: Self = Self(0x10);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether it opens a connection: SYN without ACK.
    pub fn opens(self) -> bool {
        self.contains(Self::SYN) && !self.contains(Self::ACK)
    }

    /// Whether it ends a connection, or its sender's half of it: FIN or RST.
    pub fn closes(self) -> bool {
        self.contains(Self::FIN) || self.contains(Self::RST)
    }

    /// Whether it accepts a connection: SYN and ACK.
    pub fn accepts(self) -> bool {
        self.contains(Self::SYN) && self.contains(Self::ACK)
    }
}

impl fmt::Display for TcpFlags {
    /// `SYN`, `SYN,ACK`, `PSH,ACK`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        for (index, (_, name)) in set.enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// What an ICMP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Icmp {
    /// Type.
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// Identifier of an echo, else 0.
    pub id: u16,
    /// Sequence number of an echo, else 0.
    pub seq: u16,
}

/// The packet that an ICMP error is about. Its source is the error's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quoted {
    /// Destination address.
    pub daddr: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol.
    pub protocol: Protocol,
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fragment {
    /// It is no fragment.
    #[default]
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// Another fragment, which has none of its own.
    Later,
}

impl Fragment {
    /// From a record's [`probe_common::FRAGMENT`] and [`probe_common::FRAGMENT_LATER`].
    fn from_record(bits: u8) -> Self {
        if bits & probe_common::FRAGMENT_LATER != 0 {
            Self::Later
        } else if bits & probe_common::FRAGMENT != 0 {
            Self::First
        } else {
            Self::Whole
        }
    }
}

/// A tunnel header that was in front of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tunnel {
    /// Which.
    pub kind: TunnelKind,
    /// Its network identifier: Cilium puts the sender's security identity there.
    pub id: u32,
}

/// A tunnel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelKind {
    /// VXLAN.
    Vxlan,
    /// Geneve.
    Geneve,
}

impl Tunnel {
    fn from_record(raw: &probe_common::Packet) -> Option<Self> {
        let kind = if raw.tunnel == probe_common::Tunnel::Vxlan as u8 {
            TunnelKind::Vxlan
        } else if raw.tunnel == probe_common::Tunnel::Geneve as u8 {
            TunnelKind::Geneve
        } else {
            return None;
        };
        Some(Self { kind, id: raw.tunnel_id })
    }
}

/// One packet. What its protocol lacks is 0 or `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Addresses, ports, protocol.
    pub tuple: Tuple,
    /// TCP flags.
    pub flags: TcpFlags,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Bytes after the layer-4 header.
    pub payload_len: u32,
    /// Hash of the payload's first bytes; 0 for TCP and where there is none.
    pub payload_hash: u32,
    /// IPv4 identification; of an IPv6 fragment the low 16 bits of its identification.
    pub ip_id: u16,
    /// Time to live.
    pub ttl: u8,
    /// Whether it is whole.
    pub fragment: Fragment,
    /// VLAN identifier, 0 without a tag.
    pub vlan: u16,
    /// The tunnel that it was in; everything else here is of the packet inside.
    pub tunnel: Option<Tunnel>,
    /// ICMP header.
    pub icmp: Option<Icmp>,
    /// The packet that an ICMP error quotes.
    pub quoted: Option<Quoted>,
}

impl Packet {
    /// From one of our programs' records; `None` if it is no IP packet.
    pub fn from_record(raw: &probe_common::Packet) -> Option<Self> {
        let v4 = raw.version == 4;
        if !v4 && raw.version != 6 {
            return None;
        }
        let protocol = Protocol(raw.proto);
        let fragment = Fragment::from_record(raw.fragment);
        let has_icmp = protocol.is_icmp() && fragment != Fragment::Later;
        let icmp = has_icmp.then_some(Icmp {
            icmp_type: raw.icmp_type,
            code: raw.icmp_code,
            id: raw.icmp_id,
            seq: raw.icmp_seq,
        });
        let quoted = (raw.quoted_proto != 0).then(|| Quoted {
            daddr: address(&raw.quoted_dst, v4),
            sport: raw.quoted_src_port,
            dport: raw.quoted_dst_port,
            protocol: Protocol(raw.quoted_proto),
        });
        Some(Self {
            tuple: Tuple {
                saddr: address(&raw.src, v4),
                daddr: address(&raw.dst, v4),
                sport: raw.src_port,
                dport: raw.dst_port,
                protocol,
            },
            flags: TcpFlags(raw.tcp_flags),
            seq: raw.seq,
            ack: raw.ack,
            payload_len: raw.payload_len,
            payload_hash: raw.payload_hash,
            ip_id: raw.ip_id,
            ttl: raw.ttl,
            fragment,
            vlan: raw.vlan,
            tunnel: Tunnel::from_record(raw),
            icmp,
            quoted,
        })
    }

    /// From the bytes that follow a notification of Cilium's: an Ethernet frame, perhaps cut short.
    /// `None` for anything but IPv4 and IPv6 with the whole of their header.
    pub fn from_ethernet(frame: &[u8]) -> Option<Self> {
        let mut rest = frame;
        if rest.len() < 14 {
            return None;
        }
        rest.advance(12);
        match rest.get_u16() {
            0x0800 => Self::from_ipv4(rest),
            0x86dd => Self::from_ipv6(rest),
            _ => None,
        }
    }

    /// From the bytes that follow a notification of a device without layer 2: an IP packet, perhaps cut short.
    /// `None` for anything but IPv4 and IPv6 with the whole of their header.
    pub fn from_network(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::from_ipv4(bytes),
            6 => Self::from_ipv6(bytes),
            _ => None,
        }
    }

    fn from_ipv4(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let mut raw =
            probe_common::Packet { version: 4, proto: header[9], ttl: header[8], ..Default::default() };
        raw.ip_id = u16::from_be_bytes([header[4], header[5]]);
        raw.src[..4].copy_from_slice(&header[12..16]);
        raw.dst[..4].copy_from_slice(&header[16..20]);
        // More fragments, or an offset.
        if fragment & 0x3fff != 0 {
            raw.fragment = probe_common::FRAGMENT;
        }
        if fragment & 0x1fff != 0 {
            raw.fragment |= probe_common::FRAGMENT_LATER;
        }
        layer4(&mut raw, bytes.get(header_len..).unwrap_or_default(), total_len.saturating_sub(header_len));
        Self::from_record(&raw)
    }

    fn from_ipv6(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = bytes.first_chunk()?;
        let mut raw =
            probe_common::Packet { version: 6, proto: header[6], ttl: header[7], ..Default::default() };
        raw.src.copy_from_slice(&header[8..24]);
        raw.dst.copy_from_slice(&header[24..40]);
        layer4(&mut raw, &bytes[40..], usize::from(u16::from_be_bytes([header[4], header[5]])));
        Self::from_record(&raw)
    }
}

/// Fills layer 4 from `bytes`, of which the IP header says there were `len`.
fn layer4(raw: &mut probe_common::Packet, bytes: &[u8], len: usize) {
    if raw.fragment & probe_common::FRAGMENT_LATER != 0 {
        return;
    }
    let be16 = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let be32 = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let payload = |header_len: usize| len.saturating_sub(header_len) as u32;
    match Protocol(raw.proto) {
        Protocol::TCP if bytes.len() >= 20 => {
            (raw.src_port, raw.dst_port) = (be16(0), be16(2));
            (raw.seq, raw.ack) = (be32(4), be32(8));
            raw.tcp_flags = bytes[13];
            raw.payload_len = payload(usize::from(bytes[12] >> 4) * 4);
        }
        Protocol::UDP if bytes.len() >= 8 => {
            (raw.src_port, raw.dst_port) = (be16(0), be16(2));
            raw.payload_len = payload(8);
            raw.payload_hash = payload_hash(&bytes[8..], raw.payload_len);
        }
        Protocol::SCTP if bytes.len() >= 4 => {
            (raw.src_port, raw.dst_port) = (be16(0), be16(2));
            raw.payload_len = payload(12);
        }
        protocol if protocol.is_icmp() && bytes.len() >= 8 => {
            (raw.icmp_type, raw.icmp_code) = (bytes[0], bytes[1]);
            raw.payload_len = payload(8);
            let echoes: &[u8] = if protocol == Protocol::ICMP { &[0, 8] } else { &[128, 129] };
            if echoes.contains(&raw.icmp_type) {
                (raw.icmp_id, raw.icmp_seq) = (be16(4), be16(6));
                raw.payload_hash = payload_hash(&bytes[8..], raw.payload_len);
            }
        }
        _ => {}
    }
}

/// The hash that our programs compute, so that a packet in a notification is known again.
///
/// Source: `hash_of_payload` in probe-ebpf's `parse.rs`.
fn payload_hash(bytes: &[u8], len: u32) -> u32 {
    let word = |idx: usize| bytes[idx * 4..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let hashed = match len {
        16.. => 16,
        8..16 => 8,
        4..8 => 4,
        _ => return 0,
    };
    if bytes.len() < hashed {
        return 0;
    }
    probe_common::payload_hash(array::from_fn(|idx| if idx * 4 < hashed { word(idx) } else { 0 }))
}

fn address(raw: &[u8; 16], v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(raw[0], raw[1], raw[2], raw[3]).into() } else { Ipv6Addr::from(*raw).into() }
}
