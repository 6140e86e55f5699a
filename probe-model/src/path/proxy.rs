//! What a flow's PROXY header says, beside what was expected of it.

use std::net::SocketAddr;

use super::evidence::{Entry, Evidence, ReactionKind};
use super::flow::Path;
use crate::proxy_protocol::{Command, FirstBytes, Malformed, Proxy};
use crate::world::World;
use crate::world::kubernetes::Service;
use crate::world::private_link::Observed;

/// The consumer behind a NAT IP, by the PROXY header of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its address, in its own network's address space; `None` if the header does not say.
    pub address: Option<SocketAddr>,
    /// Azure's identifier of its private endpoint's connection.
    pub link_id: Option<u32>,
}

/// What is wrong with a connection's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyFault {
    /// There is no header, and one was expected.
    Missing,
    /// There is a header, and none was expected.
    Unexpected,
    /// The header breaks the protocol.
    Malformed(Malformed),
    /// The header's rest did not come.
    Incomplete,
}

impl ProxyFault {
    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unexpected => "unexpected",
            Self::Malformed(_) => "malformed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// The consumer that a flow's header names.
pub fn consumer(evidence: &Evidence) -> Option<Consumer> {
    let header = evidence.proxy_header()?;
    let consumer = Consumer { address: header.source(), link_id: header.link_id };
    (consumer.address.is_some() || consumer.link_id.is_some()).then_some(consumer)
}

/// That a flow's source is a NAT IP of Private Link: nobody else sends Azure's link identifier.
pub fn observed(path: &Path) -> Option<Observed> {
    let header = path.evidence.proxy_header()?;
    let is_from_network = path.evidence.entry == Some(Entry::Network) && header.command == Command::Proxy;
    let link_id = header.link_id.filter(|_| is_from_network)?;
    Some(Observed { source: path.tuple.saddr, link_id })
}

/// What is wrong with the opener's first bytes, given whether a header was expected of it; `None` if nothing is, or the
/// first bytes were not seen.
pub fn fault(evidence: &Evidence, expected: Option<bool>) -> Option<ProxyFault> {
    // Where the header was seen whole, nothing is missing.
    let requests = || evidence.beginnings.iter().filter(|beginning| !beginning.reply);
    let is_whole = |first: FirstBytes| matches!(first, FirstBytes::ProxyV2(Proxy::Whole(_)));
    let first = requests()
        .map(|beginning| beginning.first)
        .find(|first| is_whole(*first))
        .or_else(|| Some(requests().next_back()?.first))?;
    match (first, expected) {
        (FirstBytes::ProxyV2(Proxy::Malformed(malformed)), _) => Some(ProxyFault::Malformed(malformed)),
        (first, Some(false)) if first.is_proxy() => Some(ProxyFault::Unexpected),
        (FirstBytes::ProxyV2(Proxy::Cut { wanted, .. }), _) if wanted <= probe_common::PAYLOAD_MAX => {
            Some(ProxyFault::Incomplete)
        }
        (first, Some(true)) if !first.is_proxy() => Some(ProxyFault::Missing),
        _ => None,
    }
}

/// Whether Private Link puts a header in front of connections to a service, by Azure's word or by the Service's
/// annotation; `None` if neither is known. `to` is the load balancer's frontend, or a node and its port.
///
/// The load balancer's probes then have one, too; a client that comes past Private Link has none.
pub fn is_enabled(world: &World, to: SocketAddr) -> Option<bool> {
    let service = service_at(world, to);
    let frontends = service.into_iter().flat_map(|service| service.ingress.iter().copied());
    let mut frontends = std::iter::once(to.ip()).chain(frontends);
    let azure = frontends.find_map(|frontend| world.private_link.service_at(frontend));
    let annotated = || {
        let service = service?;
        Some(service.wants_private_link() && service.azure_is_true("azure-pls-proxy-protocol"))
    };
    azure.map(|service| service.proxy_protocol).or_else(annotated)
}

/// The service with a load balancer or a node port there.
fn service_at(world: &World, to: SocketAddr) -> Option<&Service> {
    let by_node_port = || {
        let mut services = world.kubernetes.services.iter().flatten();
        services.find(|service| service.ports.iter().any(|port| port.node_port == Some(to.port())))
    };
    world.kubernetes.service_at(to.ip()).or_else(by_node_port)
}

/// Whether the application refused what it was sent first: by a reset, by closing, or with an HTTP error that says so.
pub fn is_rejected(evidence: &Evidence) -> bool {
    let kind = evidence.reaction.map(|reaction| reaction.kind);
    matches!(kind, Some(ReactionKind::Reset | ReactionKind::Closed | ReactionKind::Status(400)))
}
