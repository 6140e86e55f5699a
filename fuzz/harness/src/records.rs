//! Every structure of Cilium's that has a decoder, one by one.

use std::fmt::Debug;

use probe_model::cilium::auth::{AuthInfo, AuthKey};
use probe_model::cilium::ct::{CtEntry, CtTuple};
use probe_model::cilium::fragments::{FragmentId, FragmentPorts};
use probe_model::cilium::ipcache::{IpcacheKey, IpcacheLayout, RemoteEndpointInfo};
use probe_model::cilium::lb::{
    LbAffinity, LbAffinityKey, LbAffinityMatch, LbBackend, LbKey, LbReverseNat, LbService, LbSourceRange,
};
use probe_model::cilium::lxc::{EndpointInfo, EndpointKey};
use probe_model::cilium::metrics::{MetricsKey, MetricsValue};
use probe_model::cilium::nat::NatEntry;
use probe_model::cilium::node::{NodeKey, NodeValue};
use probe_model::cilium::policy::PolicyCounters;
use probe_model::cilium::policystats::PolicyStatsKey;
use probe_model::cilium::ratelimit::{RatelimitKey, RatelimitValue};
use probe_model::cilium::runtime_config::RuntimeConfig;
use probe_model::cilium::tunnel::{TunnelKey, TunnelLayout, TunnelValue};

/// What these decode to encodes to bytes that decode to it.
macro_rules! encodes_again {
    ($raw:expr, $($type:ty),*) => {
        $(if let Ok(value) = <$type>::decode($raw) {
            same(&value, &<$type>::decode(value.encode().as_ref()));
        })*
    };
}

#[track_caller]
fn same<T: Debug + PartialEq, E: Debug>(value: &T, again: &Result<T, E>) {
    assert!(again.as_ref().is_ok_and(|again| again == value), "{value:?} encodes to {again:?}");
}

/// One key or value, or anything.
pub(crate) fn record(raw: &[u8]) {
    encodes_again!(
        raw,
        AuthInfo,
        AuthKey,
        CtEntry,
        CtTuple,
        EndpointInfo,
        EndpointKey,
        FragmentId,
        FragmentPorts,
        LbAffinity,
        LbAffinityKey,
        LbAffinityMatch,
        LbBackend,
        LbKey,
        LbReverseNat,
        LbService,
        LbSourceRange,
        MetricsKey,
        MetricsValue,
        NatEntry,
        NodeKey,
        NodeValue,
        PolicyCounters,
        PolicyStatsKey,
        RatelimitKey,
        RatelimitValue,
        TunnelValue
    );
    if let Ok(key) = IpcacheKey::decode(raw) {
        for layout in IpcacheLayout::ALL {
            let _ = IpcacheKey::decode(&key.encode(layout));
        }
    }
    if let Ok(info) = RemoteEndpointInfo::decode(raw) {
        for layout in IpcacheLayout::ALL {
            let _ = RemoteEndpointInfo::decode(&info.encode(layout));
        }
    }
    if let Ok(key) = TunnelKey::decode(raw) {
        for layout in [TunnelLayout::ClusterByte, TunnelLayout::ClusterWord] {
            let _ = TunnelKey::decode(&key.encode(layout));
        }
    }
    let _ = LbBackend::decode_key(raw);
    let _ = LbReverseNat::decode_key(raw);
    let (key, value) = raw.split_at(raw.len() / 2);
    let _ = RuntimeConfig::decode([(key, value)]);
}
