//! What a snapshot answers, against what it was taken of: every recorded scenario, every command.

use std::path::Path;
use std::process::Command;

use expect_test::{Expect, expect};
use probe_model::explain::{advise, explain};
use probe_model::simulate::Question;
use probe_model::tuple::{Protocol, Tuple};
use probe_user::render;
use probe_user::render::dump::Dump;
use probe_user::sources::raw::RawNode;
use probe_user::sources::snapshot::{Circumstances, Packed};
use probe_user::sources::{From, LiveOptions, assemble, folder};

const RECORDINGS: [&str; 3] = ["cilium-1.14", "cilium-1.14-tunnel-kubeproxy", "cilium-1.16"];

fn circumstances() -> Circumstances {
    Circumstances {
        began: "2026-11-25T14:59:59Z".to_owned(),
        ended: "2026-11-25T15:00:00Z".to_owned(),
        ..Circumstances::default()
    }
}

/// Writes a snapshot of a recorded scenario to `path`: what answers call it.
fn pack(recorded: &RawNode, path: &Path) -> String {
    let packed = Packed::new(recorded, circumstances()).expect("a node that fits");
    packed.write(std::fs::File::create(path).expect("a file")).expect("a snapshot");
    packed.origin()
}

/// The recorded probes as questions.
fn questions(scenario: &fixtures::Scenario) -> Vec<Question> {
    let text = std::fs::read_to_string(scenario.path.join("expected.json")).expect("expected.json");
    let expected: serde_json::Value = serde_json::from_str(&text).expect("expected.json");
    let question = |probe: &serde_json::Value| {
        let address = |field: &str| probe[field].as_str()?.parse().ok();
        Some(Question::new(Tuple {
            saddr: address("from_ip").unwrap_or(std::net::Ipv4Addr::new(10, 224, 0, 4).into()),
            sport: probe["from_port"].as_u64().unwrap_or(0) as u16,
            daddr: address("to")?,
            dport: probe["port"].as_u64()? as u16,
            protocol: Protocol::parse(probe["proto"].as_str()?)?,
        }))
    };
    expected["probes"].as_array().into_iter().flatten().filter_map(question).collect()
}

/// Every answer to `questions` and every dump, as text and as JSON.
fn answers(node: &RawNode, questions: &[Question]) -> Vec<String> {
    let world = assemble::assemble(node);
    let mut answers = Vec::new();
    let mut add = |write: &mut dyn FnMut(&mut Vec<u8>) -> std::io::Result<()>| {
        let mut bytes = Vec::new();
        write(&mut bytes).expect("writing to memory");
        answers.push(String::from_utf8(bytes).expect("UTF-8"));
    };
    for question in questions {
        let explanation = explain(&world, question);
        let advice = Some(advise(&world, &explanation));
        add(&mut |out| render::explanation::text(&world, &explanation, advice.as_ref(), out));
        add(&mut |out| render::explanation::json(&world, &explanation, advice.as_ref(), out));
    }
    let dumps: [anyhow::Result<Dump>; 14] = [
        render::dump::policy(&world, None),
        render::dump::ipcache(&world),
        render::dump::endpoints(&world, None),
        render::dump::services(&world),
        render::dump::conntrack(&world),
        render::dump::nat(node),
        render::dump::metrics(node),
        render::dump::policystats(&world, None),
        render::dump::node(node),
        render::dump::tunnel(node),
        render::dump::auth(node),
        render::dump::affinity(node, &world),
        render::dump::fragments(node),
        render::dump::source_ranges(node, &world),
    ];
    for dump in dumps {
        match dump {
            Ok(dump) => {
                add(&mut |out| dump.text(out));
                add(&mut |out| dump.json(out));
            }
            // Why it cannot be shown must be the same, too.
            Err(error) => add(&mut |out| std::io::Write::write_all(out, format!("{error:#}").as_bytes())),
        }
    }
    answers
}

#[test]
fn a_snapshot_answers_as_what_it_was_taken_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut compared, mut bytes) = (0, 0);
    for recording in RECORDINGS {
        for scenario in fixtures::scenarios(recording) {
            let at = format!("{recording}/{}", scenario.name);
            let recorded = folder::read(&scenario.path).expect("a readable recording");
            let path = folder.path().join("node.snap");
            let origin = pack(&recorded, &path);
            bytes += path.metadata().expect("a file").len();
            let found = probe_user::sources::raw(&From::Path(path), &LiveOptions::default()).expect(&at);
            assert_eq!(found.origin, origin, "{at}");
            let questions = questions(&scenario);
            let expected = answers(&recorded, &questions);
            for (ours, theirs) in answers(&found, &questions).iter().zip(&expected) {
                assert_eq!(*ours, theirs.replace(&recorded.origin, &origin), "{at}");
                compared += 1;
            }
        }
    }
    // 516 questions and up to 14 dumps of 28 scenarios, each in two forms.
    assert_eq!(compared, 1742, "answers");
    assert!(bytes < 28 * 65_536, "{bytes} bytes");
}

/// Where the file lies and what it is called does not show in an answer.
#[test]
fn an_answer_is_the_same_wherever_the_file_lies() {
    let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
    let recorded = folder::read(&scenario).expect("a readable recording");
    let folder = tempfile::tempdir().expect("a folder");
    let said: Vec<_> = ["a.snap", "deeper.tar.gz"]
        .map(|name| {
            let path = folder.path().join(name);
            pack(&recorded, &path);
            run(&["explain", "--src", "10.224.0.8", "--dst", "pls-app:80", "--from"], &path)
        })
        .into();
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0, 0, "{}", said[0].1);
}

fn run(args: &[&str], path: &Path) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_plsprobe")).args(args).arg(path).output().expect("plsprobe runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("UTF-8").replace(&path.display().to_string(), "FILE");
    (output.status.code().expect("an exit code"), text)
}

#[track_caller]
fn check(args: &str, path: &Path, code: i32, expected: &Expect) {
    let (found, text) = run(&args.split(' ').collect::<Vec<_>>(), path);
    // The digest covers the version, which changes.
    let text = text.split("snapshot ").enumerate().map(|(idx, part)| match part.split_at_checked(12) {
        Some((digest, rest)) if idx > 0 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            format!("DIGEST{rest}")
        }
        _ => part.to_owned(),
    });
    expected.assert_eq(&text.collect::<Vec<_>>().join("snapshot "));
    assert_eq!(found, code, "exit code");
}

/// What is taken out of the recordings' answers: nothing else looks like a secret.
#[test]
fn what_is_taken_out_of_the_recordings() {
    let mut removed = std::collections::BTreeMap::new();
    for recording in RECORDINGS {
        for scenario in fixtures::scenarios(recording) {
            let recorded = folder::read(&scenario.path).expect("a readable recording");
            let packed = Packed::new(&recorded, circumstances()).expect("a node that fits");
            for (name, count) in &packed.manifest().removed {
                *removed.entry(name.clone()).or_insert(0) += count;
            }
        }
    }
    expect![[r#"
        {
            "AgentNotReadyNodeTaintKey": 28,
            "etcd.address": 56,
            "type": 28,
        }
    "#]]
    .assert_debug_eq(&removed);
}

#[test]
fn explain_from_a_file() {
    let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.snap");
    pack(&folder::read(&scenario).expect("a readable recording"), &path);
    check(
        "explain --src 10.224.0.8 --dst pls-app:80 --from",
        &path,
        0,
        &expect![[r#"
        10.224.0.8 -> 10.0.0.143:80 TCP: allowed
          cause    NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          path     in by eth0 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > into the pod
          identity 10.224.0.8 is 16777218 (cidr:10.224.0.8/32): ipcache 10.224.0.8/32
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
          rests on the maps of snapshot DIGEST of 2026-11-25T15:00:00Z, Cilium 1.14.0-dev; no packet was observed
    "#]],
    );
    check(
        "dump endpoints --from",
        &path,
        0,
        &expect![[r#"
        IP ADDRESS     LOCAL ENDPOINT INFO                                                                              NAME
        10.0.0.81:0    (localhost)
        10.0.0.143:0   id=2686  sec_id=63921 flags=0x0000 ifindex=5   mac=46:B6:6F:2E:11:8F nodemac=5A:1D:0C:33:70:01   default/pls-app-7d9c5bd5f4-x2v8q
        10.0.1.124:0   id=340   sec_id=42305 flags=0x0000 ifindex=6   mac=46:B6:6F:2E:11:7C nodemac=5A:1D:0C:33:70:02   default/my-nginx-684dd4dcd4-9p6rw
        10.224.0.4:0   (localhost)
    "#]],
    );
}

#[test]
fn files_that_are_no_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node.snap");
    let refused = |bytes: &[u8], expected: Expect| {
        std::fs::write(&path, bytes).expect("a file");
        check("dump policy --from", &path, 2, &expected);
    };
    refused(
        b"",
        expect![[r#"
        plsprobe: `FILE` is empty; expected a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/
    "#]],
    );
    refused(
        b"hello",
        expect![[r#"
        plsprobe: `FILE` is no snapshot; expected a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/
    "#]],
    );
    let recorded = folder::read(&fixtures::recording("cilium-1.14").join("none")).expect("a recording");
    let packed = Packed::new(&recorded, circumstances()).expect("a node that fits");
    let mut whole = Vec::new();
    packed.write(&mut whole).expect("a snapshot");
    refused(
        &whole[..whole.len() - 1],
        expect![[r#"
        plsprobe: failed to read snapshot `FILE`: failed to read the file after its last part; is it whole?: incomplete frame
    "#]],
    );
    check(
        "dump policy --from",
        Path::new("/dev/null"),
        2,
        &expect![[r#"
        plsprobe: `FILE` is neither a plain file nor a folder; expected a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/
    "#]],
    );
    check(
        "dump policy --from",
        &folder.path().join("nothing"),
        2,
        &expect![[r#"
            plsprobe: failed to look for `FILE`; expected a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/: No such file or directory (os error 2)
        "#]],
    );
}

#[test]
fn snapshot_refuses_before_it_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("there");
    std::fs::write(&path, "x").expect("a file");
    check(
        "snapshot",
        &path,
        2,
        &expect![[r#"
        plsprobe: `FILE` is there already; give another name, or `--force` to replace it
    "#]],
    );
    check(
        "snapshot --force",
        folder.path(),
        2,
        &expect![[r#"
        plsprobe: `FILE` is there and is no plain file; give another name
    "#]],
    );
    check(
        "snapshot",
        Path::new("-"),
        2,
        &expect![[r#"
            plsprobe: a snapshot goes to a file, so that it is there whole or not at all, not to standard output; give a file and `cat` it
        "#]],
    );
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), "x");
}
