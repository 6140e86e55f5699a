//! What is known beyond the node: the Kubernetes API, Azure, policies in files, and what the operator says.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Result, bail};
use probe_model::world::{Missing, private_link::Declared};

use super::{
    azure, kubernetes,
    policy_files::{self, FilePolicy},
    raw::RawNode,
};

/// The part in which each source says who asked.
pub const ASKED: &str = "asked";
/// The part with policies from files.
pub const FILES: &str = "policy-files";
/// The part with what the operator said of NAT IPs.
pub const DECLARED: &str = "declared";

/// What is asked, and what was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Who asks the Kubernetes API.
    pub kubernetes: kubernetes::Ask,
    /// What is asked of Azure.
    pub azure: azure::Options,
    /// Policies from files, already read.
    pub policies: Vec<FilePolicy>,
    /// What the operator said of NAT IPs.
    pub declared: Declared,
}

/// What was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The Kubernetes API's lists as JSON text by name.
    pub kubernetes: BTreeMap<String, String>,
    /// Azure's parts as JSON text by name.
    pub azure: BTreeMap<String, String>,
    /// What could not be had.
    pub missing: Vec<Missing>,
}

/// Policies of files and folders, and what was left out of them.
///
/// # Errors
///
/// As [`policy_files::read`].
pub fn policies(paths: &[PathBuf]) -> Result<policy_files::Found> {
    let mut all = policy_files::Found::default();
    for path in paths {
        let found = policy_files::read(path)?;
        all.policies.extend(found.policies);
        all.notes.extend(found.notes);
    }
    Ok(all)
}

impl Options {
    /// Asks whom the operator said, all at once.
    ///
    /// # Errors
    ///
    /// If what the operator gave cannot be used. Who does not answer is a missing fact.
    pub fn read(&self) -> Result<Facts> {
        let mut facts = Facts::default();
        let access = match self.kubernetes.access() {
            // Nobody asked for it by name.
            Err(error) if matches!(self.kubernetes, kubernetes::Ask::Pod { .. }) => {
                let why = format!("{error:#}; {}", kubernetes::COST);
                facts.missing.push(Missing { what: "kubernetes".to_owned(), why });
                None
            }
            access => access?,
        };
        let (kubernetes, azure) = thread::scope(|scope| {
            let azure = scope.spawn(|| azure::read(&self.azure));
            let kubernetes = access.as_ref().map(kubernetes::read);
            (kubernetes, azure.join().expect("asking does not panic"))
        });
        if let Some(answers) = kubernetes {
            facts.kubernetes = answers.lists;
            facts.kubernetes.insert(ASKED.to_owned(), quoted(&answers.origin));
            facts.missing.extend(answers.missing);
        }
        facts.azure = azure.parts;
        facts.azure.extend(azure.origin.map(|origin| (ASKED.to_owned(), quoted(&origin))));
        facts.missing.extend(azure.missing);
        Ok(facts)
    }

    /// Adds what was given with the command: it stands beside what a snapshot holds.
    pub fn add_given(&self, node: &mut RawNode) {
        if !self.policies.is_empty() {
            let text = serde_json::to_string(&self.policies).expect("policies are JSON");
            node.kubernetes.insert(FILES.to_owned(), text);
        }
        if self.declared != Declared::default() {
            node.azure.insert(DECLARED.to_owned(), azure::decode::declared_text(&self.declared));
        }
    }

    /// Whether nothing is asked that lives: facts of now do not belong to those of another time.
    ///
    /// # Errors
    ///
    /// If something is.
    pub fn check_recorded(&self, path: &Path) -> Result<()> {
        let flag = match (&self.kubernetes, self.azure.ask) {
            (kubernetes::Ask::Kubeconfig(_), _) => "--kubeconfig",
            (_, true) => "--azure",
            _ => return Ok(()),
        };
        bail!(
            "found `{flag}` beside `--from {}`: what is asked now does not belong to what was recorded then; \
             a snapshot that is taken with `{flag}` has both",
            path.display()
        )
    }
}

impl Facts {
    /// Puts them into a node's.
    pub fn add_to(self, node: &mut RawNode) {
        node.kubernetes.extend(self.kubernetes);
        node.azure.extend(self.azure);
        node.missing.extend(self.missing);
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use libbpf_rs::MapType;
    use probe_model::world::{kubernetes::PolicyKind, nat::nat_sources};
    use serde_json::{Value, json};

    use super::*;
    use crate::sources::{
        LiveOptions,
        assemble::assemble,
        http::testing::{Authority, Reply, Seen, Server},
        live, snapshot,
        testing::PrivateBpffs,
    };

    /// What a server says must not be in a snapshot.
    const SECRETS: [&str; 4] = ["kubernetes-token", "arm-token", "hunter2", "last-applied"];

    fn kubernetes(seen: &Seen) -> Reply {
        if seen.header("authorization") != Some("Bearer kubernetes-token") {
            return Reply::json("401 Unauthorized", "{}");
        }
        let annotations = json!({
            "kubectl.kubernetes.io/last-applied-configuration": "last-applied",
            "service.beta.kubernetes.io/azure-pls-create": "true",
            "service.beta.kubernetes.io/azure-pls-ip-configuration-ip-address": "10.224.0.8"
        });
        let items = match seen.path.split('?').next().unwrap() {
            "/api/v1/services" => {
                json!([{"metadata": {"name": "pls-app", "namespace": "default", "annotations": annotations}}])
            }
            "/apis/networking.k8s.io/v1/networkpolicies" => {
                json!([{"metadata": {"name": "a", "namespace": "default"}, "spec": {"podSelector": {}}}])
            }
            "/apis/cilium.io/v2/ciliumnetworkpolicies" => {
                let rule = json!({"toPorts": [{"rules": {"http": [{"headers": ["X-Token: hunter2"]}]}}]});
                json!([{"metadata": {"name": "l7", "namespace": "default"}, "spec": {"endpointSelector": {}, "ingress": [rule]}}])
            }
            "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies" => {
                return Reply::json("403 Forbidden", r#"{"message":"no"}"#);
            }
            _ => json!([]),
        };
        Reply::ok(&json!({"items": items, "metadata": {}}).to_string())
    }

    fn azure(seen: &Seen) -> Reply {
        match seen.path.split('?').next().unwrap() {
            "/metadata/instance" => Reply::ok(
                r#"{"compute":{"subscriptionId":"s","resourceGroupName":"MC_rg","customData":"hunter2"}}"#,
            ),
            "/metadata/identity/oauth2/token" => {
                Reply::ok(r#"{"access_token":"arm-token","expires_in":"3599"}"#)
            }
            path if seen.header("authorization") == Some("Bearer arm-token") => {
                let is_services = path.ends_with("/privateLinkServices");
                let id = "/subscriptions/s/resourceGroups/MC_rg/providers/Microsoft.Network/privateLinkServices/pls";
                let service = json!({"id": id, "name": "pls", "properties": {"ipConfigurations": [{"properties": {"privateIPAddress": "10.224.0.9"}}]}});
                let items: Vec<Value> = is_services.then_some(service).into_iter().collect();
                Reply::ok(&json!({"value": items}).to_string())
            }
            _ => Reply::json("401 Unauthorized", "{}"),
        }
    }

    /// A folder with all that the flags name, and the flags.
    fn given(folder: &Path) -> Options {
        let authority = Authority::new();
        let server = Server::start_tls(authority.server("127.0.0.1", false), kubernetes);
        let azure = Server::start(azure);
        std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
        let kubeconfig = folder.join("kubeconfig");
        let config = json!({
            "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": server.url("https"), "certificate-authority": "ca.crt"}}],
            "users": [{"name": "x", "user": {"token": "kubernetes-token"}}]
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let policy = folder.join("policy.yaml");
        std::fs::write(&policy, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, policyTypes: [Egress]}\n").unwrap();
        let url = Some(azure.url("http").parse().unwrap());
        Options {
            kubernetes: kubernetes::Ask::Kubeconfig(kubeconfig),
            azure: azure::Options { ask: true, configuration: None, imds: url.clone(), arm: url },
            policies: policies(&[policy]).unwrap().policies,
            declared: Declared { nat_ips: Vec::new(), subnets: vec!["10.224.0.0/24".parse().unwrap()] },
        }
    }

    /// The same facts from a live node and from its snapshot, and nothing in it that is secret.
    #[test]
    fn a_snapshot_has_what_was_asked_and_no_secret() {
        let Some(bpffs) = PrivateBpffs::mount() else { return };
        drop(bpffs.create("cilium_lxc", MapType::Hash, 20, 48, 16));
        let folder = tempfile::tempdir().unwrap();
        let options = LiveOptions {
            bpffs: bpffs.path().to_owned(),
            cilium_run: folder.path().join("run"),
            cluster: given(folder.path()),
            ..LiveOptions::default()
        };
        let live = live::read(&options).unwrap();
        let file = folder.path().join("snapshot");
        snapshot::take(&options, &file, false).unwrap();
        let packed = zstd::stream::decode_all(std::fs::File::open(&file).unwrap()).unwrap();
        for secret in SECRETS {
            let is_there = packed.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "found `{secret}` in the snapshot");
        }
        let restored = snapshot::read(&file).unwrap();
        assert_eq!(restored.azure, live.node.azure);
        let (now, then) = (assemble(&live.node), assemble(&restored));
        assert_eq!(nat_sources(&now), nat_sources(&then));
        assert_eq!(now.disagreements, then.disagreements);
        assert_eq!(now.kubernetes.services, then.kubernetes.services);
        assert_eq!(
            now.kubernetes.complete,
            [PolicyKind::NetworkPolicy, PolicyKind::CiliumNetworkPolicy].into()
        );
        assert_eq!(now.kubernetes.asked, then.kubernetes.asked);
        let names: BTreeSet<_> =
            then.kubernetes.policies.iter().map(|own| format!("{own} of {}", own.origin)).collect();
        assert_eq!(names.len(), 3, "{names:?}");

        let missing = then.missing("kubernetes/ciliumclusterwidenetworkpolicies").unwrap();
        assert!(
            missing.why.contains("allow whoever asks to list ciliumclusterwidenetworkpolicies.cilium.io"),
            "{missing}"
        );
        let told: Vec<_> = nat_sources(&then).disagreements.iter().map(ToString::to_string).collect();
        assert!(
            told.is_empty(),
            "no network interface was listed, so that Azure's list may lack some: {told:?}"
        );
        let about: Vec<_> = then.disagreements.iter().map(|own| own.about.as_str()).collect();
        assert_eq!(about, ["NetworkPolicy default/a"]);
    }

    #[test]
    fn what_is_asked_now_does_not_belong_to_a_recording() {
        let check =
            |options: Options| options.check_recorded(Path::new("x.snap")).map_err(|error| error.to_string());
        assert_eq!(check(Options::default()), Ok(()));
        let pod = kubernetes::Ask::Pod { folder: "f".into(), host: "h".to_owned(), port: "1".to_owned() };
        assert_eq!(check(Options { kubernetes: pod, ..Options::default() }), Ok(()), "nobody asked for it");
        let azure = azure::Options { ask: true, ..azure::Options::default() };
        assert_eq!(
            check(Options { azure, ..Options::default() }).unwrap_err(),
            "found `--azure` beside `--from x.snap`: what is asked now does not belong to what was recorded then; \
             a snapshot that is taken with `--azure` has both"
        );
        let kubernetes = kubernetes::Ask::Kubeconfig("k".into());
        assert!(
            check(Options { kubernetes, ..Options::default() })
                .unwrap_err()
                .starts_with("found `--kubeconfig` beside")
        );
    }
}
