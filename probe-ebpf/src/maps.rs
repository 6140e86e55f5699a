//! The maps and constants that user space fills or reads.
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, RingBuf};
use core::mem::offset_of;

use probe_common::{
    AddressSet, Capture, Config, Counter, DropRecord, KernelOffsets, NamespaceSet, Packet, PacketRecord,
    PayloadRecord, PortKey, PrefixKey, RecordKind, SocketRecord, StreamSlot,
};

/// Records for user space. The loader sets the size.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// What the programs saw, kept and lost: one slot per [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// A packet that is taken apart.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) packet: Packet,
    /// Where its payload begins, from its network header on.
    pub(crate) payload_at: u32,
    /// What the filter knows of its two ends.
    pub(crate) ends: Ends,
}

/// What the filter knows of a packet's two addresses.
#[repr(C)]
pub(crate) struct Ends {
    pub(crate) src: End,
    pub(crate) dst: End,
}

/// What the filter knows of an address.
///
/// It is kept in memory, of which the verifier knows nothing: in registers it would follow each combination through all
/// that comes.
#[repr(C)]
pub(crate) struct End {
    /// 0 if it is no target, else the set of ports that matter, plus one.
    pub(crate) target: u64,
    /// Not 0 for one that the operator wants as a target's peer.
    pub(crate) peer: u64,
}

/// Where a packet is taken apart, a slot for each [`RecordKind`]: with all else it does not fit a program's stack.
#[map]
static SCRATCH: PerCpuArray<Slot> = PerCpuArray::with_max_entries(RecordKind::COUNT as u32, 0);

/// A packet, aligned as a value in a map is, to be zeroed by whole words.
#[repr(C, align(8))]
struct Slot(Scratch);

/// What the filter expression works on, a slot for each [`RecordKind`].
#[map]
static CAPTURES: PerCpuArray<Capture> = PerCpuArray::with_max_entries(RecordKind::COUNT as u32, 0);

/// Connections whose initial sequence number is known at a time, a power of two.
const OPENINGS_MAX: u32 = 1 << 14;

/// Of an end of a TCP connection, a tag in the high half and its initial sequence number in the low one, by a hash.
#[map]
static OPENINGS: Array<u64> = Array::with_max_entries(OPENINGS_MAX, 0);

const BPF_F_NO_PREALLOC: u32 = 1;

/// Addresses that a packet is matched against, on either side. Values are sets of ports, 0 for every packet.
/// The loader sets the size of this and of the next three.
#[map]
pub(crate) static HOSTS: HashMap<PrefixKey, u32> = HashMap::with_max_entries(1, 0);

/// The same for prefixes: a trie's lookup takes three times as long.
#[map]
pub(crate) static TARGETS: LpmTrie<PrefixKey, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

/// The sets of ports.
#[map]
pub(crate) static PORTS: LpmTrie<PortKey, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Where a matched packet's peer must be, if `Config::filter_sources` says so.
#[map]
pub(crate) static SOURCES: LpmTrie<PrefixKey, u32> = LpmTrie::with_max_entries(1, BPF_F_NO_PREALLOC);

/// Streams whose packets are only counted. A lookup in the kernel's own hash table takes five times as long.
#[map]
static STREAMS: Array<StreamSlot> = Array::with_max_entries(StreamSlot::COUNT, 0);

/// The programs that look, by [`HookPoint`](probe_common::HookPoint).
///
/// The kernel empties a program array when no process has it open any more, however the last one ended. What was
/// attached then has nobody to hand on to.
#[map]
pub(crate) static LOOKERS: ProgramArray = ProgramArray::with_max_entries(16, 0);

/// Set by the loader, constant to the verifier, which removes what it turns off.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    offsets: KernelOffsets {
        skb_head: 0,
        skb_data: 0,
        skb_len: 0,
        skb_data_len: 0,
        skb_network_header: 0,
        skb_protocol: 0,
        skb_mark: 0,
        skb_dev: 0,
        dev_ifindex: 0,
        dev_net: 0,
        net_inum: 0,
        skb_vlan_tci: 0,
        map_id: 0,
        sock_family: 0,
        sock_saddr: 0,
        sock_daddr: 0,
        sock_v6_saddr: 0,
        sock_v6_daddr: 0,
        sock_num: 0,
        sock_dport: 0,
        sock_net: 0,
    },
    events_map_id: 0,
    filter_sources: 0,
    has_prefixes: 0,
    has_drop_reason: 0,
    reason_consumed: 0,
    vxlan_port: 0,
    geneve_port: 0,
    wake_bytes: 0,
    has_expression: 0,
    pad: 0,
    addresses: AddressSet { words: [0; 4], masks: [[0; 4]; 2] },
    namespaces: NamespaceSet { words: [0; 4] },
};

/// Where [`setting!`] reads.
pub(crate) const fn config() -> *const Config {
    &raw const CONFIG
}

/// One field of the loader's settings.
macro_rules! setting {
    ($($field:ident).+ $([$idx:literal])?) => {{
        let config = $crate::maps::config();
        // SAFETY: `config` points to a plain static; the volatile read keeps the compiler from folding in the zeros
        // it was declared with, which the loader replaces in .rodata.
        unsafe { core::ptr::read_volatile(&raw const (*config).$($field).+ $([$idx])?) }
    }};
}
pub(crate) use setting;

/// Room for the packet of a record of this kind, zeroed.
#[inline(always)]
pub(crate) fn scratch(kind: RecordKind) -> Option<&'static mut Scratch> {
    let slot = SCRATCH.get_ptr_mut(kind as u32 - 1)?;
    // SAFETY: the slot belongs to this CPU and to one kind of record; programs that make records of one kind do not
    // interrupt each other (see `count`). Zeros are valid for plain integers.
    unsafe {
        zero(slot);
        Some(&mut (*slot).0)
    }
}

/// Zeroes a `T` word by word. What `write_bytes` becomes is a function that goes byte by byte: forty nanoseconds a
/// record, and as many steps for the verifier.
///
/// # Safety
///
/// As `write_bytes`; and a `T` is whole words, aligned as such.
#[inline(always)]
pub(crate) unsafe fn zero<T>(at: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>().is_multiple_of(8)) };
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: within the `T`, by the loop's bound; volatile, so that no call is made of it.
        unsafe { at.cast::<u64>().add(word).write_volatile(0) };
        word += 1;
    }
}

/// Copies a packet from where it was taken apart into a record, word by word. What an assignment becomes is a function that goes byte by byte.
#[inline(always)]
#[expect(clippy::cast_ptr_alignment, reason = "the offsets are asserted")]
pub(crate) fn copy_packet(from: &Packet, to: &mut Packet) {
    const { assert!(size_of::<Packet>().is_multiple_of(8)) };
    const { assert!(offset_of!(Scratch, packet).is_multiple_of(8)) };
    const { assert!(offset_of!(PacketRecord, packet).is_multiple_of(8)) };
    const { assert!(offset_of!(DropRecord, packet).is_multiple_of(8)) };
    const { assert!(offset_of!(SocketRecord, packet).is_multiple_of(8)) };
    const { assert!(offset_of!(PayloadRecord, packet).is_multiple_of(8)) };
    let (from, to): (*const Packet, *mut Packet) = (from, to);
    let mut word = 0;
    while word < size_of::<Packet>() / 8 {
        // SAFETY: within both, by the loop's bound; aligned, as values of maps and records are, at the offsets above. Any
        // bytes are valid for a packet's integers.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
        word += 1;
    }
}

/// Room for a packet's first bytes, as they were left by the one before.
#[inline(always)]
pub(crate) fn capture(kind: RecordKind) -> Option<&'static mut Capture> {
    let slot = CAPTURES.get_ptr_mut(kind as u32 - 1)?;
    // SAFETY: as in `scratch`.
    Some(unsafe { &mut *slot })
}

/// The slot of [`OPENINGS`] that a hash leads to.
#[inline(always)]
pub(crate) fn opening(hash: u64) -> Option<*mut u64> {
    OPENINGS.get_ptr_mut(hash as u32 & (OPENINGS_MAX - 1))
}

/// A slot of [`STREAMS`].
#[inline(always)]
pub(crate) fn stream_slot(index: u32) -> Option<*mut StreamSlot> {
    STREAMS.get_ptr_mut(index)
}

/// Adds one to a counter of this CPU; returns what it is now.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> u64 {
    let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) else {
        return 0; // every counter has a slot
    };
    // SAFETY: the slot belongs to this CPU and the verifier has checked the pointer. Programs that count in the same
    // slot do not interrupt each other, but for kernels before 6.1, where a drop in an interrupt may come between:
    // then two have one number, which user space sees.
    unsafe {
        *slot += 1;
        *slot
    }
}
