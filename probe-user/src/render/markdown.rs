//! The little Markdown of the catalogue's pages, for a terminal: paragraphs, lists and blocks of code.

use std::io::{self, Write};

/// Columns of a line, indentation included.
const WIDTH: usize = 80;

/// Writes `markdown`: paragraphs and list items wrapped, code as it is, marks of emphasis and links left out.
///
/// # Errors
///
/// What `out` says.
pub(super) fn text(markdown: &str, out: &mut impl Write) -> io::Result<()> {
    let mut before: Option<Block> = None;
    for block in blocks(markdown) {
        let in_one_list = matches!((&before, &block), (Some(Block::Item(_)), Block::Item(_)));
        if before.is_some() && !in_one_list {
            writeln!(out)?;
        }
        match &block {
            Block::Paragraph(text) => wrap(text, "  ", out)?,
            Block::Item(text) => wrap(text, "    ", out)?,
            Block::Code(lines) => {
                for line in lines {
                    writeln!(out, "{}", format!("    {line}").trim_end())?;
                }
            }
        }
        before = Some(block);
    }
    Ok(())
}

enum Block {
    Paragraph(String),
    /// With its dash.
    Item(String),
    Code(Vec<String>),
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut all: Vec<Block> = Vec::new();
    let mut in_code = false;
    let mut is_open = false;
    for line in markdown.lines() {
        let is_fence = line.starts_with("```");
        in_code ^= is_fence;
        match all.last_mut() {
            _ if is_fence && in_code => all.push(Block::Code(Vec::new())),
            Some(Block::Code(lines)) if in_code => lines.push(line.to_owned()),
            _ if is_fence || line.trim().is_empty() => {}
            _ if line.starts_with("- ") => all.push(Block::Item(line.to_owned())),
            Some(Block::Paragraph(text) | Block::Item(text)) if is_open => {
                text.push(' ');
                text.push_str(line.trim());
            }
            _ => all.push(Block::Paragraph(line.to_owned())),
        }
        // A blank line or a fence ends a paragraph.
        is_open = !is_fence && !line.trim().is_empty();
    }
    all
}

/// One paragraph or list item; lines but the first begin with `hanging`.
fn wrap(paragraph: &str, hanging: &str, out: &mut impl Write) -> io::Result<()> {
    let mut line = String::from(" ");
    for word in plain(paragraph).split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && !line.trim().is_empty() {
            writeln!(out, "{line}")?;
            hanging[1..].clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

/// Without marks of emphasis, and of links only their text.
fn plain(markdown: &str) -> String {
    let mut text = markdown.replace("**", "");
    while let Some((start, end, close)) = link(&text) {
        text.replace_range(end..=close, "");
        text.remove(start);
    }
    text
}

/// The next link: where its text begins and ends, and its last parenthesis.
fn link(text: &str) -> Option<(usize, usize, usize)> {
    let end = text.find("](")?;
    let start = text[..end].rfind('[')?;
    let close = end + text[end..].find(')')?;
    Some((start, end, close))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    #[test]
    fn paragraphs_lists_and_code() {
        let markdown = "One sentence per line.\nAnother, with **weight** and a [link](PLS-03.md), long enough to go on.\n\n- An item that is long enough to go on in the next line, where it is indented below the text.\n- Another.\n\nRun:\n\n```sh\nkubectl get svc -n NS SVC -o wide --show-labels --output-watch-events --ignore-not-found=true\n  indented\n```\n\nEnd.";
        // Without a first line at the margin the expected text would lose its indentation.
        let mut out = b"HEADING\n".to_vec();
        super::text(markdown, &mut out).unwrap();
        expect![[r#"
            HEADING
              One sentence per line. Another, with weight and a link, long enough to go on.

              - An item that is long enough to go on in the next line, where it is indented
                below the text.
              - Another.

              Run:

                kubectl get svc -n NS SVC -o wide --show-labels --output-watch-events --ignore-not-found=true
                  indented

              End.
        "#]]
        .assert_eq(&String::from_utf8(out).unwrap());
    }
}
