//! What one set of policies admits that another one does not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use ipnet::IpNet;

use super::cluster::{Cluster, Pod};
use super::engine::{DirectionIntent, IntentEntry};
use crate::cilium::identity::Identity;
use crate::cilium::policy::PolicyKey;
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

/// One direction of a pod, judged by what was and by what is.
pub(super) struct Judged<'a> {
    /// The pod.
    pub(super) pod: &'a Pod,
    /// What it was.
    pub(super) before: &'a DirectionIntent,
    /// What it is.
    pub(super) after: &'a DirectionIntent,
}

/// What is admitted at one pod that was not, in no order. `classes` are those of the clusters before and after.
pub(super) fn difference(classes: &Classes, judged: &Judged<'_>) -> Vec<Admitted> {
    let mut compared = Compared::new(judged);
    let mut admitted = Vec::new();
    for (peers, identities) in &classes.all {
        let newly = compared.newly(*identities);
        if newly.is_empty() {
            continue;
        }
        for peers in classes.regions(*peers) {
            let pod = &judged.pod.name;
            let at = |&Ports { protocol, first, last }: &Ports| Admitted {
                pod: pod.clone(),
                peers,
                protocol,
                first,
                last,
            };
            admitted.extend(newly.iter().map(at));
        }
    }
    admitted
}

/// As many prefixes are named instead of the one that they are the rest of.
const NAMED_REGIONS: usize = 4;

/// Every class of peers, with its identity before and after.
pub(super) struct Classes {
    all: Vec<(Peers, [Identity; 2])>,
    prefixes: BTreeSet<IpNet>,
}

impl Classes {
    pub(super) fn new(before: &Cluster, after: &Cluster) -> Self {
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

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    protocol: Protocol,
    first: u16,
    last: u16,
}

/// What an entry says beside whom it is for: all that makes it admit or not.
type Row = (PolicyKey, bool);

/// The entries of each identity, in the order of the map.
type Rows = HashMap<Identity, Vec<Row>>;

fn rows(intent: &DirectionIntent) -> Rows {
    let mut rows = Rows::new();
    for IntentEntry { key, entry } in &intent.entries {
        let anybody = PolicyKey { sec_label: Identity::UNKNOWN, ..*key };
        rows.entry(key.sec_label).or_default().push((anybody, entry.deny));
    }
    rows
}

/// The entries of two judgements by identity.
///
/// The datapath looks at those of the packet's identity and at those of any. So peers whose own were and are equal to those
/// of others come to the same, and nothing at all changes for peers without a change in either.
struct Compared<'a> {
    judged: &'a Judged<'a>,
    rows: [Rows; 2],
    anybody_changed: bool,
    /// What is newly admitted, by the entries before and after.
    known: HashMap<[Vec<Row>; 2], Vec<Ports>>,
}

impl<'a> Compared<'a> {
    fn new(judged: &'a Judged<'a>) -> Self {
        let rows = [rows(judged.before), rows(judged.after)];
        let [was, is] = both(&rows, [Identity::UNKNOWN; 2]);
        let anybody_changed = was != is;
        Self { judged, rows, anybody_changed, known: HashMap::new() }
    }

    /// The ranges of ports that are admitted to peers of this identity, and were not to the one that they had.
    fn newly(&mut self, identities: [Identity; 2]) -> &[Ports] {
        let [was, is] = both(&self.rows, identities);
        if was == is && !self.anybody_changed {
            return &[];
        }
        let of_anybody = both(&self.rows, [Identity::UNKNOWN; 2]);
        let relevant = || [was, is].into_iter().chain(of_anybody).flatten().map(|(key, _)| key);
        let found = || newly(self.judged, identities, relevant);
        self.known.entry([was.to_vec(), is.to_vec()]).or_insert_with(found)
    }
}

/// The entries before and after.
fn both(rows: &[Rows; 2], [was, is]: [Identity; 2]) -> [&[Row]; 2] {
    [entries_of(&rows[0], was), entries_of(&rows[1], is)]
}

fn entries_of(rows: &Rows, identity: Identity) -> &[Row] {
    rows.get(&identity).map_or(&[], Vec::as_slice)
}

/// The ranges of ports that are admitted after and were not before; `keys` are those that could decide.
fn newly<'k, K: Iterator<Item = &'k PolicyKey>>(
    judged: &Judged<'_>,
    [was, is]: [Identity; 2],
    keys: impl Fn() -> K,
) -> Vec<Ports> {
    let mut admitted: Vec<Ports> = Vec::new();
    for protocol in PROTOCOLS {
        let starts = starts(keys(), protocol);
        for (number, first) in starts.iter().enumerate() {
            let last = starts.get(number + 1).map_or(u16::MAX, |next| next - 1);
            let was_admitted = || judged.before.verdict(was, protocol, *first).admits();
            let changed = judged.after.verdict(is, protocol, *first).admits() && !was_admitted();
            let protocol = if protocol == OTHER_PROTOCOLS { Protocol::ANY } else { protocol };
            match admitted.last_mut() {
                _ if !changed => {}
                Some(one) if one.protocol == protocol && one.last.checked_add(1) == Some(*first) => {
                    one.last = last;
                }
                _ => admitted.push(Ports { protocol, first: *first, last }),
            }
        }
    }
    admitted
}

/// Where ranges of ports begin that no key divides.
fn starts<'k>(keys: impl Iterator<Item = &'k PolicyKey>, protocol: Protocol) -> Vec<u16> {
    let mut starts = BTreeSet::from([0]);
    for key in keys.filter(|key| key.protocol == protocol.0) {
        let bits = key.l4_prefix().saturating_sub(8);
        let ports = 1_u32 << (16 - u32::from(bits.min(16)));
        starts.insert(key.dport);
        starts.extend(u16::try_from(u32::from(key.dport) + ports));
    }
    starts.into_iter().collect()
}

#[cfg(test)]
mod tests;
