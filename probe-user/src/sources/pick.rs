//! Takes of a JSON object what plsprobe needs, by name: what is not named here is neither kept nor written anywhere.

use serde_json::{Map, Value};

/// What is kept of an object.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pick {
    fields: Vec<(String, Pick)>,
    /// Of an object's members only those whose names begin so.
    prefix: Option<String>,
}

impl Pick {
    /// From text such as `metadata{name labels annotations(service.beta.kubernetes.io/)} spec{ports{name port}}`: names of
    /// fields; of each in braces what is kept of it, else all of it; in parentheses how the names in it begin. Lists are
    /// looked into.
    ///
    /// # Panics
    ///
    /// If it is not written so: it is a constant of the program.
    pub(super) fn new(text: &str) -> Self {
        let mut words = tokens(text);
        let pick = Self::read(&mut words);
        assert!(words.next().is_none(), "a brace too many in `{text}`");
        pick
    }

    fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Self {
        let mut pick = Self::default();
        while let Some(word) = words.next() {
            match word {
                "}" => return pick,
                "{" => pick.fields.last_mut().expect("a name before a brace").1 = Self::read(words),
                word => match word.strip_prefix('(') {
                    Some(prefix) => {
                        let last = &mut pick.fields.last_mut().expect("a name before a parenthesis").1;
                        last.prefix = Some(prefix.trim_end_matches(')').to_owned());
                    }
                    None => pick.fields.push((word.to_owned(), Self::default())),
                },
            }
        }
        pick
    }

    /// `value` without what is not kept.
    pub(super) fn of(&self, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|item| self.of(item)).collect::<Vec<_>>().into(),
            Value::Object(members) if !self.fields.is_empty() => {
                let kept = self.fields.iter().filter_map(|(name, pick)| {
                    let member = members.get(name).filter(|member| !member.is_null())?;
                    Some((name.clone(), pick.of(member)))
                });
                Value::Object(kept.collect())
            }
            Value::Object(members) => match &self.prefix {
                None => value.clone(),
                Some(prefix) => {
                    let kept = members.iter().filter(|(name, _)| name.starts_with(prefix.as_str()));
                    Value::Object(
                        kept.map(|(name, member)| (name.clone(), member.clone())).collect::<Map<_, _>>(),
                    )
                }
            },
            // Fields of what has none.
            other if self.fields.is_empty() && self.prefix.is_none() => other.clone(),
            _ => Value::Null,
        }
    }
}

/// Names, braces, and parentheses with what is in them.
fn tokens(text: &str) -> std::vec::IntoIter<&str> {
    let mut all = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let length = match rest.as_bytes()[0] {
            b'{' | b'}' => 1,
            b'(' => rest.find(')').expect("a closed parenthesis") + 1,
            _ => rest.find(|c: char| c.is_whitespace() || "{}(".contains(c)).unwrap_or(rest.len()),
        };
        all.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(pick: &str, value: &Value, expected: &Value) {
        assert_eq!(&Pick::new(pick).of(value), expected, "{pick}");
    }

    #[test]
    fn what_is_named_is_kept() {
        let value =
            json!({"a": {"b": 1, "secret": 2}, "c": [{"d": [1, {"x": 1}], "e": null}, {"f": 3}], "g": 4});
        check("a{b} c{d e}", &value, &json!({"a": {"b": 1}, "c": [{"d": [1, {"x": 1}]}, {}]}));
        check("a c{f}\n g", &value, &json!({"a": {"b": 1, "secret": 2}, "c": [{}, {"f": 3}], "g": 4}));
        check("nothing", &value, &json!({}));
        // A field that has another shape than it should is not kept by mistake.
        check("g{h} a{b{c}}", &value, &json!({"g": null, "a": {"b": null}}));
    }

    #[test]
    fn names_by_how_they_begin() {
        let value =
            json!({"m": {"x.io/a": "1", "kubectl.kubernetes.io/last-applied-configuration": "secret"}});
        check("m(x.io/)", &value, &json!({"m": {"x.io/a": "1"}}));
        check("m(y.io/)", &value, &json!({"m": {}}));
        check("m(x.io/)", &json!({"m": "secret"}), &json!({"m": null}));
    }
}
