//! `cargo xtask bench peers`: plsprobe, tcpdump and pwru beside one load, in a guest, whose kernel allows kprobes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use super::kernel::{self, Wanted};
use super::payload::{self, Built, Program};
use super::qemu::Clock;
use super::{bytes, can_boot, qemu};
use crate::project::Project;
use crate::setup::{PrivateApt, Ready};
use crate::{dist, sh};

/// The kernel of nodes that are set up today.
const KERNEL: &str = "6.12";

/// The Debian suite that has them: pwru is in none before.
const SUITE: &str = "trixie";

/// The peers, with the libraries that they load; libraries of another release than this machine's.
const PACKAGES: [&str; 10] = [
    "libc6",
    "libcap2",
    "libdbus-1-3",
    "libpcap0.8t64",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "pwru",
    "tcpdump",
    "zlib1g",
];

/// The peers' programs.
const PEERS: [&str; 2] = ["pwru", "tcpdump"];

/// Where the packages are in the guest, and below that their loader and their libraries.
const ROOT: &str = "peers";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Seconds of this machine after which the guest is taken for hung. On two cores that others use too it needs a sixth of that.
const TIMEOUT: u64 = 3600;

/// Boots the guest, runs the benchmark in it, and prints what it prints.
///
/// # Errors
///
/// If the benchmark fails, or there can be no guest: no QEMU, no kernel, no package; the message says which.
pub(crate) fn bench(ready: &Ready) -> Result<()> {
    can_boot()?;
    let wanted: Wanted = KERNEL.parse()?;
    let kernel = kernel::fetch(&ready.project, &wanted)?;
    let packages = fetch(&ready.project)?;
    let plsprobe = Program { name: "plsprobe", bytes: bytes(&dist::build(ready)?)? };
    let built = Built { programs: vec![plsprobe], payloads: vec![payload::bench(ready, "peers")?] };
    let mut image = super::initramfs(&kernel, &built)?;
    add(&mut image, &packages)?;
    let path = ready.project.tools.join("initramfs.cpio");
    image.write_to(&path)?;
    let sent = ready.project.tools.join("sent.tar");
    sh::say(&format!(
        "booting {}, emulated: its clock counts instructions, one a nanosecond, whatever else this machine does",
        kernel.release
    ));
    let console = qemu::boot(&kernel.image, &path, &sent, Clock::Counted, Duration::from_secs(TIMEOUT))?;
    let trouble = [super::failed(&console, &built.payloads), console.trouble()].concat();
    ensure!(trouble.is_empty(), "{}", trouble.join("\n"));
    Ok(())
}

/// Returns the folder with the unpacked packages, fetching them if they are not there yet.
fn fetch(project: &Project) -> Result<PathBuf> {
    let dir = project.tools.join("peers");
    if dir.is_dir() {
        return Ok(dir);
    }
    sh::say(&format!("fetching pwru and tcpdump of Debian's {SUITE}, to run them in QEMU"));
    let partial = project.tools.join("peers.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    std::fs::create_dir_all(&partial)?;
    let apt = PrivateApt::new(project, SUITE)?;
    for package in PACKAGES {
        apt.unpack(package, &partial)?;
    }
    apt.remove()?;
    std::fs::rename(&partial, &dir)?;
    Ok(dir)
}

/// Adds the peers, each to be called by its name.
fn add(image: &mut Initramfs, packages: &Path) -> Result<()> {
    image.file(&format!("{ROOT}/{LOADER}"), 0o755, bytes(&packages.join(LOADER))?)?;
    let libraries = packages.join(LIBRARIES);
    for entry in
        std::fs::read_dir(&libraries).with_context(|| format!("failed to list `{}`", libraries.display()))?
    {
        let entry = entry?;
        // A link to a library is one more copy here; a folder holds what is opened by nobody here.
        if std::fs::metadata(entry.path())?.is_file() {
            let name = entry.file_name();
            let name = name.to_str().context("a library's name is not UTF-8")?;
            image.file(&format!("{ROOT}/{LIBRARIES}/{name}"), 0o755, bytes(&entry.path())?)?;
        }
    }
    for peer in PEERS {
        let program = format!("usr/bin/{peer}");
        image.file(&format!("{ROOT}/{program}"), 0o755, bytes(&packages.join(&program))?)?;
        image.file(&format!("bin/{peer}"), 0o755, called_by_name(&program).into_bytes())?;
    }
    // tcpdump looks up whom to run as.
    image.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n".to_vec())
}

/// A script in a program's place: the guest's own libraries are this machine's.
fn called_by_name(program: &str) -> String {
    format!("#!/bin/sh\nexec /{ROOT}/{LOADER} --library-path /{ROOT}/{LIBRARIES} /{ROOT}/{program} \"$@\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_runs_with_its_own_libraries() {
        assert_eq!(
            called_by_name("usr/bin/pwru"),
            "#!/bin/sh\nexec /peers/usr/lib64/ld-linux-x86-64.so.2 --library-path /peers/usr/lib/x86_64-linux-gnu \
             /peers/usr/bin/pwru \"$@\"\n"
        );
    }

    #[test]
    fn its_kernel_is_one_of_ours() {
        assert!(KERNEL.parse::<Wanted>().is_ok());
    }
}
