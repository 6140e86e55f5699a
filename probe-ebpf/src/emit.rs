//! Records into the ring buffer, numbered, with every loss counted.
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use probe_common::{Counter, RecordHeader, RecordKind};

use crate::maps::{RECORDS, count, setting, zero};

/// The kernel's own header before each record (`BPF_RINGBUF_HDR_SZ`).
const RECORD_OVERHEAD: usize = 8;

/// Room for one record in the ring buffer, to be filled and then submitted: the largest does not fit a program's stack.
pub(crate) struct Entry<T: 'static>(RingBufEntry<T>);

/// Room for a record, zeroed but for its header; `None` if there is none, which is counted.
///
/// It takes its number whether or not there is room, so that user space sees which are missing.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(
    (made, lost): (Counter, Counter),
    (kind, point): (RecordKind, u8),
    ifindex: u32,
) -> Option<Entry<T>> {
    let seq = count(made);
    let Some(mut entry) = RECORDS.reserve::<T>(0) else {
        count(lost);
        return None;
    };
    // SAFETY: both helpers take no argument and return a number.
    let (ktime_ns, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let record = entry.as_mut_ptr();
    // SAFETY: the pointer is to a reserved `T`. Every record type is `repr(C)`, of plain integers, for which zeros
    // are valid, and begins with a `RecordHeader`.
    unsafe {
        zero(record);
        *record.cast::<RecordHeader>() =
            RecordHeader { kind: kind as u8, point, cpu: cpu as u16, ifindex, ktime_ns, seq };
    }
    Some(Entry(entry))
}

impl<T: 'static> Entry<T> {
    #[inline(always)]
    pub(crate) fn record(&mut self) -> &mut T {
        // SAFETY: `reserve` has written all of it.
        unsafe { &mut *self.0.as_mut_ptr() }
    }

    /// Hands it to user space.
    #[inline(always)]
    pub(crate) fn submit(self) {
        self.0.submit(wakeup::<T>());
    }
}

/// The reader comes by itself every few milliseconds; only a buffer that fills up faster calls it, once, as it passes
/// the mark.
///
/// To wake the reader costs microseconds, and the CPU that forwards packets pays. Two CPUs that pass the mark together
/// may both miss it or both call: neither matters, as the reader comes anyway.
#[inline(always)]
fn wakeup<T>() -> u64 {
    let waiting = RECORDS.query(BPF_RB_AVAIL_DATA.into());
    let mark = u64::from(setting!(wake_bytes));
    let passes = waiting >= mark && waiting < mark + (size_of::<T>() + RECORD_OVERHEAD) as u64;
    u64::from(if passes { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}
