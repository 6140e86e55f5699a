//! The ipcache: address prefix to identity.

mod lookup;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::identity::Identity;
use super::{DecodeError, address, address_bytes, part, sized, u16_le, u32_le};

pub use lookup::Ipcache;

/// Bits of a key's prefix before the address: cluster id, padding and family.
const STATIC_PREFIX_BITS: u32 = 32;

/// A generation of `cilium_ipcache`.
///
/// [`IpcacheKey::decode`] and [`RemoteEndpointInfo::decode`] need none: sizes and bytes say where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpcacheLayout {
    /// Keys without a cluster id, values of 12 bytes: 1.13.
    NoCluster,
    /// A cluster id of one byte before the family: 1.14.
    ClusterByte,
    /// A cluster id of two bytes, values of 12 bytes: 1.15 to 1.17.
    ClusterWord,
    /// Tunnel endpoints of either family, values of 24 bytes, pin `cilium_ipcache_v2`: 1.18 on.
    TunnelAddress,
}

impl IpcacheLayout {
    /// Every generation, oldest first.
    pub const ALL: [Self; 4] = [Self::NoCluster, Self::ClusterByte, Self::ClusterWord, Self::TunnelAddress];

    /// Bytes of a value.
    pub const fn value_size(self) -> usize {
        match self {
            Self::NoCluster | Self::ClusterByte | Self::ClusterWord => RemoteEndpointInfo::SIZE,
            Self::TunnelAddress => RemoteEndpointInfo::SIZE_V2,
        }
    }

    /// The versions of Cilium that have it.
    pub const fn versions(self) -> &'static str {
        match self {
            Self::NoCluster => "1.13",
            Self::ClusterByte => "1.14",
            Self::ClusterWord => "1.15 to 1.17",
            Self::TunnelAddress => "1.18 to 1.20",
        }
    }

    /// The name under which the map is pinned.
    pub const fn pin(self) -> &'static str {
        match self {
            Self::NoCluster | Self::ClusterByte | Self::ClusterWord => "cilium_ipcache",
            Self::TunnelAddress => "cilium_ipcache_v2",
        }
    }
}

/// A key of `cilium_ipcache` and `cilium_ipcache_v2`.
///
/// Source: `struct ipcache_key`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/eps.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpcacheKey {
    /// The prefix; host bits beyond it are zero, as the agent writes them.
    pub prefix: IpNet,
    /// Cluster id, 0 without cluster-aware addressing and always in 1.13; at most 255 in 1.14.
    pub cluster_id: u16,
}

impl IpcacheKey {
    /// Bytes of a key.
    pub const SIZE: usize = 24;

    /// Decodes a key of any generation as the kernel stores it.
    ///
    /// A cluster id lies in byte 6 (1.14) or in bytes 4 and 5 (1.15 on); the other place is zero padding.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] unless `raw` is 24 bytes with a known family, a prefix that fits it, and at most one cluster id.
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
        let cluster_id = one_cluster_id(u16_le(&raw, 4), raw[6], "ipcache_key")?;
        Ok(Self { prefix: prefix.trunc(), cluster_id })
    }

    /// The key as the kernel stores it; what of the cluster id `layout` has no room for is left out.
    pub fn encode(&self, layout: IpcacheLayout) -> [u8; Self::SIZE] {
        let (ip, family) = address_bytes(self.prefix.network());
        let mut raw = [0; Self::SIZE];
        raw[..4].copy_from_slice(&(STATIC_PREFIX_BITS + u32::from(self.prefix.prefix_len())).to_le_bytes());
        match layout {
            IpcacheLayout::NoCluster => {}
            IpcacheLayout::ClusterByte => raw[6] = self.cluster_id as u8,
            IpcacheLayout::ClusterWord | IpcacheLayout::TunnelAddress => {
                raw[4..6].copy_from_slice(&self.cluster_id.to_le_bytes());
            }
        }
        raw[7] = family;
        raw[8..].copy_from_slice(&ip);
        raw
    }
}

/// The cluster id of a key that has it as a word in newer versions and as a byte, elsewhere, in older ones.
pub(super) fn one_cluster_id(word: u16, byte: u8, what: &'static str) -> Result<u16, DecodeError> {
    match (word, byte) {
        (word, 0) => Ok(word),
        (0, byte) => Ok(byte.into()),
        (word, byte) => Err(DecodeError::Field {
            what,
            field: "cluster_id",
            expected: "one byte (up to 1.14) or one word (1.15 on)",
            found: u64::from(byte) << 16 | u64::from(word),
        }),
    }
}

/// A value of `cilium_ipcache` (12 bytes) and `cilium_ipcache_v2` (24 bytes).
///
/// Source: `struct remote_endpoint_info`, Cilium 1.13 to 1.17 `bpf/lib/common.h`, from 1.18 on `bpf/lib/eps.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteEndpointInfo {
    /// The prefix's identity; 1.13 names it `sec_label`.
    pub sec_identity: Identity,
    /// The node behind which the address is, if any; IPv6 only in 24 bytes.
    pub tunnel_endpoint: Option<IpAddr>,
    /// Node id (1.13.0 and 1.14.0 only; padding later).
    pub node_id: u16,
    /// Encryption key id (`IPsec` or `WireGuard`), 0 for none.
    pub key: u8,
    /// Packets to it are not put into a tunnel (1.16 on).
    pub skip_tunnel: bool,
    /// The address belongs to another cluster of the mesh (1.18.2 on).
    pub remote_cluster: bool,
}

impl RemoteEndpointInfo {
    /// Bytes of a value up to 1.17.
    pub const SIZE: usize = 12;
    /// Bytes of a value from 1.18 on.
    pub const SIZE_V2: usize = 24;
    const SKIP_TUNNEL: u8 = 1;
    const HAS_TUNNEL_EP: u8 = 1 << 1;
    const IPV6_TUNNEL_EP: u8 = 1 << 2;
    const REMOTE_CLUSTER: u8 = 1 << 3;

    /// Decodes a value of either size as the kernel stores it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Size`] unless `raw` is 12 or 24 bytes.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        match raw.len() {
            Self::SIZE => Ok(Self::decode_v1(raw)),
            Self::SIZE_V2 => Ok(Self::decode_v2(raw)),
            found => Err(DecodeError::Size {
                what: "remote_endpoint_info",
                expected: "12 (Cilium 1.13 to 1.17) or 24 (1.18 on)",
                found,
            }),
        }
    }

    fn decode_v1(raw: &[u8]) -> Self {
        let tunnel_endpoint = Ipv4Addr::from(part::<4>(raw, 4));
        Self {
            sec_identity: Identity(u32_le(raw, 0)),
            tunnel_endpoint: (!tunnel_endpoint.is_unspecified()).then_some(tunnel_endpoint.into()),
            node_id: u16_le(raw, 8),
            key: raw[10],
            skip_tunnel: raw[11] & Self::SKIP_TUNNEL != 0,
            remote_cluster: false,
        }
    }

    fn decode_v2(raw: &[u8]) -> Self {
        let has = |flag: u8| raw[23] & flag != 0;
        let address = part::<16>(raw, 4);
        // As the datapath: without the flag there is none, whatever the bytes are.
        let tunnel_endpoint = has(Self::HAS_TUNNEL_EP).then(|| {
            if has(Self::IPV6_TUNNEL_EP) {
                Ipv6Addr::from(address).into()
            } else {
                Ipv4Addr::from(part::<4>(&address, 0)).into()
            }
        });
        Self {
            sec_identity: Identity(u32_le(raw, 0)),
            tunnel_endpoint,
            node_id: 0,
            key: raw[22],
            skip_tunnel: has(Self::SKIP_TUNNEL),
            remote_cluster: has(Self::REMOTE_CLUSTER),
        }
    }

    /// The value as the kernel stores it; what `layout` has no room for (an IPv6 tunnel endpoint, a later flag) is left out.
    pub fn encode(&self, layout: IpcacheLayout) -> Vec<u8> {
        let mut raw = vec![0; layout.value_size()];
        raw[..4].copy_from_slice(&self.sec_identity.0.to_le_bytes());
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        if layout == IpcacheLayout::TunnelAddress {
            if let Some(address) = self.tunnel_endpoint {
                raw[4..20].copy_from_slice(&address_bytes(address).0);
            }
            raw[22] = self.key;
            raw[23] = flag(self.skip_tunnel, Self::SKIP_TUNNEL)
                | flag(self.tunnel_endpoint.is_some(), Self::HAS_TUNNEL_EP)
                | flag(self.tunnel_endpoint.is_some_and(|address| address.is_ipv6()), Self::IPV6_TUNNEL_EP)
                | flag(self.remote_cluster, Self::REMOTE_CLUSTER);
        } else {
            if let Some(IpAddr::V4(address)) = self.tunnel_endpoint {
                raw[4..8].copy_from_slice(&address.octets());
            }
            raw[8..10].copy_from_slice(&self.node_id.to_le_bytes());
            raw[10] = self.key;
            raw[11] = flag(self.skip_tunnel, Self::SKIP_TUNNEL);
        }
        raw
    }

    /// The flags that are set, in the words of Cilium's CLI.
    ///
    /// Source: `RemoteEndpointInfoFlags.String`, Cilium 1.18 `pkg/maps/ipcache`.
    pub fn flag_words(&self) -> Vec<&'static str> {
        let words = [(self.skip_tunnel, "skiptunnel"), (self.remote_cluster, "remotecluster")];
        words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect()
    }
}
