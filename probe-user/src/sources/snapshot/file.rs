//! A file that is there whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::sys::{self, HeldSignals};

/// Only its owner may read it: names and addresses of a cluster are nobody else's business.
const MODE: u32 = 0o600;
/// Bytes that are written at once.
const BUFFER: usize = 128 << 10;

/// Whether `path` may be written to: nothing may be there, or with `force` a plain file.
///
/// # Errors
///
/// With what is there instead.
pub(super) fn check(path: &Path, force: bool) -> Result<()> {
    let shown = path.display();
    ensure!(
        path != Path::new("-"),
        "a snapshot goes to a file, so that it is there whole or not at all, not to standard output; give a file and `cat` it"
    );
    ensure!(path.file_name().is_some(), "`{shown}` is no file's name");
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => bail!("`{shown}` is there and is no plain file; give another name"),
        Ok(_) if !force => bail!("`{shown}` is there already; give another name, or `--force` to replace it"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to look for `{shown}`")),
    }
}

/// Writes `path` by `fill`: under a temporary name beside it, then by renaming. Its length in bytes.
///
/// A signal that ends the process waits until the temporary file is away; the writing then stops at once.
///
/// # Errors
///
/// As [`check`], what `fill` says, or when the folder cannot be written to. Nothing is left behind.
pub(super) fn write(
    path: &Path,
    force: bool,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<u64> {
    check(path, force)?;
    let signals = HeldSignals::hold();
    let partial = Partial::create(path)?;
    let failed = || format!("failed to write `{}`", path.display());
    let mut out = BufWriter::with_capacity(BUFFER, Interruptible { file: &partial.file, signals: &signals });
    fill(&mut out).with_context(failed)?;
    out.flush().with_context(failed)?;
    drop(out);
    partial.file.sync_all().with_context(failed)?;
    let length = partial.file.metadata().with_context(failed)?.len();
    partial.rename(path, force)?;
    Ok(length)
}

/// The file under its temporary name, taken away unless it gets its own.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    fn create(path: &Path) -> Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        // In containers every run may have the same process id.
        name.push(format!(".{}-{}.partial", std::process::id(), sys::monotonic().as_nanos()));
        let partial = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&partial);
        let file = file.with_context(|| format!("failed to create `{}`", partial.display()))?;
        Ok(Self { file, path: partial })
    }

    fn rename(&self, path: &Path, force: bool) -> Result<()> {
        let renamed = if force {
            fs::rename(&self.path, path)
        } else {
            // Not over a file that came meanwhile. Some network file systems cannot promise that.
            match renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::hard_link(&self.path, path),
                renamed => renamed.map_err(io::Error::from),
            }
        };
        renamed.with_context(|| format!("failed to give the snapshot its name `{}`", path.display()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After renaming it is not there, and nothing else can be done about one that stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// Stops writing when a signal that ends the process is waiting.
struct Interruptible<'a> {
    file: &'a File,
    signals: &'a HeldSignals,
}

impl Write for Interruptible<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.signals.is_waiting() {
            // Not `ErrorKind::Interrupted`, after which `write_all` tries again.
            return Err(io::Error::other("ended by a signal"));
        }
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
