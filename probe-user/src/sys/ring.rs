//! A ring buffer's pages, shared with the kernel.
//!
//! Source: `kernel/bpf/ringbuf.c`, Linux 5.8–7.0. First comes a page with the reader's position, then one with the
//! writers', then the data. The kernel would map the data twice in a row, so that a record that wraps is in one piece; of
//! the second time one page is enough for that, and the rest would only count as this process's memory.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Bytes in front of each record: its length with two flags, and where it is.
const HEADER: usize = 8;
/// It is being written.
const BUSY: u32 = 1 << 31;
/// It was given up.
const DISCARD: u32 = 1 << 30;

/// Pages of the kernel's, until dropped.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: pages belong to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference they are only read by atomic loads.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, offset: usize, len: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice, of a descriptor that is open; the result is checked.
        let at = unsafe {
            let offset = (offset as u64).cast_signed();
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { at, len })
    }

    /// The position that a page begins with.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: the mapping is at least a page, aligned as one, and lives as long as it is borrowed; the kernel writes
        // the word in one piece.
        unsafe { self.at.cast().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A ring buffer that is read.
pub(crate) struct RingPages {
    ours: Mapping,
    theirs: Mapping,
    page: usize,
    /// Bytes of data, a power of two.
    bytes: usize,
    /// Where the next record begins; what is before is the writers' again after [`Self::release`].
    next: usize,
    /// Up to where there were records at the last look.
    end: usize,
}

impl RingPages {
    /// Maps the ring buffer with so many bytes of data, a power of two.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let ours = Mapping::new(fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let theirs = Mapping::new(fd, page, page + bytes + page, libc::PROT_READ)?;
        let next = ours.position().load(Ordering::Acquire);
        Ok(Self { ours, theirs, page, bytes, next, end: next })
    }

    /// The next record, if one is there and written.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        loop {
            if self.next == self.end {
                self.end = self.theirs.position().load(Ordering::Acquire);
            }
            if self.next == self.end {
                return None;
            }
            let at = self.page + (self.next & (self.bytes - 1));
            // SAFETY: within the mapping, as `at` is within its data, and aligned, as records are to eight bytes; the kernel
            // writes the word in one piece.
            let header = unsafe { self.theirs.at.add(at).cast::<AtomicU32>().as_ref() };
            // The record was written before its flag was taken away.
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let len = (header & !(BUSY | DISCARD)) as usize;
            self.next = self.next.wrapping_add((HEADER + len).next_multiple_of(8));
            if header & DISCARD == 0 {
                return Some(self.bytes_at(at + HEADER, len));
            }
        }
    }

    /// A record's bytes, none if it is longer than a record can be.
    fn bytes_at(&self, at: usize, len: usize) -> &[u8] {
        if at + len > self.theirs.len {
            return &[];
        }
        // SAFETY: within the mapping. The kernel writes to a record no more once it is written, until it is released; that
        // takes the whole of `self`, which is borrowed as long as the record.
        unsafe { std::slice::from_raw_parts(self.theirs.at.add(at).as_ptr(), len) }
    }

    /// Gives the room of all records so far to the programs again.
    pub(crate) fn release(&mut self) {
        self.ours.position().store(self.next, Ordering::Release);
    }
}
