//! A trace that a client asked for: what it asks, and the line that its answers go by.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::sleep;

use super::proto::{Answer, End, TraceAnswer, TraceRequest};
use crate::attach::PortRange;
use crate::cli::Output;
use crate::trace::Ask;
use crate::trace::listener::Paper;

/// Answers that wait for one client.
const WAITING_MAX: usize = 256;
/// Bytes of answers that wait for all clients together.
pub(super) const WAITING_BYTES: usize = 4 << 20;
/// How long to wait for room before looking again.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest name of a TARGET or SRC: a Kubernetes name has 253 characters, and there may be two.
const NAME_MAX: usize = 512;
/// The most SRCs, and the most ranges of ports.
const LIST_MAX: usize = 256;
/// The longest trace.
const DURATION_MAX: Duration = Duration::from_hours(24);

/// What a client asks, checked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) duration: Duration,
    pub(super) count: Option<u64>,
    pub(super) output: Output,
    /// What is kept of so long ago, instead of what comes.
    pub(super) since: Option<Duration>,
    /// The client's own number of it.
    pub(super) id: u64,
}

impl TryFrom<TraceRequest> for Request {
    type Error = anyhow::Error;

    fn try_from(request: TraceRequest) -> Result<Self> {
        let TraceRequest { dst, src, ports, duration_ms, count, json, since_ms, id } = request;
        ensure!(!dst.is_empty(), "found no target, expected one");
        for name in src.iter().chain([&dst]) {
            let length = name.len();
            ensure!(length <= NAME_MAX, "found a name of {length} bytes, expected at most {NAME_MAX}");
        }
        let longest = src.len().max(ports.len());
        ensure!(
            longest <= LIST_MAX,
            "found {longest} sources or ranges of ports, expected at most {LIST_MAX}"
        );
        let duration = Duration::from_millis(duration_ms);
        ensure!(
            duration <= DURATION_MAX,
            "found a duration of {duration:?}, expected at most {DURATION_MAX:?}"
        );
        let ports = ports.into_iter().map(|range| {
            let port = |number: u32| u16::try_from(number).ok();
            let range = u8::try_from(range.protocol).ok().zip(port(range.first)).zip(port(range.last));
            range.map(|((protocol, first), last)| PortRange { protocol, first, last })
        });
        let Some(ports) = ports.collect::<Option<Vec<_>>>() else {
            anyhow::bail!("found a port or protocol that is none")
        };
        Ok(Self {
            ask: Ask { dst, src, ports, expression: None },
            duration,
            count: Some(count).filter(|count| *count > 0),
            output: if json { Output::Json } else { Output::Text },
            since: Some(since_ms).filter(|since| *since > 0).map(Duration::from_millis),
            id,
        })
    }
}

/// A message on its way to a client, that counts until it is gone.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) message: TraceAnswer,
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where answers go. Nobody waits for a client that does not read: what finds no room is counted, and it is told.
#[derive(Clone, Debug)]
pub(super) struct Line {
    sender: mpsc::Sender<Parcel>,
    /// Bytes that wait, of all lines.
    waiting: Arc<AtomicUsize>,
    /// Blocks of lines that this one's client has not got.
    lost: u64,
}

/// Where a client's answers come out.
pub(super) type Answers = mpsc::Receiver<Parcel>;

impl Line {
    /// A line, whose bytes are counted with those of all others.
    pub(super) fn new(waiting: &Arc<AtomicUsize>) -> (Self, Answers) {
        let (sender, answers) = mpsc::channel(WAITING_MAX);
        (Self { sender, waiting: Arc::clone(waiting), lost: 0 }, answers)
    }

    /// Sends the last word, after all else: waits for room, a while, and holds nobody up.
    pub(super) fn end(self, exit: i32, error: String) {
        let parcel = self.parcel(Answer::End(End { exit, error }));
        let sender = self.sender;
        // An agent that ends does not come to what it has yet to do.
        let parcel = match sender.try_send(parcel) {
            Err(TrySendError::Full(parcel)) => parcel,
            Ok(()) | Err(TrySendError::Closed(_)) => return,
        };
        // A client that has not read for so long has gone, or will see that there is no end.
        tokio::spawn(tokio::time::timeout(Duration::from_secs(10), async move { sender.send(parcel).await }));
    }

    /// Sends lines of data once there is room; whether somebody reads them. Not for the engine, which waits for nobody.
    pub(super) async fn data_waiting(&self, lines: Vec<u8>) -> bool {
        // What is told live comes first: of the common room it takes no more than half.
        while self.waiting.load(Ordering::Relaxed) > WAITING_BYTES / 2 && !self.sender.is_closed() {
            sleep(PAUSE).await;
        }
        self.sender.send(self.parcel(Answer::Out(lines))).await.is_ok()
    }

    fn send(&mut self, answer: Answer) {
        if self.lost > 0 && !matches!(answer, Answer::Notice(_)) {
            let lost = self.lost;
            let told = format!("{lost} answers before this one were not sent: they were not read in time");
            if self.try_send(Answer::Notice(told)) {
                self.lost = 0;
            }
        }
        if !self.try_send(answer) {
            self.lost += 1;
        }
    }

    /// Whether there was room.
    fn try_send(&self, answer: Answer) -> bool {
        let parcel = self.parcel(answer);
        self.waiting.load(Ordering::Relaxed) <= WAITING_BYTES && self.sender.try_send(parcel).is_ok()
    }

    fn parcel(&self, answer: Answer) -> Parcel {
        let message = TraceAnswer { answer: Some(answer) };
        let bytes = message.encoded_len();
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        Parcel { message, bytes, waiting: Arc::clone(&self.waiting) }
    }
}

impl Paper for Line {
    fn data(&mut self, lines: &[u8]) -> Result<()> {
        self.send(Answer::Out(lines.to_vec()));
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        self.send(Answer::Notice(text.to_owned()));
    }

    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(parcel: &Parcel) -> Answer {
        parcel.message.answer.clone().unwrap()
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_nobody_up_and_is_told() {
        let waiting = Arc::default();
        let (mut line, mut answers) = Line::new(&waiting);
        for _ in 0..WAITING_MAX + 10 {
            line.data(b"a flow\n").unwrap();
        }
        for _ in 0..WAITING_MAX {
            assert_eq!(decoded(&answers.recv().await.unwrap()), Answer::Out(b"a flow\n".to_vec()));
        }
        assert!(answers.try_recv().is_err());
        line.data(b"the next\n").unwrap();
        let Answer::Notice(told) = decoded(&answers.recv().await.unwrap()) else { panic!("not told") };
        assert_eq!(told, "10 answers before this one were not sent: they were not read in time");
        assert_eq!(decoded(&answers.recv().await.unwrap()), Answer::Out(b"the next\n".to_vec()));
        line.end(0, String::new());
        assert!(matches!(decoded(&answers.recv().await.unwrap()), Answer::End(_)));
        assert!(answers.recv().await.is_none());
        assert_eq!(waiting.load(Ordering::Relaxed), 0, "nothing is left that counts");
    }

    /// What is remembered may be more than a client reads at once, and all of it comes.
    #[tokio::test]
    async fn who_waits_for_room_loses_nothing() {
        let waiting = Arc::default();
        let (line, mut answers) = Line::new(&waiting);
        let block = vec![b'x'; 16 << 10];
        let telling = tokio::spawn(async move {
            for _ in 0..4 * WAITING_MAX {
                assert!(line.data_waiting(block.clone()).await);
            }
        });
        let mut told = 0;
        while answers.recv().await.is_some() {
            assert!(waiting.load(Ordering::Relaxed) <= WAITING_BYTES);
            told += 1;
        }
        telling.await.unwrap();
        assert_eq!(told, 4 * WAITING_MAX);
        let (line, answers) = Line::new(&waiting);
        drop(answers);
        assert!(!line.data_waiting(Vec::new()).await, "nobody reads");
    }

    /// However many clients do not read, together they hold so much and no more.
    #[test]
    fn all_lines_together_are_bounded() {
        let waiting = Arc::default();
        let block = vec![b'x'; 64 << 10];
        let mut lines: Vec<_> = (0..64).map(|_| Line::new(&waiting)).collect();
        for _ in 0..64 {
            for (line, _) in &mut lines {
                line.data(&block).unwrap();
            }
        }
        let held = waiting.load(Ordering::Relaxed);
        assert!(held <= WAITING_BYTES + block.len() + 16, "{held}");
        assert!(lines.iter().all(|(line, _)| line.lost > 0 && !line.is_gone()));
        drop(lines.pop().unwrap().1);
        assert!(waiting.load(Ordering::Relaxed) <= held);
    }

    #[test]
    fn what_is_no_request() {
        let request = |change: &dyn Fn(&mut TraceRequest)| {
            let mut request = TraceRequest { dst: "pls-app".to_owned(), ..TraceRequest::default() };
            change(&mut request);
            Request::try_from(request).map(|request| request.ask.dst).map_err(|error| error.to_string())
        };
        let range = |protocol, first, last| super::super::proto::Ports { protocol, first, last };
        assert_eq!(request(&|_| ()).unwrap(), "pls-app");
        assert!(request(&|one| one.dst.clear()).unwrap_err().contains("no target"));
        assert!(request(&|one| one.src = vec!["x".repeat(513)]).unwrap_err().contains("513 bytes"));
        assert!(request(&|one| one.src = vec![String::new(); 257]).unwrap_err().contains("257 sources"));
        assert!(request(&|one| one.duration_ms = u64::MAX).unwrap_err().contains("duration"));
        assert!(request(&|one| one.ports = vec![range(6, 1, 65_536)]).unwrap_err().contains("port"));
        assert!(request(&|one| one.ports = vec![range(256, 1, 2)]).unwrap_err().contains("protocol"));
    }
}
