//! `plsprobe dump`.

use std::io::Write as _;

use anyhow::Result;
use clap::ValueEnum;
use probe_model::cilium::EndpointId;

use super::{Global, Outcome, Output};
use crate::render::dump as render;
use crate::sources::{self, From};

/// `plsprobe dump`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Which map
    what: What,
    /// Of this endpoint alone
    #[arg(long, value_name = "ID")]
    endpoint: Option<u16>,
    /// `live`, a file of `plsprobe snapshot`, or a folder with maps/*.json, rest/*.json and optionally node/
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
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let node = sources::raw(&args.from, &global.live_options())?;
    let table = match args.what {
        What::Policy => render::policy(&sources::assemble::assemble(&node), args.endpoint.map(EndpointId))?,
        What::Ipcache => render::ipcache(&sources::assemble::assemble(&node))?,
        What::Endpoints => {
            render::endpoints(&sources::assemble::assemble(&node), args.endpoint.map(EndpointId))?
        }
        What::Services => render::services(&sources::assemble::assemble(&node))?,
        What::Conntrack => render::conntrack(&sources::assemble::assemble(&node))?,
        What::Nat => render::nat(&node)?,
        What::Metrics => render::metrics(&node)?,
    };
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => table.text(&mut out)?,
        Output::Json => table.json(&mut out)?,
    }
    out.flush()?;
    Ok(Outcome::Allowed)
}
