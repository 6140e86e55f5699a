//! Decodes a [`RawNode`] into a [`World`]. What cannot be decoded becomes a missing fact, with the reason.

use std::collections::BTreeMap;
use std::thread;

use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::ct::{CtEntry, CtLayout, CtTuple, ct_layouts};
use probe_model::cilium::family::Family;
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::ipcache::Ipcache;
use probe_model::cilium::layout::policy_layout;
use probe_model::cilium::lb::{LbBackend, LbKey, LbMaps, LbService, LbSourceRange, LoadBalancer};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_model::cilium::node::{self, NodeKey, NodeValue};
use probe_model::cilium::policy::{PolicyCounters, PolicyLayout, PolicyMap, pin_endpoint, pin_name};
use probe_model::cilium::policystats::{self, PolicyStatsKey};
use probe_model::cilium::runtime_config::{RuntimeConfig, UTime};
use probe_model::cilium::{DecodeError, EndpointId};
use probe_model::netfilter::Ruleset;
use probe_model::world::conntrack::{Conntrack, CtTable};
use probe_model::world::{Config, Endpoint, Interface, Missing, NamedPolicyMap, RoutingMode, World};

use super::in_use::{self, InUse};
use super::raw::{RawMap, RawNode};
use super::{beyond, netfilter, nft, rest};

/// Pins that only kube-proxy replacement makes.
const NODE_PORT_PINS: [&str; 3] =
    ["cilium_snat_v4_external", "cilium_nodeport_neigh4", "cilium_lb4_source_range"];
/// From so many policy entries on, starting threads costs less than they save.
const PARALLEL_ENTRIES: usize = 100_000;
/// The pin that only tunnel mode makes.
const TUNNEL_PIN: &str = "cilium_tunnel_map";

/// Decodes every fact of `node`.
pub fn assemble(node: &RawNode) -> World {
    let mut world = World { origin: node.origin.clone(), missing: node.missing.clone(), ..World::default() };
    world.now = node.read_at.or_else(|| by_agents_clock(node));
    read_maps(node, &mut world);
    read_rest(node, &mut world);
    join_endpoints(&mut world);
    if let Some(network) = &node.network {
        world.links = Some(network.links.clone());
        world.routes.clone_from(&network.routes);
    }
    read_rules(node, &mut world);
    beyond::read(node, &mut world);
    world
}

/// The rules of every back end. A table that was seen and not read stands in each chain it may be in as a rule that
/// nobody knows.
fn read_rules(node: &RawNode, world: &mut World) {
    let mut rules = None;
    if let Some(text) = &node.iptables_save {
        match Ruleset::parse(text) {
            Ok(read) => rules = Some(read),
            Err(error) => {
                world.missing.push(Missing { what: "iptables-save".to_owned(), why: error.to_string() });
            }
        }
    }
    if let Some(json) = &node.nft_ruleset {
        match nft::ruleset(json, node.iptables_save.as_deref()) {
            Ok((read, missing)) => {
                world.missing.extend(missing);
                rules.get_or_insert_default().merge(read);
            }
            Err(error) => {
                let what = format!("{}ruleset", netfilter::UNREAD_TABLE);
                world.missing.push(Missing { what, why: format!("{error:#}") });
                rules.get_or_insert_default();
            }
        }
    }
    if let Some(rules) = &mut rules {
        for missing in &world.missing {
            if let Some(table) = missing.what.strip_prefix(netfilter::UNREAD_TABLE) {
                rules.add_unread(table, &missing.why);
            }
        }
    }
    world.netfilter = rules;
}

/// When a recording was made that does not say so: when its agent last said that it lives, a second or so before.
fn by_agents_clock(node: &RawNode) -> Option<UTime> {
    let raw = node.maps.get("cilium_runtime_config")?;
    let config = RuntimeConfig::decode(raw.entries.iter()).ok()?;
    let alive = Some(config.agent_liveness_ns).filter(|alive| *alive != 0)?;
    config.wall_clock(alive)
}

/// The agent's version in its own words, if it was asked and said so.
pub fn version(node: &RawNode) -> Option<String> {
    rest::version(node.rest.get("healthz")?).ok().flatten()
}

fn read_maps(node: &RawNode, world: &mut World) {
    world.lxc = map(node, world, "cilium_lxc", |raw| {
        entries(raw, |key, value| Ok((EndpointKey::decode(key)?.ip, EndpointInfo::decode(value)?)))
    });
    world.ipcache = read_ipcache(node, world);
    if world.ipcache.is_none() {
        let used = in_use::used_ipcaches(node);
        let decoded = used.iter().map(|(_, raw)| Ipcache::decode(&raw.entries));
        // One that is not understood leaves the answer open, as the missing fact says.
        world.ipcaches_in_use = decoded.collect::<Result<_, _>>().unwrap_or_default();
    }
    world.policy_stats = if_pinned(node, world, policystats::PIN, |key, value| {
        Ok((PolicyStatsKey::decode(key)?, PolicyCounters::sum(value)?))
    });
    world.lb = read_load_balancer(node, world, Family::V4);
    world.lb6 = read_load_balancer(node, world, Family::V6);
    world.conntrack = read_conntrack(node, world, Family::V4);
    world.conntrack6 = read_conntrack(node, world, Family::V6);
    world.fragments = read_fragments(node, world);
    world.auth = if_pinned(node, world, "cilium_auth_map", |key, value| {
        Ok((AuthKey::decode(key)?, AuthInfo::decode(value)?))
    });
    let nodes = node::PINS.into_iter().find(|pin| node.maps.contains_key(*pin)).unwrap_or(node::PINS[0]);
    world.nodes =
        if_pinned(node, world, nodes, |key, value| Ok((NodeKey::decode(key)?.ip, NodeValue::decode(value)?)));
    let of_nobody = |name: &&String| name.starts_with("cilium_policy_") && pin_endpoint(name).is_none();
    world.missing.extend(node.maps.keys().filter(of_nobody).map(|name| {
        let why = format!("expected five digits at the end of `{name}`, the endpoint's id");
        Missing { what: name.clone(), why }
    }));
    for (endpoint, policy) in read_policies(node) {
        match policy {
            Ok(policy) => drop(world.policy.insert(endpoint, policy)),
            Err(missing) => world.missing.push(missing),
        }
    }
    // Only a map with entries tells its layout for certain.
    let policies = world.policy.values().filter(|policy| !policy.map.is_empty());
    let possible = CtLayout::beside(policies.map(|policy| policy.map.layout()));
    let connections = world.conntrack.known().chain(world.conntrack6.known());
    world.ct_layouts = ct_layouts(connections, &possible);
}

/// The ipcache of whatever generation. If it is missing, it is so under the name of the first, which everybody asks for.
fn read_ipcache(node: &RawNode, world: &mut World) -> Option<Ipcache> {
    let [v2, first] = in_use::IPCACHE_PINS;
    let why = match in_use::common_ipcache(node) {
        Some(Ok((name, raw))) => match Ipcache::decode(&raw.entries) {
            Ok(ipcache) => return Some(ipcache),
            Err(error) if name == first => error.to_string(),
            Err(error) => format!("`{name}`: {error}"),
        },
        Some(Err(why)) => why,
        None if world.missing(first).is_some() => return None,
        None => match world.missing(v2) {
            Some(unread) => unread.to_string(),
            None => "no such map".to_owned(),
        },
    };
    world.missing.push(Missing { what: first.to_owned(), why });
    None
}

/// Every endpoint's policy map in use, or what is missing of it; large nodes on all processors.
fn read_policies(node: &RawNode) -> Vec<(EndpointId, Result<NamedPolicyMap, Missing>)> {
    let in_use: Vec<_> = in_use::policy_maps(node).into_iter().collect();
    let entries: usize = in_use.iter().flat_map(|(_, pin)| pin).map(|(_, raw)| raw.entries.len()).sum();
    let readers =
        if entries < PARALLEL_ENTRIES { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    let read = |(endpoint, pin): &(EndpointId, InUse<'_>)| {
        let what = pin.as_ref().map_or_else(|_| pin_name(*endpoint), |(name, _)| (*name).to_owned());
        let policy = pin.clone().and_then(|(name, raw)| read_policy(node, *endpoint, name, raw));
        (*endpoint, policy.map_err(|why| Missing { what, why }))
    };
    if readers == 1 {
        return in_use.iter().map(read).collect();
    }
    thread::scope(|scope| {
        let shares = in_use.chunks(in_use.len().div_ceil(readers));
        let readers: Vec<_> =
            shares.map(|share| scope.spawn(move || share.iter().map(read).collect::<Vec<_>>())).collect();
        readers.into_iter().flat_map(|reader| reader.join().expect("no reader panics")).collect()
    })
}

fn read_policy(
    node: &RawNode,
    endpoint: EndpointId,
    name: &str,
    raw: &RawMap,
) -> Result<NamedPolicyMap, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (mut key_size, mut value_size) = (raw.key_size, raw.value_size);
    if raw.entries.is_empty() && (key_size, value_size) == (0, 0) {
        // An empty dump without `_show.json`: whatever its layout, nothing is in it.
        let any = PolicyLayout::ALL.into_iter().find(|layout| layout.pin_name(endpoint) == name);
        let any = any.expect("every pin of an endpoint has a layout");
        (key_size, value_size) = (any.key_size() as u32, any.value_size() as u32);
    }
    let members = in_use::policy_program(node, endpoint).and_then(|program| program.policy_entry.as_deref());
    let layout = policy_layout(name, key_size, value_size, &raw.entries, members);
    let layout = layout.map_err(|error| text(&error))?;
    let map = PolicyMap::decode(layout, &raw.entries).map_err(|error| text(&error))?;
    Ok(NamedPolicyMap { name: name.to_owned(), id: raw.id, map })
}

/// The service maps of a family. A node without IPv6 has none of its maps, which is nothing missing.
fn read_load_balancer(node: &RawNode, world: &mut World, family: Family) -> Option<LoadBalancer> {
    let read = |world: &mut World, name: &str| {
        entries_of(node, world, &family.pin(name), family, |key, value| {
            Ok((LbKey::decode(key)?, LbService::decode(value)?))
        })
    };
    let services = read(world, "cilium_lb4_services_v2")?;
    let backends = entries_of(node, world, &family.pin("cilium_lb4_backends_v3"), family, |key, value| {
        Ok((LbBackend::decode_key(key)?, LbBackend::decode(value)?))
    });
    // Only there with kube-proxy replacement, and then only read where a service asks for it.
    let name = family.pin("cilium_lb4_source_range");
    let is_known = node.maps.contains_key(&name) || world.missing(&name).is_some();
    let mut ranges = || entries_of(node, world, &name, family, |key, _| LbSourceRange::decode(key));
    let source_ranges = if is_known { ranges() } else { None };
    Some(LoadBalancer::new(LbMaps { services, backends, source_ranges }))
}

fn read_conntrack(node: &RawNode, world: &mut World, family: Family) -> Conntrack {
    let mut read = |name: &str| {
        let pin = family.pin(name);
        if node.unread.iter().any(|unread| unread.what == pin) {
            return CtTable::default();
        }
        let entries = entries_of(node, world, &pin, family, |key, value| {
            Ok((CtTuple::decode(key)?, CtEntry::decode(value)?))
        });
        entries.map_or_else(CtTable::default, CtTable::Whole)
    };
    Conntrack { tcp: read("cilium_ct4_global"), other: read("cilium_ct_any4_global") }
}

/// The fragment maps of both families; IPv6 has one from 1.18 on only.
fn read_fragments(node: &RawNode, world: &mut World) -> Option<BTreeMap<FragmentId, FragmentPorts>> {
    let read = |world: &mut World, family: Family| -> Option<BTreeMap<_, _>> {
        if_pinned(node, world, &family.pin("cilium_ipv4_frag_datagrams"), |key, value| {
            Ok((FragmentId::decode(key)?, FragmentPorts::decode(value)?))
        })
    };
    let mut all = read(world, Family::V4)?;
    all.extend(read(world, Family::V6).unwrap_or_default());
    Some(all)
}

/// A map's entries decoded, or a missing fact if they cannot be; but a map that few answers need is not missed.
fn if_pinned<T, C: FromIterator<T>>(
    node: &RawNode,
    world: &mut World,
    name: &str,
    decode: impl Fn(&[u8], &[u8]) -> Result<T, DecodeError>,
) -> Option<C> {
    node.maps.get(name)?;
    map(node, world, name, |raw| entries(raw, &decode))
}

/// A map's entries decoded, or a missing fact; but no IPv6 map is missed where Cilium made none.
fn entries_of<T, C: FromIterator<T>>(
    node: &RawNode,
    world: &mut World,
    name: &str,
    family: Family,
    decode: impl Fn(&[u8], &[u8]) -> Result<T, DecodeError>,
) -> Option<C> {
    match family {
        Family::V4 => map(node, world, name, |raw| entries(raw, &decode)),
        Family::V6 => if_pinned(node, world, name, decode),
    }
}

/// A map decoded, or a missing fact unless one is listed already.
fn map<T>(
    node: &RawNode,
    world: &mut World,
    name: &str,
    decode: impl Fn(&RawMap) -> Result<T, DecodeError>,
) -> Option<T> {
    let why = match node.maps.get(name).map(decode) {
        Some(Ok(decoded)) => return Some(decoded),
        Some(Err(error)) => error.to_string(),
        None if world.missing(name).is_some() => return None,
        None => "no such map".to_owned(),
    };
    world.missing.push(Missing { what: name.to_owned(), why });
    None
}

/// Every entry decoded; the first failure counts for the whole map.
fn entries<T, C: FromIterator<T>>(
    raw: &RawMap,
    decode: impl Fn(&[u8], &[u8]) -> Result<T, DecodeError>,
) -> Result<C, DecodeError> {
    raw.entries.iter().map(|(key, value)| decode(key, value)).collect()
}

fn read_rest(node: &RawNode, world: &mut World) {
    let mut answer = Answers { node, missing: &mut world.missing };
    let config = answer.read("config", rest::config);
    let endpoints = answer.read("endpoint", rest::endpoints);
    let identities = answer.read("identity", rest::identities);
    let rules = answer.read("policy", rest::rules);
    let selectors = answer.read("policy-selectors", rest::selectors);
    let services = answer.read("service", rest::services);
    let version = answer.read("healthz", rest::version);
    world.config = config.unwrap_or_else(|| config_by_pins(node));
    world.endpoints =
        endpoints.unwrap_or_default().into_iter().map(|endpoint| (endpoint.id, endpoint)).collect();
    world.identities = identities.unwrap_or_default();
    for rejected in rules.iter().flat_map(|rules| &rules.rejected) {
        let what = format!("rest/policy: {}", rejected.policy);
        answer.missing.push(Missing { what, why: rejected.reasons.join("; ") });
    }
    world.rules = rules;
    world.selectors = selectors.unwrap_or_default();
    world.service_names = services.unwrap_or_default();
    world.version = version.flatten();
}

struct Answers<'a> {
    node: &'a RawNode,
    missing: &'a mut Vec<Missing>,
}

impl Answers<'_> {
    /// One REST answer, or a missing fact unless one is listed already.
    fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> anyhow::Result<T>) -> Option<T> {
        let what = format!("rest/{name}");
        let why = match self.node.rest.get(name).map(|text| parse(text)) {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) => format!("{error:#}"),
            None if self.missing.iter().any(|missing| missing.what == what || missing.what == "rest") => {
                return None;
            }
            None => "the agent was not asked".to_owned(),
        };
        self.missing.push(Missing { what, why });
        None
    }
}

/// What the pins alone say of the agent's configuration.
fn config_by_pins(node: &RawNode) -> Config {
    let pinned =
        |name: &str| node.maps.contains_key(name) || node.missing.iter().any(|missing| missing.what == name);
    let defaults = Config::default();
    Config {
        node_port: NODE_PORT_PINS.into_iter().any(pinned),
        routing: if pinned(TUNNEL_PIN) { RoutingMode::Tunnel } else { RoutingMode::Native },
        ..defaults
    }
}

/// Adds what `cilium_lxc` knows of endpoints to what the agent said of them.
fn join_endpoints(world: &mut World) {
    let pods = world.lxc.iter().flatten().filter(|(_, info)| !info.is_host());
    let pods: Vec<_> = pods.map(|(address, info)| (*address, *info)).collect();
    for (address, info) in &pods {
        let identity = world.endpoint_identity(info.lxc_id);
        let endpoint = world.endpoints.entry(info.lxc_id).or_insert_with(|| Endpoint {
            id: info.lxc_id,
            identity,
            pod: None,
            labels: world.identities.get(&identity).cloned().unwrap_or_default(),
            addresses: Vec::new(),
            interface: None,
            policy: None,
        });
        if !endpoint.addresses.contains(address) {
            endpoint.addresses.push(*address);
        }
        let interface =
            endpoint.interface.get_or_insert(Interface { ifindex: info.ifindex, name: None, mac: None });
        interface.ifindex = info.ifindex;
        interface.mac = Some(info.mac);
    }
}

#[cfg(test)]
mod tests {
    use probe_model::cilium::entries::Entries;
    use probe_model::cilium::identity::Identity;
    use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
    use probe_model::explain::{Verdict, explain};
    use probe_model::simulate::Question;
    use probe_model::tuple::{Protocol, Tuple};

    use super::*;
    use crate::sources::folder;
    use crate::sources::raw::Program;

    /// `auth_info.expiration` is compared with this: it must be the time of the recording, not of the test.
    #[test]
    fn a_recording_has_the_time_of_its_agents_clock() {
        let scenario = fixtures::recording("cilium-1.14").join("none");
        let world = assemble(&folder::read(&scenario).unwrap());
        let seconds = world.now.unwrap().unix_ns() / 1_000_000_000;
        // 2026-11-22 to 2026-11-24.
        assert!((1_795_305_600..1_795_478_400).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_live_node_has_its_own() {
        let node = RawNode { read_at: Some(UTime(7)), ..RawNode::default() };
        assert_eq!(assemble(&node).now, Some(UTime(7)));
        assert_eq!(assemble(&RawNode::default()).now, None);
    }

    /// A node whose two pods' programs ask two ipcaches, of which the later gives the NAT IP `identity`.
    fn upgrading(identity: Identity) -> World {
        let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
        let mut node = folder::read(&scenario).unwrap();
        let first = node.maps["cilium_ipcache"].clone();
        let nat_ip = "10.224.0.8/32".parse().unwrap();
        let later = first.entries.iter().map(|(key, value)| {
            let key = IpcacheKey::decode(key).unwrap();
            let mut info = RemoteEndpointInfo::decode(value).unwrap();
            if key.prefix == nat_ip {
                info.sec_identity = identity;
            }
            (key.encode(IpcacheLayout::TunnelAddress), info.encode(IpcacheLayout::TunnelAddress))
        });
        let entries = Entries::collect(later.collect::<Vec<_>>()).unwrap();
        let second = RawMap { id: 90_000, value_size: 24, entries, ..first.clone() };
        node.maps.insert("cilium_ipcache_v2".to_owned(), second);
        for (program, ipcache) in [(1, first.id), (2, 90_000)] {
            let program_of_it = Program { map_ids: vec![ipcache], ..Program::default() };
            node.programs.insert(program, program_of_it);
        }
        assemble(&node)
    }

    #[test]
    fn during_an_upgrade_an_answer_holds_if_both_ipcaches_give_it() {
        let tuple = Tuple {
            saddr: "10.224.0.8".parse().unwrap(),
            daddr: "10.224.0.7".parse().unwrap(),
            sport: 0,
            dport: 80,
            protocol: Protocol::TCP,
        };
        let verdict = |world: &World| explain(world, &Question::new(tuple)).verdict;
        let scenario = fixtures::recording("cilium-1.14").join("cidr-pls8-80");
        let settled = assemble(&folder::read(&scenario).unwrap());
        let (_, info) = settled.ipcache.as_ref().unwrap().lookup(tuple.saddr).unwrap();
        assert_eq!(verdict(&settled), Verdict::Allowed);
        assert_eq!(verdict(&upgrading(info.sec_identity)), Verdict::Allowed);
        let Verdict::Inconclusive(why) = verdict(&upgrading(Identity::WORLD)) else {
            panic!("the two ipcaches differ in what decides")
        };
        assert!(why[0].contains("loaded programs use `cilium_ipcache_v2` and `cilium_ipcache`"), "{why:?}");
    }
}
