//! The Kubernetes API: what it says of services, pods, policies and nodes.
//!
//! A command asks for lists, page by page ([`read`]); an agent watches them ([`watch`]). Of each object only what an answer
//! needs is kept. Nothing is written. What may not be read costs a part of the answer, and the answer says which.

pub mod access;
pub mod decode;
mod exec;
pub mod forward;
mod list;
mod resources;
#[cfg(test)]
pub(crate) mod standin;
pub mod watch;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;
use probe_model::world::Missing;

use super::http::Patience;
use access::Access;
use resources::{RESOURCES, Resource};

/// How the missing facts of the Kubernetes API begin: `kubernetes/services`.
pub const PREFIX: &str = "kubernetes/";
/// Lists that are asked for at once.
const ASKERS: usize = 4;
/// What is lost without all of it.
pub(super) const COST: &str =
    "Services, pods, policies and nodes are known as far as the agent and the maps show them";

/// Who asks the Kubernetes API, if anyone does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// Nobody.
    #[default]
    Nobody,
    /// The user of a kubeconfig's current context, because the operator said so.
    Kubeconfig(PathBuf),
    /// The service account of the pod that plsprobe runs in, because there is one.
    Pod {
        /// The account's folder.
        folder: PathBuf,
        /// The API server's host.
        host: String,
        /// The API server's port.
        port: String,
    },
}

impl Ask {
    /// The pod's service account, if this process runs in one that has one.
    pub fn in_pod() -> Self {
        let folder = PathBuf::from(access::SERVICE_ACCOUNT);
        match (std::env::var("KUBERNETES_SERVICE_HOST"), std::env::var("KUBERNETES_SERVICE_PORT")) {
            (Ok(host), Ok(port)) if folder.join("token").exists() => Self::Pod { folder, host, port },
            _ => Self::Nobody,
        }
    }

    /// The API and who asks it; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// If what the operator gave cannot be used.
    pub fn access(&self) -> Result<Option<Access>> {
        // Who did not ask for it must not wait long where nobody answers.
        let connect = Duration::from_millis(if matches!(self, Self::Pod { .. }) { 250 } else { 3000 });
        let patience = Patience { connect, each: Duration::from_secs(15), total: Duration::from_secs(20) };
        match self {
            Self::Nobody => Ok(None),
            Self::Kubeconfig(path) => Access::kubeconfig(path, patience).map(Some),
            Self::Pod { folder, host, port } => Access::in_pod(folder, host, port, patience).map(Some),
        }
    }
}

/// What the API said: each list as JSON text by its name, and what could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Who asked, as an answer names it.
    pub origin: String,
    /// Lists by name.
    pub lists: BTreeMap<String, String>,
    /// What could not be had, and what that costs.
    pub missing: Vec<Missing>,
}

/// Asks for everything that an answer needs.
pub fn read(access: &Access) -> Answers {
    read_all(access, &RESOURCES.iter().collect::<Vec<_>>())
}

/// Asks for the lists of these names alone.
pub fn read_named(access: &Access, names: &[&str]) -> Answers {
    read_all(access, &RESOURCES.iter().filter(|resource| names.contains(&resource.name)).collect::<Vec<_>>())
}

fn read_all(access: &Access, resources: &[&Resource]) -> Answers {
    let mut answers = Answers { origin: access.origin.clone(), ..Answers::default() };
    // One line, not a dozen, where nobody answers.
    if let Err(error) = access.client.reach() {
        let why = format!("{error} ({}); {COST}", access.origin);
        answers.missing.push(Missing { what: "kubernetes".to_owned(), why });
        return answers;
    }
    let next = AtomicUsize::new(0);
    let ask_some = || {
        let mut found = Vec::new();
        while let Some(resource) = resources.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*resource, list::read(access, resource)));
        }
        found
    };
    let found: Vec<_> = thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS).map(|_| scope.spawn(ask_some)).collect();
        askers.into_iter().flat_map(|asker| asker.join().expect("asking does not panic")).collect()
    });
    for (resource, found) in found {
        match found {
            Ok(items) => drop(
                answers.lists.insert(resource.name.to_owned(), serde_json::Value::from(items).to_string()),
            ),
            Err(failure) => {
                let why = format!("{}; {}", failure.explained(resource), resource.cost);
                answers.missing.push(Missing { what: format!("{PREFIX}{}", resource.name), why });
            }
        }
    }
    answers.missing.sort_by(|one, other| one.what.cmp(&other.what));
    answers
}

#[cfg(test)]
mod tests;
