//! How the agent is, as its engine last said: for metrics, health checks and Hubble's `ServerStatus`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// An engine that says nothing for so long hangs: it speaks once a second, and is never busy for longer than some.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// What the engine says of itself, about once a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// When the agent began to serve; `None` before.
    pub serving_since: Option<SystemTime>,
    /// When the engine last said so; one that hangs does not.
    pub said: Option<SystemTime>,
    /// Why nothing can be seen for now, such as a Cilium that is not there.
    pub trouble: Option<String>,
    /// Hooks that are wanted, by place, with whether each is attached and by which means, or why not.
    pub hooks: Vec<HookStatus>,
    /// Where Cilium's verdicts come from: `probe`, `monitor`, `hubble`, `maps`.
    pub verdicts_from: &'static str,
    /// Cilium's version, in the agent's own words, if known.
    pub cilium_version: Option<String>,
    /// Records that our programs made.
    pub records_made: u64,
    /// Records that were read.
    pub records_read: u64,
    /// Records that found no room.
    pub records_lost: u64,
    /// Records that could not be read.
    pub records_malformed: u64,
    /// Flows that were judged.
    pub flows: u64,
    /// Flows that were seen and not judged one by one, as there were too many.
    pub flows_unjudged: u64,
    /// How old the maps are that flows are judged by.
    pub world_age: Duration,
    /// Trace sessions that are open.
    pub sessions: u64,
    /// Trace sessions since the start.
    pub sessions_opened: u64,
    /// Sessions that were refused for a limit.
    pub sessions_refused: u64,
    /// Bytes and flows of the history.
    pub history_bytes: u64,
    /// Flows of the history.
    pub history_flows: u64,
    /// What is watched, as it was named: TARGETs and Services that ask for Private Link.
    pub targets: Vec<String>,
    /// Facts that could not be had, by name: `kubernetes/services`.
    pub missing: Vec<String>,
}

/// One hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    /// `eth0 ingress`, `bpf_skb_event_output`.
    pub place: String,
    /// `tcx`, `legacy tc`, `kprobe`; or why it is not attached.
    pub state: Result<&'static str, String>,
}

/// The last word, for whoever asks.
#[derive(Debug, Default)]
pub struct Board(Mutex<Status>);

impl Board {
    /// What was last said.
    pub fn read(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says anew how things are.
    pub fn write(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
