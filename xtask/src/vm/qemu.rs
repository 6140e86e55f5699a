//! Boots the guest and reads its serial console, for no longer than it may take.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::init::MARK;
use crate::sh;

/// What the guest said of itself.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Exit code of each payload that ended.
    pub(crate) exits: BTreeMap<String, i32>,
    /// Our programs, and whether the kernel took each: `Ok`, or what it said.
    pub(crate) programs: BTreeMap<String, Result<(), String>>,
    /// Whether pid 1 was ever heard of.
    pub(crate) started: bool,
    /// Whether pid 1 came to its end.
    finished: bool,
    /// Whether the guest was killed because its time was over.
    timed_out: bool,
    complaints: Vec<String>,
}

impl Report {
    /// What went wrong outside of the payloads.
    pub(crate) fn trouble(&self) -> Vec<String> {
        let mut trouble = self.complaints.clone();
        if self.timed_out {
            trouble.push("the guest was killed as it took too long".to_owned());
        } else if !self.finished {
            trouble.push("the guest ended before its pid 1 did".to_owned());
        }
        trouble
    }

    /// Reads one line of the console.
    fn read(&mut self, line: &str) {
        let skipped = line.split_once("skipped (").and_then(|(_, rest)| rest.split_once(" so far): "));
        if let Some((_, reason)) = skipped {
            self.complaints.push(format!("a test skipped itself: {reason}"));
        }
        if line == "running 0 tests" {
            self.complaints.push("a payload had no test to run".to_owned());
        }
        if let Some((name, said)) = program(line) {
            self.programs.insert(name.to_owned(), said);
        }
        // The kernel's own lines may stand before ours on the same line.
        let Some((_, words)) = line.split_once(MARK) else { return };
        self.started = true;
        match words.split_whitespace().collect::<Vec<_>>()[..] {
            ["exit", name, code] => {
                // A code we cannot read is a failure as well.
                self.exits.insert(name.to_owned(), code.parse().unwrap_or(-1));
            }
            ["finished"] => self.finished = true,
            ["trouble", ..] => self.complaints.push(words.trim().trim_start_matches("trouble ").to_owned()),
            _ => {}
        }
    }
}

/// `` eBPF program `NAME`: loaded ``, or what the kernel said, as `every_program_loads` in probe-user prints it.
fn program(line: &str) -> Option<(&str, Result<(), String>)> {
    let (_, rest) = line.split_once("eBPF program `")?;
    let (name, said) = rest.split_once("`: ")?;
    Some((name, if said == "loaded" { Ok(()) } else { Err(said.to_owned()) }))
}

/// Boots `kernel` with `initramfs`, prints its console, and returns what it reported.
///
/// What the guest writes to its second serial line is in the file `sent` afterwards.
///
/// # Errors
///
/// If QEMU cannot be run. A guest that hangs is killed after `limit`, and the report says so.
pub(crate) fn boot(
    kernel: &Path,
    initramfs: &Path,
    sent: &Path,
    clock: Clock,
    limit: Duration,
) -> Result<Report> {
    let mut qemu = command(kernel, initramfs, sent, clock);
    let mut guest = Guest(qemu.spawn().context("failed to run `qemu-system-x86_64`")?);
    let console = guest.0.stdout.take().context("qemu has no stdout")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        // The console is bytes: a panicking kernel need not write UTF-8.
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut report = Report::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line = printable(&line);
                println!("vm: {line}");
                report.read(&line);
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = guest.0.wait()?;
                if !status.success() {
                    // An option that it does not know, say.
                    let qemu = sh::line(&qemu);
                    report.complaints.push(format!("`{qemu}` ended with {status}, and says above why"));
                }
                break;
            }
            Err(RecvTimeoutError::Timeout) => {
                report.timed_out = true;
                break;
            }
        }
    }
    Ok(report)
}

/// The line without the firmware's escape sequences, which would clear our terminal.
fn printable(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // `ESC c`, `ESC [ … LETTER`: a letter ends both.
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else if !c.is_control() || c == '\t' {
            text.push(c);
        }
    }
    text
}

/// A QEMU that does not outlive us, whichever way we leave.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails only if it has ended by itself, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a guest's time is.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// That of this machine, for two CPUs, as programs on several CPUs need them.
    OfHost,
    /// The number of instructions that its one CPU has run, one a nanosecond; while that has nothing to do the time is
    /// at once that of the next timer.
    ///
    /// For what is to be measured: it does not depend on what else this machine does. And for what patches the kernel's
    /// code as often as a tracer of a thousand functions does: with several CPUs QEMU 7.2's emulation sometimes runs
    /// code that another one just patches.
    Counted,
}

impl Clock {
    const fn args(self) -> &'static [&'static str] {
        match self {
            Self::OfHost => &["-accel", "tcg,thread=multi", "-smp", "2"],
            // Without `sleep=off` it would wait for this machine's clock where it has nothing to do.
            Self::Counted => &["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"],
        }
    }
}

fn command(kernel: &Path, initramfs: &Path, sent: &Path, clock: Clock) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // `-cx16`: with it, QEMU 7.2's emulation makes Linux 6.12 and later panic.
    qemu.args(clock.args()).args(["-cpu", "max,-cx16", "-m", "2048"]);
    qemu.args(["-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-serial"]).arg(format!("file:{}", sent.display()));
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    qemu
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(console: &str) -> Report {
        let mut report = Report::default();
        console.lines().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn the_console_is_understood() {
        let report = report(
            "[    1.2] x\nPLSPROBE-VM: start a\nPLSPROBE-VM: exit a 0\n[ 3.1] noisePLSPROBE-VM: exit b 101\n\
             PLSPROBE-VM: trouble module veth was refused\n\
             eBPF program `p`: loaded\neBPF program `q`: the kernel refused to load it: EINVAL\ntest x ... skipped (1 so far): not root\nok\nPLSPROBE-VM: finished\n",
        );
        assert_eq!(report.exits, BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 101)]));
        let refused = Err("the kernel refused to load it: EINVAL".to_owned());
        assert_eq!(report.programs, BTreeMap::from([("p".to_owned(), Ok(())), ("q".to_owned(), refused)]));
        assert!(report.started && report.finished);
        assert_eq!(report.trouble(), ["module veth was refused", "a test skipped itself: not root"]);
    }

    #[test]
    fn escape_sequences_stay_out_of_our_terminal() {
        assert_eq!(printable("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\t1\r"), "SeaBIOS\t1");
    }

    #[test]
    fn a_guest_that_dies_or_hangs_is_trouble() {
        let dead = report("Kernel panic - not syncing\n");
        assert_eq!(dead.trouble(), ["the guest ended before its pid 1 did"]);
        assert!(!dead.started);
        let hung = Report { timed_out: true, ..Report::default() };
        assert_eq!(hung.trouble(), ["the guest was killed as it took too long"]);
    }
}
