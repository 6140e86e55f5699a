//! An API server of our own: objects that change, lists and watches of them, and everything that goes wrong.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::sources::http::testing::{Reply, Seen};

/// Where services are.
pub(super) const SERVICES: &str = "/api/v1/services";
/// Objects in a page, whatever limit is asked for.
const PAGE: usize = 3;

/// What a stream does next, in the place of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Ends as it should.
    End,
    /// Ends without its last chunk.
    Break,
    /// Ends in the middle of the event.
    Half,
    /// Says something that is no event.
    Garbage,
    /// Says an event of an object without a name.
    Nameless,
    /// Says that its version is too old.
    Gone,
    /// Says that something is wrong with the server.
    Error,
}

/// The server's state.
#[derive(Default)]
pub(super) struct Api {
    state: Mutex<State>,
    changed: Condvar,
}

/// What is done with a request before all else, if it is not answered as it should.
type Refuse = Arc<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;
/// What a stream does in the place of the next event.
type Spoil = Box<dyn FnMut() -> Option<Fault> + Send>;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    log: Vec<(u64, &'static str, &'static str, Value)>,
    /// Versions before this are gone.
    oldest: u64,
    refuse: Option<Refuse>,
    spoil: Option<Spoil>,
    /// The last version that was sent to who watches a list.
    sent: BTreeMap<String, u64>,
    /// Streams that began before this end at once, so.
    cut: (u64, Option<Fault>),
}

impl Api {
    pub(super) fn new() -> Arc<Self> {
        let api = Self::default();
        api.lock().version = 10;
        Arc::new(api)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes or changes an object of a list.
    pub(super) fn put(&self, path: &'static str, object: &Value) {
        let mut state = self.lock();
        state.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let before = state.objects.entry(path).or_default().insert(key(&object), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        let version = state.version;
        state.log.push((version, path, kind, object));
        self.changed.notify_all();
    }

    /// Deletes one.
    pub(super) fn delete(&self, path: &'static str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let Some(mut object) = state.objects.entry(path).or_default().remove(&format!("{namespace}/{name}"))
        else {
            return;
        };
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.log.push((version, path, "DELETED", object));
        self.changed.notify_all();
    }

    /// The version of now.
    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The last version that was sent to who watches a list.
    pub(super) fn sent(&self, path: &str) -> Option<u64> {
        self.lock().sent.get(path).copied()
    }

    /// Moves the version on, as objects of other lists do, and tells every watch.
    pub(super) fn bookmark(&self) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let object = json!({"metadata": {"resourceVersion": version.to_string()}});
        state.log.push((version, "", "BOOKMARK", object));
        self.changed.notify_all();
    }

    /// Forgets the past before this version.
    pub(super) fn compact(&self, version: u64) {
        let mut state = self.lock();
        state.oldest = state.oldest.max(version);
    }

    /// What is asked from now on is answered so, unless this says `None`.
    pub(super) fn refuse(&self, refuse: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        self.lock().refuse = Some(Arc::new(refuse));
    }

    /// Events are spoilt so from now on, unless this says `None`.
    pub(super) fn spoil(&self, spoil: impl FnMut() -> Option<Fault> + Send + 'static) {
        self.lock().spoil = Some(Box::new(spoil));
        self.changed.notify_all();
    }

    /// Ends every stream of now, so.
    pub(super) fn cut(&self, fault: Fault) {
        let mut state = self.lock();
        state.cut = (state.cut.0 + 1, Some(fault));
        self.changed.notify_all();
    }

    /// Answers as it should from now on.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        (state.refuse, state.spoil) = (None, None);
    }

    /// Answers a request.
    pub(super) fn reply(self: &Arc<Self>, seen: &Seen) -> Reply {
        let refuse = self.lock().refuse.clone();
        let refused = refuse.and_then(|refuse| refuse(seen));
        if let Some(reply) = refused {
            return reply;
        }
        let (path, _) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        if path.ends_with("/cilium-config") {
            return Reply::ok(r#"{"metadata":{"name":"cilium-config"},"data":{"enable-policy":"default"}}"#);
        }
        if seen.query("watch") == Some("1") { self.watch(seen, path) } else { self.list(seen, path) }
    }

    fn list(&self, seen: &Seen, path: &str) -> Reply {
        let state = self.lock();
        let all: Vec<_> = state.objects.get(path).into_iter().flatten().collect();
        // A page's token says where it begins, and that nothing has changed since.
        let version = state.version.to_string();
        let begin = match seen.query("continue").map(|token| token.split_once('-').unwrap()) {
            Some((of, _)) if of != version => return gone(),
            Some((_, begin)) => begin.parse().unwrap(),
            None => 0,
        };
        let page: Vec<_> = all.iter().skip(begin).take(PAGE).map(|(_, object)| (*object).clone()).collect();
        let next = begin + page.len();
        let token = if next < all.len() { format!("{version}-{next}") } else { String::new() };
        // Servers do not agree on what comes first.
        let metadata = json!({"resourceVersion": version, "continue": token});
        let items = Value::from(page);
        Reply::ok(&if begin == 0 {
            format!(r#"{{"kind":"List","items":{items},"metadata":{metadata}}}"#)
        } else {
            format!(r#"{{"metadata":{metadata},"items":{items}}}"#)
        })
    }

    fn watch(self: &Arc<Self>, seen: &Seen, path: &str) -> Reply {
        let from: u64 = seen.query("resourceVersion").unwrap().parse().unwrap();
        let seconds: u64 = seen.query("timeoutSeconds").unwrap().parse().unwrap();
        assert_eq!(seen.query("allowWatchBookmarks"), Some("true"));
        if from < self.lock().oldest {
            return gone();
        }
        let (api, path) = (Arc::clone(self), path.to_owned());
        Reply::Stream(Box::new(move |out| api.stream(out, &path, from, Duration::from_secs(seconds))))
    }

    /// Sends events until it is time to end, or something goes wrong.
    fn stream(&self, out: &mut dyn Write, path: &str, from: u64, time: Duration) -> io::Result<()> {
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        out.flush()?;
        let end = Instant::now() + time;
        let mut state = self.lock();
        let (cut, mut at) = (state.cut.0, state.log.partition_point(|(version, ..)| *version <= from));
        loop {
            if state.cut.0 != cut {
                let fault = state.cut.1.unwrap();
                drop(state);
                return spoil(out, fault, "{}").map(drop);
            }
            let Some((version, of, kind, object)) = state.log.get(at).cloned() else {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    drop(state);
                    return out.write_all(b"0\r\n\r\n");
                }
                state = self.changed.wait_timeout(state, left).unwrap().0;
                continue;
            };
            if of != path && kind != "BOOKMARK" {
                at += 1;
                continue;
            }
            let fault = state.spoil.as_mut().and_then(|spoil| spoil());
            drop(state);
            let event = json!({"type": kind, "object": object}).to_string() + "\n";
            if let Some(fault) = fault {
                if !spoil(out, fault, &event)? {
                    return Ok(());
                }
            } else {
                chunk(out, event.as_bytes())?;
                at += 1;
            }
            out.flush()?;
            state = self.lock();
            state.sent.insert(path.to_owned(), version);
        }
    }
}

/// Writes a fault: whether the stream goes on.
fn spoil(out: &mut dyn Write, fault: Fault, event: &str) -> io::Result<bool> {
    match fault {
        Fault::End => out.write_all(b"0\r\n\r\n")?,
        Fault::Break => {}
        Fault::Half => chunk(out, &event.as_bytes()[..event.len() / 2])?,
        Fault::Garbage => {
            chunk(out, b"{\"type\": \"ADDED\", \"object\": [\n")?;
            return Ok(true);
        }
        Fault::Nameless => {
            chunk(out, b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"resourceVersion\":\"999999\"}}}\n")?;
        }
        Fault::Gone => chunk(out, b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"message\":\"too old resource version\",\"reason\":\"Expired\"}}\n")?,
        Fault::Error => chunk(out, b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":500,\"message\":\"etcd event received with PrevKv=nil\"}}\n")?,
    }
    out.flush()?;
    Ok(false)
}

fn chunk(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")
}

fn gone() -> Reply {
    Reply::json(
        "410 Gone",
        r#"{"kind":"Status","message":"too old resource version","reason":"Expired","code":410}"#,
    )
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}
