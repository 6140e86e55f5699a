//! What to do about a cause, where it does not take the policies' own objects to say.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Code, Explanation, Remedy};
use crate::world::World;
use crate::world::kubernetes::Service;
use crate::world::nat::nat_sources;

/// Asks Kubernetes to leave the source address as it is.
const LOCAL_POLICY: &str = r#"{"spec":{"externalTrafficPolicy":"Local"}}"#;

impl Explanation {
    /// What to do, in this order; nothing where the packet gets through as it should.
    pub fn remedies(&self, world: &World) -> Vec<Remedy> {
        let text = |text: &str| vec![Remedy::Text(text.to_owned())];
        let service = service(world, self.question.tuple.daddr);
        match self.cause.code {
            Code::HiddenByKubeProxy | Code::RemoteAsWorld | Code::RemoteAsNode | Code::SomeNodesOnly => {
                keep_source(service)
            }
            Code::MasqueradeAgent => text(
                "add the pods' range to nonMasqueradeCIDRs of the ConfigMap of ip-masq-agent in kube-system (not the reconciled one, which AKS overwrites)",
            ),
            Code::ProbeDenied => {
                let mut all = text(
                    "admit ipBlock 168.63.129.16/32 on the pod's port, too, which helps where the probe's address is still there when policy runs; else leave the probe to the node:",
                );
                all.extend(keep_source(service));
                all
            }
            Code::SourceRanges => vec![
                Remedy::Command(patch(service, &source_ranges(world, service))),
                Remedy::Text(
                    "this keeps the ranges that the service has and adds Private Link's NAT IPs".to_owned(),
                ),
            ],
            Code::NoEndpoint => text(
                "make the pods ready, and see that the service's selector and targetPort fit them (kubectl describe service, kubectl get endpointslices)",
            ),
            Code::NoLocalPod => text(
                "spread the pods over the nodes (topologySpreadConstraints); until then the load balancer should leave this node out by itself",
            ),
            Code::NodeFirewall => text(
                "admit the NAT subnet and 168.63.129.16 before that rule, or take the rule away; see who made it: iptables-save -c",
            ),
            Code::KernelConntrack => text(
                "compare net.netfilter.nf_conntrack_count with nf_conntrack_max on this node, and raise the latter in the node pool's linuxOSConfig (netNetfilterNfConntrackMax)",
            ),
            Code::CiliumTables => text(
                "look at the fill of Cilium's maps (cilium-dbg metrics, plsprobe dump conntrack), and raise bpf-map-dynamic-size-ratio",
            ),
            Code::TooBig => text("lower the MTU or clamp the MSS on the way; a tunnel costs 50 bytes"),
            Code::ExplicitDeny => text(
                "narrow the deny rule by an except for the source, or take it away: a deny beats every allow",
            ),
            Code::L7OrAuth => text("see what the policy's HTTP or authentication part asks for"),
            Code::EgressOnly => text(
                "to restrict ingress, add Ingress to policyTypes and a rule that admits the NAT subnet on the pod's port",
            ),
            Code::AgentStale => text(
                "read the agent's log on this node, and compare the policy revisions (cilium-dbg endpoint list); restarting the agent installs every policy anew",
            ),
            Code::EndPortIgnored => text("list the ports one by one, or use Cilium 1.16 or later"),
            _ => Vec::new(),
        }
    }
}

/// The service with a frontend at this address.
fn service(world: &World, address: IpAddr) -> Option<&Service> {
    world.kubernetes.service_at(address)
}

/// The patch that admits Private Link beside what the service admits already.
fn source_ranges(world: &World, service: Option<&Service>) -> String {
    let nat = nat_sources(world).sources.into_iter();
    let known: BTreeSet<_> = nat.map(|source| source.prefix).collect();
    let old = service.into_iter().flat_map(|service| service.source_ranges.iter().copied());
    let all = IpNet::aggregate(&old.chain(known.iter().copied()).collect());
    let mut ranges: Vec<_> = all.iter().map(|range| format!("\"{range}\"")).collect();
    if known.is_empty() {
        ranges.push("\"NAT-SUBNET\"".to_owned());
    }
    format!(r#"{{"spec":{{"loadBalancerSourceRanges":[{}]}}}}"#, ranges.join(","))
}

/// The command that patches a service, as it is typed.
pub(crate) fn patch(service: Option<&Service>, patch: &str) -> String {
    let (namespace, name) =
        service.map_or(("NAMESPACE", "SERVICE"), |own| (own.namespace.as_str(), own.name.as_str()));
    format!("kubectl -n {namespace} patch service {name} -p '{patch}'")
}

/// Leaves the NAT IP visible to policy.
pub(crate) fn keep_source(service: Option<&Service>) -> Vec<Remedy> {
    vec![
        Remedy::Command(patch(service, LOCAL_POLICY)),
        Remedy::Text(
            "with externalTrafficPolicy Local only nodes with a ready pod take traffic, and the NAT IPs must not lie in the pods' subnet (annotation azure-pls-ip-configuration-subnet)"
                .to_owned(),
        ),
    ]
}
