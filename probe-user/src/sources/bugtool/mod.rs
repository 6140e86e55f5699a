//! An archive of `cilium-bugtool`: what an operator has already when he reports a problem.
//!
//! Each command's output is a file named after the command, with `/` and spaces as `-`, under `cmd/`: the agent's
//! commands with `cilium` (up to 1.14) or `cilium-dbg`. Maps are there as `bpftool map dump` prints them, policy maps
//! only as the agent's table, the agent's answers in its `debuginfo`. What an archive does not carry is listed.
//!
//! Source: `bugtool/cmd/configuration.go` and `root.go`, Cilium 1.13 to 1.18.

mod archive;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::raw::{Missing, RawMap, RawNode};
use super::{network_text, rest};
use archive::Files;

/// The agent's command, as of 1.15 and before.
const AGENT: [&str; 2] = ["cilium-dbg", "cilium"];
/// What begins the name of a dump's file, before and after the mount point of the BPF file system.
const DUMP: (&str, &str) = ("bpftool-map-dump-pinned-", "-tc-globals-");
/// What cilium-bugtool writes after the output of a command that failed.
const FAILED: &str = "> Error while running ";

/// Whether the file is an archive of cilium-bugtool's.
///
/// # Errors
///
/// If the file cannot be read.
pub fn is_bugtool(path: &Path) -> Result<bool> {
    archive::is_archive(path)
}

/// Reads one node's archive: `.tar` or `.tar.gz`.
///
/// # Errors
///
/// If the archive is truncated, too large, holds several nodes, or has names that lead out of it. A command's output that
/// cannot be read is a missing fact.
pub fn read(path: &Path) -> Result<RawNode> {
    let files = archive::read(path)?;
    let node = RawNode { origin: path.display().to_string(), ..RawNode::default() };
    let mut reader = Reader { files, node };
    reader.agent();
    let version = reader.version();
    reader.dumps();
    reader.agent_s_tables(version);
    reader.rules();
    reader.network();
    Ok(reader.node)
}

struct Reader {
    files: Files,
    node: RawNode,
}

impl Reader {
    fn missing(&mut self, what: &str, why: impl Into<String>) {
        self.node.missing.push(Missing { what: what.to_owned(), why: why.into() });
    }

    /// A command's output, or why there is none.
    fn output(&self, command: &str) -> Result<&str> {
        let name = format!("{}.md", command.replace(['/', ' '], "-"));
        let text = self.files.get(&name).with_context(|| format!("the archive has no `cmd/{name}`"))?;
        output(text)
    }

    /// An output of one of the agent's commands.
    fn agent_output(&self, command: &str) -> Result<&str> {
        let [new, old] = AGENT.map(|agent| self.output(&format!("{agent} {command}")));
        new.or(old)
    }

    /// The agent's answers: most from its `debuginfo`, the rest from commands.
    fn agent(&mut self) {
        let debuginfo = self.debuginfo();
        let parts = [
            ("endpoint", "endpoint-list"),
            ("policy", "policy"),
            ("service", "service-list"),
            ("healthz", "cilium-status"),
        ];
        for (name, part) in parts {
            let found = debuginfo.as_ref().map_err(|error| format!("{error:#}"));
            let value = found.and_then(|info| info.get(part).ok_or(format!("`debuginfo` has no `{part}`")));
            match value {
                Ok(value) => {
                    let text = value.to_string();
                    self.node.rest.insert(name.to_owned(), text);
                }
                Err(why) => self.missing(&format!("rest/{name}"), why),
            }
        }
        let answers = [
            ("policy-selectors", self.agent_output("policy selectors -o json").map(str::to_owned)),
            ("identity", self.agent_output("identity list").and_then(identities)),
            ("config", self.agent_output("config -a").and_then(config)),
        ];
        for (name, answer) in answers {
            match answer {
                Ok(text) => {
                    self.node.rest.insert(name.to_owned(), text);
                }
                Err(error) => self.missing(&format!("rest/{name}"), format!("{error:#}")),
            }
        }
    }

    fn debuginfo(&self) -> Result<Value> {
        let is_it = |name: &&String| {
            name.strip_prefix("cilium-debuginfo-").is_some_and(|rest| rest.strip_suffix(".json").is_some())
        };
        let name =
            self.files.keys().find(is_it).context("the archive has no `cmd/cilium-debuginfo-….json`")?;
        serde_json::from_str(&self.files[name]).with_context(|| format!("failed to read `cmd/{name}`"))
    }

    /// Minor and patch number of Cilium 1.
    fn version(&self) -> Option<(u32, u32)> {
        let by_rest = self.node.rest.get("healthz").and_then(|text| rest::version(text).ok()?);
        let text = by_rest.or_else(|| {
            let status = self.agent_output("status --verbose").ok()?;
            let line = status.lines().find(|line| line.starts_with("Cilium:"))?;
            line.split_whitespace().nth(2).map(str::to_owned)
        })?;
        let number = text.split(['-', ' ']).next()?.trim_start_matches('v');
        let mut parts = number.split('.').map(str::parse::<u32>);
        match (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?) {
            (1, minor, patch) => Some((minor, patch)),
            _ => None,
        }
    }

    /// Every map that bpftool dumped; one of those that the agent's tables have too is missing only if both are.
    fn dumps(&mut self) {
        let mut read: BTreeMap<String, Result<RawMap>> = BTreeMap::new();
        for (name, text) in &self.files {
            let pinned = name.strip_prefix(DUMP.0).and_then(|name| name.strip_suffix(".md"));
            let Some((_, pin)) = pinned.and_then(|path| path.split_once(DUMP.1)) else { continue };
            read.insert(pin.to_owned(), output(text).and_then(tables::bpftool_dump));
        }
        for (pin, map) in read {
            match map {
                Ok(map) => {
                    self.node.maps.insert(pin, map);
                }
                // Every pin of every version is asked for, whether it is there or not.
                Err(error) if error.downcast_ref::<CommandFailed>().is_some() => {}
                Err(error) => self.missing(&pin, format!("bpftool's dump: {error:#}")),
            }
        }
    }

    /// What only the agent prints, or bpftool could not.
    fn agent_s_tables(&mut self, version: Option<(u32, u32)>) {
        if !self.node.maps.contains_key("cilium_lxc") {
            let map = self.agent_output("bpf endpoint list").and_then(tables::endpoints);
            self.instead("cilium_lxc", map);
        }
        if !["cilium_ipcache", "cilium_ipcache_v2"].iter().any(|pin| self.node.maps.contains_key(*pin)) {
            let map = self.agent_output("bpf ipcache list").and_then(|text| tables::ipcache(text, version));
            match map {
                Ok((layout, map)) => self.instead(layout.pin(), Ok(map)),
                Err(error) => self.instead("cilium_ipcache", Err(error)),
            }
        }
        if let Some(services) = self.node.maps.get("cilium_lb4_services_v2")
            && !self.node.maps.contains_key("cilium_lb4_backends_v3")
        {
            let map = self.agent_output("bpf lb list").and_then(|text| tables::backends(text, services));
            self.instead("cilium_lb4_backends_v3", map);
        }
        let printed =
            self.agent_output("bpf policy get --all --numeric").map(|text| tables::policies(text, version));
        match printed {
            Ok(policies) => {
                for (pin, map) in policies {
                    self.instead(&pin, map);
                }
            }
            Err(error) => self.missing("cilium_policy_*", format!("{error:#}")),
        }
        for pin in ["cilium_lb4_services_v2", "cilium_ct4_global", "cilium_ct_any4_global"] {
            if !self.node.maps.contains_key(pin) && !self.node.missing.iter().any(|known| known.what == pin) {
                self.missing(pin, "the archive has no dump of it by bpftool");
            }
        }
    }

    /// Takes a map from a table, in place of whatever was said of its dump.
    fn instead(&mut self, pin: &str, map: Result<RawMap>) {
        match map {
            Ok(map) => {
                self.node.missing.retain(|missing| missing.what != pin);
                self.node.maps.insert(pin.to_owned(), map);
            }
            Err(error) => self.missing(pin, format!("{error:#}")),
        }
    }

    /// Both back ends' rules, of which `iptables-save` alone shows one.
    fn rules(&mut self) {
        let has_rules = |text: &str| text.lines().any(|line| line.contains("-A "));
        let nft = self.output("iptables-nft-save -c").or_else(|_| self.output("iptables-save -c"));
        let legacy = self.output("iptables-legacy-save -c").ok().filter(|text| has_rules(text));
        let text = match (nft, legacy) {
            (Ok(nft), Some(legacy)) if nft != legacy && has_rules(nft) => {
                let why = "rules of both back ends, nft and legacy, whose order is not known";
                let text = format!("{nft}\n{legacy}");
                self.missing("order of netfilter rules", why);
                text
            }
            (_, Some(legacy)) => legacy.to_owned(),
            (Ok(nft), None) => nft.to_owned(),
            (Err(error), None) => {
                let why = format!("{error:#}");
                return self.missing("iptables-save", why);
            }
        };
        self.node.iptables_save = Some(text);
        self.missing("nftables", "an archive has only those of nftables' rules that iptables shows");
    }

    fn network(&mut self) {
        let text = self.output("ip a").and_then(|addresses| {
            Ok(format!("# ip addr\n{addresses}\n# ip route\n{}\n", self.output("ip -4 r")?))
        });
        match text.and_then(|text| network_text::parse(&text)) {
            Ok(network) => self.node.network = Some(network),
            Err(error) => self.missing("network", format!("{error:#}")),
        }
    }
}

/// That a command failed, which cilium-bugtool writes behind its output.
#[derive(Debug)]
struct CommandFailed(String);

impl std::fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the command failed: {}", self.0)
    }
}

impl std::error::Error for CommandFailed {}

/// What a command printed, without the Markdown around it.
fn output(text: &str) -> Result<&str> {
    if let Some((printed, _)) = text.split_once(FAILED) {
        let first = printed.lines().find(|line| !line.trim().is_empty() && !line.starts_with(['#', '`']));
        bail!(CommandFailed(first.unwrap_or("it says nothing").to_owned()));
    }
    let fenced = text.starts_with("# ").then(|| text.split_once("\n```\n")).flatten();
    let Some((_, fenced)) = fenced else { return Ok(text.trim_end()) };
    let end = fenced.rfind("```").context("found no end of the output; it is truncated")?;
    Ok(fenced[..end].trim_end())
}

/// `cilium identity list` as the agent answers it: the first label stands beside the number, others below.
fn identities(text: &str) -> Result<String> {
    let mut all: Vec<(u32, Vec<&str>)> = Vec::new();
    let mut rows = text.lines().skip_while(|line| !line.starts_with("ID"));
    ensure!(rows.next().is_some(), "found no table headed `ID`");
    for row in rows {
        let mut words = row.split_whitespace();
        if !row.starts_with(' ')
            && let Some(id) = words.next()
        {
            all.push((id.parse().with_context(|| format!("found ID `{id}`"))?, Vec::new()));
        }
        if let (Some(label), Some((_, labels))) = (words.next(), all.last_mut()) {
            labels.push(label);
        }
    }
    let all: Vec<Value> = all.into_iter().map(|(id, labels)| json!({ "id": id, "labels": labels })).collect();
    Ok(Value::from(all).to_string())
}

/// `cilium config -a` as the agent answers it: `Name : value`, read-only options first.
fn config(text: &str) -> Result<String> {
    let mut options = Map::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = match value.trim() {
            "true" | "Enabled" => Value::Bool(true),
            "false" | "Disabled" => Value::Bool(false),
            word => Value::from(word),
        };
        options.entry(name.trim().to_owned()).or_insert(value);
    }
    ensure!(options.contains_key("EnableIPv4"), "found no option `EnableIPv4`, expected `cilium config -a`");
    Ok(json!({ "status": { "daemonConfigurationMap": options } }).to_string())
}
