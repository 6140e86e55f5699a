//! Azure: what it says of Private Link, through ARM and the instance metadata service.
//!
//! Nothing is asked unless `--azure` says so, and nothing is changed. Of each answer only what is needed is kept: no token,
//! no secret, no other resource group's Private Link services.

mod arm;
pub mod decode;
pub mod place;
pub mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use probe_model::world::Missing;
use serde_json::Value;

use super::{
    http::{Client, Patience, Request, Resolver, Url, tls},
    pick::Pick,
};
use arm::{Arm, Failure};
use token::{Identity, Tokens};

/// How the missing facts of Azure begin: `azure/private-link-services`.
pub const PREFIX: &str = "azure/";
/// The instance metadata service. Source: Azure's documentation, "Azure Instance Metadata Service".
const IMDS: &str = "http://169.254.169.254";
/// Longer answers are refused.
const MAX_BODY: u64 = 32 << 20;
/// What is lost without all of it.
const COST: &str =
    "NAT IPs, consumers' connections and the load balancer's rules and probes are not known from Azure";

/// What is asked of Azure, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether ARM and the instance metadata service are asked.
    pub ask: bool,
    /// The cloud provider's configuration; `None` for none. It is read in any case: that is a file of this node's.
    pub configuration: Option<PathBuf>,
    /// The instance metadata service, elsewhere than it always is.
    pub imds: Option<Url>,
    /// ARM, elsewhere than the cloud's.
    pub arm: Option<Url>,
}

/// What Azure said: each part as JSON text by its name, and what could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Who asked, if anyone did, as an answer names it.
    pub origin: Option<String>,
    /// Parts by name.
    pub parts: BTreeMap<String, String>,
    /// What could not be had, and what that costs.
    pub missing: Vec<Missing>,
}

impl Answers {
    fn miss(&mut self, part: &str, why: impl Into<String>) {
        self.missing.push(Missing { what: format!("{PREFIX}{part}"), why: why.into() });
    }

    fn add(&mut self, part: &str, items: Vec<Value>) {
        self.parts.insert(part.to_owned(), Value::from(items).to_string());
    }
}

/// A list of resources.
struct Part {
    name: &'static str,
    keep: &'static str,
    right: &'static str,
    cost: &'static str,
}

const SERVICES: Part = Part {
    name: "private-link-services",
    keep: "id name tags{k8s-azure-owner-service k8s-azure-cluster-name} properties{alias enableProxyProtocol provisioningState destinationIPAddress \
           visibility{subscriptions} autoApproval{subscriptions} networkInterfaces{id} loadBalancerFrontendIpConfigurations{id} \
           ipConfigurations{name properties{privateIPAddress privateIPAllocationMethod primary subnet{id}}} \
           privateEndpointConnections{name properties{linkIdentifier privateEndpoint{id} privateEndpointLocation provisioningState \
           privateLinkServiceConnectionState{status description}}}}",
    right: "Microsoft.Network/privateLinkServices/read",
    cost: "NAT IPs are known from annotations, flags and what is seen alone; which consumers there are, and whether they are approved, is not known",
};
const CONNECTIONS: Part = Part {
    name: "private-endpoint-connections",
    keep: "id name properties{linkIdentifier privateEndpoint{id} privateEndpointLocation provisioningState \
           privateLinkServiceConnectionState{status description}}",
    right: "Microsoft.Network/privateLinkServices/privateEndpointConnections/read",
    cost: "which consumers there are, and whether they are approved, is not known",
};
const INTERFACES: Part = Part {
    name: "network-interfaces",
    keep: "id name properties{ipConfigurations{properties{privateIPAddress primary}}}",
    right: "Microsoft.Network/networkInterfaces/read",
    cost: "dynamic NAT IPs of it are not known: a Private Link service's own description may lack them",
};
const BALANCERS: Part = Part {
    name: "load-balancers",
    keep: "id name sku{name} properties{frontendIPConfigurations{id name properties{privateIPAddress publicIPAddress{id}}} \
           loadBalancingRules{name properties{protocol frontendPort backendPort enableFloatingIP idleTimeoutInMinutes enableTcpReset loadDistribution \
           frontendIPConfiguration{id} probe{id} backendAddressPool{id} backendAddressPools{id}}} \
           probes{id name properties{protocol port requestPath intervalInSeconds numberOfProbes probeThreshold}} \
           backendAddressPools{id name properties{backendIPConfigurations{id} loadBalancerBackendAddresses{properties{ipAddress networkInterfaceIPConfiguration{id}}}}}}",
    right: "Microsoft.Network/loadBalancers/read",
    cost: "floating IP, probes and backend pools are taken as the Service's annotations say",
};
const NETWORKS: Part = Part {
    name: "virtual-networks",
    keep: "id name properties{addressSpace{addressPrefixes} \
           subnets{id name properties{addressPrefix addressPrefixes privateLinkServiceNetworkPolicies}}}",
    right: "Microsoft.Network/virtualNetworks/read",
    cost: "which prefix a subnet has that NAT IPs are taken from is not known",
};
const SUBNETS: Part = Part {
    name: "subnets",
    keep: "id name properties{addressPrefix addressPrefixes privateLinkServiceNetworkPolicies}",
    right: "Microsoft.Network/virtualNetworks/subnets/read",
    cost: "which prefix that subnet has is not known",
};
const SECURITY: Part = Part {
    name: "network-security-groups",
    keep: "id name properties{securityRules{name properties{priority direction access protocol sourceAddressPrefix sourceAddressPrefixes \
           destinationAddressPrefix destinationAddressPrefixes destinationPortRange destinationPortRanges}}}",
    right: "Microsoft.Network/networkSecurityGroups/read",
    cost: "whether a security group discards packets before the node is not known",
};

/// Reads the cloud provider's configuration, and asks Azure if the operator said so.
pub fn read(options: &Options) -> Answers {
    let mut answers = Answers::default();
    if let Some(path) = &options.configuration {
        match place::read(path) {
            Ok(text) => drop(answers.parts.insert("azure-json".to_owned(), text)),
            // On a node that is none of AKS's it is not missed.
            Err(_) if !options.ask && !path.exists() => {}
            Err(error) => {
                let cost = "the cluster's subscription, resource group and subnet are known from the instance metadata service alone";
                answers.miss("azure-json", format!("{error:#}; {cost}"));
            }
        }
    }
    if options.ask
        && let Err(error) = ask(options, &mut answers)
    {
        answers.missing.push(Missing { what: "azure".to_owned(), why: format!("{error:#}; {COST}") });
    }
    answers
}

fn client(base: Url, patience: Patience) -> Result<Client> {
    let tls = if base.is_https { Some(tls::trusting_system(None)?) } else { None };
    Ok(Client { base, tls, patience, max_body: MAX_BODY, resolver: Resolver::default() })
}

fn ask(options: &Options, answers: &mut Answers) -> Result<()> {
    let seconds = Duration::from_secs;
    let imds_patience = Patience { connect: seconds(1), each: seconds(3), total: seconds(10) };
    let patience = Patience { connect: seconds(3), each: seconds(15), total: seconds(25) };
    let imds = options.imds.clone().map_or_else(|| IMDS.parse(), Ok)?;
    let imds = client(imds, imds_patience)?;
    instance(&imds, answers);
    let text = |answers: &Answers, name: &str| answers.parts.get(name).cloned();
    let (configuration, instance) = (text(answers, "azure-json"), text(answers, "instance"));
    let (configuration, instance) = place::both(configuration.as_deref(), instance.as_deref())?;
    let or = |one: &str, other: &str| if one.is_empty() { other.to_owned() } else { one.to_owned() };
    let scope = Scope {
        subscription: or(&configuration.subscription_id, &instance.compute.subscription_id),
        group: or(&configuration.resource_group, &instance.compute.resource_group_name),
        services_group: configuration.private_link_service_resource_group.clone(),
        network: configuration.vnet_name.clone(),
        network_group: or(&configuration.vnet_resource_group, &configuration.resource_group),
    };
    anyhow::ensure!(
        !scope.subscription.is_empty() && !scope.group.is_empty(),
        "neither `azure.json` nor the instance metadata service says which subscription and resource group the nodes are in"
    );
    let cloud = place::cloud(&or(&configuration.cloud, &instance.compute.az_environment));
    let authority = std::env::var("AZURE_AUTHORITY_HOST").ok().filter(|text| !text.is_empty());
    let authority =
        authority.map(|text| text.parse().context("failed to read AZURE_AUTHORITY_HOST")).transpose()?;
    let resource = format!("{}/", cloud.arm);
    let arm_client = client(options.arm.clone().unwrap_or(cloud.arm), patience)?;
    let authority = client(authority.unwrap_or(cloud.authority), patience)?;
    let assigned =
        Some(configuration.user_assigned_identity_id.as_str()).filter(|id| !id.is_empty() && *id != "msi");
    let identity = Identity::from_environment(assigned, |name| std::env::var(name).ok());
    answers.origin = Some(identity.to_string());
    let tokens = Tokens::new(identity, imds, authority, resource);
    Reader { arm: Arm { client: &arm_client, tokens: &tokens }, scope, answers }.read();
    Ok(())
}

/// Where this machine is, by its own metadata service.
fn instance(imds: &Client, answers: &mut Answers) {
    let request = Request::get("/metadata/instance?api-version=2021-10-01").with("Metadata", "true");
    let cost = "the node's own subnet is not known, and with a managed identity ARM cannot be asked";
    match imds.send(&request) {
        Err(error) => answers.miss(
            "instance",
            format!("{error}; the instance metadata service answers on Azure's machines alone; {cost}"),
        ),
        Ok(body) => match serde_json::from_slice::<Value>(&body) {
            Ok(json) => drop(
                answers
                    .parts
                    .insert("instance".to_owned(), Pick::new(place::KEEP_INSTANCE).of(&json).to_string()),
            ),
            Err(error) => answers
                .miss("instance", format!("`/metadata/instance`: the answer is no JSON: {error}; {cost}")),
        },
    }
}

/// Where the cluster's resources are.
struct Scope {
    subscription: String,
    /// The node resource group.
    group: String,
    /// The Private Link services', if another.
    services_group: String,
    network: String,
    network_group: String,
}

impl Scope {
    fn of_group(&self, group: &str, kind: &str) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{group}/providers/Microsoft.Network/{kind}",
            self.subscription
        )
    }

    fn of_subscription(&self, kind: &str) -> String {
        format!("/subscriptions/{}/providers/Microsoft.Network/{kind}", self.subscription)
    }
}

struct Reader<'a> {
    arm: Arm<'a>,
    scope: Scope,
    answers: &'a mut Answers,
}

impl Reader<'_> {
    fn read(&mut self) {
        // Without a token nothing is to be had: one line, not six.
        if let Err(error) = self.arm.tokens.token() {
            self.answers
                .missing
                .push(Missing { what: "azure".to_owned(), why: format!("{error:#}; {COST}") });
            return;
        }
        let found = self.services();
        let services = found.as_deref().unwrap_or_default();
        self.interfaces(services);
        self.connections(services);
        if found.is_some() {
            self.answers.add(SERVICES.name, kept(&SERVICES, services));
        }
        self.list(&BALANCERS, "loadBalancers");
        self.networks(services);
        self.list(&SECURITY, "networkSecurityGroups");
    }

    fn miss(&mut self, part: &Part, failure: &Failure) {
        self.miss_one(part.name, part, failure);
    }

    fn miss_one(&mut self, name: &str, part: &Part, failure: &Failure) {
        let why = failure.explained(part.right, &self.arm.tokens.identity.to_string());
        self.answers.miss(name, format!("{why}; {}", part.cost));
    }

    /// A list of the node resource group.
    fn list(&mut self, part: &Part, kind: &str) {
        match self.arm.list(&self.scope.of_group(&self.scope.group, kind)) {
            Ok(items) => self.answers.add(part.name, kept(part, &items)),
            Err(failure) => self.miss(part, &failure),
        }
    }

    /// The cluster's Private Link services, wherever in the subscription they are; else those of the groups where the
    /// cloud provider puts them.
    fn services(&mut self) -> Option<Vec<Value>> {
        let everywhere = self.arm.list(&self.scope.of_subscription("privateLinkServices"));
        let found = match everywhere {
            Err(failure) if failure.status() == Some(403) => self.services_of_groups(),
            other => other,
        };
        match found {
            Ok(services) => Some(services.into_iter().filter(|service| self.is_ours(service)).collect()),
            Err(failure) => {
                self.miss(&SERVICES, &failure);
                None
            }
        }
    }

    fn services_of_groups(&self) -> Result<Vec<Value>, Failure> {
        let groups = [&self.scope.group, &self.scope.services_group];
        let mut services = Vec::new();
        for group in groups.into_iter().filter(|group| !group.is_empty()).collect::<BTreeSet<_>>() {
            services.extend(self.arm.list(&self.scope.of_group(group, "privateLinkServices"))?);
        }
        Ok(services)
    }

    /// Whether a Private Link service is in the node resource group, or before a load balancer that is.
    fn is_ours(&self, service: &Value) -> bool {
        let group = format!("/resourcegroups/{}/", self.scope.group.to_ascii_lowercase());
        let is_in = |id: &Value| id.as_str().is_some_and(|id| id.to_ascii_lowercase().contains(&group));
        let frontends =
            service.pointer("/properties/loadBalancerFrontendIpConfigurations").and_then(Value::as_array);
        is_in(&service["id"]) || frontends.into_iter().flatten().any(|frontend| is_in(&frontend["id"]))
    }

    /// The network interfaces of Private Link services: only they have the dynamic NAT IPs.
    fn interfaces(&mut self, services: &[Value]) {
        let ids = services.iter().flat_map(|service| ids(service, "/properties/networkInterfaces"));
        let ids: BTreeSet<_> = ids.collect();
        let mut found = Vec::new();
        for id in ids {
            match self.arm.get(&id) {
                Ok(interface) => found.push(interface),
                Err(failure) => {
                    let name = format!("{}/{}", INTERFACES.name, id.rsplit('/').next().unwrap_or_default());
                    self.miss_one(&name, &INTERFACES, &failure);
                }
            }
        }
        self.answers.add(INTERFACES.name, kept(&INTERFACES, &found));
    }

    /// Consumers' connections of services whose description lacks them.
    fn connections(&mut self, services: &[Value]) {
        let mut found = Vec::new();
        for service in services {
            let has_them = service.pointer("/properties/privateEndpointConnections").is_some();
            let Some(id) = service["id"].as_str().filter(|_| !has_them) else { continue };
            match self.arm.list(&format!("{id}/privateEndpointConnections")) {
                Ok(connections) => found.extend(connections),
                Err(failure) => {
                    let name = format!("{}/{}", CONNECTIONS.name, id.rsplit('/').next().unwrap_or_default());
                    self.miss_one(&name, &CONNECTIONS, &failure);
                }
            }
        }
        if !found.is_empty() {
            self.answers.add(CONNECTIONS.name, kept(&CONNECTIONS, &found));
        }
    }

    /// The cluster's virtual network with its subnets; where that may not be read, the subnets that NAT IPs are in.
    fn networks(&mut self, services: &[Value]) {
        let mut failure = None;
        if !self.scope.network.is_empty() {
            let kind = format!("virtualNetworks/{}", self.scope.network);
            match self.arm.get(&self.scope.of_group(&self.scope.network_group, &kind)) {
                Ok(network) => return self.answers.add(NETWORKS.name, kept(&NETWORKS, &[network])),
                Err(error) => failure = Some(error),
            }
        }
        let of_service = |service: &Value| {
            let all = service.pointer("/properties/ipConfigurations").and_then(Value::as_array).cloned();
            all.into_iter()
                .flatten()
                .filter_map(|own| Some(own.pointer("/properties/subnet/id")?.as_str()?.to_owned()))
        };
        let wanted: BTreeSet<_> = services.iter().flat_map(of_service).collect();
        if let (Some(failure), true) = (&failure, wanted.is_empty()) {
            return self.miss(&NETWORKS, failure);
        }
        let mut found = Vec::new();
        for id in wanted {
            match self.arm.get(&id) {
                Ok(subnet) => found.push(subnet),
                Err(failure) => {
                    let name = format!("{}/{}", SUBNETS.name, id.rsplit('/').next().unwrap_or_default());
                    self.miss_one(&name, &SUBNETS, &failure);
                }
            }
        }
        self.answers.add(SUBNETS.name, kept(&SUBNETS, &found));
    }
}

/// What is kept of each.
fn kept(part: &Part, items: &[Value]) -> Vec<Value> {
    let keep = Pick::new(part.keep);
    items.iter().map(|item| keep.of(item)).collect()
}

/// The ids in a list.
fn ids(value: &Value, pointer: &str) -> Vec<String> {
    let all = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|item| item["id"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests;
