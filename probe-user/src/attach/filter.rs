//! What the operator asked about, as the programs' maps.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use ipnet::IpNet;
use probe_common::{AddressSet, PORTS_ANY, PortKey, PrefixKey};

use super::borrow;
use super::expression::Expression;
use crate::sys::Wire;

/// Ports of one protocol. All of them is the protocol alone, whether or not it has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// IP protocol number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last port, which belongs to it.
    pub last: u16,
}

impl PortRange {
    /// A single port.
    pub fn one(port: u16, protocol: u8) -> Self {
        Self { protocol, first: port, last: port }
    }

    /// Every packet of a protocol.
    pub fn all(protocol: u8) -> Self {
        Self { protocol, first: 0, last: u16::MAX }
    }

    /// Whether a port is one of them.
    pub fn contains(&self, port: u16, protocol: u8) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }

    /// The fewest prefixes that make up the range: port and number of bits.
    fn prefixes(self) -> Vec<(u16, u32)> {
        let mut prefixes = Vec::new();
        let (mut next, end) = (u32::from(self.first), u32::from(self.last) + 1);
        while next < end {
            // As large as alignment and what is left allow.
            let size_bits = next.trailing_zeros().min((end - next).ilog2()).min(16);
            prefixes.push((next as u16, 16 - size_bits));
            next += 1 << size_bits;
        }
        prefixes
    }
}

/// Addresses that packets are matched against on either side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// A pod's address, a frontend's, a node's for its node ports; or a prefix.
    pub net: IpNet,
    /// Only these ports; empty is every packet.
    pub ports: Vec<PortRange>,
}

impl Target {
    /// Whether an end with this address and port is one of it.
    pub fn has_end(&self, address: IpAddr, port: u16, protocol: u8) -> bool {
        self.net.contains(&address)
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(port, protocol)))
    }
}

/// Which packets become records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these on either side.
    pub targets: Vec<Target>,
    /// If not empty: the other side is in one of these. The node's own addresses belong here too, or packets that
    /// were masqueraded on their way are missed.
    pub sources: Vec<IpNet>,
    /// Only packets that this matches too, whatever else says so.
    pub expression: Option<Expression>,
}

impl Filter {
    /// Whether it keeps the same packets, as far as its own prefixes tell.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let sources = |of: &Self| of.sources.iter().map(IpNet::trunc).collect::<BTreeSet<_>>();
        effective(&self.targets) == effective(&other.targets)
            && sources(self) == sources(other)
            && self.expression == other.expression
    }
}

/// What is asked of the ports at a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ports {
    Some(BTreeSet<PortRange>),
    Any,
}

impl Ports {
    fn of(target: &Target) -> Self {
        if target.ports.is_empty() { Self::Any } else { Self::Some(target.ports.iter().copied().collect()) }
    }

    fn or(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Some(mut ports), Self::Some(more)) => {
                ports.extend(more);
                Self::Some(ports)
            }
            _ => Self::Any,
        }
    }
}

/// The filter's maps as they are to be, before the kernel has them.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    targets: BTreeMap<IpNet, u32>,
    /// Keys with their number of bits.
    ports: BTreeSet<(u32, PortKey)>,
    sources: BTreeSet<IpNet>,
}

impl Compiled {
    pub(super) fn new(filter: &Filter) -> Self {
        let mut sets: BTreeMap<BTreeSet<PortRange>, u32> = BTreeMap::new();
        let mut number = |ports: Ports| match ports {
            Ports::Any => PORTS_ANY,
            Ports::Some(ports) => {
                let next = sets.len() as u32 + 1;
                *sets.entry(ports).or_insert(next)
            }
        };
        let targets = effective(&filter.targets).into_iter().map(|(net, ports)| (net, number(ports)));
        let targets = targets.collect();
        let keys =
            sets.iter().flat_map(|(ports, set)| ports.iter().flat_map(|range| port_keys(*range, *set)));
        Self { targets, ports: keys.collect(), sources: filter.sources.iter().map(IpNet::trunc).collect() }
    }

    /// Map names with the entries that they must have room for.
    pub(super) fn sizes(&self) -> [(&'static str, u32); 4] {
        let sizes = [
            ("HOSTS", self.hosts().count()),
            ("TARGETS", self.prefixes().count()),
            ("PORTS", self.ports.len()),
            ("SOURCES", self.sources.len()),
        ];
        // The kernel makes no map without room.
        sizes.map(|(name, len)| (name, len.max(1) as u32))
    }

    /// Targets that are one address, each with its set of ports.
    fn hosts(&self) -> impl Iterator<Item = (&IpNet, &u32)> {
        self.targets.iter().filter(|(net, _)| net.prefix_len() == net.max_prefix_len())
    }

    /// The other targets.
    fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &u32)> {
        self.targets.iter().filter(|(net, _)| net.prefix_len() != net.max_prefix_len())
    }

    /// Whether there are targets that are not one address.
    pub(super) fn has_prefixes(&self) -> bool {
        self.prefixes().next().is_some()
    }

    /// What the programs ask before they look up a target.
    pub(super) fn addresses(&self) -> AddressSet {
        let shortest = |is_ipv4| {
            let family = self.targets.keys().filter(|net| net.addr().is_ipv4() == is_ipv4);
            family.map(IpNet::prefix_len).min()
        };
        let mut set = AddressSet::new(shortest(true).unwrap_or(32), shortest(false).unwrap_or(128));
        for net in self.targets.keys() {
            let (addr, version) = address_bytes(net.network());
            set.insert(&addr, version);
        }
        set
    }

    pub(super) fn fill(&self, ebpf: &mut Ebpf) -> Result<()> {
        // Borrowed, not taken: programs that are loaded later refer to these maps by their open descriptors.
        let mut hosts: HashMap<&mut MapData, Wire<PrefixKey>, u32> = borrow(ebpf, "HOSTS")?;
        for (net, set) in self.hosts() {
            let added = hosts.insert(address_key(*net), set, 0);
            added.with_context(|| format!("failed to add `{net}` to the filter's targets"))?;
        }
        let mut targets: LpmTrie<&mut MapData, Wire<PrefixKey>, u32> = borrow(ebpf, "TARGETS")?;
        for (net, set) in self.prefixes() {
            let added = targets.insert(&prefix_key(*net), set, 0);
            added.with_context(|| format!("failed to add `{net}` to the filter's targets"))?;
        }
        let mut ports: LpmTrie<&mut MapData, Wire<PortKey>, u32> = borrow(ebpf, "PORTS")?;
        for (bits, key) in &self.ports {
            ports
                .insert(&Key::new(*bits, Wire(*key)), 1, 0)
                .context("failed to add to the filter's ports")?;
        }
        let mut sources: LpmTrie<&mut MapData, Wire<PrefixKey>, u32> = borrow(ebpf, "SOURCES")?;
        for net in &self.sources {
            let added = sources.insert(&prefix_key(*net), 1, 0);
            added.with_context(|| format!("failed to add `{net}` to the filter's sources"))?;
        }
        Ok(())
    }
}

/// Each prefix with the ports that match there. A trie finds the longest prefix only: it has what holds for those
/// around it as well.
fn effective(targets: &[Target]) -> BTreeMap<IpNet, Ports> {
    let mut own: BTreeMap<IpNet, Ports> = BTreeMap::new();
    for target in targets {
        let (net, mut ports) = (target.net.trunc(), Ports::of(target));
        if let Some(known) = own.remove(&net) {
            ports = ports.or(&known);
        }
        own.insert(net, ports);
    }
    let mut all = BTreeMap::new();
    // In this order a prefix comes after those that contain it, and between them comes nothing outside of them.
    let mut around: Vec<(IpNet, Ports)> = Vec::new();
    for (net, mut ports) in own {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        if let Some((_, outer)) = around.last() {
            ports = ports.or(outer);
        }
        around.push((net, ports.clone()));
        all.insert(net, ports);
    }
    all
}

fn port_keys(range: PortRange, set: u32) -> impl Iterator<Item = (u32, PortKey)> {
    range.prefixes().into_iter().map(move |(port, bits)| {
        (
            PortKey::HEAD_BITS + bits,
            PortKey { set, proto: range.protocol, pad: 0, port_be: port.to_be_bytes() },
        )
    })
}

fn prefix_key(net: IpNet) -> Key<Wire<PrefixKey>> {
    Key::new(PrefixKey::HEAD_BITS + u32::from(net.prefix_len()), address_key(net))
}

/// The key of a prefix's address.
fn address_key(net: IpNet) -> Wire<PrefixKey> {
    let (addr, version) = address_bytes(net.network());
    Wire(PrefixKey { version: version.into(), addr })
}

/// The bytes of an address as [`probe_common::Packet`] has them, and the version.
fn address_bytes(addr: IpAddr) -> ([u8; 16], u8) {
    match addr {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 4)
        }
        IpAddr::V6(v6) => (v6.octets(), 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(net: &str, ports: &[PortRange]) -> Target {
        let net = net.parse().unwrap_or_else(|_| net.parse::<IpAddr>().unwrap().into());
        Target { net, ports: ports.to_vec() }
    }

    fn ports_at<'a>(all: &'a BTreeMap<IpNet, Ports>, net: &str) -> &'a Ports {
        &all[&net.parse().unwrap()]
    }

    fn some(ports: &[PortRange]) -> Ports {
        Ports::Some(ports.iter().copied().collect())
    }

    #[test]
    fn an_address_without_a_port_wins_over_its_ports() {
        let with_port = target("10.0.0.143", &[PortRange::one(80, 6)]);
        let bare = target("10.0.0.143", &[]);
        let both = effective(&[bare.clone(), with_port.clone()]);
        assert_eq!(both, effective(&[with_port.clone(), bare]));
        assert_eq!(*ports_at(&both, "10.0.0.143/32"), Ports::Any);
        let more = target("10.0.0.143", &[PortRange::all(17)]);
        let joined = effective(&[with_port, more]);
        assert_eq!(*ports_at(&joined, "10.0.0.143/32"), some(&[PortRange::one(80, 6), PortRange::all(17)]));
    }

    #[test]
    fn a_longer_prefix_has_what_holds_around_it() {
        let (web, dns) = (PortRange::one(80, 6), PortRange::one(53, 17));
        let all = effective(&[
            target("10.0.1.7", &[]),
            target("10.0.0.0/8", &[web]),
            target("10.0.0.9/16", &[dns]),
            target("10.1.0.1", &[dns]),
            target("11.0.0.1", &[dns]),
            target("::/0", &[web]),
        ]);
        assert_eq!(*ports_at(&all, "10.0.0.0/8"), some(&[web]));
        assert_eq!(*ports_at(&all, "10.0.0.0/16"), some(&[web, dns]));
        assert_eq!(*ports_at(&all, "10.0.1.7/32"), Ports::Any);
        assert_eq!(*ports_at(&all, "10.1.0.1/32"), some(&[web, dns]));
        assert_eq!(*ports_at(&all, "11.0.0.1/32"), some(&[dns]));
    }

    #[test]
    fn a_range_is_exactly_its_prefixes() {
        for (first, last) in
            [(80, 80), (8000, 8100), (1, 65535), (0, 65535), (1, 65534), (65535, 65535), (7, 9)]
        {
            let prefixes = PortRange { protocol: 6, first, last }.prefixes();
            let inside = |port: u16| {
                let covers = |(base, bits): &(u16, u32)| u32::from(port ^ base) >> (16 - bits) == 0;
                prefixes.iter().filter(|prefix| covers(prefix)).count()
            };
            for port in 0..=u16::MAX {
                let expected = usize::from((first..=last).contains(&port));
                assert_eq!(inside(port), expected, "{port} in {first}-{last}: {prefixes:?}");
            }
            assert!(prefixes.len() <= 30, "{prefixes:?}");
        }
        assert_eq!(PortRange::all(17).prefixes(), [(0, 0)]);
    }

    #[test]
    fn equal_sets_of_ports_are_one() {
        let web = [PortRange::one(80, 6)];
        let targets = vec![target("10.0.0.1", &web), target("10.0.0.2", &web), target("fd00::1", &[])];
        let compiled = Compiled::new(&Filter { targets, ..Filter::default() });
        assert_eq!(compiled.targets.values().copied().collect::<Vec<_>>(), [1, 1, PORTS_ANY]);
        assert_eq!(compiled.sizes(), [("HOSTS", 3), ("TARGETS", 1), ("PORTS", 1), ("SOURCES", 1)]);
    }

    #[test]
    fn addresses_and_prefixes_are_kept_apart() {
        let of = |nets: &[&str]| {
            let targets = nets.iter().map(|net| target(net, &[])).collect();
            Compiled::new(&Filter { targets, ..Filter::default() })
        };
        let mixed = of(&["10.0.0.0/24", "10.0.0.1/32", "fd00::/64", "fd00::1/128", "fd00::2/127"]);
        assert_eq!((mixed.hosts().count(), mixed.prefixes().count()), (2, 3));
        assert!(mixed.has_prefixes() && !of(&["10.0.0.1", "fd00::1"]).has_prefixes());
    }

    #[test]
    fn an_ipv4_address_is_not_the_beginning_of_an_ipv6_one() {
        let key = |net: &str| prefix_key(net.parse().unwrap()).data().0;
        assert_ne!(key("10.0.0.0/32"), key("a00::/128"));
    }
}
