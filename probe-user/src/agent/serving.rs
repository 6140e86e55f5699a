//! The thread that answers everyone: a slow client costs it time, and the engine none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

use super::feed::Feed;
use super::hubble::{self, Peer};
use super::keeper::Command;
use super::log::Log;
use super::metrics::{self, Metrics};
use super::otlp::{self, Pace, Settings};
use super::service::{self, Agent};
use super::status::Board;
use crate::across::AGENT_NAME;
use crate::grpc::server::{Limits, Notice, Server};
use crate::grpc::tls::{Files, Tls};
use crate::grpc::unix::Socket;

/// How long an answer that is under way may take when the agent ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// Where the agent is to be asked, and whom it tells by itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its socket is to be.
    pub socket: PathBuf,
    /// A group that may use it too, by number.
    pub socket_group: Option<u32>,
    /// Where the same is served by TCP, to clients with certificates.
    pub listen: Option<(SocketAddr, Files)>,
    /// Where Prometheus and the kubelet ask.
    pub metrics: Vec<SocketAddr>,
    /// Where traces go.
    pub otlp: Option<Settings>,
    /// The node's name.
    pub node: String,
}

/// What it answers from.
pub(super) struct Sources {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) feed: Arc<Feed>,
    pub(super) board: Arc<Board>,
    pub(super) log: Arc<Log>,
}

/// The thread.
pub(super) struct Serving {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

/// What is open, before anyone is served.
pub(super) struct Open {
    runtime: Runtime,
    socket: Socket,
    tls: Option<(TcpListener, Tls)>,
    metrics: Vec<TcpListener>,
}

impl Open {
    /// Opens what is to be open, so that what cannot be is known at once.
    ///
    /// # Errors
    ///
    /// When a socket cannot be had, or a certificate cannot be used.
    pub(super) fn new(options: &Options, log: &Log) -> Result<Self> {
        let runtime = super::runtime()?;
        let (socket, tls, metrics) = runtime.block_on(open(options, log))?;
        Ok(Self { runtime, socket, tls, metrics })
    }
}

impl Serving {
    /// Serves.
    ///
    /// # Errors
    ///
    /// When there can be no thread for it.
    pub(super) fn start(open: Open, options: Options, sources: Sources) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let serve = move || serve(open, &options, sources, stopped);
        let thread = thread::Builder::new().name("serve".to_owned()).spawn(serve);
        Ok(Self { stop, thread: thread.context("failed to start a thread")? })
    }

    /// Ends it, with every connection.
    pub(super) fn stop(self) -> Result<()> {
        // It has ended by itself, if it is an error: how, it says below.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the serving thread panicked"))
    }
}

type Listeners = (Socket, Option<(TcpListener, Tls)>, Vec<TcpListener>);

async fn open(options: &Options, log: &Log) -> Result<Listeners> {
    let tls = match &options.listen {
        Some((address, files)) => Some((listener(*address).await?, Tls::load(files.clone())?)),
        None => None,
    };
    let mut metrics = Vec::new();
    for address in &options.metrics {
        metrics.push(listener(*address).await?);
    }
    // The last: whoever finds it finds the rest.
    let socket = Socket::bind(&options.socket, options.socket_group).await?;
    log.say(&format!("serving on `{}`", options.socket.display()));
    if let Some((address, _)) = &options.listen {
        log.say(&format!("serving on {address}, to clients with certificates"));
    }
    for address in &options.metrics {
        log.say(&format!("metrics and health on {address}"));
    }
    Ok((socket, tls, metrics))
}

async fn listener(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))
}

fn serve(open: Open, options: &Options, sources: Sources, stopped: oneshot::Receiver<()>) {
    let Sources { commands, feed, board, log } = sources;
    let Open { runtime, socket, tls, metrics } = open;
    runtime.block_on(async {
        // This agent knows of itself; whoever wants all nodes asks each.
        let address = options.listen.as_ref().map(|(address, _)| address.to_string());
        let (_peers, known) = watch::channel(vec![own_peer(options)]);
        let notice: Notice = Arc::new(move |line| log.say(&line));
        let tally = Arc::new(otlp::Tally::default());
        let counted = Arc::new(Metrics::new(Arc::clone(&board), Arc::clone(&tally)));
        tokio::spawn({
            let (counted, feed) = (Arc::clone(&counted), Arc::clone(&feed));
            async move { counted.count(feed).await }
        });
        for listener in metrics {
            // Each with limits of its own: Prometheus shall not take the kubelet's place.
            let limits = metrics::Limits::default();
            tokio::spawn(metrics::serve(listener, Arc::clone(&counted), limits, Arc::clone(&notice)));
        }
        if let Some(settings) = options.otlp.clone() {
            tokio::spawn(otlp::export(
                settings,
                Pace::default(),
                Arc::clone(&feed),
                tally,
                Arc::clone(&notice),
            ));
        }
        let hubble = hubble::Options { node: options.node.clone(), address, peers: known };
        let mut services = hubble::services(hubble, feed, board);
        let agent = Arc::new(Agent::new(commands, options.node.clone()));
        services.push((service::NAME, Arc::clone(&agent) as _));
        let server = Server::new(services, Limits::AGENT, notice);
        let by_tcp = async {
            match &tls {
                Some((listener, tls)) => server.serve_tls(listener, tls).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = server.serve_unix(&socket.listener) => match never {},
            never = by_tcp => match never {},
            () = async {
                // Whoever started us has gone, if it is an error.
                let _ = stopped.await;
                agent.last_words().await;
            } => {}
        }
    });
    drop(socket);
    // A collector that does not answer is not waited for.
    runtime.shutdown_timeout(FAREWELL);
}

/// Where Relay reaches this agent.
fn own_peer(options: &Options) -> Peer {
    let name = options.node.clone();
    match &options.listen {
        Some((address, _)) => {
            Peer { address: address.to_string(), server_name: Some(AGENT_NAME.to_owned()), name }
        }
        None => Peer { address: format!("unix://{}", options.socket.display()), server_name: None, name },
    }
}
