//! Which packets the operator asked about.
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use probe_common::{
    AddressSet, CAPTURE_MAX, Capture, FRAGMENT_LATER, NamespaceSet, PORTS_ANY, Packet, PortKey, PrefixKey,
    RecordKind, address_words,
};

use crate::maps::{End, Ends, HOSTS, PORTS, SOURCES, Scratch, TARGETS, capture, config, scratch, setting};
use crate::parse::{self, Address, Header, Network, Source, address_bytes};
use crate::payload;

/// What the IP header says of the packet that the source gives, if it may be one that the operator asked about.
///
/// What costs least and turns most packets away comes first. A source that cannot be read is of no IP packet: ARP, netlink
/// messages.
#[inline(always)]
pub(crate) fn network(source: &impl Source) -> Option<Network> {
    let header = parse::header(source)?;
    let foretold = foretell(&header);
    if foretold == Some(false) {
        return None;
    }
    let network = parse::network(source, header)?;
    (foretold.is_some() || may_match(&network)).then_some(network)
}

/// The packet taken apart, if the operator asked about it.
#[inline(always)]
pub(crate) fn find(
    source: &impl Source,
    network: &Network,
    kind: RecordKind,
) -> Option<&'static mut Scratch> {
    let scratch = find_by_ends(source, network, kind)?;
    matches_expression(source, network, kind).then_some(scratch)
}

/// The same, whatever the filter expression says.
#[inline(always)]
pub(crate) fn find_by_ends(
    source: &impl Source,
    network: &Network,
    kind: RecordKind,
) -> Option<&'static mut Scratch> {
    let scratch = scratch(kind)?;
    if !find_ends(network, &mut scratch.ends) {
        return None;
    }
    let packet = &mut scratch.packet;
    parse::packet(source, network, packet);
    payload::keep_offset(&mut scratch.payload_at, network, packet);
    wanted(packet, &scratch.ends).then_some(scratch)
}

/// What [`may_match`] will say, if a packet's first header is enough to know: most packets are turned away by it.
#[inline(always)]
fn foretell(header: &Header) -> Option<bool> {
    parse::plain_ipv4(header).map(|(src, dst)| may_be_target(src, 4) || may_be_target(dst, 4))
}

/// Whether the addresses alone allow a match, by a set without false negatives.
#[inline(always)]
fn may_match(network: &Network) -> bool {
    // An ICMP error may quote a packet of a target's.
    network.may_quote()
        || may_be_target(network.src, network.version)
        || may_be_target(network.dst, network.version)
}

/// Whether a lookup is worth its time.
#[inline(always)]
fn may_be_target(addr: Address, version: u8) -> bool {
    let mask = if version == 6 { setting!(addresses.masks[1]) } else { setting!(addresses.masks[0]) };
    let (word, bit) = AddressSet::place(addr, mask);
    // SAFETY: `place` gives an index below four, the length of the array; volatile for `setting!`'s reason.
    let bits =
        unsafe { core::ptr::read_volatile((&raw const (*config()).addresses.words).cast::<u64>().add(word)) };
    bits & 1 << bit != 0
}

/// Whether the addresses match, by lookups: what [`may_match`] lets pass by mistake is turned away here, its layer 4
/// unread. What is found is kept for [`wanted`].
#[inline(always)]
fn find_ends(network: &Network, ends: &mut Ends) -> bool {
    let version = network.version;
    if may_be_target(network.src, version) {
        find_target(network.src, version, &mut ends.src);
    }
    if may_be_target(network.dst, version) {
        find_target(network.dst, version, &mut ends.dst);
    }
    if kept(&ends.src.target) | kept(&ends.dst.target) == 0 && !network.may_quote() {
        return false;
    }
    find_peer(network.src, version, &mut ends.src);
    find_peer(network.dst, version, &mut ends.dst);
    true
}

/// The same for the two ends of a socket, whatever they are.
#[inline(always)]
pub(crate) fn find_both(addresses: (Address, Address), version: u8, ends: &mut Ends) {
    for (address, end) in [(addresses.0, &mut ends.src), (addresses.1, &mut ends.dst)] {
        find_target(address, version, end);
        find_peer(address, version, end);
    }
}

#[inline(always)]
fn find_target(address: Address, version: u8, end: &mut End) {
    if let Some(set) = target(PrefixKey { version: version.into(), addr: address_bytes(address) }) {
        keep(&mut end.target, u64::from(set) + 1);
    }
}

/// The set of ports that matter at an address, if it is a target.
#[inline(always)]
fn target(key: PrefixKey) -> Option<u32> {
    // SAFETY: the value is copied at once; nobody writes to the map any more.
    let set = unsafe { HOSTS.get(key) }.copied();
    if set.is_none() && setting!(has_prefixes) != 0 {
        return lookup(&TARGETS, Key::new(PrefixKey::BITS, key));
    }
    set
}

#[inline(always)]
fn find_peer(address: Address, version: u8, end: &mut End) {
    let key = || PrefixKey { version: version.into(), addr: address_bytes(address) };
    if setting!(filter_sources) == 0 || lookup(&SOURCES, Key::new(PrefixKey::BITS, key())).is_some() {
        keep(&mut end.peer, 1);
    }
}

#[inline(always)]
fn keep(at: &mut u64, value: u64) {
    // SAFETY: a valid reference; volatile, so that the compiler forgets what it knows of the value.
    unsafe { core::ptr::write_volatile(at, value) };
}

#[inline(always)]
fn kept(at: &u64) -> u64 {
    // SAFETY: as in `keep`.
    unsafe { core::ptr::read_volatile(at) }
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

#[inline(always)]
fn lookup<K>(trie: &LpmTrie<K, u32>, key: Key<K>) -> Option<u32> {
    trie.get(key).copied()
}

/// The judgement with layer 4 known.
#[inline(always)]
pub(crate) fn wanted(packet: &Packet, ends: &Ends) -> bool {
    (kept(&ends.src.peer) != 0 && (quotes_target(packet) || is_target(&ends.dst, packet.dst_port, packet)))
        || (kept(&ends.dst.peer) != 0 && is_target(&ends.src, packet.src_port, packet))
}

/// Whether the packet is an ICMP error about a packet to a target.
#[inline(always)]
fn quotes_target(packet: &Packet) -> bool {
    let addr = || address_bytes(address_words(&packet.quoted_dst));
    packet.quoted_proto != 0 && target(PrefixKey { version: packet.version.into(), addr: addr() }).is_some()
}

/// Whether one side of the packet is what the operator asked about.
#[inline(always)]
fn is_target(end: &End, port: u16, packet: &Packet) -> bool {
    let Some(set) = kept(&end.target).checked_sub(1) else {
        return false;
    };
    let set = set as u32;
    // Later fragments and ICMP errors carry no port of their own: the address decides.
    if set == PORTS_ANY || packet.fragment & FRAGMENT_LATER != 0 || packet.quoted_proto != 0 {
        return true;
    }
    let key = PortKey { set, proto: packet.proto, pad: 0, port_be: port.to_be_bytes() };
    lookup(&PORTS, Key::new(PortKey::BITS, key)).is_some()
}

/// Whether the packet is one that the filter expression matches, if there is one.
///
/// An expression sees the packet that all else here is about: inside a tunnel, from its IP header on. One that looks
/// behind the bytes that were copied does not match.
#[inline(always)]
fn matches_expression(source: &impl Source, network: &Network, kind: RecordKind) -> bool {
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
