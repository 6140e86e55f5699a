//! A cluster in which Private Link works, around a recorded node; every scenario spoils one thing of it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use probe_model::tuple::Protocol;
use probe_model::world::World;
use probe_model::world::kubernetes::{
    Backend, ContainerPort, EndpointSlice, Node, Pod, PolicyKind, PolicyObject, PolicyOrigin, PortRef,
    Service, ServicePort, TrafficPolicy,
};
use probe_model::world::private_link::{
    AzureFrontend, AzureLoadBalancer, BackendPool, BalancingRule, ConnectionState, EndpointConnection,
    FrontendRef, NatConfiguration, PrivateLinkService, Probe, ResourceId,
};
use probe_user::sources::{assemble, folder};

/// The load balancer's address.
pub(crate) const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 7);
/// The pod.
pub(crate) const APP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 143);
/// The NAT IPs.
pub(crate) const NAT_IPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 224, 0, 8), Ipv4Addr::new(10, 224, 0, 9)];
/// The node.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 4);
/// The service's port on every node.
pub(crate) const NODE_PORT: u16 = 30080;
/// Where Azure asks the node itself, with `externalTrafficPolicy: Local`.
pub(crate) const HEALTH_PORT: u16 = 31234;
/// The pod's name.
pub(crate) const POD: &str = "pls-app-7d9c5bd5f4-x2v8q";

const LB: &str =
    "/subscriptions/s/resourceGroups/nodes/providers/Microsoft.Network/loadBalancers/kubernetes-internal";

/// The maps, answers and rules of a recording, and nothing else.
pub(crate) fn recorded(recording: &str, scenario: &str) -> World {
    let all = fixtures::scenarios(recording);
    let found = all.iter().find(|own| own.name == scenario);
    let found = found.unwrap_or_else(|| panic!("no scenario {scenario} in {recording}"));
    assemble::assemble(&folder::read(&found.path).expect("a readable recording"))
}

/// A recording in a cluster and a subscription that are as they should be.
pub(crate) fn working(recording: &str, scenario: &str, nat_ips: &[Ipv4Addr]) -> World {
    let mut world = recorded(recording, scenario);
    let known = &mut world.kubernetes;
    known.services = Some(vec![service()].into());
    known.endpoint_slices = Some(vec![slice(&[(APP, true, POD)])].into());
    known.pods = Some(vec![pod()].into());
    known.nodes = Some(
        vec![Node {
            name: "aks-nodepool1-0".to_owned(),
            addresses: vec![NODE.into()],
            is_ready: true,
            ..Node::default()
        }]
        .into(),
    );
    let azure = &mut world.private_link;
    azure.services = Some(vec![private_link("pls-app", FRONTEND_ID, nat_ips)]);
    azure.load_balancers = Some(vec![load_balancer()]);
    world
}

/// The service, with the NAT IP left visible.
pub(crate) fn service() -> Service {
    let annotations = [("azure-pls-create", "true"), ("azure-load-balancer-internal", "true")];
    Service {
        namespace: "default".to_owned(),
        name: "pls-app".to_owned(),
        annotations: annotations
            .map(|(key, value)| (format!("service.beta.kubernetes.io/{key}"), value.to_owned()))
            .into(),
        kind: "LoadBalancer".to_owned(),
        cluster_ips: vec![Ipv4Addr::new(10, 0, 167, 20).into()],
        external_traffic_policy: Some(TrafficPolicy::Local),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::TCP,
            port: 80,
            target_port: PortRef::Number(80),
            node_port: Some(NODE_PORT),
            app_protocol: None,
        }],
        selector: [("app".to_owned(), "pls-app".to_owned())].into(),
        health_check_node_port: Some(HEALTH_PORT),
        allocates_node_ports: true,
        ip_families: vec!["IPv4".to_owned()],
        ingress: vec![FRONTEND.into()],
        ..Service::default()
    }
}

/// The service's backends: address, whether ready, the pod's name.
pub(crate) fn slice(backends: &[(Ipv4Addr, bool, &str)]) -> EndpointSlice {
    let endpoints = backends.iter().map(|(address, is_ready, pod)| Backend {
        addresses: vec![IpAddr::from(*address)],
        is_ready: *is_ready,
        is_serving: *is_ready,
        pod: Some((*pod).to_owned()),
        ..Backend::default()
    });
    EndpointSlice {
        namespace: "default".to_owned(),
        name: "pls-app-abcde".to_owned(),
        service: "pls-app".to_owned(),
        endpoints: endpoints.collect(),
        ports: vec![("http".to_owned(), Protocol::TCP, 80)],
    }
}

/// The pod.
pub(crate) fn pod() -> Pod {
    Pod {
        namespace: "default".to_owned(),
        name: POD.to_owned(),
        labels: [("app".to_owned(), "pls-app".to_owned())].into(),
        node: "aks-nodepool1-0".to_owned(),
        addresses: vec![APP.into()],
        ports: vec![ContainerPort { name: "http".to_owned(), protocol: Protocol::TCP, port: 80 }],
        is_ready: true,
        phase: "Running".to_owned(),
        ..Pod::default()
    }
}

/// The frontend's name in [`load_balancer`].
pub(crate) const FRONTEND_ID: &str = "app";
/// The frontend of another service of the same load balancer.
pub(crate) const SIBLING_ID: &str = "sibling";

fn id(kind: &str, name: &str) -> ResourceId {
    ResourceId(format!("{LB}/{kind}/{name}"))
}

/// A Private Link service before a frontend, with one approved consumer.
pub(crate) fn private_link(name: &str, frontend: &str, nat_ips: &[Ipv4Addr]) -> PrivateLinkService {
    let address = if frontend == FRONTEND_ID { FRONTEND } else { Ipv4Addr::new(10, 224, 0, 17) };
    PrivateLinkService {
        id: ResourceId(format!(
            "/subscriptions/s/resourceGroups/nodes/providers/Microsoft.Network/privateLinkServices/{name}"
        )),
        name: name.to_owned(),
        owner_service: Some(format!("default/{name}")),
        provisioning_state: "Succeeded".to_owned(),
        ip_configurations: nat_ips
            .iter()
            .map(|ip| NatConfiguration {
                address: Some((*ip).into()),
                is_static: true,
                ..NatConfiguration::default()
            })
            .collect(),
        nat_ips: Some(nat_ips.iter().map(|ip| (*ip).into()).collect()),
        frontends: vec![FrontendRef {
            id: id("frontendIPConfigurations", frontend),
            address: Some(address.into()),
        }],
        connections: vec![connection("consumer-1", ConnectionState::Approved)],
        ..PrivateLinkService::default()
    }
}

/// A consumer's connection.
pub(crate) fn connection(name: &str, state: ConnectionState) -> EndpointConnection {
    EndpointConnection { name: name.to_owned(), state, ..EndpointConnection::default() }
}

fn load_balancer() -> AzureLoadBalancer {
    let frontend = |name: &str, address: Ipv4Addr| AzureFrontend {
        id: id("frontendIPConfigurations", name),
        name: name.to_owned(),
        address: Some(address.into()),
        is_public: false,
    };
    AzureLoadBalancer {
        id: ResourceId(LB.to_owned()),
        name: "kubernetes-internal".to_owned(),
        sku: "Standard".to_owned(),
        frontends: vec![frontend(FRONTEND_ID, FRONTEND), frontend(SIBLING_ID, Ipv4Addr::new(10, 224, 0, 17))],
        rules: vec![BalancingRule {
            name: "app-TCP-80".to_owned(),
            frontend: id("frontendIPConfigurations", FRONTEND_ID),
            protocol: Protocol::TCP,
            frontend_port: 80,
            backend_port: 80,
            floating_ip: true,
            idle_timeout_minutes: 4,
            tcp_reset: true,
            distribution: "Default".to_owned(),
            probe: Some(id("probes", "app")),
            pools: vec![id("backendAddressPools", "kubernetes")],
        }],
        probes: vec![Probe {
            id: id("probes", "app"),
            name: "app".to_owned(),
            protocol: "Http".to_owned(),
            port: HEALTH_PORT,
            path: Some("/healthz".to_owned()),
            interval_seconds: 5,
            threshold: 2,
        }],
        pools: vec![BackendPool {
            id: id("backendAddressPools", "kubernetes"),
            name: "kubernetes".to_owned(),
            by_interface: 2,
            by_address: Vec::new(),
        }],
    }
}

/// A NetworkPolicy as the API gives it.
pub(crate) fn policy(name: &str, spec: &str) -> PolicyObject {
    PolicyObject {
        kind: PolicyKind::NetworkPolicy,
        namespace: "default".to_owned(),
        name: name.to_owned(),
        origin: PolicyOrigin::Kubernetes,
        json: format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"{name}","namespace":"default"}},"spec":{spec}}}"#
        ),
    }
}

/// A prefix.
pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}
