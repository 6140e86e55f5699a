//! Flows as they are judged, for many readers: none of them can hold up the one who judges, or another reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::flow::Flow;

/// Flows that a reader may be behind before it loses some: 200 ms of ten thousand a second. They are kept for the slowest.
const BEHIND_MAX: usize = 2048;

/// The last flows, and those to come.
#[derive(Debug)]
pub struct Feed {
    kept: Mutex<VecDeque<Arc<Flow>>>,
    /// Flows kept at most.
    max: usize,
    sender: broadcast::Sender<Arc<Flow>>,
}

/// Flows to come. One that is too slow is told how many it lost
/// ([`RecvError::Lagged`](broadcast::error::RecvError::Lagged)).
pub type Flows = broadcast::Receiver<Arc<Flow>>;

impl Feed {
    /// Keeps the last `max` flows.
    pub fn new(max: usize) -> Self {
        Self { kept: Mutex::default(), max, sender: broadcast::Sender::new(BEHIND_MAX) }
    }

    /// Tells every reader of a flow. Numbers rise.
    pub fn push(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut kept = self.lock();
        if kept.len() >= self.max {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&flow));
        // Within the lock, so that a reader who begins sees each flow once. Without any reader there is nobody to tell.
        drop(self.sender.send(flow));
    }

    /// The flows that are kept, the oldest first, and those that come after them.
    pub fn follow(&self) -> (Vec<Arc<Flow>>, Flows) {
        let kept = self.lock();
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }

    /// The flow of this number, while it is kept. Whoever sends many holds on to their numbers instead: what it has not
    /// sent yet does not stay in memory for it.
    pub fn get(&self, number: u64) -> Option<Arc<Flow>> {
        let kept = self.lock();
        let at = kept.binary_search_by_key(&number, |flow| flow.number).ok()?;
        kept.get(at).cloned()
    }

    /// Flows that are kept now.
    pub fn kept(&self) -> usize {
        self.lock().len()
    }

    /// Flows kept at most.
    pub fn max(&self) -> usize {
        self.max
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Flow>>> {
        // Whoever panicked in here has left a whole list behind.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
