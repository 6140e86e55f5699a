//! How the datapath finds a frontend, by version.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Frontend, LbKey, LbService, LoadBalancer};
use crate::cilium::policy::PolicyLayout;

/// Which keys the datapath asks the services map for.
///
/// Source: `lb4_lookup_service`, `lb6_lookup_service`, Cilium `bpf/lib/lb.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LbLookup {
    /// Up to 1.16: protocol 0, one frontend for all protocols.
    AnyProtocol,
    /// 1.17 and 1.18: the packet's protocol, then 0.
    ProtocolFirst,
    /// From 1.19 on: the packet's protocol; from outside then port 0 and protocol 0, which stands for an address whose
    /// other ports are no frontends.
    ProtocolOnly,
}

impl LbLookup {
    /// Every procedure, in the order of versions.
    pub const ALL: [Self; 3] = [Self::AnyProtocol, Self::ProtocolFirst, Self::ProtocolOnly];

    /// The procedure of the versions that have policy maps of this layout.
    pub fn of(layout: PolicyLayout) -> Self {
        match layout {
            PolicyLayout::HashKey | PolicyLayout::WildcardBits | PolicyLayout::PrefixLength => {
                Self::AnyProtocol
            }
            PolicyLayout::ProxyPriority | PolicyLayout::CountersApart => Self::ProtocolFirst,
            PolicyLayout::Precedence | PolicyLayout::Aggregates => Self::ProtocolOnly,
        }
    }
}

/// Where a packet that looks for a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LbClient {
    /// From outside the cluster, at the uplink: external scope only.
    Outside,
    /// A pod or the node itself: internal scope where a frontend has two.
    Inside,
}

/// What the services map has for a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LbFound {
    /// Nothing: no service.
    Nothing,
    /// This frontend.
    Frontend(Arc<Frontend>),
    /// The address is a frontend's on other ports; from 1.19 on the packet is dropped.
    OtherPorts(Arc<Frontend>),
}

impl LoadBalancer {
    /// The frontend of a destination, as this procedure finds it. Ports are host order.
    pub fn lookup(
        &self,
        procedure: LbLookup,
        client: LbClient,
        (address, dport, proto): (IpAddr, u16, u8),
    ) -> LbFound {
        let external = |dport, proto| {
            let scope = LbKey::SCOPE_EXTERNAL;
            self.frontend(LbKey { address, dport, backend_slot: 0, proto, scope })
        };
        let found = match procedure {
            LbLookup::AnyProtocol => external(dport, 0),
            LbLookup::ProtocolFirst => external(dport, proto).or_else(|| external(dport, 0)),
            LbLookup::ProtocolOnly => external(dport, proto),
        };
        let Some(frontend) = found else {
            let has_wildcard = procedure == LbLookup::ProtocolOnly && client == LbClient::Outside;
            let whole_address = has_wildcard.then(|| external(0, 0)).flatten();
            return whole_address.map_or(LbFound::Nothing, |whole| LbFound::OtherPorts(Arc::new(whole)));
        };
        let two_scopes = client == LbClient::Inside && frontend.service.has2(LbService::TWO_SCOPES);
        let internal = LbKey { scope: LbKey::SCOPE_INTERNAL, ..frontend.key };
        let found = if two_scopes { self.frontend(internal) } else { Some(frontend) };
        found.map_or(LbFound::Nothing, |frontend| LbFound::Frontend(Arc::new(frontend)))
    }
}
