//! A value in an object that knows where it is.

use std::borrow::Cow;

use serde_json::Value;

use crate::intent::path::Path;

/// A value and where it is written.
#[derive(Clone, Debug)]
pub(super) struct Node<'v> {
    pub(super) value: &'v Value,
    pub(super) path: Path,
}

impl<'v> Node<'v> {
    /// The object itself.
    pub(super) fn root(value: &'v Value) -> Self {
        Self { value, path: Path::root() }
    }

    /// The field of this name, if it is there and not null.
    pub(super) fn field(&self, name: impl Into<Cow<'static, str>>) -> Option<Self> {
        let name = name.into();
        let value = self.value.get(name.as_ref()).filter(|value| !value.is_null())?;
        Some(Self { value, path: self.path.field(name) })
    }

    /// Every field that is not null.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'v String, Self)> {
        let fields = self.value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        fields.map(|(name, value)| (name, Self { value, path: self.path.field(name.clone()) }))
    }

    /// The elements, if it is a list.
    pub(super) fn list(&self) -> Option<Vec<Self>> {
        let elements = self.value.as_array()?.iter().enumerate();
        Some(elements.map(|(number, value)| Self { value, path: self.path.index(number) }).collect())
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&'v str> {
        self.value.as_str()
    }

    /// What it is, for a message.
    pub(super) fn type_name(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        }
    }
}
