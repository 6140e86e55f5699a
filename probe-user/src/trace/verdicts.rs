//! Cilium's own verdicts: from our probe if the kernel allowed it, else from the agent's monitor socket.
use std::path::Path;
use std::time::Duration;

use probe_model::cilium::events::Stream;
use probe_model::path::Sighting;

use super::judge::EventSource;
use crate::sources::monitor::{Monitor, Payload};
use crate::sys;

/// How long to wait before the socket is tried again after it closed.
const RETRY: Duration = Duration::from_secs(1);

/// Where Cilium's notifications come from, and what was lost on the way.
#[derive(Debug)]
pub(super) struct Verdicts {
    source: EventSource,
    monitor: Option<Monitor>,
    /// What this connection's notifications have shown of the datapath.
    stream: Stream,
    path: std::path::PathBuf,
    /// Notifications received from the socket.
    pub(super) received: u64,
    /// Notifications that the agent says it lost.
    pub(super) lost: u64,
    /// Notifications of a layout that is not known.
    pub(super) undecoded: u64,
    retry_at: Option<tokio::time::Instant>,
}

impl Verdicts {
    /// `probe` is how our probe is attached, or why not.
    pub(super) async fn open(probe: Result<&'static str, String>, socket: &Path) -> Self {
        let (source, monitor) = match probe {
            Ok(means) => (EventSource::Probe(means), None),
            Err(refused) => match Monitor::connect(socket).await {
                Ok(monitor) => (EventSource::MonitorSocket, Some(monitor)),
                Err(error) => (EventSource::None(format!("{refused}; {error:#}")), None),
            },
        };
        let path = socket.to_owned();
        Self {
            source,
            monitor,
            stream: Stream::default(),
            path,
            received: 0,
            lost: 0,
            undecoded: 0,
            retry_at: None,
        }
    }

    pub(super) fn source(&self) -> &EventSource {
        &self.source
    }

    /// The next notification from the socket. Never ends where there is none to read. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let Some(monitor) = &mut self.monitor else {
                return self.reconnect().await;
            };
            match monitor.next().await {
                Ok(Some(Payload::Sample { data, .. })) => {
                    self.received += 1;
                    let now_ns = sys::monotonic().as_nanos() as u64;
                    match Sighting::from_stream(now_ns, &mut self.stream, &data) {
                        Ok(Some(sighting)) => return Event::Sighting(Box::new(sighting)),
                        Ok(None) => {}
                        Err(error) => {
                            self.undecoded += 1;
                            if self.undecoded == 1 {
                                return Event::Notice(format!(
                                    "a notification of Cilium's was not read: {error}"
                                ));
                            }
                        }
                    }
                }
                Ok(Some(Payload::Lost { count, .. })) => self.lost += count,
                Ok(Some(Payload::Unknown { .. })) => {}
                Ok(None) => return self.closed("the agent closed it"),
                Err(error) => return self.closed(&format!("{error:#}")),
            }
        }
    }

    fn closed(&mut self, why: &str) -> Event {
        self.monitor = None;
        self.source = EventSource::None(format!("the monitor socket was lost: {why}"));
        self.retry_at = Some(tokio::time::Instant::now() + RETRY);
        Event::Notice(format!(
            "lost Cilium's monitor socket `{}`: {why}; verdicts come from the maps until it is back",
            self.path.display()
        ))
    }

    /// Waits for the socket to come back, if there was one.
    async fn reconnect(&mut self) -> Event {
        let Some(mut at) = self.retry_at else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep_until(at).await;
            if let Ok(monitor) = Monitor::connect(&self.path).await {
                self.monitor = Some(monitor);
                // Another agent may be behind it, with another release's datapath.
                self.stream = Stream::default();
                self.source = EventSource::MonitorSocket;
                self.retry_at = None;
                return Event::Notice(format!("Cilium's monitor socket `{}` is back", self.path.display()));
            }
            at = tokio::time::Instant::now() + RETRY;
            self.retry_at = Some(at);
        }
    }
}

/// What the socket brought.
#[derive(Debug)]
pub(super) enum Event {
    /// A packet that Cilium notified of.
    Sighting(Box<Sighting>),
    /// Something the operator should know.
    Notice(String),
}
