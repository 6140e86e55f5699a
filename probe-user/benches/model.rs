//! What an answer costs once the bytes are at hand: one verdict, and decoding a large node; each beside a plain way to the same.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use probe_model::cilium::entries::Entries;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout, PolicyMap, PolicyQuery, PolicySlot};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::explain;
use probe_model::simulate::{Question, simulate};
use probe_model::tuple::{Protocol, Tuple};
use probe_user::sources::assemble::assemble;
use probe_user::sources::raw::{RawMap, RawNode};
use probe_user::sources::{folder, raw};

/// Endpoints and entries each, as large as AKS lets a node become.
const ENDPOINTS: u16 = 100;
const ENTRIES: u32 = 16_384;

criterion_group!(benches, verdict, decode);
criterion_main!(benches);

/// A full policy map: a thousand CIDR identities with some ports each, every layout's flags right.
fn policy_entries(layout: PolicyLayout) -> Vec<PolicySlot> {
    let slot = |number: u32| {
        let key = PolicyKey {
            prefixlen: 64,
            sec_label: Identity(0x0100_0001 + number / 16),
            direction: Direction::Ingress,
            protocol: Protocol::TCP.0,
            dport: 8000 + (number % 16) as u16,
        };
        (key, PolicyEntry::for_key(&key, layout, number.is_multiple_of(7)))
    };
    (0..ENTRIES).map(slot).collect()
}

fn encoded(layout: PolicyLayout) -> Entries {
    let slots = policy_entries(layout);
    Entries::collect(slots.iter().map(|(key, entry)| (key.encode(layout), entry.encode(layout))))
        .expect("entries of one size")
}

fn verdict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verdict");
    for layout in [PolicyLayout::WildcardBits, PolicyLayout::Aggregates] {
        let slots = policy_entries(layout);
        let map = PolicyMap::new(layout, slots.iter().copied());
        let query = PolicyQuery {
            identity: Identity(0x0100_0001 + 500),
            direction: Direction::Ingress,
            protocol: Protocol::TCP.0,
            port: 8003,
            untracked_fragment: false,
        };
        let name = format!("lookup {} in {ENTRIES} entries", layout.group());
        group.bench_function(name, |bench| bench.iter(|| map.lookup(black_box(query))));
        let scan = |query: PolicyQuery| {
            slots.iter().find(|(key, _)| {
                key.sec_label == query.identity && key.covers_l4(query.direction, query.protocol, query.port)
            })
        };
        let name = format!("  plain scan for one entry of {}", layout.group());
        group.bench_function(name, |bench| bench.iter(|| scan(black_box(query))));
    }
    let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
    let world = assemble(&folder::read(&scenario).expect("a recording"));
    let tuple = Tuple {
        saddr: "10.224.0.8".parse().expect("an address"),
        daddr: "10.224.0.7".parse().expect("an address"),
        sport: 0,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let question = Question::new(tuple);
    group.bench_function("simulate a packet through the node", |bench| {
        bench.iter(|| simulate(black_box(&world), black_box(&question)));
    });
    group.bench_function("explain it", |bench| {
        bench.iter(|| explain(black_box(&world), black_box(&question)));
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    for layout in [PolicyLayout::WildcardBits, PolicyLayout::Precedence] {
        let node = large_node(layout);
        let name = format!("decode and index {ENDPOINTS} x {ENTRIES} entries, {}", layout.versions());
        group.bench_function(name, |bench| bench.iter(|| assemble(black_box(&node))));
        let name = format!("  plain: into one ordered map each, {}", layout.versions());
        group.bench_function(name, |bench| bench.iter(|| plain(black_box(&node), layout)));
    }
    group.finish();
}

/// A node of nothing but full policy maps, each in its own memory, as a reader leaves them.
fn large_node(layout: PolicyLayout) -> raw::RawNode {
    let entries = encoded(layout);
    let map = |id: u16| {
        let bytes = entries.bytes().to_vec();
        let entries = Entries::new(layout.key_size(), layout.value_size(), bytes).expect("whole entries");
        let map = RawMap {
            id: id.into(),
            key_size: layout.key_size() as u32,
            value_size: layout.value_size() as u32,
            max_entries: ENTRIES,
            entries,
            ..RawMap::default()
        };
        (layout.pin_name(EndpointId(id)), map)
    };
    RawNode { maps: (1..=ENDPOINTS).map(map).collect(), ..RawNode::default() }
}

fn plain(node: &RawNode, layout: PolicyLayout) -> Vec<BTreeMap<PolicyKey, PolicyEntry>> {
    let decode = |(key, value)| -> PolicySlot {
        let valid = "an entry of the layout";
        (PolicyKey::decode(key, layout).expect(valid), PolicyEntry::decode(value, layout).expect(valid))
    };
    node.maps.values().map(|map| map.entries.iter().map(decode).collect()).collect()
}
