//! The agent's REST answers.

use std::fmt::Debug;

use anyhow::Result;
use probe_user::sources::rest;

/// The answers that plsprobe reads, by the name that recordings and `RawNode::rest` have for them.
/// The position is the first byte of an input: append, never insert.
pub(crate) const ANSWERS: [&str; 7] =
    ["endpoint", "identity", "policy", "policy-selectors", "service", "config", "healthz"];

/// One REST answer; the first byte says of what.
pub fn rest(data: &[u8]) {
    let Some((which, text)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    match ANSWERS[usize::from(*which) % ANSWERS.len()] {
        "endpoint" => print(&rest::endpoints(text)),
        "identity" => print(&rest::identities(text)),
        "policy" => print(&rest::rules(text)),
        "policy-selectors" => print(&rest::selectors(text)),
        "service" => print(&rest::services(text)),
        "config" => print(&rest::config(text)),
        "healthz" => print(&rest::version(text)),
        other => panic!("`{other}` has no parser here"),
    }
}

/// An error must be printable, as must what was read.
fn print<T: Debug>(answer: &Result<T>) {
    let text = match answer {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{error:#}"),
    };
    assert!(!text.is_empty());
}
