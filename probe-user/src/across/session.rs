//! One node's agent: reached through the API server, asked for its clock, and for a trace of each of its targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsConnector;

use super::clock::Reading;
use crate::agent::proto::{
    Answer, End, NOW, NowAnswer, NowRequest, STOP, StopAnswer, StopRequest, TRACE, TraceAnswer, TraceRequest,
};
use crate::grpc::client::{Client, Failure};
use crate::sources::http::tls;
use crate::sources::kubernetes::access::Access;
use crate::sources::kubernetes::forward::{PodPort, forward};

/// How long an agent may take to be reached.
const REACH_MAX: Duration = Duration::from_secs(20);
/// Times that a clock is asked in a row: the best of them counts.
const ASKS: usize = 8;
/// How long one of them may take.
const NOW_MAX: Duration = Duration::from_secs(5);
/// How often it is asked again while a trace runs.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// An agent that has taken a trace and said nothing for so long is taken to be running.
const SILENT_START: Duration = Duration::from_secs(2);
/// gRPC's number for a method that is not there.
const UNIMPLEMENTED: u8 = 12;

/// Who is asked what.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The agent's port.
    pub(super) to: PodPort,
    /// A trace each.
    pub(super) traces: Vec<TraceRequest>,
}

/// How agents are reached.
#[derive(Clone)]
pub(super) struct Way {
    /// The API server.
    pub(super) access: Access,
    /// Whom to trust, and who we are.
    pub(super) tls: Arc<ClientConfig>,
    /// The name in the agents' certificates.
    pub(super) name: ServerName<'static>,
    /// When our clock began.
    pub(super) epoch: Instant,
    /// Whether traces are to end and be summed up.
    pub(super) stop: watch::Receiver<bool>,
}

/// What comes of an agent.
#[derive(Debug)]
pub(super) enum Event {
    /// It was asked what time it is.
    Clock(Vec<Reading>),
    /// Every trace of it runs.
    Running,
    /// A line beside its answer.
    Notice(String),
    /// Whole lines of its answer.
    Lines(Vec<u8>),
    /// No more comes, or why that is.
    Ended(Result<()>),
}

/// Events of all agents, each with its node's place in the plan. Its room is what holds agents back that say more than we
/// can take.
pub(super) type Events = mpsc::Sender<(usize, Event)>;

/// Asks the agent of a node until its traces have ended. Whoever does not listen any more ends them.
pub(super) async fn run(node: usize, mut way: Way, asked: Asked, events: Events) {
    let ended = converse(node, &mut way, &asked, &events).await;
    // An error means that nobody listens any more.
    let _ = events.send((node, Event::Ended(ended))).await;
}

async fn converse(node: usize, way: &mut Way, asked: &Asked, events: &Events) -> Result<()> {
    let client = timeout(REACH_MAX, reach(way, &asked.to)).await;
    let client = client.unwrap_or_else(|_| bail!("no agent answers within {REACH_MAX:?}"))?;
    events.send((node, Event::Clock(readings(&client, way.epoch).await?))).await?;
    let mut traces = JoinSet::new();
    let (started, mut starts) = mpsc::channel(asked.traces.len().max(1));
    for request in &asked.traces {
        traces.spawn(trace(node, client.clone(), request.clone(), started.clone(), events.clone()));
    }
    drop(started);
    let (mut missing, mut stopped) = (asked.traces.len(), false);
    let mut again = interval(ASK_EVERY);
    again.reset();
    loop {
        tokio::select! {
            Some(()) = starts.recv() => {
                missing -= 1;
                if missing == 0 {
                    events.send((node, Event::Running)).await?;
                }
            }
            ended = traces.join_next() => match ended {
                Some(ended) => ended.context("a trace broke")??,
                None => break,
            },
            true = is_told(&mut way.stop), if !stopped => {
                stopped = true;
                for request in &asked.traces {
                    let stopping = StopRequest { id: request.id };
                    // One that cannot be told ends with the connection.
                    let _ = timeout(NOW_MAX, client.ask::<StopAnswer>(STOP, &stopping)).await;
                }
            }
            _ = again.tick() => {
                events.send((node, Event::Clock(readings(&client, way.epoch).await?))).await?;
            }
        }
    }
    // The flows of the end lie between two readings too. That one fails costs nothing.
    if let Ok(readings) = readings(&client, way.epoch).await {
        events.send((node, Event::Clock(readings))).await?;
    }
    Ok(())
}

/// Waits until traces are to end; `false` if nobody can say so any more.
async fn is_told(stop: &mut watch::Receiver<bool>) -> bool {
    stop.wait_for(|stop| *stop).await.is_ok()
}

async fn reach(way: &Way, to: &PodPort) -> Result<Client> {
    let stream = forward(&way.access, to).await?;
    let secured = TlsConnector::from(way.tls.clone()).connect(way.name.clone(), stream).await;
    let secured = secured.map_err(|error| {
        let error = anyhow::Error::from(error);
        match tls::cause(&error) {
            Some(tls) => anyhow!("{to}: {}", tls::explained(tls)),
            None => error,
        }
    })?;
    Client::over(secured).await.with_context(|| format!("{to}: failed to speak gRPC"))
}

/// What an agent's refusal means.
fn explained(failure: &Failure, method: &str) -> anyhow::Error {
    match failure.code {
        Some(UNIMPLEMENTED) => {
            anyhow!("the agent does not know {method}: it is of another version than this plsprobe")
        }
        Some(code) => anyhow!("{} (gRPC status {code})", failure.words),
        None => anyhow!("the connection to the agent broke: {}", failure.words),
    }
}

/// The agent's clock, several times in a row.
async fn readings(client: &Client, epoch: Instant) -> Result<Vec<Reading>> {
    let mut readings = Vec::with_capacity(ASKS);
    for _ in 0..ASKS {
        let asked_ns = epoch.elapsed().as_nanos() as u64;
        let now = timeout(NOW_MAX, client.ask::<NowAnswer>(NOW, &NowRequest {})).await;
        let now = now.map_err(|_| anyhow!("the agent does not say its time within {NOW_MAX:?}"))?;
        let now = now.map_err(|failure| explained(&failure, NOW))?;
        let answered_ns = epoch.elapsed().as_nanos() as u64;
        readings.push(Reading { asked_ns, answered_ns, theirs_ns: now.monotonic_ns });
    }
    Ok(readings)
}

/// One trace, to its end.
async fn trace(
    node: usize,
    client: Client,
    request: TraceRequest,
    started: mpsc::Sender<()>,
    events: Events,
) -> Result<()> {
    let broke = |failure: Failure| explained(&failure, TRACE);
    let mut answers = client.call::<TraceAnswer>(TRACE, &request).await.map_err(broke)?;
    let mut started = Some(started);
    loop {
        let wait = if started.is_some() { SILENT_START } else { Duration::MAX };
        let Ok(answer) = timeout(wait, answers.next()).await else {
            start(&mut started).await;
            continue;
        };
        let answer = answer.map_err(broke)?;
        let Some(TraceAnswer { answer }) = answer else {
            bail!("the agent ended the trace without a word: it was stopped, or restarts");
        };
        match answer {
            Some(Answer::Out(lines)) => {
                start(&mut started).await;
                events.send((node, Event::Lines(lines))).await?;
            }
            Some(Answer::Notice(text)) => {
                start(&mut started).await;
                events.send((node, Event::Notice(text))).await?;
            }
            Some(Answer::End(End { exit: 2, error })) => bail!("{error}"),
            Some(Answer::End(_)) => {
                start(&mut started).await;
                return Ok(());
            }
            // What a newer agent says besides.
            None => {}
        }
    }
}

/// Says once that a trace runs.
async fn start(started: &mut Option<mpsc::Sender<()>>) {
    if let Some(started) = started.take() {
        // An error means that nobody counts any more.
        let _ = started.send(()).await;
    }
}
