//! Programs attached by tcx as Cilium 1.16 and later do on kernels from 6.6 on: by a link that is pinned, and updated
//! in place when the program is loaded anew.
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{ProgramError, SchedClassifier};

use super::tc::Direction;

/// A place for one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hook {
    /// Interface.
    pub(super) ifname: String,
    /// Side.
    pub(super) direction: Direction,
    /// Where the link is pinned.
    pub(super) pin: PathBuf,
}

impl Hook {
    /// Puts `program` in the place of the one that is there, in one step; or behind all others, if the link has lost
    /// its interface or there is none.
    pub(super) fn replace(&self, program: &mut SchedClassifier) -> Result<()> {
        if self.pin.exists() {
            match self.update(program) {
                Err(error) if has_no_interface(&error) => self.unpin()?,
                updated => {
                    return updated.with_context(|| format!("failed to update `{}`", self.pin.display()));
                }
            }
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::last());
        let direction = match self.direction {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        };
        let id = program.attach_with_options(&self.ifname, direction, order).with_context(|| {
            format!("failed to attach to `{}` by tcx; kernel 6.6 or later is needed", self.ifname)
        })?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        let folder = self.pin.parent().context("a pin has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
        link.pin(&self.pin).with_context(|| format!("failed to pin `{}`", self.pin.display()))?;
        Ok(())
    }

    /// Detaches; that it is gone already is as good.
    pub(super) fn unpin(&self) -> Result<()> {
        match fs::remove_file(&self.pin) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("failed to unpin `{}`", self.pin.display())),
        }
    }

    fn update(&self, program: &mut SchedClassifier) -> Result<()> {
        let link = FdLink::from(PinnedLink::from_pin(&self.pin)?);
        let id = program.attach_to_link(link.try_into()?)?;
        // The pin holds it from here on.
        drop(program.take_link(id)?);
        Ok(())
    }
}

/// Whether the kernel says that the link's interface is gone.
fn has_no_interface(error: &anyhow::Error) -> bool {
    let Some(ProgramError::SyscallError(error)) = error.downcast_ref() else { return false };
    error.io_error.raw_os_error() == Some(libc::ENOLINK)
}
