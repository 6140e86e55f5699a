//! What user space tells the programs: the filter, and where the kernel keeps the fields they read.
use core::mem::{offset_of, size_of};

use crate::{FIBONACCI, address_words, halves};

/// Value of the filter's targets for a prefix all of whose packets match; any other is a set of ports.
pub const PORTS_ANY: u32 = 0;

/// A key of the filter's map of single addresses, and the data of a key of its tries of addresses, after the prefix length
/// (which counts `version`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixKey {
    /// 4 or 6: the bytes 10.0.0.0 also begin an IPv6 address. A whole word: to zero three bytes is a call of a function
    /// in eBPF.
    pub version: u32,
    /// Address as in [`crate::Packet::src`].
    pub addr: [u8; 16],
}

impl PrefixKey {
    /// Bits of a key before the address begins.
    pub const HEAD_BITS: u32 = 32;
    /// Bits of a key that is one IPv6 address; an IPv4 address is followed by zeros.
    pub const BITS: u32 = Self::HEAD_BITS + 128;
}

/// Data of a key of the filter's trie of ports, after the prefix length (which counts all before the port).
///
/// A range of ports is as many prefixes as it takes, a protocol alone the one of no bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// Which set of ports: a value of the target trie, from 1 on.
    pub set: u32,
    /// IP protocol number.
    pub proto: u8,
    /// 0.
    pub pad: u8,
    /// Port, network order.
    pub port_be: [u8; 2],
}

impl PortKey {
    /// Bits of a key before the port begins.
    pub const HEAD_BITS: u32 = 48;
    /// Bits of a key that is one port.
    pub const BITS: u32 = Self::HEAD_BITS + 16;
}

/// Which addresses may be among the targets: a set without false negatives, a few instructions to ask.
///
/// Most packets on a node concern none of the targets; this spares them two lookups. Of an address it takes as many
/// bits as the shortest prefix of the family has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// 256 bits, one for each hash.
    pub words: [u64; 4],
    /// The bits that count, of an IPv4 and of an IPv6 address: [`address_words`].
    pub masks: [[u32; 4]; 2],
}

impl AddressSet {
    /// An empty set for prefixes of at least so many bits, IPv4 and IPv6.
    pub const fn new(bits_v4: u8, bits_v6: u8) -> Self {
        Self { words: [0; 4], masks: [mask(bits_v4), mask(bits_v6)] }
    }

    /// Where a version's mask is in `masks`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn mask_of(version: u8) -> usize {
        (version == 6) as usize
    }

    /// Where the bit of an address is, given by its words: word and bit in it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn place([a, b, c, d]: [u32; 4], mask: [u32; 4]) -> (usize, u32) {
        let [low, high] = halves([a & mask[0], b & mask[1], c & mask[2], d & mask[3]]);
        let key = low ^ high;
        let hash = (key.wrapping_mul(FIBONACCI) >> 56) as u32;
        ((hash >> 6) as usize & 3, hash & 63)
    }

    /// Adds a prefix by its address.
    pub const fn insert(&mut self, addr: &[u8; 16], version: u8) {
        let (word, bit) = Self::place(address_words(addr), self.masks[Self::mask_of(version)]);
        self.words[word] |= 1 << bit;
    }

    /// Whether an address may be in it; `true` for each that is.
    pub const fn may_contain(&self, addr: &[u8; 16], version: u8) -> bool {
        let (word, bit) = Self::place(address_words(addr), self.masks[Self::mask_of(version)]);
        self.words[word] & 1 << bit != 0
    }
}

/// Which network namespaces may matter, by the inode numbers that the kernel gives them one after another: a set without
/// false negatives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSet {
    /// 256 bits, one for each remainder.
    pub words: [u64; 4],
}

impl NamespaceSet {
    /// Every namespace.
    pub const ALL: Self = Self { words: [u64::MAX; 4] };

    /// Where the bit of a namespace is: word and bit in it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn place(inum: u32) -> (usize, u32) {
        ((inum >> 6) as usize & 3, inum & 63)
    }

    /// Adds a namespace.
    pub const fn insert(&mut self, inum: u32) {
        let (word, bit) = Self::place(inum);
        self.words[word] |= 1 << bit;
    }

    /// Whether a namespace may be in it; `true` for each that is.
    pub const fn may_contain(&self, inum: u32) -> bool {
        let (word, bit) = Self::place(inum);
        self.words[word] & 1 << bit != 0
    }
}

/// The first `bits` bits of an address.
const fn mask(bits: u8) -> [u32; 4] {
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits as u32) };
    address_words(&mask.to_be_bytes())
}

/// Bytes of a packet that a filter expression can look at.
pub const CAPTURE_MAX: usize = 256;

/// What a filter expression, translated from classic BPF, works on: one packet from its network header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Classic BPF's scratch memory.
    pub memory: [u32; 16],
    /// Length of the packet, by its IP header.
    pub packet_len: u32,
    /// How many of `bytes` are the packet's.
    pub captured: u32,
    /// The packet's first bytes; behind them whatever was there before.
    pub bytes: [u8; CAPTURE_MAX],
}

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.data`.
    pub skb_data: u32,
    /// `sk_buff.len`.
    pub skb_len: u32,
    /// `sk_buff.data_len`.
    pub skb_data_len: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `sk_buff.protocol`.
    pub skb_protocol: u32,
    /// `sk_buff.mark`.
    pub skb_mark: u32,
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `net_device.ifindex`.
    pub dev_ifindex: u32,
    /// `net_device.nd_net.net`.
    pub dev_net: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `sk_buff.vlan_tci`.
    pub skb_vlan_tci: u32,
    /// `bpf_map.id`.
    pub map_id: u32,
    /// `sock.__sk_common.skc_family`.
    pub sock_family: u32,
    /// `sock.__sk_common.skc_rcv_saddr`.
    pub sock_saddr: u32,
    /// `sock.__sk_common.skc_daddr`.
    pub sock_daddr: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`.
    pub sock_v6_saddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`.
    pub sock_v6_daddr: u32,
    /// `sock.__sk_common.skc_num`.
    pub sock_num: u32,
    /// `sock.__sk_common.skc_dport`.
    pub sock_dport: u32,
    /// `sock.__sk_common.skc_net.net`.
    pub sock_net: u32,
}

/// Settings of the programs, a constant to the verifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where the kernel keeps what `kfree_skb` and the event hooks read.
    pub offsets: KernelOffsets,
    /// Id of Cilium's `cilium_events` map; 0 keeps no event.
    pub events_map_id: u32,
    /// 1: only packets whose peer is in the source trie.
    pub filter_sources: u32,
    /// 1: targets are also in the trie, those that are not one address.
    pub has_prefixes: u32,
    /// 1: `skb:kfree_skb` has a reason argument (5.17 and later).
    pub has_drop_reason: u32,
    /// Value of `reason` that means consumed, not dropped (`SKB_CONSUMED`).
    pub reason_consumed: u32,
    /// UDP port of Cilium's VXLAN, 0 without one: packets to it are read by what is inside.
    pub vxlan_port: u16,
    /// UDP port of Cilium's Geneve, 0 without one.
    pub geneve_port: u16,
    /// Bytes waiting in the ring buffer from which on the reader is woken; below, it comes by itself.
    pub wake_bytes: u32,
    /// 1: only packets that the filter expression matches.
    pub has_expression: u32,
    /// 0.
    pub pad: u32,
    /// Addresses of the targets.
    pub addresses: AddressSet,
    /// Namespaces whose packets are kept by hooks that see every one's.
    pub namespaces: NamespaceSet,
}

const _: () = {
    assert!(size_of::<PrefixKey>() == 20);
    assert!(offset_of!(PrefixKey, addr) == 4);
    assert!(size_of::<PortKey>() == 8);
    assert!(offset_of!(PortKey, proto) == 4);
    assert!(offset_of!(PortKey, port_be) == 6);
    assert!(size_of::<Capture>() == 328);
    assert!(offset_of!(Capture, packet_len) == 64);
    assert!(offset_of!(Capture, captured) == 68);
    assert!(offset_of!(Capture, bytes) == 72);
    assert!(size_of::<KernelOffsets>() == 84);
    assert!(size_of::<AddressSet>() == 64);
    assert!(offset_of!(AddressSet, masks) == 32);
    assert!(size_of::<NamespaceSet>() == 32);
    assert!(size_of::<Config>() == 216);
    assert!(offset_of!(Config, events_map_id) == 84);
    assert!(offset_of!(Config, filter_sources) == 88);
    assert!(offset_of!(Config, has_prefixes) == 92);
    assert!(offset_of!(Config, has_drop_reason) == 96);
    assert!(offset_of!(Config, reason_consumed) == 100);
    assert!(offset_of!(Config, vxlan_port) == 104);
    assert!(offset_of!(Config, geneve_port) == 106);
    assert!(offset_of!(Config, wake_bytes) == 108);
    assert!(offset_of!(Config, has_expression) == 112);
    assert!(offset_of!(Config, addresses) == 120);
    assert!(offset_of!(Config, namespaces) == 184);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> [u8; 16] {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&number.to_be_bytes());
        addr
    }

    #[test]
    fn what_was_added_is_found_and_most_others_are_not() {
        let mut set = AddressSet::new(32, 128);
        let inside = || (0..8).map(|n| address(0x0ae0_0001 + n * 7));
        inside().for_each(|addr| set.insert(&addr, 4));
        assert!(inside().all(|addr| set.may_contain(&addr, 4)));
        let wrong = (0..10_000).filter(|n| set.may_contain(&address(0xc0a8_0000 + n), 4)).count();
        assert!(wrong < 1_000, "{wrong} of 10,000 other addresses seem to be in a set of eight");
        assert!(!AddressSet::default().may_contain(&address(1), 4));
    }

    #[test]
    fn namespaces_that_were_added_are_found_and_their_neighbours_are_not() {
        let mut set = NamespaceSet::default();
        let pods = [4_026_531_840, 4_026_532_101, 4_026_532_319];
        assert!(!pods.iter().any(|pod| set.may_contain(*pod)));
        for pod in pods {
            set.insert(pod);
        }
        assert!(pods.iter().all(|pod| set.may_contain(*pod) && !set.may_contain(pod + 1)));
        assert!((0..1000).all(|inum| NamespaceSet::ALL.may_contain(inum)));
    }

    #[test]
    fn every_address_of_a_prefix_is_found() {
        let mut set = AddressSet::new(22, 128);
        set.insert(&address(0x0af4_0400), 4);
        assert!((0x0af4_0400..0x0af4_0800).all(|number| set.may_contain(&address(number), 4)));
        let wrong = (0..10_000).filter(|n| set.may_contain(&address(0xc0a8_0000 + (n << 10)), 4)).count();
        assert!(wrong < 200, "{wrong} of 10,000 other prefixes seem to be in a set of one");
        let mut all = AddressSet::new(0, 0);
        all.insert(&[0; 16], 6);
        assert!(all.may_contain(&[0xfd; 16], 6));
    }
}
