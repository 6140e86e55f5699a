//! TARGET and SRC as operators write them, resolved against a [`World`]: by the Kubernetes API as far as it is known, else
//! by Cilium's agent, else by the maps alone.

mod places;

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use probe_model::cilium::EndpointId;
use probe_model::explain::AZURE_PROBE;
use probe_model::tuple::Protocol;
use probe_model::world::World;
use probe_model::world::kubernetes::Service;
use probe_model::world::nat::{Confidence, nat_sources};

pub use places::{Place, place_of};

use crate::selector::Selector;

/// How many candidates an error names.
const CANDIDATES: usize = 10;

/// What a TARGET stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pod of this node.
    Endpoint(EndpointId),
    /// A service's frontends.
    Service(Vec<(IpAddr, u16)>),
    /// An address that is neither.
    Address(IpAddr),
}

/// A name with port and protocol, `pls-app:80/tcp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The name or address.
    pub name: String,
    /// Port, if given.
    pub port: Option<u16>,
    /// Protocol, if given.
    pub protocol: Option<Protocol>,
}

impl Spec {
    /// Splits `NAME[:PORT[/PROTO]]`; an address may also carry a protocol alone (`10.0.0.143/icmp`).
    ///
    /// # Errors
    ///
    /// If port or protocol cannot be read.
    pub fn parse(text: &str) -> Result<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { name: address.to_string(), port: None, protocol: None });
        }
        if let Some((address, protocol)) = text.split_once('/')
            && address.parse::<IpAddr>().is_ok()
        {
            return Ok(Self {
                name: address.to_owned(),
                port: None,
                protocol: Some(parse_protocol(protocol)?),
            });
        }
        let Some((name, rest)) = text.rsplit_once(':') else {
            return Ok(Self { name: text.to_owned(), port: None, protocol: None });
        };
        let (port, protocol) = match rest.split_once('/') {
            Some((port, protocol)) => (port, Some(parse_protocol(protocol)?)),
            None => (rest, None),
        };
        let Ok(port) = port.parse() else {
            bail!(
                "found port `{port}` in `{text}`, expected a number from 0 to 65535 as in `pls-app:80/tcp`"
            );
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { name, port: Some(port), protocol })
    }
}

fn parse_protocol(text: &str) -> Result<Protocol> {
    match Protocol::parse(text) {
        Some(protocol) => Ok(protocol),
        None => bail!("found protocol `{text}`, expected tcp, udp, icmp, sctp or a number"),
    }
}

/// Resolves a TARGET: pod name, `namespace/pod`, `svc/NAME`, `svc/NAMESPACE/NAME`, a label selector such as
/// `app=pls-app,tier!=db`, an address, or `ep/ID`.
///
/// A pod name may be its workload's (`pls-app` for `pls-app-7d9c5bd5f4-x2v8q`) where that is one pod. Pods of this node
/// come before those of others, which are an address here: [`place_of`] says whose, and on which node.
///
/// # Errors
///
/// For an unknown or ambiguous name; the message lists the candidates.
pub fn resolve(world: &World, name: &str) -> Result<Target> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(of_address(world, address));
    }
    if let Some(id) = name.strip_prefix("ep/") {
        let known = id.parse().ok().map(EndpointId).filter(|id| world.endpoints.contains_key(id));
        return match known {
            Some(id) => Ok(Target::Endpoint(id)),
            None => bail!("unknown endpoint `{name}`; {}", candidates(world, name)),
        };
    }
    if let Some(service) = name.strip_prefix("svc/") {
        return resolve_service(world, service);
    }
    let found = pods(world, name)?;
    let is_here = found.iter().any(|place| place.endpoint.is_some());
    let nearest: Vec<_> = found.iter().filter(|place| place.endpoint.is_some() == is_here).collect();
    match nearest.as_slice() {
        [] => bail!("unknown target `{name}`; {}", candidates(world, name)),
        [place] => match (place.endpoint, place.address()) {
            (Some(id), _) => Ok(Target::Endpoint(id)),
            (None, Some(address)) => Ok(Target::Address(address)),
            (None, None) => bail!("`{name}` has no address: it has not begun to run, or has ended"),
        },
        several => bail!("`{name}` is ambiguous: {}; give one of them", listed(several.iter().copied())),
    }
}

/// Every pod that a TARGET stands for, on whatever node: by its name, by labels, or as a backend of a service.
///
/// # Errors
///
/// If the name is unknown, or no pod's; the message lists the candidates.
pub fn places<'w>(world: &'w World, name: &str) -> Result<Vec<Place<'w>>> {
    if let Some(service) = name.strip_prefix("svc/") {
        let service = service_named(world, service)?;
        let Some(service) = service else {
            bail!("the Kubernetes API does not know `{name}`, or was not asked")
        };
        return Ok(places::backends(world, &service.namespace, &service.name));
    }
    let found = match (resolve(world, name), name.parse::<IpAddr>()) {
        (_, Ok(address)) => place_of(world, address).into_iter().collect(),
        (Ok(Target::Endpoint(id)), _) if name.starts_with("ep/") => places::known(world, &|_, _| false)
            .into_iter()
            .filter(|place| place.endpoint == Some(id))
            .collect(),
        _ => pods(world, name)?,
    };
    if found.is_empty() {
        bail!("unknown target `{name}`; {}", candidates(world, name));
    }
    Ok(found)
}

/// TARGETs for every Service that asks for a Private Link service, as `svc/NAMESPACE/NAME`.
pub fn private_link_targets(world: &World) -> Vec<String> {
    let services = world.kubernetes.services.iter().flatten();
    let mut all: Vec<_> =
        services.filter(|own| own.wants_private_link()).map(|own| format!("svc/{own}")).collect();
    all.sort();
    all
}

/// Resolves a SRC for a single question: what [`resolve`] takes, `probe` (Azure's health probe), or `host`.
///
/// # Errors
///
/// As [`resolve`]; also for a pod or host without an address.
pub fn resolve_source(world: &World, name: &str) -> Result<IpAddr> {
    match name {
        "probe" => return Ok(AZURE_PROBE.into()),
        "host" => {
            let uplink = world.uplink().and_then(|uplink| world.primary_address(uplink)).map(IpAddr::from);
            return match uplink.or_else(|| world.host_addresses().first().copied()) {
                Some(address) => Ok(address),
                None => bail!("no source knows an address of this node; give it as `--src ADDRESS`"),
            };
        }
        "pls" => return nat_ip(world),
        _ => {}
    }
    match resolve(world, name)? {
        Target::Address(address) => Ok(address),
        Target::Endpoint(id) => endpoint_address(world, id),
        Target::Service(_) => bail!("`{name}` is a service, which sends nothing; give a pod or an address"),
    }
}

/// The NAT IPs of Private Link, as far as they are known one by one; else the prefixes that they are in.
///
/// # Errors
///
/// If nobody says any. What only looks like one is none.
pub fn nat_nets(world: &World) -> Result<Vec<IpNet>> {
    let known = nat_sources(world);
    let of = |wanted: fn(Confidence) -> bool| -> Vec<IpNet> {
        known.sources.iter().filter(|own| wanted(own.confidence())).map(|own| own.prefix).collect()
    };
    let mut nets = of(|own| !matches!(own, Confidence::Range | Confidence::Suspected));
    if nets.is_empty() {
        nets = of(|own| own == Confidence::Range);
    }
    nets.sort();
    nets.dedup();
    if nets.is_empty() {
        bail!(
            "no NAT IP of Private Link is known; give each by `--pls-nat-ip IP`, or ask Azure by `--azure`"
        );
    }
    Ok(nets)
}

/// The NAT IP, if there is one.
fn nat_ip(world: &World) -> Result<IpAddr> {
    let nets = nat_nets(world)?;
    match nets.as_slice() {
        [net] if net.prefix_len() == net.max_prefix_len() => Ok(net.addr()),
        _ => {
            let known: Vec<_> = nets.iter().map(ToString::to_string).collect();
            bail!("`pls` stands for {}; give one address of these", known.join(", "))
        }
    }
}

/// An endpoint's address, IPv4 first.
///
/// # Errors
///
/// If no source knows one.
pub fn endpoint_address(world: &World, id: EndpointId) -> Result<IpAddr> {
    let addresses =
        world.endpoints.get(&id).map(|endpoint| endpoint.addresses.as_slice()).unwrap_or_default();
    match addresses.iter().min_by_key(|address| address.is_ipv6()) {
        Some(address) => Ok(*address),
        None => bail!("no source knows an address of endpoint {id}"),
    }
}

fn of_address(world: &World, address: IpAddr) -> Target {
    let endpoint = world
        .endpoints
        .values()
        .find(|endpoint| endpoint.addresses.contains(&address) && !endpoint.is_host());
    endpoint.map_or(Target::Address(address), |endpoint| Target::Endpoint(endpoint.id))
}

/// Pods of this very name, else of a workload of this name, `namespace/` before it narrows; or with these labels.
fn pods<'w>(world: &'w World, name: &str) -> Result<Vec<Place<'w>>> {
    if Selector::is_meant(name) {
        let selector = Selector::parse(name).map_err(anyhow::Error::msg)?;
        // Of whom nobody says any labels it is not known that one is not there.
        let selected = |place: &Place<'_>| {
            place.address().is_some() && place.labels().is_some_and(|labels| selector.matches(&labels))
        };
        return Ok(places::known(world, &|_, _| true).into_iter().filter(selected).collect());
    }
    let (namespace, name) =
        name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    let known = places::known(world, &|of, pod| {
        namespace.is_none_or(|wanted| wanted == of) && (pod == name || is_of_workload(pod, name))
    });
    let with = |fits: &dyn Fn(&str) -> bool| -> Vec<Place<'w>> {
        let fitting = |place: &&Place<'_>| {
            let pod = place.pod.as_ref();
            pod.is_some_and(|pod| fits(&pod.name) && namespace.is_none_or(|wanted| wanted == pod.namespace))
        };
        known.iter().filter(fitting).cloned().collect()
    };
    let exact = with(&|pod| pod == name);
    Ok(if exact.is_empty() { with(&|pod| is_of_workload(pod, name)) } else { exact })
}

/// `pls-app-7d9c5bd5f4-x2v8q`, `pls-app-x2v8q` or `pls-app-0` are of the workload `pls-app`; `pls-app-canary-…` and
/// `pls-app-proxy` are not.
pub(crate) fn is_of_workload(pod: &str, workload: &str) -> bool {
    let Some(suffix) = pod.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    match suffix.split_once('-') {
        Some((hash, id)) => {
            (1..=10).contains(&hash.len()) && is_generated(hash) && id.len() == 5 && is_generated(id)
        }
        None if suffix.len() == 5 && is_generated(suffix) => true,
        None => !suffix.is_empty() && suffix.chars().all(|c| c.is_ascii_digit()),
    }
}

/// Whether Kubernetes could have made it up: its names use these letters only, so that no words come about.
///
/// Source: `SafeEncodeString`, Kubernetes `k8s.io/apimachinery/pkg/util/rand`.
fn is_generated(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c))
}

/// The Service of this name by the Kubernetes API; `None` if it knows none.
fn service_named<'w>(world: &'w World, name: &str) -> Result<Option<&'w Service>> {
    let (namespace, service) =
        name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    let fits = |own: &&Service| own.name == service && namespace.is_none_or(|wanted| wanted == own.namespace);
    let found: Vec<_> = world.kubernetes.services.iter().flatten().filter(fits).collect();
    match found.as_slice() {
        [] => Ok(None),
        [service] => Ok(Some(service)),
        several => {
            let names: Vec<_> = several.iter().map(|own| format!("svc/{own}")).collect();
            bail!("`svc/{name}` is ambiguous: {}; give one of them", names.join(", "))
        }
    }
}

fn resolve_service(world: &World, name: &str) -> Result<Target> {
    if let Some(service) = service_named(world, name)? {
        let frontends = frontends(world, service);
        if !frontends.is_empty() {
            return Ok(Target::Service(frontends));
        }
        let backends = places::backends(world, &service.namespace, &service.name);
        if backends.is_empty() {
            bail!("`svc/{name}` has no address and no backend");
        }
        bail!("`svc/{name}` has no address of its own; give one of its backends: {}", listed(&backends));
    }
    let (namespace, service) =
        name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
    let named = world.service_names.iter().filter(|known| !known.name.is_empty());
    let fits = |known: &&probe_model::world::ServiceName| {
        known.name == service && namespace.is_none_or(|wanted| wanted == known.namespace)
    };
    let fitting: Vec<_> = named.clone().filter(fits).collect();
    let mut names: Vec<_> = fitting.iter().map(|own| format!("svc/{}/{}", own.namespace, own.name)).collect();
    names.sort();
    names.dedup();
    if names.len() > 1 {
        bail!("`svc/{name}` is ambiguous: {}; give one of them", names.join(", "));
    }
    if !fitting.is_empty() {
        return Ok(Target::Service(fitting.iter().map(|known| (known.address, known.port)).collect()));
    }
    let by_agent = named.map(|known| format!("svc/{}/{}", known.namespace, known.name));
    let by_api = world.kubernetes.services.iter().flatten().map(|own| format!("svc/{own}"));
    let mut known: Vec<_> = by_agent.chain(by_api).collect();
    known.sort();
    known.dedup();
    if known.is_empty() {
        bail!(
            "unknown service `svc/{name}`: the agent names no services here; give the frontend's address instead"
        )
    }
    known.sort_by_cached_key(|own| distance(service, own.rsplit('/').next().unwrap_or_default()));
    let more = known.len().saturating_sub(CANDIDATES);
    known.truncate(CANDIDATES);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    bail!("unknown service `svc/{name}`; known are {}{more}", known.join(", "))
}

/// Where a service can be reached: at its load balancer, in the cluster, and at this node's own ports.
fn frontends(world: &World, service: &Service) -> Vec<(IpAddr, u16)> {
    let addresses = service.ingress.iter().chain(&service.cluster_ips);
    let mut all: Vec<_> =
        addresses.flat_map(|ip| service.ports.iter().map(|port| (*ip, port.port))).collect();
    let node = world.uplink().and_then(|uplink| world.primary_address(uplink)).map(IpAddr::from);
    let node_ports = service.ports.iter().filter_map(|port| port.node_port);
    all.extend(node_ports.filter_map(|port| Some((node?, port))));
    // A port of several protocols is one here.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|frontend| seen.insert(*frontend));
    all
}

fn listed<'p, 'w: 'p>(places: impl IntoIterator<Item = &'p Place<'w>>) -> String {
    let mut text = String::new();
    let mut places = places.into_iter();
    for (idx, place) in places.by_ref().take(CANDIDATES).enumerate() {
        let comma = if idx == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{place}");
    }
    let more = places.count();
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// Near names first, then how else a target can be given.
fn candidates(world: &World, wanted: &str) -> String {
    let short = wanted.rsplit('/').next().unwrap_or(wanted);
    let mut known = places::known(world, &|_, _| true);
    // Those of one distance stay in the order that they have: by endpoint, by name.
    known.sort_by_cached_key(|place| distance(short, place.pod.as_ref().map_or("", |pod| &pod.name)));
    let (here, elsewhere): (Vec<_>, Vec<_>) = known.into_iter().partition(|place| place.endpoint.is_some());
    let mut text = Vec::new();
    if !here.is_empty() {
        text.push(format!("pods on this node: {}", listed(&here)));
    }
    if !elsewhere.is_empty() {
        text.push(format!("other pods: {}", listed(&elsewhere)));
    }
    let services = world.kubernetes.services.iter().flatten().filter(|own| own.name == short);
    let services: Vec<_> = services.map(|own| format!("svc/{own}")).collect();
    if !services.is_empty() {
        text.push(format!("or the service {}", services.join(", ")));
    }
    if text.is_empty() { "no pod of this node is known; give an address".to_owned() } else { text.join("; ") }
}

/// Edits between `wanted` and the beginning of `name`: how far a typing mistake is.
fn distance(wanted: &str, name: &str) -> usize {
    let wanted: Vec<_> = wanted.chars().collect();
    let mut row: Vec<usize> = (0..=wanted.len()).collect();
    let mut best = wanted.len();
    for (idx, c) in name.chars().enumerate() {
        let mut next = vec![idx + 1];
        for (at, w) in wanted.iter().enumerate() {
            let substituted = row[at] + usize::from(*w != c);
            next.push(substituted.min(row[at + 1] + 1).min(next[at] + 1));
        }
        row = next;
        best = best.min(row[wanted.len()]);
    }
    best
}

#[cfg(test)]
mod tests {
    use probe_model::cilium::identity::Identity;
    use probe_model::tuple::Protocol;
    use probe_model::world::kubernetes::{
        Backend, EndpointSlice, Kubernetes, Pod, PortRef, Service, ServicePort,
    };
    use probe_model::world::{Endpoint, PodName, ServiceName};

    use super::*;

    const HERE: &str = "pls-app-7d9c5bd5f4-x2v8q";
    const ELSEWHERE: &str = "pls-app-7d9c5bd5f4-bbbbb";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn endpoint(id: u16, pod: Option<&str>, own: &str, labels: &[&str]) -> (EndpointId, Endpoint) {
        let id = EndpointId(id);
        let endpoint = Endpoint {
            id,
            identity: Identity(10_000),
            pod: pod.map(|name| PodName { namespace: "default".to_owned(), name: name.to_owned() }),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            addresses: vec![address(own)],
            interface: None,
            policy: None,
        };
        (id, endpoint)
    }

    fn pod(namespace: &str, name: &str, node: &str, own: &[&str], labels: &[(&str, &str)]) -> Pod {
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            addresses: own.iter().map(|own| address(own)).collect(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Pod::default()
        }
    }

    fn service(namespace: &str, name: &str, cluster_ip: &str, ingress: &[&str]) -> Service {
        let port = |port| ServicePort {
            name: String::new(),
            protocol: Protocol::TCP,
            port,
            target_port: PortRef::Number(port),
            node_port: None,
            app_protocol: None,
        };
        Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster_ips: cluster_ip.parse().into_iter().collect(),
            ingress: ingress.iter().map(|own| address(own)).collect(),
            ports: vec![port(80), port(443), port(80)],
            ..Service::default()
        }
    }

    fn backend(pod: &str, node: &str, own: &str) -> Backend {
        Backend {
            addresses: vec![address(own)],
            pod: Some(pod.to_owned()),
            node: Some(node.to_owned()),
            ..Backend::default()
        }
    }

    fn slice(service: &str, endpoints: Vec<Backend>) -> EndpointSlice {
        EndpointSlice {
            namespace: "default".to_owned(),
            name: format!("{service}-1"),
            service: service.to_owned(),
            endpoints,
            ports: Vec::new(),
        }
    }

    /// A node with a pod that the agent names and one that it does not, in a cluster that has more.
    fn world() -> World {
        let endpoints = [
            endpoint(
                1157,
                Some(HERE),
                "10.0.0.143",
                &["k8s:app=pls-app", "k8s:io.cilium.k8s.policy.cluster=c"],
            ),
            endpoint(340, None, "10.0.0.7", &[]),
        ];
        let pods = vec![
            pod("default", HERE, "aks-1", &["10.0.0.143"], &[("app", "pls-app"), ("tier", "web")]),
            pod("other", "my-nginx-0", "aks-1", &["10.0.0.7", "fd00::7"], &[("app", "nginx")]),
            pod("default", ELSEWHERE, "aks-2", &["10.0.2.9"], &[("app", "pls-app"), ("tier", "db")]),
            pod("default", "alone-0", "aks-2", &["fd00::9", "10.0.2.10"], &[("tier", "db")]),
            pod("default", "pending-0", "", &[], &[("app", "pending")]),
        ];
        let slices = vec![slice(
            "pls-app",
            vec![
                backend(HERE, "aks-1", "10.0.0.143"),
                backend(ELSEWHERE, "aks-2", "10.0.2.9"),
                backend("unlisted-0", "aks-3", "10.0.3.9"),
            ],
        )];
        let headless = service("default", "headless", "None", &[]);
        let services = vec![
            service("default", "pls-app", "10.0.167.20", &["10.224.0.7"]),
            service("a", "twice", "10.0.167.21", &[]),
            service("b", "twice", "10.0.167.22", &[]),
            headless,
        ];
        let kubernetes = Kubernetes {
            services: Some(services.into()),
            pods: Some(pods.into()),
            endpoint_slices: Some(slices.into()),
            ..Kubernetes::default()
        };
        World { endpoints: endpoints.into(), kubernetes, ..World::default() }
    }

    #[track_caller]
    fn check(world: &World, name: &str, expected: &Target) {
        assert_eq!(&resolve(world, name).unwrap(), expected, "{name}");
    }

    #[track_caller]
    fn check_error(world: &World, name: &str, expected: &str) {
        assert_eq!(resolve(world, name).unwrap_err().to_string(), expected, "{name}");
    }

    #[test]
    fn pods_by_the_api() {
        let world = world();
        let here = Target::Endpoint(EndpointId(1157));
        // The workload has pods of other nodes too: the one here is meant.
        for name in [HERE, "pls-app", "default/pls-app", "10.0.0.143", "ep/1157", "app=pls-app"] {
            check(&world, name, &here);
        }
        // The agent does not name it; the API does, by its address.
        for name in ["my-nginx-0", "my-nginx", "other/my-nginx", "app=nginx", "tier!=web,app=nginx"] {
            check(&world, name, &Target::Endpoint(EndpointId(340)));
        }
        // By labels that Cilium's agent adds, and with its source.
        for name in ["io.cilium.k8s.policy.cluster=c", "k8s:app=pls-app", "k8s:tier=web"] {
            check(&world, name, &here);
        }
        let elsewhere = Target::Address(address("10.0.2.9"));
        for name in [ELSEWHERE, "tier=db,app=pls-app", "app in (pls-app),tier notin (web)"] {
            check(&world, name, &elsewhere);
        }
        // Of a pod that the slices alone know nobody says the labels: it may have them or not.
        check(&world, "!tier", &Target::Endpoint(EndpointId(340)));
        assert_eq!(places(&world, "!tier").unwrap().len(), 1);
        check(&world, "alone", &Target::Address(address("10.0.2.10")));
        check(&world, "unlisted-0", &Target::Address(address("10.0.3.9")));
    }

    #[test]
    fn without_the_api() {
        let world = World { kubernetes: Kubernetes::default(), ..world() };
        for name in ["pls-app", HERE, "app=pls-app", "k8s:app=pls-app"] {
            check(&world, name, &Target::Endpoint(EndpointId(1157)));
        }
        check_error(
            &world,
            "my-nginx",
            "unknown target `my-nginx`; pods on this node: endpoint 340 (ep/340, 10.0.0.7), \
             default/pls-app-7d9c5bd5f4-x2v8q (ep/1157, 10.0.0.143)",
        );
        check_error(
            &World::default(),
            "x",
            "unknown target `x`; no pod of this node is known; give an address",
        );
    }

    #[test]
    fn names_that_nobody_or_more_than_one_has() {
        let world = world();
        check_error(
            &world,
            "pls-ap",
            "unknown target `pls-ap`; pods on this node: default/pls-app-7d9c5bd5f4-x2v8q (ep/1157, 10.0.0.143), \
             other/my-nginx-0 (ep/340, 10.0.0.7); other pods: default/pls-app-7d9c5bd5f4-bbbbb (10.0.2.9 on aks-2), \
             default/alone-0 (10.0.2.10 on aks-2), default/pending-0 (without an address), default/unlisted-0 (10.0.3.9 on aks-3)",
        );
        check_error(
            &world,
            "tier=db",
            "`tier=db` is ambiguous: default/pls-app-7d9c5bd5f4-bbbbb (10.0.2.9 on aks-2), default/alone-0 (10.0.2.10 on aks-2); \
             give one of them",
        );
        check_error(&world, "pending", "`pending` has no address: it has not begun to run, or has ended");
        let told = resolve(&world, "twice").unwrap_err().to_string();
        assert!(told.ends_with("; or the service svc/a/twice, svc/b/twice"), "{told}");
        let told = resolve(&world, "app=").unwrap_err().to_string();
        assert!(told.starts_with("unknown target `app=`; pods on this node: "), "{told}");
        let told = resolve(&world, "app in (x").unwrap_err().to_string();
        assert!(told.starts_with("`app in (x` is no label selector; expected"), "{told}");
    }

    #[test]
    fn services_by_the_api() {
        let world = world();
        let frontends = |texts: &[(&str, u16)]| {
            Target::Service(texts.iter().map(|(text, port)| (address(text), *port)).collect())
        };
        let expected =
            frontends(&[("10.224.0.7", 80), ("10.224.0.7", 443), ("10.0.167.20", 80), ("10.0.167.20", 443)]);
        for name in ["svc/pls-app", "svc/default/pls-app"] {
            check(&world, name, &expected);
        }
        check(&world, "svc/b/twice", &frontends(&[("10.0.167.22", 80), ("10.0.167.22", 443)]));
        check_error(
            &world,
            "svc/twice",
            "`svc/twice` is ambiguous: svc/a/twice, svc/b/twice; give one of them",
        );
        check_error(
            &world,
            "svc/pls-ap",
            "unknown service `svc/pls-ap`; known are svc/default/pls-app, svc/default/headless, svc/a/twice, svc/b/twice",
        );
        check_error(&world, "svc/headless", "`svc/headless` has no address and no backend");
        // What the API does not know the agent may.
        let name = ServiceName {
            namespace: "default".to_owned(),
            name: "by-agent".to_owned(),
            address: address("10.0.167.30"),
            port: 53,
            kind: "ClusterIP".to_owned(),
        };
        let world = World { service_names: vec![name], ..world };
        check(&world, "svc/by-agent", &frontends(&[("10.0.167.30", 53)]));
    }

    #[test]
    fn a_service_without_an_address() {
        let mut world = world();
        world.kubernetes.endpoint_slices.as_mut().unwrap()[0].service = "headless".to_owned();
        check_error(
            &world,
            "svc/headless",
            "`svc/headless` has no address of its own; give one of its backends: default/pls-app-7d9c5bd5f4-x2v8q (ep/1157, 10.0.0.143), \
             default/pls-app-7d9c5bd5f4-bbbbb (10.0.2.9 on aks-2), default/unlisted-0 (10.0.3.9 on aks-3)",
        );
    }

    #[test]
    fn where_pods_are() {
        let world = world();
        let text = |name: &str| {
            let found: Vec<_> = places(&world, name).unwrap().iter().map(ToString::to_string).collect();
            found.join("; ")
        };
        let both = "default/pls-app-7d9c5bd5f4-x2v8q (ep/1157, 10.0.0.143); default/pls-app-7d9c5bd5f4-bbbbb (10.0.2.9 on aks-2)";
        assert_eq!(text("pls-app"), both);
        assert_eq!(text("app=pls-app"), both);
        assert_eq!(text("svc/pls-app"), format!("{both}; default/unlisted-0 (10.0.3.9 on aks-3)"));
        let nodes: Vec<_> = places(&world, "svc/pls-app").unwrap().iter().map(|place| place.node).collect();
        assert_eq!(nodes, [Some("aks-1"), Some("aks-2"), Some("aks-3")]);
        assert_eq!(text("10.0.2.9"), "default/pls-app-7d9c5bd5f4-bbbbb (10.0.2.9 on aks-2)");
        assert_eq!(text("ep/340"), "other/my-nginx-0 (ep/340, 10.0.0.7)");
        for unknown in ["nothing", "192.0.2.1", "svc/nothing", "ep/1"] {
            assert!(places(&world, unknown).is_err(), "{unknown}");
        }
        assert_eq!(place_of(&world, address("10.0.2.10")).unwrap().node, Some("aks-2"));
        assert!(place_of(&world, address("192.0.2.1")).is_none());
    }

    #[test]
    fn services_that_ask_for_private_link() {
        let mut world = world();
        assert_eq!(private_link_targets(&world), [""; 0]);
        let services = world.kubernetes.services.as_mut().unwrap();
        for (at, value) in [(2, "true"), (0, "True"), (1, "false")] {
            let key = "service.beta.kubernetes.io/azure-pls-create".to_owned();
            services[at].annotations.insert(key, value.to_owned());
        }
        assert_eq!(private_link_targets(&world), ["svc/b/twice", "svc/default/pls-app"]);
    }

    #[test]
    fn specs() {
        let spec = |text: &str| {
            let spec = Spec::parse(text).expect("a spec");
            (spec.name, spec.port, spec.protocol)
        };
        assert_eq!(spec("pls-app"), ("pls-app".to_owned(), None, None));
        assert_eq!(spec("default/pls-app:80"), ("default/pls-app".to_owned(), Some(80), None));
        assert_eq!(
            spec("svc/default/pls-app:80/udp"),
            ("svc/default/pls-app".to_owned(), Some(80), Some(Protocol::UDP))
        );
        assert_eq!(spec("10.0.0.143/icmp"), ("10.0.0.143".to_owned(), None, Some(Protocol::ICMP)));
        assert_eq!(spec("10.0.0.143:0/icmp"), ("10.0.0.143".to_owned(), Some(0), Some(Protocol::ICMP)));
        assert_eq!(spec("fd00::1"), ("fd00::1".to_owned(), None, None));
        assert_eq!(spec("[fd00::1]:80/tcp"), ("fd00::1".to_owned(), Some(80), Some(Protocol::TCP)));
        assert_eq!(spec("app=pls-app:80"), ("app=pls-app".to_owned(), Some(80), None));
        for wrong in ["pls-app:http", "pls-app:70000", "pls-app:80/tpc", "10.0.0.143/256"] {
            assert!(Spec::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pods_of_a_workload() {
        for pod in ["pls-app-7d9c5bd5f4-x2v8q", "pls-app-x2v8q", "pls-app-0", "pls-app-12"] {
            assert!(is_of_workload(pod, "pls-app"), "{pod}");
        }
        for pod in
            ["pls-app", "pls-app-proxy", "pls-app-canary-7d9c5bd5f4-x2v8q", "pls-application-0", "pls-app-"]
        {
            assert!(!is_of_workload(pod, "pls-app"), "{pod}");
        }
    }

    #[test]
    fn near_names_come_first() {
        assert_eq!(distance("pls-ap", "pls-app-7d9c5bd5f4-x2v8q"), 0);
        assert_eq!(distance("pls-aap", "pls-app-7d9c5bd5f4-x2v8q"), 1);
        assert!(distance("pls-ap", "my-nginx-684dd4dcd4-9p6rw") > 3);
    }
}
