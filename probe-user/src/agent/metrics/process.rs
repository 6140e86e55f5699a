//! What the process itself uses, under the names that every Prometheus client library gives it.
//!
//! Source: proc(5). Reading these files touches no disk.

use std::fs;
use std::time::Duration;

use super::exposition::Page;
use super::families as f;

/// Clock ticks of a second in what /proc shows: `USER_HZ`, which is 100 on every architecture plsprobe is built for.
const USER_HZ: u64 = 100;

/// Writes what /proc says; what it does not is left out.
pub(super) fn write(page: &mut Page) {
    let times = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| times(&stat));
    if let Some(Times { cpu, .. }) = times {
        page.single(&f::PROCESS_CPU, cpu.as_secs_f64());
    }
    let boot = fs::read_to_string("/proc/stat").ok().and_then(|stat| field(&stat, "btime"));
    if let (Some(Times { start, .. }), Some(boot)) = (times, boot) {
        page.single(&f::PROCESS_START, (Duration::from_secs(boot) + start).as_secs_f64());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (family, name) in [(&f::PROCESS_RESIDENT, "VmRSS:"), (&f::PROCESS_RESIDENT_MAX, "VmHWM:")] {
        if let Some(kib) = field(&status, name) {
            page.single(family, kib * 1024);
        }
    }
    if let Some(threads) = field(&status, "Threads:") {
        page.single(&f::PROCESS_THREADS, threads);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        page.single(&f::PROCESS_FDS, open.count().saturating_sub(1));
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(max) = field(&limits, "Max open files") {
        page.single(&f::PROCESS_FDS_MAX, max);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// In user space and in the kernel.
    cpu: Duration,
    /// When it was started, after the machine was.
    start: Duration,
}

fn times(stat: &str) -> Option<Times> {
    // The name before may hold spaces and parentheses. The first word after it is field 3.
    let words: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| words.get(field - 3)?.parse::<u64>().ok();
    let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000 / USER_HZ));
    Some(Times { cpu: time(ticks(14)?.saturating_add(ticks(15)?)), start: time(ticks(22)?) })
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 300 0 0 0 250 50 0 0 20 0 3 0 12345 9000000 800 1844";
        let expected = Times { cpu: Duration::from_secs(3), start: Duration::from_millis(123_450) };
        assert_eq!(times(stat), Some(expected));
        assert_eq!(times("7 (a) S 1"), None);
        assert_eq!(times(""), None);
    }

    #[test]
    fn a_number_behind_its_name() {
        assert_eq!(field("VmHWM:\t 12 kB\nVmRSS:\t    9000 kB\n", "VmRSS:"), Some(9000));
        assert_eq!(field("Max open files            1024  524288 files\n", "Max open files"), Some(1024));
        assert_eq!(field("Max open files            unlimited\n", "Max open files"), None);
    }
}
