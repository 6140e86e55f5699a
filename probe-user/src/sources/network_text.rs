//! Reads interfaces and routes from the text of `ip addr` and `ip route`, as recordings have them.
//!
//! Each command's output follows a line `# ip addr`, `# ip route`, …; other sections are skipped.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;

use super::raw::{Link, Network, Route};

/// Reads the sections `# ip addr` and `# ip route` of `text`.
///
/// # Errors
///
/// If an address or a route cannot be read; the message has the line.
pub fn parse(text: &str) -> Result<Network> {
    let mut network = Network::default();
    let mut section = "";
    for (idx, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("# ") {
            section = command.trim();
            continue;
        }
        let read = match section {
            "ip addr" | "ip address" => parse_address_line(line, &mut network.links),
            "ip route" | "ip -6 route" => parse_route(line).map(|route| network.routes.extend(route)),
            _ => Ok(()),
        };
        read.with_context(|| format!("failed to read line {}: `{}`", idx + 1, line.trim()))?;
    }
    Ok(network)
}

/// `2: eth0@if3: <…>` begins an interface, `    inet 10.224.0.4/16 …` is one of its addresses.
fn parse_address_line(line: &str, links: &mut Vec<Link>) -> Result<()> {
    let mut words = line.split_whitespace();
    match words.next() {
        Some("inet" | "inet6") => {
            let address = words.next().context("found no address after `inet`")?;
            // A point-to-point address is written `10.0.0.1 peer 10.0.0.2/32`.
            let address: IpNet = address.parse().or_else(|_| address.parse::<IpAddr>().map(IpNet::from))?;
            links.last_mut().context("found an address before any interface")?.addresses.push(address);
        }
        Some(index) if !line.starts_with(' ') && index.ends_with(':') => {
            let ifindex = index.trim_end_matches(':').parse().context("expected an interface index")?;
            let name = words.next().context("found no interface name")?.trim_end_matches(':');
            let name = name.split('@').next().unwrap_or(name).to_owned();
            links.push(Link { name, ifindex, addresses: Vec::new() });
        }
        _ => {}
    }
    Ok(())
}

/// `10.0.0.0/23 via 10.0.0.81 dev cilium_host … src 10.0.0.81 metric 100`; types other than unicast are skipped.
fn parse_route(line: &str) -> Result<Option<Route>> {
    let mut words = line.split_whitespace();
    let destination = match words.next() {
        None
        | Some("local" | "broadcast" | "multicast" | "unreachable" | "blackhole" | "prohibit" | "anycast") => {
            return Ok(None);
        }
        // A next hop of a multipath route; its interface is not followed.
        Some("nexthop") => return Ok(None),
        Some("default") => None,
        Some(prefix) => Some(prefix.parse::<IpNet>().or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from))?),
    };
    let (mut via, mut dev, mut src, mut metric) = (None, None, None, 0);
    while let Some(word) = words.next() {
        match word {
            "via" => via = words.next().and_then(|word| word.parse::<IpAddr>().ok()),
            "dev" => dev = words.next().map(str::to_owned),
            "src" => src = words.next().and_then(|word| word.parse().ok()),
            "metric" => metric = words.next().and_then(|word| word.parse().ok()).unwrap_or(0),
            _ => {}
        }
    }
    let Some(dev) = dev else { return Ok(None) };
    let default = match via {
        Some(IpAddr::V6(_)) => IpNet::V6(ipnet::Ipv6Net::default()),
        _ => IpNet::V4(ipnet::Ipv4Net::default()),
    };
    Ok(Some(Route { destination: destination.unwrap_or(default), via, dev, src, metric }))
}
