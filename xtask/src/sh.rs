//! Running other programs: what failed, with what, and as whom.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Says what is about to happen, and why. On stderr: stdout belongs to the programs we run.
pub(crate) fn say(step: &str) {
    eprintln!("xtask: {step}");
}

/// Runs `cmd` to its end with our own stdin, stdout and stderr.
///
/// # Errors
///
/// If it cannot be started or does not exit with 0.
pub(crate) fn run(cmd: &mut Command) -> Result<()> {
    let status = cmd.status().with_context(|| format!("failed to run `{}`", line(cmd)))?;
    ensure!(status.success(), "`{}` failed: {status}", line(cmd));
    Ok(())
}

/// Runs `cmd` and returns what it wrote to stdout.
///
/// # Errors
///
/// If it cannot be started or does not exit with 0; the message carries its stderr.
pub(crate) fn output(cmd: &mut Command) -> Result<String> {
    let out = cmd.stdin(Stdio::null()).output().with_context(|| format!("failed to run `{}`", line(cmd)))?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "`{}` failed: {}: {}", line(cmd), out.status, stderr.trim());
    String::from_utf8(out.stdout).with_context(|| format!("output of `{}` is not UTF-8", line(cmd)))
}

/// Runs `cmd` quietly for at most `limit`, then kills it. `None` is a timeout.
///
/// Returns its exit status and its stderr.
///
/// # Errors
///
/// If it cannot be started or waited for.
pub(crate) fn quietly_within(cmd: &mut Command, limit: Duration) -> Result<Option<(ExitStatus, String)>> {
    let mut child = cmd
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to run `{}`", line(cmd)))?;
    let mut stderr = child.stderr.take().context("child has no stderr")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            let text = reader.join().map_err(|_| anyhow::anyhow!("reader of stderr panicked"))??;
            return Ok(Some((status, text)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("failed to kill a command that ran too long")?;
    child.wait()?;
    Ok(None)
}

/// A command that runs `program` as root: directly when we are root, else through sudo, saying for what.
///
/// # Errors
///
/// If we are not root and there is no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>, reason: &str) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("root is needed to {reason}, and there is no `sudo`; run this command as root");
    }
    say(&format!("sudo, to {reason}"));
    let mut cmd = Command::new("sudo");
    cmd.arg("-E").arg("--").arg(program);
    Ok(cmd)
}

/// Whether our effective user is root.
///
/// # Errors
///
/// If /proc is not mounted.
pub(crate) fn is_root() -> Result<bool> {
    let proc_self =
        std::fs::metadata("/proc/self").context("failed to read `/proc/self`; is /proc mounted?")?;
    Ok(proc_self.uid() == 0)
}

/// Finds an executable as a shell would, and in the sbin directories, which a user's PATH often lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// The command line as one would type it; for messages only.
pub(crate) fn line(cmd: &Command) -> String {
    let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Reads a text file; the message names it.
///
/// # Errors
///
/// If it cannot be read as UTF-8.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_with_its_stderr() {
        let err = output(Command::new("sh").args(["-c", "echo no such map >&2; exit 3"])).unwrap_err();
        let text = format!("{err:#}");
        assert!(text.contains("exit status: 3: no such map"), "{text}");
        assert!(text.starts_with("`sh -c "), "{text}");
    }

    #[test]
    fn a_command_that_runs_too_long_is_killed() {
        let start = Instant::now();
        let ended = quietly_within(Command::new("sleep").arg("30"), Duration::from_millis(100)).unwrap();
        assert!(ended.is_none());
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_command_that_ends_in_time_gives_its_status_and_stderr() {
        let mut cmd = Command::new("sh");
        let (status, text) =
            quietly_within(cmd.args(["-c", "echo why >&2; exit 2"]), Duration::from_secs(20))
                .unwrap()
                .unwrap();
        assert_eq!((status.code(), text.as_str()), (Some(2), "why\n"));
    }
}
