//! What this kernel lets this process do, found by trying: small programs and maps of our own, gone at once.
//!
//! Release numbers and configuration files are no proof: distributions backport and lock down.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    ptr,
};

use anyhow::{Context as _, Result, anyhow};

use super::btf::Btf;

/// `r0 = 0; exit`, the smallest program.
const RETURN_0: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
/// The kernel function behind every notification of Cilium's.
pub const EVENT_OUTPUT: &str = "bpf_skb_event_output";
/// Where the kernel offers kprobes to `perf_event_open`.
const KPROBE_TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Whether a classifier loads, as tc and tcx take it.
///
/// # Errors
///
/// With the kernel's reason.
pub fn classifier() -> Result<()> {
    load(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, None).map(drop).context("a classifier does not load")
}

/// Whether the kernel has BPF ring buffers, since 5.8.
///
/// # Errors
///
/// With the kernel's reason.
pub fn ring_buffer() -> Result<()> {
    create(libbpf_sys::BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, 0).map(drop).context("a ring buffer cannot be made")
}

/// Whether LPM tries can be read in batches, since 5.16 or so.
///
/// # Errors
///
/// When no trie can be made at all.
pub fn lpm_batches() -> Result<bool> {
    let flags = libbpf_sys::BPF_F_NO_PREALLOC;
    let map =
        create(libbpf_sys::BPF_MAP_TYPE_LPM_TRIE, 8, 4, 1, flags).context("an LPM trie cannot be made")?;
    let (mut next, mut key, mut value, mut count) = ([0_u8; 8], [0_u8; 8], [0_u8; 4], 1_u32);
    let opts = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: position, key and value have the sizes that the map was made with, and room for one entry each.
    let result = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_raw_fd(),
            ptr::null_mut(),
            next.as_mut_ptr().cast(),
            key.as_mut_ptr().cast(),
            value.as_mut_ptr().cast(),
            &raw mut count,
            &raw const opts,
        )
    };
    // An empty map ends at once.
    Ok(result == 0 || result == -libc::ENOENT)
}

/// Whether a program attaches to a tracepoint (`skb:kfree_skb`) as it is, without types or tracefs.
///
/// # Errors
///
/// With the kernel's reason.
pub fn raw_tracepoint(tracepoint: &str) -> Result<()> {
    let program = load(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, None)
        .context("a program for a tracepoint does not load")?;
    let name = tracepoint.split_once(':').map_or(tracepoint, |(_, name)| name);
    let name = CString::new(name).context("expected a tracepoint's name")?;
    // SAFETY: a C string that outlives the call, and an open descriptor.
    owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(name.as_ptr(), program.as_raw_fd()) })
        .map(drop)
        .with_context(|| format!("`{tracepoint}` does not take a program"))
}

/// Whether a tracepoint (`kfree_skb`) takes a program to which the verifier knows the types of its arguments.
///
/// # Errors
///
/// With the kernel's reason.
pub fn typed_tracepoint(btf: &Btf, tracepoint: &str) -> Result<()> {
    let id = btf
        .tracepoint_id(tracepoint)
        .with_context(|| format!("no tracepoint `{tracepoint}` in the kernel's BTF"))?;
    let program = load(libbpf_sys::BPF_PROG_TYPE_TRACING, Some((libbpf_sys::BPF_TRACE_RAW_TP, id)))
        .with_context(|| format!("a typed program for `{tracepoint}` does not load"))?;
    attach(&program).with_context(|| format!("`{tracepoint}` does not take a typed program"))
}

/// Whether fentry attaches to [`EVENT_OUTPUT`].
///
/// # Errors
///
/// With the kernel's reason.
pub fn fentry(btf: &Btf) -> Result<()> {
    let id =
        btf.function_id(EVENT_OUTPUT).with_context(|| format!("no `{EVENT_OUTPUT}` in the kernel's BTF"))?;
    let program = load(libbpf_sys::BPF_PROG_TYPE_TRACING, Some((libbpf_sys::BPF_TRACE_FENTRY, id)))
        .with_context(|| format!("an fentry program for `{EVENT_OUTPUT}` does not load"))?;
    attach(&program).with_context(|| format!("`{EVENT_OUTPUT}` does not take an fentry program"))
}

/// Whether the kernel offers kprobes at all. Lockdown may still refuse them.
///
/// # Errors
///
/// When it does not, with what was looked for.
pub fn kprobe() -> Result<()> {
    match std::fs::metadata(KPROBE_TYPE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(anyhow!("no `{KPROBE_TYPE}`: the kernel is built without CONFIG_KPROBES"))
        }
        Err(error) => Err(error).with_context(|| format!("failed to look for `{KPROBE_TYPE}`")),
    }
}

/// Loads [`RETURN_0`]; `target` is an attach type and the type id it attaches to.
pub(super) fn load(program_type: u32, target: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    let license: &CStr = c"Dual MIT/GPL";
    let (expected_attach_type, attach_btf_id) = target.unwrap_or_default();
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type,
        attach_btf_id,
        ..Default::default()
    };
    // SAFETY: the strings are NUL-terminated, the instructions as many as said, the options of the size they say;
    // all outlive the call.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            program_type,
            c"plsprobe_try".as_ptr(),
            license.as_ptr(),
            RETURN_0.as_ptr().cast(),
            RETURN_0.len() as libbpf_sys::size_t,
            &raw mut opts,
        )
    };
    owned(fd)
}

/// Attaches a tracing program to what it was loaded for, and detaches it at once.
fn attach(program: &OwnedFd) -> io::Result<()> {
    // SAFETY: no name, as the kernel wants for programs with a target; the descriptor is open.
    owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(ptr::null(), program.as_raw_fd()) }).map(drop)
}

fn create(map_type: u32, key: u32, value: u32, max_entries: u32, map_flags: u32) -> io::Result<OwnedFd> {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags,
        ..Default::default()
    };
    // SAFETY: the name is NUL-terminated, the options of the size they say; both outlive the call.
    let fd = unsafe {
        libbpf_sys::bpf_map_create(
            map_type,
            c"plsprobe_try".as_ptr(),
            key,
            value,
            max_entries,
            &raw const opts,
        )
    };
    owned(fd)
}

/// libbpf's answer: a new descriptor, or a negated error number.
pub(super) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: libbpf just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_answers_every_question() {
        if let Err(error) = classifier() {
            fixtures::skip!("{error:#}");
            return;
        }
        // Whatever the answers, each is one line with a reason.
        let btf = Btf::load().unwrap();
        let tracepoints = [raw_tracepoint("skb:kfree_skb"), typed_tracepoint(&btf, "kfree_skb")];
        for answer in tracepoints.into_iter().chain([ring_buffer(), fentry(&btf), kprobe()]) {
            if let Err(error) = answer {
                let error = format!("{error:#}");
                assert!(!error.is_empty() && !error.contains('\n'), "{error}");
            }
        }
        ring_buffer().unwrap();
        lpm_batches().unwrap();
    }

    #[test]
    fn without_privileges_nothing_loads() {
        // SAFETY: a raw system call, which changes this thread alone; the thread ends with this test.
        if unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) } != 0 {
            fixtures::skip!("cannot become another user");
            return;
        }
        let error = format!("{:#}", classifier().unwrap_err());
        assert!(error.starts_with("a classifier does not load: Operation not permitted"), "{error}");
    }
}
