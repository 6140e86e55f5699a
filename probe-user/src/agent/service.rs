//! `plsprobe.v1.Agent`: what the command line asks an agent.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::clock::Moment;
use super::keeper::Command;
use super::proto::{NowAnswer, NowRequest, StopAnswer, StopRequest, TraceRequest};
use super::session::{Line, Request};
use crate::grpc::server::{Answering, Sender, Service};
use crate::grpc::{Code, Status};

/// The service's full name.
pub(super) const NAME: &str = "plsprobe.v1.Agent";

/// How long an agent that ends waits for clients to read how their traces ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it looks.
const TURN: Duration = Duration::from_millis(10);

/// Passes on to the keeper what is asked, and its answers back.
pub(super) struct Agent {
    commands: mpsc::Sender<Command>,
    /// Bytes that wait for all clients.
    waiting: Arc<AtomicUsize>,
    /// Held by each trace that is open.
    open: Arc<()>,
    node: String,
}

impl Agent {
    pub(super) fn new(commands: mpsc::Sender<Command>, node: String) -> Self {
        Self { commands, waiting: Arc::default(), open: Arc::default(), node }
    }

    /// Waits until every trace has had its last word, but not for long.
    pub(super) async fn last_words(&self) {
        let until = Instant::now() + LAST_WORDS;
        while Arc::strong_count(&self.open) > 1 && Instant::now() < until {
            sleep(TURN).await;
        }
        // What the last one was told is on its way by then.
        sleep(TURN).await;
    }

    async fn trace(&self, request: Bytes, sender: &mut Sender) -> Result<(), Status> {
        let request: TraceRequest = decoded(request)?;
        let request = Request::try_from(request).map_err(|error| Status::invalid(format!("{error:#}")))?;
        let _open = Arc::clone(&self.open);
        let (line, mut answers) = Line::new(&self.waiting);
        self.command(Command::Open(request, line)).await?;
        while let Some(parcel) = answers.recv().await {
            sender.send(&parcel.message).await?;
        }
        Ok(())
    }

    async fn command(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|_| Status::new(Code::Unavailable, "the agent is stopping"))
    }

    fn now(&self) -> NowAnswer {
        let Moment { monotonic_ns, unix_ns } = Moment::now();
        NowAnswer { monotonic_ns, unix_ns, node: self.node.clone() }
    }
}

fn decoded<M: Message + Default>(request: Bytes) -> Result<M, Status> {
    M::decode(request).map_err(|error| Status::invalid(error.to_string()))
}

impl Service for Agent {
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            match method {
                "Trace" => self.trace(request, sender).await,
                "Now" => {
                    let NowRequest {} = decoded(request)?;
                    sender.send(&self.now()).await
                }
                "Stop" => {
                    let StopRequest { id } = decoded(request)?;
                    self.command(Command::Stop(id)).await?;
                    sender.send(&StopAnswer {}).await
                }
                other => Err(Status::unimplemented(other)),
            }
        })
    }
}
