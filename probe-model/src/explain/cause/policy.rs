//! Why policy drops a packet: what the rules that select the pod say, beside what the packet has.

use std::net::IpAddr;

use super::{AZURE_PROBE, Cause, datapath, list, subject};
use crate::cilium::Direction;
use crate::cilium::drop_reason::DropReason;
use crate::cilium::identity::Identity;
use crate::cilium::policy::{PolicyQuery, PolicyVerdict};
use crate::cilium::release::Release;
use crate::explain::near_miss::{FailedField, NearMiss};
use crate::explain::{Code, JudgedAs, Masquerade, SourceBy, rules_selecting, source_history};
use crate::intent::object::{Options, Part, PeerKind, Policy, read_one};
use crate::intent::port::{PortTerm, RulePort, RuleProtocol};
use crate::simulate::{IdentityOrigin, PolicyStep, Step, Trajectory};
use crate::tuple::Protocol;
use crate::world::nat::{NatSources, nat_sources};
use crate::world::{PolicyRef, World};

/// From this release on the agent reads `endPort`.
const END_PORT: Release = Release(16);

/// No entry matched.
pub(super) fn default_deny(
    world: &World,
    way: &Trajectory,
    policies: &[PolicyRef],
    near_miss: Option<&NearMiss>,
) -> Cause {
    let Some(step) = way.deciding_policy() else { return datapath::dropped(world, way, DropReason::POLICY) };
    let (name, port) = subject(world, step);
    let direction = step.query.direction;
    let who = if policies.is_empty() {
        format!("{direction} of {name} is default deny (the agent names no policy behind it)")
    } else {
        let verb = if policies.len() == 1 { "selects" } else { "select" };
        format!("{} {verb} {name} for {direction}", list(policies))
    };
    let peer = world.identity_text(step.query.identity);
    let preposition = if direction == Direction::Ingress { "from" } else { "to" };
    let plain = format!("{who}, and no rule admits traffic {preposition} {peer} on {port}");
    let denied = Denied { world, way, step, who, peer, port };
    if direction == Direction::Ingress
        && let Some(cause) = denied.source()
    {
        return cause;
    }
    match denied.rule(near_miss) {
        Some((code, hint)) => Cause::new(code, format!("{plain}: {hint}")),
        None => Cause::new(Code::DefaultDeny, plain),
    }
}

/// A denied packet, and who denies it.
struct Denied<'a> {
    world: &'a World,
    way: &'a Trajectory,
    step: &'a PolicyStep,
    /// `NetworkPolicy default/allow-pls selects default/pls-app for ingress`.
    who: String,
    /// The peer's identity in words.
    peer: String,
    /// `TCP/80`.
    port: String,
}

impl Denied<'_> {
    /// Causes that lie in who the source is, or was.
    fn source(&self) -> Option<Cause> {
        let Self { world, way, who, peer, port, .. } = self;
        let original = way.sent.saddr;
        let history = source_history(world, way);
        let hidden = history.last().filter(|last| last.address != original);
        let sentence = match hidden {
            Some(last) => format!(
                "{who}; {} replaced the source {original} by {} before policy ran, so Cilium judged {peer}, which no rule admits on {port}",
                by_whom(&last.by),
                last.address
            ),
            None => format!("{who}, and no rule admits traffic from {peer} on {port}"),
        };
        if original == IpAddr::from(AZURE_PROBE) {
            let effect = "the load balancer's health probe fails, and it stops sending";
            return Some(Cause::new(Code::ProbeDenied, format!("{sentence}: {effect}")));
        }
        if let Some(last) = hidden {
            if !self.would_admit(original) {
                return Some(Cause::new(Code::DefaultDeny, sentence));
            }
            let code = match last.by {
                SourceBy::Netfilter { masquerade: Masquerade::IpMasqAgent, .. } => Code::MasqueradeAgent,
                _ => Code::HiddenByKubeProxy,
            };
            return Some(Cause::new(code, format!("{sentence}; {original} itself would be admitted")));
        }
        self.sent_by_other_node(&sentence)
    }

    /// The source is another node's address: it stands for whoever's packets that node sends on.
    fn sent_by_other_node(&self, sentence: &str) -> Option<Cause> {
        let is_service = self.has_outside_frontend();
        let judged = source_history(self.world, self.way).last().and_then(|hop| hop.judged);
        let from = self.way.sent.saddr;
        match judged? {
            JudgedAs::Here(_, IdentityOrigin::SentOn) => Some(Cause::new(
                Code::RemoteAsWorld,
                format!(
                    "{sentence}: what another node sends on through the tunnel for the load balancer's clients comes from {from} and is world here, so no rule for a NAT IP can match"
                ),
            )),
            JudgedAs::Here(identity, _) if is_service && identity.is_node() && identity != Identity::HOST => {
                let tunnel = matches!(self.way.steps.first(), Some(Step::FromNetwork { overlay: true, .. }));
                let code = if tunnel { Code::RemoteAsWorld } else { Code::RemoteAsNode };
                Some(Cause::new(
                    code,
                    format!(
                        "{sentence}: {from} is another node, which sends on what the load balancer gave it with its own address; ipBlock rules never match a node's address"
                    ),
                ))
            }
            JudgedAs::Here(..) | JudgedAs::OtherNode(_) => None,
        }
    }

    /// Whether packets from outside get to this pod by a service.
    fn has_outside_frontend(&self) -> bool {
        let pod = self.step.tuple.daddr;
        let outside = self.world.frontends().filter(|own| own.service.is_routable());
        outside.into_iter().any(|own| {
            own.backends.iter().any(|slot| slot.backend.is_some_and(|backend| backend.address == pod))
        })
    }

    /// Whether the same policy map admits `source` where it denied what the source was replaced by.
    fn would_admit(&self, source: IpAddr) -> bool {
        let identity = self.world.ipcache.as_ref().and_then(|ipcache| ipcache.lookup(source));
        let identity = identity.map_or(Identity::WORLD, |(_, info)| info.sec_identity);
        self.world.policy.get(&self.step.endpoint).is_some_and(|policy| {
            let decision = policy.map.lookup(PolicyQuery { identity, ..self.step.query });
            matches!(decision.verdict, PolicyVerdict::Allow { .. })
        })
    }

    /// The parts that admit somebody in this direction.
    fn admitting(&self) -> Vec<(&Policy, &Part)> {
        let rules = rules_selecting(self.world, self.step.endpoint);
        let direction = self.step.query.direction;
        let parts = rules
            .into_iter()
            .flat_map(|(policy, rule)| rule.side(direction).parts.iter().map(move |part| (policy, part)));
        parts.filter(|(_, part)| !part.deny).collect()
    }

    /// Causes that lie in what the rules say; the nearest rule first.
    fn rule(&self, near_miss: Option<&NearMiss>) -> Option<(Code, String)> {
        let parts = self.admitting();
        self.excepted(&parts)
            .or_else(|| self.end_port(&parts))
            .or_else(|| self.wrong_port(&parts, near_miss))
            .or_else(|| self.never_matches(&parts))
            .or_else(|| self.not_installed(&parts))
            .or_else(|| self.addresses(&parts))
    }

    /// A prefix covers the peer, and an `except` takes it out again.
    fn excepted(&self, parts: &[(&Policy, &Part)]) -> Option<(Code, String)> {
        let address = self.step.peer();
        parts.iter().filter(|(_, part)| self.names_port(part)).find_map(|(policy, part)| {
            part.peers.listed.iter().find_map(|peer| {
                let PeerKind::Cidr { cidr, except, .. } = &peer.kind else { return None };
                let taken_out = except.iter().find(|except| except.contains(&address))?;
                cidr.contains(&address).then(|| {
                    let reference = &policy.reference;
                    (
                        Code::NatIpExcepted,
                        format!("{reference} admits {cidr} but takes {taken_out} out of it, and {address} is in that"),
                    )
                })
            })
        })
    }

    /// A rule admits the peer on the service's port, and policy sees the pod's.
    fn wrong_port(&self, parts: &[(&Policy, &Part)], near_miss: Option<&NearMiss>) -> Option<(Code, String)> {
        let pod = self.step.query.port;
        let outer = self.way.steps.iter().find_map(|step| match step {
            Step::Service { frontend, .. } => Some(frontend.key.dport),
            Step::Netfilter { after, .. } if after.dport != self.way.sent.dport => Some(self.way.sent.dport),
            _ => None,
        })?;
        let hint = |port: u16| {
            format!("the rule names port {port}, the service's, and policy sees the pod's port {pod}")
        };
        let by_node_port = self.node_ports();
        let is_outer = |port: u16| port != pod && (port == outer || by_node_port.contains(&port));
        if let Some(NearMiss { key, failed: FailedField::Port, .. }) = near_miss {
            return is_outer(key.dport).then(|| (Code::PortNotTargetPort, hint(key.dport)));
        }
        let named = parts.iter().filter(|(_, part)| self.names_peer(part));
        let terms = named.flat_map(|(_, part)| part.ports.iter().flatten());
        let port = terms.filter_map(single_port).find(|port| is_outer(*port))?;
        Some((Code::PortNotTargetPort, hint(port)))
    }

    /// The node ports of services with this pod.
    fn node_ports(&self) -> Vec<u16> {
        let services = self.world.kubernetes.services.iter().flatten();
        let own = services.filter(|service| service.ingress.contains(&self.way.sent.daddr));
        own.flat_map(|service| service.ports.iter().filter_map(|port| port.node_port)).collect()
    }

    /// The object names a range of ports, and this agent reads the first one only.
    fn end_port(&self, parts: &[(&Policy, &Part)]) -> Option<(Code, String)> {
        let version = self.world.version.as_deref()?;
        if Release::of_version(version).is_none_or(|release| release >= END_PORT) {
            return None;
        }
        let options = Options::default();
        let objects = self.world.kubernetes.policies.iter().filter_map(|object| {
            let value = serde_json::from_str(&object.json).ok()?;
            read_one(0, &value, &options).ok()
        });
        let in_force: Vec<_> = parts.iter().map(|(policy, _)| &policy.reference).collect();
        let written = objects.filter(|policy| in_force.contains(&&policy.reference));
        let direction = self.step.query.direction;
        for policy in written {
            let parts = policy.rules.iter().flat_map(|rule| &rule.side(direction).parts);
            let terms = parts.flat_map(|part| part.ports.iter().flatten());
            for term in terms.filter(|term| self.covers(term)) {
                let Some((first, last)) = term.port.range().filter(|(first, last)| first < last) else {
                    continue;
                };
                let reference = &policy.reference;
                let hint = format!(
                    "{reference} names the ports {first} to {last}, and Cilium {version} reads {first} alone (endPort is read from 1.16 on)"
                );
                return Some((Code::EndPortIgnored, hint));
            }
        }
        None
    }

    /// A prefix covers the peer, which is a node or a pod: such a rule never matches those.
    fn never_matches(&self, parts: &[(&Policy, &Part)]) -> Option<(Code, String)> {
        let (address, identity) = (self.step.peer(), self.step.query.identity);
        if identity.is_world() || identity.is_local_scope() {
            return None;
        }
        let (policy, prefix) = parts
            .iter()
            .filter(|(_, part)| self.names_port(part))
            .find_map(|(policy, part)| Some((policy, covering(part, address)?)))?;
        let what = if identity.is_node() { "a node" } else { "a pod" };
        let hint = format!(
            "{} admits {prefix}, but {address} is {what}, and Cilium never matches those by address",
            policy.reference
        );
        Some((Code::WrongAddresses, hint))
    }

    /// A rule admits the packet, and the map does not have it.
    fn not_installed(&self, parts: &[(&Policy, &Part)]) -> Option<(Code, String)> {
        let address = self.step.peer();
        let identity = self.step.query.identity;
        if !(identity.is_world() || identity.is_local_scope()) {
            return None;
        }
        let (policy, prefix) = parts
            .iter()
            .filter(|(_, part)| self.names_port(part))
            .find_map(|(policy, part)| Some((policy, covering(part, address)?)))?;
        let hint = format!(
            "{} admits {prefix} there, and this node's policy map has no entry for it: the agent has not installed its own rule",
            policy.reference
        );
        Some((Code::AgentStale, hint))
    }

    /// Rules name other addresses: some of Private Link's NAT IPs, or none of them.
    fn addresses(&self, parts: &[(&Policy, &Part)]) -> Option<(Code, String)> {
        let address = self.step.peer();
        let nat = nat_sources(self.world);
        let source = nat.names(address)?;
        let named = parts.iter().filter(|(_, part)| self.names_port(part)).flat_map(|(policy, part)| {
            part.peers.listed.iter().filter_map(move |peer| match &peer.kind {
                PeerKind::Cidr { cidr, .. } => Some((*policy, *cidr)),
                _ => None,
            })
        });
        let named: Vec<_> = named.collect();
        if let Some((policy, cidr)) = named.iter().find(|(_, cidr)| has_other_nat_ip(&nat, *cidr, address)) {
            let hint = format!(
                "{} admits {cidr}, which has one of Private Link's NAT IPs, and {address} is another ({})",
                policy.reference, source.origin
            );
            return Some((Code::NewNatIp, hint));
        }
        let (policy, _) = named.first()?;
        let all = named.iter().map(|(_, cidr)| cidr.to_string()).collect::<Vec<_>>().join(", ");
        let hint = format!(
            "{} admits {all}, and through Private Link the pod sees the NAT IP {address} ({}), never the consumer's own address",
            policy.reference, source.origin
        );
        Some((Code::WrongAddresses, hint))
    }

    /// Whether a part is about the packet's protocol and port; a port's name, which is not known here, counts as not.
    fn names_port(&self, part: &Part) -> bool {
        part.ports.as_ref().is_none_or(|terms| terms.iter().any(|term| self.covers(term)))
    }

    fn covers(&self, term: &PortTerm) -> bool {
        let PolicyQuery { protocol, port, .. } = self.step.query;
        let protocol = Protocol(protocol);
        let same = match term.protocol {
            RuleProtocol::Any => protocol.has_ports(),
            RuleProtocol::One(own) => own == protocol,
        };
        same && term.port.range().is_some_and(|(first, last)| (first..=last).contains(&port))
    }

    /// Whether a part is about the packet's peer, by address.
    fn names_peer(&self, part: &Part) -> bool {
        let everybody = part.peers.nobody.is_none() && part.peers.listed.is_empty() && part.ports.is_some();
        everybody || covering(part, self.step.peer()).is_some()
    }
}

/// The prefix of a part that is left for an address.
fn covering(part: &Part, address: IpAddr) -> Option<ipnet::IpNet> {
    part.peers.listed.iter().find_map(|peer| match &peer.kind {
        PeerKind::Cidr { cidr, remaining, .. } => {
            remaining.iter().any(|left| left.contains(&address)).then_some(*cidr)
        }
        _ => None,
    })
}

/// The one port that a term names.
fn single_port(term: &PortTerm) -> Option<u16> {
    match term.port {
        RulePort::Number { first, end: 0 } if first != 0 => Some(first),
        _ => None,
    }
}

/// Whether a prefix has a NAT IP known one by one, other than this.
fn has_other_nat_ip(nat: &NatSources, prefix: ipnet::IpNet, address: IpAddr) -> bool {
    nat.addresses().iter().any(|own| *own != address && prefix.contains(own))
}

/// Who replaced a source, in words.
fn by_whom(by: &SourceBy) -> &'static str {
    match by {
        SourceBy::Sender => "nobody",
        SourceBy::Netfilter { masquerade: Masquerade::KubeProxy, .. } => {
            "kube-proxy, as for externalTrafficPolicy Cluster,"
        }
        SourceBy::Netfilter { masquerade: Masquerade::IpMasqAgent, .. } => "ip-masq-agent",
        SourceBy::Netfilter { masquerade: Masquerade::Cilium, .. } => "Cilium's own rule",
        SourceBy::Netfilter { masquerade: Masquerade::Other, .. } => "a netfilter rule",
        SourceBy::CiliumForward { .. } => "Cilium, as for externalTrafficPolicy Cluster,",
    }
}

/// A deny entry matched.
pub(super) fn explicit_deny(world: &World, way: &Trajectory, policies: &[PolicyRef]) -> Cause {
    let Some(step) = way.deciding_policy() else {
        return datapath::dropped(world, way, DropReason::POLICY_DENY);
    };
    let (name, port) = subject(world, step);
    let peer = world.identity_text(step.query.identity);
    let who = if policies.is_empty() { "a deny rule".to_owned() } else { list(policies) };
    let preposition = if step.query.direction == Direction::Ingress { "from" } else { "to" };
    let (direction, verb) = (step.query.direction, if policies.len() > 1 { "deny" } else { "denies" });
    Cause::new(
        Code::ExplicitDeny,
        format!("{who} explicitly {verb} {direction} of {name} {preposition} {peer} on {port}"),
    )
}
