//! What our programs must know of the running kernel.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use probe_common::{Config, KernelOffsets};

use crate::sources::btf::Btf;

/// `SKB_CONSUMED` of `enum skb_drop_reason`: the packet was used up, not dropped.
const SKB_CONSUMED: &str = "SKB_CONSUMED";

/// Offsets of the fields our programs read, and whether drops have reasons. Cilium's map id is left 0.
///
/// # Errors
///
/// When the kernel's BTF lacks a field.
pub fn config(btf: &Btf) -> Result<Config> {
    let at = |name: &str, path: &str| {
        btf.offset_of(name, path).context("this kernel keeps its packets in a way plsprobe does not know")
    };
    let offsets = KernelOffsets {
        skb_head: at("sk_buff", "head")?,
        skb_data: at("sk_buff", "data")?,
        skb_len: at("sk_buff", "len")?,
        skb_data_len: at("sk_buff", "data_len")?,
        skb_network_header: at("sk_buff", "network_header")?,
        skb_protocol: at("sk_buff", "protocol")?,
        skb_mark: at("sk_buff", "mark")?,
        skb_dev: at("sk_buff", "dev")?,
        dev_ifindex: at("net_device", "ifindex")?,
        dev_net: at("net_device", "nd_net.net")?,
        net_inum: at("net", "ns.inum")?,
        map_id: at("bpf_map", "id")?,
    };
    let has_drop_reason = btf.has_member("trace_event_raw_kfree_skb", "reason");
    let consumed = drop_reasons(btf).into_iter().find(|(_, name)| name == SKB_CONSUMED);
    Ok(Config {
        offsets,
        events_map_id: 0,
        filter_sources: 0,
        has_drop_reason: has_drop_reason.into(),
        reason_consumed: consumed.map_or(u32::MAX, |(value, _)| value),
    })
}

/// The kernel's drop reasons by number, without their common prefix; empty before 5.17.
pub fn drop_reasons(btf: &Btf) -> BTreeMap<u32, String> {
    let names = btf.enum_names("skb_drop_reason").unwrap_or_default();
    names
        .into_iter()
        .map(|(value, name)| {
            let short = name.strip_prefix("SKB_DROP_REASON_").map(ToOwned::to_owned);
            (value, short.unwrap_or(name))
        })
        .collect()
}
