//! What the IPv4 and the IPv6 twin of a structure differ in: the width of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::part;

/// IPv4 or IPv6. Cilium has one map of each kind per family; the sizes of keys and values tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes of an address.
    pub fn width(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The address that stands for none or any.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// A pin's name in this family, from the one in IPv4: `cilium_lb4_services_v2` becomes `cilium_lb6_services_v2`.
    pub fn pin(self, v4_name: &str) -> String {
        match self {
            Self::V4 => v4_name.to_owned(),
            Self::V6 => ["lb", "ct", "any", "snat_v", "ipv"].iter().fold(v4_name.to_owned(), |name, stem| {
                name.replace(&format!("{stem}4"), &format!("{stem}6"))
            }),
        }
    }

    /// The family whose structure has this size: `v4` bytes or `v6` bytes.
    pub(super) fn by_size(size: usize, v4: usize, v6: usize) -> Option<Self> {
        if size == v4 {
            Some(Self::V4)
        } else if size == v6 {
            Some(Self::V6)
        } else {
            None
        }
    }

    /// The address at `at`, network order.
    ///
    /// Only called inside a structure whose size was checked.
    pub(super) fn read(self, raw: &[u8], at: usize) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from(part::<4>(raw, at)),
            Self::V6 => IpAddr::from(part::<16>(raw, at)),
        }
    }
}

/// Appends an address in network order.
pub(super) fn push_address(raw: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => raw.extend(v4.octets()),
        IpAddr::V6(v6) => raw.extend(v6.octets()),
    }
}

/// The prefix of `bits` that an address begins with, host bits cleared; `None` if there are not so many.
pub(super) fn prefix(address: IpAddr, bits: u32) -> Option<IpNet> {
    Some(IpNet::new(address, u8::try_from(bits).ok()?).ok()?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_ipv6() {
        let pins = [
            ("cilium_lb4_services_v2", "cilium_lb6_services_v2"),
            ("cilium_ct4_global", "cilium_ct6_global"),
            ("cilium_ct_any4_global", "cilium_ct_any6_global"),
            ("cilium_snat_v4_external", "cilium_snat_v6_external"),
            ("cilium_ipv4_frag_datagrams", "cilium_ipv6_frag_datagrams"),
        ];
        for (v4, v6) in pins {
            assert_eq!((Family::V4.pin(v4).as_str(), Family::V6.pin(v4).as_str()), (v4, v6));
        }
    }
}
