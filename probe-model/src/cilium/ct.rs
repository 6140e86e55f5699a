//! Conntrack: `cilium_ct4_global` (TCP) and `cilium_ct_any4_global` (the rest).

use core::fmt;
use std::net::Ipv4Addr;

use super::identity::Identity;
use super::{DecodeError, part, sized, u16_be, u16_le, u32_le, u64_le};

/// A key of the conntrack maps, as stored.
///
/// **The address and port names are swapped against each other**: a client C:cp to pod P:pp on ingress is stored as
/// `daddr` C, `saddr` P, `dport` pp, `sport` cp; a service lookup C:cp to V:vp as `daddr` V, `saddr` C, `dport` cp,
/// `sport` vp.
///
/// Source: `struct ipv4_ct_tuple`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4CtTuple {
    /// Stored destination address.
    pub daddr: Ipv4Addr,
    /// Stored source address.
    pub saddr: Ipv4Addr,
    /// Stored destination port, host order.
    pub dport: u16,
    /// Stored source port, host order.
    pub sport: u16,
    /// IP protocol.
    pub nexthdr: u8,
    /// [`Self::OUT`], [`Self::IN`], [`Self::SERVICE`], with [`Self::RELATED`] added.
    pub flags: u8,
}

impl Ipv4CtTuple {
    /// Bytes of a key.
    pub const SIZE: usize = 14;
    /// Egress.
    pub const OUT: u8 = 0;
    /// Ingress.
    pub const IN: u8 = 1;
    /// ICMP error about the flow.
    pub const RELATED: u8 = 2;
    /// Service lookup.
    pub const SERVICE: u8 = 4;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 14 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ipv4_ct_tuple", "14")?;
        Ok(Self {
            daddr: part::<4>(&raw, 0).into(),
            saddr: part::<4>(&raw, 4).into(),
            dport: u16_be(&raw, 8),
            sport: u16_be(&raw, 10),
            nexthdr: raw[12],
            flags: raw[13],
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.daddr.octets());
        raw[4..8].copy_from_slice(&self.saddr.octets());
        raw[8..10].copy_from_slice(&self.dport.to_be_bytes());
        raw[10..12].copy_from_slice(&self.sport.to_be_bytes());
        raw[12] = self.nexthdr;
        raw[13] = self.flags;
        raw
    }

    /// The ingress entry of a connection `client:client_port` to `pod:pod_port`.
    pub fn ingress(client: (Ipv4Addr, u16), pod: (Ipv4Addr, u16), nexthdr: u8) -> Self {
        Self { daddr: client.0, saddr: pod.0, dport: pod.1, sport: client.1, nexthdr, flags: Self::IN }
    }

    /// The egress entry of a connection `local:local_port` to `server:server_port`.
    pub fn egress(local: (Ipv4Addr, u16), server: (Ipv4Addr, u16), nexthdr: u8) -> Self {
        Self { daddr: local.0, saddr: server.0, dport: server.1, sport: local.1, nexthdr, flags: Self::OUT }
    }
}

impl fmt::Display for Ipv4CtTuple {
    /// As Cilium's CLI prints it: `TCP IN 10.224.0.8:20300 -> 10.0.0.143:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = crate::tuple::Protocol(self.nexthdr);
        let direction = if self.flags & Self::IN == 0 { "OUT" } else { "IN" };
        let Self { daddr, saddr, dport, sport, .. } = self;
        write!(f, "{protocol} {direction} {daddr}:{sport} -> {saddr}:{dport}")?;
        if self.flags & Self::RELATED != 0 {
            f.write_str(" related")?;
        }
        if self.flags & Self::SERVICE != 0 {
            f.write_str(" service")?;
        }
        Ok(())
    }
}

/// A value of the conntrack maps (up to 1.15).
///
/// Source: `struct ct_entry`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CtEntry {
    /// Packets of the reply direction.
    pub rx_packets: u64,
    /// Their bytes; in service entries the backend's id.
    pub rx_bytes: u64,
    /// Packets of the original direction.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Deadline in the datapath's clock (seconds since boot, or jiffies / 256).
    pub lifetime: u32,
    /// Flag bits, see [`Self::SEEN_NON_SYN`] and its neighbours.
    pub flags: u16,
    /// The service's id, host order.
    pub rev_nat_index: u16,
    /// Interface of the client side, 0 if unknown.
    pub ifindex: u16,
    /// TCP flags seen from the original direction.
    pub tx_flags_seen: u8,
    /// TCP flags seen from the reply direction.
    pub rx_flags_seen: u8,
    /// The client's identity when the entry was made.
    pub src_sec_id: Identity,
    /// When the original direction was last reported.
    pub last_tx_report: u32,
    /// When the reply direction was last reported.
    pub last_rx_report: u32,
}

impl CtEntry {
    /// Bytes of a value.
    pub const SIZE: usize = 56;
    /// `flags`: the reply direction is closing.
    pub const RX_CLOSING: u16 = 1;
    /// `flags`: the original direction is closing.
    pub const TX_CLOSING: u16 = 1 << 1;
    /// `flags`: pod to its own service.
    pub const LB_LOOPBACK: u16 = 1 << 3;
    /// `flags`: a packet other than SYN was seen.
    pub const SEEN_NON_SYN: u16 = 1 << 4;
    /// `flags`: made by NodePort load balancing.
    pub const NODE_PORT: u16 = 1 << 5;
    /// `flags`: redirected to the L7 proxy.
    pub const PROXY_REDIRECT: u16 = 1 << 6;
    /// `flags`: direct server return.
    pub const DSR: u16 = 1 << 7;
    /// `flags`: from the L7 load balancer.
    pub const FROM_L7LB: u16 = 1 << 8;
    /// `flags`: from a tunnel.
    pub const FROM_TUNNEL: u16 = 1 << 10;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 56 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ct_entry", "56")?;
        Ok(Self {
            rx_packets: u64_le(&raw, 0),
            rx_bytes: u64_le(&raw, 8),
            tx_packets: u64_le(&raw, 16),
            tx_bytes: u64_le(&raw, 24),
            lifetime: u32_le(&raw, 32),
            flags: u16_le(&raw, 36),
            rev_nat_index: u16_be(&raw, 38),
            ifindex: u16_le(&raw, 40),
            tx_flags_seen: raw[42],
            rx_flags_seen: raw[43],
            src_sec_id: Identity(u32_le(&raw, 44)),
            last_tx_report: u32_le(&raw, 48),
            last_rx_report: u32_le(&raw, 52),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.rx_packets.to_le_bytes());
        raw[8..16].copy_from_slice(&self.rx_bytes.to_le_bytes());
        raw[16..24].copy_from_slice(&self.tx_packets.to_le_bytes());
        raw[24..32].copy_from_slice(&self.tx_bytes.to_le_bytes());
        raw[32..36].copy_from_slice(&self.lifetime.to_le_bytes());
        raw[36..38].copy_from_slice(&self.flags.to_le_bytes());
        raw[38..40].copy_from_slice(&self.rev_nat_index.to_be_bytes());
        raw[40..42].copy_from_slice(&self.ifindex.to_le_bytes());
        raw[42] = self.tx_flags_seen;
        raw[43] = self.rx_flags_seen;
        raw[44..48].copy_from_slice(&self.src_sec_id.0.to_le_bytes());
        raw[48..52].copy_from_slice(&self.last_tx_report.to_le_bytes());
        raw[52..].copy_from_slice(&self.last_rx_report.to_le_bytes());
        raw
    }
}
