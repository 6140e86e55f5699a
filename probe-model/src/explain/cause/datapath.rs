//! Why a packet ends before any policy: its service, the node's netfilter, Cilium's tables.

use std::net::{IpAddr, SocketAddr};

use super::Cause;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::family::Family;
use crate::cilium::lb::{Frontend, LbKey, LbService};
use crate::explain::Code;
use crate::simulate::{Step, Trajectory};
use crate::world::World;

impl Code {
    /// The root cause that a drop of Cilium's stands for by itself; `DROP-n` where it stands for none.
    pub fn of_drop(reason: DropReason) -> Self {
        match reason {
            DropReason::POLICY => Code::DefaultDeny,
            DropReason::POLICY_DENY => Code::ExplicitDeny,
            DropReason::POLICY_AUTH_REQUIRED => Code::L7OrAuth,
            DropReason::NOT_IN_SRC_RANGE => Code::SourceRanges,
            DropReason::NO_SERVICE => Code::NoEndpoint,
            DropReason::CT_CREATE_FAILED | DropReason::NAT_NO_MAPPING => Code::CiliumTables,
            DropReason::FRAG_NEEDED | DropReason::FRAG_NOSUPPORT => Code::TooBig,
            _ => Self::Drop(reason),
        }
    }
}

/// Cilium dropped it, and not by policy.
pub(super) fn dropped(world: &World, way: &Trajectory, reason: DropReason) -> Cause {
    let frontend = way.steps.iter().rev().find_map(|step| match step {
        Step::Frontend(frontend) | Step::Service { frontend, .. } => Some(&**frontend),
        _ => None,
    });
    match (reason, frontend) {
        (DropReason::NOT_IN_SRC_RANGE, Some(frontend)) => source_ranges(world, way.sent.saddr, frontend),
        (DropReason::NO_SERVICE, Some(frontend)) => no_backend(world, frontend),
        _ => {
            let meaning = reason.meaning().unwrap_or("unknown reason");
            let to = SocketAddr::new(way.tuple.daddr, way.tuple.dport);
            Cause::new(Code::of_drop(reason), format!("{meaning}: {to}"))
        }
    }
}

/// The service admits other sources only.
fn source_ranges(world: &World, source: IpAddr, frontend: &Frontend) -> Cause {
    let name = service_name(world, frontend);
    let lb = world.load_balancer(Family::of(frontend.key.address));
    let ranges = lb.into_iter().flat_map(|lb| lb.source_ranges(frontend.service.rev_nat_index));
    let ranges = ranges.map(|range| range.to_string()).collect::<Vec<_>>().join(", ");
    let only = if frontend.service.has2(LbService::SOURCE_RANGE_DENY) { "everybody but" } else { "only" };
    Cause::new(
        Code::SourceRanges,
        format!(
            "{name} accepts {only} {ranges} (loadBalancerSourceRanges), and the packet comes from {source}"
        ),
    )
}

/// Nobody is behind the frontend: on this node, where only those count, or at all.
fn no_backend(world: &World, frontend: &Frontend) -> Cause {
    let name = service_name(world, frontend);
    let internal = LbKey { scope: LbKey::SCOPE_INTERNAL, ..frontend.key };
    let elsewhere = world
        .load_balancer(Family::of(frontend.key.address))
        .filter(|_| frontend.service.has(LbService::EXT_LOCAL_SCOPE))
        .and_then(|lb| lb.frontend(internal))
        .map_or(0, |frontend| frontend.service.count);
    if elsewhere == 0 {
        return Cause::new(Code::NoEndpoint, format!("{name} has no ready pod, so nobody takes the packet"));
    }
    Cause::new(
        Code::NoLocalPod,
        format!(
            "{name} has externalTrafficPolicy Local and no ready pod on this node ({elsewhere} elsewhere): the load balancer should leave this node out about 10 s after its last pod went"
        ),
    )
}

/// The service's name and frontend, `default/pls-app (10.224.0.7:80)`.
fn service_name(world: &World, frontend: &Frontend) -> String {
    let socket = SocketAddr::new(frontend.key.address, frontend.key.dport);
    let named = world.service_names.iter().find(|own| {
        (own.address, own.port) == (frontend.key.address, frontend.key.dport) && !own.name.is_empty()
    });
    let by_api = world.kubernetes.service_at(frontend.key.address);
    match (named, by_api) {
        (Some(own), _) => format!("{}/{} ({socket})", own.namespace, own.name),
        (None, Some(own)) => format!("{own} ({socket})"),
        (None, None) => format!("the service {socket}"),
    }
}

/// A rule of the node's netfilter drops or rejects it: whose it is tells why.
pub(super) fn filtered(rule: &str, rejected: bool) -> Cause {
    let verb = if rejected { "rejects" } else { "drops" };
    let has = |part: &str| rule.contains(part);
    let is_invalid = has("--ctstate INVALID") || has("ct state invalid");
    let (code, why) = if has("no local endpoints") {
        (
            Code::NoLocalPod,
            "the service has externalTrafficPolicy Local and no ready pod on this node; kube-proxy's rule",
        )
    } else if has("has no endpoints") {
        (Code::NoEndpoint, "the service has no ready pod; kube-proxy's rule")
    } else if has("KUBE-FW-") || has("KUBE-PROXY-FIREWALL") {
        (
            Code::SourceRanges,
            "loadBalancerSourceRanges of the service leaves the source out; kube-proxy's rule",
        )
    } else if is_invalid {
        (
            Code::KernelConntrack,
            "the kernel's connection tracking takes it for invalid: its table is full, or it saw only one direction; the rule",
        )
    } else {
        (Code::NodeFirewall, "a netfilter rule of the node")
    };
    Cause::new(code, format!("{why} {verb} the packet: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_rule_tells_why() {
        let code = |rule: &str| filtered(rule, false).code;
        let local = r#"filter: -A KUBE-EXTERNAL-SERVICES -d 10.224.0.7/32 -p tcp -m comment --comment "default/pls-app has no local endpoints" -m tcp --dport 80 -j DROP"#;
        assert_eq!(code(local), Code::NoLocalPod);
        let none = r#"filter: -A KUBE-SERVICES -d 10.0.167.20/32 -p tcp -m comment --comment "default/pls-app has no endpoints" -m tcp --dport 80 -j REJECT"#;
        assert_eq!(code(none), Code::NoEndpoint);
        assert_eq!(code("filter: -A KUBE-PROXY-FIREWALL -d 10.224.0.7/32 -j DROP"), Code::SourceRanges);
        assert_eq!(
            code("filter: -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"),
            Code::KernelConntrack
        );
        assert_eq!(code("filter: -A FORWARD -j DROP"), Code::NodeFirewall);
    }
}
