//! Hubble's API, with the agent's flows behind it: `hubble observe` and Hubble Relay read them as they read Cilium's.
//!
//! What each field of a flow is made of, `docs/hubble.md` says.

mod cause;
mod filter;
mod flow;
mod health;
mod observer;
mod peer;
mod proto;
mod request;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::feed::Feed;
use super::status::{Board, SILENCE_MAX, Status};
use crate::grpc::server::Service;
use health::Health;
use observer::Observer;
use peer::Peers;

pub use peer::Peer;

/// Who serves, and whom it knows.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name, as Kubernetes knows it.
    pub node: String,
    /// Where this agent can be reached by TCP, if it can: address and port.
    pub address: Option<String>,
    /// The agents that Relay is told of, each with its node; this one alone, unless somebody knows of others.
    pub peers: watch::Receiver<Vec<Peer>>,
}

/// Hubble's services under their names, for [`Server::new`](crate::grpc::server::Server::new).
pub fn services(
    options: Options,
    feed: Arc<Feed>,
    board: Arc<Board>,
) -> Vec<(&'static str, Arc<dyn Service>)> {
    let Options { node, address, peers } = options;
    let health = Health::new(Arc::clone(&board));
    let observer = Observer::new(node, address, feed, board);
    vec![
        (observer::NAME, Arc::new(observer)),
        (peer::NAME, Arc::new(Peers::new(peers))),
        (health::NAME, Arc::new(health)),
    ]
}

/// Whether the engine is at work. A Cilium that is not there is no reason to say no: an agent that is started anew
/// would not find it either.
fn is_serving(status: &Status, now: SystemTime) -> bool {
    // A clock that was set back makes what was said lie ahead, which is no silence.
    let is_silent = |said| now.duration_since(said).is_ok_and(|silence| silence > SILENCE_MAX);
    status.serving_since.is_some() && status.said.is_some_and(|said| !is_silent(said))
}
