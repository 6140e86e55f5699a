//! Counters, authentication, fragments, session affinity, rate limits.

use std::net::{Ipv4Addr, Ipv6Addr};

use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::family::Family;
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::lb::{LbAffinity, LbAffinityKey, LbAffinityMatch};
use probe_model::cilium::metrics::{MetricsKey, MetricsValue};
use probe_model::cilium::policy::PolicyCounters;
use probe_model::cilium::policystats::PolicyStatsKey;
use probe_model::cilium::ratelimit::{RatelimitKey, RatelimitValue};
use probe_model::cilium::runtime_config::UTime;
use probe_model::cilium::{Direction, EndpointId};

use super::table::{Codec, Field, Set, Table};

/// Every structure of the family.
pub(crate) fn check(table: &mut Table) {
    metrics(table);
    policystats(table);
    auth(table);
    fragments(table);
    affinity_keys(table);
    affinity_values(table);
    ratelimit(table);
}

fn metrics(table: &mut Table) {
    let codec = Codec {
        zero: &MetricsKey::default,
        encode: &|key: &MetricsKey, _| key.encode().to_vec(),
        decode: &MetricsKey::decode,
    };
    let fields: [Field<MetricsKey>; 4] = [
        ("reason", Set::Bits(|key, bits| key.reason = bits as u8)),
        ("dir", Set::Bits(|key, bits| key.direction = bits as u8)),
        ("line", Set::Bits(|key, bits| key.line = bits as u16)),
        ("file", Set::Bits(|key, bits| key.file = bits as u8)),
    ];
    table.check_in("metrics_key", 13..=15, &codec, &fields[..2]);
    table.check_in("metrics_key", 16..=u32::MAX, &codec, &fields);
    let codec = Codec {
        zero: &MetricsValue::default,
        encode: &|value: &MetricsValue, _| value.encode().to_vec(),
        decode: &MetricsValue::decode,
    };
    let fields: [Field<MetricsValue>; 2] = [
        ("count", Set::Bits(|value, bits| value.count = bits as u64)),
        ("bytes", Set::Bits(|value, bits| value.bytes = bits as u64)),
    ];
    table.check("metrics_value", &codec, &fields);
}

fn policystats(table: &mut Table) {
    let codec = Codec {
        zero: &|| PolicyStatsKey {
            endpoint_id: EndpointId(0),
            sec_label: Identity(0),
            direction: Direction::Ingress,
            prefix_len: 0,
            protocol: 0,
            dport: 0,
        },
        encode: &|key: &PolicyStatsKey, _| key.encode().to_vec(),
        decode: &PolicyStatsKey::decode,
    };
    let fields: [Field<PolicyStatsKey>; 6] = [
        ("endpoint_id", Set::Bits(|key, bits| key.endpoint_id = EndpointId(bits as u16))),
        ("prefix_len", Set::Bits(|key, bits| key.prefix_len = bits as u8)),
        ("sec_label", Set::Bits(|key, bits| key.sec_label = Identity(bits as u32))),
        (
            "egress",
            Set::Bits(|key, bits| {
                key.direction = if bits == 1 { Direction::Egress } else { Direction::Ingress };
            }),
        ),
        ("protocol", Set::Bits(|key, bits| key.protocol = bits as u8)),
        ("dport", Set::Bits(|key, bits| key.dport = bits as u16)),
    ];
    table.check("policy_stats_key", &codec, &fields);
    let codec = Codec {
        zero: &PolicyCounters::default,
        encode: &|value: &PolicyCounters, _| value.encode().to_vec(),
        decode: &PolicyCounters::decode,
    };
    let fields: [Field<PolicyCounters>; 2] = [
        ("packets", Set::Bits(|value, bits| value.packets = bits as u64)),
        ("bytes", Set::Bits(|value, bits| value.bytes = bits as u64)),
    ];
    table.check("policy_stats_value", &codec, &fields);
}

fn auth(table: &mut Table) {
    let codec = Codec {
        zero: &AuthKey::default,
        encode: &|key: &AuthKey, _| key.encode().to_vec(),
        decode: &AuthKey::decode,
    };
    let fields: [Field<AuthKey>; 4] = [
        ("local_sec_label", Set::Bits(|key, bits| key.local_sec_label = Identity(bits as u32))),
        ("remote_sec_label", Set::Bits(|key, bits| key.remote_sec_label = Identity(bits as u32))),
        ("remote_node_id", Set::Bits(|key, bits| key.remote_node_id = bits as u16)),
        ("auth_type", Set::Bits(|key, bits| key.auth_type = bits as u8)),
    ];
    table.check("auth_key", &codec, &fields);
    let codec = Codec {
        zero: &AuthInfo::default,
        encode: &|info: &AuthInfo, _| info.encode().to_vec(),
        decode: &AuthInfo::decode,
    };
    let fields: [Field<AuthInfo>; 1] =
        [("expiration", Set::Bits(|info, bits| info.expiration = UTime(bits as u64)))];
    table.check("auth_info", &codec, &fields);
}

/// The fields of an IPv4 key, sender, receiver, identification, protocol.
fn v4_fragment(key: &mut FragmentId) -> (&mut Ipv4Addr, &mut Ipv4Addr, &mut u16, &mut u8) {
    match key {
        FragmentId::V4 { saddr, daddr, id, proto } => (saddr, daddr, id, proto),
        FragmentId::V6 { .. } => unreachable!("made as IPv4"),
    }
}

/// The fields of an IPv6 key, sender, receiver, identification, protocol.
fn v6_fragment(key: &mut FragmentId) -> (&mut Ipv6Addr, &mut Ipv6Addr, &mut u32, &mut u8) {
    match key {
        FragmentId::V6 { saddr, daddr, id, proto } => (saddr, daddr, id, proto),
        FragmentId::V4 { .. } => unreachable!("made as IPv6"),
    }
}

fn fragments(table: &mut Table) {
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let codec = Codec {
        zero: &|| FragmentId::V4 { saddr: unspecified, daddr: unspecified, id: 0, proto: 0 },
        encode: &|key: &FragmentId, _| key.encode(),
        decode: &FragmentId::decode,
    };
    let fields: [Field<FragmentId>; 4] = [
        ("saddr", Set::Bits(|key, bits| *v4_fragment(key).0 = Ipv4Addr::from_bits(bits as u32))),
        ("daddr", Set::Bits(|key, bits| *v4_fragment(key).1 = Ipv4Addr::from_bits(bits as u32))),
        ("id", Set::Bits(|key, bits| *v4_fragment(key).2 = bits as u16)),
        ("proto", Set::Bits(|key, bits| *v4_fragment(key).3 = bits as u8)),
    ];
    table.check("ipv4_frag_id", &codec, &fields);
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let codec = Codec {
        zero: &|| FragmentId::V6 { saddr: unspecified, daddr: unspecified, id: 0, proto: 0 },
        ..codec
    };
    let fields: [Field<FragmentId>; 4] = [
        ("saddr", Set::Bits(|key, bits| *v6_fragment(key).0 = Ipv6Addr::from_bits(bits))),
        ("daddr", Set::Bits(|key, bits| *v6_fragment(key).1 = Ipv6Addr::from_bits(bits))),
        ("id", Set::Bits(|key, bits| *v6_fragment(key).2 = bits as u32)),
        ("proto", Set::Bits(|key, bits| *v6_fragment(key).3 = bits as u8)),
    ];
    table.check("ipv6_frag_id", &codec, &fields);
    let codec = Codec {
        zero: &FragmentPorts::default,
        encode: &|ports: &FragmentPorts, _| ports.encode().to_vec(),
        decode: &FragmentPorts::decode,
    };
    let fields: [Field<FragmentPorts>; 2] = [
        ("sport", Set::Bits(|ports, bits| ports.sport = bits as u16)),
        ("dport", Set::Bits(|ports, bits| ports.dport = bits as u16)),
    ];
    table.check("ipv4_frag_l4ports", &codec, &fields);
}

fn affinity_keys(table: &mut Table) {
    let zero = |family| LbAffinityKey { family, client_id: [0; 16], rev_nat_id: 0, netns_cookie: false };
    let codec = Codec {
        zero: &|| zero(Family::V4),
        encode: &|key: &LbAffinityKey, _| key.encode(),
        decode: &LbAffinityKey::decode,
    };
    let shared: [Field<LbAffinityKey>; 2] = [
        ("rev_nat_id", Set::Bits(|key, bits| key.rev_nat_id = bits as u16)),
        ("netns_cookie", Set::Bits(|key, bits| key.netns_cookie = bits == 1)),
    ];
    let cookie: Set<LbAffinityKey> =
        Set::Bits(|key, bits| key.client_id[..8].copy_from_slice(&(bits as u64).to_le_bytes()));
    let fields: Vec<_> = shared.clone().into_iter().chain([("client_id", cookie)]).collect();
    table.check("lb4_affinity_key", &codec, &fields);
    let address: Set<LbAffinityKey> = Set::Bits(|key, bits| key.client_id = bits.to_le_bytes());
    let fields: Vec<_> = shared.into_iter().chain([("client_id", address)]).collect();
    table.check("lb6_affinity_key", &Codec { zero: &|| zero(Family::V6), ..codec }, &fields);
}

fn affinity_values(table: &mut Table) {
    let codec = Codec {
        zero: &|| LbAffinity { last_used: 0, backend_id: 0 },
        encode: &|value: &LbAffinity, _| value.encode().to_vec(),
        decode: &LbAffinity::decode,
    };
    let fields: [Field<LbAffinity>; 2] = [
        ("last_used", Set::Bits(|value, bits| value.last_used = bits as u64)),
        ("backend_id", Set::Bits(|value, bits| value.backend_id = bits as u32)),
    ];
    table.check("lb_affinity_val", &codec, &fields);
    let codec = Codec {
        zero: &|| LbAffinityMatch { backend_id: 0, rev_nat_id: 0 },
        encode: &|key: &LbAffinityMatch, _| key.encode().to_vec(),
        decode: &LbAffinityMatch::decode,
    };
    let fields: [Field<LbAffinityMatch>; 2] = [
        ("backend_id", Set::Bits(|key, bits| key.backend_id = bits as u32)),
        ("rev_nat_id", Set::Bits(|key, bits| key.rev_nat_id = bits as u16)),
    ];
    table.check("lb_affinity_match", &codec, &fields);
}

fn ratelimit(table: &mut Table) {
    let encode = &|key: &RatelimitKey, _| key.encode();
    let codec = Codec { zero: &RatelimitKey::default, encode, decode: &RatelimitKey::decode };
    let netdev_idx: Set<RatelimitKey> = Set::Bits(|key, bits| key.netdev_idx = bits as u32);
    table.check_in("ratelimit_key", 15..=16, &codec, &[("netdev_idx", netdev_idx.clone())]);
    let codec = Codec { zero: &|| RatelimitKey { usage: Some(0), netdev_idx: 0 }, ..codec };
    let fields: [Field<RatelimitKey>; 4] = [
        ("usage", Set::Bits(|key, bits| key.usage = Some(bits as u32))),
        ("netdev_idx", netdev_idx.clone()),
        // The structure's other names for the same word.
        ("icmpv6", netdev_idx.clone()),
        ("key", netdev_idx),
    ];
    table.check_in("ratelimit_key", 17..=u32::MAX, &codec, &fields);
    let codec = Codec {
        zero: &RatelimitValue::default,
        encode: &|value: &RatelimitValue, _| value.encode().to_vec(),
        decode: &RatelimitValue::decode,
    };
    let fields: [Field<RatelimitValue>; 2] = [
        ("last_topup", Set::Bits(|value, bits| value.last_topup = bits as u64)),
        ("tokens", Set::Bits(|value, bits| value.tokens = bits as u64)),
    ];
    table.check("ratelimit_value", &codec, &fields);
}
