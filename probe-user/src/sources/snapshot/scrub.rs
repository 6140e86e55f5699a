//! Takes out of the agent's JSON what may be secret, and nothing else: all other bytes stay as they were.
//!
//! A value goes by its field's name (`password`, `kvstore-opt`, everything under `annotations` or `env`, …), by the name
//! beside it (`{"name": "TOKEN", "value": …}`), or by its own shape ([`shape`](super::shape)). Text that is JSON itself,
//! as policies and filters are, is looked through in the same way. Labels, selectors and names are left alone whatever
//! they look like: they are what an answer prints.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use anyhow::{Context as _, Result};
use serde::de::IgnoredAny;

use super::shape;

/// What stands for text that was taken out.
const REMOVED: &str = "[removed]";
/// What stands for a number that was taken out.
const REMOVED_NUMBER: &str = "0";
/// Fields that hold what an answer prints or compares: labels, and what selects by them.
const KEPT: [&str; 10] = [
    "labels",
    "security-relevant",
    "matchLabels",
    "matchExpressions",
    "endpointSelector",
    "nodeSelector",
    "selector",
    "derived-from-rules",
    "rules-by-selector",
    "cidr-policy",
];
/// JSON in text in JSON … is looked through to this depth; what is deeper is taken out.
const DEPTH: usize = 4;

/// JSON text without secrets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scrubbed<'a> {
    /// The text.
    pub(super) text: Cow<'a, str>,
    /// How many values were taken out, by their field's name.
    pub(super) removed: BTreeMap<String, u64>,
}

/// `text` without what may be secret.
///
/// # Errors
///
/// If it is no JSON: then nothing can be told apart in it.
pub(super) fn scrub(text: &str) -> Result<Scrubbed<'_>> {
    scrub_to_depth(text, DEPTH)
}

fn scrub_to_depth(text: &str, depth: usize) -> Result<Scrubbed<'_>> {
    serde_json::from_str::<IgnoredAny>(text).context("it is no JSON")?;
    let mut scanner = Scanner { text, position: 0, levels: Vec::new(), cuts: Vec::new(), depth };
    while let Some(token) = scanner.next() {
        scanner.take(&token);
    }
    let Scanner { mut cuts, .. } = scanner;
    let mut removed = BTreeMap::new();
    for (name, count) in cuts.iter().flat_map(|cut| &cut.removed) {
        *removed.entry(name.clone()).or_default() += count;
    }
    if cuts.is_empty() {
        return Ok(Scrubbed { text: text.into(), removed });
    }
    // An object's value may have been taken out for a name that came after it.
    cuts.sort_by_key(|cut| cut.at.start);
    let (mut scrubbed, mut end) = (String::with_capacity(text.len()), 0);
    for Cut { at, instead, .. } in cuts {
        scrubbed.push_str(&text[end..at.start]);
        scrubbed.push_str(&instead);
        end = at.end;
    }
    scrubbed.push_str(&text[end..]);
    Ok(Scrubbed { text: scrubbed.into(), removed })
}

/// A place in the text and what stands there instead.
struct Cut {
    at: Range<usize>,
    instead: String,
    removed: BTreeMap<String, u64>,
}

/// One step through valid JSON.
enum Token {
    Open {
        is_object: bool,
    },
    Close,
    Text(Range<usize>),
    /// A number, `true`, `false` or `null`.
    Word(Range<usize>),
    /// A comma: in an object a name follows.
    Comma,
    Colon,
}

/// An object or an array that is not closed yet.
struct Level {
    is_object: bool,
    /// Whether the next text in an object is a name.
    awaits_name: bool,
    /// The name whose value is next; in an array that of the array itself.
    name: String,
    /// Why values here are left alone or taken out.
    rule: Rule,
    /// Whether a member such as `name` is itself a secret's name.
    names_a_secret: bool,
    /// Values of members such as `value`, until it is known whose they are.
    values: Vec<Range<usize>>,
}

/// What is done with values under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Left alone.
    Keep,
    /// Taken out where their shape is a secret's.
    Look,
    /// Text is taken out.
    RemoveText,
    /// Text and numbers are taken out.
    Remove,
}

struct Scanner<'a> {
    text: &'a str,
    position: usize,
    levels: Vec<Level>,
    cuts: Vec<Cut>,
    depth: usize,
}

impl Scanner<'_> {
    /// The next token: the text is known to be valid.
    fn next(&mut self) -> Option<Token> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.position)?.is_ascii_whitespace() {
            self.position += 1;
        }
        let begin = self.position;
        self.position += 1;
        Some(match bytes[begin] {
            b'{' => Token::Open { is_object: true },
            b'[' => Token::Open { is_object: false },
            b'}' | b']' => Token::Close,
            b',' => Token::Comma,
            b':' => Token::Colon,
            b'"' => {
                while bytes.get(self.position).is_some_and(|byte| *byte != b'"') {
                    self.position += if bytes[self.position] == b'\\' { 2 } else { 1 };
                }
                self.position = (self.position + 1).min(bytes.len());
                Token::Text(begin..self.position)
            }
            _ => {
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                while bytes.get(self.position).is_some_and(is_word) {
                    self.position += 1;
                }
                Token::Word(begin..self.position)
            }
        })
    }

    fn take(&mut self, token: &Token) {
        match token {
            Token::Open { is_object } => self.open(*is_object),
            Token::Close => self.close(),
            Token::Comma => {
                if let Some(level) = self.levels.last_mut() {
                    level.awaits_name = level.is_object;
                }
            }
            Token::Colon => {}
            Token::Text(at) => match self.levels.last_mut().filter(|level| level.awaits_name) {
                Some(level) => {
                    level.awaits_name = false;
                    level.name = unescaped(&self.text[at.clone()]);
                }
                None => self.value(at.clone()),
            },
            Token::Word(at) => self.word(at.clone()),
        }
    }

    fn open(&mut self, is_object: bool) {
        let name = self.name().to_owned();
        let rule = self.rule();
        let values = Vec::new();
        self.levels.push(Level {
            is_object,
            awaits_name: is_object,
            name,
            rule,
            names_a_secret: false,
            values,
        });
    }

    fn close(&mut self) {
        let Some(level) = self.levels.pop() else { return };
        if level.names_a_secret && level.rule != Rule::Keep {
            // What was taken out of the value before goes with it.
            self.cuts.retain(|cut| !level.values.contains(&cut.at));
            for at in level.values {
                let instead = if self.text[at.clone()].starts_with('"') {
                    quoted(REMOVED)
                } else {
                    REMOVED_NUMBER.into()
                };
                self.cut(at, instead, "value");
            }
        }
    }

    /// The name of the value that is next.
    fn name(&self) -> &str {
        self.levels.last().map_or("", |level| &level.name)
    }

    /// What is done with the value that is next.
    fn rule(&self) -> Rule {
        let Some(level) = self.levels.last() else { return Rule::Look };
        let own = match level.is_object {
            true if level.names_a_secret && matches!(level.name.as_str(), "value" | "values") => Rule::Remove,
            true => rule_of(&level.name),
            false => Rule::Look,
        };
        match (level.rule, own) {
            (Rule::Look, own) => own,
            // Under a secret's name nothing is harmless but what is there for labels; under labels nothing is secret.
            (Rule::RemoveText, Rule::Remove) => Rule::Remove,
            (above, _) => above,
        }
    }

    fn value(&mut self, at: Range<usize>) {
        let value = unescaped(&self.text[at.clone()]);
        let (rule, name) = (self.rule(), self.name().to_owned());
        if rule == Rule::Keep || value.is_empty() || value == REMOVED || is_version(&self.levels, &name) {
            return;
        }
        if matches!(rule, Rule::Remove | Rule::RemoveText) {
            return self.cut(at, quoted(REMOVED), &name);
        }
        if let Some(level) = self.levels.last_mut().filter(|level| level.is_object) {
            match name.to_ascii_lowercase().as_str() {
                "name" | "key" | "header" => level.names_a_secret |= shape::is_secret_name(&value),
                "value" => level.values.push(at.clone()),
                _ => {}
            }
        }
        if value.starts_with(['{', '[']) && serde_json::from_str::<IgnoredAny>(&value).is_ok() {
            self.nested(at, &value, &name);
        } else if shape::is_secret(&name, &value) {
            self.cut(at, quoted(REMOVED), &name);
        }
    }

    /// A text that is JSON itself.
    fn nested(&mut self, at: Range<usize>, value: &str, name: &str) {
        if self.depth == 0 {
            return self.cut(at, quoted(REMOVED), name);
        }
        let Ok(Scrubbed { text, removed }) = scrub_to_depth(value, self.depth - 1) else { return };
        if !removed.is_empty() {
            self.cuts.push(Cut { at, instead: quoted(&text), removed });
        }
    }

    fn word(&mut self, at: Range<usize>) {
        let word = &self.text[at.clone()];
        let is_number = word.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if !is_number || word == REMOVED_NUMBER {
            return;
        }
        let (rule, name) = (self.rule(), self.name().to_owned());
        if rule == Rule::Remove {
            return self.cut(at, REMOVED_NUMBER.to_owned(), &name);
        }
        if let Some(level) = self.levels.last_mut().filter(|level| level.is_object && name == "value") {
            level.values.push(at);
        }
    }

    fn cut(&mut self, at: Range<usize>, instead: String, name: &str) {
        // A name may be anything; what the manifest says of it is short and no secret's shape itself.
        let is_plain = !name.is_empty() && name.len() <= 64 && !shape::is_secret("", name);
        let name = if is_plain { name } else { "(other)" };
        self.cuts.push(Cut { at, instead, removed: BTreeMap::from([(name.to_owned(), 1)]) });
    }
}

fn rule_of(name: &str) -> Rule {
    if KEPT.contains(&name) {
        Rule::Keep
    } else if shape::is_certain_name(name) {
        Rule::Remove
    } else if shape::is_secret_name(name) {
        Rule::RemoveText
    } else {
        Rule::Look
    }
}

/// `cilium.msg` of the agent's health: its version, which may hold a commit's hash.
fn is_version(levels: &[Level], name: &str) -> bool {
    name == "msg"
        && levels.iter().rev().nth(1).is_some_and(|level| level.name == "cilium")
        && levels.len() == 2
}

fn unescaped(quoted: &str) -> String {
    serde_json::from_str(quoted).unwrap_or_default()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> (String, Vec<(String, u64)>) {
        let Scrubbed { text, removed } = scrub(text).unwrap();
        (text.into_owned(), removed.into_iter().collect())
    }

    #[track_caller]
    fn check(text: &str, expected: &str, names: &[(&str, u64)]) {
        let (found, removed) = removed(text);
        assert_eq!(found, expected);
        let removed: Vec<_> = removed.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(removed, names);
        serde_json::from_str::<IgnoredAny>(&found).unwrap();
        assert_eq!(scrub(&found).unwrap().removed, BTreeMap::new(), "a second time");
    }

    #[test]
    fn by_name() {
        check(
            r#"{"a": "x", "db-password" : "hunter2", "token": 12345, "Enabled-token": true, "n": 7}"#,
            r#"{"a": "x", "db-password" : "[removed]", "token": 0, "Enabled-token": true, "n": 7}"#,
            &[("db-password", 1), ("token", 1)],
        );
        check(
            r#"{"KVStoreOpt": {"etcd.address": "http://10.0.0.1:2379", "etcd.config": "y"}, "key": "k", "ipsec-key": "z", "encryptKey": 3}"#,
            r#"{"KVStoreOpt": {"etcd.address": "[removed]", "etcd.config": "[removed]"}, "key": "k", "ipsec-key": "[removed]", "encryptKey": 3}"#,
            &[("etcd.address", 1), ("etcd.config", 1), ("ipsec-key", 1)],
        );
        check(
            r#"{"annotations": {"a": ["b", {"c": "d"}]}, "env": ["e"], "x": ["", null]}"#,
            r#"{"annotations": {"a": ["[removed]", {"c": "[removed]"}]}, "env": ["[removed]"], "x": ["", null]}"#,
            &[("a", 1), ("c", 1), ("env", 1)],
        );
    }

    #[test]
    fn by_the_name_beside_it() {
        check(
            r#"[{"name": "X-Token", "value": "abc"}, {"value": "abc", "name": "API_KEY"}, {"name": "a", "value": "abc"}]"#,
            r#"[{"name": "X-Token", "value": "[removed]"}, {"value": "[removed]", "name": "API_KEY"}, {"name": "a", "value": "abc"}]"#,
            &[("value", 2)],
        );
        check(
            r#"[{"value": "{\"password\": 1}", "name": "a"}, {"value": "{\"password\": 1}", "name": "x-token"}]"#,
            r#"[{"value": "{\"password\": 0}", "name": "a"}, {"value": "[removed]", "name": "x-token"}]"#,
            &[("password", 1), ("value", 1)],
        );
        check(
            r#"[{"value": 1234, "name": "PIN_TOKEN"}, {"name": "x-token", "values": ["a", 5]}, {"value": 8, "name": "b"}]"#,
            r#"[{"value": 0, "name": "PIN_TOKEN"}, {"name": "x-token", "values": ["[removed]", 0]}, {"value": 8, "name": "b"}]"#,
            &[("value", 1), ("values", 2)],
        );
    }

    #[test]
    fn json_in_text() {
        check(
            r#"{"rule": "[{\"port\": 80, \"headers\": [\"X-Token: abc\"]}]", "policy": "{\"a\":\"[{\\\"secret\\\":\\\"s\\\"}]\"}"}"#,
            r#"{"rule": "[{\"port\": 80, \"headers\": [\"[removed]\"]}]", "policy": "{\"a\":\"[{\\\"secret\\\":\\\"[removed]\\\"}]\"}"}"#,
            &[("headers", 1), ("secret", 1)],
        );
        // Deeper than anyone looks.
        let deep = (0..8)
            .fold(r#"{"password":"hunter2"}"#.to_owned(), |text, _| format!(r#"{{"a":{}}}"#, quoted(&text)));
        assert!(!scrub(&deep).unwrap().text.contains("hunter2"));
    }

    #[test]
    fn labels_and_selectors_stay() {
        for text in [
            r#"{"labels": ["k8s:secret=x", "k8s:token=ghp_0123456789abcdefghij"]}"#,
            r#"{"labels": [{"key": "password", "value": "x", "source": "k8s"}]}"#,
            r#"{"matchLabels": {"any:api-token": "abc"}}"#,
            r#"{"selector": "&LabelSelector{MatchLabels:map[string]string{any.secret: true,}}"}"#,
            r#"{"rules-by-selector": {"&{any.token: x}": [["k8s:secret=x"]]}, "derived-from-rules": [["k8s:token=y"]]}"#,
            r#"{"l7-rules": [{"\u0026LabelSelector{MatchLabels:map[string]string{any.secret: true,}": {"IsDeny": true}}]}"#,
            r#"{"cilium": {"msg": "1.14.4 0123456789abcdef0123456789abcdef01234567"}}"#,
            r#" [ 1.5e-3 , -0 , "\"{" , {} , [] , true ] "#,
        ] {
            check(text, text, &[]);
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "[1,", "{\"a\" 1}", "nonsense", "{} x"] {
            assert!(scrub(text).is_err(), "{text}");
        }
    }
}
