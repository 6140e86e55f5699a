//! Cilium's loaded policy programs: which maps each really uses, and what its own type information says of them.
//!
//! While Cilium is upgraded two generations of a map are pinned side by side, and a pin may have been replaced under a program
//! that still uses the old map. The program tells.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use probe_model::cilium::EndpointId;
use probe_model::cilium::entries::Entries;

use super::btf::Btf;
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

/// A loaded program, unless it is gone.
fn program(id: u32) -> Result<Option<Program>> {
    let attempted = || format!("failed to ask the kernel for program {id}");
    // SAFETY: takes a number and returns a new descriptor or an error.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
    if fd < 0 {
        return match io::Error::from_raw_os_error(-fd) {
            // Replaced since its id was read.
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error).with_context(attempted),
        };
    }
    // SAFETY: just made, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let count = info(&fd, &mut []).with_context(attempted)?.nr_map_ids;
    let mut map_ids = vec![0; count as usize];
    let info = info(&fd, &mut map_ids).with_context(attempted)?;
    map_ids.truncate(info.nr_map_ids as usize);
    let name = info.name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    let name = String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned();
    // Programs without type information, or without that struct in it, are the rule.
    let btf = if info.btf_id == 0 { None } else { Btf::of_program(id).ok() };
    let policy_entry = btf.and_then(|btf| btf.members("policy_entry"));
    Ok(Some(Program { name, map_ids, policy_entry }))
}

/// What the kernel says of a program, with as many map ids as `map_ids` has room for.
fn info(fd: &OwnedFd, map_ids: &mut [u32]) -> io::Result<libbpf_sys::bpf_prog_info> {
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
