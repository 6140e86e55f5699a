//! A unix socket to be served on: never more open than it shall be, and never taken from somebody.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// A socket that is listened on; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    /// Who accepts.
    pub listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`, for root alone (mode 0600), or for a group too (0660). The folder is made if it is not there.
    ///
    /// A socket that was left behind is replaced.
    ///
    /// # Errors
    ///
    /// When somebody answers there, something else than a socket is there, or the kernel refuses.
    pub async fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        let shown = path.display();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        // Of two that start at once, each could find the other's socket not yet answering. The lock ends with the file.
        let lock = File::open(folder).with_context(|| format!("failed to open `{}`", folder.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!("failed to lock `{}`: does another agent start there? try again", folder.display())
        })?;
        make_room(path).await?;
        let socket = create(path).with_context(|| format!("failed to make the socket `{shown}`"))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o660)))
                .with_context(|| format!("failed to give the socket `{shown}` to the group {group}"))?;
        }
        let listener = socket.listen(BACKLOG).with_context(|| format!("failed to listen on `{shown}`"))?;
        let file = identity(&fs::symlink_metadata(path).with_context(|| format!("`{shown}` went away"))?);
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Unless somebody has put another one there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file) {
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// A socket with its file, on which nobody can connect yet.
fn create(path: &Path) -> io::Result<UnixSocket> {
    let socket = UnixSocket::new_stream()?;
    // The file takes its mode from the socket, less the umask, so it is never more open than this.
    // Source: Linux `unix_bind_bsd`.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    Ok(socket)
}

/// Removes a socket on which nobody answers.
async fn make_room(path: &Path) -> Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("failed to look at `{shown}`")),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("`{shown}` is there and is no socket; move it away, or choose another path")
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("failed to remove the socket left at `{shown}`"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // One that is too busy to accept is somebody too.
        Ok(_) | Err(_) => bail!("somebody answers on `{shown}`; does another agent run on this node?"),
    }
}
