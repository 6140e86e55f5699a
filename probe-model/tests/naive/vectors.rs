//! The reference itself against the answers of Cilium's own compiled functions: all 900 of them.

use super::lookup::{Node, Packet, lookup};
use super::tables::{Rule, Version};

const VECTORS: &str = include_str!("../../../fixtures/policy-vectors.tsv");

#[track_caller]
fn number<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a number")
}

/// `id/plen/proto/port/deny/proxy_port/auth/explicit_auth/x`
fn rule(text: &str) -> Rule {
    let fields: Vec<_> = text.split('/').collect();
    Rule {
        identity: number(fields[0]),
        egress: false,
        plen: number(fields[1]),
        protocol: number(fields[2]),
        port: number(fields[3]),
        deny: fields[4] == "1",
        proxy_port: number(fields[5]),
        auth_type: number(fields[6]),
        explicit_auth: fields[7] == "1",
        rank: number(fields[8]),
        ..Rule::default()
    }
}

#[track_caller]
fn check(group: &str, version: Version) {
    let lines: Vec<_> = VECTORS.lines().filter(|line| line.split('\t').next() == Some(group)).collect();
    assert_eq!(lines.len(), 150, "vectors of group {group}");
    for line in lines {
        let fields: Vec<_> = line.split('\t').collect();
        let rules = fields[2].split(';').filter(|text| *text != "-").map(rule);
        let entries: Vec<_> = rules.map(|rule| rule.store(version)).collect();
        let node = Node { dual_stack: false, cluster_id: 0 };
        let packet = Packet {
            identity: number(fields[3]),
            egress: false,
            protocol: number(fields[4]),
            port: number(fields[5]),
            fragment: false,
        };
        let answer = lookup(version, &entries, node, packet);
        let expected = (number(fields[6]), number(fields[7]), number(fields[8]), number(fields[9]));
        let found = (answer.code, answer.match_type, answer.ext_error, answer.proxy_port);
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn group_a() {
    check("A", Version::V1_13);
}

#[test]
fn group_b() {
    check("B", Version::V1_14);
}

#[test]
fn group_c() {
    check("C", Version::V1_16_4);
}

/// One procedure, two layouts.
#[test]
fn group_d() {
    check("D", Version::V1_17);
    check("D", Version::V1_18);
}

#[test]
fn group_e() {
    check("E", Version::V1_19);
}

#[test]
fn group_f() {
    check("F", Version::V1_20);
}
