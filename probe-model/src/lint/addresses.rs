//! Address ranges that overlap.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Lint;
use super::scope::Scope;
use crate::explain::{Code, Finding, Remedy, Source, Subject, SubjectKind};
use crate::world::World;
use crate::world::kubernetes::TrafficPolicy;
use crate::world::nat::NatSource;

/// The interface by which the host reaches pods.
const CILIUM_HOST: &str = "cilium_host";

pub(super) fn check(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) {
    let is_said = among_pods(scope, sources, lint);
    overlap(scope, if is_said { &[] } else { sources }, lint);
}

fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Ranges of pods, and where each is from.
fn pod_ranges(world: &World) -> Vec<(IpNet, Source, String)> {
    let nodes = world.kubernetes.nodes.iter().flatten();
    let by_api = nodes.flat_map(|node| {
        node.pod_cidrs
            .iter()
            .map(|net| (*net, Source::Kubernetes, format!("podCIDRs of node {} have {net}", node.name)))
    });
    let routes =
        world.routes.iter().filter(|route| route.dev == CILIUM_HOST && route.destination.prefix_len() < 31);
    let by_route = routes.map(|route| {
        (route.destination, Source::Agent, format!("this node routes {} to {CILIUM_HOST}", route.destination))
    });
    by_api.chain(by_route).collect()
}

/// kube-proxy takes a source within the pods' range for a pod, and skips what Local is for. Whether that is so here.
fn among_pods(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) -> bool {
    let local = scope.traffic_policy() == Some(TrafficPolicy::Local);
    if scope.world.config.node_port || !local {
        return false;
    }
    for source in sources {
        let found = pod_ranges(scope.world).into_iter().find(|(net, ..)| overlaps(*net, source.prefix));
        let Some((net, from, shown)) = found else { continue };
        let sentence = format!(
            "NAT IP {} lies in the pods' range {net}: kube-proxy takes it for a pod, skips externalTrafficPolicy Local, and the answer takes another way",
            source.prefix
        );
        lint.findings.push(
            Finding::new(Code::NatIpAmongPods, scope.subject(), sentence)
                .because(from, shown)
                .because(Source::Kubernetes, "externalTrafficPolicy is Local, and kube-proxy runs")
                .remedy(Remedy::Text(
                    "give the Private Link service a subnet of its own (annotation azure-pls-ip-configuration-subnet), or use externalTrafficPolicy Cluster"
                        .to_owned(),
                )),
        );
        return true;
    }
    false
}

/// Pods' addresses that are somebody else's, too: answers go astray.
fn overlap(scope: &Scope<'_>, sources: &[NatSource], lint: &mut Lint) {
    let world = scope.world;
    let mut others: Vec<(IpNet, String)> =
        sources.iter().map(|source| (source.prefix, format!("NAT IP {}", source.prefix))).collect();
    let services = world.kubernetes.services.iter().flatten();
    others.extend(services.flat_map(|service| {
        service.cluster_ips.iter().map(move |ip| (IpNet::from(*ip), format!("ClusterIP {ip} of {service}")))
    }));
    let nodes = world.kubernetes.nodes.iter().flatten();
    others.extend(nodes.flat_map(|node| {
        node.addresses.iter().map(move |ip| (IpNet::from(*ip), format!("node {} {ip}", node.name)))
    }));
    others.extend(scope.entries.iter().map(|entry| {
        let ip: IpAddr = entry.socket.ip();
        (IpNet::from(ip), format!("the load balancer's address {ip}"))
    }));
    for (net, from, shown) in pod_ranges(world) {
        let Some((_, whose)) = others.iter().find(|(other, _)| overlaps(net, *other)) else { continue };
        let sentence =
            format!("the pods' range {net} contains {whose}: packets for it are taken for a pod's");
        lint.findings.push(
            Finding::new(
                Code::AddressOverlap,
                Subject::named(SubjectKind::Cluster, "addresses"),
                sentence,
            )
            .because(from, shown)
            .remedy(Remedy::Text(
                "choose a pod range that neither the virtual network, the services nor the consumers use (ipam.operator.clusterPoolIPv4PodCIDRList), and make the nodes anew"
                    .to_owned(),
            )),
        );
        return;
    }
}
