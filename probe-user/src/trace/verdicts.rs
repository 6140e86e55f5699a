//! Cilium's own verdicts: from our probe if the kernel allowed it, else from the agent's monitor socket, else from
//! Hubble's.
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use probe_model::cilium::events::Stream;
use probe_model::path::Sighting;

use super::judge::EventSource;
use crate::sources::LiveOptions;
use crate::sources::hubble::{self, Flows, Hubble};
use crate::sources::monitor::{self, Monitor};
use crate::sources::unusable::Unusable;
use crate::sys;

/// How long to wait before the sockets are tried again after one closed.
const RETRY: Duration = Duration::from_secs(1);

/// The agent's sockets, and what to ask Hubble's for.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    monitor: PathBuf,
    hubble: PathBuf,
    /// Addresses of the pods and frontends that are traced.
    addresses: Vec<IpNet>,
}

impl Sockets {
    pub(super) fn new(live: &LiveOptions, addresses: Vec<IpNet>) -> Self {
        Self { monitor: live.monitor_socket(), hubble: live.hubble_socket(), addresses }
    }

    /// The first that answers.
    async fn open(self) -> Result<Open, String> {
        let monitor = match Monitor::connect(&self.monitor).await {
            Ok(monitor) => return Ok(Open::Monitor(Box::new(monitor), Stream::default())),
            Err(error) => Unusable::parts(&error).0,
        };
        let hubble = match Hubble::connect(&self.hubble).await {
            Ok(hubble) => hubble.follow(&self.addresses).await,
            Err(error) => Err(error),
        };
        match hubble {
            Ok(flows) => Ok(Open::Hubble(Box::new(flows))),
            Err(error) => Err(format!("{monitor}; {}", Unusable::parts(&error).0)),
        }
    }
}

/// A socket that is read.
enum Open {
    /// With what this connection's notifications have shown of the datapath: the next may be another agent's, of
    /// another release.
    Monitor(Box<Monitor>, Stream),
    Hubble(Box<Flows>),
}

impl Open {
    fn source(&self) -> EventSource {
        match self {
            Self::Monitor(..) => EventSource::MonitorSocket,
            Self::Hubble(_) => EventSource::Hubble,
        }
    }

    /// What to call it, before its path.
    fn name(&self) -> &'static str {
        match self {
            Self::Monitor(..) => "Cilium's monitor socket",
            Self::Hubble(_) => "Hubble's socket",
        }
    }

    /// What it brought; `None` when it was closed.
    async fn next(&mut self) -> Result<Option<News>> {
        match self {
            Self::Monitor(monitor, stream) => Ok(monitor.next().await?.map(|payload| match payload {
                monitor::Payload::Sample { data, .. } => {
                    let now_ns = sys::monotonic().as_nanos() as u64;
                    let sighting = Sighting::from_stream(now_ns, stream, &data);
                    News::Notification(sighting.map(|found| found.map(Box::new)).map_err(Into::into))
                }
                monitor::Payload::Lost { count, .. } => News::Lost(count),
                monitor::Payload::Unknown { .. } => News::Other,
            })),
            Self::Hubble(flows) => Ok(flows.next().await?.map(|payload| match payload {
                hubble::Payload::Flow(sighting) => News::Notification(sighting),
                hubble::Payload::Lost(count) => News::Lost(count),
                hubble::Payload::Other => News::Other,
            })),
        }
    }
}

/// One value that a socket brought.
enum News {
    /// A notification; `None` if it carries no packet.
    Notification(Result<Option<Box<Sighting>>>),
    /// The agent lost so many.
    Lost(u64),
    /// Of no use.
    Other,
}

/// Where Cilium's notifications come from, and what was lost on the way.
pub(super) struct Verdicts {
    source: EventSource,
    sockets: Sockets,
    open: Option<Open>,
    /// Notifications received from a socket.
    pub(super) received: u64,
    /// Notifications that the agent says it lost.
    pub(super) lost: u64,
    /// Notifications of a layout that is not known.
    pub(super) undecoded: u64,
    /// Waits and connects anew, once a socket was lost.
    reopening: Option<Reopening>,
}

type Reopening = Pin<Box<dyn Future<Output = Open>>>;

impl Verdicts {
    /// `probe` is how our probe is attached, or why not.
    pub(super) async fn open(probe: Result<&'static str, String>, sockets: Sockets) -> Self {
        let (source, open) = match probe {
            Ok(means) => (EventSource::Probe(means), None),
            Err(refused) => match sockets.clone().open().await {
                Ok(open) => (open.source(), Some(open)),
                Err(why) => (EventSource::None(format!("{refused}; {why}")), None),
            },
        };
        Self { source, sockets, open, received: 0, lost: 0, undecoded: 0, reopening: None }
    }

    pub(super) fn source(&self) -> &EventSource {
        &self.source
    }

    /// Other addresses are traced from now on: Hubble, which picks flows by them, is asked anew.
    pub(super) fn watch(&mut self, addresses: Vec<IpNet>) {
        self.sockets.addresses = addresses;
        if self.reopening.is_some() || matches!(self.open, Some(Open::Hubble(_))) {
            self.closed("other addresses are traced now");
        }
    }

    /// The next notification from the socket. Never ends where there is none to read. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            let Some(open) = &mut self.open else {
                return self.reconnect().await;
            };
            match open.next().await {
                Ok(Some(News::Notification(sighting))) => {
                    self.received += 1;
                    match sighting {
                        Ok(Some(sighting)) => return Event::Sighting(sighting),
                        Ok(None) => {}
                        Err(error) => {
                            self.undecoded += 1;
                            if self.undecoded == 1 {
                                return Event::Notice(format!(
                                    "a notification of Cilium's was not read: {error:#}"
                                ));
                            }
                        }
                    }
                }
                Ok(Some(News::Lost(count))) => self.lost += count,
                Ok(Some(News::Other)) => {}
                Ok(None) => return self.closed("the agent closed it"),
                Err(error) => return self.closed(&format!("{error:#}")),
            }
        }
    }

    fn closed(&mut self, why: &str) -> Event {
        let name = self.open.take().map_or("a socket of the agent's", |open| open.name());
        self.source = EventSource::None(format!("{name} was lost: {why}"));
        let sockets = self.sockets.clone();
        self.reopening = Some(Box::pin(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                if let Ok(open) = sockets.clone().open().await {
                    return open;
                }
            }
        }));
        Event::Notice(format!("lost {name}: {why}; verdicts come from the maps until it is back"))
    }

    /// Waits for a socket to come back, if there was one.
    async fn reconnect(&mut self) -> Event {
        // Kept while it waits: connecting takes longer than this future may live.
        let Some(reopening) = &mut self.reopening else {
            return std::future::pending().await;
        };
        let open = reopening.await;
        self.reopening = None;
        let notice = format!("{} is back", open.name());
        self.source = open.source();
        self.open = Some(open);
        Event::Notice(notice)
    }
}

/// What the socket brought.
#[derive(Debug)]
pub(crate) enum Event {
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
    use crate::sources::hubble::tests::{Answer, denied, healthy, in_response};
    use crate::sources::monitor::Payload;

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
            let mut verdicts = Verdicts::open(refused(), sockets(folder.path())).await;
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

    fn sockets(folder: &std::path::Path) -> Sockets {
        let live = LiveOptions { cilium_run: folder.to_owned(), ..LiveOptions::default() };
        Sockets::new(&live, vec!["10.0.0.143/32".parse().unwrap()])
    }

    fn refused() -> Result<&'static str, String> {
        Err("no kprobe".to_owned())
    }

    #[track_caller]
    fn is_verdict(event: &Event) {
        let Event::Sighting(sighting) = event else { panic!("{event:?}") };
        assert!(matches!(sighting.seen.notification(), Some(Notification::PolicyVerdict(_))));
    }

    #[tokio::test]
    async fn neither_socket() {
        let folder = tempfile::tempdir().unwrap();
        let verdicts = Verdicts::open(refused(), sockets(folder.path())).await;
        let EventSource::None(why) = verdicts.source() else { panic!("{:?}", verdicts.source()) };
        let shown = folder.path().display();
        assert_eq!(
            *why,
            format!("no kprobe; no socket at `{shown}/monitor1_2.sock`; no socket at `{shown}/hubble.sock`")
        );
    }

    #[tokio::test]
    async fn a_probe_needs_no_socket_and_the_monitor_comes_before_hubble() {
        let server = healthy(Answer::Hang(Vec::new()));
        let folder = server.folder.path();
        let verdicts = Verdicts::open(Ok("kprobe"), sockets(folder)).await;
        assert_eq!(*verdicts.source(), EventSource::Probe("kprobe"));
        let _monitor = UnixListener::bind(folder.join(monitor::SOCKET)).unwrap();
        let verdicts = Verdicts::open(refused(), sockets(folder)).await;
        assert_eq!(*verdicts.source(), EventSource::MonitorSocket);
    }

    #[tokio::test]
    async fn hubble_is_the_last_choice_and_is_found_again() {
        let lost = vec![0x1a, 0x02, 0x10, 0x07];
        let unknown = in_response(&[0x9a, 0x01, 0x02, 0x08, 0x05, 0x2a, 0x00, 0x32, 0x02, 0x12, 0x00]);
        let flows = Answer::Messages(vec![lost, unknown.clone(), unknown, in_response(&denied())]);
        let first = healthy(flows);
        let mut verdicts = Verdicts::open(refused(), sockets(first.folder.path())).await;
        assert_eq!(*verdicts.source(), EventSource::Hubble);
        let Event::Notice(notice) = verdicts.next().await else { panic!() };
        assert!(notice.starts_with("a notification of Cilium's was not read: a flow's address"), "{notice}");
        is_verdict(&verdicts.next().await);
        assert_eq!((verdicts.received, verdicts.lost, verdicts.undecoded), (3, 7, 2));
        let Event::Notice(notice) = verdicts.next().await else { panic!() };
        assert_eq!(
            notice,
            "lost Hubble's socket: the agent closed it; verdicts come from the maps until it is back"
        );
        assert!(matches!(verdicts.source(), EventSource::None(_)));
        // However often waiting is given up, it goes on.
        let event = loop {
            tokio::select! {
                biased;
                event = verdicts.next() => break event,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        };
        let Event::Notice(notice) = event else { panic!() };
        assert_eq!((notice.as_str(), verdicts.source()), ("Hubble's socket is back", &EventSource::Hubble));
    }
}
