//! What rules say of protocol and port, and how the policy map stores it.

use std::fmt;

use super::path::Path;
use crate::tuple::Protocol;

/// A protocol in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleProtocol {
    /// `ANY`, or none in a Cilium policy: TCP, UDP and SCTP, never ICMP.
    Any,
    /// One protocol.
    One(Protocol),
}

impl RuleProtocol {
    /// The protocols that it stands for.
    pub fn protocols(&self) -> &[Protocol] {
        match self {
            Self::Any => &[Protocol::TCP, Protocol::UDP, Protocol::SCTP],
            Self::One(protocol) => std::slice::from_ref(protocol),
        }
    }

    /// Reads a name in any case; the empty one is [`Self::Any`].
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_uppercase().as_str() {
            "" | "ANY" => Self::Any,
            "TCP" => Self::One(Protocol::TCP),
            "UDP" => Self::One(Protocol::UDP),
            "SCTP" => Self::One(Protocol::SCTP),
            "ICMP" => Self::One(Protocol::ICMP),
            "ICMPV6" => Self::One(Protocol::ICMPV6),
            _ => return None,
        })
    }
}

impl fmt::Display for RuleProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("TCP, UDP and SCTP"),
            Self::One(protocol) => protocol.fmt(f),
        }
    }
}

/// A port in a rule; for ICMP the type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulePort {
    /// A number and the `endPort` beside it, 0 where none is written. Port 0 alone is every port.
    Number {
        /// First port.
        first: u16,
        /// `endPort` as written.
        end: u16,
    },
    /// A name, which a pod's definition gives a number.
    Name(String),
}

impl RulePort {
    /// Whether every port is meant.
    pub fn is_every(&self) -> bool {
        matches!(self, Self::Number { first: 0, end: 0 | u16::MAX })
    }

    /// First and last port, if they are numbers. An `endPort` before the first one does not count.
    pub fn range(&self) -> Option<(u16, u16)> {
        match self {
            Self::Number { .. } if self.is_every() => Some((0, u16::MAX)),
            Self::Number { first, end } => Some((*first, *end.max(first))),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for RulePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.range()) {
            (Self::Name(name), _) => write!(f, "`{name}`"),
            (_, Some((0, u16::MAX))) => f.write_str("every port"),
            (_, Some((first, last))) if first != last => write!(f, "{first}-{last}"),
            (Self::Number { first, .. }, _) => first.fmt(f),
        }
    }
}

/// One entry of a rule's ports or ICMP types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTerm {
    /// Where it is written.
    pub path: Path,
    /// The protocol.
    pub protocol: RuleProtocol,
    /// The port, or ICMP's type.
    pub port: RulePort,
    /// It is handed to Cilium's proxy, which judges the rest: HTTP, Kafka, DNS, TLS or a listener.
    pub redirect: bool,
}

impl fmt::Display for PortTerm {
    /// `TCP/8080`, `ICMP type 8`, `TCP on every port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, .. } = self;
        match protocol {
            RuleProtocol::One(protocol) if protocol.is_icmp() && port.is_every() => {
                write!(f, "{protocol} of every type")
            }
            RuleProtocol::One(protocol) if protocol.is_icmp() => write!(f, "{protocol} type {port}"),
            _ if port.is_every() => write!(f, "{protocol} on every port"),
            RuleProtocol::Any => write!(f, "{protocol} on port {port}"),
            RuleProtocol::One(protocol) => write!(f, "{protocol}/{port}"),
        }
    }
}

/// Protocol and port as a key of the policy map has them: a prefix of the port's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L4Key {
    /// Bits of the port that count, 0 to 16. First, so that wider keys sort before the ones inside them.
    pub port_bits: u8,
    /// IP protocol, 0 for every one.
    pub protocol: u8,
    /// Port, host order; bits that do not count are 0.
    pub port: u16,
}

impl L4Key {
    /// Every protocol and port.
    pub const EVERYTHING: Self = Self { port_bits: 0, protocol: 0, port: 0 };

    /// Whether this key takes in everything the other one does, and more.
    pub fn is_wider(self, other: Self) -> bool {
        if self.protocol == 0 {
            return other.protocol != 0;
        }
        self.protocol == other.protocol && self.port_is_wider(other)
    }

    /// The same for the ports alone.
    pub(super) fn port_is_wider(self, other: Self) -> bool {
        self.port_bits < other.port_bits && (self.port ^ other.port) & mask(self.port_bits) == 0
    }
}

/// The bits of a port that a prefix of so many bits covers.
fn mask(port_bits: u8) -> u16 {
    u16::MAX.checked_shl(16 - u32::from(port_bits)).unwrap_or(0)
}

/// The keys of a protocol and a range of ports, as few prefixes as cover it.
///
/// A range that begins at 0 and ends at 0 or 65535 is every port; one that ends before it begins is its first port.
pub fn keys(protocol: u8, first: u16, end: u16) -> Vec<L4Key> {
    if first == 0 && (end == 0 || end == u16::MAX) {
        return vec![L4Key { port_bits: 0, protocol, port: 0 }];
    }
    let last = u32::from(end.max(first));
    let mut next = u32::from(first);
    let mut keys = Vec::new();
    while next <= last {
        // The largest block that begins here and does not go beyond the end.
        let aligned = if next == 0 { 16 } else { next.trailing_zeros().min(16) };
        let fitting = (last - next + 1).ilog2();
        let free_bits = aligned.min(fitting);
        keys.push(L4Key { port_bits: (16 - free_bits) as u8, protocol, port: next as u16 });
        next += 1 << free_bits;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(keys: &[L4Key]) -> Vec<u16> {
        let covers = |key: &L4Key, port: u16| (key.port ^ port) & mask(key.port_bits) == 0;
        (0..=u16::MAX).filter(|port| keys.iter().any(|key| covers(key, *port))).collect()
    }

    #[test]
    fn a_range_is_covered_by_prefixes_and_nothing_else_is() {
        for (first, last) in
            [(1, 1), (1, 65535), (0, 1), (0, 65534), (1024, 65535), (30000, 32767), (8000, 9000)]
        {
            let keys = keys(6, first, last);
            assert_eq!(covered(&keys), (first..=last).collect::<Vec<_>>(), "{first}-{last}");
            for (one, other) in keys.iter().flat_map(|one| keys.iter().map(move |other| (one, other))) {
                assert!(!one.is_wider(*other), "{first}-{last}: {one:?} covers {other:?}");
            }
        }
        assert_eq!(keys(6, 1024, 65535).len(), 6);
    }

    #[test]
    fn the_corners_of_ranges() {
        assert_eq!(keys(6, 0, 0), [L4Key { port_bits: 0, protocol: 6, port: 0 }]);
        assert_eq!(keys(6, 0, 65535), keys(6, 0, 0));
        assert_eq!(keys(6, 80, 0), [L4Key { port_bits: 16, protocol: 6, port: 80 }]);
        assert_eq!(keys(6, 80, 5), keys(6, 80, 80));
    }
}
