//! Which network namespace is at the other end of an interface: a pod's, by its veth. Asked of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::Result;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netlink::Netlink;

/// Where network namespaces have names.
const NAMED: &str = "/run/netns";

/// Inode numbers of the namespaces that the other ends of these interfaces are in. What is not found is left out: a
/// namespace is found by a name in `/run/netns` or by a process in it that `/proc` shows.
///
/// # Errors
///
/// When the kernel answers with an error, or its answer cannot be decoded.
pub fn behind(interfaces: &[&str]) -> Result<BTreeSet<u32>> {
    let netlink = Netlink::open()?;
    let links = netlink.dump("interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let wanted: BTreeSet<i32> =
        links.iter().filter_map(|message| namespace_id(message, interfaces)).collect();
    let mut found = BTreeSet::new();
    for (inode, path) in candidates() {
        if found.len() == wanted.len() {
            break;
        }
        // A process may have ended since it was listed.
        let Ok(file) = File::open(path) else { continue };
        // Nor need it be a namespace: a name is an empty file before it is given and after it was taken away.
        let Ok(id) = id_of(&netlink, &file) else { continue };
        if id.is_some_and(|id| wanted.contains(&id)) {
            found.insert(inode);
        }
    }
    Ok(found)
}

/// What our namespace calls the one that an interface's other end is in.
fn namespace_id(message: &RouteNetlinkMessage, interfaces: &[&str]) -> Option<i32> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let is_wanted = link.attributes.iter().any(
        |attribute| matches!(attribute, LinkAttribute::IfName(name) if interfaces.contains(&name.as_str())),
    );
    let id = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(id) => Some(*id),
        _ => None,
    });
    id.filter(|_| is_wanted)
}

/// What our namespace calls this one; `None` if it has no name for it, as for one without an interface to it.
fn id_of(netlink: &Netlink, namespace: &File) -> Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    let answer = netlink.ask("namespace ids", RouteNetlinkMessage::GetNsId(question))?;
    let RouteNetlinkMessage::NewNsId(answer) = answer else { return Ok(None) };
    Ok(answer.attributes.into_iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => (id >= 0).then_some(id),
        _ => None,
    }))
}

/// Every network namespace that can be opened, by inode number; names first, as there are fewer of them.
fn candidates() -> BTreeMap<u32, PathBuf> {
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries(NAMED).map(|entry| entry.path());
    let of_processes = entries("/proc")
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"));
    let mut all = BTreeMap::new();
    for path in named.chain(of_processes) {
        if let Ok(metadata) = fs::metadata(&path) {
            all.entry(metadata.ino() as u32).or_insert(path);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::attach::tests::{scratch, sh};

    #[test]
    fn the_namespace_behind_a_veth_is_found_by_a_process_in_it() {
        scratch(|_| {
            let mut inside = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
            let namespace = || fs::metadata(format!("/proc/{}/ns/net", inside.id())).unwrap().ino() as u32;
            let ours = crate::sys::network_namespace().unwrap();
            while namespace() == ours {
                std::thread::yield_now();
            }
            sh(&format!("ip link add p0 type veth peer name p1 netns {}", inside.id()));
            assert_eq!(behind(&["p0"]).unwrap(), BTreeSet::from([namespace()]));
            assert_eq!(behind(&["lo"]).unwrap(), BTreeSet::new());
            assert_eq!(behind(&["nosuch0"]).unwrap(), BTreeSet::new());
            let netlink = Netlink::open().unwrap();
            assert!(id_of(&netlink, &tempfile::tempfile().unwrap()).is_err(), "no namespace");
            let file = File::open(format!("/proc/{}/ns/net", inside.id())).unwrap();
            assert!(id_of(&netlink, &file).unwrap().is_some(), "the next answer is to the next question");
            inside.kill().unwrap();
            inside.wait().unwrap();
        });
    }
}
