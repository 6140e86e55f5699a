//! The matrix of kernels in the documentation, from real results only.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::answers::Compared;
use super::normalize::RULES;
use super::report::{Guest, Outcome, Row};
use crate::sh;

/// Between these lines of README.md is the short form.
const BEGIN: &str = "<!-- cargo xtask vm-test --all --write: begin -->\n";
const END: &str = "<!-- cargo xtask vm-test --all --write: end -->\n";

/// Writes `docs/kernels.md`, and its short form into `README.md`.
///
/// # Errors
///
/// If a file cannot be read or written, or README.md has lost the two lines between which the table is.
pub(crate) fn write(root: &Path, rows: &[Row]) -> Result<()> {
    let host = sh::read(Path::new("/proc/sys/kernel/osrelease"))?;
    let host = host.split('.').take(2).collect::<Vec<_>>().join(".");
    put(&root.join("docs/kernels.md"), &long(rows, host.trim()))?;
    let readme = root.join("README.md");
    let text = replaced(&sh::read(&readme)?, &short(rows)).with_context(|| {
        format!("`{}` has no lines `{}` and `{}`", readme.display(), BEGIN.trim(), END.trim())
    })?;
    put(&readme, &text)
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

fn replaced(readme: &str, table: &str) -> Option<String> {
    let (head, rest) = readme.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}{table}{END}{tail}"))
}

fn short(rows: &[Row]) -> String {
    let cells = |row: &Row| match &row.outcome {
        Outcome::NotToBeHad(_) => [row.series.clone(), NOT_TO_BE_HAD.into(), String::new(), String::new()],
        Outcome::Ran(guest) => {
            [guest.release.clone(), guest.loaded(), guest.verdicts_by().to_owned(), guest.identical()]
        }
    };
    let header = ["Debian's kernel", "programs loaded", "verdicts by", "lab scenarios answered as elsewhere"];
    table(&header, rows.iter().map(|row| cells(row).to_vec()))
}

/// Why is not said: it is a matter of the machine that wrote this.
const NOT_TO_BE_HAD: &str = "not to be had";

fn long(rows: &[Row], host: &str) -> String {
    [
        "# Kernels\n".to_owned(),
        format!(
            "Written by `cargo xtask vm-test --all --write`; do not edit.\n\
             It boots each kernel in an emulated machine, loads every eBPF program of plsprobe's, and traces the lab's scenarios there with the static binary of `cargo xtask dist`.\n\
             In the guests every verdict comes from a probe on Cilium's own notifications.\n\
             What plsprobe answers, in JSON and in text, what the lab's clients saw, and the exit codes are compared with a run of the same scenarios on another machine, Linux {host}, line by line.\n"
        ),
        kernels(rows),
        "## Programs loaded\n".to_owned(),
        programs(rows),
        "## Scenarios answered as on the other machine\n".to_owned(),
        scenarios(rows),
        "## What may differ\n".to_owned(),
        "All else must be the same to the byte.\n".to_owned(),
        table(&["what", "why"], RULES.iter().map(|rule| vec![rule.what.to_owned(), rule.why.to_owned()])),
    ]
    .join("\n")
}

fn kernels(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let mut cells = vec![row.series.clone(), row.suite.clone()];
        match &row.outcome {
            Outcome::NotToBeHad(_) => cells.push(NOT_TO_BE_HAD.to_owned()),
            Outcome::Ran(guest) => cells.extend([
                guest.release.clone(),
                guest.loaded(),
                guest.hooks(),
                guest.identical(),
                guest.seconds.to_string(),
            ]),
        }
        cells
    };
    let header = [
        "series",
        "Debian suite",
        "kernel",
        "programs loaded",
        "hooks attached by",
        "scenarios the same",
        "seconds",
    ];
    table(&header, rows.iter().map(cells))
}

fn programs(rows: &[Row]) -> String {
    let names: BTreeSet<&String> = guests(rows).flat_map(|(_, guest)| guest.programs.keys()).collect();
    per_guest("program", rows, names.into_iter().map(String::as_str), |guest, name| {
        guest.programs.get(name).map_or("missing", |outcome| if outcome.is_ok() { "yes" } else { "no" })
    })
}

fn scenarios(rows: &[Row]) -> String {
    let worlds: BTreeSet<&String> =
        guests(rows).flat_map(|(_, guest)| guest.compared.iter().map(|compared| &compared.world)).collect();
    per_guest("scenario/shape", rows, worlds.into_iter().map(String::as_str), |guest, world| {
        let is_meant = |compared: &&Compared| compared.world == world;
        let compared = guest.compared.iter().find(is_meant);
        compared.map_or("missing", |compared| if compared.differences.is_empty() { "yes" } else { "no" })
    })
}

/// One line for each name, one column for each kernel that ran.
fn per_guest<'a>(
    what: &str,
    rows: &[Row],
    names: impl Iterator<Item = &'a str>,
    cell: impl Fn(&Guest, &str) -> &'static str,
) -> String {
    let series = guests(rows).map(|(series, _)| series);
    let header: Vec<&str> = std::iter::once(what).chain(series).collect();
    let line = |name: &str| {
        let cells = guests(rows).map(|(_, guest)| cell(guest, name).to_owned());
        std::iter::once(format!("`{name}`")).chain(cells).collect()
    };
    table(&header, names.map(line))
}

fn guests(rows: &[Row]) -> impl Iterator<Item = (&str, &Guest)> {
    rows.iter().filter_map(|row| match &row.outcome {
        Outcome::NotToBeHad(_) => None,
        Outcome::Ran(guest) => Some((row.series.as_str(), guest)),
    })
}

/// A table as Markdown has it; short lines are filled up.
fn table(header: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header_cells: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = line(&header_cells) + &"|---".repeat(header.len()) + "|\n";
    for mut cells in lines {
        cells.resize(header.len(), String::new());
        text += &line(&cells);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{guest, row};
    use super::*;

    fn rows() -> [Row; 2] {
        let mut old = guest("5.10.0-32");
        old.programs.insert("a".to_owned(), Err("EINVAL".to_owned()));
        [row("5.10", Outcome::Ran(old)), row("7", Outcome::NotToBeHad("no such host mirror.test".into()))]
    }

    #[test]
    fn the_matrix_shows_what_failed_and_what_could_not_be_had() {
        let text = long(&rows(), "6.18");
        assert!(
            text.contains("| 5.10 | bookworm | 5.10.0-32 | 1 of 2 | 1 fentry, 6 legacy tc | 1 of 1 | 42 |\n"),
            "{text}"
        );
        assert!(text.contains("| 7 | bookworm | not to be had |  |  |  |  |\n"), "{text}");
        assert!(text.contains("| `a` | no |\n| `b` | yes |\n"), "{text}");
        assert!(text.contains("| `none/aks` | yes |\n"), "{text}");
        assert!(text.contains("Linux 6.18"), "{text}");
        assert!(!text.contains("mirror.test"), "{text}");
    }

    #[test]
    fn the_short_form_replaces_only_what_is_between_its_lines() {
        let readme = format!("before\n{BEGIN}old\n{END}after\n");
        let text = replaced(&readme, &short(&rows())).unwrap();
        assert!(text.starts_with(&format!("before\n{BEGIN}| Debian's kernel |")), "{text}");
        assert!(text.contains("| 5.10.0-32 | 1 of 2 | fentry | 1 of 1 |\n"), "{text}");
        assert!(text.ends_with(&format!("{END}after\n")) && !text.contains("old"), "{text}");
        assert_eq!(replaced("no such lines\n", ""), None);
    }
}
