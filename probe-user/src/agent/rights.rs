//! What the agent may do: as little as its work needs, given up before anyone can talk to it.

use anyhow::{Context as _, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use super::log::Log;
use crate::doctor::privileges;

/// What the agent keeps of what it has, each for a reason:
///
/// * `BPF`, `PERFMON`, `NET_ADMIN`: maps, programs, netlink; without them [`privileges::lacking`] has something to say.
/// * `SYSLOG`: addresses in `/proc/kallsyms`, which name the function that dropped a packet without a reason.
/// * `NET_RAW`: `iptables-legacy-save`, which the agent runs where rules are legacy.
/// * `SYS_RESOURCE`: `RLIMIT_MEMLOCK`, before Linux 5.11.
const KEPT: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_RESOURCE);
/// Capabilities there may be.
const ALL: u32 = 64;

/// Gives up what is not needed, for this thread and those that it will start, and for programs that it runs. Says what is
/// lacking.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn limit(log: &Log) -> Result<()> {
    let held = capabilities(None).context("failed to read this process' capabilities")?;
    let kept = kept(held.effective);
    // Without CAP_SETPCAP there is little to give up: whoever started us has seen to it.
    for bit in (0..ALL).map(|at| CapabilitySet::from_bits_retain(1 << at)) {
        if !kept.contains(bit) && remove_capability_from_bounding_set(bit).is_err() {
            break;
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("failed to give up capabilities that are not needed")?;
    set_no_new_privs(true).context("failed to give up the way to new privileges")?;
    let lacking = privileges::lacking();
    if !lacking.is_empty() {
        log.say(&format!("lacks {}; see `plsprobe doctor` for what cannot be done so", lacking.join(", ")));
    }
    Ok(())
}

/// What is kept of `held`. `SYS_ADMIN` stands for two of the others where those are not held.
fn kept(held: CapabilitySet) -> CapabilitySet {
    let finer = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let coarse = if held.contains(finer) { CapabilitySet::empty() } else { CapabilitySet::SYS_ADMIN };
    held & (KEPT | coarse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_little_as_is_needed() {
        let three = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN;
        assert_eq!(kept(three), three);
        assert_eq!(kept(CapabilitySet::all()), KEPT);
        let coarse = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_PTRACE;
        assert_eq!(kept(coarse), CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN);
        assert_eq!(kept(CapabilitySet::CHOWN), CapabilitySet::empty());
    }

    /// On a thread of its own: capabilities are a thread's, and so is what is given up.
    #[test]
    fn what_is_given_up_is_gone() {
        let after = std::thread::spawn(|| {
            limit(&Log::default()).expect("root gives up rights");
            (capabilities(None).unwrap(), set_capabilities_back())
        });
        let (after, regained) = after.join().unwrap();
        assert!(KEPT.contains(after.permitted) && after.effective == after.permitted, "{after:?}");
        assert!(!regained, "what was given up came back");
    }

    fn set_capabilities_back() -> bool {
        let all = CapabilitySet::from_bits_truncate((1 << 40) - 1);
        let sets = CapabilitySets { effective: all, permitted: all, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).is_ok()
    }
}
