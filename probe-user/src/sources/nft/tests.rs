//! nft's print of rules in kube-proxy's manner, walked beside iptables rules that mean the same.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use probe_model::explain::{Verdict, explain};
use probe_model::netfilter::{End, Facts, Hook, Packet, Ruleset, Traversal};
use probe_model::simulate::Question;
use probe_model::tuple::{Protocol, Tuple};

use super::*;

/// Source of `kube-proxy.json`, which nft 1.0.6 printed of it.
const RULES: &str = include_str!("kube-proxy.nft");
const PRINTED: &str = include_str!("kube-proxy.json");

/// The same in iptables' words.
const IPTABLES: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -d 10.224.0.4/32 -p tcp -m tcp --dport 30081 -m conntrack --ctstate NEW -j DROP
-A INPUT -d 10.0.167.30/32 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j REJECT
-A FORWARD -d 10.0.167.30/32 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j REJECT
-A FORWARD -d 10.0.167.20/32 -m conntrack --ctstate NEW -j REJECT
-A FORWARD -d 10.0.167.30/32 -m conntrack --ctstate NEW -j REJECT
-A OUTPUT -d 10.0.167.30/32 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j REJECT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:SERVICES - [0:0]
:MASQ - [0:0]
:EXT-APP - [0:0]
:EXT-DNS - [0:0]
:SVC-APP - [0:0]
:SVC-DNS - [0:0]
:SEP-APP1 - [0:0]
:SEP-APP2 - [0:0]
:SEP-DNS - [0:0]
-A PREROUTING -j SERVICES
-A OUTPUT -j SERVICES
-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A POSTROUTING -j MASQUERADE --random-fully
-A SERVICES -d 10.0.167.20/32 -p tcp -m tcp --dport 80 -j SVC-APP
-A SERVICES -d 10.224.0.7/32 -p tcp -m tcp --dport 80 -j EXT-APP
-A SERVICES -d 10.224.0.7/32 -p udp -m udp --dport 53 -j EXT-DNS
-A SERVICES -d 10.224.0.4/32 -p tcp -m tcp --dport 30080 -j EXT-APP
-A MASQ -j MARK --set-xmark 0x4000/0x4000
-A EXT-APP -j MASQ
-A EXT-APP -j SVC-APP
-A EXT-DNS -s 10.0.0.0/16 -j SVC-DNS
-A EXT-DNS -m addrtype --src-type LOCAL -j MASQ
-A EXT-DNS -j SVC-DNS
-A SVC-APP ! -s 10.0.0.0/16 -d 10.0.167.20/32 -p tcp -m tcp --dport 80 -j MASQ
-A SVC-APP -m statistic --mode random --probability 0.50000000000 -j SEP-APP1
-A SVC-APP -j SEP-APP2
-A SVC-DNS -j SEP-DNS
-A SEP-APP1 -s 10.0.0.143/32 -j MASQ
-A SEP-APP1 -p tcp -m tcp -j DNAT --to-destination 10.0.0.143:8080
-A SEP-APP2 -s 10.0.1.124/32 -j MASQ
-A SEP-APP2 -p tcp -m tcp -j DNAT --to-destination 10.0.1.124:8080
-A SEP-DNS -s 10.0.1.124/32 -j MASQ
-A SEP-DNS -p udp -m udp -j DNAT --to-destination 10.0.1.124:5353
COMMIT
";

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

/// xorshift: the same packets in every run.
struct Random(u64);

impl Random {
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        all[(self.0 % all.len() as u64) as usize]
    }
}

fn packet(random: &mut Random) -> (Hook, Packet) {
    const ADDRESSES: [&str; 9] = [
        "10.224.0.8",
        "10.224.0.7",
        "10.224.0.4",
        "10.0.167.20",
        "10.0.167.30",
        "10.0.0.143",
        "10.0.1.124",
        "10.221.1.4",
        "192.168.1.5",
    ];
    let tuple = Tuple {
        saddr: random.of(&ADDRESSES).parse().unwrap(),
        daddr: random.of(&ADDRESSES).parse().unwrap(),
        sport: random.of(&[40_000, 1, 65_535]),
        dport: random.of(&[80, 80, 53, 30_080, 30_081, 8080, 8005]),
        protocol: random.of(&[Protocol::TCP, Protocol::TCP, Protocol::UDP, Protocol::ICMP]),
    };
    let dev = |random: &mut Random| random.of(&[None, Some("eth0"), Some("lxc12")]).map(str::to_owned);
    let (in_dev, out_dev) = (dev(random), dev(random));
    let mark = random.of(&[0, 0x4000, 0xc00, 0x4c00]);
    (random.of(&HOOKS), Packet { tuple, mark, in_dev, out_dev, dnat: random.of(&[false, true]), snat: false })
}

fn walk(rules: &Ruleset, hook: Hook, packet: &Packet) -> Vec<Traversal> {
    let is_local = |address: IpAddr| address == IpAddr::from([10, 224, 0, 4]);
    let masquerade = |_: &str| Some(Ipv4Addr::new(10, 224, 0, 4));
    let facts = Facts { is_local: &is_local, masquerade: &masquerade };
    rules.traverse(hook, packet.clone(), &facts)
}

/// What comes out, without the rules' words.
fn outcomes(rules: &Ruleset, hook: Hook, packet: &Packet) -> BTreeSet<String> {
    let kind = |end: &End| match end {
        End::Accept => "accept".to_owned(),
        End::Drop(_) => "drop".to_owned(),
        End::Reject(_) => "reject".to_owned(),
        End::Unknown(why) => format!("unknown {why}"),
    };
    let ways = walk(rules, hook, packet);
    ways.iter().map(|way| format!("{} {:#x} {}", way.packet.tuple, way.packet.mark, kind(&way.end))).collect()
}

fn read(json: &str) -> Ruleset {
    let (rules, missing) = ruleset(json, None).unwrap();
    assert_eq!(missing, []);
    rules
}

#[track_caller]
fn same_as_iptables(json: &str) {
    let (nft, iptables) = (read(json), Ruleset::parse(IPTABLES).unwrap());
    let mut random = Random(0x5eed);
    let (mut rewritten, mut stopped) = (0, 0);
    for _ in 0..20_000 {
        let (hook, packet) = packet(&mut random);
        let (a, b) = (outcomes(&nft, hook, &packet), outcomes(&iptables, hook, &packet));
        assert_eq!(a, b, "{hook:?} {packet:?}");
        rewritten += usize::from(a.iter().any(|way| !way.contains(&packet.tuple.to_string())));
        stopped += usize::from(a.iter().any(|way| !way.ends_with("accept")));
    }
    assert!(
        rewritten > 500 && stopped > 100,
        "{rewritten} rewritten, {stopped} stopped: the packets miss the rules"
    );
}

#[test]
fn kube_proxy_s_nftables_mode_does_what_its_iptables_mode_does() {
    same_as_iptables(PRINTED);
}

/// What this machine's nft prints of `input`, read in a network namespace of its own; `None` without privilege or nft.
fn printed_here(input: &str) -> Option<String> {
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-c", "nft -f - && nft -j list ruleset"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Where nft is not there, nobody reads it.
    drop(child.stdin.take()?.write_all(input.as_bytes()));
    let output = child.wait_with_output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_this_machine_s_nft_prints() {
    let Some(json) = printed_here(RULES) else { return };
    same_as_iptables(&json);
}

#[test]
fn the_rule_in_nft_s_words_is_the_evidence() {
    let tuple = Tuple {
        saddr: [10, 224, 0, 8].into(),
        daddr: [10, 224, 0, 7].into(),
        sport: 40_000,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let packet = Packet { tuple, mark: 0, in_dev: None, out_dev: None, dnat: false, snat: false };
    let ways = walk(&read(PRINTED), Hook::Prerouting, &packet);
    let rewrites: BTreeSet<&str> = ways.iter().flat_map(|way| &way.rewrites).map(String::as_str).collect();
    assert_eq!(
        rewrites.into_iter().collect::<Vec<_>>(),
        [
            "ip kube-proxy: endpoint-APP1: meta l4proto tcp dnat to 10.0.0.143:8080",
            "ip kube-proxy: endpoint-APP2: meta l4proto tcp dnat to 10.0.1.124:8080",
        ]
    );
    let none = Packet { tuple: Tuple { daddr: [10, 0, 167, 30].into(), ..tuple }, ..packet };
    let ways = walk(&read(PRINTED), Hook::Forward, &none);
    let [Traversal { end: End::Reject(rule), .. }] = ways.as_slice() else { panic!("{ways:?}") };
    assert_eq!(rule, "ip kube-proxy: reject-chain: reject");
}

#[test]
fn the_frontends_of_maps() {
    let frontends: BTreeSet<String> = read(PRINTED)
        .frontends()
        .map(|(address, port, protocol)| format!("{address:?} {port} {protocol}"))
        .collect();
    for wanted in
        ["Some(10.224.0.7) 80 TCP", "Some(10.224.0.7) 53 UDP", "Some(10.0.167.20) 80 TCP", "None 30080 TCP"]
    {
        assert!(frontends.contains(wanted), "no {wanted} in {frontends:?}");
    }
}

/// A ruleset of one chain at `forward` with these rules.
fn forward(rules: &[&str]) -> String {
    let chain = r#"{"chain": {"family": "inet", "table": "fw", "name": "c", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}"#;
    let rules = rules.iter().map(|expr| {
        format!(r#",{{"rule": {{"family": "inet", "table": "fw", "chain": "c", "expr": [{expr}]}}}}"#)
    });
    format!(r#"{{"nftables": [{chain}{}]}}"#, rules.collect::<String>())
}

/// What becomes of a SYN from 10.224.0.8:40000 on eth0 to 10.0.0.143:80 on lxc12, with mark 0x123.
#[track_caller]
fn end(rules: &[&str]) -> (End, u32) {
    let tuple = Tuple {
        saddr: [10, 224, 0, 8].into(),
        daddr: [10, 0, 0, 143].into(),
        sport: 40_000,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let (in_dev, out_dev) = (Some("eth0".to_owned()), Some("lxc12".to_owned()));
    let packet = Packet { tuple, mark: 0x123, in_dev, out_dev, dnat: true, snat: false };
    let ways = walk(&read(&forward(rules)), Hook::Forward, &packet);
    let [way] = ways.as_slice() else { panic!("{ways:?}") };
    (way.end.clone(), way.packet.mark)
}

const DROP: &str = r#"{"drop": null}"#;

#[test]
fn conditions() {
    let holds = |condition: &str| match end(&[&format!("{condition},{DROP}")]).0 {
        End::Drop(_) => Some(true),
        End::Accept => Some(false),
        End::Unknown(_) => None,
        End::Reject(rule) => panic!("{rule}"),
    };
    let compare = |left: &str, op: &str, right: &str| {
        holds(&format!(r#"{{"match": {{"op": "{op}", "left": {left}, "right": {right}}}}}"#))
    };
    let payload = |protocol: &str, field: &str| {
        format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#)
    };
    let meta = |key: &str| format!(r#"{{"meta": {{"key": "{key}"}}}}"#);
    let (saddr, dport) = (payload("ip", "saddr"), payload("tcp", "dport"));
    assert_eq!(compare(&saddr, "==", r#""10.224.0.8""#), Some(true));
    assert_eq!(compare(&saddr, "!=", r#""10.224.0.8""#), Some(false));
    assert_eq!(compare(&saddr, "==", r#"{"prefix": {"addr": "10.224.0.0", "len": 12}}"#), Some(true));
    assert_eq!(compare(&saddr, "==", r#"{"range": ["10.224.0.1", "10.224.0.7"]}"#), Some(false));
    assert_eq!(
        compare(&saddr, "==", r#"{"set": ["10.1.1.1", {"range": ["10.224.0.1", "10.224.0.9"]}]}"#),
        Some(true)
    );
    assert_eq!(compare(&saddr, "==", r#""@nowhere""#), None, "a set that is not printed");
    assert_eq!(compare(&dport, "==", r#"{"set": [443, {"range": [80, 90]}]}"#), Some(true));
    assert_eq!(compare(&dport, "<", "1024"), Some(true));
    assert_eq!(compare(&dport, ">", "80"), Some(false));
    assert_eq!(compare(&payload("udp", "dport"), "==", "80"), Some(false), "the field implies UDP");
    assert_eq!(compare(&payload("udp", "dport"), "!=", "81"), Some(false), "here too");
    assert_eq!(compare(&payload("icmp", "type"), "==", r#""echo-request""#), Some(false));
    assert_eq!(
        compare(&payload("ip6", "saddr"), "!=", r#""fd00::1""#),
        Some(false),
        "IPv6 rules are for others"
    );
    assert_eq!(compare(&payload("ip", "ttl"), "==", "64"), None);
    assert_eq!(compare(&payload("tcp", "flags"), "==", r#""syn""#), None);
    assert_eq!(compare(&meta("l4proto"), "==", r#"{"set": ["tcp", "udp"]}"#), Some(true));
    assert_eq!(compare(&meta("l4proto"), "==", "17"), Some(false));
    assert_eq!(compare(&meta("nfproto"), "==", r#""ipv6""#), Some(false));
    assert_eq!(compare(&meta("nfproto"), "!=", r#""ipv6""#), Some(true));
    assert_eq!(compare(&meta("iifname"), "==", r#""eth0""#), Some(true));
    assert_eq!(compare(&meta("oifname"), "==", r#""lxc*""#), Some(true));
    assert_eq!(compare(&meta("oifname"), "!=", r#"{"set": ["eth0", "lxc12"]}"#), Some(false));
    assert_eq!(compare(&meta("skuid"), "==", "0"), None);
    assert_eq!(compare(&meta("mark"), "==", "291"), Some(true));
    assert_eq!(compare(&format!(r#"{{"&": [{}, 240]}}"#, meta("mark")), "==", "32"), Some(true));
    assert_eq!(compare(r#"{"ct": {"key": "state"}}"#, "in", r#"["established", "related"]"#), Some(false));
    assert_eq!(compare(r#"{"ct": {"key": "state"}}"#, "in", r#"{"set": ["new", "related"]}"#), Some(true));
    assert_eq!(compare(r#"{"ct": {"key": "status"}}"#, "in", r#""dnat""#), Some(true));
    assert_eq!(compare(r#"{"ct": {"key": "mark"}}"#, "==", "1"), None);
    let fib = r#"{"fib": {"result": "type", "flags": ["daddr"]}}"#;
    assert_eq!(compare(fib, "==", r#""local""#), Some(false));
    assert_eq!(holds(r#"{"limit": {"rate": 3, "per": "second"}}"#), None);
    assert_eq!(holds(r#"{"counter": {"packets": 1, "bytes": 2}}"#), Some(true));
    assert_eq!(holds(r#"{"xt": {"type": "match", "name": "comment"}}"#), Some(true));
    assert_eq!(holds(r#"{"xt": {"type": "match", "name": "addrtype"}}"#), None);
    assert_eq!(holds(r#"{"xt": null}"#), None);
    assert_eq!(holds(r#"{"invented": {"next": "year"}}"#), None);
}

#[test]
fn what_is_unknown_counts_only_where_it_decides() {
    let udp = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "udp"}}"#;
    let queue = r#"{"queue": {"num": 3}}"#;
    assert_eq!(end(&[&format!("{udp},{queue}")]).0, End::Accept, "not for this packet");
    let End::Unknown(rule) = end(&[queue]).0 else { panic!() };
    assert_eq!(rule, r#"inet fw: c: {"queue":{"num":3}}"#);
    let may_queue = |rule: &str| read(&forward(&[rule])).may_queue();
    assert!(may_queue(&format!("{udp},{queue}")));
    let vmap = |to: &str| {
        let key = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;
        format!(r#"{{"vmap": {{"key": {key}, "data": {{"set": [[80, {to}]]}}}}}}"#)
    };
    assert!(may_queue(&vmap(queue)) && !may_queue(&vmap(DROP)));
    let limited_log = r#"{"limit": {"rate": 3, "per": "second"}},{"log": {"prefix": "x"}}"#;
    assert_eq!(end(&[limited_log]).0, End::Accept, "it only notes");
    let End::Unknown(rule) = end(&[&format!("{limited_log},{DROP}")]).0 else { panic!() };
    assert_eq!(rule, "inet fw: c: limit rate 3/second log drop");
}

#[test]
fn marks_and_several_actions() {
    let set = |value: &str| {
        end(&[&format!(r#"{{"mangle": {{"key": {{"meta": {{"key": "mark"}}}}, "value": {value}}}}}"#)]).1
    };
    let mark = r#"{"meta": {"key": "mark"}}"#;
    assert_eq!(set("7"), 7);
    assert_eq!(set(&format!(r#"{{"|": [{mark}, 16384]}}"#)), 0x4123);
    assert_eq!(set(&format!(r#"{{"^": [{mark}, 256]}}"#)), 0x23);
    assert_eq!(set(&format!(r#"{{"|": [{{"&": [{mark}, 4294967055]}}, 32]}}"#)), 0x123 & 0xffff_ff0f | 0x20);
    assert_eq!(
        set(&format!(r#"{{"^": [{{"&": [{mark}, 4294963455]}}, 3072]}}"#)),
        0x123 & 0xffff_f0ff ^ 0xc00
    );
    // The packet is marked and dropped by one rule; a mark that the rule tested before is another then.
    let set = r#"{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}}"#;
    assert!(matches!(end(&[&format!("{set},{DROP}")]), (End::Drop(_), 7)));
    let tested = r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 291}}"#;
    assert!(matches!(end(&[&format!("{tested},{set},{DROP}")]), (End::Unknown(_), 7)));
}

#[test]
fn verdict_maps_of_other_keys() {
    let vmap = |key: &str, elements: &str| {
        end(&[&format!(r#"{{"vmap": {{"key": {key}, "data": {{"set": [{elements}]}}}}}}"#)]).0
    };
    let state = r#"{"ct": {"key": "state"}}"#;
    assert_eq!(vmap(state, r#"["established", {"accept": null}], ["invalid", {"drop": null}]"#), End::Accept);
    assert!(matches!(
        vmap(state, r#"["established", {"accept": null}], ["new", {"drop": null}]"#),
        End::Drop(_)
    ));
    let iif = r#"{"meta": {"key": "iifname"}}"#;
    assert!(matches!(vmap(iif, r#"["lo", {"accept": null}], ["eth0", {"drop": null}]"#), End::Drop(_)));
    let uid = r#"{"meta": {"key": "skuid"}}"#;
    assert!(matches!(vmap(uid, r#"[0, {"drop": null}]"#), End::Unknown(_)));
    let dport = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;
    assert!(matches!(vmap(dport, r#"[{"range": [1, 1023]}, {"drop": null}]"#), End::Drop(_)));
    assert!(matches!(vmap(dport, r#"["http", {"drop": null}]"#), End::Unknown(_)), "a port by name");
    assert!(matches!(vmap(dport, r#"[80, {"queue": {"num": 1}}]"#), End::Unknown(_)));
    assert_eq!(vmap(dport, r#"[81, {"queue": {"num": 1}}]"#), End::Accept);
    assert_eq!(end(&[r#"{"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": "@gone"}}"#]).0.clone(), {
        let text = "inet fw: c: meta l4proto vmap @gone";
        End::Unknown(text.to_owned())
    });
}

#[test]
fn affinity_may_go_either_way() {
    let set = r#"{"set": {"family": "inet", "name": "a", "table": "fw", "type": "ipv4_addr", "flags": ["timeout"]}},"#;
    let rule = format!(
        r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "saddr"}}}}, "right": "@a"}}}},{DROP}"#
    );
    let json = forward(&[&rule]).replacen('[', &format!("[{set}"), 1);
    let packet = packet(&mut Random(1)).1;
    let ends: Vec<bool> =
        walk(&read(&json), Hook::Forward, &packet).iter().map(|way| way.end == End::Accept).collect();
    assert!(ends.contains(&true) && ends.contains(&false), "{ends:?}");
}

fn chain(table: &str, name: &str, hook: &str, priority: i32) -> String {
    format!(
        r#"{{"chain": {{"family": "ip", "table": "{table}", "name": "{name}", "type": "nat", "hook": "{hook}", "prio": {priority}, "policy": "accept"}}}}"#
    )
}

fn dnat(table: &str, name: &str, address: &str) -> String {
    format!(
        r#"{{"rule": {{"family": "ip", "table": "{table}", "chain": "{name}", "expr": [{{"dnat": {{"addr": "{address}"}}}}]}}}}"#
    )
}

#[test]
fn tables_that_iptables_save_has_printed_are_not_counted_twice() {
    let json = format!(
        r#"{{"nftables": [{}, {}, {}, {}]}}"#,
        chain("nat", "PREROUTING", "prerouting", -100),
        dnat("nat", "PREROUTING", "1.1.1.1"),
        chain("other", "x", "prerouting", -100),
        dnat("other", "x", "2.2.2.2")
    );
    let count = |iptables: Option<&str>| ruleset(&json, iptables).unwrap().0.rule_count();
    let printed = |by: &str| format!("# Generated by {by} on Wed Nov 25 15:29:50 2026\n*nat\nCOMMIT\n");
    assert_eq!(count(None), 2);
    assert_eq!(count(Some(&printed("iptables-nft-save v1.8.9 (nf_tables)"))), 1);
    assert_eq!(count(Some(&printed("iptables-save v1.8.7 (nf_tables)"))), 1);
    // The legacy back end's table of that name is another.
    assert_eq!(count(Some(&printed("iptables-save v1.8.7"))), 2);
    let incompatible = "# Table `nat' is incompatible, use 'nft' tool.\n";
    assert_eq!(count(Some(incompatible)), 2);
}

#[test]
fn nat_chains_in_order_and_of_one_priority() {
    let end = |other_priority: i32, other: &str| {
        let json = format!(
            r#"{{"nftables": [{}, {}, {}, {}]}}"#,
            chain("a", "x", "prerouting", -100),
            dnat("a", "x", "1.1.1.1"),
            chain("b", "y", "prerouting", other_priority),
            dnat("b", "y", other)
        );
        let packet = packet(&mut Random(3)).1;
        let ways = walk(&read(&json), Hook::Prerouting, &packet);
        let [way] = ways.as_slice() else { panic!("{ways:?}") };
        (way.packet.tuple.daddr.to_string(), way.end.clone())
    };
    assert_eq!(end(-99, "2.2.2.2"), ("1.1.1.1".to_owned(), End::Accept), "the first binds");
    assert_eq!(end(-101, "2.2.2.2"), ("2.2.2.2".to_owned(), End::Accept));
    assert_eq!(end(-100, "1.1.1.1"), ("1.1.1.1".to_owned(), End::Accept), "either order gives this");
    let (_, End::Unknown(why)) = end(-100, "2.2.2.2") else { panic!() };
    assert_eq!(why, "the order of chains ip a x and ip b y is not known, and matters");
}

#[test]
fn what_is_not_followed_is_said() {
    let json = r#"{"nftables": [
        {"chain": {"family": "netdev", "table": "early", "name": "in", "type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"}},
        {"chain": {"family": "inet", "table": "t", "name": "in", "type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"}},
        {"chain": {"family": "bridge", "table": "b", "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip6", "table": "six", "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}
    ]}"#;
    let (rules, missing) = ruleset(json, None).unwrap();
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].contains("nftables table netdev early") && missing[1].contains("hook `ingress`"));
    let packet = packet(&mut Random(3)).1;
    assert_eq!(walk(&rules, Hook::Input, &packet)[0].end, End::Accept, "not IPv4's");
    let dormant = r#"{"nftables": [
        {"table": {"family": "ip", "name": "t", "flags": "dormant"}},
        {"chain": {"family": "ip", "table": "t", "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}
    ]}"#;
    assert_eq!(walk(&read(dormant), Hook::Input, &packet)[0].end, End::Accept);
    assert!(matches!(
        walk(&read(&dormant.replace("\"dormant\"", "null")), Hook::Input, &packet)[0].end,
        End::Drop(_)
    ));
}

#[test]
fn no_print_of_nft_s() {
    assert!(format!("{:#}", ruleset("", None).unwrap_err()).contains("is it truncated?"));
    assert!(format!("{:#}", ruleset("{}", None).unwrap_err()).contains("found no `nftables`"));
    // Any shape of JSON is survived.
    for odd in ["null", "1", "\"x\"", "[]", "{}", "[{}]", "{\"a\": []}"] {
        for name in ["table", "set", "map", "chain", "rule"] {
            assert!(ruleset(&format!("{{\"nftables\": [{{\"{name}\": {odd}}}]}}"), None).is_ok());
        }
        for statement in ["match", "vmap", "mangle", "dnat", "snat", "set", "xt", "limit", "jump", "fib"] {
            drop(end(&[&format!("{{\"{statement}\": {odd}}}")]));
        }
    }
}

/// A node with these rules of nftables beside the recorded ones, and what becomes of a consumer's SYN.
fn verdict_beside(nft: Option<&str>, unread: Option<&str>) -> Verdict {
    let scenario = fixtures::recording("cilium-1.14-tunnel-kubeproxy").join("cidr-pls8-80");
    let folder = tempfile::tempdir().unwrap();
    for part in ["maps", "rest"] {
        std::os::unix::fs::symlink(scenario.join(part), folder.path().join(part)).unwrap();
    }
    let node = folder.path().join("node");
    std::fs::create_dir(&node).unwrap();
    for file in ["iptables-save.txt", "ip.txt"] {
        std::fs::copy(scenario.join("../node").join(file), node.join(file)).unwrap();
    }
    if let Some(nft) = nft {
        std::fs::write(node.join("nft-ruleset.json"), nft).unwrap();
    }
    let mut raw = crate::sources::folder::read(folder.path()).unwrap();
    raw.missing.extend(unread.map(|table| Missing {
        what: format!("{}{table}", crate::sources::netfilter::UNREAD_TABLE),
        why: "nft failed".to_owned(),
    }));
    let tuple = Tuple {
        saddr: [10, 224, 0, 8].into(),
        daddr: [10, 224, 0, 7].into(),
        sport: 40_000,
        dport: 80,
        protocol: Protocol::TCP,
    };
    explain(&crate::sources::assemble::assemble(&raw), &Question::new(tuple)).verdict
}

#[test]
fn a_recorded_node_with_rules_of_nftables() {
    assert_eq!(verdict_beside(None, None), Verdict::Allowed);
    let dropping = forward(&[DROP]).replace("\"forward\"", "\"prerouting\"");
    assert_eq!(verdict_beside(Some(&dropping), None), Verdict::Filtered);
    let other =
        forward(&[r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "udp"}}"#, DROP]);
    assert_eq!(verdict_beside(Some(&other.replace("\"forward\"", "\"input\"")), None), Verdict::Allowed);
    for (nft, unread, why) in
        [(None, Some("ip kube-proxy"), "nft failed"), (Some("{"), None, "is it truncated?")]
    {
        let Verdict::Inconclusive(why_not) = verdict_beside(nft, unread) else { panic!("{nft:?}") };
        assert!(why_not.iter().any(|text| text.contains(why)), "{why_not:?}");
    }
}
