//! The API as a server of our own speaks it, and what an operator reads of it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use probe_model::world::kubernetes::{PolicyKind, PortRef, TrafficPolicy};
use serde_json::json;

use super::*;
use crate::sources::http::testing::{Authority, PATIENT, Reply, Seen, Server, nobody};

/// A server that only the pod's service account may ask, and its client.
fn serve(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, Access, tempfile::TempDir) {
    let authority = Authority::new();
    let server = Server::start_tls(authority.server("127.0.0.1", false), move |seen| {
        if seen.header("authorization") != Some("Bearer the-token") {
            return Reply::json(
                "401 Unauthorized",
                r#"{"kind":"Status","message":"Unauthorized","code":401}"#,
            );
        }
        reply(seen)
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
    std::fs::write(folder.path().join("token"), "the-token\n").unwrap();
    let access = access(&server, folder.path());
    (server, access, folder)
}

fn access(server: &Server, folder: &Path) -> Access {
    Access::in_pod(folder, "127.0.0.1", &server.address.port().to_string(), PATIENT).unwrap()
}

fn empty() -> Reply {
    Reply::ok(r#"{"items":[],"metadata":{}}"#)
}

/// Answers of a server where `path` is answered by `reply` and every other list is empty.
fn answers(
    path: &'static str,
    reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Answers, Vec<Seen>) {
    let (server, access, _folder) =
        serve(move |seen| if seen.path.split('?').next() == Some(path) { reply(seen) } else { empty() });
    let answers = read(&access);
    let plain = |text: &str| text.replace(&server.url("https"), "https://API");
    let missing = answers.missing.iter();
    let missing = missing.map(|own| Missing { what: own.what.clone(), why: plain(&own.why) }).collect();
    (Answers { missing, ..answers }, server.seen())
}

/// What is missing when `GET path` is answered so: the reason.
#[track_caller]
fn missing(
    path: &'static str,
    what: &str,
    reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    expected: &str,
) {
    let (answers, _) = answers(path, reply);
    let [missing] = answers.missing.as_slice() else { panic!("{:?}", answers.missing) };
    assert_eq!((missing.what.as_str(), missing.why.as_str()), (what, expected));
}

const SERVICES: &str = "/api/v1/services";
const SERVICES_COST: &str =
    "what a Service asks of Azure, its traffic policy and its target ports are not known";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

#[test]
fn a_list_in_pages() {
    let (answers, seen) = answers(SERVICES, |seen| match seen.query("continue") {
        None => Reply::ok(
            r#"{"items":[{"metadata":{"name":"a","namespace":"n"}}],"metadata":{"continue":"x/+="}}"#,
        ),
        Some("x%2F%2B%3D") => {
            Reply::ok(r#"{"items":[{"metadata":{"name":"b","namespace":"n"}}],"metadata":{"continue":"y"}}"#)
        }
        Some("y") => Reply::ok(r#"{"items":null,"metadata":{"continue":""}}"#),
        other => panic!("{other:?}"),
    });
    assert_eq!(answers.missing, []);
    let names: Vec<_> =
        decode::services(&answers.lists["services"]).unwrap().into_iter().map(|own| own.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(
        seen.iter()
            .filter(|seen| seen.path.starts_with(SERVICES))
            .all(|seen| seen.query("limit") == Some("500"))
    );
    assert!(seen.iter().all(|seen| seen.method == "GET"), "nothing is written");
    let events = seen.iter().find(|seen| seen.path.starts_with("/api/v1/events")).unwrap();
    assert_eq!(events.query("fieldSelector"), Some("involvedObject.kind%3DService"));
    assert_eq!(answers.lists.len(), RESOURCES.len());
}

#[test]
fn pages_that_expire_begin_anew() {
    let beginnings = Arc::new(AtomicU32::new(0));
    let gone = || {
        Reply::json(
            "410 Gone",
            r#"{"message":"The provided continue parameter is too old","reason":"Expired"}"#,
        )
    };
    let count = beginnings.clone();
    let (answers, _) = answers(SERVICES, move |seen| match seen.query("continue") {
        None => {
            let name = count.fetch_add(1, Ordering::SeqCst);
            Reply::ok(&format!(
                r#"{{"items":[{{"metadata":{{"name":"{name}"}}}}],"metadata":{{"continue":"x{name}"}}}}"#
            ))
        }
        Some("x0") => gone(),
        Some(_) => empty(),
    });
    let services = decode::services(&answers.lists["services"]).unwrap();
    assert_eq!(
        services.iter().map(|own| own.name.as_str()).collect::<Vec<_>>(),
        ["1"],
        "no page of the first beginning"
    );

    missing(
        SERVICES,
        "kubernetes/services",
        move |seen| match seen.query("continue") {
            None => Reply::ok(r#"{"items":[],"metadata":{"continue":"x"}}"#),
            Some(_) => gone(),
        },
        &format!(
            "GET https://API/api/v1/services: status 410 Gone: The provided continue parameter is too old; the list changes faster than it is read: try again; {SERVICES_COST}"
        ),
    );
}

#[test]
fn half_a_list_is_none() {
    missing(
        SERVICES,
        "kubernetes/services",
        |seen| match seen.query("continue") {
            None => Reply::ok(r#"{"items":[{"metadata":{"name":"a"}}],"metadata":{"continue":"x"}}"#),
            Some(_) => Reply::json("403 Forbidden", r#"{"message":"no"}"#),
        },
        &format!(
            "GET https://API/api/v1/services: status 403 Forbidden: no; allow whoever asks to list services (docs/permissions.md); {SERVICES_COST}"
        ),
    );
    missing(
        SERVICES,
        "kubernetes/services",
        |_| Reply::ok(r#"{"items":[],"metadata":{"continue":"x"}}"#),
        &format!("`/api/v1/services`: found the same page twice, expected a list; {SERVICES_COST}"),
    );
}

#[test]
fn what_may_not_be_read() {
    missing(
        POLICIES,
        "kubernetes/networkpolicies",
        |_| {
            Reply::json(
                "403 Forbidden",
                r#"{"kind":"Status","message":"networkpolicies.networking.k8s.io is forbidden: User \"system:serviceaccount:kube-system:plsprobe\" cannot list resource","code":403}"#,
            )
        },
        "GET https://API/apis/networking.k8s.io/v1/networkpolicies: status 403 Forbidden: networkpolicies.networking.k8s.io is forbidden: \
         User \"system:serviceaccount:kube-system:plsprobe\" cannot list resource; \
         allow whoever asks to list networkpolicies.networking.k8s.io (docs/permissions.md); \
         NetworkPolicies are known as far as the agent shows their rules; why one does not match may not be told",
    );
}

#[test]
fn a_server_that_is_not_well() {
    missing(
        SERVICES,
        "kubernetes/services",
        |_| {
            Reply::with("429 Too Many Requests", "Retry-After: 300\r\n", r#"{"message":"too many requests"}"#)
        },
        &format!(
            "GET https://API/api/v1/services: status 429 Too Many Requests: too many requests; it asks to wait 300s, more than is waited here; \
             try again then; the API server is busy or not well: try again; {SERVICES_COST}"
        ),
    );
    missing(
        SERVICES,
        "kubernetes/services",
        |_| Reply::ok("{\"items\": ["),
        &format!(
            "`/api/v1/services`: the answer is no JSON: EOF while parsing a list at line 1 column 11; {SERVICES_COST}"
        ),
    );
    missing(
        SERVICES,
        "kubernetes/services",
        |_| Reply::ok(r#"{"kind":"Status"}"#),
        &format!(
            "`/api/v1/services`: found an object without items at line 1 column 17, expected a list; {SERVICES_COST}"
        ),
    );
    let tries = AtomicU32::new(0);
    let (answers, _) = answers(SERVICES, move |_| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::json("500 Internal Server Error", "etcdserver: leader changed"),
        1 => Reply::json("503 Service Unavailable", ""),
        _ => empty(),
    });
    assert_eq!(answers.missing, []);
}

#[test]
fn types_that_are_not_installed() {
    let (server, access, _folder) = serve(|seen| {
        if seen.path.starts_with("/apis/cilium.io/") || seen.path.contains("cilium-config") {
            return Reply::json("404 Not Found", "404 page not found");
        }
        empty()
    });
    let answers = read(&access);
    // Nobody can have made an object of a type that is not there; the options may be elsewhere.
    assert_eq!(
        decode::policies(PolicyKind::CiliumNetworkPolicy, &answers.lists["ciliumnetworkpolicies"]).unwrap(),
        []
    );
    let [missing] = answers.missing.as_slice() else { panic!("{:?}", answers.missing) };
    assert_eq!(missing.what, "kubernetes/cilium-config");
    assert_eq!(
        missing.why.replace(&server.url("https"), "https://API"),
        "GET https://API/api/v1/namespaces/kube-system/configmaps/cilium-config: status 404 Not Found: 404 page not found; \
         Cilium's options are known from the agent and the maps alone"
    );
    let asked = |path: &str| server.seen().iter().any(|seen| seen.path.starts_with(path));
    assert!(
        asked("/apis/cilium.io/v2/ciliumcidrgroups") && asked("/apis/cilium.io/v2alpha1/ciliumcidrgroups")
    );
}

#[test]
fn a_token_that_is_not_accepted() {
    let (server, _, folder) = serve(|_| empty());
    std::fs::write(folder.path().join("token"), "expired").unwrap();
    let answers = read(&access(&server, folder.path()));
    assert_eq!((answers.lists.len(), answers.missing.len()), (0, RESOURCES.len()));
    for missing in &answers.missing {
        let is_told = missing.why.contains(": status 401 Unauthorized: Unauthorized; the token or the certificate is not accepted: is it expired, or another cluster's?");
        assert!(is_told && !missing.why.contains("Bearer"), "{missing}");
    }
}

#[test]
fn nobody_answers() {
    let (server, _, folder) = serve(|_| empty());
    let port = nobody().port().to_string();
    let access = Access::in_pod(folder.path(), "127.0.0.1", &port, PATIENT).unwrap();
    let answers = read(&access);
    let [missing] = answers.missing.as_slice() else { panic!("{:?}", answers.missing) };
    assert_eq!(
        missing.why,
        format!(
            "https://127.0.0.1:{port}: failed to connect to 127.0.0.1: Connection refused (os error 111) (the pod's service account); \
             Services, pods, policies and nodes are known as far as the agent and the maps show them"
        )
    );
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn another_authority() {
    let (server, _, folder) = serve(|_| empty());
    std::fs::write(folder.path().join("ca.crt"), Authority::new().pem()).unwrap();
    let answers = read(&access(&server, folder.path()));
    assert!(
        answers
            .missing
            .iter()
            .all(|own| own.why.contains("no authority that is trusted here has signed its certificate")),
        "{answers:?}"
    );
    assert_eq!(server.seen().len(), 0, "the token was not sent");
}

/// A whole object as the API server gives it, of which secrets are not kept.
#[test]
fn what_is_kept_of_a_service() {
    let (answers, _) = answers(SERVICES, |_| {
        let service = json!({
            "metadata": {
                "name": "pls-app", "namespace": "default", "uid": "1f2e",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "a secret",
                    "service.beta.kubernetes.io/azure-pls-create": "true",
                    "service.beta.kubernetes.io/azure-pls-ip-configuration-ip-address": "10.224.0.8 10.224.0.9"
                },
                "managedFields": [{"manager": "a secret"}]
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.0.167.20", "clusterIPs": ["10.0.167.20"], "externalTrafficPolicy": "Cluster",
                "internalTrafficPolicy": "Cluster", "selector": {"app": "pls-app"}, "sessionAffinity": "ClientIP",
                "loadBalancerSourceRanges": ["10.224.0.0/24"], "allocateLoadBalancerNodePorts": true, "ipFamilies": ["IPv4"],
                "ports": [
                    {"name": "web", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": 32673, "appProtocol": "http"},
                    {"port": 443}
                ]
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "10.224.0.7", "ipMode": "VIP"}]}}
        });
        Reply::ok(&json!({"items": [service]}).to_string())
    });
    assert!(!answers.lists["services"].contains("secret"), "{}", answers.lists["services"]);
    let [service] = &decode::services(&answers.lists["services"]).unwrap()[..] else { panic!("one") };
    assert!(service.wants_private_link() && service.client_ip_affinity && service.allocates_node_ports);
    assert_eq!(service.external_traffic_policy, Some(TrafficPolicy::Cluster));
    assert_eq!(service.ports[0].target_port, PortRef::Name("http".to_owned()));
    assert_eq!(service.ports[1].target_port, PortRef::Number(443));
    assert_eq!(service.ingress, ["10.224.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(service.source_ranges, ["10.224.0.0/24".parse().unwrap()]);
}
