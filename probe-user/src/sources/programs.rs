//! Cilium's loaded policy programs: which maps each really uses, and what its own type information says of them.
//!
//! While Cilium is upgraded two generations of a map are pinned side by side, and a pin may have been replaced under a program
//! that still uses the old map. The program tells.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result};
use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo, PerfEventType};
use probe_model::cilium::EndpointId;
use probe_model::cilium::entries::Entries;

use super::btf::Btf;
use super::features::owned;
use super::maps::Globals;
use super::raw::Program;

/// The program array through which Cilium's programs reach a pod's policy, by endpoint id; host order.
pub const CALL_POLICY: &str = "cilium_call_policy";

/// What was found of the policy programs of some endpoints.
#[derive(Debug, Default)]
pub struct Programs {
    /// The entries of [`CALL_POLICY`] that these endpoints have: endpoint id to program id.
    pub calls: Entries,
    /// The programs by id.
    pub programs: BTreeMap<u32, Program>,
}

/// Looks up the policy programs of `endpoints`. Without such a pin, or with empty slots in it, there is less in the answer.
///
/// # Errors
///
/// When the pin or a program may not be read.
pub fn read(globals: &Globals, endpoints: impl IntoIterator<Item = EndpointId>) -> Result<Programs> {
    let calls = globals.map(CALL_POLICY)?;
    let mut found = Vec::new();
    let mut programs = BTreeMap::new();
    for endpoint in endpoints {
        let slot = u32::from(endpoint.0).to_ne_bytes();
        // The kernel shows the id of the program in the slot.
        let Some(Ok(id)) = calls.lookup(&slot)?.map(<[u8; 4]>::try_from) else { continue };
        if let Some(program) = program(u32::from_ne_bytes(id))? {
            found.push((slot, id));
            programs.insert(u32::from_ne_bytes(id), program);
        }
    }
    Ok(Programs { calls: Entries::collect(found)?, programs })
}

/// How often the kernel skipped a run of each of these programs: they, or a probe in whose place they run, were being
/// run on that CPU already. Kernels before 5.12 do not count it for programs, before 6.7 not for kprobes; of kprobes
/// only `CAP_SYS_ADMIN` is told.
///
/// # Errors
///
/// When the kernel does not let itself be asked.
pub fn skipped_runs(programs: &[BorrowedFd<'_>]) -> Result<Vec<u64>> {
    let infos = programs.iter().map(|program| info(*program, &mut [])).collect::<io::Result<Vec<_>>>();
    let infos = infos.context("failed to ask the kernel for our programs")?;
    let mut skipped: Vec<u64> = infos.iter().map(|info| info.recursion_misses).collect();
    for link in LinkInfoIter::default() {
        if let LinkTypeInfo::PerfEvent(event) = link.info
            && let PerfEventType::Kprobe { missed, .. } = event.event_type
            && let Some(at) = infos.iter().position(|info| info.id == link.prog_id)
        {
            skipped[at] += missed;
        }
    }
    Ok(skipped)
}

/// A loaded program, unless it is gone.
fn program(id: u32) -> Result<Option<Program>> {
    let attempted = || format!("failed to ask the kernel for program {id}");
    // SAFETY: takes a number and returns a new descriptor or an error.
    let fd = match owned(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) }) {
        Ok(fd) => fd,
        // Replaced since its id was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(attempted),
    };
    let count = info(fd.as_fd(), &mut []).with_context(attempted)?.nr_map_ids;
    let mut map_ids = vec![0; count as usize];
    let info = info(fd.as_fd(), &mut map_ids).with_context(attempted)?;
    map_ids.truncate(info.nr_map_ids as usize);
    let name = info.name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    let name = String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned();
    // Programs without type information, or without that struct in it, are the rule.
    let btf = if info.btf_id == 0 { None } else { Btf::of_program(id).ok() };
    let policy_entry = btf.and_then(|btf| btf.members("policy_entry"));
    Ok(Some(Program { name, map_ids, policy_entry }))
}

/// What the kernel says of a program, with as many map ids as `map_ids` has room for.
fn info(fd: BorrowedFd<'_>, map_ids: &mut [u32]) -> io::Result<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: map_ids.len() as u32,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut length = size_of_val(&info) as u32;
    // SAFETY: `info` is as long as `length` says, `map_ids` has `nr_map_ids` elements, and all of it outlives the call.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), (&raw mut info).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(info) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A raw tracepoint's program that makes its own tracepoint fire: `bpf_trace_printk("x")`.
    const PRINTS: [u64; 8] = [
        0x0000_0078_0000_01b7, // r1 = 'x'
        0x0000_0000_fff8_1a7b, // *(r10 - 8) = r1
        0x0000_0000_0000_a1bf, // r1 = r10
        0xffff_fff8_0000_0107, // r1 += -8
        0x0000_0002_0000_02b7, // r2 = 2
        0x0000_0006_0000_0085, // call bpf_trace_printk
        0x0000_0000_0000_00b7, // r0 = 0
        0x0000_0000_0000_0095, // exit
    ];

    fn load() -> io::Result<OwnedFd> {
        // SAFETY: whole instructions, as many as said; two C strings; no options.
        owned(unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT,
                c"prints".as_ptr(),
                c"GPL".as_ptr(),
                PRINTS.as_ptr().cast(),
                PRINTS.len() as libbpf_sys::size_t,
                std::ptr::null_mut(),
            )
        })
    }

    fn run(program: &OwnedFd) {
        let context = [0_u64; 1];
        let mut opts = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: size_of_val(&context) as u32,
            ..Default::default()
        };
        // SAFETY: an open descriptor, and options of the size they say; the context outlives the call.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut opts) };
        assert_eq!(result, 0);
    }

    #[test]
    fn a_run_within_its_own_run_is_skipped_and_counted() {
        let program = match load() {
            Ok(program) => program,
            Err(error) => {
                fixtures::skip!("a program that prints does not load: {error}");
                return;
            }
        };
        // SAFETY: a C string and an open descriptor.
        let attached = owned(unsafe {
            libbpf_sys::bpf_raw_tracepoint_open(c"bpf_trace_printk".as_ptr(), program.as_raw_fd())
        });
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) => {
                fixtures::skip!("no tracepoint `bpf_trace_printk`: {error}");
                return;
            }
        };
        let skipped = || skipped_runs(&[program.as_fd()]).unwrap();
        assert_eq!(skipped(), [0]);
        // Each prints, which runs the attached program, which prints, which would run it again.
        run(&program);
        run(&program);
        assert_eq!(skipped(), [2]);
        drop(attached);
    }
}
