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
        let access = self.kubernetes.access()?;
        let (kubernetes, azure) = thread::scope(|scope| {
            let azure = scope.spawn(|| azure::read(&self.azure));
            let kubernetes = access.as_ref().map(kubernetes::read);
            (kubernetes, azure.join().expect("asking does not panic"))
        });
        let mut facts = Facts::default();
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
    pub fn add_to(&self, node: &mut RawNode) {
        node.kubernetes.extend(self.kubernetes.clone());
        node.azure.extend(self.azure.clone());
        node.missing.extend(self.missing.clone());
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
