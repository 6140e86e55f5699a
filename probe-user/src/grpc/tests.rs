use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixStream;

use super::client::{Client, Failure};
use super::server::{Answering, Limits, Sender, Service};
use super::testing::{GOAWAY, RST_STREAM, Raw, Served, framed, until};
use super::{Code, Status};

/// Bytes of a message of `Flood`, with its prefix: 1019 in a `BytesValue`, which takes three more.
const FLOOD: usize = 1024 + 3;

/// Messages of `Trickle`: all of them fit into a window.
const TRICKLE: usize = 500;

/// Answers, and counts what it was made to do.
#[derive(Default)]
struct Test {
    sent: AtomicUsize,
    begun: AtomicUsize,
    dropped: AtomicUsize,
}

struct Dropped<'a>(&'a AtomicUsize);

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Service for Test {
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            self.begun.fetch_add(1, SeqCst);
            let _dropped = Dropped(&self.dropped);
            match method {
                "Echo" => sender.send(&Vec::<u8>::decode(request).unwrap()).await,
                "Flood" => loop {
                    sender.send(&vec![7_u8; 1019]).await?;
                    self.sent.fetch_add(1, SeqCst);
                },
                "Trickle" => {
                    for _ in 0..TRICKLE {
                        sender.send(&vec![7_u8; 20]).await?;
                        self.sent.fetch_add(1, SeqCst);
                    }
                    Ok(())
                }
                "Hang" => std::future::pending().await,
                "Some" => {
                    sender.send(&vec![1_u8]).await?;
                    Err(Status::new(Code::NotFound, "100 % of\n`it` is gone: ü"))
                }
                "Large" => sender.send(&vec![9_u8; 1 << 20]).await,
                _ => Err(Status::unimplemented(method)),
            }
        })
    }
}

async fn served(limits: Limits) -> (Served, Arc<Test>) {
    let test = Arc::new(Test::default());
    (Served::start(vec![("a.Test", test.clone())], limits).await, test)
}

/// Limits that a test can reach.
fn small() -> Limits {
    Limits { streams: 2, calls: 100, ..Limits::AGENT }
}

async fn echo(client: &Client, text: &[u8]) -> Result<Vec<u8>, Failure> {
    client.ask("/a.Test/Echo", &text.to_vec()).await
}

/// Waits until a new connection is served.
async fn is_served(served: &Served) {
    let trying = async {
        loop {
            match Client::connect(&served.path).await {
                Ok(client) if echo(&client, &[1]).await.is_ok() => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(super::testing::DEADLINE, trying).await.expect("a connection is served");
}

#[tokio::test]
async fn calls_are_answered() {
    let (served, _) = served(Limits::AGENT).await;
    let client = Client::connect(&served.path).await.unwrap();
    let calls = (0..40_u8).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { assert_eq!(echo(&client, &[n]).await.unwrap(), [n]) })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    let large: Vec<u8> = client.ask("/a.Test/Large", &Vec::<u8>::new()).await.unwrap();
    assert_eq!(large, vec![9; 1 << 20], "in parts, as the window opens");
}

#[tokio::test]
async fn what_is_not_there_and_what_fails() {
    let (served, _) = served(Limits::AGENT).await;
    let client = Client::connect(&served.path).await.unwrap();
    for (path, named) in [("/a.Test/None", "`None`"), ("/b.Test/Echo", "`/b.Test/Echo`"), ("/x", "`/x`")] {
        let failure = client.ask::<Vec<u8>>(path, &Vec::<u8>::new()).await.unwrap_err();
        assert_eq!(failure.code, Some(12), "{path}");
        assert!(failure.words.contains(named), "{failure}");
    }
    let mut answers = client.call::<Vec<u8>>("/a.Test/Some", &Vec::<u8>::new()).await.unwrap();
    assert_eq!(answers.next().await.unwrap(), Some(vec![1]));
    let failure = answers.next().await.unwrap_err();
    assert_eq!((failure.code, failure.words.as_str()), (Some(5), "100 % of\n`it` is gone: ü"));
}

/// The status of a call whose request is these bytes; without any, it is still to come.
async fn status_of(served: &Served, request: Option<&[u8]>) -> String {
    let stream = UnixStream::connect(&served.path).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let head = http::Request::post("http://l/a.Test/Echo").header("content-type", "application/grpc");
    let (response, mut body) = client.send_request(head.body(()).unwrap(), false).unwrap();
    if let Some(request) = request {
        body.send_data(Bytes::copy_from_slice(request), true).unwrap();
    }
    let response = response.await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-accept-encoding"], "identity");
    response.headers()["grpc-status"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn requests_that_are_none() {
    let (served, test) = served(Limits::AGENT).await;
    let huge = [&[0], u32::MAX.to_be_bytes().as_slice()].concat();
    let too_long = [&[0], ((64 << 10) + 1_u32).to_be_bytes().as_slice()].concat();
    let two = [framed(&[]), framed(&[])].concat();
    for (request, status) in [
        (&[][..], "3"),
        (&[0, 0, 0], "3"),
        (&[0, 0, 0, 0, 9, 1], "3"),
        (&two, "3"),
        (&[1, 0, 0, 0, 0], "12"),
        (&huge, "8"),
        (&too_long, "8"),
    ] {
        assert_eq!(status_of(&served, Some(request)).await, status, "{request:?}");
    }
    assert_eq!(test.begun.load(SeqCst), 0, "no service saw them");
}

#[tokio::test]
async fn what_is_no_grpc() {
    let (served, _) = served(Limits::AGENT).await;
    let stream = UnixStream::connect(&served.path).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (method, kind, status) in [
        ("GET", "application/grpc", 405),
        ("POST", "text/html", 415),
        ("POST", "application/grpcx", 415),
        ("POST", "application/grpc+proto", 200),
    ] {
        let request = http::Request::builder().method(method).uri("http://l/a.Test/Echo");
        let request = request.header("content-type", kind).body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{method} {kind}");
    }
    // Headers beyond the limit.
    let request =
        http::Request::post("http://l/a.Test/Echo").header("x", "y".repeat(9 << 10)).body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
}

/// A client that does not read leaves no more unsent than it may, and does not hold up another.
#[tokio::test]
async fn a_client_that_does_not_read_its_call() {
    let (served, test) = served(Limits::AGENT).await;
    let client = Client::connect(&served.path).await.unwrap();
    // h2's client reads the stream, but gives no more window than 65,535 bytes.
    let mut answers = client.call::<Vec<u8>>("/a.Test/Flood", &Vec::<u8>::new()).await.unwrap();
    until("the window is used up", || test.sent.load(SeqCst) >= 65_535 / FLOOD).await;
    for n in 0..50 {
        let other = Client::connect(&served.path).await.unwrap();
        assert_eq!(echo(&other, &[n]).await.unwrap(), [n]);
        let most = (65_535 + Limits::AGENT.unsent) / FLOOD + 1;
        assert!(test.sent.load(SeqCst) <= most, "{} of {most} messages", test.sent.load(SeqCst));
    }
    for _ in 0..500 {
        assert_eq!(answers.next().await.unwrap().unwrap().len(), 1019);
    }
    until("it goes on", || test.sent.load(SeqCst) >= 500).await;
}

/// Its windows are open, but nobody takes anything from the socket: what is unsent stays bounded, and when it gives no
/// sign of life it is closed.
/// A pager may hold up whoever prints, while many small lines come.
#[tokio::test]
async fn small_messages_wait_for_a_client_that_reads_later() {
    let (served, test) = served(Limits::AGENT).await;
    let client = Client::connect(&served.path).await.unwrap();
    let mut answers = client.call::<Vec<u8>>("/a.Test/Trickle", &()).await.unwrap();
    until("all are sent", || test.sent.load(SeqCst) == TRICKLE).await;
    // Behind them on the same connection: whoever is answered has been given the others.
    assert_eq!(echo(&client, &[1]).await.unwrap(), [1]);
    for at in 0..TRICKLE {
        assert_eq!(answers.next().await.unwrap().as_deref(), Some(&[7_u8; 20][..]), "{at}");
    }
    assert_eq!(answers.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_client_that_reads_nothing_at_all() {
    let limits =
        Limits { ping_every: Duration::from_secs(1), pong_within: Duration::from_secs(1), ..Limits::AGENT };
    let (served, test) = served(limits).await;
    let mut raw = served.raw().await;
    raw.call(1, "/a.Test/Flood").await;
    raw.message(1, &[]).await;
    until("it is closed", || test.dropped.load(SeqCst) == 1).await;
    let sent = test.sent.load(SeqCst) * FLOOD;
    // The kernel's buffer of the socket, and ours, of which h2 fills one more with frames.
    assert!(sent > 0 && sent < (1 << 20), "{sent} bytes");
    is_served(&served).await;
}

#[tokio::test]
async fn a_client_that_goes_away() {
    let (served, test) = served(Limits::AGENT).await;
    let client = Client::connect(&served.path).await.unwrap();
    let answers = client.call::<Vec<u8>>("/a.Test/Hang", &Vec::<u8>::new()).await.unwrap();
    until("it hangs", || test.begun.load(SeqCst) == 1).await;
    drop(answers);
    until("the call is dropped", || test.dropped.load(SeqCst) == 1).await;
    assert_eq!(echo(&client, &[1]).await.unwrap(), [1], "the connection is as it was");
    // With its connection.
    let mut raw = served.raw().await;
    raw.call(1, "/a.Test/Hang").await;
    raw.message(1, &[]).await;
    until("it hangs", || test.begun.load(SeqCst) == 3).await;
    drop(raw);
    until("the call is dropped", || test.dropped.load(SeqCst) == 3).await;
}

#[tokio::test]
async fn too_many_calls() {
    let (served, test) = served(small()).await;
    let mut raw = served.raw().await;
    for stream in [1, 3, 5] {
        raw.call(stream, "/a.Test/Hang").await;
        raw.message(stream, &[]).await;
    }
    let refused = raw.find(|frame| frame.kind == RST_STREAM).await;
    assert_eq!((refused.stream, refused.payload), (5, vec![0, 0, 0, 7]), "REFUSED_STREAM");
    until("two hang", || test.begun.load(SeqCst) == 2).await;
    // Over all connections.
    let (served, test) = self::served(Limits { calls: 1, ..small() }).await;
    let client = Client::connect(&served.path).await.unwrap();
    let hanging = client.call::<Vec<u8>>("/a.Test/Hang", &Vec::<u8>::new()).await.unwrap();
    until("one hangs", || test.begun.load(SeqCst) == 1).await;
    let other = Client::connect(&served.path).await.unwrap();
    let failure = echo(&other, &[1]).await.unwrap_err();
    assert_eq!((failure.code, failure.words.as_str()), (Some(8), "1 calls are open, which is the limit"));
    drop(hanging);
    until("it is gone", || test.dropped.load(SeqCst) == 1).await;
    // The permit is given back with the call.
    is_served(&served).await;
}

#[tokio::test]
async fn too_many_connections() {
    let (served, _) = served(Limits { connections: 2, ..small() }).await;
    let first = Client::connect(&served.path).await.unwrap();
    let second = Client::connect(&served.path).await.unwrap();
    assert!(echo(&first, &[1]).await.is_ok() && echo(&second, &[1]).await.is_ok());
    let mut third = served.raw().await;
    assert_eq!(third.frame().await, None, "it is closed without a word");
    assert!(served.notices.lock().unwrap()[0].contains("2 are open"), "{:?}", served.notices);
    drop(first);
    is_served(&served).await;
}

#[tokio::test]
async fn those_who_do_not_begin() {
    let limits = Limits { handshakes: 1, handshake: Duration::from_millis(300), ..small() };
    let (served, _) = served(limits).await;
    let mut silent = Raw(UnixStream::connect(&served.path).await.unwrap());
    // It says its settings, and closes when the time is over.
    while silent.frame().await.is_some() {}
    let _silent = UnixStream::connect(&served.path).await.unwrap();
    // One may be beginning, and it is another, until its time is over.
    is_served(&served).await;
    let mut garbage = UnixStream::connect(&served.path).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut garbage, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut garbage = Raw(garbage);
    while garbage.frame().await.is_some() {}
}

#[tokio::test]
async fn those_who_are_slow_or_idle() {
    let (served, test) = served(Limits { request_time: Duration::from_millis(100), ..small() }).await;
    assert_eq!(status_of(&served, None).await, "4");
    assert_eq!(test.begun.load(SeqCst), 0);

    let (served, _) = self::served(Limits { idle: Duration::from_millis(100), ..small() }).await;
    let stream = UnixStream::connect(&served.path).await.unwrap();
    let (_client, connection) = h2::client::handshake::<_>(stream).await.unwrap();
    tokio::time::timeout(super::testing::DEADLINE, connection).await.expect("it is closed").unwrap();
}

/// Calls that are reset at once cost the server nothing for long: RFC 9113 §10.5, CVE-2023-44487.
#[tokio::test]
async fn calls_reset_at_once() {
    let (served, _) = served(Limits::AGENT).await;
    let mut raw = served.raw().await;
    for n in 0..1000 {
        raw.call(2 * n + 1, "/a.Test/Hang").await;
        raw.send(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]).await;
    }
    let goaway = raw.find(|frame| frame.kind == GOAWAY).await;
    assert_eq!(goaway.payload[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
    while raw.frame().await.is_some() {}
    is_served(&served).await;
}
