//! A folder of recordings.

use std::fs;
use std::path::{Component, Path};

use probe_user::sources::folder;
use tempfile::TempDir;

use crate::{container, whole};

/// Files as `container::texts` parts named by their path in the folder; what they say is assembled and asked.
pub fn dump_folder(data: &[u8]) {
    let folder = in_memory();
    for kind in ["maps", "rest", "node"] {
        fs::create_dir(folder.path().join(kind)).expect("a new folder");
    }
    for (name, text) in container::texts(data) {
        if is_inside(name) {
            // A name that is no file name is the fuzzer's own affair.
            let _ = fs::write(folder.path().join(name), text);
        }
    }
    match folder::read(folder.path()) {
        Ok(node) => whole::node(&node),
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
}

/// A temporary folder, in memory where there is such a place: half the time went to the disk.
pub(crate) fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    folder.expect("a temporary folder")
}

/// `maps/NAME`, `rest/NAME` or `node/NAME`, and nothing that leads elsewhere.
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let is_known = matches!(parts.next(), Some(Component::Normal(kind)) if kind == "maps" || kind == "rest" || kind == "node");
    is_known && matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert!(is_inside("maps/cilium_lxc.json"));
        for name in ["maps", "/etc/passwd", "maps/../x", "../maps/x", "maps/a/b", "other/x", ""] {
            assert!(!is_inside(name), "{name}");
        }
    }
}
