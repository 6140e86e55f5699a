//! The running kernel.

use std::{fs, io};

use anyhow::Result;

use super::{Check, Need, Topic::Kernel};
use crate::attach;
use crate::sources::{
    btf::{Btf, VMLINUX},
    classifiers, features,
};

/// Where the kernel shows its lockdown mode.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
/// The oldest kernel that plsprobe is tested on.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn checks() -> Vec<Check> {
    let btf = Btf::load();
    let mut checks = vec![release(&release_text()), lockdown(fs::read_to_string(LOCKDOWN))];
    checks.push(tried(
        "classifier",
        features::classifier(),
        "loads",
        "CONFIG_NET_CLS_BPF and CAP_BPF are needed",
    ));
    checks.push(tried(
        "ring buffer",
        features::ring_buffer(),
        "can be made",
        "kernel 5.8 or later is needed",
    ));
    checks.push(tcx());
    checks.push(lpm_batches(features::lpm_batches()));
    match btf {
        Ok(btf) => {
            checks.push(Check::ok(Kernel, "BTF", format!("`{VMLINUX}`")));
            checks
                .push(tracepoints(attach::tracepoints().map(|name| (name, features::raw_tracepoint(name)))));
            let typed = |name| (name, features::typed_tracepoint(&btf, name));
            checks.push(typed_tracepoints(attach::typed_tracepoints().map(typed)));
            checks.push(ip_layer(&btf));
            checks.push(verdicts("kprobe", features::kprobe()));
            checks.push(verdicts("fentry", features::fentry(&btf)));
        }
        Err(error) => {
            let next = "use a kernel built with CONFIG_DEBUG_INFO_BTF";
            checks.push(Check::failed(Kernel, "BTF", &error, next).needed_for(Need::Trace));
        }
    }
    checks
}

fn release_text() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn release(text: &str) -> Check {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::degraded(
            Kernel,
            "release",
            format!("`{text}`"),
            "expected a release such as `5.15.0`",
        );
    };
    if (major, minor) < OLDEST {
        let (major, minor) = OLDEST;
        let next = format!("plsprobe is tested on {major}.{minor} and later");
        return Check::degraded(Kernel, "release", text, next);
    }
    Check::ok(Kernel, "release", text)
}

/// The file marks the mode in force: `[none] integrity confidentiality`.
fn lockdown(file: io::Result<String>) -> Check {
    let modes = match file {
        Ok(modes) => modes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::ok(Kernel, "lockdown", format!("no `{LOCKDOWN}`, hence none or not shown here"));
        }
        Err(error) => {
            let next = "run as root, with securityfs mounted";
            return Check::degraded(
                Kernel,
                "lockdown",
                format!("failed to read `{LOCKDOWN}`: {error}"),
                next,
            );
        }
    };
    match modes.split(['[', ']']).nth(1) {
        Some("none") => Check::ok(Kernel, "lockdown", "none"),
        Some(mode) => {
            let next = "hooks that it refuses are named below, others take their place";
            Check::degraded(Kernel, "lockdown", mode, next)
        }
        None => {
            Check::degraded(Kernel, "lockdown", format!("`{}`", modes.trim()), "expected a mode in brackets")
        }
    }
}

fn tried(what: &str, tried: Result<()>, well: &str, next: &str) -> Check {
    match tried {
        Ok(()) => Check::ok(Kernel, what, well),
        Err(error) => Check::failed(Kernel, what, &error, next).needed_for(Need::Trace),
    }
}

fn tcx() -> Check {
    let found = if classifiers::has_tcx() {
        "can be attached; used where Cilium is on tcx too"
    } else {
        "not in this kernel; legacy tc is used, as Cilium does here"
    };
    Check::ok(Kernel, "tcx", found)
}

fn lpm_batches(tried: Result<bool>) -> Check {
    let what = "LPM batch lookup";
    match tried {
        Ok(true) => Check::ok(Kernel, what, "works"),
        Ok(false) => {
            let next = "policy and ipcache maps are read key by key, some five times slower";
            Check::degraded(Kernel, what, "not in this kernel", next)
        }
        Err(error) => Check::failed(Kernel, what, &error, "CAP_BPF is needed"),
    }
}

/// The kernel's drops, its sockets, and what stands in for classifiers.
fn tracepoints(tried: impl Iterator<Item = (&'static str, Result<()>)>) -> Check {
    let next = "what they would show is not seen; CAP_PERFMON and CAP_BPF are needed";
    all_take(("tracepoints", "our programs"), tried, next)
}

/// Those of them that see packets.
fn typed_tracepoints(tried: impl Iterator<Item = (&'static str, Result<()>)>) -> Check {
    let next = "raw tracepoints are used, at twice the cost of a packet";
    all_take(("tp_btf", "programs that know a packet's type"), tried, next)
}

fn all_take(
    (what, taken): (&str, &str),
    tried: impl Iterator<Item = (&'static str, Result<()>)>,
    next: &str,
) -> Check {
    let (well, refused): (Vec<_>, Vec<_>) = tried.partition(|(_, tried)| tried.is_ok());
    let names = |all: &[(&str, Result<()>)]| all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let Some((_, Err(first))) = refused.first() else {
        return Check::ok(Kernel, what, format!("{} take {taken}", names(&well)));
    };
    let found = format!(
        "{} of {} take {taken}, not {}: {first:#}",
        well.len(),
        well.len() + refused.len(),
        names(&refused)
    );
    Check::degraded(Kernel, what, found, next)
}

/// Functions of the IP layer, which are hooked by the same means as Cilium's notifications.
fn ip_layer(btf: &Btf) -> Check {
    let what = "functions of the IP layer";
    let missing: Vec<_> = attach::ip_functions().filter(|name| btf.function_id(name).is_none()).collect();
    if missing.is_empty() {
        return Check::ok(
            Kernel,
            what,
            "all there; hooked by fentry, else by kprobe, where the kernel allows either",
        );
    }
    let next = "the packet's way through the host's stack is seen in part";
    Check::degraded(Kernel, what, format!("not in this kernel: {}", missing.join(", ")), next)
}

/// The hooks behind which Cilium's own verdicts are seen.
fn verdicts(what: &str, tried: Result<()>) -> Check {
    let what = format!("{what} on {}", features::EVENT_OUTPUT);
    match tried {
        Ok(()) => Check::ok(Kernel, what, "can be attached"),
        Err(error) => {
            let next = "Cilium's verdicts are taken from the agent's monitor socket instead";
            Check::degraded(Kernel, what, format!("{error:#}"), next)
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn releases() {
        for (text, status) in [
            ("6.18.44-fc-v669", Status::Ok),
            ("5.10.0", Status::Ok),
            ("5.9.16-azure", Status::Degraded),
            ("4.18.0-513.el8", Status::Degraded),
            ("mainline", Status::Degraded),
        ] {
            assert_eq!(release(text).status, status, "{text}");
        }
    }

    #[test]
    fn tracepoints_that_are_refused_are_named() {
        let check = |refused: &[&str]| {
            let tried = ["skb:kfree_skb", "tcp:tcp_send_reset"].into_iter();
            let tried =
                tried.map(
                    |name| if refused.contains(&name) { (name, Err(anyhow!("no"))) } else { (name, Ok(())) },
                );
            let check = tracepoints(tried);
            (check.status, check.found)
        };
        let all = "skb:kfree_skb, tcp:tcp_send_reset take our programs".to_owned();
        assert_eq!(check(&[]), (Status::Ok, all));
        let one = "1 of 2 take our programs, not tcp:tcp_send_reset: no".to_owned();
        assert_eq!(check(&["tcp:tcp_send_reset"]), (Status::Degraded, one));
    }

    #[test]
    fn lockdown_modes() {
        let found = |text: &str| {
            let check = lockdown(Ok(text.to_owned()));
            (check.status, check.found)
        };
        assert_eq!(found("[none] integrity confidentiality\n"), (Status::Ok, "none".to_owned()));
        assert_eq!(found("none [integrity] confidentiality\n"), (Status::Degraded, "integrity".to_owned()));
        assert_eq!(found("odd\n"), (Status::Degraded, "`odd`".to_owned()));
        assert_eq!(lockdown(Err(io::ErrorKind::NotFound.into())).status, Status::Ok);
        assert_eq!(lockdown(Err(io::ErrorKind::PermissionDenied.into())).status, Status::Degraded);
    }
}
