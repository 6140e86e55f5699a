//! What user space tells the programs: the filter, and where the kernel keeps the fields they read.
use core::mem::{offset_of, size_of};

/// Port or protocol number in a [`TargetKey`] that stands for the address alone.
pub const PORT_ANY: u16 = 0;

/// Key of the filter's target map: an address, or an address with port and protocol.
///
/// Every address has an entry with port [`PORT_ANY`] and protocol 0, whose value says whether any port matches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    /// Address as in [`crate::Packet::src`].
    pub addr: [u8; 16],
    /// Port, host order; [`PORT_ANY`] in an address's own entry.
    pub port: u16,
    /// IP protocol number; 0 in an address's own entry.
    pub proto: u8,
    /// 4 or 6: the bytes 10.0.0.0 also begin an IPv6 address.
    pub version: u8,
}

/// Value of the filter's target map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetMatch {
    /// The entry matches as it stands.
    Matches = 1,
    /// The address's own entry: only the ports that have an entry of their own match.
    SomePorts = 2,
}

/// Data of a key of the filter's source trie, after its prefix length (which counts `version` and the padding).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceKey {
    /// 4 or 6.
    pub version: u8,
    /// 0.
    pub pad: [u8; 3],
    /// Address as in [`crate::Packet::src`].
    pub addr: [u8; 16],
}

impl SourceKey {
    /// Bits of a key before the address begins.
    pub const HEAD_BITS: u32 = 32;
}

/// Which addresses may have an entry in the target map: a set without false negatives, a few instructions to ask.
///
/// Most packets on a node concern none of the targets; this spares them two lookups in a hash map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// 256 bits, one for each hash.
    pub words: [u64; 4],
}

impl AddressSet {
    /// Where the bit of an address is: word and bit in it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "an eBPF program has no room for calls")]
    pub const fn place(addr: &[u8; 16]) -> (usize, u32) {
        let low =
            u64::from_ne_bytes([addr[0], addr[1], addr[2], addr[3], addr[4], addr[5], addr[6], addr[7]]);
        let high = u64::from_ne_bytes([
            addr[8], addr[9], addr[10], addr[11], addr[12], addr[13], addr[14], addr[15],
        ]);
        // Fibonacci hashing: the top eight bits of the product.
        let hash = ((low ^ high).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u32;
        ((hash >> 6) as usize & 3, hash & 63)
    }

    /// Adds an address.
    pub const fn insert(&mut self, addr: &[u8; 16]) {
        let (word, bit) = Self::place(addr);
        self.words[word] |= 1 << bit;
    }

    /// Whether an address may be in it; `true` for each that is.
    pub const fn may_contain(&self, addr: &[u8; 16]) -> bool {
        let (word, bit) = Self::place(addr);
        self.words[word] & 1 << bit != 0
    }
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
    /// 0.
    pub pad: u32,
    /// Addresses of the target map.
    pub addresses: AddressSet,
}

const _: () = {
    assert!(size_of::<TargetKey>() == 20);
    assert!(offset_of!(TargetKey, port) == 16);
    assert!(offset_of!(TargetKey, proto) == 18);
    assert!(offset_of!(TargetKey, version) == 19);
    assert!(size_of::<SourceKey>() == 20);
    assert!(offset_of!(SourceKey, addr) == 4);
    assert!(size_of::<KernelOffsets>() == 84);
    assert!(size_of::<AddressSet>() == 32);
    assert!(size_of::<Config>() == 144);
    assert!(offset_of!(Config, events_map_id) == 84);
    assert!(offset_of!(Config, filter_sources) == 88);
    assert!(offset_of!(Config, has_drop_reason) == 92);
    assert!(offset_of!(Config, reason_consumed) == 96);
    assert!(offset_of!(Config, vxlan_port) == 100);
    assert!(offset_of!(Config, geneve_port) == 102);
    assert!(offset_of!(Config, wake_bytes) == 104);
    assert!(offset_of!(Config, addresses) == 112);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_and_most_others_are_not() {
        let address = |number: u32| {
            let mut addr = [0; 16];
            addr[..4].copy_from_slice(&number.to_be_bytes());
            addr
        };
        let mut set = AddressSet::default();
        let inside = || (0..8).map(|n| address(0x0ae0_0001 + n * 7));
        inside().for_each(|addr| set.insert(&addr));
        assert!(inside().all(|addr| set.may_contain(&addr)));
        let wrong = (0..10_000).filter(|n| set.may_contain(&address(0xc0a8_0000 + n))).count();
        assert!(wrong < 1_000, "{wrong} of 10,000 other addresses seem to be in a set of eight");
        assert!(!AddressSet::default().may_contain(&address(1)));
    }
}
