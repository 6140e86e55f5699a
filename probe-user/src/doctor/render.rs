//! The findings as lines of text or JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::{Check, Report};
use crate::render::{clean, json_line};

/// Name and version of the JSON objects.
const SCHEMA: &str = "plsprobe.doctor/1";

#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    #[serde(flatten)]
    check: &'a Check,
}

impl Report {
    /// Writes one line a finding: status, topic, what was found, and the next step after a semicolon.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        for Check { topic, what, status, found, next, .. } in &self.checks {
            write!(out, "{status:8}  {topic:10}  {}: {}", clean(what), clean(found))?;
            match next {
                Some(next) => writeln!(out, "; {}", clean(next))?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    }

    /// Writes one JSON object a finding.
    ///
    /// # Errors
    ///
    /// When `out` cannot be written.
    pub fn json(&self, out: &mut impl Write) -> io::Result<()> {
        for check in &self.checks {
            json_line(&Line { schema: SCHEMA, check }, out)?;
        }
        Ok(())
    }
}
