//! What `plsprobe snapshot` wrote, in one line.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use serde_json::json;

use super::{clean, json_line};
use crate::sources::snapshot::Written;

/// How answers will name the snapshot, its size, what was taken out of it and what is missing.
///
/// # Errors
///
/// What `out` says.
pub fn text(file: &Path, written: &Written, out: &mut impl Write) -> io::Result<()> {
    let Written { manifest, origin, bytes, .. } = written;
    let file = file.display().to_string();
    write!(out, "{}: {origin}, {bytes} bytes, {} parts", clean(&file), manifest.parts.len())?;
    let removed: u64 = manifest.removed.values().sum();
    if removed > 0 {
        let names: Vec<_> = manifest.removed.keys().map(|name| clean(name)).collect();
        let values = if removed == 1 { "value" } else { "values" };
        write!(out, ", {removed} {values} taken out that may be secret ({})", names.join(", "))?;
    }
    if !manifest.missing.is_empty() {
        let names: Vec<_> = manifest.missing.iter().map(|missing| clean(&missing.what)).collect();
        write!(out, "; missing: {}", names.join(", "))?;
    }
    writeln!(out)
}

/// The same as a JSON object, with the reasons and how long each step took.
///
/// # Errors
///
/// What `out` says.
pub fn json(file: &Path, written: &Written, out: &mut impl Write) -> io::Result<()> {
    let Written { manifest, origin, bytes, took } = written;
    let took: BTreeMap<_, _> = took.iter().map(|(what, took)| (what, took.as_micros() as u64)).collect();
    let value = json!({
        "schema": "plsprobe.snapshot-written/1",
        "file": file.display().to_string(),
        "origin": origin,
        "bytes": bytes,
        "parts": manifest.parts.len(),
        "removed": manifest.removed,
        "missing": manifest.missing.iter()
            .map(|missing| json!({ "what": missing.what, "why": missing.why })).collect::<Vec<_>>(),
        "took_us": took,
    });
    json_line(&value, out)
}
