//! Answers as text and JSON: pure, values in, bytes out.

pub mod across;
pub mod across_json;
pub mod causes;
mod drop_cause;
pub mod dump;
pub mod explanation;
pub(crate) mod gap;
pub mod history;
pub mod lint;
mod markdown;
pub mod sarif;
pub mod snapshot;
pub mod trace;
pub mod trace_json;
mod trace_proxy;
pub mod trace_watched;

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

/// `text` with control characters escaped, so that names from the network cannot steer a terminal.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) { text.escape_debug().to_string().into() } else { text.into() }
}

/// Writes one JSON object on a line of its own.
pub(crate) fn json_line(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)
}

/// An array of what `value` makes of each.
fn list<T>(of: &[T], value: impl FnMut(&T) -> Value) -> Value {
    Value::Array(of.iter().map(value).collect())
}
