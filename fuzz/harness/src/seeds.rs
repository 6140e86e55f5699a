//! Seeds: the recordings, cut small. A fuzzer learns more from a hundred small inputs than from one large one.

use std::fs;
use std::path::Path;
use std::slice;

use fixtures::Scenario;
use probe_user::sources::folder;
use probe_user::sources::snapshot::Packed;
use serde_json::Value;

use crate::bugtool::OUTPUTS;
use crate::container;
use crate::events::encode as encode_samples;
use crate::maps::{MAPS, encode};
use crate::node_text::{IP, IPTABLES_SAVE, NFT};
use crate::rest::ANSWERS;
use crate::snapshot::{circumstances, parts, shortened as shortened_map};

const RECORDINGS: [&str; 3] = ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"];
/// Entries of a map that one seed has.
const ENTRIES: usize = 3;

fn scenarios() -> impl Iterator<Item = Scenario> {
    RECORDINGS.into_iter().flat_map(fixtures::scenarios)
}

/// The scenario of a recording that is also made a seed with all its files: a large one is mutated slowly.
fn has_everything(scenario: &Scenario) -> bool {
    scenario.name == "none"
}

/// One of each, in order.
fn distinct(seeds: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = seeds.into_iter().collect();
    seeds.sort();
    seeds.dedup();
    seeds
}

pub(crate) fn events() -> Vec<Vec<u8>> {
    let lines = scenarios().flat_map(|scenario| {
        let text = read(&scenario.path.join("events/events.jsonl"));
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let samples = lines.filter_map(|line| {
        let event: Value = serde_json::from_str(&line).expect("a recorded event");
        event["hex"].as_str().map(hex)
    });
    // Of each type and length one: they differ only in addresses and hashes.
    let mut samples = distinct(samples);
    samples.sort_by_key(|sample| (sample.first().copied(), sample.len()));
    samples.dedup_by_key(|sample| (sample.first().copied(), sample.len()));
    let mut seeds: Vec<_> = samples.iter().map(|sample| encode_samples(slice::from_ref(sample))).collect();
    seeds.push(encode_samples(&samples));
    seeds
}

pub(crate) fn gob() -> Vec<Vec<u8>> {
    let streams = scenarios().map(|scenario| {
        let stream = fs::read(scenario.path.join("events/events.bin")).expect("a recorded stream");
        // The type definition and some values.
        let mut seed = vec![6];
        seed.extend(&stream[..stream.len().min(1000)]);
        seed
    });
    distinct(streams)
}

pub(crate) fn rest() -> Vec<Vec<u8>> {
    let answers = scenarios().flat_map(|scenario| {
        ANSWERS.into_iter().enumerate().filter_map(move |(position, name)| {
            let text = fs::read_to_string(scenario.path.join(format!("rest/{name}.json"))).ok()?;
            let mut seed = vec![position as u8];
            seed.extend(shortened(&text).as_bytes());
            Some(seed)
        })
    });
    distinct(answers)
}

pub(crate) fn maps() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for scenario in scenarios() {
        let mut all = Vec::new();
        for (position, (name, _, _)) in MAPS.iter().enumerate() {
            for dump in dumps_of(&scenario.path, name) {
                let seed = encode(position, &entries(&dump));
                all.extend(&seed);
                seeds.push(seed);
            }
        }
        seeds.push(all);
    }
    distinct(seeds)
}

pub(crate) fn node_text() -> Vec<Vec<u8>> {
    let texts = RECORDINGS.into_iter().flat_map(|recording| {
        let folder = fixtures::recording(recording).join("node");
        [IPTABLES_SAVE, IP].map(|name| container::join_texts([(name, &*read(&folder.join(name)))]))
    });
    distinct(texts.chain(nft_rules()))
}

/// The rules of kube-proxy's nftables mode, and each of them with the chains and sets that all have.
fn nft_rules() -> Vec<Vec<u8>> {
    let json = include_str!("../../../probe-user/src/sources/nft/kube-proxy.json");
    let document: Value = serde_json::from_str(json).expect("recorded JSON");
    let objects = document["nftables"].as_array().expect("a list").clone();
    let (rules, declared): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| object.get("rule").is_some());
    let seed = |rules: &[Value]| {
        let objects = [&declared[..], rules].concat();
        container::join_texts([(NFT, serde_json::json!({ "nftables": objects }).to_string().as_str())])
    };
    rules.chunks(4).map(seed).chain([seed(&rules)]).collect()
}

pub(crate) fn bugtool() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for scenario in scenarios() {
        let mut all = Vec::new();
        for (name, file) in OUTPUTS {
            if let Ok(text) = fs::read_to_string(scenario.path.join(file)) {
                let part = (name.to_owned(), text);
                seeds.push(join([&part]));
                all.push(part);
            }
        }
        for pin in ["cilium_lxc", "cilium_ipcache", "cilium_lb4_services_v2", "cilium_ct4_global"] {
            let dump = scenario.path.join(format!("maps/{pin}.json"));
            if dump.exists() {
                let part =
                    (format!("bpftool-map-dump-pinned--sys-fs-bpf-tc-globals-{pin}.md"), dump_text(&dump));
                seeds.push(join([&part]));
                all.push(part);
            }
        }
        if has_everything(&scenario) {
            seeds.push(join(&all));
        }
    }
    distinct(seeds)
}

/// As bpftool prints a map without type information.
fn dump_text(dump: &Path) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let entries = entries(dump);
    let text = entries.iter().map(|(key, value)| format!("key:\n{}\nvalue:\n{}\n", hex(key), hex(value)));
    let count = entries.len();
    text.chain([format!("Found {count} element{}\n", if count == 1 { "" } else { "s" })]).collect()
}

pub(crate) fn dump_folder() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for scenario in scenarios() {
        let show = shortened_show(&scenario.path);
        let mut all = vec![("maps/_show.json".to_owned(), show)];
        for (name, _, _) in MAPS {
            for dump in dumps_of(&scenario.path, name) {
                let file = (format!("maps/{}", file_name(&dump)), shortened(&read(&dump)));
                seeds.push(join([&file]));
                all.push(file);
            }
        }
        for name in ANSWERS {
            let path = format!("rest/{name}.json");
            if let Ok(text) = fs::read_to_string(scenario.path.join(&path)) {
                all.push((path, shortened(&text)));
            }
        }
        for name in [IPTABLES_SAVE, IP] {
            all.push((
                format!("node/{name}"),
                read(&fixtures::recording(&scenario.recording).join("node").join(name)),
            ));
        }
        if has_everything(&scenario) {
            seeds.push(join(&all));
        }
    }
    distinct(seeds)
}

pub(crate) fn snapshot() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = maps().into_iter().map(|maps| [&[3], &maps[..]].concat()).collect();
    for scenario in scenarios().filter(has_everything) {
        let mut node = folder::read(&scenario.path).expect("a recording");
        for map in node.maps.values_mut() {
            *map = shortened_map(map, ENTRIES);
        }
        node.rest.retain(|name, _| ANSWERS.contains(&name.as_str()));
        let packed = Packed::new(&node, circumstances()).expect("a recording fits");
        let mut file = Vec::new();
        packed.write(&mut file).expect("memory takes everything");
        seeds.push(parts(&file));
        seeds.push([&[1], &zstd::decode_all(&file[..]).expect("a frame")[..]].concat());
        seeds.push([&[0], &file[..]].concat());
    }
    distinct(seeds)
}

fn join<'a>(files: impl IntoIterator<Item = &'a (String, String)>) -> Vec<u8> {
    container::join_texts(files.into_iter().map(|(name, text)| (name.as_str(), text.as_str())))
}

/// The dumps in a scenario that are of the map `name`, whose number at the end stands for any.
fn dumps_of(scenario: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_numbered = stem.ends_with('_');
    let listed = fs::read_dir(scenario.join("maps")).expect("a scenario has maps");
    let paths = listed.map(|entry| entry.expect("a readable folder").path());
    let mut dumps: Vec<_> = paths
        .filter(|path| {
            let file = path.file_stem().unwrap_or_default().to_string_lossy();
            let rest = file.strip_prefix(stem);
            file == name
                || (is_numbered && rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit())))
        })
        .collect();
    dumps.sort();
    dumps
}

/// The first entries of a `bpftool map dump -j`.
fn entries(dump: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let dump: Vec<Value> = serde_json::from_str(&read(dump)).expect("a recorded dump");
    let bytes = |words: &Value| {
        let words = words.as_array().expect("bytes");
        words.iter().map(|word| hex(word.as_str().expect("a byte"))[0]).collect::<Vec<_>>()
    };
    let value = |entry: &Value| match entry.get("values") {
        None => bytes(&entry["value"]),
        // The first CPU's will do.
        Some(per_cpu) => bytes(&per_cpu[0]["value"]),
    };
    dump.iter().take(ENTRIES).map(|entry| (bytes(&entry["key"]), value(entry))).collect()
}

/// `_show.json` with the maps that something reads.
fn shortened_show(scenario: &Path) -> String {
    let mut show: Vec<Value> =
        serde_json::from_str(&read(&scenario.join("maps/_show.json"))).expect("a list of maps");
    show.retain(|map| {
        let text = map["pinned"].to_string();
        MAPS.iter().any(|(name, _, _)| text.contains(name.trim_end_matches(|c: char| c.is_ascii_digit())))
    });
    serde_json::to_string(&show).expect("JSON")
}

/// JSON with the first elements of its outermost list.
fn shortened(json: &str) -> String {
    let mut value: Value = serde_json::from_str(json).expect("recorded JSON");
    if let Value::Array(elements) = &mut value {
        elements.truncate(ENTRIES);
    }
    value.to_string()
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.trim_start_matches("0x");
    let byte = |pair: &[u8]| {
        let pair = str::from_utf8(pair).expect("hex digits");
        u8::from_str_radix(pair, 16).expect("hex digits")
    };
    digits.as_bytes().chunks(2).map(byte).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("failed to read `{}`: {error}", path.display()))
}
