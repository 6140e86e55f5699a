//! What Prometheus and the kubelet ask the agent: `/metrics`, `/healthz`, `/readyz`.
//!
//! Counters come from the feed of judged flows, gauges from the board at the time of asking. No label holds an address,
//! a pod or anything else that a remote party chooses; how many series there can be is bounded.

mod counts;
mod exposition;
mod families;
mod health;
mod histogram;
mod http;
mod process;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::broadcast::error::RecvError;

use self::counts::Counts;
use self::exposition::Page;
pub use self::exposition::{Family, Format, Kind};
use self::families as f;
pub use self::families::ALL as FAMILIES;
use self::health::Pulse;
pub use self::http::{Limits, serve};
use super::feed::Feed;
use super::otlp::Tally;
use super::status::{Board, Status};

/// Means of attaching a hook, each with a series even when nothing is attached by it.
const MEANS: [&str; 6] = ["tcx", "legacy tc", "fentry", "kprobe", "tp_btf", "raw tracepoint"];

/// Everything that is counted, and what it is asked of.
#[derive(Debug)]
pub struct Metrics {
    board: Arc<Board>,
    otlp: Arc<Tally>,
    counts: Mutex<Counts>,
    pulse: Mutex<Pulse>,
    connections_refused: AtomicU64,
}

impl Metrics {
    /// Counts nothing yet. `otlp` is what the exporter counts.
    pub fn new(board: Arc<Board>, otlp: Arc<Tally>) -> Self {
        let pulse = Mutex::new(Pulse::new(Instant::now()));
        Self { board, otlp, counts: Mutex::default(), pulse, connections_refused: AtomicU64::new(0) }
    }

    /// Counts what is fed, from the flows that are kept on, until the feed is gone.
    pub async fn count(&self, feed: Arc<Feed>) {
        let (kept, mut flows) = feed.follow();
        drop(feed);
        for flow in kept {
            lock(&self.counts).add(&flow);
        }
        loop {
            match flows.recv().await {
                Ok(flow) => lock(&self.counts).add(&flow),
                Err(RecvError::Lagged(flows)) => lock(&self.counts).lagged += flows,
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Why the agent does not live, if it does not.
    fn health(&self, status: &Status) -> Result<(), String> {
        lock(&self.pulse).check(status.said, Instant::now())
    }

    /// Everything, as Prometheus reads it.
    pub fn page(&self, format: Format) -> String {
        let status = self.board.read();
        let mut page = Page::new(format);
        let cilium = status.cilium_version.as_deref().unwrap_or_default();
        page.family(&f::BUILD).sample(&[env!("CARGO_PKG_VERSION"), cilium, status.verdicts_from], 1);
        lock(&self.counts).write(&mut page);
        write_records(&mut page, &status);
        write_hooks(&mut page, &status);
        let is_ready = health::lacks(&status, self.health(&status)).is_empty();
        page.single(&f::READY, u8::from(is_ready));
        write_state(&mut page, &status);
        page.single(&f::CONNECTIONS_REFUSED, self.connections_refused.load(Ordering::Relaxed));
        write_otlp(&mut page, &self.otlp);
        process::write(&mut page);
        page.finish()
    }
}

fn write_records(page: &mut Page, status: &Status) {
    page.single(&f::JUDGED, status.flows);
    page.single(&f::UNJUDGED, status.flows_unjudged);
    page.single(&f::MADE, status.records_made);
    page.single(&f::READ, status.records_read);
    page.single(&f::LOST, status.records_lost);
    page.single(&f::MALFORMED, status.records_malformed);
}

fn write_hooks(page: &mut Page, status: &Status) {
    let mut attached: BTreeMap<&str, u64> = MEANS.iter().map(|means| (*means, 0)).collect();
    for means in status.hooks.iter().filter_map(|hook| hook.state.as_ref().ok()) {
        *attached.entry(means).or_default() += 1;
    }
    let missing = status.hooks.iter().filter(|hook| hook.state.is_err()).count();
    page.single(&f::WANTED, status.hooks.len());
    page.single(&f::MISSING_HOOKS, missing);
    page.family(&f::ATTACHED);
    for (means, count) in attached {
        page.sample(&[means], count);
    }
}

fn write_state(page: &mut Page, status: &Status) {
    page.single(&f::TROUBLE, u8::from(status.trouble.is_some()));
    for (family, time) in [(&f::SAID, status.said), (&f::SERVING, status.serving_since)] {
        if let Some(since_1970) = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            page.single(family, since_1970.as_secs_f64());
        }
    }
    page.single(&f::WORLD_AGE, status.world_age.as_secs_f64());
    page.single(&f::FACTS, status.missing.len());
    page.single(&f::TARGETS, status.targets.len());
    page.single(&f::SESSIONS, status.sessions);
    page.single(&f::OPENED, status.sessions_opened);
    page.single(&f::TURNED_AWAY, status.sessions_refused);
    page.single(&f::HISTORY_BYTES, status.history_bytes);
    page.single(&f::HISTORY_FLOWS, status.history_flows);
}

fn write_otlp(page: &mut Page, tally: &Tally) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.single(&f::OTLP_EXPORTED, count(&tally.spans_exported));
    page.single(&f::OTLP_REJECTED, count(&tally.spans_rejected));
    page.family(&f::OTLP_LOST);
    let lost = [("behind", &tally.behind), ("refused", &tally.refused), ("unreachable", &tally.unreachable)];
    for (reason, flows) in lost {
        page.sample(&[reason], count(flows));
    }
    page.single(&f::OTLP_RETRIES, count(&tally.retries));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked in here has at worst left a flow out.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
