//! Where things are: the workspace, its target directory, our tools in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh;

/// The workspace on this machine.
pub(crate) struct Project {
    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// What set-up brings and nothing else needs: bpf-linker, kernels, private apt state.
    pub(crate) tools: PathBuf,
}

impl Project {
    /// Finds the workspace this xtask was built from.
    ///
    /// # Errors
    ///
    /// If it has been moved away since.
    pub(crate) fn find() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().context("`xtask` has no parent folder")?.to_owned();
        // Relative to the workspace, as every cargo we start runs there.
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        let tools = target.join("tools");
        Ok(Self { root, target, tools })
    }
}

/// What `rustc -vV` says of itself.
pub(crate) struct Rustc {
    /// `1.95.0`
    pub(crate) release: String,
    /// `x86_64-unknown-linux-gnu`
    pub(crate) host: String,
    /// `22.1.2`
    pub(crate) llvm: String,
    /// Where the toolchain is installed.
    pub(crate) sysroot: PathBuf,
}

impl Rustc {
    /// Asks the rustc that this workspace uses.
    ///
    /// # Errors
    ///
    /// If there is none, or it answers in another form.
    pub(crate) fn ask(project: &Project) -> Result<Self> {
        let text = sh::output(Command::new("rustc").arg("-vV").current_dir(&project.root))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.map(|v| v.trim().to_owned()).with_context(|| format!("`rustc -vV` has no line `{name}`"))
        };
        let sysroot =
            sh::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(&project.root))?;
        Ok(Self {
            release: field("release:")?,
            host: field("host:")?,
            llvm: field("LLVM version:")?,
            sysroot: PathBuf::from(sysroot.trim()),
        })
    }
}
