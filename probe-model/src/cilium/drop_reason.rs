//! Why Cilium dropped a packet.
//!
//! Source: `bpf/lib/common.h` (1.13–1.17), `bpf/lib/drop_reasons.h` (later); the datapath returns the negative code,
//! events and `cilium_metrics` carry the positive one.

use core::fmt;

use super::release::Release;

/// Cilium's drop reason as events carry it: positive, 130–255. Codes below 130 are no drops.
///
/// Not the kernel's `skb_drop_reason`, which is another enumeration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropReason(pub u8);

impl DropReason {
    /// `DROP_INVALID_SIP`: the source address is not the endpoint's own.
    pub const INVALID_SIP: Self = Self(132);
    /// `DROP_POLICY`: no policy entry matched: default deny.
    pub const POLICY: Self = Self(133);
    /// `DROP_INVALID`: the packet is too short or cannot be parsed.
    pub const INVALID: Self = Self(134);
    /// `DROP_FRAG_NEEDED`: too big, and it may not be fragmented.
    pub const FRAG_NEEDED: Self = Self(136);
    /// `DROP_CT_UNKNOWN_PROTO`: conntrack does not track this protocol.
    pub const CT_UNKNOWN_PROTO: Self = Self(137);
    /// `DROP_UNKNOWN_L3`: neither IPv4 nor IPv6, or a family the agent has switched off.
    pub const UNKNOWN_L3: Self = Self(139);
    /// `DROP_MISSED_TAIL_CALL`: a tail-call target is missing, for a moment, while an endpoint is regenerated.
    pub const MISSED_TAIL_CALL: Self = Self(140);
    /// `DROP_UNROUTABLE`: routed to cilium_host, but no endpoint or tunnel has the address.
    pub const UNROUTABLE: Self = Self(151);
    /// `DROP_CT_CREATE_FAILED`: conntrack could not take the flow: its map is full, or there is no memory.
    pub const CT_CREATE_FAILED: Self = Self(155);
    /// `DROP_FRAG_NOSUPPORT`: a fragment, while fragment tracking is off.
    pub const FRAG_NOSUPPORT: Self = Self(157);
    /// `DROP_NO_SERVICE`: the service frontend has no usable backend.
    pub const NO_SERVICE: Self = Self(158);
    /// `DROP_NAT_NO_MAPPING`: SNAT ports are exhausted, or the reverse mapping is missing.
    pub const NAT_NO_MAPPING: Self = Self(167);
    /// `DROP_NO_FIB`: the kernel has no route for the packet.
    pub const NO_FIB: Self = Self(169);
    /// `DROP_ENCAP_PROHIBITED`: a pod sent UDP to the tunnel port.
    pub const ENCAP_PROHIBITED: Self = Self(170);
    /// `DROP_IS_CLUSTER_IP`: from outside to a ClusterIP, which is not routable.
    pub const IS_CLUSTER_IP: Self = Self(174);
    /// `DROP_FRAG_NOT_FOUND`: a later fragment came without its first.
    pub const FRAG_NOT_FOUND: Self = Self(175);
    /// `DROP_NOT_IN_SRC_RANGE`: the source is outside loadBalancerSourceRanges.
    pub const NOT_IN_SRC_RANGE: Self = Self(177);
    /// `DROP_POLICY_DENY`: an explicit deny rule matched.
    pub const POLICY_DENY: Self = Self(181);
    /// `DROP_POLICY_AUTH_REQUIRED`: mutual authentication is required and not granted.
    pub const POLICY_AUTH_REQUIRED: Self = Self(189);
    /// `DROP_NO_NODE_ID`: the destination has no node id.
    pub const NO_NODE_ID: Self = Self(197);

    /// The reason of a datapath return code (`DROP_POLICY` is −133), if it is one.
    pub fn from_return_code(code: i32) -> Option<Self> {
        u8::try_from(-i64::from(code)).ok().filter(|c| *c >= 130).map(Self)
    }

    /// The macro's name in Cilium's source without `DROP_`, as the newest release that has it calls it, if the code is known.
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|r| r.1)
    }

    /// The macro's name in one release; `None` if that release never drops for this reason.
    pub fn name_in(self, release: Release) -> Option<&'static str> {
        match self.0 {
            143 if release < Release(17) => Some("UNKNOWN_ICMP_CODE"),
            144 if release < Release(17) => Some("UNKNOWN_ICMP_TYPE"),
            _ if self.is_of(release) => self.name(),
            _ => None,
        }
    }

    /// Whether the datapath of a release drops for this reason. Codes were added over time, and one was given up.
    fn is_of(self, release: Release) -> bool {
        let (first, last) = match self.0 {
            159 | 195 | 198..=201 | 203 => (15, u8::MAX),
            186 => (13, 18),
            190..=193 => (14, u8::MAX),
            204 => (16, u8::MAX),
            205 => (18, u8::MAX),
            207 => (21, u8::MAX),
            // 194, 196, 197 and 202 came late in 1.13.
            _ => (13, u8::MAX),
        };
        (Release(first)..=Release(last)).contains(&release)
    }

    /// What Cilium's own monitor prints, if the code is known.
    pub fn text(self) -> Option<&'static str> {
        self.row().map(|r| r.2)
    }

    /// What the code means, in one plain clause, if it is known.
    pub fn meaning(self) -> Option<&'static str> {
        self.row().map(|r| r.3)
    }

    fn row(self) -> Option<&'static Row> {
        TABLE.binary_search_by_key(&self.0, |r| r.0).ok().map(|i| &TABLE[i])
    }
}

impl fmt::Display for DropReason {
    /// As Cilium's monitor prints it, with the code: `Policy denied (133)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => write!(f, "{text} ({})", self.0),
            None => write!(f, "unknown drop reason ({})", self.0),
        }
    }
}

type Row = (u8, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    (132, "INVALID_SIP", "Invalid source ip", "the source address is not the endpoint's own"),
    (133, "POLICY", "Policy denied", "no policy entry matched: default deny"),
    (134, "INVALID", "Invalid packet", "the packet is too short or cannot be parsed"),
    (135, "CT_INVALID_HDR", "CT: Truncated or invalid header", "conntrack could not read the L4 header"),
    (136, "FRAG_NEEDED", "Fragmentation needed", "the packet is too big and may not be fragmented"),
    (137, "CT_UNKNOWN_PROTO", "CT: Unknown L4 protocol", "conntrack does not track this protocol"),
    (139, "UNKNOWN_L3", "Unsupported L3 protocol", "neither IPv4 nor IPv6, or a family the agent has switched off"),
    (140, "MISSED_TAIL_CALL", "Missed tail call", "a tail-call target is missing, for a moment, while an endpoint is regenerated"),
    (141, "WRITE_ERROR", "Error writing to packet", "a packet write failed"),
    (142, "UNKNOWN_L4", "Unknown L4 protocol", "unsupported L4 protocol"),
    (143, "UNKNOWN_ICMP4_CODE", "Unknown ICMPv4 code", "unexpected ICMPv4 code"),
    (144, "UNKNOWN_ICMP4_TYPE", "Unknown ICMPv4 type", "unexpected ICMPv4 type"),
    (145, "UNKNOWN_ICMP6_CODE", "Unknown ICMPv6 code", "unexpected ICMPv6 code"),
    (146, "UNKNOWN_ICMP6_TYPE", "Unknown ICMPv6 type", "unexpected ICMPv6 type"),
    (147, "NO_TUNNEL_KEY", "Error retrieving tunnel key", "the tunnel metadata is missing"),
    (150, "UNKNOWN_TARGET", "Unknown L3 target address", "the L2 or ARP target is unknown"),
    (151, "UNROUTABLE", "Stale or unroutable IP", "routed to cilium_host, but no endpoint or tunnel has the address"),
    (153, "CSUM_L3", "Error while correcting L3 checksum", "the L3 checksum update failed"),
    (154, "CSUM_L4", "Error while correcting L4 checksum", "the L4 checksum update failed"),
    (155, "CT_CREATE_FAILED", "CT: Map insertion failed", "conntrack could not take the flow: map full or no memory"),
    (156, "INVALID_EXTHDR", "Invalid IPv6 extension header", "an IPv6 extension header cannot be parsed"),
    (157, "FRAG_NOSUPPORT", "IP fragmentation not supported", "a fragment, while fragment tracking is off"),
    (158, "NO_SERVICE", "Service backend not found", "the service frontend has no usable backend"),
    (159, "UNSUPP_SERVICE_PROTO", "Unsupported service protocol", "the protocol is not load-balanced"),
    (160, "NO_TUNNEL_ENDPOINT", "No tunnel/encapsulation endpoint (datapath BUG!)", "no tunnel endpoint for the destination"),
    (161, "NAT_46X64_DISABLED", "NAT 46/64 not enabled", "an IPv4/IPv6 service without NAT46x64"),
    (162, "EDT_HORIZON", "Reached EDT rate-limiting drop horizon", "the bandwidth manager's limit is exceeded"),
    (163, "UNKNOWN_CT", "Unknown connection tracking state", "unexpected conntrack state"),
    (164, "HOST_UNREACHABLE", "Local host is unreachable", "the host is unreachable"),
    (165, "NO_CONFIG", "No configuration available to perform policy decision", "the endpoint is half configured"),
    (166, "UNSUPPORTED_L2", "Unsupported L2 protocol", "not an Ethernet II frame"),
    (167, "NAT_NO_MAPPING", "No mapping for NAT masquerade", "SNAT ports are exhausted, or the reverse mapping is missing"),
    (168, "NAT_UNSUPP_PROTO", "Unsupported protocol for NAT masquerade", "the protocol cannot be SNATed"),
    (169, "NO_FIB", "FIB lookup failed", "the kernel has no route for the packet"),
    (170, "ENCAP_PROHIBITED", "Encapsulation traffic is prohibited", "a pod sent UDP to the tunnel port"),
    (171, "INVALID_IDENTITY", "Invalid identity", "the identity is not valid here"),
    (172, "UNKNOWN_SENDER", "Unknown sender", "the sender has no identity"),
    (173, "NAT_NOT_NEEDED", "NAT not needed", "internal: no SNAT needed"),
    (174, "IS_CLUSTER_IP", "Is a ClusterIP", "from outside to a ClusterIP, which is not routable"),
    (175, "FRAG_NOT_FOUND", "First logical datagram fragment not found", "a later fragment came without its first"),
    (176, "FORBIDDEN_ICMP6", "Forbidden ICMPv6 message", "the ICMPv6 message is not allowed"),
    (177, "NOT_IN_SRC_RANGE", "Denied by LB src range check", "the source is outside loadBalancerSourceRanges"),
    (178, "PROXY_LOOKUP_FAILED", "Socket lookup failed", "the L7 proxy's socket was not found"),
    (179, "PROXY_SET_FAILED", "Socket assign failed", "the L7 proxy's socket could not be assigned"),
    (180, "PROXY_UNKNOWN_PROTO", "Proxy redirection not supported for protocol", "the protocol cannot be redirected to the L7 proxy"),
    (181, "POLICY_DENY", "Policy denied by denylist", "an explicit deny rule matched"),
    (182, "VLAN_FILTERED", "VLAN traffic disallowed by VLAN filter", "the VLAN is not allowed"),
    (183, "INVALID_VNI", "Incorrect VNI from VTEP", "the VTEP sent another VNI"),
    (184, "INVALID_TC_BUFFER", "Failed to update or lookup TC buffer", "the tail-call buffer is not initialised"),
    (185, "NO_SID", "No SID was found for the IP address", "no SRv6 SID"),
    (186, "MISSING_SRV6_STATE", "SRv6 state was removed during tail call", "SRv6 state is missing"),
    (187, "NAT46", "L3 translation from IPv4 to IPv6 failed (NAT46)", "IPv4 to IPv6 translation failed"),
    (188, "NAT64", "L3 translation from IPv6 to IPv4 failed (NAT64)", "IPv6 to IPv4 translation failed"),
    (189, "POLICY_AUTH_REQUIRED", "Authentication required", "mutual authentication is required and not granted"),
    (190, "CT_NO_MAP_FOUND", "No conntrack map found", "the cluster's conntrack map is missing"),
    (191, "SNAT_NO_MAP_FOUND", "No nat map found", "the cluster's NAT map is missing"),
    (192, "INVALID_CLUSTER_ID", "Invalid ClusterID", "the cluster id is out of range"),
    (193, "DSR_ENCAP_UNSUPP_PROTO", "Unsupported packet for DSR encapsulation", "DSR cannot encapsulate the packet"),
    (194, "NO_EGRESS_GATEWAY", "No egress gateway found", "the egress gateway was not found"),
    (195, "UNENCRYPTED_TRAFFIC", "Traffic is unencrypted", "plain text while encryption is strict"),
    (196, "TTL_EXCEEDED", "TTL exceeded", "the TTL or hop limit ran out"),
    (197, "NO_NODE_ID", "No node ID found", "the destination has no node id"),
    (198, "RATE_LIMITED", "Rate limited", "a rate limit was exceeded"),
    (199, "IGMP_HANDLED", "IGMP handled", "IGMP consumed"),
    (200, "IGMP_SUBSCRIBED", "IGMP subscribed", "IGMP subscription consumed"),
    (201, "MULTICAST_HANDLED", "Multicast handled", "multicast consumed"),
    (202, "HOST_NOT_READY", "Host datapath not ready", "the host's policy program is not loaded"),
    (203, "EP_NOT_READY", "Endpoint policy program not available", "the endpoint's policy program is not loaded"),
    (204, "NO_EGRESS_IP", "No Egress IP configured", "the egress gateway has no address"),
    (205, "PUNT_PROXY", "Punt to proxy", "internal punt to the proxy"),
    (207, "FRAG_NOT_FOUND_WORLD", "First logical datagram fragment not found from world", "a later fragment came from outside without its first"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_unique() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn return_codes() {
        assert_eq!(DropReason::from_return_code(-133), Some(DropReason::POLICY));
        assert_eq!(DropReason::from_return_code(0), None);
        assert_eq!(DropReason::from_return_code(12345), None);
        assert_eq!(DropReason::from_return_code(-129), None);
        assert_eq!(DropReason::from_return_code(-256), None);
        assert_eq!(DropReason::from_return_code(i32::MIN), None);
    }

    /// Codes that no release drops for: unused, reserved or from before 1.13.
    const NEVER: [u8; 7] = [130, 131, 138, 148, 149, 152, 206];

    #[test]
    fn every_code_up_to_the_last_is_known_or_unused() {
        for code in 130..=207 {
            assert_eq!(DropReason(code).name().is_none(), NEVER.contains(&code), "{code}");
        }
        assert!((0..130).chain(208..=255).all(|code| DropReason(code).name().is_none()));
    }

    /// Codes that came after 1.13, or went, with the releases that drop for them.
    #[test]
    fn codes_of_each_release() {
        let expected = |code: u8| match code {
            code if NEVER.contains(&code) => None,
            186 => Some(13..=18),
            159 | 195 | 198..=201 | 203 => Some(15..=20),
            190..=193 => Some(14..=20),
            204 => Some(16..=20),
            205 => Some(18..=20),
            207 => None,
            _ => Some(13..=20),
        };
        for code in 130..=207 {
            for minor in 13..=20 {
                let name = DropReason(code).name_in(Release(minor));
                let drops = expected(code).is_some_and(|releases| releases.contains(&minor));
                assert_eq!(name.is_some(), drops, "{code} in 1.{minor}");
            }
        }
    }

    #[test]
    fn names_of_each_release() {
        let name = |code, minor| DropReason(code).name_in(Release(minor));
        assert_eq!(name(143, 16), Some("UNKNOWN_ICMP_CODE"));
        assert_eq!(name(143, 17), Some("UNKNOWN_ICMP4_CODE"));
        assert_eq!(name(144, 13), Some("UNKNOWN_ICMP_TYPE"));
        assert_eq!(name(144, 20), Some("UNKNOWN_ICMP4_TYPE"));
        assert_eq!(name(186, 18), Some("MISSING_SRV6_STATE"));
        assert_eq!(name(207, 21), Some("FRAG_NOT_FOUND_WORLD"));
        assert_eq!(name(133, 12), None, "not a release that plsprobe knows");
    }

    #[test]
    fn unknown_codes_say_so() {
        assert_eq!(DropReason(138).to_string(), "unknown drop reason (138)");
        assert_eq!(DropReason::POLICY_DENY.to_string(), "Policy denied by denylist (181)");
    }
}
