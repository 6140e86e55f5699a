//! Whether our classifiers still come first.
//!
//! Cilium replaces its filter in place, which leaves the order as it is. A filter that is deleted and added again, by
//! whomever, comes before ours and ends the chain: then we see nothing, and nothing tells us.
use anyhow::Result;
use probe_model::world::Link;

use crate::sources::classifiers::{Attachment, Classifier, classifiers};

/// What the names of our programs begin with.
const OURS: &str = "plsprobe_";

/// Places (`eth0 ingress`) where a legacy filter of somebody else's runs before ours.
///
/// # Errors
///
/// When the kernel does not list its filters.
pub(crate) fn displaced(links: &[Link]) -> Result<Vec<String>> {
    let all = classifiers(links)?;
    let place = |classifier: &Classifier| format!("{} {}", classifier.dev, classifier.direction);
    let ours = all.iter().enumerate().filter_map(|(at, classifier)| match classifier.attachment {
        Attachment::Tc { priority, .. } if classifier.name.starts_with(OURS) => {
            Some((at, classifier, priority))
        }
        _ => None,
    });
    let is_behind = |at: usize, mine: &Classifier, mine_priority: u16| {
        all.iter().enumerate().any(|(other_at, other)| match other.attachment {
            // Within one priority the list is in the order in which they run.
            Attachment::Tc { priority, .. } => {
                place(other) == place(mine)
                    && !other.name.starts_with(OURS)
                    && (priority, other_at) < (mine_priority, at)
            }
            Attachment::Tcx => false,
        })
    };
    let mut places: Vec<String> = ours
        .filter(|(at, mine, priority)| is_behind(*at, mine, *priority))
        .map(|(_, mine, _)| place(mine))
        .collect();
    places.dedup();
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

    use libbpf_rs::{TC_INGRESS, TcHook, TcHookBuilder};
    use probe_common::HookPoint;

    use super::*;
    use crate::attach::tests::{
        NODE, PORT, about, filters, in_runtime, packets, scratch, send_udp, settings, sh,
    };
    use crate::attach::{Attachment, HookState};
    use crate::sys;

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
            let v0 = Link { name: "v0".into(), ifindex, addresses: vec![] };
            let displaced = || displaced(std::slice::from_ref(&v0)).unwrap();
            let settings = settings(about(NODE));
            let seen = in_runtime(|| {
                let (mut attachment, mut records) = Attachment::start(&settings).unwrap();
                assert_eq!(displaced(), Vec::<String>::new());
                hook.detach().unwrap();
                add_foreign(&foreign, ifindex);
                assert_eq!(displaced(), ["v0 ingress"], "{}", filters());
                send_udp(peer, NODE, 10, 8);
                let renewed = attachment.reattach("v0 ingress").unwrap();
                assert_eq!(renewed.state, HookState::Attached("legacy tc"));
                assert_eq!(displaced(), Vec::<String>::new());
                send_udp(peer, NODE, 5, 8);
                let mut batch = Vec::new();
                records.drain(&mut batch);
                assert!(attachment.detach().is_empty());
                packets(&batch, HookPoint::UplinkIn).len()
            });
            assert_eq!(seen, 5, "unseen while displaced, seen once each afterwards");
            let left = sh("tc filter show dev v0 ingress");
            assert!(left.contains("name foreign") && !left.contains("plsprobe"), "{left}");
        });
    }
}
