//! What the kernel's drop reasons and the functions that drop mean to an operator.

/// Why the kernel dropped a packet, as far as its reason or its function is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropCause {
    /// A netfilter rule (iptables or nftables).
    Netfilter,
    /// No route, or an address that cannot be routed.
    Routing,
    /// The reverse path filter: the answer would leave by another interface.
    ReversePath,
    /// The function that checks the source's route and looks up the destination's: one of the two above.
    RoutingOrReversePath,
    /// Larger than the way's MTU, and not to be fragmented.
    TooBig,
    /// A tc program at an interface's ingress.
    TcIngress,
    /// A tc program at an interface's egress.
    TcEgress,
    /// An XDP program.
    Xdp,
    /// A cgroup's or socket's BPF program.
    SocketProgram,
    /// The link-layer address of the next hop is not known.
    Neighbor,
    /// A fragment without the rest, or one too many.
    Fragments,
    /// Nobody listens.
    NoSocket,
    /// Too many connections wait to be accepted.
    ListenOverflow,
    /// TCP does not take it in this state of the connection.
    TcpState,
    /// A queue or memory is full.
    Overload,
    /// The interface is down, or cannot send it.
    Device,
    /// Sent to another host's link-layer address.
    OtherHost,
    /// A header or checksum is wrong.
    Malformed,
    /// IPsec policy.
    IpsecPolicy,
    /// A security module.
    SecurityModule,
    /// IPv6 is switched off there.
    Ipv6Disabled,
    /// A tunnel header that nobody knows.
    Tunnel,
}

/// Reasons by name, without their prefix `SKB_DROP_REASON_`.
///
/// Source: `include/net/dropreason-core.h`, Linux 5.17–7.0. Numbers shift between kernels, names stay.
const REASONS: [(&str, DropCause); 66] = [
    ("NETFILTER_DROP", DropCause::Netfilter),
    ("IP_OUTNOROUTES", DropCause::Routing),
    ("IP_INNOROUTES", DropCause::Routing),
    ("IP_INADDRERRORS", DropCause::Routing),
    ("IP_LOCAL_SOURCE", DropCause::Routing),
    ("IP_INVALID_SOURCE", DropCause::Routing),
    ("IP_INVALID_DEST", DropCause::Routing),
    ("IP_LOCALNET", DropCause::Routing),
    ("IP_RPFILTER", DropCause::ReversePath),
    ("PKT_TOO_BIG", DropCause::TooBig),
    ("TC_INGRESS", DropCause::TcIngress),
    ("TC_EGRESS", DropCause::TcEgress),
    ("XDP", DropCause::Xdp),
    ("BPF_CGROUP_EGRESS", DropCause::SocketProgram),
    ("SOCKET_FILTER", DropCause::SocketProgram),
    ("NEIGH_CREATEFAIL", DropCause::Neighbor),
    ("NEIGH_FAILED", DropCause::Neighbor),
    ("NEIGH_QUEUEFULL", DropCause::Neighbor),
    ("NEIGH_DEAD", DropCause::Neighbor),
    ("NEIGH_HH_FILLFAIL", DropCause::Neighbor),
    ("DUP_FRAG", DropCause::Fragments),
    ("FRAG_REASM_TIMEOUT", DropCause::Fragments),
    ("FRAG_TOO_FAR", DropCause::Fragments),
    ("NO_SOCKET", DropCause::NoSocket),
    ("IP_NOPROTO", DropCause::NoSocket),
    ("TCP_LISTEN_OVERFLOW", DropCause::ListenOverflow),
    ("SOCKET_BACKLOG", DropCause::Overload),
    ("SOCKET_RCVBUFF", DropCause::Overload),
    ("PROTO_MEM", DropCause::Overload),
    ("NOMEM", DropCause::Overload),
    ("CPU_BACKLOG", DropCause::Overload),
    ("QDISC_DROP", DropCause::Overload),
    ("QDISC_OVERLIMIT", DropCause::Overload),
    ("QDISC_CONGESTED", DropCause::Overload),
    ("CAKE_FLOOD", DropCause::Overload),
    ("FQ_BAND_LIMIT", DropCause::Overload),
    ("FQ_HORIZON_LIMIT", DropCause::Overload),
    ("FQ_FLOW_LIMIT", DropCause::Overload),
    ("FULL_RING", DropCause::Overload),
    ("PFMEMALLOC", DropCause::Overload),
    ("DEV_HDR", DropCause::Device),
    ("DEV_READY", DropCause::Device),
    ("NO_TX_TARGET", DropCause::Device),
    ("OTHERHOST", DropCause::OtherHost),
    ("UNICAST_IN_L2_MULTICAST", DropCause::OtherHost),
    ("PKT_TOO_SMALL", DropCause::Malformed),
    ("HDR_TRUNC", DropCause::Malformed),
    ("IP_CSUM", DropCause::Malformed),
    ("TCP_CSUM", DropCause::Malformed),
    ("UDP_CSUM", DropCause::Malformed),
    ("ICMP_CSUM", DropCause::Malformed),
    ("SKB_CSUM", DropCause::Malformed),
    ("IP_INHDR", DropCause::Malformed),
    ("INVALID_PROTO", DropCause::Malformed),
    ("UNHANDLED_PROTO", DropCause::Malformed),
    ("IPV6_BAD_EXTHDR", DropCause::Malformed),
    ("XFRM_POLICY", DropCause::IpsecPolicy),
    ("SECURITY_HOOK", DropCause::SecurityModule),
    ("IPV6DISABLED", DropCause::Ipv6Disabled),
    ("VXLAN_INVALID_HDR", DropCause::Tunnel),
    ("VXLAN_VNI_NOT_FOUND", DropCause::Tunnel),
    ("VXLAN_ENTRY_EXISTS", DropCause::Tunnel),
    ("MAC_INVALID_SOURCE", DropCause::Tunnel),
    ("LOCAL_MAC", DropCause::Tunnel),
    ("IP_TUNNEL_ECN", DropCause::Tunnel),
    ("TUNNEL_TXINFO", DropCause::Tunnel),
];

/// Every reason of TCP's own that is not above begins so.
const TCP_REASONS: &str = "TCP_";

/// Functions that free a packet for one reason only, for kernels that give none. A suffix that the compiler adds, such
/// as `.constprop.0`, is left out.
///
/// Source: callers of `kfree_skb` in Linux 5.10–5.16 (`net/core/dev.c`, `net/ipv4`, `net/ipv6`, `net/netfilter/core.c`).
const FUNCTIONS: [(&str, DropCause); 14] = [
    ("nf_hook_slow", DropCause::Netfilter),
    ("ip_error", DropCause::Routing),
    ("ip6_pkt_drop", DropCause::Routing),
    ("ip_rcv_finish_core", DropCause::RoutingOrReversePath),
    ("ip_fragment", DropCause::TooBig),
    ("sch_handle_ingress", DropCause::TcIngress),
    ("__netif_receive_skb_core", DropCause::TcIngress),
    ("sch_handle_egress", DropCause::TcEgress),
    ("do_xdp_generic", DropCause::Xdp),
    ("arp_error_report", DropCause::Neighbor),
    ("ndisc_error_report", DropCause::Neighbor),
    ("neigh_event_send", DropCause::Neighbor),
    ("__neigh_event_send", DropCause::Neighbor),
    ("enqueue_to_backlog", DropCause::Overload),
];

/// Names of reasons that say nothing; the function may.
const UNSPECIFIED: [&str; 2] = ["", "NOT_SPECIFIED"];

/// What a drop means: by its reason's name, and where the kernel gives none by the function that freed the packet.
/// `None` if neither is certain.
pub fn classify(name: &str, function: Option<&str>) -> Option<DropCause> {
    if !UNSPECIFIED.contains(&name) {
        let known = REASONS.iter().find(|(reason, _)| *reason == name).map(|(_, cause)| *cause);
        return known.or_else(|| name.starts_with(TCP_REASONS).then_some(DropCause::TcpState));
    }
    let function = function?.split('.').next()?;
    FUNCTIONS.iter().find(|(known, _)| *known == function).map(|(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_by_name() {
        for (name, cause) in [
            // 5.17
            ("NO_SOCKET", Some(DropCause::NoSocket)),
            ("PKT_TOO_SMALL", Some(DropCause::Malformed)),
            ("SOCKET_FILTER", Some(DropCause::SocketProgram)),
            // 5.18
            ("NETFILTER_DROP", Some(DropCause::Netfilter)),
            ("IP_RPFILTER", Some(DropCause::ReversePath)),
            ("TC_EGRESS", Some(DropCause::TcEgress)),
            ("TC_INGRESS", Some(DropCause::TcIngress)),
            ("NEIGH_FAILED", Some(DropCause::Neighbor)),
            ("TCP_INVALID_SEQUENCE", Some(DropCause::TcpState)),
            // 5.19, 6.0
            ("IP_INNOROUTES", Some(DropCause::Routing)),
            ("IP_OUTNOROUTES", Some(DropCause::Routing)),
            ("PKT_TOO_BIG", Some(DropCause::TooBig)),
            // 6.2
            ("FRAG_REASM_TIMEOUT", Some(DropCause::Fragments)),
            // 6.14, 6.15, 7.0
            ("TCP_LISTEN_OVERFLOW", Some(DropCause::ListenOverflow)),
            ("FQ_FLOW_LIMIT", Some(DropCause::Overload)),
            ("IP_LOCALNET", Some(DropCause::Routing)),
            // A name that a later kernel may bring, and other subsystems' numbers.
            ("SOMETHING_NEW", None),
            ("subsystem 3 reason 7", None),
            ("no reason given", None),
        ] {
            assert_eq!(classify(name, None), cause, "{name}");
            // A reason that is given counts, whatever function freed the packet.
            assert_eq!(classify(name, Some("nf_hook_slow")), cause, "{name}");
        }
    }

    #[test]
    fn functions_where_there_is_no_reason() {
        for (function, cause) in [
            ("nf_hook_slow", Some(DropCause::Netfilter)),
            ("ip_error", Some(DropCause::Routing)),
            ("ip_rcv_finish_core.isra.0", Some(DropCause::RoutingOrReversePath)),
            ("ip_fragment.constprop.0", Some(DropCause::TooBig)),
            ("__netif_receive_skb_core.constprop.0", Some(DropCause::TcIngress)),
            ("arp_error_report", Some(DropCause::Neighbor)),
            // These drop for several reasons.
            ("tcp_v4_rcv", None),
            ("ip_forward", None),
            ("__dev_queue_xmit", None),
            ("0xffffffff81e00900", None),
        ] {
            for name in ["", "NOT_SPECIFIED"] {
                assert_eq!(classify(name, Some(function)), cause, "{function}");
            }
        }
        assert_eq!(classify("NOT_SPECIFIED", None), None);
    }

    #[test]
    fn no_reason_is_listed_twice() {
        for (index, (name, _)) in REASONS.iter().enumerate() {
            assert!(REASONS[..index].iter().all(|(other, _)| other != name), "{name}");
        }
    }
}
