//! Writes an initramfs: a cpio archive in the `newc` format, uncompressed.
//!
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An initramfs under construction.
pub(crate) struct Initramfs {
    entries: Vec<Entry>,
    paths: BTreeSet<String>,
}

struct Entry {
    path: String,
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Initramfs {
    /// One with the console that the kernel opens for pid 1.
    pub(crate) fn new() -> Self {
        let mut image = Self { entries: Vec::new(), paths: BTreeSet::new() };
        image.directories("dev/console");
        image.push(Entry {
            path: "dev/console".to_owned(),
            mode: CHARACTER_DEVICE | 0o600,
            device: (5, 1),
            data: Vec::new(),
        });
        image
    }

    /// Adds a file, and the folders on the way to it.
    ///
    /// # Errors
    ///
    /// If the path is there already: two programs of one name would hide one another.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: Vec<u8>) -> Result<()> {
        ensure!(!self.has(path), "`/{path}` is twice in the initramfs");
        self.directories(path);
        self.push(Entry { path: path.to_owned(), mode: REGULAR | permissions, device: (0, 0), data });
        Ok(())
    }

    /// Adds a symbolic link, and the folders on the way to it.
    ///
    /// # Errors
    ///
    /// As [`Self::file`].
    pub(crate) fn symlink(&mut self, path: &str, to: &str) -> Result<()> {
        ensure!(!self.has(path), "`/{path}` is twice in the initramfs");
        self.directories(path);
        let data = to.as_bytes().to_vec();
        self.push(Entry { path: path.to_owned(), mode: SYMLINK | 0o777, device: (0, 0), data });
        Ok(())
    }

    /// Adds a folder, and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        self.directories(&format!("{path}/."));
    }

    /// Whether something is at `path` already.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// Writes the archive.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let attempt = || format!("failed to write `{}`", path.display());
        let mut out = BufWriter::new(std::fs::File::create(path).with_context(attempt)?);
        self.archive(&mut out).and_then(|()| out.flush()).with_context(attempt)
    }

    fn directories(&mut self, path: &str) {
        for (idx, _) in path.match_indices('/') {
            let dir = &path[..idx];
            if !self.has(dir) {
                self.push(Entry {
                    path: dir.to_owned(),
                    mode: DIRECTORY | 0o755,
                    device: (0, 0),
                    data: Vec::new(),
                });
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        self.paths.insert(entry.path.clone());
        self.entries.push(entry);
    }

    fn archive(&self, out: &mut impl Write) -> std::io::Result<()> {
        for (inode, entry) in (1..).zip(&self.entries) {
            write_entry(out, inode, entry)?;
        }
        let end = Entry { path: "TRAILER!!!".to_owned(), mode: 0, device: (0, 0), data: Vec::new() };
        write_entry(out, 0, &end)
    }
}

fn write_entry(out: &mut impl Write, inode: u32, entry: &Entry) -> std::io::Result<()> {
    let size = u32::try_from(entry.data.len()).map_err(std::io::Error::other)?;
    let name_size = u32::try_from(entry.path.len() + 1).map_err(std::io::Error::other)?;
    write!(out, "070701")?;
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name's size, checksum
    let (major, minor) = entry.device;
    for field in [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0] {
        write!(out, "{field:08x}")?;
    }
    out.write_all(entry.path.as_bytes())?;
    out.write_all(b"\0")?;
    pad(out, 110 + entry.path.len() + 1)?;
    out.write_all(&entry.data)?;
    pad(out, entry.data.len())
}

/// Header with name, and data, each end on a multiple of four.
fn pad(out: &mut impl Write, written: usize) -> std::io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path and mode of each entry, read back by the format's own rules.
    fn list(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !archive.is_empty() {
            assert_eq!(&archive[..6], b"070701");
            let field = |idx: usize| {
                let at = 6 + idx * 8;
                u32::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, archive[data..data + size].to_vec()));
            archive = &archive[(data + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn what_is_put_in_can_be_read_back() {
        let mut image = Initramfs::new();
        image.file("usr/bin/odd", 0o755, b"12345".to_vec()).unwrap();
        image.symlink("bin", "usr/bin").unwrap();
        image.directory("sys/fs");
        assert!(image.file("usr/bin/odd", 0o644, Vec::new()).is_err());
        let mut archive = Vec::new();
        image.archive(&mut archive).unwrap();
        let read: Vec<(String, u32, Vec<u8>)> = list(&archive);
        let expected: [(&str, u32, &[u8]); 9] = [
            ("dev", 0o040_755, b""),
            ("dev/console", 0o020_600, b""),
            ("usr", 0o040_755, b""),
            ("usr/bin", 0o040_755, b""),
            ("usr/bin/odd", 0o100_755, b"12345"),
            ("bin", 0o120_777, b"usr/bin"),
            ("sys", 0o040_755, b""),
            ("sys/fs", 0o040_755, b""),
            ("TRAILER!!!", 0, b""),
        ];
        let expected = expected.map(|(name, mode, data)| (name.to_owned(), mode, data.to_vec()));
        assert_eq!(read, expected);
    }
}
