//! Cilium's maps in the columns of its own command line, and as JSON.

mod private_link;
mod small;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow, bail};
use probe_model::cilium::ct::{CtCounters, CtEntry, CtLayout, CtTuple};
use probe_model::cilium::drop_reason::DropReason;
use probe_model::cilium::family::Family;
use probe_model::cilium::forward_reason::ForwardReason;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::lb::{Frontend, LbKey, Slot};
use probe_model::cilium::metrics::{MetricsKey, MetricsValue};
use probe_model::cilium::nat::NatEntry;
use probe_model::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey};
use probe_model::cilium::release::Release;
use probe_model::cilium::source_file::source_file;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::tuple::Protocol;
use probe_model::world::World;
use probe_model::world::conntrack::Conntrack;
use serde_json::{Value, json};

use super::{clean, json_line};
use crate::sources::assemble;
use crate::sources::raw::RawNode;

pub use private_link::{nat_ips, private_endpoints};
pub use small::{affinity, auth, fragments, node, policystats, source_ranges, tunnel};

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
        self.json.iter().try_for_each(|value| json_line(value, out))
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
            // Of 1.18 and later the counters lie apart.
            let entry = PolicyEntry { counters: world.policy_counters(*id, &key, &entry), ..entry };
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
        identity_labels(world, key.sec_label),
    ]
}

/// An identity's labels, or the one that its reserved number stands for.
fn identity_labels(world: &World, identity: Identity) -> String {
    let labels = world.labels(identity).join(" ");
    let reserved = identity.reserved_name().filter(|_| labels.is_empty());
    let labels = reserved.map_or(labels, |name| format!("reserved:{name}"));
    clean(&labels).into_owned()
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
    port_range(key.l4_prefix(), key.protocol, key.dport)
}

/// As [`port_proto`], of so many bits of protocol and port.
fn port_range(prefix_bits: u8, protocol: u8, dport: u16) -> String {
    let protocol = Protocol(protocol);
    match prefix_bits {
        0 => "ANY".to_owned(),
        1..=8 => protocol.to_string(),
        24.. => format!("{dport}/{protocol}"),
        prefix => {
            let free = (1u32 << (24 - u32::from(prefix))) - 1;
            let first = u32::from(dport) & !free;
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
    entries.sort_by_key(|(prefix, _)| *prefix);
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["IP PREFIX/ADDRESS", "IDENTITY", "LABELS"])];
    for (prefix, info) in entries {
        let (identity, key, node) = (info.sec_identity, info.key, info.node_id);
        let tunnel = info.tunnel_endpoint.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let labels = world.labels(identity);
        let words = info.flag_words();
        let flags = if words.is_empty() { String::new() } else { format!(" flags={}", words.join(",")) };
        let facts = format!(
            "identity={} encryptkey={key} tunnelendpoint={tunnel} nodeid={node:#x}{flags}",
            identity.0
        );
        rows.push(vec![prefix.to_string(), facts, clean(&labels.join(" ")).into_owned()]);
        dump.json.push(json!({
            "schema": "plsprobe.ipcache/1",
            "prefix": prefix.to_string(),
            "identity": identity.0,
            "labels": labels,
            "encrypt_key": key,
            "tunnel_endpoint": tunnel.to_string(),
            "node_id": node,
            "flags": words,
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
        // Cilium 1.13 has it elsewhere.
        let identity = if info.is_host() { info.sec_id } else { world.endpoint_identity(info.lxc_id) };
        let facts = if info.is_host() {
            "(localhost)".to_owned()
        } else {
            format!(
                "id={:<5} sec_id={} flags={:#06x} ifindex={:<3} mac={} nodemac={}",
                info.lxc_id.0, identity.0, info.flags, info.ifindex, info.mac, info.node_mac
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
            "identity": identity.0,
            "flags": info.flags,
            "parent_ifindex": info.parent_ifindex,
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
    if world.lb.is_none() && world.lb6.is_none() {
        return Err(missing(world, "cilium_lb4_services_v2"));
    }
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["SERVICE ADDRESS", "BACKEND ADDRESS (REVNAT_ID) (SLOT)"])];
    for frontend in world.frontends() {
        let Frontend { key, service, backends, quarantined } = &frontend;
        let none = SocketAddr::new(Family::of(key.address).unspecified(), 0);
        let id = service.rev_nat_index;
        rows.push(vec![
            frontend_text(&frontend),
            format!("{none} ({id}) (0) [{}]", service.words().join(", ")),
        ]);
        for (Slot { slot, backend_id, backend }, suffix) in backends
            .iter()
            .map(|slot| (slot, ""))
            .chain(quarantined.iter().map(|slot| (slot, " [quarantined]")))
        {
            let backend =
                backend.map_or_else(|| format!("backend {backend_id} not found"), |b| b.socket().to_string());
            rows.push(vec![String::new(), format!("{backend} ({id}) ({slot}){suffix}")]);
        }
        dump.json.push(service_json(&frontend));
    }
    dump.table(&rows);
    Ok(dump)
}

/// A frontend's address and port, with its protocol and scope where the key says more than any and external.
pub fn frontend_text(frontend: &Frontend) -> String {
    let key = frontend.key;
    let socket = SocketAddr::new(key.address, key.dport);
    let protocol = if key.proto == 0 { String::new() } else { format!("/{}", Protocol(key.proto)) };
    let scope = if key.scope == LbKey::SCOPE_EXTERNAL { "" } else { "/i" };
    format!("{socket}{protocol}{scope}")
}

fn service_json(Frontend { key, service, backends, quarantined }: &Frontend) -> Value {
    let slot_json = |slot: &Slot, quarantined: bool| {
        json!({
            "slot": slot.slot,
            "id": slot.backend_id,
            "address": slot.backend.map(|backend| backend.address.to_string()),
            "port": slot.backend.map(|backend| backend.port),
            "state": slot.backend.map(|backend| backend.state().word()),
            "quarantined": quarantined,
        })
    };
    let usable = backends.iter().map(|slot| slot_json(slot, false));
    let backends: Vec<_> = usable.chain(quarantined.iter().map(|slot| slot_json(slot, true))).collect();
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
    let families = [&world.conntrack, &world.conntrack6].map(Conntrack::whole);
    if families.iter().all(Option::is_none) {
        return Err(missing(world, "cilium_ct4_global"));
    }
    let layouts = &world.ct_layouts;
    let mut dump = Dump::default();
    for (tuple, entry) in families.into_iter().flatten().flatten() {
        dump.line(&conntrack_line(tuple, entry, layouts));
        let mut line = json!({
            "schema": "plsprobe.conntrack/1",
            "tuple": tuple.to_string(),
            "stored": {
                "daddr": tuple.daddr.to_string(), "saddr": tuple.saddr.to_string(), "dport": tuple.dport,
                "sport": tuple.sport, "protocol": tuple.nexthdr, "flags": tuple.flags,
            },
            "lifetime": entry.lifetime,
            "flags": entry.words(layouts),
            "rev_nat_id": entry.rev_nat_index,
            "source_identity": entry.src_sec_id.0,
        });
        if tuple.is_service() {
            line["backend_id"] = json!(entry.backend_id());
        }
        match entry.counters(layouts) {
            Some(CtCounters::PerDirection { rx_packets, rx_bytes, tx_packets, tx_bytes }) => {
                line["rx_packets"] = json!(rx_packets);
                line["rx_bytes"] = json!(rx_bytes);
                line["tx_packets"] = json!(tx_packets);
                line["tx_bytes"] = json!(tx_bytes);
            }
            Some(CtCounters::Joint { packets, bytes }) => {
                line["packets"] = json!(packets);
                line["bytes"] = json!(bytes);
            }
            None => {}
        }
        if let Some((address, port)) = nat_of(tuple, entry, layouts) {
            line["nat"] = json!({ "address": address.to_string(), "port": port });
        }
        dump.json.push(line);
    }
    Ok(dump)
}

/// Where a connection's packets are translated to, as its own entry says.
fn nat_of(tuple: &CtTuple, entry: &CtEntry, layouts: &[CtLayout]) -> Option<(IpAddr, u16)> {
    if tuple.is_service() { None } else { entry.nat(Family::of(tuple.daddr), layouts) }
}

/// The columns in the order of the version that writes the layout; what no layout tells is left out.
fn conntrack_line(tuple: &CtTuple, entry: &CtEntry, layouts: &[CtLayout]) -> String {
    let words = entry.words(layouts).join(" ");
    let space = if words.is_empty() { "" } else { " " };
    let (rx, tx) = match entry.counters(layouts) {
        Some(CtCounters::PerDirection { rx_packets, rx_bytes, tx_packets, tx_bytes }) => (
            format!("RxPackets={rx_packets} RxBytes={rx_bytes} "),
            format!("TxPackets={tx_packets} TxBytes={tx_bytes} "),
        ),
        Some(CtCounters::Joint { packets, bytes }) => {
            (format!("Packets={packets} Bytes={bytes} "), String::new())
        }
        None => <(String, String)>::default(),
    };
    let ifindex = entry.ifindex(layouts).map(|ifindex| format!(" IfIndex={ifindex}")).unwrap_or_default();
    let is_joint = !matches!(entry.counters(layouts), Some(CtCounters::PerDirection { .. }));
    let has_backend = is_joint && tuple.is_service();
    let backend = if has_backend { format!(" BackendID={}", entry.backend_id()) } else { String::new() };
    let nat = nat_of(tuple, entry, layouts);
    let nat =
        nat.map(|(address, port)| format!(" Nat={}", SocketAddr::new(address, port))).unwrap_or_default();
    format!(
        "{tuple} expires={} {rx}RxFlagsSeen={:#04x} LastRxReport={} {tx}TxFlagsSeen={:#04x} LastTxReport={} \
         Flags={:#06x} [ {words}{space}] RevNAT={} SourceSecurityID={}{ifindex}{backend}{nat}",
        entry.lifetime,
        entry.rx_flags_seen,
        entry.last_rx_report,
        entry.tx_flags_seen,
        entry.last_tx_report,
        entry.flags,
        entry.rev_nat_index,
        entry.src_sec_id.0,
    )
}

/// `dump nat`, as `cilium bpf nat list` prints it.
///
/// # Errors
///
/// If the map is missing or of another layout.
pub fn nat(node: &RawNode) -> Result<Dump> {
    let next = "Cilium makes it only with kube-proxy replacement or BPF masquerading";
    let maps = small::either(node, ["cilium_snat_v4_external", "cilium_snat_v6_external"], next)?;
    let mut entries = BTreeMap::new();
    for (key, value) in maps.into_iter().flat_map(|map| map.entries.iter()) {
        entries.insert(CtTuple::decode(key)?, NatEntry::decode(value)?);
    }
    let mut dump = Dump::default();
    for (tuple, entry) in entries {
        let CtTuple { daddr, saddr, dport, sport, nexthdr, flags } = tuple;
        let NatEntry { created, needs_ct, to_addr, to_port } = entry;
        let (way, verb) = if flags & CtTuple::IN == 0 { ("OUT", "XLATE_SRC") } else { ("IN", "XLATE_DST") };
        let protocol = Protocol(nexthdr);
        let end = |address, port| SocketAddr::new(address, port);
        dump.line(&format!(
            "{protocol} {way} {} -> {} {verb} {} Created={created} NeedsCT={needs_ct}",
            end(saddr, sport),
            end(daddr, dport),
            end(to_addr, to_port)
        ));
        dump.json.push(json!({
            "schema": "plsprobe.nat/1", "protocol": nexthdr, "direction": way,
            "saddr": saddr.to_string(), "sport": sport, "daddr": daddr.to_string(), "dport": dport,
            "to_address": to_addr.to_string(), "to_port": to_port, "created": created, "needs_ct": needs_ct,
        }));
    }
    Ok(dump)
}

/// `dump metrics`, as `cilium bpf metrics list` prints it: per-CPU counters added up, from Cilium 1.16 on by the place in
/// its source that counts.
///
/// # Errors
///
/// If the map is missing or of another layout.
pub fn metrics(node: &RawNode) -> Result<Dump> {
    let map = small::map_of(node, "cilium_metrics", "every Cilium makes it; is the agent up?")?;
    let mut totals: BTreeMap<(String, &str, u8, u16), (MetricsKey, MetricsValue)> = BTreeMap::new();
    for (key, values) in map.entries.iter() {
        let key = MetricsKey::decode(key)?;
        let name = (metrics_reason(key.reason), metrics_direction(key.direction), key.file, key.line);
        let (_, total) = totals.entry(name).or_insert((key, MetricsValue::default()));
        *total = total.plus(MetricsValue::sum(values)?);
    }
    let release = assemble::version(node).and_then(|version| Release::of_version(&version));
    let has_places = totals.keys().any(|(_, _, file, _)| *file != 0);
    let columns = if has_places { 6 } else { 4 };
    let mut dump = Dump::default();
    let mut rows = vec![headings(&["REASON", "DIRECTION", "PACKETS", "BYTES", "LINE", "FILE"][..columns])];
    for ((reason, direction, file, line), (key, total)) in totals {
        let MetricsValue { count, bytes } = total;
        // Without the release only those numbers that mean the same in all.
        let releases = release.map_or(Release(16)..=Release::LAST, |release| release..=release);
        let name = source_file(file, releases).filter(|_| has_places);
        let mut entry = json!({
            "schema": "plsprobe.metrics/1", "reason": key.reason, "text": reason, "direction": direction,
            "packets": count, "bytes": bytes,
        });
        if has_places {
            entry["line"] = json!(line);
            entry["file"] = json!(file);
            entry["source_file"] = json!(name);
        }
        dump.json.push(entry);
        let file = name.map_or_else(|| file.to_string(), str::to_owned);
        let row =
            [reason, direction.to_owned(), count.to_string(), bytes.to_string(), line.to_string(), file];
        rows.push(row.into_iter().take(columns).collect());
    }
    dump.table(&rows);
    Ok(dump)
}

/// Cilium's word for a reason in its metrics: a drop reason from 130 on.
fn metrics_reason(reason: u8) -> String {
    let text = if reason >= 130 { DropReason(reason).text() } else { ForwardReason(reason).text() };
    text.map_or_else(|| reason.to_string(), str::to_owned)
}

fn metrics_direction(direction: u8) -> &'static str {
    match direction {
        1 => "INGRESS",
        2 => "EGRESS",
        3 => "SERVICE",
        _ => "UNKNOWN",
    }
}
