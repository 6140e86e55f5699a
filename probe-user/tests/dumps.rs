//! `plsprobe dump` of the smaller maps and of maps that no recording has: nodes made of encoded entries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use expect_test::{Expect, expect};
use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::entries::Entries;
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbAffinity, LbAffinityKey, LbAffinityMatch, LbKey, LbService, LbSourceRange};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_model::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey, PolicyLayout};
use probe_model::cilium::policystats::PolicyStatsKey;
use probe_model::cilium::runtime_config::UTime;
use probe_model::cilium::{Direction, EndpointId};
use probe_user::render::dump::{self, Dump};
use probe_user::sources::assemble::assemble;
use probe_user::sources::raw::{Missing, RawMap, RawNode};

const APP: EndpointId = EndpointId(53);

/// A map of these entries.
fn map<K: AsRef<[u8]>, V: AsRef<[u8]>>(entries: impl IntoIterator<Item = (K, V)>) -> RawMap {
    let entries = Entries::collect(entries).expect("entries of one size");
    let (key_size, value_size) = (entries.key_size() as u32, entries.value_size() as u32);
    RawMap { key_size, value_size, entries, ..RawMap::default() }
}

fn node(maps: impl IntoIterator<Item = (&'static str, RawMap)>) -> RawNode {
    let maps: BTreeMap<_, _> = maps.into_iter().map(|(name, map)| (name.to_owned(), map)).collect();
    RawNode { maps, ..RawNode::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The text, then the JSON lines; or the error.
fn shown(dump: Result<Dump>) -> String {
    let mut out = Vec::new();
    match dump {
        Ok(dump) => {
            dump.text(&mut out).expect("writing to memory");
            dump.json(&mut out).expect("writing to memory");
        }
        Err(error) => return format!("{error:#}\n"),
    }
    String::from_utf8(out).expect("UTF-8")
}

#[track_caller]
fn check(dump: Result<Dump>, expected: &Expect) {
    expected.assert_eq(&shown(dump));
}

fn policy_key(sec_label: u32, l4_prefix: u32, protocol: u8, dport: u16) -> PolicyKey {
    PolicyKey {
        prefixlen: 40 + l4_prefix,
        sec_label: Identity(sec_label),
        direction: Direction::Ingress,
        protocol,
        dport,
    }
}

/// The counters of three processors.
fn of_processors(counters: [(u64, u64); 3]) -> Vec<u8> {
    counters.into_iter().flat_map(|(packets, bytes)| PolicyCounters { packets, bytes }.encode()).collect()
}

/// Cilium 1.18: two entries that decided, one that never did, and counters of an entry that is gone.
fn counters_apart() -> RawNode {
    let layout = PolicyLayout::CountersApart;
    let keys = [policy_key(16_777_217, 24, 6, 80), policy_key(0, 21, 6, 8080), policy_key(1, 0, 0, 0)];
    let policy =
        keys.map(|key| (key.encode(layout), PolicyEntry::for_key(&key, layout, false).encode(layout)));
    let stats = |endpoint, key: &PolicyKey| PolicyStatsKey::of_entry(endpoint, key).encode();
    let stats = [
        (stats(APP, &keys[0]), of_processors([(1, 60), (0, 0), (2, 120)])),
        (stats(APP, &keys[1]), of_processors([(7, 700), (1, 1), (0, 0)])),
        (stats(APP, &policy_key(2, 8, 17, 0)), of_processors([(0, 0), (0, 0), (4, 256)])),
        // Of another endpoint the same entry has other counters.
        (stats(EndpointId(54), &keys[0]), of_processors([(9, 9), (9, 9), (9, 9)])),
    ];
    node([("cilium_policy_v2_00053", map(policy)), ("cilium_policystats", map(stats))])
}

#[test]
fn counters_of_policy_entries() {
    let world = assemble(&counters_apart());
    check(
        dump::policystats(&world, None),
        &expect![[r#"
        ENDPOINT   DIRECTION   IDENTITY   PORT/PROTO      BYTES   PACKETS   PREFIX   LABELS
        53         Ingress     0          8080-8087/TCP   701     8         21       reserved:unknown
        53         Ingress     2          UDP             256     4         8        reserved:world
        53         Ingress     16777217   80/TCP          180     3         24
        54         Ingress     16777217   80/TCP          27      27        24
        {"bytes":701,"direction":"ingress","endpoint":53,"identity":0,"labels":[],"packets":8,"port":8080,"prefix_bits":21,"protocol":6,"schema":"plsprobe.policystats/1"}
        {"bytes":256,"direction":"ingress","endpoint":53,"identity":2,"labels":[],"packets":4,"port":0,"prefix_bits":8,"protocol":17,"schema":"plsprobe.policystats/1"}
        {"bytes":180,"direction":"ingress","endpoint":53,"identity":16777217,"labels":[],"packets":3,"port":80,"prefix_bits":24,"protocol":6,"schema":"plsprobe.policystats/1"}
        {"bytes":27,"direction":"ingress","endpoint":54,"identity":16777217,"labels":[],"packets":27,"port":80,"prefix_bits":24,"protocol":6,"schema":"plsprobe.policystats/1"}
    "#]],
    );
    check(
        dump::policystats(&world, Some(APP)),
        &expect![[r#"
        ENDPOINT   DIRECTION   IDENTITY   PORT/PROTO      BYTES   PACKETS   PREFIX   LABELS
        53         Ingress     0          8080-8087/TCP   701     8         21       reserved:unknown
        53         Ingress     2          UDP             256     4         8        reserved:world
        53         Ingress     16777217   80/TCP          180     3         24
        {"bytes":701,"direction":"ingress","endpoint":53,"identity":0,"labels":[],"packets":8,"port":8080,"prefix_bits":21,"protocol":6,"schema":"plsprobe.policystats/1"}
        {"bytes":256,"direction":"ingress","endpoint":53,"identity":2,"labels":[],"packets":4,"port":0,"prefix_bits":8,"protocol":17,"schema":"plsprobe.policystats/1"}
        {"bytes":180,"direction":"ingress","endpoint":53,"identity":16777217,"labels":[],"packets":3,"port":80,"prefix_bits":24,"protocol":6,"schema":"plsprobe.policystats/1"}
    "#]],
    );
    check(
        dump::policystats(&world, Some(EndpointId(7))),
        &expect![[r#"
        `cilium_policystats` has nothing of endpoint 7; there are counters of 53, 54
    "#]],
    );
}

/// An entry without counters of its own has those of `cilium_policystats`; one that never decided has none.
#[test]
fn policy_entries_with_counters_apart() {
    check(
        dump::policy(&assemble(&counters_apart()), Some(APP)),
        &expect![[r#"
        Endpoint ID: 53
        Path: cilium_policy_v2_00053

        POLICY   DIRECTION   IDENTITY   PORT/PROTO      PROXY PORT   AUTH TYPE   BYTES   PACKETS   PREFIX   LABELS
        Allow    Ingress     0          8080-8087/TCP   NONE         disabled    701     8         21       reserved:unknown
        Allow    Ingress     1          ANY             NONE         disabled    -       -         0        reserved:host
        Allow    Ingress     16777217   80/TCP          NONE         disabled    180     3         24

        {"auth_type":0,"bytes":701,"deny":false,"direction":"ingress","endpoint":53,"identity":0,"labels":[],"map":"cilium_policy_v2_00053","packets":8,"port":8080,"prefix_bits":21,"protocol":6,"proxy_port":0,"schema":"plsprobe.policy/1"}
        {"auth_type":0,"bytes":null,"deny":false,"direction":"ingress","endpoint":53,"identity":1,"labels":[],"map":"cilium_policy_v2_00053","packets":null,"port":0,"prefix_bits":0,"protocol":0,"proxy_port":0,"schema":"plsprobe.policy/1"}
        {"auth_type":0,"bytes":180,"deny":false,"direction":"ingress","endpoint":53,"identity":16777217,"labels":[],"map":"cilium_policy_v2_00053","packets":3,"port":80,"prefix_bits":24,"protocol":6,"proxy_port":0,"schema":"plsprobe.policy/1"}
    "#]],
    );
}

#[test]
fn counters_of_another_size_are_missing() {
    let mut node = counters_apart();
    let stats = [(vec![0; 12], vec![0; 24])];
    node.maps.insert("cilium_policystats".to_owned(), map(stats));
    let world = assemble(&node);
    check(
        dump::policystats(&world, None),
        &expect![[r#"
            failed to read `cilium_policystats`: `policy_stats_value` is 24 bytes, expected 16 for each processor
        "#]],
    );
    check(
        dump::policystats(&assemble(&RawNode::default()), None),
        &expect![[r#"
        failed to read `cilium_policystats`: it is not there; up to Cilium 1.17 policy maps count for themselves, see `plsprobe dump policy`
    "#]],
    );
}

#[test]
fn authenticated_identities() {
    let key = AuthKey {
        local_sec_label: Identity(15_364),
        remote_sec_label: Identity(58_606),
        remote_node_id: 46_826,
        auth_type: 1,
    };
    let info = AuthInfo { expiration: UTime(3_506_637_791_015_625) };
    let always_fails = AuthKey { auth_type: 2, remote_node_id: 0, ..key };
    let entries = [(key.encode(), info.encode()), (always_fails.encode(), AuthInfo::default().encode())];
    check(
        dump::auth(&node([("cilium_auth_map", map(entries))])),
        &expect![[r#"
        SRC IDENTITY   DST IDENTITY   REMOTE NODE ID   AUTH TYPE          EXPIRATION
        15364          58606          0                test-always-fail   1970-01-01T00:00:00Z
        15364          58606          46826            spire              2026-11-23T01:49:09Z
        {"auth_type":2,"expires":"1970-01-01T00:00:00Z","expires_utime":0,"local_identity":15364,"remote_identity":58606,"remote_node_id":0,"schema":"plsprobe.auth/1"}
        {"auth_type":1,"expires":"2026-11-23T01:49:09Z","expires_utime":3506637791015625,"local_identity":15364,"remote_identity":58606,"remote_node_id":46826,"schema":"plsprobe.auth/1"}
    "#]],
    );
    check(
        dump::auth(&RawNode::default()),
        &expect![[r#"
        failed to read `cilium_auth_map`: it is not there; it has been there since Cilium 1.14
    "#]],
    );
    let why = "permission denied".to_owned();
    let unread = Missing { what: "cilium_auth_map".to_owned(), why };
    check(
        dump::auth(&RawNode { missing: vec![unread], ..RawNode::default() }),
        &expect![[r#"
        failed to read `cilium_auth_map`: permission denied
    "#]],
    );
}

#[test]
fn clients_with_a_backend() {
    let scenario = fixtures::recording("cilium-1.14").join("none");
    let mut node = probe_user::sources::folder::read(&scenario).expect("a recording");
    let lb = assemble(&node).lb.expect("services");
    let service = lb.frontends().next().expect("a service");
    let (rev_nat_id, backend_id) = (service.service.rev_nat_index, service.backends[0].backend_id);
    let key = LbAffinityKey::of_client(ip("10.224.0.8"), rev_nat_id);
    let mut gone = LbAffinityKey { rev_nat_id: 99, netns_cookie: true, ..key };
    gone.client_id[..8].copy_from_slice(&4_242_u64.to_le_bytes());
    let value = LbAffinity { last_used: 4_138, backend_id };
    let v4 = [
        (key.encode(), value.encode()),
        (gone.encode(), LbAffinity { last_used: 1, backend_id: 77 }.encode()),
    ];
    let key = LbAffinityKey::of_client(ip("fd00::8"), rev_nat_id);
    let v6 = [(key.encode(), value.encode())];
    let valid = [(LbAffinityMatch { rev_nat_id, backend_id }.encode(), [1])];
    for (name, map) in [
        ("cilium_lb4_affinity", map(v4)),
        ("cilium_lb6_affinity", map(v6)),
        ("cilium_lb_affinity_match", map(valid)),
    ] {
        node.maps.insert(name.to_owned(), map);
    }
    check(
        dump::affinity(&node, &assemble(&node)),
        &expect![[r#"
            CLIENT              SERVICE             BACKEND             LAST USED   VALID
            10.224.0.8          4 (0.0.0.0:30080)   1 (10.0.0.143:80)   4138        yes
            netns cookie 4242   99 (no frontend)    77 (not found)      1           no
            fd00::8             4 (0.0.0.0:30080)   1 (10.0.0.143:80)   4138        yes
            {"backend":"10.0.0.143:80","backend_id":1,"client":"10.224.0.8","frontends":["0.0.0.0:30080"],"last_used":4138,"schema":"plsprobe.affinity/1","service":4,"valid":true}
            {"backend":null,"backend_id":77,"client":"netns cookie 4242","frontends":[],"last_used":1,"schema":"plsprobe.affinity/1","service":99,"valid":false}
            {"backend":"10.0.0.143:80","backend_id":1,"client":"fd00::8","frontends":["0.0.0.0:30080"],"last_used":4138,"schema":"plsprobe.affinity/1","service":4,"valid":true}
        "#]],
    );
    check(
        dump::affinity(&RawNode::default(), &assemble(&RawNode::default())),
        &expect![[r#"
        failed to read `cilium_lb4_affinity`: it is not there; Cilium makes it where services with session affinity are on
    "#]],
    );
}

/// Source ranges of a service whose load balancer's frontend checks them, and of one that is gone.
#[test]
fn client_prefixes() {
    let service =
        |flags| LbService { backend_id: 0, count: 0, rev_nat_index: 4, flags, flags2: 0, qcount: 0 };
    let frontend = |address: &str, dport| {
        LbKey { address: ip(address), dport, backend_slot: 0, proto: 0, scope: 0 }.encode()
    };
    let services = [
        (
            frontend("10.224.0.7", 80),
            service(LbService::LOADBALANCER | LbService::ROUTABLE | LbService::SOURCE_RANGE).encode(),
        ),
        (frontend("10.224.0.4", 30_080), service(LbService::NODEPORT | LbService::ROUTABLE).encode()),
    ];
    let range = |rev_nat_id, prefix: &str| {
        (LbSourceRange { rev_nat_id, prefix: prefix.parse().expect("a prefix") }.encode(), [1])
    };
    let ranges = [range(4, "10.224.0.8/32"), range(4, "10.221.0.0/16"), range(9, "0.0.0.0/0")];
    let node = node([("cilium_lb4_services_v2", map(services)), ("cilium_lb4_source_range", map(ranges))]);
    check(
        dump::source_ranges(&node, &assemble(&node)),
        &expect![[r#"
        SERVICE   PREFIX          CHECKED AT
        4         10.221.0.0/16   10.224.0.7:80
        4         10.224.0.8/32   10.224.0.7:80
        9         0.0.0.0/0       no frontend
        {"frontends":[{"address":"10.224.0.4:30080","checked":false},{"address":"10.224.0.7:80","checked":true}],"prefix":"10.221.0.0/16","schema":"plsprobe.source-range/1","service":4}
        {"frontends":[{"address":"10.224.0.4:30080","checked":false},{"address":"10.224.0.7:80","checked":true}],"prefix":"10.224.0.8/32","schema":"plsprobe.source-range/1","service":4}
        {"frontends":[],"prefix":"0.0.0.0/0","schema":"plsprobe.source-range/1","service":9}
    "#]],
    );
    check(
        dump::source_ranges(&RawNode::default(), &assemble(&RawNode::default())),
        &expect![[r#"
        failed to read `cilium_lb4_source_range`: it is not there; Cilium makes it only with kube-proxy replacement
    "#]],
    );
}

#[test]
fn fragmented_packets() {
    let (IpAddr::V4(saddr), IpAddr::V4(daddr)) = (ip("10.224.0.8"), ip("10.0.0.143")) else {
        unreachable!("both are IPv4")
    };
    let v4 = FragmentId::V4 { saddr, daddr, id: 0xbeef, proto: 17 };
    let (IpAddr::V6(saddr), IpAddr::V6(daddr)) = (ip("fd00::8"), ip("fd00::143")) else {
        unreachable!("both are IPv6")
    };
    let v6 = FragmentId::V6 { saddr, daddr, id: 0xdead_beef, proto: 6 };
    let ports = FragmentPorts { sport: 40_122, dport: 80 };
    let v6 = ("cilium_ipv6_frag_datagrams", map([(v6.encode(), ports.encode())]));
    let both = node([("cilium_ipv4_frag_datagrams", map([(v4.encode(), ports.encode())])), v6.clone()]);
    check(
        dump::fragments(&both),
        &expect![[r#"
        SOURCE       DESTINATION   PROTO   ID           SPORT   DPORT
        10.224.0.8   10.0.0.143    UDP     0xbeef       40122   80
        fd00::8      fd00::143     TCP     0xdeadbeef   40122   80
        {"daddr":"10.0.0.143","dport":80,"id":48879,"protocol":17,"saddr":"10.224.0.8","schema":"plsprobe.fragment/1","sport":40122}
        {"daddr":"fd00::143","dport":80,"id":3735928559,"protocol":6,"saddr":"fd00::8","schema":"plsprobe.fragment/1","sport":40122}
    "#]],
    );
    check(
        dump::fragments(&RawNode::default()),
        &expect![[r#"
        failed to read `cilium_ipv4_frag_datagrams`: it is not there; Cilium makes it where fragments are tracked
    "#]],
    );
    // What could not be read of one family must not look as if there were none.
    let mut half = node([v6]);
    let why = "permission denied".to_owned();
    half.missing.push(Missing { what: "cilium_ipv4_frag_datagrams".to_owned(), why });
    check(
        dump::fragments(&half),
        &expect![[r#"
        failed to read `cilium_ipv4_frag_datagrams`: permission denied
    "#]],
    );
}

#[test]
fn tunnel_endpoints_of_both_families() {
    let entry = |prefix: &str, identity, node: Option<&str>, skip_tunnel| {
        let key = IpcacheKey { prefix: prefix.parse().expect("a prefix"), cluster_id: 0 };
        let info = RemoteEndpointInfo {
            sec_identity: Identity(identity),
            tunnel_endpoint: node.map(ip),
            skip_tunnel,
            remote_cluster: skip_tunnel,
            ..RemoteEndpointInfo::default()
        };
        (key.encode(IpcacheLayout::TunnelAddress), info.encode(IpcacheLayout::TunnelAddress))
    };
    let entries = [
        entry("0.0.0.0/0", 9, None, false),
        entry("::/0", 10, None, false),
        entry("10.0.2.9/32", 58_606, Some("10.224.0.5"), true),
        entry("fd00::2:9/128", 58_606, Some("fd00::5"), false),
    ];
    check(
        dump::ipcache(&assemble(&node([("cilium_ipcache_v2", map(entries))]))),
        &expect![[r#"
        IP PREFIX/ADDRESS   IDENTITY                                                                                          LABELS
        0.0.0.0/0           identity=9 encryptkey=0 tunnelendpoint=0.0.0.0 nodeid=0x0
        10.0.2.9/32         identity=58606 encryptkey=0 tunnelendpoint=10.224.0.5 nodeid=0x0 flags=skiptunnel,remotecluster
        ::/0                identity=10 encryptkey=0 tunnelendpoint=0.0.0.0 nodeid=0x0
        fd00::2:9/128       identity=58606 encryptkey=0 tunnelendpoint=fd00::5 nodeid=0x0
        {"encrypt_key":0,"flags":[],"identity":9,"labels":[],"node_id":0,"prefix":"0.0.0.0/0","schema":"plsprobe.ipcache/1","tunnel_endpoint":"0.0.0.0"}
        {"encrypt_key":0,"flags":["skiptunnel","remotecluster"],"identity":58606,"labels":[],"node_id":0,"prefix":"10.0.2.9/32","schema":"plsprobe.ipcache/1","tunnel_endpoint":"10.224.0.5"}
        {"encrypt_key":0,"flags":[],"identity":10,"labels":[],"node_id":0,"prefix":"::/0","schema":"plsprobe.ipcache/1","tunnel_endpoint":"0.0.0.0"}
        {"encrypt_key":0,"flags":[],"identity":58606,"labels":[],"node_id":0,"prefix":"fd00::2:9/128","schema":"plsprobe.ipcache/1","tunnel_endpoint":"fd00::5"}
    "#]],
    );
    check(
        dump::ipcache(&assemble(&node([("cilium_ipcache_v2", map([([0; 24], [0; 16])]))]))),
        &expect![[r#"
            failed to read `cilium_ipcache`: `cilium_ipcache_v2`: `ipcache_key` has `family` 0, expected 1 (IPv4) or 2 (IPv6)
        "#]],
    );
}

/// Cilium 1.13 has no identity in `cilium_lxc`; the ipcache knows it.
#[test]
fn endpoints_of_1_13() {
    let layout = IpcacheLayout::NoCluster;
    let key = IpcacheKey { prefix: "10.0.0.143/32".parse().expect("a prefix"), cluster_id: 0 };
    let info = RemoteEndpointInfo { sec_identity: Identity(15_364), ..RemoteEndpointInfo::default() };
    let pod = EndpointInfo { ifindex: 5, lxc_id: APP, ..EndpointInfo::default() };
    let host = EndpointInfo { flags: EndpointInfo::HOST, ..EndpointInfo::default() };
    let lxc = [
        (EndpointKey::new(ip("10.0.0.143")).encode(), pod.encode()),
        (EndpointKey::new(ip("10.224.0.4")).encode(), host.encode()),
    ];
    let node = node([
        ("cilium_lxc", map(lxc)),
        ("cilium_ipcache", map([(key.encode(layout), info.encode(layout))])),
    ]);
    let world = assemble(&node);
    assert_eq!(world.endpoints[&APP].identity, Identity(15_364));
    check(
        dump::endpoints(&world, None),
        &expect![[r#"
        IP ADDRESS     LOCAL ENDPOINT INFO                                                                              NAME
        10.0.0.143:0   id=53    sec_id=15364 flags=0x0000 ifindex=5   mac=00:00:00:00:00:00 nodemac=00:00:00:00:00:00
        10.224.0.4:0   (localhost)
        {"address":"10.0.0.143","flags":0,"host":false,"id":53,"identity":15364,"ifindex":5,"labels":[],"mac":"00:00:00:00:00:00","node_mac":"00:00:00:00:00:00","parent_ifindex":0,"pod":null,"schema":"plsprobe.endpoint/1"}
        {"address":"10.224.0.4","flags":1,"host":true,"id":0,"identity":0,"ifindex":0,"labels":null,"mac":"00:00:00:00:00:00","node_mac":"00:00:00:00:00:00","parent_ifindex":0,"pod":null,"schema":"plsprobe.endpoint/1"}
    "#]],
    );
}
