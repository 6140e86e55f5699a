//! Load-time constants of one stand-in object, shared with its loader by `#[path]`.
//!
//! Cilium compiles one object per endpoint and one for the host; here one object is loaded many times and
//! [`Config`] is what differs.

/// Packets pass the host's network stack between the uplink and the pod's veth: managed AKS.
pub const SHAPE_AKS: u32 = 0;
/// The uplink's program delivers straight into the pod: Cilium's default with kube-proxy replacement.
pub const SHAPE_KPR: u32 = 1;
/// kube-proxy's rules translate, and `cilium_host` hands packets to the pods.
pub const SHAPE_KUBEPROXY: u32 = 2;

/// Bit of [`Config::verdict_filter`]: ingress is enforced, so its verdicts are notified.
pub const FILTER_INGRESS: u32 = 1;
/// Bit of [`Config::verdict_filter`]: egress is enforced, so its verdicts are notified.
pub const FILTER_EGRESS: u32 = 2;

/// The programs that `standin_seen` counts for. Each has two slots there: all its packets, and those that are UDP.
pub const COUNTED: [&str; 7] = [
    "cil_from_netdev",
    "cil_to_netdev",
    "cil_from_host",
    "cil_to_host",
    "cil_from_container",
    "cil_to_container",
    "handle_policy",
];

/// What one loaded object knows of itself; addresses in network order, as they lie in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// One of the `SHAPE_` constants.
    pub shape: u32,
    /// Endpoint id in the `source` field of every notification (`LXC_ID`, or the host endpoint's id).
    pub endpoint_id: u32,
    /// Identity of the endpoint (`SECLABEL`).
    pub identity: u32,
    /// Address of the endpoint (`LXC_IPV4`); 0 in the host's object.
    pub endpoint_ip_be: u32,
    /// Address of the node on the uplink; also what pods are masqueraded to.
    pub node_ip_be: u32,
    /// The uplink's interface index.
    pub uplink_ifindex: u32,
    /// `FILTER_` bits (`policy_verdict_log_filter`).
    pub verdict_filter: u32,
    /// `monitor-aggregation`: 0 none, 3 medium.
    pub aggregation: u32,
    /// `monitor-aggregation-flags`: the TCP flags whose first sight is traced.
    pub report_flags: u32,
    /// Whether pods' packets that leave the native routing CIDR get the node's address.
    pub masquerade: u32,
    /// Native routing CIDR: network.
    pub native_net_be: u32,
    /// Native routing CIDR: mask.
    pub native_mask_be: u32,
    /// MAC address of `cilium_net`; the first six bytes count.
    pub cilium_net_mac: [u8; 8],
}
