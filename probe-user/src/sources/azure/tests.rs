//! ARM and the instance metadata service as servers of our own speak them, and what an operator reads of it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use probe_model::world::private_link::ConnectionState;
use serde_json::json;

use super::*;
use crate::sources::http::testing::{Reply, Seen, Server, nobody};

const SUBSCRIPTION: &str = "/subscriptions/s";
const GROUP: &str = "/subscriptions/s/resourceGroups/MC_rg/providers/Microsoft.Network";

fn instance_json() -> String {
    json!({
        "compute": {"subscriptionId": "s", "resourceGroupName": "MC_rg", "location": "westeurope", "osProfile": {"adminPassword": "hunter2"}},
        "network": {"interface": [{"ipv4": {"ipAddress": [{"privateIpAddress": "10.224.0.4"}], "subnet": [{"address": "10.224.0.0", "prefix": "16"}]}}]}
    })
    .to_string()
}

fn imds_reply(seen: &Seen) -> Reply {
    match seen.path.split('?').next() {
        _ if seen.header("metadata") != Some("true") => Reply::json("400 Bad Request", "{}"),
        Some("/metadata/instance") => Reply::ok(&instance_json()),
        Some("/metadata/identity/oauth2/token") => {
            Reply::ok(r#"{"access_token":"the-token","expires_in":"3599"}"#)
        }
        _ => Reply::json("404 Not Found", "{}"),
    }
}

fn service() -> Value {
    json!({
        "id": format!("{GROUP}/privateLinkServices/pls"), "name": "pls", "tags": {"k8s-azure-owner-service": "default/pls-app", "secret": "hunter2"},
        "properties": {
            "alias": "pls.1234.westeurope.azure.privatelinkservice", "enableProxyProtocol": true, "provisioningState": "Succeeded",
            "visibility": {"subscriptions": ["*"]},
            "networkInterfaces": [{"id": format!("{GROUP}/networkInterfaces/pls.nic.1")}],
            "loadBalancerFrontendIpConfigurations": [{"id": format!("{GROUP}/loadBalancers/kubernetes-internal/frontendIPConfigurations/f")}],
            "ipConfigurations": [{"name": "snet-pls-dynamic-0", "properties": {
                "privateIPAllocationMethod": "Dynamic", "primary": true,
                "subnet": {"id": format!("{SUBSCRIPTION}/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/v/subnets/snet")}
            }}],
            "privateEndpointConnections": [{"name": "pe.1", "properties": {
                "linkIdentifier": "553665985", "privateEndpoint": {"id": "/subscriptions/c/pe"}, "privateEndpointLocation": "northeurope",
                "privateLinkServiceConnectionState": {"status": "Pending", "description": "please"}
            }}]
        }
    })
}

fn balancer() -> Value {
    // ARM writes ids in whatever case they were given.
    let id = format!("{GROUP}/loadBalancers/kubernetes-internal").to_uppercase();
    json!({
        "id": id, "name": "kubernetes-internal", "sku": {"name": "Standard"},
        "properties": {
            "frontendIPConfigurations": [{"id": format!("{id}/frontendIPConfigurations/F"), "name": "f", "properties": {"privateIPAddress": "10.224.0.7"}}],
            "loadBalancingRules": [{"name": "f-TCP-80", "properties": {
                "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "enableFloatingIP": true, "idleTimeoutInMinutes": 4,
                "enableTcpReset": true, "loadDistribution": "Default", "frontendIPConfiguration": {"id": format!("{id}/frontendIPConfigurations/f")},
                "probe": {"id": format!("{id}/probes/p")}, "backendAddressPool": {"id": "b"}, "backendAddressPools": [{"id": "b"}]
            }}],
            "probes": [{"id": format!("{id}/probes/P"), "name": "p", "properties": {"protocol": "Tcp", "port": 32673, "intervalInSeconds": 5, "numberOfProbes": 2}}],
            "backendAddressPools": [{"id": "b", "name": "kubernetes", "properties": {
                "backendIPConfigurations": [{"id": "x"}, {"id": "y"}],
                "loadBalancerBackendAddresses": [{"properties": {"ipAddress": "", "networkInterfaceIPConfiguration": {"id": "x"}}}, {"properties": {"ipAddress": "10.224.0.5"}}]
            }}]
        }
    })
}

/// What ARM has, by path.
fn arm_reply(seen: &Seen) -> Reply {
    if seen.header("authorization") != Some("Bearer the-token") {
        return Reply::json(
            "401 Unauthorized",
            r#"{"error":{"code":"ExpiredAuthenticationToken","message":"The access token expiry is over."}}"#,
        );
    }
    assert!(seen.query("api-version").is_some(), "{}", seen.path);
    let list = |items: &[Value]| Reply::ok(&json!({"value": items}).to_string());
    let path = seen.path.split('?').next().unwrap();
    match path.rsplit('/').next().unwrap() {
        "privateLinkServices" => list(&[service()]),
        "loadBalancers" => list(&[balancer()]),
        "pls.nic.1" => Reply::ok(
            &json!({"id": path, "name": "nic", "properties": {"ipConfigurations": [
                {"properties": {"privateIPAddress": "10.225.1.5", "primary": false}},
                {"properties": {"privateIPAddress": "10.225.1.4", "primary": true}}
            ]}})
            .to_string(),
        ),
        "v" => Reply::ok(
            &json!({"id": path, "name": "v", "properties": {"addressSpace": {"addressPrefixes": ["10.224.0.0/12"]}, "subnets": [
                {"id": format!("{path}/subnets/snet"), "name": "snet", "properties": {"addressPrefix": "10.225.1.0/24", "privateLinkServiceNetworkPolicies": "Disabled"}}
            ]}})
            .to_string(),
        ),
        "snet" => Reply::ok(&json!({"id": path, "name": "snet", "properties": {"addressPrefixes": ["10.225.1.0/24"]}}).to_string()),
        "networkSecurityGroups" => list(&[json!({"id": "g", "name": "nsg", "properties": {"securityRules": [
            {"name": "deny", "properties": {"priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "*", "sourceAddressPrefix": "VirtualNetwork",
                "destinationAddressPrefixes": ["10.224.0.7"], "destinationPortRange": "*"}}
        ]}})]),
        _ => Reply::json("404 Not Found", r#"{"error":{"code":"ResourceNotFound","message":"not there"}}"#),
    }
}

struct Azure {
    imds: Server,
    arm: Server,
    options: Options,
    _folder: tempfile::TempDir,
}

impl Azure {
    fn start(arm: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let (imds, arm) = (Server::start(imds_reply), Server::start(arm));
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("azure.json");
        std::fs::write(
            &configuration,
            r#"{"vnetName":"v","vnetResourceGroup":"net","subnetName":"aks","aadClientSecret":"hunter2"}"#,
        )
        .unwrap();
        let url = |server: &Server| Some(server.url("http").parse().unwrap());
        let options =
            Options { ask: true, configuration: Some(configuration), imds: url(&imds), arm: url(&arm) };
        Self { imds, arm, options, _folder: folder }
    }

    fn read(&self) -> Answers {
        let mut answers = read(&self.options);
        for missing in &mut answers.missing {
            missing.why = missing
                .why
                .replace(&self.arm.url("http"), "http://ARM")
                .replace(&self.imds.url("http"), "http://IMDS");
        }
        answers
    }
}

/// Where ARM answers this path otherwise: what is missing.
fn missing(reply: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> (Answers, Vec<String>) {
    let azure = Azure::start(move |seen| reply(seen).unwrap_or_else(|| arm_reply(seen)));
    let answers = azure.read();
    let missing = answers.missing.iter().map(ToString::to_string).collect();
    (answers, missing)
}

fn forbidden() -> Reply {
    Reply::json(
        "403 Forbidden",
        r#"{"error":{"code":"AuthorizationFailed","message":"The client 'c' does not have authorization to perform the action"}}"#,
    )
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn everything_joined() {
    let azure = Azure::start(arm_reply);
    let answers = azure.read();
    assert_eq!(answers.missing, []);
    assert_eq!(answers.origin.as_deref(), Some("the node's managed identity"));
    let all: String = answers.parts.values().cloned().collect();
    assert!(!all.contains("hunter2") && !all.contains("the-token"), "{all}");
    assert!(azure.arm.seen().iter().all(|seen| seen.method == "GET"), "nothing is changed");

    let (found, wrong) = decode::private_link(&answers.parts);
    assert_eq!(wrong, []);
    let service = &found.services.as_ref().unwrap()[0];
    // Dynamic addresses are on the interface alone.
    assert_eq!(service.ip_configurations[0].address, None);
    assert_eq!(service.nat_ips.as_deref(), Some(&[address("10.225.1.4"), address("10.225.1.5")][..]));
    assert_eq!(service.frontends[0].address, Some(address("10.224.0.7")));
    assert_eq!(service.ip_configurations[0].prefixes, ["10.225.1.0/24".parse().unwrap()]);
    assert!(service.proxy_protocol && service.owners().eq(["default/pls-app"]));
    let (_, connection) = found.connection(553_665_985).unwrap();
    assert_eq!(
        (connection.state.clone(), connection.description.as_str()),
        (ConnectionState::Pending, "please")
    );
    let balancer = &found.load_balancers.as_ref().unwrap()[0];
    let rule = balancer.rules_at(address("10.224.0.7")).next().unwrap();
    assert!(rule.floating_ip && rule.pools.len() == 1);
    let probe = balancer.probe(rule).unwrap();
    assert_eq!((probe.port, probe.threshold, probe.interval_seconds), (32673, 2, 5));
    assert_eq!(
        (balancer.pools[0].by_interface, balancer.pools[0].by_address.as_slice()),
        (2, &[address("10.224.0.5")][..])
    );
    let rule = &found.security_groups.as_ref().unwrap()[0].rules[0];
    assert!(rule.is_inbound && !rule.allows && rule.destinations == ["10.224.0.7"]);
    assert_eq!(found.place.network_prefixes, ["10.224.0.0/12".parse().unwrap()]);
    assert_eq!(found.place.subnets[0].allows_private_link, Some(true));
}

#[test]
fn nothing_is_asked_unless_it_is_wanted() {
    let azure = Azure::start(arm_reply);
    let answers = read(&Options { ask: false, ..azure.options.clone() });
    assert_eq!((azure.arm.seen().len(), azure.imds.seen().len()), (0, 0));
    assert_eq!(answers.parts.keys().collect::<Vec<_>>(), ["azure-json"]);
    assert_eq!((answers.missing, answers.origin), (Vec::new(), None));
    // Nor is a file missed that only AKS has.
    let elsewhere = Options { configuration: Some("/nowhere/azure.json".into()), ..Options::default() };
    assert_eq!(read(&elsewhere), Answers::default());
}

#[test]
fn a_list_in_pages() {
    let (answers, missing) = missing(|seen| {
        let is_list = seen.path.split('?').next()
            == Some("/subscriptions/s/providers/Microsoft.Network/privateLinkServices");
        is_list.then(|| match seen.query("$skiptoken") {
            None => {
                let host = seen.header("host").unwrap();
                let link = format!("http://{host}{}&$skiptoken=x", seen.path);
                Reply::ok(&json!({"value": [], "nextLink": link}).to_string())
            }
            Some(_) => Reply::ok(&json!({"value": [service()]}).to_string()),
        })
    });
    assert_eq!(missing, Vec::<String>::new());
    assert_eq!(decode::private_link(&answers.parts).0.services.unwrap().len(), 1);
}

#[test]
fn a_token_goes_nowhere_else() {
    let thief = Server::start(|_| Reply::ok(r#"{"value":[]}"#));
    let link = format!("{}/next", thief.url("http"));
    let host = thief.url("http");
    let (_, missing) = missing(move |seen| {
        let is_list = seen.path.contains("/loadBalancers");
        is_list.then(|| Reply::ok(&json!({"value": [], "nextLink": link}).to_string()))
    });
    assert_eq!(
        missing,
        [format!(
            "`azure/load-balancers`: `{GROUP}/loadBalancers`: its next page is at `{host}`, expected it at `http://ARM`; a token is not sent there; \
             floating IP, probes and backend pools are taken as the Service's annotations say"
        )]
    );
    assert_eq!(thief.seen().len(), 0);
}

#[test]
fn rights_on_the_node_resource_group_alone() {
    let (answers, missing) = missing(|seen| {
        let is_wide =
            seen.path.starts_with("/subscriptions/s/providers/") || seen.path.contains("/virtualNetworks/v?");
        is_wide.then(forbidden)
    });
    // The group has the service, and its subnet may be read by itself.
    assert_eq!(missing, Vec::<String>::new());
    let (found, _) = decode::private_link(&answers.parts);
    assert_eq!(found.services.unwrap()[0].ip_configurations[0].prefixes, ["10.225.1.0/24".parse().unwrap()]);
}

#[test]
fn no_rights_at_all() {
    let (_, missing) = missing(|_| Some(forbidden()));
    let names: BTreeSet<_> = missing.iter().map(|text| text.split('`').nth(1).unwrap().to_owned()).collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        [
            "azure/load-balancers",
            "azure/network-security-groups",
            "azure/private-link-services",
            "azure/virtual-networks"
        ]
    );
    assert_eq!(
        missing[0],
        format!(
            "`azure/private-link-services`: GET http://ARM{GROUP}/privateLinkServices: status 403 Forbidden: AuthorizationFailed: \
             The client 'c' does not have authorization to perform the action; \
             give the node's managed identity the right `Microsoft.Network/privateLinkServices/read`, as the role Reader has it (docs/permissions.md); \
             NAT IPs are known from annotations, flags and what is seen alone; which consumers there are, and whether they are approved, is not known"
        )
    );
}

#[test]
fn an_interface_that_may_not_be_read() {
    let (answers, missing) = missing(|seen| seen.path.contains("/networkInterfaces/").then(forbidden));
    let [missing] = &missing[..] else { panic!("{missing:?}") };
    assert!(missing.starts_with("`azure/network-interfaces/pls.nic.1`: GET http://ARM"), "{missing}");
    assert!(
        missing.ends_with(
            "dynamic NAT IPs of it are not known: a Private Link service's own description may lack them"
        ),
        "{missing}"
    );
    assert_eq!(decode::private_link(&answers.parts).0.services.unwrap()[0].nat_ips, None);
}

#[test]
fn connections_that_are_listed_apart() {
    let (answers, missing) = missing(|seen| {
        let path = seen.path.split('?').next().unwrap();
        let list = |items: Value| Reply::ok(&json!({"value": [items]}).to_string());
        if path.ends_with("/privateLinkServices") {
            let mut service = service();
            service["properties"].as_object_mut().unwrap().remove("privateEndpointConnections");
            return Some(list(service));
        }
        path.ends_with("/privateEndpointConnections").then(|| {
            list(json!({"id": format!("{path}/pe.2").to_uppercase(), "name": "pe.2", "properties": {"linkIdentifier": "7", "privateLinkServiceConnectionState": {"status": "Removed"}}}))
        })
    });
    assert_eq!(missing, Vec::<String>::new());
    let (found, _) = decode::private_link(&answers.parts);
    let (_, connection) = found.connection(7).unwrap();
    assert_eq!(connection.state, ConnectionState::Other("Removed".to_owned()));
}

#[test]
fn a_token_that_ended_is_replaced_once() {
    let count = AtomicU32::new(0);
    let imds = Server::start(move |seen| {
        let is_first = seen.path.contains("/identity/") && count.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { Reply::ok(r#"{"access_token":"old","expires_in":"3599"}"#) } else { imds_reply(seen) }
    });
    let mut azure = Azure::start(arm_reply);
    azure.options.imds = Some(imds.url("http").parse().unwrap());
    assert_eq!(azure.read().missing, []);
    let tokens = imds.seen().iter().filter(|seen| seen.path.contains("/identity/")).count();
    assert_eq!(tokens, 2);

    let mut refusing = Azure::start(|seen| arm_reply(&Seen { headers: Vec::new(), ..seen.clone() }));
    refusing.options.imds = Some(imds.url("http").parse().unwrap());
    let missing = refusing.read().missing;
    assert!(
        missing[0].why.contains("status 401 Unauthorized: ExpiredAuthenticationToken: The access token expiry is over.; the token of the node's managed identity is not accepted: is it of this tenant?"),
        "{}",
        missing[0]
    );
}

#[test]
fn azure_is_not_well() {
    let (_, throttled) = missing(|seen| {
        seen.path.contains("/loadBalancers").then(|| {
            Reply::with(
                "429 Too Many Requests",
                "Retry-After: 300\r\n",
                r#"{"error":{"code":"TooManyRequests","message":"slow down"}}"#,
            )
        })
    });
    assert_eq!(
        throttled,
        [format!(
            "`azure/load-balancers`: GET http://ARM{GROUP}/loadBalancers: status 429 Too Many Requests: TooManyRequests: slow down; \
             it asks to wait 300s, more than is waited here; try again then; Azure limits how often it is asked: try again later; \
             floating IP, probes and backend pools are taken as the Service's annotations say"
        )]
    );
    let (_, wrong) = missing(|seen| seen.path.contains("/loadBalancers").then(|| Reply::ok("[]")));
    assert!(wrong[0].contains("found an object without `value`, expected a list"), "{wrong:?}");
    let (_, cut) = missing(|seen| {
        seen.path
            .contains("/loadBalancers")
            .then(|| Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()))
    });
    assert!(cut[0].contains("the answer ends after 1 bytes, expected 99"), "{cut:?}");
}

#[test]
fn no_metadata_service() {
    let mut azure = Azure::start(arm_reply);
    azure.options.imds = Some(format!("http://{}", nobody()).parse().unwrap());
    let answers = azure.read();
    let names: Vec<_> = answers.missing.iter().map(|own| own.what.as_str()).collect();
    assert_eq!(names, ["azure/instance", "azure"]);
    assert!(
        answers.missing[0].why.contains("the instance metadata service answers on Azure's machines alone"),
        "{}",
        answers.missing[0]
    );
    assert_eq!(
        answers.missing[1].why,
        "neither `azure.json` nor the instance metadata service says which subscription and resource group the nodes are in; \
         NAT IPs, consumers' connections and the load balancer's rules and probes are not known from Azure"
    );
    // The file says where the cluster is, but nobody gives a token.
    std::fs::write(
        azure.options.configuration.as_ref().unwrap(),
        r#"{"subscriptionId":"s","resourceGroup":"MC_rg"}"#,
    )
    .unwrap();
    let answers = azure.read();
    assert_eq!(answers.missing.len(), 2);
    assert!(
        answers.missing[1].why.starts_with("no token for the node's managed identity: GET http://127.0.0.1:"),
        "{}",
        answers.missing[1]
    );
    assert_eq!(azure.arm.seen().len(), 0);
}

#[test]
fn what_cannot_be_read_costs_its_part() {
    let mut parts = BTreeMap::from([
        ("private-link-services".to_owned(), json!([service()]).to_string()),
        (
            "load-balancers".to_owned(),
            r#"[{"name":"lb","properties":{"probes":[{"properties":{"port":"x"}}]}}]"#.to_owned(),
        ),
    ]);
    let (found, wrong) = decode::private_link(&parts);
    assert!(found.services.is_some() && found.load_balancers.is_none());
    let [(name, why)] = &wrong[..] else { panic!("{wrong:?}") };
    assert_eq!(name, "load-balancers");
    assert!(
        why.starts_with("failed to read resource `lb`: invalid type: string \"x\", expected u16"),
        "{why}"
    );
    let text = parts["private-link-services"].replace("553665985", "0x21");
    parts.insert("private-link-services".to_owned(), text);
    let (_, wrong) = decode::private_link(&parts);
    assert_eq!(
        wrong[0].1,
        "failed to read resource `pls`: found link identifier `0x21`, expected a number of 32 bits"
    );
}
