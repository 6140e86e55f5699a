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

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn for_root_or_a_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/s");
        let socket = Socket::bind(&path, None).await.unwrap();
        assert_eq!((mode(&path), socket.path()), (0o600, path.as_path()));
        drop(socket);
        assert!(!path.exists(), "it goes with its file");
        let socket = Socket::bind(&path, Some(12_345)).await.unwrap();
        assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid()), (0o660, 12_345));
        drop(socket);
    }

    /// With a umask that takes nothing away, before anything else is done to the file.
    #[test]
    fn it_is_never_more_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let opened = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                // A umask of this thread's own.
                // SAFETY: it gives the thread its own root, working folder and umask; no file descriptor is touched.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
                rustix::process::umask(Mode::empty());
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
                let _entered = runtime.enter();
                let _socket = create(&path).unwrap();
                mode(&path)
            });
            opened.join().unwrap()
        });
        assert_eq!(opened, 0o600);
    }

    #[tokio::test]
    async fn one_that_was_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "it was left behind");
        let socket = Socket::bind(&path, None).await.unwrap();
        let _client = StdStream::connect(&path).unwrap();
        socket.listener.accept().await.unwrap();
        // Another one took its place: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let _other = StdListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn one_that_answers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Socket::bind(&path, None).await.unwrap();
        let error = Socket::bind(&path, None).await.unwrap_err().to_string();
        assert!(error.starts_with("somebody answers on `"), "{error}");
        let _client = StdStream::connect(&path).unwrap();
        drop(first);
        Socket::bind(&path, None).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for is_link in [false, true] {
            if is_link {
                fs::rename(&path, folder.path().join("other")).unwrap();
                std::os::unix::fs::symlink("other", &path).unwrap();
            } else {
                fs::write(&path, "precious").unwrap();
            }
            let error = Socket::bind(&path, None).await.unwrap_err().to_string();
            assert!(error.contains("is no socket; move it away"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        }
    }

    #[tokio::test]
    async fn two_that_start_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::open(folder.path()).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let path = folder.path().join("s");
        let error = Socket::bind(&path, None).await.unwrap_err().to_string();
        assert!(error.contains("does another agent start there? try again"), "{error}");
        drop(lock);
        let long = folder.path().join("x".repeat(120));
        let error = format!("{:#}", Socket::bind(&long, None).await.unwrap_err());
        assert!(error.starts_with("failed to make the socket `"), "{error}");
    }
}
