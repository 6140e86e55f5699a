//! Archives of cilium-bugtool.

use std::fs;
use std::path::Path;

use probe_user::sources::bugtool;

use crate::folder::in_memory;
use crate::{container, whole};

/// What each output is made from in a recording: the command's file, and the file that says the same.
pub(crate) const OUTPUTS: [(&str, &str); 9] = [
    ("cilium-dbg-bpf-policy-get---all---numeric.md", "cli/bpf-policy-get-all-n.txt"),
    ("cilium-dbg-bpf-ipcache-list.md", "cli/bpf-ipcache-list.txt"),
    ("cilium-dbg-bpf-endpoint-list.md", "cli/bpf-endpoint-list.txt"),
    ("cilium-dbg-bpf-lb-list.md", "cli/bpf-lb-list.txt"),
    ("cilium-dbg-identity-list.md", "cli/identity-list.txt"),
    ("cilium-dbg-config--a.md", "cli/config.txt"),
    ("cilium-dbg-status---verbose.md", "cli/status.txt"),
    ("cilium-dbg-policy-selectors--o-json.md", "rest/policy-selectors.json"),
    ("iptables-save--c.md", "../node/iptables-save.txt"),
];

/// Outputs of commands as `container::texts` parts named by their file; what the archive says is assembled and asked.
pub fn bugtool(data: &[u8]) {
    let folder = in_memory();
    let path = folder.path().join("cilium-bugtool.tar");
    let Some(tar) = archive(&container::texts(data)) else { return };
    fs::write(&path, tar).expect("a file in memory");
    read(&path);
}

fn read(path: &Path) {
    match bugtool::is_bugtool(path).and_then(|_| bugtool::read(path)) {
        Ok(node) => whole::node(&node),
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
}

/// The parts as files of one node; `None` for names that no archive can hold.
fn archive(parts: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("cilium-bugtool-20240723/cmd/{name}"), *bytes).ok()?;
    }
    tar.into_inner().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_of_parts_is_read_as_one() {
        let folder = in_memory();
        let path = folder.path().join("cilium-bugtool.tar");
        let dump = &b"key:\n00\nvalue:\n01\nFound 1 element\n"[..];
        let name = "bpftool-map-dump-pinned--sys-fs-bpf-tc-globals-cilium_lxc.md";
        fs::write(&path, archive(&[(name, dump)]).unwrap()).unwrap();
        assert!(bugtool::is_bugtool(&path).unwrap());
        assert_eq!(bugtool::read(&path).unwrap().maps["cilium_lxc"].entries.len(), 1);
    }
}
