//! Whether the agent lives, and whether it sees.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

pub(super) use crate::agent::status::SILENCE_MAX;
use crate::agent::status::Status;
use crate::render::clean;

/// The same before its first word: on a busy node, programs take seconds to load.
pub(super) const START_MAX: Duration = Duration::from_mins(1);
/// Lines of one kind that are told at most.
const LINES_MAX: usize = 20;

/// Since when the engine is silent, by the monotonic clock: the other one may be set meanwhile.
#[derive(Debug)]
pub(super) struct Pulse {
    said: Option<SystemTime>,
    since: Instant,
}

impl Pulse {
    /// An engine that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { said: None, since: now }
    }

    /// Whether the engine lives, whose last word was then; else what to tell of it.
    pub(super) fn check(&mut self, said: Option<SystemTime>, now: Instant) -> Result<(), String> {
        if self.said != said {
            *self = Self { said, since: now };
        }
        let silence = now.saturating_duration_since(self.since);
        let (word, max) =
            if said.is_some() { ("said nothing", SILENCE_MAX) } else { ("did not begin", START_MAX) };
        if silence <= max {
            return Ok(());
        }
        Err(format!(
            "the engine {word} for {} s, expected a word within {} s",
            silence.as_secs(),
            max.as_secs()
        ))
    }
}

#[cfg(test)]
impl Pulse {
    /// As if it had been silent for that much longer.
    pub(super) fn backdate(&mut self, by: Duration) {
        self.since = self.since.checked_sub(by).expect("the machine runs for longer");
    }
}

/// What keeps the agent from judging anything, one line each; none if it is ready. `alive` is [`Pulse::check`]'s.
///
/// A hook that this kernel refuses is none of it: it is so on every node of its kind, and for ever, and a rollout must not
/// wait for it.
pub(super) fn lacks(status: &Status, alive: Result<(), String>) -> Vec<String> {
    let mut lacks: Vec<_> = alive.err().into_iter().collect();
    if status.serving_since.is_none() {
        lacks.push("it does not serve yet".to_owned());
    }
    lacks.extend(status.trouble.as_deref().map(|trouble| clean(trouble).into_owned()));
    if status.hooks.iter().all(|hook| hook.state.is_err()) {
        lacks.push("no hook is attached".to_owned());
    }
    lacks
}

/// The body of `/readyz`.
pub(super) fn body(status: &Status, lacks: &[String]) -> String {
    let mut lines = lacks.to_vec();
    if lines.is_empty() {
        let attached = status.hooks.iter().filter(|hook| hook.state.is_ok()).count();
        lines.push(format!("ready: {attached} hooks attached of {}", status.hooks.len()));
    }
    let hooks = status.hooks.iter().filter_map(|hook| {
        let why = hook.state.as_ref().err()?;
        Some(format!("note: hook `{}` is not attached: {}", clean(&hook.place), clean(why)))
    });
    limited(hooks, &mut lines);
    // No reason to send anybody elsewhere, but somebody who looks here wants to know.
    let facts = status.missing.iter().map(|fact| format!("note: `{}` could not be had", clean(fact)));
    limited(facts, &mut lines);
    lines.into_iter().fold(String::new(), |mut text, line| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
        text
    })
}

fn limited(lines: impl Iterator<Item = String>, into: &mut Vec<String>) {
    let mut left_out = 0_usize;
    for (idx, line) in lines.enumerate() {
        if idx < LINES_MAX { into.push(line) } else { left_out += 1 }
    }
    if left_out > 0 {
        into.push(format!("and {left_out} more such"));
    }
}
