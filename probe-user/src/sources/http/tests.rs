//! What an operator reads when a server does not answer as it should.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    testing::{Authority, PATIENT, Reply, Server, client, mute, nobody},
    *,
};

/// What a request to a server that replies so comes to: the body, or the error without the server's address.
fn outcome(reply: impl Fn(u32) -> Reply + Send + Sync + 'static) -> (String, usize) {
    let tries = AtomicU32::new(0);
    let server = Server::start(move |_| reply(tries.fetch_add(1, Ordering::SeqCst)));
    let text = ask(&server.client(), &server.address.to_string());
    (text, server.seen().len())
}

fn ask(client: &Client, address: &str) -> String {
    match client.send(&Request::get("/a?secret=b")) {
        Ok(body) => String::from_utf8(body).unwrap(),
        Err(error) => error.to_string().replace(address, "SERVER"),
    }
}

#[track_caller]
fn check(reply: impl Fn(u32) -> Reply + Send + Sync + 'static, expected: &str, tries: usize) {
    assert_eq!(outcome(reply), (expected.to_owned(), tries));
}

#[test]
fn what_is_sent() {
    let server = Server::start(|seen| Reply::ok(&format!("\"{} {}\"", seen.method, seen.path)));
    let mut client = server.client();
    client.base = format!("{}/base/", server.url("http")).parse().unwrap();
    let request = Request::get("/a?b=c").with("Authorization", "Bearer t");
    assert_eq!(client.send(&request).unwrap(), b"\"GET /base/a?b=c\"");
    let form = Request { body: Some(Body::form("d=e".to_owned())), ..Request::get("/f") };
    assert_eq!(client.send(&form).unwrap(), b"\"POST /base/f\"");
    let [get, post] = &server.seen()[..] else { panic!("two requests") };
    assert_eq!((get.header("authorization"), get.body.as_str()), (Some("Bearer t"), ""));
    assert_eq!(get.header("host"), Some(server.address.to_string().as_str()));
    assert_eq!(get.header("accept"), Some("application/json"));
    assert_eq!(
        (post.header("content-type"), post.body.as_str()),
        (Some("application/x-www-form-urlencoded"), "d=e")
    );
}

#[test]
fn errors_in_each_apis_own_words() {
    check(
        |_| {
            Reply::json(
                "403 Forbidden",
                r#"{"kind":"Status","message":"services is forbidden: User \"x\" cannot list","code":403}"#,
            )
        },
        "GET http://SERVER/a: status 403 Forbidden: services is forbidden: User \"x\" cannot list",
        1,
    );
    check(
        |_| {
            Reply::json(
                "403 Forbidden",
                r#"{"error":{"code":"AuthorizationFailed","message":"The client 'c' does not have authorization"}}"#,
            )
        },
        "GET http://SERVER/a: status 403 Forbidden: AuthorizationFailed: The client 'c' does not have authorization",
        1,
    );
    check(
        |_| {
            Reply::json(
                "400 Bad Request",
                r#"{"error":"invalid_request","error_description":"Identity not found\r\nTrace ID: 7"}"#,
            )
        },
        "GET http://SERVER/a: status 400 Bad Request: Identity not found",
        1,
    );
    check(|_| Reply::json("404 Not Found", ""), "GET http://SERVER/a: status 404 Not Found", 1);
    check(
        |_| Reply::json("404 Not Found", "page\u{1b}[2J\n2"),
        "GET http://SERVER/a: status 404 Not Found: page [2J",
        1,
    );
    check(
        |_| Reply::json("403 Forbidden", "<html>"),
        "GET http://SERVER/a: status 403 Forbidden: it answers with a page, not as an API",
        1,
    );
}

#[test]
fn what_is_tried_again() {
    check(
        |tries| if tries < 2 { Reply::json("503 Service Unavailable", "") } else { Reply::ok("[1]") },
        "[1]",
        3,
    );
    check(
        |tries| {
            if tries == 0 {
                Reply::with("429 Too Many Requests", "Retry-After: 1\r\n", "")
            } else {
                Reply::ok("[2]")
            }
        },
        "[2]",
        2,
    );
    check(
        |tries| if tries == 0 { Reply::json("500 Internal Server Error", "") } else { Reply::ok("[3]") },
        "[3]",
        2,
    );
}

#[test]
fn a_wait_that_is_too_long() {
    check(
        |_| Reply::with("429 Too Many Requests", "Retry-After: 3600\r\n", r#"{"message":"too many"}"#),
        "GET http://SERVER/a: status 429 Too Many Requests: too many; it asks to wait 3600s, more than is waited here; try again then",
        1,
    );
    // Where waiting does not help, nothing is said of it.
    check(
        |_| Reply::with("403 Forbidden", "Retry-After: 3600\r\n", r#"{"message":"no"}"#),
        "GET http://SERVER/a: status 403 Forbidden: no",
        1,
    );
}

#[test]
fn tries_end_with_time() {
    let server = Server::start(|_| Reply::json("503 Service Unavailable", "busy"));
    let mut client = server.client();
    client.patience.total = FIRST_WAIT * 24;
    let error = client.send(&Request::get("/a")).unwrap_err();
    // A busy machine may have had time for fewer.
    let tries = server.seen().len();
    assert!((2..=5).contains(&tries), "{tries}");
    assert!(
        error.to_string().ends_with(&format!("status 503 Service Unavailable: busy (tried {tries} times)")),
        "{error}"
    );
}

#[test]
fn a_redirect_is_not_followed() {
    check(
        |_| Reply::with("302 Found", "Location: https://proxy.example/login?token=t\r\n", ""),
        "GET http://SERVER/a: status 302 Found: it redirects to `https://proxy.example/login`, which is not followed; is there a proxy between?",
        1,
    );
}

#[test]
fn answers_that_are_cut_or_too_long() {
    let bytes = |text: &str| Reply::Bytes(text.as_bytes().to_vec());
    check(
        move |_| bytes("HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n[1"),
        "GET http://SERVER/a: the answer ends after 2 bytes, expected 70",
        1,
    );
    check(
        move |_| bytes(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 << 20)),
        "GET http://SERVER/a: the answer is longer than 1048576 bytes",
        1,
    );
    check(
        move |_| bytes("SSH-2.0-OpenSSH\r\n\r\n"),
        "GET http://SERVER/a: expected an HTTP/1.1 status, found `SSH-2.0-OpenSSH`",
        1,
    );
}

#[test]
fn an_answer_that_does_not_come() {
    let impatient = Patience { each: Duration::from_secs(2), ..PATIENT };
    let server = Server::start(|_| Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[".to_vec()));
    let slow = Client { patience: impatient, ..server.client() };
    let expected = "GET http://SERVER/a: no answer within 2s";
    assert_eq!(ask(&slow, &server.address.to_string()), expected);
    let (address, accepted) = mute();
    let silent = Client { patience: impatient, ..client(&format!("http://{address}")) };
    assert_eq!(ask(&silent, &address.to_string()), expected);
    drop(accepted.join());
    // Nor a handshake of TLS.
    let (address, accepted) = mute();
    let tls = Some(tls::trusting(Authority::new().pem().as_bytes(), "the test", None).unwrap());
    let silent = Client { patience: impatient, tls, ..client(&format!("https://{address}")) };
    assert_eq!(ask(&silent, &address.to_string()), "GET https://SERVER/a: no answer within 2s");
    drop(accepted.join());
}

#[test]
fn a_path_that_would_add_headers() {
    let server = Server::start(|_| Reply::ok("[]"));
    for path in ["/a b", "/a\r\nX: y", "a", ""] {
        let error = server.client().send(&Request::get(path)).unwrap_err().to_string();
        assert!(error.ends_with("is no path that can be asked for"), "{error}");
    }
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn nobody_listens() {
    let address = nobody();
    let text = ask(&client(&format!("http://{address}")), &address.to_string());
    assert_eq!(
        text,
        "GET http://SERVER/a: failed to connect to 127.0.0.1: Connection refused (os error 111)"
    );
}

fn over_tls(server: &Server, ca: &str, own: Option<&tls::Own>) -> String {
    let tls = Some(tls::trusting(ca.as_bytes(), "the test", own).unwrap());
    ask(&Client { tls, ..client(&server.url("https")) }, &server.address.to_string())
}

#[test]
fn only_a_server_that_proves_who_it_is() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server("127.0.0.1", false), |_| Reply::ok("[1]"));
    assert_eq!(over_tls(&server, &authority.pem(), None), "[1]");
    assert_eq!(
        over_tls(&server, &Authority::new().pem(), None),
        "GET https://SERVER/a: no authority that is trusted here has signed its certificate; is the right CA given, or does a proxy open TLS? \
         (invalid peer certificate: BadSignature)"
    );
    let other = Server::start_tls(authority.server("other.example", false), |_| Reply::ok("[1]"));
    let text = over_tls(&other, &authority.pem(), None);
    assert!(
        text.starts_with(
            "GET https://SERVER/a: its certificate is for another name (invalid peer certificate"
        ),
        "{text}"
    );
    assert_eq!((server.seen().len(), other.seen().len()), (1, 0), "nothing is said to who cannot prove it");
    let (address, accepted) = mute();
    let tls = Some(tls::trusting(authority.pem().as_bytes(), "the test", None).unwrap());
    let plain = thread::spawn(move || {
        let mut stream = accepted.join().unwrap().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let text = ask(&Client { tls, ..client(&format!("https://{address}")) }, &address.to_string());
    plain.join().unwrap();
    assert!(text.starts_with("GET https://SERVER/a: it does not speak TLS; is the port right? ("), "{text}");
}

#[test]
fn a_clients_own_certificate() {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server("127.0.0.1", true), |_| Reply::ok("[1]"));
    let (certificate, key) = authority.issue("operator");
    let own = tls::Own { certificate: certificate.into_bytes(), key: key.into_bytes() };
    assert_eq!(over_tls(&server, &authority.pem(), Some(&own)), "[1]");
    let text = over_tls(&server, &authority.pem(), None);
    assert!(
        text.starts_with(
            "GET https://SERVER/a: it refused the connection; is the client's certificate right? ("
        ),
        "{text}"
    );
    let (_, another) = authority.issue("operator");
    let mixed = tls::Own { key: another.into_bytes(), ..own };
    let error = tls::trusting(authority.pem().as_bytes(), "the test", Some(&mixed)).unwrap_err();
    assert_eq!(error.to_string(), "the client's key does not fit its certificate");
}

#[test]
fn certificates_that_are_none() {
    let error = tls::trusting(b"nonsense", "`ca.crt`", None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "found 0 certificates in `ca.crt`, none of which can be used; expected PEM with one at least"
    );
}

#[test]
fn addresses_of_servers() {
    let text = |text: &str| {
        let url: Url = text.parse().unwrap();
        format!("{} {} {} {}", url.is_https, url.host, url.port, url.path)
    };
    assert_eq!(text("https://api.example"), "true api.example 443 ");
    assert_eq!(text("http://127.0.0.1:8080/a/b/"), "false 127.0.0.1 8080 /a/b");
    assert_eq!(text("https://[fd00::1]:6443"), "true fd00::1 6443 ");
    for wrong in [
        "",
        "api.example",
        "ftp://a",
        "https://",
        "https://a:x",
        "https://a:70000",
        "https://u:p@a",
        "https://[::1",
        "https://a?b",
    ] {
        let error = format!("{:#}", wrong.parse::<Url>().unwrap_err());
        assert!(
            error.starts_with(&format!(
                "found address `{wrong}`, expected one such as `https://10.0.0.1:6443`: its "
            )) || error.contains(": it has "),
            "{error}"
        );
    }
    assert_eq!(escape("a b/ä=&~"), "a%20b%2F%C3%A4%3D%26~");
}
