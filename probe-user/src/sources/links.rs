//! The interfaces of this network namespace and how they stand to each other, asked of the kernel in one list.

use anyhow::Result;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};

use super::netlink::Netlink;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The index of the interface that it is a part of: of a virtual function, the synthetic NIC above it.
    pub master: Option<u32>,
    /// Somebody else's end of a wire: a namespace's veth, a virtual machine's tap.
    pub is_guest: bool,
    /// The UDP port of a VXLAN or Geneve interface, where the kernel says it.
    pub udp_port: Option<u16>,
}

/// All interfaces of the calling thread's network namespace.
///
/// # Errors
///
/// When the kernel answers with an error, or its answer cannot be decoded.
pub fn devices() -> Result<Vec<Device>> {
    let links = Netlink::open()?.dump("interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(links.into_iter().filter_map(device).collect())
}

fn device(message: RouteNetlinkMessage) -> Option<Device> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let mut device = Device { ifindex: header.index, ..Device::default() };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::Controller(master) => device.master = Some(master),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => {
                            device.is_guest = matches!(kind, InfoKind::Veth | InfoKind::Tun);
                        }
                        LinkInfo::Data(data) => device.udp_port = udp_port(&data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(device)
}

fn udp_port(data: &InfoData) -> Option<u16> {
    let port = match data {
        InfoData::Vxlan(parts) => parts.iter().find_map(|part| match part {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        }),
        InfoData::Geneve(parts) => parts.iter().find_map(|part| match part {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    };
    port.filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::tests::{scratch, sh};

    #[test]
    fn what_stands_below_another_and_which_port_a_tunnel_has() {
        scratch(|_| {
            if let Err(why) = crate::attach::tests::add_vxlan("tunnel0", "external dstport 8473") {
                fixtures::skip!("{why}");
                return;
            }
            sh("ip link add up0 type bridge");
            sh("ip link set tunnel0 master up0 && ip link set v0 master up0");
            let devices = devices().unwrap();
            let of = |name: &str| devices.iter().find(|device| device.name == name).unwrap().clone();
            let up0 = of("up0");
            assert_eq!((up0.master, up0.is_guest, up0.udp_port), (None, false, None));
            let tunnel = of("tunnel0");
            assert_eq!((tunnel.master, tunnel.is_guest), (Some(up0.ifindex), false));
            assert_eq!(tunnel.udp_port, Some(8473));
            let veth = of("v0");
            assert_eq!((veth.master, veth.is_guest, veth.udp_port), (Some(up0.ifindex), true, None));
        });
    }

    #[test]
    fn five_hundred_interfaces_are_listed_whole() {
        scratch(|_| {
            let add = "for i in $(seq 250); do echo link add a$i type veth peer name b$i; done | ip -batch -";
            sh(add);
            let devices = devices().unwrap();
            assert!(devices.len() >= 502, "{}", devices.len());
            assert!(devices.iter().any(|device| device.name == "b250" && device.is_guest));
        });
    }
}
