//! The agent's REST answers, as far as plsprobe reads them. Field names are the same from 1.13 to 1.20.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use probe_model::cilium::identity::Identity;
use probe_model::cilium::{Direction, EndpointId};
use probe_model::intent::object::{Objects, Options, read_agent_rules};
use probe_model::tuple::Protocol;
use probe_model::world::{
    Config, ConfigSource, Endpoint, EndpointPolicy, Forwarding, Interface, L4Filter, PodName, PolicyRef,
    RoutingMode, SelectorUse, ServiceName,
};
use serde::Deserialize;
use serde_json::Value;

/// `GET /endpoint`.
///
/// # Errors
///
/// If the text is no such answer.
pub fn endpoints(text: &str) -> Result<Vec<Endpoint>> {
    let models: Vec<EndpointModel> = serde_json::from_str(text)?;
    models.into_iter().map(EndpointModel::endpoint).collect()
}

/// `GET /identity`: labels by identity.
///
/// # Errors
///
/// If the text is no such answer.
pub fn identities(text: &str) -> Result<BTreeMap<Identity, Vec<String>>> {
    let models: Vec<IdentityModel> = serde_json::from_str(text)?;
    Ok(models.into_iter().map(|model| (Identity(model.id), model.labels.unwrap_or_default())).collect())
}

/// `GET /policy`: the rules of the repository, which travel as JSON in a string.
///
/// # Errors
///
/// If the text is no such answer.
pub fn rules(text: &str) -> Result<Objects> {
    let model: PolicyModel = serde_json::from_str(text)?;
    let Some(rules) = model.policy.filter(|rules| !rules.trim().is_empty()) else {
        return Ok(Objects::default());
    };
    let rules: Option<Vec<Value>> = serde_json::from_str(&rules).context("failed to read `policy`")?;
    Ok(read_agent_rules(&rules.unwrap_or_default(), &Options::default()))
}

/// `GET /policy/selectors`: identities by selector, as the agent writes it.
///
/// # Errors
///
/// If the text is no such answer.
pub fn selectors(text: &str) -> Result<BTreeMap<String, Vec<Identity>>> {
    let models: Option<Vec<SelectorIdentities>> = serde_json::from_str(text)?;
    let identities =
        |model: &SelectorIdentities| model.identities.iter().flatten().copied().map(Identity).collect();
    Ok(models
        .unwrap_or_default()
        .into_iter()
        .map(|model| (model.selector.clone(), identities(&model)))
        .collect())
}

/// `GET /service`: names of services by frontend.
///
/// # Errors
///
/// If the text is no such answer.
pub fn services(text: &str) -> Result<Vec<ServiceName>> {
    let models: Vec<ServiceModel> = serde_json::from_str(text)?;
    let names = models.into_iter().filter_map(|model| {
        let frontend = model.spec.frontend_address?;
        Some(ServiceName {
            namespace: model.spec.flags.namespace.unwrap_or_default(),
            name: model.spec.flags.name.unwrap_or_default(),
            address: frontend.ip?.parse().ok()?,
            port: frontend.port.unwrap_or(0),
            kind: model.spec.flags.kind.unwrap_or_default(),
        })
    });
    Ok(names.collect())
}

/// `GET /config`: the options that change how a packet is judged, starting from `defaults`.
///
/// # Errors
///
/// If the text is no such answer, or has no daemon configuration.
pub fn config(text: &str) -> Result<Config> {
    let model: ConfigModel = serde_json::from_str(text)?;
    let options =
        model.status.daemon_configuration_map.context("found no `status.daemonConfigurationMap`")?;
    let defaults = Config::default();
    let flag =
        |name: &str, default: bool| options.get(name).and_then(serde_json::Value::as_bool).unwrap_or(default);
    let word = |name: &str| options.get(name).and_then(serde_json::Value::as_str).unwrap_or("");
    // 1.13 has no RoutingMode; there `Tunnel` is "disabled" for native routing.
    let native =
        word("RoutingMode") == "native" || (word("RoutingMode").is_empty() && word("Tunnel") == "disabled");
    Ok(Config {
        source: ConfigSource::Agent,
        node_port: flag("EnableNodePort", defaults.node_port),
        routing: if native { RoutingMode::Native } else { RoutingMode::Tunnel },
        host_legacy_routing: flag("EnableHostLegacyRouting", defaults.host_legacy_routing),
        endpoint_routes: flag("EnableEndpointRoutes", defaults.endpoint_routes),
        icmp_rules: flag("EnableICMPRules", defaults.icmp_rules),
        allow_icmp_frag_needed: flag("AllowICMPFragNeeded", defaults.allow_icmp_frag_needed),
        audit_mode: flag("PolicyAuditMode", defaults.audit_mode),
        host_firewall: flag("EnableHostFirewall", defaults.host_firewall),
        source_range_check: flag("EnableSVCSourceRangeCheck", defaults.source_range_check),
        ipv4: flag("EnableIPv4", defaults.ipv4),
        ipv6: flag("EnableIPv6", defaults.ipv6),
        forwarding: match word("NodePortMode") {
            "snat" => Some(Forwarding::Snat),
            "dsr" => Some(Forwarding::Dsr),
            "hybrid" => Some(Forwarding::Hybrid),
            _ => None,
        },
        fragment_tracking: flag("EnableIPv4FragmentsTracking", defaults.fragment_tracking),
        identity_mark: flag("EnableIdentityMark", defaults.identity_mark),
        tunnel_port: options
            .get("TunnelPort")
            .and_then(serde_json::Value::as_u64)
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
    })
}

/// `GET /healthz`: the agent's version, the first word of `cilium.msg`.
///
/// # Errors
///
/// If the text is no such answer.
pub fn version(text: &str) -> Result<Option<String>> {
    let model: HealthModel = serde_json::from_str(text)?;
    Ok(model.cilium.and_then(|status| status.msg?.split_whitespace().next().map(str::to_owned)))
}

#[derive(Deserialize)]
struct IdentityModel {
    id: u32,
    labels: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct SelectorIdentities {
    selector: String,
    identities: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct HealthModel {
    cilium: Option<StatusModel>,
}

#[derive(Deserialize)]
struct StatusModel {
    msg: Option<String>,
}

#[derive(Deserialize)]
struct ConfigModel {
    status: ConfigStatus,
}

#[derive(Deserialize)]
struct ConfigStatus {
    #[serde(rename = "daemonConfigurationMap")]
    daemon_configuration_map: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct ServiceModel {
    spec: ServiceSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ServiceSpec {
    frontend_address: Option<FrontendModel>,
    #[serde(default)]
    flags: ServiceFlags,
}

#[derive(Deserialize)]
struct FrontendModel {
    ip: Option<String>,
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
struct ServiceFlags {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct PolicyModel {
    policy: Option<String>,
}

#[derive(Deserialize)]
struct EndpointModel {
    id: u16,
    status: Option<EndpointStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct EndpointStatus {
    external_identifiers: Option<ExternalIdentifiers>,
    identity: Option<IdentityModel>,
    networking: Option<Networking>,
    policy: Option<PolicyStatus>,
    realized: Option<Realized>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct ExternalIdentifiers {
    pod_name: String,
    k8s_pod_name: String,
    k8s_namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Networking {
    addressing: Option<Vec<AddressPair>>,
    interface_index: u32,
    interface_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AddressPair {
    ipv4: String,
    ipv6: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PolicyStatus {
    realized: Option<PolicyState>,
    spec: Option<PolicyState>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct PolicyState {
    policy_enabled: String,
    policy_revision: u64,
    l4: Option<L4Policy>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct L4Policy {
    ingress: Option<Vec<FilterModel>>,
    egress: Option<Vec<FilterModel>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct FilterModel {
    rule: String,
    derived_from_rules: Option<Vec<Vec<String>>>,
    rules_by_selector: Option<BTreeMap<String, Vec<Vec<String>>>>,
}

/// The JSON inside a filter's `rule`.
#[derive(Deserialize)]
struct FilterRule {
    port: u16,
    #[serde(rename = "endPort")]
    end_port: Option<u16>,
    protocol: String,
    #[serde(rename = "l7-rules", default)]
    selectors: Option<Vec<BTreeMap<String, Option<L7Rules>>>>,
}

#[derive(Deserialize)]
struct L7Rules {
    #[serde(rename = "IsDeny", default)]
    is_deny: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Realized {
    options: Option<BTreeMap<String, String>>,
}

impl EndpointModel {
    fn endpoint(self) -> Result<Endpoint> {
        let id = EndpointId(self.id);
        let status = self.status.unwrap_or_default();
        let identity = status.identity;
        let networking = status.networking.unwrap_or_default();
        let audit_mode = status
            .realized
            .and_then(|realized| realized.options)
            .is_some_and(|options| options.get("PolicyAuditMode").is_some_and(|value| value == "Enabled"));
        let policy = status.policy.map(|policy| policy.endpoint_policy(audit_mode)).transpose();
        let interface =
            (!networking.interface_name.is_empty() || networking.interface_index != 0).then(|| Interface {
                ifindex: networking.interface_index,
                name: Some(networking.interface_name.clone()).filter(|name| !name.is_empty()),
                mac: None,
            });
        Ok(Endpoint {
            id,
            identity: identity.as_ref().map_or(Identity::UNKNOWN, |identity| Identity(identity.id)),
            pod: status.external_identifiers.and_then(ExternalIdentifiers::pod),
            labels: identity.and_then(|identity| identity.labels).unwrap_or_default(),
            addresses: networking.addresses(),
            interface,
            policy: policy.with_context(|| format!("failed to read the policy of endpoint {id}"))?,
        })
    }
}

impl ExternalIdentifiers {
    fn pod(self) -> Option<PodName> {
        if !self.k8s_pod_name.is_empty() {
            return Some(PodName { namespace: self.k8s_namespace, name: self.k8s_pod_name });
        }
        let (namespace, name) = self.pod_name.split_once('/')?;
        (!name.is_empty()).then(|| PodName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl Networking {
    fn addresses(&self) -> Vec<IpAddr> {
        let pairs = self.addressing.iter().flatten();
        pairs.flat_map(|pair| [&pair.ipv4, &pair.ipv6]).filter_map(|text| text.parse().ok()).collect()
    }
}

impl PolicyStatus {
    fn endpoint_policy(self, audit_mode: bool) -> Result<EndpointPolicy> {
        let desired_revision = self.spec.unwrap_or_default().policy_revision;
        let realized = self.realized.unwrap_or_default();
        // none, ingress, egress, both, and the same with `audit-` before it.
        let enabled = realized.policy_enabled.trim_start_matches("audit-");
        let l4 = realized.l4.unwrap_or_default();
        let ingress =
            l4.ingress.unwrap_or_default().into_iter().map(|filter| filter.l4_filter(Direction::Ingress));
        let egress =
            l4.egress.unwrap_or_default().into_iter().map(|filter| filter.l4_filter(Direction::Egress));
        Ok(EndpointPolicy {
            ingress_enforced: matches!(enabled, "ingress" | "both"),
            egress_enforced: matches!(enabled, "egress" | "both"),
            revision: realized.policy_revision,
            desired_revision,
            audit_mode: audit_mode || realized.policy_enabled.starts_with("audit-"),
            filters: ingress.chain(egress).collect::<Result<_>>()?,
        })
    }
}

impl FilterModel {
    fn l4_filter(self, direction: Direction) -> Result<L4Filter> {
        let rule: FilterRule = serde_json::from_str(&self.rule)
            .with_context(|| format!("failed to read the L4 filter `{}`", self.rule))?;
        let everything = refs(&self.derived_from_rules.unwrap_or_default());
        let by_selector = self.rules_by_selector.unwrap_or_default();
        let selectors =
            rule.selectors.unwrap_or_default().into_iter().flatten().map(|(selector, l7)| SelectorUse {
                // Egress filters name no policies by selector: all that made the filter may be behind it.
                derived_from: by_selector
                    .get(&selector)
                    .map_or_else(|| everything.clone(), |labels| refs(labels)),
                deny: l7.is_some_and(|l7| l7.is_deny),
                selector,
            });
        Ok(L4Filter {
            direction,
            port: rule.port,
            end_port: rule.end_port,
            protocol: Protocol::parse(&rule.protocol)
                .with_context(|| format!("found protocol `{}`", rule.protocol))?,
            selectors: selectors.collect(),
        })
    }
}

fn refs(label_lists: &[Vec<String>]) -> Vec<PolicyRef> {
    label_lists.iter().map(|labels| PolicyRef::from_labels(labels.iter().map(String::as_str))).collect()
}
