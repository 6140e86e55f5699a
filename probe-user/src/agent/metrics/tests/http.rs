//! What clients get that behave, and those that do not.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::*;
use crate::agent::metrics::http;

/// Short times; everything else as it is.
fn hasty() -> Limits {
    Limits { request: Duration::from_millis(200), answer: Duration::from_millis(200), ..Limits::default() }
}

fn unhurried() -> Limits {
    Limits { request: PATIENT, answer: PATIENT, ..Limits::default() }
}

async fn start(metrics: &Arc<Metrics>, limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::clone(metrics), limits, Arc::new(|line| panic!("{line}"))));
    address
}

/// All that is answered to these bytes, the client's side kept open.
async fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Who is refused may not get that far.
    drop(stream.write_all(bytes).await);
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    drop(timeout(PATIENT, stream.read_to_end(&mut answer)).await.expect("the server closes"));
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: n\r\n\r\n").as_bytes()).await
}

fn status_line(answer: &str) -> &str {
    answer.split("\r\n").next().unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn a_scrape_in_both_formats() {
    let metrics = metrics(status(), &[flow()]);
    let address = start(&metrics, unhurried()).await;
    let answer = get(address, "/metrics?x=1").await;
    assert_eq!(status_line(&answer), "HTTP/1.1 200 OK");
    assert!(answer.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.contains(&format!("\r\nContent-Length: {}\r\n", body(&answer).len())));
    parse::page(body(&answer), false).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: n\r\naccept: application/openmetrics-text\r\nAccept: text/plain;q=0.1\r\n\r\n";
    let answer = send(address, request).await;
    assert!(
        answer.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
    );
    parse::page(body(&answer), true).unwrap();
}

#[tokio::test]
async fn health_as_the_kubelet_asks_for_it() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    let healthy = get(address, "/healthz").await;
    assert_eq!((status_line(&healthy), body(&healthy)), ("HTTP/1.1 200 OK", "alive\n"));
    let ready = get(address, "/readyz").await;
    assert_eq!((status_line(&ready), body(&ready)), ("HTTP/1.1 200 OK", "ready: 2 hooks attached of 2\n"));
    metrics.board.write(Status { trouble: Some("no Cilium".to_owned()), ..status() });
    let ready = get(address, "/readyz").await;
    assert_eq!((status_line(&ready), body(&ready)), ("HTTP/1.1 503 Service Unavailable", "no Cilium\n"));
    assert_eq!(status_line(&get(address, "/healthz").await), "HTTP/1.1 200 OK", "it lives all the same");
    // As if it had been silent for long.
    lock(&metrics.pulse).backdate(Duration::from_secs(90));
    let dead = get(address, "/healthz").await;
    assert_eq!(status_line(&dead), "HTTP/1.1 503 Service Unavailable");
    assert!(body(&dead).starts_with("the engine said nothing for 9"), "{dead}");
}

#[tokio::test]
async fn requests_that_are_none_of_ours() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /nowhere HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 Method Not Allowed"),
        ("HEAD /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET /metrics HTTP/2.0\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET  /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics HTTP/1.1\r\n: no name\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("\u{16}\u{3}\u{1}\u{2}\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        let answer = send(address, request.as_bytes()).await;
        assert_eq!(status_line(&answer), expected, "{request:?}");
        let is_allow = answer.contains("\r\nAllow: GET, HEAD\r\n");
        assert_eq!(is_allow, expected.contains("405"));
    }
    let head = send(address, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
    assert_eq!(body(&head), "");
    assert!(!head.contains("Content-Length: 0"), "{head}");
    assert_eq!(
        status_line(&send(address, b"GET /metrics \xff\xfe HTTP/1.1\r\n\r\n").await),
        "HTTP/1.1 400 Bad Request"
    );
}

/// Garbage near the grammar is answered, whatever it is.
#[test]
fn nothing_that_is_sent_is_too_strange() {
    let metrics = metrics(status(), &[]);
    let mut random = fastrand::Rng::with_seed(7);
    let parts: [&[u8]; 16] = [
        b"GET",
        b"HEAD",
        b" ",
        b"/metrics",
        b"/healthz?",
        b"HTTP/1.1",
        b"\r\n",
        b"\n",
        b":",
        b"Accept",
        b",",
        b";",
        b"q=",
        b"version=",
        b"\xff\x00",
        b"application/openmetrics-text",
    ];
    let mut seen = BTreeSet::new();
    for _ in 0..20_000 {
        let head: Vec<_> =
            (0..random.usize(..24)).flat_map(|_| parts[random.usize(..parts.len())]).copied().collect();
        let whole = [b"GET /healthz HTTP/1.1\r\n".as_slice(), &head].concat();
        for head in [&head, &whole] {
            seen.insert(http::answer(head, &metrics).status);
        }
    }
    assert_eq!(seen, BTreeSet::from(["200 OK", "400 Bad Request", "404 Not Found"]));
}

#[tokio::test]
async fn a_request_that_comes_in_pieces_and_half_closed_clients() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    assert_eq!(status_line(&rest(&mut stream).await), "HTTP/1.1 200 OK");
    // One that closes before its request is whole gets nothing.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /healthz HTT").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn a_request_without_end_is_refused() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    let longest = |length: usize| {
        let head = "GET /healthz HTTP/1.1\r\nX: ";
        format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4))
    };
    let answer = send(address, longest(8192).as_bytes()).await;
    assert_eq!(status_line(&answer), "HTTP/1.1 200 OK");
    let answer = send(address, longest(8193).as_bytes()).await;
    assert_eq!(status_line(&answer), "HTTP/1.1 431 Request Header Fields Too Large");
    let answer = send(address, &vec![b'x'; 60 << 10]).await;
    assert_eq!(status_line(&answer), "HTTP/1.1 431 Request Header Fields Too Large");
}

#[tokio::test]
async fn a_slow_request_is_given_up() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, hasty()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.split();
    // A header line now and then, until the server has enough.
    let drip = async {
        while writer.write_all(b"X: y\r\n").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = vec![0; 24];
    tokio::select! {
        biased;
        read = timeout(PATIENT, reader.read_exact(&mut answer)) => { read.expect("it is answered").unwrap(); }
        () = drip => {}
    }
    assert_eq!(answer, b"HTTP/1.1 408 Request Tim");
    // One that says nothing at all.
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(status_line(&rest(&mut stream).await), "HTTP/1.1 408 Request Timeout");
}

/// Asks until there is an answer.
async fn until_answered(address: SocketAddr) {
    let answered = async {
        while !get(address, "/healthz").await.starts_with("HTTP/1.1 200") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENT, answered).await.expect("there is room again");
}

/// Connections that keep their places.
async fn occupy(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET ").await.unwrap();
        held.push(stream);
    }
    held
}

async fn refused(metrics: &Metrics, count: u64) {
    let seen = async {
        while metrics.connections_refused.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENT, seen).await.expect("they are refused");
}

#[tokio::test]
async fn one_address_cannot_have_all_connections() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    let held = occupy(address, Limits::default().connections_of_one).await;
    let mut one_more = TcpStream::connect(address).await.unwrap();
    let mut nothing = [0];
    // Closed without a word; unread bytes would make it a reset.
    let read = timeout(PATIENT, one_more.read(&mut nothing)).await.expect("it is closed");
    assert!(matches!(read, Ok(0) | Err(_)));
    refused(&metrics, 1).await;
    // Another address has its own room.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(address).await.unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(status_line(&rest(&mut other).await), "HTTP/1.1 200 OK");
    drop(held);
    until_answered(address).await;
}

#[tokio::test]
async fn there_are_only_so_many_connections() {
    let metrics = metrics(status(), &[]);
    let limits = Limits { connections: 3, connections_of_one: 2, ..unhurried() };
    let address = start(&metrics, limits).await;
    let held = occupy(address, 2).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut third = socket.connect(address).await.unwrap();
    third.write_all(b"GET ").await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
    let _fourth = socket.connect(address).await.unwrap();
    refused(&metrics, 1).await;
    drop((held, third));
    until_answered(address).await;
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing_behind() {
    let metrics = metrics(status(), &[]);
    let address = start(&metrics, unhurried()).await;
    for _ in 0..20 {
        drop(occupy(address, 3).await);
        until_answered(address).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let flows: Vec<_> = (0..SERVICES_MAX).map(|idx| of_service(&idx.to_string(), flow())).collect();
    let metrics = metrics(status(), &flows);
    let limits = Limits { connections: 1, connections_of_one: 1, ..hasty() };
    let address = start(&metrics, limits).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Else the kernel takes the whole page.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut greedy = socket.connect(address).await.unwrap();
    greedy.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
    // It keeps its place for the time of an answer, and no longer.
    until_answered(address).await;
    drop(greedy);
}
