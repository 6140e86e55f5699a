//! What is run in the guest. To add something, add a line to [`PAYLOADS`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup::Ready;
use crate::{cargo, sh};

/// Where a payload's executable comes from.
enum Source {
    /// A script that is part of xtask. It finds [`PROGRAMS`] on its PATH.
    Script(&'static str),
    /// The unit tests of a library, by the library's name.
    UnitTests(&'static str),
    /// An integration test, the file `tests/NAME.rs`.
    Test(&'static str),
}

/// One executable to run in the guest; its exit code counts.
struct Line {
    name: &'static str,
    source: Source,
    args: &'static [&'static str],
}

/// All payloads, in the order in which they run; after them come [`ANSWERS`].
///
/// Their output is shown, as a test that skips itself must be seen: in the guest there is everything, so that it counts
/// as a failure.
const PAYLOADS: &[Line] = &[
    Line { name: "guest", source: Source::Script(include_str!("guest.sh")), args: &[] },
    Line {
        name: "offsets",
        source: Source::UnitTests("probe_user"),
        args: &["the_kernels_offsets_are_all_there", "--nocapture"],
    },
    Line {
        name: "programs",
        source: Source::UnitTests("probe_user"),
        args: &["every_program_loads", "--nocapture"],
    },
    Line {
        name: "hooks-agree",
        source: Source::UnitTests("probe_user"),
        args: &["tell_the_same", "--nocapture"],
    },
    Line {
        name: "only-counted",
        source: Source::UnitTests("probe_user"),
        args: &["only_counts_what_it_was_told_of", "--nocapture"],
    },
    Line { name: "kernel-events", source: Source::Test("kernel_events"), args: &["--nocapture"] },
    Line { name: "entry-programs", source: Source::Test("entry_programs"), args: &["--nocapture"] },
];

/// The payload that traces scenarios and sends what plsprobe answers; the host runs the same script.
pub(crate) const ANSWERS: &str = "answers";

/// Binaries of the workspace that are in the guest's `/bin`.
const PROGRAMS: [&str; 2] = ["plsprobe", "plsprobe-lab"];

/// An executable that was built.
pub(crate) struct Program {
    /// Its file name.
    pub(crate) name: &'static str,
    /// The executable.
    pub(crate) bytes: Vec<u8>,
}

/// A payload, built.
pub(crate) struct Payload {
    /// Its name in reports.
    pub(crate) name: &'static str,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// The executable.
    pub(crate) bytes: Vec<u8>,
}

impl Payload {
    /// Where it is in the guest, without the leading slash.
    pub(crate) fn guest_path(&self) -> String {
        format!("tests/{}", self.name)
    }
}

/// Everything that goes into a guest, built.
pub(crate) struct Built {
    /// What is in its `/bin`.
    pub(crate) programs: Vec<Program>,
    /// What it runs.
    pub(crate) payloads: Vec<Payload>,
}

/// Builds the programs, and all payloads whose name contains `filter`.
///
/// `shipped` is the `plsprobe` to put there instead of the one for tests, `worlds` what the answers are about.
///
/// # Errors
///
/// If one cannot be built.
pub(crate) fn build(
    ready: &Ready,
    filter: Option<&str>,
    shipped: Option<&Path>,
    worlds: &[&str],
) -> Result<Built> {
    let messages = build_tests(ready)?;
    let program = |name: &'static str| {
        let bytes = match shipped {
            Some(path) if name == "plsprobe" => super::bytes(path)?,
            _ => executable(ready, &messages, "bin", name)?,
        };
        Ok(Program { name, bytes })
    };
    let is_chosen = |name: &str| filter.is_none_or(|part| name.contains(part));
    let payload = |line: &Line| {
        let bytes = match line.source {
            Source::Script(text) => text.as_bytes().to_vec(),
            Source::UnitTests(library) => executable(ready, &messages, "lib", library)?,
            Source::Test(file) => executable(ready, &messages, "test", file)?,
        };
        Ok(Payload { name: line.name, args: words(line.args), bytes })
    };
    let chosen = PAYLOADS.iter().filter(|line| is_chosen(line.name));
    let mut payloads = chosen.map(payload).collect::<Result<Vec<_>>>()?;
    if is_chosen(ANSWERS) {
        let args = [vec![super::answers::IN_GUEST.to_owned()], words(worlds)].concat();
        payloads.push(Payload { name: ANSWERS, args, bytes: super::answers::SCRIPT.as_bytes().to_vec() });
    }
    let programs = PROGRAMS.into_iter().map(program).collect::<Result<_>>()?;
    Ok(Built { programs, payloads })
}

/// Builds a benchmark of probe-user as a payload, `benches/NAME.rs`.
///
/// # Errors
///
/// If it cannot be built.
pub(crate) fn bench(ready: &Ready, name: &'static str) -> Result<Payload> {
    let mut cmd = cargo::host(ready, "bench");
    cmd.args(["--package", "probe-user", "--bench", name]);
    let messages = messages_of(&mut cmd)?;
    Ok(Payload {
        name,
        args: vec!["--bench".to_owned()],
        bytes: executable(ready, &messages, "bench", name)?,
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Builds all tests and the binaries they run, as `cargo test` does: fewer at once would be another build, with other features of dependencies.
///
/// Returns cargo's messages, which name the executables.
fn build_tests(ready: &Ready) -> Result<String> {
    messages_of(&mut cargo::host(ready, "test"))
}

/// Has cargo build and not run, and returns its messages.
fn messages_of(cmd: &mut Command) -> Result<String> {
    cmd.args(["--no-run", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let out = cmd.output().with_context(|| format!("failed to run `{}`", sh::line(cmd)))?;
    ensure!(out.status.success(), "`{}` failed: {}", sh::line(cmd), out.status);
    String::from_utf8(out.stdout).context("cargo's messages are not UTF-8")
}

fn executable(ready: &Ready, messages: &str, kind: &str, name: &str) -> Result<Vec<u8>> {
    let built = executable_path(messages, kind, name);
    stripped(ready, &built.with_context(|| format!("cargo names no executable of {kind} `{name}`"))?)
}

/// Finds the one fact we need in cargo's JSON messages, without a JSON parser for it.
///
/// A library has an executable if it is its tests; a binary has its own, and its tests with a hash in the file name.
fn executable_path(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let is_meant = |path: &PathBuf| kind != "bin" || path.file_name().is_some_and(|file| file == name);
    let wanted = [
        r#""reason":"compiler-artifact""#.to_owned(),
        format!(r#""kind":["{kind}"]"#),
        format!(r#""name":"{name}""#),
    ];
    messages
        .lines()
        .filter(|line| wanted.iter().all(|part| line.contains(part)))
        .filter_map(|line| line.split_once(r#""executable":""#))
        .filter_map(|(_, rest)| rest.split_once('"').map(|(path, _)| PathBuf::from(path)))
        .find(is_meant)
}

/// Debug information would make most of the image, and nobody reads it there.
fn stripped(ready: &Ready, built: &Path) -> Result<Vec<u8>> {
    let out = ready.project.tools.join("payload");
    sh::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&out).arg(built))?;
    super::bytes(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"vm"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"vm"},"executable":"/t/deps/vm-0a0a","fresh":false}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"vm"},"executable":"/t/deps/vm-1a2b","fresh":false}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"vm"},"executable":"/t/vm","fresh":false}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable_path(messages, "lib", "vm"), Some(PathBuf::from("/t/deps/vm-0a0a")));
        assert_eq!(executable_path(messages, "bin", "vm"), Some(PathBuf::from("/t/vm")));
        assert_eq!(executable_path(messages, "bin", "other"), None);
    }

    #[test]
    fn names_are_unique_and_fit_the_report() {
        for (idx, line) in PAYLOADS.iter().enumerate() {
            assert!(line.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{}", line.name);
            let others = PAYLOADS[..idx].iter().map(|other| other.name).chain([ANSWERS]);
            assert!(others.into_iter().all(|other| other != line.name), "{} twice", line.name);
        }
    }
}
