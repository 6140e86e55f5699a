//! Archives made of the recordings, under the names that cilium-bugtool gives, beside the folders they are made of.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

use flate2::Compression;
use flate2::write::GzEncoder;
use probe_model::explain::{Verdict, explain};
use probe_model::simulate::Question;
use probe_model::tuple::{Protocol, Tuple};
use serde::Deserialize;

use super::*;
use crate::sources::assemble::assemble;
use crate::sources::folder;

const FOLDER: &str = "cilium-bugtool-20240723-101112.131+0000-UTC-1234567890";
/// Maps that cilium-bugtool dumps and a verdict needs; of the backends it knows an earlier name only.
const DUMPED: [&str; 9] = [
    "cilium_lxc",
    "cilium_ipcache",
    "cilium_lb4_services_v2",
    "cilium_lb4_source_range",
    "cilium_lb4_reverse_nat",
    "cilium_ct4_global",
    "cilium_ct_any4_global",
    "cilium_snat_v4_external",
    "cilium_tunnel_map",
];

/// Files under `cmd/`.
type Commands = BTreeMap<String, String>;

fn name(command: &str) -> String {
    format!("{}.md", command.replace(['/', ' '], "-"))
}

/// As bpftool prints a map without type information.
fn dump(map: &RawMap) -> String {
    let mut text = String::new();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    for (key, value) in map.entries.iter() {
        writeln!(text, "key:\n{}\nvalue:\n{}", hex(key), hex(value)).unwrap();
    }
    let count = map.entries.len();
    writeln!(text, "Found {count} element{}", if count == 1 { "" } else { "s" }).unwrap();
    text
}

/// What cilium-bugtool would have written on the recorded node.
fn commands(scenario: &Path, agent: &str) -> Commands {
    let text = |path: &str| std::fs::read_to_string(scenario.join(path)).unwrap();
    let json = |path: &str| -> Value { serde_json::from_str(&text(path)).unwrap() };
    let mut files = Commands::new();
    let mut add = |command: &str, output: String| drop(files.insert(name(command), output));
    let node = folder::read(scenario).unwrap();
    for pin in DUMPED {
        let command = format!("bpftool map dump pinned /sys/fs/bpf/tc/globals/{pin}");
        let output = node.maps.get(pin).map_or_else(
            || format!("Error: bpf obj get ({pin}): No such file or directory\n{FAILED}'{command}':  exit status 255\n\n"),
            dump,
        );
        add(&command, output);
    }
    for (command, file) in [
        ("bpf policy get --all --numeric", "cli/bpf-policy-get-all-n.txt"),
        ("bpf ipcache list", "cli/bpf-ipcache-list.txt"),
        ("bpf endpoint list", "cli/bpf-endpoint-list.txt"),
        ("bpf lb list", "cli/bpf-lb-list.txt"),
        ("identity list", "cli/identity-list.txt"),
        ("config -a", "cli/config.txt"),
        ("status --verbose", "cli/status.txt"),
        ("policy selectors -o json", "rest/policy-selectors.json"),
    ] {
        add(&format!("{agent} {command}"), text(file));
    }
    let ip = text("../node/ip.txt");
    let section = |title: &str| {
        let after = ip.split_once(&format!("# {title}\n")).unwrap().1;
        after.split("\n# ").next().unwrap().to_owned()
    };
    add("ip a", section("ip addr"));
    add("ip -4 r", section("ip route"));
    add("iptables-save -c", text("../node/iptables-save.txt"));
    let debuginfo = json!({
        "endpoint-list": json("rest/endpoint.json"), "policy": json("rest/policy.json"),
        "service-list": json("rest/service.json"), "cilium-status": json("rest/healthz.json"),
    });
    files.insert("cilium-debuginfo-20240723-101112.131+0000-UTC.json".to_owned(), debuginfo.to_string());
    files
}

fn tar_of<'f>(files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // As it is, without the library's own refusal of odd names.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn packed(commands: &Commands) -> Vec<u8> {
    let named: Vec<(String, &str)> =
        commands.iter().map(|(name, text)| (format!("{FOLDER}/cmd/{name}"), text.as_str())).collect();
    // Longer names than a ustar header's first field holds are split, as Go's tar writes them.
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in &named {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_commands(commands: &Commands) -> RawNode {
    let file = written(&packed(commands));
    assert!(is_bugtool(file.path()).unwrap());
    read(file.path()).unwrap()
}

#[derive(Deserialize)]
struct Expected {
    probes: Option<Vec<Probe>>,
}

#[derive(Deserialize)]
struct Probe {
    from_ip: Option<String>,
    from_port: Option<u16>,
    to: Option<String>,
    port: Option<u16>,
    proto: Option<String>,
}

fn questions(scenario: &Path) -> Vec<Question> {
    let text = std::fs::read_to_string(scenario.join("expected.json")).unwrap();
    let probes = serde_json::from_str::<Expected>(&text).unwrap().probes.unwrap_or_default();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let question = |probe: Probe| {
        Some(Question::new(Tuple {
            saddr: address(probe.from_ip.as_deref().unwrap_or("10.224.0.4")),
            sport: probe.from_port.unwrap_or(0),
            daddr: address(&probe.to?),
            dport: probe.port?,
            protocol: Protocol::parse(&probe.proto?)?,
        }))
    };
    probes.into_iter().filter_map(question).collect()
}

/// Every recorded probe's answer from the archive: the folder's, or inconclusive. How many of each there were.
fn compared(change: impl Fn(&mut Commands)) -> (usize, usize) {
    let (mut same, mut open) = (0, 0);
    for recording in ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"] {
        for scenario in fixtures::scenarios(recording) {
            let mut files = commands(&scenario.path, "cilium");
            change(&mut files);
            let (whole, archived) =
                (assemble(&folder::read(&scenario.path).unwrap()), assemble(&read_commands(&files)));
            for question in questions(&scenario.path) {
                let (a, b) = (explain(&whole, &question), explain(&archived, &question));
                match (&a.verdict, &b.verdict) {
                    (a, b) if a == b => same += 1,
                    (_, Verdict::Inconclusive(_)) => {
                        assert!(!archived.missing.is_empty());
                        open += 1;
                    }
                    (a, b) => panic!(
                        "{recording}/{} {question:?}: the folder says {a:?}, the archive {b:?}; missing {:#?}",
                        scenario.name, archived.missing
                    ),
                }
            }
        }
    }
    (same, open)
}

#[test]
fn every_answer_is_the_folder_s() {
    assert_eq!(compared(|_| {}), (516, 0));
}

#[test]
fn without_bpftool_nothing_else_is_said() {
    let (same, open) = compared(|files| files.retain(|name, _| !name.starts_with("bpftool-")));
    assert_eq!(same + open, 516);
    assert!(open > 0, "services are not to be had then");
}

#[test]
fn whatever_is_taken_away_nothing_else_is_said() {
    let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
    let all = commands(&scenario, "cilium");
    let whole = assemble(&folder::read(&scenario).unwrap());
    for gone in all.keys() {
        let mut files = all.clone();
        files.remove(gone);
        let node = assemble(&read_commands(&files));
        for question in questions(&scenario) {
            let (a, b) = (explain(&whole, &question).verdict, explain(&node, &question).verdict);
            assert!(a == b || matches!(b, Verdict::Inconclusive(_)), "without {gone}: {a:?} and {b:?}");
        }
    }
}

#[test]
fn the_same_node_whichever_way_it_is_written() {
    let scenario = fixtures::recording("cilium-1.16").join("port-range");
    let plain = read_commands(&commands(&scenario, "cilium"));
    let renamed = commands(&scenario, "cilium-dbg");
    let fenced: Commands = renamed
        .iter()
        .map(|(name, text)| {
            let is_output = name.strip_suffix(".md").is_some() && !text.contains(FAILED);
            (name.clone(), if is_output { format!("# {name}\n\n```\n{text}\n```\n") } else { text.clone() })
        })
        .collect();
    for files in [renamed, fenced] {
        let node = read_commands(&files);
        assert_eq!((&node.maps, &node.rest), (&plain.maps, &plain.rest));
        assert_eq!(node.missing, plain.missing);
        let file = written(&gzipped(&packed(&files)));
        assert!(is_bugtool(file.path()).unwrap());
        assert_eq!(read(file.path()).unwrap().maps, plain.maps);
    }
    // The policy map's own bytes, but for what the table does not print.
    let recorded = folder::read(&scenario).unwrap();
    let pin = "cilium_policy_00053";
    assert_eq!(plain.maps[pin].entries.len(), recorded.maps[pin].entries.len());
    let keys =
        |node: &RawNode| node.maps[pin].entries.iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>();
    assert_eq!(keys(&plain), keys(&recorded));
    let mut backends = plain.maps["cilium_lb4_backends_v3"].entries.iter();
    assert!(backends.all(|(id, _)| {
        recorded.maps["cilium_lb4_backends_v3"].entries.iter().any(|(known, _)| known == id)
    }));
}

#[test]
fn what_the_tables_lack_is_said() {
    let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
    let missing = |change: &dyn Fn(&mut Commands), what: &str| {
        let mut files = commands(&scenario, "cilium");
        change(&mut files);
        let node = read_commands(&files);
        let found = node.missing.iter().find(|missing| missing.what == what);
        found.unwrap_or_else(|| panic!("{what} in {:#?}", node.missing)).why.clone()
    };
    let policy = name("cilium bpf policy get --all --numeric");
    let replaced = |from: &'static str, to: &'static str| {
        let policy = policy.clone();
        move |files: &mut Commands| {
            let text = files.get_mut(&policy).unwrap();
            assert!(text.contains(from));
            *text = text.replace(from, to);
        }
    };
    let version = |to: &'static str| {
        move |files: &mut Commands| {
            for text in files.values_mut() {
                *text = text.replace("1.14.0-dev", to);
            }
        }
    };
    let pin = "cilium_policy_02686";
    assert!(missing(&version("1.18.2"), pin).contains("does not print what its lookup decides by"));
    assert!(missing(&version("1.17.2"), pin).contains("whose begin with `cilium_policy_v2_`"));
    assert!(missing(&version("abc"), pin).contains("does not say Cilium's version"));
    assert!(missing(&replaced("16777218", "cidr:x  "), pin).contains("found IDENTITY `cidr:x`"));
    assert!(
        missing(&replaced("80/TCP ", "80-82/TCP"), pin)
            .contains("found PORT/PROTO `80-82/TCP`, and PREFIX 24")
    );
    assert!(missing(&replaced("PREFIX", "SUFFIX"), pin).contains("found no column PREFIX"));
    let dump = name("bpftool map dump pinned /sys/fs/bpf/tc/globals/cilium_ct4_global");
    let with = |text: &'static str| {
        let dump = dump.clone();
        move |files: &mut Commands| drop(files.insert(dump.clone(), text.to_owned()))
    };
    let ct = "cilium_ct4_global";
    assert!(missing(&with("key: 01 02"), ct).contains("it is truncated"));
    assert!(missing(&with("key: 01  value: 02\nFound 2 elements\n"), ct).contains("says it has 2"));
    assert!(missing(&with("[{\"key\": 1}]"), ct).contains("expected `key: … value: …` in hex"));
    assert!(missing(&with("key:\n01\nvalue (CPU 00): 02\nFound 1 element\n"), ct).contains("value (CPU 00)"));
    let node = read_commands(&commands(&scenario, "cilium"));
    assert!(node.missing.iter().any(|missing| missing.what == "nftables"), "{:?}", node.missing);
}

#[test]
fn archives_that_are_refused() {
    let output = format!("{FOLDER}/cmd/ip-a.md");
    let error = |bytes: &[u8]| format!("{:#}", read(written(bytes).path()).unwrap_err());
    for bad in [format!("../{output}"), format!("/{output}"), format!("{FOLDER}/cmd/../../x.md")] {
        let bytes = tar_of([(output.as_str(), &b"x"[..]), (bad.as_str(), b"x")]);
        let error = error(&bytes);
        assert!(error.contains("which leads out of it"), "{bad}: {error}");
    }
    let other = "cilium-bugtool-other/cmd/ip-a.md";
    assert!(error(&tar_of([(output.as_str(), &b"x"[..]), (other, b"y")])).contains("holds several nodes"));
    assert!(error(&tar_of([("x/y.md", &b"x"[..])])).contains("has no outputs of commands"));
    assert!(error(b"no archive at all").contains("is no tar archive"));
    assert!(!is_bugtool(written(b"no archive at all").path()).unwrap());
    assert!(!is_bugtool(written(b"").path()).unwrap());
    assert!(!is_bugtool(written(&tar_of([("x/cmd/y.md", &b"x"[..])])).path()).unwrap());
    let whole = packed(&commands(&fixtures::recording("cilium-1.14").join("none"), "cilium"));
    let cut = &whole[..whole.len() / 2 + 100];
    assert!(is_bugtool(written(cut).path()).unwrap());
    assert!(error(cut).contains("is it truncated?"), "{}", error(cut));
    let zipped = gzipped(&whole);
    assert!(error(&zipped[..zipped.len() / 2]).contains("is it truncated?"));
    // A file that says it is larger than it is, and than any may be.
    let mut huge = tar_of([(output.as_str(), &b"x"[..])]);
    huge[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = huge[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(error(&huge).contains("bytes, at most"), "{}", error(&huge));
}

#[test]
fn a_bomb_is_not_unpacked() {
    let zeros = vec![0; 8 << 20];
    let bomb =
        gzipped(&tar_of([("cilium-bugtool-x/cmd/a.md", &b"x"[..]), ("cilium-bugtool-x/other", &zeros)]));
    assert!(bomb.len() < zeros.len() / 100, "{} bytes", bomb.len());
    let file = written(&bomb);
    assert!(archive::read_at_most(file.path(), 16 << 20).is_ok());
    let error = format!("{:#}", archive::read_at_most(file.path(), 1 << 20).unwrap_err());
    assert!(error.contains("unpacks to more than 1048576 bytes"), "{error}");
}
