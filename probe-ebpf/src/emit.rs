//! Records into the ring buffer, with every loss counted.
use aya_ebpf::maps::ring_buf::RingBufEntry;
use probe_common::Counter;

use crate::maps::{RECORDS, count};

/// Room for one record, zeroed; counts a loss when the buffer is full.
///
/// Records are built in place: the largest do not fit a program's stack.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(lost: Counter) -> Option<RingBufEntry<T>> {
    let Some(mut entry) = RECORDS.reserve::<T>(0) else {
        count(lost);
        return None;
    };
    // SAFETY: the pointer is to a reserved `T`; every record type is plain integers, for which zeros are valid.
    unsafe { core::ptr::write_bytes(entry.as_mut_ptr(), 0, 1) };
    Some(entry)
}

/// Gives a record back that turned out not to be wanted.
///
/// With the usual wakeup: the kernel wakes the reader for a record only if the reader has read all before it, so a
/// record passed over in silence would silence those behind it too.
#[inline(always)]
pub(crate) fn discard<T>(entry: RingBufEntry<T>) {
    entry.discard(0);
}
