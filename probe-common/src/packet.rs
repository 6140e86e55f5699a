//! What a record keeps of a packet.
use core::mem::{offset_of, size_of};

/// The packet is a fragment (the first one included).
pub const FRAGMENT: u8 = 1;
/// The packet is a fragment other than the first: it has no ports.
pub const FRAGMENT_LATER: u8 = 2;

/// A tunnel header around a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN, RFC 7348.
    Vxlan = 1,
    /// Geneve, RFC 8926.
    Geneve = 2,
}

/// Internet protocol version of a [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketFamily {
    /// IPv4: addresses are in the first four of the sixteen bytes.
    V4,
    /// IPv6.
    V6,
}

/// The header fields of one packet that tell which flow it belongs to and which packet of the flow it is.
///
/// Fields that a protocol does not have are 0. For ICMP errors the `quoted_*` fields hold the tuple of the packet
/// that the error is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Source address; IPv4 in the first four bytes, the rest 0.
    pub src: [u8; 16],
    /// Destination address, as `src`.
    pub dst: [u8; 16],
    /// Destination address of the packet that an ICMP error quotes.
    pub quoted_dst: [u8; 16],
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Bytes after the layer-4 header, from the IP header's length (not the captured length).
    pub payload_len: u32,
    /// Hash over the first bytes of the payload; NAT does not change it. 0 where there is none.
    pub payload_hash: u32,
    /// Network identifier of the tunnel header that was in front of this packet: Cilium puts the sender's security
    /// identity there. 0 without a tunnel.
    pub tunnel_id: u32,
    /// Layer-4 source port.
    pub src_port: u16,
    /// Layer-4 destination port.
    pub dst_port: u16,
    /// IPv4 identification; of an IPv6 fragment the low 16 bits of its identification.
    pub ip_id: u16,
    /// TCP window, unscaled.
    pub window: u16,
    /// ICMP echo identifier.
    pub icmp_id: u16,
    /// ICMP echo sequence number.
    pub icmp_seq: u16,
    /// Source port of the packet that an ICMP error quotes.
    pub quoted_src_port: u16,
    /// Destination port of the packet that an ICMP error quotes.
    pub quoted_dst_port: u16,
    /// 4 or 6.
    pub version: u8,
    /// IP protocol number of layer 4.
    pub proto: u8,
    /// TCP flags as in the header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128.
    pub tcp_flags: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// [`FRAGMENT`] and [`FRAGMENT_LATER`].
    pub fragment: u8,
    /// IP protocol of the packet that an ICMP error quotes; 0 when none is quoted.
    pub quoted_proto: u8,
    /// VLAN identifier; 0 without a tag.
    pub vlan: u16,
    /// A [`Tunnel`], 0 for none: everything else here is of the packet inside.
    pub tunnel: u8,
    /// 0.
    pub pad: u8,
}

impl Packet {
    /// The version byte as a type; `None` for a packet that could not be parsed.
    pub const fn family(&self) -> Option<PacketFamily> {
        match self.version {
            4 => Some(PacketFamily::V4),
            6 => Some(PacketFamily::V6),
            _ => None,
        }
    }
}

/// An address's bytes as four words, as they lie in memory: what eBPF, which has no instruction for more than eight
/// bytes, does little work with.
#[inline(always)]
#[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
pub const fn address_words(addr: &[u8; 16]) -> [u32; 4] {
    let (words, _) = addr.as_chunks::<4>();
    [
        u32::from_ne_bytes(words[0]),
        u32::from_ne_bytes(words[1]),
        u32::from_ne_bytes(words[2]),
        u32::from_ne_bytes(words[3]),
    ]
}

/// What Fibonacci hashing multiplies by: 2^64 divided by the golden ratio. The high bits of the product are the hash.
pub const FIBONACCI: u64 = 0x9e37_79b9_7f4a_7c15;

/// Four words as they lie in memory, two together.
#[inline(always)]
#[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
pub const fn halves([a, b, c, d]: [u32; 4]) -> [u64; 2] {
    [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
}

/// The hash of [`Packet::payload_hash`] over a payload's first 16 bytes, or 8 or 4 of a shorter one, by words as they lie
/// in memory, the rest 0. Fibonacci hashing, twice: only equality on one node matters.
#[inline(always)]
#[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
pub const fn payload_hash(words: [u32; 4]) -> u32 {
    let [low, high] = halves(words);
    ((low.wrapping_mul(FIBONACCI) ^ high).wrapping_mul(FIBONACCI) >> 32) as u32
}

const _: () = {
    assert!(size_of::<Packet>() == 96);
    assert!(offset_of!(Packet, src) == 0);
    assert!(offset_of!(Packet, dst) == 16);
    assert!(offset_of!(Packet, quoted_dst) == 32);
    assert!(offset_of!(Packet, seq) == 48);
    assert!(offset_of!(Packet, ack) == 52);
    assert!(offset_of!(Packet, payload_len) == 56);
    assert!(offset_of!(Packet, payload_hash) == 60);
    assert!(offset_of!(Packet, tunnel_id) == 64);
    assert!(offset_of!(Packet, src_port) == 68);
    assert!(offset_of!(Packet, dst_port) == 70);
    assert!(offset_of!(Packet, ip_id) == 72);
    assert!(offset_of!(Packet, window) == 74);
    assert!(offset_of!(Packet, icmp_id) == 76);
    assert!(offset_of!(Packet, icmp_seq) == 78);
    assert!(offset_of!(Packet, quoted_src_port) == 80);
    assert!(offset_of!(Packet, quoted_dst_port) == 82);
    assert!(offset_of!(Packet, version) == 84);
    assert!(offset_of!(Packet, proto) == 85);
    assert!(offset_of!(Packet, tcp_flags) == 86);
    assert!(offset_of!(Packet, ttl) == 87);
    assert!(offset_of!(Packet, icmp_type) == 88);
    assert!(offset_of!(Packet, icmp_code) == 89);
    assert!(offset_of!(Packet, fragment) == 90);
    assert!(offset_of!(Packet, quoted_proto) == 91);
    assert!(offset_of!(Packet, vlan) == 92);
    assert!(offset_of!(Packet, tunnel) == 94);
};
