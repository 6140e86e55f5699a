//! Maps by address: the ipcache, endpoints, nodes, tunnels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use probe_model::cilium::EndpointId;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey, Mac};
use probe_model::cilium::node::{NodeKey, NodeValue};
use probe_model::cilium::tunnel::{TunnelKey, TunnelLayout, TunnelValue};

use super::table::{Codec, Field, Set, Table};

/// Every structure of the family.
pub(crate) fn check(table: &mut Table) {
    ipcache_key(table);
    remote_endpoint_info(table);
    endpoint_key(table);
    endpoint_info(table);
    node(table);
    tunnel(table);
}

fn v4(bits: u128) -> IpAddr {
    Ipv4Addr::from_bits(bits as u32).into()
}

fn v6(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).into()
}

/// Zero in one family or the other.
fn family(is_v6: bool) -> IpAddr {
    if is_v6 { v6(0) } else { v4(0) }
}

fn ipcache_layout(minor: u32) -> IpcacheLayout {
    match minor {
        13 => IpcacheLayout::NoCluster,
        14 => IpcacheLayout::ClusterByte,
        15..=17 => IpcacheLayout::ClusterWord,
        _ => IpcacheLayout::TunnelAddress,
    }
}

fn ipcache_key(table: &mut Table) {
    let codec = Codec {
        zero: &|| IpcacheKey { prefix: v4(0).into(), cluster_id: 0 },
        encode: &|key: &IpcacheKey, minor| key.encode(ipcache_layout(minor)).to_vec(),
        decode: &IpcacheKey::decode,
    };
    let fields: [Field<IpcacheKey>; 4] = [
        ("lpm_key", Set::Some(|key, long| key.prefix = IpNet::new_assert(v4(0), if long { 32 } else { 0 }))),
        // Not a host's prefix, whose length is another in IPv6.
        ("family", Set::Some(|key, is_v6| key.prefix = IpNet::new_assert(family(is_v6), 0))),
        ("ip4", Set::Bits(|key, bits| key.prefix = v4(bits).into())),
        ("ip6", Set::Bits(|key, bits| key.prefix = v6(bits).into())),
    ];
    table.check_in("ipcache_key", 13..=13, &codec, &fields);
    let cluster_id: Field<IpcacheKey> = ("cluster_id", Set::Bits(|key, bits| key.cluster_id = bits as u16));
    let fields: Vec<_> = fields.into_iter().chain([cluster_id]).collect();
    table.check_in("ipcache_key", 14..=u32::MAX, &codec, &fields);
}

fn remote_endpoint_info(table: &mut Table) {
    let codec = Codec {
        zero: &RemoteEndpointInfo::default,
        encode: &|info: &RemoteEndpointInfo, minor| info.encode(ipcache_layout(minor)),
        decode: &RemoteEndpointInfo::decode,
    };
    let identity: Set<RemoteEndpointInfo> = Set::Bits(|info, bits| info.sec_identity = Identity(bits as u32));
    let tunnel_endpoint: Set<RemoteEndpointInfo> =
        Set::Bits(|info, bits| info.tunnel_endpoint = (bits != 0).then(|| v4(bits)));
    let node_id: Set<RemoteEndpointInfo> = Set::Bits(|info, bits| info.node_id = bits as u16);
    let key: Set<RemoteEndpointInfo> = Set::Bits(|info, bits| info.key = bits as u8);
    let skip_tunnel: Set<RemoteEndpointInfo> = Set::Bits(|info, bits| info.skip_tunnel = bits == 1);
    let older = [
        ("sec_label", identity.clone()),
        ("sec_identity", identity.clone()),
        ("tunnel_endpoint", tunnel_endpoint),
        ("node_id", node_id),
        ("key", key.clone()),
        ("flag_skip_tunnel", skip_tunnel.clone()),
    ];
    table.check_in("remote_endpoint_info", 13..=17, &codec, &older);
    let newer: [Field<RemoteEndpointInfo>; 9] = [
        ("sec_identity", identity),
        ("ip4", Set::Bits(|info, bits| info.tunnel_endpoint = Some(v4(bits)))),
        ("ip6", Set::Bits(|info, bits| info.tunnel_endpoint = Some(v6(bits)))),
        ("tunnel_endpoint", Set::Bits(|info, bits| info.tunnel_endpoint = Some(v6(bits)))),
        ("key", key),
        ("flag_skip_tunnel", skip_tunnel),
        ("flag_has_tunnel_ep", Set::Bits(|info, bits| info.tunnel_endpoint = (bits == 1).then(|| v4(0)))),
        ("flag_ipv6_tunnel_ep", Set::Bits(|info, bits| info.tunnel_endpoint = Some(family(bits == 1)))),
        ("flag_remote_cluster", Set::Bits(|info, bits| info.remote_cluster = bits == 1)),
    ];
    table.check_in("remote_endpoint_info", 18..=u32::MAX, &codec, &newer);
}

fn endpoint_key(table: &mut Table) {
    let codec = Codec {
        zero: &|| EndpointKey::new(v4(0)),
        encode: &|key: &EndpointKey, _| key.encode().to_vec(),
        decode: &EndpointKey::decode,
    };
    let fields: [Field<EndpointKey>; 4] = [
        ("ip4", Set::Bits(|key, bits| key.ip = v4(bits))),
        ("ip6", Set::Bits(|key, bits| key.ip = v6(bits))),
        ("family", Set::Some(|key, is_v6| key.ip = family(is_v6))),
        ("key", Set::Bits(|key, bits| key.key = bits as u8)),
    ];
    table.check_in("endpoint_key", 13..=13, &codec, &fields);
    let cluster_id: Field<EndpointKey> = ("cluster_id", Set::Bits(|key, bits| key.cluster_id = bits as u16));
    let fields: Vec<_> = fields.into_iter().chain([cluster_id]).collect();
    table.check_in("endpoint_key", 14..=u32::MAX, &codec, &fields);
}

fn endpoint_info(table: &mut Table) {
    let codec = Codec {
        zero: &EndpointInfo::default,
        encode: &|info: &EndpointInfo, _| info.encode().to_vec(),
        decode: &EndpointInfo::decode,
    };
    // Each version's fields are those of the one before it and more, in this order.
    let fields: [Field<EndpointInfo>; 8] = [
        ("ifindex", Set::Bits(|info, bits| info.ifindex = bits as u32)),
        ("lxc_id", Set::Bits(|info, bits| info.lxc_id = EndpointId(bits as u16))),
        ("flags", Set::Bits(|info, bits| info.flags = bits as u32)),
        // A link-layer address fills six of its word's eight bytes.
        ("mac", Set::Some(|info, ones| info.mac = Mac([if ones { 0xFF } else { 0 }; 6]))),
        ("node_mac", Set::Some(|info, ones| info.node_mac = Mac([if ones { 0xFF } else { 0 }; 6]))),
        ("sec_id", Set::Bits(|info, bits| info.sec_id = Identity(bits as u32))),
        ("parent_ifindex", Set::Bits(|info, bits| info.parent_ifindex = bits as u32)),
        ("rt_info", Set::Bits(|info, bits| info.rt_info = bits as u32)),
    ];
    for (minors, known) in [(13..=13, 5), (14..=16, 6), (17..=19, 7), (20..=u32::MAX, 8)] {
        table.check_in("endpoint_info", minors, &codec, &fields[..known]);
    }
}

fn node(table: &mut Table) {
    let codec = Codec {
        zero: &|| NodeKey { ip: v4(0) },
        encode: &|key: &NodeKey, _| key.encode().to_vec(),
        decode: &NodeKey::decode,
    };
    let fields: [Field<NodeKey>; 3] = [
        ("family", Set::Some(|key, is_v6| key.ip = family(is_v6))),
        ("ip4", Set::Bits(|key, bits| key.ip = v4(bits))),
        ("ip6", Set::Bits(|key, bits| key.ip = v6(bits))),
    ];
    table.check("node_key", &codec, &fields);
    let codec = Codec {
        zero: &|| NodeValue { id: 0, spi: Some(0) },
        encode: &|value: &NodeValue, _| value.encode(),
        decode: &NodeValue::decode,
    };
    let fields: [Field<NodeValue>; 2] = [
        ("id", Set::Bits(|value, bits| value.id = bits as u16)),
        ("spi", Set::Bits(|value, bits| value.spi = Some(bits as u8))),
    ];
    table.check("node_value", &codec, &fields);
}

fn tunnel(table: &mut Table) {
    let layout = |minor| if minor < 15 { TunnelLayout::ClusterByte } else { TunnelLayout::ClusterWord };
    let codec = Codec {
        zero: &|| TunnelKey { ip: v4(0), cluster_id: 0 },
        encode: &|key: &TunnelKey, minor| key.encode(layout(minor)).to_vec(),
        decode: &TunnelKey::decode,
    };
    let fields: [Field<TunnelKey>; 4] = [
        ("ip4", Set::Bits(|key, bits| key.ip = v4(bits))),
        ("ip6", Set::Bits(|key, bits| key.ip = v6(bits))),
        ("family", Set::Some(|key, is_v6| key.ip = family(is_v6))),
        ("cluster_id", Set::Bits(|key, bits| key.cluster_id = bits as u16)),
    ];
    table.check("tunnel_key", &codec, &fields);
    let codec = Codec {
        zero: &|| TunnelValue { ip: v4(0), key: 0, node_id: 0 },
        encode: &|value: &TunnelValue, _| value.encode().to_vec(),
        decode: &TunnelValue::decode,
    };
    let fields: [Field<TunnelValue>; 5] = [
        ("ip4", Set::Bits(|value, bits| value.ip = v4(bits))),
        ("ip6", Set::Bits(|value, bits| value.ip = v6(bits))),
        ("family", Set::Some(|value, is_v6| value.ip = family(is_v6))),
        ("key", Set::Bits(|value, bits| value.key = bits as u8)),
        ("node_id", Set::Bits(|value, bits| value.node_id = bits as u16)),
    ];
    table.check("tunnel_value", &codec, &fields);
}
