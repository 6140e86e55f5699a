//! Why a source cannot be used, and what to do about it, apart: `doctor` prints them in two columns.

use core::fmt;

/// What was found instead of a usable source, and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// What was found, with the object in backticks.
    pub found: String,
    /// What to do.
    pub next: String,
    /// Whether it is simply not there, as on a node without Cilium: neither refused nor broken.
    pub is_absent: bool,
}

impl Unusable {
    /// There, but refused or broken.
    pub fn new(found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { found: found.into(), next: next.into(), is_absent: false }
    }

    /// Not there.
    pub fn absent(found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { is_absent: true, ..Self::new(found, next) }
    }

    /// Both parts of an error: of one that is no [`Unusable`] the next step is unknown.
    pub fn parts(error: &anyhow::Error) -> (String, Option<String>) {
        match error.downcast_ref::<Self>() {
            Some(Self { found, next, .. }) => (found.clone(), Some(next.clone())),
            None => (format!("{error:#}"), None),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found, self.next)
    }
}

impl std::error::Error for Unusable {}
