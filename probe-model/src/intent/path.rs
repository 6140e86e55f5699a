//! Where in an object something is written.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A field by its name.
    Field(Cow<'static, str>),
    /// An element of a list.
    Index(usize),
}

/// A place in an object: `spec.ingress[0].from[1].ipBlock`. What leads there is shared between places.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(Option<Arc<(Path, Step)>>);

impl Path {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The field of this name in it.
    #[must_use]
    pub fn field(&self, name: impl Into<Cow<'static, str>>) -> Self {
        self.then(Step::Field(name.into()))
    }

    /// The element of this number in it.
    #[must_use]
    pub fn index(&self, number: usize) -> Self {
        self.then(Step::Index(number))
    }

    fn then(&self, step: Step) -> Self {
        Self(Some(Arc::new((self.clone(), step))))
    }

    /// What it is a part of, and which part; `None` for the object itself.
    pub fn split_last(&self) -> Option<(&Self, &Step)> {
        self.0.as_deref().map(|(parent, last)| (parent, last))
    }

    /// Every step, from the object on.
    fn steps(&self) -> Vec<&Step> {
        let mut steps: Vec<_> =
            std::iter::successors(self.split_last(), |(parent, _)| parent.split_last()).collect();
        steps.reverse();
        steps.into_iter().map(|(_, step)| step).collect()
    }

    /// What is written there.
    pub fn get<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        let Some((parent, last)) = self.split_last() else { return Some(object) };
        let value = parent.get(object)?;
        match last {
            Step::Field(name) => value.get(name.as_ref()),
            Step::Index(number) => value.get(number),
        }
    }

    /// What is written there, to change it.
    pub fn get_mut<'v>(&self, object: &'v mut Value) -> Option<&'v mut Value> {
        let Some((parent, last)) = self.split_last() else { return Some(object) };
        let value = parent.get_mut(object)?;
        match last {
            Step::Field(name) => value.get_mut(name.as_ref()),
            Step::Index(number) => value.get_mut(number),
        }
    }
}

/// As in the object: what holds something before what it holds.
impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.steps().cmp(&other.steps())
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((parent, last)) = self.split_last() else { return Ok(()) };
        parent.fmt(f)?;
        match last {
            Step::Field(name) if parent.0.is_none() => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_names_and_finds_a_place() {
        let path = Path::root().field("spec").field("ingress").index(1).field("from");
        assert_eq!(path.to_string(), "spec.ingress[1].from");
        let object = json!({"spec": {"ingress": [{}, {"from": [7]}]}});
        assert_eq!(path.get(&object), Some(&json!([7])));
        assert_eq!(path.index(3).get(&object), None);
    }
}
