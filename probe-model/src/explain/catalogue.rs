//! Every code that plsprobe says: root causes, answers, assumptions, outcomes and gaps. Each has a page in `docs/causes`.

use std::borrow::Cow;
use std::fmt;

use crate::cilium::drop_reason::DropReason;

/// Makes [`Code`] and its facts of one table.
macro_rules! codes {
    ($($name:ident $code:literal $area:ident $severity:ident $title:literal)*) => {
        /// A stable code.
        ///
        /// There is no other way to have one: what is not in the table cannot be said, and what is has a page.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = concat!("`", $code, "`: ", $title, ".")] $name,)*
            /// `DROP-n`: Cilium dropped it for a reason that is no root cause of its own.
            Drop(DropReason),
        }

        impl Code {
            /// All codes, in the order of the catalogue; [`Self::ANY_DROP`] stands for every `DROP-n`.
            pub const ALL: &[Self] = &[$(Self::$name,)* Self::ANY_DROP];

            /// As plsprobe prints it.
            pub fn text(self) -> Cow<'static, str> {
                match self {
                    $(Self::$name => Cow::Borrowed($code),)*
                    Self::ANY_DROP => Cow::Borrowed("DROP-n"),
                    Self::Drop(DropReason(reason)) => Cow::Owned(format!("DROP-{reason}")),
                }
            }

            /// What it means, in one line.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                    Self::Drop(reason) => {
                        reason.meaning().unwrap_or("Cilium dropped it for a reason that is no root cause of its own")
                    }
                }
            }

            /// What it is about.
            pub fn area(self) -> Area {
                match self {
                    $(Self::$name => Area::$area,)*
                    Self::Drop(_) => Area::Answer,
                }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)*
                    Self::Drop(_) => Severity::Error,
                }
            }
        }
    };
}

codes! {
    DefaultDeny "PLS-01" Policy Error "Default deny: no ingress rule admits Private Link"
    WrongAddresses "PLS-02" Policy Error "The rule names addresses that the pod never sees"
    HiddenByKubeProxy "PLS-03" Policy Error "kube-proxy hides the NAT IP before policy runs"
    RemoteAsWorld "PLS-04" Policy Error "Pod on another node (tunnel): judged as world"
    RemoteAsNode "PLS-05" Policy Error "Pod on another node (native): judged as remote-node"
    SomeNodesOnly "PLS-06" Policy Error "Works through some nodes only"
    ProbeDenied "PLS-07" Policy Error "The load balancer's health probe is denied by policy"
    ProxyHeaderUnparsed "PLS-08" Application Error "The application does not understand the PROXY header"
    ProxyHeaderMissing "PLS-09" Application Error "The application wants a PROXY header and gets none"
    ProxyHeaderInSiblingProbes "PLS-10" LoadBalancer Error "PROXY on one service breaks its siblings' probes"
    ProxyHeaderInHealthCheck "PLS-11" LoadBalancer Error "The node's health check gets a PROXY header"
    NoLocalPod "PLS-12" LoadBalancer Warning "Traffic policy Local, and no ready pod on this node"
    ProbePath "PLS-13" LoadBalancer Error "The HTTP probe asks for a path that does not answer 200"
    NodeFirewall "PLS-14" LoadBalancer Error "The node's firewall drops the probe or the data"
    Ipv6Probe "PLS-15" LoadBalancer Warning "The IPv6 health probe is not answered"
    PublicFloatingIp "PLS-16" LoadBalancer Error "Public load balancer with floating IP"
    NotApproved "PLS-17" LoadBalancer Error "The private endpoint's connection is not approved"
    NeverCreated "PLS-18" LoadBalancer Error "The Private Link service was never created"
    Recreated "PLS-19" LoadBalancer Error "The Private Link service was deleted and made anew"
    NewNatIp "PLS-20" LoadBalancer Error "The NAT IPs changed, the rule did not"
    BackendPoolByIp "PLS-21" LoadBalancer Error "The backend pool lists IP addresses, not NICs"
    NatIpAmongPods "PLS-22" LoadBalancer Error "The NAT IP lies in the pods' address range"
    SourceRanges "PLS-23" LoadBalancer Error "loadBalancerSourceRanges leaves the NAT IP out"
    SecurityGroup "PLS-24" LoadBalancer Error "A network security group drops the packets"
    MasqueradeAgent "PLS-25" Node Error "ip-masq-agent rewrites the source of incoming packets"
    PortNotTargetPort "PLS-26" Policy Error "The rule names the service's port, not the pod's"
    EndPortIgnored "PLS-27" Policy Error "endPort is ignored by Cilium before 1.16"
    EgressOnly "PLS-28" PassesAlthough Warning "An egress-only policy leaves ingress open"
    PolicyReplaced "PLS-29" Policy Warning "A policy was replaced, or selects more than meant"
    EgressBreaksApp "PLS-30" Policy Error "An egress policy cuts off what the application needs"
    TooWide "PLS-31" PassesAlthough Warning "A rule admits far more than Private Link"
    OutsidePolicy "PLS-32" PassesAlthough Warning "The pod is outside NetworkPolicy, or behind an ingress"
    EnforcementOff "PLS-33" PassesAlthough Warning "Policy is not enforced on this pod"
    ExplicitDeny "PLS-34" Policy Error "A deny rule forbids it"
    L7OrAuth "PLS-35" Policy Error "The HTTP or authentication part of a policy refuses"
    IdleTimeout "PLS-36" LoadBalancer Warning "The connection was idle too long"
    NatPorts "PLS-37" LoadBalancer Error "NAT ports are exhausted or reused too soon"
    CiliumTables "PLS-38" Node Error "Cilium's connection tables are full or stale"
    KernelConntrack "PLS-39" Node Error "The kernel's connection table is full"
    AddressOverlap "PLS-40" Node Error "Address ranges overlap"
    NoEndpoint "PLS-41" Node Error "No ready pod behind the service, or nobody listens"
    UnknownFrontend "PLS-42" Node Error "The node does not know the load balancer's address"
    ClientIpAffinity "PLS-43" LoadBalancer Warning "ClientIP affinity sends all consumers to few pods"
    TooBig "PLS-44" Node Error "Large packets vanish (MTU)"
    GatewayHealthCheck "PLS-45" Node Error "Cilium's gateway reports no endpoints to the probe"
    AgentStale "PLS-46" Node Error "The agent has not installed the policy on this node"
    NatIpExcepted "PLS-47" Policy Error "The NAT IP is in the rule's except list"
    InCluster "PLS-48" Node Note "The client is inside the cluster"
    OtherConsumer "PLS-49" PassesAlthough Note "Another approved consumer looks the same"
    SlowApplication "PLS-50" Application Note "The network is fine; the application does not answer"
    ConsumerSide "PLS-51" LoadBalancer Error "Nothing leaves the consumer's network"

    Allowed "ALLOWED" Answer Note "A policy admits it"
    Open "OPEN" Answer Note "No policy selects the pod for this direction"
    NoPolicy "NO-POLICY" Answer Note "No policy is asked on its way through this node"
    Reply "REPLY" Answer Note "It answers a connection that is open"
    Related "RELATED" Answer Note "An ICMP error about a connection that is open"
    AllowLocalhost "ALLOW-LOCALHOST" Answer Note "Cilium always lets the node reach its own pods"
    Audit "AUDIT" Answer Warning "Policy audit mode lets it through"
    Inconclusive "INCONCLUSIVE" Answer Warning "A fact that decides is not known"

    ConfigByPins "config-by-pins" Assumption Note "The agent's configuration is taken from its maps"
    LocallySent "locally-sent" Assumption Note "The source is this node's own address"
    HostMark "host-mark" Assumption Warning "Assumed that Cilium marks what the host sends"
    NetfilterUnknown "netfilter-unknown" Assumption Warning "The node's netfilter rules are not known"
    ConntrackUnknown "conntrack-unknown" Assumption Note "Judged as a new connection"
    AuditMode "audit-mode" Assumption Warning "Audit mode lets through what would be dropped"
    PolicyPending "policy-pending" Assumption Warning "The datapath has an older policy than the agent wants"
    PacketsFiltered "packets-filtered" Assumption Note "Only packets that match the filter were seen"
    HookGap "hook-gap" Assumption Warning "For a time a hook saw nothing"

    Answered "answered" Outcome Note "An answer was seen"
    AnswerLost "answer-lost" Outcome Error "Somebody answered, and the answer did not arrive"
    Refused "refused" Outcome Error "A TCP reset or an ICMP error came back"
    DroppedByCilium "dropped-by-cilium" Outcome Error "Cilium said that it dropped the packet"
    DroppedByKernel "dropped-by-kernel" Outcome Error "The kernel freed the packet as dropped"
    NoAnswer "no-answer" Outcome Error "It was delivered, and nothing came back"
    Silent "silent" Outcome Error "It was seen, and then nothing more of it"

    TcProgram "tc-program" Gap Warning "Another tc program may have taken the packet"
    CiliumUnread "cilium-unread" Gap Warning "Cilium may have dropped it, unheard"
    HostStack "host-stack" Gap Warning "The host's network stack may have dropped it"
    NetfilterQueue "netfilter-queue" Gap Warning "A program that reads netfilter's queue may hold it"
    PodStack "pod-stack" Gap Warning "The pod's network stack may have dropped it"
    OtherNode "other-node" Gap Note "It went on to another node"
    Device "device" Gap Warning "The interface dropped it or did not send it"
    ListenQueue "listen-queue" Gap Warning "The application's queue of new connections may be full"
    Application "application" Gap Note "The application did not answer"
    Unwatched "unwatched" Gap Note "It went on where no hook is attached"
    OtherInterface "other-interface" Gap Note "The answer left by another interface"
    BeyondNode "beyond-node" Gap Note "It left this node and was lost behind it"
    LostRecord "lost-record" Gap Warning "plsprobe's own record may be lost"

    Netfilter "netfilter" KernelDrop Error "Dropped by netfilter (iptables, nftables)"
    Routing "routing" KernelDrop Error "Dropped by routing"
    ReversePath "rp-filter" KernelDrop Error "Dropped by the reverse path filter"
    RoutingOrReversePath "routing-or-rp-filter" KernelDrop Error "Dropped by routing or the reverse path filter"
    Mtu "mtu" KernelDrop Error "Larger than the next link carries"
    TcIngress "tc-ingress" KernelDrop Error "Dropped by a tc program on its way in"
    TcEgress "tc-egress" KernelDrop Error "Dropped by a tc program on its way out"
    Xdp "xdp" KernelDrop Error "Dropped by an XDP program"
    SocketProgram "socket-program" KernelDrop Error "Dropped by a BPF program of a socket or cgroup"
    Neighbor "neighbor" KernelDrop Error "The next hop's link-layer address is not known"
    Fragments "fragments" KernelDrop Error "A fragment without the rest"
    NoSocket "no-socket" KernelDrop Error "Nobody listens on the port"
    ListenOverflow "listen-overflow" KernelDrop Error "The listener's queue of connections is full"
    TcpState "tcp-state" KernelDrop Error "TCP does not take it in this state"
    Overload "overload" KernelDrop Error "A queue or memory is full"
    OtherHost "other-host" KernelDrop Error "Its link-layer address is another host's"
    Malformed "malformed" KernelDrop Error "The packet is malformed"
    IpsecPolicy "ipsec-policy" KernelDrop Error "Dropped by IPsec policy"
    SecurityModule "security-module" KernelDrop Error "Dropped by a security module"
    Ipv6Disabled "ipv6-disabled" KernelDrop Error "IPv6 is switched off there"
    Tunnel "tunnel" KernelDrop Error "Dropped for its tunnel header"
}

impl Code {
    /// `DROP-n`, for all of them: no drop of Cilium's has the number 0.
    pub const ANY_DROP: Self = Self::Drop(DropReason(0));

    /// The root causes that plsprobe tells from evidence; the others have a page that says how to check by hand.
    pub const DETECTED: &[Self] = &[
        Self::DefaultDeny,
        Self::WrongAddresses,
        Self::HiddenByKubeProxy,
        Self::RemoteAsWorld,
        Self::RemoteAsNode,
        Self::SomeNodesOnly,
        Self::ProbeDenied,
        Self::ProxyHeaderUnparsed,
        Self::ProxyHeaderMissing,
        Self::ProxyHeaderInSiblingProbes,
        Self::ProxyHeaderInHealthCheck,
        Self::NoLocalPod,
        Self::ProbePath,
        Self::NodeFirewall,
        Self::Ipv6Probe,
        Self::PublicFloatingIp,
        Self::NotApproved,
        Self::NeverCreated,
        Self::NewNatIp,
        Self::BackendPoolByIp,
        Self::NatIpAmongPods,
        Self::SourceRanges,
        Self::SecurityGroup,
        Self::MasqueradeAgent,
        Self::PortNotTargetPort,
        Self::EndPortIgnored,
        Self::EgressOnly,
        Self::PolicyReplaced,
        Self::EgressBreaksApp,
        Self::TooWide,
        Self::OutsidePolicy,
        Self::EnforcementOff,
        Self::ExplicitDeny,
        Self::L7OrAuth,
        Self::IdleTimeout,
        Self::NatPorts,
        Self::CiliumTables,
        Self::KernelConntrack,
        Self::AddressOverlap,
        Self::NoEndpoint,
        Self::UnknownFrontend,
        Self::ClientIpAffinity,
        Self::TooBig,
        Self::GatewayHealthCheck,
        Self::AgentStale,
        Self::NatIpExcepted,
        Self::InCluster,
        Self::OtherConsumer,
        Self::SlowApplication,
        Self::ConsumerSide,
    ];

    /// The code whose page it has: its own, or that of all `DROP-n`.
    pub fn page(self) -> Self {
        match self {
            Self::Drop(_) => Self::ANY_DROP,
            code => code,
        }
    }

    /// Whether it is one of the root causes of a failing, or wrongly working, Private Link flow.
    pub fn is_root_cause(self) -> bool {
        self.area() < Area::Answer
    }

    /// The code that an operator typed: in any case, and a root cause also as `3`, `03` or `PLS-3`.
    pub fn parse(typed: &str) -> Option<Self> {
        let typed = typed.trim();
        let after = |start: &str| {
            let (head, tail) = typed.split_at_checked(start.len())?;
            head.eq_ignore_ascii_case(start).then_some(tail)
        };
        let number = |digits: &str| digits.parse::<u8>().ok().filter(|_| !digits.starts_with('+'));
        if let Some(reason) = after("DROP-").and_then(number) {
            return Some(Self::Drop(DropReason(reason)));
        }
        let root_cause = after("PLS-").or_else(|| after("PLS")).unwrap_or(typed);
        let text = number(root_cause).map_or_else(|| typed.to_owned(), |number| format!("PLS-{number:02}"));
        Self::ALL.iter().copied().find(|code| code.text().eq_ignore_ascii_case(&text))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

/// What a code is about; root causes come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// Root cause: what policy says.
    Policy,
    /// Root cause: Azure's load balancer, its probes, the Private Link service.
    LoadBalancer,
    /// Root cause: the node, service translation, Cilium's state.
    Node,
    /// Root cause: the application.
    Application,
    /// Root cause: it passes, although somebody expected a drop.
    PassesAlthough,
    /// The cause of a verdict that is no root cause.
    Answer,
    /// What an answer assumes.
    Assumption,
    /// What became of a traced flow.
    Outcome,
    /// What may have become of a packet after the last place where it was seen.
    Gap,
    /// Why the kernel dropped a packet.
    KernelDrop,
}

impl Area {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::LoadBalancer => "load balancer and probes",
            Self::Node => "node and CNI",
            Self::Application => "application",
            Self::PassesAlthough => "passes although",
            Self::Answer => "answer",
            Self::Assumption => "assumption",
            Self::Outcome => "outcome",
            Self::Gap => "gap",
            Self::KernelDrop => "kernel drop",
        }
    }
}

/// How bad it is; the words are those of SARIF's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It works, but not as meant, or not for long.
    Warning,
    /// Private Link traffic fails.
    Error,
}

impl Severity {
    /// In one word.
    pub fn text(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_found_by_their_text() {
        for code in Code::ALL {
            assert_eq!(Code::parse(&code.text()), Some(*code));
        }
    }

    #[test]
    fn root_causes_are_those_of_the_catalogue() {
        let texts: Vec<_> =
            Code::ALL.iter().filter(|code| code.is_root_cause()).map(ToString::to_string).collect();
        let expected: Vec<_> = (1..=51).map(|number| format!("PLS-{number:02}")).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn an_operator_types_what_comes_to_mind() {
        for typed in ["PLS-03", "pls-03", "3", "03", "PLS-3", "pls3", " 3 "] {
            assert_eq!(Code::parse(typed), Some(Code::HiddenByKubeProxy), "{typed}");
        }
        assert_eq!(Code::parse("drop-155"), Some(Code::Drop(DropReason(155))));
        assert_eq!(Code::parse("HOOK-gap"), Some(Code::HookGap));
        for typed in ["", "0", "52", "+3", "PLS-", "PLS-300", "DROP-", "DROP-300", "ö", "PLSö"] {
            assert_eq!(Code::parse(typed), None, "{typed}");
        }
    }
}
