//! Causes that the packets of one flow show, whatever policy says of it.

use std::net::{IpAddr, SocketAddr};

use super::{Code, Finding, Remedy, Source, Subject, SubjectKind};
use crate::path::evidence::{Entry, ReactionKind, Reset};
use crate::path::proxy::{is_enabled, is_rejected};
use crate::path::{Outcome, Path, Refusal};
use crate::world::nat::nat_sources;
use crate::world::{AddressOwner, World};

/// The load balancer forgets a connection that was silent for so long, at the earliest.
const LB_IDLE_NS: u64 = 240_000_000_000;
/// Private Link does.
const PLS_IDLE_NS: u64 = 300_000_000_000;
/// A request without an answer for so long is said.
const SLOW_NS: u64 = 2_000_000_000;
/// A port taken again so soon may still be known to whoever had it before (TIME-WAIT of Linux).
const REUSE_NS: u64 = 60_000_000_000;

/// What the packets of a flow show to be wrong. `is_beside` says that it came to the node's own address with a port of the
/// service, where nobody listens.
pub fn observed(world: &World, path: &Path, is_beside: bool) -> Vec<Finding> {
    let flow = Flow { world, path };
    let all = [
        flow.proxy_header(),
        flow.idle(),
        flow.reused_ports(),
        flow.too_big(),
        flow.routed_back(),
        flow.in_cluster(),
        flow.refused(),
        flow.slow(),
        is_beside.then(|| flow.beside()),
    ];
    all.into_iter().flatten().collect()
}

/// One flow, and everything known.
struct Flow<'a> {
    world: &'a World,
    path: &'a Path,
}

/// Seconds, with one digit where there are few.
fn seconds(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    if tenths < 100 { format!("{}.{} s", tenths / 10, tenths % 10) } else { format!("{} s", tenths / 10) }
}

impl Flow<'_> {
    /// The pod that it is for, else the service or address.
    fn subject(&self) -> Subject {
        let to = self.path.final_tuple().daddr;
        match self.world.owner(to) {
            AddressOwner::Endpoint(id) if !self.world.is_host_endpoint(id) => {
                Subject::of_endpoint(self.world, id)
            }
            _ => self.service_subject(),
        }
    }

    fn service_subject(&self) -> Subject {
        let to = self.path.tuple.daddr;
        match self.world.kubernetes.service_at(to) {
            Some(service) => Subject::of_service(service),
            None => Subject::named(SubjectKind::Service, &to.to_string()),
        }
    }

    fn target(&self) -> String {
        self.subject().to_string()
    }

    fn is_nat_ip(&self, address: IpAddr) -> bool {
        nat_sources(self.world).names(address).is_some()
    }

    /// The application turns the connection away at its first bytes: it does not understand the header, or misses it.
    fn proxy_header(&self) -> Option<Finding> {
        let evidence = &self.path.evidence;
        if !is_rejected(evidence) {
            return None;
        }
        let request = evidence.request()?;
        let reaction = match evidence.reaction?.kind {
            ReactionKind::Reset => "reset the connection".to_owned(),
            ReactionKind::Closed => "closed the connection without a byte".to_owned(),
            ReactionKind::Status(status) => format!("answered HTTP {status}"),
            ReactionKind::Data => return None,
        };
        let target = self.target();
        if request.first.is_proxy() {
            let sentence = format!(
                "Private Link puts a PROXY header before the connection, and {target} {reaction} right after it: the application does not read such headers"
            );
            let finding = Finding::new(Code::ProxyHeaderUnparsed, self.subject(), sentence);
            return Some(
                finding
                    .because(Source::Packets, format!("first bytes: a PROXY header; then it {reaction}"))
                    .remedy(Remedy::Text(
                        "switch PROXY protocol on in the application or its ingress (nginx: listen … proxy_protocol), or off for the service: annotation azure-pls-proxy-protocol=false"
                            .to_owned(),
                    )),
            );
        }
        let to = SocketAddr::new(self.path.tuple.daddr, self.path.tuple.dport);
        // Without Azure's or the service's word nobody knows what the application waits for.
        let link_has_it = is_enabled(self.world, to)?;
        let is_direct = !self.is_nat_ip(self.path.tuple.saddr);
        if !link_has_it || !is_direct {
            return None;
        }
        let source = self.path.tuple.saddr;
        let sentence = format!(
            "{source} comes past Private Link, so without a PROXY header, and {target} {reaction}: the application waits for a header that only Private Link sends"
        );
        Some(
            Finding::new(Code::ProxyHeaderMissing, self.subject(), sentence)
                .because(Source::Packets, format!("first bytes: no PROXY header; then it {reaction}"))
                .because(Source::Azure, format!("PROXY protocol is on for the Private Link service before {to}"))
                .remedy(Remedy::Text(
                    "give clients that do not come by Private Link a service of their own, whose application port takes no header"
                        .to_owned(),
                )),
        )
    }

    /// A reset from the network after minutes of silence.
    fn idle(&self) -> Option<Finding> {
        self.path.evidence.reset.and_then(|reset| idle_reset(self.service_subject(), &reset))
    }

    /// Addresses and ports of a connection that somebody still has.
    fn reused_ports(&self) -> Option<Finding> {
        let reuse = self.path.evidence.reuse.filter(|reuse| reuse.since_ns < REUSE_NS)?;
        let is_ignored = self.path.evidence.bare_ack_ns.is_some()
            || matches!(self.path.outcome, Outcome::NoAnswer | Outcome::Silent);
        if !is_ignored {
            return None;
        }
        let tuple = self.path.tuple;
        let how =
            if self.path.evidence.bare_ack_ns.is_some() { "answered by a bare ACK" } else { "not answered" };
        let sentence = format!(
            "{}:{} was used again after {} and is {how}: whoever had it before is still remembered",
            tuple.saddr,
            tuple.sport,
            seconds(reuse.since_ns)
        );
        Some(
            Finding::new(Code::NatPorts, self.service_subject(), sentence)
                .because(Source::Packets, format!("a SYN of the same addresses and ports {} after the last packet of the connection before", seconds(reuse.since_ns)))
                .remedy(Remedy::Text(
                    "raise azure-pls-ip-configuration-ip-address-count (up to 8), and let clients keep their connections open; the metric PLSNatPortsUsage shows how many ports are used"
                        .to_owned(),
                )),
        )
    }

    /// Large segments do not arrive, small ones do.
    fn too_big(&self) -> Option<Finding> {
        let evidence = &self.path.evidence;
        let shown = match (&evidence.stall, &evidence.too_big) {
            (Some(stall), _) => format!(
                "segments of {} bytes are sent again and again ({} times), and of up to {} bytes they arrive",
                stall.lost_len, stall.times, stall.passed_len
            ),
            (None, Some(too_big)) => format!("{} says that packets are too big", too_big.from),
            (None, None) => return None,
        };
        let sentence = format!(
            "large packets of the connection to {} vanish: the MTU on the way is smaller than the ends believe",
            self.target()
        );
        Some(
            Finding::new(Code::TooBig, self.subject(), sentence).because(Source::Packets, shown).remedy(Remedy::Text(
                "lower the pods' MTU or clamp the MSS; a tunnel costs 50 bytes; see that ICMP fragmentation needed gets back to the sender"
                    .to_owned(),
            )),
        )
    }

    /// The node sends it back to where it came from.
    fn routed_back(&self) -> Option<Finding> {
        let back = self.path.evidence.routed_back?;
        let to = SocketAddr::new(self.path.tuple.daddr, self.path.tuple.dport);
        let sentence = format!(
            "this node has no rule for {to}, so it routes the packet back to the network it came from"
        );
        Some(
            Finding::new(Code::UnknownFrontend, self.service_subject(), sentence)
                .because(Source::Packets, format!("the packet left again with a time to live of {}", back.ttl))
                .remedy(Remedy::Text(
                    "see that the agent (or kube-proxy) on this node runs and is in sync; where a CiliumLoadBalancerIPPool exists, remove it or set defaultLBServiceIPAM=none"
                        .to_owned(),
                )),
        )
    }

    /// The client is in the cluster, and never comes to the load balancer.
    fn in_cluster(&self) -> Option<Finding> {
        let to = self.path.tuple.daddr;
        let is_load_balancer = self.world.kubernetes.service_at(to).is_some()
            || self
                .world
                .frontends()
                .any(|own| own.key.address == to && own.service.kind() == "LoadBalancer");
        let who = match self.path.evidence.entry? {
            Entry::Pod => "a pod of this node",
            Entry::Node => "this node itself",
            Entry::Network | Entry::OtherNode => return None,
        };
        if !is_load_balancer {
            return None;
        }
        let source = self.path.tuple.saddr;
        let sentence = format!(
            "{source} is {who}: its packets for {to} are translated here and never come to the load balancer, so they say nothing of Private Link"
        );
        Some(
            Finding::new(Code::InCluster, self.service_subject(), sentence)
                .because(Source::Packets, format!("the first packet was seen coming from {who}"))
                .remedy(Remedy::Text("test from the consumer's network, by the private endpoint".to_owned())),
        )
    }

    /// Policy let it in, and nobody listens.
    fn refused(&self) -> Option<Finding> {
        let Outcome::Refused { refusal: Refusal::Reset, from } = self.path.outcome else { return None };
        let last = self.path.final_tuple();
        let AddressOwner::Endpoint(id) = self.world.owner(last.daddr) else { return None };
        if from != last.daddr || self.world.is_host_endpoint(id) || self.path.evidence.request_ns.is_some() {
            return None;
        }
        let sentence = format!(
            "the SYN got to {}, which refused it: nobody listens on {}/{}",
            self.target(),
            last.protocol,
            last.dport
        );
        Some(
            Finding::new(Code::NoEndpoint, self.subject(), sentence)
                .because(Source::Packets, "a TCP reset of the pod's own, right after the SYN")
                .remedy(Remedy::Text(
                    "see that the application listens on 0.0.0.0, not on 127.0.0.1, and that the service's targetPort is its port"
                        .to_owned(),
                )),
        )
    }

    /// It was accepted, and the request is not answered.
    fn slow(&self) -> Option<Finding> {
        let waited = self.path.evidence.unanswered_ns(self.path.last_ns).filter(|ns| *ns >= SLOW_NS)?;
        if !self.path.is_acknowledged || self.path.evidence.stall.is_some() {
            return None;
        }
        let sentence = format!(
            "the way is fine: {} accepted the connection and has not answered its request for {}",
            self.target(),
            seconds(waited)
        );
        Some(
            Finding::new(Code::SlowApplication, self.subject(), sentence)
                .because(
                    Source::Packets,
                    format!("the request was seen, and {} later no byte of an answer", seconds(waited)),
                )
                .remedy(Remedy::Text(
                    "look at the application: its log, its load, what it waits for".to_owned(),
                )),
        )
    }

    /// The node's own address with the service's port.
    fn beside(&self) -> Finding {
        let tuple = self.path.tuple;
        let to = SocketAddr::new(tuple.daddr, tuple.dport);
        let sentence = format!(
            "the load balancer sends to the node's own address {to} with the service's port, where nobody listens: a public load balancer with floating IP does so before Private Link"
        );
        Finding::new(Code::PublicFloatingIp, self.service_subject(), sentence)
            .because(Source::Packets, format!("a packet from {} to {to}", tuple.saddr))
            .remedy(Remedy::Text(
                "make the load balancer internal (annotation azure-load-balancer-internal=true), or switch floating IP off (azure-disable-load-balancer-floating-ip=true)"
                    .to_owned(),
            ))
    }
}

/// A reset from the network's side after minutes of silence, as load balancer and Private Link send one.
pub fn idle_reset(subject: Subject, reset: &Reset) -> Option<Finding> {
    if !reset.by_opener || reset.after_fin || reset.idle_ns < LB_IDLE_NS {
        return None;
    }
    let who = if reset.idle_ns < PLS_IDLE_NS {
        "the load balancer forgets a connection after 4 minutes by default"
    } else {
        "Private Link forgets a connection after 5 minutes, whatever is configured"
    };
    let idle = seconds(reset.idle_ns);
    let sentence =
        format!("the connection was silent for {idle} and was then reset from the network's side: {who}");
    Some(
        Finding::new(Code::IdleTimeout, subject, sentence)
            .because(Source::Packets, format!("a TCP reset without FIN, {idle} after the last packet"))
            .remedy(Remedy::Text(
                "send TCP keepalives more often than every 240 s, from either end (net.ipv4.tcp_keepalive_time=120 and SO_KEEPALIVE)"
                    .to_owned(),
            )),
    )
}
