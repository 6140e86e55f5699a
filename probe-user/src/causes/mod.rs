//! The catalogue's pages: `docs/causes`, as `build.rs` packs it into the binary.

mod names;
#[cfg(test)]
mod tests;

use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow, bail};
use flate2::read::ZlibDecoder;
use probe_model::explain::{Code, Source};

pub use names::{PLACEHOLDERS, find, placeholders};

/// Every page but the index, each behind a NUL, its file's name and a line feed.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/causes.zlib"));

/// One code's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Of which code.
    pub code: Code,
    /// The file in `docs/causes`.
    pub file: String,
    /// Where the node, the cluster or Azure show a root cause; empty if nobody on the node can see it.
    pub seen_from: Vec<Source>,
    /// The rest, in Markdown.
    pub sections: Vec<Section>,
}

/// A heading, and the Markdown below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Without its marks; empty above the first heading.
    pub heading: String,
    /// Blocks of Markdown.
    pub text: String,
}

/// The page of `code`; of all `DROP-n` the same.
///
/// # Errors
///
/// If the pages cannot be unpacked. Every code has a page: the tests see to it.
pub fn page(code: Code) -> Result<Page> {
    let found = pages()?.into_iter().find(|page| page.code == code.page());
    found.ok_or_else(|| anyhow!("`{code}` has no page"))
}

/// Every page, in the order of the files.
///
/// # Errors
///
/// If they cannot be unpacked or one is not written as a page is.
pub fn pages() -> Result<Vec<Page>> {
    let mut all = String::new();
    ZlibDecoder::new(PACKED).read_to_string(&mut all).context("failed to unpack the catalogue")?;
    let mut pages = Vec::new();
    for file in all.split('\0').skip(1) {
        let (name, text) = file.split_once('\n').unwrap_or((file, ""));
        pages.extend(read(name, text).with_context(|| format!("failed to read `docs/causes/{name}`"))?);
    }
    Ok(pages)
}

/// A file is one root cause, with a head, or several codes, each with a heading.
fn read(file: &str, text: &str) -> Result<Vec<Page>> {
    if let Some(text) = text.strip_prefix("---\n") {
        return Ok(vec![read_root_cause(file, text)?]);
    }
    let codes = sections(text, "## ").into_iter().filter(|section| !section.heading.is_empty());
    codes
        .map(|section| {
            let name = section.heading.trim_matches('`');
            let code = Code::parse(name).ok_or_else(|| anyhow!("`{name}` is no code"))?;
            let sections = sections(&section.text, "### ");
            Ok(Page { code, file: file.to_owned(), seen_from: Vec::new(), sections })
        })
        .collect()
}

fn read_root_cause(file: &str, text: &str) -> Result<Page> {
    let (head, body) = text.split_once("\n---\n").ok_or_else(|| anyhow!("the head has no end"))?;
    let value = |wanted: &str| {
        let mut pairs = head.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| *key == wanted).map(|(_, value)| value).ok_or_else(|| anyhow!("no `{wanted}`"))
    };
    let name = value("code")?;
    let code = Code::parse(name).ok_or_else(|| anyhow!("`{name}` is no code"))?;
    let seen_from = sources(value("seen-from")?)?;
    let sections = sections(body, "## ").into_iter().filter(|section| !section.heading.is_empty()).collect();
    Ok(Page { code, file: file.to_owned(), seen_from, sections })
}

fn sources(list: &str) -> Result<Vec<Source>> {
    if list == "nobody on the node" {
        return Ok(Vec::new());
    }
    let known = |name: &str| Source::ALL.into_iter().find(|source| source.text() == name);
    list.split(", ").map(|name| known(name).ok_or_else(|| anyhow!("`{name}` is no source"))).collect()
}

/// Cuts Markdown at its headings of one level; a line in a block of code is no heading.
fn sections(text: &str, mark: &str) -> Vec<Section> {
    let mut all = vec![Section { heading: String::new(), text: String::new() }];
    let mut in_code = false;
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        match line.strip_prefix(mark).filter(|_| !in_code) {
            Some(heading) => all.push(Section { heading: heading.to_owned(), text: String::new() }),
            None => {
                if let Some(last) = all.last_mut() {
                    last.text.push_str(line);
                    last.text.push('\n');
                }
            }
        }
    }
    for section in &mut all {
        section.text = section.text.trim().to_owned();
    }
    all
}

/// The code that an operator typed.
///
/// # Errors
///
/// If there is none: the message names the nearest, and how to list all.
pub fn code(typed: &str) -> Result<Code> {
    if let Some(code) = Code::parse(typed) {
        return Ok(code);
    }
    let near = find(typed);
    if near.is_empty() {
        bail!("unknown code `{typed}`; `plsprobe causes` lists all");
    }
    let near: Vec<_> = near.iter().map(|code| format!("{code} ({})", code.title())).collect();
    bail!("unknown code `{typed}`; perhaps {}; `plsprobe causes` lists all", near.join(", "))
}
