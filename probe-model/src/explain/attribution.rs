//! Which policy objects are behind an entry, or behind the absence of one.

use crate::cilium::identity::Identity;
use crate::cilium::policy::{PolicyKey, PolicyVerdict};
use crate::cilium::{Direction, EndpointId};
use crate::intent::label::Labels;
use crate::intent::object::{Policy, Rule, RuleSubject};
use crate::simulate::PolicyStep;
use crate::tuple::Protocol;
use crate::world::{L4Filter, PolicyRef, SelectorUse, World};

/// The selector of everybody, as the agent writes it.
const WILDCARD_SELECTOR: &str =
    "&LabelSelector{MatchLabels:map[string]string{},MatchExpressions:[]LabelSelectorRequirement{},}";

/// The policies behind a policy check: of its entry, or of the default deny.
pub(super) fn policies_of(world: &World, step: &PolicyStep) -> Vec<PolicyRef> {
    match (&step.decision.entry, step.decision.verdict) {
        (Some((key, entry)), _) => policies_behind(world, step.endpoint, key, entry.deny()),
        (None, PolicyVerdict::Drop(_)) => policies_selecting(world, step.endpoint, step.query.direction),
        (None, PolicyVerdict::Allow { .. }) => Vec::new(),
    }
}

/// The policies that put an entry into an endpoint's map, as the agent's realized policy names them.
///
/// Empty if the agent was not asked, or names none: Cilium writes some entries by itself.
pub fn policies_behind(world: &World, endpoint: EndpointId, key: &PolicyKey, deny: bool) -> Vec<PolicyRef> {
    let policy = world.endpoints.get(&endpoint).and_then(|endpoint| endpoint.policy.as_ref());
    let filters = policy.iter().flat_map(|policy| &policy.filters).filter(|filter| filter_made(filter, key));
    let uses = filters.flat_map(|filter| &filter.selectors);
    let selected = uses.filter(|used| used.deny == deny && selector_holds(world, used, key.sec_label));
    sorted(selected.flat_map(|used| used.derived_from.iter().cloned()))
}

/// The policies whose selection of the endpoint makes `direction` default deny.
///
/// Empty if the agent was not asked or no rule of its selects the endpoint.
pub fn policies_selecting(world: &World, endpoint: EndpointId, direction: Direction) -> Vec<PolicyRef> {
    let rules = rules_selecting(world, endpoint).into_iter();
    let enforcing = rules.filter(|(_, rule)| rule.side(direction).enforces);
    sorted(enforcing.map(|(policy, _)| policy.reference.clone()))
}

/// The rules that select an endpoint, each with its policy: the agent's, which this node enforces.
pub fn rules_selecting(world: &World, endpoint: EndpointId) -> Vec<(&Policy, &Rule)> {
    let labels =
        world.endpoints.get(&endpoint).map(|endpoint| endpoint.labels.as_slice()).unwrap_or_default();
    let labels = Labels::parse(labels.iter().map(String::as_str));
    let selects = |rule: &Rule| match &rule.subject {
        RuleSubject::Endpoints(selector) => selector.selects(&labels),
        RuleSubject::Nodes(_) => false,
    };
    let policies = world.rules.iter().flat_map(|objects| &objects.policies);
    let rules = policies.flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    rules.filter(|(_, rule)| selects(rule)).collect()
}

fn sorted(policies: impl Iterator<Item = PolicyRef>) -> Vec<PolicyRef> {
    let mut all: Vec<_> = policies.collect();
    all.sort();
    all.dedup();
    all
}

/// Whether the filter's protocol and ports are the ones of the key.
fn filter_made(filter: &L4Filter, key: &PolicyKey) -> bool {
    if filter.direction != key.direction {
        return false;
    }
    let names_protocol = key.l4_prefix() > 0;
    let names_port = key.l4_prefix() > 8;
    let ports = filter.port..=filter.end_port.unwrap_or(filter.port);
    match (names_protocol, names_port) {
        (false, _) => filter.protocol == Protocol::ANY && filter.port == 0,
        (true, false) => filter.protocol == Protocol(key.protocol) && filter.port == 0,
        // A range is cut into prefixes; each begins inside it.
        (true, true) => filter.protocol == Protocol(key.protocol) && ports.contains(&key.dport),
    }
}

fn selector_holds(world: &World, used: &SelectorUse, identity: Identity) -> bool {
    if identity == Identity::UNKNOWN || used.selector == WILDCARD_SELECTOR {
        return identity == Identity::UNKNOWN && used.selector == WILDCARD_SELECTOR;
    }
    world.selectors.get(&used.selector).is_some_and(|identities| identities.contains(&identity))
}
