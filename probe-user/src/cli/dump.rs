//! `plsprobe dump`.

use std::io::Write as _;

use anyhow::Result;
use clap::ValueEnum;
use probe_model::cilium::EndpointId;

use super::{Global, Outcome, Output};
use crate::render::dump as render;
use crate::sources::assemble::assemble;
use crate::sources::{self, From};

/// `plsprobe dump`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Which map
    what: What,
    /// Of this endpoint alone
    #[arg(long, value_name = "ID")]
    endpoint: Option<u16>,
    /// `live`, a file of `plsprobe snapshot`, an archive of cilium-bugtool, or a folder with maps/*.json, rest/*.json and optionally node/
    #[arg(long, value_name = "live|PATH", default_value = "live")]
    from: From,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Policy maps of every endpoint
    Policy,
    /// Address prefixes and their identities
    Ipcache,
    /// Endpoints of this node
    Endpoints,
    /// Service frontends and their backends
    Services,
    /// Connections
    Conntrack,
    /// SNAT mappings
    Nat,
    /// Packets by reason
    Metrics,
    /// What policy entries decided (Cilium 1.18 on)
    Policystats,
    /// Ids of nodes
    Node,
    /// Pod prefixes behind other nodes (tunnel mode up to Cilium 1.17)
    Tunnel,
    /// Identities that have authenticated each other
    Auth,
    /// Clients of services with session affinity
    Affinity,
    /// Ports of fragmented packets
    Fragments,
    /// Client prefixes of loadBalancerSourceRanges
    SourceRanges,
    /// NAT IPs of Private Link: who says so, and how sure that is
    NatIps,
    /// Consumers' private endpoints, as Azure knows them
    PrivateEndpoints,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let node = sources::raw(&args.from, &global.live_options()?)?;
    let endpoint = args.endpoint.map(EndpointId);
    let table = match args.what {
        What::Policy => render::policy(&assemble(&node), endpoint)?,
        What::Ipcache => render::ipcache(&assemble(&node))?,
        What::Endpoints => render::endpoints(&assemble(&node), endpoint)?,
        What::Services => render::services(&assemble(&node))?,
        What::Conntrack => render::conntrack(&assemble(&node))?,
        What::Nat => render::nat(&node)?,
        What::Metrics => render::metrics(&node)?,
        What::Policystats => render::policystats(&assemble(&node), endpoint)?,
        What::Node => render::node(&node)?,
        What::Tunnel => render::tunnel(&node)?,
        What::Auth => render::auth(&node)?,
        What::Affinity => render::affinity(&node, &assemble(&node))?,
        What::Fragments => render::fragments(&node)?,
        What::SourceRanges => render::source_ranges(&node, &assemble(&node))?,
        What::NatIps => render::nat_ips(&assemble(&node))?,
        What::PrivateEndpoints => render::private_endpoints(&assemble(&node))?,
    };
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => table.text(&mut out)?,
        Output::Json => table.json(&mut out)?,
    }
    out.flush()?;
    Ok(Outcome::Allowed)
}
