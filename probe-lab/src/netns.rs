//! The lab's network namespaces, and running things inside them.
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

/// The namespaces of one lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ns {
    /// The AKS node.
    Node,
    /// Azure's fabric: the provider `VNet`, its router, the load balancer's probe.
    Fabric,
    /// The Private Link Service: NAT IPs on one side, the private endpoint on the other.
    Pls,
    /// The consumer's client.
    Consumer,
    /// The virtual machine in the peered `VNet`.
    Vm,
    /// Pod `default/pls-app`.
    App,
    /// Pod `default/my-nginx`.
    Nginx,
}

impl Ns {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Node, Self::Fabric, Self::Pls, Self::Consumer, Self::Vm, Self::App, Self::Nginx];

    /// The last part of the namespace's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fabric => "fab",
            Self::Pls => "pls",
            Self::Consumer => "cons",
            Self::Vm => "vm",
            Self::App => "app",
            Self::Nginx => "nginx",
        }
    }
}

/// One named network namespace of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new(instance: &str, ns: Ns) -> Self {
        Self { name: format!("plsprobe-{instance}-{}", ns.suffix()) }
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside, with the mounts of the caller (as `nsenter --net=PATH`).
    ///
    /// # Errors
    ///
    /// The namespace does not exist.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let file = self.open()?;
        let mut command = Command::new(program);
        // SAFETY: the closure makes one system call on a file it owns and allocates nothing, as is required between
        // fork and exec.
        unsafe {
            command.pre_exec(move || enter(file.as_fd()));
        }
        Ok(command)
    }

    /// Calls `work` on a thread of its own inside the namespace. Sockets made there stay there.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> io::Result<T> {
                enter(file.as_fd())?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => {
                    result.with_context(|| format!("failed to enter network namespace `{}`", self.name))
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("failed to open network namespace `{}`", self.name))
    }
}

/// Moves the calling thread into the network namespace behind `file`.
fn enter(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call, which touches no memory of ours.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
