//! Against clients that read by the published numbers of fields, not by our own structs; and by the client that
//! plsprobe has for Cilium's Hubble.

mod denied;
mod filters;
mod follow;
mod mapping;
mod services;

use std::sync::Arc;
use std::time::SystemTime;

use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::PodName;
use tokio::sync::watch;

use self::denied::{SECOND, TIME, address, denied};
use super::{Options, Peer as Agent, services};
use crate::agent::feed::Feed;
use crate::agent::flow::{Flow, Peer, SourceClass, Stop};
use crate::agent::status::{Board, Status};
use crate::grpc::server::Limits;
use crate::grpc::testing::{Call, End, Message, Served};
use crate::trace::judge::FlowVerdict;

/// An agent's Hubble, and its ends.
struct Hubble {
    served: Served,
    feed: Arc<Feed>,
    board: Arc<Board>,
    peers: watch::Sender<Vec<Agent>>,
}

impl Hubble {
    async fn start(kept: usize) -> Self {
        let (feed, board) = (Arc::new(Feed::new(kept)), Arc::new(Board::default()));
        let (peers, receiver) = watch::channel(Vec::new());
        let options = Options { node: "aks-1".to_owned(), address: None, peers: receiver };
        let services = services(options, Arc::clone(&feed), Arc::clone(&board));
        let now = Some(SystemTime::now());
        board.write(Status { serving_since: now, said: now, flows: 12_345, ..Status::default() });
        Self { served: Served::start(services, Limits::AGENT).await, feed, board, peers }
    }

    async fn call(&self, path: &str, request: &[Vec<u8>]) -> Call {
        Call::new(&self.served.path, path, &request.concat()).await
    }

    /// Everything that `GetFlows` answers.
    async fn flows(&self, request: &[Vec<u8>]) -> (Vec<Message>, End) {
        self.call("/observer.Observer/GetFlows", request).await.all().await
    }

    /// The numbers of the flows that `GetFlows` answers.
    async fn numbers(&self, request: &[Vec<u8>]) -> Vec<u64> {
        let (messages, end) = self.flows(request).await;
        assert_eq!(end.0, "0", "{end:?}");
        messages.iter().map(number_of).collect()
    }

    /// Why `GetFlows` refuses; it must be for the argument.
    async fn refusal(&self, request: &[Vec<u8>]) -> String {
        let (messages, (code, words)) = self.flows(request).await;
        assert_eq!((messages.len(), code.as_str()), (0, "3"), "{words}");
        words
    }
}

/// The number at the end of a flow's UUID.
fn number_of(response: &Message) -> u64 {
    let uuid = response.message(1).expect("a flow").text(34);
    u64::from_str_radix(&uuid[24..], 16).unwrap()
}
