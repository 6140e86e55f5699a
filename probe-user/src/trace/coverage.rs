//! What our programs must see for all that is asked at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use probe_model::cilium::EndpointId;
use probe_model::path::{Fragment, HookPoint, Namespace, Packet, Path, Place};
use probe_model::tuple::Tuple;

use super::scope::{HOOKS_MAX, Scope, Tunnels};
use crate::attach::{Expression, Filter, Interface, KERNEL_HOOKS, Role};

/// Several scopes together: what is matched, where it is looked for, whose it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    /// What our programs keep.
    pub(super) filter: Filter,
    /// Interfaces to look at: the node's own, then pods'.
    pub(super) interfaces: Vec<Interface>,
    /// Interfaces of pods that are left out for want of hooks.
    pub(super) left_out: Vec<String>,
    /// The tunnels that packets between nodes may be in.
    pub(super) tunnels: Tunnels,
    /// Inode numbers of the network namespaces of the traced pods, as far as they were found.
    pub(super) pod_namespaces: BTreeSet<u32>,
    /// Traced pods of this node.
    pub(super) endpoints: BTreeSet<EndpointId>,
    /// What the interfaces of the node are to it, by index.
    roles: BTreeMap<u32, Role>,
    scopes: Vec<Scope>,
}

impl Coverage {
    /// What these scopes need.
    pub(super) fn of<'s>(scopes: impl IntoIterator<Item = &'s Scope>, no_tc: bool) -> Self {
        let scopes: Vec<Scope> = scopes.into_iter().cloned().collect();
        let is_pod = |one: &&Interface| one.role == Role::Pod;
        let all = || distinct(scopes.iter().flat_map(|scope| &scope.interfaces));
        let mut interfaces: Vec<Interface> = all().filter(|one| !is_pod(one)).cloned().collect();
        let room = if no_tc { usize::MAX } else { room_for_pods(interfaces.len()) };
        let (pods, left_out) = at_most(room, all().filter(is_pod).cloned().collect());
        interfaces.extend(pods);
        Self {
            filter: filter(&scopes),
            interfaces,
            left_out: left_out.into_iter().map(|one| one.name).collect(),
            tunnels: scopes.first().map(|scope| scope.tunnels).unwrap_or_default(),
            pod_namespaces: scopes.iter().flat_map(|scope| &scope.pod_namespaces).copied().collect(),
            endpoints: scopes.iter().flat_map(|scope| &scope.endpoints).copied().collect(),
            roles: scopes.iter().flat_map(|scope| scope.roles.clone()).collect(),
            scopes,
        }
    }

    /// Whether our programs and what is made of their records would be the same.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let interfaces = |of: &Self| of.interfaces.iter().cloned().collect::<BTreeSet<_>>();
        self.filter.is_same_as(&other.filter)
            && interfaces(self) == interfaces(other)
            && (self.tunnels, &self.pod_namespaces, &self.roles)
                == (other.tunnels, &other.pod_namespaces, &other.roles)
    }

    /// Whether somebody wants to be told of a flow.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        self.scopes.iter().any(|scope| scope.concerns(path))
    }

    /// Whether a packet that Cilium notifies of may be of a flow that somebody wants to be told of. It notifies of every
    /// pod's; whose both ends are nobody's is not followed.
    pub(super) fn may_concern(&self, packet: &Packet) -> bool {
        let Tuple { saddr, daddr, sport, dport, protocol } = packet.tuple;
        let is_target = |address, port| {
            self.filter.targets.iter().any(|target| target.has_end(address, port, protocol.0))
        };
        // An error's own ends are not those of the flow that it is about, and a later fragment has no ports.
        packet.quoted.is_some()
            || packet.fragment == Fragment::Later
            || [(saddr, sport), (daddr, dport)]
                .into_iter()
                .any(|(address, port)| self.is_at(address) || is_target(address, port))
    }

    /// Whether this is a traced address, or was.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        self.scopes.iter().any(|scope| scope.is_at(address))
    }

    /// Every address and prefix at which packets of the traced flows may be seen.
    pub(super) fn watched(&self) -> Vec<IpNet> {
        self.scopes.iter().flat_map(Scope::watched).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What a place is to the node: where tc is left alone, receiving and sending at an interface stand for our
    /// classifiers there.
    pub(super) fn point(&self, place: Place) -> HookPoint {
        if place.namespace != Namespace::Node {
            return place.point;
        }
        let points = || self.roles.get(&place.ifindex).map(|role| role.points());
        match place.point {
            HookPoint::Received => points().map_or(place.point, |(received, _)| received),
            HookPoint::Queued => points().map_or(place.point, |(_, queued)| queued),
            point => point,
        }
    }
}

/// What any of them keeps. Sources narrow it only where every scope has some; an expression, where all have the same.
fn filter(scopes: &[Scope]) -> Filter {
    let each: Vec<Filter> = scopes.iter().map(Scope::filter).collect();
    let is_narrow = each.iter().all(|filter| !filter.sources.is_empty());
    let sources = each.iter().filter(|_| is_narrow).flat_map(|filter| filter.sources.iter().copied());
    let expression: Option<&Expression> = each.first().and_then(|filter| filter.expression.as_ref());
    let is_agreed = each.iter().all(|filter| filter.expression.as_ref() == expression);
    Filter {
        targets: distinct(each.iter().flat_map(|filter| &filter.targets)).cloned().collect(),
        sources: sources.collect::<BTreeSet<_>>().into_iter().collect(),
        expression: expression.filter(|_| is_agreed).cloned(),
    }
}

/// Each once, in the order in which they come first.
fn distinct<'v, T: Ord + 'v>(values: impl Iterator<Item = &'v T>) -> impl Iterator<Item = &'v T> {
    let mut seen = BTreeSet::new();
    values.filter(move |value| seen.insert(*value))
}

/// How many pods' interfaces can be looked at beside the node's own: each takes two hooks.
const fn room_for_pods(of_the_node: usize) -> usize {
    (HOOKS_MAX - KERNEL_HOOKS).saturating_sub(2 * of_the_node) / 2
}

/// The first `max`, and the rest.
fn at_most<T>(max: usize, mut all: Vec<T>) -> (Vec<T>, Vec<T>) {
    let rest = all.split_off(max.min(all.len()));
    (all, rest)
}

#[cfg(test)]
mod tests {
    use probe_common::{PacketRecord, RecordHeader};
    use probe_model::path::{Patience, Quoted, Sighting, Tracker};
    use probe_model::tuple::Protocol;

    use super::*;
    use crate::attach::PortRange;
    use crate::trace::scope::Frontend;

    /// A SYN to port 80.
    fn syn(src: [u8; 4], dst: [u8; 4]) -> probe_common::Packet {
        let mut packet =
            probe_common::Packet { version: 4, proto: 6, tcp_flags: 2, dst_port: 80, ..Default::default() };
        packet.src[..4].copy_from_slice(&src);
        packet.dst[..4].copy_from_slice(&dst);
        packet
    }

    /// The flow of one SYN.
    fn flow(src: [u8; 4], dst: [u8; 4]) -> Path {
        let packet = syn(src, dst);
        let header = RecordHeader { point: HookPoint::UplinkIn as u8, ..RecordHeader::default() };
        let record = PacketRecord { header, buffer: 0, skb_len: 0, mark: 0, hash: 0, netns: 0, packet };
        let mut tracker = Tracker::new(Patience::default());
        tracker.push(&Sighting::from_packet(&record, Namespace::Node).unwrap());
        tracker.finish().remove(0)
    }

    /// The maps are read for what is judged, and not for what else Cilium notifies of.
    #[test]
    fn flows_of_others_concern_nobody() {
        let (pod, other, client) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 224, 0, 8]);
        let one = Scope::of_parts("10.0.0.1", &["10.224.0.8/32"], &[]);
        let coverage = Coverage::of([&one], false);
        assert!(coverage.concerns(&flow(client, pod)), "asked for");
        assert!(
            coverage.concerns(&flow(pod, other)),
            "of what a traced pod may not do, its operator is told"
        );
        assert!(!coverage.concerns(&flow(other, pod)), "from another source");
        assert!(!coverage.concerns(&flow(client, other)));
        assert!(!Coverage::default().concerns(&flow(client, pod)));
    }

    /// Cilium notifies of every pod's packets.
    #[test]
    fn notifications_of_others_are_not_followed() {
        let [pod, other, client, frontend] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 224, 0, 8], [10, 224, 0, 7]];
        let packet = |src, dst| Packet::from_record(&syn(src, dst)).unwrap();
        let mut one = Scope::of_parts("10.0.0.1", &[], &[]);
        one.frontends = vec![Frontend { address: frontend.into(), port: 80, protocol: Protocol::TCP }];
        let coverage = Coverage::of([&one], false);
        for (src, dst) in [(client, pod), (pod, other), (client, frontend)] {
            assert!(coverage.may_concern(&packet(src, dst)), "{src:?} to {dst:?}");
        }
        let others = packet(client, other);
        let mut another_service = packet(client, frontend);
        another_service.tuple.dport = 8080;
        assert!(!coverage.may_concern(&others) && !coverage.may_concern(&another_service));
        let about_it = Quoted { daddr: pod.into(), sport: 1, dport: 80, protocol: Protocol::TCP };
        for kept in
            [Packet { quoted: Some(about_it), ..others }, Packet { fragment: Fragment::Later, ..others }]
        {
            assert!(coverage.may_concern(&kept), "nobody knows yet whose it is: {kept:?}");
        }
    }

    #[test]
    fn what_any_scope_needs_is_seen() {
        let eth0 = ("eth0", Role::Uplink);
        let one = Scope::of_parts("10.0.0.1", &["10.224.0.8/32"], &[eth0, ("lxc1", Role::Pod)]);
        let two = Scope::of_parts("10.0.0.2", &["10.224.0.9/32"], &[eth0, ("lxc2", Role::Pod)]);
        let any = Scope::of_parts("10.0.0.1", &[], &[eth0, ("lxc1", Role::Pod)]);
        let both = Coverage::of([&one, &two], false);
        let names: Vec<_> = both.interfaces.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["eth0", "lxc1", "lxc2"]);
        let source = |coverage: &Coverage, net: &str| coverage.filter.sources.contains(&net.parse().unwrap());
        assert!(source(&both, "10.224.0.8/32") && source(&both, "10.224.0.9/32"));
        let wide = Coverage::of([&one, &two, &any], false);
        assert!(wide.filter.sources.is_empty(), "one of them wants packets from anywhere");
        assert!(!wide.is_same_as(&both) && both.is_same_as(&Coverage::of([&two, &one], false)));
        let mut narrower = any.clone();
        narrower.ports.push(PortRange::one(80, 6));
        assert!(
            Coverage::of([&any, &narrower], false).is_same_as(&Coverage::of([&any], false)),
            "what is seen already needs nothing new"
        );
        assert!(both.is_at("10.0.0.2".parse().unwrap()) && !both.is_at("10.0.0.3".parse().unwrap()));
    }

    #[test]
    fn of_many_pods_the_first() {
        assert_eq!(at_most(2, vec![1, 2, 3]), (vec![1, 2], vec![3]));
        assert_eq!(at_most(2, vec![1]), (vec![1], vec![]));
        assert_eq!(at_most(usize::MAX, vec![1]), (vec![1], vec![]));
        for of_the_node in 1..6 {
            let room = room_for_pods(of_the_node);
            assert!(
                room >= 9 && 2 * (room + of_the_node) + KERNEL_HOOKS <= HOOKS_MAX,
                "{of_the_node}: {room}"
            );
        }
        assert_eq!(room_for_pods(100), 0);
    }
}
