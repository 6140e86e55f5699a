//! What this kernel, these privileges and this Cilium allow, and what to do about the rest.
//!
//! Every check tries what it reports, as far as that is harmless, and none stops the others.

mod cilium;
mod kernel;
mod leftovers;
pub(crate) mod privileges;
mod render;

use core::fmt;

use serde::Serialize;

use crate::sources::{LiveOptions, unusable::Unusable};

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What the check is about.
    pub topic: Topic,
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    pub next: Option<String>,
    /// What cannot be done while the status is [`Status::Missing`].
    #[serde(skip)]
    needed_for: Need,
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// The running kernel.
    Kernel,
    /// What this process may do.
    Privileges,
    /// Cilium on this node.
    Cilium,
    /// The node's network beside Cilium.
    Node,
    /// What plsprobe can do here, all checks together.
    Plsprobe,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Privileges => "privileges",
            Self::Cilium => "cilium",
            Self::Node => "node",
            Self::Plsprobe => "plsprobe",
        })
    }
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Answers lack something, or cost more.
    Degraded,
    /// Not there, or refused.
    Missing,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        })
    }
}

/// What a thing is needed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Need {
    /// For no command alone.
    #[default]
    None,
    /// For `trace`.
    Trace,
    /// For every answer from this node.
    Everything,
}

impl Check {
    fn ok(topic: Topic, what: impl Into<String>, found: impl Into<String>) -> Self {
        let (what, found) = (what.into(), found.into());
        Self { topic, what, status: Status::Ok, found, next: None, needed_for: Need::None }
    }

    fn degraded(
        topic: Topic,
        what: impl Into<String>,
        found: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { status: Status::Degraded, next: Some(next.into()), ..Self::ok(topic, what, found) }
    }

    fn missing(
        topic: Topic,
        what: impl Into<String>,
        found: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { status: Status::Missing, ..Self::degraded(topic, what, found, next) }
    }

    /// From a source's error; `next` is said where the error has no next step of its own.
    fn failed(topic: Topic, what: impl Into<String>, error: &anyhow::Error, next: &str) -> Self {
        let (found, own) = Unusable::parts(error);
        Self::missing(topic, what, found, own.unwrap_or_else(|| next.to_owned()))
    }

    fn needed_for(self, needed_for: Need) -> Self {
        Self { needed_for, ..self }
    }

    fn blocks(&self, need: Need) -> bool {
        self.status == Status::Missing && self.needed_for == need
    }
}

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Findings in the order they are read, the sum last.
    pub checks: Vec<Check>,
}

impl Report {
    /// Examines this node.
    pub fn examine(options: &LiveOptions) -> Self {
        let mut checks = kernel::checks();
        checks.extend(privileges::checks());
        checks.extend(cilium::checks(options));
        checks.push(leftovers::check());
        Self::summed(checks)
    }

    /// Removes what a killed plsprobe has left in this network namespace; the report names it.
    ///
    /// # Errors
    ///
    /// When a plsprobe is tracing here, whose it may be, or the kernel refuses.
    pub fn clean_up() -> anyhow::Result<Self> {
        leftovers::clean_up()
    }

    /// With what the findings mean for plsprobe's commands.
    fn summed(mut checks: Vec<Check>) -> Self {
        let names = |need: Need| {
            let blocking: Vec<&str> =
                checks.iter().filter(|check| check.blocks(need)).map(|check| check.what.as_str()).collect();
            blocking.join(", ")
        };
        let (everything, trace) = (names(Need::Everything), names(Need::Trace));
        let next = "see the lines marked missing";
        let explain = if everything.is_empty() {
            Check::ok(Topic::Plsprobe, "explain, dump", "answers from this node")
        } else {
            Check::missing(Topic::Plsprobe, "explain, dump", format!("needs {everything}"), next)
        };
        let trace = match (everything.is_empty(), trace.is_empty()) {
            (true, true) => Check::ok(Topic::Plsprobe, "trace", "follows packets on this node"),
            (true, false) => Check::missing(Topic::Plsprobe, "trace", format!("needs {trace}"), next),
            (false, true) => Check::missing(Topic::Plsprobe, "trace", format!("needs {everything}"), next),
            (false, false) => {
                Check::missing(Topic::Plsprobe, "trace", format!("needs {everything}, {trace}"), next)
            }
        };
        checks.push(explain.needed_for(Need::Everything));
        checks.push(trace);
        Self { checks }
    }

    /// Whether plsprobe can answer anything on this node.
    pub fn is_usable(&self) -> bool {
        !self.checks.iter().any(|check| check.blocks(Need::Everything))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(checks: Vec<Check>, usable: bool, expected: &Expect) {
        let report = Report::summed(checks);
        assert_eq!(report.is_usable(), usable);
        let mut text = Vec::new();
        report.text(&mut text).unwrap();
        expected.assert_eq(&String::from_utf8(text).unwrap());
    }

    fn btf() -> Check {
        Check::ok(Topic::Kernel, "BTF", "`/sys/kernel/btf/vmlinux`")
    }

    #[test]
    fn all_is_well() {
        check(
            vec![btf(), Check::ok(Topic::Cilium, "maps", "12 pins")],
            true,
            &expect![[r"
                ok        kernel      BTF: `/sys/kernel/btf/vmlinux`
                ok        cilium      maps: 12 pins
                ok        plsprobe    explain, dump: answers from this node
                ok        plsprobe    trace: follows packets on this node
            "]],
        );
    }

    #[test]
    fn what_only_trace_needs() {
        let net_admin = Check::missing(Topic::Privileges, "CAP_NET_ADMIN", "not effective", "run as root");
        let kprobe = Check::degraded(Topic::Kernel, "kprobe", "none", "use the monitor socket");
        check(
            vec![kprobe, net_admin.needed_for(Need::Trace)],
            true,
            &expect![[r"
                degraded  kernel      kprobe: none; use the monitor socket
                missing   privileges  CAP_NET_ADMIN: not effective; run as root
                ok        plsprobe    explain, dump: answers from this node
                missing   plsprobe    trace: needs CAP_NET_ADMIN; see the lines marked missing
            "]],
        );
    }

    #[test]
    fn no_cilium() {
        let maps =
            Check::missing(Topic::Cilium, "maps", "no Cilium on this node", "run plsprobe on the node");
        check(
            vec![maps.needed_for(Need::Everything)],
            false,
            &expect![[r"
                missing   cilium      maps: no Cilium on this node; run plsprobe on the node
                missing   plsprobe    explain, dump: needs maps; see the lines marked missing
                missing   plsprobe    trace: needs maps; see the lines marked missing
            "]],
        );
    }

    #[test]
    fn json_lines() {
        let report = Report { checks: vec![btf(), Check::missing(Topic::Node, "x", "none", "do\tit")] };
        let mut text = Vec::new();
        report.json(&mut text).unwrap();
        expect![[r#"
            {"schema":"plsprobe.doctor/1","topic":"kernel","what":"BTF","status":"ok","found":"`/sys/kernel/btf/vmlinux`","next":null}
            {"schema":"plsprobe.doctor/1","topic":"node","what":"x","status":"missing","found":"none","next":"do\tit"}
        "#]]
        .assert_eq(&String::from_utf8(text).unwrap());
    }
}
