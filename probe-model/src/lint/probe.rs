//! The load balancer's health probe: whether it gets through, and whether it asks for something that answers.

use std::net::{IpAddr, SocketAddr};

use super::Lint;
use super::judge::{Judged, judge};
use super::private_link::probe_ports;
use super::scope::{Entry, Scope};
use super::service::annotate;
use crate::explain::{AZURE_PROBE, Code, Finding, Remedy, Source, keep_source};
use crate::tuple::Protocol;
use crate::world::kubernetes::{Service, ServicePort, TrafficPolicy};

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    denied(scope, lint);
    let Some(service) = scope.service else { return };
    if service.external_traffic_policy == Some(TrafficPolicy::Local) {
        // The node itself answers, for what is asked here.
        return;
    }
    path(scope, service, lint);
    ipv6(scope, service, lint);
}

/// The node ports that probes ask, where pods answer: Azure's own word, else what the cloud provider would choose.
fn entries(scope: &Scope<'_>) -> Vec<Entry> {
    let (Some(service), Some(address)) = (scope.service, scope.node_address()) else { return Vec::new() };
    let with_header = service.azure_is_true("azure-pls-proxy-protocol");
    let asks_node = service.external_traffic_policy == Some(TrafficPolicy::Local) && !with_header;
    let known = probe_ports(scope);
    let is_probed = |port: &u16| known.as_ref().map_or(!asks_node, |ports| ports.contains(port));
    let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::TCP);
    let ports = tcp.filter_map(|port| port.node_port).filter(is_probed);
    ports.map(|port| Entry { socket: SocketAddr::new(address, port), protocol: Protocol::TCP }).collect()
}

/// Policy drops the probe, so that the load balancer stops sending.
fn denied(scope: &Scope<'_>, lint: &mut Lint) {
    for entry in entries(scope) {
        match judge(scope.world, entry, AZURE_PROBE.into()) {
            Judged::Dropped(mut finding) => {
                finding.sentence = format!("{} (the probe of {})", finding.sentence, entry.socket);
                lint.findings.push(finding);
            }
            Judged::Unknown(_, why) => {
                lint.unjudged(format!("the load balancer's probe to {}", entry.socket), why);
            }
            Judged::Allowed(_) => {}
        }
    }
    if scope.service.is_none() {
        lint.unjudged(
            "the load balancer's probe".to_owned(),
            "the service's node port is not known: the Kubernetes API was not asked".to_owned(),
        );
    }
}

/// An HTTP probe asks for `/` unless an annotation names another path, and needs 200.
fn path(scope: &Scope<'_>, service: &Service, lint: &mut Lint) {
    let known = scope.world.private_link.load_balancers.is_some();
    for port in service.ports.iter().filter(|port| port.protocol == Protocol::TCP) {
        let own = |what: &str| service.azure(&format!("port_{}_health-probe_{what}", port.port));
        let chosen = own("protocol").or_else(|| service.azure("azure-load-balancer-health-probe-protocol"));
        let asked = chosen.or(port.app_protocol.as_deref()).unwrap_or("tcp").to_ascii_lowercase();
        let named =
            own("request-path").or_else(|| service.azure("azure-load-balancer-health-probe-request-path"));
        if !matches!(asked.as_str(), "http" | "https") || named.is_some_and(|path| path != "/") {
            continue;
        }
        lint.findings.push(root_path(scope, service, port, &asked, known));
    }
}

fn root_path(scope: &Scope<'_>, service: &Service, port: &ServicePort, asked: &str, known: bool) -> Finding {
    let sentence = format!(
        "the load balancer probes port {} of {service} by {asked} GET /, and only 200 counts: unless the application answers so, every node is down",
        port.port
    );
    let by = match &port.app_protocol {
        Some(app) if app.eq_ignore_ascii_case(asked) => format!("appProtocol of port {} is {app}", port.port),
        _ => format!("the annotation asks for an {asked} probe of port {}", port.port),
    };
    let mut finding =
        Finding::new(Code::ProbePath, scope.subject(), sentence).because(Source::Kubernetes, by);
    let probes = scope.world.private_link.load_balancers.iter().flatten().flat_map(|lb| &lb.probes);
    if let Some(probe) = probes.into_iter().find(|probe| Some(probe.port) == port.node_port) {
        let path = probe.path.as_deref().unwrap_or("no path");
        finding = finding.because(Source::Azure, format!("probe {}: {} {path}", probe.name, probe.protocol));
    } else if known {
        finding = finding.because(Source::Azure, "no probe of this port is known to Azure");
    }
    // Whether the application answers 200 is not known here.
    finding.severity = crate::explain::Severity::Warning;
    finding
        .remedy(Remedy::Command(annotate(
            service,
            "azure-load-balancer-health-probe-request-path",
            "/healthz",
        )))
        .remedy(Remedy::Command(annotate(service, "azure-load-balancer-health-probe-protocol", "tcp")))
}

/// The IPv6 probe comes from a link-local address, which is lost on its way to a node port.
fn ipv6(scope: &Scope<'_>, service: &Service, lint: &mut Lint) {
    let families = &service.ip_families;
    let has_ipv6 =
        families.iter().any(|family| family == "IPv6") || service.ingress.iter().any(IpAddr::is_ipv6);
    if !has_ipv6 {
        return;
    }
    let sentence = format!(
        "{service} has IPv6 and externalTrafficPolicy Cluster: the load balancer's IPv6 probe comes from fe80::1234:5678:9abc, which does not get through to a node port"
    );
    let mut finding = Finding::new(Code::Ipv6Probe, scope.subject(), sentence)
        .because(Source::Kubernetes, format!("ipFamilies {}", families.join(", ")));
    finding.remedy = keep_source(scope.service);
    lint.findings.push(
        finding.remedy(Remedy::Text("Private Link itself is IPv4 only: an IPv4 service does".to_owned())),
    );
}
