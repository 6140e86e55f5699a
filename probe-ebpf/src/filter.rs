//! Which packets the operator asked about.
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use probe_common::{
    AddressSet, CAPTURE_MAX, Capture, FRAGMENT_LATER, NamespaceSet, PORTS_ANY, Packet, PortKey, PrefixKey,
    RecordKind,
};

use crate::maps::{PORTS, SOURCES, TARGETS, capture, config, setting};
use crate::parse::{Network, Source};

/// Whether the addresses alone allow a match: most packets are turned away here, their layer 4 unread.
///
/// [`wanted`] asks for the addresses again. To hand it what was found here would cost less per packet that matches,
/// but the verifier would walk through all that follows once for each combination.
#[inline(always)]
pub(crate) fn may_match(network: &Network) -> bool {
    let is_target = |addr| may_be_target(addr, network.version) && ports(addr, network.version).is_some();
    // An ICMP error may quote a packet of a target's.
    network.may_quote() || is_target(&network.src) || is_target(&network.dst)
}

/// Whether a lookup is worth its time.
#[inline(always)]
fn may_be_target(addr: &[u8; 16], version: u8) -> bool {
    let mask = if version == 6 { setting!(addresses.masks[1]) } else { setting!(addresses.masks[0]) };
    let (word, bit) = AddressSet::place(addr, mask);
    // SAFETY: `place` gives an index below four, the length of the array; volatile for `setting!`'s reason.
    let bits =
        unsafe { core::ptr::read_volatile((&raw const (*config()).addresses.words).cast::<u64>().add(word)) };
    bits & 1 << bit != 0
}

/// Whether packets of a network namespace matter, at a hook that sees every one's; those of none, without a device, do.
#[inline(always)]
pub(crate) fn may_be_watched(netns: u32) -> bool {
    let (word, bit) = NamespaceSet::place(netns);
    // SAFETY: as in `may_be_target`.
    let bits = unsafe {
        core::ptr::read_volatile((&raw const (*config()).namespaces.words).cast::<u64>().add(word))
    };
    netns == 0 || bits & 1 << bit != 0
}

/// The set of ports that matter at an address; `None` if it is no target.
#[inline(always)]
fn ports(addr: &[u8; 16], version: u8) -> Option<u32> {
    lookup(&TARGETS, prefix_key(addr, version))
}

#[inline(always)]
fn prefix_key(addr: &[u8; 16], version: u8) -> Key<PrefixKey> {
    Key::new(PrefixKey::BITS, PrefixKey { version: version.into(), addr: *addr })
}

#[inline(always)]
fn lookup<K>(trie: &LpmTrie<K, u32>, key: Key<K>) -> Option<u32> {
    trie.get(key).copied()
}

/// The judgement with layer 4 known.
#[inline(always)]
pub(crate) fn wanted(packet: &Packet) -> bool {
    let quotes_target = packet.quoted_proto != 0 && ports(&packet.quoted_dst, packet.version).is_some();
    (is_from_peer(&packet.src, packet) && (quotes_target || is_target(&packet.dst, packet.dst_port, packet)))
        || (is_from_peer(&packet.dst, packet) && is_target(&packet.src, packet.src_port, packet))
}

/// Whether one side of the packet is what the operator asked about.
#[inline(always)]
fn is_target(addr: &[u8; 16], port: u16, packet: &Packet) -> bool {
    let Some(set) = ports(addr, packet.version) else {
        return false;
    };
    // Later fragments and ICMP errors carry no port of their own: the address decides.
    if set == PORTS_ANY || packet.fragment & FRAGMENT_LATER != 0 || packet.quoted_proto != 0 {
        return true;
    }
    let key = PortKey { set, proto: packet.proto, pad: 0, port_be: port.to_be_bytes() };
    lookup(&PORTS, Key::new(PortKey::BITS, key)).is_some()
}

/// Whether the other side is one the operator asked about.
#[inline(always)]
fn is_from_peer(addr: &[u8; 16], packet: &Packet) -> bool {
    setting!(filter_sources) == 0 || lookup(&SOURCES, prefix_key(addr, packet.version)).is_some()
}

/// Whether the packet is one that the filter expression matches, if there is one.
///
/// An expression sees the packet that all else here is about: inside a tunnel, from its IP header on. One that looks
/// behind the bytes that were copied does not match.
#[inline(always)]
pub(crate) fn matches_expression(source: &impl Source, network: &Network, kind: RecordKind) -> bool {
    if setting!(has_expression) == 0 {
        return true;
    }
    let Some(capture) = capture(kind) else {
        return true; // every kind has a slot
    };
    capture.packet_len = network.total_len;
    let wanted = network.total_len.min(CAPTURE_MAX as u32);
    let Some(captured) = source.copy(network.start, wanted, &mut capture.bytes) else {
        return false;
    };
    capture.captured = captured;
    expression(capture) != 0
}

/// A stand-in: the loader puts the translated expression in its place, a section of its own, if there is one.
///
/// It takes no stack, of which the kernel gives all frames together 512 bytes. It is not exported: an exported function
/// is verified by its type alone, and before 5.12 none that takes a pointer.
#[inline(never)]
#[unsafe(link_section = ".text.expression")]
extern "C" fn expression(capture: &mut Capture) -> u64 {
    // SAFETY: a valid reference; volatile, so that the compiler believes nothing of the result.
    unsafe { core::ptr::read_volatile(&raw const capture.captured).into() }
}
