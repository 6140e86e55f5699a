//! What one set of policies admits that another one does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::cluster::{Cluster, Pod};
use super::engine::{DirectionIntent, Engine};
use crate::cilium::Direction;
use crate::cilium::identity::Identity;
use crate::tuple::Protocol;
use crate::world::PodName;

/// Stands for the protocols without a name of their own: one that nothing else uses (RFC 3692).
const OTHER_PROTOCOLS: Protocol = Protocol(253);
/// The protocols that are told apart.
const PROTOCOLS: [Protocol; 6] =
    [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP, Protocol::ICMPV6, OTHER_PROTOCOLS];

/// Peers that are all treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Those of an identity: pods with the same labels, nodes.
    Identity(Identity),
    /// All addresses of a prefix.
    Prefix(IpNet),
    /// The addresses of a prefix, but for many longer prefixes that have identities too.
    Rest(IpNet),
    /// All other addresses outside the cluster.
    World,
}

/// Peers, protocol and ports that are admitted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Admitted {
    /// Which pod's policy it is.
    pub pod: PodName,
    /// Whom.
    pub peers: Peers,
    /// The protocol; [`Protocol::ANY`] for those without a name.
    pub protocol: Protocol,
    /// The first port, or ICMP type.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl Admitted {
    /// Protocol and ports: `TCP/8080`, `TCP/8000-8443`, `TCP`, `ICMP type 8`.
    pub fn ports(&self) -> String {
        let Self { protocol, first, last, .. } = self;
        let ports = match (first, last) {
            (0, &u16::MAX) => {
                return if *protocol == Protocol::ANY {
                    "other protocols".to_owned()
                } else {
                    protocol.to_string()
                };
            }
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        if protocol.is_icmp() { format!("{protocol} type {ports}") } else { format!("{protocol}/{ports}") }
    }
}

/// Admitted flows by peers and ports, with the pods that they are admitted at: what a person reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whom, in words.
    pub peers: String,
    /// Protocols and ports.
    pub ports: Vec<String>,
    /// At which pods.
    pub pods: Vec<PodName>,
}

impl fmt::Display for Line {
    /// `CIDR 10.224.0.9/32 on TCP/8080 at default/web and 3 more pods`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.peers, self.ports.join(", "))?;
        match self.pods.as_slice() {
            [] => Ok(()),
            [pod] => write!(f, " at {pod}"),
            [pod, other] => write!(f, " at {pod} and {other}"),
            [pod, more @ ..] => write!(f, " at {pod} and {} more pods", more.len()),
        }
    }
}

/// The same flows, those of equal ports and pods together.
pub fn lines(cluster: &Cluster, admitted: &[Admitted]) -> Vec<Line> {
    let mut ports: BTreeMap<(Peers, &PodName), Vec<String>> = BTreeMap::new();
    for one in admitted {
        ports.entry((one.peers, &one.pod)).or_default().push(one.ports());
    }
    let mut pods: BTreeMap<(Peers, Vec<String>), Vec<PodName>> = BTreeMap::new();
    for ((peers, pod), ports) in ports {
        pods.entry((peers, ports)).or_default().push(pod.clone());
    }
    pods.into_iter().map(|((peers, ports), pods)| Line { peers: peers.words(cluster), ports, pods }).collect()
}

impl Peers {
    /// In words: `pod default/db`, `another node (remote-node)`, `CIDR 10.0.0.0/8`, `any other address outside`.
    pub fn words(self, cluster: &Cluster) -> String {
        match self {
            Self::Identity(identity) => cluster.identity_words(identity, None),
            Self::Prefix(prefix) if prefix == IpNet::from(prefix.addr()) => prefix.addr().to_string(),
            Self::Prefix(prefix) => format!("CIDR {prefix}"),
            Self::Rest(prefix) => format!("the rest of CIDR {prefix}"),
            Self::World => "any other address outside the cluster".to_owned(),
        }
    }
}

/// What `after` admits at these pods in a direction and `before` does not, sorted.
pub fn difference(before: &Engine, after: &Engine, pods: &[&Pod], direction: Direction) -> Vec<Admitted> {
    let classes = Classes::new(before.cluster(), after.cluster());
    let mut admitted = Vec::new();
    for pod in pods {
        let (old, new) = (before.judge(pod, direction), after.judge(pod, direction));
        let changed = changed(&old, &new);
        let could_differ = |[was, is]: &[Identity; 2]| {
            was != is || changed.contains(&Identity::UNKNOWN) || changed.contains(is)
        };
        for (peers, identities) in classes.all.iter().filter(|(_, identities)| could_differ(identities)) {
            for one in newly(&old, &new, &pod.name, *peers, *identities) {
                let regions = classes.regions(*peers).into_iter();
                admitted.extend(regions.map(|peers| Admitted { peers, ..one.clone() }));
            }
        }
    }
    admitted.sort();
    admitted
}

/// The identities whose entries are not the same in both.
fn changed(old: &DirectionIntent, new: &DirectionIntent) -> BTreeSet<Identity> {
    let rows = |intent: &DirectionIntent| {
        let entry = |entry: &super::engine::IntentEntry| (entry.key, entry.entry.deny);
        intent.entries.iter().map(entry).collect::<BTreeSet<_>>()
    };
    rows(old).symmetric_difference(&rows(new)).map(|(key, _)| key.sec_label).collect()
}

/// As many prefixes are named instead of the one that they are the rest of.
const NAMED_REGIONS: usize = 4;

/// Every class of peers, with its identity before and after.
struct Classes {
    all: Vec<(Peers, [Identity; 2])>,
    prefixes: BTreeSet<IpNet>,
}

impl Classes {
    fn new(before: &Cluster, after: &Cluster) -> Self {
        let inside = |identity: &Identity| {
            !identity.is_local_scope() && !identity.is_world() && *identity != Identity::UNKNOWN
        };
        let identities = after.identities.keys().copied().filter(inside);
        let identities = identities.map(|identity| (Peers::Identity(identity), [identity; 2]));
        let local = |cluster: &Cluster| {
            let local = cluster.prefixes.iter().filter(|(_, identity)| identity.is_local_scope());
            local.map(|(prefix, _)| *prefix).collect::<BTreeSet<_>>()
        };
        let prefixes: BTreeSet<_> = local(before).union(&local(after)).copied().collect();
        let by_prefix = prefixes.iter().map(|prefix| {
            (Peers::Rest(*prefix), [before.lookup_prefix(*prefix), after.lookup_prefix(*prefix)])
        });
        let world = after.world(std::net::Ipv4Addr::UNSPECIFIED.into());
        let all = identities.chain(by_prefix).chain([(Peers::World, [world; 2])]).collect();
        Self { all, prefixes }
    }

    /// The addresses of a prefix that no longer one has: none, some prefixes, or too many to name.
    fn regions(&self, peers: Peers) -> Vec<Peers> {
        let Peers::Rest(prefix) = peers else { return vec![peers] };
        let inside = self.prefixes.range(prefix..).skip(1).take_while(|other| prefix.contains(*other));
        let rest = super::object::without(prefix, &inside.copied().collect::<Vec<_>>());
        if rest.len() > NAMED_REGIONS { vec![peers] } else { rest.into_iter().map(Peers::Prefix).collect() }
    }
}

/// The ranges of ports that are admitted after and were not before.
fn newly(
    old: &DirectionIntent,
    new: &DirectionIntent,
    pod: &PodName,
    peers: Peers,
    [was, is]: [Identity; 2],
) -> Vec<Admitted> {
    let mut admitted: Vec<Admitted> = Vec::new();
    for protocol in PROTOCOLS {
        let starts = starts(&[old, new], protocol);
        for (number, first) in starts.iter().enumerate() {
            let last = starts.get(number + 1).map_or(u16::MAX, |next| next - 1);
            let changed =
                new.verdict(is, protocol, *first).admits() && !old.verdict(was, protocol, *first).admits();
            let protocol = if protocol == OTHER_PROTOCOLS { Protocol::ANY } else { protocol };
            match admitted.last_mut() {
                _ if !changed => {}
                Some(one) if one.protocol == protocol && one.last.checked_add(1) == Some(*first) => {
                    one.last = last;
                }
                _ => admitted.push(Admitted { pod: pod.clone(), peers, protocol, first: *first, last }),
            }
        }
    }
    admitted
}

/// Where ranges of ports begin that no entry divides.
fn starts(intents: &[&DirectionIntent], protocol: Protocol) -> Vec<u16> {
    let mut starts = BTreeSet::from([0]);
    let entries = intents.iter().flat_map(|intent| &intent.entries);
    for entry in entries.filter(|entry| entry.key.protocol == protocol.0) {
        let bits = entry.key.l4_prefix().saturating_sub(8);
        let ports = 1_u32 << (16 - u32::from(bits.min(16)));
        starts.insert(entry.key.dport);
        starts.extend(u16::try_from(u32::from(entry.key.dport) + ports));
    }
    starts.into_iter().collect()
}
