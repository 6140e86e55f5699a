//! `observer.Observer`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::time;

use super::flow::Teller;
use super::proto::{
    GetNamespacesResponse, GetNodesResponse, NODE_CONNECTED, Namespace, Node, ServerStatusResponse,
};
use super::request::FlowsRequest;
use crate::agent::feed::{Feed, Flows};
use crate::agent::flow::Flow;
use crate::agent::status::Board;
use crate::grpc::server::{Answering, Sender, Service};
use crate::grpc::{Code, Status};

/// The service's full name.
pub(super) const NAME: &str = "observer.Observer";

/// Tells of flows: those that are kept, and those to come.
pub(super) struct Observer {
    told: Teller,
    address: Option<String>,
    feed: Arc<Feed>,
    board: Arc<Board>,
}

impl Service for Observer {
    fn call<'a>(&'a self, method: &'a str, request: Bytes, sender: &'a mut Sender) -> Answering<'a> {
        Box::pin(async move {
            match method {
                "GetFlows" => self.get_flows(&request, sender).await,
                "ServerStatus" => sender.send(&self.server_status()).await,
                "GetNodes" => sender.send(&self.nodes()).await,
                "GetNamespaces" => sender.send(&self.namespaces()).await,
                "GetAgentEvents" | "GetDebugEvents" => Err(Status::new(
                    Code::Unimplemented,
                    format!("`{method}` tells of Cilium's own events; ask Cilium's agent"),
                )),
                other => Err(Status::unimplemented(other)),
            }
        })
    }
}

impl Observer {
    pub(super) fn new(node: String, address: Option<String>, feed: Arc<Feed>, board: Arc<Board>) -> Self {
        Self { told: Teller::new(node, SystemTime::now()), address, feed, board }
    }

    async fn get_flows(&self, request: &[u8], sender: &mut Sender) -> Result<(), Status> {
        let request = FlowsRequest::decode(request)?;
        // At one moment, so that between what is kept and what is to come there is no gap and nothing twice.
        let (kept, live) = self.feed.follow();
        let wanted = request.of_kept(&self.told, &kept);
        // However slowly the client takes them, they are not kept for it.
        drop(kept);
        self.tell_kept(&wanted, sender).await?;
        if request.is_following { self.tell_live(&request, live, sender).await } else { Ok(()) }
    }

    async fn tell_kept(&self, wanted: &[u64], sender: &mut Sender) -> Result<(), Status> {
        let mut lost = 0;
        for number in wanted {
            let Some(flow) = self.feed.get(*number) else {
                lost += 1;
                continue;
            };
            self.tell_lost(std::mem::take(&mut lost), sender).await?;
            sender.send(&self.told.flow(&flow)).await?;
        }
        self.tell_lost(lost, sender).await
    }

    async fn tell_live(
        &self,
        request: &FlowsRequest,
        mut live: Flows,
        sender: &mut Sender,
    ) -> Result<(), Status> {
        let mut ends = std::pin::pin!(until(request.until));
        loop {
            let next = tokio::select! {
                next = live.recv() => next,
                () = &mut ends => return Ok(()),
            };
            match next {
                Ok(flow) if request.matches(&self.told, &flow) => sender.send(&self.told.flow(&flow)).await?,
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => self.tell_lost(lost, sender).await?,
                Err(RecvError::Closed) => {
                    return Err(Status::new(Code::Unavailable, "the agent is stopping"));
                }
            }
        }
    }

    async fn tell_lost(&self, lost: u64, sender: &mut Sender) -> Result<(), Status> {
        if lost == 0 {
            return Ok(());
        }
        sender.send(&self.told.lost(lost, SystemTime::now())).await
    }

    fn server_status(&self) -> ServerStatusResponse {
        let status = self.board.read();
        ServerStatusResponse {
            num_flows: self.feed.kept() as u64,
            max_flows: self.feed.max() as u64,
            seen_flows: status.flows,
            uptime_ns: uptime(status.serving_since).as_nanos() as u64,
            version: version(),
        }
    }

    fn nodes(&self) -> GetNodesResponse {
        let ServerStatusResponse { num_flows, max_flows, seen_flows, uptime_ns, version } =
            self.server_status();
        GetNodesResponse {
            nodes: vec![Node {
                name: self.told.node().to_owned(),
                version,
                address: self.address.clone().unwrap_or_default(),
                state: NODE_CONNECTED,
                uptime_ns,
                num_flows,
                max_flows,
                seen_flows,
            }],
        }
    }

    /// Of the flows that are kept.
    fn namespaces(&self) -> GetNamespacesResponse {
        let (kept, _) = self.feed.follow();
        let names: BTreeSet<&str> = kept.iter().flat_map(|flow| namespaces(flow)).collect();
        let namespaces = names.into_iter().map(|name| Namespace { namespace: name.to_owned() });
        GetNamespacesResponse { namespaces: namespaces.collect() }
    }
}

fn namespaces(flow: &Flow) -> impl Iterator<Item = &str> {
    [&flow.source, &flow.destination]
        .into_iter()
        .filter_map(|peer| Some(peer.pod.as_ref()?.namespace.as_str()))
}

/// Of what is built here; Hubble's clients show it.
fn version() -> String {
    format!("plsprobe v{}", env!("CARGO_PKG_VERSION"))
}

fn uptime(since: Option<SystemTime>) -> Duration {
    since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default()
}

/// Ends at a time of the clock on the wall, in nanoseconds since 1970; without one never.
async fn until(time_ns: Option<i128>) {
    let Some(time_ns) = time_ns else { return std::future::pending().await };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().cast_signed();
    // Beyond a century it is never.
    let left = u64::try_from((time_ns - now).max(0)).unwrap_or(u64::MAX);
    time::sleep(Duration::from_nanos(left)).await;
}
