//! What the agent makes of a scenario's policy: CIDR identities and the entries of the pods' policy maps.
//!
//! Source: Cilium 1.14 `pkg/policy/{mapstate,l4}.go`, checked against the recordings in the tests below.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use probe_model::cilium::Direction;
use probe_model::cilium::identity::Identity;
use probe_model::cilium::policy::{PolicyEntry, PolicyKey, PolicyLayout};

use crate::scenario::{Policy, Rule};

/// The first identity that the agent gives to a prefix.
const FIRST_CIDR_IDENTITY: u32 = (1 << 24) + 1;
/// `prefixlen` of a key that leaves protocol and port open.
const ANY_L4: u32 = 40;
/// `prefixlen` of a key with protocol and port.
const FULL_L4: u32 = 64;
/// IP protocol number of TCP.
const TCP: u8 = 6;
/// The layout of the stand-in's policy maps.
pub(super) const LAYOUT: PolicyLayout = PolicyLayout::WildcardBits;

/// A policy as the datapath of one endpoint sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realized {
    /// The identities of the prefixes that the policy names, in the order of their numbers.
    pub cidr_identities: Vec<(Ipv4Net, Identity)>,
    /// The endpoint's policy map.
    pub entries: BTreeMap<PolicyKey, PolicyEntry>,
    /// Whether ingress is enforced.
    pub ingress: bool,
    /// Whether egress is enforced.
    pub egress: bool,
}

impl Realized {
    /// What `policy` comes to; `None` enforces nothing.
    ///
    /// # Errors
    ///
    /// A rule's prefix is none.
    pub fn new(policy: Option<&Policy>) -> Result<Self> {
        let mut realized = Self {
            cidr_identities: cidr_identities(policy)?,
            entries: BTreeMap::new(),
            ingress: policy.is_some_and(|policy| policy.ingress.is_some()),
            egress: policy.is_some_and(|policy| policy.egress.is_some()),
        };
        // A direction that is not enforced holds one entry for everybody; the host always gets in.
        if !realized.ingress {
            realized.insert(Identity::UNKNOWN, Direction::Ingress, None, false);
        }
        if !realized.egress {
            realized.insert(Identity::UNKNOWN, Direction::Egress, None, false);
        }
        realized.insert(Identity::HOST, Direction::Ingress, None, false);
        if let Some(policy) = policy {
            realized.apply(policy.ingress.unwrap_or_default(), Direction::Ingress, false)?;
            realized.apply(policy.egress.unwrap_or_default(), Direction::Egress, false)?;
            realized.apply(policy.ingress_deny, Direction::Ingress, true)?;
        }
        Ok(realized)
    }

    /// The same for the host's own endpoint, which needs no entry for the host.
    #[must_use]
    pub fn without_host(mut self) -> Self {
        self.entries.retain(|key, _| key.sec_label != Identity::HOST);
        self
    }

    /// The agent's word for which directions are enforced.
    pub fn policy_enabled(&self) -> &'static str {
        match (self.ingress, self.egress) {
            (false, false) => "none",
            (true, false) => "ingress",
            (false, true) => "egress",
            (true, true) => "both",
        }
    }

    /// The identities of `prefix` and of every narrower prefix that has one, which is what a selector selects.
    pub fn selected(&self, prefix: Ipv4Net) -> impl Iterator<Item = Identity> + '_ {
        self.cidr_identities
            .iter()
            .filter(move |(narrower, _)| prefix.contains(narrower))
            .map(|(_, identity)| *identity)
    }

    /// Identities with an entry that leaves protocol and port open, which is all that the agent's REST answer lists.
    pub fn l3_only(&self, direction: Direction, deny: bool) -> Vec<Identity> {
        let listed = |(key, entry): &(&PolicyKey, &PolicyEntry)| {
            key.direction == direction && key.prefixlen == ANY_L4 && entry.deny() == deny
        };
        self.entries.iter().filter(listed).map(|(key, _)| key.sec_label).collect()
    }

    fn apply(&mut self, rules: &[Rule], direction: Direction, deny: bool) -> Result<()> {
        for rule in rules {
            for identity in self.selected(rule.prefix()?).collect::<Vec<_>>() {
                if deny && rule.tcp_port.is_none() {
                    // A denial of everything leaves no allowance of anything beside it.
                    self.entries.retain(|key, _| key.sec_label != identity || key.direction != direction);
                }
                self.insert(identity, direction, rule.tcp_port, deny);
            }
        }
        Ok(())
    }

    fn insert(&mut self, sec_label: Identity, direction: Direction, tcp_port: Option<u16>, deny: bool) {
        let key = match tcp_port {
            None => PolicyKey { prefixlen: ANY_L4, sec_label, direction, protocol: 0, dport: 0 },
            Some(dport) => PolicyKey { prefixlen: FULL_L4, sec_label, direction, protocol: TCP, dport },
        };
        self.entries.insert(key, PolicyEntry::for_key(&key, LAYOUT, deny));
    }
}

impl Rule {
    /// Its prefix.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn prefix(&self) -> Result<Ipv4Net> {
        self.cidr.parse().with_context(|| format!("`{}` is no IPv4 prefix", self.cidr))
    }
}

/// One identity per prefix, counted up in the order of the policy.
fn cidr_identities(policy: Option<&Policy>) -> Result<Vec<(Ipv4Net, Identity)>> {
    let mut prefixes = Vec::new();
    if let Some(policy) = policy {
        let allowed = [policy.ingress, policy.egress].into_iter().flatten().flatten();
        for rule in allowed.chain(policy.ingress_deny) {
            let prefix = rule.prefix()?;
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
    }
    Ok(prefixes.into_iter().zip((FIRST_CIDR_IDENTITY..).map(Identity)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use probe_model::cilium::ipcache::{IpcacheKey, RemoteEndpointInfo};

    use super::*;
    use crate::dump::map_dump;
    use crate::scenario::Scenario;

    /// An entry without its counters, and with its CIDR identity replaced by the prefix it stands for: numbers are
    /// the agent's own affair.
    type Comparable = BTreeSet<(String, u32, Direction, u8, u16, u8)>;

    /// Our realization of a scenario equals what the agent wrote for the same rules.
    fn check(scenario: &str, recorded: &str) {
        let policy = Scenario::named(scenario).unwrap().policy;
        let realized = Realized::new(policy.as_ref()).unwrap();
        let maps = fixtures::recording("cilium-1.14").join(recorded).join("maps");
        let ipcache: Vec<_> = map_dump(&maps.join("cilium_ipcache.json"))
            .into_iter()
            .map(|(key, value)| {
                let prefix = IpcacheKey::decode(&key).unwrap().prefix.to_string();
                (prefix, RemoteEndpointInfo::decode(&value).unwrap().sec_identity)
            })
            .collect();
        let theirs = map_dump(&maps.join("cilium_policy_02686.json")).into_iter().map(|(key, value)| {
            (PolicyKey::decode(&key, LAYOUT).unwrap(), PolicyEntry::decode(&value, LAYOUT).unwrap())
        });
        let ours = realized.cidr_identities.iter().map(|(prefix, identity)| (prefix.to_string(), *identity));
        let ours =
            comparable(realized.entries.iter().map(|(key, entry)| (*key, *entry)), &ours.collect::<Vec<_>>());
        assert_eq!(ours, comparable(theirs, &ipcache), "{scenario} against {recorded}");
    }

    fn comparable(
        entries: impl Iterator<Item = (PolicyKey, PolicyEntry)>,
        identities: &[(String, Identity)],
    ) -> Comparable {
        let name = |identity: Identity| {
            let prefix = identities.iter().find(|(_, known)| *known == identity && identity.is_local_scope());
            prefix.map_or_else(|| identity.to_string(), |(prefix, _)| prefix.clone())
        };
        entries
            .map(|(key, entry)| {
                (name(key.sec_label), key.prefixlen, key.direction, key.protocol, key.dport, entry.flags)
            })
            .collect()
    }

    #[test]
    fn entries_equal_the_recorded_agents() {
        check("none", "none");
        check("seed-egress-only", "egress-only");
        check("allow-peered", "cidr-peered-80");
        check("allow-nat-ip", "cidr-pls8-80");
        check("explicit-deny", "deny-cidr");
    }

    #[test]
    fn an_empty_list_denies_what_no_list_leaves_open() {
        let deny = Realized::new(Scenario::named("seed-deny").unwrap().policy.as_ref()).unwrap();
        assert_eq!(deny.policy_enabled(), "both");
        assert_eq!(deny.l3_only(Direction::Ingress, false), [Identity::HOST]);
        assert_eq!(deny.l3_only(Direction::Egress, false), [Identity(FIRST_CIDR_IDENTITY)]);
    }
}
