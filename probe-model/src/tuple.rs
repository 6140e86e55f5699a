//! Addresses, ports and protocol of a packet.

use core::fmt;
use std::net::IpAddr;

/// An IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Any protocol, in keys that leave it open.
    pub const ANY: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);

    /// Whether packets of the protocol carry ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }

    /// Whether it is ICMP or ICMPv6.
    pub fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }

    /// From a name such as `tcp`, in any case, or a number.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "any" => Self::ANY,
            "icmp" | "icmpv4" => Self::ICMP,
            "tcp" => Self::TCP,
            "udp" => Self::UDP,
            "icmpv6" => Self::ICMPV6,
            "sctp" => Self::SCTP,
            number => Self(number.parse().ok()?),
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.pad("ANY"),
            Self::ICMP => f.pad("ICMP"),
            Self::TCP => f.pad("TCP"),
            Self::UDP => f.pad("UDP"),
            Self::ICMPV6 => f.pad("ICMPv6"),
            Self::SCTP => f.pad("SCTP"),
            Self(number) => f.pad(&number.to_string()),
        }
    }
}

/// A packet's addresses, ports and protocol, in its own direction. Ports are host order, 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub saddr: IpAddr,
    /// Destination address.
    pub daddr: IpAddr,
    /// Source port; for ICMP 0.
    pub sport: u16,
    /// Destination port; for ICMP 0.
    pub dport: u16,
    /// IP protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// The tuple of the answer.
    pub fn reversed(self) -> Self {
        Self { saddr: self.daddr, daddr: self.saddr, sport: self.dport, dport: self.sport, ..self }
    }
}

impl fmt::Display for Tuple {
    /// `10.224.0.8:40122 -> 10.224.0.7:80 TCP`; a source port of 0 (unknown) and ICMP's ports are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.protocol.has_ports();
        let end = |f: &mut fmt::Formatter<'_>, address: IpAddr, port: u16| match (address, ports && port != 0)
        {
            (address, false) => write!(f, "{address}"),
            (IpAddr::V4(v4), true) => write!(f, "{v4}:{port}"),
            (IpAddr::V6(v6), true) => write!(f, "[{v6}]:{port}"),
        };
        end(f, self.saddr, self.sport)?;
        f.write_str(" -> ")?;
        end(f, self.daddr, self.dport)?;
        write!(f, " {}", self.protocol)
    }
}
