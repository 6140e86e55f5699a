//! Where in an object something is written.

use std::fmt;

use serde_json::Value;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A field by its name.
    Field(String),
    /// An element of a list.
    Index(usize),
}

/// A place in an object: `spec.ingress[0].from[1].ipBlock`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<Step>);

impl Path {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The field of this name in it.
    #[must_use]
    pub fn field(&self, name: &str) -> Self {
        self.then(Step::Field(name.to_owned()))
    }

    /// The element of this number in it.
    #[must_use]
    pub fn index(&self, number: usize) -> Self {
        self.then(Step::Index(number))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// What it is a part of, and which part; `None` for the object itself.
    pub fn split_last(&self) -> Option<(Self, &Step)> {
        let (last, parent) = self.0.split_last()?;
        Some((Self(parent.to_vec()), last))
    }

    /// What is written there.
    pub fn get<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(object, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Index(number) => value.get(number),
        })
    }

    /// What is written there, to change it.
    pub fn get_mut<'v>(&self, object: &'v mut Value) -> Option<&'v mut Value> {
        self.0.iter().try_fold(object, |value, step| match step {
            Step::Field(name) => value.get_mut(name),
            Step::Index(number) => value.get_mut(number),
        })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if number == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
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
