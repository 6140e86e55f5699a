//! What the pods themselves need: names. An egress policy that forgets them lets the connection in, and the application fails.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Lint;
use super::scope::Scope;
use crate::cilium::{Direction, EndpointId};
use crate::explain::Code;
use crate::explain::{Explanation, Finding, Remedy, Source, Subject, Verdict, explain, policies_selecting};
use crate::simulate::Question;
use crate::tuple::{Protocol, Tuple};

/// Where names are asked for.
const DNS: u16 = 53;
/// The service that has the cluster's names, `namespace/name`.
const KUBE_DNS: (&str, &str) = ("kube-system", "kube-dns");

pub(super) fn check(scope: &Scope<'_>, lint: &mut Lint) {
    for id in &scope.endpoints {
        let policies = policies_selecting(scope.world, *id, Direction::Egress);
        let enforced = scope.world.endpoints.get(id).and_then(|own| own.policy.as_ref());
        if policies.is_empty() && enforced.is_none_or(|policy| !policy.egress_enforced) {
            continue;
        }
        names(scope, *id, lint);
    }
}

fn names(scope: &Scope<'_>, id: EndpointId, lint: &mut Lint) {
    let world = scope.world;
    let name = world.endpoint_name(id);
    let own = world.endpoints.get(&id).and_then(|own| own.addresses.iter().find(|address| address.is_ipv4()));
    let (Some(own), Some(server)) = (own, name_server(scope)) else {
        lint.unjudged(
            format!("whether {name} can resolve names"),
            "no source knows the cluster's DNS service".to_owned(),
        );
        return;
    };
    let tuple = Tuple { saddr: *own, daddr: server, sport: 0, dport: DNS, protocol: Protocol::UDP };
    let question = Question { direction: Some(Direction::Egress), ..Question::new(tuple) };
    let explanation = explain(world, &question);
    match &explanation.verdict {
        Verdict::Dropped(_) => lint.findings.push(cut_off(scope, id, server, &explanation)),
        Verdict::Inconclusive(facts) => {
            lint.unjudged(format!("whether {name} can resolve names"), facts.join("; "));
        }
        Verdict::Allowed | Verdict::Filtered => {}
    }
}

fn cut_off(scope: &Scope<'_>, id: EndpointId, server: IpAddr, explanation: &Explanation) -> Finding {
    let name = scope.world.endpoint_name(id);
    let policies = &explanation.policies;
    let who = match policies.as_slice() {
        [] => "an egress policy".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let sentence = format!(
        "{who} limits what {name} may reach, and the cluster's DNS ({server}) is not among it: connections are accepted, and the application cannot resolve a name"
    );
    let subject = policies.first().map_or_else(|| scope.subject(), Subject::of_policy);
    Finding::new(Code::EgressBreaksApp, subject, sentence)
        .because(Source::Maps, format!("a packet from {name} to {server}:{DNS}/UDP is dropped: {}", explanation.cause.sentence))
        .remedy(Remedy::Text(
            "admit UDP and TCP port 53 to the pods of kube-dns (namespaceSelector kube-system, podSelector k8s-app: kube-dns); with AKS LocalDNS 169.254.10.10/32 and 169.254.10.11/32, too"
                .to_owned(),
        ))
}

/// The cluster's DNS service: by Kubernetes, by the agent, else the one frontend with its port.
fn name_server(scope: &Scope<'_>) -> Option<IpAddr> {
    let world = scope.world;
    let (namespace, name) = KUBE_DNS;
    let by_api = world.kubernetes.service(namespace, name).and_then(|own| own.cluster_ips.first().copied());
    let named =
        world.service_names.iter().find(|own| (own.namespace.as_str(), own.name.as_str()) == KUBE_DNS);
    let by_port = || {
        let all: BTreeSet<_> =
            world.frontends().filter(|own| own.key.dport == DNS).map(|own| own.key.address).collect();
        all.first().copied().filter(|_| all.len() == 1)
    };
    by_api.or_else(|| named.map(|own| own.address)).or_else(by_port)
}
