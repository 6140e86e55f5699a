//! The files of an archive, from bytes that nobody vouches for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;

/// Bytes of the whole archive, unpacked: what is beyond is not read. A real one has some tens of megabytes.
const UNPACKED_MAX: u64 = 1 << 30;
/// Bytes of one file.
const FILE_MAX: u64 = 128 << 20;
/// Files and folders.
const ENTRIES_MAX: usize = 50_000;
/// Entries that are looked at to tell what an archive is.
const FIRST_ENTRIES: usize = 64;
/// What a gzip file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What a tar file has at 257.
const TAR: &[u8] = b"ustar";
/// The folder of command outputs.
const COMMANDS: &str = "cmd";
/// What the archive's folder is called, after a prefix of the operator's.
const TOOL: &str = "cilium-bugtool-";

/// The outputs of the commands by file name.
pub(super) type Files = BTreeMap<String, String>;

/// Whether the file is an archive of cilium-bugtool's.
///
/// # Errors
///
/// If the file cannot be read.
pub(super) fn is_archive(path: &Path) -> Result<bool> {
    let Some(reader) = open(path, UNPACKED_MAX)? else { return Ok(false) };
    let mut archive = tar::Archive::new(reader);
    let Ok(entries) = archive.entries() else { return Ok(false) };
    // One that breaks off in the middle is still one.
    let first = entries.take(FIRST_ENTRIES).map_while(std::result::Result::ok);
    Ok(first.into_iter().any(|entry| entry.path().is_ok_and(|path| command_file(&path).is_some())))
}

/// Every command's output.
///
/// # Errors
///
/// If the archive is truncated, too large, has names that lead out of it, or holds more than one node.
pub(super) fn read(path: &Path) -> Result<Files> {
    read_at_most(path, UNPACKED_MAX)
}

/// As [`read`], with at most so many bytes unpacked.
pub(super) fn read_at_most(path: &Path, unpacked_max: u64) -> Result<Files> {
    let shown = path.display();
    let reader = open(path, unpacked_max)?.with_context(|| format!("`{shown}` is no tar archive"))?;
    let mut archive = tar::Archive::new(reader);
    let broken = || format!("failed to unpack `{shown}`; is it truncated?");
    let mut files = Files::new();
    let mut node: Option<String> = None;
    for (index, entry) in archive.entries().with_context(broken)?.enumerate() {
        ensure!(index < ENTRIES_MAX, "`{shown}` has more than {ENTRIES_MAX} entries");
        let mut entry = entry.with_context(broken)?;
        let name = entry.path().with_context(broken)?.into_owned();
        let leads_out = |part: Component<'_>| {
            matches!(part, Component::ParentDir | Component::RootDir | Component::Prefix(_))
        };
        if name.components().any(leads_out) {
            bail!("`{shown}` has the name `{}`, which leads out of it; it is not used", name.display());
        }
        let Some((folder, file)) = command_file(&name) else { continue };
        let first = node.get_or_insert_with(|| folder.clone());
        ensure!(
            *first == folder,
            "`{shown}` holds several nodes, `{first}` and `{folder}`; unpack it and give the archive of one"
        );
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let size = entry.size();
        ensure!(size <= FILE_MAX, "`{file}` in `{shown}` has {size} bytes, at most {FILE_MAX} are read");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(broken)?;
        files.insert(file, String::from_utf8_lossy(&bytes).into_owned());
    }
    ensure!(!files.is_empty(), "`{shown}` has no outputs of commands; expected `{TOOL}…/{COMMANDS}/*.md`");
    Ok(files)
}

/// The archive's folder and the file's name, of an output: `cilium-bugtool-…/cmd/ip-a.md`.
fn command_file(path: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = path.components().filter_map(|part| part.as_os_str().to_str()).collect();
    let [.., folder, COMMANDS, file] = parts.as_slice() else { return None };
    folder.contains(TOOL).then(|| ((*folder).to_owned(), (*file).to_owned()))
}

/// The tar stream inside; `None` if it is none.
fn open(path: &Path, unpacked_max: u64) -> Result<Option<Box<dyn Read>>> {
    let failed = || format!("failed to read `{}`", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let mut start = Vec::new();
    file.by_ref().take(512).read_to_end(&mut start).with_context(failed)?;
    file.rewind().with_context(failed)?;
    let bounded = |reader: Box<dyn Read>| Box::new(Bounded { reader, left: unpacked_max, max: unpacked_max });
    if start.starts_with(&GZIP) {
        return Ok(Some(bounded(Box::new(GzDecoder::new(BufReader::new(file))))));
    }
    let is_tar = start.get(257..).is_some_and(|magic| magic.starts_with(TAR));
    Ok(if is_tar { Some(bounded(Box::new(BufReader::new(file)))) } else { None })
}

/// Fails when more comes than was allowed.
struct Bounded {
    reader: Box<dyn Read>,
    left: u64,
    max: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::other(format!(
                "it unpacks to more than {} bytes, which no archive of this kind has",
                self.max
            ))
        })?;
        Ok(read)
    }
}
