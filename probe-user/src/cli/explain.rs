//! `plsprobe explain`.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use probe_model::cilium::Direction;
use probe_model::explain::{self, Explanation, Verdict};
use probe_model::simulate::{Question, simulate_noting};
use probe_model::tuple::{Protocol, Tuple};
use probe_model::world::World;

use super::{Global, Outcome, Output};
use crate::render;
use crate::sources::{self, From};
use crate::target::{self, Spec, Target};

/// `plsprobe explain`'s flags.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Who sends: an address, a pod of this node, `probe` (168.63.129.16) or `host`
    #[arg(long, value_name = "ADDR[:PORT]")]
    src: String,
    /// To whom: pod, namespace/pod, svc/NAME, key=value, an address, ep/ID
    #[arg(long, value_name = "TARGET[:PORT[/PROTO]]")]
    dst: String,
    /// Judge this direction's policy alone [default: every policy on the way]
    #[arg(long, value_enum)]
    direction: Option<DirectionArg>,
    /// `live`, a file of `plsprobe snapshot`, an archive of cilium-bugtool, or a folder with maps/*.json, rest/*.json and optionally node/
    #[arg(long, value_name = "live|PATH", default_value = "live")]
    from: From,
}

#[derive(Clone, Copy, ValueEnum)]
enum DirectionArg {
    Ingress,
    Egress,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let (mut world, lookups) = sources::world_to_ask(&args.from, &global.live_options()?)?;
    let mut question = question(&world, &args.src, &args.dst)?;
    question.direction = args.direction.map(|direction| match direction {
        DirectionArg::Ingress => Direction::Ingress,
        DirectionArg::Egress => Direction::Egress,
    });
    lookups.complete(&mut world, |world| simulate_noting(world, &question).1);
    let explanation = explain::explain(&world, &question);
    let is_by_policy = matches!(explanation.verdict, Verdict::Dropped(_)) && explanation.policy().is_some();
    let advice = is_by_policy.then(|| explain::advise(&world, &explanation));
    let mut out = std::io::stdout().lock();
    match global.output {
        Output::Text => render::explanation::text(&world, &explanation, advice.as_ref(), &mut out)?,
        Output::Json => render::explanation::json(&world, &explanation, advice.as_ref(), &mut out)?,
    }
    out.flush()?;
    Ok(outcome(&explanation))
}

fn outcome(explanation: &Explanation) -> Outcome {
    match explanation.verdict {
        Verdict::Allowed => Outcome::Allowed,
        Verdict::Dropped(_) | Verdict::Filtered => Outcome::Dropped,
        Verdict::Inconclusive(_) => Outcome::Inconclusive,
    }
}

/// The packet that `--src` and `--dst` describe.
fn question(world: &World, src: &str, dst: &str) -> Result<Question> {
    let source = Spec::parse(src).context("failed to read `--src`")?;
    let destination = Spec::parse(dst).context("failed to read `--dst`")?;
    let protocol = destination.protocol.or(source.protocol).unwrap_or(Protocol::TCP);
    let (daddr, dport) = match target::resolve(world, &destination.name)? {
        Target::Address(address) => (address, destination.port),
        Target::Endpoint(id) => {
            let given = destination.name.parse().ok();
            let address = given.map_or_else(|| target::endpoint_address(world, id), Ok)?;
            (address, destination.port)
        }
        Target::Service(frontends) => frontend(&destination, &frontends)?,
    };
    let Some(dport) = dport.or((!protocol.has_ports()).then_some(0)) else {
        bail!("`--dst {dst}` has no port; expected one as in `--dst {}:80`", destination.name);
    };
    let saddr = target::resolve_source(world, &source.name)?;
    let sport = source.port.unwrap_or(0);
    if protocol.has_ports() {
        return Ok(Question::new(Tuple { saddr, daddr, sport, dport, protocol }));
    }
    Ok(Question::new(Tuple { saddr, daddr, sport: 0, dport: 0, protocol }))
}

/// The frontend of a service that is meant: the one with the port given, or the only one.
fn frontend(spec: &Spec, frontends: &[(std::net::IpAddr, u16)]) -> Result<(std::net::IpAddr, Option<u16>)> {
    let fitting: Vec<_> =
        frontends.iter().filter(|(_, port)| spec.port.is_none_or(|wanted| wanted == *port)).collect();
    if let [(address, port)] = fitting.as_slice() {
        return Ok((*address, Some(*port)));
    }
    let known: Vec<_> = frontends.iter().map(|(address, port)| format!("{address}:{port}")).collect();
    bail!("`{}` has the frontends {}; give one of them as `--dst`", spec.name, known.join(", "))
}
