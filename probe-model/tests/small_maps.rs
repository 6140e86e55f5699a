//! The smaller maps of Cilium: what is written is read back, no bytes panic, and the ipcache finds the longest prefix.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::identity::{Identity, Scope};
use probe_model::cilium::ipcache::{Ipcache, IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_model::cilium::metrics::{MetricsKey, MetricsValue};
use probe_model::cilium::node::{NodeKey, NodeValue};
use probe_model::cilium::policy::PolicyCounters;
use probe_model::cilium::policystats::PolicyStatsKey;
use probe_model::cilium::ratelimit::{RatelimitKey, RatelimitValue};
use probe_model::cilium::release::Release;
use probe_model::cilium::runtime_config::{RuntimeConfig, UTime};
use probe_model::cilium::tunnel::{TunnelKey, TunnelLayout, TunnelValue};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::world::{Endpoint, World};

/// xorshift64*: the same numbers in every run, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn is(&mut self) -> bool {
        self.next() & 1 << 40 != 0
    }

    fn v4(&mut self) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.next() >> 16) as u32)
    }

    fn v6(&mut self) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::from(self.next()) << 64 | u128::from(self.next()))
    }

    fn ip(&mut self) -> IpAddr {
        if self.is() { self.v4().into() } else { self.v6().into() }
    }

    fn prefix(&mut self) -> IpNet {
        let ip = self.ip();
        let bits = self.below(if ip.is_ipv4() { 33 } else { 129 });
        IpNet::new(ip, bits as u8).expect("a prefix").trunc()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// A value that `layout` can hold in full.
fn remote_endpoint(random: &mut Random, layout: IpcacheLayout) -> RemoteEndpointInfo {
    let is_v2 = layout == IpcacheLayout::TunnelAddress;
    let tunnel_endpoint = if is_v2 { random.ip() } else { random.v4().into() };
    RemoteEndpointInfo {
        sec_identity: Identity(random.next() as u32),
        tunnel_endpoint: random.is().then_some(tunnel_endpoint),
        node_id: if is_v2 { 0 } else { random.next() as u16 },
        key: random.next() as u8,
        skip_tunnel: random.is(),
        remote_cluster: is_v2 && random.is(),
    }
}

#[test]
fn ipcache_entries_are_read_back() {
    let mut random = Random(1);
    for round in 0..40_000 {
        let layout = IpcacheLayout::ALL[round % 4];
        let cluster_id = match layout {
            IpcacheLayout::NoCluster => 0,
            IpcacheLayout::ClusterByte => random.next() as u16 & 0xFF,
            IpcacheLayout::ClusterWord | IpcacheLayout::TunnelAddress => random.next() as u16,
        };
        let key = IpcacheKey { prefix: random.prefix(), cluster_id };
        assert_eq!(IpcacheKey::decode(&key.encode(layout)), Ok(key), "{layout:?}");
        let info = remote_endpoint(&mut random, layout);
        let raw = info.encode(layout);
        assert_eq!(raw.len(), layout.value_size());
        assert_eq!(RemoteEndpointInfo::decode(&raw), Ok(info), "{layout:?}");
    }
}

#[test]
fn entries_by_address_are_read_back() {
    let mut random = Random(2);
    for _ in 0..20_000 {
        let key = EndpointKey { ip: random.ip(), key: random.next() as u8, cluster_id: random.next() as u16 };
        assert_eq!(EndpointKey::decode(&key.encode()), Ok(key));
        let key = NodeKey { ip: random.ip() };
        assert_eq!(NodeKey::decode(&key.encode()), Ok(key));
        let value = NodeValue { id: random.next() as u16, spi: random.is().then_some(random.next() as u8) };
        assert_eq!(NodeValue::decode(&value.encode()), Ok(value));
        for (layout, most) in [(TunnelLayout::ClusterByte, 0xFF), (TunnelLayout::ClusterWord, 0xFFFF)] {
            let key = TunnelKey { ip: random.ip(), cluster_id: random.next() as u16 & most };
            assert_eq!(TunnelKey::decode(&key.encode(layout)), Ok(key), "{layout:?}");
        }
        let value = TunnelValue { ip: random.ip(), key: random.next() as u8, node_id: random.next() as u16 };
        assert_eq!(TunnelValue::decode(&value.encode()), Ok(value));
    }
}

#[test]
fn small_entries_are_read_back() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let (id, proto) = (random.next() as u32, random.next() as u8);
        let v4 = FragmentId::V4 { saddr: random.v4(), daddr: random.v4(), id: id as u16, proto };
        let v6 = FragmentId::V6 { saddr: random.v6(), daddr: random.v6(), id, proto };
        for key in [v4, v6] {
            assert_eq!(FragmentId::decode(&key.encode()), Ok(key));
        }
        let direction = if random.is() { Direction::Ingress } else { Direction::Egress };
        let key = PolicyStatsKey {
            endpoint_id: EndpointId(random.next() as u16),
            sec_label: Identity(random.next() as u32),
            direction,
            prefix_len: random.next() as u8,
            protocol: random.next() as u8,
            dport: random.next() as u16,
        };
        assert_eq!(PolicyStatsKey::decode(&key.encode()), Ok(key));
        let key = RatelimitKey {
            usage: random.is().then_some(random.next() as u32),
            netdev_idx: random.next() as u32,
        };
        assert_eq!(RatelimitKey::decode(&key.encode()), Ok(key));
        let config = RuntimeConfig { utime_offset: UTime(random.next()), agent_liveness_ns: random.next() };
        let entries = config.encode();
        let entries = entries.iter().map(|(key, value)| (&key[..], &value[..]));
        assert_eq!(RuntimeConfig::decode(entries), Ok(config));
    }
}

/// Whatever fits a structure that has no forbidden bytes is, but for padding, written back as it was.
#[test]
fn plain_structures_are_written_back() {
    let mut random = Random(4);
    macro_rules! written_back {
        ($type:ty, $($padding:expr),*) => {
            for _ in 0..5_000 {
                let mut raw = random.bytes(<$type>::SIZE);
                for padding in [$($padding),*] as [std::ops::Range<usize>; _] {
                    raw[padding].fill(0);
                }
                let value = <$type>::decode(&raw).expect("any bytes");
                assert_eq!(value.encode().as_slice(), raw, "{value:?}");
            }
        };
    }
    written_back!(EndpointInfo, 4..6, 22..24, 30..32, 40..48);
    written_back!(MetricsValue, 0..0);
    written_back!(PolicyCounters, 0..0);
    written_back!(AuthKey, 11..12);
    written_back!(AuthInfo, 0..0);
    written_back!(FragmentPorts, 0..0);
    written_back!(RatelimitValue, 0..0);
    for _ in 0..5_000 {
        let mut raw = random.bytes(MetricsKey::SIZE);
        raw[1] &= 3;
        raw[5..].fill(0);
        let key = MetricsKey::decode(&raw).expect("any bytes");
        assert_eq!(key.encode().as_slice(), raw);
    }
}

/// Name, sizes it takes, and what it decodes to.
type Decoder = (&'static str, &'static [usize], fn(&[u8]) -> Option<String>);

/// Every decoder takes any bytes of any length up to 64, and says a size that it does not know.
#[test]
fn no_bytes_panic() {
    let mut random = Random(5);
    let decoders: [Decoder; 19] = [
        ("ipcache_key", &[24], |raw| error(IpcacheKey::decode(raw))),
        ("remote_endpoint_info", &[12, 24], |raw| error(RemoteEndpointInfo::decode(raw))),
        ("endpoint_key", &[20], |raw| error(EndpointKey::decode(raw))),
        ("endpoint_info", &[48], |raw| error(EndpointInfo::decode(raw))),
        ("metrics_key", &[8], |raw| error(MetricsKey::decode(raw))),
        ("metrics_value", &[16], |raw| error(MetricsValue::decode(raw))),
        ("metrics_value", &[16, 32, 48, 64], |raw| error(MetricsValue::sum(raw))),
        ("node_key", &[20], |raw| error(NodeKey::decode(raw))),
        ("node_value", &[2, 4], |raw| error(NodeValue::decode(raw))),
        ("tunnel_key", &[20], |raw| error(TunnelKey::decode(raw))),
        ("tunnel_value", &[20], |raw| error(TunnelValue::decode(raw))),
        ("auth_key", &[12], |raw| error(AuthKey::decode(raw))),
        ("auth_info", &[8], |raw| error(AuthInfo::decode(raw))),
        ("policy_stats_key", &[12], |raw| error(PolicyStatsKey::decode(raw))),
        ("policy_stats_value", &[16, 32, 48, 64], |raw| error(PolicyCounters::sum(raw))),
        ("ipv4_frag_id or ipv6_frag_id", &[12, 40], |raw| error(FragmentId::decode(raw))),
        ("ipv4_frag_l4ports", &[4], |raw| error(FragmentPorts::decode(raw))),
        ("ratelimit_key", &[4, 8], |raw| error(RatelimitKey::decode(raw))),
        ("cilium_runtime_config value", &[8], |raw| error(RuntimeConfig::decode([(&[0; 4][..], raw)]))),
    ];
    for round in 0..20_000 {
        let mut raw = random.bytes(round % 65);
        // Often a family and a short prefix, so that what comes after is reached too.
        for at in [0, 3, 7, 16] {
            if let Some(byte) = raw.get_mut(at).filter(|_| random.is()) {
                *byte %= 3;
            }
        }
        for (what, sizes, decode) in decoders {
            let told = decode(&raw).is_some_and(|error| {
                error.starts_with(&format!("`{what}` is {} bytes, expected ", raw.len()))
            });
            assert_eq!(told, !sizes.contains(&raw.len()), "`{what}` of {} bytes", raw.len());
        }
    }
}

fn error<T>(decoded: Result<T, probe_model::cilium::DecodeError>) -> Option<String> {
    decoded.err().map(|error| error.to_string())
}

#[test]
fn keys_that_no_version_writes_are_refused() {
    let key = IpcacheKey { prefix: "10.0.0.0/8".parse().expect("a prefix"), cluster_id: 1 };
    let mut raw = key.encode(IpcacheLayout::ClusterWord);
    raw[6] = 2;
    assert_eq!(
        error(IpcacheKey::decode(&raw)).as_deref(),
        Some("`ipcache_key` has `cluster_id` 131073, expected one byte (up to 1.14) or one word (1.15 on)")
    );
    let mut raw = key.encode(IpcacheLayout::NoCluster);
    raw[7] = 3;
    assert_eq!(
        error(IpcacheKey::decode(&raw)).as_deref(),
        Some("`ipcache_key` has `family` 3, expected 1 (IPv4) or 2 (IPv6)")
    );
    for (prefixlen, fits) in [(31u32, false), (32, true), (64, true), (65, false)] {
        let mut raw = key.encode(IpcacheLayout::NoCluster);
        raw[..4].copy_from_slice(&prefixlen.to_le_bytes());
        assert_eq!(IpcacheKey::decode(&raw).is_ok(), fits, "{prefixlen}");
    }
}

#[test]
fn a_tunnel_endpoint_needs_its_flag() {
    let node: IpAddr = "fd00::5".parse().expect("an address");
    let info = RemoteEndpointInfo { tunnel_endpoint: Some(node), ..RemoteEndpointInfo::default() };
    let mut raw = info.encode(IpcacheLayout::TunnelAddress);
    assert_eq!(RemoteEndpointInfo::decode(&raw).map(|info| info.tunnel_endpoint), Ok(Some(node)));
    raw[23] = 0;
    assert_eq!(RemoteEndpointInfo::decode(&raw).map(|info| info.tunnel_endpoint), Ok(None));
    // What 12 bytes cannot hold is left out, not cut.
    assert_eq!(info.encode(IpcacheLayout::ClusterWord), [0; 12]);
}

/// Prefixes around few addresses, so that they lie in each other.
fn nested_prefix(random: &mut Random) -> IpNet {
    let low = random.below(64);
    if random.is() {
        let ip = Ipv4Addr::from_bits(0x0AE0_0000 | (low as u32) << random.below(20));
        IpNet::new(ip.into(), random.below(33) as u8).expect("a prefix").trunc()
    } else {
        let ip = Ipv6Addr::from_bits(0xFD00 << 112 | u128::from(low) << random.below(100));
        IpNet::new(ip.into(), random.below(129) as u8).expect("a prefix").trunc()
    }
}

#[test]
fn ipcache_finds_the_longest_prefix() {
    let mut random = Random(6);
    let mut hits = [0, 0];
    for _ in 0..1_500 {
        let count = random.below(60);
        let entries: Vec<_> = (0..count)
            .map(|_| {
                let prefix = nested_prefix(&mut random);
                let cluster_id = u16::from(random.below(8) == 0);
                let info = remote_endpoint(&mut random, IpcacheLayout::TunnelAddress);
                (IpcacheKey { prefix, cluster_id }, info)
            })
            .collect();
        let cache = Ipcache::new(entries.iter().copied());
        // Of equal prefixes the last one counts; other clusters are not looked at.
        let own = entries.iter().filter(|(key, _)| key.cluster_id == 0);
        let own: BTreeMap<_, _> = own.map(|(key, info)| (key.prefix, *info)).collect();
        assert_eq!(cache.entries().collect::<BTreeMap<_, _>>(), own);
        assert_eq!((cache.len(), cache.is_empty()), (own.len(), own.is_empty()));
        for _ in 0..60 {
            let ip = nested_prefix(&mut random).network();
            let fitting = own.iter().filter(|(prefix, _)| prefix.contains(&ip));
            let expected = fitting.max_by_key(|(prefix, _)| prefix.prefix_len());
            assert_eq!(cache.lookup(ip), expected.map(|(prefix, info)| (*prefix, *info)), "{ip}");
            hits[usize::from(ip.is_ipv6())] += usize::from(expected.is_some());
        }
        for (prefix, info) in &own {
            let expected: Vec<_> =
                cache.entries().filter(|(_, other)| other.sec_identity == info.sec_identity).collect();
            let found: Vec<_> = cache.prefixes_of(info.sec_identity).collect();
            assert_eq!(found, expected.iter().map(|(prefix, _)| *prefix).collect::<Vec<_>>());
            assert!(found.contains(prefix));
        }
        assert_eq!(cache.prefixes_of(Identity(u32::MAX)).count(), 0);
    }
    assert!(hits.iter().all(|hits| *hits > 10_000), "{hits:?} questions met an entry");
}

/// As large as the kernel's map may be.
#[test]
fn a_full_ipcache_finds_each_of_its_entries() {
    let entry = |number: u32| {
        let ip: IpAddr = match number % 4 {
            0 => Ipv6Addr::from_bits(0xFD00_u128 << 112 | u128::from(number) << 64 | 7).into(),
            _ => Ipv4Addr::from_bits(0x0A00_0000 + number).into(),
        };
        let node = Ipv4Addr::from_bits(0x0AE0_0000 | (number % 1000));
        let info = RemoteEndpointInfo {
            sec_identity: Identity(256 + number % 5_000),
            tunnel_endpoint: Some(node.into()),
            ..RemoteEndpointInfo::default()
        };
        (IpNet::from(ip), info)
    };
    let numbers = 0..512_000;
    let key = |prefix| IpcacheKey { prefix, cluster_id: 0 };
    let cache = Ipcache::new(numbers.clone().map(entry).map(|(prefix, info)| (key(prefix), info)));
    assert_eq!(cache.len(), 512_000);
    for (prefix, info) in numbers.map(entry) {
        assert_eq!(cache.lookup(prefix.addr()), Some((prefix, info)));
    }
    assert_eq!(cache.lookup(Ipv4Addr::new(9, 9, 9, 9).into()), None);
    assert_eq!(cache.prefixes_of(Identity(256)).count(), 103);
}

#[test]
fn values_of_every_processor_are_added() {
    let raw = |numbers: &[[u64; 2]]| -> Vec<u8> {
        numbers.iter().flatten().flat_map(|n| n.to_le_bytes()).collect()
    };
    let stats = PolicyCounters::sum(&raw(&[[1, 60], [0, 0], [2, 120]]));
    assert_eq!(stats, Ok(PolicyCounters { packets: 3, bytes: 180 }));
    let metrics = MetricsValue::sum(&raw(&[[u64::MAX, 1], [1, 1]]));
    assert_eq!(metrics, Ok(MetricsValue { count: u64::MAX, bytes: 2 }));
    assert_eq!(
        error(PolicyCounters::sum(&[0; 17])).as_deref(),
        Some("`policy_stats_value` is 17 bytes, expected 16 for each processor")
    );
}

#[test]
fn utime_is_wall_clock() {
    // As recorded with Cilium 1.14 and 1.16 (`cilium_runtime_config`, index 0): the node booted in November 2026.
    let config = RuntimeConfig { utime_offset: UTime(3_506_637_791_015_625), agent_liveness_ns: 0 };
    assert_eq!(config.wall_clock(0).map(UTime::unix_ns), Some(1_795_398_549_000_000_000));
    assert_eq!(config.wall_clock(512_000).map(UTime::unix_ns), Some(1_795_398_549_000_512_000));
    assert_eq!(RuntimeConfig::default().wall_clock(512), None);
}

#[test]
fn reserved_identities_by_version() {
    let name = |id, minor| Identity(id).reserved_name_in(Release(minor));
    assert_eq!((name(9, 14), name(9, 15), name(10, 15)), (None, Some("world-ipv4"), Some("world-ipv6")));
    let ids: Vec<_> = (13..=20).map(|minor| name(11, minor)).collect();
    let encrypt = Some("overlay-to-encrypt");
    assert_eq!(ids, [None, None, None, encrypt, encrypt, encrypt, None, Some("policy-cluster")]);
    assert_eq!((name(12, 19), name(12, 20)), (None, Some("policy-clustermesh")));
    assert_eq!((name(8, 13), name(13, 20)), (Some("ingress"), None));
    // A name of one version is one that the nameless version knows too.
    for id in 0..16 {
        let any = Identity(id).reserved_name().unwrap_or_default();
        assert!((13..=20).filter_map(|minor| name(id, minor)).all(|name| any.contains(name)), "{id}");
    }
    let scopes: Vec<_> =
        [2, 65_535, 16_777_217, 33_554_432, 0x0300_0000].map(|id| Identity(id).scope()).into();
    assert_eq!(scopes, [Scope::Global, Scope::Global, Scope::Local, Scope::RemoteNode, Scope::Unknown(3)]);
    assert!([2, 9, 10].into_iter().all(|id| Identity(id).is_world()) && !Identity(1).is_world());
}

/// In 1.13 `cilium_lxc` has no identity: the ipcache's of exactly the pod's address counts, then the agent's.
#[test]
fn an_endpoint_without_identity_has_that_of_its_address() {
    let pod: IpAddr = "10.0.0.143".parse().expect("an address");
    let id = EndpointId(53);
    let info = EndpointInfo { lxc_id: id, ifindex: 5, ..EndpointInfo::default() };
    let ipcache = |prefix: &str, identity| {
        let key = IpcacheKey { prefix: prefix.parse().expect("a prefix"), cluster_id: 0 };
        let sec_identity = Identity(identity);
        Some(Ipcache::new([(key, RemoteEndpointInfo { sec_identity, ..RemoteEndpointInfo::default() })]))
    };
    let mut world = World { lxc: Some(BTreeMap::from([(pod, info)])), ..World::default() };
    assert_eq!(world.endpoint_identity(id), Identity::UNKNOWN);
    world.endpoints.insert(id, agents_endpoint(id, Identity(15_364)));
    world.ipcache = ipcache("10.0.0.0/8", 2);
    assert_eq!(world.endpoint_identity(id), Identity(15_364), "a wider prefix says nothing of the pod");
    world.ipcache = ipcache("10.0.0.143/32", 300);
    assert_eq!(world.endpoint_identity(id), Identity(300));
    let known = EndpointInfo { sec_id: Identity(400), ..info };
    world.lxc = Some(BTreeMap::from([(pod, known)]));
    assert_eq!(world.endpoint_identity(id), Identity(400));
}

fn agents_endpoint(id: EndpointId, identity: Identity) -> Endpoint {
    let (labels, addresses) = (Vec::new(), Vec::new());
    Endpoint { id, identity, pod: None, labels, addresses, interface: None, policy: None }
}
