//! Kernel modules in the order in which they must be loaded.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::sh;

/// A module, decompressed.
pub(crate) struct Module {
    /// With underscores, as the kernel knows it.
    pub(crate) name: String,
    /// The object file.
    pub(crate) bytes: Vec<u8>,
}

/// `wanted` and all they depend on, dependencies first; then those of `merged` that this kernel has.
///
/// What is built into the kernel is left out.
///
/// # Errors
///
/// If one is neither a module of this kernel nor built in.
pub(crate) fn in_load_order(kernel: &Kernel, wanted: &[&str], merged: &[&str]) -> Result<Vec<Module>> {
    let files = object_files(&kernel.modules)?;
    let builtin = sh::read(&kernel.modules.join("modules.builtin"))?;
    let mut order = Vec::new();
    let has = |name: &&&str| files.iter().any(|file| module_name(file) == **name);
    for name in wanted.iter().chain(merged.iter().filter(has)) {
        add(name, &files, &builtin, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, files: &[PathBuf], builtin: &str, order: &mut Vec<Module>) -> Result<()> {
    let is_built_in = || builtin.lines().any(|line| module_name(Path::new(line)) == name);
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(file) = files.iter().find(|file| module_name(file) == name) else {
        ensure!(is_built_in(), "module `{name}` is not in this kernel's package and not built in");
        return Ok(());
    };
    let bytes = decompressed(file)?;
    for dependency in depends(&bytes).with_context(|| format!("`{}` has no `depends=`", file.display()))? {
        add(&dependency, files, builtin, order)?;
    }
    order.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// The `depends=` of a module's `.modinfo` section, which holds NUL-terminated `key=value` strings.
fn depends(object: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = object.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let value = object[at..].split(|byte| *byte == 0).next()?;
    let names = std::str::from_utf8(value).ok()?.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

/// `kernel/net/sched/cls_bpf.ko.xz` is `cls_bpf`.
fn module_name(path: &Path) -> String {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn object_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.join("kernel")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("failed to list `{}`", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

fn decompressed(file: &PathBuf) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|ext| ext == "ko") {
        return super::bytes(file);
    }
    let program = if file.extension().is_some_and(|ext| ext == "xz") { "xz" } else { "zstd" };
    let out = Command::new(program)
        .arg("-dc")
        .arg(file)
        .output()
        .with_context(|| format!("failed to run `{program}`"))?;
    ensure!(out.status.success(), "failed to decompress `{}`: {}", file.display(), out.status);
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            depends(b"\x7fELF\0license=GPL\0depends=nf-nat,x_tables\0name=y\0").unwrap(),
            ["nf_nat", "x_tables"]
        );
        assert_eq!(depends(b"license=GPL\0depends=\0").unwrap(), Vec::<String>::new());
        assert!(depends(b"license=GPL\0").is_none());
    }

    #[test]
    fn file_names_become_module_names() {
        assert_eq!(module_name(Path::new("kernel/net/sched/cls_bpf.ko.xz")), "cls_bpf");
        assert_eq!(module_name(Path::new("kernel/net/x/nf-nat.ko")), "nf_nat");
    }
}
