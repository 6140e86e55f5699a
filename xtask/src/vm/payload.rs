//! What is run in the guest. To add one, add a line to [`PAYLOADS`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup::Ready;
use crate::{cargo, lab, sh};

/// Where a payload's executable comes from.
enum Source {
    /// A script that is part of xtask.
    Script(&'static str),
    /// A binary of the workspace: package, name.
    #[expect(dead_code, reason = "a way to add payloads")]
    Bin(&'static str, &'static str),
    /// An example: package, name.
    #[expect(dead_code, reason = "a way to add payloads")]
    Example(&'static str, &'static str),
    /// An integration test, the file `tests/NAME.rs`: package, name.
    #[expect(dead_code, reason = "a way to add payloads")]
    Test(&'static str, &'static str),
}

/// One executable to run in the guest; its exit code counts.
struct Line {
    name: &'static str,
    source: Source,
    args: &'static [&'static str],
}

/// All payloads, in the order in which they run.
const PAYLOADS: &[Line] =
    &[Line { name: "guest", source: Source::Script(include_str!("guest.sh")), args: &[] }];

/// A payload, built.
pub(crate) struct Payload {
    /// Its name in reports.
    pub(crate) name: &'static str,
    /// Its arguments.
    pub(crate) args: &'static [&'static str],
    /// The executable.
    pub(crate) bytes: Vec<u8>,
}

impl Payload {
    /// Where it is in the guest, without the leading slash.
    pub(crate) fn guest_path(&self) -> String {
        format!("tests/{}", self.name)
    }
}

/// Builds all payloads whose name contains `filter`.
///
/// # Errors
///
/// If one cannot be built.
pub(crate) fn build(ready: &Ready, filter: Option<&str>) -> Result<Vec<Payload>> {
    let chosen = PAYLOADS.iter().filter(|line| filter.is_none_or(|part| line.name.contains(part)));
    chosen
        .map(|line| {
            let bytes =
                executable(ready, &line.source).with_context(|| format!("payload `{}`", line.name))?;
            Ok(Payload { name: line.name, args: line.args, bytes })
        })
        .collect()
}

fn executable(ready: &Ready, source: &Source) -> Result<Vec<u8>> {
    let built = match source {
        Source::Script(text) => return Ok(text.as_bytes().to_vec()),
        Source::Bin(package, name) => {
            sh::run(cargo::host(ready, "build").args(["--quiet", "--package", package, "--bin", name]))?;
            lab::binary(ready, name)
        }
        Source::Example(package, name) => {
            sh::run(cargo::host(ready, "build").args(["--quiet", "--package", package, "--example", name]))?;
            lab::binary(ready, "examples").join(name)
        }
        Source::Test(package, name) => test_binary(ready, package, name)?,
    };
    stripped(ready, &built)
}

/// Builds an integration test and finds its executable, whose name only cargo knows.
fn test_binary(ready: &Ready, package: &str, name: &str) -> Result<PathBuf> {
    let mut cmd = cargo::host(ready, "test");
    cmd.args(["--quiet", "--package", package, "--test", name, "--no-run", "--message-format", "json"]);
    let out = cmd
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to run `{}`", sh::line(&cmd)))?;
    ensure!(out.status.success(), "`{}` failed: {}", sh::line(&cmd), out.status);
    let messages = String::from_utf8(out.stdout).context("cargo's messages are not UTF-8")?;
    test_executable(&messages, name).with_context(|| format!("cargo names no executable of test `{name}`"))
}

/// Finds the one fact we need in cargo's JSON messages, without a JSON parser for it.
fn test_executable(messages: &str, name: &str) -> Option<PathBuf> {
    let artifact = messages.lines().find(|line| {
        line.contains(r#""reason":"compiler-artifact""#)
            && line.contains(r#""kind":["test"]"#)
            && line.contains(&format!(r#""name":"{name}""#))
    })?;
    let (_, rest) = artifact.split_once(r#""executable":""#)?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
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
    fn the_executable_of_a_test_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"vm"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"vm"},"executable":"/t/deps/vm-1a2b","fresh":false}
{"reason":"build-finished","success":true}"#;
        assert_eq!(test_executable(messages, "vm"), Some(PathBuf::from("/t/deps/vm-1a2b")));
        assert_eq!(test_executable(messages, "other"), None);
    }

    #[test]
    fn names_are_unique_and_fit_the_report() {
        for (idx, line) in PAYLOADS.iter().enumerate() {
            assert!(line.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{}", line.name);
            assert!(PAYLOADS[..idx].iter().all(|other| other.name != line.name), "{} twice", line.name);
        }
    }
}
