//! What the agent takes of the machine, again and again.
#![expect(clippy::cast_precision_loss, reason = "kilobytes and counts of one process")]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use probe_lab::plsprobe_agent::Usage;

/// Samples of a run; a table has a row for so many.
const SAMPLES: u32 = 360;
const ROWS: usize = 12;
/// How much more memory the last third may take than the second: what a busy allocator moves, and no more. A leak of a
/// hundred bytes a flow would be 4 MiB in a run of half an hour.
const GROWTH_KIB: f64 = 1024.0;
/// The same where the run is too short to fill what is bounded: history, remembered flows.
const FILLING_KIB: f64 = 24.0 * 1024.0;
/// From this on everything bounded is full within the first third.
const LONG: Duration = Duration::from_mins(15);

/// All of a run.
pub(crate) struct Samples(Vec<(Duration, Usage)>);

impl Samples {
    /// Takes them until it is over.
    pub(crate) fn take(pid: u32, span: Duration, is_over: &AtomicBool) -> Self {
        let began = Instant::now();
        let mut samples = vec![(Duration::ZERO, Usage::of(pid))];
        let every = span / SAMPLES;
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            if began.elapsed() >= every * samples.len() as u32 {
                samples.push((began.elapsed(), Usage::of(pid)));
            }
        }
        Self(samples)
    }

    /// The last third is as the second; in the first one memory fills that is bounded.
    pub(crate) fn check_flat(&self, span: Duration) {
        let third = self.0.len() / 3;
        let (second, last) = (&self.0[third..2 * third], &self.0[2 * third..]);
        let grown = |what: fn(&Usage) -> f64| mean(last, what) - mean(second, what);
        let bound = if span >= LONG { GROWTH_KIB } else { FILLING_KIB };
        let memory = grown(|usage| usage.dirty_kib as f64);
        assert!(memory <= bound, "{memory:.0} KiB more in the last third than in the second\n{self}");
        let fds = grown(|usage| usage.fds as f64);
        assert!(fds <= 8.0, "{fds:.0} descriptors more in the last third\n{self}");
        // Reading the maps and Cilium's agent takes a few more for a moment.
        let threads = grown(|usage| usage.threads as f64);
        assert!(threads <= 0.5, "{threads:.1} threads more in the last third\n{self}");
    }
}

fn mean(samples: &[(Duration, Usage)], what: fn(&Usage) -> f64) -> f64 {
    samples.iter().map(|(_, usage)| what(usage)).sum::<f64>() / samples.len().max(1) as f64
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| until | RSS | its own, written | descriptors | threads | CPU |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        let per_row = (self.0.len() / ROWS).max(2);
        let mut before = self.0[0];
        for row in self.0.chunks(per_row).filter(|row| row.len() > 1) {
            let (at, last) = row[row.len() - 1];
            let busy = last.cpu.saturating_sub(before.1.cpu).as_secs_f64()
                / at.saturating_sub(before.0).as_secs_f64();
            let mib = |what: fn(&Usage) -> f64| mean(row, what) / 1024.0;
            let (rss, dirty) = (mib(|usage| usage.rss_kib as f64), mib(|usage| usage.dirty_kib as f64));
            let fds = mean(row, |usage| usage.fds as f64);
            let (until, threads) = (at.as_secs_f64() / 60.0, last.threads);
            writeln!(
                f,
                "| {until:.1} min | {rss:.1} MiB | {dirty:.1} MiB | {fds:.0} | {threads} | {:.1} % |",
                busy * 100.0
            )?;
            before = (at, last);
        }
        Ok(())
    }
}
