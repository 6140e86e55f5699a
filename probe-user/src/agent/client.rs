//! A trace by way of an agent: what it prints is printed, and ends as it ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::time::{Instant, timeout};

use super::proto::{Answer, End, Ports, STOP, StopAnswer, StopRequest, TRACE, TraceAnswer, TraceRequest};
use crate::attach::PortRange;
use crate::cli::{Outcome, Output};
use crate::grpc::client::{Answers, Client};
use crate::trace::Ask;
use crate::trace::listener::{Paper as _, Terminal};
use crate::trace::session::Stop;

/// Where an agent's socket is.
pub const SOCKET: &str = "/run/plsprobe/agent.sock";
/// How long an agent may take to accept.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to sum up what it was told to end.
const SUM_UP: Duration = Duration::from_secs(5);

/// What is asked of an agent.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of packets; agents compile no expressions.
    pub ask: Ask,
    /// When to end.
    pub duration: Duration,
    /// After how many flows to end.
    pub count: Option<u64>,
    /// What is kept of so long ago, instead of what comes.
    pub since: Option<Duration>,
    /// How to print.
    pub output: Output,
}

/// A connection to the agent whose socket is at `path`; `None` where there is none.
///
/// # Errors
///
/// When there is one and it cannot be used.
async fn connect(path: &Path) -> Result<Option<Client>> {
    let shown = path.display();
    match timeout(CONNECT, Client::connect(path)).await {
        Ok(Ok(client)) => Ok(Some(client)),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(error).with_context(|| format!("no agent answers on `{shown}`")),
        Err(_) => bail!("the agent on `{shown}` does not answer within {} s", CONNECT.as_secs()),
    }
}

/// Traces by the agent at `path`; `None` where there is none.
///
/// # Errors
///
/// When there is one that cannot be asked, or what it says went wrong.
pub fn run(path: &Path, options: &Options) -> Result<Option<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the event loop")?.block_on(trace(path, options))
}

async fn trace(path: &Path, options: &Options) -> Result<Option<Outcome>> {
    let mut stop = Stop::new()?;
    let Some(client) = connect(path).await? else { return Ok(None) };
    let id = u64::from(std::process::id()) << 32 | u64::from(now_nanos());
    let request = request(options, id);
    let mut answers = client.call(TRACE, &request).await.map_err(failed)?;
    loop {
        tokio::select! {
            answer = answers.next() => {
                if let Some(outcome) = print(answer.map_err(failed)?)? {
                    return Ok(Some(outcome));
                }
            }
            () = stop.requested() => break,
        }
    }
    let stopping = StopRequest { id };
    let asked = client.ask::<StopAnswer>(STOP, &stopping);
    timeout(SUM_UP, asked).await.context("the agent does not end the trace")?.map_err(failed)?;
    last(&mut answers).await.map(Some)
}

/// What is left after the trace was told to end.
async fn last(answers: &mut Answers<TraceAnswer>) -> Result<Outcome> {
    let until = Instant::now() + SUM_UP;
    loop {
        let next = tokio::time::timeout_at(until, answers.next()).await;
        if let Some(outcome) = print(next.context("the agent does not sum up")?.map_err(failed)?)? {
            return Ok(outcome);
        }
    }
}

fn now_nanos() -> u32 {
    crate::sys::monotonic().subsec_nanos()
}

fn failed(failure: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the agent failed: {failure}")
}

fn request(options: &Options, id: u64) -> TraceRequest {
    let Options { ask, duration, count, since, output } = options;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let range = |range: &PortRange| Ports {
        protocol: range.protocol.into(),
        first: range.first.into(),
        last: range.last.into(),
    };
    TraceRequest {
        dst: ask.dst.clone(),
        src: ask.src.clone(),
        ports: ask.ports.iter().map(range).collect(),
        duration_ms: millis(*duration),
        count: count.unwrap_or_default(),
        json: *output == Output::Json,
        since_ms: since.map(millis).unwrap_or_default(),
        id,
    }
}

/// Prints an answer; how it ended, if it is the last.
fn print(answer: Option<TraceAnswer>) -> Result<Option<Outcome>> {
    let Some(answer) = answer else { bail!("the agent ended the trace without a word; see its log") };
    match answer.answer {
        Some(Answer::Out(lines)) => Terminal.data(&lines)?,
        Some(Answer::Notice(text)) => Terminal.notice(&text),
        Some(Answer::End(end)) => return ended(end).map(Some),
        None => Terminal.notice("the agent said something that this plsprobe does not know; it is newer"),
    }
    Ok(None)
}

fn ended(End { exit, error }: End) -> Result<Outcome> {
    Outcome::of_code(exit).ok_or_else(|| anyhow!(error))
}
