//! `plsprobe agent`.

use std::path::PathBuf;

use anyhow::Result;
use probe_model::path::Capacity;

use super::{Global, Outcome};
use crate::agent::{self, Options, client};
use crate::attach::RING_BYTES;
use crate::trace::Setup;

/// What an agent keeps of flows and packets: it runs for months, beside what the node is for.
const CAPACITY: Capacity = Capacity { remembered: 20_000, pending: 20_000 };

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
    /// The node's name, as Kubernetes has it [default: the host's]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Bytes of what it remembers for `plsprobe trace --since`
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    history_bytes: u64,
    /// The interface to the network [default: the default route's]
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
    /// Attach nothing to tc: tracepoints at receiving and sending stand in, at a cost to every packet of the machine
    #[arg(long)]
    no_tc: bool,
    /// Size of the ring buffer, a power of two from 4096
    #[arg(long, value_name = "BYTES", default_value_t = RING_BYTES, value_parser = super::trace::parse_ring_bytes)]
    ring_bytes: u32,
}

pub(super) fn run(args: Args, global: &Global) -> Result<Outcome> {
    let node = args.node_name.unwrap_or_else(host_name);
    let setup = Setup {
        interface: args.interface,
        no_tc: args.no_tc,
        ring_bytes: args.ring_bytes,
        capacity: CAPACITY,
        live: global.live_options()?,
    };
    agent::run(Options {
        setup,
        watch: args.watch,
        socket: args.socket,
        socket_group: args.socket_group,
        node,
        history_bytes: args.history_bytes,
    })
}

/// The host's name, as Kubernetes takes it for the node's.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}
