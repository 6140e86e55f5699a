//! Policies from files and what the operator says of NAT IPs, as the binary takes them.

use std::path::PathBuf;
use std::process::Command;

use expect_test::{Expect, expect};

/// Runs plsprobe with these arguments on a recording; FOLDER in them, and in what it prints, stands for a folder of the
/// test's own with these files.
#[track_caller]
fn check(files: &[(&str, &str)], args: &str, code: i32, expected: &Expect) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    let name = folder.path().display().to_string();
    let recording: PathBuf = fixtures::recording("cilium-1.14").join("none");
    let mut command = Command::new(env!("CARGO_BIN_EXE_plsprobe"));
    command.args(args.split(' ').map(|arg| arg.replace("FOLDER", &name)));
    let output = command.arg("--from").arg(&recording).output().expect("plsprobe runs");
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).replace(&name, "FOLDER");
        text.replace(&recording.display().to_string(), "RECORDING")
    };
    expected.assert_eq(&format!("{}{}", text(&output.stdout), text(&output.stderr)));
    assert_eq!(output.status.code(), Some(code), "exit code");
}

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-pls}
spec:
  podSelecter: {}
  ingress:
  - from: [{ipBlock: {cidr: 10.224.0.8}}]
";

#[test]
fn a_mistake_in_a_policy() {
    check(
        &[("a.yaml", POLICY)],
        "dump endpoints --policies FOLDER",
        2,
        &expect![[r#"
            plsprobe: found 3 mistakes in the policies:
              FOLDER/a.yaml:5:3: found no `podSelector`, expected one; `{}` selects every pod of the namespace
              FOLDER/a.yaml:5:3: unknown field `podSelecter`, expected one of podSelector, policyTypes, ingress, egress; is `podSelector` meant?
              FOLDER/a.yaml:7:29: found the text `10.224.0.8`, expected a prefix; for this address alone write `10.224.0.8/32`
        "#]],
    );
}

#[test]
fn nat_ips_as_the_operator_says() {
    check(
        &[],
        "dump nat-ips --pls-nat-ip 10.224.0.8 --pls-nat-ip 10.225.0.0/28 --pls-subnet 10.224.0.0/24",
        0,
        &expect![[r#"
            NAT IP          CONFIDENCE   FROM
            10.224.0.8      declared     --pls-nat-ip
            10.225.0.0/28   declared     --pls-nat-ip
            10.224.0.0/24   range        --pls-subnet
            disagreement: subnet of the NAT IPs: --pls-subnet says 10.224.0.0/24, --pls-nat-ip says 10.225.0.0/28; a rule for the subnet alone does not admit that address
        "#]],
    );
    check(
        &[],
        "dump nat-ips",
        2,
        &expect![[r#"
            plsprobe: no NAT IP of Private Link is known: Azure was not asked (`--azure`); the Kubernetes API was not asked (`--kubeconfig FILE`); give each by `--pls-nat-ip IP`
        "#]],
    );
    check(
        &[],
        "dump private-endpoints",
        2,
        &expect![[r#"
            plsprobe: Azure was not asked for Private Link services; ask it by `--azure`
        "#]],
    );
}

#[test]
fn from_the_nat_ip() {
    check(
        &[],
        "explain --src pls --dst 10.224.0.7:80",
        2,
        &expect![[r#"
            plsprobe: no NAT IP of Private Link is known; give each by `--pls-nat-ip IP`, or ask Azure by `--azure`
        "#]],
    );
    check(
        &[],
        "explain --src pls --dst 10.224.0.7:80 --pls-nat-ip 10.224.0.8 --pls-nat-ip 10.224.0.9",
        2,
        &expect![[r#"
            plsprobe: `pls` stands for 10.224.0.8/32, 10.224.0.9/32; give one address of these
        "#]],
    );
}

#[test]
fn what_lives_beside_what_was_recorded() {
    check(
        &[],
        "dump endpoints --kubeconfig FOLDER/none",
        2,
        &expect![[r#"
            plsprobe: found `--kubeconfig` beside `--from RECORDING`: what is asked now does not belong to what was recorded then; a snapshot that is taken with `--kubeconfig` has both
        "#]],
    );
}
