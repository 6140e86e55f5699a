//! The cluster's place in Azure: the cloud provider's configuration on the node, and the instance metadata service.

use std::path::Path;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use probe_model::world::{
    nat::{Claim, Disagreement},
    private_link::Place,
};
use serde::Deserialize;
use serde_json::Value;

use crate::sources::{http::Url, pick::Pick};

/// Where AKS puts the cloud provider's configuration, readable for root.
pub const AZURE_JSON: &str = "/etc/kubernetes/azure.json";

/// What is kept of it: it may hold a client's secret.
const KEEP: &str = "cloud tenantId subscriptionId resourceGroup location vnetName vnetResourceGroup subnetName securityGroupName \
                    loadBalancerSku useManagedIdentityExtension userAssignedIdentityID privateLinkServiceResourceGroup";
/// What is kept of the instance metadata service's answer.
pub(super) const KEEP_INSTANCE: &str = "compute{subscriptionId resourceGroupName location name vmScaleSetName azEnvironment} \
                                        network{interface{ipv4{subnet{address prefix}}}}";

/// The cloud provider's configuration, as far as it is kept.
///
/// # Errors
///
/// If it cannot be read, or is no JSON.
pub fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("failed to read `{shown}`"))?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("failed to read `{shown}`; expected JSON"))?;
    Ok(Pick::new(KEEP).of(&json).to_string())
}

/// The cloud provider's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Configuration {
    pub(super) cloud: String,
    pub(super) tenant_id: String,
    pub(super) subscription_id: String,
    pub(super) resource_group: String,
    location: String,
    pub(super) vnet_name: String,
    pub(super) vnet_resource_group: String,
    subnet_name: String,
    load_balancer_sku: String,
    #[serde(rename = "userAssignedIdentityID")]
    pub(super) user_assigned_identity_id: String,
    pub(super) private_link_service_resource_group: String,
}

/// The instance metadata service's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    pub(super) compute: Compute,
    network: Network,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Compute {
    pub(super) subscription_id: String,
    pub(super) resource_group_name: String,
    location: String,
    pub(super) az_environment: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    interface: Vec<Interface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    ipv4: Family,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Family {
    subnet: Vec<Subnet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subnet {
    address: String,
    prefix: String,
}

/// What both say together, and where they contradict each other.
///
/// # Errors
///
/// If one of them is not what it should be.
pub fn place(configuration: Option<&str>, instance: Option<&str>) -> Result<(Place, Vec<Disagreement>)> {
    let (configuration, instance) = both(configuration, instance)?;
    let mut disagreements = Vec::new();
    let mut either = |about: &str, configured: &str, own: &str| {
        if !configured.is_empty() && !own.is_empty() && !configured.eq_ignore_ascii_case(own) {
            let claim = |who: &str, what: &str| Claim { who: who.to_owned(), what: what.to_owned() };
            disagreements.push(Disagreement {
                about: about.to_owned(),
                claims: [claim("azure.json", configured), claim("the instance metadata service", own)],
                advice: "Azure was asked about the first".to_owned(),
            });
        }
        some(configured).or_else(|| some(own))
    };
    let compute = &instance.compute;
    let place = Place {
        subscription: either(
            "the cluster's subscription",
            &configuration.subscription_id,
            &compute.subscription_id,
        ),
        resource_group: either(
            "the node resource group",
            &configuration.resource_group,
            &compute.resource_group_name,
        ),
        location: either("the region", &configuration.location, &compute.location),
        network: some(&configuration.vnet_name),
        network_resource_group: some(&configuration.vnet_resource_group)
            .or_else(|| some(&configuration.resource_group)),
        subnet: some(&configuration.subnet_name),
        node_subnets: instance.node_subnets(),
        load_balancer_sku: some(&configuration.load_balancer_sku),
        ..Place::default()
    };
    Ok((place, disagreements))
}

/// Both, as far as they are there.
pub(super) fn both(configuration: Option<&str>, instance: Option<&str>) -> Result<(Configuration, Instance)> {
    let configuration = configuration.map(serde_json::from_str).transpose();
    let instance = instance.map(serde_json::from_str).transpose();
    Ok((
        configuration.context("`azure.json` is not as expected")?.unwrap_or_default(),
        instance.context("the instance metadata are not as expected")?.unwrap_or_default(),
    ))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Instance {
    fn node_subnets(&self) -> Vec<IpNet> {
        let all = self.network.interface.iter().flat_map(|interface| &interface.ipv4.subnet);
        let mut nets: Vec<IpNet> =
            all.filter_map(|subnet| format!("{}/{}", subnet.address, subnet.prefix).parse().ok()).collect();
        nets.dedup();
        nets
    }
}

/// A cloud of Azure's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Its resource manager.
    pub arm: Url,
    /// Who gives tokens for workload identities.
    pub authority: Url,
}

/// The cloud of this name, as `azure.json` and the instance metadata service write it; without a name the public one.
///
/// Source: `azure-sdk-for-go/sdk/azcore/cloud`.
pub(super) fn cloud(name: &str) -> Cloud {
    let name = name.to_ascii_lowercase();
    let (arm, authority) = if name.contains("usgovernment") {
        ("https://management.usgovcloudapi.net", "https://login.microsoftonline.us")
    } else if name.contains("china") {
        ("https://management.chinacloudapi.cn", "https://login.chinacloudapi.cn")
    } else {
        ("https://management.azure.com", "https://login.microsoftonline.com")
    };
    let url = |text: &str| text.parse().expect("a constant address");
    Cloud { arm: url(arm), authority: url(authority) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_clients_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("azure.json");
        let text = json!({"subscriptionId": "s", "aadClientId": "id", "aadClientSecret": "hunter2", "aadClientCertPassword": "x", "subnetName": "n"});
        std::fs::write(&path, text.to_string()).unwrap();
        assert_eq!(read(&path).unwrap(), r#"{"subnetName":"n","subscriptionId":"s"}"#);
        std::fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("azure.json`; expected JSON: EOF"));
        assert!(
            format!("{:#}", read(&folder.path().join("none")).unwrap_err()).starts_with("failed to read `")
        );
    }

    #[test]
    fn what_both_say() {
        let configuration = json!({"subscriptionId": "S", "resourceGroup": "MC_a", "vnetName": "v", "subnetName": "aks", "loadBalancerSku": "Standard"}).to_string();
        let instance = |group: &str| {
            json!({
                "compute": {"subscriptionId": "s", "resourceGroupName": group, "location": "westeurope"},
                "network": {"interface": [{"ipv4": {"subnet": [{"address": "10.224.0.0", "prefix": "16"}]}}, {"ipv4": {"subnet": [{"address": "", "prefix": ""}]}}]}
            })
            .to_string()
        };
        let (known, disagreements) = place(Some(&configuration), Some(&instance("mc_A"))).unwrap();
        assert_eq!(disagreements, []);
        assert_eq!(
            (known.subscription.as_deref(), known.resource_group.as_deref()),
            (Some("S"), Some("MC_a"))
        );
        assert_eq!(
            (known.location.as_deref(), known.network_resource_group.as_deref()),
            (Some("westeurope"), Some("MC_a"))
        );
        assert_eq!(known.node_subnets, ["10.224.0.0/16".parse().unwrap()]);
        let (_, disagreements) = place(Some(&configuration), Some(&instance("MC_b"))).unwrap();
        assert_eq!(
            disagreements.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "the node resource group: azure.json says MC_a, the instance metadata service says MC_b; Azure was asked about the first"
            ]
        );
        assert_eq!(place(None, None).unwrap().0, Place::default());
        assert!(place(Some("1"), None).is_err());
    }

    #[test]
    fn clouds() {
        assert_eq!(cloud("").arm.to_string(), "https://management.azure.com");
        assert_eq!(cloud("AzurePublicCloud").authority.host, "login.microsoftonline.com");
        assert_eq!(cloud("AzureUSGovernmentCloud").arm.host, "management.usgovcloudapi.net");
        assert_eq!(cloud("AzureChinaCloud").arm.host, "management.chinacloudapi.cn");
    }
}
