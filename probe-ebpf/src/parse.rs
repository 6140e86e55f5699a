//! Header fields of a packet, whatever it is read through.
use probe_common::{CAPTURE_MAX, FRAGMENT, FRAGMENT_LATER, Packet, Tunnel};

use crate::maps::setting;

const IPPROTO_ICMP: u8 = 1;
pub(crate) const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_ICMPV6: u8 = 58;
const IPV4_HEADER_LEN: u32 = 20;
const IPV6_HEADER_LEN: u32 = 40;
const UDP_HEADER_LEN: u32 = 8;
const ICMP_HEADER_LEN: u32 = 8;
/// VXLAN's header, and Geneve's without options.
const TUNNEL_HEADER_LEN: u32 = 8;
const ETHERNET_HEADER_LEN: u32 = 14;
const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet inside Geneve.
const ETH_P_TEB: [u8; 2] = [0x65, 0x58];
/// Of VXLAN's flags: the identifier is valid.
const VXLAN_HAS_VNI: u8 = 0x08;
/// Extension headers followed in an IPv6 packet: one of options or routing, and a fragment header.
const IPV6_EXTENSIONS_MAX: u32 = 2;

/// The least that a packet has whose length its IP header cannot say, and gives as 0: Linux makes such of TCP.
const LEN_UNSAID: u32 = 1 << 16;
const IPPROTO_NONE: u8 = 59;

/// Flags of TCP, as in [`Packet::tcp_flags`].
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;

/// An address by [its words](probe_common::address_words), of IPv4 the first.
pub(crate) type Address = [u32; 4];

/// The IPv4 address of a word as it lies in memory.
#[inline(always)]
pub(crate) const fn ipv4_address(word: u32) -> Address {
    [word, 0, 0, 0]
}

/// The bytes that a record has of an address.
#[inline(always)]
pub(crate) const fn address_bytes(address: Address) -> [u8; 16] {
    // SAFETY: four words are sixteen bytes, and any bytes are valid.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(address) }
}

/// Bytes of one packet, counted from its network header.
pub(crate) trait Source {
    /// A value of plain bytes at `offset`; `None` when the packet is shorter. Words rather than bytes: each is a load and
    /// a store, whatever its size.
    fn read<T: Copy>(&self, offset: u32) -> Option<T>;

    /// Copies `len` bytes at `offset`, or as many of them as lie together; `None` when the packet is shorter.
    fn copy(&self, offset: u32, len: u32, to: &mut [u8; CAPTURE_MAX]) -> Option<u32>;
}

/// A length that the verifier sees is from 1 to [`CAPTURE_MAX`]: one within that stays as it is.
#[inline(always)]
pub(crate) const fn copy_len(len: u32) -> u32 {
    (len.wrapping_sub(1) & (CAPTURE_MAX as u32 - 1)) + 1
}

/// What the IP header says: all that most packets are turned away by. Small, since a program has 512 bytes of stack.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    pub(crate) src: Address,
    pub(crate) dst: Address,
    /// Where the IP header begins.
    pub(crate) start: u32,
    /// Bytes from there on, by the IP header.
    pub(crate) total_len: u32,
    /// Where layer 4 begins.
    offset: u32,
    /// Bytes from there on, by the IP header.
    len: u32,
    ip_id: u16,
    pub(crate) version: u8,
    pub(crate) proto: u8,
    ttl: u8,
    fragment: u8,
    /// A [`Tunnel`], or 0.
    tunnel: u8,
    tunnel_id: u32,
}

impl Network {
    /// Whether the packet may be an error that quotes another packet.
    #[inline(always)]
    pub(crate) fn may_quote(&self) -> bool {
        matches!(self.proto, IPPROTO_ICMP | IPPROTO_ICMPV6)
    }

    /// Where the payload begins of the packet that was read from here.
    #[inline(always)]
    pub(crate) const fn payload_offset(&self, packet: &Packet) -> u32 {
        self.offset + self.len - packet.payload_len
    }
}

/// An IPv4 header without options, and the beginning of an IPv6 header, in words as they lie in memory: the longer header
/// begins with as many bytes as the shorter one has, so that one read is enough for most packets.
pub(crate) type Header = [u32; IPV4_HEADER_LEN as usize / 4];

/// Reads a packet's outer header.
#[inline(always)]
pub(crate) fn header(source: &impl Source) -> Option<Header> {
    source.read(0)
}

/// The two addresses of a packet whose first header tells all of them: IPv4, neither in a tunnel nor quoting another.
#[inline(always)]
pub(crate) fn plain_ipv4(header: &Header) -> Option<(Address, Address)> {
    let [first, _, third, src, dst] = *header;
    let has_tunnels = setting!(vxlan_port) != 0 || setting!(geneve_port) != 0;
    let proto = byte(third, 1);
    let is_plain = proto != IPPROTO_ICMP && proto != IPPROTO_ICMPV6 && !(proto == IPPROTO_UDP && has_tunnels);
    (byte(first, 0) >> 4 == 4 && is_plain).then_some((ipv4_address(src), ipv4_address(dst)))
}

/// Reads what the outer header says, whichever it is, and of a packet in Cilium's tunnel the one inside; `None` for
/// anything else.
#[inline(always)]
pub(crate) fn network(source: &impl Source, header: Header) -> Option<Network> {
    let outer = network_of(source, header, 0)?;
    if setting!(vxlan_port) == 0 && setting!(geneve_port) == 0 {
        return Some(outer);
    }
    let Some((tunnel, tunnel_id, inside)) = tunnel(source, &outer) else {
        return Some(outer);
    };
    let inner = network_of(source, source.read(inside)?, inside)?;
    Some(Network { tunnel: tunnel as u8, tunnel_id, ..inner })
}

/// Which tunnel a packet is in, its network identifier, and where the packet inside begins.
#[inline(always)]
fn tunnel(source: &impl Source, outer: &Network) -> Option<(Tunnel, u32, u32)> {
    if outer.proto != IPPROTO_UDP || outer.fragment & FRAGMENT_LATER != 0 {
        return None;
    }
    let port = u16::from_be(source.read(outer.offset + 2)?);
    let header_at = outer.offset + UDP_HEADER_LEN;
    let header: [u8; TUNNEL_HEADER_LEN as usize] = source.read(header_at)?;
    let (tunnel, options_len) = if port == setting!(vxlan_port) {
        (Tunnel::Vxlan, if header[0] & VXLAN_HAS_VNI == 0 { return None } else { 0 })
    } else if port == setting!(geneve_port) && [header[2], header[3]] == ETH_P_TEB {
        (Tunnel::Geneve, u32::from(header[0] & 0x3f) * 4)
    } else {
        return None;
    };
    let ethernet_at = header_at + TUNNEL_HEADER_LEN + options_len;
    let inside = ethernet_at + ETHERNET_HEADER_LEN;
    let protocol: [u8; 2] = source.read(inside - 2)?;
    let is_ip = protocol == ETH_P_IP || protocol == ETH_P_IPV6;
    is_ip.then_some((tunnel, u32::from_be_bytes([0, header[4], header[5], header[6]]), inside))
}

/// What the IP header says that begins at `base`.
#[inline(always)]
fn network_of(source: &impl Source, header: Header, base: u32) -> Option<Network> {
    match byte(header[0], 0) >> 4 {
        4 => Some(ipv4(header, base)),
        6 => ipv6(source, header, base),
        _ => None,
    }
}

/// The identifier of a VLAN tag, without its priority.
#[inline(always)]
pub(crate) const fn vlan_id(tci: u16) -> u16 {
    tci & 0x0fff
}

/// A byte of a header's word, and below its halves, as numbers.
#[inline(always)]
const fn byte(word: u32, idx: usize) -> u8 {
    word.to_ne_bytes()[idx]
}

#[inline(always)]
const fn high_half(word: u32) -> u16 {
    u32::from_be(word) as u16
}

#[inline(always)]
const fn low_half(word: u32) -> u16 {
    (u32::from_be(word) >> 16) as u16
}

#[inline(always)]
fn ipv4([first, second, third, src, dst]: Header, base: u32) -> Network {
    let header_len = u32::from(byte(first, 0) & 0x0f) * 4;
    let total_len = u32::from(high_half(first));
    Network {
        src: ipv4_address(src),
        dst: ipv4_address(dst),
        start: base,
        total_len: if total_len == 0 { LEN_UNSAID } else { total_len },
        offset: base + header_len,
        len: total_len.saturating_sub(header_len),
        ip_id: low_half(second),
        version: 4,
        proto: byte(third, 1),
        ttl: byte(third, 0),
        fragment: fragment_bits(high_half(second), 0x3fff, 0x1fff),
        tunnel: 0,
        tunnel_id: 0,
    }
}

#[inline(always)]
const fn fragment_bits(field: u16, any: u16, offset: u16) -> u8 {
    let bits = if field & any == 0 { 0 } else { FRAGMENT };
    if field & offset == 0 { bits } else { bits | FRAGMENT_LATER }
}

#[inline(always)]
fn ipv6(source: &impl Source, header: Header, base: u32) -> Option<Network> {
    let [_, lengths, ..] = header;
    let payload_len = u32::from(low_half(lengths));
    let is_unsaid = payload_len == 0 && byte(lengths, 2) != IPPROTO_NONE;
    let [src, dst]: [Address; 2] = source.read(base + 8)?;
    let mut network = Network {
        src,
        dst,
        start: base,
        total_len: if is_unsaid { LEN_UNSAID } else { IPV6_HEADER_LEN + payload_len },
        offset: base + IPV6_HEADER_LEN,
        len: payload_len,
        ip_id: 0,
        version: 6,
        proto: byte(lengths, 2),
        ttl: byte(lengths, 3),
        fragment: 0,
        tunnel: 0,
        tunnel_id: 0,
    };
    for _ in 0..IPV6_EXTENSIONS_MAX {
        let extension: [u8; 4] = match network.proto {
            0 | 43 | 44 | 60 => source.read(network.offset)?,
            _ => break,
        };
        let extension_len = if network.proto == 44 {
            network.fragment =
                FRAGMENT | fragment_bits(u16::from_be_bytes([extension[2], extension[3]]), 0, 0xfff8);
            // The low half of the identification is enough to know a packet's fragments by.
            network.ip_id = u16::from_be(source.read(network.offset + 6)?);
            8
        } else {
            u32::from(extension[1]) * 8 + 8
        };
        network.proto = extension[0];
        network.offset += extension_len;
        network.len = network.len.saturating_sub(extension_len);
    }
    Some(network)
}

/// The ports of a whole TCP or UDP packet, and TCP's flags.
///
/// [`packet`] reads them again. To hand on what was read here saves some 15 ns of a record, and has the verifier follow each
/// kind of packet through all that comes: twice the steps.
#[inline(always)]
pub(crate) fn ports(source: &impl Source, network: &Network) -> Option<(u16, u16, u8)> {
    if network.fragment != 0 {
        return None;
    }
    let (ports, flags) = match network.proto {
        IPPROTO_TCP => {
            let [ports, _, _, flags] = source.read::<[u32; 4]>(network.offset)?;
            (ports, byte(flags, 1))
        }
        IPPROTO_UDP => (source.read(network.offset)?, 0),
        _ => return None,
    };
    Some((low_half(ports), high_half(ports), flags))
}

/// Fills a zeroed packet: addresses, ports, flags and what tells one packet of a flow from another.
/// Of a packet cut short the rest stays 0.
#[inline(always)]
pub(crate) fn packet(source: &impl Source, network: &Network, packet: &mut Packet) {
    packet.src = address_bytes(network.src);
    packet.dst = address_bytes(network.dst);
    packet.ip_id = network.ip_id;
    packet.version = network.version;
    packet.proto = network.proto;
    packet.ttl = network.ttl;
    packet.fragment = network.fragment;
    packet.tunnel = network.tunnel;
    packet.tunnel_id = network.tunnel_id;
    if packet.fragment & FRAGMENT_LATER != 0 {
        packet.payload_len = network.len;
        return;
    }
    match packet.proto {
        IPPROTO_TCP => tcp(source, network, packet),
        IPPROTO_UDP => udp(source, network, packet),
        IPPROTO_SCTP => {
            if let Some(ports) = source.read(network.offset) {
                set_ports(packet, ports);
            }
            packet.payload_len = network.len.saturating_sub(12);
        }
        IPPROTO_ICMP | IPPROTO_ICMPV6 => icmp(source, network, packet),
        _ => packet.payload_len = network.len,
    }
}

#[inline(always)]
fn set_ports(packet: &mut Packet, ports: u32) {
    packet.src_port = low_half(ports);
    packet.dst_port = high_half(ports);
}

#[inline(always)]
fn tcp(source: &impl Source, network: &Network, packet: &mut Packet) {
    let Some([ports, seq, ack, flags]) = source.read::<[u32; 4]>(network.offset) else {
        return;
    };
    set_ports(packet, ports);
    packet.seq = u32::from_be(seq);
    packet.ack = u32::from_be(ack);
    packet.tcp_flags = byte(flags, 1);
    packet.window = high_half(flags);
    packet.payload_len = network.len.saturating_sub(u32::from(byte(flags, 0) >> 4) * 4);
}

#[inline(always)]
fn udp(source: &impl Source, network: &Network, packet: &mut Packet) {
    packet.payload_len = network.len.saturating_sub(UDP_HEADER_LEN);
    // One read for most packets.
    if packet.payload_len >= HASHED_MAX
        && let Some([ports, _, a, b, c, d]) = source.read::<[u32; 6]>(network.offset)
    {
        set_ports(packet, ports);
        packet.payload_hash = probe_common::payload_hash([a, b, c, d]);
        return;
    }
    let Some(ports) = source.read(network.offset) else {
        return;
    };
    set_ports(packet, ports);
    packet.payload_hash = hash_of_payload(source, network.offset + UDP_HEADER_LEN, packet.payload_len);
}

#[inline(always)]
fn icmp(source: &impl Source, network: &Network, packet: &mut Packet) {
    let Some(header) = source.read::<[u8; ICMP_HEADER_LEN as usize]>(network.offset) else {
        return;
    };
    packet.icmp_type = header[0];
    packet.icmp_code = header[1];
    packet.payload_len = network.len.saturating_sub(ICMP_HEADER_LEN);
    let inner = network.offset + ICMP_HEADER_LEN;
    let (is_echo, is_error) = if packet.proto == IPPROTO_ICMP {
        (matches!(header[0], 0 | 8), matches!(header[0], 3 | 5 | 11 | 12))
    } else {
        (matches!(header[0], 128 | 129), header[0] < 128)
    };
    if is_echo {
        packet.icmp_id = u16::from_be_bytes([header[4], header[5]]);
        packet.icmp_seq = u16::from_be_bytes([header[6], header[7]]);
        packet.payload_hash = hash_of_payload(source, inner, packet.payload_len);
    } else if is_error {
        quoted(source, inner, packet);
    }
}

/// The packet that an ICMP error is about.
#[inline(always)]
fn quoted(source: &impl Source, offset: u32, packet: &mut Packet) {
    let (proto, dst, ports_at) = if packet.proto == IPPROTO_ICMP {
        let Some([first, _, third, _, dst]) = source.read::<Header>(offset) else {
            return;
        };
        (byte(third, 1), ipv4_address(dst), offset + u32::from(byte(first, 0) & 0x0f) * 4)
    } else {
        let (Some(proto), Some(dst)) = (source.read::<u8>(offset + 6), source.read(offset + 24)) else {
            return;
        };
        (proto, dst, offset + IPV6_HEADER_LEN)
    };
    packet.quoted_dst = address_bytes(dst);
    packet.quoted_proto = proto;
    if let Some(ports) = source.read::<u32>(ports_at) {
        packet.quoted_src_port = low_half(ports);
        packet.quoted_dst_port = high_half(ports);
    }
}

/// Bytes of the payload that are hashed at most.
const HASHED_MAX: u32 = 16;

/// A hash over the first 16, 8 or 4 bytes of the payload (the verifier wants constant lengths).
#[inline(always)]
fn hash_of_payload(source: &impl Source, offset: u32, len: u32) -> u32 {
    let words: Option<[u32; 4]> = if len >= HASHED_MAX {
        source.read(offset)
    } else if len >= 8 {
        source.read(offset).map(|[a, b]: [u32; 2]| [a, b, 0, 0])
    } else if len >= 4 {
        source.read(offset).map(|word| [word, 0, 0, 0])
    } else {
        None
    };
    words.map_or(0, probe_common::payload_hash)
}
