//! The container: a tar of plain files in one zstd frame, the manifest first, read without trusting a byte of it.
//!
//! Nothing is ever unpacked into the file system. Parts come in the manifest's order, so that a part that is missing, is
//! there twice or is not listed is found where it is.

use std::io::{self, BufRead, Read, Write};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;

use super::{
    manifest::{self, Manifest},
    shown,
};

/// How a zstd frame begins. Source: RFC 8878, section 3.1.1.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// zstd's own default. A lab node's snapshot takes 14 ms to read, 1 ms to pack and 9 ms to write, most of it for the disk.
const LEVEL: i32 = 3;
/// A frame may ask its reader for so much memory, as a power of two: twice what [`LEVEL`] needs.
const WINDOW_LOG: u32 = 22;
/// Bytes of a tar's blocks.
const BLOCK: u64 = 512;
/// What [`write`] sets as owner and mode of every part.
const MODE: u32 = 0o600;

/// How much a snapshot may hold, so that a small file cannot fill the memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of the manifest.
    pub(super) manifest: u64,
    /// Bytes of any other part.
    pub(super) part: u64,
    /// Bytes of all of it, headers and padding counted.
    pub(super) total: u64,
}

/// 256 MiB are a conntrack map of 3.8 million entries, and the longest answer of the agent that is read at all. 100 full
/// policy maps, 512,000 addresses, and as many connections and NAT mappings have together some 200 MiB.
pub(super) const LIMITS: Limits = Limits { manifest: 4 << 20, part: 256 << 20, total: 1 << 30 };

/// Writes the manifest and then every part.
///
/// # Errors
///
/// What `out` says.
pub(super) fn write<'a, W: Write>(
    out: W,
    manifest: &'a [u8],
    parts: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<W> {
    let mut encoder = zstd::Encoder::new(out, LEVEL).context("failed to begin the zstd frame")?;
    encoder.include_checksum(true).context("failed to begin the zstd frame")?;
    let mut tar = tar::Builder::new(encoder);
    for (name, bytes) in std::iter::once((manifest::NAME, manifest)).chain(parts) {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).with_context(|| format!("`{name}` is too long for a part's name"))?;
        header.set_size(bytes.len() as u64);
        header.set_mode(MODE);
        header.set_cksum();
        tar.append(&header, bytes)?;
        // A block of zstd's ends with each part, so that damage is found in the part that it is in.
        tar.get_mut().flush()?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// Reads the manifest, then hands every part to `take`, once it has the length and the SHA-256 that the manifest says.
///
/// # Errors
///
/// With the part that is broken, and how.
pub(super) fn read(
    input: impl BufRead,
    limits: Limits,
    mut take: impl FnMut(&Manifest, &str, Bytes) -> Result<()>,
) -> Result<(Manifest, String)> {
    let mut decoder = zstd::Decoder::with_buffer(input).context("it is no zstd frame")?.single_frame();
    decoder.window_log_max(WINDOW_LOG).context("failed to limit the memory of the zstd frame")?;
    let mut tar = tar::Archive::new(Limited { inner: decoder, left: limits.total, total: limits.total });
    let mut entries = tar.entries().context("it is no tar")?.raw(true);

    let (name, bytes) = next(&mut entries, manifest::NAME, None, limits.manifest)?
        .with_context(|| format!("part `{}` is missing", manifest::NAME))?;
    ensure!(name == manifest::NAME, "found part `{}` first, expected `{}`", shown(&name), manifest::NAME);
    let (manifest, digest) =
        Manifest::decode(&bytes).with_context(|| format!("part `{}` is broken", manifest::NAME))?;

    for part in &manifest.parts {
        let found = next(&mut entries, &part.name, Some(part.bytes), limits.part)?;
        let (name, bytes) = found.with_context(|| format!("part `{}` is missing", part.name))?;
        if name != part.name {
            bail!("{}", misplaced(&manifest, &name, &part.name));
        }
        let sha256 = manifest::sha256(&bytes);
        ensure!(
            sha256 == part.sha256,
            "part `{name}` is broken: its SHA-256 is {sha256}, expected {}; copy the file again",
            part.sha256
        );
        take(&manifest, &name, bytes).with_context(|| format!("part `{name}` is broken"))?;
    }
    if let Some((name, _)) = next(&mut entries, "the end", None, limits.part)? {
        bail!("found part `{}`, which is not in the manifest or there twice", shown(&name));
    }
    check_end(tar.into_inner())?;
    Ok((manifest, digest))
}

/// Another part than the one whose turn it is.
fn misplaced(manifest: &Manifest, found: &str, expected: &str) -> String {
    let why = if manifest.parts.iter().any(|part| part.name == found) {
        "which is in another order than in the manifest, there twice, or one before it is missing"
    } else {
        "which is not in the manifest"
    };
    format!("found part `{}`, {why}; expected `{expected}`", shown(found))
}

/// Name and bytes of the next part, which should be `expected`.
fn next<'a, R: Read + 'a>(
    entries: &mut tar::Entries<'a, R>,
    expected: &str,
    length: Option<u64>,
    limit: u64,
) -> Result<Option<(String, Bytes)>> {
    let at = || format!("failed to read the file at part `{expected}`; is it whole?");
    let Some(entry) = entries.next() else { return Ok(None) };
    let mut entry = entry.map_err(plain).with_context(at)?;
    let name = String::from_utf8_lossy(&entry.header().path_bytes()).into_owned();
    let kind = entry.header().entry_type();
    ensure!(kind.is_file(), "part `{}` is of tar type {:?}, expected a plain file", shown(&name), kind);
    let size = entry.header().size().with_context(at)?;
    ensure!(size <= limit, "part `{}` has {size} bytes, the limit is {limit}", shown(&name));
    if let Some(length) = length.filter(|length| name == expected && *length != size) {
        bail!("part `{name}` has {size} bytes, {length} in the manifest");
    }
    // No more is allocated than arrives: the size is only what the header says.
    let mut bytes = Vec::with_capacity(size.min(1 << 20) as usize);
    let read = entry.read_to_end(&mut bytes).map_err(plain).with_context(at)?;
    ensure!(read as u64 == size, "part `{}` ends after {read} bytes, expected {size}", shown(&name));
    Ok(Some((name, bytes.into())))
}

/// tar wraps what it reads from in sentences of its own about paths; the cause says more.
fn plain(error: io::Error) -> anyhow::Error {
    match error.get_ref().and_then(std::error::Error::source) {
        Some(cause) => anyhow!("{cause}"),
        None => error.into(),
    }
}

/// After the parts there are only the tar's zero blocks, the frame's checksum, and the end of the file.
fn check_end<R: BufRead>(mut rest: Limited<zstd::Decoder<'_, R>>) -> Result<()> {
    let mut zeros = Vec::new();
    let at = "failed to read the file after its last part; is it whole?";
    (&mut rest).take(64 * BLOCK).read_to_end(&mut zeros).context(at)?;
    // The tar's reader has taken the first of two blocks.
    let is_end = zeros.len() as u64 >= BLOCK && (zeros.len() as u64) < 64 * BLOCK;
    ensure!(is_end && zeros.iter().all(|byte| *byte == 0), "the tar in it does not end after its last part");
    let mut input = rest.inner.finish();
    ensure!(input.fill_buf().context(at)?.is_empty(), "there is something after the end of the zstd frame");
    Ok(())
}

/// Reads up to a limit, and fails there.
struct Limited<R> {
    inner: R,
    left: u64,
    total: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // zstd is built without its own messages.
        let damaged = |error: io::Error| match error.kind() {
            io::ErrorKind::Other => io::Error::other("the zstd frame is damaged or none of plsprobe's"),
            _ => error,
        };
        let read = self.inner.read(buffer).map_err(damaged)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(format!("it unpacks to more than {} bytes", self.total)))?;
        Ok(read)
    }
}
