//! Takes of a JSON object what plsprobe needs, by name: what is not named here is neither kept nor written anywhere.

use std::fmt;

use serde::{
    Deserialize as _,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
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
    /// looked into. A name that comes again adds to what is kept of it.
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
        let mut last = None::<usize>;
        while let Some(word) = words.next() {
            match word {
                "}" => return pick,
                "{" => pick.fields[last.expect("a name before a brace")].1.add(Self::read(words)),
                word => match word.strip_prefix('(') {
                    Some(prefix) => {
                        let last = &mut pick.fields[last.expect("a name before a parenthesis")].1;
                        last.prefix = Some(prefix.trim_end_matches(')').to_owned());
                    }
                    None => last = Some(pick.place(word.to_owned())),
                },
            }
        }
        pick
    }

    /// Where a field is, which is added if there is none of this name.
    fn place(&mut self, name: String) -> usize {
        self.find(&name).unwrap_or_else(|| {
            self.fields.push((name, Self::default()));
            self.fields.len() - 1
        })
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|(own, _)| own == name)
    }

    fn add(&mut self, other: Self) {
        for (name, pick) in other.fields {
            let at = self.place(name);
            self.fields[at].1.add(pick);
        }
        self.prefix = self.prefix.take().or(other.prefix);
    }

    /// Whether an object is kept as it is.
    fn is_all(&self) -> bool {
        self.fields.is_empty() && self.prefix.is_none()
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
            other if self.is_all() => other.clone(),
            _ => Value::Null,
        }
    }
}

/// The same as [`Pick::of`], of text that is being read: what is not kept is not held at any time. `None` for `null`.
impl<'de> DeserializeSeed<'de> for &Pick {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        if self.is_all() {
            return Value::deserialize(deserializer)
                .map(|value| Some(value).filter(|value| !value.is_null()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Pick {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = map.next_key_seed(Name(self))? {
            match name {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(Kept::Field(at)) => {
                    let (name, pick) = &self.fields[at];
                    if let Some(value) = map.next_value_seed(pick)? {
                        kept.insert(name.clone(), value);
                    }
                }
                Some(Kept::Member(name)) => drop(kept.insert(name, map.next_value()?)),
            }
        }
        Ok(Some(kept.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            kept.push(item.unwrap_or_default());
        }
        Ok(Some(kept.into()))
    }

    // Fields of what has none.
    fn visit_bool<E: Error>(self, _: bool) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Option<Value>, E> {
        Ok(Some(Value::Null))
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }
}

/// A member that is kept.
enum Kept {
    /// The field at this place.
    Field(usize),
    /// One whose name begins as it should.
    Member(String),
}

/// Reads a member's name: `None` if it is not kept.
struct Name<'p>(&'p Pick);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<Kept>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Kept>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<Kept>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<Kept>, E> {
        let Pick { fields, prefix } = self.0;
        Ok(match prefix {
            _ if !fields.is_empty() => self.0.find(name).map(Kept::Field),
            Some(prefix) => name.starts_with(prefix).then(|| Kept::Member(name.to_owned())),
            None => None,
        })
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
        let pick = Pick::new(pick);
        assert_eq!(&pick.of(value), expected, "{pick:?}");
        let text = value.to_string();
        let read = pick.deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap();
        assert_eq!(&read.unwrap_or_default(), expected, "{pick:?} of text");
    }

    #[test]
    fn what_is_named_is_kept() {
        let value =
            json!({"a": {"b": 1, "secret": 2}, "c": [{"d": [1, {"x": 1}], "e": null}, {"f": 3}], "g": 4});
        check("a{b} c{d e}", &value, &json!({"a": {"b": 1}, "c": [{"d": [1, {"x": 1}]}, {}]}));
        check("a c{f}\n g", &value, &json!({"a": {"b": 1, "secret": 2}, "c": [{}, {"f": 3}], "g": 4}));
        check("nothing", &value, &json!({}));
        check("c{d} a{b} c{f}", &value, &json!({"a": {"b": 1}, "c": [{"d": [1, {"x": 1}]}, {"f": 3}]}));
        check("a{b}", &json!(null), &json!(null));
        for scalar in [json!(true), json!(-1), json!(1), json!(1.5), json!("x")] {
            check("a{b}", &scalar, &json!(null));
            check("a", &json!({"a": scalar}), &json!({"a": scalar}));
        }
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
