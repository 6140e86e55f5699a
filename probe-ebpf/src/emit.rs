//! Records into the ring buffer, numbered, with every loss counted.
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use probe_common::{Counter, RecordHeader, RecordKind};

use crate::maps::{RECORDS, count, setting, zero};

/// The kernel's own header before each record (`BPF_RINGBUF_HDR_SZ`).
const RECORD_OVERHEAD: usize = 8;

/// Writes one record, built in place: the largest does not fit a program's stack.
///
/// It takes its number whether or not there is room, so that user space sees which are missing. `fill` is given the
/// record zeroed but for the header.
#[inline(always)]
pub(crate) fn emit<T: 'static>(
    (made, lost): (Counter, Counter),
    (kind, point): (RecordKind, u8),
    ifindex: u32,
    fill: impl FnOnce(&mut T),
) {
    let seq = count(made);
    let Some(mut entry) = RECORDS.reserve::<T>(0) else {
        count(lost);
        return;
    };
    // SAFETY: both helpers take no argument and return a number.
    let (ktime_ns, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let record = entry.as_mut_ptr();
    // SAFETY: the pointer is to a reserved `T`. Every record type is `repr(C)`, of plain integers, for which zeros
    // are valid, and begins with a `RecordHeader`.
    let record = unsafe {
        zero(record);
        *record.cast::<RecordHeader>() =
            RecordHeader { kind: kind as u8, point, cpu: cpu as u16, ifindex, ktime_ns, seq };
        &mut *record
    };
    fill(record);
    entry.submit(wakeup::<T>());
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
