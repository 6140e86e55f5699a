//! What is wrong with Private Link and the load balancer, by Azure's own answers.

use std::net::IpAddr;

use super::Lint;
use super::scope::Scope;
use super::service::annotate;
use crate::explain::{AZURE_PROBE, Code, Finding, Remedy, Source, Subject, SubjectKind, patch};
use crate::world::kubernetes::TrafficPolicy;
use crate::world::nat::NatSource;
use crate::world::private_link::{
    AzureLoadBalancer, BalancingRule, ConnectionState, EndpointConnection, PrivateLinkService, SecurityGroup,
    SecurityRule,
};

/// The node's own health endpoint of kube-proxy and Cilium, which probes ask in shared mode.
const SHARED_HEALTH: u16 = 10256;

pub(super) fn check(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) {
    security_group(scope, sources, lint);
    let Some(link) = scope.private_link else { return };
    connections(link, lint);
    consumers(link, lint);
    pools(scope, lint);
    siblings(scope, link, lint);
    health_check(scope, link, lint);
}

/// Who the consumer is, by the private endpoint's name.
fn consumer(connection: &EndpointConnection) -> String {
    match &connection.endpoint {
        Some(id) => format!("{} ({})", connection.name, id.name()),
        None => connection.name.clone(),
    }
}

/// Only approved connections pass traffic.
fn connections(link: &PrivateLinkService, lint: &mut Lint) {
    for connection in &link.connections {
        let state = &connection.state;
        if matches!(state, ConnectionState::Approved | ConnectionState::Unknown) {
            continue;
        }
        let who = consumer(connection);
        let sentence =
            format!("consumer {who} is {state}: Azure passes on the traffic of approved connections only");
        let shown = match connection.description.as_str() {
            "" => format!("the connection's state is {state}"),
            text => format!("the connection's state is {state}: {text}"),
        };
        let group = link.id.resource_group().unwrap_or("RESOURCE-GROUP");
        let remedy = match state {
            ConnectionState::Disconnected => Remedy::Text(
                "the consumer deletes its private endpoint and makes it anew; a disconnected one does not come back"
                    .to_owned(),
            ),
            _ => Remedy::Command(format!(
                "az network private-link-service connection update -g {group} --service-name {} -n {} --connection-status Approved",
                link.name, connection.name
            )),
        };
        lint.findings.push(
            Finding::new(
                Code::NotApproved,
                Subject::named(SubjectKind::PrivateLinkService, &link.name),
                sentence,
            )
            .because(Source::Azure, shown)
            .remedy(remedy),
        );
    }
}

/// Several approved consumers come from the same NAT IPs.
fn consumers(link: &PrivateLinkService, lint: &mut Lint) {
    let approved: Vec<_> =
        link.connections.iter().filter(|own| own.state == ConnectionState::Approved).collect();
    if approved.len() < 2 {
        return;
    }
    let names = approved.iter().map(|own| consumer(own)).collect::<Vec<_>>().join(", ");
    let sentence = format!(
        "{} approved consumers of {} share its NAT IPs ({names}): no policy by address tells them apart",
        approved.len(),
        link.name
    );
    let header = if link.proxy_protocol { "on" } else { "off" };
    lint.findings.push(
        Finding::new(Code::OtherConsumer, Subject::named(SubjectKind::PrivateLinkService, &link.name), sentence)
            .because(Source::Azure, format!("{} connections are Approved; PROXY protocol is {header}", approved.len()))
            .remedy(Remedy::Text(
                "to tell consumers apart, switch PROXY protocol on and let the application check the link identifier; or reject a consumer's connection"
                    .to_owned(),
            )),
    );
}

/// The ports that the load balancer's probes of the service ask; `None` if Azure was not asked or has none.
pub(super) fn probe_ports(scope: &Scope<'_>) -> Option<Vec<u16>> {
    let (lb, link) = (load_balancer(scope)?, scope.private_link?);
    let rules = rules(lb, link);
    let ports: Vec<_> = rules.filter_map(|rule| lb.probe(rule)).map(|probe| probe.port).collect();
    (!ports.is_empty()).then_some(ports)
}

/// The load balancer of the service, with its rules there.
fn load_balancer<'w>(scope: &Scope<'w>) -> Option<&'w AzureLoadBalancer> {
    let all = scope.world.private_link.load_balancers.iter().flatten();
    let link = scope.private_link?;
    all.into_iter()
        .find(|lb| lb.frontends.iter().any(|own| link.frontends.iter().any(|at| at.id.is(&own.id))))
}

/// The load balancer's rules for a Private Link service's frontends.
fn rules<'w>(
    lb: &'w AzureLoadBalancer,
    link: &'w PrivateLinkService,
) -> impl Iterator<Item = &'w BalancingRule> {
    lb.rules.iter().filter(|rule| link.frontends.iter().any(|at| at.id.is(&rule.frontend)))
}

/// Private Link reaches nodes by their network interface only.
fn pools(scope: &Scope<'_>, lint: &mut Lint) {
    let Some(lb) = load_balancer(scope) else { return };
    let Some(link) = scope.private_link else { return };
    let rules = rules(lb, link);
    let used: Vec<_> = rules.flat_map(|rule| &rule.pools).collect();
    let by_address = lb.pools.iter().filter(|pool| used.iter().any(|id| id.is(&pool.id)));
    for pool in by_address.filter(|pool| !pool.by_address.is_empty()) {
        let sentence = format!(
            "backend pool {} of {} lists nodes by address, and Private Link reaches them by network interface only",
            pool.name, lb.name
        );
        lint.findings.push(
            Finding::new(Code::BackendPoolByIp, Subject::named(SubjectKind::LoadBalancer, &lb.name), sentence)
                .because(Source::Azure, format!("{} nodes by address, {} by interface", pool.by_address.len(), pool.by_interface))
                .remedy(Remedy::Command(
                    "az aks update -g RESOURCE-GROUP -n CLUSTER --load-balancer-backend-pool-type nodeIPConfiguration"
                        .to_owned(),
                )),
        );
    }
}

/// Azure puts the PROXY header before every probe of a load balancer, once one of its Private Link services has it on.
fn siblings(scope: &Scope<'_>, link: &PrivateLinkService, lint: &mut Lint) {
    let Some(lb) = load_balancer(scope) else { return };
    let at_lb = |other: &&PrivateLinkService| {
        other.frontends.iter().any(|at| lb.frontends.iter().any(|own| own.id.is(&at.id)))
    };
    let all = scope.world.private_link.services.iter().flatten();
    let others: Vec<_> = all.filter(at_lb).filter(|other| !other.id.is(&link.id)).collect();
    let with = others.iter().find(|other| other.proxy_protocol != link.proxy_protocol);
    let Some(other) = with else { return };
    let (on, off) = if link.proxy_protocol { (link, *other) } else { (*other, link) };
    let sentence = format!(
        "{} has PROXY protocol on and {} has not, before the same load balancer {}: Azure puts the header before the probes of both, and who does not expect it is marked down",
        on.name, off.name, lb.name
    );
    let mut finding = Finding::new(
        Code::ProxyHeaderInSiblingProbes,
        Subject::named(SubjectKind::LoadBalancer, &lb.name),
        sentence,
    )
    .because(Source::Azure, format!("enableProxyProtocol: {} true, {} false", on.name, off.name));
    let owner = off.owners().next().and_then(|owner| owner.split_once('/'));
    let service = owner.and_then(|(namespace, name)| scope.world.kubernetes.service(namespace, name));
    if let Some(service) = service {
        finding = finding.remedy(Remedy::Command(annotate(service, "azure-pls-proxy-protocol", "true")));
    }
    lint.findings.push(finding.remedy(Remedy::Text(
        "give every Private Link service of one load balancer the same setting, or use separate load balancers".to_owned(),
    )));
}

/// A probe to the node's own health endpoint gets the header, too, which that cannot read.
fn health_check(scope: &Scope<'_>, link: &PrivateLinkService, lint: &mut Lint) {
    if !link.proxy_protocol {
        return;
    }
    let Some(lb) = load_balancer(scope) else { return };
    let own_port = scope.service.and_then(|service| service.health_check_node_port);
    let rules = rules(lb, link);
    let probe = rules
        .filter_map(|rule| lb.probe(rule))
        .find(|probe| Some(probe.port) == own_port || probe.port == SHARED_HEALTH);
    let Some(probe) = probe else { return };
    let sentence = format!(
        "the load balancer's probe asks the node itself on port {}, with a PROXY header before it, since {} has PROXY protocol on: the node answers 400 or not at all, and every node is down",
        probe.port, link.name
    );
    let local = scope.traffic_policy() == Some(TrafficPolicy::Local);
    let remedy = if local {
        Remedy::Command(patch(scope.service, r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#))
    } else {
        Remedy::Text("add the health-probe-proxy sidecar (cloud-provider-azure from 1.28.5 on), or do without shared probes".to_owned())
    };
    lint.findings.push(
        Finding::new(Code::ProxyHeaderInHealthCheck, scope.subject(), sentence)
            .because(Source::Azure, format!("enableProxyProtocol is true; probe {} is {} to port {}", probe.name, probe.protocol, probe.port))
            .remedy(Remedy::Text(
                "use cloud-provider-azure 1.28.0, 1.27.4, 1.26.10, 1.25.14 or 1.24.20 at least, which probes the node port instead".to_owned(),
            ))
            .remedy(remedy),
    );
}

/// A rule of a network security group that drops the probe or Private Link before the node.
fn security_group(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) {
    for group in scope.world.private_link.security_groups.iter().flatten() {
        let mut from: Vec<_> = sources.iter().map(|own| own.prefix.network()).collect();
        from.push(AZURE_PROBE.into());
        for source in from {
            let Some(rule) = denying(group, source, scope) else { continue };
            let what = if source == IpAddr::from(AZURE_PROBE) {
                "the load balancer's probe"
            } else {
                "Private Link's NAT IP"
            };
            let sentence = format!(
                "rule {} of network security group {} drops {what} ({source}) before it reaches the node",
                rule.name, group.name
            );
            lint.findings.push(
                Finding::new(Code::SecurityGroup, Subject::named(SubjectKind::Cluster, &group.name), sentence)
                    .because(Source::Azure, format!("priority {}, deny from {}", rule.priority, rule.sources.join(", ")))
                    .remedy(Remedy::Text(format!(
                        "add a rule before priority {} that allows the NAT subnet and the service tag AzureLoadBalancer to the service's ports",
                        rule.priority
                    ))),
            );
        }
    }
}

/// The first rule that is about packets of `source` to the service, if it denies.
fn denying<'w>(group: &'w SecurityGroup, source: IpAddr, scope: &Scope<'_>) -> Option<&'w SecurityRule> {
    let mut rules: Vec<_> = group.rules.iter().filter(|rule| rule.is_inbound).collect();
    rules.sort_by_key(|rule| rule.priority);
    let is_about = |rule: &&&SecurityRule| {
        names_source(rule, source)
            && scope.entries.iter().any(|entry| names_entry(rule, entry.socket.ip(), entry.socket.port()))
    };
    rules.iter().find(is_about).filter(|rule| !rule.allows).copied()
}

/// Whether a rule is about packets from an address, by prefix or service tag.
fn names_source(rule: &SecurityRule, source: IpAddr) -> bool {
    let is_probe = source == IpAddr::from(AZURE_PROBE);
    rule.sources.iter().any(|own| match own.as_str() {
        "*" | "Any" | "0.0.0.0/0" => true,
        "AzureLoadBalancer" => is_probe,
        // NAT IPs are of the virtual network; the probe's address belongs to it by no tag but its own.
        "VirtualNetwork" => !is_probe,
        prefix => covers(prefix, source),
    })
}

fn names_entry(rule: &SecurityRule, address: IpAddr, port: u16) -> bool {
    let to = rule.destinations.iter().any(|own| match own.as_str() {
        "*" | "Any" | "VirtualNetwork" => true,
        prefix => covers(prefix, address),
    });
    let ports = rule.destination_ports.iter().any(|own| match own.split_once('-') {
        _ if own == "*" => true,
        Some((from, to)) => {
            let range = (from.trim().parse::<u16>(), to.trim().parse::<u16>());
            matches!(range, (Ok(from), Ok(to)) if (from..=to).contains(&port))
        }
        None => own.parse() == Ok(port),
    });
    to && ports && matches!(rule.protocol.to_ascii_lowercase().as_str(), "*" | "tcp" | "udp" | "any")
}

/// Whether a prefix, or an address alone, covers an address.
fn covers(prefix: &str, address: IpAddr) -> bool {
    match prefix.parse::<ipnet::IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => prefix.parse::<IpAddr>() == Ok(address),
    }
}
