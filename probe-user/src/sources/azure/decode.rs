//! Azure's resources, as far as they were kept, as the model has them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, anyhow};
use ipnet::IpNet;
use probe_model::{
    tuple::Protocol,
    world::private_link::{
        AzureFrontend, AzureLoadBalancer, BackendPool, BalancingRule, ConnectionState, Declared,
        EndpointConnection, FrontendRef, NatConfiguration, PrivateLink, PrivateLinkService, Probe,
        ResourceId, SecurityGroup, SecurityRule, Subnet,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A resource, or what is in one: ARM puts what matters under `properties`.
#[derive(Deserialize, Default)]
#[serde(default, bound = "P: Deserialize<'de> + Default")]
struct Resource<P> {
    id: String,
    name: String,
    tags: BTreeMap<String, String>,
    sku: Sku,
    properties: P,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Sku {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Id {
    id: String,
}

impl Id {
    fn resource(self) -> ResourceId {
        ResourceId(self.id)
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Service {
    alias: Option<String>,
    enable_proxy_protocol: bool,
    provisioning_state: String,
    #[serde(rename = "destinationIPAddress")]
    destination: Option<String>,
    visibility: Subscriptions,
    auto_approval: Subscriptions,
    network_interfaces: Vec<Id>,
    load_balancer_frontend_ip_configurations: Vec<Id>,
    ip_configurations: Vec<Resource<IpConfiguration>>,
    private_endpoint_connections: Vec<Resource<Connection>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subscriptions {
    subscriptions: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct IpConfiguration {
    #[serde(rename = "privateIPAddress")]
    address: Option<String>,
    #[serde(rename = "privateIPAllocationMethod")]
    method: String,
    primary: bool,
    subnet: Option<Id>,
    #[serde(rename = "publicIPAddress")]
    public: Option<Id>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Connection {
    link_identifier: Option<String>,
    private_endpoint: Option<Id>,
    private_endpoint_location: Option<String>,
    private_link_service_connection_state: State,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct State {
    status: String,
    description: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Interface {
    ip_configurations: Vec<Resource<IpConfiguration>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Balancer {
    #[serde(rename = "frontendIPConfigurations")]
    frontends: Vec<Resource<IpConfiguration>>,
    load_balancing_rules: Vec<Resource<Rule>>,
    probes: Vec<Resource<ProbeProperties>>,
    backend_address_pools: Vec<Resource<Pool>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    protocol: String,
    frontend_port: u16,
    backend_port: u16,
    #[serde(rename = "enableFloatingIP")]
    floating_ip: bool,
    idle_timeout_in_minutes: Option<u32>,
    enable_tcp_reset: bool,
    load_distribution: String,
    #[serde(rename = "frontendIPConfiguration")]
    frontend: Id,
    probe: Option<Id>,
    backend_address_pool: Option<Id>,
    backend_address_pools: Vec<Id>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ProbeProperties {
    protocol: String,
    port: u16,
    request_path: Option<String>,
    interval_in_seconds: u32,
    number_of_probes: u32,
    probe_threshold: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Pool {
    #[serde(rename = "backendIPConfigurations")]
    by_interface: Vec<Id>,
    load_balancer_backend_addresses: Vec<Resource<PoolAddress>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PoolAddress {
    ip_address: Option<String>,
    #[serde(rename = "networkInterfaceIPConfiguration")]
    interface: Option<Id>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct NetworkProperties {
    address_space: AddressSpace,
    subnets: Vec<Resource<SubnetProperties>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct AddressSpace {
    address_prefixes: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SubnetProperties {
    address_prefix: Option<String>,
    address_prefixes: Vec<String>,
    private_link_service_network_policies: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Security {
    security_rules: Vec<Resource<SecurityProperties>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SecurityProperties {
    priority: u32,
    direction: String,
    access: String,
    protocol: String,
    source_address_prefix: Option<String>,
    source_address_prefixes: Vec<String>,
    destination_address_prefix: Option<String>,
    destination_address_prefixes: Vec<String>,
    destination_port_range: Option<String>,
    destination_port_ranges: Vec<String>,
}

/// What the operator said, as it is stored.
#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct StoredDeclared {
    nat_ips: Vec<String>,
    subnets: Vec<String>,
}

/// What the operator said, as JSON.
pub fn declared_text(declared: &Declared) -> String {
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect();
    let stored = StoredDeclared { nat_ips: texts(&declared.nat_ips), subnets: texts(&declared.subnets) };
    serde_json::to_string(&stored).expect("texts are JSON")
}

/// Every part that is there, and why one that is there cannot be read: its name, and the reason.
pub fn private_link(parts: &BTreeMap<String, String>) -> (PrivateLink, Vec<(String, String)>) {
    let mut reader = Parts { parts, wrong: Vec::new() };
    let mut found = PrivateLink {
        services: reader.read("private-link-services", services),
        load_balancers: reader.read("load-balancers", balancers),
        security_groups: reader.read("network-security-groups", security_groups),
        ..PrivateLink::default()
    };
    found.declared = reader.read("declared", declared).unwrap_or_default();
    let networks = reader.read("virtual-networks", networks).unwrap_or_default();
    let subnets = reader.read("subnets", subnets).unwrap_or_default();
    found.place.network_prefixes = networks.iter().flat_map(|(prefixes, _)| prefixes.clone()).collect();
    found.place.subnets = networks.into_iter().flat_map(|(_, subnets)| subnets).chain(subnets).collect();
    let interfaces = reader.read("network-interfaces", interfaces).unwrap_or_default();
    let connections = reader.read("private-endpoint-connections", connections).unwrap_or_default();
    join(&mut found, &interfaces, &connections);
    (found, reader.wrong)
}

struct Parts<'a> {
    parts: &'a BTreeMap<String, String>,
    wrong: Vec<(String, String)>,
}

impl Parts<'_> {
    fn read<T>(&mut self, name: &str, read: impl Fn(&str) -> Result<T>) -> Option<T> {
        match self.parts.get(name).map(|text| read(text))? {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong.push((name.to_owned(), format!("{error:#}")));
                None
            }
        }
    }
}

/// What one resource says of another: addresses of interfaces and frontends, prefixes of subnets, connections apart.
fn join(
    found: &mut PrivateLink,
    interfaces: &[(ResourceId, Vec<IpAddr>)],
    connections: &[(ResourceId, EndpointConnection)],
) {
    let PrivateLink { services, load_balancers, place, .. } = found;
    for service in services.iter_mut().flatten() {
        let of_interface =
            |id: &ResourceId| interfaces.iter().find(|(own, _)| own.is(id)).map(|(_, addresses)| addresses);
        let addresses: Option<Vec<_>> = service.interfaces.iter().map(of_interface).collect();
        service.nat_ips =
            addresses.filter(|all| !all.is_empty()).map(|all| all.into_iter().flatten().copied().collect());
        for frontend in &mut service.frontends {
            let mut all = load_balancers.iter().flatten().flat_map(|balancer| &balancer.frontends);
            frontend.address = all.find(|own| own.id.is(&frontend.id)).and_then(|own| own.address);
        }
        for own in &mut service.ip_configurations {
            let subnet =
                own.subnet.as_ref().and_then(|id| place.subnets.iter().find(|subnet| subnet.id.is(id)));
            own.prefixes = subnet.map(|subnet| subnet.prefixes.clone()).unwrap_or_default();
        }
        let is_of = |id: &ResourceId| {
            let begin = format!("{}/privateEndpointConnections/", service.id).to_ascii_lowercase();
            id.0.to_ascii_lowercase().starts_with(&begin)
        };
        let apart = connections.iter().filter(|(id, _)| is_of(id)).map(|(_, connection)| connection.clone());
        service.connections.extend(apart.collect::<Vec<_>>());
    }
}

/// Every resource of a list, or the first that is none, by its name.
fn each<P: DeserializeOwned + Default, U>(
    text: &str,
    read: impl Fn(Resource<P>) -> Result<U>,
) -> Result<Vec<U>> {
    let items: Vec<serde_json::Value> = serde_json::from_str(text).context("it is no list")?;
    let decode = |item: serde_json::Value| {
        let name = item["name"].as_str().unwrap_or("without a name").to_owned();
        let resource = serde_json::from_value(item).map_err(anyhow::Error::from);
        resource.and_then(&read).with_context(|| format!("failed to read resource `{name}`"))
    };
    items.into_iter().map(decode).collect()
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| anyhow!("found `{text}`, expected an address"))
}

fn optional_address(text: Option<&String>) -> Result<Option<IpAddr>> {
    text.filter(|text| !text.is_empty()).map(|text| address(text)).transpose()
}

fn prefixes<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<IpNet>> {
    let parse = |text: &String| text.parse().map_err(|_| anyhow!("found `{text}`, expected a prefix"));
    texts.into_iter().map(parse).collect()
}

fn services(text: &str) -> Result<Vec<PrivateLinkService>> {
    each(text, |resource: Resource<Service>| {
        let own = resource.properties;
        let frontend = |id: Id| FrontendRef { id: id.resource(), address: None };
        Ok(PrivateLinkService {
            id: ResourceId(resource.id),
            name: resource.name,
            alias: own.alias,
            owner_service: resource.tags.get("k8s-azure-owner-service").cloned(),
            cluster: resource.tags.get("k8s-azure-cluster-name").cloned(),
            proxy_protocol: own.enable_proxy_protocol,
            visibility: own.visibility.subscriptions,
            auto_approval: own.auto_approval.subscriptions,
            provisioning_state: own.provisioning_state,
            ip_configurations: own
                .ip_configurations
                .into_iter()
                .map(nat_configuration)
                .collect::<Result<_>>()?,
            interfaces: own.network_interfaces.into_iter().map(Id::resource).collect(),
            nat_ips: None,
            frontends: own.load_balancer_frontend_ip_configurations.into_iter().map(frontend).collect(),
            destination: optional_address(own.destination.as_ref())?,
            connections: own
                .private_endpoint_connections
                .into_iter()
                .map(connection)
                .collect::<Result<_>>()?,
        })
    })
}

fn nat_configuration(resource: Resource<IpConfiguration>) -> Result<NatConfiguration> {
    let own = resource.properties;
    Ok(NatConfiguration {
        name: resource.name,
        address: optional_address(own.address.as_ref())?,
        is_static: own.method.eq_ignore_ascii_case("static"),
        is_primary: own.primary,
        subnet: own.subnet.map(Id::resource),
        prefixes: Vec::new(),
    })
}

fn connection(resource: Resource<Connection>) -> Result<EndpointConnection> {
    let own = resource.properties;
    let link = own.link_identifier.filter(|text| !text.is_empty());
    let link_id = link.map(|text| {
        text.parse().map_err(|_| anyhow!("found link identifier `{text}`, expected a number of 32 bits"))
    });
    let status = own.private_link_service_connection_state.status;
    Ok(EndpointConnection {
        name: resource.name,
        link_id: link_id.transpose()?,
        endpoint: own.private_endpoint.map(Id::resource),
        location: own.private_endpoint_location,
        state: match status.to_ascii_lowercase().as_str() {
            "approved" => ConnectionState::Approved,
            "pending" => ConnectionState::Pending,
            "rejected" => ConnectionState::Rejected,
            "disconnected" => ConnectionState::Disconnected,
            "" => ConnectionState::Unknown,
            _ => ConnectionState::Other(status),
        },
        description: own.private_link_service_connection_state.description,
    })
}

fn connections(text: &str) -> Result<Vec<(ResourceId, EndpointConnection)>> {
    each(text, |resource: Resource<Connection>| {
        let id = ResourceId(resource.id.clone());
        Ok((id, connection(resource)?))
    })
}

/// Network interfaces by id, the primary address first.
fn interfaces(text: &str) -> Result<Vec<(ResourceId, Vec<IpAddr>)>> {
    each(text, |resource: Resource<Interface>| {
        let mut own = resource.properties.ip_configurations;
        own.sort_by_key(|own| !own.properties.primary);
        let addresses = own.iter().filter_map(|own| own.properties.address.as_deref()).map(address);
        Ok((ResourceId(resource.id), addresses.collect::<Result<_>>()?))
    })
}

fn balancers(text: &str) -> Result<Vec<AzureLoadBalancer>> {
    each(text, |resource: Resource<Balancer>| {
        let own = resource.properties;
        Ok(AzureLoadBalancer {
            id: ResourceId(resource.id),
            name: resource.name,
            sku: resource.sku.name,
            frontends: own.frontends.into_iter().map(frontend).collect::<Result<_>>()?,
            rules: own.load_balancing_rules.into_iter().map(rule).collect::<Result<_>>()?,
            probes: own.probes.into_iter().map(probe).collect(),
            pools: own.backend_address_pools.into_iter().map(pool).collect::<Result<_>>()?,
        })
    })
}

fn frontend(resource: Resource<IpConfiguration>) -> Result<AzureFrontend> {
    let own = resource.properties;
    Ok(AzureFrontend {
        id: ResourceId(resource.id),
        name: resource.name,
        address: optional_address(own.address.as_ref())?,
        is_public: own.public.is_some(),
    })
}

fn rule(resource: Resource<Rule>) -> Result<BalancingRule> {
    let own = resource.properties;
    let protocol = match own.protocol.to_ascii_lowercase().as_str() {
        "all" => Protocol::ANY,
        other => Protocol::parse(other)
            .ok_or_else(|| anyhow!("found protocol `{other}`, expected Tcp, Udp or All"))?,
    };
    Ok(BalancingRule {
        name: resource.name,
        frontend: own.frontend.resource(),
        protocol,
        frontend_port: own.frontend_port,
        backend_port: own.backend_port,
        floating_ip: own.floating_ip,
        // Azure's own where nothing is said.
        idle_timeout_minutes: own.idle_timeout_in_minutes.unwrap_or(4),
        tcp_reset: own.enable_tcp_reset,
        distribution: own.load_distribution,
        probe: own.probe.map(Id::resource),
        pools: {
            let mut pools: Vec<_> = own
                .backend_address_pools
                .into_iter()
                .chain(own.backend_address_pool)
                .map(Id::resource)
                .collect();
            pools.dedup();
            pools
        },
    })
}

fn probe(resource: Resource<ProbeProperties>) -> Probe {
    let own = resource.properties;
    Probe {
        id: ResourceId(resource.id),
        name: resource.name,
        protocol: own.protocol,
        port: own.port,
        path: own.request_path,
        interval_seconds: own.interval_in_seconds,
        threshold: own.probe_threshold.unwrap_or(own.number_of_probes),
    }
}

fn pool(resource: Resource<Pool>) -> Result<BackendPool> {
    let own = resource.properties;
    // An address of a network interface is listed as an address too.
    let alone = own
        .load_balancer_backend_addresses
        .iter()
        .map(|own| &own.properties)
        .filter(|own| own.interface.is_none());
    let alone =
        alone.filter_map(|own| own.ip_address.as_deref().filter(|text| !text.is_empty())).map(address);
    Ok(BackendPool {
        id: ResourceId(resource.id),
        name: resource.name,
        by_interface: own.by_interface.len(),
        by_address: alone.collect::<Result<_>>()?,
    })
}

fn networks(text: &str) -> Result<Vec<(Vec<IpNet>, Vec<Subnet>)>> {
    each(text, |resource: Resource<NetworkProperties>| {
        let own = resource.properties;
        let subnets = own.subnets.into_iter().map(subnet).collect::<Result<_>>()?;
        Ok((prefixes(&own.address_space.address_prefixes)?, subnets))
    })
}

fn subnets(text: &str) -> Result<Vec<Subnet>> {
    each(text, subnet)
}

fn subnet(resource: Resource<SubnetProperties>) -> Result<Subnet> {
    let own = resource.properties;
    let mut texts = own.address_prefixes;
    texts.extend(own.address_prefix);
    texts.sort();
    texts.dedup();
    let policies = own.private_link_service_network_policies;
    Ok(Subnet {
        id: ResourceId(resource.id),
        name: resource.name,
        prefixes: prefixes(&texts)?,
        allows_private_link: policies.map(|policies| policies.eq_ignore_ascii_case("disabled")),
    })
}

fn security_groups(text: &str) -> Result<Vec<SecurityGroup>> {
    each(text, |resource: Resource<Security>| {
        let mut rules: Vec<_> = resource.properties.security_rules.into_iter().map(security_rule).collect();
        rules.sort_by_key(|rule| rule.priority);
        Ok(SecurityGroup { id: ResourceId(resource.id), name: resource.name, rules })
    })
}

fn security_rule(resource: Resource<SecurityProperties>) -> SecurityRule {
    let own = resource.properties;
    let all = |one: Option<String>, more: Vec<String>| {
        one.into_iter().filter(|text| !text.is_empty()).chain(more).collect()
    };
    SecurityRule {
        name: resource.name,
        priority: own.priority,
        is_inbound: own.direction.eq_ignore_ascii_case("inbound"),
        allows: own.access.eq_ignore_ascii_case("allow"),
        protocol: own.protocol,
        sources: all(own.source_address_prefix, own.source_address_prefixes),
        destinations: all(own.destination_address_prefix, own.destination_address_prefixes),
        destination_ports: all(own.destination_port_range, own.destination_port_ranges),
    }
}

fn declared(text: &str) -> Result<Declared> {
    let stored: StoredDeclared = serde_json::from_str(text)?;
    Ok(Declared { nat_ips: prefixes(&stored.nat_ips)?, subnets: prefixes(&stored.subnets)? })
}
