//! The ipcache: address prefix to identity.

use std::net::IpAddr;

use bytes::Buf;
use ipnet::IpNet;

use super::identity::Identity;
use super::{DecodeError, address, address_bytes, part, sized, u32_le};

/// Bits of a key's prefix before the address: cluster id, padding and family.
const STATIC_PREFIX_BITS: u32 = 32;

/// A key of `cilium_ipcache`.
///
/// Source: `struct ipcache_key`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpcacheKey {
    /// The prefix; host bits beyond it are zero, as the agent writes them.
    pub prefix: IpNet,
    /// Cluster id, 0 without cluster-aware addressing.
    pub cluster_id: u8,
}

impl IpcacheKey {
    /// Bytes of a key.
    pub const SIZE: usize = 24;

    /// Decodes a key as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 24 bytes with a known family and a prefix that fits it.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "ipcache_key", "24")?;
        let prefixlen = u32_le(&raw, 0);
        let ip = address(&part(&raw, 8), raw[7], "ipcache_key")?;
        let prefix = prefixlen
            .checked_sub(STATIC_PREFIX_BITS)
            .and_then(|bits| IpNet::new(ip, u8::try_from(bits).ok()?).ok())
            .ok_or(DecodeError::Field {
                what: "ipcache_key",
                field: "prefixlen",
                expected: "32 to 64 (IPv4) or 32 to 160 (IPv6)",
                found: prefixlen.into(),
            })?;
        Ok(Self { prefix: prefix.trunc(), cluster_id: raw[6] })
    }

    /// The key as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.prefix.network());
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&(STATIC_PREFIX_BITS + u32::from(self.prefix.prefix_len())).to_le_bytes());
        raw[6] = self.cluster_id;
        raw[7] = family;
        raw[8..].copy_from_slice(&ip);
        raw
    }
}

/// A value of `cilium_ipcache`.
///
/// Source: `struct remote_endpoint_info`, Cilium 1.14 `bpf/lib/common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteEndpointInfo {
    /// The prefix's identity.
    pub sec_identity: Identity,
    /// The node behind which the address is, 0.0.0.0 if none.
    pub tunnel_endpoint: std::net::Ipv4Addr,
    /// Node id (1.14.0 only; padding later).
    pub node_id: u16,
    /// Encryption key id.
    pub key: u8,
    /// The last byte: flags from 1.16 on.
    pub flags: u8,
}

impl RemoteEndpointInfo {
    /// Bytes of a value.
    pub const SIZE: usize = 12;

    /// Decodes a value as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let raw: [u8; Self::SIZE] = sized(raw, "remote_endpoint_info", "12")?;
        let mut rest = &raw[..];
        Ok(Self {
            sec_identity: Identity(rest.get_u32_le()),
            tunnel_endpoint: rest.get_u32().into(),
            node_id: rest.get_u16_le(),
            key: rest.get_u8(),
            flags: rest.get_u8(),
        })
    }

    /// The value as the kernel stores it.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&self.sec_identity.0.to_le_bytes());
        raw[4..8].copy_from_slice(&self.tunnel_endpoint.octets());
        raw[8..10].copy_from_slice(&self.node_id.to_le_bytes());
        raw[10] = self.key;
        raw[11] = self.flags;
        raw
    }
}

/// The whole ipcache, for longest-prefix lookups.
#[derive(Clone, Debug, Default)]
pub struct Ipcache {
    /// Longest prefix first, then by address: one bucket per prefix length would do for large caches.
    by_length: std::collections::BTreeMap<
        core::cmp::Reverse<u8>,
        std::collections::BTreeMap<IpNet, RemoteEndpointInfo>,
    >,
}

impl Ipcache {
    /// Indexes `entries`; those of other clusters are left out, as the datapath looks up cluster 0.
    pub fn new(entries: impl IntoIterator<Item = (IpcacheKey, RemoteEndpointInfo)>) -> Self {
        let mut cache = Self::default();
        for (key, value) in entries.into_iter().filter(|(key, _)| key.cluster_id == 0) {
            let length = core::cmp::Reverse(key.prefix.prefix_len());
            cache.by_length.entry(length).or_default().insert(key.prefix, value);
        }
        cache
    }

    /// The longest prefix that holds `ip`, and its value.
    pub fn lookup(&self, ip: IpAddr) -> Option<(IpNet, RemoteEndpointInfo)> {
        self.by_length.iter().find_map(|(length, bucket)| {
            let prefix = IpNet::new(ip, length.0).ok()?.trunc();
            bucket.get(&prefix).map(|value| (prefix, *value))
        })
    }

    /// Every prefix with its value, longest prefix first.
    pub fn entries(&self) -> impl Iterator<Item = (&IpNet, &RemoteEndpointInfo)> {
        self.by_length.values().flatten()
    }

    /// The prefixes of an identity.
    pub fn prefixes_of(&self, identity: Identity) -> impl Iterator<Item = IpNet> {
        self.entries().filter(move |(_, value)| value.sec_identity == identity).map(|(prefix, _)| *prefix)
    }
}
