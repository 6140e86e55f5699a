//! Filters that a plsprobe left behind when it was killed.

use anyhow::{Result, bail};

use super::{Check, Report, Topic::Node};
use crate::attach;
use crate::sources::addresses;
use crate::sources::classifiers::{Attachment, classifiers};

/// What the checks are about.
const WHAT: &str = "plsprobe's own filters";
/// What our programs' names begin with.
const OURS: &str = "plsprobe_";

pub(super) fn check() -> Check {
    let found = places().and_then(|places| Ok((places, attach::is_tracing_here()?)));
    match found {
        Ok((places, tracing)) => judge(&places, tracing),
        Err(error) => Check::failed(Node, WHAT, &error, "CAP_NET_ADMIN is needed"),
    }
}

/// Where they are; tcx links are never left behind.
fn places() -> Result<Vec<String>> {
    let all = classifiers(&addresses::network()?.links)?;
    let ours = all.iter().filter(|one| one.name.starts_with(OURS) && one.attachment != Attachment::Tcx);
    Ok(ours.map(|one| format!("`{}` at `{} {}`", one.name, one.dev, one.direction)).collect())
}

fn judge(places: &[String], tracing: bool) -> Check {
    match (places, tracing) {
        ([], _) => Check::ok(Node, WHAT, "none is left of an earlier run"),
        (places, true) => {
            let found = format!("{}, while a plsprobe is tracing here", places.join(", "));
            Check::ok(Node, WHAT, found)
        }
        (places, false) => {
            let found = format!("left of a run that was killed, and inert: {}", places.join(", "));
            let next = "remove them by `plsprobe doctor --cleanup`; the next `plsprobe trace` does it too";
            Check::degraded(Node, WHAT, found, next)
        }
    }
}

/// Removes them, and reports each.
///
/// # Errors
///
/// When a plsprobe is tracing in this network namespace, whose they may be, or the kernel refuses.
pub(super) fn clean_up() -> Result<Report> {
    let Some(removed) = attach::remove_leftovers()? else {
        bail!(
            "a plsprobe is tracing in this network namespace, nothing was removed; run this again once it has ended"
        );
    };
    let mut checks: Vec<Check> =
        removed.iter().map(|leftover| Check::ok(Node, WHAT, format!("removed {leftover}"))).collect();
    if checks.is_empty() {
        checks.push(judge(&[], false));
    }
    Ok(Report { checks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn leftovers_are_a_finding_only_while_nobody_traces() {
        let places = ["`plsprobe_uplink_in` at `eth0 ingress`".to_owned()];
        assert_eq!(judge(&[], false).status, Status::Ok);
        assert_eq!(judge(&[], true).status, Status::Ok);
        assert_eq!(judge(&places, true).status, Status::Ok);
        let left = judge(&places, false);
        assert_eq!(left.status, Status::Degraded);
        assert!(left.found.contains("`plsprobe_uplink_in` at `eth0 ingress`"), "{left:?}");
        assert!(left.next.unwrap().contains("plsprobe doctor --cleanup"));
    }
}
