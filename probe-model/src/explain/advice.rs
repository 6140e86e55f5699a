//! What the policy objects themselves say of a packet that policy dropped, and the smallest edit that would admit it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{Code, Explanation, Remedy, rules_selecting, source_history};
use crate::intent::admitted::lines;
use crate::intent::edit::{Edit, Wanted, edits};
use crate::intent::object::{Enforcement, Objects, Options, read};
use crate::intent::why::Why;
use crate::intent::{Cluster, Engine, Flow, IntentVerdict};
use crate::simulate::PolicyStep;
use crate::tuple::Protocol;
use crate::world::nat::{Confidence, nat_sources};
use crate::world::{PolicyRef, World};

/// What the policy objects say of a packet.
#[derive(Clone, Debug)]
pub struct Advice {
    /// Which objects were asked.
    pub origin: Origin,
    /// Why they admit it or not, rule by rule.
    pub why: Why,
    /// Edits that admit it, each tried, the smallest first; none where an edit would not help or none is known.
    pub edits: Vec<Tried>,
    /// What kept plsprobe from offering an edit, or from being sure of it.
    pub reservations: Vec<String>,
}

/// An edit that admits the packet.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The edit.
    pub edit: Edit,
    /// What else it admits, a line each.
    pub also: Vec<String>,
}

/// Where policy objects are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The agent's own rules: what it made of the objects.
    Agent,
    /// The objects themselves, from the Kubernetes API or files.
    Objects,
}

/// Asks the policy objects about the packet of an explanation.
///
/// # Errors
///
/// Why they cannot be asked, as a clause: no policy decided, or neither agent nor Kubernetes gave them.
pub fn advise(world: &World, explanation: &Explanation) -> Result<Advice, String> {
    let step = explanation.policy().ok_or("no policy decided")?;
    let (objects, origin, values) = objects(world, step)?;
    let cluster = Cluster::from_world(world, options(world));
    let pod = world.endpoints.get(&step.endpoint).and_then(|own| own.pod.as_ref());
    let pod =
        pod.ok_or_else(|| format!("the name of {} is not known", world.endpoint_name(step.endpoint)))?;
    let pod = cluster.pod(&pod.namespace, &pod.name).cloned().ok_or_else(|| format!("{pod} is not known"))?;
    let engine = Engine::new(cluster, objects);
    let address = step.peer();
    let flow = flow(&engine, step, address);
    let why = engine.why(&pod, flow, Some(address));
    let mut advice = Advice { origin, why, edits: Vec::new(), reservations: Vec::new() };
    let refused =
        engine.rejected().iter().map(|own| format!("{} is refused: {}", own.policy, own.reasons.join("; ")));
    advice.reservations.extend(refused);
    advice.reservations.extend(advice.why.unevaluated.iter().map(ToString::to_string));
    if let Some(why_not) = hopeless(world, explanation, &advice.why) {
        advice.reservations.push(why_not);
        return Ok(advice);
    }
    let wanted = Wanted { pod: &pod, flow, address: Some(address), wider: wider(world, address) };
    let tried = edits(&engine, &values, &wanted).into_iter().map(|edit| {
        let also = lines(engine.cluster(), &edit.admits_also).iter().map(ToString::to_string).collect();
        Tried { edit, also }
    });
    advice.edits = tried.collect();
    Ok(advice)
}

/// The packet as policy saw it; the identity is the one that these objects give an address outside the cluster.
fn flow(engine: &Engine, step: &PolicyStep, address: IpAddr) -> Flow {
    let judged = step.query.identity;
    let by_address = judged.is_world() || judged.is_local_scope();
    let peer = if by_address { engine.cluster().lookup(address).1 } else { judged };
    let peer = if engine.cluster().is_node(peer) { judged } else { peer };
    Flow {
        direction: step.query.direction,
        peer,
        protocol: Protocol(step.query.protocol),
        port: step.query.port,
    }
}

/// The objects to ask: as they were written if all that select the pod are at hand, else the agent's rules.
fn objects(world: &World, step: &PolicyStep) -> Result<(Objects, Origin, Vec<Value>), String> {
    let values: Vec<Value> = world
        .kubernetes
        .policies
        .iter()
        .filter_map(|object| serde_json::from_str(&object.json).ok())
        .collect();
    let written = read(&values, &options(world));
    let in_force: Vec<&PolicyRef> =
        rules_selecting(world, step.endpoint).into_iter().map(|(policy, _)| &policy.reference).collect();
    let is_written = |wanted: &&PolicyRef| written.policies.iter().any(|own| own.reference == **wanted);
    match &world.rules {
        Some(_) if !in_force.is_empty() && in_force.iter().all(is_written) => {
            Ok((written, Origin::Objects, values))
        }
        Some(rules) => Ok((rules.clone(), Origin::Agent, Vec::new())),
        None if !values.is_empty() => Ok((written, Origin::Objects, values)),
        None => {
            Err("neither the agent nor Kubernetes gave the policies (give them as --policies DIR)".to_owned())
        }
    }
}

fn options(world: &World) -> Options {
    let config = world.kubernetes.cilium_config.as_ref();
    let option = |name: &str| config.and_then(|config| config.get(name)).map(String::as_str);
    let default = Options::default();
    Options {
        cluster_name: option("cluster-name").unwrap_or(&default.cluster_name).to_owned(),
        enforcement: match option("enable-policy") {
            Some("always") => Enforcement::Always,
            Some("never") => Enforcement::Never,
            _ => Enforcement::Default,
        },
        ..default
    }
}

/// Why no edit of a policy would help.
fn hopeless(world: &World, explanation: &Explanation, why: &Why) -> Option<String> {
    let history = source_history(world, explanation.trajectory());
    let hidden = history.last().filter(|last| last.address != explanation.question.tuple.saddr);
    if let Some(last) = hidden {
        let original = explanation.question.tuple.saddr;
        return Some(format!(
            "no rule can name {original} while policy sees {} instead: the source has to be kept first",
            last.address
        ));
    }
    if why.verdict.admits() {
        return Some(match explanation.cause.code {
            Code::EndPortIgnored => "the objects admit it; this Cilium does not read endPort".to_owned(),
            _ => "the objects admit it, and the policy map does not: no edit is needed, the agent has to install them"
                .to_owned(),
        });
    }
    None
}

/// Prefixes that NAT IPs are taken from, around the address.
fn wider(world: &World, address: IpAddr) -> Vec<IpNet> {
    let ranges =
        nat_sources(world).sources.into_iter().filter(|source| source.confidence() == Confidence::Range);
    let mut ranges: Vec<_> =
        ranges.map(|source| source.prefix).filter(|prefix| prefix.contains(&address)).collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

impl Advice {
    /// The smallest edit and what it would do, the next one in words, then the first one's YAML.
    pub fn remedies(&self) -> Vec<Remedy> {
        let Some(tried) = self.edits.first() else { return Vec::new() };
        let next = self.edits.get(1).map(|next| Remedy::Text(format!("or {next}")));
        let yaml = Remedy::Yaml(tried.edit.yaml.clone());
        [Remedy::Text(tried.to_string())].into_iter().chain(next).chain([yaml]).collect()
    }
}

/// So many of the flows that an edit admits besides are named in a line of text.
const NAMED: usize = 3;

impl fmt::Display for Tried {
    /// `NetworkPolicy default/allow-pls: adds … (tried: the packet is then admitted, and nothing else)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { edit, also } = self;
        let then = match edit.verdict {
            IntentVerdict::Redirected => "then goes to Cilium's proxy",
            IntentVerdict::Authentication => "is then admitted once both ends have authenticated",
            _ => "is then admitted",
        };
        write!(f, "{}: {} (tried: the packet {then}, and ", edit.policy, edit.summary)?;
        match also.as_slice() {
            [] => f.write_str("nothing else)"),
            all => {
                let more = all.len().saturating_sub(NAMED);
                let more = if more == 0 { String::new() } else { format!("; and {more} more") };
                write!(f, "so is {}{more})", all[..all.len().min(NAMED)].join("; "))
            }
        }
    }
}
