//! The binary as an operator uses it: output, errors, exit codes.

use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::{Expect, expect};

/// A recorded scenario's folder.
fn scenario(recording: &str, name: &str) -> PathBuf {
    fixtures::recording(recording).join(name)
}

/// Runs plsprobe on a recording: exit code, stdout, stderr, with the recording's folder written as FOLDER.
fn run(folder: &Path, args: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plsprobe"));
    command.args(args.split(' ')).arg("--from").arg(folder);
    let output = command.output().expect("plsprobe runs");
    let name = folder.display().to_string();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").replace(&name, "FOLDER");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn check(folder: &Path, args: &str, code: i32, expected: &Expect) {
    let (found, stdout, stderr) = run(folder, args);
    expected.assert_eq(&format!("{stdout}{stderr}"));
    assert_eq!(found, code, "exit code");
    assert!(stdout.is_empty() || stderr.is_empty(), "data belongs to stdout, the rest to stderr");
}

/// A copy of a scenario to spoil, taken away at the end.
struct Spoiled(PathBuf);

impl Spoiled {
    fn new(test: &str, recording: &str, name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for folder in ["maps", "rest"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
            for entry in std::fs::read_dir(scenario(recording, name).join(folder)).expect("a recording") {
                let path = entry.expect("a file").path();
                std::fs::copy(&path, root.join(folder).join(path.file_name().expect("a name")))
                    .expect("a copy");
            }
        }
        Self(root)
    }
}

impl Drop for Spoiled {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn default_deny() {
    let folder = scenario("cilium-1.14", "cidr-peered-80");
    check(
        &folder,
        "explain --src 10.224.0.8:40122 --dst 10.224.0.7:80",
        1,
        &expect![[r#"
            10.224.0.8:40122 -> 10.224.0.7:80 TCP: dropped by Cilium, Policy denied (133)
              cause    NetworkPolicy default/allow-peered-vnet selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from world (2) on TCP/80 [PLS-01]
              remedy   NetworkPolicy default/allow-ingress-pls-app-7d9c5bd5f4-x2v8q: a new policy that admits CIDR 10.224.0.8/32 on TCP/80 (tried: the packet is then admitted, and nothing else)
              path     in by eth0 > Cilium's service 10.224.0.7:80 (LoadBalancer) to 10.0.0.143:80 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > dropped
              identity 10.224.0.8 is world (2): ipcache 0.0.0.0/0
              entry    none in cilium_policy_02686 for ingress world (2), 80/TCP
              nearest  NetworkPolicy default/allow-peered-vnet, ingress[0]: the source is world at 10.224.0.8, the rule wants CIDR 10.221.1.0/24 (ingress[0].fromCIDRSet[0])
              policy   NetworkPolicy default/allow-peered-vnet
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed

            # for kubectl apply -f -
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: allow-ingress-pls-app-7d9c5bd5f4-x2v8q
              namespace: default
            spec:
              ingress:
              - from:
                - ipBlock:
                    cidr: "10.224.0.8/32"
                ports:
                - port: 80
                  protocol: TCP
              podSelector:
                matchLabels:
                  app: pls-app
              policyTypes:
              - Ingress
        "#]],
    );
}

#[test]
fn admitted() {
    let folder = scenario("cilium-1.14", "cidr-pls8-80");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst pls-app:80",
        0,
        &expect![[r#"
        10.224.0.8 -> 10.0.0.143:80 TCP: allowed
          cause    NetworkPolicy default/allow-pls-nat admits 16777218 (cidr:10.224.0.8/32) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          path     in by eth0 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > into the pod
          identity 10.224.0.8 is 16777218 (cidr:10.224.0.8/32): ipcache 10.224.0.8/32
          entry    cilium_policy_02686: ingress 16777218 (cidr:10.224.0.8/32), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-pls-nat
          rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
    "#]],
    );
}

#[test]
fn explicit_deny() {
    let folder = scenario("cilium-1.14", "deny-cidr");
    check(
        &folder,
        "explain --src 10.224.0.9 --dst ep/2686:80",
        1,
        &expect![[r#"
            10.224.0.9 -> 10.0.0.143:80 TCP: dropped by Cilium, Policy denied by denylist (181)
              cause    CiliumNetworkPolicy default/deny-pls9 explicitly denies ingress of default/pls-app-7d9c5bd5f4-x2v8q from 16777238 (cidr:10.224.0.9/32) on TCP/80 [PLS-34]
              remedy   narrow the deny rule by an except for the source, or take it away: a deny beats every allow
              path     in by eth0 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > dropped
              identity 10.224.0.9 is 16777238 (cidr:10.224.0.9/32): ipcache 10.224.0.9/32
              entry    cilium_policy_02686: ingress 16777238 (cidr:10.224.0.9/32), any port deny (match L3-Only, 4 packets so far)
              policy   CiliumNetworkPolicy default/deny-pls9
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
        "#]],
    );
}

#[test]
fn open_although_a_policy_exists() {
    let folder = scenario("cilium-1.14", "egress-only");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst 10.224.0.7:80",
        0,
        &expect![[r#"
            10.224.0.8 -> 10.224.0.7:80 TCP: allowed
              cause    ingress of default/pls-app-7d9c5bd5f4-x2v8q is open: no policy selects it for ingress (NetworkPolicy default/egress-peered only limits egress) [PLS-28]
              remedy   to restrict ingress, add Ingress to policyTypes and a rule that admits the NAT subnet on the pod's port
              path     in by eth0 > Cilium's service 10.224.0.7:80 (LoadBalancer) to 10.0.0.143:80 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > into the pod
              identity 10.224.0.8 is world (2): ipcache 0.0.0.0/0
              entry    cilium_policy_02686: ingress any identity, any port allow (match all, 69 packets so far)
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
        "#]],
    );
}

#[test]
fn kube_proxy_hides_the_source() {
    let folder = scenario("cilium-1.14-tunnel-kubeproxy", "cidr-pls8-80");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst 10.224.0.6:80",
        1,
        &expect![[r#"
            10.224.0.8 -> 10.224.0.6:80 TCP: dropped by Cilium, Policy denied (133)
              cause    NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress; kube-proxy, as for externalTrafficPolicy Cluster, replaced the source 10.224.0.8 by 10.0.1.104 before policy ran, so Cilium judged world (2), which no rule admits on TCP/80; 10.224.0.8 itself would be admitted [PLS-03]
              run      kubectl -n NAMESPACE patch service SERVICE -p '{"spec":{"externalTrafficPolicy":"Local"}}'
              remedy   with externalTrafficPolicy Local only nodes with a ready pod take traffic, and the NAT IPs must not lie in the pods' subnet (annotation azure-pls-ip-configuration-subnet)
              path     in by eth0 > netfilter DNAT to 10.224.0.8 -> 10.0.0.143:80 TCP > route cilium_host > netfilter MASQUERADE to 10.0.1.104 -> 10.0.0.143:80 TCP > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > dropped
              source   10.224.0.8 as it came; ipcache 10.224.0.8/32 is 16777224 (cidr:10.224.0.8/32)
              source   10.0.1.104 by kube-proxy, as for externalTrafficPolicy Cluster (nat: -A KUBE-POSTROUTING -j MASQUERADE); ipcache 10.0.1.104/32 is host (1); judged as world (2)
              rule     nat: -A KUBE-SEP-APP -p tcp -j DNAT --to-destination 10.0.0.143:80
              rule     nat: -A KUBE-POSTROUTING -j MASQUERADE
              identity 10.0.1.104 is world (2): ipcache 10.0.1.104/32 says host, which Cilium does not believe of a packet without the host's mark
              entry    none in cilium_policy_00847 for ingress world (2), 80/TCP
              nearest  NetworkPolicy default/allow-pls-nat, ingress[0]: the source is world at 10.0.1.104, the rule wants CIDR 10.224.0.8/32 (ingress[0].fromCIDRSet[0])
              policy   NetworkPolicy default/allow-pls-nat
              no edit  no rule can name 10.224.0.8 while policy sees 10.0.1.104 instead: the source has to be kept first
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
        "#]],
    );
}

#[test]
fn another_port() {
    let folder = scenario("cilium-1.14", "cidr-pls8-80");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst app=pls-app:8080",
        1,
        &expect![[r#"
            10.224.0.8 -> 10.0.0.143:8080 TCP: dropped by Cilium, Policy denied (133)
              cause    NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from 16777218 (cidr:10.224.0.8/32) on TCP/8080 [PLS-01]
              remedy   NetworkPolicy default/allow-ingress-pls-app-7d9c5bd5f4-x2v8q: a new policy that admits CIDR 10.224.0.8/32 on TCP/8080 (tried: the packet is then admitted, and nothing else)
              path     in by eth0 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > dropped
              identity 10.224.0.8 is 16777218 (cidr:10.224.0.8/32): ipcache 10.224.0.8/32
              entry    none in cilium_policy_02686 for ingress 16777218 (cidr:10.224.0.8/32), 8080/TCP
              nearest  NetworkPolicy default/allow-pls-nat, ingress[0]: the rule names port 80, the packet is for 8080 (ingress[0].toPorts[0].ports[0])
              policy   NetworkPolicy default/allow-pls-nat
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed

            # for kubectl apply -f -
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata:
              name: allow-ingress-pls-app-7d9c5bd5f4-x2v8q
              namespace: default
            spec:
              ingress:
              - from:
                - ipBlock:
                    cidr: "10.224.0.8/32"
                ports:
                - port: 8080
                  protocol: TCP
              podSelector:
                matchLabels:
                  app: pls-app
              policyTypes:
              - Ingress
        "#]],
    );
}

#[test]
fn pod_to_pod_through_a_service() {
    let folder = scenario("cilium-1.14", "pod-80");
    check(
        &folder,
        "explain --src my-nginx --dst 10.0.167.20:80",
        0,
        &expect![[r#"
        10.0.1.124 -> 10.0.167.20:80 TCP: allowed
          cause    NetworkPolicy default/allow-nginx admits 42305 (k8s:app=my-nginx) to default/pls-app-7d9c5bd5f4-x2v8q on TCP/80 [ALLOWED]
          path     from default/my-nginx-684dd4dcd4-9p6rw > Cilium's service 10.0.167.20:80 (ClusterIP) to 10.0.0.143:80 > egress policy of default/my-nginx-684dd4dcd4-9p6rw > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > into the pod
          identity 10.0.0.143 is 63921 (k8s:app=pls-app): ipcache 10.0.0.143/32
          entry    cilium_policy_00340: egress any identity, any port allow (match all, 89 packets so far)
          identity 10.0.1.124 is 42305 (k8s:app=my-nginx): endpoint 340's own
          entry    cilium_policy_02686: ingress 42305 (k8s:app=my-nginx), 80/TCP allow (match L3-L4, 12 packets so far)
          policy   NetworkPolicy default/allow-nginx
          rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
    "#]],
    );
}

#[test]
fn ping() {
    let folder = scenario("cilium-1.14", "cidr-pls8-80");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst 10.0.0.143/icmp",
        1,
        &expect![[r#"
            10.224.0.8 -> 10.0.0.143 ICMP: dropped by Cilium, Policy denied (133)
              cause    NetworkPolicy default/allow-pls-nat selects default/pls-app-7d9c5bd5f4-x2v8q for ingress, and no rule admits traffic from 16777218 (cidr:10.224.0.8/32) on ICMP type 8 [PLS-01]
              remedy   CiliumNetworkPolicy default/allow-ingress-pls-app-7d9c5bd5f4-x2v8q: a new policy that admits CIDR 10.224.0.8/32 on ICMP type 8 (tried: the packet is then admitted, and nothing else)
              path     in by eth0 > ingress policy of default/pls-app-7d9c5bd5f4-x2v8q > dropped
              identity 10.224.0.8 is 16777218 (cidr:10.224.0.8/32): ipcache 10.224.0.8/32
              entry    none in cilium_policy_02686 for ingress 16777218 (cidr:10.224.0.8/32), 8/ICMP
              nearest  NetworkPolicy default/allow-pls-nat, ingress[0]: the rule names TCP, the packet is ICMP (ingress[0].toPorts[0].ports[0])
              policy   NetworkPolicy default/allow-pls-nat
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed

            # for kubectl apply -f -
            apiVersion: cilium.io/v2
            kind: CiliumNetworkPolicy
            metadata:
              name: allow-ingress-pls-app-7d9c5bd5f4-x2v8q
              namespace: default
            spec:
              endpointSelector:
                matchLabels:
                  app: pls-app
              ingress:
              - fromCIDR:
                - "10.224.0.8/32"
                icmps:
                - fields:
                  - family: IPv4
                    type: 8
        "#]],
    );
}

#[test]
fn unknown_frontend() {
    let folder = scenario("cilium-1.14", "none");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst 10.224.0.77:80",
        3,
        &expect![[r#"
        10.224.0.8 -> 10.224.0.77:80 TCP: inconclusive
          cause    no source knows a frontend 10.224.0.77:80: neither Cilium's service map nor the node's netfilter rules have it [INCONCLUSIVE]
          path     in by eth0 > unknown
          rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
    "#]],
    );
}

#[test]
fn pod_on_another_node() {
    let folder = scenario("cilium-1.14-tunnel-kubeproxy", "none");
    check(
        &folder,
        "explain --src my-nginx --dst 10.0.2.9:80",
        3,
        &expect![[r#"
        10.0.1.124 -> 10.0.2.9:80 TCP: inconclusive
          cause    10.0.2.9 is on node 10.224.0.5, whose policy decides and is not known here [INCONCLUSIVE]
          path     from default/my-nginx-684dd4dcd4-9p6rw > egress policy of default/my-nginx-684dd4dcd4-9p6rw > unknown
          identity 10.0.2.9 is 34942 (k8s:app=my-nginx): ipcache 10.0.2.9/32
          entry    cilium_policy_00141: egress any identity, any port allow (match all, 69 packets so far)
          rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed
    "#]],
    );
    let (code, ..) = run(&folder, "explain --src my-nginx --dst 10.0.2.9:80 --direction egress");
    assert_eq!(code, 0, "this node's part is judged");
}

#[test]
fn json_is_one_object_with_schema() {
    let folder = scenario("cilium-1.14", "cidr-peered-80");
    let (code, stdout, _) = run(&folder, "explain --src 10.224.0.8 --dst 10.224.0.7:80 -o json");
    assert_eq!(code, 1);
    assert_eq!(stdout.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(value["schema"], "plsprobe.explain/1");
    assert_eq!(value["verdict"], "dropped");
    assert_eq!(value["drop_reason"]["code"], 133);
    assert_eq!(value["cause"]["code"], "PLS-01");
    assert_eq!(value["policies"][0]["name"], "allow-peered-vnet");
    assert_eq!(value["ways"][0]["packet"]["daddr"], "10.0.0.143");
}

#[test]
fn unknown_names_list_candidates() {
    let folder = scenario("cilium-1.14", "none");
    check(
        &folder,
        "explain --src 10.224.0.8 --dst pls-ap:80",
        2,
        &expect![[r#"
        plsprobe: unknown target `pls-ap`; pods on this node: default/pls-app-7d9c5bd5f4-x2v8q (ep/2686, 10.0.0.143), default/my-nginx-684dd4dcd4-9p6rw (ep/340, 10.0.1.124)
    "#]],
    );
    check(
        &folder,
        "explain --src 10.224.0.8 --dst ep/1:80",
        2,
        &expect![[r#"
        plsprobe: unknown endpoint `ep/1`; pods on this node: default/my-nginx-684dd4dcd4-9p6rw (ep/340, 10.0.1.124), default/pls-app-7d9c5bd5f4-x2v8q (ep/2686, 10.0.0.143)
    "#]],
    );
    check(
        &folder,
        "explain --src 10.224.0.8 --dst svc/pls-app:80",
        2,
        &expect![[r#"
        plsprobe: unknown service `svc/pls-app`: the agent names no services here; give the frontend's address instead
    "#]],
    );
    check(
        &folder,
        "explain --src 10.224.0.8 --dst io.kubernetes.pod.namespace=default:80",
        2,
        &expect![[r#"
        plsprobe: `io.kubernetes.pod.namespace=default` is ambiguous: default/my-nginx-684dd4dcd4-9p6rw (ep/340, 10.0.1.124), default/pls-app-7d9c5bd5f4-x2v8q (ep/2686, 10.0.0.143); give one of them
    "#]],
    );
    check(
        &folder,
        "explain --src 10.224.0.8 --dst pls-app",
        2,
        &expect![[r#"
        plsprobe: `--dst pls-app` has no port; expected one as in `--dst pls-app:80`
    "#]],
    );
    check(
        &folder,
        "explain --src 10.224.0.8 --dst pls-app:80/tpc",
        2,
        &expect![[r#"
        plsprobe: failed to read `--dst`: found protocol `tpc`, expected tcp, udp, icmp, sctp or a number
    "#]],
    );
}

#[test]
fn no_recording() {
    check(
        Path::new("/nonexistent"),
        "dump policy",
        2,
        &expect![[r#"
            plsprobe: failed to look for `FOLDER`; expected a file that `plsprobe snapshot` wrote, an archive of cilium-bugtool, or a folder with maps/: No such file or directory (os error 2)
        "#]],
    );
}

#[test]
fn truncated_dump() {
    let spoiled = Spoiled::new("truncated", "cilium-1.14", "none");
    let path = spoiled.0.join("maps/cilium_ipcache.json");
    let text = std::fs::read_to_string(&path).expect("a dump");
    std::fs::write(&path, &text[..text.len() / 2]).expect("a file");
    check(
        &spoiled.0,
        "dump ipcache",
        2,
        &expect![[r#"
            plsprobe: failed to read `cilium_ipcache`: failed to read `FOLDER/maps/cilium_ipcache.json`; expected `bpftool map dump -j` output, is the file truncated?: EOF while parsing a string at line 4 column 136
        "#]],
    );
}

#[test]
fn truncated_dump_of_another_map() {
    let spoiled = Spoiled::new("other", "cilium-1.14", "deny-all");
    std::fs::write(spoiled.0.join("maps/cilium_runtime_config.json"), "[{").expect("a file");
    std::fs::write(spoiled.0.join("rest/endpoint.json"), "[{").expect("a file");
    check(
        &spoiled.0,
        "explain --src 10.224.0.8 --dst 10.0.0.143:80",
        1,
        &expect![[r#"
            10.224.0.8 -> 10.0.0.143:80 TCP: dropped by Cilium, Policy denied (133)
              cause    NetworkPolicy default/default-deny-ingress selects endpoint 2686 for ingress, and no rule admits traffic from world (2) on TCP/80 [PLS-01]
              path     in by the uplink > ingress policy of endpoint 2686 > dropped
              identity 10.224.0.8 is world (2): ipcache 0.0.0.0/0
              entry    none in cilium_policy_02686 for ingress world (2), 80/TCP
              policy   NetworkPolicy default/default-deny-ingress
              no edit  the name of endpoint 2686 is not known
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed; missing: cilium_runtime_config, node, rest/endpoint
        "#]],
    );
}

#[test]
fn missing_policy_map() {
    let spoiled = Spoiled::new("missing", "cilium-1.14", "deny-all");
    std::fs::remove_file(spoiled.0.join("maps/cilium_policy_02686.json")).expect("a dump");
    check(
        &spoiled.0,
        "explain --src 10.224.0.8 --dst pls-app:80",
        3,
        &expect![[r#"
            10.224.0.8 -> 10.0.0.143:80 TCP: inconclusive
              cause    `cilium_policy_02686`: listed in _show.json, but its dump is not in the folder [INCONCLUSIVE]
              path     in by the uplink > unknown
              identity 10.224.0.8 is world (2): ipcache 0.0.0.0/0
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed; missing: cilium_policy_02686, node
        "#]],
    );
    check(
        &spoiled.0,
        "dump policy --endpoint 2686",
        2,
        &expect![[r#"
        plsprobe: failed to read `cilium_policy_02686`: listed in _show.json, but its dump is not in the folder
    "#]],
    );
}

#[test]
fn unknown_layout() {
    let spoiled = Spoiled::new("layout", "cilium-1.14", "deny-all");
    // Sizes that no Cilium up to 1.20 has under this pin.
    std::fs::remove_file(spoiled.0.join("maps/_show.json")).expect("a dump");
    std::fs::remove_file(spoiled.0.join("maps/cilium_policy_02686.json")).expect("a dump");
    let entry = r#"[{"key":["0x28","0","0","0","0","0","0","0","1","0","0","0"],"value":["0","0","0","0","0","0","0","0"]}]"#;
    std::fs::write(spoiled.0.join("maps/cilium_policy_v3_02686.json"), entry).expect("a file");
    check(
        &spoiled.0,
        "dump policy",
        2,
        &expect![[r#"
            plsprobe: failed to read `cilium_policy_v3_02686`: no known layout: found key 12 and value 8 bytes under `cilium_policy_v3_<id>`, known is key/value 8/24 (Cilium 1.13) or 12/24 bytes (1.14 to 1.16) under `cilium_policy_<id>`, 12/24 (1.17), 12/8 (1.18) or 12/12 (1.19) under `cilium_policy_v2_<id>`, 12/12 (1.20) under `cilium_policy_v3_<id>`; run `plsprobe doctor` and attach its output
        "#]],
    );
    check(
        &spoiled.0,
        "explain --src 10.224.0.8 --dst pls-app:80",
        3,
        &expect![[r#"
            10.224.0.8 -> 10.0.0.143:80 TCP: inconclusive
              cause    `cilium_policy_v3_02686`: no known layout: found key 12 and value 8 bytes under `cilium_policy_v3_<id>`, known is key/value 8/24 (Cilium 1.13) or 12/24 bytes (1.14 to 1.16) under `cilium_policy_<id>`, 12/24 (1.17), 12/8 (1.18) or 12/12 (1.19) under `cilium_policy_v2_<id>`, 12/12 (1.20) under `cilium_policy_v3_<id>`; run `plsprobe doctor` and attach its output [INCONCLUSIVE]
              path     in by the uplink > unknown
              identity 10.224.0.8 is world (2): ipcache 0.0.0.0/0
              rests on the maps of FOLDER, Cilium 1.14.0-dev; no packet was observed; missing: maps/_show.json, node, cilium_policy_v3_02686
        "#]],
    );
}

#[test]
fn entry_of_another_size() {
    let spoiled = Spoiled::new("size", "cilium-1.14", "deny-all");
    let entry = r#"[{"key":["0x0a","0","0"],"value":["0"]}]"#;
    std::fs::write(spoiled.0.join("maps/cilium_lxc.json"), entry).expect("a file");
    check(
        &spoiled.0,
        "dump endpoints",
        2,
        &expect![[r#"
            plsprobe: failed to read `cilium_lxc`: entry 0 of `FOLDER/maps/cilium_lxc.json` has a key of 3 and a value of 1 bytes, expected 20 and 48
        "#]],
    );
}

/// The smaller maps, as far as a recording has something in them.
#[test]
fn dumps_of_smaller_maps() {
    let tunnel = scenario("cilium-1.14-tunnel-kubeproxy", "none");
    check(
        &tunnel,
        "dump tunnel",
        0,
        &expect![[r#"
        PREFIX     NODE         KEY   NODE ID   CLUSTER
        10.0.2.0   10.224.0.5   0     40629     0
    "#]],
    );
    check(
        &tunnel,
        "dump node",
        0,
        &expect![[r#"
        IP ADDRESS   NODE ID   SPI
        10.0.2.7     40629     -
        10.224.0.5   40629     -
    "#]],
    );
    let newer = scenario("cilium-1.16", "none");
    check(
        &newer,
        "dump node -o json",
        0,
        &expect![[r#"
        {"address":"10.0.0.51","id":46826,"schema":"plsprobe.node/1","spi":0}
        {"address":"10.224.0.4","id":46826,"schema":"plsprobe.node/1","spi":0}
    "#]],
    );
    check(
        &newer,
        "dump tunnel",
        2,
        &expect![[r#"
        plsprobe: failed to read `cilium_tunnel_map`: it is not there; Cilium has it up to 1.17 and in tunnel mode only; `plsprobe dump ipcache` names tunnel endpoints too
    "#]],
    );
    check(
        &newer,
        "dump auth",
        0,
        &expect![[r#"
        SRC IDENTITY   DST IDENTITY   REMOTE NODE ID   AUTH TYPE   EXPIRATION
    "#]],
    );
    check(
        &newer,
        "dump policystats",
        2,
        &expect![[r#"
        plsprobe: failed to read `cilium_policystats`: it is not there; up to Cilium 1.17 policy maps count for themselves, see `plsprobe dump policy`
    "#]],
    );
    check(
        &newer,
        "dump affinity",
        0,
        &expect![[r#"
        CLIENT   SERVICE   BACKEND   LAST USED   VALID
    "#]],
    );
    check(
        &newer,
        "dump fragments",
        0,
        &expect![[r#"
        SOURCE   DESTINATION   PROTO   ID   SPORT   DPORT
    "#]],
    );
    check(
        &newer,
        "dump source-ranges",
        0,
        &expect![[r#"
        SERVICE   PREFIX   CHECKED AT
    "#]],
    );
}
