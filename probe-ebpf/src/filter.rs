//! Which packets the operator asked about.
use aya_ebpf::maps::lpm_trie::Key;
use probe_common::{AddressSet, FRAGMENT_LATER, PORT_ANY, Packet, SourceKey, TargetKey, TargetMatch};

use crate::maps::{SOURCES, TARGETS, config, setting};
use crate::parse::Network;

/// Whether the addresses alone allow a match: most packets are turned away here, their layer 4 unread.
///
/// [`wanted`] asks for the addresses again. To hand it what was found here would cost less per packet that matches,
/// but the verifier would walk through all that follows once for each combination.
#[inline(always)]
pub(crate) fn may_match(network: &Network) -> bool {
    // An ICMP error may quote a packet of a target's.
    network.may_quote()
        || (may_have_entry(&network.src) && own_entry(&network.src, network.version).is_some())
        || (may_have_entry(&network.dst) && own_entry(&network.dst, network.version).is_some())
}

/// Whether a lookup is worth its time.
#[inline(always)]
fn may_have_entry(addr: &[u8; 16]) -> bool {
    let (word, bit) = AddressSet::place(addr);
    // SAFETY: `place` gives an index below four, the length of the array; volatile for `setting!`'s reason.
    let bits =
        unsafe { core::ptr::read_volatile((&raw const (*config()).addresses.words).cast::<u64>().add(word)) };
    bits & 1 << bit != 0
}

/// The entry of an address itself.
#[inline(always)]
fn own_entry(addr: &[u8; 16], version: u8) -> Option<u32> {
    lookup(&TargetKey { addr: *addr, port: PORT_ANY, proto: 0, version })
}

#[inline(always)]
fn lookup(key: &TargetKey) -> Option<u32> {
    // SAFETY: the map pointer is the verifier's, valid for this program's run; values are plain integers.
    TARGETS.get_ptr(key).map(|value| unsafe { *value })
}

/// The judgement with layer 4 known.
#[inline(always)]
pub(crate) fn wanted(packet: &Packet) -> bool {
    let quotes_target = packet.quoted_proto != 0 && own_entry(&packet.quoted_dst, packet.version).is_some();
    (is_from_peer(&packet.src, packet) && (quotes_target || is_target(&packet.dst, packet.dst_port, packet)))
        || (is_from_peer(&packet.dst, packet) && is_target(&packet.src, packet.src_port, packet))
}

/// Whether one side of the packet is what the operator asked about.
#[inline(always)]
fn is_target(addr: &[u8; 16], port: u16, packet: &Packet) -> bool {
    let Some(value) = own_entry(addr, packet.version) else {
        return false;
    };
    // Later fragments and ICMP errors carry no port of their own: the address decides.
    value != TargetMatch::SomePorts as u32
        || packet.fragment & FRAGMENT_LATER != 0
        || packet.quoted_proto != 0
        || lookup(&TargetKey { addr: *addr, port, proto: packet.proto, version: packet.version }).is_some()
}

/// Whether the other side is one the operator asked about.
#[inline(always)]
fn is_from_peer(addr: &[u8; 16], packet: &Packet) -> bool {
    if setting!(filter_sources) == 0 {
        return true;
    }
    let data = SourceKey { version: packet.version, pad: [0; 3], addr: *addr };
    SOURCES.get(Key::new(SourceKey::HEAD_BITS + 128, data)).is_some()
}
