//! Lines of the agent's log: clean, not the same over and over, and not more than somebody reads.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::render::clean;

/// Lines within one [`SPAN`]; what is above is counted.
const LINES_MAX: usize = 50;
/// A line that was said within this time is not said again.
const SPAN: Duration = Duration::from_secs(10);

/// Standard error, on which a node's log is.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Spoken>);

#[derive(Debug, Default)]
struct Spoken {
    since: Option<Instant>,
    lines: Vec<String>,
    unsaid: u64,
}

impl Log {
    /// Says one line.
    pub(super) fn say(&self, text: &str) {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).lines(text, Instant::now());
        for line in lines {
            // Nothing is left to do if stderr is gone.
            let _ = writeln!(std::io::stderr(), "plsprobe agent: {line}");
        }
    }
}

impl Spoken {
    /// What is to be written now, for a line at this time.
    fn lines(&mut self, text: &str, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.since.is_none_or(|since| now.duration_since(since) >= SPAN) {
            if self.unsaid > 0 {
                lines.push(format!("{} more lines were not written", self.unsaid));
            }
            *self = Self { since: Some(now), ..Self::default() };
        }
        let line = clean(text).into_owned();
        if self.lines.contains(&line) {
            return lines;
        }
        if self.lines.len() >= LINES_MAX {
            self.unsaid += 1;
            return lines;
        }
        self.lines.push(line.clone());
        lines.push(line);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let mut spoken = Spoken::default();
        let begin = Instant::now();
        let said: usize = (0..1000).map(|n| spoken.lines(&format!("line {}", n / 2), begin).len()).sum();
        assert_eq!(said, LINES_MAX);
        let after = spoken.lines("tail\x1b[2J", begin + SPAN);
        assert_eq!(after, ["900 more lines were not written", "tail\\u{1b}[2J"]);
        assert!(spoken.lines("tail\x1b[2J", begin + SPAN).is_empty());
    }
}
