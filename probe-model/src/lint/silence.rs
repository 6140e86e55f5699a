//! Why no packet of Private Link comes to a node at all: what is configured wrong, else who has to be asked.

use super::candidates::{PROBES_FAIL, PROBES_WORK};
use super::scope::Scope;
use super::{Lint, lint};
use crate::explain::{Code, Finding, Remedy, Source, Subject, SubjectKind};
use crate::world::private_link::ConnectionState;

/// What was seen of the load balancer's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// They were not watched, or none came.
    Unseen,
    /// They are answered.
    Answered,
    /// They fail: the load balancer takes the node for down.
    Failing,
}

/// Why no packet comes, as far as it is known here.
#[derive(Clone, Debug, Default)]
pub struct Silence {
    /// What keeps them away, by what is configured; the worst first.
    pub causes: Vec<Finding>,
    /// Where nothing is found: what else it may be, the likeliest first. Each has a page that says whom to ask.
    pub candidates: Vec<Code>,
}

/// Causes that keep packets away from every node, or from this one.
const KEEP_AWAY: &[Code] = &[
    Code::ProbeDenied,
    Code::ProxyHeaderInSiblingProbes,
    Code::ProxyHeaderInHealthCheck,
    Code::NoLocalPod,
    Code::ProbePath,
    Code::NodeFirewall,
    Code::Ipv6Probe,
    Code::PublicFloatingIp,
    Code::NotApproved,
    Code::NeverCreated,
    Code::BackendPoolByIp,
    Code::SecurityGroup,
    Code::NoEndpoint,
    Code::GatewayHealthCheck,
];
/// Why no packet of Private Link came in the time that was watched.
pub fn silence(scope: &Scope<'_>, probes: Probes) -> Silence {
    let Lint { findings, .. } = lint(scope);
    let causes: Vec<_> = findings.into_iter().filter(|own| KEEP_AWAY.contains(&own.code)).collect();
    if !causes.is_empty() {
        return Silence { causes, candidates: Vec::new() };
    }
    if let Some(cause) = consumer_side(scope, probes) {
        return Silence { causes: vec![cause], candidates: Vec::new() };
    }
    let candidates = match probes {
        Probes::Failing => PROBES_FAIL.to_vec(),
        Probes::Answered => PROBES_WORK.to_vec(),
        Probes::Unseen => PROBES_WORK.iter().chain(PROBES_FAIL).copied().collect(),
    };
    Silence { causes: Vec::new(), candidates }
}

/// Azure says that a consumer is approved, the probes are answered, nothing is configured wrong, and yet nothing comes.
fn consumer_side(scope: &Scope<'_>, probes: Probes) -> Option<Finding> {
    let link = scope.private_link.filter(|_| probes == Probes::Answered)?;
    // Without the groups' rules one of them may drop the packets.
    scope.world.private_link.security_groups.as_ref()?;
    let approved: Vec<_> =
        link.connections.iter().filter(|own| own.state == ConnectionState::Approved).collect();
    let first = approved.first()?;
    let sentence = format!(
        "nothing of {} consumers came to this node, though Azure has approved them and the load balancer's probes are answered: the fault is on the consumer's side, or another node gets the traffic",
        approved.len()
    );
    let subject = Subject::named(SubjectKind::PrivateLinkService, &link.name);
    Some(
        Finding::new(Code::ConsumerSide, subject, sentence)
            .because(Source::Azure, format!("connection {} is Approved", first.name))
            .because(Source::Packets, "the load balancer's probes are answered, and no packet of a NAT IP was seen")
            .remedy(Remedy::Text(
                "ask the consumer: does the name resolve to the private endpoint's address, do NSG and routes of its subnet let the traffic out; and look at PLSBytesIn of the Private Link service"
                    .to_owned(),
            )),
    )
}
