//! `--policies DIR|FILE`: policy objects as they are in files, whether they are applied or not.
//!
//! A folder is read with all that is in it. What is no policy is left out and noted: a folder of manifests has Deployments
//! too. What is a policy and has a mistake is an error, with its place: a rule that is not understood must not be left out
//! of an answer.

mod shape;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use probe_model::world::kubernetes::PolicyKind;
use serde::{Deserialize, Serialize};

use super::yaml::{self, Node, Position, Problem, Value};

/// Files that end so are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Longer files are no manifests.
const MAX_FILE: u64 = 16 << 20;
/// Folders in one another to this depth.
const DEPTH: usize = 16;
/// So many problems are told at once.
const TOLD: usize = 20;
/// Fields by which something is a policy, whatever it says it is.
const TELLING: [&str; 4] = ["podSelector", "endpointSelector", "nodeSelector", "policyTypes"];
/// API groups whose `NetworkPolicy` is another one, that Cilium does not look at.
const FOREIGN: [&str; 3] = ["projectcalico.org", "antrea.io", "policy.networking.k8s.io"];

/// What the files have.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// Policy objects, in the files' order.
    pub policies: Vec<FilePolicy>,
    /// What was left out, or taken for granted, a line each.
    pub notes: Vec<String>,
}

/// A policy object of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilePolicy {
    /// The file.
    pub path: String,
    /// The line where the object begins.
    pub line: usize,
    /// The object.
    pub object: serde_json::Value,
}

/// Reads a file, or a folder with all that is in it.
///
/// # Errors
///
/// If nothing can be read, or with every problem that was found, each as `file:line:column: what`.
pub fn read(path: &Path) -> Result<Found> {
    let shown = path.display();
    let facts = path.metadata().with_context(|| format!("failed to read policies from `{shown}`"))?;
    let mut files = Vec::new();
    if facts.is_dir() {
        list(path, DEPTH, &mut files)?;
        ensure!(!files.is_empty(), "found no file in `{shown}` whose name ends in .yaml, .yml or .json");
    } else {
        files.push(path.to_owned());
    }
    let mut reader = Reader { is_folder: facts.is_dir(), ..Reader::default() };
    for file in files {
        reader.file(&file)?;
    }
    reader.finish()
}

/// Files below `folder`, by name.
fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let shown = folder.display();
    ensure!(depth > 0, "`{shown}` is more than {DEPTH} folders deep; is there a link to a folder above?");
    let entries = std::fs::read_dir(folder).with_context(|| format!("failed to list `{shown}`"))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("failed to list `{shown}`"))?.path());
    }
    paths.sort();
    for path in paths {
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_hidden {
            continue;
        }
        if path.is_dir() {
            list(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|own| ENDINGS.iter().any(|ending| own == *ending)) {
            files.push(path);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Reader {
    is_folder: bool,
    found: Found,
    problems: Vec<String>,
}

impl Reader {
    fn file(&mut self, path: &Path) -> Result<()> {
        let shown = path.display().to_string();
        let facts = path.metadata().with_context(|| format!("failed to read `{shown}`"))?;
        ensure!(facts.is_file(), "`{shown}` is neither a plain file nor a folder");
        ensure!(
            facts.len() <= MAX_FILE,
            "`{shown}` has {} bytes, more than the {MAX_FILE} of any manifest",
            facts.len()
        );
        let bytes = std::fs::read(path).with_context(|| format!("failed to read `{shown}`"))?;
        let text = String::from_utf8(bytes).with_context(|| format!("`{shown}` is not UTF-8"))?;
        match yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
            Ok(documents) => {
                for document in &documents {
                    self.document(&shown, document);
                }
            }
            Err(problem) => self.problem(&shown, &problem),
        }
        Ok(())
    }

    fn problem(&mut self, path: &str, Problem { at, what }: &Problem) {
        self.problems.push(format!("{path}:{at}: {what}"));
    }

    fn note(&mut self, path: &str, at: Position, what: &str) {
        self.found.notes.push(format!("{path}:{}: {what}", at.line));
    }

    fn document(&mut self, path: &str, node: &Node) {
        let Value::Map(_) = node.value else {
            let what = format!("found {}, expected an object with apiVersion and kind", node.described());
            return self.unlike(path, node, &what);
        };
        let Some(kind) = node.get("kind") else {
            return self.unlike(path, node, "found an object without `kind`, expected apiVersion and kind");
        };
        let Some(kind) = kind.text() else {
            let what = format!("found {} as `kind`, expected text", kind.described());
            return self.problem(path, &Problem::new(kind.at, what));
        };
        let is_list =
            kind == "List" || PolicyKind::ALL.iter().any(|own| kind.strip_suffix("List") == Some(own.name()));
        match node.get("items").map(|items| &items.value) {
            Some(Value::List(items)) if is_list => {
                for item in items {
                    self.document(path, item);
                }
            }
            Some(Value::Null) | None if is_list => {}
            Some(_) if is_list => {
                let items = node.get("items").map_or(node.at, |items| items.at);
                self.problem(
                    path,
                    &Problem::new(items, "found `items` that are no list, expected a list of objects"),
                );
            }
            _ => self.object(path, node, kind),
        }
    }

    /// What has no kind: among many files it is another program's, unless it looks like a policy.
    fn unlike(&mut self, path: &str, node: &Node, what: &str) {
        let looks_like_one = |node: &Node| TELLING.iter().any(|field| node.get(field).is_some());
        let is_policy = looks_like_one(node) || node.get("spec").is_some_and(looks_like_one);
        if self.is_folder && !is_policy {
            self.note(path, node.at, "left out, it is no Kubernetes object");
        } else {
            self.problem(path, &Problem::new(node.at, what));
        }
    }

    fn object(&mut self, path: &str, node: &Node, word: &str) {
        let version = node.get("apiVersion").and_then(Node::text).unwrap_or_default();
        let is_foreign =
            FOREIGN.iter().any(|group| version.split('/').next().unwrap_or_default().ends_with(group));
        let kind = PolicyKind::ALL.into_iter().find(|kind| kind.name() == word);
        let Some(kind) = kind.filter(|_| !is_foreign) else {
            return self.other(path, node, word, version);
        };
        let mut problems = Vec::new();
        if version != kind.api_version() {
            let at = node.get("apiVersion").map_or(node.at, |own| own.at);
            let found = node
                .get("apiVersion")
                .map_or("no `apiVersion`".to_owned(), |own| format!("apiVersion {}", own.described()));
            problems.push(Problem::new(
                at,
                format!("found {found}, expected `{}` for a {kind}", kind.api_version()),
            ));
        }
        let shape =
            if kind == PolicyKind::NetworkPolicy { &shape::NETWORK_POLICY } else { &shape::CILIUM_POLICY };
        shape::check(node, shape, &mut problems);
        check_metadata(node, kind, &mut problems);
        check_spec(node, kind, &mut problems);
        check_values(node, &mut problems);
        problems.sort();
        if !problems.is_empty() {
            return problems.iter().for_each(|problem| self.problem(path, problem));
        }
        let mut object = node.json();
        let metadata = &mut object["metadata"];
        if kind.is_namespaced() && metadata["namespace"].is_null() {
            metadata["namespace"] = "default".into();
            let name = metadata["name"].as_str().unwrap_or_default().to_owned();
            self.note(path, node.at, &format!("{kind} {name} names no namespace; taken as `default`"));
        }
        self.found.policies.push(FilePolicy { path: path.to_owned(), line: node.at.line, object });
    }

    /// An object that is no policy; unless it is one by another spelling.
    fn other(&mut self, path: &str, node: &Node, word: &str, version: &str) {
        let near = PolicyKind::ALL.into_iter().find(|kind| shape::distance(word, kind.name()) <= 2);
        if let Some(kind) = near.filter(|kind| kind.name() != word) {
            let at = node.get("kind").map_or(node.at, |own| own.at);
            let what = format!("found kind `{}`, expected `{kind}`", yaml::shown(word));
            return self.problem(path, &Problem::new(at, what));
        }
        let name = node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::text);
        let named = name.map(|name| format!(" {}", yaml::shown(name))).unwrap_or_default();
        let (word, version) = (yaml::shown(word), yaml::shown(version));
        self.note(
            path,
            node.at,
            &format!("left out, {word}{named} ({version}) is no policy that Cilium looks at"),
        );
    }

    fn finish(self) -> Result<Found> {
        let Self { found, problems, .. } = self;
        if problems.is_empty() {
            return Ok(found);
        }
        let mut text = match problems.len() {
            1 => "found a mistake in the policies:".to_owned(),
            count => format!("found {count} mistakes in the policies:"),
        };
        for problem in problems.iter().take(TOLD) {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  {problem}");
        }
        if problems.len() > TOLD {
            let _ = write!(text, "\n  and {} more", problems.len() - TOLD);
        }
        bail!(text)
    }
}

fn check_metadata(node: &Node, kind: PolicyKind, problems: &mut Vec<Problem>) {
    let Some(metadata) = node.get("metadata").filter(|own| matches!(own.value, Value::Map(_))) else {
        return problems.push(Problem::new(node.at, "found no `metadata`, expected it with a name"));
    };
    match metadata.get("name") {
        Some(name) if name.text().is_some_and(|text| !text.is_empty()) => {}
        Some(name) => {
            problems
                .push(Problem::new(name.at, format!("found {} as name, expected text", name.described())));
        }
        None => problems.push(Problem::new(metadata.at, "found no `name` in `metadata`, expected one")),
    }
    match metadata.get("namespace") {
        Some(namespace) if !kind.is_namespaced() => problems.push(Problem::new(
            namespace.at,
            format!("found a namespace, expected none: a {kind} is the whole cluster's"),
        )),
        Some(namespace) if namespace.text().is_none() && namespace.value != Value::Null => {
            problems.push(Problem::new(
                namespace.at,
                format!("found {} as namespace, expected text", namespace.described()),
            ));
        }
        _ => {}
    }
}

fn check_spec(node: &Node, kind: PolicyKind, problems: &mut Vec<Problem>) {
    let is_there = |node: &&Node| node.value != Value::Null;
    let spec = node.get("spec").filter(is_there);
    if kind == PolicyKind::NetworkPolicy {
        match spec {
            None => problems.push(Problem::new(node.at, "found no `spec`, expected one")),
            Some(spec) if spec.get("podSelector").is_none() && matches!(spec.value, Value::Map(_)) => {
                problems.push(Problem::new(
                    spec.at,
                    "found no `podSelector`, expected one; `{}` selects every pod of the namespace",
                ));
            }
            Some(_) => {}
        }
        return;
    }
    let specs = match node.get("specs").map(|specs| &specs.value) {
        Some(Value::List(specs)) => specs.iter().collect(),
        _ => Vec::new(),
    };
    let rules: Vec<_> = spec.into_iter().chain(specs).collect();
    if rules.is_empty() {
        problems.push(Problem::new(node.at, "found neither `spec` nor `specs`, expected one of them"));
    }
    for rule in rules.into_iter().filter(|rule| matches!(rule.value, Value::Map(_))) {
        let selectors = ["endpointSelector", "nodeSelector"].map(|name| rule.get(name).filter(is_there));
        match selectors {
            [None, None] => problems.push(Problem::new(
                rule.at,
                "found no `endpointSelector`, expected one; `{}` selects every pod",
            )),
            [Some(_), Some(node)] => problems.push(Problem::new(
                node.at,
                "found `nodeSelector` beside `endpointSelector`, expected one of them",
            )),
            [None, Some(node)] if kind.is_namespaced() => problems.push(Problem::new(
                node.at,
                "found `nodeSelector`, expected `endpointSelector`: only a CiliumClusterwideNetworkPolicy selects nodes",
            )),
            _ => {}
        }
    }
}

/// What several values mean together, wherever they stand.
fn check_values(node: &Node, problems: &mut Vec<Problem>) {
    match &node.value {
        Value::Text(text) if text.contains("{{") => {
            let what = format!(
                "found the template `{}`, expected what it stands for; expand it first, as `helm template` does",
                yaml::shown(text)
            );
            problems.push(Problem::new(node.at, what));
        }
        Value::List(items) => items.iter().for_each(|item| check_values(item, problems)),
        Value::Map(fields) => {
            check_except(node, problems);
            check_ports(node, problems);
            check_peer(node, problems);
            fields
                .iter()
                .filter(|field| field.name != "annotations")
                .for_each(|field| check_values(&field.node, problems));
        }
        _ => {}
    }
}

/// Each `except` is inside its `cidr`.
fn check_except(node: &Node, problems: &mut Vec<Problem>) {
    let net = |node: &Node| node.text().and_then(|text| text.parse::<IpNet>().ok());
    let (Some(cidr), Some(Value::List(excepts))) =
        (node.get("cidr").and_then(net), node.get("except").map(|own| &own.value))
    else {
        return;
    };
    for except in excepts {
        if net(except).is_some_and(|own| !cidr.contains(&own)) {
            let what =
                format!("found {} in `except`, expected a prefix inside of {cidr}", except.described());
            problems.push(Problem::new(except.at, what));
        }
    }
}

/// `endPort` is with a port's number that is not above it.
fn check_ports(node: &Node, problems: &mut Vec<Problem>) {
    let Some(end) = node.get("endPort") else { return };
    let number = |node: &Node| match &node.value {
        Value::Number(number) => number.as_u64(),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    let Some(last) = number(end).filter(|last| *last != 0) else { return };
    let first = node.get("port").and_then(number);
    if first.is_none_or(|first| first > last) {
        let what =
            format!("found `endPort` {last}, expected it with a `port` that is a number and not above it");
        problems.push(Problem::new(end.at, what));
    }
}

/// `ipBlock` is alone.
fn check_peer(node: &Node, problems: &mut Vec<Problem>) {
    let selectors = ["podSelector", "namespaceSelector"];
    if let Some(block) = node.get("ipBlock")
        && let Some(other) = selectors.iter().find(|name| node.get(name).is_some())
    {
        let what = format!(
            "found `ipBlock` beside `{other}`, expected each as an item of its own, with a `-` before it"
        );
        problems.push(Problem::new(block.at, what));
    }
}

#[cfg(test)]
mod tests;
