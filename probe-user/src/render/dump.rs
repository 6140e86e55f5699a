//! Cilium's maps in the columns of its own command line, and as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Result, anyhow, bail};
use probe_model::cilium::ct::{CtEntry, Ipv4CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::lb::Frontend;
use probe_model::cilium::metrics::{MetricsKey, MetricsValue};
use probe_model::cilium::nat::Ipv4NatEntry;
use probe_model::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::tuple::Protocol;
use probe_model::world::World;
use serde_json::{Value, json};

use super::clean;
use crate::sources::raw::RawNode;

/// Spaces between two columns.
const GAP: usize = 3;

/// A dump: text lines and JSON objects of the same entries.
#[derive(Debug, Default)]
pub struct Dump {
    text: String,
    json: Vec<Value>,
}

impl Dump {
    /// Writes the text.
    ///
    /// # Errors
    ///
    /// What `out` says.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(self.text.as_bytes())
    }

    /// Writes one JSON object a line.
    ///
    /// # Errors
    ///
    /// What `out` says.
    pub fn json(&self, out: &mut impl Write) -> io::Result<()> {
        self.json.iter().try_for_each(|value| writeln!(out, "{value}"))
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Rows in columns, the first row being the headings.
    fn table(&mut self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0) + GAP).collect();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            self.line(&cells.collect::<String>());
        }
    }
}

fn headings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Why `what` cannot be dumped.
fn missing(world: &World, what: &str) -> anyhow::Error {
    match world.missing(what) {
        Some(missing) => anyhow!("failed to read {missing}"),
        None => anyhow!("failed to read `{what}`: it is not there"),
    }
}

/// `dump policy`: one table per endpoint, as `cilium bpf policy get --all -n` prints them, with labels.
///
/// # Errors
///
/// If a policy map could not be read, or `only` has none.
pub fn policy(world: &World, only: Option<EndpointId>) -> Result<Dump> {
    let unread = world.missing.iter().find(|missing| {
        let endpoint = probe_model::cilium::policy::pin_endpoint(&missing.what);
        missing.what.starts_with("cilium_policy_") && only.is_none_or(|only| endpoint == Some(only))
    });
    if let Some(missing) = unread {
        bail!("failed to read {missing}");
    }
    let mut dump = Dump::default();
    let wanted = world.policy.iter().filter(|(id, _)| only.is_none_or(|only| only == **id));
    for (id, policy) in wanted {
        let name = world
            .endpoints
            .get(id)
            .map(|endpoint| format!(" ({})", clean(&endpoint.name())))
            .unwrap_or_default();
        dump.line(&format!("Endpoint ID: {id}{name}"));
        dump.line(&format!("Path: {}", policy.name));
        dump.line("");
        let mut rows = vec![headings(&[
            "POLICY",
            "DIRECTION",
            "IDENTITY",
            "PORT/PROTO",
            "PROXY PORT",
            "AUTH TYPE",
            "BYTES",
            "PACKETS",
            "PREFIX",
            "LABELS",
        ])];
        let mut entries: Vec<_> = policy.map.entries().collect();
        entries.sort_by_key(|(key, entry)| {
            (
                !entry.deny(),
                key.direction,
                key.sec_label,
                core::cmp::Reverse(key.prefixlen),
                key.protocol,
                key.dport,
            )
        });
        for (key, entry) in entries {
            rows.push(policy_row(world, &key, &entry));
            dump.json.push(policy_json(world, *id, &policy.name, &key, &entry));
        }
        dump.table(&rows);
        dump.line("");
    }
    match only {
        Some(only) if dump.text.is_empty() => {
            let known: Vec<_> = world.policy.keys().map(ToString::to_string).collect();
            bail!("endpoint {only} has no policy map; there are maps of {}", known.join(", "))
        }
        _ => Ok(dump),
    }
}

fn policy_row(world: &World, key: &PolicyKey, entry: &PolicyEntry) -> Vec<String> {
    let labels = world.labels(key.sec_label).join(" ");
    let reserved = key.sec_label.reserved_name().filter(|_| labels.is_empty());
    let labels = reserved.map_or(labels, |name| format!("reserved:{name}"));
    let count =
        |of: fn(PolicyCounters) -> u64| entry.counters.map_or_else(|| "-".to_owned(), |c| of(c).to_string());
    vec![
        policy_word(entry).to_owned(),
        direction_word(key.direction).to_owned(),
        key.sec_label.0.to_string(),
        port_proto(key),
        if entry.proxy_port == 0 { "NONE".to_owned() } else { entry.proxy_port.to_string() },
        auth_word(entry.auth_type),
        count(|counters| counters.bytes),
        count(|counters| counters.packets),
        key.l4_prefix().to_string(),
        clean(&labels).into_owned(),
    ]
}

fn policy_json(
    world: &World,
    endpoint: EndpointId,
    map: &str,
    key: &PolicyKey,
    entry: &PolicyEntry,
) -> Value {
    json!({
        "schema": "plsprobe.policy/1",
        "endpoint": endpoint.0,
        "map": map,
        "deny": entry.deny(),
        "direction": key.direction.to_string(),
        "identity": key.sec_label.0,
        "labels": world.labels(key.sec_label),
        "protocol": if key.l4_prefix() == 0 { 0 } else { key.protocol },
        "port": if key.l4_prefix() <= 8 { 0 } else { key.dport },
        "prefix_bits": key.l4_prefix(),
        "proxy_port": entry.proxy_port,
        "auth_type": entry.auth_type,
        "packets": entry.counters.map(|counters| counters.packets),
        "bytes": entry.counters.map(|counters| counters.bytes),
    })
}

fn policy_word(entry: &PolicyEntry) -> &'static str {
    if entry.deny() { "Deny" } else { "Allow" }
}

fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}

fn auth_word(auth_type: u8) -> String {
    match auth_type {
        0 => "disabled".to_owned(),
        1 => "spire".to_owned(),
        2 => "test-always-fail".to_owned(),
        other => other.to_string(),
    }
}

/// `ANY`, `TCP`, `80/TCP`, or `8080-8087/TCP` for a port prefix.
pub fn port_proto(key: &PolicyKey) -> String {
    let protocol = Protocol(key.protocol);
    match key.l4_prefix() {
        0 => "ANY".to_owned(),
        1..=8 => protocol.to_string(),
        24 => format!("{}/{protocol}", key.dport),
        prefix => {
            let free = (1u32 << (24 - u32::from(prefix))) - 1;
            let first = u32::from(key.dport) & !free;
            format!("{first}-{}/{protocol}", first + free)
        }
    }
}

/// `dump ipcache`, as `cilium bpf ipcache list` prints it, with labels.
///
/// # Errors
///
/// If the map could not be read.
pub fn ipcache(world: &World) -> Result<Dump> {
    let ipcache = world.ipcache.as_ref().ok_or_else(|| missing(world, "cilium_ipcache"))?;
    let mut entries: Vec<_> = ipcache.entries().collect();
    entries.sort_by_key(|(prefix, _)| **prefix);
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["IP PREFIX/ADDRESS", "IDENTITY", "LABELS"])];
    for (prefix, info) in entries {
        let (identity, key, tunnel, node) = (info.sec_identity, info.key, info.tunnel_endpoint, info.node_id);
        let labels = world.labels(identity);
        let facts =
            format!("identity={} encryptkey={key} tunnelendpoint={tunnel} nodeid={node:#x}", identity.0);
        rows.push(vec![prefix.to_string(), facts, clean(&labels.join(" ")).into_owned()]);
        dump.json.push(json!({
            "schema": "plsprobe.ipcache/1",
            "prefix": prefix.to_string(),
            "identity": identity.0,
            "labels": labels,
            "encrypt_key": key,
            "tunnel_endpoint": tunnel.to_string(),
            "node_id": node,
        }));
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump endpoints`, as `cilium bpf endpoint list` prints it, with names.
///
/// # Errors
///
/// If the map could not be read, or `only` is not in it.
pub fn endpoints(world: &World, only: Option<EndpointId>) -> Result<Dump> {
    let lxc = world.lxc.as_ref().ok_or_else(|| missing(world, "cilium_lxc"))?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["IP ADDRESS", "LOCAL ENDPOINT INFO", "NAME"])];
    let wanted =
        lxc.iter().filter(|(_, info)| only.is_none_or(|only| only == info.lxc_id && !info.is_host()));
    for (address, info) in wanted {
        let endpoint = world.endpoints.get(&info.lxc_id).filter(|_| !info.is_host());
        let facts = if info.is_host() {
            "(localhost)".to_owned()
        } else {
            format!(
                "id={:<5} sec_id={} flags={:#06x} ifindex={:<3} mac={} nodemac={}",
                info.lxc_id.0, info.sec_id.0, info.flags, info.ifindex, info.mac, info.node_mac
            )
        };
        let name = endpoint.and_then(|endpoint| endpoint.pod.as_ref()).map(ToString::to_string);
        // Cilium's own list has the key's port, which is always 0.
        rows.push(vec![format!("{address}:0"), facts, clean(&name.clone().unwrap_or_default()).into_owned()]);
        dump.json.push(json!({
            "schema": "plsprobe.endpoint/1",
            "address": address.to_string(),
            "host": info.is_host(),
            "id": info.lxc_id.0,
            "identity": info.sec_id.0,
            "flags": info.flags,
            "ifindex": info.ifindex,
            "mac": info.mac.to_string(),
            "node_mac": info.node_mac.to_string(),
            "pod": name,
            "labels": endpoint.map(|endpoint| &endpoint.labels),
        }));
    }
    if let (Some(only), true) = (only, dump.json.is_empty()) {
        bail!("endpoint {only} is not in `cilium_lxc`; run `plsprobe dump endpoints` for those that are");
    }
    dump.table(&rows);
    Ok(dump)
}

/// `dump services`, as `cilium bpf lb list` prints it.
///
/// # Errors
///
/// If the map could not be read.
pub fn services(world: &World) -> Result<Dump> {
    let lb = world.lb.as_ref().ok_or_else(|| missing(world, "cilium_lb4_services_v2"))?;
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"])];
    for frontend in lb.frontends() {
        let Frontend { key, service, backends } = &frontend;
        let address = format!("{}:{}", key.address, key.dport);
        let id = service.rev_nat_index;
        rows.push(vec![address.clone(), format!("0.0.0.0:0 ({id}) (0) [{}]", service.words().join(", "))]);
        for (slot, backend_id, backend) in backends {
            let backend =
                backend.map_or_else(|| format!("backend {backend_id} not found"), |b| b.socket().to_string());
            rows.push(vec![String::new(), format!("{backend} ({id}) ({slot})")]);
        }
        dump.json.push(service_json(&frontend));
    }
    dump.table(&rows);
    Ok(dump)
}

fn service_json(Frontend { key, service, backends }: &Frontend) -> Value {
    let backends: Vec<_> = backends
        .iter()
        .map(|(slot, id, backend)| {
            json!({
                "slot": slot,
                "id": id,
                "address": backend.map(|backend| backend.address.to_string()),
                "port": backend.map(|backend| backend.port),
                "state": backend.map(|backend| backend.state()),
            })
        })
        .collect();
    json!({
        "schema": "plsprobe.service/1",
        "address": key.address.to_string(),
        "port": key.dport,
        "protocol": key.proto,
        "scope": if key.scope == 0 { "external" } else { "internal" },
        "id": service.rev_nat_index,
        "type": service.kind(),
        "flags": service.words(),
        "routable": service.is_routable(),
        "backends": backends,
    })
}

/// `dump conntrack`, as `cilium bpf ct list global` prints it.
///
/// # Errors
///
/// If the maps could not be read.
pub fn conntrack(world: &World) -> Result<Dump> {
    let entries = world.conntrack.as_ref().ok_or_else(|| missing(world, "cilium_ct4_global"))?;
    let mut dump = Dump::default();
    for (tuple, entry) in entries {
        dump.line(&conntrack_line(tuple, entry));
        dump.json.push(json!({
            "schema": "plsprobe.conntrack/1",
            "tuple": tuple.to_string(),
            "stored": {
                "daddr": tuple.daddr.to_string(), "saddr": tuple.saddr.to_string(), "dport": tuple.dport,
                "sport": tuple.sport, "protocol": tuple.nexthdr, "flags": tuple.flags,
            },
            "rx_packets": entry.rx_packets, "rx_bytes": entry.rx_bytes,
            "tx_packets": entry.tx_packets, "tx_bytes": entry.tx_bytes,
            "lifetime": entry.lifetime,
            "flags": conntrack_flags(entry.flags),
            "rev_nat_id": entry.rev_nat_index,
            "source_identity": entry.src_sec_id.0,
        }));
    }
    Ok(dump)
}

fn conntrack_line(tuple: &Ipv4CtTuple, entry: &CtEntry) -> String {
    let words = conntrack_flags(entry.flags).join(" ");
    let space = if words.is_empty() { "" } else { " " };
    format!(
        "{tuple} expires={} RxPackets={} RxBytes={} RxFlagsSeen={:#04x} LastRxReport={} TxPackets={} TxBytes={} \
         TxFlagsSeen={:#04x} LastTxReport={} Flags={:#06x} [ {words}{space}] RevNAT={} SourceSecurityID={} IfIndex={}",
        entry.lifetime,
        entry.rx_packets,
        entry.rx_bytes,
        entry.rx_flags_seen,
        entry.last_rx_report,
        entry.tx_packets,
        entry.tx_bytes,
        entry.tx_flags_seen,
        entry.last_tx_report,
        entry.flags,
        entry.rev_nat_index,
        entry.src_sec_id.0,
        entry.ifindex
    )
}

fn conntrack_flags(flags: u16) -> Vec<&'static str> {
    let words = [
        (CtEntry::RX_CLOSING, "RxClosing"),
        (CtEntry::TX_CLOSING, "TxClosing"),
        (CtEntry::LB_LOOPBACK, "LBLoopback"),
        (CtEntry::SEEN_NON_SYN, "SeenNonSyn"),
        (CtEntry::NODE_PORT, "NodePort"),
        (CtEntry::PROXY_REDIRECT, "ProxyRedirect"),
        (CtEntry::DSR, "DSR"),
        (CtEntry::FROM_L7LB, "FromL7LB"),
        (CtEntry::FROM_TUNNEL, "FromTunnel"),
    ];
    words.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| word).collect()
}

/// `dump nat`, as `cilium bpf nat list` prints it.
///
/// # Errors
///
/// If the map is missing or of another layout.
pub fn nat(node: &RawNode) -> Result<Dump> {
    let name = "cilium_snat_v4_external";
    let Some(map) = node.maps.get(name) else {
        bail!(
            "failed to read `{name}`: it is not there; Cilium makes it only with kube-proxy replacement or BPF masquerading"
        );
    };
    let mut entries = BTreeMap::new();
    for (key, value) in map.entries.iter() {
        entries.insert(Ipv4CtTuple::decode(key)?, Ipv4NatEntry::decode(value)?);
    }
    let mut dump = Dump::default();
    for (tuple, entry) in entries {
        let Ipv4CtTuple { daddr, saddr, dport, sport, nexthdr, flags } = tuple;
        let Ipv4NatEntry { created, needs_ct, to_addr, to_port } = entry;
        let (way, verb) =
            if flags & Ipv4CtTuple::IN == 0 { ("OUT", "XLATE_SRC") } else { ("IN", "XLATE_DST") };
        let protocol = Protocol(nexthdr);
        dump.line(&format!(
            "{protocol} {way} {saddr}:{sport} -> {daddr}:{dport} {verb} {to_addr}:{to_port} Created={created} NeedsCT={needs_ct}"
        ));
        dump.json.push(json!({
            "schema": "plsprobe.nat/1", "protocol": nexthdr, "direction": way,
            "saddr": saddr.to_string(), "sport": sport, "daddr": daddr.to_string(), "dport": dport,
            "to_address": to_addr.to_string(), "to_port": to_port, "created": created, "needs_ct": needs_ct,
        }));
    }
    Ok(dump)
}

/// `dump metrics`, as `cilium bpf metrics list` prints it: per-CPU counters added up.
///
/// # Errors
///
/// If the map is missing or of another layout.
pub fn metrics(node: &RawNode) -> Result<Dump> {
    let Some(map) = node.maps.get("cilium_metrics") else {
        bail!("failed to read `cilium_metrics`: it is not there");
    };
    let mut totals: BTreeMap<(String, &str), (MetricsKey, MetricsValue)> = BTreeMap::new();
    for (key, values) in map.entries.iter() {
        let key = MetricsKey::decode(key)?;
        let name = (metrics_reason(key.reason), metrics_direction(key.direction));
        let (_, total) = totals.entry(name).or_insert((key, MetricsValue::default()));
        for value in values.chunks(16) {
            let value = MetricsValue::decode(value)?;
            total.count += value.count;
            total.bytes += value.bytes;
        }
    }
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["REASON", "DIRECTION", "PACKETS", "BYTES"])];
    for ((reason, direction), (key, total)) in totals {
        let MetricsValue { count, bytes } = total;
        dump.json.push(json!({
            "schema": "plsprobe.metrics/1", "reason": key.reason, "text": reason, "direction": direction,
            "packets": count, "bytes": bytes,
        }));
        rows.push(vec![reason, direction.to_owned(), count.to_string(), bytes.to_string()]);
    }
    dump.table(&rows);
    Ok(dump)
}

/// Cilium's word for a reason in its metrics: a drop reason from 130 on.
fn metrics_reason(reason: u8) -> String {
    match reason {
        0 => "Success".to_owned(),
        3 => "Interface".to_owned(),
        4 => "Interface Decrypted".to_owned(),
        drop if drop >= 130 => DropReason(drop).text().map_or_else(|| drop.to_string(), str::to_owned),
        other => other.to_string(),
    }
}

fn metrics_direction(direction: u8) -> &'static str {
    match direction {
        1 => "INGRESS",
        2 => "EGRESS",
        3 => "SERVICE",
        _ => "UNKNOWN",
    }
}
