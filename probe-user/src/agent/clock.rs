//! The records' clock and the calendar's.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// One moment in both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic_ns: sys::monotonic().as_nanos() as u64, unix_ns: unix.as_nanos() as u64 }
    }

    /// A time of the records' clock as nanoseconds since 1970. Where the calendar was set meanwhile, by today's.
    pub fn unix_ns(self, ktime_ns: u64) -> u64 {
        let ago_ns = i128::from(self.monotonic_ns) - i128::from(ktime_ns);
        u64::try_from((i128::from(self.unix_ns) - ago_ns).max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_records_in_the_calendar() {
        let now = Moment { monotonic_ns: 5_000, unix_ns: 1_000_000 };
        assert_eq!(now.unix_ns(4_000), 999_000);
        assert_eq!(now.unix_ns(6_000), 1_001_000, "a record that is newer than this moment");
        assert_eq!(Moment { unix_ns: 10, ..now }.unix_ns(0), 0, "a clock that was never set");
    }
}
