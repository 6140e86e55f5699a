//! Entries and their bytes, written from the layouts and apart from `probe-model`.
use std::fmt;

/// The layouts, named by the first version that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    V1_13,
    V1_14,
    V1_16_4,
    V1_17,
    V1_18,
    V1_19,
    V1_20,
}

impl Layout {
    /// Every one, oldest first.
    pub(crate) const ALL: [Self; 7] =
        [Self::V1_13, Self::V1_14, Self::V1_16_4, Self::V1_17, Self::V1_18, Self::V1_19, Self::V1_20];

    /// The group of versions with one lookup procedure, and the first version of this layout.
    pub(crate) const fn group(self) -> (char, &'static str) {
        match self {
            Self::V1_13 => ('A', "1.13"),
            Self::V1_14 => ('B', "1.14.0"),
            Self::V1_16_4 => ('C', "1.16.4"),
            Self::V1_17 => ('D', "1.17"),
            Self::V1_18 => ('D', "1.18"),
            Self::V1_19 => ('E', "1.19"),
            Self::V1_20 => ('F', "1.20"),
        }
    }

    /// The eBPF program that looks up, and the eBPF map that it looks in.
    pub(crate) const fn program_and_map(self) -> (&'static str, &'static str) {
        match self {
            Self::V1_13 => ("lookup_a", "HASH_24"),
            Self::V1_14 => ("lookup_b", "TRIE_24"),
            Self::V1_16_4 => ("lookup_c", "TRIE_24"),
            Self::V1_17 => ("lookup_d_17", "TRIE_24"),
            Self::V1_18 => ("lookup_d_18", "TRIE_8"),
            Self::V1_19 => ("lookup_e", "TRIE_12"),
            Self::V1_20 => ("lookup_f", "TRIE_12"),
        }
    }

    /// Whether entries have `has_explicit_auth_type` and something that ranks them.
    pub(crate) const fn is_ranked(self) -> bool {
        matches!(self, Self::V1_17 | Self::V1_18 | Self::V1_19 | Self::V1_20)
    }

    /// Whether what ranks them is a precedence of 32 bits, not a priority of eight.
    pub(crate) const fn has_precedence(self) -> bool {
        matches!(self, Self::V1_19 | Self::V1_20)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, version) = self.group();
        write!(f, "group {group} ({version})")
    }
}

/// One entry of a policy map; host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) identity: u32,
    pub(crate) egress: bool,
    /// Bits of protocol and port that count: 0, 8, 9 to 24.
    pub(crate) plen: u8,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    pub(crate) deny: bool,
    pub(crate) proxy_port: u16,
    pub(crate) auth_type: u8,
    pub(crate) explicit_auth: bool,
    /// `proxy_port_priority` or `precedence`; 0 where the layout has neither.
    pub(crate) rank: u32,
    /// What the program names the entry by: never 0.
    pub(crate) tag: u32,
}

impl Entry {
    /// The key's bytes.
    pub(crate) fn key(&self, layout: Layout) -> Vec<u8> {
        let (identity, port) = (self.identity.to_le_bytes(), self.port.to_be_bytes());
        let egress = u8::from(self.egress);
        if layout == Layout::V1_13 {
            return [&identity[..], &port, &[self.protocol, egress]].concat();
        }
        let prefixlen = 40 + u32::from(self.plen);
        [&prefixlen.to_le_bytes()[..], &identity, &[egress, self.protocol], &port].concat()
    }

    /// The value's bytes, with the tag in `packets`, in 1.18's padding, or in the cookie.
    pub(crate) fn value(&self, layout: Layout) -> Vec<u8> {
        let proxy_port = self.proxy_port.to_be_bytes();
        let deny = u8::from(self.deny);
        let flags = match layout {
            Layout::V1_13 => deny,
            Layout::V1_14 => deny | u8::from(self.plen == 0) << 1 | u8::from(self.plen <= 8) << 2,
            _ => deny | self.plen << 3,
        };
        let auth = self.auth_type | u8::from(self.explicit_auth) << 7;
        let tag = self.tag.to_le_bytes();
        let mut value = [&proxy_port[..], &[flags, auth]].concat();
        match layout {
            Layout::V1_13 | Layout::V1_14 | Layout::V1_16_4 | Layout::V1_17 => {
                value.extend([self.rank as u8, 0, 0, 0]);
                value.extend(u64::from(self.tag).to_le_bytes());
                value.extend([0; 8]);
            }
            Layout::V1_18 => value.extend([self.rank as u8, tag[0], tag[1], tag[2]]),
            Layout::V1_19 | Layout::V1_20 => value.extend([self.rank.to_le_bytes(), tag].concat()),
        }
        value
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.egress { "egress" } else { "ingress" };
        write!(
            f,
            "#{} {:#x}/{}/{}:{} {direction} {}",
            self.tag,
            self.identity,
            self.plen,
            self.protocol,
            self.port,
            if self.deny { "deny" } else { "allow" }
        )?;
        let explicit = if self.explicit_auth { " explicit" } else { "" };
        write!(f, ", proxy {}, auth {}{explicit}, rank {:#x}", self.proxy_port, self.auth_type, self.rank)
    }
}
