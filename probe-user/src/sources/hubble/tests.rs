//! Against a server of the test's own, which speaks HTTP/2 and encodes by hand: field numbers are checked against
//! what Hubble publishes, not against ourselves.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use probe_model::cilium::EndpointId;
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::events::Notification;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::MatchType;
use probe_model::path::{Seen, TcpFlags};
use probe_model::tuple::Protocol;
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::grpc::testing::{nested, number, text};

/// A flow of `event_type` from the NAT IP to the pod, with `more` of it.
fn flow_with(event_type: u64, more: &[Vec<u8>]) -> Vec<u8> {
    let ip = nested(5, &[text(1, "10.224.0.8"), text(2, "10.0.0.143"), number(3, 1)]);
    let tcp = nested(1, &[number(1, 40_000), number(2, 80), nested(3, &[number(2, 1)])]);
    let source = nested(8, &[number(2, 16_777_218), text(4, "cidr:10.224.0.8/32")]);
    let destination =
        nested(9, &[number(1, 2686), number(2, 12_345), text(3, "default"), text(5, "pls-app")]);
    let event = nested(19, &[number(1, event_type), number(2, 133)]);
    [ip, nested(6, &[tcp]), source, destination, event, more.concat()].concat()
}

pub(crate) fn denied() -> Vec<u8> {
    let policy = nested(
        21_005,
        &[
            text(1, "deny-nat"),
            text(2, "default"),
            text(3, "k8s:io.cilium.k8s.policy.derived-from=CiliumNetworkPolicy"),
            text(3, "k8s:io.cilium.k8s.policy.name=deny-nat"),
            number(4, 7),
        ],
    );
    flow_with(5, &[number(2, 2), number(3, 181), number(22, 1), number(23, 2), number(25, 181), policy])
}

pub(crate) fn in_response(flow: &[u8]) -> Vec<u8> {
    [nested(1, &[flow.to_vec()]), text(1000, "node-1")].concat()
}

pub(crate) fn status_response() -> Vec<u8> {
    let version = text(8, "cilium v1.16.6+g1234");
    [number(1, 4095), number(2, 4096), number(3, 99_999), number(4, 5_000_000_000), version].concat()
}

/// What the stand-in does with a call.
#[derive(Clone)]
pub(crate) enum Answer {
    /// Sends the messages and ends the stream with success.
    Messages(Vec<Vec<u8>>),
    /// Sends the messages, then nothing more.
    Hang(Vec<Vec<u8>>),
    /// Sends the messages and cuts the connection.
    Cut(Vec<Vec<u8>>),
    /// Sends these bytes as they are, and ends with success.
    Raw(Vec<u8>),
    /// Does not even answer.
    Silence,
    /// Refuses with a status of gRPC's.
    Status(u8, &'static str),
}

/// The first request's path and message of each call, as they came.
type Calls = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

fn framed(message: &[u8]) -> Bytes {
    crate::grpc::testing::framed(message).into()
}

/// Answers one connection. Returns when it has to be cut.
async fn serve(stream: UnixStream, status: Answer, flows: Answer, calls: Calls) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut kept = Vec::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        let answer = if path == "/observer.Observer/ServerStatus" { status.clone() } else { flows.clone() };
        let mut body = request.into_body();
        let calls = calls.clone();
        let read = tokio::spawn(async move {
            let mut message = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.len());
                message.extend_from_slice(&chunk);
            }
            calls.lock().unwrap().push((path, message));
        });
        kept.push(read);
        if let Answer::Cut(messages) = &answer {
            let mut send = headers(respond);
            for message in messages {
                send.send_data(framed(message), false).unwrap();
            }
            // Lets what is queued out before the connection is dropped.
            let flush = std::future::poll_fn(|context| connection.poll_closed(context));
            let _ = tokio::time::timeout(Duration::from_millis(100), flush).await;
            return;
        }
        kept.push(tokio::spawn(answered(respond, answer)));
    }
}

fn headers(mut respond: SendResponse<Bytes>) -> h2::SendStream<Bytes> {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    respond.send_response(head, false).unwrap()
}

async fn answered(respond: SendResponse<Bytes>, answer: Answer) {
    let (messages, end) = match answer {
        Answer::Raw(bytes) => {
            let mut send = headers(respond);
            send.send_data(bytes.into(), false).unwrap();
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            return send.send_trailers(trailers).unwrap();
        }
        Answer::Messages(messages) => (messages, Some((0, ""))),
        Answer::Hang(messages) | Answer::Cut(messages) => (messages, None),
        Answer::Status(code, said) => (Vec::new(), Some((code, said))),
        Answer::Silence => {
            let _respond = respond;
            return std::future::pending().await;
        }
    };
    let mut send = headers(respond);
    for message in &messages {
        send.send_data(framed(message), false).unwrap();
    }
    match end {
        Some((code, said)) => {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", code.to_string().parse().unwrap());
            trailers.insert("grpc-message", said.parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
        None => std::future::pending().await,
    }
}

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    calls: Calls,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn server(status: Answer, flows: Answer) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET);
    let listener = UnixListener::bind(&path).unwrap();
    let calls = Calls::default();
    let seen = calls.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, status.clone(), flows.clone(), seen.clone()));
        }
    });
    Server { folder, path, calls, task }
}

pub(crate) fn healthy(flows: Answer) -> Server {
    server(Answer::Messages(vec![status_response()]), flows)
}

fn pod() -> Vec<IpNet> {
    vec!["10.0.0.143/32".parse().unwrap()]
}

async fn flows(server: &Server) -> Flows {
    Hubble::connect(&server.path).await.unwrap().follow(&pod()).await.unwrap()
}

/// Everything until the stream ends.
async fn all(server: &Server) -> (Vec<Payload>, Result<()>) {
    let mut flows = flows(server).await;
    let mut payloads = Vec::new();
    loop {
        match flows.next().await {
            Ok(Some(payload)) => payloads.push(payload),
            Ok(None) => return (payloads, Ok(())),
            Err(error) => return (payloads, Err(error)),
        }
    }
}

#[track_caller]
fn one(bytes: &[u8]) -> Result<Option<Sighting>> {
    flow::sighting(&prost::Message::decode(bytes).unwrap(), 5)
}

#[tokio::test]
async fn a_verdict_with_its_policy() {
    let server = healthy(Answer::Messages(vec![in_response(&denied())]));
    let (payloads, end) = all(&server).await;
    end.unwrap();
    let [Payload::Flow(Ok(Some(sighting)))] = payloads.as_slice() else { panic!("{payloads:?}") };
    assert_eq!(sighting.packet.tuple.to_string(), "10.224.0.8:40000 -> 10.0.0.143:80 TCP");
    assert_eq!(sighting.packet.flags, TcpFlags::SYN);
    let Seen::Hubble { notification: Notification::PolicyVerdict(verdict), policies } = &sighting.seen else {
        panic!("{sighting:?}")
    };
    assert_eq!(verdict.drop_reason(), Some(DropReason::POLICY_DENY));
    assert_eq!((verdict.header.source, verdict.remote_label), (EndpointId(2686), Identity(16_777_218)));
    assert_eq!((verdict.match_type, verdict.dst_port, verdict.audited), (MatchType::L3L4, 80, false));
    let named: Vec<String> = policies.iter().map(ToString::to_string).collect();
    assert_eq!(named, ["CiliumNetworkPolicy default/deny-nat"]);
}

/// The bytes of `denied()` with a time, written out: neither this file's encoder nor prost made them.
#[test]
fn golden_bytes() {
    let bytes: &[u8] = &[
        0x0a, 0x06, 0x08, 0x80, 0xe2, 0xcf, 0xaa, 0x06, // 1 time {1 seconds 1700000000}
        0x10, 0x02, // 2 verdict DROPPED
        0x2a, 0x18, 0x0a, 0x0a, b'1', b'0', b'.', b'2', b'2', b'4', b'.', b'0', b'.',
        b'8', // 5 IP {1 source
        0x12, 0x08, b'1', b'0', b'.', b'0', b'.', b'0', b'.', b'9', 0x18,
        0x01, // 2 destination, 3 IPv4}
        0x32, 0x0c, 0x0a, 0x0a, 0x08, 0xc0, 0xb8, 0x02, 0x10, 0x50, 0x1a, 0x02, 0x10,
        0x01, // 6 l4 {1 TCP {1, 2, 3 {2}}}
        0x42, 0x05, 0x10, 0x82, 0x80, 0x80, 0x08, // 8 source {2 identity 16777218}
        0x4a, 0x06, 0x08, 0xfe, 0x14, 0x10, 0xb9, 0x60, // 9 destination {1 ID 2686, 2 identity 12345}
        0x50, 0x01, // 10 Type L3_L4
        0x9a, 0x01, 0x02, 0x08, 0x05, // 19 event_type {1 type 5}
        0xb0, 0x01, 0x01, // 22 traffic_direction INGRESS
        0xb8, 0x01, 0x02, // 23 policy_match_type 2
        0xc8, 0x01, 0xb5, 0x01, // 25 drop_reason_desc 181
        0x98, 0x02, 0x01, // 35 auth_type 1
        0xea, 0xa0, 0x0a, 0x0d, 0x0a, 0x01, b'd', 0x12, 0x01, b'n', 0x2a, 0x05, b'K', b'i', b'n', b'd',
        b'!', // 21005
        0x82, 0xea, 0x30, 0x03, b'o', b'l', b'd', // 100000 Summary
        0xf2, 0xa0, 0x0a, 0x01, b'x', // 21006 policy_log
    ];
    let sighting = one(bytes).unwrap().unwrap();
    assert_eq!(sighting.packet.tuple.to_string(), "10.224.0.8:40000 -> 10.0.0.9:80 TCP");
    let Seen::Hubble { notification: Notification::PolicyVerdict(verdict), policies } = sighting.seen else {
        panic!()
    };
    assert_eq!((verdict.verdict, verdict.auth_type, verdict.header.source), (-181, 1, EndpointId(2686)));
    assert_eq!(verdict.remote_label, Identity(16_777_218));
    assert_eq!(policies[0].to_string(), "Kind! n/d");
}

#[test]
fn drops_and_traces() {
    let drop = flow_with(1, &[number(2, 2), number(22, 1), number(25, 133), nested(28, &[number(1, 9)])]);
    let Some(Notification::Drop(drop)) = one(&drop).unwrap().unwrap().seen.notification() else { panic!() };
    assert_eq!((drop.reason, drop.dst_id, drop.ifindex), (DropReason::POLICY, 2686, 9));
    assert_eq!((drop.src_label, drop.dst_label), (Identity(16_777_218), Identity(12_345)));
    // Before 1.16 only the old field, and no direction.
    let old = flow_with(1, &[number(2, 2), number(3, 158)]);
    let Some(Notification::Drop(old)) = one(&old).unwrap().unwrap().seen.notification() else { panic!() };
    assert_eq!((old.reason, old.header.source), (DropReason::NO_SERVICE, EndpointId(0)));

    let trace = |point, reason| {
        let sighting = one(&flow_with(4, &[number(2, 1), number(24, point), number(36, reason)])).unwrap()?;
        match sighting.seen.notification() {
            Some(Notification::Trace(trace)) => Some((trace.point.to_string(), trace.reason.0)),
            _ => None,
        }
    };
    assert_eq!(trace(101, 1), Some(("to-endpoint".to_owned(), 0)));
    assert_eq!(trace(3, 3), Some(("to-stack".to_owned(), 2)));
    assert_eq!(trace(11, 0), Some(("to-network".to_owned(), 5)));
    assert_eq!(trace(0, 1), None, "the point is not known");
}

#[test]
fn verdicts_that_let_it_through() {
    let verdict = |more: &[Vec<u8>]| {
        let more = [&[number(22, 1), number(23, 1)], more].concat();
        match one(&flow_with(5, &more)).unwrap().unwrap().seen.notification() {
            Some(Notification::PolicyVerdict(verdict)) => verdict,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(verdict(&[number(2, 1)]).verdict, 0);
    assert!(verdict(&[number(2, 4)]).audited);
    assert_eq!(verdict(&[number(2, 5), number(29, 12_345)]).proxy_port(), Some(12_345));
    let unported = verdict(&[number(2, 5)]);
    assert_eq!((unported.drop_reason(), unported.proxy_port()), (None, None));
    let egress = flow_with(5, &[number(2, 1), number(22, 2)]);
    let Some(Notification::PolicyVerdict(egress)) = one(&egress).unwrap().unwrap().seen.notification() else {
        panic!()
    };
    assert_eq!((egress.header.source, egress.remote_label), (EndpointId(0), Identity(12_345)));
}

#[test]
fn the_packet_s_own_source_and_other_protocols() {
    let of = |ip: Vec<u8>, l4: Vec<u8>| {
        let event = nested(19, &[number(1, 1)]);
        one(&[nested(5, &[ip]), nested(6, &[l4]), event, number(25, 133)].concat())
    };
    let ip = [text(1, "10.0.0.143"), text(2, "10.221.1.4"), text(5, "10.224.0.4")].concat();
    let udp = of(ip.clone(), nested(2, &[number(1, 5353), number(2, 53)])).unwrap().unwrap();
    assert_eq!(udp.packet.tuple.to_string(), "10.224.0.4:5353 -> 10.221.1.4:53 UDP");
    let v6 = [text(1, "fd00::1"), text(2, "fd00::2")].concat();
    let sctp = of(v6, nested(5, &[number(1, 1), number(2, 2)])).unwrap().unwrap();
    assert_eq!((sctp.packet.tuple.protocol, sctp.packet.tuple.saddr.is_ipv6()), (Protocol::SCTP, true));
    let echo = nested(3, &[number(1, 8)]);
    assert_eq!(of(ip.clone(), echo).unwrap(), None, "an echo's identifier is not passed on");
    assert_eq!(of(ip.clone(), nested(6, &[number(1, 1)])).unwrap(), None, "VRRP, since 1.19");
    let error = of(text(1, "nobody"), nested(2, &[])).unwrap_err();
    assert_eq!(error.to_string(), "a flow's address is `nobody`");
    let error = of(ip, nested(2, &[number(1, 70_000)])).unwrap_err();
    assert_eq!(error.to_string(), "a flow's port is `70000`");
}

#[test]
fn numbers_that_are_not_known() {
    let error = |more: &[Vec<u8>]| one(&flow_with(5, more)).unwrap_err().to_string();
    let (dropped, ingress) = (number(2, 2), number(22, 1));
    assert!(error(&[number(2, 9), ingress.clone()]).contains("`verdict` is `9`"));
    assert!(
        error(&[dropped.clone(), ingress.clone(), number(25, 500)]).contains("`drop_reason_desc` is `500`")
    );
    assert!(error(&[dropped.clone(), ingress.clone()]).contains("`drop_reason_desc` is `0`"));
    assert!(error(&[number(2, 1), number(22, 3)]).contains("`traffic_direction` is `3`"));
    assert!(error(&[number(2, 1)]).contains("`traffic_direction` is `0`"));
    assert!(error(&[number(2, 1), ingress.clone(), number(23, 7)]).contains("`policy_match_type` is `7`"));
    // A drop reason of a newer Cilium is passed on by its number.
    let newer = one(&flow_with(5, &[dropped, ingress, number(25, 240)])).unwrap().unwrap();
    let Some(Notification::PolicyVerdict(verdict)) = newer.seen.notification() else { panic!() };
    assert_eq!(verdict.drop_reason(), Some(DropReason(240)));
    // An L7 flow's message type is another.
    assert_eq!(one(&flow_with(129, &[])).unwrap(), None);
    // Nothing at all.
    assert_eq!(one(&[]).unwrap(), None);
}

#[tokio::test]
async fn lost_events_and_messages_not_known() {
    let lost = nested(3, &[number(1, 2), number(2, 300), nested(3, &[number(1, 1)]), text(9, "new")]);
    let node_status = nested(2, &[number(1, 1)]);
    let broken = in_response(&flow_with(5, &[number(2, 42), number(22, 1)]));
    let server = healthy(Answer::Messages(vec![node_status, lost, broken, text(77, "new")]));
    let (payloads, end) = all(&server).await;
    end.unwrap();
    let [Payload::Other, Payload::Lost(300), Payload::Flow(Err(error)), Payload::Other] = payloads.as_slice()
    else {
        panic!("{payloads:?}")
    };
    assert!(error.to_string().contains("`42`"), "{error}");
}

#[tokio::test]
async fn what_is_asked_for() {
    let server = healthy(Answer::Messages(Vec::new()));
    all(&server).await.1.unwrap();
    let calls = server.calls.lock().unwrap().clone();
    let types = [1, 4, 5].map(|wanted| nested(6, &[number(1, wanted)])).concat();
    let to = nested(6, &[text(3, "10.0.0.143"), types.clone()]);
    let from = nested(6, &[text(1, "10.0.0.143"), types]);
    let wanted = framed(&[number(3, 1), to, from].concat()).to_vec();
    assert_eq!(
        calls,
        [
            ("/observer.Observer/ServerStatus".to_owned(), framed(&[]).to_vec()),
            ("/observer.Observer/GetFlows".to_owned(), wanted),
        ]
    );
}

#[tokio::test]
async fn how_the_server_is() {
    let server = healthy(Answer::Silence);
    let status = Hubble::connect(&server.path).await.unwrap().status().clone();
    let wanted = ServerStatus {
        version: "cilium v1.16.6+g1234".to_owned(),
        num_flows: 4095,
        max_flows: 4096,
        seen_flows: 99_999,
    };
    assert_eq!(status, wanted);
}

#[tokio::test]
async fn a_server_that_goes_away() {
    let server = healthy(Answer::Cut(vec![in_response(&denied())]));
    let (payloads, end) = all(&server).await;
    assert!(matches!(payloads.as_slice(), [Payload::Flow(Ok(Some(_)))]), "{payloads:?}");
    let error = end.unwrap_err().to_string();
    assert!(error.starts_with("Hubble's socket `") && error.contains("` failed: "), "{error}");
}

#[tokio::test]
async fn a_server_that_refuses() {
    let server = healthy(Answer::Status(8, "too many streams"));
    let (payloads, end) = all(&server).await;
    assert!(payloads.is_empty());
    assert!(end.unwrap_err().to_string().ends_with("failed: too many streams"));
    let other = self::server(Answer::Status(12, ""), Answer::Silence);
    let error = Hubble::connect(&other.path).await.unwrap_err().to_string();
    assert!(error.ends_with("failed: gRPC status 12"), "{error}");
}

/// Time stands still but for what waits: the two seconds pass at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent() {
    let mute = server(Answer::Silence, Answer::Silence);
    let error = Hubble::connect(&mute.path).await.unwrap_err().to_string();
    assert!(error.starts_with("nothing answers on `"), "{error}");
}

#[tokio::test]
async fn nothing_happens_for_ever() {
    for flows_answer in [Answer::Silence, Answer::Hang(Vec::new())] {
        let server = healthy(flows_answer);
        let mut flows = flows(&server).await;
        for _ in 0..3 {
            let waited = tokio::time::timeout(Duration::from_millis(20), flows.next()).await;
            assert!(waited.is_err(), "{waited:?}");
        }
    }
}

/// A future that is dropped half-way loses nothing.
#[tokio::test]
async fn waiting_may_be_cancelled() {
    let messages = vec![in_response(&denied()); 50];
    let server = healthy(Answer::Hang(messages));
    let mut flows = flows(&server).await;
    let mut got = 0;
    while got < 50 {
        tokio::select! {
            biased;
            payload = flows.next() => {
                assert!(matches!(payload.unwrap(), Some(Payload::Flow(Ok(Some(_))))));
                got += 1;
            }
            () = tokio::task::yield_now() => {}
        }
    }
}

#[tokio::test]
async fn no_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET);
    let error = Hubble::connect(&path).await.unwrap_err();
    assert!(error.downcast_ref::<Unusable>().unwrap().is_absent);
    assert!(error.to_string().contains("no socket at `") && error.to_string().contains("enable-hubble"));
    drop(UnixListener::bind(&path).unwrap());
    let error = Hubble::connect(&path).await.unwrap_err().to_string();
    assert!(error.contains("nobody listens on `"), "{error}");
}

/// Messages of another length than they say, and ends where none may be.
#[tokio::test]
async fn frames_that_are_none() {
    for (raw, said) in [
        (&[1, 0, 0, 0, 0][..], "compressed"),
        (&[0, 0xff, 0xff, 0xff, 0xff], "announces a message of 4294967295 bytes"),
        (&[0, 0, 0, 0, 9, 1], "it ended inside a message"),
        (&[0, 0, 0, 0, 2, 0xff, 0xff], ""),
    ] {
        let server = healthy(Answer::Raw(raw.to_vec()));
        let (payloads, end) = all(&server).await;
        let error = end.unwrap_err().to_string();
        assert!(payloads.is_empty() && error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_grpc_server() {
    use tokio::io::AsyncWriteExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET);
    let listener = UnixListener::bind(&path).unwrap();
    let serve = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = format!("{:#}", Hubble::connect(&path).await.unwrap_err());
    assert!(error.contains(SOCKET), "{error}");
    serve.abort();
}

#[test]
fn times_of_another_clock() {
    let now = Now { monotonic_ns: 10_000, real_ns: 1_700_000_000_000_010_000 };
    let at = |seconds, nanos| Some(proto::Timestamp { seconds, nanos });
    assert_eq!(now.ktime_ns(at(1_700_000_000, 9_000)), 9_000);
    assert_eq!(now.ktime_ns(None), 10_000);
    assert_eq!(now.ktime_ns(at(1_700_000_001, 0)), 10_000, "still to come");
    assert_eq!(now.ktime_ns(at(1_600_000_000, 0)), 0, "before the machine's start");
    assert_eq!(now.ktime_ns(at(i64::MIN, i32::MIN)), 0);
}
