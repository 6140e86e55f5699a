//! The bytes of a policy map's entries, straight from the tables of sections 2.2 and 2.3 of the ABI reference: one field
//! is one offset. Shares no code with the crate it judges.

/// A range of versions with a lookup procedure and a layout of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Version {
    /// A
    V1_13,
    /// B, 1.14.0 to 1.16.3
    V1_14,
    /// C, 1.16.4 on
    V1_16_4,
    /// D with counters in the value
    V1_17,
    /// D with counters in a map of their own
    V1_18,
    /// E
    V1_19,
    /// F
    V1_20,
}

impl Version {
    pub(crate) const ALL: [Self; 7] =
        [Self::V1_13, Self::V1_14, Self::V1_16_4, Self::V1_17, Self::V1_18, Self::V1_19, Self::V1_20];

    /// Bytes of a key and of a value.
    pub(crate) fn sizes(self) -> (usize, usize) {
        match self {
            Self::V1_13 => (8, 24),
            Self::V1_14 | Self::V1_16_4 | Self::V1_17 => (12, 24),
            Self::V1_18 => (12, 8),
            Self::V1_19 | Self::V1_20 => (12, 12),
        }
    }

    /// Bytes of the value that no field has.
    pub(crate) fn padding(self) -> core::ops::Range<usize> {
        match self {
            Self::V1_13 | Self::V1_14 | Self::V1_16_4 => 4..8,
            Self::V1_17 | Self::V1_18 => 5..8,
            Self::V1_19 | Self::V1_20 => 0..0,
        }
    }
}

/// An entry as it lies in the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// What an agent wants to store; the layouts that lack a field leave it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) identity: u32,
    pub(crate) egress: bool,
    /// 0, 8 for a protocol, 9 to 24 for a protocol and bits of a port.
    pub(crate) plen: u8,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    pub(crate) deny: bool,
    pub(crate) proxy_port: u16,
    pub(crate) auth_type: u8,
    pub(crate) explicit_auth: bool,
    /// `proxy_port_priority` of 1.17 and 1.18, `precedence` from 1.19 on.
    pub(crate) rank: u32,
    pub(crate) cookie: u32,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Rule {
    pub(crate) fn store(&self, version: Version) -> Raw {
        Raw { key: self.key(version), value: self.value(version) }
    }

    fn key(&self, version: Version) -> Vec<u8> {
        let id = self.identity.to_le_bytes();
        let port = self.port.to_be_bytes();
        let egress = u8::from(self.egress);
        if version == Version::V1_13 {
            return vec![id[0], id[1], id[2], id[3], port[0], port[1], self.protocol, egress];
        }
        let prefixlen = 40 + self.plen;
        vec![prefixlen, 0, 0, 0, id[0], id[1], id[2], id[3], egress, self.protocol, port[0], port[1]]
    }

    fn value(&self, version: Version) -> Vec<u8> {
        let deny = u8::from(self.deny);
        let flags = match version {
            Version::V1_13 => deny,
            Version::V1_14 => deny | u8::from(self.plen == 0) << 1 | u8::from(self.plen <= 8) << 2,
            _ => deny | self.plen << 3,
        };
        let explicit = version >= Version::V1_17 && self.explicit_auth;
        let port = self.proxy_port.to_be_bytes();
        let mut value = vec![port[0], port[1], flags, self.auth_type | u8::from(explicit) << 7];
        match version {
            Version::V1_13 | Version::V1_14 | Version::V1_16_4 => value.extend([0; 4]),
            Version::V1_17 | Version::V1_18 => value.extend([self.rank as u8, 0, 0, 0]),
            Version::V1_19 | Version::V1_20 => {
                value.extend(self.rank.to_le_bytes());
                value.extend(self.cookie.to_le_bytes());
            }
        }
        if version <= Version::V1_17 {
            value.extend(self.packets.to_le_bytes());
            value.extend(self.bytes.to_le_bytes());
        }
        value
    }
}

/// The fields of the value that a lookup asks for.
impl Raw {
    pub(crate) fn deny(&self) -> bool {
        self.value[2] & 0b001 != 0
    }

    /// 1.14.0 to 1.16.3
    pub(crate) fn wildcard_protocol(&self) -> bool {
        self.value[2] & 0b010 != 0
    }

    /// 1.14.0 to 1.16.3
    pub(crate) fn wildcard_dport(&self) -> bool {
        self.value[2] & 0b100 != 0
    }

    /// From 1.16.4 on.
    pub(crate) fn plen(&self) -> u8 {
        self.value[2] >> 3
    }

    pub(crate) fn proxy_port(&self) -> u16 {
        u16::from_be_bytes([self.value[0], self.value[1]])
    }

    pub(crate) fn auth_type(&self, version: Version) -> u8 {
        if version >= Version::V1_17 { self.value[3] & 0x7f } else { self.value[3] }
    }

    /// From 1.17 on.
    pub(crate) fn has_explicit_auth_type(&self) -> bool {
        self.value[3] & 0x80 != 0
    }

    /// 1.17 and 1.18
    pub(crate) fn proxy_port_priority(&self) -> u8 {
        self.value[4]
    }

    /// From 1.19 on.
    pub(crate) fn precedence(&self) -> u32 {
        u32::from_le_bytes([self.value[4], self.value[5], self.value[6], self.value[7]])
    }

    /// Whether an agent of this version could have written it.
    pub(crate) fn is_possible(&self, version: Version) -> bool {
        if (self.key.len(), self.value.len()) != version.sizes() {
            return false;
        }
        let flags = self.value[2] & !1;
        if version == Version::V1_13 {
            return self.key[7] <= 1 && flags == 0;
        }
        let prefixlen = u32::from_le_bytes([self.key[0], self.key[1], self.key[2], self.key[3]]);
        if self.key[8] > 1 || !(prefixlen == 40 || (48..=64).contains(&prefixlen)) {
            return false;
        }
        let plen = (prefixlen - 40) as u8;
        match version {
            Version::V1_14 => flags == u8::from(plen == 0) << 1 | u8::from(plen <= 8) << 2,
            _ => flags == plen << 3,
        }
    }
}
