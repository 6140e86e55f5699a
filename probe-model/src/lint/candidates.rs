//! What it may be that no packet comes, where nothing tells: codes whose pages say how to find out, the likeliest first.

use crate::explain::Code;

/// What is left where probes are not answered.
pub(super) const PROBES_FAIL: &[Code] = &[
    Code::ProbeDenied,
    Code::ProxyHeaderInHealthCheck,
    Code::ProxyHeaderInSiblingProbes,
    Code::ProbePath,
    Code::NoLocalPod,
    Code::NodeFirewall,
    Code::Ipv6Probe,
    Code::GatewayHealthCheck,
];
/// What is left where they are, or were not seen.
pub(super) const PROBES_WORK: &[Code] = &[
    Code::NotApproved,
    Code::SecurityGroup,
    Code::NeverCreated,
    Code::Recreated,
    Code::BackendPoolByIp,
    Code::PublicFloatingIp,
    Code::ConsumerSide,
];
