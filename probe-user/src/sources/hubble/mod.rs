//! Hubble's socket: Cilium's notifications as the agent's observer passes them on, with the policies it finds behind
//! each verdict. Client only, over the unix socket, without TLS.
//!
//! What Hubble passes on lacks the packet's bytes: neither TCP numbers nor IP identification, and no echo's identifier.
//! So it is the last choice among Cilium's own words. Unlike the monitor socket it counts what it could not deliver.

mod flow;
pub(crate) mod proto;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use ipnet::IpNet;
use probe_model::path::Sighting;

use self::proto::{
    EventTypeFilter, FlowFilter, GetFlowsRequest, GetFlowsResponse, ServerStatusRequest, ServerStatusResponse,
};
use super::unusable::Unusable;
use crate::grpc::client::{Answers, Client, Failure};
use crate::sys;

/// The server's socket in the agent's run directory.
pub const SOCKET: &str = "hubble.sock";

/// How long the server may take to accept and to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVER_STATUS: &str = "/observer.Observer/ServerStatus";
const GET_FLOWS: &str = "/observer.Observer/GetFlows";

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// The agent's version, as the server words it; empty before 1.11.
    pub version: String,
    /// Flows it keeps.
    pub num_flows: u64,
    /// Flows it keeps at most.
    pub max_flows: u64,
    /// Flows it has seen since its start.
    pub seen_flows: u64,
}

/// A connection to a Hubble server that answers.
#[derive(Debug)]
pub struct Hubble {
    path: PathBuf,
    client: Client,
    status: ServerStatus,
}

impl Hubble {
    /// Connects to the socket at `path` and asks how the server is.
    ///
    /// # Errors
    ///
    /// When there is no socket, nobody accepts, this user may not, or what listens is no Hubble server or does not
    /// answer in two seconds.
    pub async fn connect(path: &Path) -> Result<Self> {
        let shown = path.display();
        let silent = || {
            let found = format!("nothing answers on `{shown}` within {} s", PATIENCE.as_secs());
            Unusable::new(found, "the cilium-agent may hang, look at its pod")
        };
        let connected = tokio::time::timeout(PATIENCE, Client::connect(path)).await.map_err(|_| silent())?;
        let client = connected.map_err(|error| refused(path, error))?;
        let asked = tokio::time::timeout(PATIENCE, client.ask(SERVER_STATUS, &ServerStatusRequest {}));
        let answer = asked.await.map_err(|_| silent())?.map_err(|failure| unwilling(path, &failure))?;
        let ServerStatusResponse { version, num_flows, max_flows, seen_flows, .. } = answer;
        let status = ServerStatus { version, num_flows, max_flows, seen_flows };
        Ok(Self { path: path.to_owned(), client, status })
    }

    /// What the server said of itself when it was connected.
    pub fn status(&self) -> &ServerStatus {
        &self.status
    }

    /// Follows what is notified of packets from and to `addresses`, from now on.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub async fn follow(self, addresses: &[IpNet]) -> Result<Flows> {
        let Self { path, client, .. } = self;
        let answers = client.call(GET_FLOWS, &request(addresses)).await;
        let answers = answers.map_err(|failure| unwilling(&path, &failure))?;
        Ok(Flows { path, answers })
    }
}

fn request(addresses: &[IpNet]) -> GetFlowsRequest {
    let addresses: Vec<String> = addresses.iter().map(address_text).collect();
    let event_type: Vec<EventTypeFilter> = flow::TYPES.map(|r#type| EventTypeFilter { r#type }).into();
    let to = FlowFilter {
        destination_ip: addresses.clone(),
        event_type: event_type.clone(),
        ..FlowFilter::default()
    };
    let from = FlowFilter { source_ip: addresses, event_type, ..FlowFilter::default() };
    GetFlowsRequest { follow: true, whitelist: vec![to, from] }
}

/// Hubble takes an address, or a prefix in CIDR notation.
fn address_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// What the stream brought.
#[derive(Debug)]
pub enum Payload {
    /// A packet that Cilium notified of; `None` if it is of no use, an error if it was not understood.
    Flow(Result<Option<Box<Sighting>>>),
    /// Notifications that were lost on their way here.
    Lost(u64),
    /// Something else.
    Other,
}

/// Flows as they happen.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Flows {
    path: PathBuf,
    answers: Answers<GetFlowsResponse>,
}

impl Flows {
    /// The next value, or `None` when the server ended the stream, as it does when it stops. Waits for ever while
    /// nothing happens.
    ///
    /// Cancelling the future loses nothing: it may stand in `tokio::select!`.
    ///
    /// # Errors
    ///
    /// When the connection broke, or what it carries is not what Hubble sends. Connect anew then.
    pub async fn next(&mut self) -> Result<Option<Payload>> {
        let message = self.answers.next().await.map_err(|failure| unwilling(&self.path, &failure))?;
        Ok(message.map(|message| payload(message, Now::read())))
    }
}

fn payload(message: GetFlowsResponse, now: Now) -> Payload {
    match message.response {
        Some(proto::Response::Flow(flow)) => {
            let ktime_ns = now.ktime_ns(flow.time);
            Payload::Flow(flow::sighting(&flow, ktime_ns).map(|sighting| sighting.map(Box::new)))
        }
        Some(proto::Response::Lost(lost)) => Payload::Lost(lost.num_events_lost),
        None => Payload::Other,
    }
}

/// One moment in both clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// `CLOCK_MONOTONIC`.
    monotonic_ns: u64,
    /// Since 1970.
    real_ns: i128,
}

impl Now {
    fn read() -> Self {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic_ns: sys::monotonic().as_nanos() as u64, real_ns: real.as_nanos().cast_signed() }
    }

    /// A flow's time in our records' clock; now, if it has none or one that is still to come.
    fn ktime_ns(self, time: Option<proto::Timestamp>) -> u64 {
        let Some(time) = time else { return self.monotonic_ns };
        let then = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        let ago = u64::try_from((self.real_ns - then).max(0)).unwrap_or(u64::MAX);
        self.monotonic_ns.saturating_sub(ago)
    }
}

/// Why the socket could not be connected, with the next step.
fn refused(path: &Path, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        let found = format!("no socket at `{}`", path.display());
        return Unusable::absent(found, "Hubble is off on this node; the agent's option is `enable-hubble`")
            .into();
    }
    super::monitor::refused(path, error)
}

/// What the server, or what is no server of this kind, said instead of an answer.
fn unwilling(path: &Path, failure: &Failure) -> anyhow::Error {
    anyhow::anyhow!("Hubble's socket `{}` failed: {failure}", path.display())
}
