//! Each source alone, their order, and each contradiction with its neighbour that is none.

use super::*;
use crate::cilium::ct::{CtEntry, CtTuple};
use crate::tuple::{Protocol, Tuple};
use crate::world::conntrack::Conntrack;
use crate::world::kubernetes::{AZURE_PREFIX, Kubernetes, Node};
use crate::world::private_link::{
    EndpointConnection, FrontendRef, NatConfiguration, Observed, PrivateLink, ResourceId, Subnet,
};
use crate::world::{Link, Route};

const FRONTEND: &str = "10.224.0.7";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| address(text).into())
}

fn service(annotations: &[(&str, &str)]) -> Service {
    let annotations = [("azure-pls-create", "true")].iter().chain(annotations);
    Service {
        namespace: "default".to_owned(),
        name: "pls-app".to_owned(),
        annotations: annotations
            .map(|(key, value)| (format!("{AZURE_PREFIX}{key}"), (*value).to_owned()))
            .collect(),
        ingress: vec![address(FRONTEND)],
        ..Service::default()
    }
}

fn private_link(configured: &[&str], on_interface: Option<&[&str]>) -> PrivateLinkService {
    let configuration = |text: &&str| NatConfiguration {
        address: text.parse().ok(),
        subnet: Some(ResourceId("/subscriptions/s/virtualNetworks/v/subnets/pls".to_owned())),
        ..NatConfiguration::default()
    };
    PrivateLinkService {
        name: "pls".to_owned(),
        owner_service: Some("default/pls-app".to_owned()),
        ip_configurations: configured.iter().map(configuration).collect(),
        nat_ips: on_interface.map(|texts| texts.iter().map(|text| address(text)).collect()),
        frontends: vec![FrontendRef { address: Some(address(FRONTEND)), ..FrontendRef::default() }],
        connections: vec![EndpointConnection { link_id: Some(7), ..EndpointConnection::default() }],
        ..PrivateLinkService::default()
    }
}

fn world(service: Option<Service>, private_link: Option<PrivateLinkService>) -> World {
    World {
        kubernetes: Kubernetes { services: service.map(|own| vec![own].into()), ..Kubernetes::default() },
        private_link: PrivateLink { services: private_link.map(|own| vec![own]), ..PrivateLink::default() },
        ..World::default()
    }
}

/// What is known, one line each: confidence, prefix, origin; then the contradictions.
#[track_caller]
fn check(world: &World, expected: &[&str]) {
    let found = nat_sources(world);
    let sources = found
        .sources
        .iter()
        .map(|own| format!("{} {}: {}", own.confidence(), address_text(&own.prefix), own.origin));
    let all: Vec<_> = sources.chain(found.disagreements.iter().map(|own| format!("! {own}"))).collect();
    assert_eq!(all, expected);
}

#[test]
fn nothing_is_known_of_nothing() {
    check(&World::default(), &[]);
    assert_eq!(nat_sources(&World::default()).best(), None);
}

#[test]
fn a_dynamic_address_is_on_the_interface_alone() {
    check(
        &world(None, Some(private_link(&[""], Some(&["10.224.0.8"])))),
        &["confirmed 10.224.0.8: the network interface of Private Link service pls"],
    );
}

#[test]
fn the_configuration_where_the_interface_cannot_be_read() {
    let mut known = private_link(&["10.224.0.8"], None);
    known.ip_configurations[0].prefixes = vec![prefix("10.224.0.0/24")];
    check(
        &world(None, Some(known)),
        &[
            "confirmed 10.224.0.8: the configuration of Private Link service pls",
            "range 10.224.0.0/24: subnet pls of Private Link service pls",
        ],
    );
}

#[test]
fn the_surest_comes_first() {
    let annotations = [("azure-pls-ip-configuration-ip-address", "10.224.0.8 10.224.0.9")];
    let both = ["10.224.0.8", "10.224.0.9"];
    let mut world = world(Some(service(&annotations)), Some(private_link(&both, Some(&both))));
    world.private_link.declared.nat_ips = vec![prefix("10.224.0.9")];
    world.private_link.declared.subnets = vec![prefix("10.224.0.0/24")];
    world.private_link.observed = vec![Observed { source: address("10.224.0.8"), link_id: 7 }];
    check(
        &world,
        &[
            "confirmed 10.224.0.8: the network interface of Private Link service pls",
            "confirmed 10.224.0.9: the network interface of Private Link service pls",
            "confirmed 10.224.0.8: the configuration of Private Link service pls",
            "confirmed 10.224.0.9: the configuration of Private Link service pls",
            "declared 10.224.0.8: annotation azure-pls-ip-configuration-ip-address of Service default/pls-app",
            "declared 10.224.0.9: annotation azure-pls-ip-configuration-ip-address of Service default/pls-app",
            "declared 10.224.0.9: --pls-nat-ip",
            "range 10.224.0.0/24: --pls-subnet",
            "observed 10.224.0.8: a PROXY protocol header of Private Link that came from it",
        ],
    );
    let known = nat_sources(&world);
    assert_eq!(known.of(address("10.224.0.8")).unwrap().confidence(), Confidence::Confirmed);
    assert_eq!(known.of(address("10.224.0.77")).unwrap().confidence(), Confidence::Range);
    assert_eq!(known.of(address("10.225.0.1")), None);
    assert_eq!(known.addresses(), [address("10.224.0.8"), address("10.224.0.9")]);
    assert_eq!(known.best(), Some(Confidence::Confirmed));
}

#[test]
fn the_subnet_that_the_service_names() {
    let subnet = |name: &str, text: &str| Subnet {
        name: name.to_owned(),
        prefixes: vec![prefix(text)],
        ..Subnet::default()
    };
    let place = |world: &mut World| {
        world.private_link.place.subnet = Some("aks-subnet".to_owned());
        world.private_link.place.node_subnets = vec![prefix("10.224.0.0/16")];
    };
    let internal = ("azure-load-balancer-internal-subnet", "ilb");
    let mut named = world(Some(service(&[("azure-pls-ip-configuration-subnet", "PLS"), internal])), None);
    place(&mut named);
    // Named, but its prefix is not known.
    check(&named, &[]);
    named.private_link.place.subnets = vec![subnet("pls", "10.225.1.0/28"), subnet("ilb", "10.225.2.0/24")];
    check(&named, &["range 10.225.1.0/28: subnet PLS, from which Service default/pls-app takes its NAT IPs"]);

    let mut by_load_balancer = world(Some(service(&[internal])), None);
    by_load_balancer.private_link.place.subnets = named.private_link.place.subnets.clone();
    check(
        &by_load_balancer,
        &["range 10.225.2.0/24: subnet ilb, from which Service default/pls-app takes its NAT IPs"],
    );

    let mut unnamed = world(Some(service(&[])), None);
    place(&mut unnamed);
    check(
        &unnamed,
        &["range 10.224.0.0/16: subnet aks-subnet, from which Service default/pls-app takes its NAT IPs"],
    );
    // Without Azure's own words the node's interface says it, but not for a subnet of another name.
    let mut by_interface = world(Some(service(&[])), None);
    let eth0 = Link {
        name: "eth0".to_owned(),
        ifindex: 2,
        addresses: vec![prefix("10.224.0.4/16"), prefix("fd00::4/64")],
    };
    by_interface.links = Some(vec![eth0]);
    let default =
        Route { destination: prefix("0.0.0.0/0"), via: None, dev: "eth0".to_owned(), src: None, metric: 0 };
    by_interface.routes = vec![default];
    check(
        &by_interface,
        &["range 10.224.0.0/16: subnet of the nodes, from which Service default/pls-app takes its NAT IPs"],
    );
    by_interface.kubernetes.services =
        Some(vec![service(&[("azure-pls-ip-configuration-subnet", "pls")])].into());
    check(&by_interface, &[]);
    // No Private Link is asked for.
    unnamed.kubernetes.services = Some(vec![Service::default()].into());
    check(&unnamed, &[]);
}

fn with_connections(sources: &[&str], ports: u16) -> World {
    let mut world = world(Some(service(&[])), None);
    let packets = sources.iter().flat_map(|source| (0..ports).map(|port| (*source, 20_000 + port)));
    let entry = |(source, sport)| {
        let packet = Tuple {
            saddr: address(source),
            daddr: address(FRONTEND),
            sport,
            dport: 80,
            protocol: Protocol::TCP,
        };
        (CtTuple::service(packet), CtEntry::default())
    };
    world.conntrack = packets.map(entry).collect();
    world
}

#[test]
fn many_ports_of_few_sources_are_suspected() {
    let ports = MANY_PORTS as u16;
    check(
        &with_connections(&["10.224.0.8"], ports),
        &["suspected 10.224.0.8: 32 ports of it in conntrack towards Service default/pls-app"],
    );
    // One client has few ports; the probe, nodes and pods are known; another network has no NAT IP.
    check(&with_connections(&["10.224.0.8"], ports - 1), &[]);
    check(&with_connections(&["168.63.129.16"], ports), &[]);
    // Some entries that were looked up are not all: ten sources may have as many ports.
    let whole = with_connections(&["10.224.0.8"], ports);
    let mut looked_up = World { conntrack: Conntrack::default(), ..whole.clone() };
    for (key, entry) in whole.conntrack.known() {
        looked_up.learn_connection(*key, Some(*entry));
    }
    assert_eq!(looked_up.conntrack.known().count(), MANY_PORTS);
    check(&looked_up, &[]);
    // But what was known of all a moment ago is.
    looked_up.inherit(&whole);
    check(&looked_up, &["suspected 10.224.0.8: 32 ports of it in conntrack towards Service default/pls-app"]);
    let mut later = World { conntrack: Conntrack::default(), ..whole.clone() };
    later.inherit(&looked_up);
    assert_eq!(nat_sources(&later), nat_sources(&whole), "whoever knew it first");
    let mut node = with_connections(&["10.224.0.4"], ports);
    node.kubernetes.nodes =
        Some(vec![Node { addresses: vec![address("10.224.0.4")], ..Node::default() }].into());
    check(&node, &[]);
    let mut outside = with_connections(&["10.224.0.8"], ports);
    outside.private_link.place.network_prefixes = vec![prefix("10.225.0.0/16")];
    check(&outside, &[]);
    // More than a Private Link service can have.
    let nine: Vec<_> = (8..17).map(|last| format!("10.224.0.{last}")).collect();
    let nine: Vec<_> = nine.iter().map(String::as_str).collect();
    check(&with_connections(&nine, ports), &[]);
    assert_eq!(nat_sources(&with_connections(&nine[1..], ports)).sources.len(), MOST_NAT_IPS);
}

#[test]
fn an_annotation_that_azure_has_not_taken_over() {
    let annotations = [("azure-pls-ip-configuration-ip-address", "10.224.0.9")];
    let advice = "Azure has not taken the annotation over; look for SyncLoadBalancerFailed in `kubectl -n default describe service pls-app`";
    check(
        &world(Some(service(&annotations)), Some(private_link(&[""], Some(&["10.224.0.8"])))),
        &[
            "confirmed 10.224.0.8: the network interface of Private Link service pls",
            "declared 10.224.0.9: annotation azure-pls-ip-configuration-ip-address of Service default/pls-app",
            &format!(
                "! NAT IPs of Service default/pls-app: its annotation azure-pls-ip-configuration-ip-address says 10.224.0.9, \
                 Azure's Private Link service pls says 10.224.0.8; {advice}"
            ),
        ],
    );
    // The interface could not be read and the configuration does not say: nothing contradicts.
    check(
        &world(Some(service(&annotations)), Some(private_link(&[""], None))),
        &["declared 10.224.0.9: annotation azure-pls-ip-configuration-ip-address of Service default/pls-app"],
    );
}

#[test]
fn a_flag_that_azure_does_not_know() {
    let mut world = world(None, Some(private_link(&[], Some(&["10.224.0.8"]))));
    world.private_link.declared.nat_ips =
        vec![prefix("10.224.0.8"), prefix("10.224.0.9"), prefix("10.225.0.0/28")];
    let found = nat_sources(&world);
    assert_eq!(
        found.disagreements.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["NAT IPs: --pls-nat-ip says 10.224.0.9, 10.225.0.0/28, Azure says 10.224.0.8; \
          it may belong to a Private Link service elsewhere that could not be read"]
    );
    world.private_link.declared.nat_ips = vec![prefix("10.224.0.0/24")];
    assert_eq!(nat_sources(&world).disagreements, []);
}

#[test]
fn an_address_outside_the_subnet_that_was_given() {
    let mut world = world(None, Some(private_link(&[], Some(&["10.224.0.8"]))));
    world.private_link.declared.subnets = vec![prefix("10.225.0.0/24")];
    assert_eq!(
        nat_sources(&world).disagreements.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["subnet of the NAT IPs: --pls-subnet says 10.225.0.0/24, \
          the network interface of Private Link service pls says 10.224.0.8; \
          a rule for the subnet alone does not admit that address"]
    );
    world.private_link.declared.subnets.push(prefix("10.224.0.0/24"));
    assert_eq!(nat_sources(&world).disagreements, []);
}

#[test]
fn an_interface_that_lacks_what_is_configured() {
    let found =
        nat_sources(&world(None, Some(private_link(&["10.224.0.8", "10.224.0.9"], Some(&["10.224.0.8"])))));
    assert_eq!(
        found.disagreements.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "NAT IPs of Private Link service pls: its configuration says 10.224.0.9, its network interface says 10.224.0.8; \
          Azure may be changing it; ask again, packets come from the network interface's"
        ]
    );
}

#[test]
fn a_header_from_an_address_that_azure_does_not_list() {
    let mut world = world(None, Some(private_link(&[], Some(&["10.224.0.8"]))));
    let seen = Observed { source: address("10.0.1.1"), link_id: 7 };
    world.private_link.observed = vec![seen, seen];
    assert_eq!(
        nat_sources(&world).disagreements.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "NAT IPs of Private Link service pls: a PROXY protocol header with its link 7 says 10.0.1.1, Azure says 10.224.0.8; \
          its source may have been rewritten before it was seen, or Azure's list is older than the packet"
        ]
    );
    world.private_link.observed = vec![Observed { link_id: 8, ..seen }];
    assert_eq!(nat_sources(&world).disagreements, [], "of another subscription");
}

#[test]
fn an_owner_behind_another_frontend() {
    let mut known = private_link(&[], Some(&[]));
    known.frontends[0].address = Some(address("10.224.0.99"));
    assert_eq!(
        nat_sources(&world(Some(service(&[])), Some(known.clone()))).disagreements[0].to_string(),
        "load balancer address of Service default/pls-app: its status says 10.224.0.7, \
         Private Link service pls, which has it as owner, says 10.224.0.99; \
         consumers reach the second; the Private Link service stands before another frontend"
    );
    known.frontends[0].address = None;
    assert_eq!(nat_sources(&world(Some(service(&[])), Some(known))).disagreements, [], "not known");
}

#[test]
fn ids_are_compared_as_azure_does() {
    let one = ResourceId(
        "/subscriptions/S/resourceGroups/MC_rg/providers/Microsoft.Network/networkInterfaces/n".to_owned(),
    );
    let other = ResourceId(one.0.to_ascii_uppercase());
    assert!(one.is(&other) && !one.is(&ResourceId(format!("{one}2"))));
    assert_eq!((one.name(), one.resource_group()), ("n", Some("MC_rg")));
    assert_eq!(other.resource_group(), Some("MC_RG"));
    assert_eq!(one.segment("subnets"), None);
}
