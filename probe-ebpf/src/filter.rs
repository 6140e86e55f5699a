//! Which packets the operator asked about.
use aya_ebpf::maps::lpm_trie::Key;
use probe_common::{FRAGMENT_LATER, PORT_ANY, Packet, SourceKey, TargetKey, TargetMatch};

use crate::maps::{SOURCES, TARGETS, setting};
use crate::parse::Network;

/// How an address fares before ports are known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressMatch {
    No,
    SomePorts,
    Yes,
}

/// Looks both addresses up; both `No` turns the packet away without reading its layer 4.
#[inline(always)]
pub(crate) fn addresses(network: &Network) -> (AddressMatch, AddressMatch) {
    (address(&network.src, network.version), address(&network.dst, network.version))
}

#[inline(always)]
fn address(addr: &[u8; 16], version: u8) -> AddressMatch {
    match lookup(&TargetKey { addr: *addr, port: PORT_ANY, proto: 0, version }) {
        None => AddressMatch::No,
        Some(value) if value == TargetMatch::SomePorts as u32 => AddressMatch::SomePorts,
        Some(_) => AddressMatch::Yes,
    }
}

#[inline(always)]
fn lookup(key: &TargetKey) -> Option<u32> {
    // SAFETY: the map pointer is the verifier's, valid for this program's run; values are plain integers.
    TARGETS.get_ptr(key).map(|value| unsafe { *value })
}

/// The judgement with layer 4 known.
#[inline(always)]
pub(crate) fn wanted(packet: &Packet, matches: (AddressMatch, AddressMatch)) -> bool {
    // Later fragments and ICMP errors carry no port of their own: the address decides.
    let without_port = packet.fragment & FRAGMENT_LATER != 0 || packet.quoted_proto != 0;
    let from_target = side(matches.0, &packet.src, packet.src_port, packet, without_port);
    let to_target = side(matches.1, &packet.dst, packet.dst_port, packet, without_port)
        || (packet.quoted_proto != 0 && address(&packet.quoted_dst, packet.version) != AddressMatch::No);
    if !from_target && !to_target {
        return false;
    }
    if setting!(filter_sources) == 0 {
        return true;
    }
    (to_target && is_source(&packet.src, packet.version))
        || (from_target && is_source(&packet.dst, packet.version))
}

#[inline(always)]
fn side(matched: AddressMatch, addr: &[u8; 16], port: u16, packet: &Packet, without_port: bool) -> bool {
    match matched {
        AddressMatch::No => false,
        AddressMatch::Yes => true,
        AddressMatch::SomePorts => {
            without_port
                || lookup(&TargetKey { addr: *addr, port, proto: packet.proto, version: packet.version })
                    .is_some()
        }
    }
}

#[inline(always)]
fn is_source(addr: &[u8; 16], version: u8) -> bool {
    let data = SourceKey { version, pad: [0; 3], addr: *addr };
    SOURCES.get(Key::new(SourceKey::HEAD_BITS + 128, data)).is_some()
}
