//! Against clients that read by the published numbers of fields, not by our own structs; and by the client that
//! plsprobe has for Cilium's Hubble.

mod filters;
mod follow;
mod mapping;
mod services;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::explain::Code;
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::{PodName, PolicyRef};
use tokio::sync::watch;

use super::{Options, Peer as Agent, services};
use crate::agent::feed::Feed;
use crate::agent::flow::{Flow, Peer, SourceClass, Stop};
use crate::agent::status::{Board, Status};
use crate::grpc::server::Limits;
use crate::grpc::testing::{Call, End, Message, Served};
use crate::trace::judge::FlowVerdict;

/// A second of 2026, in nanoseconds since 1970.
const TIME: u64 = 1_790_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

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

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A flow that a deny of policy drops: from a NAT IP through the frontend to the pod.
fn denied(number: u64) -> Flow {
    let tuple = Tuple {
        saddr: address("10.224.0.8"),
        daddr: address("10.224.0.7"),
        sport: 40_122,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let translated = Tuple { daddr: address("10.244.1.17"), dport: 8080, ..tuple };
    let policy = |name: &str| PolicyRef {
        kind: "CiliumNetworkPolicy".to_owned(),
        namespace: Some("shop".to_owned()),
        name: name.to_owned(),
    };
    Flow {
        number,
        first_ns: TIME + number * SECOND + 7,
        last_ns: TIME + number * SECOND + 9,
        answered_ns: None,
        tuple,
        translated,
        verdict: FlowVerdict::Dropped,
        drop_reason: Some(DropReason::POLICY_DENY),
        is_refused: false,
        retransmissions: 2,
        source: Peer {
            identity: Some(Identity(16_777_218)),
            labels: vec!["cidr:10.224.0.8/32".to_owned(), "reserved:world".to_owned()],
            ..Peer::default()
        },
        destination: Peer {
            identity: Some(Identity(12_345)),
            endpoint: Some(EndpointId(2686)),
            pod: Some(PodName { namespace: "shop".to_owned(), name: "pls-app-7d9".to_owned() }),
            labels: vec!["k8s:app=pls-app".to_owned()],
        },
        class: SourceClass::PrivateLink,
        service: Some(("shop".to_owned(), "pls-app".to_owned())),
        cause: Code::parse("PLS-03").unwrap(),
        sentence: "a deny rule drops it".to_owned(),
        policies: vec![policy("deny-nat"), policy("deny-all")],
        direction: Some(Direction::Ingress),
        nearest: Some("allow port 81".to_owned()),
        disagreements: Vec::new(),
        link_id: Some(1_234_567),
        hops: vec![Stop { place: "eth0 in".to_owned(), at_ns: TIME, tuple }],
        replies: Vec::new(),
    }
}
