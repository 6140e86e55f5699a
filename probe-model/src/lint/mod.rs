//! The causes that need no traffic: what is wrong with a service, its policies and its Private Link as they are configured.

mod addresses;
mod candidates;
mod egress;
mod judge;
mod node;
mod policy;
mod private_link;
mod probe;
mod scope;
mod service;
mod silence;
mod sources;

use core::cmp::Reverse;

use crate::explain::Finding;
use crate::world::nat::{Confidence, Disagreement, NatOrigin, NatSource, nat_sources};

pub use scope::{Entry, Scope};
pub use silence::{Probes, Silence, silence};

/// What was found, and what could not be judged.
#[derive(Clone, Debug, Default)]
pub struct Lint {
    /// The worst first.
    pub findings: Vec<Finding>,
    /// What could not be judged, and why.
    pub unjudged: Vec<Unjudged>,
    /// Where sources contradict each other.
    pub disagreements: Vec<Disagreement>,
}

/// Something that could not be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unjudged {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Lint {
    fn unjudged(&mut self, what: String, why: String) {
        let one = Unjudged { what, why };
        if !self.unjudged.contains(&one) {
            self.unjudged.push(one);
        }
    }
}

/// Everything that is wrong with what `scope` is about, as far as it can be known without a packet.
pub fn lint(scope: &Scope<'_>) -> Lint {
    let nat = nat_sources(scope.world);
    let disagreements = nat.disagreements.into_iter().chain(scope.world.disagreements.iter().cloned());
    let mut lint = Lint { disagreements: disagreements.collect(), ..Lint::default() };
    let sources = to_judge(nat.sources.into_iter().filter(|source| is_of(scope, &source.origin)).collect());
    sources::check(scope, &sources, &mut lint);
    probe::check(scope, &mut lint);
    policy::check(scope, &mut lint);
    egress::check(scope, &mut lint);
    service::check(scope, &mut lint);
    private_link::check(scope, &sources, &mut lint);
    addresses::check(scope, &sources, &mut lint);
    node::check(scope, &mut lint);
    sort(&mut lint.findings);
    lint
}

/// The NAT IPs themselves where they are known; else the subnets that they are in, of which not every address is one.
fn to_judge(sources: Vec<NatSource>) -> Vec<NatSource> {
    let is_sure = |source: &NatSource| source.confidence() >= Confidence::Declared;
    if sources.iter().any(is_sure) { sources.into_iter().filter(is_sure).collect() } else { sources }
}

/// Whether a NAT IP may be one of the service's: not if it is known to be another service's.
fn is_of(scope: &Scope<'_>, origin: &NatOrigin) -> bool {
    match origin {
        NatOrigin::Interface { private_link }
        | NatOrigin::Configuration { private_link }
        | NatOrigin::ConfiguredSubnet { private_link, .. } => {
            scope.private_link.is_none_or(|own| own.name == *private_link)
        }
        NatOrigin::Annotation { service }
        | NatOrigin::ServiceSubnet { service, .. }
        | NatOrigin::Conntrack { service, .. } => scope.service.is_none_or(|own| own.to_string() == *service),
        NatOrigin::NatIpFlag | NatOrigin::SubnetFlag | NatOrigin::ProxyHeader => true,
    }
}

/// The worst first, then by code; the same said of several addresses is said once.
fn sort(findings: &mut Vec<Finding>) {
    findings.sort_by(|a, b| {
        let key = |finding: &Finding| (Reverse(finding.severity), finding.code);
        key(a).cmp(&key(b)).then_with(|| (&a.subject, &a.sentence).cmp(&(&b.subject, &b.sentence)))
    });
    findings.dedup_by(|later, first| {
        (later.code, &later.subject) == (first.code, &first.subject) && later.sentence == first.sentence
    });
}
