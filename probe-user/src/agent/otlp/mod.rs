//! Flows as traces, to a collector that speaks OTLP over HTTP.
//!
//! One batch is under way at a time; what is judged meanwhile waits in the feed, which is bounded, and what falls out of
//! it is counted. So a collector that is slow or gone costs spans, never memory and never the agent's time.
//!
//! Source: the OpenTelemetry Protocol's specification 1.x, "OTLP/HTTP".

mod proto;
mod settings;
mod spans;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep, timeout_at};

use self::proto::{AnyValue, ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans};
use self::proto::{Scope, ScopeSpans, Span, Value};
pub use self::settings::{HEADERS_VARIABLE, Headers, Settings};
use super::feed::{Feed, Flows};
use super::flow::Flow;
use crate::grpc::server::Notice;
use crate::sources::http::{Body, Client, Error, Patience, Request, Why, shown};

/// Flows of a batch: some 10 spans of some 500 bytes each, far below the 20 MiB that a collector takes at most.
const BATCH_FLOWS: usize = 256;
/// Bytes of a batch, whatever its flows hold, but for the last of them.
const BATCH_BYTES: usize = 2 << 20;
/// A collector that wants to be left alone for longer is asked again all the same.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(10);
/// An answer that is longer is refused: one sentence is expected.
const ANSWER_MAX: u64 = 64 << 10;

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For more flows, once there is one.
    pub gather: Duration,
    /// For the collector's answer to one request.
    pub answer: Duration,
    /// Before a batch is sent again; doubled each time.
    pub first_wait: Duration,
    /// Such waits at most; a collector may ask for longer ones.
    pub longest_wait: Duration,
    /// After which a batch is given up: later flows are worth more.
    pub give_up: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gather: Duration::from_secs(1),
            answer: Duration::from_secs(10),
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(30),
            give_up: Duration::from_mins(2),
        }
    }
}

/// What the exporter counts.
#[derive(Debug, Default)]
pub struct Tally {
    /// Spans that were taken.
    pub spans_exported: AtomicU64,
    /// Spans of accepted batches that were not.
    pub spans_rejected: AtomicU64,
    /// Flows that were judged faster than exported.
    pub behind: AtomicU64,
    /// Flows of batches that the collector refused.
    pub refused: AtomicU64,
    /// Flows of batches that were given up.
    pub unreachable: AtomicU64,
    /// Times a batch was sent again.
    pub retries: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Exports what is fed from now on, until the feed is gone.
///
/// Requests block a thread of the runtime's blocking pool, for [`Pace::answer`] at most: whoever ends the runtime should
/// not wait for it longer than it wants to.
pub async fn export(settings: Settings, pace: Pace, feed: Arc<Feed>, tally: Arc<Tally>, notice: Notice) {
    // Without those that are kept: an agent that was started anew would export them twice.
    let (_, flows) = feed.follow();
    drop(feed);
    if settings.tells_headers() {
        notice(format!(
            "otlp: headers go to {} unencrypted: whoever is between can read them",
            settings.base
        ));
    }
    let patience = Patience { connect: pace.answer, each: pace.answer, total: pace.answer };
    let Settings { base, path, tls, headers, resolver, node } = settings;
    let client = Client { base, tls, patience, max_body: ANSWER_MAX, resolver };
    let mut exporter = Exporter { client, path, headers, node, pace, tally, notice, is_failing: false };
    exporter.run(flows).await;
}

struct Exporter {
    client: Client,
    path: String,
    headers: Headers,
    node: String,
    pace: Pace,
    tally: Arc<Tally>,
    notice: Notice,
    /// Whether it was said that nothing gets through.
    is_failing: bool,
}

/// Spans, encoded.
#[derive(Default)]
struct Batch {
    spans: Vec<Span>,
    flows: u64,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, flow: &Flow, node: &str) {
        let spans = spans::spans(flow, node);
        self.bytes += spans.iter().map(Span::encoded_len).sum::<usize>();
        self.spans.extend(spans);
        self.flows += 1;
    }

    fn is_full(&self) -> bool {
        self.flows as usize >= BATCH_FLOWS || self.bytes >= BATCH_BYTES
    }
}

impl Exporter {
    async fn run(&mut self, mut flows: Flows) {
        loop {
            let first = match flows.recv().await {
                Ok(flow) => flow,
                Err(RecvError::Lagged(lost)) => {
                    count(&self.tally.behind, lost);
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            let mut batch = Batch::default();
            batch.add(&first, &self.node);
            self.gather(&mut flows, &mut batch).await;
            self.deliver(batch).await;
        }
    }

    /// Adds those that come within the time.
    async fn gather(&self, flows: &mut Flows, batch: &mut Batch) {
        let until = Instant::now() + self.pace.gather;
        while !batch.is_full() {
            let next = match flows.try_recv() {
                Err(TryRecvError::Empty) => match timeout_at(until, flows.recv()).await {
                    Ok(next) => next,
                    Err(_) => return,
                },
                Ok(flow) => Ok(flow),
                Err(TryRecvError::Lagged(lost)) => Err(RecvError::Lagged(lost)),
                Err(TryRecvError::Closed) => return,
            };
            match next {
                Ok(flow) => batch.add(&flow, &self.node),
                Err(RecvError::Lagged(lost)) => count(&self.tally.behind, lost),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Sends a batch until it is taken, refused, or not worth it any more.
    async fn deliver(&mut self, batch: Batch) {
        let (n_spans, n_flows) = (batch.spans.len() as u64, batch.flows);
        let request = self.request(batch.spans);
        let started = Instant::now();
        let mut backoff = self.pace.first_wait;
        loop {
            let error = match self.post(&request).await {
                Ok(answer) => return self.taken(n_spans, &answer),
                Err(error) => error,
            };
            self.say(&error);
            let Some(wait) = wait(&error, jittered(backoff)) else {
                count(&self.tally.refused, n_flows);
                return;
            };
            backoff = self.pace.longest_wait.min(backoff * 2);
            sleep(wait).await;
            if started.elapsed() >= self.pace.give_up {
                count(&self.tally.unreachable, n_flows);
                return;
            }
            count(&self.tally.retries, 1);
        }
    }

    fn request(&self, spans: Vec<Span>) -> Arc<Request> {
        let bytes = message(spans, &self.node).encode_to_vec();
        let mut request = Request::get(self.path.clone());
        request.body = Some(Body { content_type: "application/x-protobuf", bytes });
        for (name, value) in &self.headers.0 {
            request = request.with(name.clone(), value.clone());
        }
        Arc::new(request)
    }

    async fn post(&self, request: &Arc<Request>) -> Result<Vec<u8>, Error> {
        let (client, request) = (self.client.clone(), Arc::clone(request));
        let asked = self.client.base.to_string();
        let sent = tokio::task::spawn_blocking(move || client.send_once(&request)).await;
        let ended = |why: String| Error { asked, why: Why::Unreachable(why), tries: 1 };
        sent.unwrap_or_else(|error| Err(ended(error.to_string())))
    }

    fn taken(&mut self, spans: u64, answer: &[u8]) {
        if std::mem::take(&mut self.is_failing) {
            (self.notice)(format!("otlp: {} takes spans again", self.client.base));
        }
        // An answer that is none of the protocol's is one without complaint: its status was.
        let said = ExportResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        let said = said.unwrap_or_default();
        let rejected = u64::try_from(said.rejected_spans).unwrap_or_default().min(spans);
        count(&self.tally.spans_exported, spans - rejected);
        count(&self.tally.spans_rejected, rejected);
        if rejected > 0 || !said.error_message.is_empty() {
            let message = shown(&said.error_message);
            let base = &self.client.base;
            (self.notice)(format!("otlp: {base} rejects {rejected} of {spans} spans: {message}"));
        }
    }

    /// Once, until something gets through again.
    fn say(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.is_failing, true) {
            (self.notice)(format!("otlp: spans are not taken, and lost if that lasts: {error}"));
        }
    }
}

/// How long to wait before it is worth sending again: what the collector says, else `backoff`; `None` if it never is.
fn wait(error: &Error, backoff: Duration) -> Option<Duration> {
    match &error.why {
        Why::Status { status: 429 | 502 | 503 | 504, retry_after, .. } => {
            Some(retry_after.map_or(backoff, |asked| asked.min(RETRY_AFTER_MAX)))
        }
        Why::Status { .. } => None,
        Why::Unreachable(_) | Why::Untrusted(_) | Why::TimedOut(_) | Why::Answer(_) => Some(backoff),
    }
}

/// Between a half and all of it, so that the agents of a cluster do not come back at once.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() as u32;
    wait / 2 + (wait / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn message(spans: Vec<Span>, node: &str) -> ExportRequest {
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::Text(value.to_owned())) }),
    };
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        text("service.name", "plsprobe"),
        text("service.version", version),
        text("service.instance.id", node),
        text("k8s.node.name", node),
    ];
    let scope = Some(Scope { name: "plsprobe".to_owned(), version: version.to_owned() });
    let resource = Some(Resource { attributes });
    ExportRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans: vec![ScopeSpans { scope, spans }] }],
    }
}
