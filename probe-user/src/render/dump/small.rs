//! The smaller maps. Where Cilium's own command line has no such list, the columns are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::lb::{LbAffinity, LbAffinityKey, LbAffinityMatch, LbService, LbSourceRange};
use probe_model::cilium::node::{self, NodeKey, NodeValue};
use probe_model::cilium::policystats::{self, PolicyStatsKey};
use probe_model::cilium::tunnel::{TunnelKey, TunnelValue};
use probe_model::cilium::{DecodeError, EndpointId};
use probe_model::tuple::Protocol;
use probe_model::world::World;
use serde_json::json;

use super::{Dump, auth_word, direction_word, frontend_text, headings, identity_labels, missing, port_range};
use crate::sources::raw::{RawMap, RawNode};
use crate::sources::utc;

/// `dump policystats`: what each policy entry decided, all processors together (Cilium 1.18 on).
///
/// # Errors
///
/// If the map could not be read, or `only` has nothing in it.
pub fn policystats(world: &World, only: Option<EndpointId>) -> Result<Dump> {
    let Some(stats) = world.policy_stats.as_ref() else {
        let error = missing(world, policystats::PIN);
        let next = "up to Cilium 1.17 policy maps count for themselves, see `plsprobe dump policy`";
        let is_absent = world.missing(policystats::PIN).is_none();
        return Err(if is_absent { anyhow!("{error}; {next}") } else { error });
    };
    let mut dump = Dump::default();
    let mut rows = vec![headings(&[
        "ENDPOINT",
        "DIRECTION",
        "IDENTITY",
        "PORT/PROTO",
        "BYTES",
        "PACKETS",
        "PREFIX",
        "LABELS",
    ])];
    for (key, counters) in stats.iter().filter(|(key, _)| only.is_none_or(|only| only == key.endpoint_id)) {
        let PolicyStatsKey { endpoint_id, sec_label, direction, prefix_len, protocol, dport } = *key;
        rows.push(vec![
            endpoint_id.to_string(),
            direction_word(direction).to_owned(),
            sec_label.0.to_string(),
            port_range(prefix_len, protocol, dport),
            counters.bytes.to_string(),
            counters.packets.to_string(),
            prefix_len.to_string(),
            identity_labels(world, sec_label),
        ]);
        dump.json.push(json!({
            "schema": "plsprobe.policystats/1",
            "endpoint": endpoint_id.0,
            "direction": direction.to_string(),
            "identity": sec_label.0,
            "labels": world.labels(sec_label),
            "protocol": protocol,
            "port": dport,
            "prefix_bits": prefix_len,
            "packets": counters.packets,
            "bytes": counters.bytes,
        }));
    }
    if let (Some(only), true) = (only, dump.json.is_empty()) {
        let known: BTreeSet<_> = stats.keys().map(|key| key.endpoint_id.to_string()).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        bail!("`{}` has nothing of endpoint {only}; there are counters of {known}", policystats::PIN);
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump node`: the ids that this node gives to nodes, by address.
///
/// # Errors
///
/// If the map could not be read.
pub fn node(node: &RawNode) -> Result<Dump> {
    let newest = node::PINS.into_iter().find(|pin| node.maps.contains_key(*pin));
    let map = map_of(node, newest.unwrap_or(node::PINS[0]), "it has been there since Cilium 1.13")?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["IP ADDRESS", "NODE ID", "SPI"])];
    for (key, value) in decoded(map, NodeKey::decode, NodeValue::decode)? {
        let spi = value.spi.map_or_else(|| "-".to_owned(), |spi| spi.to_string());
        rows.push(vec![key.ip.to_string(), value.id.to_string(), spi]);
        dump.json.push(json!({
            "schema": "plsprobe.node/1", "address": key.ip.to_string(), "id": value.id, "spi": value.spi,
        }));
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump tunnel`: behind which node a pod prefix lies.
///
/// # Errors
///
/// If the map could not be read.
pub fn tunnel(node: &RawNode) -> Result<Dump> {
    let next = "Cilium has it up to 1.17 and in tunnel mode only; `plsprobe dump ipcache` names tunnel endpoints too";
    let map = map_of(node, "cilium_tunnel_map", next)?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["PREFIX", "NODE", "KEY", "NODE ID", "CLUSTER"])];
    for (key, value) in decoded(map, TunnelKey::decode, TunnelValue::decode)? {
        rows.push(vec![
            key.ip.to_string(),
            value.ip.to_string(),
            value.key.to_string(),
            value.node_id.to_string(),
            key.cluster_id.to_string(),
        ]);
        dump.json.push(json!({
            "schema": "plsprobe.tunnel/1", "prefix": key.ip.to_string(), "node": value.ip.to_string(),
            "encrypt_key": value.key, "node_id": value.node_id, "cluster": key.cluster_id,
        }));
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump auth`: which identities have authenticated each other, and until when.
///
/// # Errors
///
/// If the map could not be read.
pub fn auth(node: &RawNode) -> Result<Dump> {
    let map = map_of(node, "cilium_auth_map", "it has been there since Cilium 1.14")?;
    let mut dump = Dump::default();
    let mut rows =
        vec![headings(&["SRC IDENTITY", "DST IDENTITY", "REMOTE NODE ID", "AUTH TYPE", "EXPIRATION"])];
    for (key, AuthInfo { expiration }) in decoded(map, AuthKey::decode, AuthInfo::decode)? {
        let since_1970 = Duration::from_nanos_u128(expiration.unix_ns());
        let until = utc::text(UNIX_EPOCH + since_1970);
        rows.push(vec![
            key.local_sec_label.0.to_string(),
            key.remote_sec_label.0.to_string(),
            key.remote_node_id.to_string(),
            auth_word(key.auth_type),
            until.clone(),
        ]);
        dump.json.push(json!({
            "schema": "plsprobe.auth/1",
            "local_identity": key.local_sec_label.0, "remote_identity": key.remote_sec_label.0,
            "remote_node_id": key.remote_node_id, "auth_type": key.auth_type,
            "expires": until, "expires_utime": expiration.0,
        }));
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump affinity`: the backend that a service's client last had, and whether it still belongs to the service.
///
/// # Errors
///
/// If neither family's map is there, or one could not be read.
pub fn affinity(node: &RawNode, world: &World) -> Result<Dump> {
    let next = "Cilium makes it where services with session affinity are on";
    let maps = either(node, ["cilium_lb4_affinity", "cilium_lb6_affinity"], next)?;
    let valid: Option<BTreeSet<LbAffinityMatch>> = match node.maps.get("cilium_lb_affinity_match") {
        Some(map) => Some(map.entries.keys().map(LbAffinityMatch::decode).collect::<Result<_, _>>()?),
        None => None,
    };
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["CLIENT", "SERVICE", "BACKEND", "LAST USED", "VALID"])];
    for map in maps {
        for (key, value) in decoded(map, LbAffinityKey::decode, LbAffinity::decode)? {
            let LbAffinity { last_used, backend_id } = value;
            let rev_nat_id = key.rev_nat_id;
            let belongs = valid.as_ref().map(|all| all.contains(&LbAffinityMatch { backend_id, rev_nat_id }));
            let client = match (key.client(), key.client_id.first_chunk()) {
                (Some(ip), _) => ip.to_string(),
                (None, cookie) => {
                    format!("netns cookie {}", cookie.map_or(0, |bytes| u64::from_le_bytes(*bytes)))
                }
            };
            let frontends: Vec<_> = frontends_of(world, rev_nat_id).map(|(address, _)| address).collect();
            let backend = backend_of(world, backend_id);
            rows.push(vec![
                client.clone(),
                format!("{rev_nat_id} ({})", named(&frontends)),
                format!("{backend_id} ({})", backend.as_deref().unwrap_or("not found")),
                last_used.to_string(),
                belongs.map_or("-", |belongs| if belongs { "yes" } else { "no" }).to_owned(),
            ]);
            dump.json.push(json!({
                "schema": "plsprobe.affinity/1", "client": client, "service": rev_nat_id, "frontends": frontends,
                "backend_id": backend_id, "backend": backend, "last_used": last_used, "valid": belongs,
            }));
        }
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump fragments`: the ports of fragmented packets, for the fragments that have none.
///
/// # Errors
///
/// If neither family's map is there, or one could not be read.
pub fn fragments(node: &RawNode) -> Result<Dump> {
    let next = "Cilium makes it where fragments are tracked";
    let maps = either(node, ["cilium_ipv4_frag_datagrams", "cilium_ipv6_frag_datagrams"], next)?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["SOURCE", "DESTINATION", "PROTO", "ID", "SPORT", "DPORT"])];
    for map in maps {
        for (key, FragmentPorts { sport, dport }) in decoded(map, FragmentId::decode, FragmentPorts::decode)?
        {
            let (saddr, daddr) = key.addresses();
            rows.push(vec![
                saddr.to_string(),
                daddr.to_string(),
                Protocol(key.proto()).to_string(),
                format!("{:#x}", key.id()),
                sport.to_string(),
                dport.to_string(),
            ]);
            dump.json.push(json!({
                "schema": "plsprobe.fragment/1", "saddr": saddr.to_string(), "daddr": daddr.to_string(),
                "protocol": key.proto(), "id": key.id(), "sport": sport, "dport": dport,
            }));
        }
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump source-ranges`: the client prefixes of `loadBalancerSourceRanges`, and at which frontends they are checked.
///
/// # Errors
///
/// If the map could not be read.
pub fn source_ranges(node: &RawNode, world: &World) -> Result<Dump> {
    let next = "Cilium makes it only with kube-proxy replacement";
    let maps = either(node, ["cilium_lb4_source_range", "cilium_lb6_source_range"], next)?;
    let keys = maps.into_iter().flat_map(|map| map.entries.keys());
    let ranges = keys.map(LbSourceRange::decode).collect::<Result<BTreeSet<_>, _>>()?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["SERVICE", "PREFIX", "CHECKED AT"])];
    for LbSourceRange { rev_nat_id, prefix } in ranges {
        let frontends: Vec<_> = frontends_of(world, rev_nat_id).collect();
        let checked: Vec<_> =
            frontends.iter().filter(|(_, checked)| *checked).map(|(address, _)| address.clone()).collect();
        rows.push(vec![rev_nat_id.to_string(), prefix.to_string(), named(&checked)]);
        let frontends: Vec<_> = frontends
            .iter()
            .map(|(address, checked)| json!({ "address": address, "checked": checked }))
            .collect();
        dump.json.push(json!({
            "schema": "plsprobe.source-range/1", "service": rev_nat_id, "prefix": prefix.to_string(),
            "frontends": frontends,
        }));
    }
    dump.table(&rows);
    Ok(dump)
}

/// A service's frontends, and whether source ranges are checked there.
fn frontends_of(world: &World, rev_nat_id: u16) -> impl Iterator<Item = (String, bool)> {
    let own = world.frontends().filter(move |frontend| frontend.service.rev_nat_index == rev_nat_id);
    own.map(|frontend| (frontend_text(&frontend), frontend.service.has(LbService::SOURCE_RANGE)))
}

fn named(frontends: &[String]) -> String {
    if frontends.is_empty() { "no frontend".to_owned() } else { frontends.join(", ") }
}

fn backend_of(world: &World, backend_id: u32) -> Option<String> {
    let mut families = world.lb.iter().chain(&world.lb6);
    families.find_map(|lb| lb.backend(backend_id)).map(|backend| backend.socket().to_string())
}

/// A map, or why it is not there.
pub(super) fn map_of<'n>(node: &'n RawNode, name: &str, next: &str) -> Result<&'n RawMap> {
    if let Some(map) = node.maps.get(name) {
        return Ok(map);
    }
    match node.missing.iter().find(|missing| missing.what == name) {
        Some(missing) => bail!("failed to read {missing}"),
        None => bail!("failed to read `{name}`: it is not there; {next}"),
    }
}

/// The maps of both families, as far as they are there; one that could not be read fails for both.
pub(super) fn either<'n>(node: &'n RawNode, names: [&str; 2], next: &str) -> Result<Vec<&'n RawMap>> {
    let unread = |name: &&str| node.missing.iter().any(|missing| missing.what == *name);
    let mut there = names.into_iter().filter(|name| unread(name) || node.maps.contains_key(*name)).peekable();
    match there.peek() {
        Some(_) => there.map(|name| map_of(node, name, next)).collect(),
        None => map_of(node, names[0], next).map(|map| vec![map]),
    }
}

/// Every entry decoded, by key.
fn decoded<K: Ord, V>(
    map: &RawMap,
    key: fn(&[u8]) -> Result<K, DecodeError>,
    value: fn(&[u8]) -> Result<V, DecodeError>,
) -> Result<BTreeMap<K, V>, DecodeError> {
    map.entries.iter().map(|(raw_key, raw_value)| Ok((key(raw_key)?, value(raw_value)?))).collect()
}
