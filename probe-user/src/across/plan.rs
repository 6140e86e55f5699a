//! Which nodes matter to a target, by the Kubernetes API's lists: those with its backends, and those that its frontend's
//! packets come to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use probe_model::world::kubernetes::{EndpointSlice, Node, Pod, Service, TrafficPolicy};

use crate::target::is_of_workload;

/// The label by which agents are found, and its value.
pub const AGENT_LABEL: (&str, &str) = ("app.kubernetes.io/name", "plsprobe");
/// The name of the agents' port in their pods, and what it is where none has that name.
pub const AGENT_PORT: (&str, u16) = ("grpc", 9966);
/// Nodes that are traced at most: each is a connection through the API server.
pub const NODES_MAX: usize = 32;
/// Of them, nodes that only receive what comes to the frontend. A load balancer spreads clients over all of them alike.
pub const RECEIVERS_MAX: usize = 16;
/// Pods of a target at most: each is a trace on every node that receives its frontend's packets.
pub const PODS_MAX: usize = 16;
/// So many names are listed to whoever named something else.
const NAMES_MAX: usize = 10;

/// The lists; `None` for one that may not be read.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Pods.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Option<Vec<Service>>,
    /// Their backends.
    pub endpoint_slices: Option<Vec<EndpointSlice>>,
    /// Nodes.
    pub nodes: Option<Vec<Node>>,
}

/// An agent on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its pod's namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its port for gRPC.
    pub port: u16,
}

/// A node that is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNode {
    /// Its name.
    pub name: String,
    /// The agent there.
    pub agent: Agent,
    /// Backends there, `namespace/pod`.
    pub backends: Vec<String>,
    /// Whether the frontend's packets may come there.
    pub receives: bool,
    /// What its agent is asked to trace: a TARGET each.
    pub targets: Vec<String>,
    /// Addresses that it may put in a sender's place.
    pub addresses: Vec<IpNet>,
}

/// Nodes, and who is asked there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is traced, in words.
    pub what: String,
    /// Nodes in order of their names.
    pub nodes: Vec<PlanNode>,
    /// Nodes that matter and cannot be asked, and why.
    pub blind: BTreeMap<String, String>,
    /// What else an answer lacks.
    pub notes: Vec<String>,
    /// Backends' addresses: their node and pod.
    pub owners: BTreeMap<IpAddr, (String, String)>,
}

/// What a TARGET is in the cluster.
enum Target<'c> {
    Service(&'c Service),
    Pods(Vec<&'c Pod>),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "svc/{}/{}", service.namespace, service.name),
            Self::Pods(pods) => {
                let names: Vec<_> = pods.iter().map(|pod| pod_name(pod)).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

fn pod_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

impl Plan {
    /// Finds the nodes that matter to `dst`. `port` is the agents', if it is another than their pods say.
    ///
    /// # Errors
    ///
    /// For a target that is not in the cluster or on too many nodes, or where there is no agent at all.
    pub fn new(cluster: &Cluster, dst: &str, port: Option<u16>) -> Result<Self> {
        let target = cluster.resolve(dst)?;
        let mut plan = Self { what: target.to_string(), ..Self::default() };
        let backends = cluster.backends(&target);
        for pod in &backends {
            let owner = (pod.node.clone(), pod_name(pod));
            plan.owners.extend(pod.addresses.iter().map(|address| (*address, owner.clone())));
        }
        let mut homes: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
        for pod in backends.iter().filter(|pod| !pod.node.is_empty()) {
            homes.entry(&pod.node).or_default().push(pod);
        }
        ensure!(!homes.is_empty(), "no backend of {target} is on a node: is any of its pods running?");
        let services = cluster.services_before(&target, &backends);
        let receivers = cluster.receivers(&services, &mut plan.notes);
        let agents = cluster.agents(port);
        plan.add_nodes(cluster, &target, &backends, &homes, &receivers, &agents)?;
        plan.note_missing(cluster);
        Ok(plan)
    }

    fn add_nodes(
        &mut self,
        cluster: &Cluster,
        target: &Target<'_>,
        backends: &[&Pod],
        homes: &BTreeMap<&str, Vec<&Pod>>,
        receivers: &BTreeSet<&str>,
        agents: &BTreeMap<&str, Result<Agent, String>>,
    ) -> Result<()> {
        let home = homes.len();
        ensure!(
            home <= NODES_MAX,
            "{target} has backends on {home} nodes, at most {NODES_MAX} are traced at once; give one of its pods"
        );
        let names: BTreeSet<&str> = homes.keys().chain(receivers).copied().collect();
        let mut room = RECEIVERS_MAX.min(NODES_MAX - home);
        let mut left_out = 0;
        for name in names {
            let own = homes.get(name).map(Vec::as_slice).unwrap_or_default();
            let agent = match agents.get(name) {
                Some(Ok(agent)) => agent.clone(),
                Some(Err(why)) => {
                    self.blind.insert(name.to_owned(), why.clone());
                    continue;
                }
                None => {
                    self.blind.insert(name.to_owned(), "it has no agent".to_owned());
                    continue;
                }
            };
            if own.is_empty() && room == 0 {
                left_out += 1;
                continue;
            }
            room -= usize::from(own.is_empty());
            self.nodes.push(PlanNode {
                name: name.to_owned(),
                agent,
                backends: own.iter().map(|pod| pod_name(pod)).collect(),
                receives: receivers.contains(name),
                targets: targets(target, backends, own, receivers.contains(name)),
                addresses: cluster.addresses(name),
            });
        }
        if left_out > 0 {
            self.notes.push(format!(
                "{left_out} more nodes may receive the frontend's packets and are not traced: at most {RECEIVERS_MAX} that have no backend are"
            ));
        }
        if self.nodes.is_empty() {
            let (label, value) = AGENT_LABEL;
            let blind: Vec<_> = self.blind.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            bail!(
                "no node that matters to {target} has an agent that can be asked ({}); agents are pods with the label `{label}={value}`",
                blind.join("; ")
            );
        }
        Ok(())
    }

    fn note_missing(&mut self, cluster: &Cluster) {
        let lists = [
            (
                "services",
                cluster.services.is_none(),
                "which nodes receive the frontend's packets is not known",
            ),
            (
                "endpointslices",
                cluster.endpoint_slices.is_none(),
                "which Services lead to the pods is not known",
            ),
            (
                "nodes",
                cluster.nodes.is_none(),
                "nodes without a backend are not traced, and what a node put in a sender's place is not recognized under `--src`",
            ),
        ];
        for (list, _, cost) in lists.iter().filter(|(_, is_missing, _)| *is_missing) {
            self.notes.push(format!("{list} could not be listed: {cost}"));
        }
    }
}

/// What the agent of a node is asked for. It knows pods of its own by name, and those of others by address.
fn targets(target: &Target<'_>, backends: &[&Pod], own: &[&Pod], receives: bool) -> Vec<String> {
    if let Target::Service(service) = target {
        return vec![format!("svc/{}/{}", service.namespace, service.name)];
    }
    let is_own = |pod: &&&Pod| own.iter().any(|own| pod_name(own) == pod_name(pod));
    let address =
        |pod: &&Pod| pod.addresses.iter().min_by_key(|address| address.is_ipv6()).map(IpAddr::to_string);
    let names = own.iter().map(|pod| pod_name(pod));
    let others = backends.iter().filter(|pod| receives && !is_own(pod)).filter_map(address);
    names.chain(others).collect()
}

impl Cluster {
    fn resolve(&self, dst: &str) -> Result<Target<'_>> {
        if let Ok(address) = dst.parse::<IpAddr>() {
            return self.resolve_address(address);
        }
        ensure!(dst.parse::<IpNet>().is_err(), "`{dst}` is a prefix, which is on no node: trace it on one");
        ensure!(!dst.starts_with("ep/"), "`{dst}` is one node's own number: give the pod's name");
        if let Some(name) = dst.strip_prefix("svc/") {
            return self.resolve_service(name);
        }
        let (namespace, name) =
            dst.split_once('/').map_or((None, dst), |(namespace, name)| (Some(namespace), name));
        let running = self.pods.iter().filter(|pod| pod.phase != "Succeeded" && pod.phase != "Failed");
        let here = running.filter(|pod| namespace.is_none_or(|wanted| wanted == pod.namespace));
        let found: Vec<_> = if let Some((key, value)) = dst.split_once('=') {
            here.filter(|pod| pod.labels.get(key).is_some_and(|own| own == value)).collect()
        } else {
            let (exact, others): (Vec<_>, Vec<_>) = here.partition(|pod| pod.name == name);
            let of_it = others.into_iter().filter(|pod| is_of_workload(&pod.name, name));
            if exact.is_empty() { of_it.collect() } else { exact }
        };
        let namespaces: BTreeSet<_> = found.iter().map(|pod| pod.namespace.as_str()).collect();
        match namespaces.len() {
            0 => bail!(
                "unknown target `{dst}`; expected a pod or its workload, NAMESPACE/POD, svc/NAME, key=value or an address of the cluster{}",
                near(&self.pods, name)
            ),
            1 => {}
            _ => bail!(
                "`{dst}` is ambiguous: there are such pods in {}; give NAMESPACE/NAME",
                namespaces.into_iter().collect::<Vec<_>>().join(", ")
            ),
        }
        ensure!(
            found.len() <= PODS_MAX,
            "`{dst}` is {} pods, at most {PODS_MAX} are traced at once; give their Service as svc/NAME",
            found.len()
        );
        Ok(Target::Pods(found))
    }

    fn resolve_address(&self, address: IpAddr) -> Result<Target<'_>> {
        let has = |addresses: &[IpAddr]| addresses.contains(&address);
        // A pod on its node's network has the node's address, as all of them there.
        let pods: Vec<_> = self.pods.iter().filter(|pod| !pod.host_network && has(&pod.addresses)).collect();
        if !pods.is_empty() {
            return Ok(Target::Pods(pods));
        }
        let mut services = self.services.iter().flatten();
        let service = services.find(|service| has(&service.ingress) || has(&service.cluster_ips));
        service
            .map(Target::Service)
            .with_context(|| format!("`{address}` is no pod's and no Service's: trace it on a node"))
    }

    fn resolve_service(&self, name: &str) -> Result<Target<'_>> {
        let services = self.services.as_ref().context("Services could not be listed; give a pod")?;
        ensure!(self.endpoint_slices.is_some(), "EndpointSlices could not be listed; give a pod");
        let (namespace, wanted) =
            name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
        let fits = |service: &&Service| {
            service.name == wanted && namespace.is_none_or(|wanted| wanted == service.namespace)
        };
        let found: Vec<_> = services.iter().filter(fits).collect();
        match found.as_slice() {
            [service] => Ok(Target::Service(service)),
            [] => bail!("unknown Service `svc/{name}`; give svc/NAME or svc/NAMESPACE/NAME"),
            several => {
                let names: Vec<_> =
                    several.iter().map(|own| format!("svc/{}/{}", own.namespace, own.name)).collect();
                bail!("`svc/{name}` is ambiguous: {}; give one of them", names.join(", "))
            }
        }
    }

    fn slices<'c>(&'c self, service: &'c Service) -> impl Iterator<Item = &'c EndpointSlice> {
        let all = self.endpoint_slices.iter().flatten();
        all.filter(|slice| slice.namespace == service.namespace && slice.service == service.name)
    }

    /// The pods behind a target.
    fn backends<'c>(&'c self, target: &Target<'c>) -> Vec<&'c Pod> {
        let service = match target {
            Target::Pods(pods) => return pods.clone(),
            Target::Service(service) => service,
        };
        let names: BTreeSet<_> = self
            .slices(service)
            .flat_map(|slice| &slice.endpoints)
            .filter_map(|backend| backend.pod.as_deref())
            .collect();
        let is_backend = |pod: &&Pod| pod.namespace == service.namespace && names.contains(pod.name.as_str());
        self.pods.iter().filter(is_backend).collect()
    }

    /// Services that lead to the target and take connections from outside the cluster.
    fn services_before<'c>(&'c self, target: &Target<'c>, backends: &[&Pod]) -> Vec<&'c Service> {
        let is_outside = |service: &&Service| matches!(service.kind.as_str(), "LoadBalancer" | "NodePort");
        if let Target::Service(service) = target {
            return Some(*service).filter(is_outside).into_iter().collect();
        }
        let leads = |service: &&Service| {
            let mut endpoints = self.slices(service).flat_map(|slice| &slice.endpoints);
            endpoints.any(|endpoint| {
                let is_it = |pod: &&Pod| {
                    pod.namespace == service.namespace && Some(&pod.name) == endpoint.pod.as_ref()
                };
                backends.iter().any(is_it)
            })
        };
        self.services.iter().flatten().filter(is_outside).filter(leads).collect()
    }

    /// Nodes that the services' frontends' packets may come to.
    fn receivers<'c>(&'c self, services: &[&'c Service], notes: &mut Vec<String>) -> BTreeSet<&'c str> {
        let mut found = BTreeSet::new();
        for service in services {
            if service.external_traffic_policy == Some(TrafficPolicy::Local) {
                let endpoints = self.slices(service).flat_map(|slice| &slice.endpoints);
                found.extend(endpoints.filter(|own| own.is_ready).filter_map(|own| own.node.as_deref()));
                continue;
            }
            let ready = self.nodes.iter().flatten().filter(|node| node.is_ready);
            let (others, receiving): (Vec<_>, Vec<_>) = ready.partition(|node| node.is_excluded);
            found.extend(receiving.into_iter().map(|node| node.name.as_str()));
            if !others.is_empty() {
                notes.push(format!(
                    "{} nodes are excluded from load balancers and are traced only if they have a backend",
                    others.len()
                ));
            }
        }
        notes.dedup();
        found
    }

    /// Agents by their nodes, or why the one there cannot be asked.
    fn agents(&self, port: Option<u16>) -> BTreeMap<&str, Result<Agent, String>> {
        let (label, value) = AGENT_LABEL;
        let is_agent =
            |pod: &&Pod| pod.labels.get(label).is_some_and(|own| own == value) && !pod.node.is_empty();
        let mut agents: BTreeMap<&str, Result<Agent, String>> = BTreeMap::new();
        for pod in self.pods.iter().filter(is_agent) {
            let named = pod.ports.iter().find(|own| own.name == AGENT_PORT.0).map(|own| own.port);
            let agent = if pod.is_ready && pod.phase == "Running" {
                let port = port.or(named).unwrap_or(AGENT_PORT.1);
                Ok(Agent { namespace: pod.namespace.clone(), pod: pod.name.clone(), port })
            } else {
                Err(format!("its agent {} is not ready", pod_name(pod)))
            };
            // While one takes another's place, there are two.
            let known = agents.get(pod.node.as_str());
            if known.is_none_or(Result::is_err) {
                agents.insert(&pod.node, agent);
            }
        }
        agents
    }

    /// The addresses of a node, and of pods on it: in a tunnel a node answers by one of these.
    fn addresses(&self, name: &str) -> Vec<IpNet> {
        let mut nodes = self.nodes.iter().flatten();
        let Some(node) = nodes.find(|node| node.name == name) else { return Vec::new() };
        node.addresses
            .iter()
            .map(|address| IpNet::from(*address))
            .chain(node.pod_cidrs.iter().copied())
            .collect()
    }
}

/// Names that begin alike, for a typing mistake.
fn near(pods: &[Pod], name: &str) -> String {
    let beginning: String = name.chars().take(3).collect();
    let alike = pods.iter().filter(|pod| pod.name.starts_with(&beginning));
    let names: Vec<_> = alike.take(NAMES_MAX).map(pod_name).collect();
    if names.is_empty() { String::new() } else { format!("; there are {}", names.join(", ")) }
}

#[cfg(test)]
pub(super) mod tests;
