//! The catalogue of codes as text, JSON and Markdown.

use std::io::{self, Write};

use probe_model::explain::{Area, Code};
use serde_json::{Value, json};

use super::{json_line, markdown};
use crate::causes::{Page, placeholders};

/// Version of the JSON of the list and of a page.
const SCHEMA: &str = "plsprobe.cause/1";

/// Writes the list for people: by area, a line each.
///
/// # Errors
///
/// What `out` says.
pub fn list(pages: &[Page], out: &mut impl Write) -> io::Result<()> {
    for (area, codes) in by_area() {
        let rows = codes.iter().map(|code| row(*code, page_of(pages, *code)));
        let is_root_cause = codes.iter().any(|code| code.is_root_cause());
        let heading = if is_root_cause { "detected by" } else { "" };
        let rows = std::iter::once((area.text().to_owned(), "", heading.to_owned())).chain(rows);
        let (code, title) = if is_root_cause { (8, 57) } else { (22, 0) };
        for (idx, (first, second, third)) in rows.enumerate() {
            let line = match idx {
                0 => format!("{first:<width$}{third}", width = code + title + 2),
                _ => format!("  {first:<code$}{second:<title$}{third}"),
            };
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)?;
    }
    writeln!(out, "`-`: plsprobe does not tell it yet; its page says how to check by hand.")?;
    writeln!(out, "`plsprobe causes CODE`: what proves it, what it is mistaken for, and the fix.")
}

fn row(code: Code, page: Option<&Page>) -> (String, &'static str, String) {
    let by = match page {
        Some(page) if code.is_root_cause() => detected_by(code, page),
        _ => String::new(),
    };
    (code.to_string(), code.title(), by)
}

/// Writes the list as JSON, one code a line.
///
/// # Errors
///
/// What `out` says.
pub fn list_json(pages: &[Page], out: &mut impl Write) -> io::Result<()> {
    for code in Code::ALL {
        writeln!(out, "{}", facts(*code, page_of(pages, *code)))?;
    }
    Ok(())
}

/// Writes a page for people, 80 columns wide but for commands and YAML.
///
/// # Errors
///
/// What `out` says.
pub fn page(code: Code, page: &Page, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{code}: {}", code.title())?;
    writeln!(out, "{}, {}", code.area().text(), code.severity().text())?;
    if code.is_root_cause() {
        writeln!(out, "{}", evidence(code, page))?;
    }
    for section in &page.sections {
        writeln!(out)?;
        if !section.heading.is_empty() {
            writeln!(out, "{}", section.heading.to_uppercase())?;
        }
        markdown::text(&section.text, out)?;
    }
    let text: String =
        page.sections.iter().map(|section| section.text.as_str()).collect::<Vec<_>>().join("\n");
    let capitals = placeholders(&text);
    if !capitals.is_empty() {
        writeln!(out, "\nIN CAPITALS")?;
    }
    for (name, meaning) in capitals {
        writeln!(out, "  {name:<14}{meaning}")?;
    }
    Ok(())
}

/// Writes a page as JSON, its text in Markdown.
///
/// # Errors
///
/// What `out` says.
pub fn page_json(code: Code, page: &Page, out: &mut impl Write) -> io::Result<()> {
    let mut value = facts(code, Some(page));
    value["sections"] = page
        .sections
        .iter()
        .map(|section| json!({ "heading": section.heading, "markdown": section.text }))
        .collect();
    json_line(&value, out)
}

/// The index of `docs/causes`, in Markdown.
pub fn index(pages: &[Page]) -> String {
    let tables = by_area().into_iter().map(|(area, codes)| index_table(pages, area, &codes));
    std::iter::once(INDEX_HEAD.to_owned()).chain(tables).collect()
}

fn index_table(pages: &[Page], area: Area, codes: &[Code]) -> String {
    let is_root_cause = codes.iter().any(|code| code.is_root_cause());
    let last = if is_root_cause { [" detected by |", "---|"] } else { ["", ""] };
    let head =
        format!("\n## {}\n\n| code | title |{}\n|---|---|{}\n", capitalized(area.text()), last[0], last[1]);
    let rows = codes.iter().filter_map(|code| {
        let page = page_of(pages, *code)?;
        let by = if is_root_cause { format!(" {} |", detected_by(*code, page)) } else { String::new() };
        Some(format!("| [`{code}`]({}) | {} |{by}\n", page.file, code.title()))
    });
    std::iter::once(head).chain(rows).collect()
}

fn capitalized(text: &str) -> String {
    let mut text = text.to_owned();
    text[..1].make_ascii_uppercase();
    text
}

/// What stands above the tables.
const INDEX_HEAD: &str = "# The catalogue

Every code that plsprobe says, and the 51 root causes of a Private Link flow that fails, or passes although it should not.
`plsprobe causes` prints this list, `plsprobe causes CODE` a page.
The list is written by a test (`UPDATE_EXPECT=1 cargo test -p probe-user causes`) from the code's own table and the pages' heads.

*Detected by* is what plsprobe tells a root cause from; `-` means that it does not yet, and the page says how to check by hand.
Words in capitals in commands and YAML are to be filled in; `plsprobe causes CODE` says with what.
";

/// Codes in the order of the catalogue, by area.
fn by_area() -> Vec<(Area, Vec<Code>)> {
    let mut areas: Vec<(Area, Vec<Code>)> = Vec::new();
    let mut all = Code::ALL.to_vec();
    // Root causes have the order of their numbers in the table.
    all.sort_by_key(|code| code.area());
    for code in all {
        match areas.last_mut() {
            Some((area, codes)) if *area == code.area() => codes.push(code),
            _ => areas.push((code.area(), vec![code])),
        }
    }
    areas
}

fn page_of(pages: &[Page], code: Code) -> Option<&Page> {
    pages.iter().find(|page| page.code == code.page())
}

/// Where plsprobe sees it, `-`, or that nobody can.
fn detected_by(code: Code, page: &Page) -> String {
    match (Code::DETECTED.contains(&code), page.seen_from.is_empty()) {
        (true, _) => sources(page),
        (false, true) => "nobody on the node".to_owned(),
        (false, false) => "-".to_owned(),
    }
}

fn sources(page: &Page) -> String {
    page.seen_from.iter().map(|source| source.text()).collect::<Vec<_>>().join(", ")
}

/// From where a root cause can be seen, and whether plsprobe does.
fn evidence(code: Code, page: &Page) -> String {
    match (Code::DETECTED.contains(&code), page.seen_from.is_empty()) {
        (_, true) => "seen by nobody on the node; somebody has to be asked".to_owned(),
        (true, false) => format!("detected by plsprobe, from {}", sources(page)),
        (false, false) => format!("seen from {}; not detected by plsprobe yet", sources(page)),
    }
}

fn facts(code: Code, page: Option<&Page>) -> Value {
    json!({
        "schema": SCHEMA, "code": code.text(), "title": code.title(), "area": code.area().text(),
        "severity": code.severity().text(),
        "seen_from": page.map(|page| page.seen_from.iter().map(|source| source.text()).collect::<Vec<_>>()),
        "detected": code.is_root_cause().then(|| Code::DETECTED.contains(&code)),
    })
}
