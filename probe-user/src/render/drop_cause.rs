//! What the kernel's drops mean, in words and as stable codes.

use probe_model::explain::Code;
use probe_model::path::DropCause;

/// What dropped the packet, after "dropped": `by netfilter`.
pub(super) fn text(cause: DropCause) -> &'static str {
    match cause {
        DropCause::Netfilter => "by netfilter",
        DropCause::Routing => "by routing",
        DropCause::ReversePath => "by the reverse path filter (rp_filter)",
        DropCause::RoutingOrReversePath => "by routing or the reverse path filter (rp_filter)",
        DropCause::TooBig => "for its size: larger than the MTU",
        DropCause::TcIngress | DropCause::TcEgress => "by a tc program",
        DropCause::Xdp => "by an XDP program",
        DropCause::SocketProgram => "by a BPF program of a socket or cgroup",
        DropCause::Neighbor => "for want of the next hop's link-layer address",
        DropCause::Fragments => "as a fragment without the rest",
        DropCause::NoSocket => "where nobody listens",
        DropCause::ListenOverflow => "by a listener whose queue of connections is full",
        DropCause::TcpState => "by TCP, which does not take it in this state",
        DropCause::Overload => "for want of room: a queue or memory is full",
        DropCause::Device => "by the interface",
        DropCause::OtherHost => "as another host's: its link-layer address is not this one's",
        DropCause::Malformed => "as malformed",
        DropCause::IpsecPolicy => "by IPsec policy",
        DropCause::SecurityModule => "by a security module",
        DropCause::Ipv6Disabled => "because IPv6 is switched off there",
        DropCause::Tunnel => "for its tunnel header",
    }
}

/// A stable code.
pub(super) fn code(cause: DropCause) -> Code {
    match cause {
        DropCause::Netfilter => Code::Netfilter,
        DropCause::Routing => Code::Routing,
        DropCause::ReversePath => Code::ReversePath,
        DropCause::RoutingOrReversePath => Code::RoutingOrReversePath,
        DropCause::TooBig => Code::Mtu,
        DropCause::TcIngress => Code::TcIngress,
        DropCause::TcEgress => Code::TcEgress,
        DropCause::Xdp => Code::Xdp,
        DropCause::SocketProgram => Code::SocketProgram,
        DropCause::Neighbor => Code::Neighbor,
        DropCause::Fragments => Code::Fragments,
        DropCause::NoSocket => Code::NoSocket,
        DropCause::ListenOverflow => Code::ListenOverflow,
        DropCause::TcpState => Code::TcpState,
        DropCause::Overload => Code::Overload,
        DropCause::Device => Code::Device,
        DropCause::OtherHost => Code::OtherHost,
        DropCause::Malformed => Code::Malformed,
        DropCause::IpsecPolicy => Code::IpsecPolicy,
        DropCause::SecurityModule => Code::SecurityModule,
        DropCause::Ipv6Disabled => Code::Ipv6Disabled,
        DropCause::Tunnel => Code::Tunnel,
    }
}
