//! What this process may do.

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use super::{Check, Need, Topic::Privileges};

/// A capability, what it is for, and what cannot be done without it.
const CAPABILITIES: [(&str, CapabilitySet, &str, Need); 3] = [
    ("CAP_BPF", CapabilitySet::BPF, "to open Cilium's maps", Need::Everything),
    ("CAP_PERFMON", CapabilitySet::PERFMON, "to attach tracing programs", Need::Trace),
    (
        "CAP_NET_ADMIN",
        CapabilitySet::NET_ADMIN,
        "to attach to interfaces and read netfilter rules",
        Need::Trace,
    ),
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = match capabilities(None) {
        Ok(sets) => held(sets.effective),
        Err(error) => {
            let found = format!("failed to read this process' capabilities: {error}");
            vec![Check::missing(Privileges, "capabilities", found, "run as root")]
        }
    };
    checks.push(memlock(getrlimit(Resource::Memlock).current));
    checks
}

/// Capabilities that this process lacks, of those that a trace needs.
pub(crate) fn lacking() -> Vec<&'static str> {
    // Where they cannot be read, what they are needed for fails and says so.
    let Ok(sets) = capabilities(None) else { return Vec::new() };
    let lacks = CAPABILITIES.into_iter().filter(|(_, capability, ..)| !holds(sets.effective, *capability));
    lacks.map(|(name, ..)| name).collect()
}

/// Before 5.8 there was nothing finer than `CAP_SYS_ADMIN`; since then it still includes two of them.
fn holds(effective: CapabilitySet, capability: CapabilitySet) -> bool {
    effective.contains(capability)
        || capability != CapabilitySet::NET_ADMIN && effective.contains(CapabilitySet::SYS_ADMIN)
}

fn held(effective: CapabilitySet) -> Vec<Check> {
    let check = |(name, capability, purpose, need)| {
        if effective.contains(capability) {
            return Check::ok(Privileges, name, "effective");
        }
        if holds(effective, capability) {
            return Check::ok(Privileges, name, "by CAP_SYS_ADMIN");
        }
        let next = format!("run as root, in a container with this capability: {purpose}");
        Check::missing(Privileges, name, "not effective", next).needed_for(need)
    };
    CAPABILITIES.into_iter().map(check).collect()
}

fn memlock(limit: Option<u64>) -> Check {
    let what = "RLIMIT_MEMLOCK";
    match limit {
        None => Check::ok(Privileges, what, "unlimited"),
        Some(bytes) => Check::ok(
            Privileges,
            what,
            format!("{} KiB; counts before kernel 5.11, where trace raises it", bytes / 1024),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[track_caller]
    fn check(effective: CapabilitySet, expected: [Status; 3]) {
        let found = held(effective);
        assert_eq!(found.iter().map(|check| check.status).collect::<Vec<_>>(), expected, "{found:?}");
    }

    #[test]
    fn capabilities_that_suffice() {
        use Status::{Missing, Ok};
        check(CapabilitySet::all(), [Ok, Ok, Ok]);
        check(CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::NET_ADMIN, [Ok, Ok, Ok]);
        check(CapabilitySet::SYS_ADMIN, [Ok, Ok, Missing]);
        check(CapabilitySet::NET_ADMIN, [Missing, Missing, Ok]);
        check(CapabilitySet::empty(), [Missing, Missing, Missing]);
    }
}
