//! What an agent remembers: when it was, and what is missing of it.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use crate::cli::Output;
use crate::sources::utc;

/// Version of the JSON that ends what is remembered.
pub const HISTORY_SCHEMA: &str = "plsprobe.trace.history/1";

/// What is said after the flows.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Flows by verdict: allowed, dropped, inconclusive.
    pub verdicts: [u64; 3],
    /// Of how long ago on.
    pub since: Duration,
    /// Why it may not be all, in words.
    pub lacks: Vec<String>,
    /// Whether the agent watches what was asked for.
    pub is_watched: bool,
}

/// A time in UTC and how long ago that was; both in nanoseconds since 1970.
pub fn when(at_ns: u64, now_ns: u64) -> String {
    let ago = Duration::from_nanos(now_ns.saturating_sub(at_ns));
    format!("{} ({} s ago)", utc::text(UNIX_EPOCH + Duration::from_nanos(at_ns)), ago.as_secs())
}

/// The last lines.
pub fn summary(summary: &Summary, output: Output) -> Vec<u8> {
    let Summary { verdicts, since, lacks, is_watched } = summary;
    let [allowed, dropped, inconclusive] = verdicts;
    let total: u64 = verdicts.iter().sum();
    let seconds = since.as_secs();
    if output == Output::Json {
        let value = json!({
            "schema": HISTORY_SCHEMA, "since_s": seconds, "watched": is_watched, "lacks": lacks,
            "flows": { "total": total, "allowed": allowed, "dropped": dropped, "inconclusive": inconclusive },
        });
        return format!("{value}\n").into_bytes();
    }
    let mut lines = vec![format!(
        "flows     {total} kept of the last {seconds} s: {allowed} allowed, {dropped} dropped, {inconclusive} inconclusive"
    )];
    if !is_watched {
        let unwatched = "the agent does not watch this target: only what it shares with others is kept; \
            `plsprobe agent --watch TARGET`";
        lines.push(format!("history   {unwatched}"));
    }
    lines.extend(lacks.iter().map(|lack| format!("history   {lack}")));
    lines.push(String::new());
    lines.join("\n").into_bytes()
}
