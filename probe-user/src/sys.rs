//! Every `unsafe` of attaching and reading records: bytes that cross between kernel and user space.
mod ring;

use std::ffi::{CStr, CString};
use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use probe_common::{
    Config, DropRecord, EventRecord, PacketRecord, PayloadRecord, PortKey, PrefixKey, SocketRecord,
    StreamSlot,
};
use tokio::io::unix::AsyncFd;

pub(crate) use ring::RingPages;

use crate::attach::Ring;

/// A type of probe-common as a map key, a map value or a global of an eBPF object.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire<T>(pub(crate) T);

// SAFETY: `#[repr(C)]`, plain integers, padding written out and asserted in probe-common: no uninitialized byte.
unsafe impl aya::Pod for Wire<Config> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<PrefixKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<PortKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Wire<StreamSlot> {}

mod sealed {
    pub(crate) trait Record {}
}

/// A record that may be read from any bytes of its size.
///
/// Sealed: implemented only for types whose every bit pattern is valid.
pub(crate) trait Record: sealed::Record + Copy {}
impl sealed::Record for PacketRecord {}
impl Record for PacketRecord {}
impl sealed::Record for DropRecord {}
impl Record for DropRecord {}
impl sealed::Record for EventRecord {}
impl Record for EventRecord {}
impl sealed::Record for SocketRecord {}
impl Record for SocketRecord {}
impl sealed::Record for PayloadRecord {}
impl Record for PayloadRecord {}

/// The record that `raw` is; `None` unless it has exactly the record's size, and lies where one may.
pub(crate) fn record<T: Record>(raw: &[u8]) -> Option<&T> {
    let record = raw.as_ptr().cast::<T>();
    // SAFETY: size and alignment are checked, and every implementor of the sealed trait is a `#[repr(C)]` struct of
    // integers and arrays of integers, for which every bit pattern is valid. It lives as long as `raw` is borrowed.
    (raw.len() == size_of::<T>() && record.is_aligned()).then(|| unsafe { &*record })
}

/// Has tokio tell when the ring buffer has records.
///
/// # Errors
///
/// When the kernel refuses to poll it.
pub(crate) fn watch(ring: Ring) -> io::Result<AsyncFd<Ring>> {
    // SAFETY: the ring buffer owns its file descriptor and closes it only when it is dropped itself, which the
    // `AsyncFd` that owns it does after deregistering; no safe method of it exchanges the descriptor.
    unsafe { AsyncFd::register(ring) }.map_err(io::Error::from)
}

/// Has tokio tell when a netlink socket has messages.
///
/// # Errors
///
/// When the kernel refuses to poll it.
pub(crate) fn watch_netlink(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: as above: the socket owns its descriptor, closes it when it is dropped, and never exchanges it.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// The clock of the records' times: `CLOCK_MONOTONIC`, since the machine's start.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; this clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Lifts the limit on locked memory, which kernels before 5.11 charge maps to.
///
/// # Errors
///
/// The kernel's refusal; on newer kernels it does not matter.
pub(crate) fn lift_memlock_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit for the duration of the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has large pieces of memory go back to the kernel as soon as they are freed, which costs page faults, and all threads
/// share one heap: what one frees, another can use.
///
/// Without it, what is freed after one start's 16 MB of type information stays: the C library takes the size of the
/// largest piece that was freed for what will be wanted again.
pub(crate) fn give_memory_back() {
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: sets numbers of the allocator's, under its lock. If it refuses, everything stays as it was.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what only the start needed: heap that was freed, and the pages of the binary that cannot be written. Those
/// come back from the file as they are asked for; who traces asks for a fifth of them.
pub(crate) fn give_start_back() {
    unsafe extern "C" fn give_back(
        object: *mut libc::dl_phdr_info,
        _: usize,
        _: *mut libc::c_void,
    ) -> libc::c_int {
        const FIRST_ONLY: libc::c_int = 1;
        // SAFETY: the C library gives a valid object, and the headers that it was loaded by.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
        };
        let page = rustix::param::page_size() as u64;
        // Not even relocation has written to these: what is in the file is what was there.
        let is_constant =
            |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        for header in headers.iter().filter(is_constant) {
            let from = (base + header.p_vaddr) & !(page - 1);
            let to = (base + header.p_vaddr + header.p_memsz).next_multiple_of(page);
            // SAFETY: a segment of this program, mapped from its file and never written to: whoever reads it again finds the
            // same. If the kernel refuses, it stays.
            unsafe { libc::madvise(from as *mut libc::c_void, (to - from) as usize, libc::MADV_DONTNEED) };
        }
        FIRST_ONLY
    }
    // SAFETY: the function takes what it is given as the C library gives it, and no data. The first object is the program.
    unsafe { libc::dl_iterate_phdr(Some(give_back), std::ptr::null_mut()) };
    // SAFETY: works under the allocator's lock on what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The index of the interface of this name in this thread's network namespace.
pub(crate) fn ifindex(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a valid C string, which the function only reads.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The name of the interface with this index in this thread's network namespace.
pub(crate) fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the function may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Inode number of this thread's network namespace, as drop records carry it.
///
/// # Errors
///
/// When `/proc` does not show it.
pub(crate) fn network_namespace() -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino() as u32)
}

/// Keeps signals that end the process waiting in this thread until it is dropped, then lets them come.
///
/// Of the whole process only while it has no other thread that takes them.
pub(crate) struct HeldSignals {
    before: libc::sigset_t,
}

impl HeldSignals {
    /// What a terminal, an init system or a limit ends a process with.
    const SIGNALS: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXFSZ];

    /// Begins to hold them.
    pub(crate) fn hold() -> Self {
        let mut held = Self::empty();
        let mut before = Self::empty();
        for signal in Self::SIGNALS {
            // SAFETY: an initialized set and a signal that exists.
            unsafe { libc::sigaddset(&raw mut held, signal) };
        }
        // SAFETY: both sets are initialized; with a valid first argument the call cannot fail.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const held, &raw mut before) };
        Self { before }
    }

    /// Whether one of them has come since.
    pub(crate) fn is_waiting(&self) -> bool {
        let mut pending = Self::empty();
        // SAFETY: an initialized set to write to.
        unsafe { libc::sigpending(&raw mut pending) };
        // SAFETY: initialized sets and signals that exist.
        let is_member = |set: &libc::sigset_t, signal| unsafe { libc::sigismember(set, signal) } == 1;
        Self::SIGNALS.iter().any(|signal| is_member(&pending, *signal) && !is_member(&self.before, *signal))
    }

    fn empty() -> libc::sigset_t {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: the call initializes the set that it is given, and cannot fail.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: the mask that was there before; no place for the old one is wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Sends this thread a signal.
#[cfg(test)]
pub(crate) fn signal_this_thread(signal: i32) {
    // SAFETY: a thread that exists, this one; what the signal does is the caller's business.
    unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
}
