//! Round trips, sorted into buckets a sixteenth of their size.
use std::time::Duration;

use serde::Serialize;

/// Buckets within one power of two.
const STEPS: usize = 16;

/// How often each bucket was hit.
#[derive(Debug, Clone)]
pub(super) struct Latencies {
    buckets: Vec<u64>,
    max: Duration,
}

/// Round trips in microseconds; the first two are exact to 6 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half took at most this.
    pub p50: f64,
    /// 99 of 100 took at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self { buckets: vec![0; 64 * STEPS], max: Duration::ZERO }
    }

    pub(super) fn add(&mut self, took: Duration) {
        self.buckets[bucket(took.as_nanos() as u64)] += 1;
        self.max = self.max.max(took);
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        let micros = |nanos| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
        Percentiles {
            p50: micros(self.below(500)),
            p99: micros(self.below(990)),
            max: micros(self.max.as_nanos() as u64),
        }
    }

    /// The upper end of the bucket in which so many of a thousand are reached.
    fn below(&self, of_thousand: u64) -> u64 {
        let wanted = (self.buckets.iter().sum::<u64>() * of_thousand).div_ceil(1000);
        let mut sum = 0;
        let reached = self.buckets.iter().position(|count| {
            sum += count;
            sum >= wanted && sum > 0
        });
        reached.map_or(0, end).min(self.max.as_nanos() as u64)
    }
}

/// Below 16 each number has its own; above, the power of two and the four bits behind its first.
fn bucket(nanos: u64) -> usize {
    let power = nanos.checked_ilog2().unwrap_or(0) as usize;
    if power < 4 { nanos as usize } else { (power - 3) * STEPS + (nanos >> (power - 4)) as usize - STEPS }
}

/// The largest number in a bucket.
fn end(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (low_bits, step) = (bucket / STEPS - 1, bucket % STEPS);
    ((STEPS + step) as u64) << low_bits | ((1 << low_bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_a_bucket_that_ends_close_above_it() {
        for nanos in (0..100_000).chain([1 << 40, u64::MAX / 3, u64::MAX]) {
            let end = end(bucket(nanos));
            assert!(end >= nanos, "{nanos} in a bucket that ends at {end}");
            assert!(end - nanos <= nanos / 16, "{nanos} in a bucket that ends at {end}");
        }
    }

    #[test]
    fn percentiles() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentiles(), Percentiles::default());
        (1..=1000).for_each(|micros| latencies.add(Duration::from_micros(micros)));
        latencies.add(Duration::from_secs(1));
        let Percentiles { p50, p99, max } = latencies.percentiles();
        assert!((500.0..=535.0).contains(&p50), "{p50}");
        assert!((990.0..=1060.0).contains(&p99), "{p99}");
        assert!((max - 1e6).abs() < 1.0, "{max}");
    }
}
