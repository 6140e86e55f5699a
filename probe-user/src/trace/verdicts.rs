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

#[cfg(test)]
mod tests {
    use probe_lab::agent::gob::{Encoder, FIRST_TYPE_ID};
    use probe_model::cilium::drop_reason::DropReason;
    use probe_model::cilium::events::{
        CaptureHeader, DropNotify, Notification, NotifyFlags, PolicyVerdictNotify,
    };
    use probe_model::cilium::identity::Identity;
    use probe_model::cilium::policy::MatchType;
    use probe_model::cilium::{Direction, EndpointId};
    use probe_model::path::Seen;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixListener;

    use super::*;

    /// A TCP packet of no port's, as Ethernet carries it.
    fn frame() -> [u8; 54] {
        let mut frame = [0; 54];
        frame[12] = 0x08;
        (frame[14], frame[14 + 9]) = (0x45, 6);
        frame
    }

    fn header() -> CaptureHeader {
        let length = frame().len() as u16;
        CaptureHeader {
            source: EndpointId(413),
            hash: 0,
            len_orig: length.into(),
            len_cap: length,
            ext_version: 0,
        }
    }

    fn drop_of_1_18() -> Notification {
        Notification::Drop(DropNotify {
            header: header(),
            reason: DropReason::POLICY,
            src_label: Identity(2),
            dst_label: Identity(1234),
            dst_id: 413,
            line: 1,
            file: 2,
            ext_error: 0,
            ifindex: 2,
            flags: Some(NotifyFlags(0)),
            ip_trace_id: None,
        })
    }

    fn verdict_of_1_19() -> Notification {
        Notification::PolicyVerdict(PolicyVerdictNotify {
            header: header(),
            remote_label: Identity(2),
            verdict: -133,
            dst_port: 0,
            proto: 6,
            direction: Direction::Ingress,
            ipv6: false,
            match_type: MatchType::None,
            audited: false,
            l3_device: false,
            auth_type: 0,
            cookie: Some(0),
        })
    }

    /// Takes one client and sends it these notifications, then hangs up.
    async fn serve(listener: &UnixListener, notifications: &[Notification]) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut encoder = Encoder::new(FIRST_TYPE_ID);
        for notification in notifications {
            let data = [notification.encode(), frame().to_vec()].concat();
            let bytes = encoder.encode(&Payload::Sample { cpu: 0, data });
            stream.write_all(&bytes).await.unwrap();
        }
    }

    /// An agent of 1.18 goes, one of 1.19 comes: what was learnt of the one must not be held against the other.
    #[tokio::test]
    async fn an_upgraded_agent_begins_a_new_stream() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(crate::sources::monitor::SOCKET);
        let listener = UnixListener::bind(&path).unwrap();
        let agents = async {
            serve(&listener, &[drop_of_1_18(), verdict_of_1_19()]).await;
            serve(&listener, &[verdict_of_1_19()]).await;
        };
        let client = async {
            let mut verdicts = Verdicts::open(Err("no probe".to_owned()), &path).await;
            let mut told = Vec::new();
            for _ in 0..5 {
                told.push(match verdicts.next().await {
                    Event::Sighting(sighting) => Ok(sighting.seen),
                    Event::Notice(text) => Err(text),
                });
            }
            (told, verdicts.received, verdicts.undecoded)
        };
        let both = async { tokio::join!(agents, client).1 };
        let (told, received, undecoded) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!((received, undecoded), (3, 1));
        let [before, refused, lost, back, after] = &told[..] else { panic!("{told:?}") };
        assert_eq!(before, &Ok(Seen::Cilium { notification: drop_of_1_18() }));
        let refused = refused.as_ref().unwrap_err();
        assert!(refused.contains("no known layout of `policy_verdict_notify`"), "{refused}");
        assert!(refused.contains("in a stream with drops or traces of Cilium before 1.19"), "{refused}");
        assert!(lost.as_ref().unwrap_err().starts_with("lost Cilium's monitor socket"));
        assert!(back.as_ref().unwrap_err().ends_with("is back"));
        assert_eq!(after, &Ok(Seen::Cilium { notification: verdict_of_1_19() }));
    }
}
