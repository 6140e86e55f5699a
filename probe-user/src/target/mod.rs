//! TARGET and SRC as operators write them, resolved against a [`World`]: by the Kubernetes API as far as it is known, else
//! by Cilium's agent, else by the maps alone.

mod places;
mod selector;

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
use selector::Selector;

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
        (Ok(Target::Endpoint(id)), _) if name.starts_with("ep/") => {
            places::known(world).into_iter().filter(|place| place.endpoint == Some(id)).collect()
        }
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
    let known = places::known(world);
    if Selector::is_meant(name) {
        let selector = Selector::parse(name)?;
        let is_there = |place: &Place<'_>| place.endpoint.is_some() || !place.addresses.is_empty();
        let selected = |place: &Place<'_>| is_there(place) && selector.selects(|key| place.values(key));
        return Ok(known.into_iter().filter(selected).collect());
    }
    let (namespace, name) =
        name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name));
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
fn is_of_workload(pod: &str, workload: &str) -> bool {
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
    all.extend(node_ports.flat_map(|port| node.map(|node| (node, port))));
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
    let mut known = places::known(world);
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
    use super::*;

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
