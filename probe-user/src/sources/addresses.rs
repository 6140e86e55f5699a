//! Interfaces, addresses and routes of the current network namespace, asked of the kernel by netlink.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia},
};

use super::{
    netlink::Netlink,
    raw::{Link, Network, Route},
};

/// Reads the network of the calling thread's namespace.
///
/// # Errors
///
/// When the kernel answers with an error, or its answer cannot be decoded.
pub fn network() -> Result<Network> {
    let netlink = Netlink::open()?;
    let mut links = netlink
        .dump("interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?
        .into_iter()
        .filter_map(link)
        .collect::<Vec<_>>();
    for (ifindex, address) in netlink
        .dump("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?
        .into_iter()
        .filter_map(address)
    {
        // An interface may have come between the two lists; its addresses then wait for the next look.
        if let Some(link) = links.iter_mut().find(|link| link.ifindex == ifindex) {
            link.addresses.push(address);
        }
    }
    let routes = netlink
        .dump("routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?
        .into_iter()
        .filter_map(|message| route(message, &links))
        .collect();
    Ok(Network { links, routes })
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let name = attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })?;
    Some(Link { name, ifindex: header.index, addresses: Vec::new() })
}

/// An interface's index and one of its own addresses.
fn address(message: RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(AddressMessage { header, attributes, .. }) = message else {
        return None;
    };
    let (mut local, mut any) = (None, None);
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            // Of a point-to-point link this is the other end's.
            AddressAttribute::Address(address) => any = Some(address),
            _ => {}
        }
    }
    let address = IpNet::new(local.or(any)?, header.prefix_len).ok()?;
    Some((header.index, address))
}

/// A unicast route of the main table with one next hop.
fn route(message: RouteNetlinkMessage, links: &[Link]) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    if header.kind != RouteType::Unicast
        || table(&header, &attributes) != u32::from(RouteHeader::RT_TABLE_MAIN)
    {
        return None;
    }
    let mut route =
        Route { destination: unspecified(&header)?, via: None, dev: String::new(), src: None, metric: 0 };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.destination = IpNet::new(ip(&to)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(gateway) => route.via = ip(&gateway),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => route.via = Some(gateway.into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.via = Some(gateway.into()),
            RouteAttribute::PrefSource(source) => route.src = ip(&source),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Oif(ifindex) => {
                route.dev.clone_from(&links.iter().find(|link| link.ifindex == ifindex)?.name);
            }
            _ => {}
        }
    }
    // A route over several next hops has no interface of its own.
    (!route.dev.is_empty()).then_some(route)
}

/// The table's number: in an attribute where it does not fit the header.
fn table(header: &RouteHeader, attributes: &[RouteAttribute]) -> u32 {
    let wide = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or_else(|| header.table.into())
}

/// The default route's destination in the message's family.
fn unspecified(header: &RouteHeader) -> Option<IpNet> {
    use netlink_packet_route::AddressFamily;
    match header.address_family {
        AddressFamily::Inet => Some(IpNet::V4(ipnet::Ipv4Net::default())),
        AddressFamily::Inet6 => Some(IpNet::V6(ipnet::Ipv6Net::default())),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    /// Runs `ip` in this thread's namespace, or not at all where it is not installed.
    fn ip_command(arguments: &str) -> Option<String> {
        let output = Command::new("ip").args(arguments.split(' ')).output().ok()?;
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn a_namespace_of_the_seeds_shape() {
        // SAFETY: only this thread's network namespace is unshared, no file descriptors.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            fixtures::skip!("cannot make a network namespace: {error}");
            return;
        }
        let commands = [
            "link add eth0 type veth peer name peer0",
            "link add lxc1 type veth peer name pod0",
            "addr add 10.224.0.4/16 dev eth0",
            "addr add 10.224.0.5/16 dev eth0",
            "addr add 10.0.0.81 peer 10.0.0.82/32 dev lxc1",
            "link set lo up",
            "link set eth0 up",
            "link set lxc1 up",
            "route add default via 10.224.0.1 dev eth0",
            "route add 10.0.0.143/32 dev lxc1 src 10.224.0.4",
            "route add 10.1.0.0/16 via 10.224.0.9 dev eth0 metric 100",
            "route add blackhole 10.2.0.0/16",
            "route add 10.3.0.0/16 dev lxc1 table 1000",
        ];
        if Command::new("ip").arg("-V").output().is_err() {
            fixtures::skip!("`ip` is not installed");
            return;
        }
        for command in commands {
            ip_command(command).unwrap();
        }
        let found = network().unwrap();

        let own = |link: &Link| {
            let v4 = link.addresses.iter().filter(|address| address.addr().is_ipv4());
            v4.map(IpNet::to_string).collect::<Vec<_>>().join(" ")
        };
        let of = |name: &str| found.links.iter().find(|link| link.name == name).map(own);
        assert_eq!(of("lo").as_deref(), Some("127.0.0.1/8"));
        assert_eq!(of("eth0").as_deref(), Some("10.224.0.4/16 10.224.0.5/16"));
        assert_eq!(of("lxc1").as_deref(), Some("10.0.0.81/32"));
        assert_eq!(of("peer0").as_deref(), Some(""));

        let shown = |route: &Route| {
            let via = route.via.map(|via| format!(" via {via}")).unwrap_or_default();
            let src = route.src.map(|src| format!(" src {src}")).unwrap_or_default();
            format!("{}{via} dev {}{src} metric {}", route.destination, route.dev, route.metric)
        };
        let mut routes: Vec<String> =
            found.routes.iter().filter(|route| route.destination.addr().is_ipv4()).map(shown).collect();
        routes.sort();
        let expected = [
            "0.0.0.0/0 via 10.224.0.1 dev eth0 metric 0",
            "10.0.0.143/32 dev lxc1 src 10.224.0.4 metric 0",
            "10.0.0.82/32 dev lxc1 src 10.0.0.81 metric 0",
            "10.1.0.0/16 via 10.224.0.9 dev eth0 metric 100",
            "10.224.0.0/16 dev eth0 src 10.224.0.4 metric 0",
        ];
        assert_eq!(routes, expected);
    }
}
