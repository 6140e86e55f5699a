//! What a real Cilium wrote: read in full, and written again byte for byte.

use std::collections::BTreeMap;

use probe_model::cilium::events::{Notification, Sample, Stream};

use super::header_mut;

/// The perf samples of a scenario, in their order.
fn samples(scenario: &fixtures::Scenario) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(scenario.path.join("events/events.jsonl")).unwrap();
    let hex = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let digits = line["hex"].as_str().unwrap().as_bytes().to_vec();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect::<Vec<_>>()
    };
    text.lines().map(hex).filter(|raw| !raw.is_empty()).collect()
}

fn check(recording: &str, expected: &[(u8, usize)]) {
    let mut counts = BTreeMap::new();
    for scenario in fixtures::scenarios(recording) {
        let mut stream = Stream::default();
        for raw in samples(&scenario) {
            let place = format!("{recording}/{}: {raw:02x?}", scenario.name);
            let sample = stream.decode(&raw).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(Sample::decode(&raw), Ok(sample), "what came before changed it: {place}");
            *counts.entry(sample.notification.message_type()).or_insert(0) += 1;
            if matches!(sample.notification, Notification::Other { .. }) {
                continue;
            }
            let meta = sample.notification.encode();
            assert_eq!(raw[..meta.len()], meta, "{place}");
            let len_cap = header_mut(&mut sample.notification.clone()).map_or(0, |header| header.len_cap);
            assert_eq!(sample.packet, &raw[meta.len()..][..len_cap.into()], "{place}");
            assert_eq!(Sample::from_hook(&meta, meta.len(), sample.packet), Ok(sample), "{place}");
        }
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), expected, "{recording}");
}

#[test]
fn cilium_1_14() {
    check("cilium-1.14", &[(1, 295), (4, 850), (5, 302), (7, 149), (130, 3)]);
}

#[test]
fn cilium_1_14_with_a_tunnel() {
    check("cilium-1.14-tunnel-kubeproxy", &[(1, 146), (4, 364), (5, 177), (130, 3)]);
}

#[test]
fn cilium_1_16() {
    check("cilium-1.16", &[(1, 54), (4, 126), (5, 52), (7, 33)]);
}

/// Reason, file and line of each drop, against what Cilium's own monitor printed, which ran beside the recorder.
#[test]
fn drops_are_named_as_cilium_names_them() {
    let mut named = 0;
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let printed = std::fs::read_to_string(scenario.path.join("events/monitor-verbose.txt")).unwrap();
            let between = |line: &str, from: &str, to: &str| {
                line.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned()
            };
            let printed = printed.lines().filter(|line| line.starts_with("xx drop ("));
            let printed: Vec<_> =
                printed.map(|line| (between(line, "(", ") flow"), between(line, "file ", ","))).collect();
            let decoded = samples(&scenario).into_iter().filter_map(|raw| {
                let Notification::Drop(drop) = Sample::decode(&raw).unwrap().notification else {
                    return None;
                };
                let file = drop.source_file(None).unwrap();
                Some((drop.reason.text().unwrap().to_owned(), format!("{file}:{}", drop.line)))
            });
            assert_eq!(decoded.collect::<Vec<_>>(), printed, "{recording}/{}", scenario.name);
            named += printed.len();
        }
    }
    assert_eq!(named, 295 + 146 + 54);
}
