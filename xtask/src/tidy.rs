//! `cargo xtask tidy`: the rules of the house that no compiler checks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::project::Project;
use crate::sh;

/// One tracked text file.
struct File {
    path: String,
    text: String,
}

/// A rule: its name, and what breaks it, one line each.
type Rule = (&'static str, fn(&[File]) -> Vec<String>);

const RULES: [Rule; 6] = [
    ("one loader per file", one_loader_per_file),
    ("no unsafe code where none is needed", unsafe_forbidden),
    ("crates depend in one direction", arrows),
    ("every crate takes the workspace's lints", lints),
    ("no path or host of somebody's machine", machine_traces),
    ("shell scripts stop at the first error", shell_strict),
];

/// Runs `cargo xtask tidy`.
///
/// # Errors
///
/// If a rule is broken.
pub(crate) fn run() -> Result<()> {
    let rules = check(&Project::find()?)?;
    println!("{rules} rules hold");
    Ok(())
}

/// Checks all rules over all tracked files, and returns how many there are.
///
/// # Errors
///
/// If a rule is broken: one line for each place.
pub(crate) fn check(project: &Project) -> Result<usize> {
    let files = tracked(&project.root)?;
    ensure!(!files.is_empty(), "git tracks no file in `{}`", project.root.display());
    let broken: Vec<String> = RULES
        .iter()
        .flat_map(|(rule, find)| find(&files).into_iter().map(move |place| format!("{place} ({rule})")))
        .collect();
    ensure!(broken.is_empty(), "{} broken:\n  {}", broken.len(), broken.join("\n  "));
    Ok(RULES.len())
}

fn tracked(root: &Path) -> Result<Vec<File>> {
    // `safe.directory`, as CI and sudo may run under another user than the owner of the clone.
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = sh::output(git.current_dir(root))?;
    let mut files = Vec::new();
    for path in listed.split_terminator('\0') {
        let full = root.join(path);
        if !full.is_file() {
            continue; // deleted but not yet committed, or a link to a folder
        }
        let bytes = std::fs::read(&full).with_context(|| format!("failed to read `{path}`"))?;
        // What is not text has no rules here.
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

/// aya and libbpf-rs both own descriptors and both parse objects: a file that mixes them is hard to judge.
fn one_loader_per_file(files: &[File]) -> Vec<String> {
    let code = |file: &&File| has_extension(file, "rs") && !file.path.starts_with("xtask/");
    let mentions = |file: &File, names: &[&str]| names.iter().any(|name| file.text.contains(name));
    let mixed = files.iter().filter(code).filter(|file| {
        mentions(file, &["aya::", "use aya"])
            && mentions(file, &["libbpf_rs::", "libbpf_sys::", "use libbpf_"])
    });
    mixed.map(|file| format!("{}: imports both aya and libbpf-rs", file.path)).collect()
}

fn unsafe_forbidden(files: &[File]) -> Vec<String> {
    let roots = ["probe-common/src/lib.rs", "probe-model/src/lib.rs", "xtask/src/main.rs"];
    let forbids = |path: &str| {
        let root = files.iter().find(|file| file.path == path);
        root.is_some_and(|file| file.text.lines().any(|line| line == "#![forbid(unsafe_code)]"))
    };
    let open = roots.into_iter().filter(|path| !forbids(path));
    open.map(|path| format!("{path}: has no line `#![forbid(unsafe_code)]`")).collect()
}

/// What each crate must never depend on; `design.md` of the project has the picture.
fn arrows(files: &[File]) -> Vec<String> {
    const NEVER: [(&str, &[&str]); 5] = [
        ("probe-common/Cargo.toml", &["aya", "libbpf-rs", "libc", "probe-model", "probe-user", "probe-lab"]),
        (
            "probe-model/Cargo.toml",
            &["aya", "libbpf-rs", "libbpf-sys", "libc", "probe-user", "probe-lab", "tokio"],
        ),
        ("probe-ebpf/Cargo.toml", &["probe-model", "probe-user", "probe-lab"]),
        ("probe-user/Cargo.toml", &["probe-lab", "probe-lab-ebpf"]),
        ("xtask/Cargo.toml", &["probe-common", "probe-model", "probe-user", "probe-lab"]),
    ];
    let mut broken = Vec::new();
    for (manifest, never) in NEVER {
        let Some(file) = files.iter().find(|file| file.path == manifest) else {
            broken.push(format!("{manifest}: missing"));
            continue;
        };
        let names = dependencies(&file.text);
        let wrong = names.iter().filter(|name| never.contains(name));
        broken.extend(wrong.map(|name| format!("{manifest}: must not depend on `{name}`")));
    }
    broken
}

/// Names in the `[dependencies]` table; those of tests may point anywhere.
fn dependencies(manifest: &str) -> Vec<&str> {
    let table = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let table = table.take_while(|line| !line.starts_with('['));
    table
        .filter_map(|line| line.split(['=', '.']).next())
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

fn lints(files: &[File]) -> Vec<String> {
    let crates =
        files.iter().filter(|file| file.path.ends_with("/Cargo.toml") && !file.path.starts_with("fuzz/"));
    let without = crates.filter(|file| !file.text.contains("[lints]\nworkspace = true"));
    without.map(|file| format!("{}: has no `[lints] workspace = true`", file.path)).collect()
}

/// Paths of build machines and names of mirrors have no place in a public tree.
fn machine_traces(files: &[File]) -> Vec<String> {
    // Put together here, so that this file keeps its own rule.
    let traces =
        [["/wo", "rk/"], ["/tmp", "/w/"], ["/ro", "ot/"], ["deb.deb", "ian.org"], ["snapshot.deb", "ian"]];
    let traces = traces.map(|parts| parts.concat());
    let mut broken = Vec::new();
    for file in files.iter().filter(|file| !file.path.starts_with("fixtures/")) {
        for (idx, line) in file.text.lines().enumerate() {
            let found = traces.iter().filter(|trace| line.contains(trace.as_str()));
            broken.extend(found.map(|trace| format!("{}:{}: has `{trace}`", file.path, idx + 1)));
        }
    }
    let lock = files.iter().filter(|file| file.path.ends_with("Cargo.lock"));
    for line in lock.flat_map(|file| file.text.lines()).filter(|line| line.starts_with("source = ")) {
        if line != "source = \"registry+https://github.com/rust-lang/crates.io-index\"" {
            broken.push(format!("Cargo.lock: `{line}` is not the public registry"));
        }
    }
    broken
}

fn shell_strict(files: &[File]) -> Vec<String> {
    let scripts = files.iter().filter(|file| {
        file.text.starts_with("#!") && file.text.lines().next().is_some_and(|line| line.ends_with("bash"))
    });
    let loose = scripts.filter(|file| !file.text.lines().any(|line| line == "set -euo pipefail"));
    loose.map(|file| format!("{}: has no line `set -euo pipefail`", file.path)).collect()
}

fn has_extension(file: &File, extension: &str) -> bool {
    Path::new(&file.path).extension().is_some_and(|ext| ext == extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_one(rule: fn(&[File]) -> Vec<String>, path: &str, text: &str, expected: &[&str]) {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found: Vec<String> = rule(&[file]).into_iter().filter(|line| line.starts_with(path)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_file_with_both_loaders_is_found() {
        let both = "use aya::Ebpf;\nuse libbpf_rs::MapHandle;\n";
        check_one(one_loader_per_file, "a/b.rs", both, &["a/b.rs: imports both aya and libbpf-rs"]);
        check_one(one_loader_per_file, "a/b.rs", "use aya::Ebpf;\n", &[]);
        check_one(one_loader_per_file, "a/b.md", both, &[]);
    }

    #[test]
    fn a_crate_that_allows_unsafe_code_is_found() {
        let path = "probe-model/src/lib.rs";
        check_one(unsafe_forbidden, path, "#![forbid(unsafe_code)]\n", &[]);
        check_one(
            unsafe_forbidden,
            path,
            "// #![forbid(unsafe_code)]\n",
            &["probe-model/src/lib.rs: has no line `#![forbid(unsafe_code)]`"],
        );
    }

    #[test]
    fn an_arrow_the_wrong_way_is_found() {
        let path = "probe-model/Cargo.toml";
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nbytes = \"1\"\ntokio.workspace = true\n\n\
                        [dev-dependencies]\nlibc = \"0.2\"\n";
        check_one(arrows, path, manifest, &["probe-model/Cargo.toml: must not depend on `tokio`"]);
    }

    #[test]
    fn traces_of_a_machine_are_found() {
        let text = ["fine\nsee /wo", "rk/shared\n"].concat();
        check_one(machine_traces, "a.md", &text, &[&["a.md:2: has `/wo", "rk/`"].concat()]);
        let lock = "source = \"registry+https://mirror.test/index\"\n";
        check_one(
            machine_traces,
            "Cargo.lock",
            lock,
            &["Cargo.lock: `source = \"registry+https://mirror.test/index\"` is not the public registry"],
        );
    }

    #[test]
    fn a_script_that_runs_on_after_an_error_is_found() {
        let script = "#!/usr/bin/env bash\necho hi\n";
        check_one(shell_strict, "run", script, &["run: has no line `set -euo pipefail`"]);
        check_one(shell_strict, "run", &format!("{script}set -euo pipefail\n"), &[]);
        check_one(lints, "a/Cargo.toml", "[package]\n", &["a/Cargo.toml: has no `[lints] workspace = true`"]);
    }
}
