//! `peer.Peer`: which agents there are, for Hubble Relay.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::watch;

use super::proto::{Change, ChangeNotification, PeerTls};
use crate::grpc::Status;
use crate::grpc::server::{Answering, Sender, Service};

/// The service's full name.
pub(super) const NAME: &str = "peer.Peer";

/// An agent on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub name: String,
    /// Where it can be reached: address and port, or `unix://` and a path.
    pub address: String,
    /// The name in its certificate; `None` where it speaks no TLS, as on a unix socket.
    pub server_name: Option<String>,
}

/// Tells of the agents that there are, and of those that come and go.
pub(super) struct Peers(watch::Receiver<Vec<Peer>>);

impl Service for Peers {
    fn call<'a>(&'a self, method: &'a str, _: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            match method {
                "Notify" => self.notify(sender).await,
                other => Err(Status::unimplemented(other)),
            }
        })
    }
}

impl Peers {
    pub(super) fn new(peers: watch::Receiver<Vec<Peer>>) -> Self {
        Self(peers)
    }

    async fn notify(&self, sender: &mut Sender) -> Result<(), Status> {
        let mut peers = self.0.clone();
        let mut known = BTreeMap::new();
        loop {
            let now =
                peers.borrow_and_update().iter().map(|peer| (peer.name.clone(), peer.clone())).collect();
            for (change, peer) in changes(&known, &now) {
                sender.send(&notification(change, peer)).await?;
            }
            known = now;
            if peers.changed().await.is_err() {
                // Nobody will tell of others any more; Relay takes the end of the stream for a broken peer.
                return std::future::pending().await;
            }
        }
    }
}

type Known = BTreeMap<String, Peer>;

fn changes<'a>(before: &'a Known, now: &'a Known) -> Vec<(Change, &'a Peer)> {
    let gone =
        before.iter().filter(|(name, _)| !now.contains_key(*name)).map(|(_, peer)| (Change::Deleted, peer));
    let come = now.iter().filter_map(|(name, peer)| match before.get(name) {
        None => Some((Change::Added, peer)),
        Some(old) if old != peer => Some((Change::Updated, peer)),
        Some(_) => None,
    });
    gone.chain(come).collect()
}

fn notification(change: Change, peer: &Peer) -> ChangeNotification {
    let Peer { name, address, server_name } = peer.clone();
    let tls = server_name.map(|server_name| PeerTls { server_name });
    ChangeNotification { name, address, r#type: change as i32, tls }
}
