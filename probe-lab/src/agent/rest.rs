//! The stand-in for the agent's REST socket: HTTP/1.1, `GET` only.
use std::fs;
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Result;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::answers::Answers;
use super::monitor::bind;

/// A request whose head is longer than this is none of ours.
const MAX_HEAD: usize = 16 * 1024;

/// Where the answers come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Computed from a scenario.
    Computed(Answers),
    /// The files of a recorded `rest/` folder, as they are.
    Recorded(PathBuf),
}

/// The socket, while it is open.
#[derive(Debug)]
pub struct Rest {
    path: PathBuf,
    source: SharedSource,
    accepting: AbortHandle,
}

type SharedSource = Arc<RwLock<Source>>;

impl Rest {
    /// Opens the socket at `path` and serves it on `runtime`.
    ///
    /// # Errors
    ///
    /// The socket cannot be bound.
    pub fn start(runtime: &Handle, path: &Path, source: Source) -> Result<Self> {
        let listener = bind(path)?;
        let source = Arc::new(RwLock::new(source));
        let accepting = runtime.spawn(accept(listener, Arc::clone(&source))).abort_handle();
        Ok(Self { path: path.to_owned(), source, accepting })
    }

    /// Answers from `source` from now on, on open connections too.
    pub fn set_source(&self, source: Source) {
        // A source is replaced whole: whoever panicked left none half-written.
        *self.source.write().unwrap_or_else(PoisonError::into_inner) = source;
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Err(err) = fs::remove_file(&self.path) {
            eprintln!("plsprobe-lab: failed to remove `{}`: {err}", self.path.display());
        }
    }
}

impl Source {
    /// The body of `GET /v1{path}`, or `None` where the agent says 404.
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        match self {
            Self::Computed(answers) => {
                answers.get(path).as_ref().map(Value::to_string).map(String::into_bytes)
            }
            Self::Recorded(dir) => recorded(dir, path),
        }
    }
}

/// `/endpoint/2686` is `endpoint-2686.json`, as the recordings name their files.
fn recorded(dir: &Path, path: &str) -> Option<Vec<u8>> {
    let name = path.trim_matches('/').replace('/', "-");
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if name.is_empty() || !plain {
        return None;
    }
    fs::read(dir.join(format!("{name}.json"))).ok()
}

async fn accept(listener: StdUnixListener, source: SharedSource) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(err) => return eprintln!("plsprobe-lab: the REST socket failed: {err}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = Arc::clone(&source);
                // A client that goes away is no concern of the others.
                tokio::spawn(async move {
                    let _ = serve(stream, &source).await;
                });
            }
            Err(err) => return eprintln!("plsprobe-lab: the REST socket failed: {err}"),
        }
    }
}

/// Requests one after the other, until the client ends or says `Connection: close`.
async fn serve(stream: UnixStream, source: &RwLock<Source>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_head(&mut stream).await? {
        let close = request.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
        let answer = answer(&request, &source.read().unwrap_or_else(PoisonError::into_inner));
        stream.write_all(&answer).await?;
        if close {
            break;
        }
    }
    stream.shutdown().await
}

/// The request line and headers; `None` at the end of the stream. A `GET` has no body.
async fn read_head(stream: &mut BufReader<UnixStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
        if head.len() > MAX_HEAD {
            return Err(io::Error::other("a request's head is too long"));
        }
        if head[before..].trim_end().is_empty() {
            return Ok(Some(head));
        }
    }
}

fn answer(request: &str, source: &Source) -> Vec<u8> {
    let mut words = request.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default().strip_prefix("/v1");
    let (status, content_type, body) = match (method, path.and_then(|path| source.get(path))) {
        ("GET", Some(body)) => ("200 OK", "application/json", body),
        ("GET", None) => ("404 Not Found", "text/plain", Vec::new()),
        _ => ("405 Method Not Allowed", "text/plain", Vec::new()),
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer
}
