//! What commands print, as the bytes that the kernel holds: the agent's own tables and bpftool's dumps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use probe_model::cilium::entries::Entries;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lb::{LbBackend, LbKey, LbService};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey, Mac};
use probe_model::cilium::policy::{PolicyCounters, PolicyEntry, PolicyKey, PolicyLayout};
use probe_model::cilium::{Direction, EndpointId};
use probe_model::tuple::Protocol;

use super::super::raw::RawMap;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn raw_map(mut pairs: Pairs) -> Result<RawMap> {
    pairs.sort();
    let entries = Entries::collect(pairs)?;
    let (key_size, value_size) = (entries.key_size() as u32, entries.value_size() as u32);
    Ok(RawMap { key_size, value_size, entries, ..RawMap::default() })
}

/// `bpftool map dump`: `key: 0a 00 …  value: 01 …`, with a count at the end.
///
/// # Errors
///
/// For a dump of a map with type information, whose members bpftool prints by name, one value for each CPU, an error of
/// bpftool's, or one that broke off.
pub(super) fn bpftool_dump(text: &str) -> Result<RawMap> {
    let mut pairs: Pairs = Vec::new();
    let mut words = text.split_whitespace();
    let mut in_value = false;
    while let Some(word) = words.next() {
        match word {
            "key:" => {
                pairs.push((Vec::new(), Vec::new()));
                in_value = false;
            }
            "value:" => in_value = true,
            "Found" => {
                let count: usize =
                    words.next().and_then(|count| count.parse().ok()).context("found no count")?;
                ensure!(count == pairs.len(), "has {} entries, and says it has {count}", pairs.len());
                return raw_map(pairs);
            }
            word => {
                let (Ok(byte), Some((key, value))) = (u8::from_str_radix(word, 16), pairs.last_mut()) else {
                    let line = text.lines().find(|line| line.contains(word)).unwrap_or(word).trim();
                    bail!("found `{line}`, expected `key: … value: …` in hex");
                };
                if in_value { value.push(byte) } else { key.push(byte) }
            }
        }
    }
    bail!("found no count of entries at the end; it is truncated")
}

/// `cilium bpf policy get --all --numeric`: every endpoint's pin and map, or why it cannot be had.
pub(super) fn policies(text: &str, version: Option<(u32, u32)>) -> Vec<(String, Result<RawMap>)> {
    let mut all = Vec::new();
    for part in text.split("Endpoint ID:").skip(1) {
        let id = part.split_whitespace().next().unwrap_or_default();
        let path = part.lines().find_map(|line| line.trim().strip_prefix("Path:"));
        let pin = path.and_then(|path| path.trim().rsplit('/').next());
        let name = pin.map_or_else(|| format!("cilium_policy_{id:0>5}"), str::to_owned);
        let map = policy(part, &name, version);
        all.push((name, map));
    }
    all
}

/// Where each column of a table begins, by its heading.
struct Columns<'t>(Vec<(&'t str, usize)>);

impl<'t> Columns<'t> {
    /// Headings stand apart by at least two spaces.
    fn of(header: &'t str) -> Self {
        let mut all = Vec::new();
        let mut at = 0;
        for name in header.split("  ").map(|part| (part.trim(), part.len())) {
            let (name, length) = name;
            if !name.is_empty() {
                let lead = header[at..].len() - header[at..].trim_start().len();
                all.push((name, at + lead));
            }
            at += length + 2;
        }
        Self(all)
    }

    /// The cell of a row; `None` if the table has no such column.
    fn cell<'r>(&self, row: &'r str, name: &str) -> Option<&'r str> {
        let index = self.0.iter().position(|(heading, _)| *heading == name)?;
        let start = self.0[index].1;
        let end = self.0.get(index + 1).map_or(row.len(), |(_, next)| *next);
        row.get(start..end.min(row.len())).map(str::trim)
    }
}

fn policy(part: &str, pin: &str, version: Option<(u32, u32)>) -> Result<RawMap> {
    let header = part.lines().find(|line| line.starts_with("POLICY")).context("found no table")?;
    let columns = Columns::of(header);
    let has_prefix = columns.0.iter().any(|(name, _)| *name == "PREFIX");
    let layout = policy_layout(pin, has_prefix, version)?;
    let rows = part.lines().skip_while(|line| *line != header).skip(1);
    let mut pairs = Pairs::new();
    for row in rows.take_while(|row| !row.trim().is_empty()) {
        let (key, entry) =
            policy_row(&columns, row, layout).with_context(|| format!("in `{}`", row.trim()))?;
        pairs.push((key.encode(layout), entry.encode(layout)));
    }
    let mut map = raw_map(pairs)?;
    (map.key_size, map.value_size) = (layout.key_size() as u32, layout.value_size() as u32);
    Ok(map)
}

/// The layout of the map that was printed; an error where the table lacks what the lookup of that layout decides by.
fn policy_layout(pin: &str, has_prefix: bool, version: Option<(u32, u32)>) -> Result<PolicyLayout> {
    let (minor, patch) = version.context("the archive does not say Cilium's version")?;
    let layout = match (minor, patch) {
        (13, _) => PolicyLayout::HashKey,
        (14 | 15, _) | (16, 0..=3) => PolicyLayout::WildcardBits,
        (16, _) => PolicyLayout::PrefixLength,
        (17, _) => PolicyLayout::ProxyPriority,
        (18.., _) => {
            bail!(
                "`bpf policy get` of Cilium 1.{minor} does not print what its lookup decides by (precedence)"
            )
        }
        _ => bail!("Cilium 1.{minor} is not known"),
    };
    ensure!(
        has_prefix || layout == PolicyLayout::HashKey,
        "found no column PREFIX, which Cilium 1.{minor} prints"
    );
    ensure!(
        pin.starts_with(layout.pin_prefix()),
        "the pin `{pin}` is not one of Cilium 1.{minor}, whose begin with `{}`",
        layout.pin_prefix()
    );
    Ok(layout)
}

fn policy_row(columns: &Columns<'_>, row: &str, layout: PolicyLayout) -> Result<(PolicyKey, PolicyEntry)> {
    let cell = |name: &'static str| columns.cell(row, name).with_context(|| format!("no column {name}"));
    let deny = match cell("POLICY")? {
        "Allow" => false,
        "Deny" => true,
        found => bail!("found POLICY `{found}`"),
    };
    let direction = match cell("DIRECTION")? {
        "Ingress" => Direction::Ingress,
        "Egress" => Direction::Egress,
        found => bail!("found DIRECTION `{found}`"),
    };
    let identity = cell("IDENTITY")?;
    let sec_label = Identity(identity.parse().with_context(|| format!("found IDENTITY `{identity}`"))?);
    let prefix = match columns.cell(row, "PREFIX") {
        Some(prefix) => Some(prefix.parse().with_context(|| format!("found PREFIX `{prefix}`"))?),
        None => None,
    };
    let (protocol, dport, l4_prefix) = l4(cell("PORT/PROTO")?, prefix)?;
    let key = PolicyKey { prefixlen: 40 + l4_prefix, sec_label, direction, protocol, dport };
    let mut entry = PolicyEntry::for_key(&key, layout, deny);
    match cell("PROXY PORT")? {
        "NONE" => {}
        port => {
            ensure!(
                layout < PolicyLayout::ProxyPriority,
                "a redirect, whose priority among others is not printed"
            );
            entry.proxy_port = port.parse().with_context(|| format!("found PROXY PORT `{port}`"))?;
        }
    }
    entry.auth_type = match columns.cell(row, "AUTH TYPE") {
        None | Some("disabled" | "") => 0,
        Some("spire") => 1,
        Some(other) => bail!("found AUTH TYPE `{other}`"),
    };
    let number = |name: &'static str| -> Result<u64> { Ok(cell(name)?.parse().unwrap_or_default()) };
    entry.counters = Some(PolicyCounters { packets: number("PACKETS")?, bytes: number("BYTES")? });
    Ok((key, entry))
}

/// Protocol, port and prefix bits of `ANY`, `80/TCP`, `8080-8087/TCP` or `ANY/TCP`.
fn l4(text: &str, prefix: Option<u32>) -> Result<(u8, u16, u32)> {
    let found = || format!("found PORT/PROTO `{text}`");
    let Some((ports, protocol)) = text.split_once('/') else {
        ensure!(text == "ANY" && prefix.is_none_or(|bits| bits == 0), found());
        return Ok((0, 0, 0));
    };
    let protocol = Protocol::parse(protocol).with_context(found)?.0;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number =
        |port: &str| -> Result<u16> { if port == "ANY" { Ok(0) } else { port.parse().with_context(found) } };
    let (first, last) = (number(first)?, number(last)?);
    let bits = prefix.unwrap_or(if first == 0 { 8 } else { 24 });
    ensure!((8..=24).contains(&bits), found());
    let span = u32::from(last.checked_sub(first).with_context(found)?) + 1;
    // All ports are printed as none.
    ensure!(bits == 8 || span == 1 << (24 - bits), "{}, and PREFIX {bits}", found());
    Ok((protocol, first, bits))
}

/// `key=value` words of a cell.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.split_whitespace().filter_map(|word| word.trim_end_matches(',').split_once('=')).collect()
}

fn field<T: std::str::FromStr>(fields: &BTreeMap<&str, &str>, name: &str) -> Result<T> {
    let text = fields.get(name).with_context(|| format!("found no `{name}`"))?;
    text.parse().ok().with_context(|| format!("found `{name}={text}`"))
}

/// Rows after the heading, each split at its first space.
fn rows<'t>(text: &'t str, heading: &str) -> Result<impl Iterator<Item = (&'t str, &'t str)>> {
    ensure!(text.lines().any(|line| line.starts_with(heading)), "found no table headed `{heading}`");
    let heading = heading.to_owned();
    let rows = text.lines().skip_while(move |line| !line.starts_with(&heading)).skip(1);
    Ok(rows.filter_map(|row| row.trim().split_once(char::is_whitespace)))
}

/// `cilium bpf ipcache list`.
pub(super) fn ipcache(text: &str, version: Option<(u32, u32)>) -> Result<(IpcacheLayout, RawMap)> {
    let layout = match version.context("the archive does not say Cilium's version")? {
        (13, _) => IpcacheLayout::NoCluster,
        (14, _) => IpcacheLayout::ClusterByte,
        (15..=17, _) => IpcacheLayout::ClusterWord,
        _ => IpcacheLayout::TunnelAddress,
    };
    let mut pairs = Pairs::new();
    for (prefix, info) in rows(text, "IP PREFIX/ADDRESS")? {
        let fields = fields(info);
        let bare: IpNet = prefix.parse().or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from))?;
        let tunnel: IpAddr = field(&fields, "tunnelendpoint")?;
        let flags = fields.get("flags").copied().unwrap_or_default();
        let value = RemoteEndpointInfo {
            sec_identity: Identity(field(&fields, "identity")?),
            tunnel_endpoint: (!tunnel.is_unspecified()).then_some(tunnel),
            node_id: 0,
            key: field(&fields, "encryptkey")?,
            skip_tunnel: flags.contains("skiptunnel"),
            remote_cluster: flags.contains("remotecluster"),
        };
        let key = IpcacheKey { prefix: bare, cluster_id: 0 };
        pairs.push((key.encode(layout).to_vec(), value.encode(layout)));
    }
    Ok((layout, raw_map(pairs)?))
}

/// `cilium bpf endpoint list`.
pub(super) fn endpoints(text: &str) -> Result<RawMap> {
    let mut pairs = Pairs::new();
    for (address, info) in rows(text, "IP ADDRESS")? {
        let ip = address.rsplit_once(':').map_or(address, |(ip, _)| ip);
        let ip: IpAddr = ip.trim_matches(['[', ']']).parse().with_context(|| format!("found `{address}`"))?;
        let value = if info.trim() == "(localhost)" {
            EndpointInfo { flags: EndpointInfo::HOST, ..EndpointInfo::default() }
        } else {
            endpoint(info).with_context(|| format!("of `{address}`"))?
        };
        pairs.push((EndpointKey::new(ip).encode().to_vec(), value.encode().to_vec()));
    }
    raw_map(pairs)
}

fn endpoint(info: &str) -> Result<EndpointInfo> {
    let fields = fields(info);
    let flags =
        fields.get("flags").and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
    let mac = |name: &str| {
        let mut mac = Mac::default();
        let bytes = fields.get(name).copied().unwrap_or_default().split(':');
        for (to, byte) in mac.0.iter_mut().zip(bytes) {
            *to = u8::from_str_radix(byte, 16).unwrap_or_default();
        }
        mac
    };
    Ok(EndpointInfo {
        ifindex: field(&fields, "ifindex")?,
        lxc_id: EndpointId(field(&fields, "id")?),
        flags: flags.context("found no `flags`")?,
        mac: mac("mac"),
        node_mac: mac("nodemac"),
        sec_id: Identity(field(&fields, "sec_id").unwrap_or_default()),
        parent_ifindex: field(&fields, "parent_ifindex").unwrap_or_default(),
        ..EndpointInfo::default()
    })
}

/// The backends that `cilium bpf lb list` names by slot, under the ids that the services have for the same slots.
///
/// # Errors
///
/// For a slot that the table does not have: without it a service would look as if it had lost its backend.
pub(super) fn backends(table: &str, services: &RawMap) -> Result<RawMap> {
    let named = slots(table)?;
    let mut by_id: BTreeMap<u32, (IpAddr, u16)> = BTreeMap::new();
    for (key, value) in services.entries.iter() {
        let (key, service) = (LbKey::decode(key)?, LbService::decode(value)?);
        if key.backend_slot == 0 {
            continue;
        }
        let place = (key.address, key.dport, key.backend_slot);
        let backend = named.get(&place);
        let (address, port) =
            backend.with_context(|| format!("found no slot {} of {}:{}", place.2, place.0, place.1))?;
        by_id.insert(service.backend_id, (*address, *port));
    }
    let pairs = by_id.into_iter().map(|(id, (address, port))| {
        let backend = LbBackend { address, port, proto: 0, flags: 0, cluster_id: 0, zone: 0 };
        (id.to_le_bytes().to_vec(), backend.encode())
    });
    raw_map(pairs.collect())
}

/// Address and port of the backend by those of the frontend and its slot.
type Slots = BTreeMap<(IpAddr, u16, u16), (IpAddr, u16)>;

fn slots(table: &str) -> Result<Slots> {
    ensure!(table.contains("SERVICE ADDRESS"), "found no table headed `SERVICE ADDRESS`");
    let mut frontend: Option<SocketAddr> = None;
    let mut all = BTreeMap::new();
    let rows = table.lines().skip_while(|line| !line.starts_with("SERVICE ADDRESS")).skip(1);
    for row in rows {
        let address = |word: &str| word.split('/').next().and_then(|word| word.parse::<SocketAddr>().ok());
        let mut words = row.split_whitespace();
        if !row.starts_with(' ') {
            frontend = words.next().and_then(address);
        }
        // From 1.16 on a frontend's slot stands behind it.
        let (Some(frontend), Some(backend)) = (frontend, words.find_map(address)) else { continue };
        let numbers = words.filter_map(|word| word.strip_prefix('(')?.strip_suffix(')')?.parse::<u16>().ok());
        if let Some(slot) = numbers.into_iter().nth(1).filter(|slot| *slot != 0) {
            let (place, to) = ((frontend.ip(), frontend.port(), slot), (backend.ip(), backend.port()));
            // Two protocols or scopes on one address and port: which of them a service's slot is, is not printed alike
            // in every version.
            let other = all.insert(place, to).filter(|other| *other != to);
            ensure!(other.is_none(), "has two backends in slot {slot} of {frontend}");
        }
    }
    Ok(all)
}
