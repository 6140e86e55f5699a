//! How long a new pod is there before the agent tells of a flow of its.
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use probe_lab::addresses::{NGINX, SERVICE_PORT, VM};
use probe_lab::tracing::{PATIENCE, Trace};
use probe_lab::{ClientSaw, Lab, Ns, Probe};
use serde_json::Value;

/// From one connection to a new pod to the next.
const TRY_EVERY: Duration = Duration::from_millis(50);
/// The first source port; each connection has its own, by which its flow is known.
const FIRST_PORT: u16 = 20_000;

/// A session for `my-nginx` that is read all the time, and what it told of each new pod.
pub(crate) struct Pods {
    session: Trace,
    port: u16,
    seen: Vec<Seen>,
}

/// From the moment that Cilium knows a new pod.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// To the beginning of the first connection that was seen at the pod's own interface.
    seen: Duration,
    /// Until a session was told of that one.
    told: Duration,
}

impl Pods {
    /// By this session, in JSON.
    pub(crate) fn new(session: Trace) -> Self {
        Self { session, port: FIRST_PORT, seen: Vec::new() }
    }

    /// Reads what the session says for this long, of which nothing is kept.
    pub(crate) fn read(&mut self, within: Duration) {
        self.session.take_data(within);
        self.session.is_attached();
    }

    /// Connects to the pod, which has just been made, until one of the connections is told of.
    pub(crate) fn wait_until_seen(&mut self, lab: &Lab) {
        let there = Instant::now();
        let mut tries = BTreeMap::new();
        let mut next = there;
        loop {
            assert!(there.elapsed() < PATIENCE, "no flow of the new pod is told of");
            if Instant::now() >= next {
                self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
                tries.insert(u64::from(self.port), there.elapsed());
                let probe = Probe::tcp(Ns::Vm, VM, NGINX, SERVICE_PORT).with_src_port(self.port);
                assert_eq!(lab.probe(&probe).unwrap(), ClientSaw::Ok, "the new pod answers");
                next = Instant::now() + TRY_EVERY;
            }
            let line = self.session.take_data(next.saturating_duration_since(Instant::now()));
            let port = line.as_deref().and_then(port_seen_at_the_pod);
            if let Some(seen) = port.and_then(|port| tries.get(&port)) {
                self.seen.push(Seen { seen: *seen, told: there.elapsed() });
                return;
            }
        }
    }

    /// The longest that a pod was there unseen.
    pub(crate) fn longest_unseen(&self) -> Duration {
        self.seen.iter().map(|seen| seen.seen).max().unwrap_or_default()
    }
}

/// The source port of a flow, if packets of its were seen at the pod's own interface.
fn port_seen_at_the_pod(line: &str) -> Option<u64> {
    let value: Value = serde_json::from_str(line).expect("JSON");
    let hops = value["hops"].as_array()?;
    hops.iter().any(|hop| hop["point"] == "PodIn").then(|| value["tuple"]["sport"].as_u64())?
}

impl fmt::Display for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |what: fn(&Seen) -> Duration| {
            let mut all: Vec<_> = self.seen.iter().map(what).collect();
            all.sort_unstable();
            (all[all.len() / 2], all[all.len() - 1])
        };
        let ((seen, seen_max), (told, told_max)) = (of(|one| one.seen), of(|one| one.told));
        write!(f, "{} pods: seen after {seen:.0?} (median), {seen_max:.0?} (at most); ", self.seen.len())?;
        write!(f, "told after {told:.0?}, {told_max:.0?}")
    }
}
