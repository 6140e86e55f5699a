//! What our programs must know of the running kernel.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use probe_common::{Config, KernelOffsets};
use probe_model::path::{DropCause, Namespace, Path, PathDrop, classify};

use crate::attach::{TypeIds, probed_functions, typed_tracepoints};
use crate::sources::btf::Btf;
use crate::sys;

/// `SKB_CONSUMED` of `enum skb_drop_reason`: the packet was used up, not dropped.
const SKB_CONSUMED: &str = "SKB_CONSUMED";

/// Interfaces whose names are known at most; then they are asked for anew.
const INTERFACES_MAX: usize = 4096;

/// The reason of a drop that has none yet.
const NOT_SPECIFIED: &str = "NOT_SPECIFIED";

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
        skb_vlan_tci: at("sk_buff", "vlan_tci")?,
        map_id: at("bpf_map", "id")?,
        sock_family: at("sock", "__sk_common.skc_family")?,
        sock_saddr: at("sock", "__sk_common.skc_rcv_saddr")?,
        sock_daddr: at("sock", "__sk_common.skc_daddr")?,
        sock_v6_saddr: at("sock", "__sk_common.skc_v6_rcv_saddr")?,
        sock_v6_daddr: at("sock", "__sk_common.skc_v6_daddr")?,
        sock_num: at("sock", "__sk_common.skc_num")?,
        sock_dport: at("sock", "__sk_common.skc_dport")?,
        sock_net: at("sock", "__sk_common.skc_net.net")?,
    };
    let has_drop_reason = btf.has_member("trace_event_raw_kfree_skb", "reason");
    let consumed = drop_reasons(btf).into_iter().find(|(_, name)| name == SKB_CONSUMED);
    Ok(Config {
        offsets,
        has_drop_reason: has_drop_reason.into(),
        reason_consumed: consumed.map_or(u32::MAX, |(value, _)| value),
        ..Config::default()
    })
}

/// The numbers of what is hooked, of what this kernel has of it.
pub fn type_ids(btf: &Btf) -> TypeIds {
    TypeIds {
        functions: probed_functions().filter_map(|name| Some((name, btf.function_id(name)?))).collect(),
        tracepoints: typed_tracepoints().filter_map(|name| Some((name, btf.tracepoint_id(name)?))).collect(),
    }
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

/// Names for numbers that only this node knows.
#[derive(Clone, Debug, Default)]
pub struct Names {
    drop_reasons: BTreeMap<u32, String>,
    interfaces: BTreeMap<u32, String>,
    functions: BTreeMap<u64, String>,
    netns: u32,
    pod_namespaces: BTreeSet<u32>,
}

impl Names {
    /// The kernel's drop reasons; interfaces are learnt as they occur.
    pub fn new(btf: &Btf) -> Self {
        Self { drop_reasons: drop_reasons(btf), ..Self::default() }
    }

    /// From what is known already, for tests and recordings.
    pub fn from_parts(drop_reasons: BTreeMap<u32, String>, interfaces: BTreeMap<u32, String>) -> Self {
        Self { drop_reasons, interfaces, ..Self::default() }
    }

    /// With the inode numbers of the node's network namespace and of the traced pods'.
    #[must_use]
    pub fn with_namespaces(self, netns: u32, pod_namespaces: BTreeSet<u32>) -> Self {
        Self { netns, pod_namespaces, ..self }
    }

    /// Asks the kernel for the names of a path's interfaces, while they exist.
    pub(crate) fn learn_interfaces(&mut self, path: &Path) {
        let places = path.hops.iter().chain(&path.replies).map(|hop| hop.place);
        let places = places.filter(|place| place.namespace == Namespace::Node).map(|place| place.ifindex);
        let drops = path.drops.iter().filter(|drop| self.is_nodes(drop)).map(|drop| drop.ifindex);
        let needed: Vec<u32> = places.chain(drops).collect();
        // Numbers are never used again: a node that runs for long has had very many.
        if self.interfaces.len() >= INTERFACES_MAX {
            self.interfaces.clear();
        }
        for ifindex in needed {
            if !self.interfaces.contains_key(&ifindex)
                && let Some(name) = sys::interface_name(ifindex)
            {
                self.interfaces.insert(ifindex, name);
            }
        }
    }

    /// Looks up the functions that freed a path's packets, where the kernel gives no reason: before 5.17, and where
    /// later ones have none yet.
    pub(crate) fn learn_functions(&mut self, path: &Path) {
        let unnamed = path.drops.iter().filter(|drop| !self.has_reason(drop)).map(|drop| drop.location);
        let unnamed: Vec<u64> = unnamed.filter(|location| !self.functions.contains_key(location)).collect();
        if unnamed.is_empty() {
            return;
        }
        // Unreadable or with its addresses hidden, it names nothing: the number is shown then.
        let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        for location in unnamed {
            let name = function_at(&symbols, location).unwrap_or_else(|| format!("{location:#x}"));
            self.functions.insert(location, name);
        }
    }

    /// Whether the kernel says why it freed a packet.
    fn has_reason(&self, drop: &PathDrop) -> bool {
        drop.reason != 0 && self.drop_reasons.get(&drop.reason).is_none_or(|name| name != NOT_SPECIFIED)
    }

    /// What a drop means, if its reason or the function that freed the packet is certain.
    pub fn drop_cause(&self, drop: &PathDrop) -> Option<DropCause> {
        let name = if self.has_reason(drop) { self.drop_reasons.get(&drop.reason)?.as_str() } else { "" };
        classify(name, self.functions.get(&drop.location).map(String::as_str))
    }

    /// Whether the kernel freed a packet in the node's own network namespace.
    pub fn is_nodes(&self, drop: &PathDrop) -> bool {
        drop.netns != 0 && drop.netns == self.netns
    }

    /// Where the kernel freed a packet: `at eth0`, `in the pod`; `None` if that is not known.
    pub fn freed_at(&self, drop: &PathDrop) -> Option<String> {
        if self.pod_namespaces.contains(&drop.netns) {
            return Some("in the pod".to_owned());
        }
        match (drop.netns, drop.ifindex) {
            (0, _) => None,
            (_, 0) if self.is_nodes(drop) => None,
            (_, ifindex) if self.is_nodes(drop) => Some(format!("at {}", self.interface(ifindex))),
            _ => Some("in another network namespace".to_owned()),
        }
    }

    /// Why the kernel freed a packet: the reason's name, and where it gives none the function that did.
    pub fn freed(&self, drop: &PathDrop) -> String {
        match self.functions.get(&drop.location) {
            Some(function) if !self.has_reason(drop) => format!("no reason given, in {function}"),
            _ => self.drop_reason(drop.reason),
        }
    }

    /// An interface's name, else `interface 7`.
    pub fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    /// A drop reason's name, else its subsystem and number.
    ///
    /// Source: `include/net/dropreason.h`: the high 16 bits are the subsystem, 0 the core.
    pub fn drop_reason(&self, reason: u32) -> String {
        match self.drop_reasons.get(&reason) {
            Some(name) => name.clone(),
            None if reason == 0 => "no reason given".to_owned(),
            None => format!("subsystem {} reason {}", reason >> 16, reason & 0xffff),
        }
    }
}

/// The function of `/proc/kallsyms` that `address` lies in: the last one that begins at or before it.
fn function_at(symbols: &str, address: u64) -> Option<String> {
    let functions = symbols.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let start = u64::from_str_radix(fields.next()?, 16).ok()?;
        let is_code = matches!(fields.next()?, "t" | "T" | "w" | "W");
        (is_code && start != 0 && start <= address).then_some((start, fields.next()?))
    });
    functions.max_by_key(|(start, _)| *start).map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_that_an_address_lies_in() {
        let symbols = "ffffffff81000000 T _stext\nffffffff81e00000 t tcp_v4_rcv\nffffffff81e00800 D some_data\n\
                       ffffffff81e01000 T ip_rcv\n0000000000000000 T hidden\n";
        assert_eq!(function_at(symbols, 0xffff_ffff_81e0_0900).as_deref(), Some("tcp_v4_rcv"));
        assert_eq!(function_at(symbols, 0xffff_ffff_81e0_1000).as_deref(), Some("ip_rcv"));
        assert_eq!(function_at(symbols, 0x1000), None);
        assert_eq!(function_at("0000000000000000 T hidden\n", 0x1000), None);
    }
}
