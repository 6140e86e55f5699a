//! Folders and files as people have them.

use super::*;

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-pls, namespace: default}
spec:
  podSelector: {matchLabels: {app: pls-app}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 10.224.0.0/24, except: [10.224.0.99/32]}}]
    ports: [{protocol: TCP, port: 80, endPort: 90}]
";

/// A folder with these files, read: the policies and the notes, or the error; paths without the folder.
fn outcome(files: &[(&str, &str)]) -> Result<(Vec<String>, Vec<String>), String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let plain = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
    let found = read(folder.path()).map_err(|error| plain(format!("{error:#}")))?;
    let policy = |FilePolicy { path, line, object }: &FilePolicy| {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(|own| own.as_str()).unwrap_or("-").to_owned();
        plain(format!(
            "{path}:{line} {} {}/{}",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        ))
    };
    let notes = found.notes.iter().map(|note| plain(note.clone()));
    Ok((found.policies.iter().map(policy).collect(), notes.collect()))
}

/// The mistakes in one file.
#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let error = outcome(&[("a.yaml", text)]).unwrap_err();
    let mut lines = error.lines();
    let first = if expected.len() == 1 {
        "found a mistake in the policies:".to_owned()
    } else {
        format!("found {} mistakes in the policies:", expected.len())
    };
    assert_eq!(lines.next(), Some(first.as_str()), "{error}");
    assert_eq!(
        lines.collect::<Vec<_>>(),
        expected.iter().map(|line| format!("  {line}")).collect::<Vec<_>>()
    );
}

#[test]
fn a_folder_of_manifests() {
    let clusterwide = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata:\n  name: probes\nspec:\n  endpointSelector: {}\n  ingress:\n  - fromCIDR: [168.63.129.16]\n";
    let (policies, notes) = outcome(&[
        ("b/all.yml", &format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: pls-app}}\n---\n{POLICY}---\n{clusterwide}")),
        ("a.json", r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "x"}, "spec": {"podSelector": {}}}]}"#),
        ("kustomization.yaml", "resources: [a.json]\n"),
        ("calico.yaml", "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: c}\nspec: {selector: all()}\n"),
        ("README.md", "no yaml"),
        (".hidden.yaml", "]"),
        ("empty.yaml", "# nothing\n---\n"),
    ])
    .unwrap();
    assert_eq!(
        policies,
        [
            "a.json:1 NetworkPolicy default/x",
            "b/all.yml:5 NetworkPolicy default/allow-pls",
            "b/all.yml:15 CiliumClusterwideNetworkPolicy -/probes",
        ]
    );
    assert_eq!(
        notes,
        [
            "a.json:1: NetworkPolicy x names no namespace; taken as `default`",
            "b/all.yml:1: left out, Deployment pls-app (apps/v1) is no policy that Cilium looks at",
            "calico.yaml:1: left out, NetworkPolicy c (projectcalico.org/v3) is no policy that Cilium looks at",
            "kustomization.yaml:1: left out, it is no Kubernetes object",
        ]
    );
}

#[test]
fn a_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    // Whatever it is called, and with the mark that some editors write.
    let path = folder.path().join("policy.txt");
    std::fs::write(&path, format!("\u{feff}{POLICY}")).unwrap();
    assert_eq!(read(&path).unwrap().policies.len(), 1);
    std::fs::write(&path, "a: 1\n").unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("policy.txt:1:1: found an object without `kind`, expected apiVersion and kind"),
        "{error}"
    );
    std::fs::write(&path, [0xff, 0xfe, b'a']).unwrap();
    assert!(read(&path).unwrap_err().to_string().ends_with("policy.txt` is not UTF-8"));
    let error = format!("{:#}", read(&folder.path().join("none")).unwrap_err());
    assert!(
        error.starts_with("failed to read policies from `")
            && error.ends_with("No such file or directory (os error 2)"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    let error = read(folder.path()).unwrap_err().to_string();
    assert!(
        error.starts_with("found no file in `") && error.ends_with("whose name ends in .yaml, .yml or .json"),
        "{error}"
    );
}

#[test]
fn every_mistake_with_its_place() {
    refused(
        &POLICY.replace("podSelector", "podSelecter").replace("Ingress", "ingress"),
        &[
            "a.yaml:5:3: found no `podSelector`, expected one; `{}` selects every pod of the namespace",
            "a.yaml:5:3: unknown field `podSelecter`, expected one of podSelector, policyTypes, ingress, egress; is `podSelector` meant?",
            "a.yaml:6:17: found the text `ingress`, expected one of Ingress, Egress",
        ],
    );
    refused(
        &POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1"),
        &[
            "a.yaml:1:13: found apiVersion the text `extensions/v1beta1`, expected `networking.k8s.io/v1` for a NetworkPolicy",
        ],
    );
    refused(
        &POLICY.replace("apiVersion: networking.k8s.io/v1\n", ""),
        &["a.yaml:1:1: found no `apiVersion`, expected `networking.k8s.io/v1` for a NetworkPolicy"],
    );
    refused(
        &POLICY.replace("kind: NetworkPolicy", "kind: Networkpolicy"),
        &["a.yaml:2:7: found kind `Networkpolicy`, expected `NetworkPolicy`"],
    );
    refused(
        &POLICY.replace("kind: NetworkPolicy\n", ""),
        &["a.yaml:1:1: found an object without `kind`, expected apiVersion and kind"],
    );
    refused(
        &POLICY.replace("name: allow-pls, ", ""),
        &["a.yaml:3:11: found no `name` in `metadata`, expected one"],
    );
}

#[test]
fn values_that_do_not_go_together() {
    refused(
        &POLICY.replace("10.224.0.99/32", "10.225.0.99/32").replace("endPort: 90", "endPort: 79"),
        &[
            "a.yaml:8:53: found the text `10.225.0.99/32` in `except`, expected a prefix inside of 10.224.0.0/24",
            "a.yaml:9:48: found `endPort` 79, expected it with a `port` that is a number and not above it",
        ],
    );
    refused(
        &POLICY.replace("[{ipBlock:", "[{podSelector: {}, ipBlock:"),
        &[
            "a.yaml:8:39: found `ipBlock` beside `podSelector`, expected each as an item of its own, with a `-` before it",
        ],
    );
}

#[test]
fn ciliums_own_objects() {
    let policy = |kind: &str, metadata: &str, rest: &str| {
        format!("apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: a{metadata}}}\n{rest}\n")
    };
    let (own, wide) = ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy");
    refused(&policy(own, "", ""), &["a.yaml:1:1: found neither `spec` nor `specs`, expected one of them"]);
    refused(
        &policy(own, "", "specs: [{ingress: []}]"),
        &["a.yaml:4:9: found no `endpointSelector`, expected one; `{}` selects every pod"],
    );
    refused(
        &policy(own, "", "spec: {nodeSelector: {}}"),
        &[
            "a.yaml:4:22: found `nodeSelector`, expected `endpointSelector`: only a CiliumClusterwideNetworkPolicy selects nodes",
        ],
    );
    refused(
        &policy(wide, ", namespace: b", "spec: {nodeSelector: {}, endpointSelector: {}}"),
        &[
            "a.yaml:3:32: found a namespace, expected none: a CiliumClusterwideNetworkPolicy is the whole cluster's",
            "a.yaml:4:22: found `nodeSelector` beside `endpointSelector`, expected one of them",
        ],
    );
    let (policies, _) =
        outcome(&[("a.yaml", &policy(wide, "", "spec: {nodeSelector: {}, ingress: [{}]}"))]).unwrap();
    assert_eq!(policies, ["a.yaml:1 CiliumClusterwideNetworkPolicy -/a"]);
}

#[test]
fn templates() {
    let expand = "expected what it stands for; expand it first, as `helm template` does";
    refused(
        &POLICY.replace("10.224.0.0/24", "{{ .Values.natSubnet }}"),
        &[&format!("a.yaml:8:29: found the template `{{{{ .Values.natSubnet }}}}`, {expand}")],
    );
    let quoted = POLICY.replace("app: pls-app", "app: \"{{ .Values.app }}\"");
    refused(&quoted, &[&format!("a.yaml:5:36: found the template `{{{{ .Values.app }}}}`, {expand}")]);
    // A template in what is no policy is its own affair.
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {b: \"{{ c }}\"}\n";
    assert_eq!(outcome(&[("a.yaml", map)]).unwrap().0, Vec::<String>::new());
}

#[test]
fn what_is_no_object() {
    let folder = |text: &str| outcome(&[("a.yaml", text)]);
    assert_eq!(folder("- 1\n- 2\n").unwrap().1, ["a.yaml:1: left out, it is no Kubernetes object"]);
    // Without its first lines a policy is still meant to be one.
    refused(
        "spec:\n  podSelector: {}\n",
        &["a.yaml:1:1: found an object without `kind`, expected apiVersion and kind"],
    );
    refused("kind: 7\n", &["a.yaml:1:7: found the number 7 as `kind`, expected text"]);
    refused(
        "kind: List\nitems: {}\n",
        &["a.yaml:2:8: found `items` that are no list, expected a list of objects"],
    );
}

#[test]
fn not_more_than_anyone_reads() {
    let many = (0..30).fold(POLICY.to_owned(), |text, i| text + &format!("  x{i}: 1\n"));
    let error = outcome(&[("a.yaml", &many)]).unwrap_err();
    assert!(
        error.starts_with("found 30 mistakes in the policies:\n") && error.ends_with("\n  and 10 more"),
        "{error}"
    );
}

#[test]
fn a_link_to_the_folder_above() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("again")).unwrap();
    let error = format!("{:#}", read(folder.path()).unwrap_err());
    assert!(error.contains("is more than 16 folders deep; is there a link to a folder above?"), "{error}");
}
