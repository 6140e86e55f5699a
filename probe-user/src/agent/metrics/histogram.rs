//! How long answers took.

use std::time::Duration;

use super::exposition::Page;

/// Bounds of the buckets in microseconds: a pod of this node answers within the first few, one across a region's
/// networks in the middle; a SYN that was sent again is answered after 1, 3 or 7 seconds.
const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How many values fell between its bounds, and their sum.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// The last has those above every bound.
    counts: [u64; BOUNDS_US.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts a value.
    pub(super) fn observe(&mut self, value: Duration) {
        let idx = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < value);
        self.counts[idx] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Writes its samples.
    pub(super) fn write(&self, page: &mut Page, labels: &[&str]) {
        let mut so_far = 0;
        for (bound, count) in BOUNDS_US.iter().zip(self.counts) {
            so_far += count;
            // `1.0`, not `1`: OpenMetrics wants it so, and a series must not have another name in the other format.
            let le = format!("{:?}", Duration::from_micros(*bound).as_secs_f64());
            page.part("_bucket", labels, Some(&le), so_far);
        }
        so_far += self.counts[BOUNDS_US.len()];
        page.part("_bucket", labels, Some("+Inf"), so_far);
        page.part("_sum", labels, None, self.sum.as_secs_f64());
        page.part("_count", labels, None, so_far);
    }
}
