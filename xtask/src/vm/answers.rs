//! What plsprobe answers to the lab's scenarios: on this machine, in a guest, and whether that is the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::normalize::normalize;
use super::payload::Program;
use crate::project::Project;
use crate::sh;

/// Traces the worlds it is given, in a guest and here.
pub(crate) const SCRIPT: &str = include_str!("answers.sh");

/// Where the guest keeps its answers until it sends them.
pub(crate) const IN_GUEST: &str = "/answers";

/// Scenario and shape of what is compared in every guest: the main job, and the same behind kube-proxy.
pub(crate) const FEW: &[&str] = &["allow-nat-ip/aks", "kube-proxy/kubeproxy"];

/// Scenario and shape of what is compared for the matrix.
pub(crate) const MANY: &[&str] =
    &["allow-nat-ip/aks", "allow-nat-ip/kpr", "seed-deny/aks", "seed-deny/kpr", "kube-proxy/kubeproxy"];

/// What of a world's folder is compared.
const FILES: [&str; 4] = ["json", "text", "clients", "exit"];

/// The means by which a guest, but not every host, sees Cilium's notifications.
pub(crate) const PROBES: [&str; 2] = ["fentry", "kprobe"];

/// Answers by `SCENARIO/SHAPE` and file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers(BTreeMap<String, BTreeMap<&'static str, String>>);

/// What came of comparing one world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compared {
    /// `allow-nat-ip/aks`
    pub(crate) world: String,
    /// Where the guest's answer is another than the host's, or not what a guest's must be; empty if it is the same.
    pub(crate) differences: Vec<String>,
}

impl Answers {
    /// Runs the script here, as root, with the same programs as the guests.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub(crate) fn of_this_machine(project: &Project, programs: &[Program], worlds: &[&str]) -> Result<Self> {
        let bin = project.tools.join("answers-bin");
        std::fs::create_dir_all(&bin)?;
        for program in programs {
            write_executable(&bin.join(program.name), &program.bytes)?;
        }
        let script = bin.join("answers.sh");
        write_executable(&script, SCRIPT.as_bytes())?;
        let dir = empty_folder(project, "host")?;
        // `env`, as sudo has a PATH of its own.
        let mut cmd = sh::as_root("env", "trace the lab's scenarios")?;
        let path = std::env::var("PATH").unwrap_or_default();
        cmd.arg(format!("PATH={}:{path}:/usr/sbin:/sbin", bin.display())).arg("sh").arg(&script).arg(&dir);
        sh::run(cmd.args(worlds))?;
        Self::read(&dir, worlds)
    }

    /// Unpacks what the guest called `name` sent.
    ///
    /// # Errors
    ///
    /// If it is no whole archive.
    pub(crate) fn of_guest(project: &Project, name: &str, sent: &Path, worlds: &[&str]) -> Result<Self> {
        let dir = empty_folder(project, name)?;
        sh::run(Command::new("tar").arg("-xf").arg(sent).arg("-C").arg(&dir))
            .context("the guest's answers did not arrive whole")?;
        Self::read(&dir, worlds)
    }

    /// The worlds of which there is an answer; one that is cut short or missing shows in the comparison.
    fn read(dir: &Path, worlds: &[&str]) -> Result<Self> {
        let mut answers = Self::default();
        for world in worlds {
            let folder = dir.join(world.replace('/', "."));
            let files = answers.0.entry((*world).to_owned()).or_default();
            for name in FILES.into_iter().filter(|name| folder.join(name).is_file()) {
                files.insert(name, sh::read(&folder.join(name))?);
            }
        }
        Ok(answers)
    }

    /// Whether a guest's answers are what they must be: from a probe, and those of this machine if it has any.
    pub(crate) fn compare(guest: &Self, host: Option<&Self>, worlds: &[&str]) -> Vec<Compared> {
        let one = |world: &str| {
            let differs = |host: &Self| -> Vec<String> {
                FILES.iter().filter_map(|name| host.differs(guest, world, name)).collect()
            };
            let mut differences = host.map_or_else(Vec::new, differs);
            let json = guest.file(world, "json").unwrap_or_default();
            differences.extend(lacks_probe(json).or_else(|| lacks_ip_layer(json)));
            Compared { world: world.to_owned(), differences }
        };
        worlds.iter().map(|world| one(world)).collect()
    }

    fn file(&self, world: &str, name: &str) -> Option<&str> {
        self.0.get(world)?.get(name).map(String::as_str)
    }

    /// The first line of one file in which a guest's answer is another than this, the host's.
    fn differs(&self, guest: &Self, world: &str, name: &str) -> Option<String> {
        let Some(host) = self.file(world, name) else {
            return Some(format!("{name}: no answer of the host's"));
        };
        let Some(guest) = guest.file(world, name) else {
            return Some(format!("{name}: no answer of the guest's"));
        };
        let (host, guest) = (normalize(host), normalize(guest));
        if host == guest {
            return None;
        }
        let same = host.lines().zip(guest.lines()).take_while(|(a, b)| a == b).count();
        let line = |text: &str| text.lines().nth(same).unwrap_or("(ends here)").to_owned();
        Some(format!("{name}, line {}:\n  host:  {}\n  guest: {}", same + 1, line(&host), line(&guest)))
    }

    /// By which means hooks were attached, and how many by each: from the summary of the first world.
    pub(crate) fn hooks(&self) -> BTreeMap<String, usize> {
        let mut means = BTreeMap::new();
        let summary = self.0.values().find_map(|files| files.get("json")?.lines().last());
        for hook in summary.unwrap_or_default().split(r#"{"detail":""#).skip(1) {
            let detail = hook.split('"').next().unwrap_or_default();
            let state = if hook.contains(r#""state":"attached""#) { detail } else { "not attached" };
            *means.entry(state.to_owned()).or_default() += 1;
        }
        means
    }
}

/// A guest's kernel allows a probe on Cilium's notifications: every verdict must be from there, and every hook attached.
fn lacks_probe(json: &str) -> Option<String> {
    let by_probe = PROBES.map(|means| format!(r#""source":{{"by":"{means}"}}"#));
    // What is told of a health probe has no source of its own: its verdict is in the flow's.
    let mut judged = json.lines().filter(|line| !line.contains(r#""schema":"plsprobe.trace.probe/1""#));
    let other = judged.find(|line| !by_probe.iter().any(|source| line.contains(source)));
    if let Some(line) = other {
        return Some(format!("json: not from a probe on Cilium's notifications: {line}"));
    }
    let Some(summary) = json.lines().last() else { return Some("json: no answer of the guest's".to_owned()) };
    let missing = [r#""state":"refused""#, r#""state":"lost""#].iter().any(|state| summary.contains(state));
    missing.then(|| format!("json: not every hook is attached: {summary}"))
}

/// A packet that a pod answers went up the pod's own stack, which a guest's kernel allows to be seen.
fn lacks_ip_layer(json: &str) -> Option<String> {
    let is_answered = |line: &&str| line.contains(r#""outcome":{"outcome":"answered"}"#);
    let unseen = json.lines().filter(is_answered).find(|line| !line.contains(r#""point":"IpDeliver""#));
    unseen.map(|line| format!("json: answered, and not seen where the pod's stack delivers it: {line}"))
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to write `{}`", path.display()))
}

/// A folder that is kept until the next run, for whoever wants to look.
fn empty_folder(project: &Project, name: &str) -> Result<PathBuf> {
    let dir = project.tools.join("answers").join(name.replace('/', "_"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("failed to empty `{}`", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORLD: &str = "none/aks";

    fn json(means: &str, verdict: &str, state: &str) -> String {
        format!(
            r#"{{"evidence":{{"from":"cilium","source":{{"by":"{means}"}}}},"verdict":"{verdict}","last_ns":12}}
{{"cilium_events":{{"source":{{"by":"{means}"}}}},"hooks":[{{"detail":"legacy tc","place":"eth0 ingress","state":"attached"}},{{"detail":"{means}","place":"bpf_skb_event_output","state":"{state}"}}]}}
"#
        )
    }

    fn answers(json: String) -> Answers {
        let same = |text: &str| text.to_owned();
        let files = [("json", json), ("text", same("a\n")), ("clients", same("b\n")), ("exit", same("0\n"))];
        Answers(BTreeMap::from([(WORLD.to_owned(), BTreeMap::from(files))]))
    }

    #[track_caller]
    fn differences(host: Option<&Answers>, guest: &Answers) -> String {
        let compared = Answers::compare(guest, host, &[WORLD]);
        assert_eq!(compared.len(), 1);
        compared[0].differences.join("\n")
    }

    #[test]
    fn only_what_may_differ_differs() {
        let host = answers(json("monitor-socket", "dropped", "refused"));
        assert_eq!(differences(Some(&host), &answers(json("fentry", "dropped", "attached"))), "");
        let wrong = differences(Some(&host), &answers(json("kprobe", "allowed", "attached")));
        assert!(wrong.starts_with("json, line 1:\n  host:  {"), "{wrong}");
    }

    #[test]
    fn a_guest_without_its_probe_or_a_hook_is_found_even_alone() {
        let asleep = differences(None, &answers(json("monitor-socket", "dropped", "attached")));
        assert!(asleep.starts_with("json: not from a probe on Cilium's notifications: {"), "{asleep}");
        let refused = differences(None, &answers(json("fentry", "dropped", "refused")));
        assert!(refused.starts_with("json: not every hook is attached: {"), "{refused}");
        assert_eq!(differences(None, &answers(json("kprobe", "dropped", "attached"))), "");
    }

    #[test]
    fn what_a_pod_answers_must_be_seen_in_its_stack() {
        let answered = |hop: &str| {
            let flow = json("fentry", "allowed", "attached");
            flow.replacen('{', &format!(r#"{{"hops":[{hop}],"outcome":{{"outcome":"answered"}},"#), 1)
        };
        let found = differences(None, &answers(answered("")));
        assert!(
            found.starts_with("json: answered, and not seen where the pod's stack delivers it: {"),
            "{found}"
        );
        assert_eq!(differences(None, &answers(answered(r#"{"point":"IpDeliver"}"#))), "");
    }

    #[test]
    fn an_answer_that_is_missing_or_cut_short_is_found() {
        let host = answers(json("monitor-socket", "dropped", "refused"));
        assert!(differences(Some(&host), &Answers::default()).contains("text: no answer of the guest's"));
        assert_eq!(differences(None, &Answers::default()), "json: no answer of the guest's");
        let mut cut = answers(json("fentry", "dropped", "attached"));
        cut.0.get_mut(WORLD).unwrap().insert("text", String::new());
        let found = differences(Some(&host), &cut);
        assert_eq!(found, "text, line 1:\n  host:  a\n  guest: (ends here)");
    }

    #[test]
    fn hooks_are_counted_by_their_means() {
        let hooks = answers(json("fentry", "dropped", "attached")).hooks();
        assert_eq!(hooks, BTreeMap::from([("fentry".to_owned(), 1), ("legacy tc".to_owned(), 1)]));
        let hooks = answers(json("fentry", "dropped", "refused")).hooks();
        assert_eq!(hooks, BTreeMap::from([("legacy tc".to_owned(), 1), ("not attached".to_owned(), 1)]));
    }
}
