//! For tests against the running kernel: a BPF file system and maps of the test's own.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    thread,
};

use libbpf_rs::{MapHandle, MapType};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use super::maps::GLOBALS;

/// A BPF file system that only this test's thread (and those it starts) sees, gone with it.
pub(crate) struct PrivateBpffs {
    folder: tempfile::TempDir,
}

impl PrivateBpffs {
    /// Mounts one, or says why the test is skipped.
    pub(crate) fn mount() -> Option<Self> {
        match Self::try_mount() {
            Ok(bpffs) => Some(bpffs),
            Err(error) => {
                fixtures::skip!("cannot mount a BPF file system and make maps here: {error}");
                None
            }
        }
    }

    fn try_mount() -> Result<Self, Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        // SAFETY: only this thread's mounts and working directory are unshared, no file descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("bpf", folder.path(), "bpf", MountFlags::empty(), None)?;
        std::fs::create_dir_all(folder.path().join(GLOBALS))?;
        let bpffs = Self { folder };
        bpffs.try_create("probe", MapType::Hash, 4, 4, 1)?.unpin(bpffs.globals().join("probe"))?;
        Ok(bpffs)
    }

    /// The root, as `--bpffs` takes it.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder where Cilium would pin its maps.
    pub(crate) fn globals(&self) -> PathBuf {
        self.path().join(GLOBALS)
    }

    /// A new map, pinned under `name`.
    pub(crate) fn create(&self, name: &str, map_type: MapType, key: u32, value: u32, max: u32) -> MapHandle {
        self.try_create(name, map_type, key, value, max).unwrap()
    }

    fn try_create(
        &self,
        name: &str,
        map_type: MapType,
        key: u32,
        value: u32,
        max: u32,
    ) -> libbpf_rs::Result<MapHandle> {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            map_flags: match map_type {
                MapType::LpmTrie => libbpf_sys::BPF_F_NO_PREALLOC,
                _ => 0,
            },
            ..Default::default()
        };
        // The kernel keeps 15 bytes of a name and takes no colon.
        let short: String = name.chars().filter(|c| *c != ':').take(15).collect();
        let mut map = MapHandle::create(map_type, Some(&short), key, value, max, &opts)?;
        map.pin(self.globals().join(name))?;
        Ok(map)
    }
}

/// Marsaglia's xorshift: the same bytes on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// Answers `GET /v1/<path>` on `socket` with these texts, by path with `/` as `-`, until the test ends.
pub(crate) fn serve_rest(socket: &Path, answers: BTreeMap<String, String>) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).unwrap() > 0 {}
            let path = request.split(' ').nth(1).and_then(|path| path.strip_prefix("/v1/"));
            // A connection that asks nothing only looks whether there is an agent.
            let Some(path) = path else { continue };
            let answer = match answers.get(&path.replace('/', "-")) {
                Some(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
                None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
}
