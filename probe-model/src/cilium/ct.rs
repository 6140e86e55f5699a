//! Conntrack: `cilium_ct4_global` and `cilium_ct6_global` (TCP), `cilium_ct_any4_global` and `cilium_ct_any6_global`
//! (the rest).

use core::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::family::{Family, push_address};
use super::identity::Identity;
use super::policy::PolicyLayout;
use super::{DecodeError, part, sized, u16_be, u16_le, u32_le, u64_le};
use crate::tuple::{Protocol, Tuple};

/// A key of the conntrack maps, as stored.
///
/// **The address and port names are swapped against each other**: a client C:cp to pod P:pp on ingress is stored as
/// `daddr` C, `saddr` P, `dport` pp, `sport` cp; a service lookup C:cp to V:vp as `daddr` V, `saddr` C, `dport` cp,
/// `sport` vp.
///
/// Source: `struct ipv4_ct_tuple`, `struct ipv6_ct_tuple`, Cilium 1.13–1.20 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtTuple {
    /// Stored destination address.
    pub daddr: IpAddr,
    /// Stored source address; of the same family.
    pub saddr: IpAddr,
    /// Stored destination port, host order.
    pub dport: u16,
    /// Stored source port, host order.
    pub sport: u16,
    /// IP protocol.
    pub nexthdr: u8,
    /// [`Self::OUT`], [`Self::IN`], [`Self::SERVICE`], with [`Self::RELATED`] added.
    pub flags: u8,
}

impl CtTuple {
    /// Bytes of an IPv4 and of an IPv6 key.
    pub const SIZES: (usize, usize) = (14, 38);
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
    /// [`DecodeError::Size`] unless `raw` is 14 bytes (IPv4) or 38 (IPv6).
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let family = Family::by_size(raw.len(), Self::SIZES.0, Self::SIZES.1);
        let (what, expected, found) = ("ipv4_ct_tuple, ipv6_ct_tuple", "14 or 38", raw.len());
        let family = family.ok_or(DecodeError::Size { what, expected, found })?;
        let ports = 2 * family.width();
        Ok(Self {
            daddr: family.read(raw, 0),
            saddr: family.read(raw, family.width()),
            dport: u16_be(raw, ports),
            sport: u16_be(raw, ports + 2),
            nexthdr: raw[ports + 4],
            flags: raw[ports + 5],
        })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(Self::SIZES.1);
        push_address(&mut raw, self.daddr);
        push_address(&mut raw, self.saddr);
        raw.extend(self.dport.to_be_bytes());
        raw.extend(self.sport.to_be_bytes());
        raw.extend([self.nexthdr, self.flags]);
        raw
    }

    /// The ingress entry of a connection whose first packet is `packet`, as the receiving pod has it.
    pub fn ingress(packet: Tuple) -> Self {
        let Tuple { saddr, daddr, sport, dport, protocol } = packet;
        Self { daddr: saddr, saddr: daddr, dport, sport, nexthdr: protocol.0, flags: Self::IN }
    }

    /// The egress entry of a connection whose first packet is `packet`, as the sender or the node that translated it
    /// has it.
    pub fn egress(packet: Tuple) -> Self {
        Self { flags: Self::OUT, ..Self::ingress(packet) }
    }

    /// The service entry of a connection whose first packet is `packet`, still towards the frontend.
    pub fn service(packet: Tuple) -> Self {
        let Tuple { saddr, daddr, sport, dport, protocol } = packet;
        Self { daddr, saddr, dport: sport, sport: dport, nexthdr: protocol.0, flags: Self::SERVICE }
    }

    /// Whether it remembers which backend a service's client has, not a connection.
    pub fn is_service(&self) -> bool {
        self.flags & Self::SERVICE != 0
    }

    /// The pin of the map that has such keys.
    pub fn map(&self) -> String {
        let is_tcp = Protocol(self.nexthdr) == Protocol::TCP;
        Family::of(self.daddr).pin(if is_tcp { "cilium_ct4_global" } else { "cilium_ct_any4_global" })
    }

    /// The connection's first packet, from client to server or frontend.
    pub fn connection(&self) -> Tuple {
        let Self { daddr, saddr, dport, sport, nexthdr, .. } = *self;
        let protocol = Protocol(nexthdr);
        if self.is_service() {
            Tuple { saddr, daddr, sport: dport, dport: sport, protocol }
        } else {
            Tuple { saddr: daddr, daddr: saddr, sport, dport, protocol }
        }
    }
}

impl fmt::Display for CtTuple {
    /// As Cilium's CLI prints it: `TCP IN 10.224.0.8:20300 -> 10.0.0.143:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = Protocol(self.nexthdr);
        let direction = if self.flags & Self::IN == 0 { "OUT" } else { "IN" };
        let end = |address, port| std::net::SocketAddr::new(address, port);
        let Self { daddr, saddr, dport, sport, .. } = *self;
        write!(f, "{protocol} {direction} {} -> {}", end(daddr, sport), end(saddr, dport))?;
        if self.flags & Self::RELATED != 0 {
            f.write_str(" related")?;
        }
        if self.is_service() {
            f.write_str(" service")?;
        }
        Ok(())
    }
}

/// Which meaning the first bytes of a conntrack entry have. The others are the same in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtLayout {
    /// 1.13–1.15: counters per direction; bit 7 is `dsr`.
    PerDirection,
    /// 1.16–1.18: joint counters; bit 7 is `dsr_internal`.
    Joint,
    /// From 1.19 on: as [`Self::Joint`], with the address and port to translate to.
    NatAddress,
}

impl CtLayout {
    /// Every one, oldest first.
    pub const ALL: [Self; 3] = [Self::PerDirection, Self::Joint, Self::NatAddress];

    /// Those that the versions with policy maps of one of these layouts have; every one if there is none to tell.
    pub fn beside(policies: impl IntoIterator<Item = PolicyLayout>) -> Vec<Self> {
        let mut possible = Vec::new();
        for layout in policies {
            possible.extend_from_slice(match layout {
                PolicyLayout::HashKey => &[Self::PerDirection],
                // 1.14.0–1.16.3.
                PolicyLayout::WildcardBits => &[Self::PerDirection, Self::Joint],
                PolicyLayout::PrefixLength | PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => {
                    &[Self::Joint]
                }
                PolicyLayout::Precedence | PolicyLayout::Aggregates => &[Self::NatAddress],
            });
        }
        possible.sort();
        possible.dedup();
        if possible.is_empty() { Self::ALL.to_vec() } else { possible }
    }
}

impl fmt::Display for CtLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerDirection => "1.13–1.15 (counters per direction)",
            Self::Joint => "1.16–1.18 (joint counters)",
            Self::NatAddress => "1.19 or later (joint counters, NAT address)",
        })
    }
}

/// How often a connection was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtCounters {
    /// Up to 1.15, each way for itself.
    PerDirection {
        /// Packets towards the endpoint.
        rx_packets: u64,
        /// Their bytes.
        rx_bytes: u64,
        /// Packets from the endpoint.
        tx_packets: u64,
        /// Their bytes.
        tx_bytes: u64,
    },
    /// From 1.16 on, both ways together.
    Joint {
        /// Packets.
        packets: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// A value of the conntrack maps. What only a [`CtLayout`] can read is kept as bytes.
///
/// Source: `struct ct_entry`, Cilium 1.13–1.20 `bpf/lib/common.h`, `bpf/lib/conntrack.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CtEntry {
    /// Bytes 0–31: counters, backend id, NAT address.
    pub head: [u8; 32],
    /// Deadline in the datapath's clock (seconds since boot, or jiffies / 256).
    pub lifetime: u32,
    /// Flag bits, see [`Self::SEEN_NON_SYN`] and its neighbors.
    pub flags: u16,
    /// The service's id, host order.
    pub rev_nat_index: u16,
    /// Bytes 40–41: interface, reserved, or NAT port.
    pub ifindex_or_nat_port: [u8; 2],
    /// TCP flags seen from the endpoint.
    pub tx_flags_seen: u8,
    /// TCP flags seen towards the endpoint.
    pub rx_flags_seen: u8,
    /// The client's identity when the entry was made.
    pub src_sec_id: Identity,
    /// When packets from the endpoint were last reported.
    pub last_tx_report: u32,
    /// When packets towards the endpoint were last reported.
    pub last_rx_report: u32,
}

impl CtEntry {
    /// Bytes of a value.
    pub const SIZE: usize = 56;
    /// `flags`: the way towards the endpoint is closing.
    pub const RX_CLOSING: u16 = 1;
    /// `flags`: the way from the endpoint is closing.
    pub const TX_CLOSING: u16 = 1 << 1;
    /// `flags`: NAT46x64 (1.13 and 1.14).
    pub const NAT46: u16 = 1 << 2;
    /// `flags`: pod to its own service.
    pub const LB_LOOPBACK: u16 = 1 << 3;
    /// `flags`: a packet other than SYN was seen.
    pub const SEEN_NON_SYN: u16 = 1 << 4;
    /// `flags`: made by NodePort load balancing.
    pub const NODE_PORT: u16 = 1 << 5;
    /// `flags`: redirected to the L7 proxy.
    pub const PROXY_REDIRECT: u16 = 1 << 6;
    /// `flags`: direct server return; from 1.16 on `dsr_internal`, of the datapath's own.
    pub const DSR: u16 = 1 << 7;
    /// `flags`: from the L7 load balancer.
    pub const FROM_L7LB: u16 = 1 << 8;
    /// `flags`: authentication is required (1.13).
    pub const AUTH_REQUIRED: u16 = 1 << 9;
    /// `flags`: from a tunnel (from 1.14 on).
    pub const FROM_TUNNEL: u16 = 1 << 10;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 56 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ct_entry", "56")?;
        Ok(Self {
            head: part(&raw, 0),
            lifetime: u32_le(&raw, 32),
            flags: u16_le(&raw, 36),
            rev_nat_index: u16_be(&raw, 38),
            ifindex_or_nat_port: part(&raw, 40),
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
        raw[..32].copy_from_slice(&self.head);
        raw[32..36].copy_from_slice(&self.lifetime.to_le_bytes());
        raw[36..38].copy_from_slice(&self.flags.to_le_bytes());
        raw[38..40].copy_from_slice(&self.rev_nat_index.to_be_bytes());
        raw[40..42].copy_from_slice(&self.ifindex_or_nat_port);
        raw[42] = self.tx_flags_seen;
        raw[43] = self.rx_flags_seen;
        raw[44..48].copy_from_slice(&self.src_sec_id.0.to_le_bytes());
        raw[48..52].copy_from_slice(&self.last_tx_report.to_le_bytes());
        raw[52..].copy_from_slice(&self.last_rx_report.to_le_bytes());
        raw
    }

    /// The backend's id; only of a service entry ([`CtTuple::is_service`]). It is at the same place in every layout.
    pub fn backend_id(&self) -> u64 {
        self.word(1)
    }

    /// The counters, if every layout that is possible has the same.
    pub fn counters(&self, possible: &[CtLayout]) -> Option<CtCounters> {
        let of = |layout: CtLayout| match layout {
            CtLayout::PerDirection => CtCounters::PerDirection {
                rx_packets: self.word(0),
                rx_bytes: self.word(1),
                tx_packets: self.word(2),
                tx_bytes: self.word(3),
            },
            CtLayout::Joint | CtLayout::NatAddress => {
                CtCounters::Joint { packets: self.word(2), bytes: self.word(3) }
            }
        };
        agreed(possible.iter().copied().map(of))
    }

    /// The interface by which the client came, 0 if unknown; `None` where the layout has none (1.18 leaves it zero).
    pub fn ifindex(&self, possible: &[CtLayout]) -> Option<u16> {
        let has = !possible.is_empty() && !possible.contains(&CtLayout::NatAddress);
        has.then(|| u16::from_le_bytes(self.ifindex_or_nat_port))
    }

    /// Where packets of the connection are translated to, host order; `None` if nowhere, or where the layout has none.
    /// Never of a service entry, in which the address overlaps the backend's id.
    pub fn nat(&self, family: Family, possible: &[CtLayout]) -> Option<(IpAddr, u16)> {
        let address = match family {
            Family::V4 => IpAddr::from(part::<4>(&self.head, 0)),
            Family::V6 => Ipv6Addr::from(part::<16>(&self.head, 0)).into(),
        };
        let has = possible == [CtLayout::NatAddress] && !address.is_unspecified();
        has.then(|| (address, u16::from_be_bytes(self.ifindex_or_nat_port)))
    }

    /// Whether either way is closing: a new SYN then begins a new connection.
    pub fn is_closing(&self) -> bool {
        self.flags & (Self::RX_CLOSING | Self::TX_CLOSING) != 0
    }

    /// The flags as Cilium's CLI words them.
    pub fn words(&self, possible: &[CtLayout]) -> Vec<&'static str> {
        let dsr = if possible == [CtLayout::PerDirection] {
            "DSR"
        } else if possible.contains(&CtLayout::PerDirection) || possible.is_empty() {
            "DSR or DSRInternal"
        } else {
            "DSRInternal"
        };
        let words = [
            (Self::RX_CLOSING, "RxClosing"),
            (Self::TX_CLOSING, "TxClosing"),
            (Self::NAT46, "Nat46"),
            (Self::LB_LOOPBACK, "LBLoopback"),
            (Self::SEEN_NON_SYN, "SeenNonSyn"),
            (Self::NODE_PORT, "NodePort"),
            (Self::PROXY_REDIRECT, "ProxyRedirect"),
            (Self::DSR, dsr),
            (Self::FROM_L7LB, "FromL7LB"),
            (Self::AUTH_REQUIRED, "AuthRequired"),
            (Self::FROM_TUNNEL, "FromTunnel"),
        ];
        words.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, word)| word).collect()
    }

    fn word(&self, index: usize) -> u64 {
        u64_le(&self.head, 8 * index)
    }
}

/// The value that all give, if all give the same.
fn agreed<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// Which of the layouts that are `possible` by other maps the entries can have: from what they hold.
///
/// Often more than one: [`CtLayout::Joint`] and [`CtLayout::NatAddress`] differ only where an entry has an address.
/// Empty if the entries contradict each other or what is possible; then no counter is to be believed.
pub fn ct_layouts<'e>(
    entries: impl IntoIterator<Item = (&'e CtTuple, &'e CtEntry)>,
    possible: &[CtLayout],
) -> Vec<CtLayout> {
    let mut left = possible.to_vec();
    for (tuple, entry) in entries {
        left.retain(|layout| fits(*layout, tuple, entry));
        if left.is_empty() {
            break;
        }
    }
    left
}

/// Whether an entry can have been written in a layout. A service entry has the same bytes in all of them.
fn fits(layout: CtLayout, tuple: &CtTuple, entry: &CtEntry) -> bool {
    if tuple.is_service() {
        return true;
    }
    let [rx_packets, rx_bytes] = [entry.word(0), entry.word(1)];
    match layout {
        // No reserved bytes: the counters must be some. A packet has at least its IP header, and at most what GSO puts
        // together; TCP flags seen from the other side, with packets counted, mean that its packets are counted too.
        CtLayout::PerDirection => {
            let plausible =
                rx_bytes >= rx_packets.saturating_mul(20) && rx_bytes <= rx_packets.saturating_mul(1 << 20);
            let uncounted = rx_packets == 0 && entry.rx_flags_seen != 0 && entry.word(2) != 0;
            plausible && !uncounted
        }
        CtLayout::Joint => rx_packets == 0 && rx_bytes == 0,
        // An IPv4 address leaves twelve bytes zero, an IPv6 address may have any.
        CtLayout::NatAddress => tuple.daddr.is_ipv6() || (rx_packets >> 32 == 0 && rx_bytes == 0),
    }
}
