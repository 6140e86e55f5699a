//! What the attached hooks watch. Pure.
use probe_model::path::{HookPoint, Namespace, Watch};

use crate::attach::{Hook, HookKind, Interface, Role};

/// Where the kernel functions that we probe see a packet.
const IP_LAYER: [(&str, HookPoint); 6] = [
    ("ip_rcv", HookPoint::IpReceive),
    ("ipv6_rcv", HookPoint::IpReceive),
    ("ip_forward", HookPoint::IpForward),
    ("ip6_forward", HookPoint::IpForward),
    ("ip_local_deliver", HookPoint::IpDeliver),
    ("ip6_input", HookPoint::IpDeliver),
];

/// The same for the tracepoints that stand in for classifiers.
const DEVICES: [(&str, HookPoint); 2] =
    [("net:netif_receive_skb", HookPoint::Received), ("net:net_dev_queue", HookPoint::Queued)];

/// What `hooks` see of packets, of which those at `interfaces` have their roles' points.
/// Whether Cilium is heard and whether records were lost, the hooks do not say.
pub fn watch<'h>(hooks: impl Iterator<Item = &'h Hook>, interfaces: &[Interface]) -> Watch {
    let mut watch = Watch::default();
    for hook in hooks.filter(|hook| hook.state.is_attached()) {
        match hook.kind {
            HookKind::Classifier => {
                watch.points.extend(classifier(&hook.place, interfaces).map(|at| (Namespace::Node, at)));
            }
            HookKind::KernelDrops => watch.drops = true,
            HookKind::IpLayer => everywhere(&mut watch, named(&IP_LAYER, &hook.place)),
            HookKind::Devices => {
                let point = named(&DEVICES, &hook.place);
                everywhere(&mut watch, point);
                let roles = interfaces.iter().map(|interface| interface.role);
                let points = roles.filter_map(|role| device_point(role, point?, interfaces));
                watch.points.extend(points.map(|at| (Namespace::Node, at)));
            }
            HookKind::CiliumEvents | HookKind::Sockets => {}
        }
    }
    watch
}

/// What receiving or queueing at an interface in this role is to the node.
fn device_point(role: Role, point: HookPoint, interfaces: &[Interface]) -> Option<HookPoint> {
    let (received, queued) = role.points();
    if point != HookPoint::Received {
        return Some(queued);
    }
    // The tracepoint sees a packet before the virtual function hands it to the uplink, and not again.
    let has_function = interfaces.iter().any(|interface| interface.role == Role::VirtualFunction);
    (role != Role::Uplink || !has_function).then_some(received)
}

/// A kernel function is one for all namespaces.
fn everywhere(watch: &mut Watch, point: Option<HookPoint>) {
    let namespaces = [Namespace::Node, Namespace::Pod];
    watch.points.extend(point.into_iter().flat_map(|at| namespaces.map(|namespace| (namespace, at))));
}

fn named(points: &[(&str, HookPoint)], place: &str) -> Option<HookPoint> {
    points.iter().find(|(name, _)| *name == place).map(|(_, point)| *point)
}

/// The point of a classifier at `eth0 ingress`.
fn classifier(place: &str, interfaces: &[Interface]) -> Option<HookPoint> {
    let (name, direction) = place.rsplit_once(' ')?;
    let interface = interfaces.iter().find(|interface| interface.name == name)?;
    let (ingress, egress) = interface.role.points();
    Some(if direction == "ingress" { ingress } else { egress })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::HookState;

    fn hook(kind: HookKind, place: &str, is_attached: bool) -> Hook {
        let state =
            if is_attached { HookState::Attached("test") } else { HookState::Refused("a test".into()) };
        Hook { kind, place: place.into(), state }
    }

    fn interfaces() -> [Interface; 2] {
        [("eth0", Role::Uplink), ("lxc1", Role::Pod)]
            .map(|(name, role)| Interface { name: name.into(), role })
    }

    #[test]
    fn what_is_refused_sees_nothing() {
        let hooks = [
            hook(HookKind::Classifier, "eth0 ingress", true),
            hook(HookKind::Classifier, "eth0 egress", false),
            hook(HookKind::Classifier, "lxc1 egress", true),
            hook(HookKind::Classifier, "gone0 egress", true),
            hook(HookKind::IpLayer, "ip_rcv", true),
            hook(HookKind::IpLayer, "ip_forward", false),
            hook(HookKind::KernelDrops, "skb:kfree_skb", false),
        ];
        let watch = watch(hooks.iter(), &interfaces());
        let expected = [
            (Namespace::Node, HookPoint::UplinkIn),
            (Namespace::Node, HookPoint::PodIn),
            (Namespace::Node, HookPoint::IpReceive),
            (Namespace::Pod, HookPoint::IpReceive),
        ];
        assert_eq!(watch, Watch { points: expected.into(), ..Watch::default() });
    }

    #[test]
    fn tracepoints_stand_in_for_classifiers() {
        let hooks = [
            hook(HookKind::Devices, "net:netif_receive_skb", true),
            hook(HookKind::KernelDrops, "skb:kfree_skb", true),
        ];
        let watch = watch(hooks.iter(), &interfaces());
        let expected = [
            (Namespace::Node, HookPoint::Received),
            (Namespace::Pod, HookPoint::Received),
            (Namespace::Node, HookPoint::UplinkIn),
            (Namespace::Node, HookPoint::PodOut),
        ];
        assert_eq!(watch, Watch { points: expected.into(), drops: true, ..Watch::default() });
    }

    #[test]
    fn behind_a_virtual_function_no_tracepoint_sees_the_uplink_receive() {
        let received = hook(HookKind::Devices, "net:netif_receive_skb", true);
        let queued = hook(HookKind::Devices, "net:net_dev_queue", true);
        let interfaces = [("eth0", Role::Uplink), ("enP1s1", Role::VirtualFunction)]
            .map(|(name, role)| Interface { name: name.into(), role });
        let watch = watch([received, queued].iter(), &interfaces);
        let of_interfaces = watch.points.iter().filter(|(_, point)| *point < HookPoint::Received);
        let expected = [HookPoint::UplinkOut, HookPoint::VfIn, HookPoint::VfOut];
        assert!(of_interfaces.eq(expected.map(|point| (Namespace::Node, point)).iter()), "{watch:?}");
    }
}
