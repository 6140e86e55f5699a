//! YAML and JSON as people write them for Kubernetes: values with the place where each stands.
//!
//! Plain words mean what they mean to `kubectl`: `yes`, `on` and `y` are booleans, as in YAML 1.1.

use std::{collections::HashMap, fmt};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};
use serde_json::Number;

/// Lists and objects in one another to this depth; Kubernetes' own objects have a dozen.
const DEPTH: usize = 64;
/// Values that a text may have, those that references repeat counted each time.
const MOST: usize = 1_000_000;
/// How much of foreign text is repeated.
const SHOWN: usize = 60;

/// Where something stands, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl From<Marker> for Position {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where.
    pub at: Position,
    /// What.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A boolean, and the word it was written as.
    Bool(bool, String),
    /// A number.
    Number(Number),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// An object.
    Map(Vec<Field>),
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Where its name begins.
    pub at: Position,
    /// Its name.
    pub name: String,
    /// Its value.
    pub node: Node,
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// What was found, and what was expected.
    pub what: String,
}

impl Problem {
    /// A problem at `at`.
    pub fn new(at: Position, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

impl Node {
    /// The member of this name, if it is an object that has one.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|field| field.name == name).map(|field| &field.node),
            _ => None,
        }
    }

    /// Its text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value, _) => (*value).into(),
            Value::Number(number) => number.clone().into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::json).collect::<Vec<_>>().into(),
            Value::Map(fields) => {
                let members = fields.iter().map(|field| (field.name.clone(), field.node.json()));
                serde_json::Value::Object(members.collect())
            }
        }
    }

    /// What it is, as an error says it: ``the text `80` ``, `a list`.
    pub fn described(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(_, word) => format!("the boolean `{word}`"),
            Value::Number(number) => format!("the number {number}"),
            Value::Text(text) => format!("the text `{}`", shown(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "an object".to_owned(),
        }
    }
}

/// Foreign text, cut and without control characters.
pub fn shown(text: &str) -> String {
    let cut = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c });
    let end = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    cut.chain(end.chars()).collect()
}

/// Every document in `text`; empty ones are left out.
///
/// # Errors
///
/// The first thing that is no YAML, or more than anyone writes. A template that was not expanded is named as such.
pub fn parse(text: &str) -> Result<Vec<Node>, Problem> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| explained(text, &error))?;
        builder.take(event, span.start.into()).map_err(|problem| or_template(text, problem))?;
    }
    Ok(builder.documents)
}

/// The first `{{` on a line of `text` from `from` to `to`, comments apart: with where it is.
pub fn template(text: &str, from: usize, to: usize) -> Option<Problem> {
    let lines = text.lines().enumerate().skip(from.saturating_sub(1)).take(to + 1 - from.clamp(1, to));
    lines.filter(|(_, line)| !line.trim_start().starts_with('#')).find_map(|(idx, line)| {
        let begin = line.find("{{")?;
        let end = line[begin..].find("}}").map_or(line.len(), |end| begin + end + 2);
        let at = Position { line: idx + 1, column: line[..begin].chars().count() + 1 };
        let what = format!(
            "found the template `{}`, expected what it stands for; expand it first, as `helm template` does",
            shown(&line[begin..end])
        );
        Some(Problem::new(at, what))
    })
}

fn explained(text: &str, error: &ScanError) -> Problem {
    let at = (*error.marker()).into();
    or_template(text, Problem::new(at, format!("found no YAML: {}", shown(error.info()))))
}

/// A template that was not expanded is what is wrong, if one stands before the problem in the same document.
fn or_template(text: &str, problem: Problem) -> Problem {
    let before = text.lines().take(problem.at.line.saturating_sub(1)).collect::<Vec<_>>();
    let begin = before.iter().rposition(|line| line.starts_with("---")).map_or(1, |idx| idx + 1);
    template(text, begin, problem.at.line.max(begin)).unwrap_or(problem)
}

/// Makes values of a parser's events, without recursion.
#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    /// What references repeat, with how many values it has.
    anchors: HashMap<usize, (Node, usize)>,
    count: usize,
}

/// A list or an object that is not closed yet.
struct Open {
    node: Node,
    anchor: usize,
    /// How many values there were before it.
    count: usize,
    /// In an object the name that waits for its value.
    name: Option<(Position, String)>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let node = Node { at, value: scalar(&text, style, tag.as_deref()) };
                self.remember(anchor, &node, 1);
                self.add(node, 1)
            }
            Event::SequenceStart(anchor, _) => self.open(at, Value::List(Vec::new()), anchor),
            Event::MappingStart(anchor, _) => self.open(at, Value::Map(Vec::new()), anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { node, anchor, count, .. }) = self.open.pop() else { return Ok(()) };
                let own = self.count - count;
                self.remember(anchor, &node, own);
                self.add(node, 0)
            }
            Event::Alias(anchor) => {
                let Some((node, count)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::new(
                        at,
                        "found a reference to what contains it, expected one to what is before",
                    ));
                };
                self.add(node, count)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, at: Position, value: Value, anchor: usize) -> Result<(), Problem> {
        if self.open.len() == DEPTH {
            return Err(Problem::new(
                at,
                format!("found lists and objects more than {DEPTH} deep in one another"),
            ));
        }
        self.count += 1;
        self.open.push(Open { node: Node { at, value }, anchor, count: self.count, name: None });
        Ok(())
    }

    fn remember(&mut self, anchor: usize, node: &Node, count: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), count));
        }
    }

    /// Adds a whole value to what is open, or as a document.
    fn add(&mut self, node: Node, count: usize) -> Result<(), Problem> {
        self.count += count;
        if self.count > MOST {
            return Err(Problem::new(node.at, format!("found more than {MOST} values")));
        }
        let Some(open) = self.open.last_mut() else {
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(fields) => match open.name.take() {
                None => open.name = Some((node.at, name(&node)?)),
                Some((at, name)) if name == "<<" => merge(fields, node, at)?,
                Some((at, name)) => {
                    if let Some(first) = fields.iter().find(|field| field.name == name) {
                        let what = format!(
                            "found `{}` a second time, first on line {}",
                            shown(&name),
                            first.at.line
                        );
                        return Err(Problem::new(at, what));
                    }
                    fields.push(Field { at, name, node });
                }
            },
            _ => {}
        }
        Ok(())
    }
}

/// A member's name: text, or a word that is written like a number or a boolean.
fn name(node: &Node) -> Result<String, Problem> {
    match &node.value {
        Value::Text(text) | Value::Bool(_, text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => {
            Err(Problem::new(node.at, format!("found {} as a field's name, expected text", node.described())))
        }
    }
}

/// `<<: *other`: the fields of another object, as far as there are none of the name.
fn merge(fields: &mut Vec<Field>, node: Node, at: Position) -> Result<(), Problem> {
    let Value::Map(others) = node.value else {
        return Err(Problem::new(at, format!("found {} after `<<`, expected an object", node.described())));
    };
    for other in others {
        if !fields.iter().any(|field| field.name == other.name) {
            fields.push(other);
        }
    }
    Ok(())
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || is_text {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "y" | "Y" | "on" | "On" | "ON" => {
            Value::Bool(true, text.to_owned())
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "n" | "N" | "off" | "Off" | "OFF" => {
            Value::Bool(false, text.to_owned())
        }
        _ => number(text).map_or_else(|| Value::Text(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |prefix: &str, radix| u64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| radix("0b", 2)) {
        return Some(number.into());
    }
    // A leading zero is octal, as in YAML 1.1.
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
        return u64::from_str_radix(digits, 8).ok().map(Number::from);
    }
    let plain = text.strip_prefix('+').unwrap_or(text);
    let integer =
        plain.parse::<i64>().map(Number::from).or_else(|_| plain.parse::<u64>().map(Number::from)).ok();
    let is_float = digits.contains(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    integer.or_else(|| plain.parse().ok().filter(|_| is_float).and_then(Number::from_f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found: Vec<_> = parse(text).unwrap().iter().map(|node| node.json().to_string()).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let Problem { at, what } = parse(text).unwrap_err();
        assert_eq!(format!("{at}: {what}"), expected, "{text}");
    }

    #[test]
    fn what_words_mean() {
        check(
            "a: [1, -2, 0x10, 010, 0o10, 1.5, 1e3, 1.2.3, 10.0.0.0/8, 08x, .5, a-, 12:30]",
            &[r#"{"a":[1,-2,16,8,8,1.5,1000.0,"1.2.3","10.0.0.0/8","08x",0.5,"a-","12:30"]}"#],
        );
        check(
            "a: [yes, No, on, y, true, ~, null, '', \"80\", !!str 80]",
            &[r#"{"a":[true,false,true,true,true,null,null,"","80","80"]}"#],
        );
        check("80: a\ntrue: b", &[r#"{"80":"a","true":"b"}"#]);
    }

    #[test]
    fn documents() {
        check("# nothing\n---\n---\na: 1\n...\n---\nb: 2\n", &[r#"{"a":1}"#, r#"{"b":2}"#]);
        check("", &[]);
        check(
            "{\n\t\"a\": [1, {\"b\": \"c\\u00e4\\/\"}],\n\t\"d\": null\n}\n",
            &[r#"{"a":[1,{"b":"cä/"}],"d":null}"#],
        );
        check("a: |\n  x\n  y\nb: >-\n  x\n  y\n", &[r#"{"a":"x\ny\n","b":"x y"}"#]);
    }

    #[test]
    fn references() {
        check(
            "a: &x {b: 1, c: 2}\nd: *x\ne:\n  <<: *x\n  f: 3\n",
            &[r#"{"a":{"b":1,"c":2},"d":{"b":1,"c":2},"e":{"b":1,"c":2,"f":3}}"#],
        );
        refused("a: &x [*x]", "1:8: found a reference to what contains it, expected one to what is before");
        refused("a: &x [1]\nb:\n  <<: *x", "3:3: found a list after `<<`, expected an object");
        let bomb = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
            let reference = format!("*a{}", i - 1);
            text + &format!("a{i}: &a{i} [{}]\n", [reference.as_str(); 10].join(","))
        });
        assert!(parse(&bomb).unwrap_err().what.starts_with("found more than 1000000 values"));
    }

    #[test]
    fn places() {
        let node = &parse("a: 1\nbcd:\n  - x\n  - e: [\"ä\", y]\n").unwrap()[0];
        let list = node.get("bcd").unwrap();
        let Value::List(items) = &list.value else { panic!("{list:?}") };
        assert_eq!(items[0].at.to_string(), "3:5");
        let Value::List(inner) = &items[1].get("e").unwrap().value else { panic!("{items:?}") };
        assert_eq!((inner[0].at.to_string(), inner[1].at.to_string()), ("4:9".to_owned(), "4:14".to_owned()));
        let Value::Map(fields) = &node.value else { panic!("{node:?}") };
        assert_eq!(fields[1].at.to_string(), "2:1");
    }

    #[test]
    fn what_is_no_yaml() {
        let Problem { at, what } = parse("a:\n  - b\n c: d\n").unwrap_err();
        assert!(at.line == 3 && what.starts_with("found no YAML: "), "{at} {what}");
        let Problem { at, what } = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(at.line >= 2 && what.starts_with("found no YAML: "), "{at} {what}");
        let Problem { at, what } = parse("a:\n\tb: 1\n").unwrap_err();
        assert!(at.line == 2 && what.starts_with("found no YAML: "), "{at} {what}");
        refused("a: 1\nb: 2\na: 3\n", "3:1: found `a` a second time, first on line 1");
        refused("? [a]\n: b\n", "1:3: found a list as a field's name, expected text");
        let deep = "[".repeat(DEPTH + 1) + &"]".repeat(DEPTH + 1);
        refused(&deep, "1:65: found lists and objects more than 64 deep in one another");
    }

    #[test]
    fn templates_that_were_not_expanded() {
        let expand = "expected what it stands for; expand it first, as `helm template` does";
        refused(
            "metadata:\n  name: {{ .Values.name }}\n",
            &format!("2:9: found the template `{{{{ .Values.name }}}}`, {expand}"),
        );
        refused(
            "# {{ not this }}\na: 1\n{{- if .Values.b }}\nb: 2\n{{- end }}\n",
            &format!("3:1: found the template `{{{{- if .Values.b }}}}`, {expand}"),
        );
        // One in quotes is text; whoever reads it may mind.
        check("a: \"{{ x }}\"", &[r#"{"a":"{{ x }}"}"#]);
        // Another document's is not what is wrong with this one.
        let Problem { what, .. } = parse("a: \"{{ x }}\"\n---\na: [1\n---\n").unwrap_err();
        assert!(what.starts_with("found no YAML: "), "{what}");
    }
}
