//! Against an API server of the test's own, which speaks the kubelet's protocol, or what it should not.

use super::*;
use crate::sources::{
    http::{
        Patience,
        testing::{Authority, PATIENT, Reply, nobody},
    },
    kubernetes::standin::{Answer, Api, frame, numbers},
};

const PORT: u16 = 9966;

fn to() -> PodPort {
    PodPort { namespace: "kube-system".to_owned(), pod: "plsprobe-x2v8q".to_owned(), port: PORT }
}

/// A user with a token, over TLS.
fn access(api: &Api, authority: &Authority, patience: Patience) -> Access {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
    std::fs::write(folder.path().join("token"), "the-token\n").unwrap();
    let mut access =
        Access::in_pod(folder.path(), "127.0.0.1", &api.address.port().to_string(), patience).unwrap();
    access.client.base.path = "/base".to_owned();
    // The token's file is read with each request.
    std::mem::forget(folder);
    access
}

/// A user without one, over TCP alone.
fn plain(api: &Api) -> Access {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = format!(
        "current-context: a\ncontexts:\n- name: a\n  context: {{cluster: c, user: u}}\nclusters:\n- name: c\n  cluster: {{server: 'http://{}'}}\n\
         users:\n- name: u\n  user: {{client-certificate-data: '', token: ''}}\n",
        api.address
    );
    std::fs::write(&path, text).unwrap();
    let mut access = Access::kubeconfig(&path, PATIENT).unwrap();
    access.client.tls = None;
    access
}

/// Answers with what it is sent.
async fn echo() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

async fn goes_there_and_back(mut forwarded: Forwarded) {
    let sent: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let (mut from, mut to) = tokio::io::split(&mut forwarded);
    let mut received = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut received));
    wrote.unwrap();
    read.unwrap();
    assert!(sent == received, "a megabyte comes back as it was");
}

#[tokio::test]
async fn bytes_both_ways() {
    let echo = echo().await;
    let api = Api::start(None, move |_| Answer::To(echo)).await;
    goes_there_and_back(forward(&plain(&api), &to()).await.unwrap()).await;
    let [seen] = &api.seen()[..] else { panic!("one request") };
    assert_eq!(seen.path, "/api/v1/namespaces/kube-system/pods/plsprobe-x2v8q/portforward?ports=9966");
    assert_eq!((seen.method.as_str(), seen.header("authorization")), ("GET", None));
    assert!(api.frames().iter().any(|(opcode, _)| *opcode == Opcode::Pong as u8), "its pings are answered");
    // Whoever drops the stream says farewell.
    let is_closed = || api.frames().iter().any(|(opcode, _)| *opcode == Opcode::Close as u8);
    until(is_closed).await;
}

/// Waits for a condition.
async fn until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENT.total;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come to that");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn over_tls_with_a_token() {
    let (echo, authority) = (echo().await, Authority::new());
    let api = Api::start(Some(authority.server("127.0.0.1", false)), move |_| Answer::To(echo)).await;
    goes_there_and_back(forward(&access(&api, &authority, PATIENT), &to()).await.unwrap()).await;
    let [seen] = &api.seen()[..] else { panic!("one request") };
    assert!(seen.path.starts_with("/base/api/v1/namespaces/"), "{}", seen.path);
    assert_eq!(seen.header("authorization"), Some("Bearer the-token"));
}

/// Why there is no connection, without the server's address.
async fn refused(answer: impl Fn() -> Answer + Send + Sync + 'static) -> String {
    let api = Api::start(None, move |_| answer()).await;
    let error = forward(&plain(&api), &to()).await.unwrap_err();
    let asked =
        format!("GET http://{}/api/v1/namespaces/kube-system/pods/plsprobe-x2v8q/portforward", api.address);
    format!("{error:#}").replace(&asked, "GET …")
}

#[tokio::test]
async fn no_upgrade() {
    let reply = |status: &'static str, body: &'static str| move || Answer::Reply(Reply::json(status, body));
    let forbidden = r#"{"kind":"Status","message":"pods \"plsprobe-x2v8q\" is forbidden: User \"u\" cannot get resource \"pods/portforward\""}"#;
    assert_eq!(
        refused(reply("403 Forbidden", forbidden)).await,
        "GET …: status 403 Forbidden: pods \"plsprobe-x2v8q\" is forbidden: User \"u\" cannot get resource \"pods/portforward\"; \
         allow whoever asks to get and create pods/portforward (docs/across.md)"
    );
    assert_eq!(
        refused(reply("404 Not Found", r#"{"message":"pods \"plsprobe-x2v8q\" not found"}"#)).await,
        "GET …: status 404 Not Found: pods \"plsprobe-x2v8q\" not found; the pod has gone"
    );
    assert_eq!(
        refused(reply("200 OK", "{}")).await,
        "GET …: status 200 OK: {}; the API server, or a proxy before it, does not make WebSockets of requests"
    );
    assert_eq!(
        refused(reply("500 Internal Server Error", "error dialing backend: dial tcp 10.224.0.5:10250")).await,
        "GET …: status 500 Internal Server Error: error dialing backend: dial tcp 10.224.0.5:10250; \
         the API server or the node's kubelet is busy or not well: try again"
    );
    assert_eq!(
        refused(|| Answer::Reply(Reply::Bytes(b"SSH-2.0\r\n\r\n".to_vec()))).await,
        "GET …: expected an HTTP/1.1 status, found `SSH-2.0`"
    );
    assert_eq!(
        refused(|| Answer::Reply(Reply::Bytes(b"HTTP/1.1 101 Swit".to_vec()))).await,
        "GET …: the answer ends inside its headers"
    );
    assert_eq!(
        refused(|| Answer::Reply(Reply::Hang(vec![b'a'; ANSWER_MAX + 1]))).await,
        "GET …: the answer's headers are longer than 65536 bytes"
    );
}

#[tokio::test]
async fn another_upgrade_than_asked_for() {
    let head = |headers: &'static str| move || Answer::Head(headers.to_owned());
    assert_eq!(
        refused(head("Upgrade: SPDY/3.1\r\n")).await,
        "GET …: the answer upgrades to something else than a WebSocket"
    );
    assert_eq!(
        refused(head("Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n")).await,
        "GET …: the answer is to another question: its Sec-WebSocket-Accept does not fit"
    );
    let api = Api::start(None, |seen| {
        let accepted = accept(seen.header("sec-websocket-key").unwrap());
        Answer::Head(format!("Upgrade: WebSocket\r\nSec-WebSocket-Accept: {accepted}\r\n"))
    });
    let error = forward(&plain(&api.await), &to()).await.unwrap_err();
    assert!(
        format!("{error:#}").ends_with(": the answer speaks `none`, expected `v4.channel.k8s.io`"),
        "{error:#}"
    );
}

#[tokio::test]
async fn nobody_there_or_mute_or_not_trusted() {
    let authority = Authority::new();
    let api = Api::start(None, |_| Answer::Reply(Reply::Hang(Vec::new()))).await;
    let mut nobodys = plain(&api);
    nobodys.client.base = format!("http://{}", nobody()).parse().unwrap();
    let error = format!("{:#}", forward(&nobodys, &to()).await.unwrap_err());
    assert!(
        error.ends_with(": failed to connect to 127.0.0.1: Connection refused (os error 111)"),
        "{error}"
    );

    let mut impatient = plain(&api);
    impatient.client.patience.each = Duration::from_millis(50);
    let error = format!("{:#}", forward(&impatient, &to()).await.unwrap_err());
    assert!(error.ends_with(": no answer within 50ms"), "{error}");

    let tls = Api::start(Some(Authority::new().server("127.0.0.1", false)), |_| Answer::Refuse("")).await;
    let error = format!("{:#}", forward(&access(&tls, &authority, PATIENT), &to()).await.unwrap_err());
    assert!(error.contains("no authority that is trusted here has signed its certificate"), "{error}");
    assert_eq!(tls.seen().len(), 0, "the token was not sent");
}

/// What is read of a connection, and how it ends.
async fn read(answer: impl Fn() -> Answer + Send + Sync + 'static) -> (String, String) {
    let api = Api::start(None, move |_| answer()).await;
    let mut forwarded = forward(&plain(&api), &to()).await.unwrap();
    let mut bytes = Vec::new();
    let ended = forwarded.read_to_end(&mut bytes).await;
    let ended = ended.map_or_else(|error| error.to_string(), |_| "the end".to_owned());
    let text = String::from_utf8(bytes).unwrap();
    (text, ended.replace("port 9966 of pod kube-system/plsprobe-x2v8q: ", "…: "))
}

#[tokio::test]
async fn why_the_kubelet_cannot() {
    let (text, ended) = read(|| {
        Answer::Refuse("error forwarding port 9966 to pod 4f, uid : dial tcp4 127.0.0.1:9966: connect: connection refused\n")
    })
    .await;
    assert_eq!(
        (text.as_str(), ended.as_str()),
        (
            "",
            "…: error forwarding port 9966 to pod 4f, uid : dial tcp4 127.0.0.1:9966: connect: connection refused; \
             nobody listens there: is it the agent's port, and does the agent listen on TCP?"
        )
    );
    let (_, ended) = read(|| Answer::Refuse("no such\u{1b}[2J sandbox")).await;
    assert_eq!(ended, "…: no such [2J sandbox");
    let long: &str = String::leak("long ".repeat(4000));
    let (_, ended) = read(move || Answer::Refuse(long)).await;
    assert_eq!(ended.len(), "…: ".len() + WHY_MAX - 1, "{ended}");
}

#[tokio::test]
async fn frames_that_should_not_be() {
    let data = |bytes: &[u8]| frame(Opcode::Binary, true, &[&[0], bytes].concat());
    let bad = |frames: Vec<u8>| [numbers(PORT), data(b"good"), frames].concat();
    for (bytes, expected) in [
        (bad(frame(Opcode::Text, true, b"hello")), "found text, expected the bytes of `v4.channel.k8s.io`"),
        (bad(frame(Opcode::Binary, true, &[7, 1])), "found bytes of channel 7, expected 0 or 1"),
        (
            bad(vec![0xf2, 1]),
            "the API server's WebSocket: found a frame of an extension that was not asked for",
        ),
        (
            bad(frame(Opcode::Close, true, &[3, 243, b'n', b'o'])),
            "the API server closed the connection, code 1011: no",
        ),
    ] {
        let (text, ended) = read(move || Answer::Raw(bytes.clone(), true)).await;
        assert_eq!((text.as_str(), ended.as_str()), ("good", format!("…: {expected}").as_str()));
    }
    let other = [numbers(80), data(b"good")].concat();
    let (text, ended) = read(move || Answer::Raw(other.clone(), true)).await;
    assert_eq!((text.as_str(), ended.as_str()), ("", "…: found bytes of port 80, expected port 9966"));
    let half = bad(vec![0x82, 100, 0, 1, 2]);
    let (text, ended) = read(move || Answer::Cut(half.clone())).await;
    assert_eq!((text.as_str(), ended.as_str()), ("good", "…: the API server cut the connection"));
    // Byte by byte, with empty messages, the port's number in two, and a message in parts.
    let good = [
        frame(Opcode::Binary, true, &[]),
        frame(Opcode::Binary, true, &[0]),
        frame(Opcode::Binary, true, &[0, PORT.to_le_bytes()[0]]),
        frame(Opcode::Binary, false, &[]),
        frame(Opcode::Continuation, false, &[0]),
        frame(Opcode::Ping, true, b"?"),
        frame(Opcode::Continuation, true, &[PORT.to_le_bytes()[1], b'a', b'b']),
        data(b"c"),
        frame(Opcode::Close, true, &[3, 232]),
    ]
    .concat();
    let (text, ended) = read(move || Answer::Raw(good.clone(), false)).await;
    assert_eq!((text.as_str(), ended.as_str()), ("abc", "the end"));
}

#[tokio::test]
async fn a_server_that_falls_silent() {
    let api = Api::start(None, |_| Answer::Raw(numbers(PORT), true)).await;
    let mut forwarded = forward(&plain(&api), &to()).await.unwrap();
    // From here on time passes as fast as nothing happens.
    tokio::time::pause();
    let error = forwarded.read_u8().await.unwrap_err().to_string();
    assert_eq!(
        error,
        "port 9966 of pod kube-system/plsprobe-x2v8q: no sign of life from the API server for 60s"
    );
    let error = forwarded.write_all(&vec![0; BUFFER + 1]).await.unwrap_err().to_string();
    assert!(error.ends_with("no sign of life from the API server for 60s"), "{error}");
}
