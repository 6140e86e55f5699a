//! Whether our classifiers are there and come first.
//!
//! Cilium replaces its filter in place, which leaves the order as it is. A filter that is deleted and added again, by
//! whomever, comes before ours and ends the chain; so does a tcx program, which runs before every filter; and whoever
//! deletes the qdisc deletes ours with it. Then we see nothing, and nothing tells us.
use core::fmt;

use anyhow::Result;
use probe_model::world::Link;

use crate::attach::Ours;
use crate::sources::classifiers::{Attachment, Classifier, classifiers};
use crate::sys;

/// What the names of our programs begin with, those of another plsprobe too: they pass every packet on.
const OURS: &str = "plsprobe_";

/// What is wrong with one of our classifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Somebody else's runs before it.
    Behind,
    /// Somebody has removed it.
    Removed,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Behind => "another filter had come before ours",
            Self::Removed => "somebody had removed our filter",
        })
    }
}

/// Those of our classifiers that see no packet, and why.
///
/// # Errors
///
/// When the kernel does not list its filters.
pub(crate) fn troubled(ours: &[Ours]) -> Result<Vec<(String, Trouble)>> {
    let mut names: Vec<&str> = ours.iter().map(|one| one.interface.as_str()).collect();
    names.dedup();
    let link = |name: &str| {
        Some(Link { name: name.to_owned(), ifindex: sys::ifindex(name)?, addresses: Vec::new() })
    };
    let links: Vec<Link> = names.into_iter().filter_map(link).collect();
    let all = classifiers(&links)?;
    // An interface that has gone is none of this.
    let is_there = |one: &&Ours| links.iter().any(|link| link.name == one.interface);
    let trouble = |one: &Ours| Some((one.place.clone(), trouble(&all, &one.place, one.program)?));
    Ok(ours.iter().filter(is_there).filter_map(trouble).collect())
}

fn trouble(all: &[Classifier], place: &str, program: u32) -> Option<Trouble> {
    let mut there: Vec<&Classifier> =
        all.iter().filter(|one| format!("{} {}", one.dev, one.direction) == place).collect();
    // The order in which they run: within tcx, and within one priority, as they are listed.
    there.sort_by_key(|one| match one.attachment {
        Attachment::Tcx => (0, 0),
        Attachment::Tc { priority, .. } => (1, priority),
    });
    let Some(at) = there.iter().position(|one| one.program == program) else {
        return Some(Trouble::Removed);
    };
    // Without CAP_SYS_ADMIN tcx programs have no names: two plsprobes must not overtake each other for ever.
    let is_nameless_like_ours =
        |one: &Classifier| one.name.is_empty() && there[at].attachment == Attachment::Tcx;
    let is_foreign = |one: &&Classifier| !one.name.starts_with(OURS) && !is_nameless_like_ours(one);
    there[..at].iter().any(is_foreign).then_some(Trouble::Behind)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

    use libbpf_rs::{TC_INGRESS, TcHook, TcHookBuilder};
    use probe_common::HookPoint;

    use super::*;
    use crate::attach::tests::{
        NODE, PORT, about, filters, in_runtime, keep, packets, scratch, send_udp, settings, sh,
    };
    use crate::attach::{Attachment, HookState};

    /// A program that returns 0, `TC_ACT_OK`: it ends the chain, as Cilium's do.
    fn foreign_program() -> OwnedFd {
        let code: [u64; 2] = [0xb7, 0x95];
        // SAFETY: two whole instructions of eight bytes (`r0 = 0`, `exit`), two C strings, no options.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                c"foreign".as_ptr(),
                c"GPL".as_ptr(),
                code.as_ptr().cast(),
                code.len() as libbpf_sys::size_t,
                std::ptr::null_mut(),
            )
        };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn add_foreign(program: &OwnedFd, ifindex: u32) -> TcHook {
        let mut builder = TcHookBuilder::new(program.as_fd());
        let mut hook = builder.ifindex(ifindex.cast_signed()).handle(1).priority(1).hook(TC_INGRESS);
        hook.create().unwrap();
        hook.attach().unwrap()
    }

    #[test]
    fn a_filter_that_comes_before_ours_is_seen_and_overtaken() {
        scratch(|peer| {
            let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
            let (foreign, ifindex) = (foreign_program(), sys::ifindex("v0").unwrap());
            let mut hook = add_foreign(&foreign, ifindex);
            let settings = settings(about(NODE));
            let seen = in_runtime(|| {
                let (mut attachment, mut records) = Attachment::start(&settings).unwrap();
                assert_eq!(trouble_of(&attachment), []);
                hook.detach().unwrap();
                add_foreign(&foreign, ifindex);
                assert_eq!(trouble_of(&attachment), [ingress(Trouble::Behind)], "{}", filters());
                send_udp(peer, NODE, 10, 8);
                let renewed = attachment.reattach("v0 ingress").unwrap();
                assert_eq!(renewed.state, HookState::Attached("legacy tc"));
                assert_eq!(trouble_of(&attachment), []);
                send_udp(peer, NODE, 5, 8);
                let mut batch = Vec::new();
                records.drain(keep(&mut batch));
                assert!(attachment.detach().is_empty());
                packets(&batch, HookPoint::UplinkIn).len()
            });
            assert_eq!(seen, 5, "unseen while displaced, seen once each afterwards");
            let left = sh("tc filter show dev v0 ingress");
            assert!(left.contains("name foreign") && !left.contains("plsprobe"), "{left}");
        });
    }

    fn ingress(trouble: Trouble) -> (String, Trouble) {
        ("v0 ingress".to_owned(), trouble)
    }

    fn trouble_of(attachment: &Attachment) -> Vec<(String, Trouble)> {
        troubled(&attachment.classifiers()).unwrap()
    }

    #[test]
    fn ours_that_somebody_removed_comes_back() {
        scratch(|peer| {
            let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
            sh("tc qdisc replace dev v0 clsact");
            let settings = settings(about(NODE));
            let seen = in_runtime(|| {
                let (mut attachment, mut records) = Attachment::start(&settings).unwrap();
                sh("tc qdisc del dev v0 clsact");
                let both = trouble_of(&attachment);
                assert_eq!(both, [ingress(Trouble::Removed), ("v0 egress".to_owned(), Trouble::Removed)]);
                for (place, _) in both {
                    let renewed = attachment.restore(&place).unwrap();
                    assert!(renewed.state.is_attached(), "{renewed:?}");
                }
                assert_eq!(trouble_of(&attachment), []);
                send_udp(peer, NODE, 5, 8);
                let mut batch = Vec::new();
                records.drain(keep(&mut batch));
                assert!(attachment.detach().is_empty());
                packets(&batch, HookPoint::UplinkIn).len()
            });
            assert_eq!(seen, 5);
            assert!(!filters().contains("plsprobe"), "{}", filters());
        });
    }

    #[test]
    fn a_tcx_program_that_comes_meanwhile_is_overtaken_by_tcx() {
        scratch(|peer| {
            let _receiver = UdpSocket::bind((NODE, PORT)).unwrap();
            let (foreign, ifindex) = (foreign_program(), sys::ifindex("v0").unwrap());
            sh("tc qdisc replace dev v0 clsact");
            let settings = settings(about(NODE));
            in_runtime(|| {
                let (mut attachment, mut records) = Attachment::start(&settings).unwrap();
                let hook = libbpf_sys::BPF_TCX_INGRESS;
                // SAFETY: no options; the descriptor is open.
                let link = unsafe {
                    libbpf_sys::bpf_link_create(
                        foreign.as_raw_fd(),
                        ifindex.cast_signed(),
                        hook,
                        std::ptr::null(),
                    )
                };
                if link < 0 {
                    fixtures::skip!("no tcx ({})", std::io::Error::from_raw_os_error(-link));
                    return;
                }
                // SAFETY: the descriptor was just opened and belongs to nobody else.
                let link = unsafe { OwnedFd::from_raw_fd(link) };
                assert_eq!(trouble_of(&attachment), [ingress(Trouble::Behind)]);
                let renewed = attachment.reattach("v0 ingress").unwrap();
                assert_eq!(renewed.state, HookState::Attached("tcx"));
                assert_eq!(trouble_of(&attachment), []);
                send_udp(peer, NODE, 5, 8);
                let mut batch = Vec::new();
                records.drain(keep(&mut batch));
                assert!(attachment.detach().is_empty());
                assert_eq!(packets(&batch, HookPoint::UplinkIn).len(), 5, "once each");
                drop(link);
            });
        });
    }
}
