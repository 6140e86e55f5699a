//! What the agent keeps of the flows to what it watches, and whom it tells.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use probe_model::path::evidence::LateReset;
use probe_model::path::probe::is_probe_source;
use probe_model::path::together::EgressDrop;
use probe_model::path::{Outcome, Path, Rewrite};
use probe_model::tuple::Tuple;

use super::clock::Moment;
use super::feed::Feed;
use super::flow::Flow;
use super::history::{History, Kept};
use super::log::Log;
use crate::render::{trace as text, trace_json as json};
use crate::trace::judge::FlowVerdict;
use crate::trace::kernel::Names;
use crate::trace::listener::{Listener, Told};
use crate::trace::summary::Summary;
use crate::trace::watched::WatchedProbe;

/// The agent's memory of flows.
pub(super) struct Record {
    feed: Arc<Feed>,
    log: Arc<Log>,
    pub(super) history: History,
    /// Flows that were judged.
    pub(super) flows: u64,
    /// Flows that were too many to be judged one by one.
    pub(super) unjudged: u64,
    /// The last flow: what is watched may overlap, and a flow is told to each of them before the next is.
    last: Option<(Tuple, u64)>,
}

impl Record {
    /// An empty one.
    pub(super) fn new(feed: Arc<Feed>, log: Arc<Log>, history_bytes: u64) -> Self {
        let history = History::new(history_bytes, Moment::now().unix_ns);
        Self { feed, log, history, flows: 0, unjudged: 0, last: None }
    }

    /// Whether a flow was not told just now.
    fn is_new(&mut self, path: &Path) -> bool {
        let this = Some((path.tuple, path.first_ns));
        let last = std::mem::replace(&mut self.last, this);
        last != this
    }

    fn take(&mut self, told: Told<'_>) -> Result<()> {
        if !self.is_new(&told.judgement.path) {
            return Ok(());
        }
        self.flows += 1;
        let now = Moment::now();
        let kept = kept(told, now)?;
        // They come every few seconds, for ever: those that are answered say nothing that the last did not.
        if !(kept.is_fine && is_probe_source(told.judgement.path.tuple.saddr)) {
            self.history.push(kept);
        }
        self.feed.push(Flow::of(told, self.flows, now));
        Ok(())
    }
}

fn kept(told: Told<'_>, now: Moment) -> Result<Kept> {
    let Told { world, judgement, names } = told;
    let path: &Path = &judgement.path;
    let (mut as_text, mut as_json) = (Vec::new(), Vec::new());
    text::flow(world, judgement, names, &mut as_text)?;
    json::flow(world, judgement, names, &mut as_json)?;
    let later = path.rewrites.iter().map(|rewrite: &Rewrite| rewrite.to);
    let tuples = std::iter::once(path.tuple).chain(later).collect();
    let as_text = String::from_utf8_lossy(&as_text).into_owned();
    let first_ns = now.unix_ns(path.first_ns);
    let kept = Kept::new(tuples, judgement.verdict, first_ns, as_text, &as_json)?;
    let is_fine = judgement.verdict == FlowVerdict::Allowed
        && path.outcome == Outcome::Answered
        && judgement.findings.is_empty()
        && judgement.causes.is_empty();
    Ok(kept.that(judgement.is_beside, is_fine))
}

/// Listens for one of the things that are watched.
pub(super) struct Recorder(pub(super) Rc<RefCell<Record>>);

impl Listener for Recorder {
    fn flow(&mut self, told: Told<'_>) -> Result<()> {
        self.0.borrow_mut().take(told)
    }

    fn probe(&mut self, _: &WatchedProbe, _: Told<'_>) -> Result<()> {
        Ok(())
    }

    fn wants_each_probe(&self) -> bool {
        true
    }

    fn each_probe(&mut self, told: Told<'_>) -> Result<()> {
        self.0.borrow_mut().take(told)
    }

    fn egress(&mut self, _: &EgressDrop) -> Result<()> {
        Ok(())
    }

    fn late_reset(&mut self, _: &LateReset, _: &Names) -> Result<()> {
        Ok(())
    }

    fn may_miss(&self) -> bool {
        true
    }

    fn missed(&mut self, path: &Path) {
        let mut record = self.0.borrow_mut();
        if record.is_new(path) {
            record.unjudged += 1;
            record.history.miss(Moment::now().unix_ns(path.first_ns));
        }
    }

    fn notice(&mut self, text: &str) {
        self.0.borrow().log.say(text);
    }

    fn summary(&mut self, _: &Summary) -> Result<()> {
        Ok(())
    }
}
