//! The API's objects, as far as they were kept, as the model has them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, anyhow};
use ipnet::IpNet;
use probe_model::{
    tuple::Protocol,
    world::kubernetes::{
        Backend, ContainerPort, EndpointSlice, Labels, Namespace, Node, Pod, PolicyKind, PolicyObject,
        PolicyOrigin, PortRef, Service, ServiceEvent, ServicePort, TrafficPolicy,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::sources::policy_files::FilePolicy;

/// The label of nodes that load balancers leave out.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What every object has.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: Labels,
    annotations: BTreeMap<String, String>,
    #[serde(rename = "ownerReferences")]
    owners: Vec<Owner>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
}

/// An object of which `spec` and `status` are known.
#[derive(Deserialize, Default)]
#[serde(default, bound = "S: Deserialize<'de> + Default, T: Deserialize<'de> + Default")]
struct Object<S, T> {
    metadata: Metadata,
    spec: S,
    status: T,
}

/// Every object of a list, or the first that is none, by its place.
fn each<U>(text: &str, read: impl Fn(Value) -> Result<U>) -> Result<Vec<U>> {
    let items: Vec<Value> = serde_json::from_str(text).context("it is no list")?;
    let decode = |(idx, item)| read(item).with_context(|| format!("failed to read object {idx}"));
    items.into_iter().enumerate().map(decode).collect()
}

fn one<T: DeserializeOwned>(object: Value) -> Result<T> {
    Ok(serde_json::from_value(object)?)
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<IpAddr>> {
    let parse = |text: &String| text.parse().map_err(|_| anyhow!("found `{text}`, expected an address"));
    all(texts.into_iter().filter(|text| !text.is_empty() && *text != "None").map(parse))
}

/// As many as there are, without room for more: an agent keeps them by the ten thousand.
fn all<T>(items: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let mut all = items.collect::<Result<Vec<_>>>()?;
    all.shrink_to_fit();
    Ok(all)
}

fn prefix(text: &String) -> Result<IpNet> {
    text.trim().parse().map_err(|_| anyhow!("found `{text}`, expected a prefix"))
}

/// The protocol of a port, TCP unless it says otherwise.
fn protocol(text: &str) -> Result<Protocol> {
    if text.is_empty() {
        return Ok(Protocol::TCP);
    }
    Protocol::parse(text).ok_or_else(|| anyhow!("found protocol `{text}`, expected TCP, UDP or SCTP"))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    external_traffic_policy: String,
    internal_traffic_policy: String,
    ports: Vec<Port>,
    selector: Labels,
    load_balancer_source_ranges: Vec<String>,
    health_check_node_port: u16,
    allocate_load_balancer_node_ports: Option<bool>,
    session_affinity: String,
    ip_families: Vec<String>,
    load_balancer_class: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
struct Port {
    name: String,
    protocol: String,
    port: u16,
    target_port: Option<PortText>,
    node_port: u16,
    app_protocol: Option<String>,
    container_port: u16,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortText {
    Number(u16),
    Text(String),
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Ingresses,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ingresses {
    ingress: Vec<Address>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
struct Address {
    ip: String,
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

fn traffic_policy(text: &str) -> Option<TrafficPolicy> {
    match text {
        "Cluster" => Some(TrafficPolicy::Cluster),
        "Local" => Some(TrafficPolicy::Local),
        _ => None,
    }
}

fn service_port(port: Port) -> Result<ServicePort> {
    let target_port = match port.target_port {
        // Nothing and 0 are the same to Kubernetes: the service's own.
        None | Some(PortText::Number(0)) => PortRef::Number(port.port),
        Some(PortText::Number(number)) => PortRef::Number(number),
        Some(PortText::Text(name)) => PortRef::Name(name),
    };
    Ok(ServicePort {
        name: port.name,
        protocol: protocol(&port.protocol)?,
        port: port.port,
        target_port,
        node_port: (port.node_port != 0).then_some(port.node_port),
        app_protocol: port.app_protocol,
    })
}

/// Services.
///
/// # Errors
///
/// If one is none.
pub fn services(text: &str) -> Result<Vec<Service>> {
    each(text, service)
}

/// A service.
///
/// # Errors
///
/// If it is none.
pub fn service(object: Value) -> Result<Service> {
    let Object { metadata, spec, status } = one::<Object<ServiceSpec, ServiceStatus>>(object)?;
    Ok(Service {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        annotations: metadata.annotations,
        kind: spec.kind,
        cluster_ips: addresses(&spec.cluster_ips)?,
        external_traffic_policy: traffic_policy(&spec.external_traffic_policy),
        internal_traffic_policy: traffic_policy(&spec.internal_traffic_policy),
        ports: all(spec.ports.into_iter().map(service_port))?,
        selector: spec.selector,
        source_ranges: all(spec.load_balancer_source_ranges.iter().map(prefix))?,
        health_check_node_port: Some(spec.health_check_node_port).filter(|port| *port != 0),
        allocates_node_ports: spec.allocate_load_balancer_node_ports.unwrap_or(true),
        client_ip_affinity: spec.session_affinity == "ClientIP",
        ip_families: spec.ip_families,
        load_balancer_class: spec.load_balancer_class,
        owners: metadata.owners.iter().map(|owner| format!("{} {}", owner.kind, owner.name)).collect(),
        ingress: addresses(status.load_balancer.ingress.iter().map(|ingress| &ingress.ip))?,
    })
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SliceObject {
    metadata: Metadata,
    address_type: String,
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<SlicePort>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Vec<String>,
    conditions: SliceConditions,
    node_name: Option<String>,
    target_ref: Option<Owner>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SliceConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SlicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

/// `EndpointSlice` objects; those of names, which no packet has, are left out.
///
/// # Errors
///
/// If one is none.
pub fn endpoint_slices(text: &str) -> Result<Vec<EndpointSlice>> {
    Ok(each(text, endpoint_slice)?.into_iter().flatten().collect())
}

/// An `EndpointSlice`; `None` if it is one of names.
///
/// # Errors
///
/// If it is none.
pub fn endpoint_slice(object: Value) -> Result<Option<EndpointSlice>> {
    let slice: SliceObject = one(object)?;
    if slice.address_type == "FQDN" {
        return Ok(None);
    }
    let backend = |endpoint: SliceEndpoint| {
        // Unknown is ready, as the API's documentation says.
        let is_ready = endpoint.conditions.ready.unwrap_or(true);
        Ok(Backend {
            addresses: addresses(&endpoint.addresses)?,
            is_ready,
            is_serving: endpoint.conditions.serving.unwrap_or(is_ready),
            is_terminating: endpoint.conditions.terminating.unwrap_or(false),
            node: endpoint.node_name,
            pod: endpoint.target_ref.filter(|target| target.kind == "Pod").map(|target| target.name),
        })
    };
    let port = |port: SlicePort| {
        let protocol = protocol(port.protocol.as_deref().unwrap_or_default())?;
        Ok((port.name.unwrap_or_default(), protocol, port.port.unwrap_or(0)))
    };
    Ok(Some(EndpointSlice {
        service: slice.metadata.labels.get("kubernetes.io/service-name").cloned().unwrap_or_default(),
        namespace: slice.metadata.namespace,
        name: slice.metadata.name,
        endpoints: all(slice.endpoints.into_iter().flatten().map(backend))?,
        ports: all(slice.ports.into_iter().flatten().map(port))?,
    }))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
    host_network: bool,
    service_account_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Vec<Port>,
    restart_policy: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

fn is_ready(conditions: &[Condition]) -> bool {
    conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
}

/// Pods, as [`pod`] reads one.
///
/// # Errors
///
/// If one is none.
pub fn pods(text: &str) -> Result<Vec<Pod>> {
    each(text, pod)
}

/// A pod. One that has ended has no address any more: the API still says the last.
///
/// # Errors
///
/// If it is none.
pub fn pod(object: Value) -> Result<Pod> {
    let Object { metadata, spec, status } = one::<Object<PodSpec, PodStatus>>(object)?;
    let port = |port: Port| {
        Ok(ContainerPort { name: port.name, protocol: protocol(&port.protocol)?, port: port.container_port })
    };
    // Of those that run before the others only sidecars still run.
    let sidecars = spec.init_containers.into_iter().filter(|container| container.restart_policy == "Always");
    let ports = spec.containers.into_iter().chain(sidecars).flat_map(|container| container.ports);
    let has_ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
    let own = status.addresses.iter().map(|own| &own.ip).filter(|_| !has_ended);
    Ok(Pod {
        namespace: metadata.namespace,
        name: metadata.name,
        labels: metadata.labels,
        node: spec.node_name,
        host_network: spec.host_network,
        addresses: addresses(own)?,
        ports: all(ports.map(port))?,
        is_ready: is_ready(&status.conditions),
        phase: status.phase,
        service_account: spec.service_account_name,
    })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Nothing {}

/// Namespaces.
///
/// # Errors
///
/// If one is none.
pub fn namespaces(text: &str) -> Result<Vec<Namespace>> {
    each(text, namespace)
}

/// A namespace.
///
/// # Errors
///
/// If it is none.
pub fn namespace(object: Value) -> Result<Namespace> {
    let Object { metadata, .. } = one::<Object<Nothing, Nothing>>(object)?;
    Ok(Namespace { name: metadata.name, labels: metadata.labels })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "providerID")]
    provider_id: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

/// Nodes.
///
/// # Errors
///
/// If one is none.
pub fn nodes(text: &str) -> Result<Vec<Node>> {
    each(text, node)
}

/// A node.
///
/// # Errors
///
/// If it is none.
pub fn node(object: Value) -> Result<Node> {
    let Object { metadata, mut spec, status } = one::<Object<NodeSpec, NodeStatus>>(object)?;
    if spec.pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
        spec.pod_cidrs.push(spec.pod_cidr);
    }
    let is_address = |own: &&Address| matches!(own.kind.as_str(), "InternalIP" | "ExternalIP");
    Ok(Node {
        is_excluded: metadata.labels.contains_key(EXCLUDED),
        name: metadata.name,
        addresses: addresses(status.addresses.iter().filter(is_address).map(|own| &own.address))?,
        pod_cidrs: all(spec.pod_cidrs.iter().map(prefix))?,
        provider_id: spec.provider_id,
        is_ready: is_ready(&status.conditions),
    })
}

/// Policy objects of one kind.
///
/// # Errors
///
/// If one is none.
pub fn policies(kind: PolicyKind, text: &str) -> Result<Vec<PolicyObject>> {
    each(text, |object| Ok(policy(kind, PolicyOrigin::Kubernetes, object)))
}

/// A policy object of the API.
pub fn policy_object(kind: PolicyKind, object: Value) -> PolicyObject {
    policy(kind, PolicyOrigin::Kubernetes, object)
}

fn policy(kind: PolicyKind, origin: PolicyOrigin, mut object: Value) -> PolicyObject {
    let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (name("namespace"), name("name"));
    // Objects in a list of the API do not say what they are.
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.name().into();
    PolicyObject { kind, namespace, name, origin, json: object.to_string() }
}

/// Policy objects from files.
///
/// # Errors
///
/// If one is none.
pub fn file_policies(text: &str) -> Result<Vec<PolicyObject>> {
    each(text, |object| {
        let FilePolicy { path, line, object } = one(object)?;
        let word = object["kind"].as_str().unwrap_or_default().to_owned();
        let kind = PolicyKind::ALL.into_iter().find(|kind| kind.name() == word);
        let kind = kind.with_context(|| format!("found kind `{word}`, expected a policy's"))?;
        Ok(policy(kind, PolicyOrigin::File { path, line }, object))
    })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CidrGroup {
    #[serde(rename = "externalCIDRs")]
    prefixes: Vec<String>,
}

/// Prefixes of `CiliumCIDRGroup` objects by name.
///
/// # Errors
///
/// If one is none.
pub fn cidr_groups(text: &str) -> Result<BTreeMap<String, Vec<IpNet>>> {
    Ok(each(text, cidr_group)?.into_iter().collect())
}

/// The name and the prefixes of a `CiliumCIDRGroup`.
///
/// # Errors
///
/// If it is none.
pub fn cidr_group(object: Value) -> Result<(String, Vec<IpNet>)> {
    let Object { metadata, spec, .. } = one::<Object<CidrGroup, Nothing>>(object)?;
    // Cilium takes an address alone too.
    let net = |text: &String| text.parse::<IpAddr>().map(IpNet::from).or_else(|_| prefix(text));
    Ok((metadata.name, all(spec.prefixes.iter().map(net))?))
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
struct Event {
    involved_object: Involved,
    reason: String,
    message: String,
    last_timestamp: Option<String>,
    event_time: Option<String>,
    count: Option<u32>,
    series: Option<Series>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Involved {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Series {
    count: u32,
    last_observed_time: Option<String>,
}

/// Events of Services, the latest first.
///
/// # Errors
///
/// If one is none.
pub fn events(text: &str) -> Result<Vec<ServiceEvent>> {
    let mut events: Vec<_> = each(text, event)?.into_iter().flatten().collect();
    latest_first(&mut events);
    Ok(events)
}

/// Puts the latest first: RFC 3339 in UTC sorts as text.
pub fn latest_first(events: &mut [ServiceEvent]) {
    events.sort_by(|one, other| other.last.cmp(&one.last));
}

/// An event; `None` if it is not a Service's.
///
/// # Errors
///
/// If it is none.
pub fn event(object: Value) -> Result<Option<ServiceEvent>> {
    let event: Event = one(object)?;
    let series = event.series.unwrap_or_default();
    let last = series.last_observed_time.or(event.last_timestamp).or(event.event_time);
    let is_of_service = event.involved_object.kind == "Service";
    Ok(is_of_service.then(|| ServiceEvent {
        namespace: event.involved_object.namespace,
        service: event.involved_object.name,
        reason: event.reason,
        message: event.message,
        last: last.unwrap_or_default(),
        count: event.count.unwrap_or(series.count).max(1),
    }))
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConfigMap {
    data: BTreeMap<String, String>,
}

/// Cilium's options; of a list with one object.
///
/// # Errors
///
/// If it is none.
pub fn cilium_config(text: &str) -> Result<BTreeMap<String, String>> {
    each(text, config_map)?.pop().context("it is empty")
}

/// What is in a `ConfigMap`.
///
/// # Errors
///
/// If it is none.
pub fn config_map(object: Value) -> Result<BTreeMap<String, String>> {
    Ok(one::<ConfigMap>(object)?.data)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_and_what_became_of_it() {
        let pod = |phase: &str| {
            json!([{
                "metadata": {"name": "p", "namespace": "n", "labels": {"app": "x"}},
                "spec": {
                    "nodeName": "node-a", "hostNetwork": true, "serviceAccountName": "default",
                    "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}, {}],
                    "initContainers": [{"ports": [{"name": "once", "containerPort": 1}]},
                                       {"ports": [{"name": "sidecar", "containerPort": 2}], "restartPolicy": "Always"}]
                },
                "status": {"phase": phase, "podIPs": [{"ip": "10.0.0.143"}], "conditions": [{"type": "Ready", "status": "True"}]}
            }])
            .to_string()
        };
        let running = &pods(&pod("Running")).unwrap()[0];
        assert!(running.host_network && running.is_ready);
        let ports: Vec<_> =
            running.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port)).collect();
        assert_eq!(ports, [("http", Protocol::TCP, 8080), ("sidecar", Protocol::TCP, 2)]);
        assert_eq!(running.addresses, ["10.0.0.143".parse::<IpAddr>().unwrap()]);
        assert_eq!(pods(&pod("Succeeded")).unwrap()[0].addresses, Vec::<IpAddr>::new());
    }

    #[test]
    fn backends() {
        let text = json!([
            {
                "metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
                "endpoints": [
                    {"addresses": ["10.0.0.1"], "conditions": {}, "nodeName": "a", "targetRef": {"kind": "Pod", "name": "p"}},
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}
                ],
                "ports": [{"name": "", "protocol": "UDP", "port": 53}]
            },
            {"metadata": {"name": "names"}, "addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]},
            {"metadata": {"name": "none"}, "addressType": "IPv4", "endpoints": null, "ports": null}
        ]);
        let slices = endpoint_slices(&text.to_string()).unwrap();
        assert_eq!(slices.len(), 2);
        let [ready, leaving] = &slices[0].endpoints[..] else { panic!("{slices:?}") };
        assert!(
            ready.is_ready && ready.is_serving && !ready.is_terminating && ready.pod.as_deref() == Some("p")
        );
        assert!(!leaving.is_ready && leaving.is_serving && leaving.is_terminating);
        assert_eq!(slices[0].ports, [(String::new(), Protocol::UDP, 53)]);
    }

    #[test]
    fn a_node_and_its_prefixes() {
        let text = json!([{
            "metadata": {"name": "a", "labels": {"kubernetes.azure.com/mode": "system"}},
            "spec": {"podCIDR": "10.0.1.0/24", "providerID": "azure:///subscriptions/s"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.224.0.4"}, {"type": "Hostname", "address": "a"}]}
        }]);
        let node = &nodes(&text.to_string()).unwrap()[0];
        assert_eq!(node.addresses, ["10.224.0.4".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (node.pod_cidrs.as_slice(), node.is_ready),
            (&["10.0.1.0/24".parse().unwrap()][..], false)
        );
    }

    #[test]
    fn events_of_services_the_latest_first() {
        let event = |kind: &str, last: &str| json!({"involvedObject": {"kind": kind, "namespace": "n", "name": "s"}, "reason": "SyncLoadBalancerFailed", "message": last, "lastTimestamp": last, "count": 3});
        let series = json!({"involvedObject": {"kind": "Service"}, "message": "x", "lastTimestamp": null, "eventTime": "2026-11-25T00:00:00Z", "series": {"count": 7, "lastObservedTime": "2026-11-25T09:00:00Z"}});
        let text = json!([
            event("Service", "2026-11-25T08:00:00Z"),
            event("Pod", "2026-11-25T08:00:00Z"),
            series,
            event("Service", "2026-11-25T08:30:00Z")
        ]);
        let found = events(&text.to_string()).unwrap();
        let found: Vec<_> = found.iter().map(|event| (event.last.as_str(), event.count)).collect();
        assert_eq!(
            found,
            [("2026-11-25T09:00:00Z", 7), ("2026-11-25T08:30:00Z", 3), ("2026-11-25T08:00:00Z", 3)]
        );
    }

    #[test]
    fn policies_say_what_they_are() {
        let text =
            json!([{"metadata": {"name": "a", "namespace": "n"}, "spec": {"podSelector": {}}}]).to_string();
        let policy = &policies(PolicyKind::NetworkPolicy, &text).unwrap()[0];
        assert_eq!(policy.to_string(), "NetworkPolicy n/a");
        let object: Value = serde_json::from_str(&policy.json).unwrap();
        assert_eq!(
            (&object["apiVersion"], &object["kind"]),
            (&json!("networking.k8s.io/v1"), &json!("NetworkPolicy"))
        );
        let file = json!([{"path": "p/a.yaml", "line": 12, "object": {"kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "w"}}}]);
        let policy = &file_policies(&file.to_string()).unwrap()[0];
        assert_eq!(
            (policy.to_string(), policy.origin.to_string()),
            ("CiliumClusterwideNetworkPolicy w".to_owned(), "p/a.yaml:12".to_owned())
        );
    }

    #[test]
    fn groups_of_prefixes() {
        let text =
            json!([{"metadata": {"name": "g"}, "spec": {"externalCIDRs": ["10.0.0.0/8", "10.224.0.8"]}}])
                .to_string();
        let expected: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "10.224.0.8/32".parse().unwrap()];
        assert_eq!(cidr_groups(&text).unwrap(), BTreeMap::from([("g".to_owned(), expected)]));
    }

    #[test]
    fn what_is_wrong_says_where() {
        let error = |text: &str| format!("{:#}", services(text).unwrap_err());
        assert!(error("{}").starts_with("it is no list: "), "{}", error("{}"));
        assert_eq!(
            error(r#"[{}, {"spec": {"clusterIPs": ["None", "x"]}}]"#),
            "failed to read object 1: found `x`, expected an address"
        );
        assert!(
            error(r#"[{"spec": {"ports": [{"port": 70000}]}}]"#)
                .starts_with("failed to read object 0: invalid value: integer `70000`")
        );
    }
}
