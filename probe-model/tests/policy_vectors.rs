//! The policy lookup against golden vectors that Cilium's own datapath functions computed.

use probe_model::cilium::Direction;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{
    PolicyDecision, PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, PolicyQuery, PolicyVerdict,
};

const VECTORS: &str = include_str!("../../fixtures/policy-vectors.tsv");

fn number<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a number")
}

/// `id/plen/proto/port/deny/proxy_port/auth/explicit_auth/x`.
fn entry(text: &str, layout: PolicyLayout) -> (PolicyKey, PolicyEntry) {
    let fields: Vec<_> = text.split('/').collect();
    let l4_prefix: u8 = number(fields[1]);
    let key = PolicyKey {
        prefixlen: 40 + u32::from(l4_prefix),
        sec_label: Identity(number(fields[0])),
        direction: Direction::Ingress,
        protocol: number(fields[2]),
        dport: number(fields[3]),
    };
    let x: u32 = number(fields[8]);
    let entry = PolicyEntry {
        proxy_port: number(fields[5]),
        auth_type: number(fields[6]),
        has_explicit_auth_type: fields[7] == "1",
        proxy_port_priority: x as u8,
        precedence: x,
        ..PolicyEntry::for_key(&key, layout, fields[4] == "1")
    };
    // What the layout has no bytes for must not count.
    (key, PolicyEntry::decode(&entry.encode(layout), layout).expect("an entry of the layout's size"))
}

fn check(group: &str, layout: PolicyLayout) {
    let lines: Vec<_> = VECTORS.lines().filter(|line| line.split('\t').next() == Some(group)).collect();
    assert_eq!(lines.len(), 150, "vectors of group {group}");
    for line in lines {
        let fields: Vec<_> = line.split('\t').collect();
        let entries = fields[2].split(';').filter(|text| *text != "-").map(|text| entry(text, layout));
        let entries: Vec<_> = entries.collect();
        let query = PolicyQuery {
            identity: Identity(number(fields[3])),
            direction: Direction::Ingress,
            protocol: number(fields[4]),
            port: number(fields[5]),
            untracked_fragment: false,
        };
        let decision = PolicyMap::new(layout, entries.iter().copied()).lookup(query);
        assert_eq!(result(&decision), expected(&fields), "{line}");
        let reversed = PolicyMap::new(layout, entries.into_iter().rev()).lookup(query);
        assert_eq!(decision.entry, reversed.entry, "the order of insertion matters: {line}");
    }
}

/// Return code, match type, `ext_err`, proxy port.
type Answer = (i32, u8, u8, u16);

fn expected(fields: &[&str]) -> Answer {
    (number(fields[6]), number(fields[7]), number(fields[8]), number(fields[9]))
}

fn result(decision: &PolicyDecision) -> Answer {
    let match_type = decision.match_type as u8;
    match decision.verdict {
        PolicyVerdict::Allow { proxy_port } => (0, match_type, 0, proxy_port),
        PolicyVerdict::Drop(DropReason::POLICY_AUTH_REQUIRED) => {
            // The datapath leaves the proxy port set when authentication is what fails.
            let proxy_port = decision.entry.map_or(0, |(_, entry)| entry.proxy_port);
            (-189, match_type, decision.auth_type, proxy_port)
        }
        PolicyVerdict::Drop(reason) => (-i32::from(reason.0), match_type, decision.auth_type, 0),
    }
}

#[test]
fn group_a_1_13() {
    check("A", PolicyLayout::HashKey);
}

#[test]
fn group_b_1_14_to_1_16_3() {
    check("B", PolicyLayout::WildcardBits);
}

#[test]
fn group_c_1_16_4_on() {
    check("C", PolicyLayout::PrefixLength);
}

#[test]
fn group_d_1_17_and_1_18() {
    check("D", PolicyLayout::ProxyPriority);
    check("D", PolicyLayout::CountersApart);
}

#[test]
fn group_e_1_19() {
    check("E", PolicyLayout::Precedence);
}

#[test]
fn group_f_1_20_on() {
    check("F", PolicyLayout::Aggregates);
}
