//! One list, followed: read, then watched from where it was read, for as long as the server lets us; then on from there.
//!
//! Source for what a server may say: Kubernetes, "Efficient detection of changes"
//! (`kubernetes.io/docs/reference/using-api/api-concepts`).

use std::{
    hash::{BuildHasher as _, RandomState},
    io::{BufRead, ErrorKind, Read},
    time::{Duration, Instant},
};

use serde::de::DeserializeSeed as _;
use serde_json::Value;

use super::{
    Pace, Shared, Trouble, Watched,
    kept::{Refusal, Table},
};
use crate::sources::{
    http::{self, Request, Why, escape, shown},
    kubernetes::{
        list::{self, Failure, Found, Reader, Take},
        resources::Resource,
    },
    pick::Pick,
};

/// Longer lines are not read: etcd takes no object of more than 1.5 MB, of which JSON may be some more.
const MAX_LINE: usize = 4 << 20;
/// A line's buffer is not kept longer than this.
const USUAL_LINE: usize = 64 << 10;
/// For one page of a list.
const PAGE_TIME: Duration = Duration::from_mins(1);
/// A stream that lasted so long was a good one, even if nothing came.
const GOOD: Duration = Duration::from_secs(5);
/// So often in a row may a watch be refused before the list is read anew: the version to go on from may be one that the
/// server has never heard of, as after etcd was restored.
const REFUSALS: u32 = 5;
/// The longest wait that a server is granted.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(5);

/// How one turn ended.
#[derive(Debug)]
enum End {
    /// The list is read.
    Listed,
    /// The server ended the watch, as it does after a while.
    InOrder,
    /// It failed, and is tried again: what was known before is still good to go on from.
    Again {
        why: String,
        retry_after: Option<Duration>,
        /// Whether the server refused it.
        is_refused: bool,
    },
    /// The list must be read anew.
    Anew(String),
    /// It may not be asked, or there is too much of it: tried again after a long while.
    Lasting { why: String, pause: Duration },
}

impl End {
    fn again(why: String) -> Self {
        Self::Again { why, retry_after: None, is_refused: false }
    }
}

/// Follows a list until it is stopped.
pub(super) struct Follower<'a> {
    shared: &'a Shared,
    watched: &'a Watched,
    table: &'a dyn Table,
    resource: &'static Resource,
    pace: Pace,
    /// A query, beside that of pages and watches.
    query: String,
    /// What is kept of an object, and of an event.
    keep: [Pick; 2],
}

impl<'a> Follower<'a> {
    pub(super) fn new(shared: &'a Shared, watched: &'a Watched, table: &'a dyn Table) -> Self {
        let (resource, options) = (watched.resource, &shared.options);
        let of_node = options.node.as_ref().filter(|_| resource.name == super::PODS);
        let query = match of_node {
            Some(node) => format!("fieldSelector=spec.nodeName%3D{}", escape(node)),
            None => resource.query.to_owned(),
        };
        let keep = format!("metadata{{name namespace}} {}", resource.keep);
        let event = format!("type object{{code reason message metadata{{resourceVersion}} {keep}}}");
        let keep = [Pick::new(&keep), Pick::new(&event)];
        Self { shared, watched, table, resource, pace: options.pace, query, keep }
    }

    /// Returns when it is stopped.
    pub(super) fn run(&self) {
        let (mut found, mut failures) = (None, 0_u32);
        loop {
            let begun = Instant::now();
            let end = match &mut found {
                None => self.list(&mut found),
                Some(found) => {
                    let (end, has_come) = self.watch(found);
                    if has_come || begun.elapsed() >= GOOD {
                        failures = 0;
                    }
                    end
                }
            };
            self.watched.stopper.release();
            let pause = self.after(end, &mut found, &mut failures);
            if self.watched.stopper.pause(pause) {
                return;
            }
        }
    }

    /// What follows: how long to wait. A failure that has none before it costs no wait, unless it is the server's.
    fn after(&self, end: End, found: &mut Option<Found>, failures: &mut u32) -> Duration {
        match end {
            End::Listed if found.is_some() => Duration::ZERO,
            End::Listed => {
                *failures = 0;
                jittered(self.pace.anew)
            }
            End::InOrder if *failures == 0 => {
                *failures = 1;
                Duration::ZERO
            }
            End::InOrder => self.backoff(failures),
            End::Again { why, retry_after, is_refused } => {
                self.fail(why, false);
                if is_refused && *failures >= REFUSALS {
                    *found = None;
                }
                let asked = retry_after.map(|asked| jittered(asked.min(LONGEST_RETRY_AFTER) * 2));
                self.backoff(failures).max(asked.unwrap_or_default())
            }
            End::Anew(why) => {
                self.fail(why, false);
                *found = None;
                if *failures == 0 {
                    *failures = 1;
                    return Duration::ZERO;
                }
                self.backoff(failures)
            }
            End::Lasting { why, pause } => {
                self.fail(why, true);
                *found = None;
                jittered(pause)
            }
        }
    }

    /// The next wait of a row, twice as long as the one before up to a limit.
    fn backoff(&self, failures: &mut u32) -> Duration {
        let wait = self.pace.first.saturating_mul(2_u32.saturating_pow((*failures).min(16)));
        *failures += 1;
        jittered(wait.min(self.pace.longest))
    }

    fn fail(&self, why: String, is_lasting: bool) {
        if self.watched.set_trouble(Some(Trouble { why, is_lasting })) {
            self.shared.change();
        }
    }

    fn recover(&self) {
        if self.watched.set_trouble(None) {
            self.shared.change();
        }
    }

    fn list(&self, found: &mut Option<Found>) -> End {
        let fetch = |request: &Request| {
            let stream =
                self.shared.access.client.follow(request, Instant::now() + PAGE_TIME, &self.watched.stopper);
            stream.map(|stream| Box::new(stream) as Box<dyn Read>)
        };
        let (access, resource) = (&self.shared.access, self.resource);
        let reader = Reader { access, resource, query: &self.query, keep: &self.keep[0], fetch: &fetch };
        let read = match reader.read(&mut Incoming(self.table)) {
            Ok(read) => read,
            Err(Failure::Http(error)) => return self.by_error(error, resource.right),
            Err(Failure::Answer(why)) => return End::again(why),
            Err(Failure::TooMuch(why)) => return self.give_up(&why),
        };
        self.watched.hear();
        if self.table.end() {
            self.shared.change();
        }
        match read {
            _ if !resource.is_watched => self.recover(),
            // It may be installed some day.
            None => self.recover(),
            Some(read) if read.version.is_empty() => {
                let why = format!(
                    "`{}`: found no `resourceVersion` in the list, from which to watch it",
                    read.path
                );
                return End::Lasting { why, pause: self.pace.anew };
            }
            Some(read) => *found = Some(read),
        }
        End::Listed
    }

    fn watch(&self, found: &mut Found) -> (End, bool) {
        let time = jittered(self.pace.watch * 2);
        let query = if self.query.is_empty() { String::new() } else { format!("&{}", self.query) };
        let request = self.shared.access.request(format!(
            "{}?watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}{query}",
            found.path,
            escape(&found.version),
            time.as_secs().max(1)
        ));
        let request = match request {
            Ok(request) => request,
            Err(error) => return (End::again(format!("{error:#}")), false),
        };
        let deadline = Instant::now() + time + self.pace.margin;
        let mut stream = match self.shared.access.client.follow(&request, deadline, &self.watched.stopper) {
            Ok(stream) => stream,
            Err(error) if error.status() == Some(404) => {
                return (End::Anew(format!("{error}; it was there when it was read")), false);
            }
            Err(error) => {
                return (self.by_error(error, &self.resource.right.replacen("list", "watch", 1)), false);
            }
        };
        self.watched.hear();
        self.recover();
        let (mut line, mut has_come) = (Vec::new(), false);
        loop {
            let event = match read_line(&mut stream, &mut line) {
                Ok(true) => self.event(&line, found),
                Ok(false) => return (End::InOrder, has_come),
                Err(end) => return (end.told(found.path), has_come),
            };
            if let Err(end) = event {
                return (end, has_come);
            }
            has_come = true;
            self.watched.hear();
        }
    }

    /// Does what an event says.
    fn event(&self, line: &[u8], found: &mut Found) -> Result<(), End> {
        let path = found.path;
        let anew = |why: String| End::Anew(format!("`{path}`: {why}; the list is read anew"));
        let mut json = serde_json::Deserializer::from_slice(line);
        let event = self.keep[1].deserialize(&mut json).and_then(|event| json.end().map(|()| event));
        let event = event.map_err(|error| anew(format!("an event is no JSON: {error}")))?;
        let Some(Value::Object(mut event)) = event else {
            return Err(anew("an event is no object".to_owned()));
        };
        let mut object = event.remove("object").unwrap_or_default();
        let version = object.pointer_mut("/metadata").and_then(Value::as_object_mut);
        let version = version.and_then(|metadata| metadata.remove("resourceVersion"));
        let refused = |refusal| match refusal {
            Refusal::Nameless => anew("an event's object has no name".to_owned()),
            Refusal::TooMuch(why) => self.give_up(&format!("`{path}`: {why}")),
        };
        let is_other = match event.get("type").and_then(Value::as_str) {
            Some("ADDED" | "MODIFIED") => self.table.put(object).map_err(refused)?,
            Some("DELETED") => self.table.remove(&object).map_err(refused)?,
            Some("BOOKMARK") => false,
            Some("ERROR") => {
                let text = |field: &str| shown(object[field].as_str().unwrap_or_default());
                return Err(anew(format!("status {}: {}", object["code"], text("message"))));
            }
            other => return Err(anew(format!("an event's type is `{}`", shown(other.unwrap_or_default())))),
        };
        if let Some(Value::String(version)) = version.filter(|version| *version != "") {
            found.version = version;
        }
        if is_other {
            self.shared.change();
        }
        Ok(())
    }

    /// Nothing is known of what is known in part.
    fn give_up(&self, why: &str) -> End {
        self.table.forget();
        self.shared.change();
        End::Lasting { why: format!("{why}: too much to keep"), pause: self.pace.given_up }
    }

    fn by_error(&self, mut error: http::Error, right: &str) -> End {
        let status = error.status();
        let mut asked_to_wait = None;
        if let Why::Status { retry_after, .. } = &mut error.why {
            asked_to_wait = retry_after.take();
        } else {
            // Nothing of the list is to blame.
            error.asked = self.shared.access.client.base.to_string();
        }
        let why = format!("{error}{}", list::advice(status, self.resource, right));
        match status {
            Some(403 | 404) => End::Lasting { why, pause: self.pace.denied },
            Some(410) => End::Anew(why),
            _ => End::Again {
                why,
                retry_after: asked_to_wait,
                is_refused: status.is_some_and(|status| status != 401),
            },
        }
    }
}

/// Gives the objects of a list to a table.
struct Incoming<'a>(&'a dyn Table);

impl Take for Incoming<'_> {
    fn begin(&mut self) {
        self.0.begin();
    }

    fn object(&mut self, object: Value) -> Result<(), Failure> {
        self.0.list(object).map_err(|refusal| match refusal {
            Refusal::Nameless => Failure::Answer("an object of the list has no name".to_owned()),
            Refusal::TooMuch(why) => Failure::TooMuch(why),
        })
    }
}

/// Why there is no line.
enum NoLine {
    /// The stream broke.
    Broken(String),
    /// It is longer than a line may be.
    TooLong,
}

impl NoLine {
    fn told(self, path: &str) -> End {
        match self {
            Self::Broken(why) => End::again(format!("`{path}`: the watch broke: {why}")),
            Self::TooLong => End::Anew(format!(
                "`{path}`: an event is longer than {MAX_LINE} bytes; the list is read anew"
            )),
        }
    }
}

/// Reads a line, without its end: whether there was one.
fn read_line(stream: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, NoLine> {
    line.clear();
    line.shrink_to(USUAL_LINE);
    loop {
        let found = stream.fill_buf().map_err(|error| match error.kind() {
            // A socket's own time-outs say `WouldBlock`.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                NoLine::Broken("nothing came, nor did its end when it was due".to_owned())
            }
            _ => NoLine::Broken(error.to_string()),
        })?;
        if found.is_empty() {
            let is_half = !line.is_empty();
            return if is_half {
                Err(NoLine::Broken("it ends inside an event".to_owned()))
            } else {
                Ok(false)
            };
        }
        let end = found.iter().position(|byte| *byte == b'\n');
        let part = &found[..end.unwrap_or(found.len())];
        if line.len() + part.len() > MAX_LINE {
            return Err(NoLine::TooLong);
        }
        line.extend_from_slice(part);
        let count = end.map_or(found.len(), |end| end + 1);
        stream.consume(count);
        // An empty line is none: they keep a connection alive.
        if end.is_some() && !line.is_empty() {
            return Ok(true);
        }
    }
}

/// Somewhere from half of it to all: so that not all nodes of a cluster come back at once.
fn jittered(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) as u32;
    time / 2 + time.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}
