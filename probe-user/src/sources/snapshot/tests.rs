use std::{
    io::{Cursor, Read as _},
    net::Ipv4Addr,
};

use probe_model::cilium::{entries::Entries, layout::Member, runtime_config::UTime};
use tar::EntryType;

use super::*;
use crate::sources::{
    raw::{Link, Network, Program, RawMap, Route},
    testing::Random,
};

/// A file in the archive: name, type, bytes.
type Raw = (String, EntryType, Vec<u8>);

fn circumstances() -> Circumstances {
    Circumstances {
        began: "2026-11-25T14:59:59Z".to_owned(),
        ended: "2026-11-25T15:00:00Z".to_owned(),
        monotonic_ns: 1,
        kernel: "6.8.0".to_owned(),
        architecture: "x86_64".to_owned(),
    }
}

fn map(key_size: u32, value_size: u32, cpus: usize, count: usize) -> RawMap {
    let (mut random, stored) = (Random(7), value_size as usize * cpus);
    let entries = (0..count).map(|_| (random.bytes(key_size as usize), random.bytes(stored)));
    let entries = Entries::collect(entries.collect::<Vec<_>>()).unwrap();
    RawMap { id: 7, map_type: "hash".to_owned(), key_size, value_size, max_entries: 64, entries }
}

/// A node with something of every kind.
fn node() -> RawNode {
    let net = |text: &str| text.parse().unwrap();
    let address = Ipv4Addr::new(10, 224, 0, 1).into();
    let member = Member { name: "deny".to_owned(), bit_offset: 16, bits: Some(1) };
    RawNode {
        origin: "live".to_owned(),
        maps: [
            ("cilium_lxc", map(20, 48, 1, 2)),
            ("cilium_metrics", map(8, 16, 4, 1)),
            ("cilium_policy_00007", map(12, 24, 1, 0)),
            ("cilium_encrypt_state", map(4, 8, 1, 0)),
        ]
        .map(|(name, map)| (name.to_owned(), map))
        .into(),
        read_at: Some(UTime(3_506_637_791_015_625)),
        programs: [Some(vec![member]), None]
            .map(|policy_entry| Program {
                name: "handle_policy".to_owned(),
                map_ids: vec![7, 8],
                policy_entry,
            })
            .into_iter()
            .zip([90, 100])
            .map(|(program, id)| (id, program))
            .collect(),
        rest: [("healthz", r#"{"cilium":{"msg":"1.14.4  x"}}"#), ("policy-selectors", " [ ]\n")]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into(),
        iptables_save: Some("*nat\nCOMMIT\n".to_owned()),
        nft_ruleset: Some("{\"nftables\": []}\n".to_owned()),
        kubernetes: [
            ("asked", "\"the pod's service account\""),
            ("networkpolicies", r#"[{"metadata": {"name": "a"}}]"#),
            ("policy-files", "[]"),
            (
                "services",
                r#"[{"metadata": {"annotations": {"service.beta.kubernetes.io/azure-pls-create": "true"}}}]"#,
            ),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into(),
        azure: [
            ("declared", r#"{"nat_ips":["10.224.0.8/32"]}"#),
            ("load-balancers", r#"[{"id": "/subscriptions/S0123456789abcdefghijklmnopqrstuvwxyz"}]"#),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into(),
        network: Some(Network {
            links: vec![Link { name: "eth0".to_owned(), ifindex: 2, addresses: vec![net("10.224.0.4/16")] }],
            routes: vec![Route {
                destination: net("0.0.0.0/0"),
                via: Some(address),
                dev: "eth0".to_owned(),
                src: None,
                metric: 100,
            }],
        }),
        unread: Vec::new(),
        missing: vec![Missing { what: "/v1/ip".to_owned(), why: "status 503".to_owned() }],
    }
}

fn packed(node: &RawNode) -> Packed {
    Packed::new(node, circumstances()).unwrap()
}

fn bytes(packed: &Packed) -> Vec<u8> {
    let mut bytes = Vec::new();
    packed.write(&mut bytes).unwrap();
    bytes
}

/// The archive's files, the manifest first.
fn files(packed: &Packed) -> Vec<Raw> {
    let manifest = (manifest::NAME.to_owned(), EntryType::Regular, packed.encoded.clone());
    let parts = packed.parts.iter().map(|part| (part.name.clone(), EntryType::Regular, part.bytes.to_vec()));
    std::iter::once(manifest).chain(parts).collect()
}

/// The same files with another manifest, whose digest fits.
fn with_manifest(packed: &Packed, change: impl FnOnce(&mut Manifest)) -> Vec<Raw> {
    let (mut files, mut manifest) = (files(packed), packed.manifest.clone());
    change(&mut manifest);
    files[0].2 = manifest.encode().unwrap().0;
    files
}

/// A tar of these files, whatever their names and types, not yet compressed.
fn tar_of(files: &[Raw]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn read_tar(tar: &[u8]) -> Result<RawNode, String> {
    read_bytes(&zstd::encode_all(tar, 1).unwrap())
}

fn read_files(files: &[Raw]) -> Result<RawNode, String> {
    read_tar(&tar_of(files))
}

fn read_bytes(bytes: &[u8]) -> Result<RawNode, String> {
    read_from(Cursor::new(bytes)).map_err(|error| format!("{error:#}"))
}

#[track_caller]
fn refused(found: Result<RawNode, String>, expected: &str) {
    let error = found.expect_err(expected);
    assert!(error.contains(expected), "found `{error}`, expected `{expected}`");
}

#[track_caller]
fn same(found: &RawNode, expected: &RawNode) {
    assert_eq!(found.maps, expected.maps);
    assert_eq!(found.programs, expected.programs);
    assert_eq!(found.rest, expected.rest);
    assert_eq!(found.iptables_save, expected.iptables_save);
    assert_eq!(found.nft_ruleset, expected.nft_ruleset);
    assert_eq!(found.network, expected.network);
    assert_eq!(found.missing, expected.missing);
}

#[test]
fn what_goes_in_comes_out() {
    let packed = packed(&node());
    let found = read_bytes(&bytes(&packed)).unwrap();
    same(&found, &node());
    assert_eq!(found.origin, packed.origin());
    assert_eq!(found.origin, format!("snapshot {} of 2026-11-25T15:00:00Z", &packed.digest[..12]));
    let Manifest { cilium, maps, removed, .. } = packed.manifest();
    assert_eq!((cilium.as_deref(), removed.len()), (Some("1.14.4"), 0));
    assert_eq!(maps["cilium_policy_00007"].layout.as_deref(), Some("1.14.0–1.16.3"));
    assert_eq!(maps["cilium_encrypt_state"].entries, None);
    same(&read_files(&files(&packed)).unwrap(), &node());
    same(&read_bytes(&bytes(&super::tests::packed(&RawNode::default()))).unwrap(), &RawNode::default());
}

#[test]
fn only_what_some_command_reads_is_stored() {
    let mut node = node();
    let secret = [0xa5; 16];
    let encrypt = Entries::collect([(&[1; 4][..], &secret[..])]).unwrap();
    for name in ["cilium_encrypt_state", "cilium_unknown", "cilium_lb4_maglev"] {
        node.maps
            .insert(name.to_owned(), RawMap { entries: encrypt.clone(), value_size: 16, ..map(4, 8, 1, 0) });
    }
    // What is known of programs is known through their slots.
    node.maps.insert("cilium_call_policy".to_owned(), map(4, 4, 1, 2));
    node.rest.insert("debuginfo".to_owned(), "\"a5a5a5a5\"".to_owned());
    let bytes = zstd::decode_all(&bytes(&packed(&node))[..]).unwrap();
    assert!(!bytes.windows(16).any(|window| window == secret));
    assert!(!bytes.windows(8).any(|window| window == b"a5a5a5a5"));
    let found = read_tar(&bytes).unwrap();
    assert_eq!(found.maps["cilium_call_policy"], map(4, 4, 1, 2));
    for name in ["cilium_encrypt_state", "cilium_unknown", "cilium_lb4_maglev"] {
        let facts = RawMap { entries: Entries::default(), ..node.maps[name].clone() };
        assert_eq!(found.maps[name], facts);
    }
    assert_eq!(found.rest.keys().collect::<Vec<_>>(), ["healthz", "policy-selectors"]);
}

/// Secrets in many shapes, none of which may be found again.
#[test]
fn planted_secrets_stay_at_home() {
    const SECRET: &str = "hunter2";
    let escaped = |value: serde_json::Value| value.to_string();
    let config = serde_json::json!({ "status": {
        "daemonConfigurationMap": {
            "RoutingMode": "native", "KVStoreOpt": { "etcd.config": SECRET }, "HubbleToken": SECRET,
            "Proxy": format!("http://user:{SECRET}@proxy:3128"), "IPSecKey": SECRET, "Args": [format!("--password={SECRET}")],
        },
        "kvstoreConfiguration": { "type": "etcd", "options": { "etcd.address": SECRET } },
        "environment": { "HTTP_PROXY": SECRET }, "ready": true,
    } });
    let rule = serde_json::json!([{
        "endpointSelector": { "matchLabels": { "any:token": "kept" } },
        "annotations": { "note": SECRET },
        "ingress": [{ "toPorts": [{ "rules": { "http": [
            { "headers": [format!("Authorization: Bearer {SECRET}")],
              "headerMatches": [{ "name": "X-Api-Key", "value": SECRET }, { "value": SECRET, "name": "Cookie" }] },
        ] }, "terminatingTLS": { "privateKey": SECRET, "certificate": format!("-----BEGIN CERTIFICATE-----{SECRET}") } }] }],
    }]);
    let endpoint = serde_json::json!([{ "id": 7, "status": {
        "log": [{ "message": format!("login with token={SECRET}") }, { "message": format!("connect amqp://a:{SECRET}@b") }],
        "policy": { "realized": { "l4": { "ingress": [{ "rule": escaped(serde_json::json!({
            "port": 80, "protocol": "TCP", "l7-rules": [{ "sel": { "secret": { "name": SECRET } } }],
        })) }] } } },
        "controllers": [{ "status": { "last-failure-msg": format!("Server=x;Password={SECRET};") } }],
    } }]);
    let mut node = node();
    for (name, value) in [("config", config), ("endpoint", endpoint)] {
        node.rest.insert(name.to_owned(), escaped(value));
    }
    node.rest.insert("policy".to_owned(), escaped(serde_json::json!({ "policy": escaped(rule) })));
    node.missing.push(Missing { what: "/v1/ip".to_owned(), why: format!("status 401: token: {SECRET}") });
    let planted = node.rest.values().map(|text| text.matches(SECRET).count()).sum::<usize>() as u64 + 1;

    let packed = packed(&node);
    let stored = zstd::decode_all(&bytes(&packed)[..]).unwrap();
    assert!(!stored.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    // Besides the planted ones: the store's type, which is under its name.
    assert_eq!(packed.manifest.removed.values().sum::<u64>(), planted + 1, "{:?}", packed.manifest.removed);
    let found = read_tar(&stored).unwrap();
    assert!(found.rest["policy"].contains("any:token") && found.rest["policy"].contains("kept"));
    let world = assemble::assemble(&found);
    assert_eq!(world.endpoints.len(), 1, "{:?}", world.missing);
    assert_eq!(world.rules.unwrap().policies.len(), 1);
    assert_eq!(world.config.routing, probe_model::world::RoutingMode::Native);
}

#[test]
fn an_answer_that_is_no_json_is_left_out() {
    let mut node = node();
    node.rest.insert("policy".to_owned(), r#"{"password":"hunter2"#.to_owned());
    let found = read_bytes(&bytes(&packed(&node))).unwrap();
    let missing = found.missing.last().unwrap();
    assert_eq!(missing.what, "rest/policy");
    assert!(
        missing.why.ends_with("so that secrets in it cannot be told; it is not in the snapshot"),
        "{missing}"
    );
    assert!(!found.rest.contains_key("policy"));
}

#[test]
fn every_cut_is_found() {
    let whole = bytes(&packed(&node()));
    for end in 0..whole.len() {
        let error = read_bytes(&whole[..end]).expect_err("cut");
        assert!(!error.is_empty(), "{end}");
    }
    // Longer, too.
    refused(read_bytes(&[&whole[..], &[0]].concat()), "there is something after the end of the zstd frame");
    refused(read_bytes(&[&whole[..], &whole].concat()), "there is something after the end of the zstd frame");
    // A tar that ends early in a frame that is whole.
    let tar = zstd::decode_all(&whole[..]).unwrap();
    assert_eq!(tar.len() % 512, 0);
    for end in (0..tar.len()).step_by(64) {
        read_tar(&tar[..end]).expect_err("cut");
    }
    refused(read_tar(&[&tar[..], &vec![0; 65536]].concat()), "does not end after its last part");
    refused(read_tar(&[&tar[..], &[1; 512]].concat()), "does not end after its last part");
}

#[test]
fn every_flipped_bit_is_found_or_means_nothing() {
    let whole = bytes(&packed(&node()));
    let tar = zstd::decode_all(&whole[..]).unwrap();
    let mut found = 0;
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match read_bytes(&flipped) {
            Err(_) => found += 1,
            // Some bits have no meaning, or say in another way that the same zeros follow.
            Ok(node) => {
                assert_eq!(zstd::decode_all(&flipped[..]).unwrap(), tar, "bit {bit}");
                same(&node, &super::tests::node());
            }
        }
    }
    assert!(found > 8 * whole.len() * 98 / 100, "{found}");
}

#[test]
fn a_broken_part_is_named() {
    let packed = packed(&node());
    for idx in 0..files(&packed).len() {
        let mut files = files(&packed);
        let name = files[idx].0.clone();
        for at in 0..files[idx].2.len() {
            files[idx].2[at] ^= 0x10;
            refused(read_files(&files), &format!("part `{name}` is broken: "));
            files[idx].2[at] ^= 0x10;
        }
        files[idx].2.push(0);
        let length = files[idx].2.len();
        if idx > 0 {
            let said = length - 1;
            refused(read_files(&files), &format!("part `{name}` has {length} bytes, {said} in the manifest"));
        } else {
            refused(
                read_files(&files),
                "part `manifest.json` is broken: it is no manifest: trailing characters",
            );
        }
    }
}

#[test]
fn parts_that_are_missing_or_too_many() {
    let packed = packed(&node());
    let whole = files(&packed);
    for idx in 1..whole.len() {
        let name = &whole[idx].0;
        let mut files = whole.clone();
        files.remove(idx);
        let expected = match whole.get(idx + 1) {
            Some((next, ..)) => format!("found part `{next}`, which is in another order"),
            None => format!("part `{name}` is missing"),
        };
        refused(read_files(&files), &expected);
        let mut files = whole.clone();
        files.insert(idx, whole[idx].clone());
        let expected = match whole.get(idx + 1) {
            Some((next, ..)) => {
                format!(
                    "found part `{name}`, which is in another order than in the manifest, there twice, or one before it is missing; expected `{next}`"
                )
            }
            None => format!("found part `{name}`, which is not in the manifest or there twice"),
        };
        refused(read_files(&files), &expected);
        let mut files = whole.clone();
        files.insert(idx, ("maps/cilium_other.bin".to_owned(), EntryType::Regular, vec![1]));
        refused(
            read_files(&files),
            &format!("found part `maps/cilium_other.bin`, which is not in the manifest; expected `{name}`"),
        );
    }
    let mut files = whole.clone();
    files.push(("README".to_owned(), EntryType::Regular, Vec::new()));
    refused(read_files(&files), "found part `README`, which is not in the manifest or there twice");
    let mut files = whole.clone();
    files.swap(0, 1);
    refused(read_files(&files), "found part `maps/cilium_lxc.bin` first, expected `manifest.json`");
    refused(read_files(&[]), "part `manifest.json` is missing");
    // A part that the manifest's facts need, but not its list.
    let mut files = with_manifest(&packed, |manifest| drop(manifest.parts.remove(0)));
    files.remove(1);
    refused(read_files(&files), "part `maps/cilium_lxc.bin` is missing");
}

#[test]
fn names_and_types_that_are_not_allowed() {
    let packed = packed(&node());
    for name in
        ["../../etc/passwd", "/etc/passwd", "maps/../../x.bin", "maps/.x.bin", "maps//x", "a\u{1b}[2Jb", ""]
    {
        let mut files = with_manifest(&packed, |manifest| manifest.parts[0].name = name.to_owned());
        files[1].0 = name.to_owned();
        refused(read_files(&files), "expected one such as `maps/cilium_lxc.bin`");
        // Only in the archive.
        let mut files = super::tests::files(&packed);
        files[1].0 = name.to_owned();
        let error = read_files(&files).unwrap_err();
        assert!(error.contains("which is not in the manifest; expected `maps/cilium_lxc.bin`"), "{error}");
        assert!(!error.contains('\u{1b}'));
    }
    let twice = with_manifest(&packed, |manifest| manifest.parts[1].name = "maps/cilium_lxc.bin".to_owned());
    refused(read_files(&twice), "it lists part `maps/cilium_lxc.bin` twice");
    let itself = with_manifest(&packed, |manifest| manifest.parts[1].name = "manifest.json".to_owned());
    refused(read_files(&itself), "it lists part `manifest.json` twice");
    let unknown = with_manifest(&packed, |manifest| manifest.parts[1].name = "nft/rules.txt".to_owned());
    refused(
        read_files(&unknown),
        "it lists part `nft/rules.txt`, which schema plsprobe.snapshot/1.1 does not have",
    );
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Directory,
        EntryType::GNULongName,
        EntryType::XHeader,
    ] {
        for idx in [0, 2] {
            let mut files = super::tests::files(&packed);
            files[idx].1 = kind;
            let expected = format!("part `{}` is of tar type {kind:?}, expected a plain file", files[idx].0);
            refused(read_files(&files), &expected);
        }
    }
}

#[test]
fn lengths_that_lie() {
    let packed = packed(&node());
    let longer = with_manifest(&packed, |manifest| manifest.parts[0].bytes += 1);
    refused(read_files(&longer), "part `maps/cilium_lxc.bin` has 136 bytes, 137 in the manifest");
    let more = with_manifest(&packed, |manifest| {
        manifest.maps.get_mut("cilium_lxc").unwrap().entries = Some(u64::MAX);
    });
    let error =
        "part `maps/cilium_lxc.bin` is broken: found 136 bytes, expected 18446744073709551615 entries";
    refused(read_files(&more), error);
    let none = with_manifest(&packed, |manifest| manifest.maps.get_mut("cilium_lxc").unwrap().entries = None);
    refused(read_files(&none), "is broken: the manifest says that its entries are not stored");
    let unlisted = with_manifest(&packed, |manifest| drop(manifest.maps.remove("cilium_lxc")));
    refused(read_files(&unlisted), "is broken: the manifest has no facts of this map");
    // A header that says more than there is.
    let mut tar = tar_of(&files(&packed)[..1]);
    let mut header = tar::Header::new_ustar();
    header.set_path("maps/cilium_lxc.bin").unwrap();
    header.set_size(136);
    header.set_cksum();
    tar.truncate(tar.len() - 1024);
    tar.extend_from_slice(header.as_bytes());
    refused(read_tar(&tar), "part `maps/cilium_lxc.bin` ends after 0 bytes, expected 136");
}

#[test]
fn what_unpacks_to_too_much() {
    let packed = packed(&node());
    let whole = bytes(&packed);
    let read =
        |limits| read_within(Cursor::new(&whole), limits).map(drop).map_err(|error| format!("{error:#}"));
    let limits = Limits { manifest: 8192, part: 172, total: 65_536 };
    read(limits).unwrap();
    let error = read(Limits { part: 135, ..limits }).unwrap_err();
    assert!(error.contains("part `maps/cilium_lxc.bin` has 136 bytes, the limit is 135"), "{error}");
    let error = read(Limits { manifest: 100, ..limits }).unwrap_err();
    assert!(
        error.contains("part `manifest.json` has ") && error.ends_with("bytes, the limit is 100"),
        "{error}"
    );
    let error = read(Limits { total: 8192, ..limits }).unwrap_err();
    assert!(error.contains("it unpacks to more than 8192 bytes"), "{error}");
    // 300 MiB of zeros in a few kilobytes; what is unpacked ends at the header.
    let length = 300 << 20;
    let mut header = tar::Header::new_ustar();
    header.set_path(manifest::NAME).unwrap();
    header.set_size(length);
    header.set_cksum();
    let bomb = zstd::encode_all(header.as_bytes().chain(std::io::repeat(0).take(length)), 1).unwrap();
    assert!(bomb.len() < 100_000);
    refused(read_bytes(&bomb), "part `manifest.json` has 314572800 bytes, the limit is 4194304");
    // A window that would need more memory than a snapshot may.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    std::io::copy(&mut &tar_of(&files(&packed))[..], &mut encoder).unwrap();
    refused(read_bytes(&encoder.finish().unwrap()), "the zstd frame is damaged or none of plsprobe's");
}

/// What does not fit is missing, never a snapshot that nobody can read.
#[test]
fn what_is_too_large_to_write() {
    let limits = Limits { manifest: 8192, part: 135, total: 65_536 };
    let packed = Packed::within(&node(), circumstances(), limits).unwrap();
    let found = read_within(Cursor::new(bytes(&packed)), limits).unwrap();
    let missing = found.missing.iter().find(|missing| missing.what == "cilium_lxc").unwrap();
    assert_eq!(missing.why, "it has 136 bytes, more than the 135 that a part of a snapshot holds");
    assert!(!found.maps.contains_key("cilium_lxc"), "not taken for empty");
    let error = Packed::within(&node(), circumstances(), Limits { total: 8300, ..limits }).err().unwrap();
    assert!(error.to_string().contains("more than the 108 that a snapshot holds"), "{error}");
}

#[test]
fn manifests_of_other_versions() {
    let packed = packed(&node());
    let newer = with_manifest(&packed, |manifest| {
        manifest.schema = "plsprobe.snapshot/2.0".to_owned();
        manifest.plsprobe = "9.1.0".to_owned();
    });
    refused(
        read_files(&newer),
        "it has schema `plsprobe.snapshot/2.0` of plsprobe 9.1.0, expected `plsprobe.snapshot/1`; read it with plsprobe 9.1.0 or later",
    );
    // Whatever else is in it.
    let mut other = files(&packed);
    other[0].2 = br#"{"schema":"plsprobe.snapshot/2.0","everything":"else"}"#.to_vec();
    refused(read_files(&other), "it has schema `plsprobe.snapshot/2.0`");
    for schema in ["plsprobe.snapshot/0.9", "plsprobe.snapshot/1", "plsprobe.snapshot/x.0", "tar"] {
        let other = with_manifest(&packed, |manifest| schema.clone_into(&mut manifest.schema));
        refused(read_files(&other), &format!("found schema `{schema}`, expected `plsprobe.snapshot/1`"));
    }

    let part = b"table inet x {}";
    let mut files = with_manifest(&packed, |manifest| {
        manifest.schema = "plsprobe.snapshot/1.7".to_owned();
        let (name, sha256) = ("node/nft.txt".to_owned(), manifest::sha256(part));
        manifest.parts.push(PartFacts { name, bytes: part.len() as u64, sha256 });
    });
    files.push(("node/nft.txt".to_owned(), EntryType::Regular, part.to_vec()));
    let found = read_files(&files).unwrap();
    assert_eq!(found.maps, node().maps);
    assert_eq!(
        found.missing.last().unwrap().to_string(),
        format!(
            "`all of the snapshot`: it has schema `plsprobe.snapshot/1.7` of plsprobe {}, read as `plsprobe.snapshot/1.1` \
             without `node/nft.txt`; read it with that version",
            env!("CARGO_PKG_VERSION")
        )
    );
    // It is checked like every other.
    files.last_mut().unwrap().2[0] ^= 1;
    refused(read_files(&files), "part `node/nft.txt` is broken: its SHA-256 is ");

    // Of an older version, which did not store what this one reads.
    let mut files = with_manifest(&packed, |manifest| {
        manifest.maps.get_mut("cilium_lxc").unwrap().entries = None;
        manifest.parts.remove(0);
    });
    files.remove(1);
    let found = read_files(&files).unwrap();
    assert!(!found.maps.contains_key("cilium_lxc"));
    let why = &found.missing.last().unwrap().why;
    assert!(why.starts_with("its entries are not in the snapshot, which plsprobe "), "{why}");
}

#[test]
fn a_manifest_without_its_digest_or_with_nonsense() {
    let packed = packed(&node());
    let with_bytes = |bytes: Vec<u8>| {
        let mut files = files(&packed);
        files[0].2 = bytes;
        read_files(&files)
    };
    let plain = serde_json::to_vec(&packed.manifest).unwrap();
    refused(with_bytes(plain), "it does not end with its digest");
    refused(with_bytes(b"[]".to_vec()), "it is no manifest");
    refused(with_bytes(Vec::new()), "it is no manifest");
    refused(with_bytes(vec![0xff; 100]), "it is no manifest");
    for time in ["yesterday", "2026-11-25T15:00:00Z\u{1b}[2J"] {
        let files = with_manifest(&packed, |manifest| time.clone_into(&mut manifest.circumstances.ended));
        refused(read_files(&files), "expected one such as `2026-11-25T15:00:00Z`");
    }
    let files = with_manifest(&packed, |manifest| manifest.missing[0].why.push('\u{1b}'));
    refused(read_files(&files), "found control characters in what is missing: `/v1/ip`");
    let files = with_manifest(&packed, |manifest| {
        let facts = manifest.maps["cilium_lxc"].clone();
        manifest.maps.insert("cilium_policy_\u{1b}".to_owned(), facts);
    });
    refused(read_files(&files), "is no map's name");
    let files = with_manifest(&packed, |manifest| manifest.parts[0].sha256 = "é".repeat(32));
    refused(read_files(&files), "it has no SHA-256 of part `maps/cilium_lxc.bin`");
}

#[test]
fn what_is_no_archive() {
    for noise in
        [&b"\x28\xb5\x2f\xfd"[..], b"\x28\xb5\x2f\xfdnonsense", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0, 0, 0]]
    {
        read_bytes(noise).expect_err("noise");
    }
    refused(read_tar(b"no tar"), "failed to read the file at part `manifest.json`");
    refused(read_tar(&[7; 4096]), "failed to read the file at part `manifest.json`");
    let mut random = Random(11);
    for _ in 0..200 {
        let noise = random.bytes(300);
        read_tar(&noise).expect_err("noise");
        read_bytes(&[&archive::MAGIC[..], &noise].concat()).expect_err("noise");
    }
}

mod files {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use rustix::{
        mount::{MountFlags, MountPropagationFlags, mount, mount_change},
        thread::{UnshareFlags, unshare_unsafe},
    };

    use super::*;

    /// Names in a folder, hidden ones too.
    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn write(path: &Path, force: bool, text: &str) -> Result<u64, String> {
        let fill = |out: &mut dyn Write| Ok(out.write_all(text.as_bytes())?);
        file::write(path, force, fill).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.snap");
        assert_eq!(write(&path, false, "text"), Ok(4));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["node.snap"]);
    }

    #[test]
    fn what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.snap");
        write(&path, false, "old").unwrap();
        let error = write(&path, false, "new").unwrap_err();
        assert!(
            error.ends_with("is there already; give another name, or `--force` to replace it"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        write(&path, true, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        // What came while it was written.
        let late = folder.path().join("late");
        let error = file::write(&late, false, |_| Ok(std::fs::write(&late, "theirs")?)).unwrap_err();
        assert!(error.to_string().starts_with("failed to give the snapshot its name"), "{error:#}");
        assert_eq!(std::fs::read_to_string(&late).unwrap(), "theirs");
        let link = folder.path().join("link");
        symlink("/nowhere", &link).unwrap();
        for force in [false, true] {
            for path in [folder.path(), Path::new("/dev/null"), &link] {
                let error = write(path, force, "x").unwrap_err();
                assert!(error.ends_with("is there and is no plain file; give another name"), "{error}");
            }
            for path in ["-", "", "/", "..", "/nowhere/x"] {
                write(Path::new(path), force, "x").unwrap_err();
            }
        }
        let mut names = names(folder.path());
        names.sort();
        assert_eq!(names, ["late", "link", "node.snap"]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.snap");
        let fail = |out: &mut dyn Write| {
            out.write_all(&vec![1; 1 << 20])?;
            anyhow::bail!("no more")
        };
        let error = file::write(&path, false, fail).unwrap_err();
        assert!(format!("{error:#}").ends_with("node.snap`: no more"), "{error:#}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_full_disk_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // SAFETY: only this thread's mounts and working directory are unshared, no file descriptors.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
            return fixtures::skip!("cannot mount here: {error}");
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
        let path = folder.path().join("node.snap");
        let error = file::write(&path, false, |out| Ok(out.write_all(&vec![1; 1 << 20])?)).unwrap_err();
        assert!(format!("{error:#}").contains("No space left on device"), "{error:#}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
        assert_eq!(write(&path, false, "fits"), Ok(4));
    }

    /// A signal that comes while the file is written: nothing is left, and then the process ends by it.
    #[test]
    fn a_signal_leaves_nothing() {
        use std::os::unix::process::ExitStatusExt as _;
        const FOLDER: &str = "PLSPROBE_TEST_SIGNAL_FOLDER";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = Path::new(&folder).join("node.snap");
            let fill = |out: &mut dyn Write| {
                out.write_all(&vec![1; 1 << 20])?;
                // Of this thread alone: the test harness has others, which would take it.
                crate::sys::signal_this_thread(libc::SIGTERM);
                Ok(out.write_all(&vec![1; 1 << 20])?)
            };
            drop(file::write(&path, false, fill));
            panic!("the signal did not come");
        }
        let folder = tempfile::tempdir().unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sources::snapshot::tests::files::a_signal_leaves_nothing"])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGTERM), "{child:?}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
