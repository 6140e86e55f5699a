//! What is wrong with the Service itself, by the Kubernetes API and Cilium's service map.

use std::net::IpAddr;

use super::Lint;
use super::scope::{Entry, SOMEBODY, Scope};
use crate::cilium::lb::{Frontend, LbKey, LbService};
use crate::explain::{Code, Finding, Remedy, Severity, Source, Subject, SubjectKind, patch};
use crate::simulate::{Outcome, Unknown, simulate};
use crate::world::kubernetes::{Service, TrafficPolicy};

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    no_backend(scope, lint);
    unknown_frontend(scope, lint);
    affinity(scope, lint);
    let Some(service) = scope.service else { return };
    public_floating_ip(scope, service, lint);
    never_created(scope, service, lint);
    host_network(scope, lint);
    gateway(scope, service, lint);
}

/// No pod takes the traffic: none at all, or none on this node where only those count.
fn no_backend(scope: &Scope<'_>, lint: &mut Lint) {
    // A packet that was judged may have said it.
    if lint.findings.iter().any(|found| matches!(found.code, Code::NoEndpoint | Code::NoLocalPod)) {
        return;
    }
    for entry in &scope.entries {
        let Some(frontend) = frontend(scope, entry.socket.ip(), entry.socket.port()) else { continue };
        if frontend.service.count != 0 {
            continue;
        }
        let shown = format!("{} has 0 backends in Cilium's service map", entry.socket);
        let elsewhere = backends_elsewhere(scope, &frontend);
        let name = &scope.name;
        lint.findings.push(match elsewhere {
            Some(count) => no_local_pod(scope, count).because(Source::Maps, shown),
            None => Finding::new(
                Code::NoEndpoint,
                scope.subject(),
                format!("{name} has no ready pod, so nobody takes its traffic"),
            )
            .because(Source::Maps, shown)
            .remedy(Remedy::Text(
                "make the pods ready, and see that the service's selector and targetPort fit them".to_owned(),
            )),
        });
        return;
    }
    no_ready_endpoint(scope, lint);
}

/// The same by the API alone, where Cilium's map does not say.
fn no_ready_endpoint(scope: &Scope<'_>, lint: &mut Lint) {
    let (Some(service), Some(slices)) = (scope.service, &scope.world.kubernetes.endpoint_slices) else {
        return;
    };
    let own =
        slices.iter().filter(|slice| slice.namespace == service.namespace && slice.service == service.name);
    let ready: Vec<_> = own.flat_map(|slice| &slice.endpoints).filter(|backend| backend.is_ready).collect();
    if ready.is_empty() {
        let sentence = format!("{} has no ready pod, so nobody takes its traffic", scope.name);
        let finding = Finding::new(Code::NoEndpoint, scope.subject(), sentence);
        let selector =
            service.selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        let shown =
            format!("no EndpointSlice of {service} has a ready endpoint (selector {})", selector.join(","));
        lint.findings.push(finding.because(Source::Kubernetes, shown).remedy(Remedy::Command(format!(
            "kubectl -n {} get pods -l {} -o wide",
            service.namespace,
            selector.join(",")
        ))));
        return;
    }
    let here = |address: &IpAddr| scope.world.endpoints.values().any(|own| own.addresses.contains(address));
    let local = ready.iter().any(|backend| backend.addresses.iter().any(here));
    if service.external_traffic_policy == Some(TrafficPolicy::Local) && !local {
        let shown = format!("{} ready endpoints of {service}, none of them on this node", ready.len());
        lint.findings.push(no_local_pod(scope, ready.len()).because(Source::Kubernetes, shown));
    }
}

fn no_local_pod(scope: &Scope<'_>, elsewhere: usize) -> Finding {
    let name = &scope.name;
    Finding::new(
        Code::NoLocalPod,
        scope.subject(),
        format!(
            "{name} has externalTrafficPolicy Local and no ready pod on this node ({elsewhere} elsewhere): the load balancer should leave this node out, about 10 s after the last pod went"
        ),
    )
    .remedy(Remedy::Text(
        "spread the pods over the nodes (topologySpreadConstraints), or accept that only some nodes take traffic"
            .to_owned(),
    ))
}

fn frontend(scope: &Scope<'_>, ip: IpAddr, port: u16) -> Option<Frontend> {
    let mut all = scope.world.frontends();
    all.find(|own| (own.key.address, own.key.dport, own.key.scope) == (ip, port, LbKey::SCOPE_EXTERNAL))
}

/// Backends on other nodes, where outside traffic is for those of this node alone.
fn backends_elsewhere(scope: &Scope<'_>, frontend: &Frontend) -> Option<usize> {
    if !frontend.service.has(LbService::EXT_LOCAL_SCOPE) {
        return None;
    }
    let internal = LbKey { scope: LbKey::SCOPE_INTERNAL, ..frontend.key };
    let count = scope.world.frontends().find(|own| own.key == internal)?.service.count;
    (count != 0).then_some(usize::from(count))
}

/// The load balancer sends here, and neither Cilium nor netfilter knows the address.
fn unknown_frontend(scope: &Scope<'_>, lint: &mut Lint) {
    let world = scope.world;
    if world.lb.is_none() || world.netfilter.is_none() {
        return;
    }
    let is_lost = |entry: &&Entry| {
        let ways = simulate(world, &entry.question(SOMEBODY));
        ways.iter().all(|way| matches!(way.outcome, Outcome::Unknown(Unknown::Frontend { .. })))
    };
    let Some(entry) = scope.entries.iter().filter(|entry| entry.socket.is_ipv4()).find(is_lost) else {
        return;
    };
    let (socket, name) = (entry.socket, &scope.name);
    let sentence = format!(
        "this node has no rule for {socket}, where the load balancer sends the traffic of {name}: the packets are routed back out"
    );
    lint.findings.push(
        Finding::new(Code::UnknownFrontend, scope.subject(), sentence)
            .because(Source::Maps, format!("no frontend {socket} in cilium_lb4_services_v2"))
            .because(Source::Netfilter, format!("no rule translates {socket}"))
            .remedy(Remedy::Text(
                "see that the agent (or kube-proxy) on this node runs and is in sync; where a CiliumLoadBalancerIPPool exists, remove it or set defaultLBServiceIPAM=none"
                    .to_owned(),
            )),
    );
}

/// All consumers share few NAT IPs, and each NAT IP sticks to one pod.
fn affinity(scope: &Scope<'_>, lint: &mut Lint) {
    let by_api = scope.service.is_some_and(|service| service.client_ip_affinity);
    let by_map = scope
        .entries
        .iter()
        .filter_map(|entry| frontend(scope, entry.socket.ip(), entry.socket.port()))
        .find(|own| own.service.has(LbService::AFFINITY));
    if !by_api && by_map.is_none() {
        return;
    }
    let sentence = format!(
        "{} has sessionAffinity ClientIP, and all consumers of a Private Link share its few NAT IPs: each NAT IP sticks to one pod",
        scope.name
    );
    let mut finding = Finding::new(Code::ClientIpAffinity, scope.subject(), sentence);
    if by_api {
        finding = finding.because(Source::Kubernetes, "spec.sessionAffinity is ClientIP");
    }
    if let Some(frontend) = by_map {
        let seconds = frontend.service.affinity_timeout();
        finding = finding.because(Source::Maps, format!("the service map says affinity for {seconds} s"));
    }
    lint.findings.push(
        finding.remedy(Remedy::Command(patch(scope.service, r#"{"spec":{"sessionAffinity":"None"}}"#))),
    );
}

/// Private Link before a public load balancer with floating IP sends to an address and port where nobody listens.
fn public_floating_ip(scope: &Scope<'_>, service: &Service, lint: &mut Lint) {
    let world = scope.world;
    let floats_publicly = world.private_link.load_balancers.iter().flatten().any(|lb| {
        let public = lb.frontends.iter().filter(|own| own.is_public);
        public.into_iter().any(|own| {
            let is_of_link =
                scope.private_link.is_some_and(|link| link.frontends.iter().any(|at| at.id.is(&own.id)));
            is_of_link && lb.rules.iter().any(|rule| rule.frontend.is(&own.id) && rule.floating_ip)
        })
    });
    let is_internal = service.azure_is_true("azure-load-balancer-internal");
    let keeps_frontend = scope.keeps_frontend() == Some(true);
    let asked_for = service.wants_private_link() && !is_internal && keeps_frontend;
    if !floats_publicly && !asked_for {
        return;
    }
    let sentence = format!(
        "{service} asks for a Private Link before a public load balancer with floating IP: its packets come for the node's own address on the service's port, where nobody listens"
    );
    let mut finding = Finding::new(Code::PublicFloatingIp, scope.subject(), sentence);
    if asked_for {
        finding = finding.because(
            Source::Kubernetes,
            "azure-pls-create is true; neither azure-load-balancer-internal nor azure-disable-load-balancer-floating-ip is",
        );
    }
    if floats_publicly {
        finding = finding.because(Source::Azure, "the frontend is public and its rule has enableFloatingIP");
    }
    lint.findings.push(
        finding
            .remedy(Remedy::Command(annotate(service, "azure-load-balancer-internal", "true")))
            .remedy(Remedy::Command(annotate(service, "azure-disable-load-balancer-floating-ip", "true"))),
    );
}

pub(super) fn annotate(service: &Service, annotation: &str, value: &str) -> String {
    format!(
        "kubectl -n {} annotate service {} --overwrite service.beta.kubernetes.io/{annotation}={value}",
        service.namespace, service.name
    )
}

/// The service asks for a Private Link service, and Azure has none; or it asks in a way that nobody hears.
fn never_created(scope: &Scope<'_>, service: &Service, lint: &mut Lint) {
    let failed = scope.world.kubernetes.events.iter().flatten().find(|event| {
        event.namespace == service.namespace
            && event.service == service.name
            && event.reason == "SyncLoadBalancerFailed"
    });
    let others = service.annotations.keys().any(|key| key.contains("/azure-pls-"));
    if !service.wants_private_link() {
        if others {
            let value = service.azure("azure-pls-create").unwrap_or("absent");
            let sentence = format!(
                "{service} has azure-pls-* annotations, but azure-pls-create is {value}: only \"true\" makes a Private Link service"
            );
            lint.findings.push(
                Finding::new(Code::NeverCreated, scope.subject(), sentence)
                    .because(Source::Kubernetes, format!("azure-pls-create: {value}"))
                    .remedy(Remedy::Command(annotate(service, "azure-pls-create", "true"))),
            );
        }
        return;
    }
    let unseen = scope.world.private_link.services.is_some() && scope.private_link.is_none();
    if !unseen && failed.is_none_or(|_| scope.private_link.is_some()) {
        return;
    }
    let error = failed.map_or_else(|| "it gave no event about it".to_owned(), |event| event.message.clone());
    let sentence = format!("{service} asks for a Private Link service, and Azure has none: {error}");
    let mut finding = Finding::new(Code::NeverCreated, scope.subject(), sentence)
        .because(Source::Kubernetes, "azure-pls-create is true");
    if unseen {
        finding = finding.because(Source::Azure, "no Private Link service has its frontend or owner tag");
    }
    if let Some(event) = failed {
        finding = finding
            .because(Source::Kubernetes, format!("event {}, {} times", event.reason, event.count.max(1)));
    }
    lint.findings.push(finding.remedy(Remedy::Text(creation_remedy(&error).to_owned())));
}

/// What to do about an error of the cloud provider, by a part of its text.
fn creation_remedy(error: &str) -> &'static str {
    const KNOWN: &[(&str, &str)] = &[
        (
            "failed to get private link service subnet",
            "correct azure-pls-ip-configuration-subnet, or let the cluster's identity read that subnet",
        ),
        (
            "no smaller than number of static IPs",
            "set azure-pls-ip-configuration-ip-address-count to at least the number of static addresses",
        ),
        (
            "disablePLSNetworkPolicy",
            "let the cluster's identity read and write the subnet (Network Contributor on it)",
        ),
        (
            "cannot change existing private link service name",
            "put back the old azure-pls-name; a Private Link service cannot be renamed",
        ),
        (
            "already has unmanaged private link service",
            "remove the Private Link service that somebody attached to this frontend by hand",
        ),
        ("IPv6 is not supported", "use an IPv4 service; Private Link services have no IPv6"),
        (
            "autoApproval only takes effect when visibility",
            "set azure-pls-visibility to \"*\", or use a newer cloud-provider-azure",
        ),
        (
            "LinkedAuthorizationFailed",
            "give the cluster's identity Microsoft.Network/virtualNetworks/subnets/join/action on the subnet",
        ),
    ];
    KNOWN.iter().find(|(part, _)| error.contains(part)).map_or(
        "read the whole event: kubectl describe service; the diagnostic category cloud-controller-manager has more",
        |(_, remedy)| remedy,
    )
}

/// Pods on their node's network, which no network policy covers.
fn host_network(scope: &Scope<'_>, lint: &mut Lint) {
    let Some(service) = scope.service else { return };
    let slices = scope.world.kubernetes.endpoint_slices.iter().flatten();
    let own = slices.filter(|slice| slice.namespace == service.namespace && slice.service == service.name);
    let names = own.flat_map(|slice| &slice.endpoints).filter_map(|backend| backend.pod.as_deref());
    let pods = names.filter_map(|name| scope.world.kubernetes.pod(&service.namespace, name));
    for pod in pods.filter(|pod| pod.host_network) {
        let sentence = format!(
            "pod {}/{} is on its node's network (hostNetwork): no NetworkPolicy applies to it",
            pod.namespace, pod.name
        );
        let subject = Subject {
            kind: SubjectKind::Pod,
            namespace: Some(pod.namespace.clone()),
            name: pod.name.clone(),
            written: None,
        };
        lint.findings.push(
            Finding::new(Code::OutsidePolicy, subject, sentence)
                .because(Source::Kubernetes, "spec.hostNetwork is true")
                .remedy(Remedy::Text(
                    "restrict the load balancer (loadBalancerSourceRanges), or with your own Cilium use host policies"
                        .to_owned(),
                )),
        );
    }
}

/// Cilium's own gateways have a dummy endpoint, which the health check counts as none.
fn gateway(scope: &Scope<'_>, service: &Service, lint: &mut Lint) {
    let is_of_cilium =
        service.name.starts_with("cilium-gateway-") || service.name.starts_with("cilium-ingress");
    let is_local = service.external_traffic_policy == Some(TrafficPolicy::Local);
    if !is_of_cilium || !is_local {
        return;
    }
    let owners = if service.owners.is_empty() { "nobody".to_owned() } else { service.owners.join(", ") };
    let sentence = format!(
        "{service} is of Cilium's ingress or gateway and has externalTrafficPolicy Local: its health check counts no endpoint in Cilium versions without pull request 33600, and every node is down"
    );
    let mut finding = Finding::new(Code::GatewayHealthCheck, scope.subject(), sentence)
        .because(Source::Kubernetes, format!("owned by {owners}; externalTrafficPolicy Local"))
        .remedy(Remedy::Command(patch(scope.service, r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#)));
    // Whether this version has it repaired is not known.
    finding.severity = Severity::Warning;
    lint.findings.push(finding);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_cloud_provider() {
        let said = "reconcilePrivateLinkService: checkAndUpdatePLSIPConfigs: failed to get private link service subnet: 404";
        assert!(creation_remedy(said).contains("azure-pls-ip-configuration-subnet"));
        assert!(creation_remedy("LinkedAuthorizationFailed: … join/action").contains("join/action"));
        assert!(creation_remedy("something else").contains("kubectl describe"));
    }
}
