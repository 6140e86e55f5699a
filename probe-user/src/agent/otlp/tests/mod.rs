//! What a collector gets, one that is well and one that is not.

mod decode;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use expect_test::expect;
use probe_model::world::PolicyRef;

use self::decode::Fields;
use super::spans::{STEP_S, STOPS_MAX, spans};
use super::*;
use crate::agent::metrics::testing::{FIRST_NS, dropped, flow};
use crate::sources::http::testing::{Authority, Reply, Server, nobody};

/// Long enough on a busy machine.
const PATIENT: Duration = Duration::from_mins(1);

/// Short waits; a collector has as long as it needs.
fn hasty() -> Pace {
    Pace {
        gather: Duration::from_millis(20),
        answer: PATIENT,
        first_wait: Duration::from_millis(10),
        longest_wait: Duration::from_millis(50),
        give_up: PATIENT,
    }
}

fn settings(endpoint: &str) -> Settings {
    let headers = Headers::parse("authorization=Bearer%20s3cret,x-tenant=7").unwrap();
    Settings::new(endpoint, None, headers, "aks-1").unwrap()
}

/// An exporter at work.
struct Running {
    feed: Arc<Feed>,
    tally: Arc<Tally>,
    said: Arc<Mutex<Vec<String>>>,
}

/// Starts one, and waits until it follows.
async fn start(settings: Settings, pace: Pace) -> Running {
    let (feed, tally) = (Arc::new(Feed::new(10)), Arc::<Tally>::default());
    let said = Arc::<Mutex<Vec<String>>>::default();
    let lines = Arc::clone(&said);
    let notice = Arc::new(move |line| lines.lock().unwrap().push(line));
    tokio::spawn(export(settings, pace, Arc::clone(&feed), Arc::clone(&tally), notice));
    // It has the one thread until it waits for a flow.
    tokio::task::yield_now().await;
    Running { feed, tally, said }
}

/// Starts one, gives it a flow, and waits until a counter has come so far.
async fn one_flow(settings: Settings, counter: fn(&Tally) -> &AtomicU64, at_least: u64) -> Running {
    let running = start(settings, hasty()).await;
    running.feed.push(flow());
    running.until(counter, at_least).await;
    running
}

impl Running {
    fn push(&self, numbers: RangeInclusive<u64>) {
        numbers.for_each(|number| self.feed.push(Flow { number, ..flow() }));
    }

    async fn until(&self, counter: fn(&Tally) -> &AtomicU64, at_least: u64) {
        let reached = async {
            while counter(&self.tally).load(Ordering::Relaxed) < at_least {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENT, reached).await;
        assert!(reached.is_ok(), "{at_least} of {:?}", self.tally);
    }

    /// What was logged, without the server's address.
    fn said(&self, server: &Server) -> Vec<String> {
        let lines = self.said.lock().unwrap();
        assert!(lines.iter().all(|line| !line.contains("s3cret")), "{lines:?}");
        lines.iter().map(|line| line.replace(&server.address.to_string(), "SERVER")).collect()
    }

    /// Spans exported and rejected; flows behind, refused and unreachable.
    fn counts(&self) -> [u64; 5] {
        let Tally { spans_exported, spans_rejected, behind, refused, unreachable, .. } = &*self.tally;
        [spans_exported, spans_rejected, behind, refused, unreachable]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn ok() -> Reply {
    Reply::bytes("200 OK", "application/x-protobuf", "", &[])
}

fn status(line: &str, headers: &str) -> Reply {
    Reply::bytes(line, "application/x-protobuf", headers, &[])
}

/// The spans of a message: `resource_spans` 1, `scope_spans` 2, `spans` 2.
fn spans_in(message: &[u8]) -> Vec<Fields> {
    Fields::read(message).message(1).message(2).messages(2)
}

/// Spans as lines: name, times after the flow's first packet in microseconds, attributes.
fn text(spans: &[Fields]) -> String {
    let mut text = String::new();
    for span in spans {
        let us = |number| (span.fixed64(number) - FIRST_NS) / 1000;
        let (id, parent) = (span.bytes(2), span.bytes(4));
        assert_eq!((span.bytes(1).len(), id.len(), span.varint(6)), (16, 8, 1));
        let parent = if parent.is_empty() { "root" } else { "child" };
        writeln!(text, "{parent} `{}` {}..{} us", span.text(5), us(7), us(8)).unwrap();
        for (key, value) in span.attributes(9) {
            writeln!(text, "  {key} = {value}").unwrap();
        }
        for status in span.messages(15) {
            writeln!(text, "  status {} `{}`", status.varint(3), status.text(2)).unwrap();
        }
    }
    text
}

fn decoded(flow: &Flow, node: &str) -> Vec<Fields> {
    spans_in(&message(spans(flow, node), node).encode_to_vec())
}

#[test]
fn the_spans_of_a_flow() {
    expect![[r#"
        root `flow to default/pls-app` 0..3000 us
          destination.address = 10.224.0.7
          destination.port = 80
          k8s.namespace.name = default
          k8s.pod.name = pls-app-5d8f-x2x9p
          network.transport = tcp
          network.type = ipv4
          plsprobe.answered = true
          plsprobe.cause = ALLOWED
          plsprobe.destination.labels = ["k8s:app=pls-app"]
          plsprobe.destination.pod = default/pls-app-5d8f-x2x9p
          plsprobe.flow = 7
          plsprobe.link_id = 536870913
          plsprobe.policy.direction = ingress
          plsprobe.refused = false
          plsprobe.sentence = the pod answered
          plsprobe.service = default/pls-app
          plsprobe.source.class = private_link
          plsprobe.source.identity = 2
          plsprobe.syn_retransmissions = 0
          plsprobe.translated.destination.address = 10.244.1.23
          plsprobe.translated.destination.port = 8080
          plsprobe.translated.source.address = 10.224.0.8
          plsprobe.translated.source.port = 40122
          plsprobe.verdict = allowed
          source.address = 10.224.0.8
          source.port = 40122
        child `eth0 in` 0..40 us
          destination.address = 10.224.0.7
          destination.port = 80
          plsprobe.direction = request
          plsprobe.place = 0
          source.address = 10.224.0.8
          source.port = 40122
        child `lxc6e1a to pod` 40..2900 us
          destination.address = 10.244.1.23
          destination.port = 8080
          plsprobe.direction = request
          plsprobe.place = 1
          source.address = 10.224.0.8
          source.port = 40122
        child `lxc6e1a from pod` 2900..3000 us
          destination.address = 10.224.0.8
          destination.port = 40122
          plsprobe.direction = answer
          plsprobe.place = 0
          source.address = 10.244.1.23
          source.port = 8080
        child `eth0 out` 3000..3000 us
          destination.address = 10.224.0.8
          destination.port = 40122
          plsprobe.direction = answer
          plsprobe.place = 1
          source.address = 10.224.0.7
          source.port = 80
    "#]]
    .assert_eq(&text(&decoded(&flow(), "aks-1")));
}

#[test]
fn the_spans_of_a_dropped_flow() {
    let policy = PolicyRef {
        kind: "NetworkPolicy".to_owned(),
        namespace: Some("default".to_owned()),
        name: "deny-all".to_owned(),
    };
    let flow = Flow {
        policies: vec![policy],
        disagreements: vec!["the maps\u{1b}[2J say otherwise".to_owned()],
        service: None,
        hops: Vec::new(),
        ..dropped()
    };
    expect![[r#"
        root `flow` 0..2000 us
          destination.address = 10.224.0.7
          destination.port = 80
          error.type = PLS-01
          k8s.namespace.name = default
          k8s.pod.name = pls-app-5d8f-x2x9p
          network.transport = tcp
          network.type = ipv4
          plsprobe.answered = false
          plsprobe.cause = PLS-01
          plsprobe.cilium.drop_reason = Policy denied (133)
          plsprobe.destination.labels = ["k8s:app=pls-app"]
          plsprobe.destination.pod = default/pls-app-5d8f-x2x9p
          plsprobe.disagreements = ["the maps\\u{1b}[2J say otherwise"]
          plsprobe.flow = 7
          plsprobe.link_id = 536870913
          plsprobe.policies = ["NetworkPolicy default/deny-all"]
          plsprobe.policy.direction = ingress
          plsprobe.policy.nearest = allow ingress world tcp/81: another port
          plsprobe.refused = false
          plsprobe.sentence = no ingress rule admits 10.224.0.8
          plsprobe.source.class = private_link
          plsprobe.source.identity = 2
          plsprobe.syn_retransmissions = 0
          plsprobe.translated.destination.address = 10.244.1.23
          plsprobe.translated.destination.port = 8080
          plsprobe.translated.source.address = 10.224.0.8
          plsprobe.translated.source.port = 40122
          plsprobe.verdict = dropped
          source.address = 10.224.0.8
          source.port = 40122
          status 2 `PLS-01: no ingress rule admits 10.224.0.8`
    "#]]
    .assert_eq(&text(&decoded(&flow, "aks-1")));
}

#[test]
fn what_two_nodes_saw_of_one_flow_is_one_trace() {
    let first = flow();
    // The second node sees it with the addresses that the first one gave it, a little later by its clock.
    let second = Flow { tuple: first.translated, first_ns: first.first_ns + 5_000_000, ..flow() };
    let ids = |flow: &Flow, node: &str| {
        let spans = decoded(flow, node);
        let traces: BTreeSet<_> = spans.iter().map(|span| span.bytes(1)).collect();
        let own: BTreeSet<_> = spans.iter().map(|span| span.bytes(2)).collect();
        assert_eq!((traces.len(), own.len()), (1, spans.len()), "one trace, each span its own id");
        assert!(spans[1..].iter().all(|span| span.bytes(4) == spans[0].bytes(2)), "below the root");
        (traces.into_iter().next().unwrap(), own)
    };
    let (trace, own) = ids(&first, "aks-1");
    let (other_trace, other_own) = ids(&second, "aks-2");
    assert_eq!(trace, other_trace);
    assert!(own.is_disjoint(&other_own));
    // Anything else is another trace.
    let mut port = flow();
    port.translated.sport += 1;
    let later = Flow { first_ns: FIRST_NS + STEP_S * 1_000_000_000, ..flow() };
    for other in [port, later] {
        assert_ne!(ids(&other, "aks-1").0, trace);
    }
    // A port that is taken again within the step is in the same trace, with spans of its own.
    let again = Flow { number: 8, ..flow() };
    assert_eq!(ids(&again, "aks-1").0, trace);
    assert!(ids(&again, "aks-1").1.is_disjoint(&own));
}

#[test]
fn a_span_never_ends_before_it_begins_and_is_bounded() {
    let mut strange = flow();
    strange.hops[1].at_ns = FIRST_NS - 5;
    strange.last_ns = 0;
    strange.answered_ns = Some(1);
    strange.hops = strange.hops.iter().cycle().take(1000).cloned().collect();
    strange.sentence = "x".repeat(1 << 20);
    strange.source.labels = vec!["y".repeat(5000); 1000];
    let spans = decoded(&strange, "aks-1");
    assert!(spans.iter().all(|span| span.fixed64(7) <= span.fixed64(8)));
    assert_eq!(spans.len(), 1 + STOPS_MAX + 2);
    assert_eq!(spans[0].attributes(9)["plsprobe.places_left_out"], (1000 - STOPS_MAX).to_string());
    let bytes = message(super::spans::spans(&strange, "n"), "n").encoded_len();
    assert!(bytes < 64 << 10, "{bytes}");
}

#[tokio::test]
async fn a_batch_that_is_taken() {
    let server = Server::start(|_| ok());
    let running = start(settings(&server.url("http")), hasty()).await;
    running.push(1..=3);
    running.until(|tally| &tally.spans_exported, 15).await;
    assert_eq!(running.counts(), [15, 0, 0, 0, 0]);
    let seen = server.seen();
    let first = &seen[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/v1/traces"));
    assert_eq!(first.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(first.header("accept"), Some("application/x-protobuf"));
    assert_eq!(first.header("authorization"), Some("Bearer s3cret"));
    assert_eq!(first.header("x-tenant"), Some("7"));
    let resource = Fields::read(&first.bytes).message(1).message(1).attributes(1);
    let expected = [
        ("k8s.node.name", "aks-1"),
        ("service.instance.id", "aks-1"),
        ("service.name", "plsprobe"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(resource, expected);
    assert_eq!(Fields::read(&first.bytes).message(1).message(2).message(1).text(1), "plsprobe");
    let roots: Vec<_> =
        seen.iter().flat_map(|seen| spans_in(&seen.bytes)).filter(|span| span.bytes(4).is_empty()).collect();
    let numbers: Vec<_> = roots.iter().map(|span| span.attributes(9)["plsprobe.flow"].clone()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
}

#[tokio::test]
async fn many_flows_go_in_batches() {
    let server = Server::start(|_| ok());
    let running = start(settings(&server.url("http")), hasty()).await;
    running.push(1..=600);
    running.until(|tally| &tally.spans_exported, 3000).await;
    let sizes: Vec<_> = server.seen().iter().map(|seen| spans_in(&seen.bytes).len() / 5).collect();
    assert_eq!((sizes.iter().sum::<usize>(), &sizes[..2]), (600, &[BATCH_FLOWS, BATCH_FLOWS][..]));
    // Flows with much to say fill it by their bytes.
    let mut batch = Batch::default();
    let wordy = Flow { disagreements: vec!["x".repeat(1000); 16], ..flow() };
    while !batch.is_full() {
        batch.add(&wordy, "n");
    }
    assert!(batch.flows < BATCH_FLOWS as u64 && batch.bytes < BATCH_BYTES + (64 << 10));
}

#[tokio::test]
async fn what_cannot_be_taken_now_is_sent_again() {
    for line in ["429 Too Many Requests", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"]
    {
        let tries = AtomicU64::new(0);
        let server =
            Server::start(
                move |_| if tries.fetch_add(1, Ordering::SeqCst) < 2 { status(line, "") } else { ok() },
            );
        let running = one_flow(settings(&server.url("http")), |tally| &tally.spans_exported, 5).await;
        assert_eq!(running.counts(), [5, 0, 0, 0, 0], "{line}");
        assert_eq!(running.tally.retries.load(Ordering::Relaxed), 2);
        let seen = server.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|again| again.bytes == seen[0].bytes), "the same batch");
        let failed =
            "otlp: spans are not taken, and lost if that lasts: POST http://SERVER/v1/traces: status";
        let expected = [format!("{failed} {line}"), "otlp: http://SERVER takes spans again".to_owned()];
        assert_eq!(running.said(&server), expected, "once each");
    }
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_kept() {
    let tries = AtomicU64::new(0);
    let busy = || status("429 Too Many Requests", "Retry-After: 1\r\n");
    let server =
        Server::start(move |_| if tries.fetch_add(1, Ordering::SeqCst) == 0 { busy() } else { ok() });
    let started = Instant::now();
    one_flow(settings(&server.url("http")), |tally| &tally.spans_exported, 5).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn how_long_is_waited() {
    let wait = |status, retry_after: Option<u64>| {
        let retry_after = retry_after.map(Duration::from_secs);
        let why = Why::Status { status, reason: String::new(), message: String::new(), retry_after };
        wait(&Error { asked: String::new(), why, tries: 1 }, Duration::from_secs(3))
            .map(|wait| wait.as_secs())
    };
    assert_eq!(wait(503, None), Some(3));
    assert_eq!(wait(503, Some(100)), Some(100));
    assert_eq!(wait(429, Some(u64::MAX)), Some(600), "nobody may silence an agent for ever");
    assert_eq!(wait(500, Some(1)), None);
    for _ in 0..100 {
        let jittered = jittered(Duration::from_secs(8));
        assert!((Duration::from_secs(4)..=Duration::from_secs(8)).contains(&jittered), "{jittered:?}");
    }
}

#[tokio::test]
async fn what_is_refused_is_not_sent_again() {
    for line in [
        "400 Bad Request",
        "401 Unauthorized",
        "404 Not Found",
        "413 Content Too Large",
        "500 Internal Server Error",
    ] {
        let server = Server::start(move |_| status(line, "Retry-After: 1\r\n"));
        let running = one_flow(settings(&server.url("http")), |tally| &tally.refused, 1).await;
        assert_eq!(running.counts(), [0, 0, 0, 1, 0], "{line}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn spans_that_are_rejected_of_a_batch_that_is_taken() {
    // ExportTraceServiceResponse { partial_success (1): { rejected_spans (1): 2, error_message (2): "n\x1bo" } }
    let server = Server::start(|_| {
        Reply::bytes("200 OK", "application/x-protobuf", "", &[0x0a, 7, 0x08, 2, 0x12, 3, b'n', 0x1b, b'o'])
    });
    let running = one_flow(settings(&server.url("http")), |tally| &tally.spans_exported, 3).await;
    assert_eq!(running.counts(), [3, 2, 0, 0, 0]);
    assert_eq!(server.seen().len(), 1, "a batch that is partly taken is not sent again");
    assert_eq!(running.said(&server), ["otlp: http://SERVER rejects 2 of 5 spans: n o"]);
}

#[tokio::test]
async fn answers_that_are_none_of_the_protocol_are_no_complaint() {
    for body in [&b"\xff\xff\xff"[..], b"{}", b"<html>", &[0x0a, 2, 0x08]] {
        let server = Server::start(|_| Reply::bytes("200 OK", "text/html", "", body));
        let running = one_flow(settings(&server.url("http")), |tally| &tally.spans_exported, 5).await;
        assert_eq!(running.counts(), [5, 0, 0, 0, 0]);
    }
    // More rejected than were sent, or fewer than none.
    for rejected in [&[0x08, 100][..], &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]] {
        let body = [&[0x0a, rejected.len() as u8], rejected].concat();
        let server = Server::start(move |_| Reply::bytes("200 OK", "application/x-protobuf", "", &body));
        let all: fn(&Tally) -> &AtomicU64 =
            if rejected.len() > 2 { |tally| &tally.spans_exported } else { |tally| &tally.spans_rejected };
        one_flow(settings(&server.url("http")), all, 5).await;
    }
}

#[tokio::test]
async fn nobody_there_costs_flows_and_nothing_else() {
    let endpoint = format!("http://{}", nobody());
    let pace = Pace { give_up: Duration::from_millis(50), ..hasty() };
    let running = start(settings(&endpoint), pace).await;
    running.feed.push(flow());
    // Far more than wait in the feed: whoever judges is not held up.
    sleep(Duration::from_millis(30)).await;
    running.push(0..=19_999);
    running.until(|tally| &tally.behind, 1).await;
    running.until(|tally| &tally.unreachable, 300).await;
    let [exported, _, behind, refused, unreachable] = running.counts();
    assert_eq!((exported, refused), (0, 0));
    assert!(
        behind >= 20_000 - 4096 - BATCH_FLOWS as u64 && unreachable <= 4096 + 2 * BATCH_FLOWS as u64,
        "{behind}"
    );
    // Of the flows themselves, no more than the feed and one batch keep are there.
    let (kept, _) = running.feed.follow();
    assert_eq!(kept.len(), 10);
}

#[tokio::test]
async fn a_collector_that_hangs_is_asked_again() {
    let tries = AtomicU64::new(0);
    let server = Server::start(move |_| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Hang(Vec::new()),
        1 => Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".to_vec()),
        _ => ok(),
    });
    let pace = Pace { answer: Duration::from_millis(300), ..hasty() };
    let running = start(settings(&server.url("http")), pace).await;
    running.feed.push(flow());
    running.until(|tally| &tally.retries, 1).await;
    // Meanwhile this thread goes on, or it would not be here.
    running.feed.push(flow());
    running.until(|tally| &tally.spans_exported, 10).await;
    assert_eq!(running.counts(), [10, 0, 0, 0, 0]);
}

#[tokio::test]
async fn over_tls_with_an_authority_of_its_own() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server("127.0.0.1", false), |_| ok());
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let trusting = |authority: &Authority| {
        std::fs::write(&ca, authority.pem()).unwrap();
        Settings::new(&server.url("https"), Some(&ca), Headers::default(), "aks-1").unwrap()
    };
    one_flow(trusting(&authority), |tally| &tally.spans_exported, 5).await;
    // Somebody else's authority: nothing is sent.
    let running = one_flow(trusting(&Authority::new()), |tally| &tally.retries, 2).await;
    assert_eq!((running.counts(), server.seen().len()), ([0; 5], 1));
}

#[test]
fn secrets_are_not_shown() {
    let settings = settings("http://127.0.0.1:4318");
    assert!(!format!("{settings:?}").contains("s3cret"));
    let client = Client {
        base: settings.base.clone(),
        tls: None,
        patience: Patience { connect: PATIENT, each: PATIENT, total: PATIENT },
        max_body: 1,
        resolver: settings.resolver.clone(),
    };
    let exporter = Exporter {
        client,
        path: settings.path,
        headers: settings.headers,
        node: settings.node,
        pace: hasty(),
        tally: Arc::default(),
        notice: Arc::new(drop),
        is_failing: false,
    };
    let request = exporter.request(spans(&flow(), "n"));
    assert_eq!(request.headers.len(), 2);
    assert_eq!(format!("{request:?}"), "POST /v1/traces");
}
