//! Those who come to the agent's socket: sessions that end in every way, and some who do not speak its language.
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use probe_lab::plsprobe_agent::Door;
use probe_lab::tracing::Trace;

/// Sessions at a time.
const SESSIONS: usize = 6;
/// Open connections of those who do not speak its language.
const STRANGERS: usize = 8;
/// From one who comes to the next.
const COME_EVERY: Duration = Duration::from_millis(200);

/// What sessions ask.
const ASKS: [&str; 7] = [
    "--dst pls-app --duration 3s",
    "--dst pls-app -o json --count 20 --duration 20s",
    "--dst my-nginx --duration 4s",
    "--dst pls-app --src 10.224.0.9 --port 80 -o json --duration 2s",
    "--dst pls-app --since 20s",
    "--dst my-nginx --since 5m -o json",
    "--dst nobody",
];

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    ByItself,
    Interrupted,
    Killed,
    /// Reads nothing for a while, and is killed then.
    Stuck,
}

impl End {
    const ALL: [Self; 4] = [Self::ByItself, Self::Interrupted, Self::Killed, Self::Stuck];
}

/// Who came, and how it went.
#[derive(Debug, Default)]
pub(crate) struct Visitors {
    ends: BTreeMap<End, usize>,
    strangers: usize,
    codes: BTreeMap<Option<i32>, usize>,
    /// What was said of exit code 2.
    errors: BTreeMap<String, usize>,
}

struct Session {
    trace: Trace,
    end: End,
    until: Instant,
}

/// Comes and goes until it is over.
pub(crate) fn visit(door: &Door, is_over: &AtomicBool) -> Visitors {
    let mut random = fastrand::Rng::with_seed(6);
    let mut visitors = Visitors::default();
    let (mut sessions, mut strangers) = (Vec::new(), Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(COME_EVERY);
        if sessions.len() < SESSIONS {
            sessions.push(come(door, &mut random));
        }
        strangers.truncate(STRANGERS);
        strangers.insert(0, stranger(door, &mut random));
        visitors.strangers += 1;
        for session in sessions.extract_if(.., Session::is_due) {
            visitors.take_leave(session);
        }
    }
    for session in sessions {
        visitors.take_leave(session);
    }
    visitors
}

fn come(door: &Door, random: &mut fastrand::Rng) -> Session {
    let trace = door.trace(ASKS[random.usize(..ASKS.len())]);
    let end = End::ALL[random.usize(..End::ALL.len())];
    let until = Instant::now() + Duration::from_millis(random.u64(50..3000));
    Session { trace, end, until }
}

/// Says something that is no request, or nothing.
fn stranger(door: &Door, random: &mut fastrand::Rng) -> Option<UnixStream> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut stream = UnixStream::connect(door.socket()).expect("the agent accepts");
    let length = random.usize(1..20_000);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
    let said = match random.u8(..5) {
        0 => noise,
        1 => [PREFACE, &noise].concat(),
        2 => PREFACE.to_vec(),
        3 => b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n".to_vec(),
        _ => Vec::new(),
    };
    stream.set_nonblocking(true).expect("a socket");
    // The agent may have closed it by then, or not read it all.
    drop(stream.write(&said));
    random.bool().then_some(stream)
}

impl Session {
    fn is_due(&mut self) -> bool {
        match self.end {
            End::ByItself => self.trace.has_ended(),
            End::Stuck if Instant::now() < self.until => {
                self.trace.signal_if_alive("STOP");
                false
            }
            End::Interrupted | End::Killed | End::Stuck => Instant::now() >= self.until,
        }
    }
}

impl Visitors {
    fn take_leave(&mut self, session: Session) {
        let Session { mut trace, end, .. } = session;
        *self.ends.entry(end).or_default() += 1;
        match end {
            End::Killed | End::Stuck => return drop(trace),
            End::Interrupted | End::ByItself => trace.signal_if_alive("INT"),
        }
        let traced = trace.finish();
        *self.codes.entry(traced.code).or_default() += 1;
        if traced.code == Some(2) {
            let error = traced.stderr.lines().last().unwrap_or_default().to_owned();
            *self.errors.entry(error).or_default() += 1;
        }
    }

    /// Everyone who did not break off got an answer, and the one who asked for nobody a reason.
    pub(crate) fn check(&self) {
        // `None`: a signal before it handles them.
        let answers = [Some(0), Some(1), Some(2), Some(3), Some(130), None];
        assert!(self.codes.keys().all(|code| answers.contains(code)), "{self}");
        // Pods have no names while Cilium's agent is not there to tell.
        let is_known = |error: &String| {
            error.contains("unknown target `nobody`") || error.contains("pods on this node: endpoint ")
        };
        assert!(self.errors.keys().all(is_known), "{self}");
    }
}

impl fmt::Display for Visitors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ends, strangers, codes, errors } = self;
        write!(f, "sessions {ends:?}, strangers {strangers}, exit codes {codes:?}, errors {errors:#?}")
    }
}
