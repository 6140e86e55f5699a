//! Kernel memory, read at offsets that user space took from the running kernel's BTF.
use core::marker::PhantomData;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use probe_common::CAPTURE_MAX;

use crate::maps::setting;
use crate::parse::{Source, copy_len, vlan_id};

/// `network_header` of a packet whose headers were never looked at.
const HEADER_UNSET: u16 = u16::MAX;

const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const VLAN_HEADER_LEN: u64 = 4;

/// How the members of the kernel's structures are read.
pub(crate) trait Access: Copy {
    /// Whether a few reads cost less than to look at the packet's addresses.
    const IS_CHEAP: bool;

    /// The member at `base + offset`, a value of plain bytes.
    fn read<T: Copy>(base: u64, offset: u32) -> Option<T>;
}

/// By a helper, which checks the address: of a pointer that the verifier knows nothing of.
#[derive(Clone, Copy)]
pub(crate) struct Probed;

impl Access for Probed {
    const IS_CHEAP: bool = false;

    #[inline(always)]
    fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
        read(base, offset)
    }
}

/// By a plain load: of a pointer whose type the verifier knows, an argument of fentry or `tp_btf` and what its members
/// lead to. The kernel makes 0 of what cannot be read. A helper's call takes ten times as long.
#[derive(Clone, Copy)]
pub(crate) struct Typed;

impl Access for Typed {
    const IS_CHEAP: bool = true;

    #[inline(always)]
    fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
        let member = (base + u64::from(offset)) as *const T;
        // SAFETY: the verifier holds the offset, a constant to it, against the pointer's type; values read here are plain
        // bytes. Volatile, since no two of the kernel's values need be the same.
        Some(unsafe { core::ptr::read_volatile(member) })
    }
}

/// A value of plain bytes at `base + offset`, by a helper.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    let address = (base + u64::from(offset)) as *const core::ffi::c_void;
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes as many bytes as a `T` has, or answers an error; it checks the address.
    let ret = unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address) };
    // SAFETY: the helper has written all of it; values read here are plain bytes.
    (ret == 0).then(|| unsafe { value.assume_init() })
}

/// Inode number of the network namespace that the pointer at `base + offset` leads to; 0 if unreadable.
#[inline(always)]
pub(crate) fn netns<A: Access>(base: u64, offset: u32) -> u32 {
    A::read::<u64>(base, offset).and_then(|net| A::read(net, setting!(offsets.net_inum))).unwrap_or(0)
}

/// A `struct sk_buff` by its address.
#[derive(Clone, Copy)]
pub(crate) struct SkBuff<A>(u64, PhantomData<A>);

impl SkBuff<Probed> {
    pub(crate) const fn probed(address: u64) -> Self {
        Self(address, PhantomData)
    }
}

impl SkBuff<Typed> {
    /// The address is an argument that the verifier knows as a packet.
    pub(crate) const fn typed(address: u64) -> Self {
        Self(address, PhantomData)
    }
}

impl<A: Access> SkBuff<A> {
    #[inline(always)]
    pub(crate) const fn is_null(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> Option<u32> {
        A::read(self.0, setting!(offsets.skb_len))
    }

    #[inline(always)]
    pub(crate) fn mark(&self) -> Option<u32> {
        A::read(self.0, setting!(offsets.skb_mark))
    }

    /// Which buffer holds the packet: `skb->head`.
    #[inline(always)]
    pub(crate) fn head(&self) -> Option<u64> {
        A::read(self.0, setting!(offsets.skb_head))
    }

    /// The VLAN identifier that the kernel keeps beside the packet; 0 without one.
    #[inline(always)]
    pub(crate) fn vlan(&self) -> u16 {
        A::read(self.0, setting!(offsets.skb_vlan_tci)).map_or(0, vlan_id)
    }

    /// Start of the data and length of its linear part.
    #[inline(always)]
    pub(crate) fn linear(&self) -> Option<(u64, u32)> {
        let data = A::read(self.0, setting!(offsets.skb_data))?;
        let paged: u32 = A::read(self.0, setting!(offsets.skb_data_len))?;
        Some((data, self.len()?.saturating_sub(paged)))
    }

    /// Where the network header begins, from the start of the data on.
    #[inline(always)]
    pub(crate) fn network_offset(&self) -> Option<u32> {
        let network_header: u16 = A::read(self.0, setting!(offsets.skb_network_header))?;
        let data: u64 = A::read(self.0, setting!(offsets.skb_data))?;
        Some((self.head()? + u64::from(network_header)).wrapping_sub(data) as u32)
    }

    /// Interface and network namespace; zeros for a packet that has no device.
    #[inline(always)]
    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        let device: u64 = A::read(self.0, setting!(offsets.skb_dev))?;
        if device == 0 {
            return Some((0, 0));
        }
        // Before a socket owns it, `dev` shares its place with `dev_scratch` (UDP): an unreadable one is no device.
        let ifindex = A::read(device, setting!(offsets.dev_ifindex)).unwrap_or(0);
        Some((ifindex, netns::<A>(device, setting!(offsets.dev_net))))
    }

    /// The packet from its network header on; `None` when none is set.
    #[inline(always)]
    pub(crate) fn network(&self) -> Option<MemorySource<A>> {
        let network_header: u16 = A::read(self.0, setting!(offsets.skb_network_header))?;
        let at = self.head()? + u64::from(network_header);
        (network_header != HEADER_UNSET).then_some(MemorySource { skb: *self, at })
    }

    /// A packet that an interface has just received, and the VLAN identifier of the tag in it, 0 without one: the data
    /// begins behind the Ethernet header, with the tag if the interface did not take it off.
    #[inline(always)]
    pub(crate) fn received(self) -> Option<(MemorySource<A>, u16)> {
        let data: u64 = A::read(self.0, setting!(offsets.skb_data))?;
        let protocol: u16 = A::read(self.0, setting!(offsets.skb_protocol))?;
        if matches!(u16::from_be(protocol), ETH_P_8021Q | ETH_P_8021AD) {
            let tci = u16::from_be(read(data, 0)?);
            return Some((MemorySource { skb: self, at: data + VLAN_HEADER_LEN }, vlan_id(tci)));
        }
        Some((MemorySource { skb: self, at: data }, 0))
    }
}

/// A packet's bytes from a kernel address on.
pub(crate) struct MemorySource<A> {
    skb: SkBuff<A>,
    at: u64,
}

impl<A: Access> Source for MemorySource<A> {
    #[inline(always)]
    fn read<T: Copy>(&self, offset: u32) -> Option<T> {
        read(self.at, offset)
    }

    #[inline(always)]
    fn copy(&self, offset: u32, len: u32, to: &mut [u8; CAPTURE_MAX]) -> Option<u32> {
        let at = self.at + u64::from(offset);
        let (data, linear_len) = self.skb.linear()?;
        // What lies in pages is left out: it is not behind the linear part.
        let linear = (data + u64::from(linear_len)).saturating_sub(at);
        if linear == 0 {
            return None;
        }
        let len = copy_len(linear.min(len.into()) as u32);
        // SAFETY: `copy_len` is at most the buffer's length; the helper checks the address.
        let ret = unsafe { bpf_probe_read_kernel(to.as_mut_ptr().cast(), len, at as *const _) };
        (ret == 0).then_some(len)
    }
}
