//! An IPv4 packet behind an Ethernet header: parsing and rewriting.
//!
//! Everything goes through the skb helpers, so no bounds have to be proven to the verifier here. Addresses and ports
//! are kept in network order.
use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};

use crate::reason;

pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
pub const ETH_P_ARP: u16 = 0x0806_u16.to_be();

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;

pub const ICMP_ECHO_REPLY: u8 = 0;
pub const ICMP_DEST_UNREACH: u8 = 3;
pub const ICMP_ECHO: u8 = 8;
pub const ICMP_FRAG_NEEDED: u8 = 4;

const ETH_LEN: usize = 14;
const IP_OFF: usize = ETH_LEN;
const TTL_OFF: usize = IP_OFF + 8;
const IP_CSUM_OFF: usize = IP_OFF + 10;
const SADDR_OFF: usize = IP_OFF + 12;
const DADDR_OFF: usize = IP_OFF + 16;

/// `bpf_l4_csum_replace`: the change is in the pseudo header too.
const PSEUDO_HDR: u64 = 1 << 4;
/// `bpf_l4_csum_replace`: a UDP checksum of 0 means none.
const MANGLED_0: u64 = 1 << 5;

/// What was read of one packet; the ports of an ICMP echo are its identifier and 0, as Cilium's conntrack has it.
#[derive(Clone, Copy)]
pub struct Packet {
    pub saddr_be: u32,
    pub daddr_be: u32,
    pub sport_be: u16,
    pub dport_be: u16,
    pub proto: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// An ICMP error about another flow.
    pub related: bool,
    l4_off: usize,
}

/// The raw skb, for the fields that aya has no accessor for.
#[inline(always)]
pub fn skb(ctx: &TcContext) -> *mut __sk_buff {
    ctx.as_ptr().cast()
}

/// The Ethernet protocol, in network order.
#[inline(always)]
pub fn eth_proto(ctx: &TcContext) -> Result<u16, i32> {
    ctx.load(12).map_err(|_| reason::INVALID)
}

impl Packet {
    /// Reads the headers.
    #[inline(always)]
    pub fn parse(ctx: &TcContext) -> Result<Self, i32> {
        let version_ihl: u8 = ctx.load(IP_OFF).map_err(|_| reason::INVALID)?;
        let l4_off = ETH_LEN + usize::from(version_ihl & 0xf) * 4;
        let fragment: u16 = ctx.load(IP_OFF + 6).map_err(|_| reason::INVALID)?;
        // Cilium tracks fragments; the stand-in says that it does not.
        if fragment & 0x1fff_u16.to_be() != 0 {
            return Err(reason::FRAG_NOSUPPORT);
        }
        let mut packet = Self {
            saddr_be: ctx.load(SADDR_OFF).map_err(|_| reason::INVALID)?,
            daddr_be: ctx.load(DADDR_OFF).map_err(|_| reason::INVALID)?,
            sport_be: 0,
            dport_be: 0,
            proto: ctx.load(IP_OFF + 9).map_err(|_| reason::INVALID)?,
            tcp_flags: 0,
            icmp_type: 0,
            icmp_code: 0,
            related: false,
            l4_off,
        };
        match packet.proto {
            TCP | UDP => {
                packet.sport_be = ctx.load(l4_off).map_err(|_| reason::CT_INVALID_HDR)?;
                packet.dport_be = ctx.load(l4_off + 2).map_err(|_| reason::CT_INVALID_HDR)?;
                if packet.proto == TCP {
                    packet.tcp_flags = ctx.load(l4_off + 13).map_err(|_| reason::CT_INVALID_HDR)?;
                }
            }
            ICMP => packet.parse_icmp(ctx)?,
            _ => return Err(reason::CT_UNKNOWN_PROTO),
        }
        Ok(packet)
    }

    #[inline(always)]
    fn parse_icmp(&mut self, ctx: &TcContext) -> Result<(), i32> {
        self.icmp_type = ctx.load(self.l4_off).map_err(|_| reason::CT_INVALID_HDR)?;
        self.icmp_code = ctx.load(self.l4_off + 1).map_err(|_| reason::CT_INVALID_HDR)?;
        match self.icmp_type {
            ICMP_ECHO => self.sport_be = ctx.load(self.l4_off + 4).map_err(|_| reason::CT_INVALID_HDR)?,
            ICMP_ECHO_REPLY => {
                self.dport_be = ctx.load(self.l4_off + 4).map_err(|_| reason::CT_INVALID_HDR)?;
            }
            ICMP_DEST_UNREACH | 11 | 12 => self.related = true,
            _ => {}
        }
        Ok(())
    }

    /// Rewrites the destination.
    #[inline(always)]
    pub fn set_destination(&mut self, ctx: &TcContext, addr_be: u32, port_be: u16) -> Result<(), i32> {
        self.rewrite_addr(ctx, DADDR_OFF, self.daddr_be, addr_be)?;
        self.rewrite_port(ctx, 2, self.dport_be, port_be)?;
        (self.daddr_be, self.dport_be) = (addr_be, port_be);
        Ok(())
    }

    /// Rewrites the source.
    #[inline(always)]
    pub fn set_source(&mut self, ctx: &TcContext, addr_be: u32, port_be: u16) -> Result<(), i32> {
        self.rewrite_addr(ctx, SADDR_OFF, self.saddr_be, addr_be)?;
        self.rewrite_port(ctx, 0, self.sport_be, port_be)?;
        (self.saddr_be, self.sport_be) = (addr_be, port_be);
        Ok(())
    }

    #[inline(always)]
    fn rewrite_addr(&self, ctx: &TcContext, off: usize, from: u32, to: u32) -> Result<(), i32> {
        if from == to {
            return Ok(());
        }
        self.l4_csum(ctx, u64::from(from), u64::from(to), PSEUDO_HDR | 4)?;
        ctx.l3_csum_replace(IP_CSUM_OFF, u64::from(from), u64::from(to), 4).map_err(|_| reason::CSUM_L3)?;
        ctx.store(off, &to, 0).map_err(|_| reason::WRITE_ERROR)
    }

    #[inline(always)]
    fn rewrite_port(&self, ctx: &TcContext, off: usize, from: u16, to: u16) -> Result<(), i32> {
        if from == to || self.proto == ICMP {
            return Ok(());
        }
        self.l4_csum(ctx, u64::from(from), u64::from(to), 2)?;
        ctx.store(self.l4_off + off, &to, 0).map_err(|_| reason::WRITE_ERROR)
    }

    #[inline(always)]
    fn l4_csum(&self, ctx: &TcContext, from: u64, to: u64, flags: u64) -> Result<(), i32> {
        let (off, flags) = match self.proto {
            TCP => (16, flags),
            UDP => (6, flags | MANGLED_0),
            // ICMP has no pseudo header: an address does not count.
            _ => return Ok(()),
        };
        ctx.l4_csum_replace(self.l4_off + off, from, to, flags).map_err(|_| reason::CSUM_L4)
    }
}

/// One hop more: what Cilium does to a packet before it delivers it.
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext) -> Result<(), i32> {
    let ttl: u8 = ctx.load(TTL_OFF).map_err(|_| reason::INVALID)?;
    if ttl <= 1 {
        return Err(reason::TTL_EXCEEDED);
    }
    // The checksum is replaced by 16-bit words; the other byte of this one is the protocol, unchanged, so 0 will do.
    let (from, to) = (u16::from_ne_bytes([ttl, 0]), u16::from_ne_bytes([ttl - 1, 0]));
    ctx.l3_csum_replace(IP_CSUM_OFF, u64::from(from), u64::from(to), 2).map_err(|_| reason::CSUM_L3)?;
    ctx.store(TTL_OFF, &(ttl - 1), 0).map_err(|_| reason::WRITE_ERROR)
}

/// Writes both MAC addresses; of each, the first six bytes count.
#[inline(always)]
pub fn set_macs(ctx: &TcContext, destination: &[u8; 8], source: &[u8; 8]) -> Result<(), i32> {
    let [d0, d1, d2, d3, d4, d5, ..] = *destination;
    let [s0, s1, s2, s3, s4, s5, ..] = *source;
    let macs = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5];
    ctx.store(0, &macs, 0).map_err(|_| reason::WRITE_ERROR)
}

/// Writes the destination MAC address.
#[inline(always)]
pub fn set_destination_mac(ctx: &TcContext, mac: [u8; 8]) -> Result<(), i32> {
    let [m0, m1, m2, m3, m4, m5, ..] = mac;
    ctx.store(0, &[m0, m1, m2, m3, m4, m5], 0).map_err(|_| reason::WRITE_ERROR)
}
