//! The pages are complete, true to the code's own table, and can be typed off.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use expect_test::{expect, expect_file};
use probe_model::explain::Code;
use saphyr_parser::{Event, Parser};

use super::*;
use crate::render::causes as render;

/// What every page of a root cause has, in this order; one more, the last, only where somebody has to be asked.
const SECTIONS: [&str; 6] =
    ["Symptom", "What proves it", "Often mistaken for", "Fix", "Assumptions", "Whom to ask"];

/// Words in capitals in commands and YAML that are none to be filled in.
const SPELLED_SO: &str = "A4 ACCEPT AGENT DROP EXT FIREWALL FORWARD FW GET INPUT IP KUBE MARK MASQ MASQUERADE MTU NAME NAT \
    NRG PODS PROXY PT5M REJECT RST SYN TCP TCPMSS TYPES UDP";

fn root_causes() -> Vec<Page> {
    pages().expect("pages").into_iter().filter(|page| page.code.is_root_cause()).collect()
}

fn section<'p>(page: &'p Page, heading: &str) -> &'p str {
    let found = page.sections.iter().find(|section| section.heading == heading);
    found.map_or("", |section| section.text.as_str())
}

/// Blocks of code in one language, with the page they are on.
fn blocks(language: &str) -> Vec<(Code, String)> {
    let mut all = Vec::new();
    for page in pages().expect("pages") {
        for section in &page.sections {
            for block in section.text.split("```").skip(1).step_by(2) {
                let (found, code) = block.split_once('\n').expect("a block of code names its language");
                if found == language {
                    all.push((page.code, code.to_owned()));
                }
            }
        }
    }
    all
}

#[test]
fn every_code_has_one_page() {
    let mut found: Vec<_> = pages().unwrap().iter().map(|page| page.code).collect();
    found.sort();
    let mut wanted = Code::ALL.to_vec();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn a_root_cause_has_every_section() {
    for page in root_causes() {
        let headings: Vec<_> = page.sections.iter().map(|section| section.heading.as_str()).collect();
        let asks = headings.last() == Some(&"Whom to ask");
        assert_eq!(headings, SECTIONS[..if asks { 6 } else { 5 }], "{}", page.code);
        assert!(asks || !page.seen_from.is_empty(), "{}: who is to be asked?", page.code);
        for section in &page.sections {
            assert!(!section.text.is_empty(), "{}: {} is empty", page.code, section.heading);
        }
    }
}

#[test]
fn other_codes_say_what_to_do() {
    for page in pages().unwrap().iter().filter(|page| !page.code.is_root_cause()) {
        let headings: Vec<_> = page.sections.iter().map(|section| section.heading.as_str()).collect();
        assert_eq!(headings, ["", "What to do"], "{}", page.code);
        assert!(page.sections.iter().all(|section| !section.text.is_empty()), "{}", page.code);
    }
}

/// The heads are for people who read the files; the program has the same from its own table.
///
/// `UPDATE_EXPECT=1` writes them.
#[test]
fn heads_say_what_the_code_says() {
    for page in root_causes() {
        let code = page.code;
        let detected = if Code::DETECTED.contains(&code) { "yes" } else { "no" };
        let seen_from: Vec<_> = page.seen_from.iter().map(|source| source.text()).collect();
        let seen_from =
            if seen_from.is_empty() { "nobody on the node".to_owned() } else { seen_from.join(", ") };
        let head = format!(
            "---\ncode: {code}\ntitle: {}\narea: {}\nseverity: {}\nseen-from: {seen_from}\ndetected: {detected}\n---\n",
            code.title(),
            code.area().text(),
            code.severity().text()
        );
        let path = root().join("docs/causes").join(format!("{code}.md"));
        let text = std::fs::read_to_string(&path).expect("the page");
        let (_, body) = text.split_once("\n---\n").expect("the end of the head");
        expect_file![path].assert_eq(&format!("{head}{body}"));
    }
}

/// What is said to be detected is what the sources can say, outside of their tests.
#[test]
fn detected_is_what_the_sources_say() {
    let mut said = BTreeSet::new();
    for folder in ["probe-model/src", "probe-user/src"] {
        for path in source_files(&root().join(folder)) {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let codes = Code::ALL.iter().filter(|code| mentions(shipped, &format!("Code::{code:?}")));
            said.extend(codes.filter(|code| code.is_root_cause()));
        }
    }
    assert_eq!(said, Code::DETECTED.iter().copied().collect());
}

/// Every source file but the table of codes and tests.
fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (path.is_dir(), name) {
            // Candidates are named where nothing is told.
            (_, "tests" | "tests.rs" | "catalogue.rs" | "candidates.rs") => {}
            (true, _) => all.extend(source_files(&path)),
            (false, _) if path.extension().is_some_and(|extension| extension == "rs") => all.push(path),
            _ => {}
        }
    }
    all
}

/// Whether `text` has `word` as a value: as a pattern or in a comparison it says nothing.
fn mentions(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].trim_end(), &text[at + word.len()..]);
        let is_whole = !after.starts_with(char::is_alphanumeric);
        let is_pattern = after.trim_start().starts_with("=>") || after.trim_start().starts_with('|');
        let is_compared = before.ends_with("==") || before.ends_with("!=");
        is_whole && !is_pattern && !is_compared
    })
}

#[test]
fn only_a_value_says_a_code() {
    let said = |text: &str| mentions(text, "Code::Open");
    assert!(said("Cause::new(Code::Open, text)") && said("(true, _) => Code::Open,"));
    for silent in
        ["Code::Open => 1", "Code::Open\n    | Code::Audit => 1", "code == Code::Open {", "Code::OpenDoor"]
    {
        assert!(!said(silent), "{silent}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn what_it_is_mistaken_for_has_a_page() {
    for page in root_causes() {
        let items = section(&page, "Often mistaken for").lines();
        for item in items {
            let name = item.strip_prefix("- ").and_then(|item| item.split(": ").next());
            let other = name.and_then(Code::parse);
            assert!(other.is_some_and(|other| other != page.code), "{}: {item}", page.code);
        }
    }
}

/// Every code that a page names exists: written in full, not in the short forms that an operator may type.
#[test]
fn named_codes_exist() {
    for page in pages().unwrap() {
        for section in &page.sections {
            for word in section.text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
                let number = word.strip_prefix("PLS-");
                let exists = |number: &str| Code::parse(word).is_some_and(|code| code.text()[4..] == *number);
                assert!(number.is_none_or(exists), "{}: {word}", page.code);
            }
        }
    }
}

#[test]
fn yaml_parses() {
    let all = blocks("yaml");
    assert!(all.len() > 20, "{} blocks", all.len());
    for (code, yaml) in all {
        let events: Result<Vec<_>, _> = Parser::new_from_str(&yaml).collect();
        let events = events.unwrap_or_else(|error| panic!("{code}: {error}\n{yaml}"));
        let documents = events.iter().filter(|(event, _)| matches!(event, Event::DocumentStart(_)));
        assert_eq!(documents.count(), 1, "{code}: one object a block");
    }
}

#[test]
fn only_words_in_capitals_are_left_to_fill_in() {
    let known: BTreeSet<_> =
        PLACEHOLDERS.iter().map(|(name, _)| *name).chain(SPELLED_SO.split_whitespace()).collect();
    let mut used = BTreeSet::new();
    for language in ["sh", "yaml", "json"] {
        for (page, code) in blocks(language) {
            for other in ["<", ">", "…", "...", "${", "xxx", "example"] {
                assert!(!code.contains(other), "{page}: `{other}` in\n{code}");
            }
            for word in code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                let capital = word.len() > 1
                    && word.starts_with(|c: char| c.is_ascii_uppercase())
                    && !word.contains(|c: char| c.is_ascii_lowercase());
                assert!(!capital || known.contains(word), "{page}: what is {word}? in\n{code}");
                used.extend(PLACEHOLDERS.iter().filter(|(name, _)| *name == word).map(|(name, _)| *name));
            }
        }
    }
    let idle: Vec<_> = PLACEHOLDERS.iter().filter(|(name, _)| !used.contains(name)).collect();
    assert!(idle.is_empty(), "no page has {idle:?}");
}

/// A terminal shows paragraphs and lists; tables and pictures it does not.
#[test]
fn pages_have_the_markdown_that_a_terminal_shows() {
    for page in pages().unwrap() {
        for section in &page.sections {
            let prose: Vec<_> = section.text.split("```").step_by(2).collect();
            for line in prose.iter().flat_map(|text| text.lines()) {
                assert!(!line.starts_with(['|', '#', '>', ' ']), "{}: {line}", page.code);
                let stars = line.split('`').step_by(2).any(|text| text.contains('*'));
                assert!(!stars, "{}: emphasis in {line}", page.code);
            }
        }
    }
}

#[test]
fn the_index_is_up_to_date() {
    expect_file!["../../../docs/causes/README.md"].assert_eq(&render::index(&pages().unwrap()));
}

#[test]
fn a_file_that_is_no_page_is_told() {
    let error = |text: &str| format!("{:#}", read("x.md", text).unwrap_err());
    expect!["the head has no end"].assert_eq(&error("---\ncode: PLS-01\n"));
    expect!["no `code`"].assert_eq(&error("---\ntitle: x\n---\n"));
    expect!["`PLS-99` is no code"].assert_eq(&error("---\ncode: PLS-99\n---\n"));
    expect!["`moon` is no source"].assert_eq(&error("---\ncode: PLS-01\nseen-from: moon\n---\n"));
    expect!["`no-code` is no code"].assert_eq(&error("# Title\n\n## `no-code`\n"));
}

#[test]
fn an_unknown_code_names_the_nearest() {
    let error = |typed: &str| code(typed).unwrap_err().to_string();
    expect!["unknown code `PLS-77`; perhaps PLS-07 (The load balancer's health probe is denied by policy), PLS-17 (The private endpoint's connection is not approved), PLS-27 (endPort is ignored by Cilium before 1.16), PLS-37 (NAT ports are exhausted or reused too soon); `plsprobe causes` lists all"].assert_eq(&error("PLS-77"));
    expect!["unknown code `hook-gp`; perhaps hook-gap (For a time a hook saw nothing); `plsprobe causes` lists all"].assert_eq(&error("hook-gp"));
    expect!["unknown code `kube-proxy`; perhaps PLS-03 (kube-proxy hides the NAT IP before policy runs); `plsprobe causes` lists all"].assert_eq(&error("kube-proxy"));
    expect!["unknown code `xyzzyx`; `plsprobe causes` lists all"].assert_eq(&error("xyzzyx"));
    expect!["unknown code ``; `plsprobe causes` lists all"].assert_eq(&error(""));
}
