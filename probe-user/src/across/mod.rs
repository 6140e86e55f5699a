//! `plsprobe trace --context …`: from anywhere, by the agents of every node that matters, as one path across nodes.
//!
//! ```text
//! Kubernetes API ─► plan ─► session (one per node) ─► part ─► pending ─► join ─► verdict ─► render::across
//!                           port-forward, TLS, gRPC      ▲ clock
//! ```

pub mod clock;
mod collect;
pub mod join;
pub mod part;
pub mod path;
mod pending;
pub mod plan;
mod session;
pub mod verdict;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep_until};

use crate::agent::proto::{Ports, TraceRequest};
use crate::attach::PortRange;
use crate::cli::{Outcome, Output};
use crate::sources::http::{Patience, tls};
use crate::sources::kubernetes::access::Access;
use crate::sources::kubernetes::forward::PodPort;
use crate::sources::kubernetes::{self, Ask, decode};
use crate::trace::listener::{Paper, Terminal};
use crate::trace::session::Stop;
use collect::Collect;
use plan::{Cluster, Plan, PlanNode};
use session::{Asked, Way};

pub use collect::{NodeState, Report};

/// The name that agents' certificates have, unless another is given.
pub const AGENT_NAME: &str = "plsprobe-agent";
/// How long the API server may take for what.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    each: Duration::from_secs(15),
    total: Duration::from_secs(30),
};
/// An agent that has not ended so long after its time is not waited for.
const LATE_MAX: Duration = Duration::from_secs(15);
/// How long agents may take to sum up when they are told to end.
const SUM_UP: Duration = Duration::from_secs(5);
/// How often it is looked which flows have waited long enough.
const TICK: Duration = Duration::from_millis(500);
/// Events of agents that wait; of each the longest is a message of gRPC's, 4 MB.
const EVENTS_MAX: usize = 16;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// TARGET, in the cluster.
    pub dst: String,
    /// SRCs; empty is any.
    pub src: Vec<String>,
    /// Ports and protocols; empty is any.
    pub ports: Vec<PortRange>,
    /// When to end.
    pub duration: Duration,
    /// After how many flows to end.
    pub count: Option<u64>,
    /// What the agents remember of so long ago on, instead of what comes.
    pub since: Option<Duration>,
    /// The kubeconfig, instead of `KUBECONFIG`'s and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context, instead of the current one.
    pub context: Option<String>,
    /// How agents are asked.
    pub agents: Agents,
    /// How to print.
    pub output: Output,
}

/// How agents are asked: by certificates of both sides.
#[derive(Clone, Debug)]
pub struct Agents {
    /// Our certificate, a PEM file.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of the agents' certificates.
    pub ca: PathBuf,
    /// The name in them.
    pub name: String,
    /// Their port, if it is another than their pods say.
    pub port: Option<u16>,
}

/// Traces until time, count or a signal ends it.
///
/// # Errors
///
/// When the API server or no agent can be asked, there is no such target, or output fails.
pub fn run(options: &Options) -> Result<Outcome> {
    let access = options.access()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the event loop")?.block_on(async {
        let mut stop = Stop::new()?;
        trace(options, access, async { stop.requested().await }, &mut Terminal).await
    })
}

impl Options {
    fn access(&self) -> Result<Access> {
        let context = self.context.as_deref();
        if let Some(path) = self.kubeconfig.clone().or(kubeconfig()?) {
            return Access::kubeconfig_context(&path, context, PATIENCE);
        }
        let Ask::Pod { folder, host, port } = Ask::in_pod() else {
            bail!("found no kubeconfig; give one by `--kubeconfig FILE`");
        };
        ensure!(context.is_none(), "found `--context` without a kubeconfig; give one by `--kubeconfig FILE`");
        Access::in_pod(&folder, &host, &port, PATIENCE)
    }

    /// The request for one TARGET of a node's.
    fn request(&self, dst: &str, src: Vec<String>, id: u64) -> TraceRequest {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let ports = |range: &PortRange| Ports {
            protocol: range.protocol.into(),
            first: range.first.into(),
            last: range.last.into(),
        };
        TraceRequest {
            dst: dst.to_owned(),
            src,
            ports: self.ports.iter().map(ports).collect(),
            duration_ms: millis(self.duration),
            // What counts is a path, not a node's part of it.
            count: 0,
            json: true,
            since_ms: self.since.map(millis).unwrap_or_default(),
            id,
        }
    }

    /// Whether only some senders are asked about.
    fn has_sources(&self) -> bool {
        !self.src.is_empty() && !self.src.iter().any(|src| src == "any")
    }
}

impl Agents {
    fn tls(&self) -> Result<Arc<ClientConfig>> {
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
        };
        let own = tls::Own { certificate: read(&self.certificate)?, key: read(&self.key)? };
        let mut config = tls::trusting(&read(&self.ca)?, &format!("`{}`", self.ca.display()), Some(&own))?;
        Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// The kubeconfig of whoever runs us, if there is one.
fn kubeconfig() -> Result<Option<PathBuf>> {
    if let Some(paths) = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        let paths: Vec<_> = std::env::split_paths(&paths).collect();
        ensure!(paths.len() == 1, "KUBECONFIG names {} files; give one by `--kubeconfig FILE`", paths.len());
        return Ok(paths.into_iter().next());
    }
    let path = std::env::home_dir().map(|home| home.join(".kube/config"));
    Ok(path.filter(|path| path.is_file()))
}

/// Traces, until `stop` says so.
async fn trace(
    options: &Options,
    access: Access,
    stop: impl Future<Output = ()>,
    paper: &mut impl Paper,
) -> Result<Outcome> {
    let name = ServerName::try_from(options.agents.name.clone())
        .map_err(|_| anyhow!("`{}` cannot be a name in a certificate", options.agents.name))?;
    let tls = options.agents.tls()?;
    let plan = plan(options, &access).await?;
    tell(&plan, &access, paper);
    let (stopping, stopped) = watch::channel(false);
    let way = Way { access, tls, name, epoch: Instant::now(), stop: stopped };
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    for (node, asked) in asked(options, &plan).into_iter().enumerate() {
        tokio::spawn(session::run(node, way.clone(), asked, sender.clone()));
    }
    drop(sender);
    let mut collect = Collect::new(options, plan);
    let mut end = tokio::time::Instant::now() + options.duration + LATE_MAX;
    let (mut tick, mut stop) = (interval(TICK), std::pin::pin!(stop));
    let mut interrupted = false;
    let mut ending = false;
    loop {
        tokio::select! {
            event = events.recv(), if !collect.is_full() => match event {
                Some((node, event)) => collect.take(node, event, paper),
                None => break,
            },
            _ = tick.tick() => {}
            () = &mut stop, if !interrupted => interrupted = true,
            () = sleep_until(end) => break,
        }
        collect.print(false, paper)?;
        if (interrupted || collect.is_enough() || paper.is_gone()) && !ending {
            ending = true;
            stopping.send_replace(true);
            end = tokio::time::Instant::now() + SUM_UP;
        }
    }
    collect.print(true, paper)?;
    collect.sum_up(interrupted, paper)
}

/// Asks the API server for all that a plan needs.
async fn plan(options: &Options, access: &Access) -> Result<Plan> {
    const LISTS: [&str; 4] = ["pods", "services", "endpointslices", "nodes"];
    let asked = access.clone();
    let answers = tokio::task::spawn_blocking(move || kubernetes::read_named(&asked, &LISTS));
    let answers = answers.await.context("asking the API server broke")?;
    let list = |name: &str| answers.lists.get(name).map(String::as_str);
    let Some(pods) = list("pods") else {
        let why: Vec<_> = answers.missing.iter().map(|missing| missing.why.as_str()).collect();
        bail!("without the cluster's pods there is nobody to ask: {}", why.join("; "));
    };
    let cluster = Cluster {
        pods: decode::pods(pods)?,
        services: list("services").map(decode::services).transpose()?,
        endpoint_slices: list("endpointslices").map(decode::endpoint_slices).transpose()?,
        nodes: list("nodes").map(decode::nodes).transpose()?,
    };
    let mut plan = Plan::new(&cluster, &options.dst, options.agents.port)?;
    plan.notes
        .extend(answers.missing.into_iter().map(|missing| format!("{}: {}", missing.what, missing.why)));
    Ok(plan)
}

/// What every node is asked, in the plan's order.
fn asked(options: &Options, plan: &Plan) -> Vec<Asked> {
    let base = u64::from(std::process::id()) << 32 | u64::from(crate::sys::monotonic().subsec_nanos());
    let mut id = base;
    let of = |node: &PlanNode| {
        let src = sources(options, plan, node);
        let traces = node.targets.iter().map(|dst| {
            id = id.wrapping_add(1);
            options.request(dst, src.clone(), id)
        });
        let traces = traces.collect();
        let plan::Agent { namespace, pod, port } = node.agent.clone();
        Asked { to: PodPort { namespace, pod, port }, traces }
    };
    plan.nodes.iter().map(of).collect()
}

/// The senders that a node is asked about: those that were given, and the other nodes, which may have put themselves in
/// their place.
fn sources(options: &Options, plan: &Plan, node: &PlanNode) -> Vec<String> {
    let mut sources = options.src.clone();
    if options.has_sources() {
        sources.extend(others(plan, &node.name).map(|net| net.to_string()));
    }
    sources
}

/// Addresses that other nodes of a plan may put in a sender's place.
fn others<'p>(plan: &'p Plan, name: &'p str) -> impl Iterator<Item = IpNet> + 'p {
    plan.nodes.iter().filter(move |own| own.name != name).flat_map(|own| own.addresses.iter().copied())
}

/// Says who is asked, and who is not.
fn tell(plan: &Plan, access: &Access, paper: &mut impl Paper) {
    paper.notice(&format!("{}: {} by {}", access.client.base, plan.what, access.origin));
    for node in &plan.nodes {
        let PlanNode { name, agent, backends, receives, .. } = node;
        let has = (!backends.is_empty()).then(|| format!("has {}", backends.join(", ")));
        let receives = receives.then(|| "receives the frontend's packets".to_owned());
        let why: Vec<_> = has.into_iter().chain(receives).collect();
        let plan::Agent { namespace, pod, .. } = agent;
        paper.notice(&format!("node {name} {}: asking its agent {namespace}/{pod}", why.join(" and ")));
    }
    for (name, why) in &plan.blind {
        paper.notice(&format!("node {name} is not traced: {why}"));
    }
    for note in &plan.notes {
        paper.notice(note);
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
