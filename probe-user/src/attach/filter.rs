//! What the operator asked about, as the programs' maps.
use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use ipnet::IpNet;
use probe_common::{PORT_ANY, SourceKey, TargetKey, TargetMatch};

use super::borrow;
use crate::sys::Wire;

/// An address that packets are matched against on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The address: a pod's, a frontend's, a node's for its node ports.
    pub addr: IpAddr,
    /// Only this port and IP protocol; `None` is every packet.
    pub port: Option<(u16, u8)>,
}

/// Which packets become records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these on either side.
    pub targets: Vec<Target>,
    /// If not empty: the other side is in one of these. The node's own addresses belong here too, or packets that
    /// were masqueraded on their way are missed.
    pub sources: Vec<IpNet>,
}

/// The bytes of an address as [`probe_common::Packet`] has them, and the version.
pub(crate) fn address_bytes(addr: IpAddr) -> ([u8; 16], u8) {
    match addr {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            (bytes, 4)
        }
        IpAddr::V6(v6) => (v6.octets(), 6),
    }
}

/// The entries of the target map: each address has one of its own, which says whether ports matter.
fn target_entries(targets: &[Target]) -> BTreeMap<TargetKey, TargetMatch> {
    let mut entries = BTreeMap::new();
    for target in targets {
        let (addr, version) = address_bytes(target.addr);
        let own = TargetKey { addr, port: PORT_ANY, proto: 0, version };
        if let Some((port, proto)) = target.port {
            entries.insert(TargetKey { port, proto, ..own }, TargetMatch::Matches);
            entries.entry(own).or_insert(TargetMatch::SomePorts);
        } else {
            entries.insert(own, TargetMatch::Matches);
        }
    }
    entries
}

pub(super) fn fill(ebpf: &mut Ebpf, filter: &Filter) -> Result<()> {
    // Borrowed, not taken: programs that are loaded later refer to these maps by their open descriptors.
    let mut targets: HashMap<&mut MapData, Wire<TargetKey>, u32> = borrow(ebpf, "TARGETS")?;
    for (key, value) in target_entries(&filter.targets) {
        targets.insert(Wire(key), value as u32, 0).context("failed to fill the filter's targets")?;
    }
    let mut sources: LpmTrie<&mut MapData, Wire<SourceKey>, u32> = borrow(ebpf, "SOURCES")?;
    for source in &filter.sources {
        let (addr, version) = address_bytes(source.network());
        let key = Key::new(
            SourceKey::HEAD_BITS + u32::from(source.prefix_len()),
            Wire(SourceKey { version, pad: [0; 3], addr }),
        );
        sources
            .insert(&key, 1, 0)
            .with_context(|| format!("failed to add `{source}` to the filter's sources"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(addr: &str) -> TargetKey {
        let (addr, version) = address_bytes(addr.parse().unwrap());
        TargetKey { addr, port: PORT_ANY, proto: 0, version }
    }

    #[test]
    fn an_address_without_a_port_wins_over_its_ports() {
        let addr = "10.0.0.143".parse().unwrap();
        let with_port = Target { addr, port: Some((80, 6)) };
        let bare = Target { addr, port: None };
        let both = target_entries(&[bare, with_port]);
        assert_eq!(both, target_entries(&[with_port, bare]));
        assert_eq!(both[&own("10.0.0.143")], TargetMatch::Matches);
        let only_port = target_entries(&[with_port]);
        assert_eq!(only_port[&own("10.0.0.143")], TargetMatch::SomePorts);
        assert_eq!(only_port[&TargetKey { port: 80, proto: 6, ..own("10.0.0.143") }], TargetMatch::Matches);
    }

    #[test]
    fn an_ipv4_address_is_not_the_beginning_of_an_ipv6_one() {
        assert_ne!(own("10.0.0.0"), own("a00::"));
    }
}
