//! `plsprobe agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use probe_model::path::Capacity;

use super::{Global, Outcome};
use crate::agent::otlp::{Headers, Settings};
use crate::agent::{self, Options, client, serving};
use crate::grpc::tls::Files;
use crate::sources::LiveOptions;
use crate::trace::Setup;

/// What an agent keeps of flows and packets: it runs for months, beside what the node is for. A hash table of so many
/// decided flows takes 3 MB, one more would double it.
const CAPACITY: Capacity = Capacity { remembered: 14_000, pending: 20_000 };
/// In conntrack maps with more entries each flow's own are looked up: they would be read with every flow, again and again,
/// and each entry takes some hundred bytes.
const CONNTRACK_ENTRIES: usize = 8192;
/// Its ring buffer, which counts as the agent's memory.
const AGENT_RING_BYTES: u32 = 1 << 20;

/// `plsprobe agent`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A TARGET to watch, beside every Service that asks for Private Link; may be repeated
    #[arg(long, value_name = "TARGET")]
    watch: Vec<String>,
    /// Where its socket is to be: for `plsprobe trace`, and for Hubble's clients
    #[arg(long, value_name = "FILE", default_value = client::SOCKET)]
    socket: PathBuf,
    /// A group that may use the socket, by number [default: root alone]
    #[arg(long, value_name = "GID")]
    socket_group: Option<u32>,
    /// Serve the same by TCP too, here, to clients with certificates
    #[arg(long, value_name = "ADDR:PORT", requires_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    listen: Option<SocketAddr>,
    /// The certificate for `--listen`, as PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// The authorities that sign the certificates of clients
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_client_ca: Option<PathBuf>,
    /// Where Prometheus and the kubelet ask: /metrics, /healthz, /readyz; or `off`; may be repeated
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9967", value_parser = parse_metrics)]
    metrics: Vec<Metrics>,
    /// Send the path of each flow as a trace to this OpenTelemetry collector (OTLP by HTTP)
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// The authorities that sign the collector's certificate [default: this machine's]
    #[arg(long, value_name = "FILE", requires = "otlp")]
    otlp_ca: Option<PathBuf>,
    /// Headers for the collector, `name=value` a line [default: `OTEL_EXPORTER_OTLP_HEADERS`]
    #[arg(long, value_name = "FILE", requires = "otlp")]
    otlp_headers: Option<PathBuf>,
    /// The node's name, as Kubernetes has it [default: the host's]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Bytes of what it remembers for `plsprobe trace --since`
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    history_bytes: u64,
    /// The interface to the network [default: the default route's]
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Attach nothing to tc: tracepoints at receiving and sending stand in, at a cost to every packet of the machine
    #[arg(long)]
    no_tc: bool,
    /// Size of the ring buffer, a power of two from 4096
    #[arg(long, value_name = "BYTES", default_value_t = AGENT_RING_BYTES, value_parser = super::trace::parse_ring_bytes)]
    ring_bytes: u32,
}

pub(super) fn run(args: Args, global: &Global) -> Result<Outcome> {
    let node = args.node_name.unwrap_or_else(host_name);
    let setup = Setup {
        interface: args.interface,
        no_tc: args.no_tc,
        ring_bytes: args.ring_bytes,
        capacity: CAPACITY,
        live: LiveOptions { conntrack_entries: CONNTRACK_ENTRIES, ..global.live_options()? },
        cluster: None,
    };
    let otlp = match &args.otlp {
        Some(url) => {
            let headers = Headers::find(args.otlp_headers.as_deref())?;
            Some(Settings::new(url, args.otlp_ca.as_deref(), headers, &node)?)
        }
        None => None,
    };
    // clap has seen to it that there are all of them, or none.
    let files = args.tls_cert.zip(args.tls_key).zip(args.tls_client_ca);
    let files = files.map(|((certificate, key), client_ca)| Files { certificate, key, client_ca });
    let serving = serving::Options {
        socket: args.socket,
        socket_group: args.socket_group,
        listen: args.listen.zip(files),
        metrics: args.metrics.iter().filter_map(|one| one.0).collect(),
        otlp,
        node,
    };
    agent::run(Options { setup, watch: args.watch, history_bytes: args.history_bytes, serving })
}

/// Where metrics are served, if they are.
#[derive(Clone, Copy, Debug)]
struct Metrics(Option<SocketAddr>);

fn parse_metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics(None)),
        address => address.parse().map(|address| Metrics(Some(address))).map_err(|_| {
            format!("found `{text}`, expected `off` or an address and port as in `127.0.0.1:9967`")
        }),
    }
}

/// The host's name, as Kubernetes takes it for the node's.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
