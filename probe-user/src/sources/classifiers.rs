//! Which classifiers are attached where: Cilium's, ours and others', by legacy tc and by tcx.

use core::fmt;
use std::{
    collections::{BTreeMap, BTreeSet},
    io, ptr,
};

use anyhow::{Context as _, Result};
use libbpf_rs::query::ProgInfoIter;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use probe_model::{cilium::Direction, world::Link};

use super::netlink::Netlink;

/// `TC_H_CLSACT` of `include/uapi/linux/pkt_sched.h`, the parent's major number.
const CLSACT: u16 = 0xffff;
/// `TC_H_MIN_INGRESS`.
const MIN_INGRESS: u16 = 0xfff2;
/// `TC_H_MIN_EGRESS`.
const MIN_EGRESS: u16 = 0xfff3;
/// Programs on one tcx hook beyond this many are not listed; the kernel allows 64.
const MAX_TCX: usize = 64;

/// A program on an interface's hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// The interface's name.
    pub dev: String,
    /// Seen from the interface: towards the node is ingress.
    pub direction: Direction,
    /// How it is attached.
    pub attachment: Attachment,
    /// The name it was attached by, such as `cil_from_netdev-eth0`; of a tcx program the program's, 15 bytes at most.
    pub name: String,
    /// The program's id, 0 if the kernel does not say.
    pub program: u32,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attachment {
    /// By a tc filter.
    Tc {
        /// Its priority: lower runs first, and the first direct action other than "unspecified" ends it.
        priority: u16,
        /// Its handle within the priority.
        handle: u32,
    },
    /// By a tcx link.
    Tcx,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tc { priority, handle } => write!(f, "tc prio {priority} handle {handle:#x}"),
            Self::Tcx => f.write_str("tcx"),
        }
    }
}

impl Classifier {
    /// Whether the name is one of Cilium's: `cil_…` since 1.12, before and in some modes `….o:[section]`.
    pub fn is_ciliums(&self) -> bool {
        self.name.starts_with("cil_") || self.name.starts_with("bpf_") || self.name.contains("cilium")
    }
}

/// Every BPF classifier on these interfaces, in the order of the interfaces.
///
/// # Errors
///
/// When the kernel does not list its filters.
pub fn classifiers(links: &[Link]) -> Result<Vec<Classifier>> {
    let netlink = Netlink::open()?;
    let mut found = Vec::new();
    let mut names = None;
    for link in links {
        for direction in [Direction::Ingress, Direction::Egress] {
            for message in netlink.dump("tc filters", filters_of(link.ifindex, direction))? {
                found.extend(filter(message, &link.name, direction));
            }
            for program in tcx_programs(link.ifindex, direction)
                .with_context(|| format!("failed to list the tcx programs of `{}`", link.name))?
            {
                let names = names.get_or_insert_with(program_names);
                let name = names.get(&program).cloned().unwrap_or_default();
                let (dev, attachment) = (link.name.clone(), Attachment::Tcx);
                found.push(Classifier { dev, direction, attachment, name, program });
            }
        }
    }
    Ok(found)
}

fn filters_of(ifindex: u32, direction: Direction) -> RouteNetlinkMessage {
    let minor = match direction {
        Direction::Ingress => MIN_INGRESS,
        Direction::Egress => MIN_EGRESS,
    };
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle { major: CLSACT, minor };
    RouteNetlinkMessage::GetTrafficFilter(message)
}

/// A BPF filter. The kernel lists each priority first, without a program: that is none.
fn filter(message: RouteNetlinkMessage, dev: &str, direction: Direction) -> Option<Classifier> {
    let RouteNetlinkMessage::NewTrafficFilter(TcMessage { header, attributes, .. }) = message else {
        return None;
    };
    let (mut name, mut program) = (None, 0);
    let options = attributes.into_iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(found)) => name = Some(found),
            TcOption::Bpf(TcFilterBpfOption::ProgId(found)) => program = found,
            _ => {}
        }
    }
    let priority = (header.info >> 16) as u16;
    let attachment = Attachment::Tc { priority, handle: header.handle.into() };
    Some(Classifier { dev: dev.to_owned(), direction, attachment, name: name?, program })
}

/// Ids of the programs on a tcx hook. Kernels before 6.6 have no tcx: none.
fn tcx_programs(ifindex: u32, direction: Direction) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; MAX_TCX];
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: programs.as_mut_ptr(),
        prog_attach_flags: ptr::null_mut(),
        link_ids: ptr::null_mut(),
        link_attach_flags: ptr::null_mut(),
        __bindgen_anon_1: libbpf_sys::bpf_prog_query_opts__bindgen_ty_1 { count: MAX_TCX as u32 },
        ..Default::default()
    };
    let hook = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    // SAFETY: `prog_ids` has room for the `count` ids given, the other arrays are absent; both outlive the call.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(ifindex.cast_signed(), hook, &raw mut opts) };
    match -result {
        0 => {
            // SAFETY: both members of the union are the same `u32`.
            let count = unsafe { opts.__bindgen_anon_1.count } as usize;
            programs.truncate(count);
            Ok(programs)
        }
        // No tcx in this kernel, or nothing was ever attached there, or the interface has gone.
        libc::EINVAL | libc::ENOENT | libc::ENODEV => Ok(Vec::new()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Whether an interface has a clsact qdisc, which legacy filters hang on.
///
/// # Errors
///
/// When the kernel does not list its qdiscs.
pub fn has_clsact(ifindex: u32) -> Result<bool> {
    Ok(with_clsact(&Netlink::open()?)?.contains(&ifindex))
}

/// The interfaces that have a clsact qdisc, by index.
fn with_clsact(netlink: &Netlink) -> Result<BTreeSet<u32>> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let clsact = |message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(TcMessage { header, attributes, .. }) => {
            let is_clsact = |attribute: &TcAttribute| *attribute == TcAttribute::Kind("clsact".to_owned());
            attributes.iter().any(is_clsact).then_some(header.index.cast_unsigned())
        }
        _ => None,
    };
    Ok(netlink.dump("qdiscs", question)?.into_iter().filter_map(clsact).collect())
}

/// The legacy BPF filters of all interfaces: each one's interface by its index, its direction and its name.
///
/// Only interfaces that can have one are asked: a machine may have thousands.
///
/// # Errors
///
/// When the kernel does not list its qdiscs or filters.
pub fn legacy_filters() -> Result<Vec<(u32, Direction, String)>> {
    let netlink = Netlink::open()?;
    let mut found = Vec::new();
    for ifindex in with_clsact(&netlink)? {
        for direction in [Direction::Ingress, Direction::Egress] {
            let messages = netlink.dump("tc filters", filters_of(ifindex, direction))?;
            let filters = messages.into_iter().filter_map(|message| filter(message, "", direction));
            found.extend(filters.map(|filter| (ifindex, direction, filter.name)));
        }
    }
    Ok(found)
}

/// Whether the kernel has tcx, which came with 6.6.
pub fn has_tcx() -> bool {
    // The loopback interface has index 1 in every namespace.
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: asks for no ids: every array is absent.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(1, libbpf_sys::BPF_TCX_INGRESS, &raw mut opts) };
    result == 0 || result == -libc::ENOENT
}

fn program_names() -> BTreeMap<u32, String> {
    ProgInfoIter::default().map(|info| (info.id, info.name.to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::{AsFd as _, AsRawFd as _},
        process::Command,
        time::{Duration, Instant},
    };

    use libbpf_rs::{TC_INGRESS, TcHookBuilder};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;
    use crate::sources::{addresses, features};

    #[test]
    fn tc_and_tcx_in_a_namespace() {
        // SAFETY: only this thread's network namespace is unshared, no file descriptors.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            fixtures::skip!("cannot make a network namespace: {error}");
            return;
        }
        let veth = ["link", "add", "eth0", "type", "veth", "peer", "name", "peer0"];
        if !Command::new("ip").args(veth).output().is_ok_and(|output| output.status.success()) {
            fixtures::skip!("`ip` does not work here");
            return;
        }
        let links = addresses::network().unwrap().links;
        let eth0 = links.iter().find(|link| link.name == "eth0").unwrap().ifindex;
        assert_eq!(classifiers(&links).unwrap(), []);
        assert!(!has_clsact(eth0).unwrap() && legacy_filters().unwrap().is_empty());

        let program = features::load(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, None).unwrap();
        let mut hook = TcHookBuilder::new(program.as_fd())
            .ifindex(eth0.cast_signed())
            .handle(3)
            .priority(7)
            .hook(TC_INGRESS);
        hook.create().unwrap();
        hook.attach().unwrap();
        assert!(has_clsact(eth0).unwrap());
        let listed = classifiers(&links).unwrap();
        let [filter] = listed.as_slice() else { panic!("{listed:?}") };
        assert_eq!((filter.dev.as_str(), filter.direction), ("eth0", Direction::Ingress));
        assert_eq!(filter.attachment.to_string(), "tc prio 7 handle 0x3");
        assert!(filter.name.starts_with("plsprobe_try") && filter.program > 0, "{filter:?}");
        assert_eq!(legacy_filters().unwrap(), [(eth0, Direction::Ingress, filter.name.clone())]);

        if !has_tcx() {
            fixtures::skip!("no tcx in this kernel");
            return;
        }
        let hook = libbpf_sys::BPF_TCX_EGRESS;
        // SAFETY: no options; the descriptor is open.
        let link = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), eth0.cast_signed(), hook, ptr::null())
        };
        let link = features::owned(link).unwrap();
        let expected = Classifier {
            dev: "eth0".to_owned(),
            direction: Direction::Egress,
            attachment: Attachment::Tcx,
            name: "plsprobe_try".to_owned(),
            program: filter.program,
        };
        assert_eq!(classifiers(&links).unwrap()[1..], [expected]);
        drop(link);
        // A child that another test is just starting holds it too, until it is that other program.
        let until = Instant::now() + Duration::from_secs(20);
        while classifiers(&links).unwrap().len() > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(classifiers(&links).unwrap().len(), 1);
    }
}
