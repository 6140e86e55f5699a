//! `plsprobe lint`.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use probe_model::explain::Severity;
use probe_model::lint::{Lint, Scope, lint};
use probe_model::world::World;

use super::{Global, Outcome, Output};
use crate::render;
use crate::sources::{self, From};
use crate::target::{self, Target};

/// `plsprobe lint`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What to look at: a service, or a pod and the services that lead to it
    #[arg(long, value_name = "TARGET")]
    dst: String,
    /// `live`, a file of `plsprobe snapshot`, an archive of cilium-bugtool, or a folder with maps/*.json, rest/*.json and optionally node/
    #[arg(long, value_name = "live|PATH", default_value = "live")]
    from: From,
    /// Print SARIF 2.1.0, as code scanning takes it, instead of text
    #[arg(long)]
    sarif: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let world = sources::world(&args.from, &global.live_options()?)?;
    let scope = scope(&world, &args.dst).context("failed to read `--dst`")?;
    let found = lint(&scope);
    let mut out = std::io::stdout().lock();
    match (args.sarif, global.output) {
        (true, _) => render::sarif::sarif(&found, &mut out)?,
        (false, Output::Text) => render::lint::text(&world, &scope.name, &found, &mut out)?,
        (false, Output::Json) => render::lint::json(&world, &scope.name, &found, &mut out)?,
    }
    out.flush()?;
    Ok(outcome(&found))
}

/// 1 if something keeps, or will keep, Private Link traffic away; 3 if nothing of that was found, but not all judged.
fn outcome(found: &Lint) -> Outcome {
    let is_bad = found.findings.iter().any(|finding| finding.severity == Severity::Error);
    match (is_bad, found.unjudged.is_empty()) {
        (true, _) => Outcome::Dropped,
        (false, true) => Outcome::Allowed,
        (false, false) => Outcome::Inconclusive,
    }
}

fn scope<'w>(world: &'w World, name: &str) -> Result<Scope<'w>> {
    match target::resolve(world, name)? {
        Target::Endpoint(id) => Ok(Scope::of_endpoint(world, id)),
        Target::Service(frontends) => Ok(Scope::of_service(world, name, &frontends)),
        Target::Address(address) => {
            let at: Vec<_> = world.frontends().filter(|own| own.key.address == address).collect();
            let by_map = at.iter().map(|own| (address, own.key.dport));
            let service = world.kubernetes.service_at(address);
            let by_api =
                service.into_iter().flat_map(|own| own.ports.iter().map(|port| (address, port.port)));
            let frontends: std::collections::BTreeSet<_> = by_map.chain(by_api).collect();
            if frontends.is_empty() {
                bail!(
                    "{address} is neither a pod of this node nor a service's address; give svc/NAME or a pod"
                );
            }
            Ok(Scope::of_service(world, name, &frontends.into_iter().collect::<Vec<_>>()))
        }
    }
}
