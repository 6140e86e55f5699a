//! The agent's REST API over its unix socket: what Cilium says of endpoints, identities, services and policies.

use std::{
    collections::BTreeMap,
    io::{BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use probe_model::world::Missing;
use serde::de::IgnoredAny;

use super::{
    http::{Head, Timed, shown, timed_out},
    monitor::refused,
};

/// The socket's name in the agent's run directory.
pub const SOCKET: &str = "cilium.sock";

/// What every answer is drawn from, as paths under `/v1`. Source: `api/v1/openapi.yaml`, Cilium 1.13–1.18.
pub const PATHS: [&str; 8] =
    ["config", "endpoint", "healthz", "identity", "ip", "policy", "policy/selectors", "service"];

/// How long one answer may take. The agent answers in milliseconds, or hangs with its datapath lock held.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Bodies longer than this are refused. 10,000 identities with labels are some 5 MB.
pub const MAX_BODY: u64 = 256 << 20;

/// The agent's REST socket.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
    timeout: Duration,
    max_body: u64,
}

impl Agent {
    /// The agent behind `socket`: [`SOCKET`] in its run directory. Connects only when asked something.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), timeout: TIMEOUT, max_body: MAX_BODY }
    }

    /// Another limit for the time one answer may take.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The JSON text of `GET /v1/<path>`.
    ///
    /// # Errors
    ///
    /// When nobody answers in time, the status is not 200 (with what the agent said), or the answer is cut, too long or no
    /// JSON.
    pub fn get(&self, path: &str) -> Result<String> {
        let deadline = Instant::now() + self.timeout;
        let stream = UnixStream::connect(&self.socket).map_err(|error| refused(&self.socket, error))?;
        let answer = self.ask(Timed { stream, deadline }, path).map_err(|error| {
            if !timed_out(&error) {
                return error;
            }
            anyhow!("no answer within {:?}; is the agent healthy?", self.timeout)
        });
        answer.with_context(|| format!("failed to get `/v1/{path}` from `{}`", self.socket.display()))
    }

    fn ask(&self, mut stream: Timed<UnixStream>, path: &str) -> Result<String> {
        let request = format!(
            "GET /v1/{path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader)?;
        let body = head.body(&mut reader, self.max_body)?;
        if head.status != 200 {
            bail!("status {}{}", head.reason, explained(head.status, &body));
        }
        let text = String::from_utf8(body).map_err(|_| anyhow!("the answer is not UTF-8"))?;
        serde_json::from_str::<IgnoredAny>(&text).context("the answer is no JSON")?;
        Ok(text)
    }

    /// Every one of [`PATHS`], asked at once: the answers by path with `/` as `-`, and what could not be had.
    pub fn get_all(&self) -> (BTreeMap<String, String>, Vec<Missing>) {
        // One line, not eight, where no agent is.
        if let Err(error) = UnixStream::connect(&self.socket) {
            let why = format!("{:#}", refused(&self.socket, error));
            return (BTreeMap::new(), vec![Missing { what: SOCKET.to_owned(), why }]);
        }
        let answers = std::thread::scope(|scope| {
            let asked = PATHS.map(|path| (path, scope.spawn(move || self.get(path))));
            asked.map(|(path, answer)| (path, answer.join().expect("asking does not panic")))
        });
        let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
        for (path, answer) in answers {
            match answer {
                Ok(text) => drop(found.insert(path.replace('/', "-"), text)),
                Err(error) => {
                    missing.push(Missing { what: format!("/v1/{path}"), why: format!("{error:#}") });
                }
            }
        }
        (found, missing)
    }
}

/// What the agent said with an error, and what helps.
fn explained(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = match shown(text.trim()) {
        text if text.is_empty() => text,
        text => format!(": {text}"),
    };
    match status {
        429 | 503 => format!("{text}; the agent limits its API, try again"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::sources::http::line;

    /// Answers one request with `parts`, a pause after each, and says what `get("endpoint")` made of it.
    fn answered(parts: &[&[u8]], pause: Duration, agent: impl FnOnce(Agent) -> Agent) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let listener = UnixListener::bind(&path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let mut request = Vec::new();
                while let Ok(line) = line(&mut reader) {
                    if line.is_empty() {
                        break;
                    }
                    request.push(line);
                }
                assert_eq!(request[0], "GET /v1/endpoint HTTP/1.1");
                for part in parts {
                    // The client may have given up.
                    if reader.get_mut().write_all(part).is_err() {
                        return;
                    }
                    thread::sleep(pause);
                }
            });
            agent(Agent::new(&path)).get("endpoint")
        })
    }

    #[track_caller]
    fn check(answer: &str, expected: Result<&str, &str>) {
        let bytes = answer.as_bytes();
        let halves = bytes.split_at(bytes.len() / 2);
        for parts in [vec![bytes], vec![halves.0, halves.1], bytes.chunks(1).collect()] {
            let found = answered(&parts, Duration::ZERO, |agent| agent);
            match (found, expected) {
                (Ok(found), expected) => assert_eq!(Ok(found.as_str()), expected),
                (Err(error), Ok(_)) => panic!("{error:#}"),
                (Err(error), Err(expected)) => {
                    let error = format!("{error:#}");
                    assert!(error.starts_with("failed to get `/v1/endpoint` from `/"), "{error}");
                    assert!(error.ends_with(expected), "{error}");
                }
            }
        }
    }

    #[test]
    fn bodies_of_every_kind() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}rest", Ok("{\"a\":1}"));
        check("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[1, 2]", Ok("[1, 2]"));
        check(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\n[1,\r\nA;ext=1\r\n 2, 3, 4, \r\n2\r\n5]\r\n0\r\n\r\n",
            Ok("[1, 2, 3, 4, 5]"),
        );
    }

    #[test]
    fn what_the_agent_refuses() {
        check(
            "HTTP/1.1 404 Not Found\r\nContent-Length: 21\r\n\r\n\"no such\tendpoint 17\"\n",
            Err(": status 404 Not Found: \"no such endpoint 17\""),
        );
        check("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Err(": status 404 Not Found"));
        check(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
            Err(": status 503 Service Unavailable: busy; the agent limits its API, try again"),
        );
    }

    #[test]
    fn answers_that_are_cut() {
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\n{\"a\":1}",
            Err(": the answer ends after 7 bytes, expected 70"),
        );
        let cut = "the connection ended or a line is longer than 65536 bytes";
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n",
            Err(&format!(": the answer ends inside its chunks: {cut}")),
        );
        check("HTTP/1.1 200 OK\r\nContent", Err(&format!(": the answer ends inside its headers: {cut}")));
        check("HT", Err(&format!(": no HTTP answer: {cut}")));
    }

    #[test]
    fn what_is_no_answer() {
        check("SSH-2.0-OpenSSH\r\n\r\n", Err(": expected an HTTP/1.1 status, found `SSH-2.0-OpenSSH`"));
        check("HTTP/1.1 fine\r\n\r\n", Err(": expected an HTTP status, found `fine`"));
        check("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", Err(": expected an HTTP header, found `nonsense`"));
        check("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Err(": content length `x` is no number"));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            Err(": unknown transfer encoding `gzip`"),
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            Err(": expected a chunk's size, found `zz`"),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n[1,2,",
            Err(": the answer is no JSON: EOF while parsing a value at line 1 column 5"),
        );
    }

    #[test]
    fn answers_that_never_end() {
        let quick = |agent: Agent| agent.with_timeout(Duration::from_millis(200));
        let begun = Instant::now();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n".as_slice();
        let drip: Vec<&[u8]> = [head].into_iter().chain([b"x".as_slice(); 50]).collect();
        let error = format!("{:#}", answered(&drip, Duration::from_millis(20), quick).unwrap_err());
        assert!(error.ends_with(": no answer within 200ms; is the agent healthy?"), "{error}");
        let error = answered(&[b"HTTP", b""], Duration::from_millis(400), quick).unwrap_err();
        assert!(
            format!("{error:#}").ends_with(": no answer within 200ms; is the agent healthy?"),
            "{error:#}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn answers_that_are_too_long() {
        let short = |agent: Agent| Agent { max_body: 10, ..agent };
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n[1,2,3,4,5]",
            "HTTP/1.1 200 OK\r\n\r\n[1,2,3,4,5]",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n[1,2,3,4\r\n3\r\n,5]\r\n0\r\n\r\n",
        ] {
            let error = format!("{:#}", answered(&[answer.as_bytes()], Duration::ZERO, short).unwrap_err());
            assert!(error.ends_with(": the answer is longer than 10 bytes"), "{error}");
        }
        let endless = vec![b'x'; 70_000];
        let error = answered(&[&endless], Duration::ZERO, |agent| agent).unwrap_err();
        assert!(format!("{error:#}").contains("a line is longer than 65536 bytes"), "{error:#}");
    }

    #[test]
    fn no_agent_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let (found, missing) = Agent::new(&folder.path().join(SOCKET)).get_all();
        assert!(found.is_empty());
        let [missing] = missing.as_slice() else { panic!("{missing:?}") };
        assert_eq!(missing.what, "cilium.sock");
        assert!(
            missing.why.starts_with("no socket at `") && missing.why.contains("`--cilium-run`"),
            "{missing:?}"
        );
    }

    #[test]
    fn one_failure_costs_one_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            // The first connection only tries whether there is an agent.
            drop(listener.accept().unwrap());
            for _ in PATHS {
                let mut reader = BufReader::new(listener.accept().unwrap().0);
                let request = line(&mut reader).unwrap();
                let answer: &[u8] = if request.starts_with("GET /v1/ip ") {
                    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops"
                } else {
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
                };
                while !line(&mut reader).unwrap().is_empty() {}
                reader.get_mut().write_all(answer).unwrap();
            }
        });
        let (found, missing) = Agent::new(&path).get_all();
        server.join().unwrap();
        let stems: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            stems,
            ["config", "endpoint", "healthz", "identity", "policy", "policy-selectors", "service"]
        );
        let [missing] = missing.as_slice() else { panic!("{missing:?}") };
        assert_eq!(missing.what, "/v1/ip");
        assert!(missing.why.ends_with(": status 500 Internal Server Error: oops"), "{missing:?}");
    }
}
