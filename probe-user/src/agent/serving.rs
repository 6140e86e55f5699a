//! The thread that answers everyone: a slow client costs it time, and the engine none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use probe_model::world::kubernetes::{List, Node};
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
    /// Agents that are known, each with its node.
    pub(super) peers: watch::Receiver<Vec<Peer>>,
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
    let Sources { commands, feed, board, log, peers } = sources;
    let Open { runtime, socket, tls, metrics } = open;
    runtime.block_on(async {
        let address = options.listen.as_ref().map(|(address, _)| address.to_string());
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
        let hubble = hubble::Options { node: options.node.clone(), address, peers };
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

/// How Relay reaches agents: itself, and with a port for it those of every other node, which have the same.
pub(super) struct Neighbours {
    own: Peer,
    port: Option<u16>,
    sender: watch::Sender<Vec<Peer>>,
}

impl Neighbours {
    /// Knows of itself alone, so far; and where others read whom it knows.
    pub(super) fn new(options: &Options) -> (Self, watch::Receiver<Vec<Peer>>) {
        let own = own_peer(options);
        let port = options.listen.as_ref().map(|(address, _)| address.port());
        let (sender, receiver) = watch::channel(vec![own.clone()]);
        (Self { own, port, sender }, receiver)
    }

    /// Takes note of the cluster's nodes. One without an agent is one that Relay does not reach, and says so.
    pub(super) fn learn(&self, nodes: Option<&List<Node>>) {
        let (Some(port), Some(nodes)) = (self.port, nodes) else { return };
        let peer = |node: &Node| {
            let address = SocketAddr::new(*node.addresses.first()?, port).to_string();
            Some(Peer { name: node.name.clone(), address, server_name: Some(AGENT_NAME.to_owned()) })
        };
        let mut known: Vec<Peer> = nodes.iter().filter_map(peer).collect();
        if !known.iter().any(|peer| peer.name == self.own.name) {
            known.push(self.own.clone());
        }
        self.sender.send_if_modified(|before| {
            let is_news = *before != known;
            *before = known;
            is_news
        });
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(listen: Option<&str>) -> Options {
        let files = Files { certificate: "c".into(), key: "k".into(), client_ca: "ca".into() };
        Options {
            socket: "/run/plsprobe/agent.sock".into(),
            socket_group: None,
            listen: listen.map(|address| (address.parse().unwrap(), files)),
            metrics: Vec::new(),
            otlp: None,
            node: "aks-1".to_owned(),
        }
    }

    fn node(name: &str, address: &str) -> Node {
        Node { name: name.to_owned(), addresses: vec![address.parse().unwrap()], ..Node::default() }
    }

    #[test]
    fn relay_is_told_of_every_node_that_can_be_reached() {
        let nodes: List<Node> =
            vec![node("aks-1", "10.224.0.4"), node("aks-2", "10.224.0.5"), Node::default()].into();
        let told = |receiver: &watch::Receiver<Vec<Peer>>| {
            let told = receiver.borrow();
            told.iter().map(|peer| format!("{} {}", peer.name, peer.address)).collect::<Vec<_>>()
        };
        let (neighbours, receiver) = Neighbours::new(&options(Some("0.0.0.0:9966")));
        assert_eq!(told(&receiver), ["aks-1 0.0.0.0:9966"]);
        neighbours.learn(None);
        assert_eq!(told(&receiver).len(), 1, "nodes that may not be read");
        neighbours.learn(Some(&nodes));
        assert_eq!(told(&receiver), ["aks-1 10.224.0.4:9966", "aks-2 10.224.0.5:9966"]);
        neighbours.learn(Some(&vec![node("aks-2", "10.224.0.5")].into()));
        assert_eq!(told(&receiver), ["aks-2 10.224.0.5:9966", "aks-1 0.0.0.0:9966"], "itself always");
        let (neighbours, receiver) = Neighbours::new(&options(None));
        neighbours.learn(Some(&nodes));
        assert_eq!(
            told(&receiver),
            ["aks-1 unix:///run/plsprobe/agent.sock"],
            "nobody can be reached by TCP"
        );
    }
}
