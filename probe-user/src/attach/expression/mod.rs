//! `--filter`: an expression as tcpdump has them, to run in the kernel with our programs.
mod inject;
mod translate;

#[cfg(test)]
pub(super) mod tests;

use anyhow::{Context as _, Result, anyhow};

pub(super) use inject::inject;

use crate::pcap::{self, Classic};

/// An expression that compiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// eBPF, as the stand-in of our object that it takes the place of.
    code: Vec<u8>,
}

impl Expression {
    /// Compiles an expression (pcap-filter(7)); it sees packets from their IP header on.
    ///
    /// # Errors
    ///
    /// With the expression, what is wrong, and where, as far as that can be told.
    pub fn parse(text: &str) -> Result<Self> {
        let program = pcap::compile(text).map_err(|message| anyhow!(explain(text, &message)))?;
        Self::translate(&program).with_context(|| format!("failed to translate the expression `{text}`"))
    }

    pub(super) fn translate(program: &[Classic]) -> Result<Self> {
        Ok(Self { code: translate::translate(program)? })
    }
}

/// libpcap's message, with the expression and a mark under what it is about.
fn explain(text: &str, message: &str) -> String {
    let found = match message.split('\'').nth(1).and_then(|word| text.find(word)) {
        Some(at) => Some((at, "")),
        None if message.contains("syntax error") => {
            Some((beginning(text), " the part before this can begin an expression"))
        }
        None => None,
    };
    match found {
        Some((at, note)) if !text.contains(['\n', '\t']) => {
            let indent = " ".repeat(text[..at].chars().count());
            format!("{message}\n  {text}\n  {indent}^{note}")
        }
        _ => format!("{message}, in `{text}`"),
    }
}

/// How many bytes of an expression that does not parse can begin one that does: shown for a part by an end with
/// which it compiles.
fn beginning(text: &str) -> usize {
    const ENDS: [&str; 9] =
        ["", " 1", " 10.0.0.1", " host 10.0.0.1", " 10", "0] = 0", "] = 0", " = 0", " port 1"];
    let mut longest = 0;
    for end in boundaries(text) {
        let part = &text[..end];
        let open = part.matches('(').count().saturating_sub(part.matches(')').count());
        let viable = ENDS.iter().any(|ending| {
            let whole = format!("{part}{ending}{}", ")".repeat(open));
            pcap::compile(&whole).is_ok()
        });
        if !viable {
            break;
        }
        // What comes next begins behind the space.
        longest = end + text[end..].len() - text[end..].trim_start().len();
    }
    longest
}

/// Where words and signs end.
fn boundaries(text: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || "_.-:/".contains(c);
    let mut ends = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let goes_on = is_word(c) && next.is_some_and(is_word) || "&|=<>!".contains(c) && next == Some('=');
        if !c.is_whitespace() && !goes_on {
            ends.push(at + c.len_utf8());
        }
    }
    ends
}
